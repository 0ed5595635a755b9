//! The way to one relay: a link, and a UDP socket where UDP can be had. Every tunnel of this process that goes by that
//! relay shares it; the kernel merges their datagrams, and the id of each is looked at.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hedgerow_runtime::clock;
use hedgerow_runtime::link::Link;
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::telemetry::{dropped, dropped_many};
use hedgerow_secure_connect::leg::{Leg, Way};
use hedgerow_secure_connect::session::dtls::Sink;
use hedgerow_shared::fault::{Code, DropReason, Fault};
use hedgerow_shared::wire::message::PairEnd;
use hedgerow_shared::wire::tunnel::{HEADER, Half, HalfId, Message, kind};
use parking_lot::RwLock;

use crate::end::End;
use crate::tun::Packets;
use crate::udp::{Received, Socket};

/// Batches handled before other tasks of this worker get their turn.
const TURN: u32 = 8;

/// How often, and for how long each time, room in the kernel is waited for before datagrams are dropped.
const TRIES: usize = 8;
/// See `TRIES`.
const ROOM: Duration = Duration::from_millis(20);

/// What stands behind the ends: a TUN device, or what counts in its place.
pub trait Inside: Send + Sync + 'static {
    /// An IP packet came from the other end of `end`; `false` drops it, and has counted it. It may be changed in place.
    fn admit(&self, end: &Arc<End>, packet: &mut [u8], now: Instant) -> bool;
    /// Admitted packets go on their way; none are left.
    fn deliver(&self, packets: &mut Packets);
}

/// See the module.
pub struct Gate {
    link: Link,
    socket: Option<Socket>,
    ends: RwLock<HashMap<HalfId, Arc<End>>>,
    inside: Arc<dyn Inside>,
    scope: Scope,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gate({})", self.link.accept.relay)
    }
}

impl Gate {
    /// Opens the way that belongs to a link, until `close` or the end of `scope`. `mark` is `SO_MARK` of its socket.
    #[must_use]
    pub fn open(link: Link, mark: Option<u32>, inside: Arc<dyn Inside>, scope: &Scope) -> Arc<Self> {
        let socket = udp_address(&link).and_then(|relay| {
            let opened = Socket::open(relay, mark);
            opened
                .inspect_err(|error| tracing::warn!(%relay, %error, "no UDP socket for tunnels: they use the link"))
                .ok()
        });
        let scope = scope.child();
        let gate = Arc::new(Self { link, socket, ends: RwLock::default(), inside, scope: scope.clone() });
        let by_udp = gate.clone();
        scope.spawn(async move { by_udp.receive_udp().await });
        let by_link = gate.clone();
        scope.spawn(async move { by_link.receive_link().await });
        gate
    }

    /// The link it belongs to.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Whether the relay is reached over UDP as well.
    #[must_use]
    pub fn has_udp(&self) -> bool {
        self.socket.is_some()
    }

    /// An end goes this way from now on, with this half of its pairing.
    pub fn attach(self: &Arc<Self>, end: &Arc<End>, half: Half) {
        let id = half.id;
        self.ends.write().insert(id, end.clone());
        let counter = clock::now().0 * 1000;
        let leg = Leg::new(half, counter, self.has_udp(), Instant::now());
        if let Some((before, id)) = end.lead(self, leg) {
            before.ends.write().remove(&id);
            before.close_if_idle();
        }
        if end.is_over() {
            self.forget(id);
        }
    }

    /// The end that has this half.
    #[must_use]
    pub fn end(&self, half: HalfId) -> Option<Arc<End>> {
        self.ends.read().get(&half).cloned()
    }

    /// A half is used no more; the relay hears of it.
    pub(crate) fn forget(&self, half: HalfId) {
        if self.ends.write().remove(&half).is_some() {
            let end = PairEnd { half, fault: Fault::new(Code::Ok, "the tunnel is over") };
            // A relay that does not hear it forgets the half by itself in time.
            let _ = self.link.mux.send_control(&end.into());
        }
        self.close_if_idle();
    }

