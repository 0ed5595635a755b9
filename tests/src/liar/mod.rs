//! A relay of the attacker's own. It holds a relay's TLS key, speaks the real protocol, admits whoever it likes, and
//! tells the lies that a test switches on; whatever it can read it writes down. Core, nodes and devices run against it
//! as real processes (`scene`).
//!
//! ```text
//!   door (TCP: lane leg, or TLS) ─┬─ link ── control: lanes ──┐
//!                                 └─ HTTP: look-up, CONNECT ──┴─ conduit between two ends: meddling, or `middle`
//!                                        everything read ── notes
//! ```

pub mod agreed;
mod conduit;
mod door;
mod lanes;
mod link;
mod middle;
mod notes;
mod paced;
pub mod scene;
mod site;
mod tenant;
mod udp;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hedgerow_runtime::link::Link;
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls::KeyLogFile;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::wire::message::{ALPN_LANE, ALPN_LINK, Destination, GoAway, Vouched};
use hedgerow_shared::{EntityId, InstanceId, Role, TenantId};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use conduit::{Alteration, Meddling, Way, What};
pub use middle::{Act, Imposter};
pub use notes::Notes;
pub use paced::Paced;
pub use site::{Reading, Site};
pub use tenant::{Holder, Tenant};
pub use udp::Datagrams;

/// Which lies are told. The default tells none: then the liar is a relay like any other, to one tenant.
#[derive(Debug, Default)]
pub struct Lies {
    /// Who answers those who ask for the core.
    pub core: Answer,
    /// Who answers devices that want a session to a node.
    pub node: Answer,
    /// What happens to the bytes between two ends.
    pub meddling: Option<Meddling>,
    /// What happens in conduits that begin after `meddling` was done.
    pub afterwards: Option<Meddling>,
    /// `meddling` is for conduits from this one on.
    from: u64,
    /// No lane for anybody: sessions run over link streams.
    pub lanes_refused: bool,
    /// Word from the core is not passed on.
    pub wakes_withheld: bool,
    /// This node is called, whichever the offer names.
    pub called: Option<EntityId>,
    /// The offer names this node, whichever is called.
    pub named: Option<EntityId>,
    /// The offer names this process.
    pub named_instance: Option<InstanceId>,
    /// Every second lane gets the other end of the one before, and the other way round.
    pub lanes_crossed: bool,
    /// The legs of two devices are joined with each other.
    pub devices_joined: bool,
    /// A node is called twice with the same ticket.
    pub called_twice: bool,
    /// What is done to datagrams of QUIC.
    pub datagrams: Option<Datagrams>,
    /// Bare legs of nodes are cut at once: they come wrapped in TLS then.
    pub bare_legs_cut: bool,
    /// Legs that come wrapped meet another server than the relay.
    pub wrapped_by_own_ca: bool,
    /// Legs of lanes stay open and nothing comes of them.
    pub legs_held: bool,
    /// Whoever wants to go on with a session is told that the node's process is gone.
    pub gone_said: bool,
    /// Requests for lanes and streams to nodes stay without an answer.
    pub requests_ignored: bool,
    /// What the liar vouches for, instead of the truth.
    pub vouched: Option<Vouched>,
    /// What a look-up is answered with: status line and body.
    pub look_up: Option<(String, String)>,
    /// What CONNECT is refused with.
    pub connect_refused: Option<String>,
    /// What it calls itself in ACCEPT.
    pub relay_name: Option<String>,
    /// Links are not answered but led to this relay, by a TLS connection of the liar's own.
    pub links_led_to: Option<String>,
    /// The relay does not know the tenant's SRP key, and goes on with one of its own.
    pub srp_key_unknown: bool,
}

/// Who answers.
#[derive(Debug, Default, Clone)]
pub enum Answer {
    /// The right one.
    #[default]
    Honest,
    /// Nobody: what should be passed on is held back.
    Nobody,
    /// The liar itself, with a certificate of its own.
    Imposter(Arc<Imposter>),
    /// The liar ends the TLS and speaks its own to the right one.
    Middle(Arc<Imposter>),
    /// The liar, with bytes that the right one has sent before.
    Replay(Bytes),
}

/// A link that a core, node or device has opened.
#[derive(Debug, Clone)]
pub struct Known {
    /// What the peer is.
    pub role: Role,
    /// Which; cores have no certificate on links.
    pub entity: Option<EntityId>,
    /// Its process.
    pub instance: InstanceId,
    /// The link.
    pub link: Link,
}

