//! One UDP port: its sockets, the receive loops that own them, and the face it shows to quinn.

use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use hedgerow_runtime::clock;
use hedgerow_runtime::telemetry::dropped_many;
use hedgerow_runtime::udp_buffers;
use hedgerow_shared::fault::DropReason;
use quinn::{AsyncUdpSocket, UdpPoller};
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::outbox::{Drops, MOST_BYTES, MOST_DATAGRAMS};
use super::queue::Queue;
use super::{Arrived, Forwarder, Outbox, Target, first_run, send, shards};

/// The largest UDP datagram; with receive offload, the largest batch that the kernel merges.
const BUFFER: usize = 64 * 1024;
/// Datagrams that one call sends at most. quinn keeps a buffer for as many with every link, idle or not: of ten, which it
/// would take, 14.5 KB.
const SEGMENTS: usize = 4;
/// What every path carries: the least that IPv6 allows, less its header and UDP's.
const EVERY_PATH: usize = 1280 - 48;
/// Datagrams read before other tasks of this worker get their turn.
const TURN: usize = 16;

/// A bound port. Clones of the `Arc` are the same port.
#[derive(Debug)]
pub struct Port {
    /// The first is quinn's too.
    sockets: Vec<Socket>,
    queue: Queue,
    counts: Counts,
}

#[derive(Debug)]
struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    /// Datagrams received.
    received: AtomicU64,
    /// Whether tunnel datagrams may leave several in one call.
    sends_many: AtomicBool,
}

impl Socket {
    fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        udp_buffers::raise(&socket);
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new((&socket).into())?;
        let sends_many = AtomicBool::new(state.max_gso_segments() > 1);
        Ok(Self { io: UdpSocket::from_std(socket)?, state, received: AtomicU64::new(0), sends_many })
    }
}

/// Datagrams so far, by what became of them.
#[derive(Debug, Default)]
pub struct Counts {
    /// Received from the kernel.
    pub received: AtomicU64,
    /// Handed to quinn.
    pub quic: AtomicU64,
    /// Handed to the forwarder.
    pub tunnel: AtomicU64,
    /// Dropped, for want of a forwarder or of room, or empty.
    pub dropped: AtomicU64,
}

impl Port {
    /// Takes a bound socket.
    ///
    /// # Errors
    /// The socket refuses what QUIC needs.
    pub fn new(socket: std::net::UdpSocket) -> io::Result<Arc<Self>> {
        Self::sharded(socket, 0)
    }

    /// Takes a bound socket, and binds so many more beside it for tunnel datagrams. Where the system does not allow them,
    /// the port has the one.
    ///
    /// # Errors
    /// As `new`.
    pub fn sharded(socket: std::net::UdpSocket, shards: usize) -> io::Result<Arc<Self>> {
        let beside = match shards {
            0 => Vec::new(),
            _ => shards::beside(&socket, shards).unwrap_or_else(|error| {
                static SAID: Once = Once::new();
                SAID.call_once(|| {
                    tracing::warn!(%error, "tunnel datagrams use one processor core a port: limits.tunnel_shards cannot be had here");
                });
                Vec::new()
            }),
        };
        let sockets = std::iter::once(socket).chain(beside).map(Socket::new).collect::<io::Result<_>>()?;
        Ok(Arc::new(Self { sockets, queue: Queue::default(), counts: Counts::default() }))
    }

    /// What was received so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Datagrams received so far by each socket; the first is for all kinds, the others are for tunnels.
    #[must_use]
    pub fn received(&self) -> Vec<u64> {
        self.sockets.iter().map(|s| s.received.load(Ordering::Relaxed)).collect()
    }

