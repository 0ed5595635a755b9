//! What all connections of one relay share.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hedgerow_runtime::clock;
use hedgerow_runtime::link::{Channel, Stream};
use hedgerow_runtime::quic;
use hedgerow_runtime::scope::Scope;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::{self, Timers};
use hedgerow_shared::verify::Feature;
use hedgerow_shared::wire::message::{Destination, GoAway, LinkOpen, Vouched};
use hedgerow_shared::{InstanceId, Role, SessionId, TenantId};
use tokio::time::timeout;

use crate::admit;
use crate::config::{ConfigError, RelayConfig};
use crate::fair::Fairness;
use crate::lane::{End, Lanes};
use crate::licence::{Licensing, Refused};
use crate::limit::{Limiter, Shares};
use crate::pass::Passes;
use crate::registry::{Facts, Live, Load, Registry, Silence};
use crate::store::{Store, Tenant, TenantState};
use crate::tunnel::{Owner, Tunnels};

/// Links that a draining relay lets come back a second: half of what a processor core can do beside other work.
pub const RETURNS: u64 = 500;
/// Sessions tried for one stream before it is refused.
const ATTEMPTS: usize = 3;

/// Streams that may stand still on a link that they fill. Of those whose bytes wait in a TLS link's window: half of it
/// may have gone into windows that grew, and a quarter is left for who moves.
const FRAMED_UNREAD: usize = (limits::CONNECTION_WINDOW / 4 / limits::INITIAL_STREAM_WINDOW) as usize;
/// The same over QUIC.
const QUIC_UNREAD: usize = (limits::CONNECTION_WINDOW / 2 / quic::STREAM_WINDOW as u64) as usize;
/// Of those that wait for room in a TLS link's queue: with as many, a quarter of it is free.
const FRAMED_UNSENT: usize = 96;

/// For how long the lanes of a holder whose link was lost are asked for signs of life.
const LANES_ASKED: Duration = Duration::from_secs(6);

/// An endpoint that takes longer to answer is asked whether it is there.
const SLOW_ANSWER: Duration = Duration::from_millis(500);

/// How long those may take to answer who are asked whether UDP passes.
const WITNESS: Duration = Duration::from_secs(1);

/// One relay.
pub struct Relay {
    /// As read from its file.
    pub config: RelayConfig,
    /// Scaled.
    pub timers: Timers,
    /// Its tenants.
    pub store: Store,
    /// Who is connected.
    pub registry: Registry<Channel>,
    /// Joined connections.
    pub lanes: Lanes,
    /// Tunnels.
    pub pairings: Tunnels,
    /// How fast bytes go through.
    pub fair: Fairness,
    /// Connections passed through by server name.
    pub passes: Passes,
    /// What tenants may do.
    pub licences: Licensing,
    /// Where web-services clients find this relay as an HTTP proxy (`http://host:port`); known once the doors are open.
    pub web: OnceLock<Vec<String>>,
    /// This run.
    pub instance: InstanceId,
    /// TLS and QUIC hand-shakes, of everybody.
    pub handshakes: Limiter<()>,
    /// CONNECT by client.
    pub connect_client: Limiter<IpAddr>,
    /// CONNECT tunnels open, by client.
    pub tunnels: Shares<IpAddr>,
    /// CONNECT by tenant.
    pub connect_tenant: Limiter<TenantId>,
    /// Look-ups by client.
    pub lookup_client: Limiter<IpAddr>,
    /// Every connection's tasks; ends after the drain.
    pub work: Scope,
    draining: AtomicBool,
}

impl Load for Channel {
    fn load(&self) -> usize {
        self.open_streams()
    }
}

impl Live<Channel> {
    /// Where the peer is now: a link over QUIC goes on from another address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.handle.moving_address().unwrap_or(self.facts.address)
    }

    /// What the other end is told of this peer, for its logs.
    #[must_use]
    pub fn vouched(&self) -> Vouched {
        Vouched { role: Some(self.facts.role), id: self.facts.entity, address: self.address().to_string() }
    }
}

impl Relay {
    /// A relay without connections.
    #[must_use]
    pub fn new(config: RelayConfig, store: Store, work: Scope) -> Arc<Self> {
        let (timers, rates) = (config.timers(), &config.limits);
        let fair = Fairness::new(config.bandwidth.clone());
        Arc::new(Self {
            timers,
            registry: Registry::default(),
            lanes: Lanes::new(timers.lane_wait, config.lanes.splice, fair.clone(), work.clone()),
            pairings: Tunnels::new(timers.tunnel_idle, rates.tunnels, rates.tunnels_of_tenant(), fair.clone()),
            fair,
            passes: Passes::default(),
            licences: Licensing::default(),
            web: OnceLock::new(),
            instance: InstanceId::from_random(clock::random()),
            handshakes: Limiter::new(rates.pace()),
            connect_client: Limiter::new(rates.connect_client()),
            tunnels: Shares::new(rates.tunnels_per_client),
            connect_tenant: Limiter::new(rates.connect_tenant()),
            lookup_client: Limiter::new(rates.lookup_client()),
            store,
            config,
            work,
            draining: AtomicBool::new(false),
        })
    }

