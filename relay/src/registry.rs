//! Who is connected: the live link sessions by tenant, and by what they serve. Pure but for one lock; generic over
//! the handle of a link, so that its rules are tested without a wire.
//!
//! Displacement: a newer session of the same process, or of the same certificate, takes the older one's place. Two
//! processes that hold the same certificate and keep displacing each other are told so and slowed down; a restart, a
//! drain or a move to a better network is not counted, because the process that was displaced does not come back.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hedgerow_shared::wire::message::Destination;
use hedgerow_shared::{EntityId, GroupName, InstanceId, Origin, Role, SessionId, TenantId, UnixTime};
use parking_lot::RwLock;

use crate::admit::Shown;
use crate::probe::Probe;
use crate::stall::Stalls;

/// Over how long mutual displacements are counted, and how long the back-off lasts.
const DISPLACEMENT_WINDOW: Duration = Duration::from_secs(60);
/// A process whose last link was lost so long ago is gone: it would have been back.
const GONE_AFTER: Duration = Duration::from_secs(3);
/// The same for one whose link over UDP fell silent while nothing showed that UDP passes at all: it says something every 5 s,
/// finds its link dead within 3 s and a bit, and is back over TLS.
const GONE_WITHOUT_UDP: Duration = Duration::from_secs(10);
/// How many links over UDP are asked whether it passes, when another one is silent.
const WITNESSES: usize = 4;
/// How long it is remembered that a process was here: longer than any session waits to be resumed.
const REMEMBERED: Duration = Duration::from_secs(120);
/// Processes that are remembered at most; one that is forgotten counts as one that may still come.
const MAX_DEPARTED: usize = 10_000;
/// So many of them in the window start the back-off (the seeds' rule).
const DISPLACEMENTS: usize = 5;

/// What a session is; nothing of it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its id.
    pub id: SessionId,
    /// Whose.
    pub tenant: TenantId,
    /// What the peer is.
    pub role: Role,
    /// Which node or device; cores have no certificate on links.
    pub entity: Option<EntityId>,
    /// Of the certificate it was admitted with.
    pub serial: Option<String>,
    /// End of that certificate's validity.
    pub not_after: Option<UnixTime>,
    /// The key of the CA it stands under.
    pub issuer: Option<[u8; 32]>,
    /// The server group of a node.
    pub group: Option<GroupName>,
    /// What it serves.
    pub origins: Vec<Origin>,
    /// The process.
    pub instance: InstanceId,
    /// The peer's network address when it came.
    pub address: SocketAddr,
    /// Of the TCP connection below the link, where there is one.
    pub probe: Option<Probe>,
    /// The peer's software, as it says.
    pub build: String,
    /// Since when.
    pub since: UnixTime,
}

impl Facts {
    /// What of its certificate decides; `None` for a core.
    #[must_use]
    pub fn shown(&self) -> Option<Shown<'_>> {
        let (issuer, serial) = (self.issuer.as_ref()?, self.serial.as_deref()?);
        Some(Shown { id: self.entity?, serial, not_after: self.not_after?, issuer })
    }

    /// Whom its bytes are charged to beside its tenant.
    #[must_use]
    pub fn holder(&self) -> Option<(Role, EntityId)> {
        self.entity.map(|entity| (self.role, entity))
    }
}

/// How busy a link is; the least busy one is picked.
pub trait Load {
    /// Streams open on it.
    fn load(&self) -> usize;
}

/// Why nothing was heard from a link that is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// Others were heard over UDP when it was not: its process, or the way to its machine, has ended.
    Alone,
    /// Nobody else was heard over UDP: UDP may be dead for everybody, and the process alive.
    Shared,
}

impl Silence {
    /// How long a process may stay away before it is gone. That a link fell silent alone took as long as a process takes
    /// to be called gone.
    fn allows(silence: Option<Self>) -> Duration {
        match silence {
            None => GONE_AFTER,
            Some(Self::Alone) => Duration::ZERO,
            Some(Self::Shared) => GONE_WITHOUT_UDP,
        }
    }
}

