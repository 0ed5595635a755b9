//! A running multiplexer: the pure machine of `shared::session` behind a lock, one task that moves its bytes over a
//! `Carrier`, and handles for the application.
//!
//! Who owns what: the driver task owns the carrier and with it the socket. The machine is shared under a lock that is
//! never held across an await; streams call it directly and wake the driver. There is no queue between a stream and
//! the machine, so back-pressure is the machine's credit and nothing else.

mod carrier;
mod driver;
mod resume;
mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::session::{self, Event, Lane, MuxConfig, Side};
use hedgerow_shared::wire::frame::StreamId;
use hedgerow_shared::wire::message::{Control, GoAway};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

pub use carrier::{Carrier, Plain};
pub use resume::Turn;
pub use stream::{ReadHalf, WriteHalf};

use crate::scope::Scope;
pub use crate::stream::Stream;

/// What may wait for the application: further streams are refused, the oldest datagrams dropped, and a peer whose
/// control messages nobody takes is not read from.
const INBOX: usize = 1024;

/// Counters and state of a link or session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Round-trip time of the last answered ping.
    pub rtt: Option<Duration>,
    /// Bytes of frames received.
    pub bytes_in: u64,
    /// Bytes of frames sent.
    pub bytes_out: u64,
    /// Streams open now.
    pub streams: usize,
    /// Streams opened so far, both ways.
    pub opened: u64,
    /// Bytes held for streams: unread, unsent, unacknowledged.
    pub held: u64,
    /// Of these, not yet sent.
    pub unsent: u64,
    /// Of these, sent and kept until acknowledged.
    pub retained: u64,
    /// Connections that carry it now; 0 while a session is suspended.
    pub lanes: usize,
    /// How often a session went on over a new lane.
    pub resumed: u64,
}

/// A handle; clones are the same multiplexer. It runs until `close`, the peer's end, or the scope's.
#[derive(Clone)]
pub struct Mux {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    state: Mutex<State>,
    accept: Notify,
    control: Notify,
    datagram: Notify,
    away: watch::Sender<Option<GoAway>>,
    closed: watch::Sender<Option<Fault>>,
    /// Why a session waits for a new lane.
    suspended: watch::Sender<Option<Fault>>,
    start: Instant,
    scope: Scope,
}

pub(crate) struct State {
    mux: session::Mux,
    wakers: BTreeMap<StreamId, Wakers>,
    incoming: VecDeque<(StreamId, Bytes)>,
    control: VecDeque<Control>,
    datagrams: VecDeque<Bytes>,
    drivers: BTreeMap<Lane, Waker>,
    /// Counts the changes of carriers; a driver of an earlier time stops.
    epoch: u64,
    /// For sessions: how long one waits to be resumed.
    resume_limit: Option<Duration>,
    /// The application asked for the end.
    closing: Option<Fault>,
    stats: Stats,
}

#[derive(Default)]
struct Wakers {
    read: Option<Waker>,
    write: Option<Waker>,
    answer: Option<Waker>,
}

impl Inner {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Runs `f` on the machine, passes on what came of it, and wakes the driver when there may be something to send.
    fn with<T>(&self, f: impl FnOnce(&mut session::Mux, Duration) -> T) -> T {
        let mut state = self.state.lock();
        let result = f(&mut state.mux, self.now());
        self.pass_on(&mut state);
        state.wake_drivers();
        result
    }

    fn wake_drivers(&self) {
        self.state.lock().wake_drivers();
    }

    /// Moves the machine's events to those who wait for them.
    fn pass_on(&self, state: &mut State) {
        while let Some(event) = state.mux.poll_event() {
            match event {
                Event::Incoming(id, header) => {
                    if state.incoming.len() >= INBOX {
                        let fault = Fault::new(Code::Limited, "streams are opened faster than they are taken");
                        state.mux.answer(id, fault);
                        continue;
                    }
                    state.stats.opened += 1;
                    state.incoming.push_back((id, header));
                    self.accept.notify_one();
                }
                Event::Answered(id) => wake(state.wakers.get_mut(&id).and_then(|w| w.answer.take())),
                Event::Readable(id) => wake(state.wakers.get_mut(&id).and_then(|w| w.read.take())),
                Event::Writable(id) => wake(state.wakers.get_mut(&id).and_then(|w| w.write.take())),
                Event::Control(message) => {
                    state.control.push_back(message);
                    self.control.notify_one();
                }
                Event::Datagram(bytes) => {
                    if state.datagrams.len() >= INBOX {
                        state.datagrams.pop_front();
                        crate::telemetry::dropped(hedgerow_shared::fault::DropReason::DatagramQueueFull);
                    }
                    state.datagrams.push_back(bytes);
                    self.datagram.notify_one();
                }
                Event::GoAway(message) => {
                    self.away.send_replace(Some(message));
                }
                Event::Dropped(reason) => crate::telemetry::dropped(reason),
            }
        }
    }

