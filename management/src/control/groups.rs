//! Groups of users.

use std::sync::Arc;

use axum::extract::{Path, State};
use hedgerow_runtime::admin::control::Problem;
use hedgerow_uem_core::group::{Group, Principal};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Body, Params, Part, Shown, admin, json_of, list, problem, users};
use crate::app::App;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Add {
    name: String,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Edit {
    name: Option<String>,
    description: Option<String>,
}

pub(super) async fn groups(State(app): State<Arc<App>>, Params(part): Params<Part>) -> Shown {
    let page = part.page()?;
    let groups = app.domain.groups(&app.tenant, page).await.map_err(problem)?;
    let next = groups.last().map(|g| g.id.to_string());
    let items = groups.into_iter().map(json_of).collect::<Result<_, _>>()?;
    Ok(list(items, page.limit, next))
}

pub(super) async fn add(State(app): State<Arc<App>>, Body(add): Body<Add>) -> Shown {
    let group = app.domain.add_group(&mut admin(), &app.tenant, &add.name, &add.description).await.map_err(problem)?;
    json_of(group).map(axum::Json)
}

pub(super) async fn show(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    json_of(find(&app, &which).await?).map(axum::Json)
}

pub(super) async fn change(State(app): State<Arc<App>>, Path(which): Path<String>, Body(edit): Body<Edit>) -> Shown {
    let (group, change) = (find(&app, &which).await?, (edit.name.as_deref(), edit.description.as_deref()));
    json_of(app.domain.change_group(&mut admin(), &app.tenant, group.id, change).await.map_err(problem)?)
        .map(axum::Json)
}

pub(super) async fn remove(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    let group = find(&app, &which).await?;
    json_of(app.domain.remove_group(&mut admin(), &app.tenant, group.id).await.map_err(problem)?).map(axum::Json)
}

pub(super) async fn members(
    State(app): State<Arc<App>>,
    Path(which): Path<String>,
    Params(part): Params<Part>,
) -> Shown {
    let (group, page) = (find(&app, &which).await?, part.page()?);
    let members = app.domain.members(&app.tenant, group.id, page).await.map_err(problem)?;
    let next = members.last().map(|member| member.id().to_string());
    let mut items = Vec::with_capacity(members.len());
    for member in members {
        items.push(shown(&app, member).await?);
    }
    Ok(list(items, page.limit, next))
}

pub(super) async fn join(
    State(app): State<Arc<App>>,
    Path((which, who)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let (group, member) = (find(&app, &which).await?, principal(&app, &who).await?);
    app.domain.add_member(&mut admin(), &app.tenant, group.id, member).await.map_err(problem)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn leave(
    State(app): State<Arc<App>>,
    Path((which, who)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let (group, member) = (find(&app, &which).await?, principal(&app, &who).await?);
    app.domain.remove_member(&mut admin(), &app.tenant, group.id, member).await.map_err(problem)?;
    Ok(StatusCode::NO_CONTENT)
}

/// The group with this name or id.
pub(super) async fn find(app: &App, which: &str) -> Result<Group, Problem> {
    let found = match which.parse() {
        Ok(id) => app.domain.group(&app.tenant, id).await,
        Err(_) => app.domain.group_by_name(&app.tenant, which).await,
    };
    found.map_err(problem)
}

/// `group:NAME`, `group:ID`, or a user's address or id.
pub(super) async fn principal(app: &App, who: &str) -> Result<Principal, Problem> {
    match who.strip_prefix("group:") {
        Some(group) => find(app, group).await.map(|group| Principal::Group(group.id)),
        None => users::find(app, who).await.map(|user| Principal::User(user.id)),
    }
}

/// `{kind, id, name}`.
pub(super) async fn shown(app: &App, who: Principal) -> Result<Value, Problem> {
    let name = match who {
        Principal::User(id) => app.domain.user(&app.tenant, id).await.map_err(problem)?.email.to_string(),
        Principal::Group(id) => app.domain.group(&app.tenant, id).await.map_err(problem)?.name,
    };
    Ok(json!({ "kind": who.kind(), "id": who.id(), "name": name }))
}
