//! HTTP at the relay's own name, for clients that have no link: CONNECT to a tenant's `core` or `bws`, and the look-up
//! of an address. HTTP/1.1 and HTTP/2, as ALPN agreed.
//!
//! ```text
//!   CONNECT server01:18084 HTTP/1.1        the authority is for logs only
//!   Tenant-Id: S12345678                   whose
//!   Origin-Server-Id: bws                  or core
//! ```
//! Answers: 200, then bytes both ways. 400 a header is missing or wrong, 403 not without a certificate or tenant blocked,
//! 404 unknown tenant, 405 another method, 429 too fast, 502 the endpoint refused, 503 nothing connected serves it,
//! 504 no answer in time; one line of text says what to do. Never 407: the relay asks for no proxy credentials.
//!
//! The plain-HTTP port takes nothing but CONNECT to `bws`, whose clients bring TLS of their own: 403 for another origin,
//! 405 for another method.

mod lookup;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hedgerow_runtime::telemetry::dropped;
use hedgerow_runtime::{dial, tls};
use hedgerow_shared::fault::{Code, DropReason, Fault};
use hedgerow_shared::limits::MAX_FIRST_BYTES;
use hedgerow_shared::wire::message::{Destination, Vouched};
use hedgerow_shared::{Origin, TenantId};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;

use crate::accept::{Doors, inside};
use crate::limit::client_key;
use crate::pass::{Asked, From, Named};
use crate::route::{self, Asker};
use crate::state::{self, Relay};
use crate::store::TenantState;

/// Of an authority, what is shown: a name of full length and a port.
const MAX_AUTHORITY: usize = 260;
/// CONNECTs at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// Streams that a client may reset before their answer, at once (rapid reset).
const MAX_PENDING_RESETS: usize = 20;
/// Resets that a client may make us send on one connection (MadeYouReset).
const MAX_OWN_RESETS: usize = 100;

/// Which HTTP the hand-shake agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
    /// HTTP/1.1 without TLS: `bws` only.
    Plain,
}

type Answer = Response<Full<Bytes>>;

/// Requests and tunnels open on one connection: one without any is closed after a while. The connection's permit goes
/// back with the last of them.
struct Activity {
    open: AtomicUsize,
    _permit: OwnedSemaphorePermit,
}

struct Busy(Arc<Activity>);

impl Busy {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.open.fetch_add(1, Ordering::Relaxed);
        Self(activity.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What shows a client that no one opened its TLS session with us: a digest of the session's exporter.
#[must_use]
pub fn binding<D>(session: &rustls::ConnectionCommon<D>) -> Option<HeaderValue> {
    HeaderValue::from_str(&dial::binding(&tls::exporter(session).ok()?)).ok()
}

/// Serves one connection to its end. `doors` take what comes inside a WebSocket; without them none is taken. Every
/// answer carries `binding`.
pub async fn serve<IO>(
    relay: &Arc<Relay>,
    io: IO,
    version: Version,
    from: From,
    permit: OwnedSemaphorePermit,
    doors: Option<&Doors>,
    binding: Option<HeaderValue>,
) where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let idle = relay.timers.handshake;
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder = match version {
        Version::One | Version::Plain => builder.http1_only(),
        Version::Two => builder.http2_only(),
    };
    builder.http1().timer(TokioTimer::new()).header_read_timeout(idle).max_buf_size(MAX_FIRST_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_FIRST_BYTES).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_OWN_RESETS)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024)
        .keep_alive_interval(relay.timers.ping_interval)
        .keep_alive_timeout(relay.timers.ping_timeout);
    let activity = Arc::new(Activity { open: AtomicUsize::new(0), _permit: permit });
    let (own, own_activity, doors) = (relay.clone(), activity.clone(), doors.cloned());
    let service = service_fn(move |request| {
        let (relay, busy, doors) = (own.clone(), Busy::new(&own_activity), doors.clone());
        let binding = binding.clone();
        async move {
            let mut answer = match doors {
                Some(doors) if inside::is_asked_for(&request) => websocket(doors, request, from.address, busy),
                _ => answer(&relay, request, version, from, busy).await,
            };
            if let Some(binding) = binding {
                answer.headers_mut().insert(dial::BINDING, binding);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(io), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "HTTP connection ended");
            }
        }
        () = until_idle(&activity, idle) => {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(Duration::from_secs(1), connection).await;
        }
    }
}

/// Completes when nothing has been open for `limit`, give or take a half.
async fn until_idle(activity: &Activity, limit: Duration) {
    let mut since = Instant::now();
    loop {
        tokio::time::sleep(limit / 2).await;
        if activity.open.load(Ordering::Relaxed) > 0 {
            since = Instant::now();
        } else if since.elapsed() >= limit {
            return;
        }
    }
}

