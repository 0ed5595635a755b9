//! What comes through a relay: streams for origin `core` (devices and nodes, `shared::wire::core_api`) and `bws`; those
//! for `mdm` go on, unopened, to the server that is published for it.
//!
//! ```text
//!   accept: header read, permit taken --> TLS of the origin --> HTTP/1.1 --> activate | enrol | configs | commands | certificates | bws
//! ```
//! What the relay says of the peer is for logs. Who the peer is stands in its certificate, and whether it still
//! counts is asked at every request.

mod activate;
mod certificates;
mod commands;
mod configs;
mod enrol;
pub(crate) mod http;

use std::sync::Arc;

use ::http::StatusCode;
use bytes::Bytes;
use hedgerow_runtime::link::{Channel, Incoming, Stream};
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::{clock, tls};
use hedgerow_shared::fault::{Code, Fault, with_causes};
use hedgerow_shared::verify::certificate::read_leaf;
use hedgerow_shared::verify::{Usage, VerifiedCertificate};
use hedgerow_shared::wire::core_api;
use hedgerow_shared::wire::message::{Destination, LinkOpen, Vouched};
use hedgerow_shared::{Origin, Role};
use hyper::Method;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::app::App;
use crate::bws;
use activate::Stage;
use http::{Answer, Request};

/// Serves what the relay brings until the link ends.
pub(crate) async fn accept(app: Arc<App>, mux: Channel, scope: Scope) {
    while let Some(incoming) = mux.accept().await {
        let (to, vouched) = match incoming.read_header::<LinkOpen>() {
            Ok(LinkOpen::Through { to, vouched, .. }) => (to, vouched),
            Ok(LinkOpen::Service { .. }) => {
                incoming.refuse(Fault::new(Code::Protocol, "a core has no services of the relay"));
                continue;
            }
            Err(fault) => {
                incoming.refuse(fault);
                continue;
            }
        };
        match admit(&app, &to) {
            Ok(permit) => {
                let app = app.clone();
                let from = vouched.map(|v: Vouched| v.address).unwrap_or_default();
                if app.published.serves(to.origin) {
                    scope.spawn(async move {
                        app.published.serve(to.origin, incoming, &from).await;
                        drop(permit);
                    });
                    continue;
                }
                let stream = incoming.accept();
                scope.spawn(async move {
                    serve(&app, to.origin, stream, &from).await;
                    drop(permit);
                });
            }
            Err(fault) => refuse(incoming, to.origin, fault),
        }
    }
}

fn admit(app: &App, to: &Destination) -> Result<tokio::sync::OwnedSemaphorePermit, Fault> {
    if to.tenant != app.tenant {
        return Err(Fault::new(Code::NoRoute, "this core serves another tenant"));
    }
    match to.origin {
        Origin::Core | Origin::Bws => {}
        published if app.published.serves(published) => {}
        other => return Err(Fault::new(Code::NoRoute, format!("a core does not serve {other}"))),
    }
    let permit = app.connections.clone().try_acquire_owned();
    permit.map_err(|_| Fault::new(Code::Limited, "the core serves as many connections as it can"))
}

fn refuse(incoming: Incoming, origin: Origin, fault: Fault) {
    metrics::counter!("hedgerow_core_streams_refused_total", "origin" => origin.as_str(), "reason" => fault.code.label())
        .increment(1);
    incoming.refuse(fault);
}

async fn serve(app: &Arc<App>, origin: Origin, stream: Stream, from: &str) {
    metrics::counter!("hedgerow_core_streams_total", "origin" => origin.as_str()).increment(1);
    match origin {
        Origin::Bws => bws::serve(app, stream, from).await,
        _ => serve_core(app, stream, from).await,
    }
}

/// The server end of a TLS hand-shake, with its deadline; failures are counted.
pub(crate) async fn shake<IO: AsyncRead + AsyncWrite + Unpin>(
    app: &App,
    config: Arc<rustls::ServerConfig>,
    io: IO,
    origin: Origin,
    from: &str,
) -> Option<TlsStream<IO>> {
    let result = match timeout(app.timers.handshake, TlsAcceptor::from(config).accept(io)).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%origin, from, %error, "TLS hand-shake failed");
            "failed"
        }
        Err(_) => "timed_out",
    };
    metrics::counter!("hedgerow_core_tls_failures_total", "origin" => origin.as_str(), "result" => result).increment(1);
    None
}

