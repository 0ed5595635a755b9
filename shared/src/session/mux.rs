//! The multiplexer: streams with credit, a control lane that data cannot starve, datagrams that may be dropped,
//! pings, and the end. The wire is `wire::frame`; the contract for driving it is in the module above.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::stream::{Finish, Read, Receiving, Room, Sending};
use crate::fault::{Code, DropReason, Fault};
use crate::limits;
use crate::wire::frame::{self, Decoder, Frame, FrameError, StreamId, kind};
use crate::wire::message::{Control, GoAway, Limits};

/// A stream's turn in the round before the next stream sends.
const QUANTUM: u64 = 4 * frame::MAX_DATA as u64;
/// Datagrams sent before data gets its turn again.
const DATAGRAMS_PER_TURN: usize = 32;
/// Refusals of streams beyond the limit that may wait to be sent.
const MAX_REFUSALS: usize = 1024;
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
    /// Keep sent bytes until acknowledged, for a replay after a resumption, at most so many over all streams.
    pub retain: Option<u64>,
    /// Timers; `ping_interval` and `ping_timeout` count.
    pub timers: limits::Timers,
}

impl MuxConfig {
    /// A link's: nothing is retained.
    #[must_use]
    pub fn link(ours: Limits, theirs: Limits, timers: limits::Timers) -> Self {
        Self { ours, theirs, max_stream_window: limits::MAX_STREAM_WINDOW, retain: None, timers }
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
    /// Our answer to a stream of theirs, not yet sent.
    answer: Option<Fault>,
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
            answer: None,
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
    decoder: Decoder,
    streams: BTreeMap<StreamId, Stream>,
    next_local: u32,
    highest_remote: u32,
    remote_open: u32,
    local_open: u32,

    control: VecDeque<Bytes>,
    control_bytes: usize,
    pong: Option<u64>,
    refusals: VecDeque<StreamId>,
    /// Streams with OPEN, ANSWER, WINDOW or RESET to send.
    outbox: VecDeque<StreamId>,
    datagrams: VecDeque<Bytes>,
    /// Streams with data or FINISH to send, in turn.
    round: VecDeque<StreamId>,

    sent: u64,
    send_limit: u64,
    retained: u64,
    received: u64,
    consumed: u64,
    receive_limit: u64,
    grant_due: bool,
    /// Sum of what streams' windows were grown by.
    grown: u64,

    events: VecDeque<Event>,
    heard: Duration,
    ping_due: Duration,
    ping: Option<(u64, Duration)>,
    ping_count: u64,
    rtt: Option<Duration>,
    draining: bool,
    dead: bool,
}

impl Mux {
    /// A multiplexer after HELLO was exchanged.
    #[must_use]
    pub fn new(side: Side, config: MuxConfig, now: Duration) -> Self {
        let (send_limit, receive_limit) = (config.theirs.connection_window, config.ours.connection_window);
        Self {
            side,
            config,
            decoder: Decoder::default(),
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
            pong: None,
            refusals: VecDeque::new(),
            outbox: VecDeque::new(),
            datagrams: VecDeque::new(),
            round: VecDeque::new(),
            sent: 0,
            send_limit,
            retained: 0,
            received: 0,
            consumed: 0,
            receive_limit,
            grant_due: false,
            grown: 0,
            events: VecDeque::new(),
            heard: now,
            ping_due: now,
            ping: None,
            ping_count: 0,
            rtt: None,
            draining: false,
            dead: false,
        }
    }

    // ---- input from the wire -------------------------------------------------------------------------------------

    /// Takes bytes as they arrived, in pieces of any size.
    ///
    /// # Errors
    /// The peer broke the protocol; the connection is over.
    pub fn handle(&mut self, piece: Bytes, now: Duration) -> Result<(), Fault> {
        self.heard = now;
        let mut decoder = std::mem::take(&mut self.decoder);
        let result = decoder.feed(piece, |f| self.handle_frame(f, now));
        self.decoder = decoder;
        result.map_err(|Broken(fault)| fault)
    }

