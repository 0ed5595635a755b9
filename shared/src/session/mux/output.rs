//! What goes to the peer, in this order: control, bounded datagrams, data stream by stream.

use bytes::BytesMut;

use super::{DATAGRAMS_PER_TURN, Event, Lane, Mux, QUANTUM};
use crate::fault::{Code, Fault};
use crate::session::stream::Finish;
use crate::wire::frame::{self, StreamId, kind};

impl Mux {
    /// What the application should know next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Hands out frames for the first lane, each as slices to be written one after the other, until about `budget`
    /// bytes or nothing is left. Control first; then datagrams, bounded; then data, stream by stream. Returns the bytes
    /// handed out.
    pub fn transmit(&mut self, budget: usize, each: impl FnMut(&[&[u8]])) -> usize {
        self.transmit_on(0, budget, each)
    }

    /// As `transmit`, for one lane: those beyond the first carry pings and the data of their streams only.
    pub fn transmit_on(&mut self, lane: Lane, budget: usize, mut each: impl FnMut(&[&[u8]])) -> usize {
        if self.dead || usize::from(lane) >= self.lanes.len() {
            return 0;
        }
        let mut total = self.transmit_pulse(lane, &mut each);
        if lane == 0 {
            total += self.transmit_control(budget, &mut each);
            for _ in 0..DATAGRAMS_PER_TURN {
                let Some(bytes) = self.datagrams.pop_front() else { break };
                let mut header = BytesMut::with_capacity(frame::HEADER);
                frame::put_header(&mut header, kind::DATAGRAM, bytes.len(), 0);
                each(&[&header, &bytes]);
                total += header.len() + bytes.len();
            }
        }
        while total < budget {
            let Some(id) = self.lanes.get_mut(usize::from(lane)).and_then(|l| l.round.next()) else { break };
            let sent = self.transmit_data(id, lane, &mut each);
            if sent == 0 {
                break;
            }
            total += sent;
        }
        if self.crowded {
            self.share_room();
        }
        total
    }

    /// What was sent or dropped has made room: those who wait for it are told.
    fn share_room(&mut self) {
        self.crowded = false;
        for id in self.streams.keys().copied().collect::<Vec<_>>() {
            self.offer_room(id);
        }
    }

    /// Tells a stream that waits for room when there is some.
    fn offer_room(&mut self, id: StreamId) {
        let of_all = self.unsent;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.sending.wants_room || !stream.sending.has_room(0) {
            return;
        }
        if stream.sending.has_room(of_all) {
            stream.sending.wants_room = false;
            self.events.push_back(Event::Writable(id));
        } else {
            self.crowded = true;
        }
    }

    fn transmit_pulse(&mut self, lane: Lane, each: &mut impl FnMut(&[&[u8]])) -> usize {
        let Some(wire) = self.lanes.get_mut(usize::from(lane)) else { return 0 };
        let (ping, pong) = (wire.ping_out.take(), wire.pong.take());
        let mut total = 0;
        for (kind, word) in [(kind::PING, ping), (kind::PONG, pong)] {
            if let Some(word) = word {
                let frame = frame::raw(kind, 0, &word.to_be_bytes());
                each(&[&frame]);
                total += frame.len();
            }
        }
        if pong.is_some() {
            self.acknowledge_all();
        }
        total
    }

    fn transmit_control(&mut self, budget: usize, each: &mut impl FnMut(&[&[u8]])) -> usize {
        let mut total = 0;
        let mut send = |frame: &[u8]| {
            each(&[frame]);
            total += frame.len();
        };
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
            let before = self.received_before;
            send(&frame::window(None, self.received - before, self.receive_limit - before));
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
                let (delivered, limit) = stream.receiving.acknowledge();
                send(&frame::window(Some(id), delivered, limit));
            }
            self.collect(id);
        }
        spent
    }

    /// One stream's turn; returns the bytes handed out, 0 when the connection's credit is used up.
    fn transmit_data(&mut self, id: StreamId, lane: Lane, each: &mut impl FnMut(&[&[u8]])) -> usize {
        let retain = self.config.retain.is_some();
        let mut total = 0;
        let mut turn = QUANTUM;
        let Some(stream) = self.streams.get_mut(&id) else { return 1 };
        stream.sending.queued = false;
        if stream.sending.lane != lane {
            // It moved while it waited here for its turn.
            self.enqueue(id);
            return 1;
        }
        if self.retained.is_tight() {
            // Streams acknowledge when half their window was read. Many that are not there yet would hold up all.
            self.lanes[0].ping_now();
        }
        loop {
            let credit = self.send_limit.saturating_sub(self.sent).min(self.retained.room());
            let most = credit.min(turn).min(frame::MAX_DATA as u64).min(stream.sending.sendable());
            if most == 0 {
                break;
            }
            let taken = stream.sending.take(most, retain, |offset, slices, length| {
                let prefix = frame::data_prefix(id, offset, length);
                let mut parts: [&[u8]; 17] = [&[]; 17];
                parts[0] = &prefix;
                parts[1..=slices.len()].copy_from_slice(slices);
                each(&parts[..=slices.len()]);
                total += prefix.len() + length;
            });
            self.sent += taken;
            self.unsent -= taken;
            self.retained.add(taken);
            turn -= taken;
        }
        if stream.sending.finish == Finish::Wanted && stream.sending.ready() && stream.sending.held_unsent() == 0 {
            stream.sending.finish = Finish::Sent;
            let frame = frame::raw(kind::FINISH, id.0, &stream.sending.sent().to_be_bytes());
            each(&[&frame]);
            total += frame.len();
        }
        if stream.sending.ready() {
            stream.sending.queued = true;
            if let Some(wire) = self.lanes.get_mut(usize::from(lane)) {
                if total == 0 {
                    wire.round.keep_turn(id);
                } else {
                    wire.round.again(id);
                }
            }
        } else {
            total = total.max(1);
        }
        self.offer_room(id);
        self.consider_move(id);
        self.collect(id);
        total
    }
}
