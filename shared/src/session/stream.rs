//! One stream of the multiplexer: what is waiting to be sent or kept for a replay, and what waits to be read.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

use crate::fault::Fault;
use crate::limits;

/// Unsent bytes a stream takes from its application before `Room::Full`: two batches of a lane.
const SEND_QUEUE: u64 = 512 * 1024;
/// The same while the connection's queue is half full, of streams that are stuck or simply many: a turn's worth.
const SMALL_QUEUE: u64 = 64 * 1024;
/// When the queue counts as half full.
const HALF: u64 = limits::CONNECTION_QUEUE / 2;
/// Pieces below this size are copied together while they wait. Each keeps the whole buffer it arrived in: a peer that
/// puts one byte of data into every buffer of noise would have us keep many times its window.
const SMALL: usize = 8 * 1024;
/// What small pieces are put together to.
const TOGETHER: usize = 16 * 1024;

/// What reading gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// Bytes were appended.
    Data,
    /// Nothing yet.
    Blocked,
    /// FINISH: no more will come.
    Finished,
    /// The stream was reset, or the connection is over.
    Reset(Fault),
}

/// Whether a stream takes more from its application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    /// Yes.
    Some,
    /// Not until some was sent; a `Writable` event will tell.
    Full,
    /// Not at all: finished, reset, or the connection is over.
    Ended(Fault),
}

/// The direction we send in.
#[derive(Debug, Default)]
pub(super) struct Sending {
    /// Bytes from offset `base` on.
    chunks: VecDeque<Bytes>,
    base: u64,
    /// Everything below was sent: chunk index and offset inside it.
    at_chunk: usize,
    at_byte: usize,
    sent: u64,
    end: u64,
    /// Offset the peer allows.
    limit: u64,
    pub(super) finish: Finish,
    /// Which connection of the session carries it.
    pub(super) lane: u8,
    /// The lane it goes to as soon as everything sent is acknowledged; nothing is sent until then.
    pub(super) moving: Option<u8>,
    /// The application found `Room::Full` and wants an event.
    pub(super) wants_room: bool,
    /// In the round of streams with something to send.
    pub(super) queued: bool,
}

/// How far the end of our direction has come.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    #[default]
    Open,
    /// Asked for by the application, not yet sent.
    Wanted,
    Sent,
    /// The other end has seen it.
    Acknowledged,
}

