//! What a link is to those who use it, whichever transport carries it: streams with a header, control messages,
//! datagrams, and a proper end. `Framed` is the multiplexer over TLS, with the frames of
//! `wire::frame`; `Quic` what QUIC has of its own.

use std::time::Duration;

use bytes::Bytes;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::wire::message::{Control, GoAway};

use super::Transport;
use crate::mux::{self, Mux, Stats};
use crate::quic;
use crate::stream::Stream;

/// How long a QUIC path may take to answer a probe that was asked for.
const PROBE: Duration = Duration::from_secs(3);

/// A handle; clones are the same link. It runs until `close`, the peer's end, or the scope's.
#[derive(Debug, Clone)]
pub enum Channel {
    /// TLS over TCP.
    Framed(Mux),
    /// QUIC.
    Quic(quic::Mux),
}

/// The same call on either transport.
macro_rules! each {
    ($channel:expr, $inner:ident => $call:expr) => {
        match $channel {
            Self::Framed($inner) => $call,
            Self::Quic($inner) => $call,
        }
    };
}

impl Channel {
    /// Opens a stream and waits for the peer's answer. Cancel safe: dropping the future resets the stream.
    ///
    /// # Errors
    /// The peer's refusal, or why the link takes no streams.
    pub async fn open<H: minicbor::Encode<()>>(&self, header: &H) -> Result<Stream, Fault> {
        match self {
            Self::Framed(mux) => mux.open(header).await,
            Self::Quic(mux) => mux.open(header).await.map(Stream::from),
        }
    }

    /// The next stream the peer opens; `None` once the link has ended. Cancel safe.
    pub async fn accept(&self) -> Option<Incoming> {
        match self {
            Self::Framed(mux) => mux.accept().await.map(Incoming::Framed),
            Self::Quic(mux) => mux.accept().await.map(Incoming::Quic),
        }
    }

    /// Queues a control message.
    ///
    /// # Errors
    /// `Limited` when the peer has let too many pile up, or the fault the link ended with.
    pub fn send_control(&self, message: &Control) -> Result<(), Fault> {
        each!(self, mux => mux.send_control(message))
    }

    /// The next control message; `None` once the link has ended. Cancel safe.
    pub async fn next_control(&self) -> Option<Control> {
        each!(self, mux => mux.next_control().await)
    }

    /// Queues a datagram; it may be dropped here, on the way, or at the peer.
    pub fn send_datagram(&self, bytes: Bytes) {
        match self {
            Self::Framed(mux) => mux.send_datagram(bytes),
            Self::Quic(mux) => mux.send_datagram(&bytes),
        }
    }

    /// The next datagram; `None` once the link has ended. Cancel safe.
    pub async fn next_datagram(&self) -> Option<Bytes> {
        each!(self, mux => mux.next_datagram().await)
    }

    /// What it runs on.
    #[must_use]
    pub fn transport(&self) -> Transport {
        match self {
            Self::Framed(_) => Transport::Tls,
            Self::Quic(_) => Transport::Quic,
        }
    }

    /// The peer's address now, where it may move while the link stays: over QUIC.
    #[must_use]
    pub fn moving_address(&self) -> Option<std::net::SocketAddr> {
        match self {
            Self::Framed(_) => None,
            Self::Quic(mux) => Some(mux.remote_address()),
        }
    }

    /// Tells the peer that we will close; no new streams either way.
    pub fn go_away(&self, message: &GoAway) {
        each!(self, mux => mux.go_away(message))
    }

    /// Completes when the peer says it will close; never, if it does not. Cancel safe.
    pub async fn peer_going_away(&self) -> GoAway {
        each!(self, mux => mux.peer_going_away().await)
    }

    /// Whether the peer said it will close.
    #[must_use]
    pub fn is_going_away(&self) -> bool {
        each!(self, mux => mux.is_going_away())
    }

    /// Asks the peer for a sign of life: the network below may have changed, or the peer may be gone. A link that stays
    /// silent for 3 s ends. Cancel safe.
    pub async fn probe(&self) {
        if !self.is_alive().await {
            self.close(Fault::new(Code::Lost, "the peer does not answer any more"));
        }
    }

    /// As `probe`, but leaves the end to the caller; over TLS the link ends by itself, and this says `true` at once.
    pub async fn is_alive(&self) -> bool {
        match self {
            Self::Framed(mux) => {
                mux.probe();
                true
            }
            Self::Quic(mux) => mux.probe(PROBE).await.is_ok(),
        }
    }

    /// Ends everything: what is queued is sent with a GOAWAY that carries the fault, then the link closes.
    pub fn close(&self, fault: Fault) {
        each!(self, mux => mux.close(fault))
    }

    /// Completes when the link has ended, with the reason. Cancel safe.
    pub async fn closed(&self) -> Fault {
        each!(self, mux => mux.closed().await)
    }

    /// Whether the link has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        each!(self, mux => mux.is_closed())
    }

    /// Counters and state now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        each!(self, mux => mux.stats())
    }

    /// Streams open now; cheaper than `stats`.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        each!(self, mux => mux.open_streams())
    }
}

/// A stream the peer opened, waiting for an answer. Dropping it refuses it.
#[derive(Debug)]
pub enum Incoming {
    /// TLS over TCP.
    Framed(mux::Incoming),
    /// QUIC.
    Quic(quic::Incoming),
}

impl Incoming {
    /// The CBOR header of OPEN.
    #[must_use]
    pub fn header(&self) -> &Bytes {
        each!(self, incoming => incoming.header())
    }

    /// Decodes the header.
    ///
    /// # Errors
    /// A `Protocol` fault to refuse the stream with.
    pub fn read_header<T: for<'b> minicbor::Decode<'b, ()>>(&self) -> Result<T, Fault> {
        minicbor::decode(self.header()).map_err(|_| Fault::new(Code::Protocol, "the stream's header is malformed"))
    }

    /// Opens it.
    #[must_use]
    pub fn accept(self) -> Stream {
        match self {
            Self::Framed(incoming) => incoming.accept(),
            Self::Quic(incoming) => incoming.accept().into(),
        }
    }

    /// Refuses it.
    pub fn refuse(self, fault: Fault) {
        each!(self, incoming => incoming.refuse(fault))
    }
}
