//! The CA of a tenant: what its leaves are verified with. While it is rolled over there are two, and the next one is
//! believed because the one before it has endorsed it.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime as PkiTime};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use webpki::{EndEntityCert, KeyUsage};

use super::certificate::{
    CONFIG_KEY_EKU_DER, CertificateError, Field, MAX_CERTIFICATE, Usage, VerifiedCertificate, explain, parse,
    read_leaf, subject_text, verify_signature,
};
use crate::{Role, TenantId, UnixTime};

/// Separates an endorsement's signature from every other use of a CA's key.
pub const ENDORSEMENT_CONTEXT: &[u8] = b"hedgerow tenant CA endorsement v1\0";

/// So many CAs a tenant has at most: the one in force and the next, or the one before.
pub const MAX_AUTHORITIES: usize = 2;

/// A CA as signed configuration announces it. The first of a list is the one that certifies holders now: whose certificate
/// stands under another one asks for a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// The CA certificate, DER.
    #[serde(with = "crate::encoding::base64")]
    pub certificate: Vec<u8>,
    /// ECDSA P-256, SHA-256, ASN.1, by the key of the CA before it, over `endorsement_message`. Without it only who
    /// believes this CA already goes on to.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "crate::encoding::base64")]
    pub endorsement: Vec<u8>,
}

/// What the CA before signs for the next one.
#[must_use]
pub fn endorsement_message(certificate: &[u8]) -> Vec<u8> {
    [ENDORSEMENT_CONTEXT, certificate].concat()
}

/// The CAs of a tenant that are believed. Clones share them: what one is told by `replace`, all verify with from then on.
#[derive(Clone)]
pub struct TenantCa {
    tenant: TenantId,
    anchors: Arc<RwLock<Arc<[Anchor]>>>,
}

#[derive(Clone, PartialEq, Eq)]
struct Anchor {
    der: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    key_id: [u8; 32],
}

impl PartialEq for TenantCa {
    fn eq(&self, other: &Self) -> bool {
        self.tenant == other.tenant && self.anchors() == other.anchors()
    }
}

impl Eq for TenantCa {}

impl fmt::Debug for TenantCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantCa({}, {})", self.tenant, self.pin())
    }
}