impl Sending {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Whether it takes bytes while so many of all streams wait to be sent. Long queues have one half of the room, so
    /// that those who are stuck leave the other to those who are not.
    pub(super) fn has_room(&self, of_all: u64) -> bool {
        let most = match of_all {
            0..HALF => SEND_QUEUE,
            HALF..limits::CONNECTION_QUEUE => SMALL_QUEUE,
            limits::CONNECTION_QUEUE.. => 0,
        };
        self.held_unsent() < most
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        self.end += bytes.len() as u64;
        let all = self.chunks.len();
        match self.chunks.back_mut() {
            // An application that writes byte by byte would have us keep a hundred bytes for each.
            Some(last) if last.len() < SMALL && bytes.len() < SMALL => {
                let was = last.len();
                let mut joined = std::mem::take(last).try_into_mut().unwrap_or_else(|shared| BytesMut::from(&*shared));
                joined.extend_from_slice(&bytes);
                *last = joined.freeze();
                if self.at_chunk == all {
                    (self.at_chunk, self.at_byte) = (all - 1, was);
                }
            }
            _ => self.chunks.push_back(bytes),
        }
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes that may be sent now, by this stream's own credit.
    pub(super) fn sendable(&self) -> u64 {
        if self.moving.is_some() { 0 } else { self.end.min(self.limit).saturating_sub(self.sent) }
    }

    /// Whether there is data or a FINISH to send.
    pub(super) fn ready(&self) -> bool {
        self.moving.is_none() && (self.sendable() > 0 || (self.finish == Finish::Wanted && self.sent == self.end))
    }

    /// Calls `with` with up to `most` unsent bytes as slices, and counts them as sent. `retain` keeps them for a replay.
    pub(super) fn take(&mut self, most: u64, retain: bool, with: impl FnOnce(u64, &[&[u8]], usize)) -> u64 {
        const SLICES: usize = 16;
        let mut slices: [&[u8]; SLICES] = [&[]; SLICES];
        let (mut used, mut taken) = (0, 0usize);
        let most = usize::try_from(most.min(self.sendable())).unwrap_or(usize::MAX);
        let (mut chunk, mut byte) = (self.at_chunk, self.at_byte);
        while used < SLICES && taken < most {
            let Some(bytes) = self.chunks.get(chunk) else { break };
            let piece = (bytes.len() - byte).min(most - taken);
            slices[used] = &bytes[byte..byte + piece];
            used += 1;
            taken += piece;
            byte += piece;
            if byte == bytes.len() {
                chunk += 1;
                byte = 0;
            }
        }
        with(self.sent, &slices[..used], taken);
        self.at_chunk = chunk;
        self.at_byte = byte;
        self.sent += taken as u64;
        if !retain {
            self.forget_below(self.sent);
        }
        taken as u64
    }

    /// Drops chunks that lie wholly below `offset`; returns how many bytes became free.
    pub(super) fn forget_below(&mut self, offset: u64) -> u64 {
        let before = self.base;
        while self.at_chunk > 0 {
            let length = self.chunks.front().map_or(0, |c| c.len() as u64);
            if self.base + length > offset {
                break;
            }
            self.chunks.pop_front();
            self.at_chunk -= 1;
            self.base += length;
        }
        // A chunk that is partly sent and partly acknowledged is cut, so that one large chunk does not stay whole.
        if self.at_chunk == 0 && self.base < offset.min(self.sent) {
            let cut = usize::try_from(offset.min(self.sent) - self.base).unwrap_or(0);
            if let Some(front) = self.chunks.front_mut() {
                front.advance(cut);
                self.at_byte -= cut;
                self.base += cut as u64;
            }
        }
        self.base - before
    }

    /// A WINDOW from the peer. `Err` when it acknowledges what was never sent. FINISH counts as one byte more.
    pub(super) fn window(&mut self, delivered: u64, limit: u64) -> Result<u64, ()> {
        if delivered > self.sent {
            if delivered != self.sent + 1 || !matches!(self.finish, Finish::Sent | Finish::Acknowledged) {
                return Err(());
            }
            self.finish = Finish::Acknowledged;
        }
        self.limit = self.limit.max(limit);
        Ok(self.forget_below(delivered))
    }

    /// Goes back to what the other end expects next. `Err` when that was acknowledged already, or never sent.
    pub(super) fn rewind(&mut self, expected: u64, limit: u64, finished: bool) -> Result<(), ()> {
        let was_sent = matches!(self.finish, Finish::Sent | Finish::Acknowledged);
        if expected < self.base || expected > self.sent || (finished && !(was_sent && expected == self.end)) {
            return Err(());
        }
        self.forget_below(expected);
        self.at_chunk = 0;
        self.at_byte = usize::try_from(expected - self.base).map_err(|_| ())?;
        self.sent = expected;
        self.limit = self.limit.max(limit);
        if was_sent {
            self.finish = if finished { Finish::Acknowledged } else { Finish::Wanted };
        }
        Ok(())
    }

    /// The other end has everything, FINISH included.
    pub(super) fn all_acknowledged(&mut self) {
        self.clear();
        self.finish = Finish::Acknowledged;
    }

    /// Bytes sent and not acknowledged, as far as they are kept.
    pub(super) fn unacknowledged(&self) -> u64 {
        self.sent - self.base
    }

    /// Bytes not yet sent, whatever the credit.
    pub(super) fn held_unsent(&self) -> u64 {
        self.end - self.sent
    }

    /// Bytes kept: unsent, and sent but not acknowledged.
    pub(super) fn held(&self) -> u64 {
        self.end - self.base
    }

    pub(super) fn clear(&mut self) -> u64 {
        let unacknowledged = self.sent - self.base;
        self.chunks.clear();
        self.base = self.sent;
        self.end = self.sent;
        self.at_chunk = 0;
        self.at_byte = 0;
        unacknowledged
    }
}

/// The direction we receive in.
#[derive(Debug)]
pub(super) struct Receiving {
    chunks: VecDeque<Bytes>,
    /// Small pieces behind the chunks.
    tail: BytesMut,
    received: u64,
    consumed: u64,
    /// What we granted.
    limit: u64,
    window: u64,
    granted_at: Duration,
    end: Option<u64>,
    /// What the sender was last told that we have.
    told: u64,
    /// The reader found nothing and wants an event.
    pub(super) wants_data: bool,
}

impl Receiving {
    pub(super) fn new(window: u64, now: Duration) -> Self {
        Self {
            chunks: VecDeque::new(),
            tail: BytesMut::new(),
            received: 0,
            consumed: 0,
            limit: window,
            window,
            granted_at: now,
            end: None,
            told: 0,
            wants_data: true,
        }
    }

