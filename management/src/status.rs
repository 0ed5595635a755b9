//! How the core stands, as JSON: the same on the admin listener and the control socket.

use hedgerow_runtime::{clock, tls};
use hedgerow_shared::fault::Code;
use hedgerow_shared::verify::Standing;
use hedgerow_uem_core::CoreError;
use hedgerow_uem_core::licence::Overview;
use serde_json::{Value, json};

use crate::app::{App, LicenceAt, MAX_CONNECTIONS};

/// The installed licence, and where each relay stands with it; null when there is none.
pub(crate) async fn licence(app: &App) -> Result<Value, CoreError> {
    let Some(overview) = app.domain.licence_overview(&app.tenant, clock::now()).await? else { return Ok(Value::Null) };
    let Overview { installed, standing, seats_used, warning } = overview;
    let licence = installed.licence;
    let verdicts: Vec<_> = app
        .relays
        .iter()
        .map(|relay| {
            let mut value = at_relay(&relay.standing.lock().licence);
            value["relay"] = json!(relay.name);
            value
        })
        .collect();
    Ok(json!({
        "id": licence.id,
        "tenant": licence.tenant,
        "licensee": licence.licensee,
        "issued": licence.issued,
        "not_before": licence.not_before,
        "expires": licence.expires,
        "grace_until": licence.grace_until(),
        "seats": licence.seats,
        "seats_used": seats_used,
        "features": licence.features,
        "standing": standing.as_str(),
        "warning": warning,
        "installed": installed.installed,
        "verified": verdicts.iter().any(|v| v["state"] == "accepted"),
        "relays": verdicts,
    }))
}

fn at_relay(at: &LicenceAt) -> Value {
    let (state, reason, standing, required) = match at {
        LicenceAt::NotShown => ("not_shown", None, None, None),
        LicenceAt::Shown { .. } => ("not_yet", None, None, None),
        LicenceAt::Judged { verdict, .. } => {
            let accepted = verdict.fault.code == Code::Ok;
            let reason = (!accepted).then(|| verdict.fault.to_string());
            let state = if accepted { "accepted" } else { "refused" };
            (state, reason, verdict.standing.map(Standing::as_str), Some(verdict.required))
        }
    };
    json!({ "state": state, "reason": reason, "standing": standing, "required": required })
}

/// See `control` for the form.
pub(crate) async fn show(app: &App) -> Result<Value, CoreError> {
    let row = app.domain.tenant(&app.tenant).await?;
    let relays: Vec<Value> = app
        .relays
        .iter()
        .map(|relay| {
            let standing = relay.standing.lock().clone();
            json!({
                "name": relay.name,
                "up": standing.up.is_some(),
                "since": standing.up,
                "transport": standing.transport.map(|(transport, _)| transport),
                "transport_reason": standing.transport.map(|(_, reason)| reason),
                "error": standing.fault.map(|f| f.to_string()),
                "ca_registered": standing.ca,
                "config": standing.config.map(|v| v.to_string()),
                "lookup_entries": standing.registrations.len(),
                "names": standing.names.as_ref().map(|n| n.len() - standing.refused.len().min(n.len())),
                "names_refused": standing.refused.iter()
                    .map(|r| json!({ "name": r.name, "reason": r.fault.to_string() })).collect::<Vec<_>>(),
                "web": standing.web,
                "licence": at_relay(&standing.licence),
            })
        })
        .collect();
    let licence = licence(app).await?;
    let holders = app.holders().await?;
    let late: Vec<&String> = holders.iter().filter(|(_, v)| v.is_none_or(|v| v < row.config)).map(|(h, _)| h).collect();
    let acknowledged: Vec<Value> =
        holders.iter().map(|(h, v)| json!({ "holder": h, "version": v.map(|v| v.to_string()) })).collect();
    Ok(json!({
        "tenant": app.tenant,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": app.started.elapsed().as_secs(),
        "tls": tls::status(),
        "config": { "version": row.config.to_string(), "issued": row.config_issued },
        "licence": licence,
        "relays": relays,
        "acknowledged": acknowledged,
        "not_yet": late,
        "connections": MAX_CONNECTIONS - app.connections.available_permits(),
    }))
}
