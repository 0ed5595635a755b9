//! IP tunnels of devices: who gets one, with which address, by which way, and until when.
//!
//! ```text
//!   device ── end-to-end session: TunnelAsk ──► grant: lease, DNS, routes ──► TunnelGrant
//!   relay  ── PairCall (on its link) ──► pair: gate of that link, DTLS server ──► device's certificate ──► packets
//! ```
//!
//! No DTLS state exists before both have come: the grant inside a session that proved the device, and the relay's call.

pub(crate) mod config;
mod router;
mod setup;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hedgerow_proxy::target::{Host, Target};
use hedgerow_runtime::clock;
use hedgerow_runtime::link::Link;
use hedgerow_runtime::scope::Scope;
use hedgerow_secure_connect::leg::Way;
use hedgerow_secure_connect::policy;
use hedgerow_secure_connect::pool::{Lease, Pool};
use hedgerow_secure_connect::session::Session;
use hedgerow_secure_connect::session::dtls::{self, Check, Side};
use hedgerow_secure_connect::session::mtu::FLOOR;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::verify::{Rule, Scopes, Usage, VerifiedCertificate};
use hedgerow_shared::wire::message::{PairCall, TunnelAsk, TunnelGrant};
use hedgerow_shared::{EntityId, Role, SessionId, TunnelId};
use hedgerow_tunnel::{End, Gate, State};
use parking_lot::{Mutex, RwLock};
use rustls::pki_types::CertificateDer;
use serde_json::json;
use tokio::time::sleep;
use tracing::{debug, info};

use crate::policy::{Policies, Policy};
use crate::sessions::refused;
use crate::state::Enrolled;
use config::TunnelConfig;
use router::Router;

/// How long a lease waits for its tunnel.
const UNUSED: Duration = Duration::from_secs(60);
/// How often it is looked which tunnels are over.
const LOOK: Duration = Duration::from_secs(1);
/// Names of addresses kept for each tunnel.
const NAMES: usize = 512;

/// One device's tunnel.
pub(crate) struct Tunnel {
    pub(crate) end: Arc<End>,
    pub(crate) lease: Lease,
    pub(crate) memory: Mutex<policy::Tunnel>,
    /// What its packets may do; replaced with the configuration.
    policy: RwLock<Arc<policy::Policy>>,
    device: VerifiedCertificate,
    most: u16,
    since: Instant,
}

impl Tunnel {
    /// What its packets may do now.
    pub(crate) fn policy(&self) -> Arc<policy::Policy> {
        self.policy.read().clone()
    }
}

/// The policy in force, as packets are judged by it.
#[derive(Default)]
struct Compiled {
    /// For devices that are in no scope.
    for_all: Arc<policy::Policy>,
    /// For those of each scope.
    scoped: Vec<Arc<policy::Policy>>,
    scopes: Scopes,
}

impl Compiled {
    fn of(&self, device: &EntityId) -> Arc<policy::Policy> {
        self.scopes.of(device).and_then(|at| self.scoped.get(at)).unwrap_or(&self.for_all).clone()
    }
}

/// All tunnels of this node. Clones of the `Arc` are the same.
pub struct Tunnels {
    config: TunnelConfig,
    settings: dtls::Settings,
    enrolled: Arc<Enrolled>,
    policies: OnceLock<Arc<Policies>>,
    compiled: RwLock<Arc<Compiled>>,
    /// What devices never reach: relays and our own listener.
    never: Vec<(IpAddr, Option<u16>)>,
    router: Arc<Router>,
    table: Mutex<Table>,
    gates: Mutex<HashMap<SessionId, Arc<Gate>>>,
    scope: Scope,
}

impl std::fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tunnels({})", self.config.device)
    }
}

struct Table {
    pool: Pool,
    by_id: HashMap<TunnelId, Arc<Tunnel>>,
    by_device: HashMap<EntityId, TunnelId>,
}

