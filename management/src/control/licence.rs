//! The tenant's licence: installed, shown, removed; and what each relay makes of it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use hedgerow_runtime::admin::control::Problem;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Body, Shown, admin, problem};
use crate::app::App;
use crate::status;

/// How long installing waits for the relays.
const JUDGED_WITHIN: Duration = Duration::from_secs(3);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Install {
    licence: String,
}

pub(super) async fn show(State(app): State<Arc<App>>) -> Shown {
    match status::licence(&app).await.map_err(problem)? {
        Value::Null => Err(Problem::not_found("no licence is installed")),
        licence => Ok(axum::Json(licence)),
    }
}

pub(super) async fn install(State(app): State<Arc<App>>, Body(new): Body<Install>) -> Shown {
    let installed = app.domain.install_licence(&mut admin(), &app.tenant, &new.licence).await.map_err(problem)?;
    app.changed();
    let not_yet = app.licence_told(JUDGED_WITHIN, &installed.licence.id).await;
    let mut value = status::licence(&app).await.map_err(problem)?;
    value["not_yet"] = json!(not_yet);
    Ok(axum::Json(value))
}

pub(super) async fn remove(State(app): State<Arc<App>>) -> Shown {
    let old = app.domain.remove_licence(&mut admin(), &app.tenant).await.map_err(problem)?;
    app.changed();
    Ok(axum::Json(json!({ "id": old.licence.id })))
}
