//! Start, life and end of a relay in a process.
//!
//! Start: read and check everything, then bind, then serve; a start that fails has bound nothing that answers. End: not
//! ready, doors closed, every peer told when and where to come back, streams and lanes given their time, then closed.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_runtime::admin::{Admin, AdminError, control};
use hedgerow_runtime::boot::Context;
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls;
use parking_lot::RwLock;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::accept::{Door, Doors, Shortage, Waiting};
use crate::admin;
use crate::certificate::Certificate;
use crate::config::{ConfigError, RelayConfig};
use crate::identity::{self, IdentityError};
use crate::licence;
use crate::state::Relay;
use crate::store::{Store, StoreError};
use crate::udp::{self, Port};

/// Connections that the kernel keeps for us: all nodes come back at once after an outage.
const BACKLOG: u32 = 4096;
/// Descriptors for what is not a connection: listeners, pipes of lanes, files.
const RESERVED: usize = 200;
/// How often a drain looks whether everything has ended.
const DRAIN_LOOK: Duration = Duration::from_millis(50);
/// Time for the last words to leave after everything was closed.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why a relay did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tenants.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The relay's own certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A listener.
    #[error("cannot listen on {address}; is another process there, or is it a port that needs a privilege?")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A UDP port.
    #[error(
        "cannot use UDP on {address}; is another process there, or is it a port that needs a privilege? `listen.udp = false` does without QUIC and tunnels"
    )]
    BindUdp {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The operator's listener.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] control::ServeError),
}

/// A relay that serves.
pub struct Running {
    /// Where it listens for nodes and cores.
    pub link: Vec<SocketAddr>,
    /// Where it listens for devices.
    pub device: Vec<SocketAddr>,
    /// Where it listens for plain HTTP CONNECT.
    pub http: Vec<SocketAddr>,
    /// The operator's listener.
    pub admin: SocketAddr,
    /// The control socket.
    pub control: PathBuf,
    /// The self-made CA's file, when the certificate is not the operator's own.
    pub ca: Option<PathBuf>,
    /// SHA-256 of that CA's public key info: what enrolment tokens carry.
    pub ca_pin: Option<[u8; 32]>,
    /// The relay's own certificate, to be read again.
    pub certificate: Certificate,
    /// The UDP ports, when there are.
    pub udp: Vec<Arc<Port>>,
    relay: Arc<Relay>,
    doors: Scope,
}

/// Starts a relay. Its tasks end with `context.scope`; `Running::until_drained` ends it in good order.
///
/// # Errors
/// What is wrong, and where.
pub async fn run(config: RelayConfig, context: &Context) -> Result<Running, StartError> {
    config.check()?;
    tls::select(config.tls.provider);
    let ready = context.readiness.check("listeners");
    describe_metrics();
    let store = Store::open(&config.state)?;
    let identity = identity::load(&config)?;
    let (link_listeners, link) = bind(&config.listen.link, config.listen.udp)?;
    let (device_listeners, device) = bind(&config.listen.device, config.listen.udp)?;
    let (http_listeners, http) = bind(&config.listen.http, false)?;
    let operator = Admin::bind(config.admin.listen).await?;
    let admin_address = operator.address();
    let control_path = config.state.join("control.sock");

    let descriptors = descriptors();
    if descriptors < config.limits.connections {
        tracing::info!(
            descriptors,
            wanted = config.limits.connections,
            "fewer file descriptors than limits.connections"
        );
    }
    let doors_scope = context.scope.child();
    let doors = Doors {
        tls: Arc::new(RwLock::new(TlsAcceptor::from(identity.server.clone()))),
        permits: Arc::new(Semaphore::new(config.limits.connections.min(descriptors.saturating_sub(RESERVED)).max(1))),
        waiting: Waiting::new(
            config.limits.handshakes.min(descriptors / 2).max(1),
            config.limits.handshakes_per_client.min(descriptors / 8).max(1),
        ),
        shortage: Shortage::default(),
        relay: Relay::new(config, store, context.scope.child()),
    };
    let relay = doors.relay.clone();
    relay.licences.set(relay.config.licences.read()?, relay.config.licences.required);
    // Nothing has asked for it yet.
    let _ = relay.web.set(web(&relay.config.name, &http, &device));
    let certificate = Certificate::new(relay.clone(), doors.tls.clone());
    let reloaded = certificate.clone();
    context.on_reload(move || Ok(reloaded.reload()?));
    control::serve(&control_path, admin::control(relay.clone(), &identity), &context.scope).await?;
    operator.serve(context.metrics.clone(), context.readiness.clone(), admin::reading(relay.clone()), &context.scope);
    let mut ports = Vec::new();
    for Bound { tcp, udp } in link_listeners.into_iter().chain(device_listeners) {
        doors.open(tcp, Door::Any, &doors_scope);
        if let Some((address, socket)) = udp {
            let failed = |source| StartError::BindUdp { address, source };
            let port = Port::sharded(socket, relay.config.limits.shards()).map_err(failed)?;
            udp::open(&doors, port.clone(), Some(relay.clone()), &doors_scope).map_err(failed)?;
            ports.push(port);
        }
    }
    for Bound { tcp, .. } in http_listeners {
        doors.open(tcp, Door::Web, &doors_scope);
    }
    relay.work.spawn(relay.clone().keep_house());
    relay.work.spawn(certificate.clone().keep_fresh());
    ready.pass();
    tracing::info!(name = relay.config.name, ?link, ?device, ?http, admin = %admin_address, "relay listens");
    Ok(Running {
        link,
        device,
        http,
        admin: admin_address,
        control: control_path,
        ca: identity.ca,
        ca_pin: identity.ca_pin,
        certificate,
        udp: ports,
        relay,
        doors: doors_scope,
    })
}

