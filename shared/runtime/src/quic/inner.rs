//! What the handles, the streams and the driver of one QUIC link share.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hedgerow_shared::fault::{Code, DropReason, Fault};
use hedgerow_shared::limits;
use hedgerow_shared::wire::frame::{self, StreamId, kind};
use hedgerow_shared::wire::message::{Control, GoAway, Limits};
use parking_lot::Mutex;
use quinn::{Connection, Endpoint};
use tokio::sync::{Notify, watch};

use super::incoming::Incoming;
use crate::scope::Scope;
use crate::telemetry::dropped;

/// Texts of resets that wait for their stream to be reset; the oldest makes room.
const TEXTS: usize = 256;
/// What may wait for the application, as on the framed transport.
pub(super) const INBOX: usize = 1024;

pub(super) struct Inner {
    pub(super) connection: Connection,
    pub(super) ours: Limits,
    pub(super) theirs: Limits,
    pub(super) handshake: Duration,
    pub(super) state: Mutex<State>,
    /// The dialler's own socket; the acceptor's is shared.
    pub(super) endpoint: Mutex<Option<Endpoint>>,
    pub(super) scope: Scope,
    pub(super) accept: Notify,
    pub(super) control: Notify,
    pub(super) datagram: Notify,
    /// There is something for the driver: frames to send, a stream to linger.
    pub(super) driver: Notify,
    /// The application wants the link to close.
    pub(super) closing: Notify,
    /// A control message was taken.
    pub(super) control_taken: Notify,
    pub(super) away: watch::Sender<Option<GoAway>>,
    pub(super) closed: watch::Sender<Option<Fault>>,
    /// A text has come for a stream that is reset.
    pub(super) explained: Notify,
    /// The word of the newest PONG.
    pub(super) pong: watch::Sender<u64>,
    pub(super) open: AtomicUsize,
    pub(super) open_ours: AtomicUsize,
    pub(super) opened: AtomicU64,
}

pub(super) type Lingering = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Default)]
pub(super) struct State {
    pub(super) incoming: VecDeque<Incoming>,
    pub(super) control: VecDeque<Control>,
    pub(super) datagrams: VecDeque<Bytes>,
    /// Frames for the control stream; of the first one, what has not been sent yet.
    pub(super) out: VecDeque<Bytes>,
    pub(super) out_bytes: usize,
    pub(super) lingering: Vec<Lingering>,
    /// Why the peer reset streams, until those learn that they are reset.
    pub(super) texts: VecDeque<(u64, Fault)>,
    pub(super) draining: bool,
    pub(super) closing: Option<Fault>,
}

/// A stream that counts as open.
pub(super) struct Place {
    link: Arc<Inner>,
    ours: bool,
}

impl Place {
    pub(super) fn new(link: Arc<Inner>, ours: bool) -> Self {
        link.open.fetch_add(1, Ordering::Relaxed);
        if ours {
            link.open_ours.fetch_add(1, Ordering::Relaxed);
        }
        Self { link, ours }
    }

    pub(super) fn link(&self) -> &Arc<Inner> {
        &self.link
    }

