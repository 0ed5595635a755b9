//! Tunnels: DTLS between a device and a node, of which the relay passes on the datagrams, blindly.
//!
//! A device asks for a pairing on its link (`pair`). Each end gets an id and a secret over its own link, says with them
//! where it is (`end`: an address that it shows to be its own, or its link), and from then on what comes from one end
//! goes to the other (`forward`). The wire is `hedgerow_shared::wire::tunnel`.
//!
//! A pairing outlives both links. It ends when either end says so, when nothing was heard from both for ten minutes, and
//! when its device, node or tenant may no longer be here; both ends are told.

mod end;
mod forward;
mod split;
mod table;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hedgerow_runtime::clock;
use hedgerow_runtime::link::Channel;
use hedgerow_runtime::telemetry::dropped;
use hedgerow_shared::fault::{Code, DropReason, Fault};
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::Feature;
use hedgerow_shared::wire::message::{Destination, PairCall, PairEnd, PairOffer, PairRequest};
use hedgerow_shared::wire::tunnel::{Half, HalfId};
use hedgerow_shared::{EntityId, Origin, Role, SessionId, TenantId};

pub use end::{End, Owner, Path};
pub use split::{Run, split};
pub use table::{MOST_PER_DEVICE, Pair, Side};

use crate::fair::{Fairness, Way};
use crate::limit::{Limiter, Rate};
use crate::registry::{Live, Registry};
use crate::route::{self, Asker};
use crate::state::Relay;
use crate::udp::{Arrived, Forwarder, Outbox};
use table::Table;

/// Pairings that one device may ask for: each is a message to a node, and a node that is told more than it reads is cut.
const ASKED: Rate = Rate { per_second: 1.0, burst: 16.0 };

/// All pairings.
#[derive(Debug)]
pub struct Tunnels {
    table: Table,
    fair: Fairness,
    idle: Duration,
    /// What times are counted from.
    began: Instant,
    asked: Limiter<(TenantId, EntityId)>,
    counts: Counts,
}

/// Looked up once: they are counted for every run of datagrams.
struct Counts {
    datagrams: [metrics::Counter; 2],
    bytes: [metrics::Counter; 2],
}

impl std::fmt::Debug for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Counts")
    }
}

impl Counts {
    fn new() -> Self {
        let ways = ["up", "down"];
        Self {
            datagrams: ways.map(|way| metrics::counter!("hedgerow_relay_tunnel_datagrams_total", "direction" => way)),
            bytes: ways.map(|way| metrics::counter!("hedgerow_relay_tunnel_bytes_total", "direction" => way)),
        }
    }

    fn passed(&self, way: Way, datagrams: u64, bytes: u64) {
        self.datagrams[way as usize].increment(datagrams);
        self.bytes[way as usize].increment(bytes);
    }
}

impl Tunnels {
    /// No pairings yet. One of which nothing is heard for `idle` ends; `most` in all, `most_per_tenant` of each.
    #[must_use]
    pub fn new(idle: Duration, most: usize, most_per_tenant: usize, fair: Fairness) -> Self {
        Self {
            table: Table::new(most, most_per_tenant),
            fair,
            idle,
            began: clock::monotonic(),
            asked: Limiter::new(ASKED),
            counts: Counts::new(),
        }
    }

    /// Other bounds from now on; what stands stays.
    pub fn set(&self, most: usize, most_per_tenant: usize) {
        self.table.bounds.all.store(most, Ordering::Relaxed);
        self.table.bounds.per_tenant.store(most_per_tenant, Ordering::Relaxed);
    }

    /// Makes a pairing, and ends those whose place it takes.
    ///
    /// # Errors
    /// `Limited`, with the bound's name.
    pub fn add(
        &self,
        links: &Registry<Channel>,
        tenant: &TenantId,
        tunnel: hedgerow_shared::TunnelId,
        device: &Owner,
        node: &Owner,
    ) -> Result<Arc<Pair>, Fault> {
        let heard = self.at(clock::monotonic());
        let end = |owner: &Owner| {
            let half =
                Half { id: HalfId::from_random(clock::random()), secret: Secret::new(clock::random::<32>().to_vec()) };
            End::new(half, owner.clone(), heard)
        };
        let (pair, replaced) = self.table.add(|| Pair {
            id: SessionId::from_random(clock::random()),
            tenant: tenant.clone(),
            tunnel,
            device: end(device),
            node: end(node),
            meter: self.fair.meter(tenant, &[Some((Role::Device, device.entity)), Some((Role::Node, node.entity))]),
            since: clock::now(),
        })?;
        let fault = Fault::new(Code::Displaced, "the device asked for a newer pairing in this one's place");
        for old in replaced {
            ended(links, &old, &fault, None);
        }
        Ok(pair)
    }

    /// Ends a pairing and tells both ends. Whether it was there.
    pub fn cut(&self, links: &Registry<Channel>, id: SessionId, fault: &Fault) -> bool {
        let Some(pair) = self.table.remove(id) else { return false };
        ended(links, &pair, fault, None);
        true
    }

    /// Ends every pairing for which `which` has a reason. How many.
    pub fn cut_where(&self, links: &Registry<Channel>, which: impl Fn(&Pair) -> Option<Fault>) -> usize {
        let all = self.table.all();
        all.iter().filter(|pair| which(pair).is_some_and(|fault| self.cut(links, pair.id, &fault))).count()
    }

