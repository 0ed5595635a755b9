//! A link over QUIC (RFC 9000) by quinn: the same hand-shake, control messages, streams and datagrams as over TLS, on
//! what QUIC has of its own.
//!
//! ```text
//!   first bidirectional stream   the frames HELLO, PROOF, ACCEPT, REFUSE, then CONTROL, RESET, GOAWAY   (wire::frame)
//!   every other one              OPEN by its opener, ANSWER by the other end, then bare bytes
//!     FINISH                     the stream's FIN
//!     RESET                      RESET_STREAM and STOP_SENDING with the number of the fault's code; plus 0x100 when the
//!                                text follows as a RESET frame on the first stream, under QUIC's id of the reset one
//!   datagrams (RFC 9221)         one kind byte of the frame table, then DATAGRAM: the bytes; PING, PONG: u64, padding
//!   the end                      GOAWAY, then CONNECTION_CLOSE with number and text of the fault
//! ```
//!
//! QUIC keeps the credits, so there is no DATA and no WINDOW. A PONG repeats the PING whole, padding included: it
//! shows that packets of the path's full size pass in both directions. No 0-RTT; the bit that QUIC may grease stays as
//! it is (RFC 9287 off), because tunnel datagrams on the same port are told apart by it.

mod datagram;
mod driver;
mod endpoint;
mod incoming;
mod inner;
mod keys;
mod mux;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::{self, Timers};
use hedgerow_shared::wire::message::{ALPN_LINK, EXPORTER_LABEL, Limits};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, EndpointConfig, ServerConfig, TransportConfig, VarInt};

use crate::clock::random;

pub use datagram::Datagram;
pub use endpoint::{Tasks, client_endpoint};
pub use incoming::Incoming;
pub use mux::Mux;
pub(crate) use mux::Opened;
pub use stream::{ReadHalf, WriteHalf};

/// What a stream's reader may leave unread: QUIC windows do not grow by themselves here, and links carry no bulk where
/// a lane can be had.
pub const STREAM_WINDOW: u32 = 1024 * 1024;
/// Unread bytes and bytes on their way, before a peer has shown who it is: a hand-shake is far smaller.
const HANDSHAKE_WINDOW: u32 = 64 * 1024;
/// Bytes sent and not acknowledged over all streams.
const SEND_WINDOW: u64 = 8 * 1024 * 1024;
/// Round-trip time assumed before the first is measured: decides when the first packets are sent again, and the
/// fallback to TLS does not wait for QUIC's cautious 333 ms more than once.
const INITIAL_RTT: Duration = Duration::from_millis(150);
/// Largest UDP payload that is tried: Ethernet's, less IPv6 and UDP headers.
const MTU_LIMIT: u16 = 1452;

/// The dialler's configuration for one relay. `tls` as `tls::to_relay` makes it, with the link's ALPN.
///
/// # Errors
/// The TLS provider lacks what QUIC's first packets need.
pub fn client_config(tls: Arc<rustls::ClientConfig>, timers: &Timers) -> Result<ClientConfig, Fault> {
    let crypto = QuicClientConfig::try_from(tls).map_err(internal)?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    // The relay opens streams only after it has accepted us.
    let mut transport = transport(timers, 0)?;
    // The dialler keeps the path open, and a relay that is gone is noticed by nothing but silence.
    transport.keep_alive_interval(Some(timers.ping_interval / 3));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// The relay's configuration: its TLS identity, with the link's ALPN only.
///
/// # Errors
/// The TLS provider lacks what QUIC's first packets need.
pub fn server_config(tls: &rustls::ServerConfig, timers: &Timers) -> Result<ServerConfig, Fault> {
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![ALPN_LINK.to_vec()];
    tls.max_early_data_size = 0;
    let crypto = QuicServerConfig::try_from(tls).map_err(internal)?;
    let mut config = ServerConfig::new(Arc::new(crypto), keys::tokens());
    config.transport_config(Arc::new(transport(timers, 1)?));
    config.migration(true);
    Ok(config)
}

/// What both kinds of endpoint share.
#[must_use]
pub fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::new(keys::reset(&random()));
    config.grease_quic_bit(false);
    config
}

