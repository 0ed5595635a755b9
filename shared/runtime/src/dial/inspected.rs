//! Networks that open TLS: noticed by the certificate they show instead of the relay's, and passed, where that is
//! allowed, by a WebSocket inside whose bytes the usual TLS to the relay runs.
//!
//! ```text
//!   ours ── TLS (inspector's CA) ── HTTP/1.1 Upgrade ── WebSocket ── TLS 1.3 (relay's CA, usual ALPN) ── link, lane, HTTP
//! ```
//! Nothing is believed of the outer TLS: name, roots and exporter are those of the inner one.

use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;

use super::way::Way;
use super::{RelayTarget, Wire, client_tls, network, server_name};
use crate::tls;
use crate::websocket::{self, ByteStream};

/// How much of a name in a certificate is shown, bytes.
const SHOWN: usize = 80;

/// What a relay sends in every HTTP answer over TLS: a digest of that TLS session's exporter. Who opens TLS under a CA
/// that is trusted is noticed by it, unless it goes out of its way to hide; nothing is believed for it.
pub const BINDING: &str = "hedgerow-tls-binding";

/// The value of `BINDING` for an exporter.
#[must_use]
pub fn binding(exporter: &[u8; 32]) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::new().chain_update(b"hedgerow tls binding").chain_update(exporter).finalize();
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Who issued a certificate, and for whom.
pub(super) fn issuer_and_subject(leaf: &CertificateDer<'_>) -> (String, String) {
    use x509_parser::prelude::{FromDer, X509Certificate};
    match X509Certificate::from_der(leaf) {
        Ok((_, parsed)) => (readable(&parsed.issuer().to_string()), readable(&parsed.subject().to_string())),
        Err(_) => ("a certificate that cannot be read".to_owned(), "?".to_owned()),
    }
}

/// What to say when somebody else's certificate came instead of the relay's.
pub(super) fn fault(target: &RelayTarget, address: &str, leaf: &CertificateDer<'_>) -> Fault {
    let (issuer, subject) = issuer_and_subject(leaf);
    let mut wanted: Vec<&str> = target.addresses.iter().map(String::as_str).collect();
    if wanted.is_empty() {
        wanted.push(address);
    }
    let text = format!(
        "{address} shows a certificate issued by \"{issuer}\" for \"{subject}\", not one of the relay {name}: if the network inspects TLS, \
         ask for a bypass (no inspection) for {wanted}, or set outbound.inspected_ok = true; else check the relay's CA",
        name = target.name,
        wanted = wanted.join(", "),
    );
    Fault::explained(Code::Unauthenticated, text)
}

/// Looks whose certificate an ordinary client gets, where our hand-shake was refused before one came.
pub(super) async fn look(way: &Way, target: &RelayTarget, timers: &Timers) -> Option<Fault> {
    let (config, foreign) = tls::to_look_at(&target.roots).ok()?;
    let (tcp, _) = way.connect(timers).await.ok()?;
    // The connection is of no use whatever comes of it.
    let _ = client_tls(config, server_name(&target.name).ok()?, tcp, timers).await;
    Some(fault(target, &way.address, &foreign.take()?))
}

fn readable(name: &str) -> String {
    name.chars().filter(|c| !c.is_control() && *c != '"').take(SHOWN).collect()
}

/// The wire inside a WebSocket, over TLS that somebody on the way opens.
pub(super) async fn wire(target: &RelayTarget, tcp: TcpStream, address: &str, timers: &Timers) -> Result<Wire, Fault> {
    let extra = target.network.inspection.as_ref().map(|i| i.ca.as_slice()).unwrap_or_default();
    let config = tls::to_inspector(&target.roots, extra)?;
    let outer = client_tls(config, server_name(&target.name)?, tcp, timers).await.map_err(|fault| {
        let text = format!("{} (the network's own TLS at {address}; see outbound.inspection_ca_file)", fault.text);
        Fault::explained(fault.code, text)
    })?;
    let port = network::split(address).map_or(443, |(_, port)| port);
    let host = network::join(&target.name, port);
    let lost = |why: &dyn std::fmt::Display| {
        Fault::explained(Code::Lost, format!("the network at {address} does not pass a WebSocket to the relay: {why}"))
    };
    let request = http::Request::builder()
        .uri(format!("wss://{host}{}", websocket::PATH))
        .header(http::header::HOST, &host)
        .header(http::header::CONNECTION, "Upgrade")
        .header(http::header::UPGRADE, "websocket")
        .header(http::header::SEC_WEBSOCKET_VERSION, "13")
        .header(http::header::SEC_WEBSOCKET_KEY, generate_key())
        .header(http::header::SEC_WEBSOCKET_PROTOCOL, websocket::PROTOCOL)
        .body(())
        .map_err(|e| lost(&e))?;
    let shake = tokio_tungstenite::client_async_with_config(request, outer, Some(websocket::config()));
    match timeout(timers.handshake, shake).await {
        Ok(Ok((socket, _))) => Ok(Wire::Right(Box::new(ByteStream::new(socket)))),
        Ok(Err(tungstenite::Error::Http(answer))) => Err(lost(&format_args!("it answered {}", answer.status()))),
        Ok(Err(error)) => Err(lost(&error)),
        Err(_) => Err(lost(&"no answer in time")),
    }
}
