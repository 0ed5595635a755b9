//! The relay's own certificate: given by the operator, or made here under a CA of the relay's own.
//!
//! A self-made CA lives in `STATE/relay-ca.pem` and `relay-ca.key` (0600); its server certificate in `relay.pem` and
//! `relay.key` is made anew when names change or half of its life is over. The CA goes along in the chain, so that
//! diallers can pin it.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hedgerow_runtime::tls;
use hedgerow_shared::fault::Fault;
use hedgerow_shared::wire::message::{ALPN_LANE, ALPN_LINK};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::RelayConfig;
use crate::store::{StoreError, read_secret, write_secret};

/// Protocols the relay's own name speaks.
pub const ALPN: &[&[u8]] = &[ALPN_LINK, ALPN_LANE, b"h2", b"http/1.1"];
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
const SERVER_LIFE: Duration = Duration::from_secs(390 * 86_400);
/// Clocks of others may be behind.
const BACKDATE: Duration = Duration::from_secs(86_400);

/// Why the relay has no certificate to show.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A key file.
    #[error(transparent)]
    File(#[from] StoreError),
    /// A certificate or key that cannot be used.
    #[error("{} cannot be used: {why}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Making a certificate failed.
    #[error("the relay's certificate could not be made: {0}")]
    Make(#[from] rcgen::Error),
}

/// What the relay shows, and how diallers know it.
#[derive(Debug, Clone)]
pub struct Identity {
    /// For every TLS connection that the relay ends.
    pub server: Arc<ServerConfig>,
    /// The self-made CA's file; `None` when the certificate is the operator's own.
    pub ca: Option<PathBuf>,
    /// SHA-256 of the public key info of the self-made CA.
    pub ca_pin: Option<[u8; 32]>,
}

/// Reads the certificate, or makes it.
///
/// # Errors
/// Which file, and what is wrong with it.
pub fn load(config: &RelayConfig) -> Result<Identity, IdentityError> {
    let (certificate, key, ca) = match (&config.tls.certificate, &config.tls.key_file) {
        (Some(certificate), Some(key)) => (certificate.clone(), key.clone(), None),
        _ => own(config)?,
    };
    let unusable = |path: &Path, why: String| IdentityError::Unusable { path: path.to_owned(), why };
    let chain = tls::read_certificates(&certificate).map_err(|e| unusable(&certificate, e.to_string()))?;
    chain.first().inspect(|leaf| tls::show_expiry("server", leaf));
    let private = PrivateKeyDer::from_pem_slice(&read_secret(&key)?).map_err(|e| unusable(&key, e.to_string()))?;
    let fits = |e: Fault| unusable(&certificate, format!("with the key in {}: {}", key.display(), e.text));
    let mut server = tls::as_relay(chain, private, ALPN).map_err(fits)?;
    if let Some(path) = &config.tls.key_log_file {
        Arc::make_mut(&mut server).key_log = tls::KeyLogFile::open(path).map_err(|e| unusable(path, e.to_string()))?;
        tracing::warn!(
            path = %path.display(),
            "tls.key_log_file is set: whoever has this file and a capture can read link control traffic"
        );
    }
    let ca_pin = ca.as_deref().map(pin).transpose()?;
    Ok(Identity { server, ca, ca_pin })
}

/// Certificate and key, as they lie on the disk.
pub(crate) fn files(config: &RelayConfig) -> Vec<PathBuf> {
    match (&config.tls.certificate, &config.tls.key_file) {
        (Some(certificate), Some(key)) => vec![certificate.clone(), key.clone()],
        _ => ["relay.pem", "relay.key"].map(|name| config.state.join(name)).to_vec(),
    }
}

fn pin(ca: &Path) -> Result<[u8; 32], IdentityError> {
    use sha2::{Digest, Sha256};
    let key = KeyPair::from_pem(&text(&ca.with_extension("key"))?)?;
    Ok(Sha256::digest(rcgen::PublicKeyData::subject_public_key_info(&key)).into())
}

fn text(path: &Path) -> Result<String, IdentityError> {
    let bytes = read_secret(path)?;
    String::from_utf8(bytes)
        .map_err(|_| IdentityError::Unusable { path: path.to_owned(), why: "it is not PEM text".into() })
}

/// The self-made files: certificate, key, CA.
fn own(config: &RelayConfig) -> Result<(PathBuf, PathBuf, Option<PathBuf>), IdentityError> {
    let file = |name: &str| config.state.join(name);
    let (ca_pem, ca_key, pem, key) = (file("relay-ca.pem"), file("relay-ca.key"), file("relay.pem"), file("relay.key"));
    if !ca_key.exists() {
        let made = make_ca(&config.name)?;
        write_secret(&ca_key, made.1.as_bytes())?;
        write_public(&ca_pem, made.0.as_bytes())?;
        tracing::info!(path = %ca_pem.display(), "made a CA for this relay; diallers trust it by file or pin");
    }
    let names = names(config);
    let wanted = names.iter().cloned().collect::<Vec<_>>().join("\n");
    let made_for = file("relay.names");
    if !key.exists() || fs::read_to_string(&made_for).ok() != Some(wanted.clone()) || is_old(&pem) {
        let ca_text = fs::read_to_string(&ca_pem)
            .map_err(|e| IdentityError::Unusable { path: ca_pem.clone(), why: e.to_string() })?;
        let (certificate, private) = make_server(&names, &ca_text, &text(&ca_key)?)?;
        write_secret(&key, private.as_bytes())?;
        write_public(&pem, format!("{certificate}{ca_text}").as_bytes())?;
        write_public(&made_for, wanted.as_bytes())?;
    }
    Ok((pem, key, Some(ca_pem)))
}

fn names(config: &RelayConfig) -> BTreeSet<String> {
    let own = [config.name.to_ascii_lowercase(), "localhost".into(), "127.0.0.1".into(), "::1".into()];
    let bound = config.listen.link.iter().chain(&config.listen.device).map(|a| a.ip());
    let bound = bound.filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string());
    own.into_iter().chain(bound).chain(config.tls.names.iter().map(|n| n.to_ascii_lowercase())).collect()
}