/// A session that is registered.
#[derive(Debug)]
pub struct Live<H> {
    /// What it is.
    pub facts: Facts,
    /// The link.
    pub handle: H,
    /// Its streams whose other ends do not read.
    pub stalls: Stalls,
    draining: AtomicBool,
    /// It ended by silence.
    silent: OnceLock<Silence>,
    /// Somebody asks it for a sign of life.
    checked: AtomicBool,
    /// It may be that of a process which is no more: others are picked until it has shown a sign of life.
    doubted: AtomicBool,
    /// A core may say so after its link has come up.
    serves_mdm: AtomicBool,
    /// A licence that it has shown is being looked at.
    licence: AtomicBool,
}

impl<H> Live<H> {
    /// No new streams go to it from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// It does not answer any more.
    pub fn silent(&self, silence: Silence) {
        // The first to notice knows best.
        let _ = self.silent.set(silence);
    }

    /// Whether the caller may ask it for a sign of life: one at a time.
    #[must_use]
    pub fn begin_check(&self) -> bool {
        !self.checked.swap(true, Ordering::SeqCst)
    }

    /// The other end of `begin_check`; it also ends doubt.
    pub fn end_check(&self) {
        // In this order: whoever doubts in between begins a check of its own, which ends that doubt.
        self.checked.store(false, Ordering::SeqCst);
        self.doubted.store(false, Ordering::SeqCst);
    }

    /// Others are picked before it until a check ends; the caller sees to it that there is one.
    pub fn doubt(&self) {
        self.doubted.store(true, Ordering::SeqCst);
    }

    /// Whether a licence that it shows may be looked at: one at a time.
    #[must_use]
    pub fn begin_licence(&self) -> bool {
        !self.licence.swap(true, Ordering::Relaxed)
    }

    /// The other end of `begin_licence`.
    pub fn end_licence(&self) {
        self.licence.store(false, Ordering::Relaxed);
    }

    /// A core says whether it serves `mdm` too.
    pub fn announce_mdm(&self, serves: bool) {
        self.serves_mdm.store(serves, Ordering::Relaxed);
    }

    /// Whether streams to `origin` may go to it: as its certificate or role has it, or as it announced.
    #[must_use]
    pub fn serves(&self, origin: Origin) -> bool {
        self.facts.origins.contains(&origin) || (origin == Origin::Mdm && self.serves_mdm.load(Ordering::Relaxed))
    }

    /// Whether it takes no new streams.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// Why a session must wait: two processes fight over one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fight {
    /// Where the one that stays connects from.
    pub other: SocketAddr,
    /// For how long newcomers are refused.
    pub wait: Duration,
}

/// What came of an insertion.
#[derive(Debug)]
pub struct Inserted<H> {
    /// The new session.
    pub live: Arc<Live<H>>,
    /// Those whose place it took; they are marked as draining, and must be told and closed.
    pub displaced: Vec<Arc<Live<H>>>,
    /// When it is a device that was not linked: how many other devices of its tenant are.
    pub newcomer_beside: Option<usize>,
}

#[derive(Debug)]
struct OfTenant<H> {
    all: HashMap<SessionId, Arc<Live<H>>>,
    /// Those that serve an origin: few, also where devices are many.
    servers: Vec<Arc<Live<H>>>,
    holders: HashMap<EntityId, Vec<SessionId>>,
    /// Devices among the holders.
    devices: usize,
    instances: HashMap<InstanceId, Vec<SessionId>>,
}

impl<H> Default for OfTenant<H> {
    fn default() -> Self {
        Self {
            all: HashMap::new(),
            servers: Vec::new(),
            holders: HashMap::new(),
            devices: 0,
            instances: HashMap::new(),
        }
    }
}

#[derive(Debug, Default)]
struct Displacements {
    /// Processes displaced lately.
    losers: VecDeque<(Instant, InstanceId)>,
    /// When a process that had been displaced displaced its rival.
    returns: VecDeque<Instant>,
    back_off_until: Option<Instant>,
}

