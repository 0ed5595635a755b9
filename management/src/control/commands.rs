//! Commands to devices.

use std::sync::Arc;

use axum::extract::{Path, State};
use hedgerow_uem_core::command::{Command, DEFAULT_LIFETIME_SECONDS};
use hedgerow_uem_core::service::NewCommand;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Body, Shown, admin, id, json_of, problem};
use crate::app::App;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Give {
    kind: String,
    #[serde(default)]
    properties: Map<String, Value>,
    lifetime_seconds: Option<u64>,
}

pub(super) async fn give(State(app): State<Arc<App>>, Path(device): Path<String>, Body(give): Body<Give>) -> Shown {
    let new = NewCommand {
        device: id(&device)?,
        kind: give.kind.parse().map_err(problem)?,
        properties: give.properties,
        lifetime_seconds: give.lifetime_seconds.unwrap_or(DEFAULT_LIFETIME_SECONDS),
    };
    let command = app.domain.queue_command(&mut admin(), &app.tenant, new).await.map_err(problem)?;
    app.wake(command.device);
    shown(command).map(axum::Json)
}

pub(super) async fn of_device(State(app): State<Arc<App>>, Path(device): Path<String>) -> Shown {
    let commands = app.domain.commands(&app.tenant, id(&device)?).await.map_err(problem)?;
    let items = commands.into_iter().map(shown).collect::<Result<Vec<_>, _>>()?;
    Ok(axum::Json(json!({ "items": items, "next": null })))
}

pub(super) async fn show(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    shown(app.domain.command(&app.tenant, id(&which)?).await.map_err(problem)?).map(axum::Json)
}

pub(super) async fn cancel(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    shown(app.domain.cancel_command(&mut admin(), &app.tenant, id(&which)?).await.map_err(problem)?).map(axum::Json)
}

/// Without the values of its properties: they may be passwords.
fn shown(command: Command) -> Result<Value, hedgerow_runtime::admin::control::Problem> {
    let names: Vec<String> = command.properties.names().map(str::to_owned).collect();
    let mut value = json_of(command)?;
    value["properties"] = json!(names);
    Ok(value)
}
