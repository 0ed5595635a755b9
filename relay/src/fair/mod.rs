//! Who may move how many bytes a second through the relay: token buckets per device, node and tenant, each way.
//!
//! A flow (one direction of a lane, of a link's stream, of a CONNECT or of a connection passed
//! through by name) asks before it reads (`Meter::admit`) and is paused until every account that it is charged to has
//! earned what it may read; the peer's own flow control does the rest. Those who share an account are served in the
//! order in which they asked, a small piece each, so that eight flows of one tenant get no more than one of another.
//! Nothing is dropped but datagrams of tunnels, which cannot wait (`Meter::try_take`).
//!
//! Limits change at run time (`Fairness::set`): whoever waits is let go on, and from there on the new ones count.

mod bucket;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hedgerow_shared::{EntityId, Role, TenantId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use bucket::{Bucket, Rate};

/// The least and the most that a limited flow reads at once: small, so that many flows take turns quickly, and large
/// enough that turns cost nothing where the limit is high.
const PIECE: std::ops::RangeInclusive<u64> = 4 * 1024..=256 * 1024;
/// Pieces a second that an account hands out, within `PIECE`.
const PIECES_A_SECOND: u64 = 512;

/// What those who drop instead of waiting may owe an account, in pieces of its flows.
const OWED_BY_DROPPERS: u64 = 8;

/// What each may move, both directions for themselves.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bandwidth {
    /// One device, over all its lanes and streams.
    pub device: Flow,
    /// One node, over all devices.
    pub node: Flow,
    /// One tenant, over everything.
    pub tenant: Flow,
    /// Certain tenants, in place of `tenant`.
    pub tenants: BTreeMap<TenantId, Flow>,
}

impl Bandwidth {
    /// Every limit, with the key of the configuration that it stands under.
    pub fn flows(&self) -> impl Iterator<Item = (String, Flow)> {
        let all = [("device", self.device), ("node", self.node), ("tenant", self.tenant)];
        let one = self.tenants.iter().map(|(id, flow)| (format!("bandwidth.tenants.{id}"), *flow));
        all.into_iter().map(|(key, flow)| (format!("bandwidth.{key}"), flow)).chain(one)
    }
}

/// A rate. No limit by default: the relay does not know what its network carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Flow {
    /// Bytes a second; 0 is no limit.
    pub bytes_per_second: u64,
    /// Bytes that may be saved up and moved at once; 0 is what the rate gives in one second.
    pub burst_bytes: u64,
}

/// The smallest limit: below it one piece takes longer than peers wait for signs of life.
pub const LEAST_RATE: u64 = 1024;

impl Flow {
    /// What is wrong with it.
    ///
    /// # Errors
    /// What to write instead.
    pub fn check(&self) -> Result<(), String> {
        if self.bytes_per_second != 0 && self.bytes_per_second < LEAST_RATE {
            return Err(format!("bytes_per_second must be 0 (no limit) or at least {LEAST_RATE}"));
        }
        if self.bytes_per_second == 0 && self.burst_bytes != 0 {
            return Err("burst_bytes needs bytes_per_second beside it".to_owned());
        }
        Ok(())
    }

    fn rate(self) -> Option<Rate> {
        let burst = if self.burst_bytes == 0 { self.bytes_per_second } else { self.burst_bytes };
        (self.bytes_per_second > 0).then_some(Rate { per_second: self.bytes_per_second as f64, burst: burst as f64 })
    }

    fn piece(self) -> u64 {
        (self.bytes_per_second / PIECES_A_SECOND).clamp(*PIECE.start(), *PIECE.end())
    }
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From whoever asked for the stream or lane.
    Up,
    /// Back to it.
    Down,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Device,
    Node,
    Tenant,
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Node => "node",
            Self::Tenant => "tenant",
        }
    }
}

/// Whom bytes are charged to: a tenant, or one of its holders.
type Key = (TenantId, Option<EntityId>);

#[derive(Debug)]
struct Account {
    kind: Kind,
    tenant: TenantId,
    /// By way. Short critical sections without await: every piece of every flow of the account asks. Empty until
    /// somebody is limited.
    buckets: Mutex<[Option<Bucket>; 2]>,
}

