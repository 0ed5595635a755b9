//! Server names: what is registered, and where each relay stands with it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use hedgerow_runtime::admin::control::Problem;
use hedgerow_shared::Origin;
use hedgerow_shared::wire::names::RegisteredName;
use hedgerow_uem_core::account::ServerName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Body, Shown, admin, json_of, problem};
use crate::app::{App, NameAt};

/// How long adding and removing wait for the relays.
const PASSED_WITHIN: Duration = Duration::from_secs(3);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Add {
    name: String,
    origin: Origin,
}

pub(super) async fn names(State(app): State<Arc<App>>) -> Shown {
    let names = app.domain.names(&app.tenant).await.map_err(problem)?;
    let items = names.into_iter().map(|name| shown(&app, name)).collect::<Result<Vec<_>, _>>()?;
    Ok(axum::Json(json!({ "items": items, "next": null })))
}

pub(super) async fn add(State(app): State<Arc<App>>, Body(new): Body<Add>) -> Shown {
    let added = app.domain.add_name(&mut admin(), &app.tenant, &new.name, new.origin).await.map_err(problem)?;
    app.changed();
    let wanted = RegisteredName { name: added.name.clone(), origin: added.origin };
    let not_yet = app.names_told(PASSED_WITHIN, |names| names.contains(&wanted)).await;
    let mut value = shown(&app, added)?;
    value["not_yet"] = json!(not_yet);
    Ok(axum::Json(value))
}

pub(super) async fn remove(State(app): State<Arc<App>>, Path(name): Path<String>) -> Shown {
    let old = app.domain.remove_name(&mut admin(), &app.tenant, &name).await.map_err(problem)?;
    app.changed();
    let not_yet = app.names_told(PASSED_WITHIN, |names| names.iter().all(|n| n.name != old.name)).await;
    let mut value = json_of(old)?;
    value["not_yet"] = json!(not_yet);
    Ok(axum::Json(value))
}

fn shown(app: &App, name: ServerName) -> Result<Value, Problem> {
    let wanted = RegisteredName { name: name.name.clone(), origin: name.origin };
    let relays: Vec<Value> = app
        .name_at_relays(&wanted)
        .into_iter()
        .map(|(relay, at)| {
            let (state, reason) = match at {
                NameAt::Passed => ("passed", None),
                NameAt::NotYet => ("not_yet", None),
                NameAt::Refused(fault) => ("refused", Some(fault.to_string())),
                NameAt::Unknown => ("refused", Some("the relay is older than this feature".to_owned())),
            };
            json!({ "relay": relay, "state": state, "reason": reason })
        })
        .collect();
    let mut value = json_of(name)?;
    value["relays"] = json!(relays);
    Ok(value)
}
