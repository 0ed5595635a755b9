//! What is believed: certificates and signed configuration. Nothing may verify but what the fixture's tenant signed.

use hedgerow_shared::verify::certificate::read_leaf;
use hedgerow_shared::verify::config::Document;
use hedgerow_shared::verify::{
    DeviceConfig, Identity, LicenceError, LicenceKey, NodeConfig, RelayConfig, SignedConfig, SignedLicence, Standing,
    TenantCa, Usage, VerifiedCertificate, Version,
};
use hedgerow_shared::{Role, UnixTime};
use rustls_pki_types::CertificateDer;

use super::fixture::{NOW, fixture};
use super::{Input, json_round_trip};

/// `verify::certificate`. First byte modulo 3: 0 a CA certificate; 1 a leaf; 2 changes (place, byte) to a leaf that
/// the fixture's tenant signed.
pub fn certificate(data: &[u8]) {
    let fixture = fixture();
    let mut input = Input(data);
    match input.u8() % 3 {
        0 => {
            if let Ok(ca) = TenantCa::from_der(input.0) {
                assert_eq!(ca.der().as_ref(), input.0);
                for (identity, leaf) in &fixture.leaves {
                    let verified = ca.verify(&leaf.as_slice().into(), identity.role, Usage::Client, NOW);
                    assert!(verified.is_err() || ca.key_id() == fixture.ca.key_id());
                }
            }
        }
        1 => look_at(input.0),
        _ => {
            let (_, leaf) = &fixture.leaves[usize::from(input.u8()) % fixture.leaves.len()];
            let mut leaf = leaf.clone();
            while !input.0.is_empty() {
                let place = usize::from(input.u16()) % leaf.len();
                leaf[place] ^= input.u8();
            }
            look_at(&leaf);
        }
    }
}

fn look_at(der: &[u8]) {
    let fixture = fixture();
    let leaf = CertificateDer::from(der);
    let read = read_leaf(&leaf);
    if let Ok(read) = &read {
        assert_eq!(Identity::from_uri(&read.identity.to_uri()).as_ref(), Ok(&read.identity));
    }
    for role in Role::ALL {
        for usage in [Usage::Client, Usage::Server] {
            let Ok(verified) = fixture.ca.verify(&leaf, *role, usage, NOW) else { continue };
            assert!(fixture.leaves.iter().any(|(identity, own)| own == der && *identity == verified.identity));
            // Reading alone says nothing of the issuer.
            assert_eq!(verified.issuer, fixture.ca.key_id());
            assert_eq!(read, Ok(VerifiedCertificate { issuer: [0; 32], ..verified.clone() }));
            assert_eq!(verified.identity.role, *role);
            for outside in [UnixTime(0), NOW.plus(10 * 365 * 24 * 3600), UnixTime(u64::MAX)] {
                assert!(fixture.ca.verify(&leaf, *role, usage, outside).is_err(), "valid at {outside:?}");
            }
        }
    }
}

/// `verify::licence`. First byte modulo 4: 0 a licence as CBOR; 1 a text with a PEM block; 2 a payload, signed here; 3 a
/// public key, PEM.
pub fn licence(data: &[u8]) {
    let mut input = Input(data);
    match input.u8() % 4 {
        0 => {
            if let Ok(signed) = minicbor::decode::<SignedLicence>(input.0) {
                look_at_licence(&signed);
            }
        }
        1 => {
            let Some(Ok(signed)) = input.text().map(SignedLicence::from_pem) else { return };
            assert_eq!(SignedLicence::from_pem(&signed.to_pem()).as_ref(), Ok(&signed), "one form");
            look_at_licence(&signed);
        }
        2 => {
            let mut signed = sign_licence(input.0);
            look_at_licence(&signed);
            if let Some(byte) = signed.payload.last_mut() {
                *byte ^= 1;
                assert!(signed.verify(&[licence_key()]).is_err(), "a changed licence is believed");
            }
        }
        _ => {
            let Some(Ok(key)) = input.text().map(LicenceKey::from_pem) else { return };
            assert_eq!(LicenceKey::from_pem(&key.to_pem()).as_ref(), Ok(&key), "one form");
            assert_eq!(
                sign_licence(b"{}").verify(std::slice::from_ref(&key)).err() == Some(LicenceError::Signature),
                key != licence_key()
            );
        }
    }
}

