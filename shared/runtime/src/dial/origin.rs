//! HTTP CONNECT through the relay to an origin behind it, for those that have no link: activation and enrolment.
//!
//! The bytes inside are safe wherever TLS is opened on the way, since the core's own TLS runs in them. That it is opened
//! is said all the same, as on links: the relay's answers are bound to the TLS session in which it gave them.

use bytes::Bytes;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::{Origin, TenantId};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::{Reached, RelayTarget, inspected, relay};
use crate::scope::Scope;
use crate::tls;

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
    // Where TLS is opened and that is allowed, the second attempt goes inside a WebSocket.
    match ask(target, tenant, origin, timers, scope).await {
        Err(Refusal::Opened(fault)) if target.network.inspection.is_some() && !target.is_inspected() => {
            tracing::info!(reason = %fault, "TLS is opened on the way: trying inside a WebSocket");
            target.suspect_inspection();
            Ok(ask(target, tenant, origin, timers, scope).await?)
        }
        answered => Ok(answered?),
    }
}

/// Why there is no connection to the origin.
enum Refusal {
    /// Somebody who is not the relay answered, or opened what the relay answered.
    Opened(Fault),
    /// Anything else.
    Other(Fault),
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Other(fault)
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Opened(fault) | Refusal::Other(fault) => fault,
        }
    }
}

async fn ask(
    target: &RelayTarget,
    tenant: &TenantId,
    origin: Origin,
    timers: &Timers,
    scope: &Scope,
) -> Result<OriginStream, Refusal> {
    let Reached { stream: tls, at } = relay(target, &[b"http/1.1"], timers).await?;
    let session = tls.get_ref().1;
    let leaf = session.peer_certificates().and_then(<[_]>::first).cloned();
    // TLS 1.2, which only others speak, has no exporter that could agree.
    let ours = tls::exporter(session).map(|exporter| inspected::binding(&exporter)).unwrap_or_default();
    let address = at.addresses.first().cloned().unwrap_or_default();
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
    let theirs = response.headers().get(inspected::BINDING).map(|value| value.as_bytes().to_vec());
    match (&theirs, &leaf) {
        (Some(theirs), Some(leaf)) if *theirs != ours.as_bytes() => {
            return Err(Refusal::Opened(inspected::fault(target, &address, leaf)));
        }
        _ => {}
    }
    if response.status() != StatusCode::OK {
        let Fault { code, text } = refusal(response, timers).await;
        return Err(match (theirs, leaf) {
            (None, Some(leaf)) => {
                let (issuer, _) = inspected::issuer_and_subject(&leaf);
                let more = format!(
                    "{text} (nothing shows that it was the relay: {address} has a certificate issued by \"{issuer}\"; \
                     if the network inspects TLS, ask for a bypass for it, or set outbound.inspected_ok = true)"
                );
                Refusal::Opened(Fault::explained(code, more))
            }
            _ => Refusal::Other(Fault { code, text }),
        });
    }
    Ok(hyper::upgrade::on(response).await.map(TokioIo::new).map_err(http_fault)?)
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
