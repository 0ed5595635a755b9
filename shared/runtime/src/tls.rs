//! TLS as Hedgerow uses it: which provider, whom to trust in which direction, and keys on disk.
//!
//! Four kinds of trust meet here. A *relay* is trusted by its name under a public CA, a given CA or a pin. The
//! *core*, a *node* and a *device* are trusted by the tenant's CA, role and id, whatever the server name says. And a
//! device that is not yet activated trusts nobody: `anyone` lets it finish a hand-shake whose exporter the PAKE then
//! binds.

mod in_force;
mod key;
mod key_log;
mod resume;
mod verifiers;

use std::sync::{Arc, OnceLock};

use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::verify::certificate::read_leaf;
use hedgerow_shared::verify::{TenantCa, VerifiedCertificate};
use hedgerow_shared::wire::message::{ALPN_SESSION, EXPORTER_LABEL};
use hedgerow_shared::{EntityId, Role};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

pub use in_force::InForce;
pub(crate) use in_force::Replacements;
pub use key::{KeyError, SigningKey, read_certificates};
pub use key_log::{KeyLogFile, SESSION_KEY_LOG};
pub use resume::{Below, RelaySessions};
use verifiers::Watched;
pub use verifiers::{Anyone, Foreign, PinnedRelay, TenantClient, TenantPin, TenantServer};

/// Which implementation of the algorithms is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    /// aws-lc-rs: faster, and with the post-quantum exchange X25519MLKEM768.
    #[default]
    AwsLcRs,
    /// ring: no post-quantum exchange.
    Ring,
}

/// The `[tls]` table of a role's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// Which implementation of the algorithms: `aws-lc-rs`, or `ring`, which has no post-quantum key exchange.
    pub provider: Provider,
}

static PROVIDER: OnceLock<(Provider, Arc<CryptoProvider>)> = OnceLock::new();

/// Chooses the provider for this process; the first call counts. Returns what is in use. aws-lc-rs prefers
/// X25519MLKEM768 in both directions: as a client it sends a share of it beside one of X25519, as a server it takes it
/// from whoever offers it.
pub fn select(wanted: Provider) -> Provider {
    select_with(wanted, |_| ())
}

/// As `select`, for a program that replaces parts of the provider, such as who signs.
pub fn select_with(wanted: Provider, replace: impl FnOnce(&mut CryptoProvider)) -> Provider {
    let make = || {
        let mut provider = match wanted {
            Provider::AwsLcRs => rustls::crypto::aws_lc_rs::default_provider(),
            Provider::Ring => rustls::crypto::ring::default_provider(),
        };
        replace(&mut provider);
        (wanted, Arc::new(provider))
    };
    PROVIDER.get_or_init(make).0
}

/// The provider in use.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    select(Provider::default());
    PROVIDER.get().map(|(_, p)| p.clone()).expect("select has set it")
}

/// Whether TLS offers the post-quantum key exchange.
#[must_use]
pub fn post_quantum() -> bool {
    provider().kx_groups.iter().any(|g| g.name() == rustls::NamedGroup::X25519MLKEM768)
}

/// What every role's status says of its TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct TlsStatus {
    /// Which implementation of the algorithms.
    pub provider: Provider,
    /// Whether the post-quantum key exchange is offered, and taken where the other end offers it.
    pub post_quantum: bool,
}

/// The TLS of this process, for its status.
#[must_use]
pub fn status() -> TlsStatus {
    TlsStatus { provider: select(Provider::default()), post_quantum: post_quantum() }
}

/// How a dialler knows the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayRoots {
    /// The system's CA certificates.
    System,
    /// These CA certificates.
    Ca(Vec<CertificateDer<'static>>),
    /// Any chain through the CA whose public key info has this SHA-256.
    Pin([u8; 32]),
}

