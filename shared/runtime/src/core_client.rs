//! Requests to the tenant's core: HTTP/1.1 inside TLS of our own, end to end, over a stream of the link or, before
//! there is one, over HTTP CONNECT through the relay. `shared::wire::core_api` describes the exchange.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::verify::{SignedConfig, Version};
use hedgerow_shared::wire::core_api::{self, MAX_ANSWER, MEDIA_JSON, Refused};
use hedgerow_shared::wire::message::{Destination, LinkOpen};
use hedgerow_shared::{Origin, TenantId};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::link::{Link, Stream};
use crate::scope::Scope;
use crate::{dial, tls};

/// The largest refusal read, bytes.
const MAX_REFUSAL: usize = 4096;

/// One connection to the core. Dropping it closes the connection.
pub struct CoreClient {
    sender: SendRequest<Full<Bytes>>,
    exporter: [u8; 32],
    limit: Duration,
    _connection: AbortOnDropHandle<()>,
}

impl CoreClient {
    /// TLS to the core over `io`, then HTTP.
    ///
    /// # Errors
    /// The hand-shake failed; `Unauthenticated` when it is not the core that `config` wants.
    pub async fn handshake<IO>(config: Arc<ClientConfig>, io: IO, timers: &Timers, scope: &Scope) -> Result<Self, Fault>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let stream = dial::client_tls(config, tls::any_name(), io, timers).await?;
        let exporter = tls::exporter(stream.get_ref().1)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let connection = scope.spawn_owned(async move {
            // The answers tell of errors; the connection's own result adds nothing.
            let _ = connection.await;
        });
        Ok(Self { sender, exporter, limit: timers.request, _connection: connection })
    }

    /// The channel binding of the TLS session (RFC 9266).
    #[must_use]
    pub fn exporter(&self) -> &[u8; 32] {
        &self.exporter
    }

    /// Sends JSON and reads JSON. When dropped before completion the core may still have done it.
    ///
    /// # Errors
    /// What failed; a refusal carries the core's words.
    pub async fn post<A: DeserializeOwned>(&mut self, path: &str, question: &impl Serialize) -> Result<A, Fault> {
        let answer = self.ask(path, question).await?;
        answer.ok_or_else(|| Fault::new(Code::Protocol, "the core's answer is empty"))
    }

    /// As `post`; `None` when the core has nothing to say (204).
    ///
    /// # Errors
    /// As `post`.
    pub async fn ask<A: DeserializeOwned>(
        &mut self,
        path: &str,
        question: &impl Serialize,
    ) -> Result<Option<A>, Fault> {
        let body = serde_json::to_vec(question).map_err(broken)?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::CONTENT_TYPE, MEDIA_JSON)
            .header(header::HOST, "core.hedgerow")
            .body(Full::new(Bytes::from(body)))
            .map_err(broken)?;
        match self.exchange(request).await? {
            (StatusCode::NO_CONTENT, _) => Ok(None),
            (_, answer) => serde_json::from_slice(&answer)
                .map(Some)
                .map_err(|_| Fault::new(Code::Protocol, "the core's answer cannot be read")),
        }
    }

    /// Asks for a configuration (`core_api::CONFIG_NODE` or `CONFIG_DEVICE`); `None` when `have` is the newest.
    ///
    /// # Errors
    /// What failed; a refusal carries the core's words.
    pub async fn config(&mut self, path: &str, have: Option<Version>) -> Result<Option<SignedConfig>, Fault> {
        let request = Request::builder()
            .uri(core_api::config_path(path, have))
            .header(header::HOST, "core.hedgerow")
            .body(Full::new(Bytes::new()))
            .map_err(broken)?;
        match self.exchange(request).await? {
            (StatusCode::NO_CONTENT, _) => Ok(None),
            (_, answer) => minicbor::decode(&answer)
                .map(Some)
                .map_err(|_| Fault::new(Code::Protocol, "the core's configuration is not the CBOR it should be")),
        }
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), Fault> {
        let exchange = async {
            let response = self.sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let most = if status.is_success() { MAX_ANSWER } else { MAX_REFUSAL };
            let body = Limited::new(response.into_body(), most).collect().await;
            let body = body.map_err(|_| Fault::new(Code::Lost, "the core's answer is too large or was cut off"))?;
            if status.is_success() { Ok((status, body.to_bytes())) } else { Err(refused(status, &body.to_bytes())) }
        };
        timeout(self.limit, exchange)
            .await
            .map_err(|_| Fault::new(Code::TimedOut, "the core did not answer in time"))?
    }
}

/// A stream of the link to the core, for `CoreClient::handshake`. Cancel safe.
///
/// # Errors
/// Why the relay opens none.
pub async fn open(link: &Link, tenant: &TenantId, timers: &Timers) -> Result<Stream, Fault> {
    let to = Destination { tenant: tenant.clone(), origin: Origin::Core, group: None, instance: None, node: None };
    let header = LinkOpen::Through { to, vouched: None, trace: None };
    timeout(timers.request, link.mux.open(&header))
        .await
        .map_err(|_| Fault::new(Code::TimedOut, "the relay did not reach the core in time"))?
}

/// The core's refusal, in its words made fit for a terminal.
fn refused(status: StatusCode, body: &[u8]) -> Fault {
    let said = serde_json::from_slice::<Refused>(body).map(|r| r.error);
    let text = said.unwrap_or_else(|_| format!("HTTP status {status}"));
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let code = match status {
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::Forbidden,
        StatusCode::TOO_MANY_REQUESTS => Code::Limited,
        StatusCode::SERVICE_UNAVAILABLE => Code::Internal,
        StatusCode::REQUEST_TIMEOUT => Code::TimedOut,
        _ => Code::Protocol,
    };
    Fault::new(code, text)
}

fn broken(error: impl std::fmt::Display) -> Fault {
    Fault::new(Code::Lost, format!("the exchange with the core failed: {error}"))
}
