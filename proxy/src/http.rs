//! HTTP/1.1 proxy for local applications: CONNECT, and requests in absolute form for `http://`.
//!
//! ```text
//!   CONNECT host:port       connect → 200 → the client's TCP connection is spliced, HTTP ends here
//!   GET http://host/path    connect, or reuse this client's last connection → request in origin form → answer
//!     with Upgrade          the same; after 101 both connections are spliced (WebSocket)
//!   GET /path               a request to the proxy itself: says what this is
//! ```
//! A connection to a server belongs to one client connection and is never shared: whoever authenticated a connection
//! (NTLM, Negotiate) is the only one to use it. Bodies stream both ways; nothing is buffered beyond hyper's windows.

mod headers;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hedgerow_runtime::scope::Scope;
use hedgerow_shared::fault::{Code, Fault};
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Parts};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::listen::{Connector, ServeLimits, accept_loop, connect, refused};
use crate::splice::{Outbound, ReadAhead, splice};
use crate::target::{Target, TargetError};

const KIND: &str = "http";
/// Request and response heads: larger ones are refused.
const MAX_HEAD: usize = 64 * 1024;
/// How long a kept connection may take to be done with the last request.
const READY: Duration = Duration::from_secs(1);

type Answer = Response<Either<Incoming, Full<Bytes>>>;

/// Serves until the scope is cancelled.
pub async fn serve<C: Connector>(listener: TcpListener, connector: Arc<C>, limits: ServeLimits, scope: Scope) {
    let Ok(own) = listener.local_addr() else { return };
    let own = Target::new(&own.ip().to_string(), own.port()).ok();
    let connections = limits.connections.clone();
    accept_loop(listener, KIND, &connections, &scope, |tcp, permit| {
        let client = Arc::new(Client {
            connector: connector.clone(),
            limits: limits.clone(),
            scope: scope.clone(),
            own: own.clone(),
            server: Mutex::new(None),
            _permit: permit,
        });
        serve_client(tcp, client)
    })
    .await;
}

/// One client connection.
struct Client<C> {
    connector: Arc<C>,
    limits: ServeLimits,
    scope: Scope,
    own: Option<Target>,
    /// The connection of the last request, when it can take another. Requests of one client come one at a time; the
    /// lock only moves the value.
    server: Mutex<Option<(Target, SendRequest<Incoming>)>>,
    /// Counts this connection until the last of its tasks has ended.
    _permit: OwnedSemaphorePermit,
}

async fn serve_client<C: Connector>(tcp: TcpStream, client: Arc<Client<C>>) {
    let service = service_fn(|request| {
        let client = client.clone();
        async move { Ok::<_, Infallible>(answer(&client, request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(client.limits.handshake)
        .max_header_size(MAX_HEAD)
        .preserve_header_case(true)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(tcp), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        if error.is_parse() {
            refused(KIND, "malformed");
        } else if error.is_timeout() {
            refused(KIND, "handshake_timeout");
        }
        tracing::debug!(%error, "HTTP connection of a client ended");
    }
}

async fn answer<C: Connector>(client: &Arc<Client<C>>, request: Request<Incoming>) -> Answer {
    let result = match asked(&request, client.own.as_ref()) {
        Ok(Asked::Tunnel(target)) => tunnel(client, request, target).await,
        Ok(Asked::Forward(target, authority)) => forward(client, request, target, &authority).await,
        Ok(Asked::Itself) => return itself(&request),
        Err(refusal) => Err(refusal),
    };
    result.unwrap_or_else(|refusal| text(refusal.status, &refusal.why))
}

/// Why a request is not served: what the client is told.
struct Refusal {
    status: StatusCode,
    why: String,
}

impl Refusal {
    /// The client's mistake.
    fn bad(reason: &'static str, why: impl Into<String>) -> Self {
        refused(KIND, reason);
        Self { status: StatusCode::BAD_REQUEST, why: why.into() }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        let status = match fault.code {
            Code::DeniedByPolicy | Code::Forbidden | Code::Revoked | Code::Unauthenticated => StatusCode::FORBIDDEN,
            Code::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Code::Limited | Code::Draining => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_GATEWAY,
        };
        Self { status, why: fault.to_string() }
    }
}

impl From<TargetError> for Refusal {
    fn from(error: TargetError) -> Self {
        Self::bad("bad_target", error.to_string())
    }
}

enum Asked {
    Tunnel(Target),
    Forward(Target, Authority),
    Itself,
}

fn asked(request: &Request<Incoming>, own: Option<&Target>) -> Result<Asked, Refusal> {
    if request.headers().get_all(header::HOST).iter().count() > 1 {
        return Err(Refusal::bad("malformed", "the request has more than one Host header"));
    }
    let uri = request.uri();
    if request.method() == Method::CONNECT {
        let authority = uri.authority().ok_or_else(|| Refusal::bad("bad_target", "CONNECT needs host:port"))?;
        if headers::announces_body(request.headers()) {
            return Err(Refusal::bad("malformed", "CONNECT takes no body"));
        }
        return Ok(Asked::Tunnel(Target::from_authority(authority.as_str(), None)?));
    }
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Ok(Asked::Itself) };
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(Refusal::bad(
            "bad_target",
            "only http:// addresses can be asked for like this; for https:// use CONNECT",
        ));
    }
    let target = Target::from_authority(authority.as_str(), Some(80))?;
    Ok(if own == Some(&target) { Asked::Itself } else { Asked::Forward(target, authority.clone()) })
}

async fn tunnel<C: Connector>(
    client: &Arc<Client<C>>,
    request: Request<Incoming>,
    target: Target,
) -> Result<Answer, Refusal> {
    let far = connect(&*client.connector, &target, KIND, &client.limits).await?;
    let upgrade = hyper::upgrade::on(request);
    let held = client.clone();
    client.scope.spawn(async move {
        if let Some(near) = client_side(upgrade).await {
            splice(near.io.into_inner(), far, ReadAhead { up: near.read_buf, down: Bytes::new() }).await;
        }
        drop(held);
    });
    Ok(Response::new(Either::Right(Full::default())))
}

async fn forward<C: Connector>(
    client: &Arc<Client<C>>,
    mut request: Request<Incoming>,
    target: Target,
    authority: &Authority,
) -> Result<Answer, Refusal> {
    let upgrade = headers::upgrade(request.headers());
    let near = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    headers::remove_hop_by_hop(request.headers_mut());
    if let Some(protocol) = &upgrade {
        headers::set_upgrade(request.headers_mut(), protocol.clone());
    }
    // The target of the request line counts (RFC 9112, 3.2.2), whatever Host said.
    let host = HeaderValue::from_str(authority.as_str())
        .map_err(|_| Refusal::bad("bad_target", "the host cannot be sent on"))?;
    request.headers_mut().insert(header::HOST, host);
    *request.uri_mut() = origin_form(request.uri());
    *request.version_mut() = Version::HTTP_11;

    let (mut response, server) = send(client, request, &target).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(near), Some(protocol)) = (near, upgrade) else {
            refused(KIND, "unasked_upgrade");
            return Err(Fault::new(Code::Protocol, "the server changed the protocol without being asked").into());
        };
        let far = hyper::upgrade::on(&mut response);
        let held = client.clone();
        client.scope.spawn(async move {
            upgraded(near, far).await;
            drop(held);
        });
        headers::remove_hop_by_hop(response.headers_mut());
        headers::set_upgrade(response.headers_mut(), protocol);
        return Ok(response.map(|_| Either::Right(Full::default())));
    }
    if !headers::closes(response.headers()) {
        *client.server.lock() = Some((target, server));
    }
    headers::remove_hop_by_hop(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    Ok(response.map(Either::Left))
}

fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query().map_or_else(|| Uri::from_static("/"), |path| Uri::from(path.clone()))
}