impl Account {
    fn flow(&self, bandwidth: &Bandwidth) -> Flow {
        match self.kind {
            Kind::Device => bandwidth.device,
            Kind::Node => bandwidth.node,
            Kind::Tenant => bandwidth.tenants.get(&self.tenant).copied().unwrap_or(bandwidth.tenant),
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// Whether anybody is limited: without it no flow asks further.
    limited: AtomicBool,
    /// Read by every piece of a limited flow, written by a reload.
    bandwidth: parking_lot::RwLock<Arc<Bandwidth>>,
    /// Short critical sections: a flow begins, accounts are tidied. It holds live holders, and those who left
    /// until what they owe is forgotten: nobody gets a new burst by coming back.
    accounts: Mutex<HashMap<Key, Arc<Account>>>,
    changed: Notify,
}

/// All accounts of one relay. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Fairness {
    inner: Arc<Inner>,
}

impl Fairness {
    /// With these limits from the start.
    #[must_use]
    pub fn new(bandwidth: Bandwidth) -> Self {
        let own = Self::default();
        own.set(bandwidth);
        own
    }

    /// Other limits from now on. Whoever waits goes on; debts are forgiven and bursts are new.
    pub fn set(&self, bandwidth: Bandwidth) {
        let mut now = self.inner.bandwidth.write();
        if **now == bandwidth {
            return;
        }
        for account in self.inner.accounts.lock().values() {
            *account.buckets.lock() = [None, None];
        }
        let limited = bandwidth.flows().any(|(_, flow)| flow.rate().is_some());
        *now = Arc::new(bandwidth);
        self.inner.limited.store(limited, Ordering::Relaxed);
        drop(now);
        self.inner.changed.notify_waiters();
    }

    /// A meter for the flows between `holders` of a tenant; those that are no devices or nodes are charged to the
    /// tenant alone.
    #[must_use]
    pub fn meter(&self, tenant: &TenantId, holders: &[Option<(Role, EntityId)>]) -> Meter {
        let mut accounts = self.inner.accounts.lock();
        let mut account = |holder: Option<EntityId>, kind: Kind| {
            let made = || Arc::new(Account { kind, tenant: tenant.clone(), buckets: Mutex::new([None, None]) });
            accounts.entry((tenant.clone(), holder)).or_insert_with(made).clone()
        };
        let mut payers = vec![account(None, Kind::Tenant)];
        for (role, entity) in holders.iter().flatten() {
            match role {
                Role::Device => payers.push(account(Some(*entity), Kind::Device)),
                Role::Node => payers.push(account(Some(*entity), Kind::Node)),
                Role::Core => {}
            }
        }
        drop(accounts);
        Meter { inner: self.inner.clone(), payers, moved: Default::default() }
    }

