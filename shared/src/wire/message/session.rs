//! The end-to-end session of device and node: what a stream is for, and going on over another lane.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use minicbor::{Decode, Encode};

use super::keyed_hash;
use crate::wire::frame;
use crate::{Role, SessionId, TunnelId};

/// The header in OPEN inside an end-to-end session: a TCP connection from the node to a server inside.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SessionOpen {
    /// Host name, or an address in its usual form.
    #[n(0)]
    pub host: String,
    /// Port.
    #[n(1)]
    pub port: u16,
    /// Ties log lines of one request together.
    #[n(2)]
    pub trace: Option<String>,
    /// Not a connection: an IP tunnel, please. The answer on the stream is one CBOR `TunnelGrant`, then FINISH; `host`
    /// is `TUNNEL_HOST`, which a node that knows no tunnels refuses as a name.
    #[n(3)]
    pub tunnel: Option<TunnelAsk>,
}

/// `SessionOpen::host` of a request for a tunnel: no host name.
pub const TUNNEL_HOST: &str = "(tunnel)";

/// A device asks for an IP tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TunnelAsk {
    /// The largest IP packet it can take, bytes.
    #[n(0)]
    pub mtu: u16,
}

/// What a node gives for a tunnel. The pairing, and with it the way to each other, is the device's to ask of the relay.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TunnelGrant {
    /// What both call it.
    #[n(0)]
    pub tunnel: TunnelId,
    /// The device's address inside; packets from any other are dropped.
    #[n(1)]
    pub v4: Ipv4Addr,
    /// The same for IPv6, where the node has any.
    #[n(2)]
    pub v6: Option<Ipv6Addr>,
    /// Name servers inside.
    #[n(3)]
    pub dns: Vec<IpAddr>,
    /// The domains they are asked about: the domain itself and all below it. Empty: every name.
    #[n(4)]
    pub suffixes: Vec<String>,
    /// What may be reached: address and number of leading bits.
    #[n(5)]
    pub routes: Vec<(IpAddr, u8)>,
    /// The largest IP packet the node takes, bytes; the path may carry less.
    #[n(6)]
    pub mtu: u16,
    /// Seconds without IP packets after which the node ends the tunnel; a device that needs it again asks again.
    #[n(7)]
    pub idle_s: u32,
    /// Seconds after which a new tunnel takes this one's place, with new keys and a new check of both certificates.
    #[n(8)]
    pub lifetime_s: u32,
}

impl TunnelGrant {
    /// The most that an answer may take, bytes: some thousand routes.
    pub const MAX: usize = 64 * 1024;
}

/// Where one end stands on one stream when a session moves to a new lane.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ResumeStream {
    /// The stream.
    #[n(0)]
    pub stream: u32,
    /// Next offset expected.
    #[n(1)]
    pub expected: u64,
    /// Offset up to which the other end may send.
    #[n(2)]
    pub limit: u64,
    /// FINISH seen.
    #[n(3)]
    pub finished: bool,
    /// RESET seen or sent.
    #[n(4)]
    pub reset: bool,
    /// ANSWER seen, or sent.
    #[n(5)]
    pub answered: bool,
}

/// The first frames of each end after a resuming HELLO: the last has `more` unset.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Resume {
    /// Every stream this end holds.
    #[n(0)]
    pub streams: Vec<ResumeStream>,
    /// The highest stream id this end opened; 0 = none.
    #[n(1)]
    pub highest_opened: u32,
    /// The highest stream id of the other end that this end has seen; 0 = none.
    #[n(2)]
    pub highest_accepted: u32,
    /// Another RESUME with more streams follows.
    #[n(3)]
    pub more: bool,
    /// The device's proof, in its first RESUME: `resumption_mac` as `Prover::Dialler`.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub mac: Option<[u8; 32]>,
}

impl Resume {
    /// Streams in one RESUME frame: each takes at most 36 bytes of its 16 KiB.
    pub const STREAMS_PER_FRAME: usize = 400;

    /// The same in frames that fit the wire.
    #[must_use]
    pub fn into_frames(self) -> Vec<Bytes> {
        let mut parts: Vec<_> = self.streams.chunks(Self::STREAMS_PER_FRAME).map(<[_]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let count = parts.len();
        let part = |(at, streams)| Self {
            streams,
            more: at + 1 < count,
            mac: self.mac.filter(|_| at == 0),
            highest_opened: self.highest_opened,
            highest_accepted: self.highest_accepted,
        };
        parts.into_iter().enumerate().map(part).map(|p| frame::cbor(frame::kind::RESUME, 0, &p)).collect()
    }
}

/// The secret that both halves of a first HELLO make: what a later resumption must know.
#[must_use]
pub fn resumption_secret(session: SessionId, device_half: &[u8; 32], node_half: &[u8; 32]) -> [u8; 32] {
    let text = [b"hedgerow session resumption v1\0", session.as_bytes().as_slice(), node_half].concat();
    keyed_hash(device_half, &text)
}

/// What proves, inside a new lane's TLS, that an end knows a session's resumption secret.
#[must_use]
pub fn resumption_mac(
    secret: &[u8; 32],
    prover: Role,
    session: SessionId,
    device_nonce: &[u8; 32],
    node_nonce: &[u8; 32],
) -> [u8; 32] {
    let mut text = b"hedgerow session resume v1\0".to_vec();
    for part in [prover.as_str().as_bytes(), session.as_bytes(), device_nonce, node_nonce] {
        text.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        text.extend_from_slice(part);
    }
    keyed_hash(secret, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumption_proof_fits_one_end_one_session_and_one_pair_of_nonces() {
        let session = |n| SessionId::from_random([n; 16]);
        let secret = resumption_secret(session(1), &[1; 32], &[2; 32]);
        let base = resumption_mac(&secret, Role::Device, session(1), &[3; 32], &[4; 32]);
        for other in [
            resumption_mac(&secret, Role::Node, session(1), &[3; 32], &[4; 32]),
            resumption_mac(&secret, Role::Device, session(2), &[3; 32], &[4; 32]),
            resumption_mac(&secret, Role::Device, session(1), &[0; 32], &[4; 32]),
            resumption_mac(&secret, Role::Device, session(1), &[3; 32], &[0; 32]),
            resumption_mac(&[0; 32], Role::Device, session(1), &[3; 32], &[4; 32]),
        ] {
            assert_ne!(base, other);
        }
        assert_ne!(secret, resumption_secret(session(1), &[2; 32], &[1; 32]));
        assert_ne!(secret, resumption_secret(session(2), &[1; 32], &[2; 32]));
    }
}