/// Sends on this client's last connection when it leads to the same target and still stands, else on a new one.
async fn send<C: Connector>(
    client: &Arc<Client<C>>,
    request: Request<Incoming>,
    target: &Target,
) -> Result<(Response<Incoming>, SendRequest<Incoming>), Refusal> {
    let last = client.server.lock().take().filter(|(to, _)| to == target);
    let mut request = request;
    if let Some((_, mut sender)) = last
        && matches!(timeout(READY, sender.ready()).await, Ok(Ok(())))
    {
        match sender.try_send_request(request).await {
            Ok(response) => return Ok((response, sender)),
            // Not sent at all: the server had closed. Anything else must not be sent twice.
            Err(mut error) => match error.take_message() {
                Some(unsent) => request = unsent,
                None => return Err(broken(target, error.error())),
            },
        }
    }
    let far = connect(&*client.connector, target, KIND, &client.limits).await?;
    let handshake = hyper::client::conn::http1::Builder::new()
        .preserve_header_case(true)
        .max_header_size(MAX_HEAD)
        .handshake(TokioIo::new(far))
        .await;
    let (mut sender, connection) = handshake.map_err(|e| broken(target, &e))?;
    client.scope.spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "HTTP connection to a server ended");
        }
    });
    let response = sender.send_request(request).await.map_err(|e| broken(target, &e))?;
    Ok((response, sender))
}

fn broken(target: &Target, error: &hyper::Error) -> Refusal {
    refused(KIND, "server_broke");
    Fault::new(Code::Lost, format!("{target} closed the connection or did not answer in HTTP/1.1: {error}")).into()
}

async fn upgraded(near: OnUpgrade, far: OnUpgrade) {
    let Some(near) = client_side(near).await else { return };
    let Ok(far) = far.await.map(|far| far.downcast::<TokioIo<Outbound>>()) else { return };
    if let Ok(far) = far {
        splice(near.io.into_inner(), far.io.into_inner(), ReadAhead { up: near.read_buf, down: far.read_buf }).await;
    }
}

async fn client_side(upgrade: OnUpgrade) -> Option<Parts<TokioIo<TcpStream>>> {
    let upgraded = upgrade.await.inspect_err(|error| tracing::debug!(%error, "the client left before the upgrade"));
    upgraded.ok()?.downcast::<TokioIo<TcpStream>>().ok()
}

/// A request to the proxy itself. A page that made its name resolve to this address learns nothing: only requests
/// under a loopback name are answered.
fn itself(request: &Request<Incoming>) -> Answer {
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    let host = host.and_then(|h| Target::from_authority(h, Some(80)).ok());
    let local = host.is_some_and(|t| {
        t.host_text() == "localhost" || t.host_text().parse().is_ok_and(|a: std::net::IpAddr| a.is_loopback())
    });
    if !local {
        refused(KIND, "foreign_host");
        return text(StatusCode::MISDIRECTED_REQUEST, "this is not the server you asked for");
    }
    refused(KIND, "not_a_proxy_request");
    text(
        StatusCode::BAD_REQUEST,
        "this is Hedgerow's local HTTP proxy: configure it as a proxy instead of opening it as a page",
    )
}

fn text(status: StatusCode, why: &str) -> Answer {
    let body = Full::new(Bytes::from(format!("{why}\n")));
    let mut response = Response::new(Either::Right(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests;
