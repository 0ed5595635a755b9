//! Issuing.

use hedgerow_shared::verify::authority::endorsement_message;
use hedgerow_shared::verify::certificate::{CONFIG_KEY_EKU, read_leaf};
use hedgerow_shared::verify::config::{Document, MAX_PAYLOAD};
use hedgerow_shared::verify::{Identity, SignedConfig, TenantCa};
use hedgerow_shared::{Role, TenantId, UnixTime};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{CaError, CertificateRecord, CertificateRequest, Key};
use crate::random::{self, Random};

/// How long a leaf is valid.
pub const LEAF_LIFETIME_SECONDS: u64 = 365 * 24 * 3600;
/// How long the CA is valid: longer than any installation should go without a new one.
const CA_LIFETIME_SECONDS: u64 = 20 * 365 * 24 * 3600;
/// Validity begins this much before the time of issue, for peers whose clocks are behind.
const BACKDATE_SECONDS: u64 = 300;

/// A tenant's CA: its certificate and its key.
#[derive(Debug)]
pub struct Authority {
    tenant: TenantId,
    certificate: Vec<u8>,
    key: Key,
}

/// A leaf, and what the records keep of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// DER.
    pub certificate: Vec<u8>,
    /// For the records.
    pub record: CertificateRecord,
}

impl Authority {
    /// Makes a new CA for a tenant.
    ///
    /// # Errors
    /// `Randomness` or `Encoding`.
    pub fn create(tenant: TenantId, now: UnixTime, random: &mut dyn Random) -> Result<Self, CaError> {
        let key = Key::generate(random)?;
        let mut params = ca_params(&tenant);
        validity(&mut params, now, CA_LIFETIME_SECONDS)?;
        params.serial_number = Some(serial(random));
        let certificate = params.self_signed(&key).map_err(|e| CaError::Encoding(e.to_string()))?.der().to_vec();
        Ok(Self { tenant, certificate, key })
    }

    /// A CA from its parts.
    #[must_use]
    pub fn from_parts(tenant: TenantId, certificate: Vec<u8>, key: Key) -> Self {
        Self { tenant, certificate, key }
    }

    /// The CA certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// `TenantCa::pin` of this CA.
    ///
    /// # Errors
    /// `Encoding` when the certificate cannot be a CA's.
    pub fn pin(&self) -> Result<String, CaError> {
        TenantCa::from_der(&self.certificate).map(|ca| ca.pin()).map_err(|e| CaError::Encoding(e.to_string()))
    }

    /// This CA's word for the one that follows it, as signed configuration carries it.
    #[must_use]
    pub fn endorse(&self, next: &[u8]) -> Vec<u8> {
        self.key.sign_message(&endorsement_message(next))
    }

    /// The CA key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Certifies the key of a request for `identity`, whose tenant is this CA's. Nodes get client and server usage,
    /// so does the core, devices client only.
    ///
    /// # Errors
    /// `Encoding` when the identity is another tenant's or cannot be written.
    pub fn issue(
        &self,
        request: &CertificateRequest,
        identity: &Identity,
        now: UnixTime,
        random: &mut dyn Random,
    ) -> Result<Issued, CaError> {
        self.certify(request, identity, now, random)
    }

    /// Certifies one of the tenant's own keys (the core's), as `issue` does.
    ///
    /// # Errors
    /// As `issue`.
    pub fn issue_for_key(
        &self,
        key: &Key,
        identity: &Identity,
        now: UnixTime,
        random: &mut dyn Random,
    ) -> Result<Issued, CaError> {
        self.certify(key, identity, now, random)
    }

