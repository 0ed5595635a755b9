//! Who is to have which apps, and what of it has effect.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use axum::extract::{Path, State};
use hedgerow_runtime::admin::control::Problem;
use hedgerow_shared::EntityId;
use hedgerow_uem_core::app::{Assignment, Disposition, EffectiveApp, Through};
use hedgerow_uem_core::profile::Reason;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::{Body, Params, Shown, admin, apps, groups, id, json_of, problem, users};
use crate::app::App;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Assign {
    disposition: Option<String>,
    config: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct On {
    platform: Option<String>,
}

pub(super) async fn assign(
    State(app): State<Arc<App>>,
    Path((what, who)): Path<(String, String)>,
    Body(assign): Body<Assign>,
) -> Result<StatusCode, Problem> {
    let ((target, entry), holder) = (apps::target(&app, &what).await?, groups::principal(&app, &who).await?);
    let disposition = match assign.disposition {
        Some(text) => text.parse().map_err(problem)?,
        None => Disposition::Optional,
    };
    let config = match (assign.config, entry) {
        (None, _) => None,
        (Some(name), Some(entry)) => Some(apps::config(&app, &entry, &name).await?.id),
        (Some(_), None) => {
            return Err(Problem::bad_request("a configuration goes with an app, not with a group of apps"));
        }
    };
    let assignment = Assignment { target, holder, disposition, config };
    app.domain.assign_app(&mut admin(), &app.tenant, assignment).await.map_err(problem)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn unassign(
    State(app): State<Arc<App>>,
    Path((what, who)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let ((target, _), holder) = (apps::target(&app, &what).await?, groups::principal(&app, &who).await?);
    app.domain.unassign_app(&mut admin(), &app.tenant, target, holder).await.map_err(problem)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn holders(State(app): State<Arc<App>>, Path(what): Path<String>) -> Shown {
    let (target, _) = apps::target(&app, &what).await?;
    let mut items = Vec::new();
    for one in app.domain.app_assignments(&app.tenant, target).await.map_err(problem)? {
        let mut value = groups::shown(&app, one.holder).await?;
        value["disposition"] = json!(one.disposition);
        if let Some(config) = one.config {
            value["config"] = json!(app.domain.app_config(&app.tenant, config).await.map_err(problem)?.name);
        }
        items.push(value);
    }
    Ok(axum::Json(json!({ "items": items, "next": null })))
}

pub(super) async fn of_user(State(app): State<Arc<App>>, Path(who): Path<String>, Params(on): Params<On>) -> Shown {
    let user = users::find(&app, &who).await?;
    let platform = on.platform.map(|platform| platform.parse()).transpose().map_err(problem)?;
    in_effect(&app, app.domain.effective_apps(&app.tenant, user.id, platform).await.map_err(problem)?).await
}

pub(super) async fn of_device(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    let device = id(&which)?;
    in_effect(&app, app.domain.effective_apps_on_device(&app.tenant, device).await.map_err(problem)?).await
}

pub(super) async fn findings(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    match app.domain.app_findings(&app.tenant, id(&which)?).await.map_err(problem)? {
        Some(findings) => json_of(findings).map(axum::Json),
        None => Err(Problem::not_found("this device has not told its apps; command send ID list-applications asks it")),
    }
}

/// With names in place of ids.
async fn in_effect(app: &App, found: Vec<EffectiveApp>) -> Shown {
    let (mut names, mut bundles) = (BTreeMap::<EntityId, String>::new(), BTreeMap::<EntityId, String>::new());
    let mut items = Vec::with_capacity(found.len());
    for one in found {
        let (by, way) = match one.reason {
            Reason::Group { way } => ("group", way),
            Reason::User | Reason::Default => ("user", Vec::new()),
        };
        let mut through = Vec::with_capacity(way.len());
        for group in way {
            if let Entry::Vacant(vacant) = names.entry(group) {
                vacant.insert(app.domain.group(&app.tenant, group).await.map_err(problem)?.name);
            }
            through.extend(names.get(&group).cloned());
        }
        let bundle = match one.through {
            Through::Itself => None,
            Through::AppGroup(group) => {
                if let Entry::Vacant(vacant) = bundles.entry(group) {
                    vacant.insert(app.domain.app_group(&app.tenant, group).await.map_err(problem)?.name);
                }
                bundles.get(&group).cloned()
            }
        };
        let config = one.config.map(|c| json!({ "name": c.name, "rank": c.rank, "settings": c.settings }));
        let passed: Vec<_> = one.passed_over.iter().map(|(d, why)| json!({ "disposition": d, "why": why })).collect();
        items.push(json!({
            "id": one.app.id, "platform": one.app.platform, "identifier": one.app.identifier, "name": one.app.name,
            "versions": one.app.versions, "source": one.app.source, "disposition": one.disposition, "by": by,
            "groups": through, "app_group": bundle, "config": config, "passed_over": passed,
        }));
    }
    Ok(axum::Json(json!({ "items": items, "next": null })))
}
