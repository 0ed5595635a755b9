//! Which pairings there are: by half for the datagrams, by device for the bounds.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::wire::tunnel::HalfId;
use hedgerow_shared::{EntityId, SessionId, TenantId, TunnelId, UnixTime};
use parking_lot::{Mutex, RwLock};

use super::end::End;
use crate::fair::{Meter, Way};

/// Pairings of one device at once: a tunnel each of two apps, while both move to another node.
pub const MOST_PER_DEVICE: usize = 4;
/// Parts of the table, so that cores which look up different halves do not wait for each other.
const PARTS: usize = 64;

/// Which end of a pairing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// That asked for it.
    Device,
    /// That serves it.
    Node,
}

impl Side {
    /// The opposite one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Device => Self::Node,
            Self::Node => Self::Device,
        }
    }

    /// Which way its datagrams go.
    #[must_use]
    pub fn way(self) -> Way {
        match self {
            Self::Device => Way::Up,
            Self::Node => Way::Down,
        }
    }
}

/// Two halves.
#[derive(Debug)]
pub struct Pair {
    /// Its id in the session list.
    pub id: SessionId,
    /// Whose.
    pub tenant: TenantId,
    /// What its ends call it.
    pub tunnel: TunnelId,
    /// The end that asked for it.
    pub device: End,
    /// The end that serves it.
    pub node: End,
    /// Whom its bytes are charged to.
    pub meter: Meter,
    /// Since when.
    pub since: UnixTime,
}

impl Pair {
    /// One of its ends.
    #[must_use]
    pub fn end(&self, side: Side) -> &End {
        match side {
            Side::Device => &self.device,
            Side::Node => &self.node,
        }
    }
}

/// How many pairings there may be.
#[derive(Debug)]
pub(super) struct Bounds {
    pub(super) all: AtomicUsize,
    pub(super) per_tenant: AtomicUsize,
}

#[derive(Debug, Default)]
struct Pairs {
    all: HashMap<SessionId, Arc<Pair>>,
    devices: HashMap<(TenantId, EntityId), Vec<Arc<Pair>>>,
    tenants: HashMap<TenantId, usize>,
}

type Halves = HashMap<HalfId, (Arc<Pair>, Side)>;

/// See the module.
#[derive(Debug)]
pub(super) struct Table {
    /// Asked for every run of datagrams; no await while one is held. Whoever holds `pairs` may take one, not the reverse.
    halves: Vec<RwLock<Halves>>,
    /// Pairings come and go, few a second.
    pairs: Mutex<Pairs>,
    pub(super) bounds: Bounds,
}

impl Table {
    pub(super) fn new(most: usize, most_per_tenant: usize) -> Self {
        Self {
            halves: (0..PARTS).map(|_| RwLock::default()).collect(),
            pairs: Mutex::default(),
            bounds: Bounds { all: AtomicUsize::new(most), per_tenant: AtomicUsize::new(most_per_tenant) },
        }
    }

    fn part(&self, id: HalfId) -> &RwLock<Halves> {
        &self.halves[usize::from(id.to_bytes()[7]) % PARTS]
    }

    pub(super) fn get(&self, id: HalfId) -> Option<(Arc<Pair>, Side)> {
        self.part(id).read().get(&id).cloned()
    }

    /// Adds what `make` makes, which is called again should an id be taken. Those whose place it takes end: of the same
    /// tunnel, and all of another process of the same device. They are returned.
    ///
    /// # Errors
    /// `Limited`, with the bound's name; nothing has changed then.
    pub(super) fn add(&self, make: impl Fn() -> Pair) -> Result<(Arc<Pair>, Vec<Arc<Pair>>), Fault> {
        let mut pairs = self.pairs.lock();
        let pair = loop {
            let pair = make();
            let (device, node) = (pair.device.half.id, pair.node.half.id);
            if device != node && [device, node].iter().all(|id| !self.part(*id).read().contains_key(id)) {
                break Arc::new(pair);
            }
        };
        let key = (pair.tenant.clone(), pair.device.owner.entity);
        let process = pair.device.owner.instance;
        let own = pairs.devices.get(&key).map(Vec::as_slice).unwrap_or_default();
        let gives_way = |p: &&Arc<Pair>| p.device.owner.instance != process || p.tunnel == pair.tunnel;
        let replaced: Vec<_> = own.iter().filter(gives_way).cloned().collect();
        let of_tenant = pairs.tenants.get(&pair.tenant).copied().unwrap_or(0);
        let full = |held: usize, most: usize| held - replaced.len() >= most;
        let limited = |what: &str, most: usize| {
            Err(Fault::new(Code::Limited, format!("{what} may have {most} tunnels at once at this relay")))
        };
        let (all, per_tenant) =
            (self.bounds.all.load(Ordering::Relaxed), self.bounds.per_tenant.load(Ordering::Relaxed));
        if full(own.len(), MOST_PER_DEVICE) {
            return limited("a device", MOST_PER_DEVICE);
        }
        if full(of_tenant, per_tenant) {
            return limited("a tenant (limits.tunnels_per_tenant)", per_tenant);
        }
        if full(pairs.all.len(), all) {
            return limited("all tenants together (limits.tunnels)", all);
        }
        for old in &replaced {
            self.take_out(&mut pairs, old.id);
        }
        for (side, end) in [(Side::Device, &pair.device), (Side::Node, &pair.node)] {
            self.part(end.half.id).write().insert(end.half.id, (pair.clone(), side));
        }
        pairs.all.insert(pair.id, pair.clone());
        pairs.devices.entry(key).or_default().push(pair.clone());
        *pairs.tenants.entry(pair.tenant.clone()).or_default() += 1;
        Ok((pair, replaced))
    }

