//! A tenant, a relay that knows just enough, a core that answers nodes, an intranet server, and devices.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hedgerow_connectivity_node::NodeConfigFile;
use hedgerow_runtime::boot::Context;
use hedgerow_runtime::clock;
use hedgerow_runtime::lane::{self, Session};
use hedgerow_runtime::link::{self, Admit, Link, Peer};
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls::{self, Own, SigningKey};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::certificate::CONFIG_KEY_EKU;
use hedgerow_shared::verify::{Identity, SignedConfig, TenantCa, Usage, VerifiedCertificate};
use hedgerow_shared::wire::core_api::{CONFIG_NODE, ENROL_NODE, EnrolNode, NodeEnrolled, read_have};
use hedgerow_shared::wire::lane as lane_wire;
use hedgerow_shared::wire::message::{
    ALPN_LINK, ALPN_SESSION, Accept, Claim, Control, Destination, LaneCall, Limits, LinkOpen, Refuse, Vouched, Wake,
};
use hedgerow_shared::wire::token::EnrolmentToken;
use hedgerow_shared::{EntityId, InstanceId, Origin, Role, TenantId, Ticket};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, SanType,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

pub(crate) const TENANT: &str = "S12345678";

pub(crate) struct Tenant {
    pub(crate) ca: TenantCa,
    issuer: Issuer<'static, KeyPair>,
    config_key: Arc<SigningKey>,
    config_certificate: Vec<u8>,
}

fn named(identity: &Identity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, identity.tenant.as_str());
    params.distinguished_name.push(DnType::OrganizationalUnitName, identity.role.as_str());
    params.distinguished_name.push(DnType::CommonName, identity.id.to_string());
    params.subject_alt_names = vec![SanType::URI(identity.to_uri().try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params
}

impl Tenant {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, TENANT);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = TenantCa::from_der(params.self_signed(&key).unwrap().der()).unwrap();
        let issuer = Issuer::new(params, key);
        let config_pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(CONFIG_KEY_EKU.to_vec())];
        let config_certificate = params.signed_by(&config_pair, &issuer).unwrap().der().to_vec();
        let config_key = SigningKey::from_pkcs8(&config_pair.serialize_der()).unwrap();
        Self { ca, issuer, config_key, config_certificate }
    }

    fn identity(&self, role: Role) -> Identity {
        let id = EntityId::from_random(clock::random());
        let (group, origins) = match role {
            Role::Node => (Some("default".parse().unwrap()), vec![Origin::Proxy]),
            _ => (None, Vec::new()),
        };
        Identity { tenant: self.ca.tenant().clone(), role, id, group, origins }
    }

    pub(crate) fn issue(&self, role: Role) -> (Own, EntityId) {
        let identity = self.identity(role);
        let key = KeyPair::generate().unwrap();
        let certificate = named(&identity).signed_by(&key, &self.issuer).unwrap();
        let key = SigningKey::from_pkcs8(&key.serialize_der()).unwrap();
        (Own { chain: vec![certificate.der().clone(), self.ca.der().clone()], key }, identity.id)
    }

    fn certify(&self, csr: &[u8]) -> (Vec<u8>, EntityId) {
        let identity = self.identity(Role::Node);
        let mut request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr)).unwrap();
        request.params = named(&identity);
        (request.signed_by(&self.issuer).unwrap().der().to_vec(), identity.id)
    }

    /// A node's configuration, valid for `lifetime` seconds.
    pub(crate) fn config(&self, version: u64, lifetime: u64, rules: Value, revoked: &[EntityId]) -> SignedConfig {
        let now = clock::now();
        let payload = json!({
            "tenant": TENANT, "audience": "node", "epoch": 1, "version": version, "issued": now, "expires": now.plus(lifetime),
            "rules": rules, "revoked": { "ids": revoked },
        });
        let payload = serde_json::to_vec(&payload).unwrap();
        let signature = self.config_key.sign(&SignedConfig::message(&payload));
        SignedConfig { payload, signature, certificate: self.config_certificate.clone() }
    }
}

impl Admit for Tenant {
    fn srp_key(&self, _: &TenantId) -> Option<Secret> {
        None
    }

    fn certificate(&self, claim: &Claim, leaf: &CertificateDer<'_>) -> Result<VerifiedCertificate, Fault> {
        let verified = self.ca.verify(leaf, claim.role, Usage::Client, clock::now());
        verified.map_err(|e| Fault::new(Code::Unauthenticated, e.to_string()))
    }

    fn accept(&self, peer: &Peer) -> Result<Accept, Refuse> {
        Ok(Accept { session: peer.session, relay: "localhost".into(), lookup_key: None, config: None, time: 0 })
    }
}

