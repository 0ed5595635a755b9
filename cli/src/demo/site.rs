//! The sample intranet: one page, on a loopback port that only the node is allowed to reach.

use std::convert::Infallible;

use hedgerow_runtime::scope::Scope;
use http::header::CONTENT_TYPE;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// What the check looks for.
pub(super) const GREETING: &str = "Welcome behind the hedge";

/// Serves until the scope ends.
///
/// # Errors
/// The port is taken.
pub(super) async fn serve(port: u16, scope: &Scope) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let tasks = scope.clone();
    scope.spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tasks.spawn(async move {
                let page = service_fn(|request: Request<Incoming>| async move { Ok::<_, Infallible>(page(&request)) });
                // A visitor that goes away is no error of the site.
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), page).await;
            });
        }
    });
    Ok(())
}

fn page(request: &Request<Incoming>) -> Response<String> {
    let text = format!(
        "<!doctype html><title>Intranet</title>\n<h1>{GREETING}</h1>\n\
         <p>This page came from a server without a public address: device, relay, node, server.</p>\n\
         <p>You asked for <code>{}</code>.</p>\n",
        request.uri().path().replace(['<', '>', '&', '"'], "_")
    );
    let mut response = Response::new(text);
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/html; charset=utf-8"));
    response
}
