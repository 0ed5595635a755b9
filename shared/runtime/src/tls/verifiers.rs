//! The four ways to believe a certificate, as rustls asks for them.

use std::sync::Arc;

use hedgerow_shared::verify::certificate::read_leaf;
use hedgerow_shared::verify::{CertificateError, TenantCa, Usage};
use hedgerow_shared::{EntityId, Role};
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError as TlsCertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256};

use super::{Clients, provider};

fn refuse(error: CertificateError) -> Error {
    Error::InvalidCertificate(TlsCertificateError::Other(OtherError(Arc::new(error))))
}

fn seconds(now: UnixTime) -> hedgerow_shared::UnixTime {
    hedgerow_shared::UnixTime(now.as_secs())
}

/// The peer must prove that it holds the leaf's key, whatever else is believed of it.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

/// The leaf that another issuer than the expected one showed in a hand-shake, if there was one.
#[derive(Debug, Clone, Default)]
pub struct Foreign(Arc<Mutex<Option<CertificateDer<'static>>>>);

impl Foreign {
    /// Takes the leaf out.
    #[must_use]
    pub fn take(&self) -> Option<CertificateDer<'static>> {
        self.0.lock().take()
    }
}

/// Another verifier, with an eye on whose certificates it refuses.
#[derive(Debug)]
pub(super) struct Watched {
    inner: Arc<dyn ServerCertVerifier>,
    foreign: Foreign,
}

impl Watched {
    pub(super) fn new(inner: Arc<dyn ServerCertVerifier>) -> Self {
        Self { inner, foreign: Foreign::default() }
    }

    pub(super) fn foreign(&self) -> Foreign {
        self.foreign.clone()
    }
}

impl ServerCertVerifier for Watched {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let result = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp, now);
        if let Err(Error::InvalidCertificate(why)) = &result {
            // A certificate of the right issuer that is old or names another relay is not somebody in between.
            use TlsCertificateError as E;
            let own = matches!(
                why,
                E::Expired
                    | E::ExpiredContext { .. }
                    | E::NotValidYet
                    | E::NotValidYetContext { .. }
                    | E::NotValidForName
                    | E::NotValidForNameContext { .. }
                    | E::Revoked
            );
            *self.foreign.0.lock() = (!own).then(|| end_entity.clone().into_owned());
        }
        result
    }

    signatures!();
}

/// A relay whose chain goes through a CA known by the SHA-256 of its public key info.
#[derive(Debug)]
pub struct PinnedRelay {
    pin: [u8; 32],
}

impl PinnedRelay {
    /// Trusts this pin.
    #[must_use]
    pub fn new(pin: [u8; 32]) -> Self {
        Self { pin }
    }
}

impl ServerCertVerifier for PinnedRelay {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates.iter().find(|c| key_id(c) == Some(self.pin)).ok_or_else(|| {
            refuse(CertificateError::BadCa(
                "the relay's chain does not contain the pinned CA: another relay, or someone in between",
            ))
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)
    }

    signatures!();
}

/// SHA-256 of a certificate's public key info: what a pin names.
#[must_use]
pub(crate) fn key_id(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(Sha256::digest(parsed.public_key().raw).into())
}

/// A core or node of a tenant, by CA, role and id.
#[derive(Debug)]
pub struct TenantServer {
    ca: TenantCa,
    role: Role,
    id: Option<EntityId>,
}

impl TenantServer {
    /// Trusts servers of this role under this CA; only this one when `id` is given.
    #[must_use]
    pub fn new(ca: TenantCa, role: Role, id: Option<EntityId>) -> Self {
        Self { ca, role, id }
    }
}

