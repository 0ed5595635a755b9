//! The two doors of an operator. The *admin listener* speaks HTTP on a loopback address and only answers: metrics,
//! health, readiness and what a role shows of itself as JSON. The *control socket* (`control`) is a unix socket for
//! this user only, and may change things.

pub mod control;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{Method, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::ServiceExt;

use crate::scope::Scope;
use crate::telemetry::Metrics;

/// Connections served at once on each door: an operator, a scraper and a health check, with room.
const MAX_CONNECTIONS: usize = 64;
/// Time for a request's head to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of a connection: nobody holds a permit for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// Why the admin listener did not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Not loopback.
    #[error(
        "the admin listener may only be bound to a loopback address (127.0.0.1, ::1), not to {0}; reach it from elsewhere through ssh or a reverse proxy that authenticates"
    )]
    NotLoopback(SocketAddr),
    /// The address is taken, or not ours.
    #[error("the admin listener cannot be bound to {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What must be so before a process is ready, and whether it is going. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Name, and why not (`None` = fulfilled). A handful: a list keeps the order in which they were announced.
    checks: Vec<(&'static str, Option<String>)>,
    draining: bool,
}

impl Readiness {
    /// Announces a check, unfulfilled so far. Announce all of them before the listener serves.
    #[must_use]
    pub fn check(&self, name: &'static str) -> Check {
        self.0.lock().checks.push((name, Some("starting".to_owned())));
        Check { readiness: self.clone(), name }
    }

    /// The process drains: not ready until it ends.
    pub fn drain(&self) {
        self.0.lock().draining = true;
    }

    /// The first thing that is not so, as `name: why`; `None` when ready.
    #[must_use]
    pub fn failing(&self) -> Option<String> {
        let state = self.0.lock();
        if state.draining {
            return Some("draining: shutting down".to_owned());
        }
        state.checks.iter().find_map(|(name, why)| why.as_ref().map(|why| format!("{name}: {why}")))
    }
}

/// One check of `Readiness`.
#[derive(Debug, Clone)]
pub struct Check {
    readiness: Readiness,
    name: &'static str,
}

impl Check {
    /// It is fulfilled.
    pub fn pass(&self) {
        self.set(None);
    }

    /// It is not, and why: for people, no secrets.
    pub fn fail(&self, why: impl Into<String>) {
        self.set(Some(why.into()));
    }

    fn set(&self, why: Option<String>) {
        let mut state = self.readiness.0.lock();
        if let Some(entry) = state.checks.iter_mut().find(|(name, _)| *name == self.name) {
            entry.1 = why;
        }
    }
}

/// A bound admin listener that does not answer yet.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

impl Admin {
    /// Binds. Port 0 takes a free one.
    ///
    /// # Errors
    /// The address is not loopback, or cannot be bound.
    pub async fn bind(address: SocketAddr) -> Result<Self, AdminError> {
        if !address.ip().to_canonical().is_loopback() {
            return Err(AdminError::NotLoopback(address));
        }
        let bound = async {
            let listener = TcpListener::bind(address).await?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        };
        bound.await.map_err(|source| AdminError::Bind { address, source })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the scope ends: `/metrics`, `/healthz`, `/readyz`, and the role's own routes, which must only
    /// answer GET.
    pub fn serve(self, metrics: Metrics, readiness: Readiness, routes: Router, scope: &Scope) {
        let router = router(metrics, readiness, routes);
        let scope = scope.clone();
        let tasks = scope.clone();
        scope.spawn(async move {
            let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
            loop {
                let Ok(permit) = permits.clone().acquire_owned().await else { return };
                match self.listener.accept().await {
                    Ok((io, _)) => {
                        let router = router.clone();
                        tasks.spawn(async move {
                            serve_connection(io, router).await;
                            drop(permit);
                        });
                    }
                    Err(error) => back_off(&error).await,
                }
            }
        });
    }
}

fn router(metrics: Metrics, readiness: Readiness, routes: Router) -> Router {
    let ready = move || async move {
        match readiness.failing() {
            None => (StatusCode::OK, "ready\n".to_owned()),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        }
    };
    let prometheus = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Router::new()
        .route("/metrics", get(move || async move { (prometheus, metrics.render()) }))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .merge(routes)
        .layer(middleware::from_fn(guard))
}

/// A browser on this machine can be made to send requests here by any page (DNS rebinding): only requests that name
/// a loopback host are answered. Nothing here changes anything, so only GET and HEAD exist.
async fn guard(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(http::uri::Authority::as_str));
    if !host.is_some_and(is_loopback_host) {
        return (StatusCode::MISDIRECTED_REQUEST, "the Host header must name a loopback address\n").into_response();
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let allow = [(header::ALLOW, "GET, HEAD")];
        return (
            StatusCode::METHOD_NOT_ALLOWED,
            allow,
            "this listener only answers GET; changes go by the control socket\n",
        )
            .into_response();
    }
    next.run(request).await
}

