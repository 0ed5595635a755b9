//! The connections a multiplexer runs over. A link has one. A session has a first one, which carries everything but
//! bulk, and may have more, each for streams that have proved to be long: a stream that has sent `BULK` bytes moves
//! over, so that a small request does not wait behind megabytes in a socket's buffer.
//!
//! A stream moves when everything it sent on the old lane is acknowledged, so that its bytes stay in order whatever the
//! two lanes do. A PING asks for those acknowledgements: its receiver answers with WINDOWs first, then PONG.

use std::time::Duration;

use super::round::Round;
use super::{Mux, Stream};
use crate::fault::{Code, Fault};
use crate::limits::Timers;
use crate::session::stream::Finish;
use crate::wire::frame::{Decoder, StreamId};

/// The number of a connection of a session; 0 is the first, and the only one of a link.
pub type Lane = u8;

/// Connections of one session at most.
pub const MAX_LANES: usize = 4;

/// One connection: half-read frames, streams with something to send, and its pulse.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) decoder: Decoder,
    /// Streams with data or FINISH to send here, in turn.
    pub(super) round: Round,
    heard: Duration,
    ping_due: Duration,
    ping: Option<Ping>,
    /// The next ping is a probe.
    urgent: bool,
    /// A PING that waits to be sent.
    pub(super) ping_out: Option<u64>,
    /// The peer's PING that waits to be answered.
    pub(super) pong: Option<u64>,
}

impl Wire {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            decoder: Decoder::default(),
            round: Round::default(),
            heard: now,
            ping_due: now,
            ping: None,
            urgent: false,
            ping_out: None,
            pong: None,
        }
    }

    pub(super) fn heard(&mut self, now: Duration) {
        self.heard = now;
    }

    /// The round-trip time, when this answers our ping.
    pub(super) fn answered(&mut self, word: u64, now: Duration) -> Option<Duration> {
        self.ping.take_if(|p| p.word == word).map(|p| now.saturating_sub(p.sent))
    }

    pub(super) fn timeout(&self) -> Duration {
        self.ping.map_or(self.ping_due, |p| p.sent.max(self.heard) + p.patience)
    }

    /// Whether a ping went out.
    fn tick(&mut self, now: Duration, timers: &Timers, word: u64) -> Result<bool, Fault> {
        match self.ping {
            Some(_) if now >= self.timeout() => {
                let silent = now.saturating_sub(self.heard);
                Err(Fault::new(Code::Lost, format!("the peer has been silent for {:.1} s", silent.as_secs_f64())))
            }
            Some(_) => Ok(false),
            None if now >= self.ping_due => {
                let urgent = std::mem::take(&mut self.urgent);
                let patience = if urgent { timers.probe } else { 2 * timers.ping_timeout };
                self.ping = Some(Ping { word, sent: now, patience });
                self.ping_out = Some(word);
                self.ping_due = now + timers.ping_interval;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// A ping goes out now, or as soon as the one under way is answered.
    pub(super) fn ping_now(&mut self) {
        self.ping_due = Duration::ZERO;
    }

    /// As `ping_now`, and the peer has less time to answer, also the ping under way.
    fn probe(&mut self, now: Duration, timers: &Timers) {
        match &mut self.ping {
            Some(ping) => {
                let patience = now.saturating_sub(ping.sent.max(self.heard)) + timers.probe;
                // Never more time than it has: who asks again and again would else never hear that nobody answers.
                ping.patience = ping.patience.min(patience);
            }
            None => self.urgent = true,
        }
        self.ping_now();
    }
}

/// A ping under way.
#[derive(Debug, Clone, Copy)]
struct Ping {
    word: u64,
    sent: Duration,
    /// How long after it, or after the last sign of life, the peer is taken for dead.
    patience: Duration,
}

impl Mux {
    /// Connections in use.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Takes another connection for bulk; returns its number. `None` when there are enough.
    pub fn attach(&mut self, now: Duration) -> Option<Lane> {
        if self.config.retain.is_none() || self.lanes.len() >= MAX_LANES {
            return None;
        }
        self.lanes.push(Wire::new(now));
        Lane::try_from(self.lanes.len() - 1).ok()
    }

    /// Streams that have proved to be long, in either direction.
    #[must_use]
    pub fn bulk_streams(&self) -> usize {
        self.streams.values().filter(|s| is_bulk(s, self.config.bulk)).count()
    }

    /// When `handle_timeout` wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Duration {
        self.lanes.iter().map(|l| l.timeout()).min().unwrap_or(Duration::MAX)
    }

    /// Sends pings when they are due.
    ///
    /// # Errors
    /// `Lost` when the peer left two pings' time unanswered on one of the lanes.
    pub fn handle_timeout(&mut self, now: Duration) -> Result<(), Fault> {
        for lane in &mut self.lanes {
            if lane.tick(now, &self.config.timers, self.ping_count + 1)? {
                self.ping_count += 1;
            }
        }
        Ok(())
    }

    /// Asks for a sign of life at once: the network below may have changed.
    pub fn probe(&mut self, now: Duration) {
        let timers = self.config.timers;
        self.lanes.iter_mut().for_each(|l| l.probe(now, &timers));
    }

    /// A stream that has sent a lot leaves the first lane; called after its turn.
    pub(super) fn consider_move(&mut self, id: StreamId) {
        if self.lanes.len() < 2 {
            return;
        }
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.sending.lane != 0
            || stream.sending.moving.is_some()
            || stream.sending.finish != Finish::Open
            || stream.sending.sent() < self.config.bulk
        {
            return;
        }
        let load = |lane: usize| {
            self.streams.values().filter(|s| usize::from(s.sending.moving.unwrap_or(s.sending.lane)) == lane).count()
        };
        let Some(to) = (1..self.lanes.len()).min_by_key(|lane| load(*lane)) else { return };
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.sending.moving = Lane::try_from(to).ok();
        }
        // The acknowledgements that the move waits for.
        self.lanes[0].ping_now();
        self.finish_move(id);
    }

    /// Completes a move when nothing is under way on the old lane.
    pub(super) fn finish_move(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.sending.unacknowledged() == 0
            && let Some(lane) = stream.sending.moving.take()
        {
            stream.sending.lane = lane;
            self.enqueue(id);
        }
    }

    /// Every stream is back on the first and only lane, which is a new one.
    pub(super) fn one_new_lane(&mut self, now: Duration) {
        self.lanes.clear();
        self.lanes.push(Wire::new(now));
        for stream in self.streams.values_mut() {
            stream.sending.lane = 0;
            stream.sending.moving = None;
            stream.sending.queued = false;
            stream.in_outbox = false;
        }
        self.outbox.clear();
    }

    /// WINDOWs for everything received and not acknowledged yet, for a sender that asked by PING.
    pub(super) fn acknowledge_all(&mut self) {
        if self.config.retain.is_none() || !std::mem::take(&mut self.unacknowledged) {
            return;
        }
        let due: Vec<StreamId> =
            self.streams.iter().filter(|(_, s)| s.receiving.is_unacknowledged()).map(|(id, _)| *id).collect();
        for id in due {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.window_due = true;
            }
            self.post(id);
        }
    }
}

fn is_bulk(stream: &Stream, bulk: u64) -> bool {
    stream.sending.sent() >= bulk || stream.receiving.received() >= bulk
}