impl Known {
    /// Whether a device is led here: to the node that a lie names, else to the process it asks for, else to any.
    fn is_meant(&self, called: Option<EntityId>, to: &Destination) -> bool {
        match (called, to.instance) {
            (Some(lie), _) => self.entity == Some(lie),
            (None, Some(instance)) => self.instance == instance,
            (None, None) => true,
        }
    }
}

/// What has happened, counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Alterations made.
    pub altered: AtomicU64,
    /// Imposters whose hand-shake the peer finished.
    pub believed: AtomicU64,
    /// Imposters whose hand-shake failed.
    pub disbelieved: AtomicU64,
    /// Streams to the core that were asked for.
    pub to_core: AtomicU64,
    /// Legs of lanes that nodes brought.
    pub node_legs: AtomicU64,
    /// Links opened.
    pub links: AtomicU64,
    /// Of these, in TLS to the relay.
    pub wrapped_legs: AtomicU64,
    /// Datagrams meddled with.
    pub datagrams: AtomicU64,
    /// Bytes that `Alteration::Hold` kept back and sent later.
    pub late: AtomicU64,
}

struct Shared {
    lies: Mutex<Lies>,
    notes: Notes,
    links: Mutex<Vec<Known>>,
    lanes: Mutex<lanes::Lanes>,
    counts: Counts,
    samples: Mutex<Vec<conduit::Sample>>,
    /// Number of the next conduit.
    conduits: AtomicU64,
    last_up: Mutex<Vec<u8>>,
    last_down: Mutex<Vec<u8>>,
    agreed: agreed::List,
    /// Every UDP payload, one after the other.
    datagrams: Mutex<Vec<u8>>,
    cut: Notify,
    released: CancellationToken,
    look_ups: Mutex<HashMap<String, TenantId>>,
    srp_key: Mutex<Option<Secret>>,
    tls: Arc<ServerConfig>,
    /// The same name, by a CA that nobody trusts.
    foreign: Arc<ServerConfig>,
    quic: ServerConfig,
    name: String,
    scope: Scope,
}

/// The running liar; it ends when dropped.
pub struct Liar {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

/// What belongs to the relay whose place it took: its TLS key and certificate.
pub struct RelayIdentity {
    /// In the certificate.
    pub name: String,
    /// The CA above it, PEM.
    pub ca_pem: String,
    /// SHA-256 of the CA's public key info.
    pub pin: [u8; 32],
    chain: Vec<rustls_pki_types::CertificateDer<'static>>,
    key: Vec<u8>,
}

impl RelayIdentity {
    /// A relay of this name and also of 127.0.0.1, under a CA of its own.
    #[must_use]
    pub fn new(name: &str) -> Self {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData};
        use sha2::Digest;
        let ca_key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).expect("a CA");
        let pin = sha2::Sha256::digest(ca_key.subject_public_key_info()).into();
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned(), "127.0.0.1".into()]).expect("names");
        let leaf = params.signed_by(&key, &issuer).expect("a certificate");
        let chain = vec![leaf.der().clone(), ca.der().clone()];
        Self { name: name.to_owned(), ca_pem: ca.pem(), pin, chain, key: key.serialize_der() }
    }
}

impl std::fmt::Debug for RelayIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RelayIdentity({})", self.name)
    }
}

impl std::fmt::Debug for Liar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Liar({})", self.address)
    }
}