#[derive(Debug)]
struct Inner<H> {
    tenants: HashMap<TenantId, OfTenant<H>>,
    displacements: HashMap<(TenantId, EntityId), Displacements>,
    /// Processes that served something and have no link now, and from when on they are gone.
    departed: HashMap<(TenantId, InstanceId), Instant>,
}

/// All live sessions.
#[derive(Debug)]
pub struct Registry<H> {
    /// Short critical sections, no await: every stream asks, few sessions come and go.
    inner: RwLock<Inner<H>>,
    rotation: AtomicUsize,
}

impl<H> Default for Registry<H> {
    fn default() -> Self {
        Self {
            inner: RwLock::new(Inner {
                tenants: HashMap::new(),
                displacements: HashMap::new(),
                departed: HashMap::new(),
            }),
            rotation: AtomicUsize::new(0),
        }
    }
}

impl<H> Registry<H> {
    /// How many devices of a tenant are linked.
    #[must_use]
    pub fn devices(&self, tenant: &TenantId) -> usize {
        self.inner.read().tenants.get(tenant).map_or(0, |t| t.devices)
    }

    /// Whether a device or node is linked.
    #[must_use]
    pub fn is_linked(&self, tenant: &TenantId, entity: EntityId) -> bool {
        self.inner.read().tenants.get(tenant).is_some_and(|t| t.holders.contains_key(&entity))
    }
}

impl<H: Load> Registry<H> {
    /// Whether a peer that has proved who it is must wait because its certificate is being fought over.
    ///
    /// # Errors
    /// Who holds it and for how long to wait.
    pub fn may_enter(
        &self,
        tenant: &TenantId,
        entity: EntityId,
        instance: InstanceId,
        now: Instant,
    ) -> Result<(), Fight> {
        let inner = self.inner.read();
        let until = inner.displacements.get(&(tenant.clone(), entity)).and_then(|d| d.back_off_until);
        let Some(until) = until.filter(|until| *until > now) else { return Ok(()) };
        let Some(of_tenant) = inner.tenants.get(tenant) else { return Ok(()) };
        let mut holders = of_tenant.holders.get(&entity).into_iter().flatten().filter_map(|id| of_tenant.all.get(id));
        // Nobody is kept out when there is nobody to displace.
        match holders.find(|live| live.facts.instance != instance && !live.is_draining()) {
            Some(other) => Err(Fight { other: other.facts.address, wait: until - now }),
            None => Ok(()),
        }
    }

    /// Registers a session and displaces those whose place it takes.
    pub fn insert(&self, facts: Facts, handle: H, now: Instant) -> Inserted<H> {
        let live = Arc::new(Live {
            facts,
            handle,
            stalls: Stalls::default(),
            draining: AtomicBool::new(false),
            silent: OnceLock::new(),
            checked: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            serves_mdm: AtomicBool::new(false),
            licence: AtomicBool::new(false),
        });
        let facts = &live.facts;
        let mut inner = self.inner.write();
        let of_tenant = inner.tenants.entry(facts.tenant.clone()).or_default();
        let of_entity = facts.entity.and_then(|e| of_tenant.holders.get(&e)).into_iter().flatten();
        let of_instance = of_tenant.instances.get(&facts.instance).into_iter().flatten();
        let mut ids: Vec<SessionId> = of_entity.chain(of_instance).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        let displaced: Vec<_> =
            ids.iter().filter_map(|id| of_tenant.all.get(id)).filter(|l| !l.is_draining()).cloned().collect();
        for old in &displaced {
            old.drain();
        }
        of_tenant.all.insert(facts.id, live.clone());
        if !facts.origins.is_empty() {
            of_tenant.servers.push(live.clone());
        }
        of_tenant.instances.entry(facts.instance).or_default().push(facts.id);
        let mut newcomer_beside = None;
        if let Some(entity) = facts.entity {
            let own = of_tenant.holders.entry(entity).or_default();
            if own.is_empty() && facts.role == Role::Device {
                newcomer_beside = Some(of_tenant.devices);
                of_tenant.devices += 1;
            }
            own.push(facts.id);
            let losers: Vec<_> = displaced.iter().map(|l| l.facts.instance).filter(|i| *i != facts.instance).collect();
            if !losers.is_empty() {
                inner.displacements.entry((facts.tenant.clone(), entity)).or_default().count(
                    facts.instance,
                    &losers,
                    now,
                );
            }
        }
        inner.departed.remove(&(facts.tenant.clone(), facts.instance));
        drop(inner);
        Inserted { live, displaced, newcomer_beside }
    }