/// Everything outside the node. The relay, the core and the intranet share one process and one scope.
pub(crate) struct World {
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) intranet: SocketAddr,
    /// What the core serves; none = 503.
    pub(crate) config: Arc<Mutex<Option<SignedConfig>>>,
    pub(crate) node_link: watch::Receiver<Option<Link>>,
    acknowledged: watch::Receiver<Option<u64>>,
    pub(crate) scope: Scope,
    pub(crate) relay: SocketAddr,
    relay_pin: [u8; 32],
    lanes: Arc<Mutex<HashMap<Ticket, oneshot::Sender<TcpStream>>>>,
    tokens: Arc<Mutex<HashMap<EntityId, bool>>>,
    pub(crate) folder: tempfile::TempDir,
}

#[derive(Clone)]
struct Outside {
    tenant: Arc<Tenant>,
    config: Arc<Mutex<Option<SignedConfig>>>,
    tokens: Arc<Mutex<HashMap<EntityId, bool>>>,
    links: watch::Sender<Option<Link>>,
    acknowledged: watch::Sender<Option<u64>>,
    lanes: Arc<Mutex<HashMap<Ticket, oneshot::Sender<TcpStream>>>>,
    relay_tls: Arc<rustls::ServerConfig>,
    core_tls: Arc<rustls::ServerConfig>,
    scope: Scope,
}

impl World {
    pub(crate) async fn new() -> Self {
        let scope = Scope::new();
        let tenant = Arc::new(Tenant::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = listener.local_addr().unwrap();
        let (relay_tls, relay_pin) = relay_certificate();
        let (core, _) = tenant.issue(Role::Core);
        let (links, node_link) = watch::channel(None);
        let (acknowledge, acknowledged) = watch::channel(None);
        let outside = Outside {
            tenant: tenant.clone(),
            config: Arc::default(),
            tokens: Arc::default(),
            links,
            acknowledged: acknowledge,
            lanes: Arc::default(),
            relay_tls,
            core_tls: tls::as_tenant(
                tenant.ca.clone(),
                &[Role::Node],
                tls::Clients::Anyone,
                &tls::InForce::new(core),
                &[b"http/1.1"],
            )
            .unwrap(),
            scope: scope.clone(),
        };
        let (config, tokens, lanes) = (outside.config.clone(), outside.tokens.clone(), outside.lanes.clone());
        scope.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let outside = outside.clone();
                outside.scope.clone().spawn(async move { outside.connection(tcp).await });
            }
        });
        let intranet = echo_server(&scope).await;
        Self {
            tenant,
            intranet,
            config,
            node_link,
            acknowledged,
            scope,
            relay,
            relay_pin,
            lanes,
            tokens,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn token(&self) -> Secret {
        let id = EntityId::from_random(clock::random());
        self.tokens.lock().insert(id, true);
        let token = EnrolmentToken {
            tenant: TENANT.parse().unwrap(),
            relays: vec![self.relay.to_string()],
            relay_ca_pin: Some(self.relay_pin),
            tenant_ca_pin: self.tenant.ca.key_id(),
            id,
            secret: [7; 32],
        };
        Secret::from_text(token.to_text())
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("node")
    }

    pub(crate) fn allow_intranet(&self, version: u64, revoked: &[EntityId]) {
        let rules = json!([
            {"action": "allow", "target": "*.demo"},
            {"action": "allow", "target": "127.0.0.1", "ports": self.intranet.port().to_string()},
        ]);
        *self.config.lock() = Some(self.tenant.config(version, 3600, rules, revoked));
    }

    pub(crate) async fn enrolled(&self) -> hedgerow_connectivity_node::Record {
        hedgerow_connectivity_node::enroll(&self.state(), &self.token(), Some("test node"), &Timers::default())
            .await
            .unwrap()
    }

    /// Runs the node until the handle is drained or dropped.
    pub(crate) fn run(&self, change: impl FnOnce(&mut NodeConfigFile)) -> RunningNode {
        let mut config = NodeConfigFile::new(self.state());
        config.admin.listen = "127.0.0.1:0".parse().unwrap();
        config.hosts.insert("intranet.demo".into(), vec![self.intranet.ip()]);
        config
            .hosts
            .insert("rebound.demo".into(), vec!["127.0.0.2".parse().unwrap(), "169.254.169.254".parse().unwrap()]);
        config.drain.seconds = 2;
        change(&mut config);
        let context = Context::new(Duration::from_secs(5));
        let inner = context.clone();
        let (done, ended) = oneshot::channel();
        self.scope.spawn(async move {
            let _ = done.send(hedgerow_connectivity_node::run(config, &inner).await);
        });
        RunningNode { context, ended }
    }

    /// Waits until the node has told the core that it obeys what the core serves, and says it is ready.
    pub(crate) async fn ready(&self, node: &RunningNode) {
        let wanted = self.config.lock().as_ref().map(version_of);
        let mut acknowledged = self.acknowledged.clone();
        let told = tokio::time::timeout(Duration::from_secs(20), acknowledged.wait_for(|have| *have == wanted)).await;
        told.expect("the node acknowledges").unwrap();
        for _ in 0..400 {
            if node.context.readiness.failing().is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("not ready: {:?}", node.context.readiness.failing());
    }

    pub(crate) async fn link(&self) -> Link {
        let mut links = self.node_link.clone();
        let up = links.wait_for(|l| l.as_ref().is_some_and(|l| !l.mux.is_closed()));
        let up = tokio::time::timeout(Duration::from_secs(20), up).await.expect("the node's link comes up");
        up.unwrap().clone().unwrap()
    }

    /// Waits until the relay has noticed that the node's link is gone.
    pub(crate) async fn link_gone(&self) {
        let link = self.node_link.borrow().clone();
        if let Some(link) = link {
            let gone = tokio::time::timeout(Duration::from_secs(10), link.mux.closed()).await;
            gone.expect("the relay notices that the node has gone");
        }
    }

    pub(crate) async fn wake(&self) {
        self.link().await.mux.send_control(&Wake { roles: vec![Role::Node], ids: vec![] }.into()).unwrap();
    }

    fn vouched() -> Vouched {
        Vouched { role: Some(Role::Device), id: None, address: "192.0.2.1:1".into() }
    }

    fn to_proxy() -> Destination {
        Destination { tenant: TENANT.parse().unwrap(), origin: Origin::Proxy, group: None, instance: None, node: None }
    }

    /// A device's session over a stream of the node's link.
    pub(crate) async fn session_by_link(&self, device: &Own) -> Result<Session, Fault> {
        let header = LinkOpen::Through { to: Self::to_proxy(), vouched: Some(Self::vouched()), trace: None };
        let stream = self.link().await.mux.open(&header).await?;
        self.session(stream, device).await
    }

    /// A device's session over a lane that the node brings.
    pub(crate) async fn session_by_lane(&self, device: &Own) -> Result<Session, Fault> {
        let ticket = Ticket::from_random(clock::random());
        let (leg, brought) = oneshot::channel();
        self.lanes.lock().insert(ticket, leg);
        let call: Control = LaneCall { ticket, origin: Origin::Proxy, vouched: Self::vouched() }.into();
        self.link().await.mux.send_control(&call)?;
        let leg =
            tokio::time::timeout(Duration::from_secs(10), brought).await.expect("the node brings its leg").unwrap();
        self.session(leg, device).await
    }

    async fn session<IO>(&self, io: IO, device: &Own) -> Result<Session, Fault>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let config = tls::to_tenant(self.tenant.ca.clone(), Role::Node, None, Some(device), &[ALPN_SESSION])?;
        let instance = InstanceId::from_random(clock::random());
        lane::Endpoint::new(self.tenant.ca.clone(), instance, Timers::default(), self.scope.clone())
            .open(io, config, tls::any_name())
            .await
    }
}

