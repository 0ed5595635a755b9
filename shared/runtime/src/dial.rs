//! Reaching a relay: TCP, TLS, and HTTP CONNECT to an origin behind it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::{Origin, TenantId};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::scope::Scope;
use crate::tls::{self, RelayRoots};

/// A relay as a dialler knows it.
#[derive(Debug, Clone)]
pub struct RelayTarget {
    /// `host:port`, tried in this order.
    pub addresses: Vec<String>,
    /// The relay's configured name: what its certificate must name.
    pub name: String,
    /// Whom to trust for it.
    pub roots: RelayRoots,
}

/// The next address of a name is tried this long after the one before (RFC 8305).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Connects to the first of `host:port` addresses that answers; both address families are tried, interleaved.
///
/// # Errors
/// What the last attempt said, with the address.
pub async fn tcp(addresses: &[String], limit: Duration) -> Result<TcpStream, Fault> {
    let mut last = Fault::new(Code::Unreachable, "no relay address is configured");
    for address in addresses {
        let found = timeout(limit, lookup_host(address.as_str())).await;
        let found: Vec<SocketAddr> = match found {
            Ok(Ok(found)) => found.collect(),
            Ok(Err(error)) => {
                last = Fault::new(Code::NameNotFound, format!("{address}: {error}"));
                continue;
            }
            Err(_) => {
                last = Fault::new(Code::TimedOut, format!("{address}: the name did not resolve in time"));
                continue;
            }
        };
        match race(interleave(found), limit).await {
            Ok(stream) => {
                prepare(&stream);
                return Ok(stream);
            }
            Err(error) => last = connect_fault(address, &error),
        }
    }
    Err(last)
}

/// IPv6 and IPv4 in turn, IPv6 first.
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let (six, four): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv6);
    let mut out = Vec::with_capacity(six.len() + four.len());
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    loop {
        match (six.next(), four.next()) {
            (None, None) => return out,
            (a, b) => out.extend(a.into_iter().chain(b)),
        }
    }
}

/// Happy eyeballs: each attempt starts when the one before fails or has taken `ATTEMPT_DELAY`.
async fn race(addresses: Vec<SocketAddr>, limit: Duration) -> io::Result<TcpStream> {
    use futures_util::stream::{FuturesUnordered, StreamExt};
    let mut waiting = addresses.into_iter();
    let mut running = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        match waiting.next() {
            Some(address) => running.push(TcpStream::connect(address)),
            None if running.is_empty() => return Err(last),
            None => {}
        }
        let pause = if waiting.len() == 0 { limit } else { ATTEMPT_DELAY };
        tokio::select! {
            done = running.next() => match done {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => last = error,
                None => {}
            },
            () = tokio::time::sleep(pause) => {}
            () = tokio::time::sleep_until(deadline) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// A socket for small frames at once, whose dead peer is noticed even when nothing is sent.
pub fn prepare(stream: &TcpStream) {
    // Both are improvements only; a socket that refuses them still works.
    let _ = stream.set_nodelay(true);
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(20));
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// What a failed connection attempt means.
#[must_use]
pub fn connect_fault(address: &str, error: &io::Error) -> Fault {
    let code = match error.kind() {
        io::ErrorKind::ConnectionRefused => Code::ConnectionRefused,
        io::ErrorKind::TimedOut => Code::TimedOut,
        io::ErrorKind::ConnectionReset => Code::ConnectionReset,
        io::ErrorKind::NotFound => Code::NameNotFound,
        _ => Code::Unreachable,
    };
    Fault::new(code, format!("{address}: {error}"))
}

/// TLS to a relay, its certificate checked for `target.name`.
///
/// # Errors
/// `Unauthenticated` when the certificate does not hold, otherwise what failed.
pub async fn relay_tls(target: &RelayTarget, alpn: &[&[u8]], timers: &Timers) -> Result<TlsStream<TcpStream>, Fault> {
    let config = tls::to_relay(&target.roots, alpn)?;
    let name = server_name(&target.name)?;
    let tcp = tcp(&target.addresses, timers.connect).await?;
    client_tls(config, name, tcp, timers).await
}

/// A TLS client hand-shake with a deadline and an explanation.
///
/// # Errors
/// `Unauthenticated` when the certificate does not hold, otherwise what failed.
pub async fn client_tls<IO>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    io: IO,
    timers: &Timers,
) -> Result<TlsStream<IO>, Fault>
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    match timeout(timers.handshake, TlsConnector::from(config).connect(name, io)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(tls_fault(&error)),
        Err(_) => Err(Fault::new(Code::TimedOut, "the TLS hand-shake took too long")),
    }
}