    /// Forgets accounts that nobody uses and that owe nothing. How many are left.
    pub fn tidy(&self, now: Instant) -> usize {
        let bandwidth = self.inner.bandwidth.read().clone();
        let mut accounts = self.inner.accounts.lock();
        accounts.retain(|_, account| {
            let rate = account.flow(&bandwidth).rate();
            let mut buckets = account.buckets.lock();
            let owes = |b: &mut Bucket| rate.is_some_and(|rate| !b.is_full(rate, now));
            Arc::strong_count(account) > 1 || buckets.iter_mut().flatten().any(owes)
        });
        accounts.len()
    }
}

/// What the flows of one lane, stream or connection are charged to.
#[derive(Debug)]
pub struct Meter {
    inner: Arc<Inner>,
    payers: Vec<Arc<Account>>,
    /// Bytes read so far, by way; for lists.
    moved: [AtomicU64; 2],
}

impl Meter {
    /// Waits until the next piece may be read. Cancel safe: what was not read is given back.
    pub async fn admit(&self, way: Way) -> Grant<'_> {
        // Before anything is computed, so that no change is missed.
        let changed = self.inner.changed.notified();
        let (grant, wait, by) = self.take(way, Instant::now());
        if let Some(by) = by.filter(|_| !wait.is_zero()) {
            metrics::counter!("hedgerow_relay_pauses_total", "limit" => by.label()).increment(1);
            // Boxed: an idle lane would keep room for it in both directions.
            let pause = async move {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = changed => {}
                }
            };
            Box::pin(pause).await;
        }
        grant
    }

    /// As `admit`, for those who have something to put away first: `None` when there would be a wait.
    #[must_use]
    pub fn try_admit(&self, way: Way) -> Option<Grant<'_>> {
        let (grant, wait, _) = self.take(way, Instant::now());
        wait.is_zero().then_some(grant)
    }

    /// For those who cannot wait, because whatever they move has come already: takes `bytes`, or nothing when the
    /// accounts have run out. `false` where the bytes must be dropped.
    #[must_use]
    pub fn try_take(&self, way: Way, bytes: u64, now: Instant) -> bool {
        if !self.inner.limited.load(Ordering::Relaxed) {
            return true;
        }
        let bandwidth = self.inner.bandwidth.read().clone();
        let limited =
            || self.payers.iter().map(|p| (p, p.flow(&bandwidth))).filter_map(|(p, f)| Some((p, f, f.rate()?)));
        // Flows that wait have taken their pieces in advance: whoever drops instead of waiting may owe as much as a few of
        // them, or would get nothing as long as they are there.
        let may = |(account, flow, rate): (&Arc<Account>, Flow, Rate)| {
            let mut buckets = account.buckets.lock();
            let bucket = buckets[way as usize].get_or_insert_with(|| Bucket::new(rate, now));
            bucket.owes(rate, now) < flow.piece() * OWED_BY_DROPPERS
        };
        if !limited().all(may) {
            return false;
        }
        for (account, _, rate) in limited() {
            if let Some(bucket) = account.buckets.lock()[way as usize].as_mut() {
                bucket.take(bytes, rate, now);
            }
        }
        true
    }

    /// Bytes that were read so far.
    #[must_use]
    pub fn moved(&self, way: Way) -> u64 {
        self.moved[way as usize].load(Ordering::Relaxed)
    }

    /// Takes a piece from every account: how long to wait for it, and because of whom.
    fn take(&self, way: Way, now: Instant) -> (Grant<'_>, Duration, Option<Kind>) {
        if !self.inner.limited.load(Ordering::Relaxed) {
            return (Grant { meter: self, way, left: None }, Duration::ZERO, None);
        }
        let bandwidth = self.inner.bandwidth.read().clone();
        let flows = self.payers.iter().map(|p| (p, p.flow(&bandwidth)));
        let limited: Vec<_> = flows.filter_map(|(p, flow)| Some((p, flow, flow.rate()?))).collect();
        let Some(piece) = limited.iter().map(|(_, flow, _)| flow.piece()).min() else {
            return (Grant { meter: self, way, left: None }, Duration::ZERO, None);
        };
        let (mut wait, mut by) = (Duration::ZERO, None);
        for (account, _, rate) in limited {
            let mut buckets = account.buckets.lock();
            let bucket = buckets[way as usize].get_or_insert_with(|| Bucket::new(rate, now));
            let own = bucket.take(piece, rate, now);
            if own > wait {
                (wait, by) = (own, Some(account.kind));
            }
        }
        (Grant { meter: self, way, left: Some(piece) }, wait, by)
    }

    fn give_back(&self, way: Way, bytes: u64) {
        let bandwidth = self.inner.bandwidth.read().clone();
        for account in &self.payers {
            if let Some(rate) = account.flow(&bandwidth).rate()
                && let Some(bucket) = account.buckets.lock()[way as usize].as_mut()
            {
                bucket.give_back(bytes, rate);
            }
        }
    }
}

/// Bytes that may be read now. What is left when it is dropped was not read.
#[derive(Debug)]
pub struct Grant<'a> {
    meter: &'a Meter,
    way: Way,
    /// `None`: nobody is limited.
    left: Option<u64>,
}

impl Grant<'_> {
    /// How much may be read at once, of `most` that fit.
    #[must_use]
    pub fn of(&self, most: usize) -> usize {
        self.left.map_or(most, |left| usize::try_from(left).unwrap_or(most).min(most))
    }

    /// So many bytes were read. More than the grant was good for are counted as well as those: the next one waits
    /// longer.
    pub fn spend(&mut self, bytes: u64) {
        self.meter.moved[self.way as usize].fetch_add(bytes, Ordering::Relaxed);
        let Some(left) = &mut self.left else { return };
        let beyond = bytes.saturating_sub(*left);
        *left = left.saturating_sub(bytes);
        if beyond > 0 {
            self.meter.charge(self.way, beyond, Instant::now());
        }
    }
}

