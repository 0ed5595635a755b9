//! Lanes: pairs of connections that the relay joins and then only moves ciphertext between.
//!
//! A device asks for a lane on its link (`offer`). Each end gets a single-use ticket over its own link and dials with
//! it (`arrive`): the first leg waits, the second starts `join`. The tickets die with either link session, with their
//! time, and with their use. A joined lane outlives both links; it ends with its legs, or by `cut` when its device,
//! node or tenant may no longer be here. There is no idle timer.

pub mod join;
#[cfg(target_os = "linux")]
pub mod splice;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hedgerow_runtime::clock;
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::telemetry::dropped;
use hedgerow_shared::fault::DropReason;
use hedgerow_shared::{EntityId, Origin, Role, SessionId, TenantId, Ticket, UnixTime};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::admit::Shown;
use crate::fair::Fairness;
use crate::probe::Probe;

/// Lanes that one link session may have asked for without both legs having come.
pub const MAX_PENDING_PER_SESSION: usize = 64;

/// One end of a lane, as its link session proved it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The link session that was given the ticket.
    pub session: SessionId,
    /// Which device or node.
    pub entity: EntityId,
    /// Of its certificate.
    pub serial: String,
    /// End of that certificate's validity.
    pub not_after: UnixTime,
    /// The key of the CA it stands under.
    pub issuer: [u8; 32],
    /// Of the link; the leg's own address is kept beside it.
    pub address: SocketAddr,
}

impl End {
    /// What of its certificate decides.
    #[must_use]
    pub fn shown(&self) -> Shown<'_> {
        Shown { id: self.entity, serial: &self.serial, not_after: self.not_after, issuer: &self.issuer }
    }
}

/// What a lane is; nothing of it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Whose.
    pub tenant: TenantId,
    /// What it leads to.
    pub origin: Origin,
    /// The end that asked for it.
    pub device: End,
    /// The end that serves it.
    pub node: End,
}

/// Anything bytes go through that is not a plain socket.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// How a leg came.
pub enum Carrier {
    /// A TCP connection that the relay does not open: a ClientHello or a bare preamble.
    Plain(TcpStream),
    /// TLS to the relay around it.
    Wrapped(Box<dyn Io>),
}

impl Carrier {
    /// The same connection, to be copied rather than spliced.
    fn copied(self) -> Self {
        match self {
            Self::Plain(socket) => Self::Wrapped(Box::new(socket)),
            wrapped @ Self::Wrapped(_) => wrapped,
        }
    }
}

/// One connection brought with a ticket.
pub struct Leg {
    /// The connection.
    pub carrier: Carrier,
    /// Bytes that were read to find out what it is and belong to the other end.
    pub first: Bytes,
    /// Where it comes from.
    pub address: SocketAddr,
    /// Of the TCP connection, where it is known.
    pub probe: Option<Probe>,
    /// Kept as long as the connection: its place among the relay's connections.
    pub permit: Box<dyn Send>,
}

/// A joined lane.
#[derive(Debug)]
pub struct Live {
    /// Its id in the session list.
    pub id: SessionId,
    /// What it is.
    pub facts: Facts,
    /// Where the device's leg comes from.
    pub device_address: SocketAddr,
    /// Where the node's leg comes from.
    pub node_address: SocketAddr,
    /// Of the device's leg.
    pub device_probe: Option<Probe>,
    /// Of the node's leg.
    pub node_probe: Option<Probe>,
    /// `splice` or `copy`.
    pub path: &'static str,
    /// Since when.
    pub since: UnixTime,
    /// Bytes from the device to the node.
    pub up: AtomicU64,
    /// Bytes from the node to the device.
    pub down: AtomicU64,
    cut: CancellationToken,
}

impl Live {
    /// Shuts both legs at once.
    pub fn cut(&self) {
        self.cut.cancel();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Device,
    Node,
}

/// A lane whose legs have not both come.
struct Pending {
    facts: Facts,
    expires: Instant,
    tickets: [Ticket; 2],
    first: Option<(Side, Leg)>,
}

#[derive(Default)]
struct Inner {
    pending: HashMap<u64, Pending>,
    tickets: HashMap<Ticket, (u64, Side)>,
    live: HashMap<SessionId, Arc<Live>>,
    counter: u64,
}

/// What became of a leg.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The first: it waits for the other.
    Waits,
    /// The second: the lane runs.
    Joined,
    /// Its ticket is unknown, used or expired. The leg is closed, and counted.
    Unknown,
}