/// A relay's: with a key that outlives its process, so that after a restart the first packet of a peer is answered
/// with a stateless reset (RFC 9000 section 10.3), and the peer need not find out by silence.
#[must_use]
pub fn relay_endpoint_config(reset_key: &[u8; 32]) -> EndpointConfig {
    let mut config = EndpointConfig::new(keys::reset(reset_key));
    config.grease_quic_bit(false);
    config
}

/// Until the hand-shake of the link is over, the peer may open `streams` streams and have little on its way.
fn transport(timers: &Timers, streams: u32) -> Result<TransportConfig, Fault> {
    let mut config = TransportConfig::default();
    // As on TLS: a ping after silence, dead after two that stay unanswered.
    let idle = timers.ping_interval + 2 * timers.ping_timeout;
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_LIMIT);
    config
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(HANDSHAKE_WINDOW.into())
        .send_window(SEND_WINDOW)
        .keep_alive_interval(Some(timers.ping_interval))
        .max_idle_timeout(Some(idle.try_into().map_err(internal)?))
        .initial_rtt(INITIAL_RTT)
        .mtu_discovery_config(Some(mtu))
        .datagram_receive_buffer_size(Some(limits::MAX_DATAGRAM_QUEUE * limits::MAX_DATAGRAM))
        .datagram_send_buffer_size(limits::MAX_DATAGRAM_QUEUE * limits::MAX_DATAGRAM);
    Ok(config)
}

/// Streams that a peer may have open at first. quinn makes room for every stream that is allowed (1.4 MB for all of
/// them), so that more are allowed only as they are used.
const FIRST_STREAMS: u32 = 24;
/// How much more are allowed when half of them are open.
const MORE_STREAMS: u32 = 4;

/// Opens the windows after the hand-shake of the link.
fn open_up(connection: &quinn::Connection, ours: &Limits) {
    allow(connection, ours.streams.min(FIRST_STREAMS));
    connection.set_receive_window(VarInt::from_u64(ours.connection_window).unwrap_or(VarInt::MAX));
}

/// Lets the peer have so many streams open at once.
fn allow(connection: &quinn::Connection, streams: u32) {
    // The control stream is one of them.
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(streams.saturating_add(1)));
}

/// How many streams the peer may have open, when `open` of `allowed` are.
fn allowance(open: usize, allowed: u32, most: u32) -> u32 {
    let half = usize::try_from(allowed / 2).unwrap_or(usize::MAX);
    if open < half { allowed } else { allowed.saturating_mul(MORE_STREAMS).min(most) }
}

/// The channel binding of RFC 9266.
///
/// # Errors
/// `Internal`, should the exporter not be available.
pub fn exporter(connection: &quinn::Connection) -> Result<[u8; 32], Fault> {
    let mut out = [0; 32];
    connection
        .export_keying_material(&mut out, EXPORTER_LABEL, b"")
        .map_err(|_| Fault::new(Code::Internal, "QUIC has no exporter"))?;
    Ok(out)
}

/// Ends a connection with a fault for the other end.
pub fn close(connection: &quinn::Connection, fault: &Fault) {
    connection.close(number(fault.code), fault.text.as_bytes());
}

/// Ends an endpoint and every connection on it with a fault for the other ends.
pub fn close_endpoint(endpoint: &quinn::Endpoint, fault: &Fault) {
    endpoint.close(number(fault.code), fault.text.as_bytes());
}

