//! HELLO: the first frame of each end of a link or session, and the names both are known by.

use minicbor::{Decode, Encode};

use crate::fault::Fault;
use crate::wire::frame;
use crate::{InstanceId, Role, SessionId, TenantId, limits};

/// First field of every HELLO: `HDGR`.
pub const MAGIC: u32 = 0x4844_4752;
/// ALPN of a link.
pub const ALPN_LINK: &[u8] = b"hedgerow-link/1";
/// ALPN of a node's lane leg that is wrapped in TLS to the relay.
pub const ALPN_LANE: &[u8] = b"hedgerow-lane/1";
/// ALPN of the end-to-end session.
pub const ALPN_SESSION: &[u8] = b"hedgerow-session/1";
/// Exporter label of RFC 9266 (`tls-exporter`), with an empty context, 32 bytes.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// What a peer takes at most; the other end stays below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Limits {
    /// Streams the other end may have open at once.
    #[n(0)]
    pub streams: u32,
    /// Bytes the other end may send on a new stream before the first WINDOW.
    #[n(1)]
    pub stream_window: u64,
    /// Bytes the other end may send on all streams before the first WINDOW on stream 0.
    #[n(2)]
    pub connection_window: u64,
    /// The largest datagram taken; 0 = none.
    #[n(3)]
    pub datagram: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: limits::MAX_STREAMS,
            stream_window: limits::INITIAL_STREAM_WINDOW,
            connection_window: limits::CONNECTION_WINDOW,
            datagram: u32::try_from(limits::MAX_DATAGRAM).unwrap_or(0),
        }
    }
}

/// Who a dialler says it is, before it has shown it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Claim {
    /// What it is.
    #[n(0)]
    pub role: Role,
    /// Whose it is.
    #[n(1)]
    pub tenant: TenantId,
}

/// Lets a session outlive its lane.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct Resumption {
    /// Which session.
    #[n(0)]
    pub session: SessionId,
    /// In a first HELLO, this end's half of the resumption secret; in a resuming HELLO of the node, `resumption_mac`;
    /// in one of the device, zeros: it proves itself in RESUME, when it knows both nonces.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub secret: [u8; 32],
    /// Whether this HELLO resumes.
    #[n(2)]
    pub resumes: bool,
    /// Adds a lane to a session that has its first one, instead of replacing them all.
    #[n(3)]
    pub adds: bool,
}

impl std::fmt::Debug for Resumption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Resumption({}, resumes: {})", self.session, self.resumes)
    }
}

/// The first frame of each end.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// `MAGIC`.
    #[n(0)]
    pub magic: u32,
    /// Lowest frame-table version spoken.
    #[n(1)]
    pub version_min: u16,
    /// Highest frame-table version spoken.
    #[n(2)]
    pub version_max: u16,
    /// Feature bits; none so far.
    #[n(3)]
    pub features: u64,
    /// Software name and version, for logs; at most 64 bytes are kept.
    #[n(4)]
    pub build: String,
    /// This run of the process.
    #[n(5)]
    pub instance: InstanceId,
    /// Fresh random bytes: the challenge that the other end's proof answers.
    #[cbor(n(6), with = "minicbor::bytes")]
    pub nonce: [u8; 32],
    /// What this end takes.
    #[n(7)]
    pub limits: Limits,
    /// Diallers of links.
    #[n(8)]
    pub claim: Option<Claim>,
    /// End-to-end sessions.
    #[n(9)]
    pub resumption: Option<Resumption>,
}

impl Hello {
    /// A HELLO of this version without claim and resumption.
    #[must_use]
    pub fn new(instance: InstanceId, nonce: [u8; 32], limits: Limits) -> Self {
        Self {
            magic: MAGIC,
            version_min: frame::VERSION,
            version_max: frame::VERSION,
            features: 0,
            build: concat!("hedgerow/", env!("CARGO_PKG_VERSION")).to_owned(),
            instance,
            nonce,
            limits,
            claim: None,
            resumption: None,
        }
    }

    /// The version both ends speak.
    ///
    /// # Errors
    /// A `Version` fault that names both ranges, or `Protocol` when the magic is wrong.
    pub fn agree(&self, other: &Hello) -> Result<u16, Fault> {
        use crate::fault::Code;
        if other.magic != MAGIC {
            return Err(Fault::new(Code::Protocol, "the peer does not speak this protocol"));
        }
        let version = self.version_max.min(other.version_max);
        if version < self.version_min.max(other.version_min) {
            let text = format!(
                "no common protocol version: {} to {} here, {} to {} at the peer ({})",
                self.version_min,
                self.version_max,
                other.version_min,
                other.version_max,
                other.build.chars().take(64).collect::<String>().escape_default()
            );
            return Err(Fault::new(Code::Version, text));
        }
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Code;

    #[test]
    fn versions_agree_or_say_why_not() {
        let hello = Hello::new(InstanceId::from_random([0; 16]), [0; 32], Limits::default());
        assert_eq!(hello.agree(&hello).unwrap(), 1);
        let newer = Hello { version_min: 2, version_max: 9, ..hello.clone() };
        assert_eq!(hello.agree(&newer).unwrap_err().code, Code::Version);
        let other = Hello { magic: 0, ..hello.clone() };
        assert_eq!(hello.agree(&other).unwrap_err().code, Code::Protocol);
    }
}