    /// Certifies a configuration key; the DER.
    ///
    /// # Errors
    /// `Encoding`.
    pub fn issue_config_key(&self, key: &Key, now: UnixTime, random: &mut dyn Random) -> Result<Vec<u8>, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&self.tenant, "config", "configuration key");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(CONFIG_KEY_EKU.to_vec())];
        self.sign(params, key, now, random)
    }

    fn certify(
        &self,
        key: &impl PublicKeyData,
        identity: &Identity,
        now: UnixTime,
        random: &mut dyn Random,
    ) -> Result<Issued, CaError> {
        if identity.tenant != self.tenant {
            return Err(CaError::Encoding("the identity is of another tenant".into()));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&identity.tenant, identity.role.as_str(), &identity.id.to_string());
        let uri = identity.to_uri().try_into().map_err(|e: rcgen::Error| CaError::Encoding(e.to_string()))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = match identity.role {
            Role::Device => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Role::Node | Role::Core => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        let certificate = self.sign(params, key, now, random)?;
        // Read back with the verifier's eyes, so that records and verifiers spell serial and times alike.
        let read =
            read_leaf(&CertificateDer::from(certificate.as_slice())).map_err(|e| CaError::Encoding(e.to_string()))?;
        let record = CertificateRecord {
            serial: read.serial,
            holder: identity.id,
            role: identity.role,
            fingerprint: read.fingerprint,
            issuer: self.pin()?,
            not_before: UnixTime(now.0.saturating_sub(BACKDATE_SECONDS)),
            not_after: read.not_after,
        };
        Ok(Issued { certificate, record })
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        now: UnixTime,
        random: &mut dyn Random,
    ) -> Result<Vec<u8>, CaError> {
        validity(&mut params, now, LEAF_LIFETIME_SECONDS)?;
        params.serial_number = Some(serial(random));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::new(ca_params(&self.tenant), &self.key);
        let certificate = params.signed_by(key, &issuer).map_err(|e| CaError::Encoding(e.to_string()))?;
        Ok(certificate.der().to_vec())
    }
}

/// The configuration key with its certificate.
#[derive(Debug)]
pub struct ConfigKey {
    key: Key,
    certificate: Vec<u8>,
}

impl ConfigKey {
    /// A configuration key from its parts.
    #[must_use]
    pub fn from_parts(key: Key, certificate: Vec<u8>) -> Self {
        Self { key, certificate }
    }

    /// Signs a document. The same document gives the same bytes.
    ///
    /// # Errors
    /// `Encoding` when the document cannot be written as JSON, or is larger than any reader takes.
    pub fn sign<D: Document>(&self, document: &D) -> Result<SignedConfig, CaError> {
        let payload = serde_json::to_vec(document).map_err(|e| CaError::Encoding(e.to_string()))?;
        if payload.len() > MAX_PAYLOAD {
            let size = payload.len();
            return Err(CaError::Encoding(format!(
                "the configuration has {size} bytes; nobody reads more than {MAX_PAYLOAD}"
            )));
        }
        let signature = self.key.sign_message(&SignedConfig::message(&payload));
        Ok(SignedConfig { payload, signature, certificate: self.certificate.clone() })
    }
}

/// What of the CA certificate its leaves repeat: the issuer's name and key identifier.
fn ca_params(tenant: &TenantId) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(tenant, "ca", "Hedgerow tenant CA");
    // Directly under it stand leaves only.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn subject(tenant: &TenantId, unit: &str, name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, tenant.as_str());
    subject.push(DnType::OrganizationalUnitName, unit);
    subject.push(DnType::CommonName, name);
    subject
}

fn validity(params: &mut CertificateParams, now: UnixTime, lifetime: u64) -> Result<(), CaError> {
    let at = |seconds: u64| {
        let seconds = i64::try_from(seconds).ok();
        seconds
            .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
            .ok_or_else(|| CaError::Encoding("its validity lies outside the calendar; is the clock right?".into()))
    };
    params.not_before = at(now.0.saturating_sub(BACKDATE_SECONDS))?;
    params.not_after = at(now.plus(lifetime).0)?;
    Ok(())
}

/// 16 random bytes with the two highest bits set so that the number is positive and never loses a leading zero.
fn serial(random: &mut dyn Random) -> SerialNumber {
    let mut bytes: [u8; 16] = random::bytes(random);
    bytes[0] = (bytes[0] & 0x3f) | 0x40;
    SerialNumber::from(bytes.to_vec())
}