    /// Forgets a session. Whether it was there.
    pub fn remove(&self, tenant: &TenantId, id: SessionId, now: Instant) -> bool {
        let mut inner = self.inner.write();
        let Some(of_tenant) = inner.tenants.get_mut(tenant) else { return false };
        let Some(live) = of_tenant.all.remove(&id) else { return false };
        of_tenant.servers.retain(|l| l.facts.id != id);
        drop_id(&mut of_tenant.instances, &live.facts.instance, id);
        if let Some(entity) = live.facts.entity {
            drop_id(&mut of_tenant.holders, &entity, id);
            if live.facts.role == Role::Device && !of_tenant.holders.contains_key(&entity) {
                of_tenant.devices = of_tenant.devices.saturating_sub(1);
            }
        }
        let departs = !live.facts.origins.is_empty() && !of_tenant.instances.contains_key(&live.facts.instance);
        if of_tenant.all.is_empty() {
            inner.tenants.remove(tenant);
        }
        if departs && inner.departed.len() < MAX_DEPARTED {
            let gone = now + Silence::allows(live.silent.get().copied());
            inner.departed.insert((tenant.clone(), live.facts.instance), gone);
        }
        true
    }

    /// The least busy session that serves the destination and takes new streams; equals take turns. Those in doubt come
    /// last. `except` are those that were tried already.
    #[must_use]
    pub fn pick(&self, to: &Destination, except: &[SessionId]) -> Option<Arc<Live<H>>> {
        let inner = self.inner.read();
        let servers = &inner.tenants.get(&to.tenant)?.servers;
        let fits = |live: &&Arc<Live<H>>| {
            let facts = &live.facts;
            live.serves(to.origin)
                && to.group.as_ref().is_none_or(|g| facts.group.as_ref() == Some(g))
                && to.instance.is_none_or(|i| facts.instance == i)
                // Sessions of a process that drains still come back to it.
                && (to.instance.is_some() || !live.is_draining())
                && !except.contains(&facts.id)
        };
        let rank = |live: &Live<H>| (live.is_draining(), live.doubted.load(Ordering::Relaxed), live.handle.load());
        let candidates: Vec<_> = servers.iter().filter(fits).map(|live| (rank(live), live)).collect();
        let first = candidates.iter().map(|(rank, _)| *rank).min()?;
        let best: Vec<_> = candidates.into_iter().filter(|(rank, _)| *rank == first).collect();
        let turn = self.rotation.fetch_add(1, Ordering::Relaxed) % best.len();
        Some(best[turn].1.clone())
    }

    /// Whether the process that a destination names will not come back: its link is lost for longer than a network
    /// takes to recover, or another process has its node's certificate. `false` also for one never seen here: after
    /// a restart of the relay everybody is still to come.
    #[must_use]
    pub fn is_gone(&self, to: &Destination, now: Instant) -> bool {
        let Some(instance) = to.instance else { return false };
        let inner = self.inner.read();
        let of_tenant = inner.tenants.get(&to.tenant);
        if of_tenant.is_some_and(|t| t.instances.contains_key(&instance)) {
            return false;
        }
        let gone = inner.departed.get(&(to.tenant.clone(), instance));
        let replaced = || {
            let holders = of_tenant.zip(to.node).and_then(|(t, node)| t.holders.get(&node));
            holders.is_some_and(|ids| !ids.is_empty())
        };
        gone.is_some_and(|at| now >= *at) || replaced()
    }

