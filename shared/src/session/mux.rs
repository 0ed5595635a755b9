//! The multiplexer: streams with credit, a control lane that data cannot starve, datagrams that may be dropped,
//! pings, and the end. The wire is `wire::frame`; the contract for driving it is in the module above.

mod application;
mod lanes;
mod output;
mod resume;
mod round;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::retained::{RetainBudget, Retained};
use super::stream::{Finish, Receiving, Sending};
use crate::fault::{Code, DropReason, Fault};
use crate::limits;
use crate::wire::frame::{self, FrameError, StreamId};
use crate::wire::message::{Control, GoAway, Limits};
use lanes::Wire;
pub use lanes::{Lane, MAX_LANES};

/// A stream's turn in the round before the next stream sends.
const QUANTUM: u64 = 4 * frame::MAX_DATA as u64;
/// Datagrams sent before data gets its turn again.
const DATAGRAMS_PER_TURN: usize = 32;
/// Refusals of streams beyond the limit that may wait to be sent.
const MAX_REFUSALS: usize = 1024;
/// The least that is granted to a peer that is about to stand still, in bytes.
pub(super) const GAIN: u64 = 64 * 1024;
/// A window used up faster than this is too small, whatever the round-trip time.
const QUICK: Duration = Duration::from_millis(20);

/// Which end we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// We dialled: our streams are even.
    Dialler,
    /// We accepted: our streams are odd.
    Acceptor,
}

/// How a multiplexer behaves.
#[derive(Debug, Clone)]
pub struct MuxConfig {
    /// What we announced in our HELLO.
    pub ours: Limits,
    /// What the peer announced.
    pub theirs: Limits,
    /// What a stream's window may grow to.
    pub max_stream_window: u64,
    /// What a stream sends on the first lane before it moves to another, if there is one.
    pub bulk: u64,
    /// Keep sent bytes until acknowledged, for a replay after a resumption, at most so many over all streams.
    pub retain: Option<u64>,
    /// What all sessions of this process may keep together.
    pub budget: Option<Arc<RetainBudget>>,
    /// Timers; `ping_interval` and `ping_timeout` count.
    pub timers: limits::Timers,
}

impl MuxConfig {
    /// A link's: nothing is retained.
    #[must_use]
    pub fn link(ours: Limits, theirs: Limits, timers: limits::Timers) -> Self {
        Self {
            ours,
            theirs,
            max_stream_window: limits::MAX_STREAM_WINDOW,
            bulk: limits::BULK,
            retain: None,
            budget: None,
            timers,
        }
    }

    /// An end-to-end session's: unacknowledged bytes are kept.
    #[must_use]
    pub fn session(ours: Limits, theirs: Limits, timers: limits::Timers) -> Self {
        Self { retain: Some(2 * limits::CONNECTION_WINDOW), ..Self::link(ours, theirs, timers) }
    }
}

/// What the application should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The peer opened a stream; `answer` it.
    Incoming(StreamId, Bytes),
    /// The peer answered ours.
    Answered(StreamId),
    /// There is something to read: data, the end, or a reset.
    Readable(StreamId),
    /// There is room, or the stream was reset.
    Writable(StreamId),
    /// A control message.
    Control(Control),
    /// A datagram.
    Datagram(Bytes),
    /// The peer will close.
    GoAway(GoAway),
    /// Something was dropped; count it.
    Dropped(DropReason),
}

#[derive(Debug)]
struct Stream {
    sending: Sending,
    receiving: Receiving,
    /// Header of a stream of ours that is not yet announced.
    open: Option<Bytes>,
    /// The same, kept until the answer where OPEN may have to be sent again.
    header: Option<Bytes>,
    /// Our answer to a stream of theirs, not yet sent.
    answer: Option<Fault>,
    /// We opened a stream of theirs.
    accepted: bool,
    /// Their answer to a stream of ours.
    answered: Option<Fault>,
    /// Set by either end; the reason both directions ended.
    reset: Option<Fault>,
    /// Our RESET is not yet sent.
    reset_due: bool,
    window_due: bool,
    in_outbox: bool,
    /// The application let go.
    released: bool,
}

