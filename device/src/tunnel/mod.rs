//! The device's IP tunnel: asked for, kept up, and what the system is told of it.
//!
//! ```text
//!   session to a node ── TunnelAsk ──► TunnelGrant ── PairRequest (link) ──► PairOffer ── DTLS ──► routes, DNS: up
//!        ▲                                                 ▲ a new link: paired again, the same tunnel        │
//!        └────── it ended: again, at once or when a packet wants it (idle) ◄──────────────────────────────────┘
//! ```

mod dns;
mod router;
mod routes;
mod system;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hedgerow_runtime::clock;
use hedgerow_runtime::dial::mark;
use hedgerow_runtime::link::{Link, Uplink};
use hedgerow_runtime::scope::Scope;
use hedgerow_secure_connect::leg::Way;
use hedgerow_secure_connect::policy::Learnt;
use hedgerow_secure_connect::session::Session;
use hedgerow_secure_connect::session::dtls::{self, Check, Side};
use hedgerow_secure_connect::session::mtu::{self, FLOOR};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::verify::{DeviceConfig, Usage};
use hedgerow_shared::wire::message::{Control, PairRequest, TunnelAsk, TunnelGrant};
use hedgerow_shared::wire::tunnel::Half;
use hedgerow_shared::{EntityId, InstanceId, Role};
use hedgerow_tunnel::{End, Gate, State, Tun, TunSetup};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::config::{TunnelConfig, TunnelRoutes};
use crate::sessions::Sessions;
use crate::state::DeviceState;
use router::{Addresses, Router};
use system::{RouteKind, SystemRoute};

/// How long a tunnel may take to come up, once it was granted.
const CONNECT: Duration = Duration::from_secs(25);
/// The first pause after a failure; it doubles up to `LONGEST`, with jitter.
const FIRST: Duration = Duration::from_millis(500);
/// See `FIRST`.
const LONGEST: Duration = Duration::from_secs(30);
/// Pair requests without an answer at once.
const MAX_REQUESTS: usize = 16;
/// Addresses of names that have a route of their own.
const NAMES: usize = 1024;

type Waiting = oneshot::Sender<Result<Half, Fault>>;

/// See the module. Clones are the same tunnel.
#[derive(Clone)]
pub(crate) struct Tunnel {
    inner: Arc<Inner>,
}

struct Inner {
    file: TunnelConfig,
    state: DeviceState,
    uplink: Uplink,
    sessions: Sessions,
    settings: dtls::Settings,
    own: dtls::Own,
    tun: Tun,
    router: Arc<Router>,
    forwarder: Option<Arc<dns::Forwarder>>,
    config: watch::Receiver<Option<DeviceConfig>>,
    requests: Mutex<HashMap<u32, Waiting>>,
    next: AtomicU32,
    status: Mutex<Status>,
    /// How often routes were put in force.
    told: AtomicU64,
    scope: Scope,
}

#[derive(Default)]
struct Status {
    end: Option<Arc<End>>,
    grant: Option<TunnelGrant>,
    node: Option<EntityId>,
    since: Option<Instant>,
    fault: Option<Fault>,
    times: u64,
}

/// A tunnel that is up, and what it takes to keep it so.
struct Up {
    end: Arc<End>,
    grant: TunnelGrant,
    node: EntityId,
    instance: InstanceId,
    link: Link,
    began: Instant,
}