    fn handle_frame(&mut self, frame: Frame, now: Duration) -> Result<(), Broken> {
        match frame {
            Frame::Open(id, header) => self.handle_open(id, header, now),
            Frame::Answer(id, fault) => self.handle_answer(id, fault),
            Frame::Data(id, offset, bytes) => self.handle_data(id, offset, bytes),
            Frame::Window { stream, delivered, limit } => self.handle_window(stream, delivered, limit),
            Frame::Finish(id, offset) => self.handle_finish(id, offset),
            Frame::Reset(id, fault) => self.handle_reset(id, fault),
            Frame::Control(kind, body) => {
                match Control::read(kind, &body).map_err(Broken)? {
                    Some(message) => self.events.push_back(Event::Control(message)),
                    None => self.dropped(DropReason::UnknownOptionalMessage),
                }
                Ok(())
            }
            Frame::Datagram(bytes) => {
                if bytes.len() > self.config.ours.datagram as usize {
                    self.dropped(DropReason::DatagramTooLarge);
                } else {
                    self.events.push_back(Event::Datagram(bytes));
                }
                Ok(())
            }
            Frame::Ping(word) => {
                // Only the newest is answered: a flood of pings costs one pong a turn.
                self.pong = Some(word);
                Ok(())
            }
            Frame::Pong(word) => {
                if let Some((_, at)) = self.ping.take_if(|(w, _)| *w == word) {
                    self.rtt = Some(now.saturating_sub(at));
                }
                Ok(())
            }
            Frame::GoAway(body) => {
                let message = minicbor::decode(&body).map_err(|_| broken("GOAWAY is malformed"))?;
                self.events.push_back(Event::GoAway(message));
                Ok(())
            }
            Frame::Unknown(_) => {
                self.dropped(DropReason::UnknownOptionalFrame);
                Ok(())
            }
            Frame::Hello(_) | Frame::Proof(_) | Frame::Accept(_) | Frame::Refuse(_) | Frame::Resume(_) => {
                Err(broken("a hand-shake frame after the hand-shake"))
            }
        }
    }

    fn handle_open(&mut self, id: StreamId, header: Bytes, now: Duration) -> Result<(), Broken> {
        let theirs = match self.side {
            Side::Dialler => 1,
            Side::Acceptor => 0,
        };
        let expected = if self.highest_remote == 0 { if theirs == 1 { 1 } else { 2 } } else { self.highest_remote + 2 };
        if id.0 != expected {
            return Err(broken("OPEN with a stream id out of order"));
        }
        self.highest_remote = id.0;
        if self.remote_open >= self.config.ours.streams || self.draining {
            if self.refusals.len() >= MAX_REFUSALS {
                return Err(Broken(Fault::new(Code::Limited, "streams are opened faster than they can be refused")));
            }
            self.refusals.push_back(id);
            return Ok(());
        }
        self.remote_open += 1;
        self.streams.insert(id, Stream::new(&self.config.theirs, &self.config.ours, now));
        self.events.push_back(Event::Incoming(id, header));
        Ok(())
    }

    fn handle_answer(&mut self, id: StreamId, fault: Fault) -> Result<(), Broken> {
        let ours = self.is_ours(id);
        let Some(stream) = self.known(id)? else { return Ok(()) };
        if !ours || stream.answered.is_some() {
            return Err(broken("ANSWER to a stream that is not waiting for one"));
        }
        if fault.code != Code::Ok {
            stream.reset.get_or_insert_with(|| fault.clone());
        }
        stream.answered = Some(fault);
        self.events.push_back(Event::Answered(id));
        self.collect(id);
        Ok(())
    }

    fn handle_data(&mut self, id: StreamId, offset: u64, bytes: Bytes) -> Result<(), Broken> {
        let length = bytes.len() as u64;
        self.received += length;
        if self.received > self.receive_limit {
            return Err(broken("data beyond the connection's window"));
        }
        let Some(stream) = self.known(id)? else {
            // It was on its way when the stream ended: its credit goes back at once.
            self.consume(length);
            return Ok(());
        };
        if stream.reset.is_some() {
            self.consume(length);
            return Ok(());
        }
        let new = stream.receiving.data(offset, bytes).map_err(broken)?;
        let wake = std::mem::take(&mut stream.receiving.wants_data);
        self.consume(length - new);
        if wake {
            self.events.push_back(Event::Readable(id));
        }
        Ok(())
    }