/// Half of its life is over; what cannot be read is old.
fn is_old(path: &Path) -> bool {
    let age =
        fs::metadata(path).and_then(|m| m.modified()).ok().and_then(|at| SystemTime::now().duration_since(at).ok());
    age.is_none_or(|age| age > SERVER_LIFE / 2)
}

fn make_ca(name: &str) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Hedgerow relay CA of {name}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - BACKDATE).into(), (now + CA_LIFE).into());
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn make_server(names: &BTreeSet<String>, ca: &str, ca_key: &str) -> Result<(String, String), rcgen::Error> {
    let issuer = Issuer::from_ca_cert_pem(ca, KeyPair::from_pem(ca_key)?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.iter().cloned().collect::<Vec<_>>())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    let name = names.iter().find(|n| n.parse::<IpAddr>().is_err() && *n != "localhost");
    params.distinguished_name.push(DnType::CommonName, name.map_or("relay", String::as_str));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - BACKDATE).into(), (now + SERVER_LIFE).into());
    Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
}

/// Certificates are for everybody to read.
fn write_public(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    use std::os::unix::fs::PermissionsExt;
    write_secret(path, bytes)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
        .map_err(|e| IdentityError::Unusable { path: path.to_owned(), why: e.to_string() })
}

/// The CA certificates of a PEM text, for those who dial a relay in tests and demos.
///
/// # Errors
/// The text is not PEM.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, rustls_pki_types::pem::Error> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::Listen;

    fn config(state: &Path) -> RelayConfig {
        RelayConfig {
            name: "relay.example".into(),
            state: state.to_owned(),
            listen: Listen {
                link: vec!["127.0.0.1:0".parse().unwrap()],
                device: vec![],
                udp: true,
                http: vec![],
                trusted_proxies: vec![],
            },
            tls: crate::config::Tls::default(),
            lanes: crate::config::LaneConfig::default(),
            admin: Default::default(),
            limits: crate::config::Limits::default(),
            bandwidth: crate::fair::Bandwidth::default(),
            licences: crate::config::Licences::default(),
            timers: Default::default(),
            drain: crate::config::Drain::default(),
        }
    }

    #[test]
    fn the_first_start_makes_a_ca_and_later_ones_keep_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        let first = load(&config).unwrap();
        let before = fs::read(folder.path().join("relay.pem")).unwrap();
        let again = load(&config).unwrap();
        assert_eq!(first.ca_pin, again.ca_pin);
        assert_eq!(fs::read(folder.path().join("relay.pem")).unwrap(), before);
        config.tls.names = vec!["alias.example".into()];
        assert_eq!(load(&config).unwrap().ca_pin, first.ca_pin);
        assert_ne!(fs::read(folder.path().join("relay.pem")).unwrap(), before);
        for (name, mode) in [("relay-ca.key", 0o600), ("relay.key", 0o600), ("relay-ca.pem", 0o644)] {
            assert_eq!(fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777, mode, "{name}");
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        load(&config(folder.path())).unwrap();
        let key = folder.path().join("relay.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(load(&config(folder.path())), Err(IdentityError::File(StoreError::Exposed(_)))));
    }
}