    /// Whether its tasks have ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.scope.is_cancelled()
    }

    /// Ends its tasks once its link is gone and nobody uses it.
    pub fn close_if_idle(&self) {
        if self.link.mux.is_closed() && self.ends.read().is_empty() {
            self.scope.cancel();
        }
    }

    /// Sends datagrams of `segment` bytes each, the last one maybe shorter.
    pub(crate) fn send(&self, way: Way, datagrams: &[u8], segment: usize) {
        match (way, &self.socket) {
            (Way::Udp, Some(socket)) => {
                if let Err(error) = socket.send(datagrams, segment) {
                    let count = datagrams.len().div_ceil(segment.max(1)) as u64;
                    dropped_many(DropReason::TunnelSocketFull, count);
                    if error.kind() != std::io::ErrorKind::WouldBlock {
                        tracing::debug!(%error, "UDP send failed");
                    }
                }
            }
            (Way::Udp, None) | (Way::Link, _) => {
                for datagram in datagrams.chunks(segment.max(1)) {
                    self.link.mux.send_datagram(Bytes::copy_from_slice(datagram));
                }
            }
        }
    }

    /// As `send`, but waits for room in the kernel: who reads a TUN device had better leave packets there, where their senders
    /// notice, than lose a whole call's worth.
    pub(crate) async fn send_all(&self, way: Way, datagrams: &[u8], segment: usize) {
        if let (Way::Udp, Some(socket)) = (way, &self.socket) {
            for _ in 0..TRIES {
                match socket.send(datagrams, segment) {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        let _ = tokio::time::timeout(ROOM, socket.writable()).await;
                    }
                    Ok(()) => return,
                    Err(_) => break,
                }
            }
        }
        self.send(way, datagrams, segment);
    }

    /// Datagrams that one call of `send` may hold.
    pub(crate) fn most_segments(&self, way: Way) -> usize {
        match (way, &self.socket) {
            (Way::Udp, Some(socket)) => socket.most_segments(),
            _ => 64,
        }
    }

    async fn receive_udp(self: Arc<Self>) {
        let Some(socket) = &self.socket else { return };
        // Two megabytes that the system gives us when they are written to: an idle gate does not have them.
        let mut received = Received::default();
        let mut packets = Packets::default();
        let mut turns = 0u32;
        loop {
            if socket.receive(&mut received).await.is_err() {
                return;
            }
            self.take(socket.datagrams(&received), Way::Udp, &mut packets);
            turns += 1;
            if turns.is_multiple_of(TURN) {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn receive_link(self: Arc<Self>) {
        const AT_ONCE: usize = 64;
        let mut packets = Packets::default();
        while let Some(first) = self.link.mux.next_datagram().await {
            let mut datagrams = vec![first];
            while datagrams.len() < AT_ONCE {
                let next = tokio::time::timeout(Duration::ZERO, self.link.mux.next_datagram()).await;
                let Ok(Some(next)) = next else { break };
                datagrams.push(next);
            }
            self.take(datagrams.iter().map(|d| &d[..]), Way::Link, &mut packets);
        }
        self.close_if_idle();
    }

    /// Takes datagrams in order; IP packets go inside in batches.
    fn take<'a>(&self, datagrams: impl Iterator<Item = &'a [u8]>, by: Way, packets: &mut Packets) {
        let now = Instant::now();
        let mut datagrams = datagrams.peekable();
        while let Some(first) = datagrams.next() {
            if first.first() != Some(&kind::DATA) {
                match Message::parse(first) {
                    Some((id, message)) => match self.end(id) {
                        Some(end) => end.message(message, by),
                        None => dropped(DropReason::TunnelUnknown),
                    },
                    None => dropped(DropReason::TunnelMalformed),
                }
                continue;
            }
            let Some(id) = HalfId::of(first) else {
                dropped(DropReason::TunnelMalformed);
                continue;
            };
            let Some(end) = self.end(id) else {
                dropped(DropReason::TunnelUnknown);
                continue;
            };
            // One look-up and one lock for as long as it is the same tunnel's turn.
            let mut inner = end.inner.lock();
            let (mut next, mut begin) = (Some(first), true);
            while let Some(datagram) = next {
                let before = packets.len();
                end.data(&mut inner, begin, &datagram[HEADER..], by, now, &mut Inward { packets });
                begin = false;
                self.judge(&end, before, packets, now);
                if packets.len() >= Packets::MOST {
                    self.inside.deliver(packets);
                }
                next = datagrams.next_if(|d| d.first() == Some(&kind::DATA) && HalfId::of(d) == Some(id));
            }
        }
        if !packets.is_empty() {
            self.inside.deliver(packets);
        }
    }

    /// Asks inside of what came with the last datagram: one packet, as a rule.
    fn judge(&self, end: &Arc<End>, before: usize, packets: &mut Packets, now: Instant) {
        let came = packets.len() - before;
        let mut stay = Vec::new();
        for at in 0..came {
            let Some(packet) = packets.last() else { return };
            let length = packet.len();
            if !self.inside.admit(end, packet, now) {
                packets.pop();
                continue;
            }
            end.counts.packets_in.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            end.counts.bytes_in.fetch_add(length as u64, std::sync::atomic::Ordering::Relaxed);
            // Only the one on top can be taken back: the others step aside while it is their turn.
            if at + 1 < came {
                stay.push(packet.to_vec());
                packets.pop();
            }
        }
        for packet in stay.iter().rev() {
            packets.push(packet);
        }
    }
}

/// Plaintexts become packets for the kernel where they stand.
struct Inward<'a> {
    packets: &'a mut Packets,
}

impl Sink for Inward<'_> {
    fn room(&mut self) -> &mut [u8] {
        self.packets.room()
    }
    fn plaintext(&mut self, length: usize) {
        self.packets.keep(length);
    }
    fn records(&mut self, _: usize) {}
}

/// Where the relay takes the tunnel's UDP: the address and port of the link. Behind a proxy there is none.
fn udp_address(link: &Link) -> Option<SocketAddr> {
    let proxied = link.at.as_ref().is_some_and(|at| at.is_proxied());
    if proxied { None } else { link.address.parse().ok() }
}
