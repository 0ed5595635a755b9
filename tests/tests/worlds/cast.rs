//! Who acts in a world: relays, nodes, devices and the core, each the product's own code on a modelled host, to be
//! started, killed, drained and started again.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hedgerow_connectivity_node::{Inside, Node, Parts, Servers, State};
use hedgerow_device::agent::Agent;
use hedgerow_proxy::dial::Dialer;
use hedgerow_proxy::publish::Published;
use hedgerow_relay::accept::client_hello::{self, Parsed};
use hedgerow_relay::accept::prefixed::Prefixed;
use hedgerow_relay::accept::{Place, Waiting};
use hedgerow_relay::lane::{Carrier, Leg};
use hedgerow_relay::serve;
use hedgerow_relay::state::Relay;
use hedgerow_relay::store::Store;
use hedgerow_runtime::clock;
use hedgerow_runtime::dial::{Network, RelayTarget};
use hedgerow_runtime::link::{Choice, Credentials, Link, Uplink, UplinkConfig, UplinkStatus, Uplinks};
use hedgerow_runtime::quic;
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls::{self, InForce};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::wire::lane as wire;
use hedgerow_shared::wire::message::{ALPN_LANE, ALPN_LINK, Wake};
use hedgerow_shared::{EntityId, InstanceId, Origin, Role};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use super::fixture::{self, Fixture};
use super::net::{HostId, Net, Stream, udp};
use super::trace;

/// The relays that run now: what the core asks of one of them is carried out there.
pub(crate) type Running = Arc<Mutex<[Option<Arc<Relay>>; fixture::RELAYS]>>;

/// A relay on its host.
pub(crate) struct RelayActor {
    n: usize,
    pub(crate) host: HostId,
    net: Net,
    folder: tempfile::TempDir,
    runs: usize,
    lanes: bool,
    running: Running,
    pub(crate) run: Option<RelayRun>,
}

pub(crate) struct RelayRun {
    pub(crate) relay: Arc<Relay>,
    work: Scope,
    doors: Scope,
}

impl RelayActor {
    /// Without `lanes` whatever would be a leg of a lane is cut on the way, as some firewalls do.
    pub(crate) fn new(net: &Net, n: usize, lanes: bool, running: &Running) -> Self {
        let host = net.add_host(["relay-a", "relay-b"][n], fixture::relay_address(n).ip());
        let folder = tempfile::tempdir().unwrap();
        Self { n, host, net: net.clone(), folder, runs: 0, lanes, running: running.clone(), run: None }
    }

    pub(crate) fn start(&mut self, fixture: &'static Fixture) {
        let kit = &fixture.relays[self.n];
        let state = |run: usize| self.folder.path().join(run.to_string());
        // Its disk outlives it.
        let from = if self.runs == 0 { kit.config.state.clone() } else { state(self.runs) };
        let config = fixture::copy_state(kit, &from, &state(self.runs + 1));
        self.runs += 1;
        let store = Store::open(&config.state).unwrap();
        let work = Scope::new();
        let doors = work.child();
        let relay = Relay::new(config, store, work.clone());
        work.spawn(relay.clone().keep_house());
        let door = Door {
            relay: relay.clone(),
            tls: TlsAcceptor::from(kit.server.clone()),
            waiting: Waiting::new(1000, 1000),
            lanes: self.lanes,
        };
        let listener = self.net.listen(self.host);
        let tcp = door.clone();
        doors.spawn(async move {
            loop {
                let (stream, door) = (listener.accept().await, tcp.clone());
                tcp.relay.work.spawn(async move { door.greet(stream).await });
            }
        });
        let socket = udp::bind(&self.net, self.host, Some(fixture::relay_address(self.n).port()));
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            quic::relay_endpoint_config(relay.store.reset_key()),
            Some(quic::server_config(&kit.server, &relay.timers).unwrap()),
            socket,
            Arc::new(quic::Tasks(work.clone())),
        )
        .unwrap();
        doors.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let door = door.clone();
                door.relay.clone().work.spawn(async move {
                    let (place, address) =
                        (door.waiting.enter(incoming.remote_address().ip()), incoming.remote_address());
                    if let Ok(connection) = incoming.await {
                        serve::quic_link(&door.relay, connection, address, place).await;
                    }
                });
            }
        });
        self.running.lock()[self.n] = Some(relay.clone());
        self.run = Some(RelayRun { relay, work, doors });
    }

    /// Gone at once.
    pub(crate) fn crash(&mut self) {
        self.net.crash(self.host);
        self.running.lock()[self.n] = None;
        if let Some(run) = self.run.take() {
            run.work.cancel();
        }
    }

    /// As SIGTERM does it.
    pub(crate) async fn drain(&mut self) {
        let Some(run) = self.run.take() else { return };
        run.doors.cancel();
        self.net.stop_listening(self.host);
        run.relay.drain().await;
        self.running.lock()[self.n] = None;
        run.work.cancel();
        // The process ends.
        self.net.crash(self.host);
    }
}

