//! Requests to the tenant's core: HTTPS/1.1 with TLS of our own, end to end, over a stream of the link or, before
//! there is one, over HTTP CONNECT through the relay.

use std::sync::Arc;

use bytes::Bytes;
use hedgerow_runtime::dial;
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::wire::core_api::Refused;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

/// What the core is asked.
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) path: String,
    /// A body with its media type.
    pub(crate) body: Option<(&'static str, Bytes)>,
    /// The largest answer read, bytes.
    pub(crate) most: usize,
}

/// One request on a connection of its own. `None` is the core's 204: nothing new.
///
/// # Errors
/// What failed; a refusal carries the core's words.
pub(crate) async fn ask<IO>(
    io: IO,
    config: Arc<ClientConfig>,
    ask: Ask,
    timers: &Timers,
    scope: &Scope,
) -> Result<Option<Bytes>, Fault>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let tls = dial::client_tls(config, tls::any_name(), io, timers).await?;
    let exchange = async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(broken)?;
        let running = scope.spawn_owned(async move {
            // The answer tells of errors; the connection's own result adds nothing.
            let _ = connection.await;
        });
        let (media, body) = ask.body.unwrap_or_default();
        let mut request = Request::builder().method(ask.method).uri(ask.path).header(header::HOST, "core.hedgerow");
        if !media.is_empty() {
            request = request.header(header::CONTENT_TYPE, media);
        }
        let request = request.body(Full::new(body)).map_err(broken)?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let most = if status.is_success() { ask.most } else { 4096 };
        let body = Limited::new(response.into_body(), most).collect().await;
        let body =
            body.map_err(|_| Fault::new(Code::Protocol, "the core's answer is too large or was cut off"))?.to_bytes();
        drop(running);
        match status {
            StatusCode::OK => Ok(Some(body)),
            StatusCode::NO_CONTENT => Ok(None),
            _ => Err(refused(status, &body)),
        }
    };
    timeout(timers.request, exchange)
        .await
        .map_err(|_| Fault::new(Code::TimedOut, "the core did not answer in time"))?
}

fn broken(error: impl std::fmt::Display) -> Fault {
    Fault::new(Code::Lost, format!("the exchange with the core failed: {error}"))
}

/// The core's explanation: `{"error": "..."}`, or its text.
fn refused(status: StatusCode, body: &[u8]) -> Fault {
    let text = match serde_json::from_slice::<Refused>(body) {
        Ok(refused) => refused.error,
        Err(_) => String::from_utf8_lossy(body).trim().chars().take(150).collect(),
    };
    let text = text.escape_debug().to_string();
    let code = match status {
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN | StatusCode::GONE => Code::Forbidden,
        StatusCode::TOO_MANY_REQUESTS => Code::Limited,
        StatusCode::SERVICE_UNAVAILABLE => Code::Draining,
        _ => Code::Protocol,
    };
    Fault::new(
        code,
        if text.is_empty() { format!("the core answered {status}") } else { format!("the core refused: {text}") },
    )
}
