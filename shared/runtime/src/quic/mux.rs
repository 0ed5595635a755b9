//! The handle of a QUIC link: what `crate::mux::Mux` is for the framed transport, with the same bounds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hedgerow_shared::fault::{Code, DropReason, Fault};
use hedgerow_shared::limits;
use hedgerow_shared::wire::frame::{self, Frame, kind};
use hedgerow_shared::wire::message::{Control, GoAway, Limits};
use parking_lot::Mutex;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::incoming::{Incoming, THIS_STREAM};
use super::inner::{Inner, Place};
use super::stream::{ReadHalf, WriteHalf, halves};
use super::{connection_fault, driver};
use crate::clock::random;
use crate::mux::Stats;
use crate::scope::Scope;
use crate::telemetry::dropped;

/// A probe is sent again after this long.
const PROBE_AGAIN: Duration = Duration::from_millis(250);

/// A handle; clones are the same link. It runs until `close`, the peer's end, or the scope's.
#[derive(Clone)]
pub struct Mux {
    inner: Arc<Inner>,
}

/// What `Mux::start` needs beside the connection.
pub(crate) struct Opened {
    /// Our direction of the first stream.
    pub(crate) send: SendStream,
    /// The peer's.
    pub(crate) receive: RecvStream,
    /// What was read behind the hand-shake.
    pub(crate) leftover: Bytes,
    /// What we take.
    pub(crate) ours: Limits,
    /// What the peer takes.
    pub(crate) theirs: Limits,
    /// A peer's time for the header of a stream.
    pub(crate) handshake: Duration,
    /// The dialler's socket.
    pub(crate) endpoint: Option<Endpoint>,
}

impl Mux {
    /// Starts the driver over a connection whose hand-shake is done.
    pub(crate) fn start(connection: Connection, opened: Opened, scope: &Scope) -> Self {
        super::open_up(&connection, &opened.ours);
        let inner = Arc::new(Inner {
            connection,
            ours: opened.ours,
            theirs: opened.theirs,
            handshake: opened.handshake,
            state: Mutex::default(),
            endpoint: Mutex::new(opened.endpoint),
            scope: scope.clone(),
            accept: Notify::new(),
            control: Notify::new(),
            datagram: Notify::new(),
            driver: Notify::new(),
            closing: Notify::new(),
            control_taken: Notify::new(),
            away: watch::Sender::new(None),
            closed: watch::Sender::new(None),
            explained: Notify::new(),
            pong: watch::Sender::new(0),
            open: AtomicUsize::new(0),
            open_ours: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
        });
        let task = driver::run(inner.clone(), opened.send, opened.receive, opened.leftover, scope.clone());
        scope.spawn_until_done(task);
        Self { inner }
    }

    /// Opens a stream and waits for the peer's answer. Cancel safe: dropping the future resets the stream.
    ///
    /// # Errors
    /// The peer's refusal, or why the link takes no streams.
    pub async fn open<H: minicbor::Encode<()>>(&self, header: &H) -> Result<(ReadHalf, WriteHalf), Fault> {
        let header =
            minicbor::to_vec(header).map_err(|_| Fault::new(Code::Internal, "the header cannot be encoded"))?;
        let inner = &self.inner;
        if header.len() > limits::MAX_OPEN_HEADER {
            return Err(Fault::new(Code::Protocol, "the stream header is too long"));
        }
        if inner.state.lock().draining {
            return Err(Fault::new(Code::Draining, "this connection takes no new streams"));
        }
        if inner.open_ours.load(Ordering::Relaxed) >= self.inner.theirs.streams as usize {
            return Err(Fault::new(Code::Limited, "the peer takes no more streams at once"));
        }
        let place = Place::new(inner.clone(), true);
        let opened = inner.connection.open_bi().await;
        let (send, receive) = opened.map_err(|e| inner.fault().unwrap_or_else(|| connection_fault(&e)))?;
        let (mut read, mut write) = halves(place, send, receive, frame::raw(kind::OPEN, THIS_STREAM, &header));
        write.send_first().await?;
        let fault = match read.read_frame().await? {
            Frame::Answer(_, answer) if answer.code == Code::Ok => {
                inner.opened.fetch_add(1, Ordering::Relaxed);
                return Ok((read, write));
            }
            Frame::Answer(_, refusal) => refusal,
            _ => Fault::new(Code::Protocol, "a stream was not answered by ANSWER"),
        };
        write.end(fault.clone());
        Err(fault)
    }

    /// The next stream the peer opens; `None` once the link has ended. Cancel safe.
    pub async fn accept(&self) -> Option<Incoming> {
        loop {
            let notified = self.inner.accept.notified();
            let next = self.inner.state.lock().incoming.pop_front();
            if let Some(mut incoming) = next {
                incoming.waits = false;
                self.inner.accept.notify_one();
                return Some(incoming);
            }
            if self.inner.ended() {
                return None;
            }
            notified.await;
        }
    }

    /// Queues a control message.
    ///
    /// # Errors
    /// `Limited` when the peer has let too many pile up, or the fault the link ended with.
    pub fn send_control(&self, message: &Control) -> Result<(), Fault> {
        if let Some(fault) = self.inner.closed.borrow().clone() {
            return Err(fault);
        }
        self.inner.queue(message.to_frame())
    }

    /// The next control message; `None` once the link has ended. Cancel safe.
    pub async fn next_control(&self) -> Option<Control> {
        loop {
            let notified = self.inner.control.notified();
            let next = self.inner.state.lock().control.pop_front();
            if let Some(message) = next {
                self.inner.control.notify_one();
                self.inner.control_taken.notify_one();
                return Some(message);
            }
            if self.inner.ended() {
                return None;
            }
            notified.await;
        }
    }

