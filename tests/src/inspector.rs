//! A box that opens TLS, as corporations run them: it shows certificates of its own CA, reads what passes, and lets
//! only HTTP through.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

/// The common name of its CA.
pub const CA: &str = "Corp Inspection CA";
/// The most that is kept of what it read, bytes.
const KEPT: usize = 16 * 1024 * 1024;

/// See the module. It runs until it is dropped.
#[derive(Debug)]
pub struct Inspector {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its CA certificate, PEM.
    pub ca: String,
    read: Arc<std::sync::Mutex<Vec<u8>>>,
    runtime: Option<tokio::runtime::Runtime>,
}

struct Shared {
    target: String,
    issuer: Issuer<'static, KeyPair>,
    versions: Vec<&'static SupportedProtocolVersion>,
    passes_alpn: bool,
    read: Arc<std::sync::Mutex<Vec<u8>>>,
}

impl Inspector {
    /// In front of the relay at `target`, on another port of the same address; `folder` gets its CA certificate.
    /// Clients get these TLS versions.
    #[must_use]
    pub fn before(target: &str, folder: &str, versions: Vec<&'static SupportedProtocolVersion>) -> Self {
        Self::with(target, folder, versions, false)
    }

    /// As `before`, but it agrees to any protocol that the client offers, as those do that copy both hand-shakes.
    #[must_use]
    pub fn copying(target: &str, folder: &str, versions: Vec<&'static SupportedProtocolVersion>) -> Self {
        Self::with(target, folder, versions, true)
    }

    fn with(target: &str, folder: &str, versions: Vec<&'static SupportedProtocolVersion>, passes_alpn: bool) -> Self {
        let address = target.parse::<SocketAddr>().expect("an address").ip();
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, CA);
        let certificate = params.self_signed(&key).expect("a certificate");
        let ca = Path::new(folder).join("inspection-ca.pem");
        std::fs::write(&ca, certificate.pem()).expect("a file");
        let read = Arc::default();
        let shared = Arc::new(Shared {
            target: target.to_owned(),
            issuer: Issuer::new(params, key),
            versions,
            passes_alpn,
            read: Arc::clone(&read),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind((address, 0))).expect("a port");
        let address = listener.local_addr().expect("an address");
        runtime.block_on(async move {
            let scope = Scope::new();
            let tasks = scope.clone();
            scope.spawn(async move {
                while let Ok((tcp, _)) = listener.accept().await {
                    let shared = shared.clone();
                    tasks.spawn(async move {
                        let _ = shared.open(tcp).await;
                    });
                }
            });
        });
        Self { address, ca: ca.display().to_string(), read, runtime: Some(runtime) }
    }

    /// Whether these bytes passed in what it read, either way.
    #[must_use]
    pub fn has_read(&self, words: &[u8]) -> bool {
        let read = self.read.lock().expect("no panic while held");
        read.windows(words.len()).any(|w| w == words)
    }
}

impl Drop for Inspector {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

impl Shared {
    /// TLS towards the client under the own CA, TLS towards the relay, bytes in the clear in between.
    async fn open(&self, tcp: TcpStream) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let address = tcp.local_addr()?.ip().to_string();
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp).await?;
        let hello = start.client_hello();
        // Clients that know an address only send no name.
        let name = hello.server_name().map_or(address, str::to_owned);
        // It knows HTTP; whoever does not ask for it gets no protocol, but a certificate.
        let offered = hello.alpn().into_iter().flatten();
        let protocols: Vec<Vec<u8>> =
            offered.filter(|p| self.passes_alpn || *p == b"http/1.1").map(<[u8]>::to_vec).collect();
        let upward = if protocols.is_empty() { vec![b"http/1.1".to_vec()] } else { protocols.clone() };
        let config = self.config_for(&name, protocols)?;
        let mut client = start.into_stream(config).await?;
        let upstream = tls::to_anyone(&upward.iter().map(Vec::as_slice).collect::<Vec<_>>()).map_err(|f| f.text)?;
        let upstream = tls::with_server_name(&upstream);
        let tcp = TcpStream::connect(&self.target).await?;
        let mut relay = TlsConnector::from(upstream).connect(ServerName::try_from(name)?, tcp).await?;
        let (mut up, mut down) = (vec![0; 32 * 1024], vec![0; 32 * 1024]);
        loop {
            tokio::select! {
                length = client.read(&mut up) => match length? {
                    0 => return Ok(relay.shutdown().await?),
                    length => self.pass(&up[..length], &mut relay).await?,
                },
                length = relay.read(&mut down) => match length? {
                    0 => return Ok(client.shutdown().await?),
                    length => self.pass(&down[..length], &mut client).await?,
                },
            }
        }
    }

    async fn pass(&self, bytes: &[u8], to: &mut (impl AsyncWriteExt + Unpin)) -> std::io::Result<()> {
        {
            let mut read = self.read.lock().expect("no panic while held");
            let room = KEPT.saturating_sub(read.len()).min(bytes.len());
            read.extend_from_slice(&bytes[..room]);
        }
        to.write_all(bytes).await?;
        to.flush().await
    }

    fn config_for(
        &self,
        name: &str,
        protocols: Vec<Vec<u8>>,
    ) -> Result<Arc<ServerConfig>, Box<dyn std::error::Error + Send + Sync>> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        let leaf = params.signed_by(&key, &self.issuer)?.der().clone();
        let mut config = ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&self.versions)?
            .with_no_client_auth()
            .with_single_cert(vec![leaf], PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
        config.alpn_protocols = protocols;
        Ok(Arc::new(config))
    }
}