impl Tunnel {
    /// Makes the TUN device and keeps the tunnel up until the scope ends; `None` where none is wanted.
    ///
    /// # Errors
    /// What is missing: a privilege, a program, a free name.
    pub(crate) async fn start(
        file: &TunnelConfig,
        state: &DeviceState,
        uplink: &Uplink,
        sessions: &Sessions,
        config: watch::Receiver<Option<DeviceConfig>>,
        scope: &Scope,
    ) -> anyhow::Result<Option<Self>> {
        if !file.enabled {
            return Ok(None);
        }
        // What a process that was killed left behind; its routes went with its device.
        cleanup(&state.dir).await?;
        let setup = TunSetup { name: file.device.clone(), mtu: FLOOR };
        let tun = Tun::open(&setup).with_context(|| {
            format!(
                "cannot make the TUN device {}: the tunnel needs /dev/net/tun and CAP_NET_ADMIN (run as root, or in \
                 systemd AmbientCapabilities=CAP_NET_ADMIN); [tunnel] enabled = false does without",
                file.device
            )
        })?;
        mark::set(system::NUMBER);
        let router = Arc::new(Router::new(tun.clone()));
        let (answers, learnt) = mpsc::channel(64);
        let forwarder = match file.dns {
            true => Some(dns::Forwarder::start(file.dns_listen, answers, scope).await?),
            false => None,
        };
        let leaf = state.own.chain.first().context("no certificate")?;
        let own = dtls::Own { certificate: leaf.to_vec(), key: state.own.key.secret() };
        let tunnel = Self {
            inner: Arc::new(Inner {
                file: file.clone(),
                state: state.clone(),
                uplink: uplink.clone(),
                sessions: sessions.clone(),
                settings: dtls::Settings::new()?,
                own,
                tun,
                router: router.clone(),
                forwarder,
                config,
                requests: Mutex::default(),
                next: AtomicU32::new(1),
                status: Mutex::default(),
                told: AtomicU64::new(0),
                scope: scope.clone(),
            }),
        };
        scope.spawn(async move { router.outward().await });
        let (keeper, learner) = (tunnel.clone(), tunnel.clone());
        scope.spawn(async move { keeper.keep().await });
        scope.spawn(async move { learner.learn(learnt).await });
        Ok(Some(tunnel))
    }

    /// Passes on the relay's answers.
    pub(crate) fn handle(&self, message: Control) {
        let (request, answer) = match message {
            Control::PairOffer(offer) => (offer.request, Ok(offer.half)),
            Control::PairRefused(refused) => (refused.request, Err(refused.fault)),
            // The pairing is over; the session finds out, or is paired anew.
            Control::PairEnd(end) => return debug!(reason = %end.fault, "the relay has ended a pairing"),
            _ => return,
        };
        if let Some(waiting) = self.inner.requests.lock().remove(&request) {
            // Whoever asked may have given up.
            let _ = waiting.send(answer);
        }
    }

    /// The network below has changed.
    pub(crate) fn network_changed(&self) {
        let end = self.inner.status.lock().end.clone();
        if let Some(end) = end {
            end.network_changed();
        }
    }

    /// Says goodbye and puts the system back.
    pub(crate) async fn stop(&self) {
        let end = self.inner.status.lock().end.take();
        if let Some(end) = end {
            end.close(Fault::new(Code::Draining, "the device shuts down"));
        }
        self.inner.router.lead(None);
        if let Err(error) = cleanup(&self.inner.state.dir).await {
            warn!(error = format!("{error:#}"), "the system is not as it was before the tunnel");
        }
    }

    /// For `hedgerow device status`.
    pub(crate) fn status(&self) -> serde_json::Value {
        use std::sync::atomic::Ordering::Relaxed;
        let status = self.inner.status.lock();
        let (state, mtu, way, reason) = match (&status.end, &status.fault) {
            (Some(end), _) => match &*end.state().borrow() {
                State::Connecting => ("connecting", None, None, None),
                State::Up { mtu, way: Way::Udp } => ("up", Some(*mtu), Some("udp"), None),
                State::Up { mtu, way: Way::Link } => ("up", Some(*mtu), Some("link"), None),
                State::Closed(why) => ("closed", None, None, Some(why.to_string())),
            },
            (None, Some(fault)) => ("connecting", None, None, Some(fault.to_string())),
            (None, None) => ("idle", None, None, None),
        };
        let count = |of: fn(&hedgerow_tunnel::Counts) -> u64| status.end.as_ref().map_or(0, |e| of(&e.counts));
        json!({
            "state": state, "mtu": mtu, "way": way, "reason": reason, "device": self.inner.tun.name(), "node": status.node,
            "address": status.grant.as_ref().map(|g| g.v4), "address6": status.grant.as_ref().and_then(|g| g.v6),
            "dns": status.grant.as_ref().map(|g| g.dns.clone()), "age_s": status.since.map(|s| s.elapsed().as_secs()),
            "times": status.times,
            "packets_in": count(|c| c.packets_in.load(Relaxed)), "bytes_in": count(|c| c.bytes_in.load(Relaxed)),
            "packets_out": count(|c| c.packets_out.load(Relaxed)), "bytes_out": count(|c| c.bytes_out.load(Relaxed)),
        })
    }