impl Tunnels {
    /// Makes the TUN device; `None` where tunnels are not wanted. `own` is what devices never reach.
    ///
    /// # Errors
    /// What is missing: a privilege, a program, a free name.
    pub async fn open(
        config: &TunnelConfig,
        enrolled: &Arc<Enrolled>,
        own: &[Target],
        scope: &Scope,
    ) -> anyhow::Result<Option<Arc<Self>>> {
        if !config.enabled {
            return Ok(None);
        }
        let pool = config.pool().map_err(anyhow::Error::msg)?;
        let tun = setup::up(config, &pool).await?;
        let router = Router::new(tun, pool.gateway(), pool.prefixes().collect(), config.device_to_device);
        let address = |target: &Target| match &target.host {
            Host::Address(address) => Some((*address, Some(target.port))),
            Host::Name(_) => None,
        };
        let tunnels = Arc::new(Self {
            config: config.clone(),
            settings: dtls::Settings::new()?,
            enrolled: enrolled.clone(),
            policies: OnceLock::new(),
            compiled: RwLock::default(),
            never: own.iter().filter_map(address).collect(),
            router: Arc::new(router),
            table: Mutex::new(Table { pool, by_id: HashMap::new(), by_device: HashMap::new() }),
            gates: Mutex::default(),
            scope: scope.child(),
        });
        info!(device = config.device, pool = config.pool, mode = ?config.mode, "IP tunnels are served");
        Ok(Some(tunnels))
    }

    /// Lets packets pass, as far as the policies say.
    pub(crate) fn serve(self: &Arc<Self>, policies: &Arc<Policies>) {
        if self.policies.set(policies.clone()).is_err() {
            return;
        }
        let (outward, keeper, policies) = (self.router.clone(), self.clone(), policies.clone());
        self.scope.spawn(async move { outward.outward().await });
        self.scope.spawn(async move { keeper.keep(&policies).await });
    }

    /// What counts now; without policies nothing does.
    fn policy(&self) -> Arc<Policy> {
        self.policies.get().map(|p| p.current()).unwrap_or_default()
    }

    /// Puts a policy in force, and ends the tunnels that it does not admit.
    async fn obey(&self, policy: &Policy) {
        let mut never = self.never.clone();
        never.extend(setup::own_addresses().await.into_iter().map(|address| (address, None)));
        let compile = |rules: &[Rule]| {
            let compiled = match policy.version {
                Some(_) => policy::Policy::new(rules, self.enrolled.certificate.identity.group.as_ref()),
                None => policy::Policy::without_configuration(),
            };
            Arc::new(compiled.refusing(never.clone()).allowing_dns(self.config.dns().unwrap_or_default()))
        };
        let (for_all, scoped, scopes) = policy.parts();
        let scoped = scoped.map(|rules| compile(&rules.rules)).collect();
        let compiled = Arc::new(Compiled { for_all: compile(&for_all.rules), scoped, scopes: scopes.clone() });
        *self.compiled.write() = compiled.clone();
        let over: Vec<_> = {
            // Tunnels that come later find the new one.
            let table = self.table.lock();
            for tunnel in table.by_id.values() {
                *tunnel.policy.write() = compiled.of(&tunnel.device.identity.id);
            }
            let admits =
                |t: &Tunnel| policy.admits(&t.device).and_then(|()| policy.admits_tunnel(&t.device.identity.id));
            table.by_id.values().filter_map(|t| admits(t).err().map(|f| (t.clone(), f))).collect()
        };
        for (tunnel, fault) in over {
            info!(device = %tunnel.device.identity.id, reason = %fault, "tunnel cut");
            self.end(&tunnel, fault);
        }
    }

    /// Follows the policy, and ends what is idle, old, or never came up.
    async fn keep(&self, policies: &Policies) {
        let mut changed = policies.changes();
        self.obey(&policies.current()).await;
        loop {
            tokio::select! {
                news = changed.changed() => {
                    if news.is_err() {
                        return;
                    }
                    self.obey(&policies.current()).await;
                }
                () = sleep(LOOK) => {
                    self.sweep();
                }
            }
        }
    }

