//! A tenant's CA with leaves directly under it, in the form that the product issues and checks.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use hedgerow_secure_connect::session::dtls::{Check, Own};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::{Identity, TenantCa, Usage};
use hedgerow_shared::{EntityId, Role, UnixTime};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::CertificateDer;

/// What foreign ends that insist on a host's name are told to expect; our check looks at the identity only.
pub const NAME: &str = "end.interop.test";

pub struct Tenant {
    ca: TenantCa,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Tenant {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "S12345678");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let ca = TenantCa::from_der(certificate.der()).unwrap();
        Self { ca, issuer: Issuer::new(params, key), pem: certificate.pem() }
    }

    /// The CA's certificate.
    pub fn root(&self) -> CertificateDer<'static> {
        self.ca.der()
    }

    /// The same, as PEM.
    pub fn root_pem(&self) -> &str {
        &self.pem
    }

    pub fn issue(&self, role: Role) -> Own {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let id = EntityId::from_random([NEXT.fetch_add(1, Ordering::Relaxed); 16]);
        let tenant = self.ca.tenant().clone();
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, tenant.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, role.as_str());
        params.distinguished_name.push(DnType::CommonName, id.to_string());
        let identity = Identity { tenant, role, id, group: None, origins: Vec::new() };
        params.subject_alt_names.push(SanType::URI(identity.to_uri().try_into().unwrap()));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Own { certificate: certificate.der().to_vec(), key: Secret::new(key.serialize_der()) }
    }

    /// The product's check of a peer in this role.
    pub fn check(&self, role: Role) -> Check {
        let ca = self.ca.clone();
        Box::new(move |der| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            let usage = if role == Role::Node { Usage::Server } else { Usage::Client };
            ca.verify(&CertificateDer::from(der), role, usage, UnixTime(now))
                .map(|_| ())
                .map_err(|e| Fault::new(Code::Unauthenticated, e.to_string()))
        })
    }
}