pub(crate) struct RunningNode {
    pub(crate) context: Context,
    pub(crate) ended: oneshot::Receiver<anyhow::Result<()>>,
}

impl RunningNode {
    pub(crate) async fn stop(self) {
        self.context.drain();
        tokio::time::timeout(Duration::from_secs(10), self.ended).await.expect("drains").unwrap().unwrap();
        self.context.scope.stop(Duration::from_secs(2)).await;
    }
}

impl Outside {
    /// As the relay's listener: a lane's preamble, or TLS with a link or CONNECT inside.
    async fn connection(self, mut tcp: TcpStream) {
        let mut first = [0; 4];
        if tcp.peek(&mut first).await.unwrap_or(0) == 4 && first == lane_wire::MAGIC {
            let mut preamble = [0; lane_wire::LENGTH];
            tcp.read_exact(&mut preamble).await.unwrap();
            let lane_wire::Parsed::Ticket(ticket, _) = lane_wire::parse(&preamble) else { return };
            if let Some(waiting) = self.lanes.lock().remove(&ticket) {
                let _ = waiting.send(tcp);
            }
            return;
        }
        let Ok(tls) = tokio_rustls::TlsAcceptor::from(self.relay_tls.clone()).accept(tcp).await else { return };
        if tls.get_ref().1.alpn_protocol() == Some(ALPN_LINK) {
            let instance = InstanceId::from_random(clock::random());
            let opened = link::answer(
                tls,
                "test".into(),
                &*self.tenant,
                Limits::default(),
                instance,
                &Timers::default(),
                &self.scope,
            )
            .await;
            let Ok((link, peer)) = opened else { return };
            assert_eq!(peer.origins, [Origin::Proxy]);
            self.links.send_replace(Some(link.clone()));
            while let Some(incoming) = link.mux.accept().await {
                let outside = self.clone();
                match incoming.read_header() {
                    Ok(LinkOpen::Through { to, .. }) if to.origin == Origin::Core => {
                        self.scope.spawn(async move { outside.core(incoming.accept()).await });
                    }
                    _ => incoming.refuse(Fault::new(Code::NoRoute, "not here")),
                }
            }
            return;
        }
        let scope = self.scope.clone();
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            assert_eq!(request.method(), Method::CONNECT);
            let outside = self.clone();
            self.scope.spawn(async move {
                if let Ok(upgraded) = hyper::upgrade::on(request).await {
                    outside.core(TokioIo::new(upgraded)).await;
                }
            });
            async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::new()))) }
        });
        scope.spawn(async move {
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(tls), service)
                .with_upgrades()
                .await;
        });
    }

    async fn core<IO: AsyncRead + AsyncWrite + Send + Unpin + 'static>(self, io: IO) {
        let Ok(tls) = tokio_rustls::TlsAcceptor::from(self.core_tls.clone()).accept(io).await else { return };
        let authenticated = tls.get_ref().1.peer_certificates().is_some();
        let service = service_fn(move |request| {
            let outside = self.clone();
            async move { Ok::<_, Infallible>(outside.answer(request, authenticated).await) }
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
    }

    async fn answer(&self, request: Request<hyper::body::Incoming>, authenticated: bool) -> Response<Full<Bytes>> {
        let say = |status: StatusCode, body: Bytes| Response::builder().status(status).body(Full::new(body)).unwrap();
        let problem = |status, text: &str| say(status, json!({ "error": text }).to_string().into());
        let query = request.uri().query().unwrap_or_default().to_owned();
        match (request.method().clone(), request.uri().path().to_owned().as_str()) {
            (Method::POST, ENROL_NODE) => {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let asked: EnrolNode = serde_json::from_slice(&body).unwrap();
                match self.tokens.lock().insert(asked.token, false) {
                    Some(true) => {}
                    Some(false) => return problem(StatusCode::FORBIDDEN, "the enrolment token was used already"),
                    None => return problem(StatusCode::FORBIDDEN, "the enrolment token is not known here"),
                }
                assert_eq!(asked.secret, [7; 32]);
                let (certificate, node) = self.tenant.certify(&asked.csr);
                let reply = NodeEnrolled {
                    node,
                    name: asked.name.unwrap_or_default(),
                    group: "default".parse().unwrap(),
                    origins: vec![Origin::Proxy],
                    certificate,
                    ca: self.tenant.ca.der().to_vec(),
                    relays: vec![],
                    relay_name: None,
                    relay_ca_pem: None,
                    // It expires soon: some tests want the node to have none.
                    config: self.tenant.config(0, 2, json!([]), &[]),
                };
                say(StatusCode::OK, serde_json::to_vec(&reply).unwrap().into())
            }
            (Method::GET, CONFIG_NODE) if authenticated => match &*self.config.lock() {
                Some(config) => {
                    let have = query.strip_prefix("have=").map(|have| read_have(have).unwrap());
                    self.acknowledged.send_replace(have.map(|have| have.version));
                    let newest = have.is_some_and(|have| have.version == version_of(config));
                    let status = if newest { StatusCode::NO_CONTENT } else { StatusCode::OK };
                    say(status, if newest { Bytes::new() } else { minicbor::to_vec(config).unwrap().into() })
                }
                None => problem(StatusCode::SERVICE_UNAVAILABLE, "no configuration yet"),
            },
            _ => problem(StatusCode::FORBIDDEN, "no"),
        }
    }
}

fn version_of(config: &SignedConfig) -> u64 {
    serde_json::from_slice::<Value>(&config.payload).unwrap()["version"].as_u64().unwrap()
}

fn relay_certificate() -> (Arc<rustls::ServerConfig>, [u8; 32]) {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().unwrap();
    let leaf =
        CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap().signed_by(&key, &issuer).unwrap();
    let pin = {
        use sha2::Digest;
        use x509_parser::prelude::FromDer;
        let (_, parsed) = x509_parser::prelude::X509Certificate::from_der(ca.der()).unwrap();
        sha2::Sha256::digest(parsed.public_key().raw).into()
    };
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    (tls::as_relay(vec![leaf.der().clone(), ca.der().clone()], key, &[ALPN_LINK, b"http/1.1"]).unwrap(), pin)
}

async fn echo_server(scope: &Scope) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let inner = scope.clone();
    scope.spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            inner.spawn(async move {
                let (mut read, mut write) = tcp.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    address
}

pub(crate) fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}
