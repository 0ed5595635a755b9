//! Apps: catalogue, configurations, groups of apps, lists.

use std::sync::Arc;

use axum::extract::{Path, State};
use hedgerow_runtime::admin::control::Problem;
use hedgerow_shared::EntityId;
use hedgerow_uem_core::app::{App as Entry, AppConfig, AppGroup, List, Listing, Source, Target};
use hedgerow_uem_core::group::name_key;
use hedgerow_uem_core::profile::Platform;
use hedgerow_uem_core::service::NewApp;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Body, Params, Part, Shown, admin, json_of, list, problem};
use crate::app::App;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Add {
    platform: String,
    identifier: String,
    name: Option<String>,
    #[serde(default)]
    vendor: String,
    #[serde(default)]
    versions: Vec<String>,
    source: Option<Source>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AddGroup {
    name: String,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    settings: Option<Map<String, Value>>,
    rank: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Of {
    platform: Option<String>,
}

pub(super) async fn apps(State(app): State<Arc<App>>, Params(part): Params<Part>) -> Shown {
    let page = part.page()?;
    let apps = app.domain.apps(&app.tenant, page).await.map_err(problem)?;
    let next = apps.last().map(|app| app.id.to_string());
    Ok(list(apps.into_iter().map(json_of).collect::<Result<_, _>>()?, page.limit, next))
}

pub(super) async fn add(State(app): State<Arc<App>>, Body(add): Body<Add>) -> Shown {
    let new = NewApp {
        platform: add.platform.parse().map_err(problem)?,
        name: add.name.unwrap_or_else(|| add.identifier.clone()),
        identifier: add.identifier,
        vendor: add.vendor,
        versions: add.versions,
        source: add.source.unwrap_or_else(|| Source::Store(String::new())),
    };
    json_of(app.domain.add_app(&mut admin(), &app.tenant, new).await.map_err(problem)?).map(axum::Json)
}

pub(super) async fn show(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    let entry = find(&app, &which).await?;
    let configs = app.domain.app_configs(&app.tenant, entry.id).await.map_err(problem)?;
    let mut value = json_of(entry)?;
    value["configs"] = json_of(configs)?;
    Ok(axum::Json(value))
}

pub(super) async fn remove(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    let entry = find(&app, &which).await?;
    json_of(app.domain.remove_app(&mut admin(), &app.tenant, entry.id).await.map_err(problem)?).map(axum::Json)
}

/// Settings, or a place, or both.
pub(super) async fn set_config(
    State(app): State<Arc<App>>,
    Path((which, name)): Path<(String, String)>,
    Body(set): Body<Settings>,
) -> Shown {
    let entry = find(&app, &which).await?;
    if let Some(settings) = set.settings {
        let content = (name.as_str(), settings);
        app.domain.put_app_config(&mut admin(), &app.tenant, entry.id, content).await.map_err(problem)?;
    }
    let config = config(&app, &entry, &name).await?;
    if let Some(to) = set.rank {
        app.domain.rank_app_config(&mut admin(), &app.tenant, config.id, to).await.map_err(problem)?;
    }
    json_of(app.domain.app_config(&app.tenant, config.id).await.map_err(problem)?).map(axum::Json)
}

pub(super) async fn remove_config(State(app): State<Arc<App>>, Path((which, name)): Path<(String, String)>) -> Shown {
    let entry = find(&app, &which).await?;
    let config = config(&app, &entry, &name).await?;
    json_of(app.domain.remove_app_config(&mut admin(), &app.tenant, config.id).await.map_err(problem)?).map(axum::Json)
}

pub(super) async fn groups(State(app): State<Arc<App>>, Params(part): Params<Part>) -> Shown {
    let page = part.page()?;
    let groups = app.domain.app_groups(&app.tenant, page).await.map_err(problem)?;
    let next = groups.last().map(|group| group.id.to_string());
    Ok(list(groups.into_iter().map(json_of).collect::<Result<_, _>>()?, page.limit, next))
}

pub(super) async fn add_group(State(app): State<Arc<App>>, Body(add): Body<AddGroup>) -> Shown {
    let group = app.domain.add_app_group(&mut admin(), &app.tenant, &add.name, &add.description).await;
    json_of(group.map_err(problem)?).map(axum::Json)
}

pub(super) async fn show_group(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    let group = find_group(&app, &which).await?;
    let apps = app.domain.apps_in_group(&app.tenant, group.id).await.map_err(problem)?;
    let mut value = json_of(group)?;
    value["apps"] = json_of(apps)?;
    Ok(axum::Json(value))
}

pub(super) async fn remove_group(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    let group = find_group(&app, &which).await?;
    json_of(app.domain.remove_app_group(&mut admin(), &app.tenant, group.id).await.map_err(problem)?).map(axum::Json)
}

pub(super) async fn join(state: State<Arc<App>>, path: Path<(String, String)>) -> Result<StatusCode, Problem> {
    set_in_group(state, path, true).await
}

pub(super) async fn leave(state: State<Arc<App>>, path: Path<(String, String)>) -> Result<StatusCode, Problem> {
    set_in_group(state, path, false).await
}

async fn set_in_group(
    State(app): State<Arc<App>>,
    Path((group, which)): Path<(String, String)>,
    is_in: bool,
) -> Result<StatusCode, Problem> {
    let (group, entry) = (find_group(&app, &group).await?, find(&app, &which).await?);
    let both = (group.id, entry.id);
    app.domain.set_in_app_group(&mut admin(), &app.tenant, both, is_in).await.map_err(problem)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn listings(State(app): State<Arc<App>>, Params(of): Params<Of>) -> Shown {
    let platform = of.platform.map(|platform| platform.parse()).transpose().map_err(problem)?;
    let all = app.domain.listings(&app.tenant, platform).await.map_err(problem)?;
    Ok(axum::Json(json!({ "items": json_of(all)?, "next": null })))
}

pub(super) async fn enlist(
    state: State<Arc<App>>,
    path: Path<(String, String, String)>,
) -> Result<StatusCode, Problem> {
    set_listed(state, path, true).await
}

pub(super) async fn delist(
    state: State<Arc<App>>,
    path: Path<(String, String, String)>,
) -> Result<StatusCode, Problem> {
    set_listed(state, path, false).await
}

async fn set_listed(
    State(app): State<Arc<App>>,
    Path((list, platform, identifier)): Path<(String, String, String)>,
    is_on: bool,
) -> Result<StatusCode, Problem> {
    let list: List = list.parse().map_err(problem)?;
    let listing = Listing { list, platform: platform.parse().map_err(problem)?, identifier };
    app.domain.set_listed(&mut admin(), &app.tenant, listing, is_on).await.map_err(problem)?;
    Ok(StatusCode::NO_CONTENT)
}

/// The app with this id, or `PLATFORM/IDENTIFIER`.
pub(super) async fn find(app: &App, which: &str) -> Result<Entry, Problem> {
    if let Ok(id) = which.parse::<EntityId>() {
        return app.domain.app(&app.tenant, id).await.map_err(problem);
    }
    let Some((platform, identifier)) = which.split_once('/') else {
        return Err(Problem::bad_request("an app is its id, or PLATFORM/IDENTIFIER such as android/com.example.mail"));
    };
    let platform: Platform = platform.parse().map_err(problem)?;
    app.domain.app_by_identifier(&app.tenant, platform, identifier).await.map_err(problem)
}

/// The group of apps with this name or id.
pub(super) async fn find_group(app: &App, which: &str) -> Result<AppGroup, Problem> {
    let found = match which.parse() {
        Ok(id) => app.domain.app_group(&app.tenant, id).await,
        Err(_) => app.domain.app_group_by_name(&app.tenant, which).await,
    };
    found.map_err(problem)
}

/// The app's configuration of this name.
pub(super) async fn config(app: &App, entry: &Entry, name: &str) -> Result<AppConfig, Problem> {
    let configs = app.domain.app_configs(&app.tenant, entry.id).await.map_err(problem)?;
    let found = configs.into_iter().find(|config| name_key(&config.name) == name_key(name));
    found.ok_or_else(|| Problem::not_found(format!("there is no configuration {name:?} of {}", entry.identifier)))
}

/// `group:NAME` of apps, or an app.
pub(super) async fn target(app: &App, what: &str) -> Result<(Target, Option<Entry>), Problem> {
    match what.strip_prefix("group:") {
        Some(group) => find_group(app, group).await.map(|group| (Target::Group(group.id), None)),
        None => find(app, what).await.map(|entry| (Target::App(entry.id), Some(entry))),
    }
}