impl TenantCa {
    /// Reads one CA certificate: self-signed, a CA, an ECDSA P-256 key, `O` = tenant id.
    ///
    /// # Errors
    /// `Malformed` or `BadCa`.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let (tenant, anchor) = read(der)?;
        Ok(Self { tenant, anchors: Arc::new(RwLock::new([anchor].into())) })
    }

    /// Reads the CAs of one tenant; the first certifies holders now.
    ///
    /// # Errors
    /// As `from_der`; none, too many, or of several tenants.
    pub fn from_ders<D: AsRef<[u8]>>(ders: &[D]) -> Result<Self, CertificateError> {
        let (first, more) = ders.split_first().ok_or(CertificateError::BadCa("there is none"))?;
        let ca = Self::from_der(first.as_ref())?;
        if !more.is_empty() {
            ca.replace(ders)?;
        }
        Ok(ca)
    }

    /// Believes these from now on, in every clone.
    ///
    /// # Errors
    /// As `from_ders`; nothing has changed then.
    pub fn replace<D: AsRef<[u8]>>(&self, ders: &[D]) -> Result<(), CertificateError> {
        if ders.is_empty() || ders.len() > MAX_AUTHORITIES {
            return Err(CertificateError::BadCa("a tenant has one or two"));
        }
        let mut anchors = Vec::with_capacity(ders.len());
        for der in ders {
            let (tenant, anchor) = read(der.as_ref())?;
            if tenant != self.tenant {
                return Err(CertificateError::WrongTenant);
            }
            anchors.push(anchor);
        }
        *self.anchors.write().unwrap_or_else(PoisonError::into_inner) = anchors.into();
        Ok(())
    }

    /// What is to be believed after this announcement: of its CAs those that are believed already, and those that one of
    /// them has endorsed; in its order. `None` when that changes nothing.
    ///
    /// # Errors
    /// A CA that is announced can be no CA of this tenant, or none of them is believed.
    pub fn after(&self, announced: &[Announced]) -> Result<Option<Vec<CertificateDer<'static>>>, CertificateError> {
        let anchors = self.anchors();
        if announced.is_empty() || announced.iter().map(|a| &a.certificate[..]).eq(anchors.iter().map(|a| &a.der[..])) {
            return Ok(None);
        }
        if announced.len() > MAX_AUTHORITIES {
            return Err(CertificateError::BadCa("a tenant has one or two"));
        }
        let mut believed = Vec::new();
        for one in announced {
            let (tenant, anchor) = read(&one.certificate)?;
            if tenant != self.tenant {
                return Err(CertificateError::WrongTenant);
            }
            let message = endorsement_message(&one.certificate);
            let known = anchors.iter().any(|a| a.key_id == anchor.key_id && a.der == anchor.der);
            if known || anchors.iter().any(|a| verify_signature(&a.der, &message, &one.endorsement).is_ok()) {
                believed.push(anchor.der);
            }
        }
        if believed.is_empty() {
            return Err(CertificateError::BadCa("the announced CA was not endorsed by the one that is believed"));
        }
        let same = believed.iter().eq(anchors.iter().map(|a| &a.der));
        Ok((!same).then_some(believed))
    }

    /// The tenant they name.
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// The certificate of the first.
    #[must_use]
    pub fn der(&self) -> CertificateDer<'static> {
        self.first().der
    }

    /// All certificates, the first first.
    #[must_use]
    pub fn ders(&self) -> Vec<CertificateDer<'static>> {
        self.anchors().iter().map(|a| a.der.clone()).collect()
    }

    /// SHA-256 of the first one's public key info: what a token pins.
    #[must_use]
    pub fn key_id(&self) -> [u8; 32] {
        self.first().key_id
    }

    /// `key_id` of each: what a relay registers once.
    #[must_use]
    pub fn key_ids(&self) -> Vec<[u8; 32]> {
        self.anchors().iter().map(|a| a.key_id).collect()
    }

    /// `key_id` in lower-case hexadecimal.
    #[must_use]
    pub fn pin(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.key_id())
    }

    /// Verifies a leaf: signature by the key of one of the CAs, validity at `now`, usage, form, tenant, role. Revocation is
    /// the caller's next question (`Revoked::names`).
    ///
    /// # Errors
    /// Which of these failed.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        role: Role,
        usage: Usage,
        now: UnixTime,
    ) -> Result<VerifiedCertificate, CertificateError> {
        let usage = match usage {
            Usage::Server => KeyUsage::server_auth(),
            Usage::Client => KeyUsage::client_auth(),
        };
        let issuer = verify_chain(&self.anchors(), leaf, usage, now)?;
        let verified = VerifiedCertificate { issuer, ..read_leaf(leaf)? };
        if verified.identity.tenant != self.tenant {
            return Err(CertificateError::WrongTenant);
        }
        if verified.identity.role != role {
            return Err(CertificateError::WrongRole(verified.identity.role));
        }
        Ok(verified)
    }

    /// As `verify`, but an expired certificate passes: it is verified as of its last second. Only for asking for a new
    /// one; whoever calls this compares `not_after` and decides what else such a holder may do.
    ///
    /// # Errors
    /// As `verify`.
    pub fn verify_lapsed(
        &self,
        leaf: &CertificateDer<'_>,
        role: Role,
        usage: Usage,
        now: UnixTime,
    ) -> Result<VerifiedCertificate, CertificateError> {
        let not_after = read_leaf(leaf)?.not_after;
        self.verify(leaf, role, usage, now.min(not_after))
    }

    /// Whether a leaf that may be used as a client's stands under the first CA, whatever the time.
    #[must_use]
    pub fn is_by_first(&self, leaf: &CertificateDer<'_>) -> bool {
        let anchors = self.anchors();
        let Ok(read) = read_leaf(leaf) else { return false };
        verify_chain(anchors.get(..1).unwrap_or_default(), leaf, KeyUsage::client_auth(), read.not_after).is_ok()
    }

    /// Verifies that `message` was signed (ECDSA P-256, SHA-256, ASN.1) by a key that one of the CAs certified as a
    /// configuration key.
    ///
    /// # Errors
    /// As `verify`; a wrong signature is `Malformed`.
    pub fn verify_config_signature(
        &self,
        certificate: &CertificateDer<'_>,
        message: &[u8],
        signature: &[u8],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        verify_chain(&self.anchors(), certificate, KeyUsage::required(CONFIG_KEY_EKU_DER), now)?;
        verify_signature(certificate, message, signature)
    }

    fn anchors(&self) -> Arc<[Anchor]> {
        self.anchors.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn first(&self) -> Anchor {
        let anchors = self.anchors();
        anchors.first().cloned().expect("`from_der` and `replace` keep at least one")
    }
}

fn read(der: &[u8]) -> Result<(TenantId, Anchor), CertificateError> {
    if der.len() > MAX_CERTIFICATE {
        return Err(CertificateError::Malformed("it is larger than 8 KiB"));
    }
    let der = CertificateDer::from(der.to_vec());
    let parsed = parse(&der)?;
    let is_ca = parsed.basic_constraints().ok().flatten().is_some_and(|b| b.value.ca);
    if !is_ca || parsed.subject() != parsed.issuer() {
        return Err(CertificateError::BadCa("it is not a self-signed CA certificate"));
    }
    // Else whoever has seen a CA's public key could register it as its own.
    verify_signature(&der, parsed.tbs_certificate.as_ref(), &parsed.signature_value.data)
        .map_err(|_| CertificateError::BadCa("it is not signed by its own key"))?;
    let tenant = subject_text(&parsed, Field::Organisation)
        .and_then(|o| o.parse().ok())
        .ok_or(CertificateError::BadCa("its subject has no O = tenant id"))?;
    let key_id = Sha256::digest(parsed.public_key().raw).into();
    let anchor = webpki::anchor_from_trusted_cert(&der)
        .map_err(|_| CertificateError::BadCa("it cannot be a trust anchor"))?
        .to_owned();
    Ok((tenant, Anchor { der, anchor, key_id }))
}

