//! How the core stands, as JSON: the same on the admin listener and the control socket.

use hedgerow_runtime::tls;
use hedgerow_uem_core::CoreError;
use serde_json::{Value, json};

use crate::app::{App, MAX_CONNECTIONS};

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
            })
        })
        .collect();
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
        "relays": relays,
        "acknowledged": acknowledged,
        "not_yet": late,
        "connections": MAX_CONNECTIONS - app.connections.available_permits(),
    }))
}