async fn answer(relay: &Arc<Relay>, request: Request<Incoming>, version: Version, from: From, busy: Busy) -> Answer {
    let answer = match (request.method(), request.uri().path()) {
        (&Method::CONNECT, _) => connect(relay, request, version, from, busy).await,
        _ if version == Version::Plain => {
            let mut answer = text(
                StatusCode::METHOD_NOT_ALLOWED,
                "this port takes only CONNECT with Tenant-Id and Origin-Server-Id: bws; use https:// for the rest",
            );
            answer.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("CONNECT"));
            answer
        }
        (&Method::POST, "/lookup") => lookup::answer(relay, request, from.address).await,
        (_, "/lookup") => {
            let mut answer =
                text(StatusCode::METHOD_NOT_ALLOWED, "ask by POST with the JSON body {\"email\": \"...\"}");
            answer.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("POST"));
            answer
        }
        (&Method::GET | &Method::HEAD, _) => text(
            StatusCode::NOT_FOUND,
            "this is a Hedgerow relay: use CONNECT with Tenant-Id and Origin-Server-Id, or POST /lookup",
        ),
        _ => {
            let mut answer = text(
                StatusCode::METHOD_NOT_ALLOWED,
                "use CONNECT with Tenant-Id and Origin-Server-Id, or POST /lookup",
            );
            answer.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("CONNECT, POST"));
            answer
        }
    };
    metrics::counter!("hedgerow_relay_http_total", "status" => answer.status().as_str().to_owned()).increment(1);
    answer
}

/// The upgrade to a WebSocket, and what is inside.
fn websocket(doors: Doors, mut request: Request<Incoming>, address: SocketAddr, busy: Busy) -> Answer {
    let answer = match inside::agree(request.headers()) {
        Ok(agreed) => {
            let upgrade = inside::upgrade(&mut request);
            let work = doors.relay.work.clone();
            work.spawn(inside::serve(doors, upgrade, address, Box::new(busy)));
            agreed.map(|()| Full::default())
        }
        Err(why) => text(StatusCode::UPGRADE_REQUIRED, why),
    };
    metrics::counter!("hedgerow_relay_http_total", "status" => answer.status().as_str().to_owned()).increment(1);
    answer
}

async fn connect(
    relay: &Arc<Relay>,
    mut request: Request<Incoming>,
    version: Version,
    from: From,
    busy: Busy,
) -> Answer {
    let to = match destination(request.headers()) {
        Ok(to) => to,
        Err(why) => return text(StatusCode::BAD_REQUEST, why),
    };
    let client = client_key(from.address.ip());
    if let Err(wait) = relay.connect_client.take(client, Instant::now()) {
        return too_fast(wait);
    }
    if version == Version::Plain && to.origin != Origin::Bws {
        let fault = Fault::new(Code::Forbidden, "the plain-HTTP port serves origin bws only: use https:// for others");
        return refused(&fault, StatusCode::FORBIDDEN);
    }
    if let Err(fault) = may(relay, &to) {
        return refused(&fault.1, fault.0);
    }
    if let Err(wait) = relay.connect_tenant.take(to.tenant.clone(), Instant::now()) {
        return too_fast(wait);
    }
    let Some(share) = relay.tunnels.take(client) else {
        dropped(DropReason::RateLimited);
        return text(StatusCode::TOO_MANY_REQUESTS, "too many tunnels are open from this address: close some first");
    };
    let vouched = Vouched { role: None, id: None, address: from.address.to_string() };
    let (stream, by) = match relay.open(&to, vouched, None, None).await {
        Ok(opened) => opened,
        Err(fault) => return refused(&fault, status(&fault)),
    };
    let to = Named { name: authority(request.uri()), tenant: to.tenant, origin: to.origin };
    tracing::debug!(tenant = %to.tenant, origin = %to.origin, authority = to.name, "CONNECT");
    let upgrade = hyper::upgrade::on(&mut request);
    let limit = relay.timers.handshake;
    let meter = relay.fair.meter(&to.tenant, &[by.facts.holder()]);
    let own = relay.clone();
    relay.work.spawn(async move {
        let _open = (busy, share);
        if let Ok(Ok(io)) = tokio::time::timeout(limit, upgrade).await {
            let tunnel = own.passes.enter(Asked::Connect, to, from, meter);
            tunnel.carry(TokioIo::new(io), stream, &by).await;
        }
    });
    Response::new(Full::default())
}