impl Meter {
    /// Takes bytes that were read already.
    fn charge(&self, way: Way, bytes: u64, now: Instant) {
        let bandwidth = self.inner.bandwidth.read().clone();
        for account in &self.payers {
            if let Some(rate) = account.flow(&bandwidth).rate() {
                let mut buckets = account.buckets.lock();
                buckets[way as usize].get_or_insert_with(|| Bucket::new(rate, now)).take(bytes, rate, now);
            }
        }
    }
}

impl Drop for Grant<'_> {
    fn drop(&mut self) {
        if let Some(left @ 1..) = self.left {
            self.meter.give_back(self.way, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn flow(bytes_per_second: u64) -> Flow {
        Flow { bytes_per_second, burst_bytes: 0 }
    }

    fn tenant(n: u8) -> TenantId {
        format!("S1234567{n}").parse().unwrap()
    }

    fn device(n: u8) -> Option<(Role, EntityId)> {
        Some((Role::Device, EntityId::from_random([n; 16])))
    }

    fn node(n: u8) -> Option<(Role, EntityId)> {
        Some((Role::Node, EntityId::from_random([n; 16])))
    }

    /// What flows move that never wait for anything but their meters, each as (meter, flows side by side, way), in so
    /// many seconds of a time that only this function knows.
    fn moved(seconds: u64, start: Instant, meters: &[(&Meter, usize, Way)]) -> Vec<u64> {
        let end = start + Duration::from_secs(seconds);
        let each = meters.iter().enumerate().flat_map(|(i, (_, flows, _))| (0..*flows).map(move |_| i));
        let mut next: BTreeSet<(Instant, usize, usize)> = each.enumerate().map(|(n, i)| (start, n, i)).collect();
        let (mut sums, mut turn) = (vec![0; meters.len()], next.len());
        while let Some((now, _, i)) = next.pop_first() {
            let (meter, _, way) = meters[i];
            let (mut grant, wait, _) = meter.take(way, now);
            if now + wait <= end {
                let bytes = grant.of(64 * 1024) as u64;
                grant.spend(bytes);
                sums[i] += bytes;
                turn += 1;
                next.insert((now + wait, turn, i));
            }
        }
        sums
    }

    /// Within a tenth.
    fn about(got: u64, wanted: u64) -> bool {
        got.abs_diff(wanted) <= wanted / 10
    }

    #[test]
    fn eight_flows_of_one_tenant_get_no_more_than_one_of_another() {
        let fair = Fairness::new(Bandwidth { tenant: flow(MIB), ..Bandwidth::default() });
        let (greedy, modest) = (fair.meter(&tenant(1), &[device(1)]), fair.meter(&tenant(2), &[device(2)]));
        let moved = moved(10, Instant::now(), &[(&greedy, 8, Way::Up), (&modest, 1, Way::Up)]);
        // A second's burst, and ten of the rate.
        assert!(about(moved[0], 11 * MIB) && about(moved[1], 11 * MIB), "{moved:?}");
    }

    #[test]
    fn flows_of_one_account_take_turns() {
        let fair = Fairness::new(Bandwidth { tenant: flow(MIB), ..Bandwidth::default() });
        let meters: Vec<_> = (1..=5).map(|n| fair.meter(&tenant(1), &[device(n)])).collect();
        let each: Vec<_> = meters.iter().map(|m| (m, 1, Way::Down)).collect();
        for got in moved(10, Instant::now(), &each) {
            assert!(about(got, 11 * MIB / 5), "{got}");
        }
    }

    #[test]
    fn the_tightest_of_device_node_and_tenant_counts() {
        let bandwidth =
            Bandwidth { device: flow(MIB), node: flow(2 * MIB), tenant: flow(8 * MIB), ..Bandwidth::default() };
        let fair = Fairness::new(bandwidth);
        let meters: Vec<_> = (1..=4).map(|n| fair.meter(&tenant(1), &[device(n), node(9)])).collect();
        let start = Instant::now();
        let one = moved(10, start, &[(&meters[0], 4, Way::Up)]);
        assert!(about(one[0], 11 * MIB), "the device's own: {one:?}");
        let each: Vec<_> = meters.iter().map(|m| (m, 3, Way::Down)).collect();
        let sum: u64 = moved(10, start, &each).iter().sum();
        assert!(about(sum, 22 * MIB), "the node's: {sum}");
    }

    #[test]
    fn ways_are_counted_apart_so_a_request_does_not_wait_for_a_download() {
        let fair = Fairness::new(Bandwidth { device: flow(64 * 1024), ..Bandwidth::default() });
        let meter = fair.meter(&tenant(1), &[device(1)]);
        let start = Instant::now();
        moved(5, start, &[(&meter, 4, Way::Down)]);
        assert_eq!(meter.take(Way::Up, start + Duration::from_secs(5)).1, Duration::ZERO);
    }

    #[tokio::test]
    async fn without_limits_nothing_is_asked_and_with_a_reload_those_who_wait_go_on() {
        let fair = Fairness::default();
        let meter = fair.meter(&tenant(1), &[device(1)]);
        assert_eq!(meter.admit(Way::Up).await.of(usize::MAX), usize::MAX);
        fair.set(Bandwidth { device: Flow { bytes_per_second: LEAST_RATE, burst_bytes: 1 }, ..Bandwidth::default() });
        meter.charge(Way::Up, 3600 * LEAST_RATE, Instant::now());
        let mut waits = Box::pin(meter.admit(Way::Up));
        let soon = tokio::time::timeout(Duration::from_millis(20), waits.as_mut());
        assert!(soon.await.is_err(), "it owes an hour");
        fair.set(Bandwidth { device: flow(MIB), ..Bandwidth::default() });
        tokio::time::timeout(Duration::from_secs(10), waits).await.expect("the debt is forgiven");
        let got = moved(10, Instant::now(), &[(&meter, 1, Way::Up)]);
        assert!(about(got[0], 11 * MIB), "{got:?}");
    }

    #[test]
    fn who_drops_gets_the_rate_and_a_share_of_it_beside_those_who_wait() {
        let fair = Fairness::new(Bandwidth { device: flow(MIB), ..Bandwidth::default() });
        let (tunnel, start) = (fair.meter(&tenant(1), &[device(1), node(2)]), Instant::now());
        let second = |n: u64| start + Duration::from_secs(n);
        // A datagram each 100 us: ten times the limit.
        let burst = |from: Instant, count: u32| {
            (0..count).filter(|n| tunnel.try_take(Way::Up, 1024, from + Duration::from_micros(100) * *n)).count() as u64
        };
        let got = burst(start, 100_000) * 1024;
        assert!(about(got, 11 * MIB), "a second's burst, and ten of the rate: {got}");
        assert!(tunnel.try_take(Way::Down, 1024, second(10)), "the other way");
        // Eight pieces of 4 KiB may be owed to those who wait, not more.
        tunnel.charge(Way::Up, 16 * 1024, second(10));
        assert!(!tunnel.try_take(Way::Up, 1024, second(10)));
        assert!(tunnel.try_take(Way::Up, 1024, second(10) + Duration::from_millis(17)));
        assert!(Fairness::default().meter(&tenant(1), &[]).try_take(Way::Up, u64::MAX, start));
    }

    #[test]
    fn what_was_granted_and_not_read_costs_nobody_anything() {
        let fair = Fairness::new(Bandwidth { device: flow(64 * 1024), ..Bandwidth::default() });
        let meter = fair.meter(&tenant(1), &[device(1)]);
        for _ in 0..1000 {
            assert!(meter.try_admit(Way::Up).is_some());
        }
    }

    #[test]
    fn coming_back_gives_no_new_burst_and_accounts_that_owe_nothing_are_forgotten() {
        let fair = Fairness::new(Bandwidth { device: flow(MIB), ..Bandwidth::default() });
        let now = Instant::now();
        fair.meter(&tenant(1), &[device(1)]).charge(Way::Up, 10 * MIB, now);
        assert_eq!(fair.tidy(now), 1, "the tenant's is forgotten, the device's is not");
        let again = fair.meter(&tenant(1), &[device(1)]);
        assert!(again.take(Way::Up, now).1 > Duration::from_secs(8));
        drop(again);
        assert_eq!(fair.tidy(now + Duration::from_secs(11)), 0);
    }
}