    /// Everything ends with this fault; the first one counts.
    fn end(&self, fault: &Fault) {
        let mut state = self.state.lock();
        state.mux.end(fault);
        self.pass_on(&mut state);
        let incoming = std::mem::take(&mut state.incoming);
        for (id, _) in incoming {
            state.mux.release(id);
        }
        state.epoch += 1;
        state.wake_drivers();
        drop(state);
        self.closed.send_if_modified(|c| c.is_none() && c.replace(fault.clone()).is_none());
        self.accept.notify_waiters();
        self.control.notify_waiters();
        self.datagram.notify_waiters();
    }

    fn ended(&self) -> bool {
        self.closed.borrow().is_some()
    }

    async fn ended_with(&self) -> Fault {
        let mut closed = self.closed.subscribe();
        let fault = closed.wait_for(Option::is_some).await.ok().and_then(|f| f.clone());
        fault.unwrap_or_else(|| Fault::new(Code::Lost, "the connection ended"))
    }

    /// Whether the end has come, or been asked for.
    fn is_over(&self) -> bool {
        self.ended() || self.state.lock().closing.is_some()
    }

    fn close(&self, fault: Fault) {
        let mut state = self.state.lock();
        if state.closing.is_none() {
            state.closing = Some(fault.clone());
        }
        state.wake_drivers();
        drop(state);
        if self.suspended.borrow().is_some() {
            // No driver is there to end it.
            self.end(&fault);
        }
    }
}

