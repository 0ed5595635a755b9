//! HTTP CONNECT through the relay to an origin behind it, for those that have no link.

use bytes::Bytes;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::{Origin, TenantId};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::{RelayTarget, relay_tls};
use crate::scope::Scope;

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