/// What a failed TLS hand-shake means.
#[must_use]
pub fn tls_fault(error: &io::Error) -> Fault {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(why)) => {
            Fault::new(Code::Unauthenticated, format!("the server's certificate was refused: {why}"))
        }
        Some(other) => Fault::new(Code::Protocol, format!("the TLS hand-shake failed: {other}")),
        None => Fault::new(Code::Lost, format!("the connection ended during the TLS hand-shake: {error}")),
    }
}

/// A TLS server name from configuration.
///
/// # Errors
/// `Protocol` when it is neither a host name nor an address.
pub fn server_name(name: &str) -> Result<ServerName<'static>, Fault> {
    ServerName::try_from(name.to_owned())
        .map_err(|_| Fault::new(Code::Protocol, format!("{name:?} is not a host name or address")))
}

/// A connection to an origin, ready for the inner TLS.
pub type OriginStream = TokioIo<hyper::upgrade::Upgraded>;

/// HTTP CONNECT through the relay to a tenant's origin (RFC 9110 section 9.3.6).
///
/// # Errors
/// What failed; a refusal by the relay carries its explanation.
pub async fn origin(
    target: &RelayTarget,
    tenant: &TenantId,
    origin: Origin,
    timers: &Timers,
    scope: &Scope,
) -> Result<OriginStream, Fault> {
    let tls = relay_tls(target, &[b"http/1.1"], timers).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(http_fault)?;
    scope.spawn(async move {
        // The response tells of errors; the connection's own result adds nothing.
        let _ = connection.with_upgrades().await;
    });
    let authority = format!("{origin}.{tenant}.hedgerow:443");
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(&authority)
        .header(http::header::HOST, &authority)
        .header("Tenant-Id", tenant.as_str())
        .header("Origin-Server-Id", origin.as_str())
        .body(Empty::<Bytes>::new())
        .map_err(http_fault)?;
    let response = timeout(timers.request, sender.send_request(request))
        .await
        .map_err(|_| Fault::new(Code::TimedOut, "the relay did not answer CONNECT in time"))?
        .map_err(http_fault)?;
    if response.status() != StatusCode::OK {
        return Err(refusal(response, timers).await);
    }
    hyper::upgrade::on(response).await.map(TokioIo::new).map_err(http_fault)
}

/// Turns a relay's refusal into a fault with its own words.
async fn refusal(response: http::Response<hyper::body::Incoming>, timers: &Timers) -> Fault {
    let status = response.status();
    let body = http_body_util::Limited::new(response.into_body(), 4096).collect();
    let text =
        timeout(timers.handshake, body).await.ok().and_then(Result::ok).map(|b| b.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    let code = match status {
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Code::Forbidden,
        StatusCode::TOO_MANY_REQUESTS => Code::Limited,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::NOT_FOUND => Code::NoRoute,
        StatusCode::GATEWAY_TIMEOUT => Code::TimedOut,
        _ => Code::Protocol,
    };
    let text = if text.is_empty() {
        format!("the relay answered {status}")
    } else {
        format!("the relay answered {status}: {text}")
    };
    Fault::new(code, text)
}

fn http_fault(error: impl std::fmt::Display) -> Fault {
    Fault::new(Code::Lost, format!("HTTP to the relay failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_are_tried_in_turn() {
        let list = ["1.1.1.1:1", "2.2.2.2:1", "[::1]:1"].map(|a| a.parse().unwrap()).to_vec();
        let order: Vec<String> = interleave(list).iter().map(ToString::to_string).collect();
        assert_eq!(order, ["[::1]:1", "1.1.1.1:1", "2.2.2.2:1"]);
    }

    #[tokio::test]
    async fn a_refused_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let fault = tcp(std::slice::from_ref(&address), Duration::from_secs(2)).await.unwrap_err();
        assert_eq!(fault.code, Code::ConnectionRefused);
        assert!(fault.text.contains(&address));
    }
}