/// A lock whose holder cannot leave half a change behind: a panic elsewhere is reported by its own test.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Liar {
    /// Listens on a loopback port. Its key log goes into `folder`.
    #[must_use]
    pub fn start(identity: &RelayIdentity, folder: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let key_log = folder.join("liar-keys");
        let agreed = agreed::List::default();
        let another = RelayIdentity::new(&identity.name);
        let server = |what, identity: &RelayIdentity| {
            let key = rustls_pki_types::PrivateKeyDer::try_from(identity.key.clone()).expect("a PKCS#8 key");
            let builder = ServerConfig::builder_with_provider(agreed::provider(what, &agreed))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .expect("TLS 1.3")
                .with_no_client_auth();
            let tls = builder.with_single_cert(identity.chain.clone(), key);
            let mut tls = tls.expect("the key fits the certificate");
            tls.alpn_protocols = [ALPN_LINK, ALPN_LANE, b"http/1.1"].map(<[u8]>::to_vec).to_vec();
            tls.key_log = KeyLogFile::open(&key_log).expect("a key log");
            tls
        };
        let (tls, quic) = (server("the relay's TLS", identity), server("the relay's QUIC", identity));
        let foreign = server("the relay's TLS", &another);
        let shared = Arc::new(Shared {
            lies: Mutex::default(),
            notes: Notes::new(&key_log),
            links: Mutex::default(),
            lanes: Mutex::default(),
            counts: Counts::default(),
            samples: Mutex::default(),
            conduits: AtomicU64::new(1),
            last_up: Mutex::default(),
            last_down: Mutex::default(),
            agreed,
            datagrams: Mutex::default(),
            cut: Notify::new(),
            released: CancellationToken::new(),
            look_ups: Mutex::default(),
            srp_key: Mutex::default(),
            tls: Arc::new(tls),
            foreign: Arc::new(foreign),
            quic,
            name: identity.name.clone(),
            scope: Scope::new(),
        });
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("its address");
        {
            let _context = runtime.enter();
            shared.scope.spawn(door::listen(shared.clone(), listener));
        }
        Self { shared, address, runtime: Some(runtime) }
    }

    /// Takes links over QUIC too, at the same address.
    ///
    /// # Panics
    /// The UDP port is taken.
    pub fn listen_on_udp(&self) {
        let _context = self.runtime().enter();
        self.block_on(udp::listen(&self.shared, self.address, &self.shared.quic)).expect("the UDP port is free");
    }

    /// Every UDP payload so far, one after the other.
    #[must_use]
    pub fn datagrams(&self) -> Vec<u8> {
        lock(&self.shared.datagrams).clone()
    }

    /// Where it listens, for every kind of peer.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Changes the lies; what runs already goes on as it is, but for meddling.
    pub fn lie(&self, change: impl FnOnce(&mut Lies)) {
        change(&mut lock(&self.shared.lies));
    }

    /// Back to honesty.
    pub fn repent(&self) {
        *lock(&self.shared.lies) = Lies::default();
    }

    /// The key that a relay shares with the tenant's core.
    pub fn give_srp_key(&self, key: Secret) {
        *lock(&self.shared.srp_key) = Some(key);
    }

    /// Says whose address this is.
    pub fn give_address(&self, email: &str, tenant: &TenantId) {
        lock(&self.shared.look_ups).insert(email.to_lowercase(), tenant.clone());
    }

    /// What happened, counted.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// One count's value.
    #[must_use]
    pub fn count(&self, which: impl FnOnce(&Counts) -> &AtomicU64) -> u64 {
        which(&self.shared.counts).load(Ordering::SeqCst)
    }

    /// What it wrote down.
    #[must_use]
    pub fn notes(&self) -> &Notes {
        &self.shared.notes
    }

    /// The links that are up now.
    #[must_use]
    pub fn links(&self) -> Vec<Known> {
        self.shared.live_links()
    }

    /// Waits for a link that fits.
    ///
    /// # Panics
    /// None came in 20 s.
    #[must_use]
    pub fn wait_for_link(&self, what: &str, fits: impl Fn(&Known) -> bool) -> Known {
        let since = Instant::now();
        loop {
            if let Some(known) = self.links().into_iter().find(&fits) {
                return known;
            }
            assert!(since.elapsed() < Duration::from_secs(20), "no link of {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Tells the peers of a role to go away, and where to try instead.
    pub fn send_away(&self, role: Role, message: &GoAway) {
        let _context = self.runtime().enter();
        self.links().iter().filter(|k| k.role == role).for_each(|k| k.link.mux.go_away(message));
    }

    /// Ends everything that is being carried between two ends now, without a word of TLS.
    pub fn cut(&self) {
        self.shared.cut.notify_waiters();
    }

    /// What one end of the newest conduit has sent, byte for byte: to be played again.
    #[must_use]
    pub fn recorded(&self, way: Way) -> Vec<u8> {
        lock(self.shared.last(way)).clone()
    }

    /// Conduits so far.
    #[must_use]
    pub fn conduits(&self) -> u64 {
        self.shared.conduits.load(Ordering::SeqCst) - 1
    }

    /// Lets go of what `Alteration::Hold` keeps back, once.
    pub fn release(&self) {
        self.shared.released.cancel();
    }

    /// The key exchanges that were agreed where the liar could see it: where, and the group's number.
    #[must_use]
    pub fn agreed(&self) -> Vec<(&'static str, u16)> {
        lock(&self.shared.agreed).clone()
    }

    /// Runs something of a test's own on the liar's side of the links.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime().block_on(future)
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it is there until the drop")
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.shared.scope.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    fn live_links(&self) -> Vec<Known> {
        let mut links = lock(&self.links);
        links.retain(|k| !k.link.mux.is_closed());
        links.clone()
    }

    /// What this end of the newest conduit has sent.
    fn last(&self, way: Way) -> &Mutex<Vec<u8>> {
        match way {
            Way::Up => &self.last_up,
            Way::Down => &self.last_down,
        }
    }

    fn note_group(&self, what: &'static str, group: u16) {
        lock(&self.agreed).push((what, group));
    }

    fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::SeqCst);
    }
}