    /// A few links of others over the same transport as a silent one's, its own tenant's first: when one of them answers,
    /// silence is the silent one's own.
    #[must_use]
    pub fn witnesses(&self, silent: &Facts, which: impl Fn(&H) -> bool) -> Vec<Arc<Live<H>>> {
        let inner = self.inner.read();
        let own = inner.tenants.get(&silent.tenant).into_iter();
        let others = inner.tenants.iter().filter(|(id, _)| **id != silent.tenant).map(|(_, t)| t);
        let is_other = |live: &&Arc<Live<H>>| {
            let facts = &live.facts;
            let same_holder = facts.entity.is_some() && facts.entity == silent.entity;
            facts.id != silent.id && facts.instance != silent.instance && !same_holder && which(&live.handle)
        };
        own.chain(others).flat_map(|t| t.all.values()).filter(is_other).take(WITNESSES).cloned().collect()
    }

    /// The newest session of a process that holds a certificate; one that takes new streams before one that does not.
    #[must_use]
    pub fn of_process(&self, tenant: &TenantId, entity: EntityId, instance: InstanceId) -> Option<Arc<Live<H>>> {
        let inner = self.inner.read();
        let of_tenant = inner.tenants.get(tenant)?;
        let own = of_tenant.holders.get(&entity)?.iter().filter_map(|id| of_tenant.all.get(id));
        // Of equals the last one counts: sessions stand in the order in which they came.
        own.filter(|l| l.facts.instance == instance).max_by_key(|l| !l.is_draining()).cloned()
    }

    /// Whether another process has taken the place of this one.
    #[must_use]
    pub fn is_replaced(&self, tenant: &TenantId, entity: EntityId, instance: InstanceId) -> bool {
        let inner = self.inner.read();
        let Some(of_tenant) = inner.tenants.get(tenant) else { return false };
        let ids = of_tenant.holders.get(&entity).into_iter().flatten();
        let mut others = ids.filter_map(|id| of_tenant.all.get(id)).peekable();
        others.peek().is_some() && others.all(|l| l.facts.instance != instance)
    }

    /// The sessions for which `which` holds, of one tenant or of all.
    #[must_use]
    pub fn select(&self, tenant: Option<&TenantId>, which: impl Fn(&Facts) -> bool) -> Vec<Arc<Live<H>>> {
        let inner = self.inner.read();
        let tenants = inner.tenants.iter().filter(|(id, _)| tenant.is_none_or(|t| t == *id));
        tenants.flat_map(|(_, t)| t.all.values()).filter(|l| which(&l.facts)).cloned().collect()
    }

    /// Number of live sessions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.read().tenants.values().map(|t| t.all.len()).sum()
    }

    /// Whether nobody is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.read().tenants.is_empty()
    }

    /// Forgets displacements that no longer count; call now and then.
    pub fn tidy(&self, now: Instant) {
        let mut inner = self.inner.write();
        inner.departed.retain(|_, at| now.saturating_duration_since(*at) < REMEMBERED);
        inner.displacements.retain(|_, d| {
            d.forget_old(now);
            !d.losers.is_empty() || d.back_off_until.is_some_and(|until| until > now)
        });
    }
}

impl Displacements {
    fn count(&mut self, winner: InstanceId, losers: &[InstanceId], now: Instant) {
        self.forget_old(now);
        if self.losers.iter().any(|(_, instance)| *instance == winner) {
            self.returns.push_back(now);
            if self.returns.len() >= DISPLACEMENTS {
                self.returns.clear();
                self.back_off_until = Some(now + DISPLACEMENT_WINDOW);
            }
        }
        self.losers.extend(losers.iter().map(|l| (now, *l)));
        // A process that restarts in a circle makes a new entry each time.
        while self.losers.len() > 4 * DISPLACEMENTS {
            self.losers.pop_front();
        }
    }