    /// Counts as open until `arrived` completes.
    pub(super) fn linger(self, arrived: impl Future<Output = ()> + Send + 'static) {
        let link = self.link.clone();
        let mut state = link.state.lock();
        if !link.ended() {
            state.lingering.push(Box::pin(async move {
                arrived.await;
                drop(self);
            }));
        }
        drop(state);
        link.driver.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.link.open.fetch_sub(1, Ordering::Relaxed);
        if self.ours {
            self.link.open_ours.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Inner {
    /// Why the link ended, or is being ended.
    pub(super) fn fault(&self) -> Option<Fault> {
        let ended = self.closed.borrow().clone();
        ended.or_else(|| self.state.lock().closing.clone()).or_else(|| self.told())
    }

    /// What the peer said in GOAWAY, when it was a fault.
    pub(super) fn told(&self) -> Option<Fault> {
        self.away.borrow().as_ref().map(|away| &away.fault).filter(|fault| fault.code != Code::Ok).cloned()
    }

    pub(super) fn ended(&self) -> bool {
        self.closed.borrow().is_some()
    }

    pub(super) fn queue(&self, frame: Bytes) -> Result<(), Fault> {
        let mut state = self.state.lock();
        if state.out_bytes + frame.len() > limits::MAX_CONTROL_QUEUE {
            dropped(DropReason::ControlQueueFull);
            return Err(Fault::new(Code::Limited, "the peer does not read its control messages"));
        }
        state.out_bytes += frame.len();
        state.out.push_back(frame);
        drop(state);
        self.driver.notify_one();
        Ok(())
    }

    /// So many bytes of the first frame have been sent.
    pub(super) fn written(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.out_bytes = state.out_bytes.saturating_sub(bytes);
        if let Some(first) = state.out.front_mut() {
            first.advance(bytes.min(first.len()));
            if first.is_empty() {
                state.out.pop_front();
            }
        }
    }

    /// A stream of the peer's whose OPEN has been read.
    pub(super) fn arrived(&self, mut incoming: Incoming) {
        let mut state = self.state.lock();
        let fault = if state.draining {
            Fault::new(Code::Draining, "this connection takes no new streams")
        } else if state.incoming.len() >= INBOX {
            Fault::new(Code::Limited, "streams are opened faster than they are taken")
        } else {
            incoming.waits = true;
            state.incoming.push_back(incoming);
            drop(state);
            return self.accept.notify_one();
        };
        drop(state);
        incoming.refuse(fault);
    }

    /// Says on the control stream why a stream is reset; whether there was room for it, and something to say.
    pub(super) fn explain(&self, stream: u64, fault: &Fault) -> bool {
        let Some(id) = u32::try_from(stream).ok().filter(|id| *id > 0 && !fault.text.is_empty()) else { return false };
        !self.ended() && self.queue(frame::cbor(kind::RESET, id, fault)).is_ok()
    }

    /// The peer said why it resets a stream.
    pub(super) fn explained(&self, stream: StreamId, fault: Fault) {
        let mut state = self.state.lock();
        if state.texts.len() >= TEXTS {
            state.texts.pop_front();
            dropped(DropReason::StreamEnded);
        }
        // Cut to what is shown: this end's memory is not the peer's to fill.
        state.texts.push_back((u64::from(stream.0), Fault::new(fault.code, fault.text)));
        drop(state);
        self.explained.notify_waiters();
    }

    /// Why a stream was reset, if that has come.
    pub(super) fn explanation(&self, stream: u64) -> Option<Fault> {
        let texts = &mut self.state.lock().texts;
        let at = texts.iter().position(|(id, _)| *id == stream)?;
        texts.remove(at).map(|(_, fault)| fault)
    }

    /// A control message; whoever calls looks first whether there is room.
    pub(super) fn controlled(&self, message: Control) {
        self.state.lock().control.push_back(message);
        self.control.notify_one();
    }

    pub(super) fn datagram(&self, bytes: Bytes) {
        let mut state = self.state.lock();
        if state.datagrams.len() >= INBOX {
            state.datagrams.pop_front();
            dropped(DropReason::DatagramQueueFull);
        }
        state.datagrams.push_back(bytes);
        drop(state);
        self.datagram.notify_one();
    }

    pub(super) fn going_away(&self, message: GoAway) {
        self.state.lock().draining = true;
        self.away.send_replace(Some(message));
    }

    /// Everything ends with this fault; the first one counts.
    pub(super) fn end(&self, fault: &Fault) {
        self.closed.send_if_modified(|c| c.is_none() && c.replace(fault.clone()).is_none());
        let mut state = self.state.lock();
        state.draining = true;
        let incoming = std::mem::take(&mut state.incoming);
        let lingering = std::mem::take(&mut state.lingering);
        state.out.clear();
        drop(state);
        // Both hold streams, which hold this link.
        drop((incoming, lingering));
        self.endpoint.lock().take();
        self.accept.notify_waiters();
        self.control.notify_waiters();
        self.datagram.notify_waiters();
    }

    /// Streams open that the peer opened.
    pub(super) fn open_theirs(&self) -> usize {
        self.open.load(Ordering::Relaxed).saturating_sub(self.open_ours.load(Ordering::Relaxed))
    }

    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint.lock().clone()
    }
}

impl Inner {
    /// A datagram of `kind`, padded to `length` bytes behind its kind byte.
    pub(super) fn send_datagram(&self, kind: u8, bytes: &[u8], length: usize) {
        let mut out = BytesMut::with_capacity(1 + length);
        out.put_u8(kind);
        out.put_slice(bytes);
        out.resize(1 + length.max(bytes.len()), 0);
        if self.connection.datagram_send_buffer_space() < out.len() {
            // quinn makes room by dropping the oldest.
            dropped(DropReason::DatagramQueueFull);
        }
        // An ended link drops everything.
        if let Err(quinn::SendDatagramError::TooLarge) = self.connection.send_datagram(out.freeze()) {
            dropped(DropReason::DatagramTooLarge);
        }
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QuicLink")
    }
}
