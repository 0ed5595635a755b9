//! Numbers that bound memory and time, each with its reason. Those of the wire are fixed; timers scale for tests.

use std::time::Duration;

/// ClientHello, lane preamble and CONNECT head: the most that is read from a peer before it has shown who it is.
pub const MAX_FIRST_BYTES: usize = 16 * 1024;
/// Stream data a receiver grants before it has seen how fast the stream is read.
pub const INITIAL_STREAM_WINDOW: u64 = 256 * 1024;
/// What a stream's window may grow to while its reader keeps up.
pub const MAX_STREAM_WINDOW: u64 = 4 * 1024 * 1024;
/// Unread data over all streams of one link or session: what one peer can make us hold.
pub const CONNECTION_WINDOW: u64 = 32 * 1024 * 1024;
/// Unsent data over all streams of one link or session: what a peer that reads nothing can make us hold.
pub const CONNECTION_QUEUE: u64 = 32 * 1024 * 1024;
/// A stream that has carried so much is bulk: it leaves a session's first lane when there is another.
pub const BULK: u64 = 4 * 1024 * 1024;
/// Bytes that all sessions of a process together keep until acknowledged.
pub const RETAIN_BUDGET: u64 = 1024 * 1024 * 1024;
/// Streams a peer may have open at once on one link or session.
pub const MAX_STREAMS: u32 = 16 * 1024;
/// Control messages (and answers, resets, pings) waiting to be sent; a peer that lets more pile up is cut.
pub const MAX_CONTROL_QUEUE: usize = 64 * 1024;
/// Datagrams waiting to be sent; the oldest is dropped and counted.
pub const MAX_DATAGRAM_QUEUE: usize = 256;
/// The header of a stream in OPEN, bytes: names, no data. With `MAX_STREAMS` it bounds what waiting streams can hold.
pub const MAX_OPEN_HEADER: usize = 2 * 1024;
/// The largest datagram, bytes: an IP packet at the largest MTU we offer, with its DTLS record and header.
pub const MAX_DATAGRAM: usize = 2048;

/// Timers of links and sessions. Every one of them may be scaled (tests use 1/100) but never switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// A peer's time to say who it is: ClientHello, TLS handshake, HELLO to ACCEPT, lane preamble, CONNECT head.
    pub handshake: Duration,
    /// Silence after which a ping goes out.
    pub ping_interval: Duration,
    /// Time a ping may stay unanswered; after two such the peer is dead.
    pub ping_timeout: Duration,
    /// The whole time for an answer when the network below may have changed, or the peer may be gone.
    pub probe: Duration,
    /// How long a relay keeps the first leg of a lane.
    pub lane_wait: Duration,
    /// How long a session may have no open stream before its lane closes.
    pub session_idle: Duration,
    /// How long opening a connection to a server inside may take.
    pub connect: Duration,
    /// How long a drain waits for streams to end.
    pub drain: Duration,
    /// How long a session without a lane waits to be resumed before its streams end.
    pub resume: Duration,
    /// How long after UDP was found dead a dialler tries QUIC again; doubles with every failure.
    pub udp_retry: Duration,
    /// How long nothing may be heard from either end of a tunnel before its pairing at the relay ends.
    pub tunnel_idle: Duration,
    /// How long one attempt of a request to the core (activation, enrolment, configuration) may take.
    pub request: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            ping_interval: Duration::from_secs(15),
            ping_timeout: Duration::from_secs(15),
            probe: Duration::from_secs(3),
            lane_wait: Duration::from_secs(10),
            session_idle: Duration::from_secs(60),
            connect: Duration::from_secs(10),
            drain: Duration::from_secs(30),
            resume: Duration::from_secs(30),
            udp_retry: Duration::from_secs(30),
            tunnel_idle: Duration::from_secs(600),
            request: Duration::from_secs(30),
        }
    }
}

impl Timers {
    /// The timers at `factor` of their length, for tests that wait through them; at least 10 ms each and at most 30
    /// days, so that adding one to a time never overflows. What is no number counts as 1.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
        let factor = if factor.is_nan() { 1.0 } else { factor.clamp(0.0001, 1000.0) };
        let scale = |d: Duration| d.min(LONGEST).mul_f64(factor).clamp(Duration::from_millis(10), LONGEST);
        Self {
            handshake: self.handshake,
            ping_interval: scale(self.ping_interval),
            ping_timeout: scale(self.ping_timeout).max(Duration::from_millis(500)),
            probe: self.probe,
            lane_wait: scale(self.lane_wait).max(Duration::from_secs(1)),
            session_idle: scale(self.session_idle),
            connect: self.connect,
            drain: scale(self.drain),
            // Long enough for a process to be started again.
            resume: scale(self.resume).max(Duration::from_secs(3)),
            udp_retry: scale(self.udp_retry),
            tunnel_idle: scale(self.tunnel_idle),
            request: self.request,
        }
    }
}