    fn handle_window(&mut self, stream: Option<StreamId>, delivered: u64, limit: u64) -> Result<(), Broken> {
        let Some(id) = stream else {
            if delivered > self.sent {
                return Err(broken("WINDOW acknowledges data that was never sent"));
            }
            // Streams that ran out of the connection's credit stayed in the round.
            self.send_limit = self.send_limit.max(limit);
            return Ok(());
        };
        let Some(stream) = self.known(id)? else { return Ok(()) };
        let freed = stream
            .sending
            .window(delivered, limit)
            .map_err(|()| broken("WINDOW acknowledges data that was never sent"))?;
        if self.config.retain.is_some() {
            self.retained = self.retained.saturating_sub(freed);
        }
        self.enqueue(id);
        self.collect(id);
        Ok(())
    }

    fn handle_finish(&mut self, id: StreamId, offset: u64) -> Result<(), Broken> {
        let retained = self.config.retain.is_some();
        let Some(stream) = self.known(id)? else { return Ok(()) };
        if stream.reset.is_some() {
            return Ok(());
        }
        stream.receiving.finish(offset).map_err(broken)?;
        // The last acknowledgement, so that the sender may forget what it kept for a replay.
        stream.window_due |= retained;
        if std::mem::take(&mut stream.receiving.wants_data) {
            self.events.push_back(Event::Readable(id));
        }
        if retained {
            self.post(id);
        }
        self.collect(id);
        Ok(())
    }

    fn handle_reset(&mut self, id: StreamId, fault: Fault) -> Result<(), Broken> {
        let Some(stream) = self.known(id)? else { return Ok(()) };
        stream.reset.get_or_insert(fault);
        stream.reset_due = false;
        self.drop_contents(id);
        self.events.push_back(Event::Readable(id));
        self.events.push_back(Event::Writable(id));
        self.collect(id);
        Ok(())
    }

    /// The stream; `None` (counted) when it has ended.
    fn known(&mut self, id: StreamId) -> Result<Option<&mut Stream>, Broken> {
        let seen = if self.is_ours(id) { id.0 < self.next_local } else { id.0 <= self.highest_remote };
        if !seen {
            return Err(broken("a frame for a stream that was never opened"));
        }
        if !self.streams.contains_key(&id) {
            self.dropped(DropReason::StreamEnded);
        }
        Ok(self.streams.get_mut(&id))
    }

    fn is_ours(&self, id: StreamId) -> bool {
        id.0.is_multiple_of(2) == (self.side == Side::Dialler)
    }

    // ---- input from the application --------------------------------------------------------------------------------

    /// Opens a stream; `Answered` tells when the peer has answered.
    ///
    /// # Errors
    /// `Limited` when the peer takes no more streams or ids ran out, `Draining` after GOAWAY.
    pub fn open(&mut self, header: Bytes, now: Duration) -> Result<StreamId, Fault> {
        if self.draining || self.dead {
            return Err(Fault::new(Code::Draining, "this connection takes no new streams"));
        }
        if self.local_open >= self.config.theirs.streams {
            return Err(Fault::new(Code::Limited, "the peer takes no more streams at once"));
        }
        if header.len() > frame::MAX_PAYLOAD {
            return Err(Fault::new(Code::Protocol, "the stream header is too long"));
        }
        let id = StreamId(self.next_local);
        self.next_local = self
            .next_local
            .checked_add(2)
            .ok_or_else(|| Fault::new(Code::Limited, "this connection has used up its stream numbers"))?;
        self.local_open += 1;
        let mut stream = Stream::new(&self.config.theirs, &self.config.ours, now);
        stream.open = Some(header);
        stream.in_outbox = true;
        self.streams.insert(id, stream);
        self.outbox.push_back(id);
        Ok(id)
    }

    /// The peer's answer to a stream of ours, once it has come (or the stream was reset).
    #[must_use]
    pub fn answer_of(&self, id: StreamId) -> Option<Fault> {
        let Some(stream) = self.streams.get(&id) else {
            return Some(Fault::new(Code::Lost, "the connection ended"));
        };
        stream.answered.clone().or_else(|| stream.reset.clone())
    }