/// Where web-services clients find the relay as a proxy: plain HTTP first, as the API manual has it.
fn web(name: &str, http: &[SocketAddr], device: &[SocketAddr]) -> Vec<String> {
    let of = |scheme: &str, list: &[SocketAddr]| {
        let ports: BTreeSet<u16> = list.iter().map(SocketAddr::port).collect();
        ports.into_iter().map(|port| format!("{scheme}://{name}:{port}")).collect::<Vec<_>>()
    };
    [of("http", http), of("https", device)].concat()
}

/// A TCP listener, and the UDP socket beside it.
struct Bound {
    tcp: TcpListener,
    udp: Option<(SocketAddr, UdpSocket)>,
}

/// Addresses with port 0 take a port that is free for both.
const TRIES: usize = 16;

fn bind(addresses: &[SocketAddr], udp: bool) -> Result<(Vec<Bound>, Vec<SocketAddr>), StartError> {
    let (mut listeners, mut bound) = (Vec::new(), Vec::new());
    let both_families = ipv6_exists();
    for address in addresses.iter().copied() {
        // `[::]:443` serves IPv4 too, unless the list gives IPv4 an address of its own.
        let beside = addresses.iter().any(|a| a.is_ipv4() && a.port() == address.port() && a.port() != 0);
        let address = match address {
            SocketAddr::V6(v6) if v6.ip().is_unspecified() && !both_families => {
                tracing::warn!(%address, "this system has no IPv6: only IPv4 is served there");
                if beside {
                    continue;
                }
                SocketAddr::from((Ipv4Addr::UNSPECIFIED, v6.port()))
            }
            given => given,
        };
        let tries = if address.port() == 0 { TRIES } else { 1 };
        let mut both = bind_both(address, beside, udp);
        for _ in 1..tries {
            if both.is_ok() {
                break;
            }
            both = bind_both(address, beside, udp);
        }
        let (both, at) = both?;
        bound.push(at);
        listeners.push(both);
    }
    Ok((listeners, bound))
}

/// Whether this system knows IPv6 at all (`ipv6.disable=1` and some sandboxes take it away).
fn ipv6_exists() -> bool {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None);
    !socket.is_err_and(|e| e.raw_os_error() == Some(libc::EAFNOSUPPORT))
}

fn bind_both(address: SocketAddr, only_v6: bool, udp: bool) -> Result<(Bound, SocketAddr), StartError> {
    let failed = |source| StartError::Bind { address, source };
    let tcp = listen(address, only_v6).map_err(failed)?;
    let at = tcp.local_addr().map_err(failed)?;
    let udp = match udp {
        true => Some((at, datagrams(at, only_v6).map_err(|source| StartError::BindUdp { address: at, source })?)),
        false => None,
    };
    Ok((Bound { tcp, udp }, at))
}

fn datagrams(address: SocketAddr, only_v6: bool) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// How many files and sockets this process may have open.
fn descriptors() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit to write to.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0;
    if known { usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) } else { 1024 }
}

fn listen(address: SocketAddr, only_v6: bool) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        socket2::SockRef::from(&socket).set_only_v6(only_v6)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Running {
    /// What all connections share: for embedding and for tests.
    #[must_use]
    pub fn relay(&self) -> &Arc<Relay> {
        &self.relay
    }

    /// Serves until the process is told to drain, then drains.
    pub async fn until_drained(self, context: &Context) {
        context.draining().await;
        self.drain().await;
    }

    /// Closes the doors, tells every peer, waits for streams and lanes up to the configured time, closes what is left.
    /// Dropping the future leaves the relay half closed: the caller then cancels its scope.
    pub async fn drain(self) {
        self.doors.cancel();
        self.relay.drain().await;
    }
}

