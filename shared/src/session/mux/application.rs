//! What the application asks for. Nothing here fails for reasons of the peer.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::{Event, Mux, Stream, closed, ended_cleanly};
use crate::fault::{Code, DropReason, Fault};
use crate::limits;
use crate::session::stream::{Finish, Read, Room};
use crate::wire::frame::{self, StreamId, kind};
use crate::wire::message::{Control, GoAway};

impl Mux {
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
        if header.len() > limits::MAX_OPEN_HEADER {
            return Err(Fault::new(Code::Protocol, "the stream header is too long"));
        }
        let id = StreamId(self.next_local);
        self.next_local = self
            .next_local
            .checked_add(2)
            .ok_or_else(|| Fault::new(Code::Limited, "this connection has used up its stream numbers"))?;
        self.local_open += 1;
        let mut stream = Stream::new(&self.config.theirs, &self.config.ours, now);
        if self.config.retain.is_some() {
            stream.header = Some(header.clone());
        }
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
            stream.accepted = fault.code == Code::Ok;
            stream.answer = Some(fault);
        }
        self.post(id);
    }

    /// Whether the stream takes bytes; `Full` arms the `Writable` event.
    pub fn room(&mut self, id: StreamId) -> Room {
        let of_all = self.unsent;
        let Some(stream) = self.streams.get_mut(&id) else {
            return Room::Ended(Fault::new(Code::Lost, "the connection ended"));
        };
        if let Some(fault) = &stream.reset {
            return Room::Ended(fault.clone());
        }
        if stream.sending.finish != Finish::Open {
            return Room::Ended(Fault::new(Code::Protocol, "the stream was finished"));
        }
        if stream.sending.has_room(of_all) {
            return Room::Some;
        }
        stream.sending.wants_room = true;
        self.crowded |= stream.sending.has_room(0);
        Room::Full
    }

    /// Queues bytes to be sent. Call `room` first; more than it allows is taken, so callers pass one batch at a time.
    pub fn write(&mut self, id: StreamId, bytes: Bytes) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if bytes.is_empty() || stream.reset.is_some() || stream.sending.finish != Finish::Open {
            return;
        }
        self.unsent += bytes.len() as u64;
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

    /// The application lets go of a stream. What was written and finished is still sent; a direction of ours that is
    /// still open is reset, and so is a peer that goes on sending.
    pub fn release(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.released = true;
        if stream.sending.finish == Finish::Open {
            self.reset(id, closed());
        } else {
            let waiting = stream.receiving.clear();
            // A peer at the end of its window would wait for ever: with room it sends, and learns that nobody reads.
            let reopened = stream.reset.is_none() && stream.receiving.reopen();
            stream.window_due |= reopened;
            self.consume(waiting);
            if reopened {
                self.post(id);
            }
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
        let frame = frame::cbor(kind::GOAWAY, 0, message);
        self.farewell = Some(frame.clone());
        // A full queue means that the peer does not read; it will notice the end when it comes.
        let _ = self.queue_control(frame);
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
                // What was never announced or answered would keep the stream when it is let go.
                stream.open = None;
                stream.answer = None;
                self.events.push_back(Event::Answered(id));
                self.events.push_back(Event::Readable(id));
                self.events.push_back(Event::Writable(id));
            }
            self.collect(id);
        }
        self.outbox.clear();
        self.lanes.iter_mut().for_each(|l| l.round.clear());
        self.control.clear();
        self.datagrams.clear();
    }

    pub(super) fn queue_control(&mut self, frame: Bytes) -> Result<(), Fault> {
        if self.control_bytes + frame.len() > limits::MAX_CONTROL_QUEUE {
            self.dropped(DropReason::ControlQueueFull);
            return Err(Fault::new(Code::Limited, "the peer does not read its control messages"));
        }
        self.control_bytes += frame.len();
        self.control.push_back(frame);
        Ok(())
    }
}