    /// One end says that its pairing is over; the other one is told.
    pub fn ended_by(&self, links: &Registry<Channel>, live: &Live<Channel>, said: &PairEnd) {
        let Some((pair, side)) = self.table.get(said.half) else {
            // Both ends may have said so, or the relay to it.
            return dropped(DropReason::TunnelUnknown);
        };
        if pair.tenant != live.facts.tenant || !pair.end(side).owner.is(&live.facts) {
            return dropped(DropReason::TunnelAddress);
        }
        if self.table.remove(pair.id).is_some() {
            ended(links, &pair, &said.fault, Some(side));
        }
    }

    /// Ends pairings of which nothing was heard for too long.
    pub fn expire(&self, links: &Registry<Channel>, now: Instant) {
        let (now, idle) = (self.at(now), u64::try_from(self.idle.as_millis()).unwrap_or(u64::MAX));
        self.cut_where(links, |pair| {
            let heard = pair.device.heard().max(pair.node.heard());
            let is_idle = now.saturating_sub(heard) >= idle;
            is_idle.then(|| Fault::new(Code::TimedOut, "nothing was heard of either end of the tunnel for too long"))
        });
    }

    /// The pairings.
    #[must_use]
    pub fn live(&self) -> Vec<Arc<Pair>> {
        self.table.all()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Tells the ends of a pairing that is over, but not the one that said so.
fn ended(links: &Registry<Channel>, pair: &Pair, fault: &Fault, by: Option<Side>) {
    tracing::info!(tunnel = %pair.id, tenant = %pair.tenant, device = %pair.device.owner.entity, node = %pair.node.owner.entity, reason = %fault, "tunnel ended");
    metrics::counter!("hedgerow_relay_pairings_ended_total", "code" => fault.code.label()).increment(1);
    tell(links, pair, fault, by);
}

fn tell(links: &Registry<Channel>, pair: &Pair, fault: &Fault, by: Option<Side>) {
    for side in [Side::Device, Side::Node] {
        let (end, owner) = (pair.end(side), &pair.end(side).owner);
        if by == Some(side) {
            continue;
        }
        if let Some(live) = links.of_process(&pair.tenant, owner.entity, owner.instance) {
            let over = PairEnd { half: end.half.id, fault: fault.clone() };
            if live.handle.send_control(&over.into()).is_err() {
                dropped(DropReason::ControlQueueFull);
            }
        }
    }
}

/// A device asks for a pairing with a process of a node.
///
/// # Errors
/// Why it gets none.
pub fn pair(relay: &Arc<Relay>, live: &Live<Channel>, request: &PairRequest) -> Result<(), Fault> {
    let facts = &live.facts;
    let (Role::Device, Some(device)) = (facts.role, Owner::of(facts)) else {
        return Err(Fault::new(Code::Forbidden, "only devices ask for tunnels"));
    };
    if relay.is_draining() {
        return Err(relay.farewell().fault);
    }
    if relay.pairings.asked.take((facts.tenant.clone(), device.entity), clock::monotonic()).is_err() {
        return Err(Fault::new(Code::Limited, "the device asks for tunnels faster than one a second"));
    }
    let to = Destination {
        tenant: facts.tenant.clone(),
        origin: Origin::Proxy,
        group: None,
        instance: Some(request.instance),
        node: Some(request.node),
    };
    route::lane(Asker::of(facts), &to)?;
    relay.licensed(&facts.tenant, Some(Feature::Tunnel))?;
    let node = relay.registry.pick(&to, &[facts.id]).filter(|node| node.facts.entity == Some(request.node));
    let node = node.ok_or_else(|| relay.no_route(&to))?;
    let owner = Owner::of(&node.facts)
        .ok_or_else(|| Fault::new(Code::Forbidden, "tunnels join devices and nodes, which have certificates"))?;
    let pair = relay.pairings.add(&relay.registry, &facts.tenant, request.tunnel, &device, &owner)?;
    let stay = relay.may_stay(facts).and_then(|()| relay.may_stay(&node.facts));
    let call = PairCall { tunnel: request.tunnel, half: pair.node.half.clone(), vouched: live.vouched() };
    let offer = PairOffer { request: request.request, half: pair.device.half.clone() };
    // Whoever was revoked after the look for its link was not among those whose pairings were cut.
    let told = stay
        .and_then(|()| node.handle.send_control(&call.into()))
        .and_then(|()| live.handle.send_control(&offer.into()));
    if let Err(fault) = told {
        relay.pairings.cut(&relay.registry, pair.id, &fault);
        return Err(fault);
    }
    if relay.pairings.table.get(pair.device.half.id).is_none() {
        // Cut in the meantime, and its ends were told before they knew of it.
        tell(&relay.registry, &pair, &Fault::new(Code::Lost, "the tunnel was cut while it was made"), None);
    }
    relay.check_alive(node);
    metrics::counter!("hedgerow_relay_pairings_offered_total").increment(1);
    Ok(())
}

impl Forwarder for Relay {
    fn take(&self, arrived: &Arrived<'_>, stride: usize, datagrams: &mut [u8], out: &mut Outbox) {
        self.pairings.take(&self.registry, arrived, stride, datagrams, out);
    }
}
