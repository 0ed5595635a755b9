//! What devices told, how they stand, and judging them now.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use hedgerow_runtime::admin::control::Problem;
use hedgerow_shared::EntityId;
use hedgerow_uem_core::compliance::{Standing, Verdict};
use hedgerow_uem_core::store::Page;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Params, Part, Shown, admin, id, json_of, list, problem};
use crate::app::App;

/// Devices of one page of a round.
const ROUND: u32 = 200;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    verdict: Option<String>,
    after: Option<String>,
    limit: Option<u32>,
}

pub(super) async fn installed(
    State(app): State<Arc<App>>,
    Path(which): Path<String>,
    Params(part): Params<Part>,
) -> Shown {
    let (device, limit) = (id(&which)?, part.limit());
    let after = part.after.unwrap_or_default();
    let apps = app.domain.installed(&app.tenant, device, &after, limit).await.map_err(problem)?;
    let next = apps.last().map(|app| app.identifier.clone());
    Ok(list(apps.into_iter().map(json_of).collect::<Result<_, _>>()?, limit, next))
}

pub(super) async fn devices_with(
    State(app): State<Arc<App>>,
    Path(identifier): Path<String>,
    Params(part): Params<Part>,
) -> Shown {
    let page = part.page()?;
    let ids = app.domain.devices_with(&app.tenant, &identifier, page).await.map_err(problem)?;
    let next = ids.last().map(ToString::to_string);
    let mut items = Vec::with_capacity(ids.len());
    for id in ids {
        let device = app.domain.device(&app.tenant, id).await.map_err(problem)?;
        let email = app.domain.user(&app.tenant, device.user).await.map_err(problem)?.email;
        items.push(json!({ "id": id, "email": email, "name": device.name, "platform": device.platform }));
    }
    Ok(list(items, page.limit, next))
}

pub(super) async fn standings(State(app): State<Arc<App>>, Params(which): Params<Which>) -> Shown {
    let verdict: Option<Verdict> = match which.verdict.as_deref() {
        Some(text) => Some(text.replace('-', "_").parse().map_err(|e: &str| Problem::bad_request(e))?),
        None => None,
    };
    let part = Part { after: which.after, limit: which.limit, user: None };
    let page = part.page()?;
    let standings = app.domain.standings(&app.tenant, verdict, page).await.map_err(problem)?;
    let next = standings.last().map(|s| s.device.to_string());
    let mut items = Vec::with_capacity(standings.len());
    let mut profiles = BTreeMap::new();
    for standing in standings {
        items.push(shown(&app, standing, &mut profiles).await?);
    }
    Ok(list(items, page.limit, next))
}

pub(super) async fn standing(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    match app.domain.standing(&app.tenant, id(&which)?).await.map_err(problem)? {
        Some(standing) => shown(&app, standing, &mut BTreeMap::new()).await.map(axum::Json),
        None => Err(Problem::not_found("this device has not been judged yet; hedgerow compliance check does it now")),
    }
}

pub(super) async fn judge(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    let device = id(&which)?;
    let (standing, changed) = app.domain.judge_device(&mut admin(), &app.tenant, device).await.map_err(problem)?;
    if changed {
        app.changed();
        app.wake(device);
    }
    let judged = match standing {
        Some(standing) => shown(&app, standing, &mut BTreeMap::new()).await?,
        None => json!({ "device": device, "verdict": Verdict::NoProfile, "causes": [] }),
    };
    Ok(axum::Json(judged))
}

/// One page of a round; `next` goes on.
pub(super) async fn judge_all(State(app): State<Arc<App>>, Params(part): Params<Part>) -> Shown {
    let page = Page { limit: ROUND, ..part.page()? };
    let swept = app.sweep(&mut admin(), page).await.map_err(problem)?;
    Ok(axum::Json(json!({
        "looked_at": swept.looked_at, "changed": swept.changed, "next": swept.next,
        "failed": swept.failed.iter().map(|(device, why)| json!({ "device": device, "why": why })).collect::<Vec<_>>(),
    })))
}

/// With the device's name and user, and the profile's name.
pub(super) async fn shown(
    app: &App,
    standing: Standing,
    profiles: &mut BTreeMap<EntityId, String>,
) -> Result<Value, Problem> {
    let device = app.domain.device(&app.tenant, standing.device).await.map_err(problem)?;
    let email = app.domain.user(&app.tenant, device.user).await.map_err(problem)?.email;
    let profile = match standing.profile {
        None => None,
        Some(id) => match profiles.get(&id) {
            Some(known) => Some(known.clone()),
            None => {
                // It may have been removed since.
                let name = app.domain.profile(&app.tenant, id).await.map_or_else(|_| id.to_string(), |p| p.name);
                profiles.insert(id, name.clone());
                Some(name)
            }
        },
    };
    let mut value = json_of(standing)?;
    value["profile_name"] = json!(profile);
    value["name"] = json!(device.name);
    value["email"] = json!(email);
    Ok(value)
}