/// The client side of TLS 1.3 to a relay.
///
/// # Errors
/// No usable CA certificate.
pub fn to_relay(roots: &RelayRoots, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Fault> {
    Ok(to_relay_watched(roots, alpn)?.0)
}

/// As `to_relay`; the second value holds the leaf of another issuer that was shown instead of the relay's, once that
/// has made a hand-shake fail.
///
/// # Errors
/// As `to_relay`.
pub fn to_relay_watched(roots: &RelayRoots, alpn: &[&[u8]]) -> Result<(Arc<ClientConfig>, Foreign), Fault> {
    watched(roots, alpn, &[&rustls::version::TLS13])
}

/// As `to_relay_watched`, but as an ordinary client would ask, with TLS 1.2 and HTTP/1.1: only to see whose certificate
/// comes where a hand-shake failed before one was shown.
///
/// # Errors
/// As `to_relay`.
pub fn to_look_at(roots: &RelayRoots) -> Result<(Arc<ClientConfig>, Foreign), Fault> {
    watched(roots, &[b"http/1.1"], &[&rustls::version::TLS13, &rustls::version::TLS12])
}

fn watched(
    roots: &RelayRoots,
    alpn: &[&[u8]],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Result<(Arc<ClientConfig>, Foreign), Fault> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(versions).map_err(internal)?;
    let verifier: Arc<dyn ServerCertVerifier> = match roots {
        RelayRoots::Pin(pin) => Arc::new(PinnedRelay::new(*pin)),
        RelayRoots::System => of_roots(system_roots()?)?,
        RelayRoots::Ca(certificates) => of_roots(given_roots(certificates)?)?,
    };
    let watched = Arc::new(Watched::new(verifier));
    let foreign = watched.foreign();
    let mut config = builder.dangerous().with_custom_certificate_verifier(watched).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    Ok((Arc::new(config), foreign))
}

/// The client side of TLS (1.2 too) to whoever opens TLS on the way to a relay: HTTP/1.1, under the system's CAs, the
/// relay's own and these.
///
/// # Errors
/// No usable CA certificate.
pub fn to_inspector(roots: &RelayRoots, extra: &[CertificateDer<'static>]) -> Result<Arc<ClientConfig>, Fault> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    store.add_parsable_certificates(extra.iter().cloned());
    if let RelayRoots::Ca(certificates) = roots {
        store.add_parsable_certificates(certificates.iter().cloned());
    }
    if store.is_empty() {
        return Err(Fault::new(Code::Unauthenticated, "no CA is known for a network that opens TLS"));
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(internal)?;
    let mut config = builder.with_root_certificates(store).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn of_roots(store: RootCertStore) -> Result<Arc<dyn ServerCertVerifier>, Fault> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider()).build();
    Ok(verifier.map_err(internal)?)
}

fn given_roots(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, Fault> {
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(certificates.iter().cloned());
    if added == 0 {
        return Err(Fault::new(Code::Unauthenticated, "no usable CA certificate for the relay"));
    }
    Ok(store)
}

fn system_roots() -> Result<RootCertStore, Fault> {
    let mut store = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        return Err(Fault::new(
            Code::Unauthenticated,
            "this system has no CA certificates (Debian: install ca-certificates), and no CA for the relay is configured",
        ));
    }
    Ok(store)
}

/// The relay's side of TLS 1.3.
///
/// # Errors
/// Key and certificate do not fit.
pub fn as_relay(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, Fault> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(internal)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| Fault::new(Code::Internal, format!("the relay's certificate and key cannot be used: {e}")))?;
    config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    // A new certificate comes with new tickets: what was resumed without looking at it is looked at again.
    config.ticketer = resume::tickets()?;
    Ok(Arc::new(config))
}

/// A certificate with its key, as one end of end-to-end TLS shows it.
#[derive(Debug, Clone)]
pub struct Own {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: Arc<SigningKey>,
}

impl Own {
    /// The certificate itself.
    ///
    /// # Errors
    /// `Internal`: there is none.
    pub fn leaf(&self) -> Result<&CertificateDer<'static>, Fault> {
        self.chain.first().ok_or_else(|| Fault::new(Code::Internal, "there is no certificate to show"))
    }

    /// What it says, unverified.
    ///
    /// # Errors
    /// `Internal`: there is none, or none of ours.
    pub fn read(&self) -> Result<VerifiedCertificate, Fault> {
        read_leaf(self.leaf()?).map_err(|e| Fault::new(Code::Internal, e.to_string()))
    }
}

