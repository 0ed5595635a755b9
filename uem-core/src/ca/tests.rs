//! Everything issued is looked at with the eyes of `shared::verify`.

use hedgerow_shared::verify::config::LIFETIME_SECONDS;
use hedgerow_shared::verify::{
    Audience, CertificateError, ConfigError, DeviceConfig, Head, Identity, NodeConfig, RelayConfig, Revoked,
    SignedConfig, TenantCa, Usage, Version, Via,
};
use hedgerow_shared::{EntityId, Origin, Role, TenantId, UnixTime};
use rustls_pki_types::CertificateDer;

use super::*;
use crate::random::Random;

const NOW: UnixTime = UnixTime(1_800_000_000);

struct Seeded(u64);

impl Random for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (self.0 >> 33) as u8;
        }
    }
}

fn tenant() -> TenantId {
    "S12345678".parse().unwrap()
}

fn identity(role: Role) -> Identity {
    let (group, origins) = match role {
        Role::Node => (Some("berlin".parse().unwrap()), vec![Origin::Proxy, Origin::Directory]),
        Role::Core => (None, vec![Origin::Core]),
        Role::Device => (None, vec![]),
    };
    Identity { tenant: tenant(), role, id: EntityId::from_random([7; 16]), group, origins }
}

fn issued(authority: &Authority, role: Role, random: &mut Seeded) -> Issued {
    let request = Key::generate(random).unwrap().certificate_request().unwrap();
    let request = CertificateRequest::from_der(&request).unwrap();
    authority.issue(&request, &identity(role), NOW, random).unwrap()
}

#[test]
fn leaves_verify_for_their_role_and_usage_and_no_other() {
    let mut random = Seeded(1);
    let authority = Authority::create(tenant(), NOW, &mut random).unwrap();
    let ca = TenantCa::from_der(authority.certificate()).unwrap();
    for role in [Role::Device, Role::Node, Role::Core] {
        let leaf = issued(&authority, role, &mut random);
        let der = CertificateDer::from(leaf.certificate.as_slice());
        let verified = ca.verify(&der, role, Usage::Client, NOW).unwrap();
        assert_eq!(verified.identity, identity(role));
        assert_eq!((verified.serial, verified.fingerprint), (leaf.record.serial.clone(), leaf.record.fingerprint));
        assert_eq!(verified.not_after, leaf.record.not_after);
        assert!(leaf.record.not_after.since(NOW) >= 30 * 24 * 3600);
        assert_eq!(leaf.record.serial.len(), 32);
        let server = ca.verify(&der, role, Usage::Server, NOW);
        if role == Role::Device {
            assert_eq!(server.unwrap_err(), CertificateError::WrongUsage);
        } else {
            server.unwrap();
        }
        let other = if role == Role::Device { Role::Node } else { Role::Device };
        assert_eq!(ca.verify(&der, other, Usage::Client, NOW).unwrap_err(), CertificateError::WrongRole(role));
        for time in [UnixTime(NOW.0 - 301), leaf.record.not_after.plus(1)] {
            assert!(matches!(ca.verify(&der, role, Usage::Client, time), Err(CertificateError::NotValidNow { .. })));
        }
        // A peer whose clock is some minutes behind takes a new certificate.
        ca.verify(&der, role, Usage::Client, UnixTime(NOW.0 - 299)).unwrap();
    }
}

#[test]
fn another_tenants_ca_is_an_unknown_issuer_even_with_the_same_tenant_id() {
    let mut random = Seeded(2);
    let authority = Authority::create(tenant(), NOW, &mut random).unwrap();
    let leaf = issued(&authority, Role::Device, &mut random);
    let der = CertificateDer::from(leaf.certificate.as_slice());
    for id in ["S12345678", "S87654321"] {
        let other = Authority::create(id.parse().unwrap(), NOW, &mut random).unwrap();
        let ca = TenantCa::from_der(other.certificate()).unwrap();
        assert_eq!(ca.verify(&der, Role::Device, Usage::Client, NOW).unwrap_err(), CertificateError::UnknownIssuer);
    }
    let mut foreign = identity(Role::Device);
    foreign.tenant = "S87654321".parse().unwrap();
    let key = Key::generate(&mut random).unwrap();
    assert!(authority.issue_for_key(&key, &foreign, NOW, &mut random).is_err());
}

#[test]
fn a_leaf_is_no_ca_and_the_ca_is_no_leaf() {
    let mut random = Seeded(3);
    let authority = Authority::create(tenant(), NOW, &mut random).unwrap();
    let leaf = issued(&authority, Role::Node, &mut random);
    assert!(TenantCa::from_der(&leaf.certificate).is_err());
    let ca = TenantCa::from_der(authority.certificate()).unwrap();
    let der = CertificateDer::from(authority.certificate());
    assert!(ca.verify(&der, Role::Core, Usage::Server, NOW).is_err());
}

#[test]
fn requests_are_refused_unless_signed_by_their_own_p256_key() {
    let request = Key::generate(&mut Seeded(4)).unwrap().certificate_request().unwrap();
    CertificateRequest::from_der(&request).unwrap();
    // The signature stands at the end, the key before it.
    let mut bad = request.clone();
    *bad.last_mut().unwrap() ^= 1;
    assert_eq!(CertificateRequest::from_der(&bad).unwrap_err(), RequestError::BadSignature);
    for cut in 0..request.len() {
        assert!(CertificateRequest::from_der(&request[..cut]).is_err());
    }
    assert_eq!(
        CertificateRequest::from_der(&[request.as_slice(), &[0]].concat()).unwrap_err(),
        RequestError::Malformed
    );
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        assert_eq!(CertificateRequest::from_der(request.der()).unwrap_err(), RequestError::WrongKey);
    }
    // A request made by somebody else's software is taken.
    let key = rcgen::KeyPair::generate().unwrap();
    let request =
        rcgen::CertificateParams::new(vec!["wishful.example".into()]).unwrap().serialize_request(&key).unwrap();
    CertificateRequest::from_der(request.der()).unwrap();
}