    /// Answers a stream of theirs: `Code::Ok` opens it, anything else refuses and forgets it.
    pub fn answer(&mut self, id: StreamId, fault: Fault) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if fault.code != Code::Ok {
            stream.reset.get_or_insert_with(|| fault.clone());
            stream.released = true;
            self.drop_contents(id);
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.answer = Some(fault);
        }
        self.post(id);
    }

    /// Whether the stream takes bytes; `Full` arms the `Writable` event.
    pub fn room(&mut self, id: StreamId) -> Room {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Room::Ended(Fault::new(Code::Lost, "the connection ended"));
        };
        if let Some(fault) = &stream.reset {
            return Room::Ended(fault.clone());
        }
        if stream.sending.finish != Finish::Open {
            return Room::Ended(Fault::new(Code::Protocol, "the stream was finished"));
        }
        if stream.sending.has_room() {
            return Room::Some;
        }
        stream.sending.wants_room = true;
        Room::Full
    }

    /// Queues bytes to be sent. Call `room` first; more than it allows is taken, so callers pass one batch at a time.
    pub fn write(&mut self, id: StreamId, bytes: Bytes) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if bytes.is_empty() || stream.reset.is_some() || stream.sending.finish != Finish::Open {
            return;
        }
        stream.sending.push(bytes);
        self.enqueue(id);
    }

    /// Ends our direction after what was written.
    pub fn finish(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.reset.is_none() && stream.sending.finish == Finish::Open {
            stream.sending.finish = Finish::Wanted;
            self.enqueue(id);
        }
    }

    /// Ends both directions at once.
    pub fn reset(&mut self, id: StreamId, fault: Fault) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.reset.is_some() || ended_cleanly(stream) {
            return;
        }
        stream.reset = Some(fault);
        stream.reset_due = true;
        self.drop_contents(id);
        self.post(id);
    }

    /// The application lets go of a stream. What is not ended is reset; what was written and finished is still sent.
    pub fn release(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.released = true;
        let wanted = stream.sending.finish != Finish::Open;
        if !(wanted && stream.receiving.finished()) {
            self.reset(id, Fault::new(Code::Ok, "the other end closed"));
        } else {
            let waiting = stream.receiving.clear();
            self.consume(waiting);
        }
        self.collect(id);
    }

    /// Reads up to `most` chunks into `out`; `Blocked` arms the `Readable` event.
    pub fn read(&mut self, id: StreamId, most: usize, out: &mut VecDeque<Bytes>, now: Duration) -> Read {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Read::Reset(Fault::new(Code::Lost, "the connection ended"));
        };
        if let Some(fault) = &stream.reset {
            return Read::Reset(fault.clone());
        }
        let bytes = stream.receiving.take(most, out);
        if bytes > 0 {
            let due = stream.receiving.grant_due();
            self.consume(bytes);
            if due {
                self.grant(id, now);
            }
            return Read::Data;
        }
        if stream.receiving.finished() {
            return Read::Finished;
        }
        stream.receiving.wants_data = true;
        Read::Blocked
    }

    /// Queues a control message.
    ///
    /// # Errors
    /// `Limited` when the peer has let too many pile up.
    pub fn send_control(&mut self, message: &Control) -> Result<(), Fault> {
        self.queue_control(message.to_frame())
    }

    /// Queues a datagram; drops the oldest when the queue is full.
    pub fn send_datagram(&mut self, bytes: Bytes) {
        if bytes.len() > (self.config.theirs.datagram as usize).min(frame::MAX_PAYLOAD) {
            return self.dropped(DropReason::DatagramTooLarge);
        }
        if self.datagrams.len() >= limits::MAX_DATAGRAM_QUEUE {
            self.datagrams.pop_front();
            self.dropped(DropReason::DatagramQueueFull);
        }
        self.datagrams.push_back(bytes);
    }

    /// Announces the end: no new streams either way; those that live may finish.
    pub fn go_away(&mut self, message: &GoAway) {
        self.draining = true;
        // A full queue means that the peer does not read; it will notice the end when it comes.
        let _ = self.queue_control(frame::cbor(kind::GOAWAY, 0, message));
    }

    /// Everything is over: every stream is reset with this fault, nothing more is sent.
    pub fn end(&mut self, fault: &Fault) {
        self.dead = true;
        self.draining = true;
        let ids: Vec<_> = self.streams.keys().copied().collect();
        for id in ids {
            self.drop_contents(id);
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.reset.get_or_insert_with(|| fault.clone());
                stream.reset_due = false;
                self.events.push_back(Event::Answered(id));
                self.events.push_back(Event::Readable(id));
                self.events.push_back(Event::Writable(id));
            }
            self.collect(id);
        }
        self.outbox.clear();
        self.round.clear();
        self.control.clear();
        self.datagrams.clear();
    }

    fn queue_control(&mut self, frame: Bytes) -> Result<(), Fault> {
        if self.control_bytes + frame.len() > limits::MAX_CONTROL_QUEUE {
            self.dropped(DropReason::ControlQueueFull);
            return Err(Fault::new(Code::Limited, "the peer does not read its control messages"));
        }
        self.control_bytes += frame.len();
        self.control.push_back(frame);
        Ok(())
    }

    // ---- output ----------------------------------------------------------------------------------------------------

    /// What the application should know next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Hands out frames, each as slices to be written one after the other, until about `budget` bytes or nothing is
    /// left. Control first; then datagrams, bounded; then data, stream by stream. Returns the bytes handed out.
    pub fn transmit(&mut self, budget: usize, mut each: impl FnMut(&[&[u8]])) -> usize {
        let mut total = self.transmit_control(budget, &mut each);
        for _ in 0..DATAGRAMS_PER_TURN {
            let Some(bytes) = self.datagrams.pop_front() else { break };
            let mut header = BytesMut::with_capacity(frame::HEADER);
            frame::put_header(&mut header, kind::DATAGRAM, bytes.len(), 0);
            each(&[&header, &bytes]);
            total += header.len() + bytes.len();
        }
        while total < budget {
            let Some(id) = self.round.pop_front() else { break };
            let sent = self.transmit_data(id, &mut each);
            if sent == 0 {
                break;
            }
            total += sent;
        }
        total
    }

    fn transmit_control(&mut self, budget: usize, each: &mut impl FnMut(&[&[u8]])) -> usize {
        let mut total = 0;
        let mut send = |frame: &[u8]| {
            each(&[frame]);
            total += frame.len();
        };
        if let Some(word) = self.pong.take() {
            send(&frame::raw(kind::PONG, 0, &word.to_be_bytes()));
        }
        for frame in self.control.drain(..) {
            send(&frame);
        }
        self.control_bytes = 0;
        for id in self.refusals.drain(..) {
            let fault = Fault::new(Code::Limited, "too many streams at once");
            send(&frame::cbor(kind::ANSWER, id.0, &fault));
        }
        if std::mem::take(&mut self.grant_due) {
            self.receive_limit = self.consumed + self.config.ours.connection_window;
            send(&frame::window(None, self.received, self.receive_limit));
        }
        let mut spent = total;
        while spent < budget {
            let Some(id) = self.outbox.pop_front() else { break };
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.in_outbox = false;
            let mut send = |frame: &[u8]| {
                each(&[frame]);
                spent += frame.len();
            };
            if let Some(header) = stream.open.take() {
                send(&frame::raw(kind::OPEN, id.0, &header));
            }
            if let Some(fault) = stream.answer.take() {
                let refused = fault.code != Code::Ok;
                send(&frame::cbor(kind::ANSWER, id.0, &fault));
                stream.reset_due &= !refused;
            }
            if std::mem::take(&mut stream.reset_due) {
                if let Some(fault) = &stream.reset {
                    send(&frame::cbor(kind::RESET, id.0, fault));
                }
            } else if std::mem::take(&mut stream.window_due) && stream.reset.is_none() {
                send(&frame::window(Some(id), stream.receiving.received(), stream.receiving.limit()));
            }
            self.collect(id);
        }
        spent
    }

    /// One stream's turn; returns the bytes handed out, 0 when the connection's credit is used up.
    fn transmit_data(&mut self, id: StreamId, each: &mut impl FnMut(&[&[u8]])) -> usize {
        let retain = self.config.retain;
        let mut total = 0;
        let mut turn = QUANTUM;
        let Some(stream) = self.streams.get_mut(&id) else { return 1 };
        stream.sending.queued = false;
        loop {
            let credit = (self.send_limit - self.sent).min(retain.map_or(u64::MAX, |cap| cap.saturating_sub(self.retained)));
            let most = credit.min(turn).min(frame::MAX_DATA as u64).min(stream.sending.sendable());
            if most == 0 {
                break;
            }
            let taken = stream.sending.take(most, retain.is_some(), |offset, slices, length| {
                let prefix = frame::data_prefix(id, offset, length);
                let mut parts: [&[u8]; 17] = [&[]; 17];
                parts[0] = &prefix;
                parts[1..=slices.len()].copy_from_slice(slices);
                each(&parts[..=slices.len()]);
                total += prefix.len() + length;
            });
            self.sent += taken;
            if retain.is_some() {
                self.retained += taken;
            }
            turn -= taken;
        }
        if stream.sending.finish == Finish::Wanted && stream.sending.held_unsent() == 0 {
            stream.sending.finish = Finish::Sent;
            let frame = frame::raw(kind::FINISH, id.0, &stream.sending.sent().to_be_bytes());
            each(&[&frame]);
            total += frame.len();
        }
        if stream.sending.wants_room && stream.sending.has_room() {
            stream.sending.wants_room = false;
            self.events.push_back(Event::Writable(id));
        }
        if stream.sending.ready() {
            stream.sending.queued = true;
            if total == 0 {
                self.round.push_front(id);
            } else {
                self.round.push_back(id);
            }
        } else {
            total = total.max(1);
        }
        self.collect(id);
        total
    }

    // ---- time ------------------------------------------------------------------------------------------------------

    /// When `handle_timeout` wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Duration {
        match self.ping {
            Some((_, at)) => at.max(self.heard) + 2 * self.config.timers.ping_timeout,
            None => self.ping_due,
        }
    }

    /// Sends a ping when one is due.
    ///
    /// # Errors
    /// `Lost` when the peer left two pings' time unanswered.
    pub fn handle_timeout(&mut self, now: Duration) -> Result<(), Fault> {
        match self.ping {
            Some(_) if now >= self.poll_timeout() => {
                let silent = now.saturating_sub(self.heard);
                Err(Fault::new(Code::Lost, format!("the peer has been silent for {:.1} s", silent.as_secs_f64())))
            }
            Some(_) => Ok(()),
            None if now >= self.ping_due => {
                self.ping_count += 1;
                self.ping = Some((self.ping_count, now));
                self.ping_due = now + self.config.timers.ping_interval;
                // A full control queue means that nothing is read at the other end; the timeout will say so.
                let _ = self.queue_control(frame::raw(kind::PING, 0, &self.ping_count.to_be_bytes()));
                Ok(())
            }
            None => Ok(()),
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
        self.control.is_empty() && self.outbox.is_empty() && self.round.is_empty() && self.refusals.is_empty()
    }

    // ---- helpers ---------------------------------------------------------------------------------------------------

    fn consume(&mut self, bytes: u64) {
        self.consumed += bytes;
        if self.receive_limit - self.consumed <= self.config.ours.connection_window / 2 {
            self.grant_due = true;
        }
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
            self.round.push_back(id);
        }
    }

    fn drop_contents(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let waiting = stream.receiving.clear();
        let unacknowledged = stream.sending.clear();
        if self.config.retain.is_some() {
            self.retained = self.retained.saturating_sub(unacknowledged);
        }
        self.consume(waiting);
    }

    /// Forgets a stream that is over at both ends and released here.
    fn collect(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(&id) else { return };
        let reset = stream.reset.is_some() && !stream.reset_due && stream.answer.is_none() && stream.open.is_none();
        let over = reset || (ended_cleanly(stream) && stream.sending.held() == 0 && stream.answer.is_none() && !stream.window_due);
        if !over || !stream.released {
            return;
        }
        self.grown = self.grown.saturating_sub(stream.receiving.window_size().saturating_sub(self.config.ours.stream_window));
        self.streams.remove(&id);
        if self.is_ours(id) {
            self.local_open -= 1;
        } else {
            self.remote_open -= 1;
        }
    }

    fn dropped(&mut self, reason: DropReason) {
        self.events.push_back(Event::Dropped(reason));
    }
}

fn ended_cleanly(stream: &Stream) -> bool {
    stream.sending.finish == Finish::Sent && stream.receiving.finished()
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