pub(super) fn licence_key() -> LicenceKey {
    LicenceKey::from_der(&fixture().node_key.public_key_info()).expect("a P-256 key")
}

pub(super) fn sign_licence(payload: &[u8]) -> SignedLicence {
    let signature = fixture().node_key.sign_message(&SignedLicence::message(payload));
    SignedLicence { payload: payload.to_vec(), signature }
}

fn look_at_licence(signed: &SignedLicence) {
    let Ok((licence, key)) = signed.verify(&[licence_key()]) else { return };
    assert_eq!((signed.unverified().as_ref(), key), (Ok(&licence), licence_key().id()));
    // Signatures of the fixture's key are deterministic: nobody else made this one.
    assert_eq!(sign_licence(&signed.payload), *signed);
    let again = licence.payload().expect("what was read can be written");
    assert_eq!(sign_licence(&again).unverified().as_ref(), Ok(&licence));
    let place = |now| match licence.standing(UnixTime(now)) {
        Standing::NotYet { .. } => 0,
        Standing::Valid { .. } => 1,
        Standing::Grace { .. } => 2,
        Standing::Expired => 3,
    };
    let moments = [0, licence.not_before.0, licence.expires.0, licence.grace_until().0, u64::MAX];
    let mut moments = moments.to_vec();
    moments.sort_unstable();
    assert!(moments.iter().map(|now| place(*now)).is_sorted(), "its standing goes back: {licence:?}");
}

/// `verify::config`. First byte modulo 2: 0 a signed configuration as CBOR; 1 a payload, signed here when it reads as
/// JSON of one of the three documents.
pub fn signed_config(data: &[u8]) {
    let mut input = Input(data);
    if input.u8().is_multiple_of(2) {
        let Ok(signed) = minicbor::decode::<SignedConfig>(input.0) else { return };
        verified::<RelayConfig>(&signed);
        verified::<NodeConfig>(&signed);
        verified::<DeviceConfig>(&signed);
    } else {
        payload::<RelayConfig>(input.0);
        payload::<NodeConfig>(input.0);
        payload::<DeviceConfig>(input.0);
    }
}

fn payload<D: Document + PartialEq + std::fmt::Debug>(json: &[u8]) {
    let Some(document) = json_round_trip::<D>(json) else { return };
    let mut signed = fixture().config_key.sign(&document).expect("what was read can be written");
    if let Some(read) = verified::<D>(&signed) {
        assert_eq!(read, document);
    }
    let place = json.len() % signed.payload.len();
    signed.payload[place] ^= 1;
    assert!(signed.verify::<D>(&fixture().ca, None, NOW).is_err(), "a changed payload is believed");
}

fn verified<D: Document>(signed: &SignedConfig) -> Option<D> {
    let ca = &fixture().ca;
    let document: D = signed.verify(ca, None, NOW).ok()?;
    let head = document.head();
    assert_eq!((&head.tenant, head.audience), (ca.tenant(), D::AUDIENCE));
    assert!(head.expires > NOW);
    assert!(signed.verify::<D>(ca, Some(head.version), NOW).is_ok(), "the same version is accepted again");
    if let Some(version) = head.version.version.checked_add(1) {
        let seen = Version { version, ..head.version };
        assert!(signed.verify::<D>(ca, Some(seen), NOW).is_err(), "an older version is accepted");
    }
    assert!(signed.verify::<D>(ca, None, head.expires).is_err(), "it is valid when it has expired");
    Some(document)
}