impl State {
    /// Every lane's driver looks for something to send.
    fn wake_drivers(&mut self) {
        while let Some((_, driver)) = self.drivers.pop_first() {
            driver.wake();
        }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Mux {
    /// Starts the driver over a carrier whose hand-shake is done. `leftover` is what was read beyond it.
    #[must_use]
    pub fn start<C: Carrier>(carrier: C, side: Side, config: MuxConfig, leftover: Bytes, scope: &Scope) -> Self {
        Self::begin(carrier, side, config, leftover, None, scope)
    }

    /// As `start`, for a session: a lost carrier suspends it, for `limit` at most.
    #[must_use]
    pub fn start_resumable<C: Carrier>(
        carrier: C,
        side: Side,
        config: MuxConfig,
        leftover: Bytes,
        limit: Duration,
        scope: &Scope,
    ) -> Self {
        Self::begin(carrier, side, config, leftover, Some(limit), scope)
    }

    fn begin<C: Carrier>(
        carrier: C,
        side: Side,
        config: MuxConfig,
        leftover: Bytes,
        resume_limit: Option<Duration>,
        scope: &Scope,
    ) -> Self {
        let start = Instant::now();
        let inner = Arc::new(Inner {
            state: Mutex::new(State {
                mux: session::Mux::new(side, config, Duration::ZERO),
                wakers: BTreeMap::new(),
                incoming: VecDeque::new(),
                control: VecDeque::new(),
                datagrams: VecDeque::new(),
                drivers: BTreeMap::new(),
                epoch: 0,
                resume_limit,
                closing: None,
                stats: Stats::default(),
            }),
            accept: Notify::new(),
            control: Notify::new(),
            datagram: Notify::new(),
            away: watch::Sender::new(None),
            closed: watch::Sender::new(None),
            suspended: watch::Sender::new(None),
            start,
            scope: scope.clone(),
        });
        let post = driver::Post { lane: 0, epoch: 0 };
        let task = driver::run(inner.clone(), carrier, post, leftover, scope.clone());
        scope.spawn_until_done(task);
        Self { inner }
    }

    /// Opens a stream and waits for the peer's answer. Cancel safe: dropping the future resets the stream.
    ///
    /// # Errors
    /// The peer's refusal, or why the connection takes no streams.
    pub async fn open<H: minicbor::Encode<()>>(&self, header: &H) -> Result<Stream, Fault> {
        let header =
            minicbor::to_vec(header).map_err(|_| Fault::new(Code::Internal, "the header cannot be encoded"))?;
        let id = self.inner.with(|mux, now| mux.open(header.into(), now))?;
        let stream = Stream::from(stream::halves(self.inner.clone(), id));
        let answer = poll_fn(|cx| {
            let mut state = self.inner.state.lock();
            if let Some(answer) = state.mux.answer_of(id) {
                return Poll::Ready(answer);
            }
            state.wakers.entry(id).or_default().answer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        if answer.code == Code::Ok {
            self.inner.state.lock().stats.opened += 1;
            return Ok(stream);
        }
        Err(answer)
    }

    /// The next stream the peer opens; `None` once the connection has ended. Cancel safe.
    pub async fn accept(&self) -> Option<Incoming> {
        loop {
            let notified = self.inner.accept.notified();
            let next = self.inner.state.lock().incoming.pop_front();
            if let Some((id, header)) = next {
                self.inner.accept.notify_one();
                return Some(Incoming { inner: Some(self.inner.clone()), id, header });
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
    /// `Limited` when the peer has let too many pile up, or the fault the connection ended with.
    pub fn send_control(&self, message: &Control) -> Result<(), Fault> {
        if let Some(fault) = self.inner.closed.borrow().clone() {
            return Err(fault);
        }
        self.inner.with(|mux, _| mux.send_control(message))
    }

    /// The next control message; `None` once the connection has ended. Cancel safe.
    pub async fn next_control(&self) -> Option<Control> {
        loop {
            let notified = self.inner.control.notified();
            {
                let mut state = self.inner.state.lock();
                if let Some(message) = state.control.pop_front() {
                    self.inner.control.notify_one();
                    state.wake_drivers();
                    return Some(message);
                }
            }
            if self.inner.ended() {
                return None;
            }
            notified.await;
        }
    }

    /// Queues a datagram; it may be dropped here, on the way, or at the peer.
    pub fn send_datagram(&self, bytes: Bytes) {
        self.inner.with(|mux, _| mux.send_datagram(bytes));
    }

    /// The next datagram; `None` once the connection has ended. Cancel safe.
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

    /// Tells the peer that we will close; no new streams either way.
    pub fn go_away(&self, message: &GoAway) {
        self.inner.with(|mux, _| mux.go_away(message));
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

    /// Ends everything: what is queued is sent with a GOAWAY that carries the fault, then the connection closes.
    pub fn close(&self, fault: Fault) {
        self.inner.close(fault);
    }

    /// Completes when the connection has ended, with the reason. Cancel safe.
    pub async fn closed(&self) -> Fault {
        self.inner.ended_with().await
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.ended()
    }

    /// Counters and state now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = self.inner.state.lock();
        Stats {
            rtt: state.mux.rtt(),
            streams: state.mux.open_streams(),
            held: state.mux.held(),
            unsent: state.mux.unsent(),
            retained: state.mux.retained(),
            lanes: if self.is_suspended() { 0 } else { state.mux.lanes() },
            ..state.stats
        }
    }

    /// Streams open now; cheaper than `stats`.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.inner.state.lock().mux.open_streams()
    }
}

impl std::fmt::Debug for Mux {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mux").field("stats", &self.stats()).finish()
    }
}

/// A stream the peer opened, waiting for an answer. Dropping it refuses it.
pub struct Incoming {
    inner: Option<Arc<Inner>>,
    id: StreamId,
    header: Bytes,
}

impl Incoming {
    /// The CBOR header of OPEN.
    #[must_use]
    pub fn header(&self) -> &Bytes {
        &self.header
    }

    /// Decodes the header.
    ///
    /// # Errors
    /// A `Protocol` fault to refuse the stream with.
    pub fn read_header<T: for<'b> minicbor::Decode<'b, ()>>(&self) -> Result<T, Fault> {
        minicbor::decode(&self.header).map_err(|_| Fault::new(Code::Protocol, "the stream's header is malformed"))
    }

    /// Opens it.
    #[must_use]
    pub fn accept(mut self) -> Stream {
        let inner = self.inner.take().expect("taken only here and in refuse, which consume self");
        inner.with(|mux, _| mux.answer(self.id, Fault::new(Code::Ok, "")));
        stream::halves(inner, self.id).into()
    }

    /// Refuses it.
    pub fn refuse(mut self, fault: Fault) {
        if let Some(inner) = self.inner.take() {
            inner.with(|mux, _| mux.answer(self.id, fault));
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            inner.with(|mux, _| mux.answer(self.id, Fault::new(Code::Internal, "the request was dropped")));
        }
    }
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Incoming({:?})", self.id)
    }
}