/// What `accept::Doors` does with a socket, with a modelled connection.
#[derive(Clone)]
struct Door {
    relay: Arc<Relay>,
    tls: TlsAcceptor,
    waiting: Waiting,
    lanes: bool,
}

impl Door {
    async fn greet(self, stream: Stream) {
        let place = self.waiting.enter(stream.peer.ip());
        let _ = tokio::time::timeout(self.relay.timers.handshake, self.sort(stream, place)).await;
    }

    async fn sort(&self, mut stream: Stream, place: Place) {
        let address = stream.peer;
        let mut first = BytesMut::new();
        loop {
            match wire::parse(&first) {
                wire::Parsed::Ticket(ticket, skip) => {
                    let rest = first.split_off(skip).freeze();
                    return self.leg(&ticket, Carrier::Wrapped(Box::new(stream)), rest, address);
                }
                wire::Parsed::Unknown | wire::Parsed::Incomplete => {}
            }
            match client_hello::parse(&first) {
                Parsed::Hello(hello) => {
                    let name = hello.server_name.unwrap_or_default();
                    match wire::ticket_of(&name, &self.relay.config.name) {
                        Some(Ok(ticket)) => {
                            return self.leg(&ticket, Carrier::Wrapped(Box::new(stream)), first.freeze(), address);
                        }
                        Some(Err(())) => return,
                        None => break,
                    }
                }
                Parsed::Incomplete(_) => {}
                Parsed::NotTls | Parsed::Malformed(_) if !preamble_may_come(&first) => return,
                Parsed::NotTls | Parsed::Malformed(_) => {}
            }
            if !matches!(stream.read_buf(&mut first).await, Ok(1..)) {
                return;
            }
        }
        let Ok(mut tls) = self.tls.accept(Prefixed::new(first.freeze(), stream)).await else { return };
        if tls.get_ref().1.alpn_protocol() == Some(ALPN_LINK) {
            // From here on the link's own deadlines count.
            let relay = self.relay.clone();
            self.relay.work.spawn(async move { serve::link(&relay, Box::new(tls), address, None, place).await });
        } else if tls.get_ref().1.alpn_protocol() == Some(ALPN_LANE)
            && let Some((ticket, rest)) = preamble(&mut tls).await
        {
            self.leg(&ticket, Carrier::Wrapped(Box::new(tls)), rest, address);
        }
    }

    fn leg(&self, ticket: &hedgerow_shared::Ticket, carrier: Carrier, first: Bytes, address: std::net::SocketAddr) {
        if !self.lanes {
            return;
        }
        let leg = Leg { carrier, first, address, probe: None, permit: Box::new(()) };
        self.relay.lanes.arrive(ticket, leg, clock::monotonic());
    }
}

fn preamble_may_come(first: &[u8]) -> bool {
    matches!(wire::parse(first), wire::Parsed::Incomplete)
}

async fn preamble(io: &mut (impl AsyncRead + Unpin)) -> Option<(hedgerow_shared::Ticket, Bytes)> {
    let mut bytes = BytesMut::new();
    loop {
        match wire::parse(&bytes) {
            wire::Parsed::Ticket(ticket, length) => return Some((ticket, bytes.split_off(length).freeze())),
            wire::Parsed::Unknown if !bytes.is_empty() => return None,
            wire::Parsed::Unknown | wire::Parsed::Incomplete => {
                if io.read_buf(&mut bytes).await.ok()? == 0 {
                    return None;
                }
            }
        }
    }
}

/// A node on its host.
pub(crate) struct NodeActor {
    n: usize,
    pub(crate) host: HostId,
    net: Net,
    transport: Choice,
    servers: Arc<dyn Servers>,
    changes: watch::Sender<u64>,
    pub(crate) run: Option<(Node, Scope)>,
}

impl NodeActor {
    pub(crate) fn new(
        net: &Net,
        n: usize,
        name: &str,
        address: IpAddr,
        transport: Choice,
        servers: Arc<dyn Servers>,
    ) -> Self {
        let host = net.add_host(name, address);
        Self { n, host, net: net.clone(), transport, servers, changes: watch::Sender::new(0), run: None }
    }