impl Stream {
    fn new(theirs: &Limits, ours: &Limits, now: Duration) -> Self {
        Self {
            sending: Sending::new(theirs.stream_window),
            receiving: Receiving::new(ours.stream_window, now),
            open: None,
            header: None,
            answer: None,
            accepted: false,
            answered: None,
            reset: None,
            reset_due: false,
            window_due: false,
            in_outbox: false,
            released: false,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Mux {
    side: Side,
    config: MuxConfig,
    lanes: Vec<Wire>,
    streams: BTreeMap<StreamId, Stream>,
    next_local: u32,
    highest_remote: u32,
    remote_open: u32,
    local_open: u32,

    control: VecDeque<Bytes>,
    control_bytes: usize,
    /// Our GOAWAY, to be said again on a new lane.
    farewell: Option<Bytes>,
    refusals: VecDeque<StreamId>,
    /// Streams with OPEN, ANSWER, WINDOW or RESET to send.
    outbox: VecDeque<StreamId>,
    datagrams: VecDeque<Bytes>,

    /// Bytes of all streams that are not yet sent.
    unsent: u64,
    /// Streams wait for room that the others have taken.
    crowded: bool,
    sent: u64,
    send_limit: u64,
    retained: Retained,
    received: u64,
    /// `received` when the current lane began: offsets on the wire count from there.
    received_before: u64,
    /// Something was received since the peer was last told.
    unacknowledged: bool,
    consumed: u64,
    receive_limit: u64,
    grant_due: bool,
    /// Sum of what streams' windows were grown by.
    grown: u64,

    events: VecDeque<Event>,
    ping_count: u64,
    rtt: Option<Duration>,
    draining: bool,
    dead: bool,
}

impl Mux {
    /// A multiplexer after HELLO was exchanged.
    #[must_use]
    pub fn new(side: Side, config: MuxConfig, now: Duration) -> Self {
        let retained = Retained::new(config.retain, config.budget.clone());
        let (send_limit, receive_limit) = (config.theirs.connection_window, config.ours.connection_window);
        Self {
            side,
            config,
            lanes: vec![Wire::new(now)],
            streams: BTreeMap::new(),
            next_local: match side {
                Side::Dialler => 2,
                Side::Acceptor => 1,
            },
            highest_remote: 0,
            remote_open: 0,
            local_open: 0,
            control: VecDeque::new(),
            control_bytes: 0,
            farewell: None,
            refusals: VecDeque::new(),
            outbox: VecDeque::new(),
            datagrams: VecDeque::new(),
            unsent: 0,
            crowded: false,
            sent: 0,
            send_limit,
            retained,
            received: 0,
            received_before: 0,
            unacknowledged: false,
            consumed: 0,
            receive_limit,
            grant_due: false,
            grown: 0,
            events: VecDeque::new(),
            ping_count: 0,
            rtt: None,
            draining: false,
            dead: false,
        }
    }

    /// Round-trip time of the last answered ping.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Streams open now, both ways.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// Bytes held for streams: unread, unsent, and unacknowledged.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.streams.values().map(|s| s.sending.held() + s.receiving.waiting()).sum()
    }

    /// Why the stream was reset, if it was.
    #[must_use]
    pub fn reset_of(&self, id: StreamId) -> Option<Fault> {
        let Some(stream) = self.streams.get(&id) else { return Some(Fault::new(Code::Lost, "the connection ended")) };
        stream.reset.clone()
    }

    /// Whether a WINDOW for the whole connection waits to be sent.
    #[must_use]
    pub fn grants(&self) -> bool {
        self.grant_due
    }

    /// Whether everything asked for has been handed out.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.control.is_empty()
            && self.outbox.is_empty()
            && self.lanes.iter().all(|l| l.round.is_empty())
            && self.refusals.is_empty()
    }

    fn consume(&mut self, bytes: u64) {
        self.consumed += bytes;
        self.consider_grant();
    }

    /// Grants for the whole connection when half its window was read; sooner when the peer is about to stand still
    /// because much of what it sent waits in streams that nobody reads.
    fn consider_grant(&mut self) {
        let window = self.config.ours.connection_window;
        let gain = (self.consumed + window).saturating_sub(self.receive_limit);
        let left = self.receive_limit.saturating_sub(self.received);
        self.grant_due |= gain >= window / 2 || (left < window / 8 && gain >= GAIN.min(window / 2));
    }

    fn grant(&mut self, id: StreamId, now: Duration) {
        let quick = self.rtt.map_or(QUICK, |rtt| (2 * rtt).max(QUICK));
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let before = stream.receiving.window_size();
        // Half of the connection's window at most goes into growth, so that a stream that is not read cannot take
        // the credit of the others.
        let may_grow = self.grown + before <= self.config.ours.connection_window / 2;
        stream.receiving.grant(now, quick, self.config.max_stream_window, may_grow);
        self.grown += stream.receiving.window_size() - before;
        stream.window_due = true;
        self.post(id);
    }

    fn post(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !std::mem::replace(&mut stream.in_outbox, true)
        {
            self.outbox.push_back(id);
        }
    }

    fn enqueue(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.sending.queued
            && stream.reset.is_none()
            && stream.sending.ready()
        {
            stream.sending.queued = true;
            let bytes = stream.sending.held_unsent();
            // A stream is on a lane that exists: losing one puts every stream back on the first.
            if let Some(lane) = self.lanes.get_mut(usize::from(stream.sending.lane)) {
                lane.round.enter(id, bytes);
            }
        }
    }

    fn drop_contents(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let waiting = stream.receiving.clear();
        // While RESUME is read, streams have gone back that are not counted again yet.
        self.unsent = self.unsent.saturating_sub(stream.sending.held_unsent());
        let unacknowledged = stream.sending.clear();
        self.retained.give_back(unacknowledged);
        self.consume(waiting);
    }

    /// Forgets a stream that is over at both ends and released here.
    fn collect(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(&id) else { return };
        let reset = stream.reset.is_some() && !stream.reset_due && stream.answer.is_none() && stream.open.is_none();
        let over = reset
            || (ended_cleanly(stream)
                && resume::is_acknowledged(stream.sending.finish, self.config.retain.is_some())
                && stream.sending.held() == 0
                && stream.answer.is_none()
                && !stream.window_due);
        if !over || !stream.released {
            return;
        }
        self.grown =
            self.grown.saturating_sub(stream.receiving.window_size().saturating_sub(self.config.ours.stream_window));
        self.streams.remove(&id);
        if self.is_ours(id) {
            self.local_open -= 1;
        } else {
            self.remote_open -= 1;
        }
    }

    /// Counts anew what is kept and what is to be sent, after streams went back.
    fn recount(&mut self) {
        self.retained.set(self.streams.values().map(|s| s.sending.unacknowledged()).sum());
        self.unsent = self.streams.values().map(|s| s.sending.held_unsent()).sum();
    }

    /// Bytes of all streams that are not yet sent.
    #[must_use]
    pub fn unsent(&self) -> u64 {
        self.unsent
    }

    /// Bytes kept for a replay.
    #[must_use]
    pub fn retained(&self) -> u64 {
        self.retained.own()
    }

    fn dropped(&mut self, reason: DropReason) {
        self.events.push_back(Event::Dropped(reason));
    }
}

fn ended_cleanly(stream: &Stream) -> bool {
    matches!(stream.sending.finish, Finish::Sent | Finish::Acknowledged) && stream.receiving.finished()
}

/// Why a stream is reset that its application let go of.
fn closed() -> Fault {
    Fault::new(Code::Ok, "the other end closed")
}

/// The peer broke the protocol.
struct Broken(Fault);

impl From<FrameError> for Broken {
    fn from(error: FrameError) -> Self {
        Self(Fault::new(Code::Protocol, error.to_string()))
    }
}

fn broken(why: &'static str) -> Broken {
    Broken(Fault::new(Code::Protocol, why))
}