#[test]
fn a_key_survives_pkcs8_and_other_libraries_read_it() {
    let key = Key::generate(&mut Seeded(5)).unwrap();
    let again = Key::from_pkcs8(&key.to_pkcs8()).unwrap();
    assert_eq!(again.sign_message(b"x"), key.sign_message(b"x"));
    let pkcs8 = rustls_pki_types::PrivatePkcs8KeyDer::from(key.to_pkcs8().to_vec());
    rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    assert!(Key::from_pkcs8(b"nonsense").is_err());
    assert!(!format!("{key:?}").contains("scalar"));
}

fn config_key(authority: &Authority, random: &mut Seeded) -> ConfigKey {
    let key = Key::generate(random).unwrap();
    let certificate = authority.issue_config_key(&key, NOW, random).unwrap();
    ConfigKey::from_parts(key, certificate)
}

fn head(audience: Audience, version: u64) -> Head {
    let version = Version { epoch: 0, version };
    Head { tenant: tenant(), audience, version, issued: NOW, expires: NOW.plus(LIFETIME_SECONDS) }
}

fn relay(version: u64) -> RelayConfig {
    RelayConfig { authorities: Vec::new(), head: head(Audience::Relay, version), revoked: Revoked::default() }
}

#[test]
fn signed_configuration_verifies_and_only_under_its_tenant() {
    let mut random = Seeded(6);
    let authority = Authority::create(tenant(), NOW, &mut random).unwrap();
    let ca = TenantCa::from_der(authority.certificate()).unwrap();
    let key = config_key(&authority, &mut random);
    let signed = key.sign(&relay(3)).unwrap();
    assert_eq!(signed.verify::<RelayConfig>(&ca, None, NOW).unwrap(), relay(3));
    assert_eq!(signed, key.sign(&relay(3)).unwrap(), "the same document has the same bytes");

    let other = Authority::create(tenant(), NOW, &mut random).unwrap();
    let other = TenantCa::from_der(other.certificate()).unwrap();
    assert!(matches!(signed.verify::<RelayConfig>(&other, None, NOW), Err(ConfigError::Signature(_))));

    let device = DeviceConfig {
        authorities: Vec::new(),
        head: head(Audience::Device, 3),
        routes: vec![],
        default_route: Via::Deny,
    };
    let device = key.sign(&device).unwrap();
    device.verify::<DeviceConfig>(&ca, None, NOW).unwrap();
    assert!(matches!(signed.verify::<NodeConfig>(&ca, None, NOW), Err(ConfigError::NotForUs(_))));

    let mut bad = signed;
    bad.payload[20] ^= 1;
    assert!(matches!(bad.verify::<RelayConfig>(&ca, None, NOW), Err(ConfigError::Signature(_))));
}

#[test]
fn old_and_expired_configuration_is_refused() {
    let mut random = Seeded(7);
    let authority = Authority::create(tenant(), NOW, &mut random).unwrap();
    let ca = TenantCa::from_der(authority.certificate()).unwrap();
    let signed = config_key(&authority, &mut random).sign(&relay(3)).unwrap();
    let at = |version| Some(Version { epoch: 0, version });
    signed.verify::<RelayConfig>(&ca, at(3), NOW).unwrap();
    assert!(matches!(signed.verify::<RelayConfig>(&ca, at(4), NOW), Err(ConfigError::RolledBack { .. })));
    assert!(matches!(
        signed.verify::<RelayConfig>(&ca, Some(Version { epoch: 1, version: 0 }), NOW),
        Err(ConfigError::RolledBack { .. })
    ));
    let late = NOW.plus(LIFETIME_SECONDS);
    assert!(matches!(signed.verify::<RelayConfig>(&ca, None, late), Err(ConfigError::NotValidNow { .. })));
    signed.verify::<RelayConfig>(&ca, None, UnixTime(late.0 - 1)).unwrap();
}

#[test]
fn only_the_configuration_keys_usage_signs_configuration() {
    let mut random = Seeded(8);
    let authority = Authority::create(tenant(), NOW, &mut random).unwrap();
    let ca = TenantCa::from_der(authority.certificate()).unwrap();
    // A node with its perfectly good certificate cannot decide what all nodes allow.
    let key = Key::generate(&mut random).unwrap();
    let leaf = authority.issue_for_key(&key, &identity(Role::Node), NOW, &mut random).unwrap();
    let signed = ConfigKey::from_parts(key, leaf.certificate).sign(&relay(9)).unwrap();
    let refused = signed.verify::<RelayConfig>(&ca, None, NOW).unwrap_err();
    assert_eq!(refused, ConfigError::Signature(CertificateError::WrongUsage));
    // Nor does the configuration key open sessions.
    let key = Key::generate(&mut random).unwrap();
    let certificate = authority.issue_config_key(&key, NOW, &mut random).unwrap();
    let der = CertificateDer::from(certificate.as_slice());
    for role in [Role::Core, Role::Node, Role::Device] {
        assert!(ca.verify(&der, role, Usage::Client, NOW).is_err());
    }
    let _: SignedConfig = signed;
}
