//! Certificates under a tenant's CA: who is named, by which CA, for what.
//!
//! A leaf stands directly under the tenant CA, has an ECDSA P-256 key, and names its holder twice: in one URI SAN,
//! `hedgerow://S12345678/node/<id>?group=berlin&origin=proxy&origin=directory`, and in the subject
//! (`O` = tenant, `OU` = role, `CN` = id). Both must agree. The CA's subject has `O` = tenant.

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use webpki::EndEntityCert;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{EntityId, GroupName, Origin, Role, TenantId, UnixTime};

/// Extended key usage of a tenant's configuration key: 1.3.6.1.4.1.32473.3101.1 as OID components.
pub const CONFIG_KEY_EKU: &[u64] = &[1, 3, 6, 1, 4, 1, 32473, 3101, 1];
/// The same, as the content octets of the DER encoding.
pub(super) const CONFIG_KEY_EKU_DER: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x81, 0xfd, 0x59, 0x98, 0x1d, 0x01];

/// The largest certificate read from a peer, bytes of DER.
pub const MAX_CERTIFICATE: usize = 8 * 1024;

/// Why a certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not a certificate, or not of the form described in this module.
    #[error("the certificate is malformed: {0}")]
    Malformed(&'static str),
    /// The CA certificate cannot be used as a tenant's CA.
    #[error("the CA certificate cannot be used: {0}")]
    BadCa(&'static str),
    /// Not signed by this CA's key.
    #[error("the certificate was not issued by this tenant's CA")]
    UnknownIssuer,
    /// Outside its validity period.
    #[error(
        "the certificate is not valid at this time (valid from {not_before} to {not_after}, now {now}; seconds since 1970)"
    )]
    NotValidNow {
        /// Start of validity.
        not_before: u64,
        /// End of validity.
        not_after: u64,
        /// The time it was checked at.
        now: u64,
    },
    /// The extended key usage does not allow what it was shown for.
    #[error("the certificate may not be used for this purpose")]
    WrongUsage,
    /// Subject and SAN name different holders.
    #[error("the certificate's subject and SAN disagree")]
    Disagrees,
    /// It names another tenant than its CA.
    #[error("the certificate names another tenant than the CA that signed it")]
    WrongTenant,
    /// It names another role than the one asked for.
    #[error("the certificate is for role {0}")]
    WrongRole(Role),
}

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The organisation.
    pub tenant: TenantId,
    /// What the holder is.
    pub role: Role,
    /// Which one.
    pub id: EntityId,
    /// The server group of a node.
    pub group: Option<GroupName>,
    /// The origins its sessions may register; empty for devices.
    pub origins: Vec<Origin>,
}

impl Identity {
    /// The URI that stands in the SAN.
    #[must_use]
    pub fn to_uri(&self) -> String {
        let mut uri = format!("hedgerow://{}/{}/{}", self.tenant, self.role, self.id);
        let mut separator = '?';
        let group = self.group.iter().map(|g| ("group", g.to_string()));
        for (key, value) in group.chain(self.origins.iter().map(|o| ("origin", o.to_string()))) {
            uri.push(separator);
            uri.push_str(key);
            uri.push('=');
            uri.push_str(&value);
            separator = '&';
        }
        uri
    }

    /// Reads the URI of a SAN.
    ///
    /// # Errors
    /// `Malformed` for anything but the exact form that `to_uri` writes.
    pub fn from_uri(uri: &str) -> Result<Self, CertificateError> {
        let bad = |_| CertificateError::Malformed("its SAN is not a hedgerow:// identity");
        let shape = CertificateError::Malformed("its SAN is not a hedgerow:// identity");
        let rest = uri.strip_prefix("hedgerow://").ok_or(shape.clone())?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut parts = path.split('/');
        let (Some(tenant), Some(role), Some(id), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(shape);
        };
        let mut identity = Self {
            tenant: tenant.parse().map_err(bad)?,
            role: role.parse().map_err(bad)?,
            id: id.parse().map_err(bad)?,
            group: None,
            origins: Vec::new(),
        };
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            match pair.split_once('=') {
                Some(("group", g)) if identity.group.is_none() => identity.group = Some(g.parse().map_err(bad)?),
                Some(("origin", o)) => identity.origins.push(o.parse().map_err(bad)?),
                _ => return Err(shape),
            }
        }
        if identity.to_uri() != uri {
            return Err(shape);
        }
        Ok(identity)
    }
}

/// What a leaf is shown for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// It authenticates a TLS server (node, core).
    Server,
    /// It authenticates a client (node, device) in TLS or on a link.
    Client,
}

/// A leaf that verified: the identity, and what logs, revocation lists and registries need of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedCertificate {
    /// Whom it names.
    pub identity: Identity,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// SHA-256 of the DER, lower-case hexadecimal.
    pub fingerprint: String,
    /// `TenantCa::key_id` of the CA it verified under; zeros when it was only read.
    pub issuer: [u8; 32],
    /// Start of validity.
    pub not_before: UnixTime,
    /// End of validity.
    pub not_after: UnixTime,
}

impl VerifiedCertificate {
    /// When its holder is to ask for the next one: at two thirds of its life.
    #[must_use]
    pub fn renew_at(&self) -> UnixTime {
        self.not_before.plus(self.not_after.since(self.not_before) / 3 * 2)
    }
}