/// One connection of a device or node: TLS, then requests until it closes. Works over any stream; `from` is the
/// peer's address as the relay tells it, for logs.
pub async fn serve_core<IO>(app: &Arc<App>, io: IO, from: &str)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = app.identity().core.clone();
    let Some(stream) = shake(app, config, io, Origin::Core, from).await else { return };
    let connection = stream.get_ref().1;
    let Ok(exporter) = tls::exporter(connection) else { return };
    let (certificate, lapsed) = match connection.peer_certificates() {
        None => (None, None),
        // Once more after the hand-shake: expiry and role count now, not when the session began.
        Some(chain) => {
            let role = chain.first().and_then(|leaf| read_leaf(leaf).ok()).map(|leaf| leaf.identity.role);
            match tls::lapsed_certificate(chain, &app.ca, role.unwrap_or(Role::Core), Usage::Client) {
                Ok(verified) if verified.not_after < clock::now() => (None, Some(verified)),
                Ok(verified) => (Some(verified), None),
                Err(fault) => {
                    tracing::info!(from, reason = %fault, "a client certificate was refused");
                    return;
                }
            }
        }
    };
    let largest = if certificate.is_some() { core_api::MAX_REPORT } else { core_api::MAX_REQUEST };
    let peer = Arc::new(Peer {
        app: app.clone(),
        from: from.to_owned(),
        exporter,
        certificate,
        lapsed,
        stage: Mutex::new(Stage::Fresh),
    });
    http::serve(stream, &app.timers, largest, move |request| {
        let peer = peer.clone();
        async move { peer.answer(request).await }
    })
    .await;
}

/// One connection's other end.
struct Peer {
    app: Arc<App>,
    from: String,
    exporter: [u8; 32],
    certificate: Option<VerifiedCertificate>,
    /// One that has expired: good for asking for the next.
    lapsed: Option<VerifiedCertificate>,
    stage: Mutex<Stage>,
}

impl Peer {
    async fn answer(&self, request: Request) -> Answer {
        let (label, wanted) = match request.path.as_str() {
            core_api::ACTIVATE_START => ("activate_start", Method::POST),
            core_api::ACTIVATE_CONFIRM => ("activate_confirm", Method::POST),
            core_api::ACTIVATE_FINISH => ("activate_finish", Method::POST),
            core_api::ENROL_NODE => ("enrol_node", Method::POST),
            core_api::CONFIG_NODE => ("config_node", Method::GET),
            core_api::CONFIG_DEVICE => ("config_device", Method::GET),
            core_api::COMMAND_DEVICE => ("command_device", Method::POST),
            core_api::CERTIFICATE_RENEW => ("certificate_renew", Method::POST),
            core_api::CERTIFICATE_CONFIRM => ("certificate_confirm", Method::POST),
            _ => ("unknown", Method::GET),
        };
        let answer = match label {
            "unknown" => Answer::refused(StatusCode::NOT_FOUND, "there is no such service"),
            _ if request.method != wanted => {
                Answer::refused(StatusCode::METHOD_NOT_ALLOWED, format!("use {wanted} here")).header("allow", wanted)
            }
            "certificate_renew" => self.renew(&request.body).await,
            _ if self.lapsed.is_some() => {
                Answer::refused(StatusCode::UNAUTHORIZED, "the certificate has expired: ask for the next one first")
            }
            "certificate_confirm" => self.confirm_certificate().await,
            "activate_start" => self.start(&request.body).await,
            "activate_confirm" => self.confirm(&request.body).await,
            "activate_finish" => self.finish(&request.body).await,
            "enrol_node" => self.enrol(&request.body).await,
            "command_device" => self.command(&request.body).await,
            "config_node" => self.config(Role::Node, request.query.as_deref()).await,
            _ => self.config(Role::Device, request.query.as_deref()).await,
        };
        metrics::counter!("hedgerow_core_requests_total", "service" => label, "status" => answer.status.as_str().to_owned())
            .increment(1);
        answer
    }
}

/// Reads a JSON body.
fn read<T: serde::de::DeserializeOwned>(body: &Bytes) -> Result<T, Answer> {
    serde_json::from_slice(body)
        .map_err(|e| Answer::refused(StatusCode::BAD_REQUEST, format!("the request cannot be read: {e}")))
}

/// The core itself failed; the peer learns only that.
fn failed(what: &'static str, error: &dyn std::error::Error) -> Answer {
    tracing::error!(error = with_causes(error), "{what} failed");
    Answer::refused(StatusCode::SERVICE_UNAVAILABLE, "the core failed; try again later").header("retry-after", "10")
}