    /// Opens a stream to a session that serves the destination; another one is tried when the picked one has just
    /// gone. The endpoint's own refusal is final. The stream comes with the session that it is on.
    ///
    /// # Errors
    /// `NoRoute`, `TimedOut`, or the endpoint's refusal.
    pub async fn open(
        self: &Arc<Self>,
        to: &Destination,
        vouched: Vouched,
        trace: Option<String>,
        not: Option<SessionId>,
    ) -> Result<(Stream, Arc<Live<Channel>>), Fault> {
        let header = LinkOpen::Through { to: to.clone(), vouched: Some(vouched), trace };
        let mut tried: Vec<SessionId> = not.into_iter().collect();
        let mut last = self.no_route(to);
        for _ in 0..ATTEMPTS {
            let Some(live) = self.registry.pick(to, &tried) else { break };
            match timeout(self.timers.connect, self.opened(&live, &header)).await {
                Ok(Ok(stream)) => return Ok((stream, live)),
                Ok(Err(fault)) if matches!(fault.code, Code::Lost | Code::Draining | Code::Displaced) => last = fault,
                Ok(Err(fault)) => return Err(fault),
                Err(_) => return Err(Fault::new(Code::TimedOut, "the endpoint did not answer in time")),
            }
            tried.push(live.facts.id);
        }
        Err(last)
    }

    /// Opens a stream on a link; when the answer takes its time, the peer is asked whether it is still there.
    async fn opened(self: &Arc<Self>, live: &Arc<Live<Channel>>, header: &LinkOpen) -> Result<Stream, Fault> {
        let mut opening = std::pin::pin!(live.handle.open(header));
        match timeout(SLOW_ANSWER, &mut opening).await {
            Ok(opened) => opened,
            Err(_) => {
                self.check_alive(live.clone());
                opening.await
            }
        }
    }

    /// Whoever is called must be there: one that vanished without a word is noticed by nothing but silence, and others
    /// wait for it.
    pub fn check_alive(self: &Arc<Self>, live: Arc<Live<Channel>>) {
        if !live.begin_check() {
            return;
        }
        let relay = self.clone();
        self.work.spawn(async move {
            if !live.handle.is_alive().await {
                let silence = relay.silence(&live.facts).await;
                live.silent(silence);
                live.handle.close(Fault::new(Code::Lost, "the peer does not answer any more"));
            }
            live.end_check();
        });
    }

    /// A core has come. Those there are may be what it was before it was killed: they are asked, and get nothing new from
    /// devices until they answer.
    pub(crate) fn doubt_other_cores(self: &Arc<Self>, newest: &Live<Channel>) {
        let is_other = |facts: &Facts| facts.role == Role::Core && facts.id != newest.facts.id;
        for live in self.registry.select(Some(&newest.facts.tenant), is_other) {
            live.doubt();
            self.check_alive(live);
        }
    }

    /// Over UDP a process that has ended and UDP that has died look the same; others who are heard over UDP tell them apart.
    async fn silence(&self, silent: &Facts) -> Silence {
        let others = self.registry.witnesses(silent, |channel| matches!(channel, Channel::Quic(_)));
        let asked = others
            .iter()
            .map(|live| Box::pin(async move { if live.handle.is_alive().await { Ok(()) } else { Err(()) } }));
        if others.is_empty() {
            return Silence::Shared;
        }
        match timeout(WITNESS, futures_util::future::select_ok(asked)).await {
            Ok(Ok(_)) => Silence::Alone,
            Ok(Err(())) | Err(_) => Silence::Shared,
        }
    }

    /// A link was lost without a word: its holder's lanes are asked whether anybody is there. Those of a holder that has
    /// vanished end within 5 s; those of one whose link alone broke go on.
    pub fn check_lanes(&self, facts: &Facts) {
        let Some(entity) = facts.entity else { return };
        let legs = self.lanes.legs_of(&facts.tenant, entity);
        if legs.is_empty() {
            return;
        }
        legs.iter().for_each(|leg| leg.hasten());
        self.work.spawn(async move {
            tokio::time::sleep(LANES_ASKED).await;
            legs.iter().for_each(|leg| leg.relax());
        });
    }

    /// Why nobody serves a destination now.
    #[must_use]
    pub fn no_route(&self, to: &Destination) -> Fault {
        if self.registry.is_gone(to, clock::monotonic()) {
            return Fault::new(Code::Gone, format!("the process that served {} is gone, and its sessions", to.origin));
        }
        no_route(to)
    }

