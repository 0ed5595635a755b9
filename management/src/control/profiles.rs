//! Profiles, their assignments, and what of them has effect.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::{Path, State};
use hedgerow_runtime::admin::control::Problem;
use hedgerow_shared::EntityId;
use hedgerow_uem_core::group::name_key;
use hedgerow_uem_core::profile::{Category, Effective, Platform, Profile, Reason};
use hedgerow_uem_core::service::{NewProfile, ProfileChange};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Body, Params, Shown, admin, groups, id, json_of, problem, users};
use crate::app::App;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Add {
    category: String,
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    disabled: BTreeSet<Platform>,
    #[serde(default)]
    settings: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Changed {
    name: Option<String>,
    description: Option<String>,
    disabled: Option<BTreeSet<Platform>>,
    settings: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    to: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Default {
    default: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Of {
    category: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct On {
    platform: Option<String>,
}

pub(super) async fn profiles(State(app): State<Arc<App>>, Params(of): Params<Of>) -> Shown {
    let categories = match &of.category {
        Some(category) => vec![category.parse().map_err(problem)?],
        None => Category::ALL.to_vec(),
    };
    let mut items = Vec::new();
    for category in categories {
        for profile in app.domain.profiles(&app.tenant, category).await.map_err(problem)? {
            items.push(json_of(profile)?);
        }
    }
    Ok(whole(items))
}

pub(super) async fn add(State(app): State<Arc<App>>, Body(add): Body<Add>) -> Shown {
    let new = NewProfile {
        category: add.category.parse().map_err(problem)?,
        name: add.name,
        description: add.description,
        disabled: add.disabled,
        settings: add.settings,
    };
    json_of(app.domain.add_profile(&mut admin(), &app.tenant, new).await.map_err(problem)?).map(axum::Json)
}

pub(super) async fn show(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    json_of(find(&app, &which).await?).map(axum::Json)
}

pub(super) async fn change(
    State(app): State<Arc<App>>,
    Path(which): Path<String>,
    Body(changed): Body<Changed>,
) -> Shown {
    let profile = find(&app, &which).await?;
    let change = ProfileChange {
        name: changed.name,
        description: changed.description,
        disabled: changed.disabled,
        settings: changed.settings,
    };
    let result = app.domain.change_profile(&mut admin(), &app.tenant, profile.id, change).await;
    json_of(result.map_err(problem)?).map(axum::Json)
}

pub(super) async fn remove(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    let profile = find(&app, &which).await?;
    json_of(app.domain.remove_profile(&mut admin(), &app.tenant, profile.id).await.map_err(problem)?).map(axum::Json)
}

pub(super) async fn rank(State(app): State<Arc<App>>, Path(which): Path<String>, Body(place): Body<Place>) -> Shown {
    let profile = find(&app, &which).await?;
    let order = app.domain.rank_profile(&mut admin(), &app.tenant, profile.id, place.to).await.map_err(problem)?;
    Ok(whole(order.into_iter().map(json_of).collect::<Result<_, _>>()?))
}

pub(super) async fn set_default(
    State(app): State<Arc<App>>,
    Path(which): Path<String>,
    Body(set): Body<Default>,
) -> Shown {
    let profile = find(&app, &which).await?;
    let result = app.domain.set_default_profile(&mut admin(), &app.tenant, profile.id, set.default).await;
    json_of(result.map_err(problem)?).map(axum::Json)
}

pub(super) async fn holders(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    let profile = find(&app, &which).await?;
    let mut items = Vec::new();
    for holder in app.domain.holders(&app.tenant, profile.id).await.map_err(problem)? {
        items.push(groups::shown(&app, holder).await?);
    }
    Ok(whole(items))
}

pub(super) async fn assign(
    State(app): State<Arc<App>>,
    Path((which, who)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let (profile, holder) = (find(&app, &which).await?, groups::principal(&app, &who).await?);
    app.domain.assign_profile(&mut admin(), &app.tenant, profile.id, holder).await.map_err(problem)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn unassign(
    State(app): State<Arc<App>>,
    Path((which, who)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let (profile, holder) = (find(&app, &which).await?, groups::principal(&app, &who).await?);
    app.domain.unassign_profile(&mut admin(), &app.tenant, profile.id, holder).await.map_err(problem)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn of_user(State(app): State<Arc<App>>, Path(who): Path<String>, Params(on): Params<On>) -> Shown {
    let user = users::find(&app, &who).await?;
    let platform = on.platform.map(|platform| platform.parse()).transpose().map_err(problem)?;
    in_effect(&app, app.domain.effective_profiles(&app.tenant, user.id, platform).await.map_err(problem)?).await
}

pub(super) async fn of_device(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    let device = id(&which)?;
    in_effect(&app, app.domain.effective_on_device(&app.tenant, device).await.map_err(problem)?).await
}

/// The profile with this id, or `CATEGORY/NAME`.
async fn find(app: &App, which: &str) -> Result<Profile, Problem> {
    if let Ok(id) = which.parse::<EntityId>() {
        return app.domain.profile(&app.tenant, id).await.map_err(problem);
    }
    let Some((category, name)) = which.split_once('/') else {
        return Err(Problem::bad_request("a profile is its id, or CATEGORY/NAME such as it-config/strict"));
    };
    let category: Category = category.parse().map_err(problem)?;
    let all = app.domain.profiles(&app.tenant, category).await.map_err(problem)?;
    let found = all.into_iter().find(|profile| name_key(&profile.name) == name_key(name));
    found.ok_or_else(|| Problem::not_found(format!("there is no profile {name:?} of {category}")))
}

fn whole(items: Vec<Value>) -> axum::Json<Value> {
    axum::Json(json!({ "items": items, "next": null }))
}

/// With names in place of the ids of groups.
async fn in_effect(app: &App, found: Vec<Effective>) -> Shown {
    let mut names = BTreeMap::new();
    let mut items = Vec::with_capacity(found.len());
    for one in found {
        let (by, way) = match one.reason {
            Reason::User => ("user", Vec::new()),
            Reason::Default => ("default", Vec::new()),
            Reason::Group { way } => ("group", way),
        };
        let mut through = Vec::with_capacity(way.len());
        for group in way {
            if let std::collections::btree_map::Entry::Vacant(vacant) = names.entry(group) {
                vacant.insert(app.domain.group(&app.tenant, group).await.map_err(problem)?.name);
            }
            through.extend(names.get(&group).cloned());
        }
        let passed: Vec<_> =
            one.passed_over.iter().map(|(p, why)| json!({ "id": p.id, "name": p.name, "why": why })).collect();
        let profile = &one.profile;
        items.push(json!({
            "category": profile.category, "id": profile.id, "name": profile.name, "rank": profile.rank, "by": by,
            "groups": through, "passed_over": passed, "settings": profile.settings,
        }));
    }
    Ok(whole(items))
}