    fn sweep(&self) {
        let now = clock::now();
        let all: Vec<_> = self.table.lock().by_id.values().cloned().collect();
        for tunnel in all {
            let age = tunnel.since.elapsed();
            // Copied: whoever holds the end's lock waits for those who look at its state, and `used` takes that lock.
            let state = tunnel.end.state().borrow().clone();
            let why = match state {
                State::Closed(why) => Some(why),
                State::Connecting if age > UNUSED => Some(Fault::new(Code::TimedOut, "the device did not come")),
                State::Connecting => None,
                State::Up { .. } if age > self.config.lifetime() => Some(Fault::new(Code::Ok, "its time is over")),
                State::Up { .. } => {
                    let used = tunnel.end.used().unwrap_or(tunnel.since);
                    (used.elapsed() > self.config.idle()).then(|| Fault::new(Code::Ok, "idle"))
                }
            };
            let expired = tunnel.device.not_after <= now;
            let expired = expired.then(|| Fault::new(Code::Unauthenticated, "the device's certificate has expired"));
            if let Some(why) = expired.or(why) {
                self.end(&tunnel, why);
            }
        }
        self.gates.lock().retain(|_, gate| {
            gate.close_if_idle();
            !gate.is_closed()
        });
        metrics::gauge!("hedgerow_node_tunnels").set(self.table.lock().by_id.len() as f64);
    }

    /// Ends a tunnel and frees its address.
    fn end(&self, tunnel: &Arc<Tunnel>, why: Fault) {
        let id = tunnel.device.identity.id;
        info!(device = %id, reason = %why, "tunnel ended");
        metrics::counter!("hedgerow_node_tunnels_ended_total", "reason" => why.code.label()).increment(1);
        tunnel.end.close(why);
        self.router.remove(tunnel);
        let mut table = self.table.lock();
        table.by_id.remove(&tunnel.end.tunnel);
        if table.by_device.get(&id) == Some(&tunnel.end.tunnel) {
            table.by_device.remove(&id);
            table.pool.release(id);
        }
    }

    /// A device asks for a tunnel, inside a session that proved its certificate. It has one at a time.
    ///
    /// # Errors
    /// `Limited`, or what the policy says.
    pub(crate) fn grant(self: &Arc<Self>, device: &VerifiedCertificate, ask: &TunnelAsk) -> Result<TunnelGrant, Fault> {
        let policy = self.policy();
        policy.admits(device)?;
        policy.admits_tunnel(&device.identity.id)?;
        if policy.version.is_none() {
            return Err(Fault::new(Code::DeniedByPolicy, "the node has no valid configuration from its core"));
        }
        let id = device.identity.id;
        let before = {
            let table = self.table.lock();
            table.by_device.get(&id).and_then(|tunnel| table.by_id.get(tunnel)).cloned()
        };
        if let Some(before) = before {
            self.end(&before, Fault::new(Code::Displaced, "the device has asked for another tunnel"));
        }
        let tunnel = {
            let mut table = self.table.lock();
            if table.by_id.len() >= self.config.limit {
                return Err(refused("tunnels", "this node has as many tunnels as it may"));
            }
            let lease = table.pool.lease(id).map_err(|e| refused("tunnel_addresses", &e.to_string()))?;
            let end = End::new(TunnelId::from_random(clock::random()), id);
            let tunnel = Arc::new(Tunnel {
                end,
                lease,
                memory: Mutex::new(policy::Tunnel::new(NAMES)),
                policy: RwLock::new(self.compiled.read().of(&id)),
                device: device.clone(),
                most: ask.mtu.clamp(FLOOR, self.config.mtu),
                since: Instant::now(),
            });
            table.by_id.insert(tunnel.end.tunnel, tunnel.clone());
            table.by_device.insert(id, tunnel.end.tunnel);
            tunnel
        };
        self.router.add(&tunnel);
        self.scope.spawn(tunnel.end.clone().run());
        metrics::counter!("hedgerow_node_tunnels_total").increment(1);
        info!(device = %id, address = %tunnel.lease.v4, "tunnel granted");
        Ok(TunnelGrant {
            tunnel: tunnel.end.tunnel,
            v4: tunnel.lease.v4,
            v6: tunnel.lease.v6,
            dns: self.config.dns().unwrap_or_default().iter().map(std::net::SocketAddr::ip).collect(),
            suffixes: self.config.suffixes.clone(),
            routes: policy.networks(&id, self.enrolled.certificate.identity.group.as_ref()),
            mtu: self.config.mtu,
            idle_s: self.config.idle_seconds,
            lifetime_s: self.config.lifetime_seconds,
        })
    }

