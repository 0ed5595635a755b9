//! The liar as an end of the inner TLS: alone, with a certificate of its own, or as the man in the middle.

use std::sync::Arc;

use bytes::Bytes;
use hedgerow_runtime::clock::random;
use hedgerow_runtime::tls::{self, SigningKey};
use hedgerow_shared::secret::Secret;
use hedgerow_shared::wire::core_api::ALPN_HTTP;
use hedgerow_shared::wire::message::{ALPN_LINK, ALPN_SESSION};
use hedgerow_shared::{SessionId, TenantId};
use hedgerow_uem_core::activation::pake::{Context, Proof, Responder, Start};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::Shared;
use super::conduit::Conn;
use super::notes::Recorded;

/// A certificate to lie with.
pub struct Imposter {
    tls: Arc<ServerConfig>,
    act: Act,
}

/// What an imposter does once it is believed.
#[derive(Debug)]
pub enum Act {
    /// Listens.
    Listen,
    /// Plays the core in an activation, with a guess for the password.
    Guess {
        /// Of the tenant it plays.
        tenant: TenantId,
        /// The guess.
        password: Secret,
    },
    /// Answers every request with these bytes.
    Serve(Vec<u8>),
}

impl std::fmt::Debug for Imposter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Imposter({:?})", self.act)
    }
}

impl Imposter {
    /// Shows this chain, whatever stands in it.
    ///
    /// # Panics
    /// The key is not the first certificate's.
    #[must_use]
    pub fn new(chain: Vec<CertificateDer<'static>>, key: &SigningKey, act: Act) -> Arc<Self> {
        let builder = ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth();
        let mut config = builder.with_single_cert(chain, key.to_rustls()).expect("the key fits the certificate");
        config.alpn_protocols = vec![ALPN_HTTP.to_vec(), ALPN_SESSION.to_vec()];
        Arc::new(Self { tls: Arc::new(config), act })
    }
}

/// Ends the peer's TLS; whether the peer believed it is counted.
async fn end(shared: &Shared, imposter: &Imposter, near: Conn) -> Option<TlsStream<Conn>> {
    let shaken = TlsAcceptor::from(imposter.tls.clone()).accept(near).await;
    Shared::count(if shaken.is_ok() { &shared.counts.believed } else { &shared.counts.disbelieved });
    shaken.ok()
}

/// Answers alone.
pub(super) async fn answer(shared: &Arc<Shared>, imposter: &Imposter, near: Conn) {
    let Some(tls) = end(shared, imposter, near).await else { return };
    let exporter = tls::exporter(tls.get_ref().1).unwrap_or_default();
    let mut plain = Recorded::new(tls, shared.notes.plain("told to an imposter"));
    match &imposter.act {
        Act::Listen => {
            // Until the peer has had enough.
            let _ = plain.read_to_end(&mut Vec::new()).await;
        }
        Act::Guess { tenant, password } => {
            let _ = guess(plain, tenant, password, exporter).await;
        }
        Act::Serve(body) => {
            let mut io = BufReader::new(plain);
            while request(&mut io).await.is_some() && respond(&mut io, body).await.is_some() {}
        }
    }
}

/// Says what another has said before, then waits until the opener has had enough.
pub(super) async fn replay(bytes: Bytes, mut near: Conn) {
    let _ = near.write_all(&bytes).await;
    let _ = near.flush().await;
    let _ = near.read_to_end(&mut Vec::new()).await;
}

/// The core's half of the PAKE, as far as the device goes along.
async fn guess(
    plain: Recorded<TlsStream<Conn>>,
    tenant: &TenantId,
    password: &Secret,
    exporter: [u8; 32],
) -> Option<()> {
    let mut io = BufReader::new(plain);
    let start: Start = serde_json::from_slice(&request(&mut io).await?).ok()?;
    let context = Context { user: start.user, tenant: tenant.clone(), exporter };
    let mut dice = |bytes: &mut [u8]| bytes.iter_mut().for_each(|b| *b = random::<1>()[0]);
    let session = SessionId::from_random(random());
    let (responder, offer) = Responder::offer(context, password, session, &mut dice).ok()?;
    respond(&mut io, &serde_json::to_vec(&offer).ok()?).await?;
    let proof: Proof = serde_json::from_slice(&request(&mut io).await?).ok()?;
    // The proof shows whether the guess was right; it was not, so there is nothing to confirm with but nonsense.
    let confirmation = match responder.confirm(&proof) {
        Ok((_, confirmation)) => serde_json::to_vec(&confirmation).ok()?,
        Err(_) => {
            let mut nonsense = serde_json::to_value(&proof).ok()?;
            nonsense.as_object_mut()?.remove("share");
            serde_json::to_vec(&nonsense).ok()?
        }
    };
    respond(&mut io, &confirmation).await?;
    // Whatever the device still asks is written down.
    request(&mut io).await.map(drop)
}

type Plain = BufReader<Recorded<TlsStream<Conn>>>;

async fn request(io: &mut Plain) -> Option<Vec<u8>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if io.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    io.read_exact(&mut body).await.ok()?;
    Some(body)
}

async fn respond(io: &mut Plain, body: &[u8]) -> Option<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    io.write_all(head.as_bytes()).await.ok()?;
    io.write_all(body).await.ok()?;
    io.flush().await.ok()
}

/// Ends the opener's TLS, speaks its own to the server, and passes on what is said.
pub(super) async fn between(shared: &Arc<Shared>, imposter: &Imposter, near: Conn, far: Conn) {
    let Some(near) = end(shared, imposter, near).await else { return };
    let Ok(config) = tls::to_anyone(&[ALPN_HTTP]) else { return };
    let Ok(mut far) = TlsConnector::from(config).connect(tls::any_name(), far).await else { return };
    let mut near = Recorded::new(near, shared.notes.plain("in the middle"));
    // It ends when one of them has had enough.
    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
}

/// Passes a link's plaintext to another relay and back, in the hope that its proofs hold there too.
pub(super) async fn lead(
    shared: &Shared,
    near: impl AsyncRead + AsyncWrite + Unpin,
    relay: &str,
) -> std::io::Result<()> {
    let config = tls::to_anyone(&[ALPN_LINK]).map_err(std::io::Error::other)?;
    let far = TcpStream::connect(relay).await?;
    let mut far = TlsConnector::from(config).connect(tls::any_name(), far).await?;
    let mut near = Recorded::new(near, shared.notes.plain("a link in the middle"));
    tokio::io::copy_bidirectional(&mut near, &mut far).await.map(drop)
}
