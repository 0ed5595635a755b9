//! The device's IP tunnel: asked for, kept up, and what the system is told of it.
//!
//! ```text
//!   session to a node ── TunnelAsk ──► TunnelGrant ── PairRequest (link) ──► PairOffer ── DTLS ──► routes, DNS: up
//!        ▲                                                 ▲ a new link: paired again, the same tunnel        │
//!        └────── it ended: again, at once or when a packet wants it (idle) ◄──────────────────────────────────┘
//! ```

mod apply;
mod dns;
mod home;
mod life;
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
use hedgerow_secure_connect::session::dtls::{self};
use hedgerow_secure_connect::session::mtu::FLOOR;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::verify::DeviceConfig;
use hedgerow_shared::wire::message::{Control, TunnelGrant};
use hedgerow_shared::wire::tunnel::{Half, HalfId};
use hedgerow_shared::{EntityId, InstanceId};
use hedgerow_tunnel::{End, Gate, State, Tun, TunSetup};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::config::TunnelConfig;
use crate::sessions::Sessions;
use crate::state::DeviceState;
use router::Router;

/// The first pause after a failure; it doubles up to `LONGEST`, with jitter.
const FIRST: Duration = Duration::from_millis(500);
/// See `FIRST`.
const LONGEST: Duration = Duration::from_secs(30);
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
    timers: Timers,
    settings: dtls::Settings,
    tun: Tun,
    router: Arc<Router>,
    forwarder: Option<Arc<dns::Forwarder>>,
    config: watch::Receiver<Option<DeviceConfig>>,
    requests: Mutex<HashMap<u32, Waiting>>,
    next: AtomicU32,
    status: Mutex<Status>,
    /// How often routes were put in force.
    told: AtomicU64,
    /// The way that belongs to the link in use. One a link: each takes what the link brings.
    gate: Mutex<Option<Arc<Gate>>>,
    /// The half of a pairing that the relay has ended last.
    unpaired: Mutex<Option<HalfId>>,
    /// The network below has changed, or `unpaired`.
    moved: Notify,
    scope: Scope,
}

#[derive(Default)]
struct Status {
    end: Option<Arc<End>>,
    grant: Option<TunnelGrant>,
    node: Option<EntityId>,
    since: Option<Instant>,
    fault: Option<Fault>,
    home: bool,
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
        timers: Timers,
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
        let tunnel = Self {
            inner: Arc::new(Inner {
                file: file.clone(),
                state: state.clone(),
                uplink: uplink.clone(),
                sessions: sessions.clone(),
                timers,
                settings: dtls::Settings::new()?,
                tun,
                router: router.clone(),
                forwarder,
                config,
                requests: Mutex::default(),
                next: AtomicU32::new(1),
                status: Mutex::default(),
                told: AtomicU64::new(0),
                gate: Mutex::default(),
                unpaired: Mutex::default(),
                moved: Notify::new(),
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
            Control::PairEnd(end) => {
                debug!(reason = %end.fault, "the relay has ended a pairing");
                *self.inner.unpaired.lock() = Some(end.half);
                return self.inner.moved.notify_one();
            }
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
        self.inner.moved.notify_one();
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
                // Until routes and name servers stand, nobody gains by it.
                State::Up { .. } if status.since.is_none() => ("connecting", None, None, None),
                State::Up { mtu, way: Way::Udp } => ("up", Some(*mtu), Some("udp"), None),
                State::Up { mtu, way: Way::Link } => ("up", Some(*mtu), Some("link"), None),
                State::Closed(why) => ("closed", None, None, Some(why.to_string())),
            },
            (None, Some(fault)) if status.home => ("home", None, None, Some(fault.to_string())),
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
            if inner.is_home().await {
                self.stay_home().await;
            }
            match inner.connect().await {
                Ok(up) => {
                    pause = FIRST;
                    let (end, idle) = (up.end.clone(), Duration::from_secs(u64::from(up.grant.idle_s)));
                    let why = inner.attend(up).await;
                    inner.router.lead(None);
                    {
                        let mut status = inner.status.lock();
                        status.end = None;
                        status.since = None;
                    }
                    inner.resolve_outside();
                    info!(reason = %why, "tunnel ended");
                    if why.code == Code::Displaced {
                        continue;
                    }
                    // The other end gives no reason (DTLS has none to give): one that was in use is asked for again, and
                    // what is in the way is said then.
                    if why.code == Code::Ok && end.used().is_none_or(|used| used.elapsed() > idle / 2) {
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

    /// Without a tunnel for as long as this machine is where it leads.
    async fn stay_home(&self) {
        let inner = &self.inner;
        info!("this machine is in the network that the tunnel leads to: it needs none");
        if let Err(error) = cleanup(&inner.state.dir).await {
            warn!(error = format!("{error:#}"), "the system is not as it was before the tunnel");
        }
        {
            let mut status = inner.status.lock();
            status.home = true;
            status.fault = Some(Fault::new(Code::Ok, "this machine is in the network that the tunnel leads to"));
        }
        while inner.is_home().await {
            tokio::select! {
                () = inner.moved.notified() => {}
                () = sleep(home::LOOK) => {}
            }
        }
        inner.status.lock().home = false;
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

/// Puts back what a tunnel of this state folder told the system. Whether there was anything in the journal.
///
/// # Errors
/// A file cannot be put back.
pub(crate) async fn cleanup(state: &Path) -> anyhow::Result<bool> {
    system::unroute().await;
    system::restore(state)
}
