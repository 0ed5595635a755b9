//! The sample intranet: one page, where only the node is allowed to reach it.

use std::convert::Infallible;
use std::net::SocketAddr;

use hedgerow_runtime::scope::Scope;
use http::header::CONTENT_TYPE;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// What a site says.
pub(super) struct Page {
    /// What the check looks for.
    pub(super) greeting: &'static str,
    about: &'static str,
}

/// The intranet's.
pub(super) const INSIDE: Page = Page {
    greeting: "Welcome behind the hedge",
    about: "This page came from a server without a public address: device, relay, node, server.",
};
/// That of a site which everybody reaches.
pub(super) const OUTSIDE: Page =
    Page { greeting: "Welcome outside", about: "This page came from a server that needs no tunnel." };

/// Serves until the scope ends.
///
/// # Errors
/// The port is taken.
pub(super) async fn serve(listen: SocketAddr, page: &'static Page, scope: &Scope) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let tasks = scope.clone();
    scope.spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tasks.spawn(async move {
                let answer =
                    service_fn(|request: Request<Incoming>| async move { Ok::<_, Infallible>(answer(page, &request)) });
                // A visitor that goes away is no error of the site.
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), answer).await;
            });
        }
    });
    Ok(())
}

fn answer(page: &Page, request: &Request<Incoming>) -> Response<String> {
    let text = format!(
        "<!doctype html><title>Intranet</title>\n<h1>{}</h1>\n<p>{}</p>\n\
         <p>You asked for <code>{}</code>.</p>\n",
        page.greeting,
        page.about,
        request.uri().path().replace(['<', '>', '&', '"'], "_")
    );
    let mut response = Response::new(text);
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/html; charset=utf-8"));
    response
}
