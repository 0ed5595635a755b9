//! Packets on their way out: sealed one behind the other into one buffer, sent with one call.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use hedgerow_runtime::telemetry::dropped;
use hedgerow_secure_connect::leg::Way;
use hedgerow_secure_connect::session::dtls::{ROOM, Sink};
use hedgerow_shared::fault::DropReason;
use hedgerow_shared::wire::tunnel::{HEADER, HalfId, kind};

use crate::end::End;
use crate::gate::Gate;

/// What one call may send, bytes: the largest UDP payload.
const MOST: usize = 65_000;

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    /// It is on its way, at the latest with `flush`.
    Yes,
    /// The path carries so many bytes at most: whoever sent it should hear of it.
    TooLarge(u16),
    /// The tunnel is not up; counted.
    Down,
}

/// See the module; one for each task that reads a TUN device.
pub struct Sealer {
    batch: Batch,
    to: Option<(Arc<Gate>, Way)>,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealer({} datagrams)", self.batch.count)
    }
}

struct Batch {
    bytes: Box<[u8]>,
    tail: usize,
    segment: usize,
    count: usize,
    id: HalfId,
    /// A datagram was not of the batch's size: where it begins, and its length.
    odd: Option<(usize, usize)>,
}

impl Default for Sealer {
    fn default() -> Self {
        let batch = Batch {
            bytes: vec![0; MOST + HEADER + ROOM].into(),
            tail: 0,
            segment: 0,
            count: 0,
            id: HalfId::from_random([0; 8]),
            odd: None,
        };
        Self { batch, to: None }
    }
}

impl Sink for Batch {
    fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.tail + HEADER..]
    }

    fn plaintext(&mut self, _: usize) {}

    fn records(&mut self, length: usize) {
        let (at, length) = (self.tail, HEADER + length);
        self.bytes[at] = kind::DATA;
        self.bytes[at + 1..at + HEADER].copy_from_slice(&self.id.to_bytes());
        self.tail += length;
        if self.count == 0 {
            self.segment = length;
        } else if length != self.segment && self.odd.is_none() {
            self.odd = Some((at, length));
        }
        self.count += 1;
    }
}

impl Sealer {
    /// Seals a packet for the other end of `end`. Not cancel safe: what waits may be sent twice, which the other end drops.
    pub async fn seal(&mut self, end: &End, packet: &[u8], now: Instant) -> Sealed {
        let Some((gate, way)) = end.way() else {
            dropped(DropReason::TunnelDown);
            return Sealed::Down;
        };
        let same = self.to.as_ref().is_some_and(|(to, by)| Arc::ptr_eq(to, &gate) && *by == way);
        if !same {
            self.flush().await;
            self.to = Some((gate, way));
        }
        let sealed = self.seal_now(end, packet, now);
        if sealed == Sealed::Yes {
            end.has_sent();
            self.settle(way).await;
        }
        sealed
    }

    fn seal_now(&mut self, end: &End, packet: &[u8], now: Instant) -> Sealed {
        let mut inner = end.inner.lock();
        let inner = &mut *inner;
        let (Some(session), Some(leg)) = (&mut inner.session, &mut inner.leg) else {
            dropped(DropReason::TunnelDown);
            return Sealed::Down;
        };
        let mtu = session.mtu();
        if packet.len() > usize::from(mtu) {
            return Sealed::TooLarge(mtu);
        }
        self.batch.id = leg.id();
        if let Err(fault) = session.seal(packet, now, &mut self.batch) {
            tracing::debug!(reason = %fault, "a packet could not be sealed");
            dropped(DropReason::TunnelDown);
            return Sealed::Down;
        }
        leg.sent(now);
        end.counts.packets_out.fetch_add(1, Ordering::Relaxed);
        end.counts.bytes_out.fetch_add(packet.len() as u64, Ordering::Relaxed);
        Sealed::Yes
    }

    /// A batch is whole when a datagram of another size ends it, or when it is full.
    async fn settle(&mut self, way: Way) {
        let batch = &mut self.batch;
        if let Some((at, length)) = batch.odd.take() {
            let shorter_and_last = length < batch.segment && at + length == batch.tail;
            if shorter_and_last {
                self.flush().await;
            } else {
                // What came before goes; what is of another size begins the next batch.
                self.send_first(at).await;
            }
        }
        let most = self.to.as_ref().map_or(1, |(gate, _)| gate.most_segments(way));
        if self.batch.count >= most || self.batch.tail + self.batch.segment > MOST {
            self.flush().await;
        }
    }

    async fn send_first(&mut self, at: usize) {
        let Some((gate, way)) = &self.to else { return };
        let batch = &mut self.batch;
        gate.send_all(*way, &batch.bytes[..at], batch.segment).await;
        let rest = batch.tail - at;
        batch.bytes.copy_within(at..batch.tail, 0);
        batch.tail = rest;
        batch.segment = rest;
        batch.count = 1;
    }

    /// Sends what waits: before every wait for more packets.
    pub async fn flush(&mut self) {
        let batch = &mut self.batch;
        if let (Some((gate, way)), 1..) = (&self.to, batch.tail) {
            gate.send_all(*way, &batch.bytes[..batch.tail], batch.segment).await;
        }
        batch.tail = 0;
        batch.count = 0;
        batch.odd = None;
    }
}