/// All lanes, asked for and joined.
pub struct Lanes {
    wait: Duration,
    splice: bool,
    fair: Fairness,
    scope: Scope,
    /// Short critical sections, no await: links ask, legs arrive.
    inner: Arc<Mutex<Inner>>,
}

impl Lanes {
    /// No lanes yet. A ticket, and the first leg, live for `wait`; joined lanes run as tasks of `scope`.
    /// Without `splice` bytes are copied whatever the legs are. `fair` says how fast.
    #[must_use]
    pub fn new(wait: Duration, splice: bool, fair: Fairness, scope: Scope) -> Self {
        Self { wait, splice, fair, scope, inner: Arc::default() }
    }

    /// Makes the tickets of a new lane: the device's and the node's. `None` when the device's session has asked for
    /// too many that did not come about.
    #[must_use]
    pub fn offer(&self, facts: Facts, now: Instant) -> Option<(Ticket, Ticket)> {
        let mut inner = self.inner.lock();
        let asked = inner.pending.values().filter(|p| p.facts.device.session == facts.device.session).count();
        if asked >= MAX_PENDING_PER_SESSION {
            dropped(DropReason::RateLimited);
            return None;
        }
        let tickets = [Ticket::from_random(clock::random()), Ticket::from_random(clock::random())];
        inner.counter += 1;
        let number = inner.counter;
        inner.tickets.insert(tickets[0], (number, Side::Device));
        inner.tickets.insert(tickets[1], (number, Side::Node));
        inner.pending.insert(number, Pending { facts, expires: now + self.wait, tickets, first: None });
        Some((tickets[0], tickets[1]))
    }

    /// Takes a leg. Its ticket is used up whatever comes of it.
    pub fn arrive(&self, ticket: &Ticket, mut leg: Leg, now: Instant) -> Arrival {
        if !self.splice {
            leg.carrier = leg.carrier.copied();
        }
        let mut inner = self.inner.lock();
        let known = inner.tickets.remove(ticket);
        let pending = known.and_then(|(number, side)| inner.pending.get_mut(&number).map(|p| (number, side, p)));
        let Some((number, side, pending)) = pending.filter(|(_, _, p)| p.expires > now) else {
            drop(inner);
            dropped(DropReason::UnknownTicket);
            return Arrival::Unknown;
        };
        if pending.first.is_none() {
            pending.first = Some((side, leg));
            return Arrival::Waits;
        }
        let Some(Pending { facts, first: Some((_, other)), .. }) = inner.pending.remove(&number) else {
            return Arrival::Unknown;
        };
        let (device, node) = if side == Side::Device { (leg, other) } else { (other, leg) };
        let live = Arc::new(Live {
            id: SessionId::from_random(clock::random()),
            facts,
            device_address: device.address,
            node_address: node.address,
            device_probe: device.probe,
            node_probe: node.probe,
            path: join::path(&device.carrier, &node.carrier),
            since: clock::now(),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            cut: CancellationToken::new(),
        });
        inner.live.insert(live.id, live.clone());
        drop(inner);
        self.start(live, device, node);
        Arrival::Joined
    }

    fn start(&self, live: Arc<Live>, device: Leg, node: Leg) {
        metrics::counter!("hedgerow_relay_lanes_joined_total", "path" => live.path).increment(1);
        let entry = Entry { inner: self.inner.clone(), live: live.clone() };
        let facts = &live.facts;
        let holders = [Some((Role::Device, facts.device.entity)), Some((Role::Node, facts.node.entity))];
        let meter = self.fair.meter(&facts.tenant, &holders);
        // Boxed, so that the task has no room of its own for what `run` takes over.
        let legs = Box::new((device, node));
        self.scope.spawn(async move {
            let _entry = entry;
            let moving = {
                let legs = legs;
                let (device, node) = *legs;
                join::run(device, node, &live.up, &live.down, &meter)
            };
            tokio::select! {
                end = moving => tracing::debug!(lane = %live.id, %end, "lane ended"),
                () = live.cut.cancelled() => {
                    metrics::counter!("hedgerow_relay_lanes_cut_total").increment(1);
                    tracing::info!(lane = %live.id, tenant = %live.facts.tenant, device = %live.facts.device.entity, "lane cut");
                }
            }
        });
    }