impl Relay {
    /// The drain once the doors are closed.
    pub async fn drain(&self) {
        let relay = self;
        relay.begin_drain();
        tracing::info!(links = relay.registry.len(), lanes = relay.lanes.len(), "draining");
        let all_ended = async {
            while !relay.lanes.is_empty() || open_streams(relay) > 0 {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
        };
        if tokio::time::timeout(relay.timers.drain, all_ended).await.is_err() {
            tracing::warn!(streams = open_streams(relay), lanes = relay.lanes.len(), "closed what did not end in time");
        }
        for live in relay.registry.select(None, |_| true) {
            live.handle.close(relay.farewell().fault);
        }
        relay.lanes.cut(|_| true);
        let _ = tokio::time::timeout(LAST_WORDS, async {
            while !relay.registry.is_empty() {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
        })
        .await;
        relay.work.cancel();
        tracing::info!("drained");
    }
}

fn open_streams(relay: &Relay) -> usize {
    relay.registry.select(None, |_| true).iter().map(|live| live.handle.open_streams()).sum()
}

fn describe_metrics() {
    use metrics::{describe_counter as counter, describe_gauge as gauge};
    counter!("hedgerow_relay_accepts_total", "TCP connections accepted");
    counter!("hedgerow_relay_quic_accepts_total", "QUIC connections accepted");
    counter!("hedgerow_relay_accept_errors_total", "Failed accepts: descriptors or memory are short");
    counter!("hedgerow_relay_connections_total", "Connections by what they turned out to be (kind)");
    counter!("hedgerow_relay_proxy_headers_total", "Connections of trusted proxies, by their header (kind)");
    counter!(
        "hedgerow_relay_certificate_reloads_total",
        "Readings of the certificate's files while running, by result"
    );
    counter!("hedgerow_relay_tls_failures_total", "TLS hand-shakes with the relay's own name that failed");
    counter!("hedgerow_relay_tls_handshakes_total", "TLS hand-shakes that the relay ended, by key exchange group");
    counter!("hedgerow_tls_tickets_taken_total", "TLS and QUIC hand-shakes that the relay resumed by a ticket");
    counter!("hedgerow_relay_passed_total", "Connections passed through by server name, by origin");
    counter!("hedgerow_relay_refused_total", "Links, streams, lanes and CONNECTs refused or cut, by code");
    counter!("hedgerow_relay_http_total", "HTTP answers by status");
    counter!("hedgerow_relay_streams_total", "Streams passed through from links, by origin");
    counter!("hedgerow_relay_displacements_total", "Sessions whose place a newer one took");
    counter!("hedgerow_relay_lanes_offered_total", "Lanes for which both ends got a ticket");
    counter!("hedgerow_relay_lanes_joined_total", "Lanes joined, by path (splice, copy)");
    counter!("hedgerow_relay_lanes_cut_total", "Joined lanes that the relay ended");
    counter!("hedgerow_relay_lane_bytes_total", "Bytes moved on lanes that have ended");
    counter!("hedgerow_relay_splice_fallbacks_total", "Bursts copied because no pipe could be had");
    counter!("hedgerow_relay_pairings_offered_total", "Tunnels whose ends were told of each other");
    counter!("hedgerow_relay_pairings_ended_total", "Tunnels that ended, by code");
    counter!("hedgerow_relay_tunnel_attaches_total", "Addresses that ends of tunnels have shown to be theirs");
    counter!("hedgerow_relay_tunnel_datagrams_total", "Datagrams of tunnels passed on, by direction");
    counter!("hedgerow_relay_tunnel_bytes_total", "Bytes of these");
    counter!("hedgerow_relay_pauses_total", "Readings put off because of a bandwidth limit, by limit");
    for limit in ["device", "node", "tenant"] {
        metrics::counter!("hedgerow_relay_pauses_total", "limit" => limit).increment(0);
    }
    gauge!("hedgerow_relay_handshakes", "Connections that have not shown yet what they are");
    gauge!("hedgerow_relay_lanes", "Joined lanes");
    gauge!("hedgerow_relay_lanes_waiting", "Lanes asked for whose legs have not both come");
    gauge!("hedgerow_relay_pairings", "Tunnels between devices and nodes");
    gauge!("hedgerow_relay_tunnels", "CONNECT tunnels and connections passed through by name");
    gauge!("hedgerow_relay_link_streams_max", "Streams on the link that has most");
    gauge!(
        "hedgerow_relay_link_stalled_streams_max",
        "Streams that wait for an end that does not read, on the link with most"
    );
    gauge!("hedgerow_relay_link_held_bytes_max", "Bytes held for streams of the TLS link that holds most");
    gauge!("hedgerow_relay_link_held_bytes", "Bytes held for streams of all TLS links");
    gauge!("hedgerow_relay_links", "Live links by role");
    licence::describe_metrics();
}