    /// Takes data at `offset`; returns how many bytes were new. `Err` says what rule it broke.
    pub(super) fn data(&mut self, offset: u64, mut bytes: Bytes) -> Result<u64, &'static str> {
        let end = offset.checked_add(bytes.len() as u64).ok_or("an offset beyond 2^64")?;
        if self.end.is_some_and(|e| end > e) {
            return Err("data after FINISH");
        }
        if end > self.limit {
            return Err("data beyond the stream's window");
        }
        if offset > self.received {
            return Err("a gap in the stream's data");
        }
        if end <= self.received {
            return Ok(0);
        }
        bytes.advance(usize::try_from(self.received - offset).unwrap_or(0));
        let new = bytes.len() as u64;
        self.received = end;
        self.keep(bytes);
        Ok(new)
    }

    fn keep(&mut self, bytes: Bytes) {
        let small = bytes.len() < SMALL;
        if !small || self.tail.len() + bytes.len() > TOGETHER {
            self.close_tail();
        }
        if small {
            self.tail.extend_from_slice(&bytes);
        } else {
            self.chunks.push_back(bytes);
        }
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    pub(super) fn finish(&mut self, offset: u64) -> Result<(), &'static str> {
        if self.end.is_some_and(|e| e != offset) || offset != self.received {
            return Err("FINISH at an offset that is not the end of the data");
        }
        self.end = Some(offset);
        Ok(())
    }

    /// Moves up to `most` chunks to `out`; returns the bytes moved.
    pub(super) fn take(&mut self, most: usize, out: &mut VecDeque<Bytes>) -> u64 {
        let mut bytes = 0;
        if self.chunks.len() < most {
            self.close_tail();
        }
        for chunk in self.chunks.drain(..most.min(self.chunks.len())) {
            bytes += chunk.len() as u64;
            out.push_back(chunk);
        }
        self.consumed += bytes;
        bytes
    }

    pub(super) fn finished(&self) -> bool {
        self.end.is_some()
    }

    /// Bytes waiting for the reader.
    pub(super) fn waiting(&self) -> u64 {
        self.received - self.consumed
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// What a WINDOW says now: all that was received, FINISH counting as one byte more, and the limit.
    pub(super) fn acknowledge(&mut self) -> (u64, u64) {
        self.told = self.received;
        (self.received + u64::from(self.end.is_some()), self.limit)
    }

    /// Whether bytes were received that the sender has not been told of.
    pub(super) fn is_unacknowledged(&self) -> bool {
        self.told < self.received
    }

    pub(super) fn window_size(&self) -> u64 {
        self.window
    }

    /// Whether half the window was read since it was granted.
    pub(super) fn grant_due(&self) -> bool {
        self.end.is_none() && self.limit - self.consumed <= self.window / 2
    }

    /// Grants a new window; doubles it when the last one was used up within `quick` and `may_grow`.
    pub(super) fn grant(&mut self, now: Duration, quick: Duration, most: u64, may_grow: bool) {
        if may_grow && now.saturating_sub(self.granted_at) < quick {
            self.window = (self.window * 2).min(most.max(self.window));
        }
        self.granted_at = now;
        self.limit = self.limit.max(self.consumed + self.window);
    }

    /// Grants a whole window from here on; whether that is news to the peer.
    pub(super) fn reopen(&mut self) -> bool {
        let limit = self.limit.max(self.consumed + self.window);
        self.end.is_none() && std::mem::replace(&mut self.limit, limit) < limit
    }

    pub(super) fn clear(&mut self) -> u64 {
        let waiting = self.waiting();
        self.chunks.clear();
        self.tail = BytesMut::new();
        self.consumed = self.received;
        waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_bytes_are_kept_together_sent_or_not() {
        let mut sending = Sending::new(u64::MAX);
        let mut out = Vec::new();
        let written: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
        for (n, byte) in written.iter().enumerate() {
            sending.push(Bytes::copy_from_slice(&[*byte]));
            // Sent at once, in lumps, or not at all for a while; the other end acknowledges now and then.
            if n % 3 == 0 || n % 5_000 == 0 {
                sending.take(u64::MAX, true, |_, slices, _| slices.iter().for_each(|s| out.extend_from_slice(s)));
            }
            if n % 7_777 == 0 {
                sending.forget_below(sending.sent() / 2);
            }
            assert!(
                sending.chunks.len() as u64 <= 2 + sending.held() / SMALL as u64,
                "{} pieces",
                sending.chunks.len()
            );
        }
        sending.take(u64::MAX, true, |_, slices, _| slices.iter().for_each(|s| out.extend_from_slice(s)));
        assert_eq!(out, written);
        let from = sending.base;
        sending.rewind(from, u64::MAX, false).unwrap();
        let mut again = Vec::new();
        while sending.sendable() > 0 {
            sending.take(u64::MAX, true, |_, slices, _| slices.iter().for_each(|s| again.extend_from_slice(s)));
        }
        assert_eq!(again, written[usize::try_from(from).unwrap()..]);
    }
}