/// What a failed or ended connection means.
#[must_use]
pub fn connection_fault(error: &quinn::ConnectionError) -> Fault {
    use quinn::ConnectionError as E;
    match error {
        E::ApplicationClosed(close) => Fault::new(code(close.error_code), String::from_utf8_lossy(&close.reason)),
        E::ConnectionClosed(close) => match tls_alert(close.error_code) {
            Some(alert) => Fault::new(Code::Unauthenticated, format!("the peer ended the QUIC hand-shake: {alert}")),
            None => Fault::new(Code::Protocol, format!("the peer closed the QUIC connection: {close}")),
        },
        E::TransportError(error) => match tls_alert(error.code) {
            Some(_) => Fault::new(Code::Unauthenticated, format!("the server's certificate was refused: {error}")),
            None => Fault::new(Code::Protocol, format!("QUIC failed: {error}")),
        },
        E::TimedOut => Fault::new(Code::Lost, "the peer does not answer over UDP any more"),
        E::Reset => Fault::new(Code::Lost, "the peer does not know the QUIC connection any more"),
        E::VersionMismatch => Fault::new(Code::Version, "the server speaks no QUIC version of ours"),
        E::LocallyClosed => Fault::new(Code::Lost, "the QUIC connection was closed"),
        E::CidsExhausted => Fault::new(Code::Limited, "QUIC has no connection id left"),
    }
}

/// CRYPTO_ERROR of RFC 9001 section 4.8: 0x100 and the TLS alert. Alerts about certificates only.
fn tls_alert(code: quinn::TransportErrorCode) -> Option<String> {
    let number = u64::from(code);
    matches!(number, 0x12a..=0x131 | 0x133).then(|| format!("TLS alert {}", number - 0x100))
}

/// A fault code as QUIC's error code: the same number as in CBOR.
fn number(code: Code) -> VarInt {
    let number = minicbor::to_vec(code).ok().and_then(|bytes| minicbor::decode::<u32>(&bytes).ok());
    VarInt::from_u32(number.unwrap_or(1))
}

/// Set in the number of a reset whose text comes on the control stream.
const EXPLAINED: u32 = 0x100;

/// The number of a reset, with the word that its text follows.
fn explained(code: Code) -> VarInt {
    VarInt::from_u64(number(code).into_inner() | u64::from(EXPLAINED)).unwrap_or(VarInt::MAX)
}

/// The bare number of a reset, and whether its text follows.
fn is_explained(said: VarInt) -> (VarInt, bool) {
    let flag = u64::from(EXPLAINED);
    let bare = VarInt::from_u64(said.into_inner() & !flag).unwrap_or(said);
    (bare, said.into_inner() & flag != 0)
}

/// Back again; a number that is none of ours is `Internal`.
fn code(number: VarInt) -> Code {
    let bytes = minicbor::to_vec(number.into_inner()).unwrap_or_default();
    minicbor::decode(&bytes).unwrap_or(Code::Internal)
}

/// The fault that a bare number stands for.
fn fault_of(number: VarInt, what: &str) -> Fault {
    Fault::new(code(number), what)
}

fn internal(error: impl std::fmt::Display) -> Fault {
    Fault::new(Code::Internal, error.to_string())
}

/// Where a client's socket is bound: any port of the family that the peer's address has.
fn any_port(peer: SocketAddr) -> SocketAddr {
    match peer {
        SocketAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0u16; 8], 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_streams_are_allowed_when_half_are_open_and_never_more_than_the_limit() {
        assert_eq!([0, 23, 24, 48].map(|open| allowance(open, 48, 1000)), [48, 48, 192, 192]);
        assert_eq!([95, 96].map(|open| allowance(open, 192, 500)), [192, 500]);
        assert_eq!(allowance(500, 500, 500), 500);
        assert_eq!(allowance(0, 0, 0), 0);
    }

    #[test]
    fn codes_travel_as_numbers() {
        for c in [Code::Ok, Code::Lost, Code::Draining, Code::ConnectionReset] {
            assert_eq!(code(number(c)), c);
        }
        assert_eq!(number(Code::Lost).into_inner(), 11);
        assert_eq!(is_explained(explained(Code::Lost)), (number(Code::Lost), true));
        assert_eq!(is_explained(number(Code::Lost)), (number(Code::Lost), false));
        assert_eq!(code(VarInt::from_u32(9999)), Code::Internal);
        assert_eq!(code(VarInt::MAX), Code::Internal);
    }
}