    /// The relay of this link lets the tunnel's datagrams pass from now on.
    pub(crate) fn pair(self: &Arc<Self>, call: PairCall, link: &Link) {
        let Some(tunnel) = self.table.lock().by_id.get(&call.tunnel).cloned() else {
            return debug!(tunnel = %call.tunnel, "a pairing for a tunnel that is over");
        };
        let gate = {
            let mut gates = self.gates.lock();
            let open = || Gate::open(link.clone(), None, self.router.clone(), &self.scope);
            gates.entry(link.accept.session).or_insert_with(open).clone()
        };
        gate.attach(&tunnel.end, call.half);
        let own = self.enrolled.own.get();
        let Ok(leaf) = own.leaf() else { return };
        let own = dtls::Own { certificate: leaf.to_vec(), key: own.key.secret() };
        let (settings, check, most) = (self.settings.clone(), self.check(&tunnel), tunnel.most);
        tunnel.end.begin(|now| Session::new(&settings, &own, Side::Server, check, most, now));
    }

    /// A relay has ended a pairing. The tunnel goes on when the device asks for another one.
    pub(crate) fn unpaired(&self, half: hedgerow_shared::wire::tunnel::HalfId, fault: &Fault, link: &Link) {
        debug!(?half, reason = %fault, relay = link.accept.relay, "a pairing is over");
    }

    fn check(&self, tunnel: &Tunnel) -> Check {
        let (ca, id) = (self.enrolled.ca.clone(), tunnel.device.identity.id);
        let policies = self.policies.get().cloned();
        Box::new(move |der| {
            let leaf = CertificateDer::from(der);
            let verified = ca.verify(&leaf, Role::Device, Usage::Client, clock::now());
            let verified = verified.map_err(|e| Fault::new(Code::Unauthenticated, e.to_string()))?;
            if verified.identity.id != id {
                return Err(Fault::new(
                    Code::Unauthenticated,
                    "another device than the one that was granted the tunnel",
                ));
            }
            match &policies {
                Some(policies) => {
                    let policy = policies.current();
                    policy.admits(&verified).and_then(|()| policy.admits_tunnel(&verified.identity.id))
                }
                None => Err(Fault::new(Code::DeniedByPolicy, "the node has no policy yet")),
            }
        })
    }

    /// The network below has changed.
    pub(crate) fn network_changed(&self) {
        let all: Vec<_> = self.table.lock().by_id.values().cloned().collect();
        all.iter().for_each(|tunnel| tunnel.end.network_changed());
    }

    /// Ends every tunnel, and what the system was told.
    pub(crate) async fn stop(&self) {
        let all: Vec<_> = self.table.lock().by_id.values().cloned().collect();
        for tunnel in all {
            self.end(&tunnel, Fault::new(Code::Draining, "the node shuts down"));
        }
        setup::down(&self.config).await;
    }

    /// For `/tunnels`.
    pub(crate) fn status(&self) -> serde_json::Value {
        use std::sync::atomic::Ordering::Relaxed;
        let show = |tunnel: &Arc<Tunnel>| {
            let (state, mtu, way) = match &*tunnel.end.state().borrow() {
                State::Connecting => ("connecting", None, None),
                State::Up { mtu, way } => ("up", Some(*mtu), Some(way_label(*way))),
                State::Closed(_) => ("closed", None, None),
            };
            let counts = &tunnel.end.counts;
            json!({
                "device": tunnel.device.identity.id, "certificate": tunnel.device.serial, "state": state, "mtu": mtu, "way": way,
                "address": tunnel.lease.v4, "address6": tunnel.lease.v6, "age_s": tunnel.since.elapsed().as_secs(),
                "idle_s": tunnel.end.used().map(|used| used.elapsed().as_secs()),
                "packets_in": counts.packets_in.load(Relaxed), "bytes_in": counts.bytes_in.load(Relaxed),
                "packets_out": counts.packets_out.load(Relaxed), "bytes_out": counts.bytes_out.load(Relaxed),
            })
        };
        let table = self.table.lock();
        json!(table.by_id.values().map(show).collect::<Vec<_>>())
    }
}

/// `udp` or `link`.
fn way_label(way: Way) -> &'static str {
    match way {
        Way::Udp => "udp",
        Way::Link => "link",
    }
}