/// Verifies a leaf under one of the anchors; the key id of which.
fn verify_chain(
    anchors: &[Anchor],
    leaf: &CertificateDer<'_>,
    usage: KeyUsage,
    now: UnixTime,
) -> Result<[u8; 32], CertificateError> {
    if leaf.len() > MAX_CERTIFICATE {
        return Err(CertificateError::Malformed("it is larger than 8 KiB"));
    }
    let end =
        EndEntityCert::try_from(leaf).map_err(|_| CertificateError::Malformed("it is not an X.509 certificate"))?;
    let time = PkiTime::since_unix_epoch(Duration::from_secs(now.0));
    let mut why = CertificateError::UnknownIssuer;
    for anchor in anchors {
        let anchors = std::slice::from_ref(&anchor.anchor);
        match end.verify_for_usage(&[webpki::aws_lc_rs::ECDSA_P256_SHA256], anchors, &[], time, usage, None, None) {
            Ok(_) => return Ok(anchor.key_id),
            Err(error) => {
                // What is wrong under its own CA says more than that the other one did not issue it.
                let said = explain(error, leaf, now);
                if why == CertificateError::UnknownIssuer {
                    why = said;
                }
            }
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, SigningKey};

    use super::*;

    struct Made {
        key: KeyPair,
        der: Vec<u8>,
    }

    fn ca(tenant: &str) -> Made {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, tenant);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Made { key, der }
    }

    fn announced(one: &Made, by: Option<&Made>) -> Announced {
        let sign = |by: &Made| by.key.sign(&endorsement_message(&one.der)).unwrap();
        Announced { certificate: one.der.clone(), endorsement: by.map(sign).unwrap_or_default() }
    }

    #[test]
    fn p20_a_next_ca_is_believed_by_the_word_of_one_that_is_believed_and_by_nothing_else() {
        let (old, next, other) = (ca("S12345678"), ca("S12345678"), ca("S12345678"));
        let believed = TenantCa::from_der(&old.der).unwrap();
        let ders = |all: &[&Made]| Some(all.iter().map(|m| CertificateDer::from(m.der.clone())).collect::<Vec<_>>());
        let after = |list: &[Announced]| believed.after(list);
        assert_eq!(after(&[]), Ok(None), "a document of before says nothing");
        assert_eq!(after(&[announced(&old, None)]), Ok(None));
        assert_eq!(after(&[announced(&old, None), announced(&next, Some(&old))]).unwrap(), ders(&[&old, &next]));
        assert_eq!(after(&[announced(&next, Some(&old)), announced(&old, None)]).unwrap(), ders(&[&next, &old]));
        for forged in [announced(&next, None), announced(&next, Some(&other)), announced(&next, Some(&next))] {
            assert_eq!(
                after(&[announced(&old, None), forged.clone()]),
                Ok(None),
                "what nobody vouches for is left out"
            );
            assert!(after(&[forged]).is_err(), "and is never alone");
        }
        let moved = Announced { certificate: other.der.clone(), ..announced(&next, Some(&old)) };
        assert!(after(&[moved]).is_err(), "a word for another certificate");
        assert!(after(&[announced(&ca("S99999999"), Some(&old))]).is_err());
        let three = [announced(&old, None), announced(&next, Some(&old)), announced(&other, Some(&old))];
        assert!(after(&three).is_err());
    }

    #[test]
    fn a12_a_ca_that_shows_another_ones_key_is_refused() {
        let (victim, thief) = (ca("S12345678"), KeyPair::generate().unwrap());
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "S99999999");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        // The victim's public key under the thief's name: all that a passer-by can make.
        let issuer = rcgen::Issuer::from_params(&params, &thief);
        let forged = params.signed_by(&victim.key, &issuer).unwrap();
        let why = TenantCa::from_der(forged.der()).unwrap_err();
        assert_eq!(why, CertificateError::BadCa("it is not signed by its own key"));
    }

    #[test]
    fn p20_clones_believe_alike_and_keep_at_least_one() {
        let (old, next) = (ca("S12345678"), ca("S12345678"));
        let one = TenantCa::from_der(&old.der).unwrap();
        let clone = one.clone();
        one.replace(&[&next.der, &old.der]).unwrap();
        assert_eq!(clone.ders().len(), 2);
        assert_eq!(clone.der().as_ref(), next.der);
        assert!(one.replace::<Vec<u8>>(&[]).is_err() && one.replace(&[ca("S99999999").der]).is_err());
        assert_eq!(clone.ders().len(), 2);
    }
}
