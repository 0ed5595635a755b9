//! What is only looked at: status, tenant, configuration, audit; and raising the epoch.

use std::sync::Arc;

use axum::extract::State;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hedgerow_runtime::admin::control::Problem;
use hedgerow_shared::verify::SignedConfig;
use http::StatusCode;
use serde_json::{Value, json};

use super::{Params, Part, Shown, admin, json_of, list, problem};
use crate::app::App;

pub(super) async fn status(State(app): State<Arc<App>>) -> Shown {
    crate::status::show(&app).await.map(axum::Json).map_err(problem)
}

pub(super) async fn tenant(State(app): State<Arc<App>>) -> Shown {
    let row = app.domain.tenant(&app.tenant).await.map_err(problem)?;
    Ok(axum::Json(json!({
        "id": row.id,
        "name": row.name,
        "created": row.created,
        "ca_pin": app.ca.pin(),
        "ca_pem": pem(&row.ca_certificate),
        "config": row.config.to_string(),
        "config_issued": row.config_issued,
        "relays": row.settings.relays,
        "relay_name": row.settings.relay_name,
        "relay_ca_pem": row.settings.relay_ca_pem,
        "default_route": row.default_route,
    })))
}

pub(super) async fn raise_epoch(State(app): State<Arc<App>>) -> Shown {
    let version = app.domain.raise_epoch(&mut admin(), &app.tenant).await.map_err(problem)?;
    app.changed();
    Ok(axum::Json(json!({ "version": version.to_string() })))
}

pub(super) async fn config(State(app): State<Arc<App>>) -> Shown {
    let configs = app.domain.configs(&app.tenant).await.map_err(problem)?;
    Ok(axum::Json(json!({
        "version": configs.version.to_string(),
        "expires": configs.expires,
        "relay": payload(&configs.relay)?,
        "node": payload(&configs.node)?,
        "device": payload(&configs.device)?,
    })))
}

pub(super) async fn audit(State(app): State<Arc<App>>, Params(part): Params<Part>) -> Shown {
    let after = match &part.after {
        None => 0,
        Some(text) => {
            text.parse().map_err(|_| Problem::bad_request(format!("expected a record's number, not {text:?}")))?
        }
    };
    let records = app.domain.audit(&app.tenant, after, part.limit()).await.map_err(problem)?;
    let next = records.last().map(|r| r.number.to_string());
    let items = records.into_iter().map(json_of).collect::<Result<_, _>>()?;
    Ok(list(items, part.limit(), next))
}

pub(super) async fn verify_audit(State(app): State<Arc<App>>) -> Shown {
    let head = app.domain.verify_audit(&app.tenant).await.map_err(problem)?;
    Ok(axum::Json(json!({ "records": head.number, "hash": STANDARD.encode(head.hash) })))
}

fn payload(config: &SignedConfig) -> Result<Value, Problem> {
    serde_json::from_slice(&config.payload)
        .map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("a signed document: {e}")))
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|i| &text[i..(i + 64).min(text.len())]).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
