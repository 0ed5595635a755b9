//! HTTP/1.1 on one connection, with bounds on everything: head 16 KiB and 64 fields, the body as given, a deadline for the
//! head, for the body, and for the connection.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use hedgerow_shared::limits::{MAX_FIRST_BYTES, Timers};
use hedgerow_shared::wire::core_api::{MEDIA_JSON, Refused};
use http::header::{HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

/// Header fields of one request.
const MAX_HEADERS: usize = 64;
/// A connection ends after so many times the deadline of one request: nobody holds a permit for ever.
const LIFE_IN_REQUESTS: u32 = 10;

/// A request whose body has arrived.
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) body: Bytes,
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
}

impl Answer {
    /// Bytes of a media type.
    pub(crate) fn of(status: StatusCode, media: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status, headers: vec![("content-type", media.to_owned())], body: body.into() }
    }

    /// Nothing, successfully.
    pub(crate) fn empty() -> Self {
        Self { status: StatusCode::NO_CONTENT, headers: Vec::new(), body: Bytes::new() }
    }

    /// JSON, successfully.
    pub(crate) fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self::of(StatusCode::OK, MEDIA_JSON, body),
            Err(_) => Self::refused(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be written"),
        }
    }

    /// A refusal with one line for people. Where it means "you are not who you should be", or the order is lost, the
    /// connection closes.
    pub(crate) fn refused(status: StatusCode, why: impl Into<String>) -> Self {
        let body = serde_json::to_vec(&Refused { error: why.into() }).unwrap_or_default();
        let answer = Self::of(status, MEDIA_JSON, body);
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::CONFLICT => {
                answer.header("connection", "close")
            }
            _ => answer,
        }
    }

    /// Adds a header field; one that cannot be written is left out.
    pub(crate) fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::try_from(value) {
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
        response
    }
}

/// Serves one connection until the client closes it or its time is over, with bodies of at most `largest` bytes. Errors are
/// the client's.
pub(crate) async fn serve<IO, F, Fut>(io: IO, timers: &Timers, largest: usize, answer: F)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Answer> + Send,
{
    let limit = timers.request;
    let service = service_fn(move |request: http::Request<Incoming>| {
        let answer = answer.clone();
        async move {
            let (head, body) = request.into_parts();
            let response = match read(body, largest, limit).await {
                Ok(body) => {
                    let path = head.uri.path().to_owned();
                    let query = head.uri.query().map(str::to_owned);
                    answer(Request { method: head.method, path, query, body }).await
                }
                Err(refusal) => refusal,
            };
            Ok::<_, Infallible>(response.into_response())
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limit).max_buf_size(MAX_FIRST_BYTES).max_headers(MAX_HEADERS);
    let connection = builder.serve_connection(TokioIo::new(io), service);
    match timeout(limit.saturating_mul(LIFE_IN_REQUESTS), connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection ended"),
        Err(_) => tracing::debug!("a connection was closed after its longest life"),
    }
}

async fn read(body: Incoming, largest: usize, limit: Duration) -> Result<Bytes, Answer> {
    match timeout(limit, Limited::new(body, largest).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let why = format!("the request is larger than {largest} bytes");
            Err(Answer::refused(StatusCode::PAYLOAD_TOO_LARGE, why).header("connection", "close"))
        }
        Ok(Err(_)) => {
            Err(Answer::refused(StatusCode::BAD_REQUEST, "the request ended early").header("connection", "close"))
        }
        Err(_) => {
            let why = "the request did not arrive in time";
            Err(Answer::refused(StatusCode::REQUEST_TIMEOUT, why).header("connection", "close"))
        }
    }
}
