//! A link: one persistent, authenticated, multiplexed connection between a dialler (core, node, device) and a relay.
//! This file holds what both ends share; `dialler`, `acceptor` the two ends of the hand-shake; `pathfinder`
//! chooses the transport; `uplink` is a link that comes back by itself.

mod acceptor;
mod backoff;
mod channel;
mod dialler;
mod pathfinder;
mod twins;
mod uplink;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::wire::frame::{self, Frame};
use hedgerow_shared::wire::message::{Accept, Hello};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub use crate::stream::{ReadHalf, Stream, WriteHalf};
pub use acceptor::{Admit, Peer, answer, answer_on, answer_quic};
pub use backoff::Backoff;
pub use channel::{Channel, Incoming};
pub use dialler::{Credentials, connect, connect_on, connect_quic};
pub use pathfinder::{Pathfinder, udp_can_reach};
pub use twins::Twins;
pub use uplink::{Uplink, UplinkConfig, UplinkStatus, Uplinks};

use crate::dial::RelayTarget;

/// A link that is open.
#[derive(Debug, Clone)]
pub struct Link {
    /// Streams, control messages, datagrams.
    pub mux: Channel,
    /// What the other end said of itself.
    pub peer: Hello,
    /// What the relay said when it opened the link.
    pub accept: Accept,
    /// Which transport carries it.
    pub transport: Transport,
    /// Why this one.
    pub reason: Reason,
    /// Address and port of the other end; of a dialler behind a proxy, the relay's as the proxy was asked for it.
    pub address: String,
    /// The very relay process and the way to it, for the lane legs that belong to this link; diallers only.
    pub at: Option<Arc<RelayTarget>>,
}

impl Link {
    /// How it stands, for status pages.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let stats = self.mux.stats();
        serde_json::json!({
            "session": self.accept.session.to_string(), "relay": self.accept.relay, "address": self.address,
            "proxy": self.at.as_ref().and_then(|at| at.proxy()),
            "transport": self.transport.label(), "transport_reason": self.reason.label(),
            "rtt_ms": stats.rtt.map(|r| r.as_secs_f64() * 1e3), "streams": stats.streams,
        })
    }
}

/// What a link runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TLS 1.3 over TCP with the frames of `wire::frame`.
    Tls,
    /// QUIC.
    Quic,
}

impl Transport {
    /// A word for metrics and status.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Quic => "quic",
        }
    }
}

/// Which transports a dialler may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// QUIC where UDP passes, else TLS.
    #[default]
    Auto,
    /// TLS only.
    Tls,
    /// QUIC only: for tests and measurements, there is no fallback.
    Quic,
}

/// Why a link is on its transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The configuration, or whoever opened it, wants this transport.
    Asked,
    /// QUIC answered and carried full-size packets in time.
    Preferred,
    /// UDP did not pass when the link was opened.
    UdpDead,
    /// UDP passed, and then did not any more.
    UdpDied,
    /// UDP was dead at the last attempt and is not asked again yet.
    UdpRemembered,
    /// UDP passes again.
    UdpBack,
    /// A proxy is in the way, which carries TCP only.
    Proxy,
}

impl Reason {
    /// A word for metrics and status.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Asked => "configured",
            Self::Preferred => "udp_passes",
            Self::UdpDead => "udp_dead",
            Self::UdpDied => "udp_died",
            Self::UdpRemembered => "udp_dead_lately",
            Self::UdpBack => "udp_back",
            Self::Proxy => "proxy",
        }
    }
}

/// Why a link did not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The relay refused, and says when to come back.
    #[error("the relay refused the link: {fault}")]
    Refused {
        /// Why.
        fault: Fault,
        /// How long to wait, milliseconds.
        retry_after_ms: u64,
    },
    /// It could not be reached, or is not the relay it should be.
    #[error("{0}")]
    Failed(Fault),
    /// It is a relay that another entry of the list has a link with already; nothing was said to it but HELLO.
    #[error("{0}")]
    Twin(Fault),
}

impl LinkError {
    /// What is wrong.
    #[must_use]
    pub fn fault(&self) -> &Fault {
        match self {
            Self::Refused { fault, .. } | Self::Failed(fault) | Self::Twin(fault) => fault,
        }
    }
}

impl From<Fault> for LinkError {
    fn from(fault: Fault) -> Self {
        Self::Failed(fault)
    }
}

/// The hand-shake's frames, one at a time, over any stream.
struct Shaking<IO> {
    io: IO,
    input: BytesMut,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Shaking<IO> {
    fn new(io: IO) -> Self {
        Self { io, input: BytesMut::new() }
    }

    /// The stream, and what was read beyond the hand-shake; no buffer when that is nothing.
    fn end(self) -> (IO, Bytes) {
        let leftover = if self.input.is_empty() { Bytes::new() } else { self.input.freeze() };
        (self.io, leftover)
    }

    async fn send(&mut self, frame: Bytes) -> Result<(), Fault> {
        self.io.write_all(&frame).await.map_err(lost)?;
        self.io.flush().await.map_err(lost)
    }

    async fn next(&mut self) -> Result<Frame, Fault> {
        loop {
            let first = frame::take_first(&mut self.input).map_err(|e| Fault::new(Code::Protocol, e.to_string()))?;
            if let Some(frame) = first {
                return Ok(frame);
            }
            if self.io.read_buf(&mut self.input).await.map_err(lost)? == 0 {
                return Err(Fault::new(Code::Lost, "the peer closed during the link's hand-shake"));
            }
        }
    }
}

fn lost(error: std::io::Error) -> Fault {
    Fault::new(Code::Lost, format!("the connection ended during the link's hand-shake: {error}"))
}

fn read<T: for<'b> minicbor::Decode<'b, ()>>(what: &str, body: &Bytes) -> Result<T, Fault> {
    minicbor::decode(body).map_err(|_| Fault::new(Code::Protocol, format!("{what} is malformed")))
}

fn unexpected(wanted: &str, got: &Frame) -> Fault {
    let name = format!("{got:?}");
    let name = name.split(['(', ' ']).next().unwrap_or_default();
    Fault::new(Code::Protocol, format!("expected {wanted}, got {name}"))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod transport_tests;