/// The client side of end-to-end TLS 1.3 to a core or a node: the server is known by tenant CA, role and, when
/// given, id; the server name is ignored. Resumption is off, so that the verifier runs every time.
///
/// # Errors
/// Key and certificate do not fit.
pub fn to_tenant(
    ca: TenantCa,
    role: Role,
    id: Option<EntityId>,
    own: Option<&Own>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, Fault> {
    end_to_end_client(Arc::new(TenantServer::new(ca, role, id)), own, alpn)
}

/// The client side towards a core that is known by the pin of its tenant's CA.
///
/// # Errors
/// None in practice.
pub fn to_pinned_tenant(pin: [u8; 32], alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Fault> {
    end_to_end_client(Arc::new(TenantPin::new(pin)), None, alpn)
}

/// The client side towards **anyone**: only for activation, where the PAKE is bound to this session's exporter and
/// nothing is sent or believed before it has succeeded.
///
/// # Errors
/// None in practice.
pub fn to_anyone(alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Fault> {
    end_to_end_client(Arc::new(Anyone), None, alpn)
}

fn end_to_end_client(
    verifier: Arc<dyn ServerCertVerifier>,
    own: Option<&Own>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, Fault> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(internal)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => builder.with_client_auth_cert(own.chain.clone(), own.key.to_rustls()).map_err(internal)?,
    };
    config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_secret_extraction = alpn.contains(&ALPN_SESSION);
    config.enable_sni = false;
    if let Some(log) = key_log::of_sessions() {
        config.key_log = log;
    }
    Ok(Arc::new(config))
}

/// The client side of an end-to-end session whose server name carries a lane ticket.
#[must_use]
pub fn with_server_name(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.enable_sni = true;
    Arc::new(config)
}

/// Which clients finish a hand-shake with a server of the tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Holders of a certificate that is valid now.
    Certified,
    /// Also those without one, and those whose certificate has expired. What they may ask is the server's decision.
    Anyone,
}

/// The server side of end-to-end TLS 1.3: clients show a certificate of the tenant's CA in one of `roles`; `clients` says
/// whether they must. The certificate shown is the one in force at each hand-shake.
///
/// # Errors
/// The provider has no TLS 1.3.
pub fn as_tenant(
    ca: TenantCa,
    roles: &[Role],
    clients: Clients,
    own: &InForce,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, Fault> {
    let verifier: Arc<dyn ClientCertVerifier> = Arc::new(TenantClient::new(ca, roles.to_vec(), clients));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(internal)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(own.clone()));
    config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.enable_secret_extraction = alpn.contains(&ALPN_SESSION);
    Ok(Arc::new(config))
}

/// Verifies the peer's leaf once more, after the hand-shake: expiry and role count every time, resumed or not.
///
/// # Errors
/// `Unauthenticated` with the reason.
pub fn peer_certificate(
    chain: Option<&[CertificateDer<'_>]>,
    ca: &TenantCa,
    role: Role,
    usage: hedgerow_shared::verify::Usage,
) -> Result<VerifiedCertificate, Fault> {
    let leaf = chain
        .and_then(<[_]>::first)
        .ok_or_else(|| Fault::new(Code::Unauthenticated, "the peer showed no certificate"))?;
    ca.verify(leaf, role, usage, crate::clock::now()).map_err(|e| Fault::new(Code::Unauthenticated, e.to_string()))
}

/// As `peer_certificate`, but one that has expired passes, for a server of `Clients::Anyone`: `not_after` tells.
///
/// # Errors
/// `Unauthenticated` with the reason.
pub fn lapsed_certificate(
    chain: &[CertificateDer<'_>],
    ca: &TenantCa,
    role: Role,
    usage: hedgerow_shared::verify::Usage,
) -> Result<VerifiedCertificate, Fault> {
    let leaf = chain.first().ok_or_else(|| Fault::new(Code::Unauthenticated, "the peer showed no certificate"))?;
    ca.verify_lapsed(leaf, role, usage, crate::clock::now())
        .map_err(|e| Fault::new(Code::Unauthenticated, e.to_string()))
}

/// The channel binding of RFC 9266 for a finished TLS 1.3 hand-shake.
///
/// # Errors
/// `Internal`, should the exporter not be available.
pub fn exporter<D>(connection: &rustls::ConnectionCommon<D>) -> Result<[u8; 32], Fault> {
    connection.export_keying_material([0; 32], EXPORTER_LABEL, Some(b"")).map_err(internal)
}

/// Shows in the metrics when a certificate (DER) ends; one that cannot be read is left out. `name` tells the process's
/// certificates apart: `own`, `server`, `web`, `tenant-ca`, `config-key`.
pub fn show_expiry(name: &'static str, certificate: &[u8]) {
    use x509_parser::prelude::{FromDer, X509Certificate};
    if let Ok((_, parsed)) = X509Certificate::from_der(certificate) {
        #[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
        metrics::gauge!("hedgerow_certificate_not_after_seconds", "certificate" => name)
            .set(parsed.validity().not_after.timestamp() as f64);
    }
}

/// A server name for configurations that ignore it.
#[must_use]
pub fn any_name() -> ServerName<'static> {
    ServerName::try_from("hedgerow.invalid").expect("a fixed, valid name")
}

fn internal(error: impl std::fmt::Display) -> Fault {
    Fault::new(Code::Internal, error.to_string())
}

#[cfg(test)]
mod tests {
    use rustls::NamedGroup;

    use super::*;

    #[test]
    fn n10_the_post_quantum_exchange_is_the_first_choice_and_ring_has_none() {
        let groups: Vec<NamedGroup> = provider().kx_groups.iter().map(|g| g.name()).collect();
        assert_eq!(groups.first(), Some(&NamedGroup::X25519MLKEM768), "{groups:?}");
        assert!(groups.contains(&NamedGroup::X25519), "clients without it connect too: {groups:?}");
        assert_eq!(status(), TlsStatus { provider: Provider::AwsLcRs, post_quantum: true });
        assert_eq!(select(Provider::Ring), Provider::AwsLcRs, "the first choice counts");
        let ring = rustls::crypto::ring::default_provider();
        assert!(ring.kx_groups.iter().all(|g| g.name() != NamedGroup::X25519MLKEM768));
    }
}
