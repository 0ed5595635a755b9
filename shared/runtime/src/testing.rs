//! A tenant with a CA, for tests of this crate.

use std::sync::Arc;

use hedgerow_shared::verify::{Identity, TenantCa};
use hedgerow_shared::{EntityId, Origin, Role, TenantId};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::CertificateDer;

use crate::tls::{Own, SigningKey};

/// A tenant's CA with its key.
pub(crate) struct TestCa {
    pub(crate) ca: TenantCa,
    issuer: Issuer<'static, KeyPair>,
}

impl TestCa {
    pub(crate) fn new(tenant: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, tenant);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let ca = TenantCa::from_der(certificate.der()).unwrap();
        Self { ca, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn tenant(&self) -> TenantId {
        self.ca.tenant().clone()
    }

    pub(crate) fn issue(&self, role: Role, origins: &[Origin]) -> (Own, EntityId) {
        let id = EntityId::from_random(crate::clock::random());
        let identity = Identity { tenant: self.tenant(), role, id, group: None, origins: origins.to_vec() };
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, self.tenant().as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, role.as_str());
        params.distinguished_name.push(DnType::CommonName, id.to_string());
        params.subject_alt_names = vec![SanType::URI(identity.to_uri().try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone(), self.ca.der().clone()];
        let key: Arc<SigningKey> = SigningKey::from_pkcs8(&key.serialize_der()).unwrap();
        (Own { chain, key }, id)
    }
}
