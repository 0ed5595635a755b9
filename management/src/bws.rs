//! The web services (origin `bws`): for now the one resource that needs no authentication,
//! `GET /{tenant}/api/v1/util/ping`, as the API manual has it. The tenant is matched without regard to case and
//! double slashes are forgiven. Everything else is 404 with the manual's error body.

use std::sync::Arc;
use std::time::Duration;

use hedgerow_shared::Origin;
use hedgerow_shared::wire::core_api::MAX_REQUEST;
use http::{Method, StatusCode};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::app::App;
use crate::services::http::{self as server, Answer, Request};
use crate::services::shake;

/// Media type of the manual's error body.
const MEDIA_ERROR: &str = "application/vnd.blackberry.error-v1+json";

/// The manual's error body.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorView {
    id: &'static str,
    sub_status_code: u16,
    message: String,
}

/// One connection: TLS without a client certificate, then requests until it closes. Works over any stream.
pub async fn serve<IO>(app: &Arc<App>, io: IO, from: &str)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = app.identity().bws.clone();
    let Some(stream) = shake(app, config, io, Origin::Bws, from).await else { return };
    let app = app.clone();
    let timers = app.timers;
    server::serve(stream, &timers, MAX_REQUEST, move |request| {
        let answer = answer(&app, &request);
        async move { answer }
    })
    .await;
}

fn answer(app: &App, request: &Request) -> Answer {
    let parts: Vec<&str> = request.path.split('/').filter(|p| !p.is_empty()).collect();
    let (tenant, resource) = match parts.as_slice() {
        [tenant, rest @ ..] => (*tenant, rest),
        [] => ("", [].as_slice()),
    };
    let found = match resource {
        _ if !tenant.eq_ignore_ascii_case(app.tenant.as_str()) => None,
        ["api", "v1", "util", "ping"] => Some("ping"),
        _ => None,
    };
    let answer = match (found, &request.method) {
        (Some(_), &Method::GET | &Method::HEAD) => {
            let text = format!("Up and running for {}", uptime(app.started.elapsed()));
            Answer::of(StatusCode::OK, "text/plain", text)
        }
        (Some(_), _) => error(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "Use GET here.".into())
            .header("allow", "GET, HEAD"),
        (None, _) => {
            let shown: String = request.path.chars().take(200).collect();
            error(StatusCode::NOT_FOUND, "RESOURCE_NOT_FOUND", format!("There is no resource {shown}."))
        }
    };
    metrics::counter!("hedgerow_core_bws_requests_total", "resource" => found.unwrap_or("unknown"), "status" => answer.status.as_str().to_owned())
        .increment(1);
    answer
}

fn error(status: StatusCode, id: &'static str, message: String) -> Answer {
    let body = ErrorView { id, sub_status_code: status.as_u16(), message };
    Answer::of(status, MEDIA_ERROR, serde_json::to_vec(&body).unwrap_or_default())
}

fn uptime(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    format!("{}d {:02}h {:02}m {:02}s", seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_counts_days_hours_minutes_and_seconds() {
        assert_eq!(uptime(Duration::from_secs(93_784)), "1d 02h 03m 04s");
        assert_eq!(uptime(Duration::ZERO), "0d 00h 00m 00s");
    }
}