    pub(crate) fn start(&mut self, fixture: &'static Fixture) {
        let kit = &fixture.nodes[self.n];
        let scope = Scope::new();
        let network = Network::given(self.net.sockets(self.host));
        let parts = Parts {
            state: State::at(&kit.folder),
            enrolled: kit.enrolled.clone(),
            instance: InstanceId::from_random(clock::random()),
            own: Vec::new(),
            relays: kit.enrolled.record.relay_targets(&[], &network).unwrap(),
            transport: self.transport,
            limits: Default::default(),
            timers: Timers::default(),
            inside: Inside::Given(self.servers.clone()),
            told: Default::default(),
            published: Published::new(
                Default::default(),
                Dialer::new(Default::default(), Duration::from_secs(1)),
                Default::default(),
            ),
            origins: vec![Origin::Proxy],
            tunnels: None,
        };
        let node = Node::start(parts, &scope).unwrap();
        scope.spawn(node.clone().follow_network(self.changes.subscribe(), scope.clone()));
        self.run = Some((node, scope));
    }

    pub(crate) fn crash(&mut self) {
        self.net.crash(self.host);
        if let Some((_, scope)) = self.run.take() {
            scope.cancel();
        }
    }

    pub(crate) fn readdress(&self, address: IpAddr) {
        self.net.readdress(self.host, address);
        self.changes.send_modify(|n| *n += 1);
    }
}

/// A device on its host.
pub(crate) struct DeviceActor {
    n: usize,
    pub(crate) host: HostId,
    net: Net,
    transport: Choice,
    changes: watch::Sender<u64>,
    pub(crate) run: Option<(Agent, Scope)>,
}

impl DeviceActor {
    pub(crate) fn new(net: &Net, n: usize, name: &str, address: IpAddr, transport: Choice) -> Self {
        let host = net.add_host(name, address);
        Self { n, host, net: net.clone(), transport, changes: watch::Sender::new(0), run: None }
    }

    pub(crate) fn start(&mut self, fixture: &'static Fixture) {
        let kit = &fixture.devices[self.n];
        let scope = Scope::new();
        let network = Network::given(self.net.sockets(self.host));
        let file = hedgerow_device::DeviceConfigFile { transport: self.transport, ..kit.file.clone() };
        let agent = Agent::over(file, kit.state.clone(), &network, self.changes.subscribe(), &scope).unwrap();
        self.run = Some((agent, scope));
    }

    pub(crate) fn readdress(&self, address: IpAddr) {
        self.net.readdress(self.host, address);
        self.changes.send_modify(|n| *n += 1);
    }
}

/// What the core has decided.
#[derive(Debug, Clone, Default)]
pub(crate) struct Decided {
    pub(crate) version: u64,
    revoked: Vec<EntityId>,
}

/// The core: its links are the product's own, what it answers there is that nothing is new. What it has decided it puts
/// at every relay that has an older configuration, as often as a link comes up; what it has decided outlives it.
pub(crate) struct CoreActor {
    pub(crate) host: HostId,
    pub(crate) decided: watch::Sender<Decided>,
    uplinks: Option<(Uplinks, Scope)>,
    net: Net,
    transport: Choice,
    running: Running,
}

impl CoreActor {
    pub(crate) fn new(net: &Net, address: IpAddr, transport: Choice, running: &Running) -> Self {
        let decided = watch::Sender::new(Decided { version: 1, revoked: Vec::new() });
        let host = net.add_host("core", address);
        Self { host, decided, uplinks: None, net: net.clone(), transport, running: running.clone() }
    }

    /// Decides something: that a device is revoked, or nothing that matters here.
    pub(crate) fn decide(&self, revoked: Option<EntityId>) {
        self.decided.send_modify(|decided| {
            decided.version += 1;
            decided.revoked.extend(revoked);
        });
    }

    /// Whether every relay that runs has the newest configuration.
    pub(crate) fn is_heard(&self, fixture: &Fixture) -> bool {
        let newest = self.decided.borrow().version;
        let has = |relay: &Arc<Relay>| relay.store.tenant(&fixture.tenant).and_then(|t| t.seen).map(|v| v.version);
        self.running.lock().iter().flatten().all(|relay| has(relay) == Some(newest))
    }

