//! Whose fault it is, and what was dropped.
//!
//! Three tiers. *Noise* is dropped and counted (`DropReason`), and changes nothing. A *session error* (`Fault`) ends
//! one link, session or stream and says whose fault it was. A *process error* ends the process with an exit code.

use std::fmt;

use minicbor::{Decode, Encode};

/// An error and its causes, in one line.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Why something that arrived, or was to be sent, was dropped without ending anything. Each is a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The oldest datagram made room for a newer one.
    DatagramQueueFull,
    /// A datagram larger than the peer takes, or than the path of a QUIC link carries now.
    DatagramTooLarge,
    /// A frame for a stream that has ended already.
    StreamEnded,
    /// A frame of an unknown optional kind.
    UnknownOptionalFrame,
    /// A control message of an unknown optional kind.
    UnknownOptionalMessage,
    /// A control message for a peer whose queue is full.
    ControlQueueFull,
    /// A request that came faster than allowed.
    RateLimited,
    /// A connection that did not say in time who it was.
    HandshakeTimeout,
    /// A connection whose first bytes are neither TLS nor a lane preamble, or too long.
    UnknownFirstBytes,
    /// A connection with a PROXY header from somebody who is not trusted with it, or from a balancer that is, but with
    /// a header that is missing or malformed.
    ProxyHeader,
    /// A ClientHello for a server name that is neither the relay's nor a live tenant's.
    UnknownName,
    /// A lane leg with a ticket that is unknown, used or expired.
    UnknownTicket,
    /// A lane leg whose other leg did not come in time.
    LaneLegAlone,
    /// A tunnel datagram at a relay that forwards none.
    NoForwarder,
    /// A UDP datagram that is neither QUIC nor tunnel: it is empty.
    EmptyDatagram,
    /// Datagrams for QUIC that came faster than it takes them.
    QuicQueueFull,
    /// A connection that came while as many hand-shakes a second were made as may be; it comes again later.
    HandshakesPaced,
    /// A tunnel datagram with an id that no pairing has.
    TunnelUnknown,
    /// A tunnel datagram from another address than the half's own, or on another's link.
    TunnelAddress,
    /// A tunnel datagram for an end that has not said where it is.
    TunnelNotAttached,
    /// A tunnel datagram that is malformed, or of a kind that this end does not take.
    TunnelMalformed,
    /// An ATTACH or CONFIRM whose MAC, counter or nonce does not hold.
    TunnelForged,
    /// A tunnel datagram that the socket had no room for.
    TunnelSocketFull,
    /// A DTLS record that is forged, replayed, or of no session.
    TunnelRecord,
    /// An IP packet that is malformed.
    TunnelPacket,
    /// An IP packet from another address than the device's.
    TunnelSpoofed,
    /// An IP packet to or from what no rule allows.
    TunnelDenied,
    /// An IP packet for an address that no device has now.
    TunnelNoDevice,
    /// An IP packet that came before its tunnel was up, or after it ended.
    TunnelDown,
}

impl DropReason {
    /// Every reason, so that metrics can be announced before they happen.
    pub const ALL: &'static [Self] = &[
        Self::DatagramQueueFull,
        Self::DatagramTooLarge,
        Self::StreamEnded,
        Self::UnknownOptionalFrame,
        Self::UnknownOptionalMessage,
        Self::ControlQueueFull,
        Self::RateLimited,
        Self::HandshakeTimeout,
        Self::UnknownFirstBytes,
        Self::ProxyHeader,
        Self::UnknownName,
        Self::UnknownTicket,
        Self::LaneLegAlone,
        Self::NoForwarder,
        Self::EmptyDatagram,
        Self::QuicQueueFull,
        Self::HandshakesPaced,
        Self::TunnelUnknown,
        Self::TunnelAddress,
        Self::TunnelNotAttached,
        Self::TunnelMalformed,
        Self::TunnelForged,
        Self::TunnelSocketFull,
        Self::TunnelRecord,
        Self::TunnelPacket,
        Self::TunnelSpoofed,
        Self::TunnelDenied,
        Self::TunnelNoDevice,
        Self::TunnelDown,
    ];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::DatagramQueueFull => "datagram_queue_full",
            Self::DatagramTooLarge => "datagram_too_large",
            Self::StreamEnded => "stream_ended",
            Self::UnknownOptionalFrame => "unknown_optional_frame",
            Self::UnknownOptionalMessage => "unknown_optional_message",
            Self::ControlQueueFull => "control_queue_full",
            Self::RateLimited => "rate_limited",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::UnknownFirstBytes => "unknown_first_bytes",
            Self::ProxyHeader => "proxy_header",
            Self::UnknownName => "unknown_name",
            Self::UnknownTicket => "unknown_ticket",
            Self::LaneLegAlone => "lane_leg_alone",
            Self::NoForwarder => "no_forwarder",
            Self::EmptyDatagram => "empty_datagram",
            Self::QuicQueueFull => "quic_queue_full",
            Self::HandshakesPaced => "handshakes_paced",
            Self::TunnelUnknown => "tunnel_unknown",
            Self::TunnelAddress => "tunnel_address",
            Self::TunnelNotAttached => "tunnel_not_attached",
            Self::TunnelMalformed => "tunnel_malformed",
            Self::TunnelForged => "tunnel_forged",
            Self::TunnelSocketFull => "tunnel_socket_full",
            Self::TunnelRecord => "tunnel_record",
            Self::TunnelPacket => "tunnel_packet",
            Self::TunnelSpoofed => "tunnel_spoofed",
            Self::TunnelDenied => "tunnel_denied",
            Self::TunnelNoDevice => "tunnel_no_device",
            Self::TunnelDown => "tunnel_down",
        }
    }
}

