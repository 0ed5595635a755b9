//! Frames from the peer: each is checked against the state of its stream before anything changes.

use std::time::Duration;

use bytes::Bytes;

use super::{Broken, Event, Lane, MAX_REFUSALS, Mux, Side, Stream, broken, closed};
use crate::fault::{Code, DropReason, Fault};
use crate::limits;
use crate::wire::frame::{Frame, StreamId};
use crate::wire::message::Control;

impl Mux {
    /// Takes bytes as they arrived on the first lane, in pieces of any size.
    ///
    /// # Errors
    /// The peer broke the protocol; the connection is over.
    pub fn handle(&mut self, piece: Bytes, now: Duration) -> Result<(), Fault> {
        self.handle_on(0, piece, now)
    }

    /// As `handle`, for any lane.
    ///
    /// # Errors
    /// The peer broke the protocol; the connection is over.
    pub fn handle_on(&mut self, lane: Lane, piece: Bytes, now: Duration) -> Result<(), Fault> {
        let Some(wire) = self.lanes.get_mut(usize::from(lane)) else { return Ok(()) };
        let mut decoder = std::mem::take(&mut wire.decoder);
        let result = decoder.feed(piece, |f| self.handle_frame(lane, f, now));
        if let Some(wire) = self.lanes.get_mut(usize::from(lane)) {
            wire.decoder = decoder;
        }
        result.map_err(|Broken(fault)| fault)
    }

    fn handle_frame(&mut self, lane: Lane, frame: Frame, now: Duration) -> Result<(), Broken> {
        if let Some(wire) = self.lanes.get_mut(usize::from(lane)) {
            // A whole frame is a sign of life; single bytes are not, or one frame could keep a link for hours.
            wire.heard(now);
        }
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
                    // A copy: it may wait, and would keep the whole buffer it arrived in.
                    self.events.push_back(Event::Datagram(Bytes::copy_from_slice(&bytes)));
                }
                Ok(())
            }
            Frame::Ping(word) => {
                // Only the newest is answered: a flood of pings costs one pong a turn.
                self.lanes[usize::from(lane)].pong = Some(word);
                Ok(())
            }
            Frame::Pong(word) => {
                if let Some(rtt) = self.lanes[usize::from(lane)].answered(word, now)
                    && lane == 0
                {
                    self.rtt = Some(rtt);
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
        // Where OPEN may be lost with a lane, streams that ended before it could be sent again leave gaps.
        let in_order = id.0 == expected || (self.config.retain.is_some() && id.0 > expected && id.0 % 2 == theirs);
        if !in_order {
            return Err(broken("OPEN with a stream id out of order"));
        }
        if header.len() > limits::MAX_OPEN_HEADER {
            return Err(broken("OPEN with a header of more than 2 KiB"));
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
        // A copy, as of a datagram.
        self.events.push_back(Event::Incoming(id, Bytes::copy_from_slice(&header)));
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
        stream.header = None;
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
        self.consider_grant();
        let Some(stream) = self.known(id)? else {
            // It was on its way when the stream ended: its credit goes back at once.
            self.consume(length);
            return Ok(());
        };
        if stream.reset.is_some() || stream.released {
            self.consume(length);
            self.reset(id, closed());
            self.collect(id);
            return Ok(());
        }
        let new = stream.receiving.data(offset, bytes).map_err(broken)?;
        let wake = std::mem::take(&mut stream.receiving.wants_data);
        self.unacknowledged = true;
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
        self.retained.give_back(freed);
        self.finish_move(id);
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

    pub(super) fn is_ours(&self, id: StreamId) -> bool {
        id.0.is_multiple_of(2) == (self.side == Side::Dialler)
    }
}