    /// Forgets lanes whose second leg did not come in time. Call a few times within the lane wait.
    pub fn expire(&self, now: Instant) {
        self.forget(|pending| pending.expires <= now);
    }

    /// Forgets the tickets given to a link session that ended. Joined lanes stay.
    pub fn session_ended(&self, session: SessionId) {
        self.forget(|pending| pending.facts.device.session == session || pending.facts.node.session == session);
    }

    fn forget(&self, which: impl Fn(&Pending) -> bool) {
        let mut inner = self.inner.lock();
        let numbers: Vec<u64> = inner.pending.iter().filter(|(_, p)| which(p)).map(|(n, _)| *n).collect();
        let mut legs = Vec::new();
        for number in numbers {
            if let Some(pending) = inner.pending.remove(&number) {
                for ticket in pending.tickets {
                    inner.tickets.remove(&ticket);
                }
                legs.extend(pending.first);
            }
        }
        drop(inner);
        for _ in legs {
            dropped(DropReason::LaneLegAlone);
        }
    }

    /// The sockets of a holder's own legs, as far as they are known.
    #[must_use]
    pub fn legs_of(&self, tenant: &TenantId, entity: EntityId) -> Vec<Probe> {
        let inner = self.inner.lock();
        let of = |end: &End, probe: Option<Probe>| probe.filter(|_| end.entity == entity);
        let legs = |l: &Live| [of(&l.facts.device, l.device_probe), of(&l.facts.node, l.node_probe)];
        inner.live.values().filter(|l| l.facts.tenant == *tenant).flat_map(|l| legs(l)).flatten().collect()
    }

    /// Cuts every lane, joined or not, for which `which` holds; how many were joined.
    pub fn cut(&self, which: impl Fn(&Facts) -> bool) -> usize {
        self.forget(|pending| which(&pending.facts));
        let live: Vec<_> = self.live().into_iter().filter(|l| which(&l.facts)).collect();
        for lane in &live {
            lane.cut();
        }
        live.len()
    }

    /// The joined lanes.
    #[must_use]
    pub fn live(&self) -> Vec<Arc<Live>> {
        self.inner.lock().live.values().cloned().collect()
    }

    /// One joined lane.
    #[must_use]
    pub fn get(&self, id: SessionId) -> Option<Arc<Live>> {
        self.inner.lock().live.get(&id).cloned()
    }

    /// Lanes joined, and lanes whose legs have not both come.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.live.len(), inner.pending.len())
    }

    /// Number of joined lanes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().live.len()
    }

    /// Whether no lane is joined.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Takes a lane out of the list however its task ends.
struct Entry {
    inner: Arc<Mutex<Inner>>,
    live: Arc<Live>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.inner.lock().live.remove(&self.live.id);
        let bytes = self.live.up.load(Ordering::Relaxed) + self.live.down.load(Ordering::Relaxed);
        metrics::counter!("hedgerow_relay_lane_bytes_total").increment(bytes);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    fn end(n: u8) -> End {
        End {
            session: SessionId::from_random([n; 16]),
            entity: EntityId::from_random([n; 16]),
            serial: format!("{n:02x}"),
            not_after: UnixTime(u64::MAX),
            issuer: [0; 32],
            address: "127.0.0.1:1".parse().unwrap(),
        }
    }

    fn facts() -> Facts {
        Facts { tenant: "S12345678".parse().unwrap(), origin: Origin::Proxy, device: end(1), node: end(2) }
    }

    fn leg(first: &'static [u8]) -> (DuplexStream, Leg) {
        let (outside, inside) = tokio::io::duplex(1024);
        let address = "127.0.0.1:1".parse().unwrap();
        let carrier = Carrier::Wrapped(Box::new(inside));
        (outside, Leg { carrier, first: Bytes::from_static(first), address, probe: None, permit: Box::new(()) })
    }

    fn lanes() -> Lanes {
        Lanes::new(Duration::from_secs(10), true, Fairness::default(), Scope::new())
    }