impl ServerCertVerifier for TenantServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.ca.verify(end_entity, self.role, Usage::Server, seconds(now)).map_err(refuse)?;
        if self.id.is_some_and(|id| id != verified.identity.id) {
            return Err(refuse(CertificateError::Malformed("it names another server than the one asked for")));
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

/// A core, by the pin of its tenant's CA, which stands in the chain it shows.
#[derive(Debug)]
pub struct TenantPin {
    pin: [u8; 32],
}

impl TenantPin {
    /// Trusts the core of the tenant whose CA has this pin.
    #[must_use]
    pub fn new(pin: [u8; 32]) -> Self {
        Self { pin }
    }
}

impl ServerCertVerifier for TenantPin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = intermediates.iter().filter_map(|c| TenantCa::from_der(c).ok()).find(|ca| ca.key_id() == self.pin);
        let ca = ca.ok_or_else(|| refuse(CertificateError::BadCa("it is not the tenant's CA that the token pins")))?;
        ca.verify(end_entity, Role::Core, Usage::Server, seconds(now)).map_err(refuse)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

/// Any server that holds its certificate's key. See `super::to_anyone` for the one use.
#[derive(Debug)]
pub struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

/// Clients of a tenant, by CA and role.
#[derive(Debug)]
pub struct TenantClient {
    ca: TenantCa,
    roles: Vec<Role>,
    clients: Clients,
}

impl TenantClient {
    /// Trusts clients of these roles under this CA.
    #[must_use]
    pub fn new(ca: TenantCa, roles: Vec<Role>, clients: Clients) -> Self {
        Self { ca, roles, clients }
    }
}

impl ClientCertVerifier for TenantClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.clients == Clients::Certified
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let role = read_leaf(end_entity).map_err(refuse)?.identity.role;
        if !self.roles.contains(&role) {
            return Err(refuse(CertificateError::WrongRole(role)));
        }
        match self.clients {
            Clients::Certified => self.ca.verify(end_entity, role, Usage::Client, seconds(now)),
            Clients::Anyone => self.ca.verify_lapsed(end_entity, role, Usage::Client, seconds(now)),
        }
        .map_err(refuse)?;
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
        KeyPair, NameConstraints,
    };

    use super::*;

    type Ca = CertifiedIssuer<'static, KeyPair>;

    fn ca_params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    fn ca(params: CertificateParams) -> Ca {
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn leaf(by: &Ca, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        change(&mut params);
        params.signed_by(&KeyPair::generate().unwrap(), by).unwrap().der().clone()
    }

    fn believed(roots: &Ca, leaf: &CertificateDer<'_>, between: &[CertificateDer<'_>]) -> bool {
        let store = super::super::given_roots(&[roots.der().clone()]).unwrap();
        let verifier = super::super::of_roots(store).unwrap();
        let name = "relay.example".try_into().unwrap();
        verifier.verify_server_cert(leaf, between, &name, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn a06_a_relays_certificate_that_is_old_early_misused_or_wrongly_named_is_not_believed() {
        let root = ca(ca_params("root"));
        assert!(believed(&root, &leaf(&root, &["relay.example"], |_| {}), &[]));
        let day = Duration::from_secs(24 * 3600);
        let now = std::time::SystemTime::now();
        for (what, bad) in [
            ("expired", leaf(&root, &["relay.example"], |p| p.not_after = (now - day).into())),
            ("early", leaf(&root, &["relay.example"], |p| p.not_before = (now + day).into())),
            (
                "a client's",
                leaf(&root, &["relay.example"], |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
            ),
            ("another name", leaf(&root, &["relay.example.net"], |_| {})),
            ("a wildcard of too much", leaf(&root, &["*.relay.example"], |_| {})),
            ("no name", leaf(&root, &[], |_| {})),
            ("somebody else's", leaf(&ca(ca_params("root")), &["relay.example"], |_| {})),
        ] {
            assert!(!believed(&root, &bad, &[]), "{what}");
        }
        // A CA that may only name hosts below one domain: neither a name nor a wildcard leads out of it.
        let mut params = ca_params("constrained");
        let only = GeneralSubtree::DnsName("inside.example".into());
        params.name_constraints = Some(NameConstraints { permitted_subtrees: vec![only], excluded_subtrees: vec![] });
        let constrained = ca(params);
        for names in [&["relay.example"][..], &["*.example"], &["x.inside.example", "relay.example"]] {
            assert!(!believed(&constrained, &leaf(&constrained, names, |_| {}), &[]), "{names:?}");
        }
    }

    /// Ten thousand certificates that could each be the issuer: the search has a budget (rustls-webpki), whichever way
    /// the root is known. In TLS itself so many do not fit: rustls takes 64 KiB of a hand-shake message.
    #[test]
    fn a06_a_chain_of_ten_thousand_candidates_ends_in_a_refusal_after_a_bounded_search() {
        let root = ca(ca_params("root"));
        let between = ca(ca_params("between"));
        let bad = leaf(&between, &["relay.example"], |_| {});
        let few: Vec<_> = (0..50).map(|_| ca(ca_params("between")).der().clone()).collect();
        let many: Vec<_> = few.iter().cycle().take(10_000).cloned().collect();
        assert!(!believed(&root, &bad, &many));
        let pin = PinnedRelay::new(key_id(root.der()).unwrap());
        let name = "relay.example".try_into().unwrap();
        let with_root: Vec<_> = many.iter().cloned().chain([root.der().clone()]).collect();
        assert!(pin.verify_server_cert(&bad, &with_root, &name, &[], UnixTime::now()).is_err());
    }
}
