//! One UDP socket: the receive loop that owns it, and the face it shows to quinn.

use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use hedgerow_runtime::telemetry::dropped_many;
use hedgerow_shared::fault::DropReason;
use quinn::{AsyncUdpSocket, UdpPoller};
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::queue::Queue;
use super::{Forwarder, buffers, runs};

/// The largest UDP datagram; with receive offload, the largest batch that the kernel merges.
const BUFFER: usize = 64 * 1024;
/// Datagrams that one call sends at most. quinn keeps a buffer for as many with every link, idle or not: of ten, which it
/// would take, 14.5 KB.
const SEGMENTS: usize = 4;
/// Datagrams read before other tasks of this worker get their turn.
const TURN: usize = 16;

/// A bound port. Clones of the `Arc` are the same port.
#[derive(Debug)]
pub struct Port {
    socket: UdpSocket,
    state: UdpSocketState,
    queue: Queue,
    counts: Counts,
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
        buffers::raise(&socket);
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new((&socket).into())?;
        let socket = UdpSocket::from_std(socket)?;
        Ok(Arc::new(Self { socket, state, queue: Queue::default(), counts: Counts::default() }))
    }

    /// What was received so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Receives for as long as the future lives.
    pub async fn receive(&self, forwarder: Option<&dyn Forwarder>) {
        let mut memory = vec![0; BATCH_SIZE * BUFFER];
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let mut turns = 0;
        loop {
            if self.socket.readable().await.is_err() {
                // The runtime is shutting down.
                return;
            }
            let mut slices: Vec<IoSliceMut<'_>> = memory.chunks_mut(BUFFER).map(IoSliceMut::new).collect();
            let received = self
                .socket
                .try_io(Interest::READABLE, || self.state.recv((&self.socket).into(), &mut slices, &mut metas));
            match received {
                Ok(count) => {
                    for (meta, bytes) in metas.iter().zip(memory.chunks(BUFFER)).take(count) {
                        self.sort(&bytes[..meta.len.min(BUFFER)], *meta, forwarder);
                    }
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

    fn sort(&self, batch: &[u8], meta: RecvMeta, forwarder: Option<&dyn Forwarder>) {
        let counts = &self.counts;
        if batch.is_empty() {
            add(&counts.received, 1);
            return self.drop(DropReason::EmptyDatagram, 1);
        }
        for (is_tunnel, run) in runs(batch, meta.stride) {
            let datagrams = run.len().div_ceil(meta.stride.max(1)) as u64;
            add(&counts.received, datagrams);
            match (is_tunnel, forwarder) {
                (false, _) if self.queue.push(run, meta) => add(&counts.quic, datagrams),
                (false, _) => self.drop(DropReason::QuicQueueFull, datagrams),
                (true, Some(forwarder)) => {
                    add(&counts.tunnel, datagrams);
                    forwarder.take(meta.addr, meta.stride, run);
                }
                (true, None) => self.drop(DropReason::NoForwarder, datagrams),
            }
        }
    }

    fn drop(&self, reason: DropReason, datagrams: u64) {
        add(&self.counts.dropped, datagrams);
        dropped_many(reason, datagrams);
    }
}

fn add(count: &AtomicU64, n: u64) {
    count.fetch_add(n, Ordering::Relaxed);
}

impl AsyncUdpSocket for Port {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { port: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_io(Interest::WRITABLE, || self.state.send((&self.socket).into(), transmit))
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
        self.socket.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments().min(SEGMENTS)
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
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
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(async move { port.socket.writable().await }));
        let result = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(result)
    }
}