    /// Closes every link, lane, tunnel and passed-through connection that may not be here any more: revoked, expired, its
    /// tenant blocked or removed.
    /// How many were closed.
    pub fn enforce(&self, tenant: Option<&TenantId>) -> usize {
        let now = clock::now();
        // First: whose link is closed is not told any more.
        let mut closed = self.pairings.cut_where(&self.registry, |pair| {
            if tenant.is_some_and(|t| *t != pair.tenant) {
                return None;
            }
            let Some(record) = self.store.tenant(&pair.tenant) else {
                return Some(Fault::new(Code::Forbidden, "the tenant was removed from this relay"));
            };
            let leaves = |owner: &Owner| {
                if self.registry.is_replaced(&pair.tenant, owner.entity, owner.instance) {
                    return Some(Fault::new(Code::Gone, "another process has taken the place of the tunnel's"));
                }
                admit::holder(&record, &owner.shown(), now).err()
            };
            if let Err(refused) = self.licences.admits(&record, now) {
                return Some(refused.counted());
            }
            leaves(&pair.device.owner).or_else(|| leaves(&pair.node.owner))
        });
        for live in self.registry.select(tenant, |_| true) {
            let facts = &live.facts;
            if let Err(fault) = self.may_stay(facts) {
                tracing::info!(tenant = %facts.tenant, role = %facts.role, session = %facts.id, reason = %fault, "link cut");
                count_refusal(&fault);
                live.drain();
                live.handle.close(fault);
                closed += 1;
            }
        }
        closed += self.lanes.cut(|lane| {
            let record = self.store.tenant(&lane.tenant);
            let stays = |end: &End| match &record {
                Some(t) if self.licences.admits(t, now).is_err() => false,
                Some(t) => admit::holder(t, &end.shown(), now).is_ok(),
                None => false,
            };
            tenant.is_none_or(|t| *t == lane.tenant) && !(stays(&lane.device) && stays(&lane.node))
        });
        closed += self.cut_lost_names();
        closed
    }