/// What the client wrote behind CONNECT, for logs and lists.
fn authority(uri: &Uri) -> String {
    uri.authority().map_or_else(String::new, |a| a.as_str().chars().take(MAX_AUTHORITY).collect())
}

/// What the two headers ask for.
///
/// # Errors
/// One line that says what to send instead.
pub fn destination(headers: &HeaderMap) -> Result<Destination, &'static str> {
    if headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING) {
        return Err("CONNECT has no body: leave out Content-Length and Transfer-Encoding");
    }
    let tenant = one(headers, "tenant-id").ok_or("send exactly one header Tenant-Id, such as Tenant-Id: S12345678")?;
    let origin = one(headers, "origin-server-id").ok_or("send exactly one header Origin-Server-Id: core or bws")?;
    let tenant: TenantId = tenant.parse().map_err(|_| "Tenant-Id is not a tenant id, such as S12345678")?;
    let origin: Origin =
        origin.to_ascii_lowercase().parse().map_err(|_| "Origin-Server-Id is not known here: use core or bws")?;
    Ok(Destination { tenant, origin, group: None, instance: None, node: None })
}

fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok().map(str::trim),
        _ => None,
    }
}

fn may(relay: &Relay, to: &Destination) -> Result<(), (StatusCode, Fault)> {
    route::stream(Asker::Anonymous, to).map_err(|fault| (StatusCode::FORBIDDEN, fault))?;
    match relay.store.tenant(&to.tenant).map(|t| t.state) {
        Some(TenantState::Active) => {}
        Some(TenantState::Blocked) => {
            let fault = Fault::new(Code::Forbidden, "the tenant is blocked at this relay by its operator");
            return Err((StatusCode::FORBIDDEN, fault));
        }
        None => {
            let fault = Fault::new(
                Code::NoRoute,
                "no tenant of this id is known at this relay: check Tenant-Id and the relay's name",
            );
            return Err((StatusCode::NOT_FOUND, fault));
        }
    }
    if relay.is_draining() {
        return Err((StatusCode::SERVICE_UNAVAILABLE, relay.farewell().fault));
    }
    if relay.registry.pick(to, &[]).is_none() {
        return Err((StatusCode::SERVICE_UNAVAILABLE, relay.no_route(to)));
    }
    Ok(())
}

fn status(fault: &Fault) -> StatusCode {
    match fault.code {
        Code::NoRoute | Code::Lost | Code::Draining | Code::Displaced | Code::Limited => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Code::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        Code::Forbidden | Code::DeniedByPolicy | Code::Unauthenticated | Code::Revoked => StatusCode::FORBIDDEN,
        Code::Ok
        | Code::Internal
        | Code::NameNotFound
        | Code::ConnectionRefused
        | Code::ConnectionReset
        | Code::Unreachable
        | Code::Gone
        | Code::Protocol
        | Code::Version => StatusCode::BAD_GATEWAY,
    }
}

fn refused(fault: &Fault, status: StatusCode) -> Answer {
    state::count_refusal(fault);
    text(status, &fault.to_string())
}

fn too_fast(wait: Duration) -> Answer {
    dropped(DropReason::RateLimited);
    let seconds = wait.as_secs() + 1;
    let mut answer = text(StatusCode::TOO_MANY_REQUESTS, &format!("too many requests: try again in {seconds} s"));
    answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    answer
}

fn text(status: StatusCode, line: &str) -> Answer {
    let mut answer = Response::new(Full::from(format!("{line}\n")));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_headers_are_needed_once_each() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in pairs {
                map.append(*name, header::HeaderValue::from_static(value));
            }
            map
        };
        let good = destination(&headers(&[("tenant-id", "s12345678"), ("origin-server-id", "BWS")])).unwrap();
        assert_eq!((good.tenant.as_str(), good.origin), ("S12345678", Origin::Bws));
        for bad in [
            headers(&[("origin-server-id", "bws")]),
            headers(&[("tenant-id", "S12345678")]),
            headers(&[("tenant-id", "S12345678"), ("tenant-id", "S12345678"), ("origin-server-id", "bws")]),
            headers(&[("tenant-id", "../etc"), ("origin-server-id", "bws")]),
            headers(&[("tenant-id", "S12345678"), ("origin-server-id", "bws, core")]),
            headers(&[("tenant-id", "S12345678"), ("origin-server-id", "bws"), ("content-length", "0")]),
            headers(&[("tenant-id", "S12345678"), ("origin-server-id", "bws"), ("transfer-encoding", "chunked")]),
        ] {
            assert!(destination(&bad).is_err(), "{bad:?}");
        }
    }
}