    async fn keep(&self) {
        let inner = &self.inner;
        let mut pause = FIRST;
        loop {
            match inner.connect().await {
                Ok(up) => {
                    pause = FIRST;
                    let why = inner.attend(up).await;
                    inner.router.lead(None);
                    inner.status.lock().end = None;
                    inner.resolve_outside();
                    info!(reason = %why, "tunnel ended");
                    if why.code == Code::Ok {
                        // Idle: nobody needs it until somebody does.
                        inner.status.lock().fault = None;
                        inner.router.wanted.notified().await;
                        continue;
                    }
                    inner.status.lock().fault = Some(why);
                }
                Err(fault) => {
                    warn!(reason = %fault, "no tunnel");
                    metrics::counter!("hedgerow_device_tunnels_failed_total", "reason" => fault.code.label())
                        .increment(1);
                    inner.status.lock().fault = Some(fault);
                }
            }
            sleep(clock::jitter(pause)).await;
            pause = (pause * 2).min(LONGEST);
        }
    }

    /// Gives addresses of names inside a route of their own, where no other leads there.
    async fn learn(&self, mut answers: mpsc::Receiver<Vec<u8>>) {
        let inner = &self.inner;
        let (began, mut names) = (Instant::now(), Learnt::new(NAMES));
        // Which address has its route since which time the system was told: another time takes all routes away.
        let mut routed: HashMap<IpAddr, u64> = HashMap::new();
        while let Some(answer) = answers.recv().await {
            names.expire(began.elapsed());
            names.learn(&answer, began.elapsed());
            let told = inner.told.load(Ordering::Relaxed);
            let Some(grant) = inner.status.lock().grant.clone() else { continue };
            for address in names.addresses().filter(|a| routed.get(a) != Some(&told)).collect::<Vec<_>>() {
                let source = match address {
                    IpAddr::V4(_) => Some(IpAddr::from(grant.v4)),
                    IpAddr::V6(_) => grant.v6.map(IpAddr::from),
                };
                let Some(source) = source else { continue };
                match system::route_address(inner.tun.name(), address, source).await {
                    Ok(()) => _ = routed.insert(address, told),
                    Err(error) => {
                        debug!(%address, error = format!("{error:#}"), "no route for an address of a name inside")
                    }
                }
            }
            let known: HashSet<_> = names.addresses().collect();
            for gone in routed.extract_if(|address, _| !known.contains(address)).map(|(a, _)| a).collect::<Vec<_>>() {
                system::unroute_address(inner.tun.name(), gone).await;
            }
        }
    }
}

impl Inner {
    /// From nothing to a tunnel whose packets pass.
    async fn connect(&self) -> Result<Up, Fault> {
        let ask = TunnelAsk { replaces: self.status.lock().grant.as_ref().map(|g| g.tunnel), mtu: mtu::MOST };
        let (grant, peer) = self.sessions.tunnel(&self.file.group, &ask).await?;
        let (node, instance) = (peer.node, peer.instance);
        let link = self.uplink.link(CONNECT).await?;
        let half = self.pair(&link, &grant, node, instance).await?;
        let end = End::new(grant.tunnel, node);
        let gate = self.gate(&link);
        gate.attach(&end, half);
        let (check, most) = (self.check(node), grant.mtu.clamp(FLOOR, mtu::MOST));
        let (settings, own) = (self.settings.clone(), self.own.clone());
        end.begin(|now| Session::new(&settings, &own, Side::Client, check, most, now));
        self.scope.spawn(end.clone().run());
        {
            let mut status = self.status.lock();
            status.end = Some(end.clone());
            status.grant = Some(grant.clone());
            status.node = Some(node);
        }
        let mut state = end.state();
        let settled = timeout(CONNECT, state.wait_for(|s| *s != State::Connecting)).await;
        let settled = settled.ok().and_then(Result::ok).map(|s| s.clone());
        match settled {
            Some(State::Up { .. }) => {}
            Some(State::Closed(why)) => return Err(why),
            Some(State::Connecting) | None => {
                let fault = Fault::new(Code::TimedOut, "the node did not answer over the relay's tunnel");
                end.close(fault.clone());
                return Err(fault);
            }
        }
        let up = Up { end, grant, node, instance, link, began: Instant::now() };
        if let Err(error) = self.tell_system(&up, true).await {
            let fault = Fault::new(Code::Internal, format!("{error:#}"));
            up.end.close(fault.clone());
            return Err(fault);
        }
        self.router.lead(Some((up.end.clone(), Addresses { v4: up.grant.v4, v6: up.grant.v6 })));
        let mut status = self.status.lock();
        status.since = Some(Instant::now());
        status.fault = None;
        status.times += 1;
        drop(status);
        info!(%node, address = %up.grant.v4, mtu = up.end.mtu(), "tunnel is up");
        metrics::counter!("hedgerow_device_tunnels_total").increment(1);
        Ok(up)
    }