    /// Takes from a configuration what can change while the relay runs: bandwidth, rates, licence keys. Nothing changes when it
    /// cannot be used. What it names differently beside that needs a restart: those keys are returned.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn reload(&self, new: &RelayConfig) -> Result<Vec<&'static str>, ConfigError> {
        new.check()?;
        self.licences.set(new.licences.read()?, new.licences.required);
        self.fair.set(new.bandwidth.clone());
        let rates = &new.limits;
        self.handshakes.set(rates.pace());
        self.connect_client.set(rates.connect_client());
        self.connect_tenant.set(rates.connect_tenant());
        self.lookup_client.set(rates.lookup_client());
        self.tunnels.set(rates.tunnels_per_client);
        self.pairings.set(rates.tunnels, rates.tunnels_of_tenant());
        let later = self.config.fixed_differences(new);
        self.enforce(None);
        if !later.is_empty() {
            tracing::warn!(keys = later.join(", "), "these keys were changed too, and need a restart");
        }
        Ok(later)
    }

    /// Whether a session that was admitted may go on.
    ///
    /// # Errors
    /// Why not.
    pub fn may_stay(&self, facts: &Facts) -> Result<(), Fault> {
        let Some(tenant) = self.store.tenant(&facts.tenant) else {
            return Err(Fault::new(Code::Forbidden, "the tenant was removed from this relay"));
        };
        match facts.shown() {
            Some(shown) => {
                admit::holder(&tenant, &shown, clock::now())?;
                self.licences.admits(&tenant, clock::now()).map_err(Refused::counted)
            }
            None => tenant_active(&tenant),
        }
    }

    /// Whether a tenant may open something that needs this feature now.
    ///
    /// # Errors
    /// Its licence does not grant it; that is counted.
    pub fn licensed(&self, tenant: &TenantId, feature: Option<Feature>) -> Result<(), Fault> {
        let (Some(feature), Some(tenant)) = (feature, self.store.tenant(tenant)) else { return Ok(()) };
        self.licences.grants(&tenant, feature, clock::now()).map_err(Refused::counted)
    }

    /// Whether a link that has just been registered has a seat; `beside` is what its registration said.
    ///
    /// # Errors
    /// All seats were taken when it came; that is counted.
    pub fn has_seat(&self, facts: &Facts, beside: Option<usize>) -> Result<(), Fault> {
        let (Some(beside), Some(tenant)) = (beside, self.store.tenant(&facts.tenant)) else { return Ok(()) };
        self.licences.seat(&tenant, beside).map_err(Refused::counted)
    }

    /// What peers are told when the relay goes down.
    #[must_use]
    pub fn farewell(&self) -> GoAway {
        GoAway {
            fault: Fault::new(Code::Draining, "the relay is shutting down"),
            return_after_ms: self.config.drain.return_after.saturating_mul(1000),
            alternatives: self.config.drain.alternatives.clone(),
        }
    }

    /// No new links from now on, and no new streams on those that stand.
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        let first = self.farewell();
        for (place, live) in (0u64..).zip(self.registry.select(None, |_| true)) {
            live.drain();
            live.handle.go_away(&GoAway { return_after_ms: return_at(first.return_after_ms, place), ..first.clone() });
        }
    }

    /// Whether the relay goes down.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Makes room on links where too many streams wait for ends that do not read: a good part of the link's window stays
    /// for the others.
    fn relieve(&self, now: Instant) {
        const MANY: usize = usize::MAX;
        for live in self.registry.select(None, |_| true) {
            let (unread, unsent) = match &live.handle {
                Channel::Framed(mux) => {
                    // Streams that stand still and hold little harm nobody.
                    let stats = mux.stats();
                    (
                        if stats.held - stats.unsent < limits::CONNECTION_WINDOW / 2 { MANY } else { FRAMED_UNREAD },
                        if stats.unsent < limits::CONNECTION_QUEUE * 3 / 4 { MANY } else { FRAMED_UNSENT },
                    )
                }
                // What QUIC holds is not known; it keeps nothing to send for whom the peer gives no room.
                Channel::Quic(_) => (QUIC_UNREAD, MANY),
            };
            let reset = live.stalls.unread.relieve(unread, now) + live.stalls.unsent.relieve(unsent, now);
            if reset > 0 {
                let facts = &live.facts;
                tracing::warn!(tenant = %facts.tenant, session = %facts.id, reset, "streams whose other ends do not read were reset to make room");
            }
        }
    }

    /// What is held now of what is bounded, as gauges.
    fn show_bounds(&self) {
        let (mut streams, mut held, mut most_held, mut stalled) = (0, 0, 0, 0);
        for live in self.registry.select(None, |_| true) {
            stalled = stalled.max(live.stalls.most());
            let stats = live.handle.stats();
            streams = streams.max(stats.streams);
            held += stats.held;
            most_held = most_held.max(stats.held);
        }
        let (joined, waiting) = self.lanes.counts();
        for (name, value) in [
            ("hedgerow_relay_link_streams_max", streams as u64),
            ("hedgerow_relay_link_held_bytes", held),
            ("hedgerow_relay_link_held_bytes_max", most_held),
            ("hedgerow_relay_link_stalled_streams_max", stalled as u64),
            ("hedgerow_relay_lanes", joined as u64),
            ("hedgerow_relay_lanes_waiting", waiting as u64),
            ("hedgerow_relay_pairings", self.pairings.len() as u64),
            ("hedgerow_relay_tunnels", self.tunnels.held() as u64),
        ] {
            metrics::gauge!(name).set(value as f64);
        }
    }

    /// What must be done now and then: alone-standing lane legs, expired certificates and configurations.
    pub async fn keep_house(self: Arc<Self>) {
        let tick = (self.timers.lane_wait / 4).min(std::time::Duration::from_secs(1));
        let mut enforced = clock::monotonic();
        loop {
            tokio::time::sleep(tick).await;
            let now = clock::monotonic();
            self.lanes.expire(now);
            self.pairings.expire(&self.registry, now);
            self.relieve(now);
            self.show_bounds();
            if now.duration_since(enforced).as_secs() >= 5 {
                enforced = now;
                self.enforce(None);
                self.registry.tidy(now);
                self.fair.tidy(now);
                self.licences.look(&self.store, &self.registry, clock::now());
            }
        }
    }
}

/// When the link at this place of a drain's list may come back: each has a time of its own, so that all of them together
/// are no more than `RETURNS` a second.
#[must_use]
pub fn return_at(first_ms: u64, place: u64) -> u64 {
    first_ms.saturating_add(place.saturating_mul(1000) / RETURNS)
}

fn tenant_active(tenant: &Tenant) -> Result<(), Fault> {
    match tenant.state {
        TenantState::Active => Ok(()),
        TenantState::Blocked => Err(Fault::new(Code::Forbidden, "the tenant is blocked at this relay by its operator")),
    }
}

fn no_route(to: &Destination) -> Fault {
    let text = match (&to.instance, &to.group) {
        (Some(_), _) => format!("the process that served {} is not connected, or not yet", to.origin),
        (None, Some(group)) => format!("no node of group {group} that serves {} is connected", to.origin),
        (None, None) => format!("nothing that serves {} is connected", to.origin),
    };
    Fault::new(Code::NoRoute, text)
}

/// Counts a link, stream, lane or request that was refused or cut.
pub fn count_refusal(fault: &Fault) {
    metrics::counter!("hedgerow_relay_refused_total", "code" => fault.code.label()).increment(1);
}