/// Checks an ECDSA P-256 SHA-256 signature (ASN.1) by the key in `leaf`. Says nothing about the certificate itself.
///
/// # Errors
/// `Malformed` when the certificate or the signature is wrong.
pub fn verify_signature(leaf: &CertificateDer<'_>, message: &[u8], signature: &[u8]) -> Result<(), CertificateError> {
    let end =
        EndEntityCert::try_from(leaf).map_err(|_| CertificateError::Malformed("it is not an X.509 certificate"))?;
    end.verify_signature(webpki::aws_lc_rs::ECDSA_P256_SHA256, message, signature)
        .map_err(|_| CertificateError::Malformed("the signature made with its key is wrong"))
}

/// Reads the identity a leaf claims **without verifying it**: to choose the CA to verify it with, or to show it.
///
/// # Errors
/// `Malformed` or `Disagrees`.
pub fn read_leaf(leaf: &CertificateDer<'_>) -> Result<VerifiedCertificate, CertificateError> {
    if leaf.len() > MAX_CERTIFICATE {
        return Err(CertificateError::Malformed("it is larger than 8 KiB"));
    }
    let parsed = parse(leaf)?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|_| CertificateError::Malformed("its SAN cannot be read"))?
        .ok_or(CertificateError::Malformed("it has no SAN"))?;
    let mut uris = names.value.general_names.iter().filter_map(|n| match n {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err(CertificateError::Malformed("its SAN does not hold exactly one URI"));
    };
    let identity = Identity::from_uri(uri)?;
    let agrees = subject_text(&parsed, Field::Organisation).as_deref() == Some(identity.tenant.as_str())
        && subject_text(&parsed, Field::Unit).as_deref() == Some(identity.role.as_str())
        && subject_text(&parsed, Field::CommonName) == Some(identity.id.to_string());
    if !agrees {
        return Err(CertificateError::Disagrees);
    }
    Ok(VerifiedCertificate {
        identity,
        serial: data_encoding::HEXLOWER.encode(parsed.raw_serial()),
        fingerprint: data_encoding::HEXLOWER.encode(&Sha256::digest(leaf.as_ref())),
        issuer: [0; 32],
        not_before: seconds(parsed.validity().not_before.timestamp()),
        not_after: seconds(parsed.validity().not_after.timestamp()),
    })
}

fn seconds(timestamp: i64) -> UnixTime {
    UnixTime(u64::try_from(timestamp).unwrap_or(0))
}

pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    let (rest, parsed) =
        X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed("it is not an X.509 certificate"))?;
    if !rest.is_empty() {
        return Err(CertificateError::Malformed("bytes follow the certificate"));
    }
    Ok(parsed)
}

pub(super) enum Field {
    Organisation,
    Unit,
    CommonName,
}

/// The one value of a subject field; `None` when it is missing or given twice.
pub(super) fn subject_text(parsed: &X509Certificate<'_>, field: Field) -> Option<String> {
    let subject = parsed.subject();
    let values: Vec<_> = match field {
        Field::Organisation => subject.iter_organization().collect(),
        Field::Unit => subject.iter_organizational_unit().collect(),
        Field::CommonName => subject.iter_common_name().collect(),
    };
    match values.as_slice() {
        [one] => one.as_str().ok().map(str::to_owned),
        _ => None,
    }
}

pub(super) fn explain(error: webpki::Error, leaf: &CertificateDer<'_>, now: UnixTime) -> CertificateError {
    match error {
        webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => {
            let validity =
                parse(leaf).map(|p| (p.validity().not_before.timestamp(), p.validity().not_after.timestamp()));
            let (from, to) = validity.unwrap_or((0, 0));
            CertificateError::NotValidNow {
                not_before: u64::try_from(from).unwrap_or(0),
                not_after: u64::try_from(to).unwrap_or(0),
                now: now.0,
            }
        }
        webpki::Error::RequiredEkuNotFoundContext(_) => CertificateError::WrongUsage,
        _ => CertificateError::UnknownIssuer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_have_one_spelling() {
        let identity = Identity {
            tenant: "S12345678".parse().unwrap(),
            role: Role::Node,
            id: EntityId::from_random([9; 16]),
            group: Some("berlin".parse().unwrap()),
            origins: vec![Origin::Proxy, Origin::Directory],
        };
        let uri = identity.to_uri();
        assert_eq!(Identity::from_uri(&uri).unwrap(), identity);
        for bad in [
            uri.replace("S1", "s1"),
            format!("{uri}&group=second"),
            format!("{uri}&admin=1"),
            uri.replace("hedgerow", "HEDGEROW"),
            uri.replace("/node/", "/node//"),
            format!("{uri}#x"),
            String::new(),
        ] {
            assert!(Identity::from_uri(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_configuration_key_usage_is_encoded_as_it_is_written() {
        let mut der = vec![43];
        for component in &CONFIG_KEY_EKU[2..] {
            let mut groups = vec![(component & 0x7f) as u8];
            let mut rest = component >> 7;
            while rest > 0 {
                groups.push((rest & 0x7f) as u8 | 0x80);
                rest >>= 7;
            }
            der.extend(groups.iter().rev());
        }
        assert_eq!(der, CONFIG_KEY_EKU_DER);
    }
}