    /// Receives from one of the sockets of `received` for as long as the future lives.
    pub async fn receive(self: Arc<Self>, shard: usize, forwarder: Option<Arc<dyn Forwarder>>) {
        let Some(socket) = self.sockets.get(shard) else { return };
        let mut memory = vec![0; BATCH_SIZE * BUFFER];
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let mut out = Outbox::new(shard);
        let mut turns = 0;
        loop {
            if socket.io.readable().await.is_err() {
                // The runtime is shutting down.
                return;
            }
            let mut slices: Vec<IoSliceMut<'_>> = memory.chunks_mut(BUFFER).map(IoSliceMut::new).collect();
            let received = socket
                .io
                .try_io(Interest::READABLE, || socket.state.recv((&socket.io).into(), &mut slices, &mut metas));
            match received {
                Ok(count) => {
                    let now = clock::monotonic();
                    for (meta, bytes) in metas.iter().zip(memory.chunks_mut(BUFFER)).take(count) {
                        let batch = &mut bytes[..meta.len.min(BUFFER)];
                        let datagrams = batch.len().div_ceil(meta.stride.max(1)).max(1) as u64;
                        add(&socket.received, datagrams);
                        self.sort(batch, *meta, now, forwarder.as_deref(), &mut out);
                    }
                    out.finish();
                }
                // Errors of single datagrams (ICMP) concern their connections, which time out.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => tracing::debug!(%error, "UDP receive failed"),
            }
            turns += 1;
            if turns % TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    fn sort(
        self: &Arc<Self>,
        mut batch: &mut [u8],
        meta: RecvMeta,
        now: Instant,
        forwarder: Option<&dyn Forwarder>,
        out: &mut Outbox,
    ) {
        let counts = &self.counts;
        if batch.is_empty() {
            add(&counts.received, 1);
            return self.discard(DropReason::EmptyDatagram, 1);
        }
        let arrived = Arrived { from: meta.addr, to: meta.dst_ip, port: self, now };
        while let Some((is_tunnel, end)) = first_run(batch, meta.stride) {
            let (run, rest) = batch.split_at_mut(end);
            batch = rest;
            let datagrams = run.len().div_ceil(meta.stride.max(1)) as u64;
            add(&counts.received, datagrams);
            match (is_tunnel, forwarder) {
                (false, _) if self.queue.push(run, meta) => add(&counts.quic, datagrams),
                (false, _) => self.discard(DropReason::QuicQueueFull, datagrams),
                (true, Some(forwarder)) => {
                    add(&counts.tunnel, datagrams);
                    forwarder.take(&arrived, meta.stride, run, out);
                }
                (true, None) => self.discard(DropReason::NoForwarder, datagrams),
            }
        }
    }

    fn discard(&self, reason: DropReason, datagrams: u64) {
        add(&self.counts.dropped, datagrams);
        dropped_many(reason, datagrams);
    }

    /// Sends tunnel datagrams, each `stride` bytes long, the last one maybe shorter, in as few calls as may be. What the
    /// socket does not take is dropped.
    pub(super) fn send(&self, shard: usize, to: &Target, stride: usize, datagrams: &[u8], drops: &mut Drops) {
        let stride = stride.max(1);
        let socket = &self.sockets[shard % self.sockets.len()];
        let at_once = stride * (MOST_BYTES / stride).clamp(1, MOST_DATAGRAMS);
        for piece in datagrams.chunks(at_once) {
            let count = piece.len().div_ceil(stride) as u64;
            if count > 1 && socket.sends_many.load(Ordering::Relaxed) {
                match send::send(socket.io.as_fd(), to.address, to.local, stride, piece) {
                    Ok(()) => continue,
                    Err(error) => match error.raw_os_error() {
                        // Too large for the path, perhaps: those that are not go through one by one. Everything carries
                        // what IPv6 asks of every path, so when that does not leave, it is the way of sending.
                        Some(libc::EINVAL | libc::EMSGSIZE) if stride > EVERY_PATH => {}
                        Some(libc::EINVAL | libc::EIO | libc::EOPNOTSUPP) => {
                            tracing::info!(%error, "this system sends UDP datagrams one by one only");
                            socket.sends_many.store(false, Ordering::Relaxed);
                        }
                        Some(libc::EMSGSIZE) => {}
                        _ => {
                            refused(&error, count, drops);
                            continue;
                        }
                    },
                }
            }
            for datagram in piece.chunks(stride) {
                if let Err(error) = send::send(socket.io.as_fd(), to.address, to.local, stride, datagram) {
                    refused(&error, 1, drops);
                }
            }
        }
    }
}

/// Notes what a socket did not take.
fn refused(error: &io::Error, datagrams: u64, drops: &mut Drops) {
    if error.raw_os_error() == Some(libc::EMSGSIZE) {
        return drops.add(DropReason::DatagramTooLarge, datagrams);
    }
    if error.kind() != io::ErrorKind::WouldBlock {
        tracing::debug!(%error, "tunnel datagrams could not be sent");
    }
    drops.add(DropReason::TunnelSocketFull, datagrams);
}

fn add(count: &AtomicU64, n: u64) {
    count.fetch_add(n, Ordering::Relaxed);
}

impl AsyncUdpSocket for Port {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { port: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Socket { io, state, .. } = &self.sockets[0];
        io.try_io(Interest::WRITABLE, || state.send(io.into(), transmit))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.queue.poll_take(cx, buffers, metas).map(Ok)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.sockets[0].io.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.sockets[0].state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.sockets[0].state.max_gso_segments().min(SEGMENTS)
    }

    fn max_receive_segments(&self) -> usize {
        self.sockets[0].state.gro_segments()
    }
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// One task's wait for room to send.
struct Writable {
    port: Arc<Port>,
    waiting: Option<Waiting>,
}

impl std::fmt::Debug for Writable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writable")
    }
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let port = self.port.clone();
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(async move { port.sockets[0].io.writable().await }));
        let result = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(result)
    }
}