/// `localhost`, `127.0.0.0/8` or `[::1]`, with or without a port.
fn is_loopback_host(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let name = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback())
}

/// Serves one connection. Errors are the client's: it went away or sent what is not HTTP.
pub(crate) async fn serve_connection<IO>(io: IO, router: Router)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.oneshot(request.map(Body::new)).await.unwrap_or_else(|e| match e {})) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(64 * 1024);
    let connection = builder.serve_connection(TokioIo::new(io), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "admin connection ended"),
        Err(_) => tracing::debug!("admin connection closed after its longest life"),
    }
}

/// After a failed accept: out of descriptors or memory, most likely; spinning would make it worse.
pub(crate) async fn back_off(error: &std::io::Error) {
    tracing::warn!(%error, "accept failed");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut io = tokio::net::TcpStream::connect(address).await.unwrap();
        io.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        io.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(address: SocketAddr, path: &str, host: &str) -> String {
        ask(address, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
    }

    #[tokio::test]
    async fn health_readiness_metrics_and_a_routes_of_the_role() {
        let admin = Admin::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, readiness, scope) = (admin.address(), Readiness::default(), Scope::new());
        let (relay, store) = (readiness.check("relay link"), readiness.check("database"));
        let routes =
            Router::new().route("/sessions", axum::routing::get(|| async { axum::Json(serde_json::json!([])) }));
        admin.serve(Metrics::install(), readiness.clone(), routes, &scope);
        let host = address.to_string();
        assert!(get(address, "/healthz", &host).await.starts_with("HTTP/1.1 200"));
        let not_yet = get(address, "/readyz", &host).await;
        assert!(not_yet.starts_with("HTTP/1.1 503") && not_yet.contains("relay link: starting"), "{not_yet}");
        relay.pass();
        store.fail("locked");
        assert!(get(address, "/readyz", &host).await.contains("database: locked"));
        store.pass();
        assert!(get(address, "/readyz", "localhost").await.starts_with("HTTP/1.1 200"));
        readiness.drain();
        assert!(get(address, "/readyz", &host).await.contains("draining"));
        assert!(get(address, "/healthz", &host).await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/metrics", &host).await.contains("hedgerow_build_info"));
        assert!(get(address, "/sessions", &host).await.ends_with("[]"));
    }

    #[tokio::test]
    async fn foreign_hosts_and_other_methods_are_refused() {
        let admin = Admin::bind("[::1]:0".parse().unwrap()).await.unwrap();
        let (address, scope) = (admin.address(), Scope::new());
        admin.serve(Metrics::install(), Readiness::default(), Router::new(), &scope);
        for host in ["evil.example", "evil.example:80", "10.0.0.1", "127.0.0.1.evil.example", ""] {
            assert!(get(address, "/metrics", host).await.starts_with("HTTP/1.1 421"), "{host}");
        }
        assert!(ask(address, "GET /metrics HTTP/1.0\r\n\r\n").await.contains(" 421 "));
        for host in ["localhost:1", "127.0.0.1", "[::1]", "[::1]:9", "LOCALHOST", "127.9.9.9:80"] {
            assert!(get(address, "/healthz", host).await.starts_with("HTTP/1.1 200"), "{host}");
        }
        let post =
            ask(address, "POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .await;
        assert!(post.starts_with("HTTP/1.1 405"), "{post}");
    }

    #[tokio::test]
    async fn an_address_that_others_can_reach_is_refused() {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
            let error = Admin::bind(address.parse().unwrap()).await.unwrap_err();
            assert!(matches!(error, AdminError::NotLoopback(_)), "{error}");
        }
    }
}