    fn forget_old(&mut self, now: Instant) {
        let old = |at: &Instant| now.saturating_duration_since(*at) >= DISPLACEMENT_WINDOW;
        self.losers.retain(|(at, _)| !old(at));
        self.returns.retain(|at| !old(at));
    }
}

fn drop_id<K: Eq + std::hash::Hash>(map: &mut HashMap<K, Vec<SessionId>>, key: &K, id: SessionId) {
    if let Some(ids) = map.get_mut(key) {
        ids.retain(|i| *i != id);
        if ids.is_empty() {
            map.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(usize);

    impl Load for Fixed {
        fn load(&self) -> usize {
            self.0
        }
    }

    fn facts(n: u8, entity: Option<u8>, instance: u8, origins: &[Origin]) -> Facts {
        Facts {
            id: SessionId::from_random([n; 16]),
            tenant: "S12345678".parse().unwrap(),
            role: Role::Node,
            entity: entity.map(|e| EntityId::from_random([e; 16])),
            serial: None,
            not_after: None,
            issuer: None,
            group: Some(GroupName::default()),
            origins: origins.to_vec(),
            instance: InstanceId::from_random([instance; 16]),
            address: "127.0.0.1:1".parse().unwrap(),
            probe: None,
            build: String::new(),
            since: UnixTime(0),
        }
    }

    fn to(origin: Origin) -> Destination {
        Destination { tenant: "S12345678".parse().unwrap(), origin, group: None, instance: None, node: None }
    }

    #[test]
    fn the_least_busy_server_is_picked_and_equals_take_turns() {
        let registry = Registry::default();
        let now = Instant::now();
        registry.insert(facts(1, Some(1), 1, &[Origin::Proxy]), Fixed(0), now);
        registry.insert(facts(2, Some(2), 2, &[Origin::Proxy]), Fixed(0), now);
        registry.insert(facts(3, Some(3), 3, &[Origin::Proxy]), Fixed(9), now);
        registry.insert(facts(4, Some(4), 4, &[Origin::Directory]), Fixed(0), now);
        let picked: Vec<u8> =
            (0..4).map(|_| registry.pick(&to(Origin::Proxy), &[]).unwrap().facts.id.as_bytes()[0]).collect();
        assert!(picked.iter().all(|id| *id < 3) && picked.contains(&1) && picked.contains(&2), "{picked:?}");
        let tried = [SessionId::from_random([1; 16]), SessionId::from_random([2; 16])];
        assert_eq!(registry.pick(&to(Origin::Proxy), &tried).unwrap().facts.id.as_bytes()[0], 3);
        assert!(registry.pick(&to(Origin::Gateway), &[]).is_none());
        let group = Destination { group: Some("other".parse().unwrap()), ..to(Origin::Proxy) };
        assert!(registry.pick(&group, &[]).is_none());
        let instance = Destination { instance: Some(InstanceId::from_random([3; 16])), ..to(Origin::Proxy) };
        assert_eq!(registry.pick(&instance, &[]).unwrap().facts.id.as_bytes()[0], 3);
    }

    #[test]
    fn a_doubted_server_is_picked_where_there_is_no_other() {
        let (registry, now) = (Registry::default(), Instant::now());
        let old = registry.insert(facts(1, None, 1, &[Origin::Core]), Fixed(0), now).live;
        assert!(old.begin_check());
        old.doubt();
        let picked = || registry.pick(&to(Origin::Core), &[]).unwrap().facts.id.as_bytes()[0];
        assert_eq!(picked(), 1);
        registry.insert(facts(2, None, 2, &[Origin::Core]), Fixed(9), now);
        assert_eq!(picked(), 2, "however busy");
        old.end_check();
        assert_eq!(picked(), 1);
    }

    #[test]
    fn a_draining_server_gets_nothing_new() {
        let registry = Registry::default();
        let live = registry.insert(facts(1, Some(1), 1, &[Origin::Proxy]), Fixed(0), Instant::now()).live;
        live.drain();
        assert!(registry.pick(&to(Origin::Proxy), &[]).is_none());
        let own = Destination { instance: Some(live.facts.instance), ..to(Origin::Proxy) };
        assert!(registry.pick(&own, &[]).is_some(), "but its own sessions may come back to it");
        let now = Instant::now();
        assert!(registry.remove(&live.facts.tenant, live.facts.id, now));
        assert!(!registry.remove(&live.facts.tenant, live.facts.id, now) && registry.is_empty());
    }

    #[test]
    fn the_newest_session_of_a_process_is_found_and_another_process_takes_its_place() {
        let (registry, now) = (Registry::default(), Instant::now());
        let (tenant, entity) = (facts(0, None, 0, &[]).tenant, EntityId::from_random([1; 16]));
        let process = |n: u8| InstanceId::from_random([n; 16]);
        let newest = |n| registry.of_process(&tenant, entity, process(n)).map(|l| l.facts.id.as_bytes()[0]);
        let replaced = |n| registry.is_replaced(&tenant, entity, process(n));
        assert!(newest(1).is_none() && !replaced(1));
        let first = registry.insert(facts(1, Some(1), 1, &[]), Fixed(0), now).live;
        let second = registry.insert(facts(2, Some(1), 1, &[]), Fixed(0), now).live;
        assert_eq!(newest(1), Some(2));
        second.drain();
        assert_eq!(newest(1), Some(2), "both drain");
        registry.insert(facts(3, Some(1), 2, &[]), Fixed(0), now);
        assert!(newest(1) == Some(2) && newest(2) == Some(3) && !replaced(1), "its links still stand");
        registry.remove(&tenant, first.facts.id, now);
        registry.remove(&tenant, second.facts.id, now);
        assert!(newest(1).is_none() && replaced(1) && !replaced(2));
    }

    #[test]
    fn a_process_is_gone_when_it_left_and_stays_away_or_another_has_its_certificate() {
        let (registry, now) = (Registry::default(), Instant::now());
        let asked = |instance| Destination {
            instance: Some(InstanceId::from_random([instance; 16])),
            node: Some(EntityId::from_random([1; 16])),
            ..to(Origin::Proxy)
        };
        assert!(!registry.is_gone(&asked(1), now), "never seen: this relay may have just started");
        let first = registry.insert(facts(1, Some(1), 1, &[Origin::Proxy]), Fixed(0), now).live;
        assert!(!registry.is_gone(&asked(1), now));
        registry.remove(&first.facts.tenant, first.facts.id, now);
        assert!(!registry.is_gone(&asked(1), now + GONE_AFTER / 2), "it may be on its way back");
        assert!(registry.is_gone(&asked(1), now + GONE_AFTER));
        registry.insert(facts(2, Some(1), 1, &[Origin::Proxy]), Fixed(0), now);
        assert!(!registry.is_gone(&asked(1), now + GONE_AFTER), "it is back");
        assert!(registry.is_gone(&asked(9), now), "another process has the certificate");
        registry.tidy(now + REMEMBERED);
        assert!(!registry.is_gone(&asked(1), now + REMEMBERED));
    }

    #[test]
    fn a_process_that_fell_silent_is_gone_at_once_only_where_others_were_heard() {
        let now = Instant::now();
        let after = |silence: Silence, away: Duration| {
            let registry = Registry::default();
            let live = registry.insert(facts(1, Some(1), 1, &[Origin::Proxy]), Fixed(0), now).live;
            live.silent(silence);
            registry.remove(&live.facts.tenant, live.facts.id, now);
            let to = Destination { instance: Some(live.facts.instance), ..to(Origin::Proxy) };
            registry.is_gone(&to, now + away)
        };
        assert!(after(Silence::Alone, Duration::ZERO));
        assert!(!after(Silence::Shared, GONE_WITHOUT_UDP - Duration::from_millis(1)), "it may be on its way over TLS");
        assert!(after(Silence::Shared, GONE_WITHOUT_UDP));
    }

    #[test]
    fn those_who_are_asked_whether_udp_passes_are_others_and_the_own_tenants_first() {
        let (registry, now) = (Registry::default(), Instant::now());
        let silent = registry.insert(facts(1, Some(1), 1, &[Origin::Proxy]), Fixed(1), now).live;
        let numbers = |which: usize| {
            let asked = registry.witnesses(&silent.facts, |load: &Fixed| load.0 == which);
            asked.iter().map(|l| l.facts.id.as_bytes()[0]).collect::<std::collections::BTreeSet<_>>()
        };
        registry.insert(facts(2, Some(1), 2, &[]), Fixed(1), now);
        registry.insert(facts(3, Some(3), 1, &[]), Fixed(1), now);
        assert!(numbers(1).is_empty(), "neither itself nor its holder nor its process");
        for n in 10..20 {
            let tenant = "S87654321".parse().unwrap();
            registry.insert(Facts { tenant, ..facts(n, Some(n), n, &[]) }, Fixed(1), now);
        }
        registry.insert(facts(4, Some(4), 4, &[]), Fixed(1), now);
        registry.insert(facts(5, Some(5), 5, &[]), Fixed(2), now);
        let asked = numbers(1);
        assert!(asked.len() == WITNESSES && asked.contains(&4) && !asked.contains(&5), "{asked:?}");
        assert_eq!(numbers(2), [5].into());
    }

    #[test]
    fn a_newer_session_of_the_same_holder_takes_the_place() {
        let registry = Registry::default();
        let now = Instant::now();
        registry.insert(facts(1, Some(1), 1, &[Origin::Proxy]), Fixed(0), now);
        let second = registry.insert(facts(2, Some(1), 2, &[Origin::Proxy]), Fixed(0), now);
        assert_eq!(second.displaced.len(), 1);
        assert_eq!(registry.pick(&to(Origin::Proxy), &[]).unwrap().facts.id, second.live.facts.id);
        // Cores have no certificate: several stand side by side, one process has one link.
        assert!(registry.insert(facts(3, None, 3, &[Origin::Core]), Fixed(0), now).displaced.is_empty());
        assert!(registry.insert(facts(4, None, 4, &[Origin::Core]), Fixed(0), now).displaced.is_empty());
        assert_eq!(registry.insert(facts(5, None, 4, &[Origin::Core]), Fixed(0), now).displaced.len(), 1);
    }

    #[test]
    fn two_processes_that_displace_each_other_are_slowed_down_and_a_restart_is_not() {
        let registry = Registry::default();
        let start = Instant::now();
        let (tenant, entity) = (facts(0, None, 0, &[]).tenant, EntityId::from_random([1; 16]));
        let enter =
            |instance: u8, now| registry.may_enter(&tenant, entity, InstanceId::from_random([instance; 16]), now);
        // A process that restarts is a new one every time: never counted.
        for n in 10..30 {
            assert!(enter(n, start).is_ok());
            registry.insert(facts(n, Some(1), n, &[]), Fixed(0), start);
        }
        // Two that keep coming back are.
        let later = start + DISPLACEMENT_WINDOW;
        let mut fight = None;
        for n in 0..20 {
            let instance = 1 + n % 2;
            if let Err(f) = enter(instance, later) {
                fight = Some((n, f));
                break;
            }
            registry.insert(facts(100 + n, Some(1), instance, &[]), Fixed(0), later);
        }
        let (n, fight) = fight.expect("the fight is noticed");
        assert_eq!(
            (n, fight.wait),
            (7, DISPLACEMENT_WINDOW),
            "five returns, after the first two came for the first time"
        );
        // The one inside may re-dial; the other may enter when the place is free, or when the time is over.
        assert!(enter(1, later).is_ok() && enter(2, later).is_err());
        assert!(enter(2, later + DISPLACEMENT_WINDOW).is_ok());
        registry.remove(&tenant, SessionId::from_random([106; 16]), Instant::now());
        assert!(enter(2, later).is_ok());
        registry.tidy(later + DISPLACEMENT_WINDOW);
        assert!(registry.inner.read().displacements.is_empty());
    }
}