    async fn closed(mut outside: DuplexStream) -> bool {
        outside.read(&mut [0; 1]).await.unwrap() == 0
    }

    #[tokio::test]
    async fn two_legs_are_joined_and_the_peeked_bytes_come_first() {
        let (lanes, now) = (lanes(), Instant::now());
        let (device, node) = lanes.offer(facts(), now).unwrap();
        let (mut outside_node, node_leg) = leg(b"");
        let (mut outside_device, device_leg) = leg(b"hello ");
        assert_eq!(lanes.arrive(&node, node_leg, now), Arrival::Waits);
        assert_eq!(lanes.arrive(&device, device_leg, now), Arrival::Joined);
        outside_device.write_all(b"world").await.unwrap();
        let mut got = [0; 11];
        outside_node.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello world");
        outside_node.write_all(b"back").await.unwrap();
        let mut got = [0; 4];
        outside_device.read_exact(&mut got).await.unwrap();
        let live = lanes.live().pop().unwrap();
        assert_eq!((live.up.load(Ordering::Relaxed), live.down.load(Ordering::Relaxed)), (11, 4));
        drop(outside_device);
        assert!(closed(outside_node).await);
    }

    #[tokio::test]
    async fn a_ticket_works_once_and_not_after_its_time() {
        let (lanes, now) = (lanes(), Instant::now());
        let (device, node) = lanes.offer(facts(), now).unwrap();
        let (_outside, first) = leg(b"");
        assert_eq!(lanes.arrive(&device, first, now), Arrival::Waits);
        let (outside, again) = leg(b"");
        assert_eq!(lanes.arrive(&device, again, now), Arrival::Unknown);
        assert!(closed(outside).await);
        let (_, late) = leg(b"");
        assert_eq!(lanes.arrive(&node, late, now + Duration::from_secs(10)), Arrival::Unknown);
        let (_, guess) = leg(b"");
        assert_eq!(lanes.arrive(&Ticket::from_random([0; 20]), guess, now), Arrival::Unknown);
    }

    #[tokio::test]
    async fn a_leg_alone_is_closed_in_time_and_with_either_link() {
        let (lanes, now) = (lanes(), Instant::now());
        for how in ["time", "device's link", "node's link"] {
            let (device, node) = lanes.offer(facts(), now).unwrap();
            let (outside, first) = leg(b"");
            assert_eq!(lanes.arrive(&device, first, now), Arrival::Waits);
            match how {
                "time" => lanes.expire(now + Duration::from_secs(10)),
                "device's link" => lanes.session_ended(end(1).session),
                _ => lanes.session_ended(end(2).session),
            }
            assert!(closed(outside).await, "{how}");
            let (_, second) = leg(b"");
            assert_eq!(lanes.arrive(&node, second, now), Arrival::Unknown, "{how}");
        }
        assert!(lanes.inner.lock().tickets.is_empty() && lanes.inner.lock().pending.is_empty());
    }

    #[tokio::test]
    async fn a_joined_lane_outlives_its_links_and_ends_when_cut() {
        let (lanes, now) = (lanes(), Instant::now());
        let (device, node) = lanes.offer(facts(), now).unwrap();
        let ((mut outside_device, device_leg), (mut outside_node, node_leg)) = (leg(b""), leg(b""));
        lanes.arrive(&device, device_leg, now);
        lanes.arrive(&node, node_leg, now);
        lanes.session_ended(end(1).session);
        outside_device.write_all(b"x").await.unwrap();
        outside_node.read_exact(&mut [0]).await.unwrap();
        assert_eq!(lanes.cut(|f| f.device.entity == end(3).entity), 0);
        assert_eq!(lanes.cut(|f| f.device.entity == end(1).entity), 1);
        assert!(closed(outside_device).await && closed(outside_node).await);
        tokio::task::yield_now().await;
        assert!(lanes.is_empty());
    }

    #[tokio::test]
    async fn one_session_cannot_pile_up_offers() {
        let (lanes, now) = (lanes(), Instant::now());
        assert!((0..MAX_PENDING_PER_SESSION).all(|_| lanes.offer(facts(), now).is_some()));
        assert!(lanes.offer(facts(), now).is_none());
        lanes.expire(now + Duration::from_secs(10));
        assert!(lanes.offer(facts(), now).is_some());
    }
}