    /// Keeps it up; returns why it ended.
    async fn attend(&self, mut up: Up) -> Fault {
        let mut state = up.end.state();
        let mut links = self.uplink.status();
        let mut config = self.config.clone();
        config.mark_unchanged();
        let lifetime = Duration::from_secs(u64::from(up.grant.lifetime_s)) * 9 / 10;
        let mut pair_at: Option<tokio::time::Instant> = None;
        loop {
            if let State::Closed(why) = &*state.borrow_and_update() {
                return why.clone();
            }
            if let Err(error) = self.tun.set_mtu(up.end.mtu()) {
                debug!(%error, "the TUN device's MTU stays");
            }
            let later = tokio::time::Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                changed = state.changed() => if changed.is_err() {
                    return Fault::new(Code::Internal, "the tunnel's task has ended");
                },
                changed = links.changed() => {
                    if changed.is_err() {
                        return Fault::new(Code::Draining, "this process is shutting down");
                    }
                    let other = self.uplink.current().filter(|l| l.accept.session != up.link.accept.session);
                    if other.is_some() {
                        pair_at = Some(tokio::time::Instant::now());
                    }
                }
                () = tokio::time::sleep_until(pair_at.unwrap_or(later)), if pair_at.is_some() => {
                    pair_at = match self.pair_again(&mut up).await {
                        Ok(()) => None,
                        Err(fault) => {
                            debug!(reason = %fault, "no new pairing yet; the old one serves while it can");
                            Some(tokio::time::Instant::now() + clock::jitter(Duration::from_secs(1)))
                        }
                    };
                }
                changed = config.changed() => {
                    if changed.is_ok() && let Err(error) = self.tell_system(&up, false).await {
                        warn!(error = format!("{error:#}"), "the new routes are not in force");
                    }
                }
                () = sleep(lifetime.saturating_sub(up.began.elapsed())) => {
                    return Fault::new(Code::Draining, "its time is over: another with new keys takes its place");
                }
            }
        }
    }

    /// The same tunnel by way of the link that is up now.
    async fn pair_again(&self, up: &mut Up) -> Result<(), Fault> {
        let link = self.uplink.current().ok_or_else(|| Fault::new(Code::Lost, "no link"))?;
        if link.accept.session == up.link.accept.session {
            return Ok(());
        }
        let half = self.pair(&link, &up.grant, up.node, up.instance).await?;
        self.gate(&link).attach(&up.end, half);
        info!(relay = link.accept.relay, "the tunnel goes by another link");
        metrics::counter!("hedgerow_device_tunnels_paired_again_total").increment(1);
        up.link = link;
        Ok(())
    }

    fn gate(&self, link: &Link) -> Arc<Gate> {
        Gate::open(link.clone(), mark::get(), self.router.clone(), &self.scope)
    }

    async fn pair(
        &self,
        link: &Link,
        grant: &TunnelGrant,
        node: EntityId,
        instance: InstanceId,
    ) -> Result<Half, Fault> {
        let request = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut requests = self.requests.lock();
            if requests.len() >= MAX_REQUESTS {
                return Err(Fault::new(Code::Limited, "too many pairings are asked for at once"));
            }
            requests.insert(request, sender);
        }
        let asked = link.mux.send_control(&PairRequest { request, tunnel: grant.tunnel, node, instance }.into());
        let answer = async {
            asked?;
            match timeout(Duration::from_secs(10), answer).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) | Err(_) => {
                    Err(Fault::new(Code::TimedOut, "the relay did not answer the request for a tunnel's pairing"))
                }
            }
        }
        .await;
        self.requests.lock().remove(&request);
        answer
    }

    fn check(&self, node: EntityId) -> Check {
        let (ca, group) = (self.state.ca.clone(), self.file.group.clone());
        Box::new(move |der| {
            let leaf = CertificateDer::from(der);
            let verified = ca.verify(&leaf, Role::Node, Usage::Server, clock::now());
            let verified = verified.map_err(|e| Fault::new(Code::Unauthenticated, e.to_string()))?;
            if verified.identity.id != node || verified.identity.group.as_ref() != Some(&group) {
                return Err(Fault::new(Code::Unauthenticated, "another node than the one that granted the tunnel"));
            }
            Ok(())
        })
    }

    /// Addresses, routes, name servers. With `fresh` the device is new to them.
    async fn tell_system(&self, up: &Up, fresh: bool) -> anyhow::Result<()> {
        let own: Vec<IpAddr> =
            [Some(up.grant.v4.into()), up.grant.v6.map(IpAddr::from)].into_iter().flatten().collect();
        if fresh {
            self.tun.set_mtu(up.end.mtu())?;
            system::addresses(self.tun.name(), &own).await?;
        }
        let config = self.config.borrow().clone();
        let mut routes = Vec::new();
        // The name servers, wherever they stand.
        let host = |network: &IpAddr| SystemRoute {
            network: *network,
            bits: if network.is_ipv4() { 32 } else { 128 },
            kind: RouteKind::Tunnel,
        };
        if self.file.dns {
            routes.extend(up.grant.dns.iter().map(host));
        }
        let whole = self.file.routes == TunnelRoutes::All;
        if let Some(config) = &config {
            routes.extend(routes::routes(config, &self.file.group, whole));
        }
        self.told.fetch_add(1, Ordering::Relaxed);
        system::routes(self.tun.name(), &own, &routes, self.file.local_network).await?;
        self.resolve_inside(up, config.as_ref())
    }

    fn resolve_inside(&self, up: &Up, config: Option<&DeviceConfig>) -> anyhow::Result<()> {
        let Some(forwarder) = &self.forwarder else { return Ok(()) };
        let path = &self.file.resolv_conf;
        let original = match system::read_journal(&self.state.dir)?.and_then(|j| j.resolv_conf) {
            Some(original) => original.text,
            None => std::fs::read_to_string(path).unwrap_or_default(),
        };
        let mut suffixes: Vec<String> = up.grant.suffixes.clone();
        suffixes.extend(config.map(|c| routes::domains(c, &self.file.group)).unwrap_or_default());
        let whole = self.file.routes == TunnelRoutes::All || (suffixes.is_empty() && !up.grant.dns.is_empty());
        let host = |address: &String| address.rsplit_once(':').map(|(host, _)| host.to_ascii_lowercase());
        let relays = self.state.relay.targets()?;
        let mut never_inside: Vec<String> = relays.iter().map(|r| r.name.to_ascii_lowercase()).collect();
        never_inside.extend(relays.iter().flat_map(|r| &r.addresses).filter_map(host));
        forwarder.set(dns::Split {
            inside: up.grant.dns.iter().map(|ip| (*ip, 53).into()).collect(),
            suffixes: if whole { Vec::new() } else { suffixes.clone() },
            outside: dns::servers_of(&original),
            never_inside,
        });
        if up.grant.dns.is_empty() {
            return Ok(());
        }
        let text = dns::resolv_conf(self.file.dns_listen, &original, &up.grant.suffixes);
        system::take_resolv_conf(&self.state.dir, path, &text)
    }

    /// While the tunnel is down, names are asked where they were asked before it.
    fn resolve_outside(&self) {
        let Some(forwarder) = &self.forwarder else { return };
        let original = system::read_journal(&self.state.dir).ok().flatten().and_then(|j| j.resolv_conf);
        let outside = original.map(|o| dns::servers_of(&o.text)).unwrap_or_default();
        forwarder.set(dns::Split { outside, ..dns::Split::default() });
    }
}

/// Puts back what a tunnel of this state folder told the system. Whether there was anything in the journal.
///
/// # Errors
/// A file cannot be put back.
pub(crate) async fn cleanup(state: &Path) -> anyhow::Result<bool> {
    system::unroute().await;
    system::restore(state)
}