    pub(crate) fn start(&mut self, fixture: &'static Fixture) {
        let scope = Scope::new();
        let network = Network::given(self.net.sockets(self.host));
        let relay = |n| {
            let address = fixture::relay_address(n).to_string();
            RelayTarget::new(vec![address], "relay.example", fixture.roots.clone()).over(network.clone())
        };
        let config = UplinkConfig {
            relays: (0..fixture::RELAYS).map(relay).collect(),
            credentials: Credentials::Srp { tenant: fixture.tenant.clone(), key: fixture.core_key.clone() },
            instance: InstanceId::from_random(clock::random()),
            timers: Timers::default(),
            transport: self.transport,
            twins: Default::default(),
        };
        let uplinks = Uplinks::start(&config, &scope);
        let tls = tls::as_tenant(
            fixture.ca.clone(),
            &[Role::Node, Role::Device],
            tls::Clients::Anyone,
            &InForce::new(fixture.core.clone()),
            &[b"http/1.1"],
        )
        .unwrap();
        for (n, uplink) in uplinks.iter().enumerate() {
            let desk = Desk {
                relay: n,
                tls: TlsAcceptor::from(tls.clone()),
                decided: self.decided.subscribe(),
                running: self.running.clone(),
                way: (self.net.clone(), self.host),
                fixture,
                scope: scope.clone(),
            };
            scope.spawn(desk.serve(uplink.clone()));
        }
        self.uplinks = Some((uplinks, scope));
    }

    pub(crate) fn crash(&mut self) {
        self.net.crash(self.host);
        if let Some((_, scope)) = self.uplinks.take() {
            scope.cancel();
        }
    }
}

/// What the core does with one of its uplinks.
#[derive(Clone)]
struct Desk {
    relay: usize,
    tls: TlsAcceptor,
    decided: watch::Receiver<Decided>,
    running: Running,
    way: (Net, HostId),
    fixture: &'static Fixture,
    scope: Scope,
}

impl Desk {
    async fn serve(self, uplink: Uplink) {
        let mut status = uplink.status();
        loop {
            let link = match &*status.borrow_and_update() {
                UplinkStatus::Up(link) => Some(link.clone()),
                UplinkStatus::Connecting(_) | UplinkStatus::Stopped => None,
            };
            if let Some(link) = link {
                self.scope.spawn(serve_link(link.clone(), self.tls.clone(), self.scope.clone()));
                self.scope.spawn(self.clone().publish(link));
            }
            if status.changed().await.is_err() {
                return;
            }
        }
    }

    /// Puts configurations at the relay for as long as the link stands. What the relay does with one is the product's
    /// own; only its way there is not the link's stream, because the product waits for its disk on a thread of its own.
    async fn publish(mut self, link: Link) {
        let mut told = link.accept.config.map(|v| v.version);
        loop {
            let decided = self.decided.borrow_and_update().clone();
            if told < Some(decided.version) {
                sleep(Duration::from_millis(50)).await;
                let relay = self.running.lock()[self.relay].clone();
                let ends_here = |relay: &Arc<Relay>| {
                    let own = relay.registry.select(Some(&self.fixture.tenant), |f| f.id == link.accept.session);
                    !own.is_empty()
                };
                let Some(relay) = relay.filter(ends_here).filter(|_| !link.mux.is_closed()) else { return };
                if !self.way.0.passes_between(self.way.1, self.relay) {
                    sleep(Duration::from_secs(1)).await;
                    continue;
                }
                let signed = self.fixture.configuration(decided.version, &decided.revoked);
                let put = relay.store.put_config(&self.fixture.tenant, signed, clock::now());
                let cut = relay.enforce(Some(&self.fixture.tenant));
                trace::line(&format!(
                    "core: version {} at relay {}: {}, {cut} cut",
                    decided.version,
                    self.relay,
                    put.is_ok()
                ));
                told = Some(decided.version);
                let _ = link.mux.send_control(&Wake { roles: vec![Role::Node, Role::Device], ids: Vec::new() }.into());
            }
            tokio::select! {
                changed = self.decided.changed() => if changed.is_err() { return },
                _ = link.mux.closed() => return,
            }
        }
    }
}

async fn serve_link(link: Link, tls: TlsAcceptor, scope: Scope) {
    while let Some(incoming) = link.mux.accept().await {
        let tls = tls.clone();
        scope.spawn(async move {
            let Ok(mut io) = tls.accept(incoming.accept()).await else { return };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if !matches!(io.read_buf(&mut head).await, Ok(1..)) {
                    return;
                }
            }
            let _ = io.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            let _ = io.flush().await;
            let _ = io.read_buf(&mut head).await;
        });
    }
}
