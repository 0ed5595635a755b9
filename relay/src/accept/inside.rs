//! A link that came inside a WebSocket, from a network that opens TLS: once the upgrade is answered, TLS of the
//! relay's own name begins again on its bytes, and what was agreed on decides, as at the door: link, wrapped lane leg,
//! HTTP/1.1 (for activation and enrolment). Limits and the deadline are the door's; nothing nests twice.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Instant;

use hedgerow_runtime::telemetry::dropped;
use hedgerow_runtime::websocket::{self, ByteStream};
use hedgerow_shared::fault::DropReason;
use hedgerow_shared::wire::message::{ALPN_LANE, ALPN_LINK};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_rustls::server::TlsStream;

use super::{Doors, preamble};
use crate::connect::{self, Version};
use crate::lane::{Carrier, Leg};
use crate::pass::From;
use crate::serve;

type Io = TlsStream<ByteStream<TokioIo<Upgraded>>>;

/// Whether a request asks for the WebSocket.
pub fn is_asked_for<B>(request: &Request<B>) -> bool {
    request.uri().path() == websocket::PATH && request.method() == Method::GET
}

/// The answer 101, or what is missing in the request (RFC 6455 section 4.2.1).
///
/// # Errors
/// One line that says what is missing.
pub fn agree(headers: &HeaderMap) -> Result<Response<()>, &'static str> {
    let has = |name: header::HeaderName, wanted: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
        values.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(wanted))
    };
    if !(has(header::UPGRADE, "websocket") && has(header::CONNECTION, "upgrade")) {
        return Err("send Connection: Upgrade and Upgrade: websocket: a proxy on the way may have taken them out");
    }
    if !has(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err("send Sec-WebSocket-Version: 13");
    }
    if !has(header::SEC_WEBSOCKET_PROTOCOL, websocket::PROTOCOL) {
        return Err("send Sec-WebSocket-Protocol: hedgerow-link.1");
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).filter(|k| k.len() == 24);
    let key = key.ok_or("send Sec-WebSocket-Key with 16 random bytes in base64")?;
    let mut answer = Response::new(());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = HeaderValue::from_str(&websocket::accept_key(key)).map_err(|_| "the key cannot be answered")?;
    for (name, value) in [
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::CONNECTION, HeaderValue::from_static("Upgrade")),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
        (header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(websocket::PROTOCOL)),
    ] {
        answer.headers_mut().insert(name, value);
    }
    Ok(answer)
}

/// The upgrade of a request that was agreed to.
#[must_use]
pub fn upgrade(request: &mut Request<Incoming>) -> OnUpgrade {
    hyper::upgrade::on(request)
}

/// Serves what is inside, to its end. `outer` is what the outer connection holds. Boxed, since HTTP may be inside HTTP.
#[must_use]
pub fn serve(
    doors: Doors,
    upgrade: OnUpgrade,
    address: SocketAddr,
    outer: Box<dyn Send>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let place = doors.waiting.enter(address.ip());
        let until = tokio::time::Instant::now() + doors.relay.timers.handshake;
        let opened = tokio::select! {
            opened = tokio::time::timeout_at(until, open(&doors, upgrade)) => opened,
            () = place.shown_out() => return,
        };
        let opened = match opened {
            Ok(Some(opened)) => opened,
            Ok(None) => return,
            Err(_) => return dropped(DropReason::HandshakeTimeout),
        };
        metrics::counter!("hedgerow_relay_connections_total", "kind" => "inside_websocket").increment(1);
        match opened {
            Opened::Link(tls) => {
                let _outer = outer;
                serve::link(&doors.relay, tls, address, None, place).await;
            }
            Opened::Lane(tls) => {
                let mut tls = *tls;
                let Ok(Some((ticket, first))) = tokio::time::timeout_at(until, preamble(&mut tls)).await else {
                    return dropped(DropReason::UnknownFirstBytes);
                };
                let leg = Leg { carrier: Carrier::Wrapped(Box::new(tls)), first, address, probe: None, permit: outer };
                doors.relay.lanes.arrive(&ticket, leg, Instant::now());
            }
            Opened::Http(tls) => {
                drop(place);
                let _outer = outer;
                let Ok(permit) = doors.permits.clone().try_acquire_owned() else {
                    return dropped(DropReason::RateLimited);
                };
                let binding = connect::binding(tls.get_ref().1);
                let from = From { address, probe: None };
                connect::serve(&doors.relay, *tls, Version::One, from, permit, None, binding).await;
            }
        }
    })
}

enum Opened {
    Link(Box<Io>),
    Lane(Box<Io>),
    Http(Box<Io>),
}

async fn open(doors: &Doors, upgrade: OnUpgrade) -> Option<Opened> {
    let io = ByteStream::accepted(TokioIo::new(upgrade.await.ok()?)).await;
    let acceptor = doors.tls.read().clone();
    let tls = match acceptor.accept(io).await {
        Ok(tls) => Box::new(tls),
        Err(error) => {
            tracing::debug!(%error, "TLS hand-shake inside a WebSocket failed");
            metrics::counter!("hedgerow_relay_tls_failures_total").increment(1);
            return None;
        }
    };
    match tls.get_ref().1.alpn_protocol() {
        Some(p) if p == ALPN_LINK => Some(Opened::Link(tls)),
        Some(p) if p == ALPN_LANE => Some(Opened::Lane(tls)),
        Some(b"http/1.1") => Some(Opened::Http(tls)),
        _ => {
            dropped(DropReason::UnknownFirstBytes);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(leave_out: &str) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "hedgerow-link.1"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            if name != leave_out {
                map.insert(name, HeaderValue::from_static(value));
            }
        }
        map
    }

    #[test]
    fn an_upgrade_is_answered_as_the_rfc_has_it_and_nothing_may_miss() {
        let answer = agree(&headers("")).unwrap();
        assert_eq!(answer.status(), 101);
        // The example of RFC 6455 section 1.3.
        assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        for name in headers("").keys() {
            let why = agree(&headers(name.as_str())).unwrap_err();
            assert!(why.starts_with("send "), "{name}: {why}");
        }
    }
}