/// Why a stream was refused or reset, and why a link was refused: the number travels, the text explains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Code {
    /// No error: the stream is open, or was ended on purpose.
    #[n(0)]
    Ok,
    /// Something failed inside the peer.
    #[n(1)]
    Internal,
    /// Who the peer is was not shown, or wrongly.
    #[n(2)]
    Unauthenticated,
    /// The peer is known but may not do this.
    #[n(3)]
    Forbidden,
    /// The access rules do not allow the target.
    #[n(4)]
    DeniedByPolicy,
    /// No live session serves this origin and group.
    #[n(5)]
    NoRoute,
    /// The host name does not resolve.
    #[n(6)]
    NameNotFound,
    /// The server refused the connection.
    #[n(7)]
    ConnectionRefused,
    /// The server's host or network cannot be reached.
    #[n(8)]
    Unreachable,
    /// It took too long.
    #[n(9)]
    TimedOut,
    /// Too many requests, streams or sessions.
    #[n(10)]
    Limited,
    /// The connection below ended.
    #[n(11)]
    Lost,
    /// The peer broke the protocol.
    #[n(12)]
    Protocol,
    /// The certificate or the holder was revoked.
    #[n(13)]
    Revoked,
    /// The versions do not overlap.
    #[n(14)]
    Version,
    /// The peer is shutting down.
    #[n(15)]
    Draining,
    /// Another live session took this one's place.
    #[n(16)]
    Displaced,
    /// The application's own connection was reset.
    #[n(17)]
    ConnectionReset,
    /// The process that was asked for is gone, and its sessions with it.
    #[n(18)]
    Gone,
}

impl Code {
    /// A short word for metric labels and JSON.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Internal => "internal",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::DeniedByPolicy => "denied_by_policy",
            Self::NoRoute => "no_route",
            Self::NameNotFound => "name_not_found",
            Self::ConnectionRefused => "connection_refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::Limited => "limited",
            Self::Lost => "lost",
            Self::Protocol => "protocol",
            Self::Revoked => "revoked",
            Self::Version => "version",
            Self::Draining => "draining",
            Self::Displaced => "displaced",
            Self::ConnectionReset => "connection_reset",
            Self::Gone => "gone",
        }
    }
}

/// The longest explanation that travels, bytes. What a peer sends beyond it is cut.
const MAX_TEXT: usize = 200;
/// The longest explanation that is only shown here, bytes.
const MAX_SHOWN: usize = 1000;

/// A code with its explanation, as it travels in ANSWER, RESET, REFUSE and GO-AWAY.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub struct Fault {
    /// What kind.
    #[n(0)]
    pub code: Code,
    /// For people; at most 200 bytes, no secrets, no customer addresses.
    #[n(1)]
    #[cbor(decode_with = "decode_text")]
    pub text: String,
}

fn decode_text<C>(d: &mut minicbor::Decoder<'_>, _: &mut C) -> Result<String, minicbor::decode::Error> {
    Ok(cut(d.str()?.to_owned(), MAX_TEXT))
}

impl Fault {
    /// Makes a fault, cutting the text to `MAX_TEXT` bytes.
    #[must_use]
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: cut(text.into(), MAX_TEXT) }
    }

    /// Makes a fault that is only shown here and never sent, so that its text may explain at length: up to
    /// `MAX_SHOWN` bytes.
    #[must_use]
    pub fn explained(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: cut(text.into(), MAX_SHOWN) }
    }
}

fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let at = (0..=most).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(at);
    }
    text
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        if self.text.is_empty() {
            return f.write_str(self.code.label());
        }
        // A peer may have written it: whatever it put there, this stays one line of a log, and moves no cursor.
        for c in self.text.chars().take(MAX_SHOWN) {
            f.write_char(if c.is_control() { ' ' } else { c })?;
        }
        write!(f, " ({})", self.code.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_words_stay_one_line_and_short() {
        let text = format!("gone\u{1b}[2J\n2026-01-01 INFO forged\u{9b}{}", "x".repeat(500));
        let sent = minicbor::to_vec(Fault { code: Code::Lost, text }).unwrap();
        let shown = minicbor::decode::<Fault>(&sent).unwrap().to_string();
        assert!(!shown.contains(char::is_control), "{shown:?}");
        assert!(shown.starts_with("gone [2J 2026") && shown.ends_with(" (lost)") && shown.len() < 250, "{shown}");
    }
}