    /// Takes a pairing out; `None` when somebody else has.
    pub(super) fn remove(&self, id: SessionId) -> Option<Arc<Pair>> {
        self.take_out(&mut self.pairs.lock(), id)
    }

    fn take_out(&self, pairs: &mut Pairs, id: SessionId) -> Option<Arc<Pair>> {
        let pair = pairs.all.remove(&id)?;
        for end in [&pair.device, &pair.node] {
            self.part(end.half.id).write().remove(&end.half.id);
        }
        let key = (pair.tenant.clone(), pair.device.owner.entity);
        if let Some(own) = pairs.devices.get_mut(&key) {
            own.retain(|p| p.id != id);
            if own.is_empty() {
                pairs.devices.remove(&key);
            }
        }
        if let Some(count) = pairs.tenants.get_mut(&pair.tenant) {
            *count -= 1;
            if *count == 0 {
                pairs.tenants.remove(&pair.tenant);
            }
        }
        Some(pair)
    }

    pub(super) fn all(&self) -> Vec<Arc<Pair>> {
        self.pairs.lock().all.values().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.pairs.lock().all.len()
    }
}

#[cfg(test)]
mod tests {
    use hedgerow_runtime::clock;
    use hedgerow_shared::secret::Secret;
    use hedgerow_shared::wire::tunnel::Half;
    use hedgerow_shared::{InstanceId, Role};

    use super::super::end::Owner;
    use super::*;
    use crate::fair::Fairness;

    fn pair(tenant: &str, device: u8, process: u8, tunnel: u8) -> Pair {
        let tenant: TenantId = tenant.parse().unwrap();
        let end = |role, entity: u8, process: u8| {
            let half = Half { id: HalfId::from_random(clock::random()), secret: Secret::new(vec![0; 32]) };
            let owner = Owner {
                role,
                entity: EntityId::from_random([entity; 16]),
                serial: String::new(),
                not_after: UnixTime(0),
                issuer: [0; 32],
                instance: InstanceId::from_random([process; 16]),
                session: SessionId::from_random([0; 16]),
            };
            End::new(half, owner, 0)
        };
        Pair {
            id: SessionId::from_random(clock::random()),
            meter: Fairness::default().meter(&tenant, &[]),
            tenant,
            tunnel: TunnelId::from_random([tunnel; 16]),
            device: end(Role::Device, device, process),
            node: end(Role::Node, 200, 200),
            since: UnixTime(0),
        }
    }

    const A: &str = "S12345678";
    const B: &str = "S87654321";

    #[test]
    fn each_bound_is_named_and_refusals_change_nothing() {
        let table = Table::new(8, 6);
        let add = |tenant, device, tunnel| table.add(|| pair(tenant, device, 1, tunnel)).map(|(_, old)| old.len());
        assert!((0..4).all(|tunnel| add(A, 1, tunnel) == Ok(0)));
        let text = add(A, 1, 4).unwrap_err().to_string();
        assert!(text.starts_with("a device may have 4") && text.ends_with("(limited)"), "{text}");
        assert_eq!(add(A, 1, 3), Ok(1), "asked again for the same: that takes the old one's place");
        assert!((2..4).all(|device| add(A, device, 0) == Ok(0)));
        assert!(add(A, 4, 0).unwrap_err().text.contains("limits.tunnels_per_tenant"));
        assert_eq!(add(A, 2, 0), Ok(1), "also where the tenant has all it may");
        assert!((1..3).all(|device| add(B, device, 0) == Ok(0)));
        assert!(add(B, 3, 0).unwrap_err().text.contains("limits.tunnels)"));
        assert_eq!(table.len(), 8);
        for pair in table.all() {
            assert!(table.get(pair.device.half.id).is_some_and(|(p, side)| p.id == pair.id && side == Side::Device));
            assert!(table.remove(pair.id).is_some() && table.remove(pair.id).is_none());
            assert!(table.get(pair.node.half.id).is_none());
        }
        let pairs = table.pairs.lock();
        assert!(pairs.all.is_empty() && pairs.devices.is_empty() && pairs.tenants.is_empty());
        assert!(table.halves.iter().all(|part| part.read().is_empty()), "nothing is left behind");
    }

    #[test]
    fn another_process_of_a_device_takes_the_place_of_all_that_the_old_one_had() {
        let table = Table::new(100, 100);
        for tunnel in 0..4 {
            table.add(|| pair(A, 1, 1, tunnel)).unwrap();
        }
        assert_eq!(table.add(|| pair(A, 1, 2, 9)).unwrap().1.len(), 4);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn an_id_that_is_taken_is_not_given_twice() {
        let table = Table::new(100, 100);
        let first = table.add(|| pair(A, 1, 1, 1)).unwrap().0;
        let tries = AtomicUsize::new(0);
        let (second, _) = table
            .add(|| {
                let mut new = pair(A, 2, 1, 1);
                match tries.fetch_add(1, Ordering::Relaxed) {
                    0 => new.node.half.id = first.device.half.id,
                    1 => new.node.half.id = new.device.half.id,
                    _ => {}
                }
                new
            })
            .unwrap();
        assert_eq!(tries.into_inner(), 3);
        assert!(table.get(first.device.half.id).is_some_and(|(p, _)| p.id == first.id));
        assert!(table.get(second.node.half.id).is_some_and(|(p, _)| p.id == second.id));
    }
}
