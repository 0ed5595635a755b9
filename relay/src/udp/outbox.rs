//! Tunnel datagrams on their way out of one receive loop. Neighbours of one size for one address leave in one call,
//! whoever sent them: many devices that talk to one node come in as many small batches and go out as one large one.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hedgerow_runtime::telemetry::dropped_many;
use hedgerow_shared::fault::DropReason;

use super::Port;

/// What leaves in one call at most, bytes: what a UDP datagram holds, less headers.
pub(super) const MOST_BYTES: usize = 65_000;
/// The same in datagrams: kernels before 6.9 take no more.
pub(super) const MOST_DATAGRAMS: usize = 64;
/// What is as large as this goes out as it stands: the call costs as much as the copy.
const LARGE: usize = 16 * 1024;

/// Where datagrams go, and what they come from.
#[derive(Debug, Clone)]
pub struct Target {
    /// The port that they leave by.
    pub port: Arc<Port>,
    /// The address they go to.
    pub address: SocketAddr,
    /// The address of ours that they come from, where more than one is possible.
    pub local: Option<IpAddr>,
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address && self.local == other.local && Arc::ptr_eq(&self.port, &other.port)
    }
}

/// See the module. Nothing waits longer than the batch that it came with. What is in it when it is dropped is lost.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Which of a port's sockets it uses.
    shard: usize,
    target: Option<Target>,
    buffer: Vec<u8>,
    stride: usize,
    datagrams: usize,
    /// A shorter one has come: only the last of a call may be.
    is_closed: bool,
    drops: Drops,
}

impl Outbox {
    /// For the receive loop of a port's socket `shard`.
    #[must_use]
    pub fn new(shard: usize) -> Self {
        Self { shard, ..Self::default() }
    }

    /// Sends datagrams, each `stride` bytes long, the last one maybe shorter: now, or with those that follow.
    pub fn push(&mut self, target: &Target, stride: usize, datagrams: &[u8]) {
        let stride = stride.clamp(1, datagrams.len().max(1));
        let count = datagrams.len().div_ceil(stride);
        if datagrams.len() >= LARGE {
            self.flush();
            target.port.send(self.shard, target, stride, datagrams, &mut self.drops);
            return;
        }
        let is_like = stride == self.stride || count == 1 && stride < self.stride;
        let fits = self.buffer.len() + datagrams.len() <= MOST_BYTES && self.datagrams + count <= MOST_DATAGRAMS;
        if self.is_closed || !is_like || !fits || self.target.as_ref() != Some(target) {
            self.flush();
            self.target = Some(target.clone());
            self.stride = stride;
        }
        self.buffer.extend_from_slice(datagrams);
        self.datagrams += count;
        self.is_closed = !datagrams.len().is_multiple_of(self.stride);
    }

    /// Notes that datagrams were dropped; they are counted with the next `finish`.
    pub fn dropped(&mut self, reason: DropReason, datagrams: u64) {
        self.drops.add(reason, datagrams);
    }

    /// Sends what waits.
    pub fn flush(&mut self) {
        if let Some(target) = self.target.take() {
            target.port.send(self.shard, &target, self.stride, &self.buffer, &mut self.drops);
        }
        self.buffer.clear();
        (self.datagrams, self.stride, self.is_closed) = (0, 0, false);
    }

    /// Sends what waits, and counts what was dropped.
    pub fn finish(&mut self) {
        self.flush();
        self.drops.count();
    }
}

/// Drops of one batch, by reason: a metric is looked up for each reason, not for each datagram.
#[derive(Debug, Default)]
pub(super) struct Drops(Vec<(DropReason, u64)>);

impl Drops {
    pub(super) fn add(&mut self, reason: DropReason, datagrams: u64) {
        match self.0.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += datagrams,
            None => self.0.push((reason, datagrams)),
        }
    }

    fn count(&mut self) {
        for (reason, datagrams) in self.0.drain(..) {
            dropped_many(reason, datagrams);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    fn receiver() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    fn lengths(socket: &UdpSocket, count: usize) -> Vec<(u8, usize)> {
        let mut buffer = [0; 2048];
        let mut next = || socket.recv(&mut buffer).map(|n| (buffer[0], n)).unwrap();
        (0..count).map(|_| next()).collect()
    }

    #[tokio::test]
    async fn what_goes_to_one_address_leaves_together_and_in_its_order() {
        let ((a, at_a), (b, at_b)) = (receiver(), receiver());
        let port = Port::new(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        let to = |address| Target { port: port.clone(), address, local: None };
        let mut out = Outbox::new(0);
        out.push(&to(at_a), 100, &[1; 100]);
        out.push(&to(at_a), 100, &[2; 300]);
        assert_eq!((out.datagrams, out.buffer.len()), (4, 400), "waits");
        out.push(&to(at_a), 40, &[3; 40]);
        assert!(out.is_closed);
        out.push(&to(at_a), 100, &[4; 100]);
        assert_eq!(out.datagrams, 1, "nothing may follow a shorter one");
        out.push(&to(at_b), 100, &[5; 100]);
        out.push(&to(at_b), 120, &[6; 120]);
        out.push(&to(at_b), 100, &[7; 150]);
        assert_eq!(out.datagrams, 2, "longer ones, and runs of another size, begin anew");
        out.finish();
        assert_eq!(lengths(&a, 6), [(1, 100), (2, 100), (2, 100), (2, 100), (3, 40), (4, 100)]);
        assert_eq!(lengths(&b, 4), [(5, 100), (6, 120), (7, 100), (7, 50)]);
        assert!(out.drops.0.is_empty());
    }

    #[tokio::test]
    async fn more_than_one_call_takes_leaves_in_several() {
        let (a, at_a) = receiver();
        let port = Port::new(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        let to = Target { port, address: at_a, local: Some("127.0.0.1".parse().unwrap()) };
        let mut out = Outbox::new(0);
        // By copies, and as it stands: 16 KiB of small ones are more than a call takes. What waits for this test at once is
        // less than a socket holds.
        for n in 0..100 {
            out.push(&to, 20, &[n; 20]);
        }
        assert_eq!(out.datagrams, 100 - MOST_DATAGRAMS);
        out.finish();
        assert!(lengths(&a, 100).iter().zip(0..).all(|(got, n)| *got == (n, 20)));
        out.push(&to, 100, &[200; LARGE + 30]);
        assert_eq!(out.datagrams, 0);
        let got = lengths(&a, (LARGE + 30).div_ceil(100));
        assert!(
            got.iter().rev().skip(1).all(|got| *got == (200, 100)) && got.last() == Some(&(200, (LARGE + 30) % 100))
        );
    }
}