    /// The largest datagram that fits now.
    #[must_use]
    pub fn max_datagram(&self) -> usize {
        let path = self.inner.connection.max_datagram_size().unwrap_or(0).saturating_sub(1);
        path.min(self.inner.theirs.datagram as usize)
    }

    /// Queues a datagram; it may be dropped here, on the way, or at the peer.
    pub fn send_datagram(&self, bytes: &Bytes) {
        if bytes.len() > self.max_datagram() {
            return dropped(DropReason::DatagramTooLarge);
        }
        self.inner.send_datagram(kind::DATAGRAM, bytes, bytes.len());
    }

    /// The next datagram; `None` once the link has ended. Cancel safe.
    pub async fn next_datagram(&self) -> Option<Bytes> {
        loop {
            let notified = self.inner.datagram.notified();
            if let Some(bytes) = self.inner.state.lock().datagrams.pop_front() {
                self.inner.datagram.notify_one();
                return Some(bytes);
            }
            if self.inner.ended() {
                return None;
            }
            notified.await;
        }
    }

    /// Whether packets of the path's full size pass in both directions: a padded PING that the peer repeats.
    ///
    /// # Errors
    /// `TimedOut`, or the fault the link ended with.
    pub async fn probe(&self, limit: Duration) -> Result<Duration, Fault> {
        let word = u64::from_be_bytes(random());
        let since = Instant::now();
        let mut pong = self.inner.pong.subscribe();
        let asking = async {
            loop {
                self.inner.send_datagram(kind::PING, &word.to_be_bytes(), self.max_datagram());
                tokio::time::sleep(PROBE_AGAIN).await;
            }
        };
        tokio::select! {
            _ = pong.wait_for(|answered| *answered == word) => Ok(since.elapsed()),
            fault = self.closed() => Err(fault),
            () = asking => Err(Fault::new(Code::Internal, "the probe ended by itself")),
            () = tokio::time::sleep(limit) => Err(Fault::new(Code::TimedOut, "full-size packets do not pass over UDP")),
        }
    }

    /// Frames sent so far that want an acknowledgement, and acknowledgements received: silence after sending is the
    /// first sign of a dead path.
    #[must_use]
    pub fn asked_and_answered(&self) -> (u64, u64) {
        let stats = self.inner.connection.stats();
        let f = stats.frame_tx;
        let asked = f.stream + f.datagram + f.ping + f.max_data + f.max_stream_data + f.max_streams_bidi;
        // IMMEDIATE_ACK is what quinn sends when an acknowledgement is overdue.
        let asked = asked + f.immediate_ack;
        (asked + f.reset_stream + f.stop_sending + f.new_connection_id, stats.frame_rx.acks)
    }

    /// Moves the dialler's end to a new socket; the link goes on from there (RFC 9000 section 9).
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn rebind(&self) -> std::io::Result<()> {
        let Some(endpoint) = self.inner.endpoint() else { return Ok(()) };
        let socket = super::endpoint::own_socket(self.inner.connection.remote_address())?;
        endpoint.rebind(socket)
    }

    /// The peer's address now: it may have moved. IPv4 as IPv4, also at a socket that serves both families.
    #[must_use]
    pub fn remote_address(&self) -> std::net::SocketAddr {
        crate::proxy_protocol::canonical(self.inner.connection.remote_address())
    }

    /// Tells the peer that we will close; no new streams either way.
    pub fn go_away(&self, message: &GoAway) {
        self.inner.state.lock().draining = true;
        // A full queue means that the peer does not read; it will notice the end when it comes.
        let _ = self.inner.queue(frame::cbor(kind::GOAWAY, 0, message));
    }

    /// Completes when the peer says it will close; never, if it does not. Cancel safe.
    pub async fn peer_going_away(&self) -> GoAway {
        let mut away = self.inner.away.subscribe();
        match away.wait_for(Option::is_some).await.ok().and_then(|a| a.clone()) {
            Some(message) => message,
            None => std::future::pending().await,
        }
    }

    /// Whether the peer said it will close.
    #[must_use]
    pub fn is_going_away(&self) -> bool {
        self.inner.away.borrow().is_some()
    }

    /// Ends everything: what is queued or finished is sent, then a GOAWAY that carries the fault, then the link closes.
    pub fn close(&self, fault: Fault) {
        self.inner.state.lock().closing.get_or_insert(fault);
        self.inner.closing.notify_one();
    }

    /// Completes when the link has ended, with the reason. Cancel safe.
    pub async fn closed(&self) -> Fault {
        let mut closed = self.inner.closed.subscribe();
        let fault = closed.wait_for(Option::is_some).await.ok().and_then(|f| f.clone());
        fault.unwrap_or_else(|| Fault::new(Code::Lost, "the connection ended"))
    }

    /// Whether the link has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.ended()
    }

    /// Counters and state now; what quinn holds for streams is not known.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let stats = self.inner.connection.stats();
        Stats {
            rtt: Some(stats.path.rtt),
            bytes_in: stats.udp_rx.bytes,
            bytes_out: stats.udp_tx.bytes,
            streams: self.open_streams(),
            opened: self.inner.opened.load(Ordering::Relaxed),
            held: 0,
            lanes: 1,
            ..Stats::default()
        }
    }

    /// Streams open now, those included whose last bytes have not arrived yet.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.inner.open.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Mux {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuicMux").field("stats", &self.stats()).finish()
    }
}
