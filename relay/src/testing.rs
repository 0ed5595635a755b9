//! What tests need: a tenant's CA that issues leaves and signs configurations. Integration tests include this file too.
#![allow(clippy::unwrap_used, reason = "only tests see this")]

use std::time::Duration;

use hedgerow_runtime::clock;
use hedgerow_shared::verify::certificate::{CONFIG_KEY_EKU, Identity};
use hedgerow_shared::verify::config::{Audience, Head, RelayConfig, Revoked, SignedConfig, Version};
use hedgerow_shared::verify::licence::{Licence, LicenceKey, SignedLicence};
use hedgerow_shared::{EntityId, UnixTime};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
    SigningKey,
};
use rustls_pki_types::CertificateDer;

/// An operator's licence key.
#[allow(dead_code, reason = "each test file uses its part")]
pub(crate) struct Licensor(KeyPair);

#[allow(dead_code, reason = "each test file uses its part")]
impl Licensor {
    pub(crate) fn new() -> Self {
        Self(KeyPair::generate().unwrap())
    }

    pub(crate) fn key(&self) -> LicenceKey {
        LicenceKey::from_der(&rcgen::PublicKeyData::subject_public_key_info(&self.0)).unwrap()
    }

    pub(crate) fn sign(&self, licence: &Licence) -> SignedLicence {
        let payload = licence.payload().unwrap();
        let signature = self.0.sign(&SignedLicence::message(&payload)).unwrap();
        SignedLicence { payload, signature }
    }

    /// One issued at `issued`, which ends in `ends` seconds from now or, below zero, ended so long ago. No bound on seats.
    pub(crate) fn licence(tenant: &str, issued: u64, ends: i64, features: &[&str]) -> Licence {
        let now = clock::now();
        Licence {
            id: format!("L-{issued}"),
            tenant: tenant.parse().unwrap(),
            licensee: "Example".into(),
            issued: UnixTime(issued),
            not_before: UnixTime(1),
            expires: UnixTime(now.0.checked_add_signed(ends).unwrap()),
            grace_seconds: 0,
            seats: None,
            features: features.iter().map(|f| (*f).to_owned()).collect(),
        }
    }
}

pub(crate) struct TestCa {
    tenant: String,
    issuer: CertifiedIssuer<'static, KeyPair>,
    pem: String,
}

impl TestCa {
    pub(crate) fn new(tenant: &str) -> Self {
        Self::with_key(tenant, KeyPair::generate().unwrap())
    }

    /// Another CA certificate for the same key.
    pub(crate) fn renamed(&self, tenant: &str) -> Self {
        Self::with_key(tenant, KeyPair::from_pem(&self.pem).unwrap())
    }

    fn with_key(tenant: &str, key: KeyPair) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, tenant);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let pem = key.serialize_pem();
        Self { tenant: tenant.to_owned(), issuer: CertifiedIssuer::self_signed(params, key).unwrap(), pem }
    }

    pub(crate) fn der(&self) -> &[u8] {
        self.issuer.der()
    }

    pub(crate) fn leaf(&self, identity: &Identity, lifetime: Duration) -> (CertificateDer<'static>, KeyPair) {
        self.leaf_with(identity, lifetime, |_| {})
    }

    /// As `leaf`, with something else in it.
    pub(crate) fn leaf_with(
        &self,
        identity: &Identity,
        lifetime: Duration,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (CertificateDer<'static>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, identity.tenant.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, identity.role.as_str());
        params.distinguished_name.push(DnType::CommonName, identity.id.to_string());
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_uri()).unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.not_after = params.not_before.max(std::time::SystemTime::now().into()) + lifetime;
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        (leaf.der().clone(), key)
    }

    pub(crate) fn relay_config(&self, version: u64, revoked: &[EntityId]) -> SignedConfig {
        let now = clock::now();
        let document = RelayConfig {
            authorities: Vec::new(),
            head: Head {
                tenant: self.tenant.parse().unwrap(),
                audience: Audience::Relay,
                version: Version { epoch: 0, version },
                issued: now,
                expires: UnixTime(now.0 + 3600),
            },
            revoked: Revoked { ids: revoked.to_vec(), serials: vec![] },
        };
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(CONFIG_KEY_EKU.to_vec())];
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        let payload = serde_json::to_vec(&document).unwrap();
        let signature = key.sign(&SignedConfig::message(&payload)).unwrap();
        SignedConfig { payload, signature, certificate }
    }
}
