//! Administrators and roles. Whoever opens the socket is the break-glass administrator.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::{Path, State};
use hedgerow_runtime::admin::control::Problem;
use hedgerow_shared::EntityId;
use hedgerow_shared::secret::Secret;
use hedgerow_uem_core::admin::{Admin, Asker, Permission, Role, RoleId};
use hedgerow_uem_core::service::{NewRole, RoleChange};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Body, Shown, admin, groups, json_of, problem, users};
use crate::app::App;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Grant {
    role: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Chosen {
    password: String,
    #[serde(default)]
    must_change: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Add {
    name: String,
    permissions: Vec<String>,
    groups: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Edit {
    name: Option<String>,
    permissions: Option<Vec<String>>,
    groups: Option<Vec<String>>,
    /// For all users again, instead of those of groups.
    #[serde(default)]
    all_users: bool,
}

pub(super) async fn admins(State(app): State<Arc<App>>) -> Shown {
    let mut items = Vec::new();
    for admin in app.domain.admins(&app.tenant).await.map_err(problem)? {
        items.push(shown(&app, admin).await?);
    }
    Ok(axum::Json(json!({ "items": items, "next": null })))
}

pub(super) async fn set(State(app): State<Arc<App>>, Path(who): Path<String>, Body(grant): Body<Grant>) -> Shown {
    let (user, role) = (users::find(&app, &who).await?, find_role(&app, &grant.role).await?);
    let by = (&app.tenant, &Asker::BreakGlass);
    let made = app.domain.set_admin(&mut admin(), by, user.id, role.id).await.map_err(problem)?;
    shown(&app, made).await.map(axum::Json)
}

pub(super) async fn remove(State(app): State<Arc<App>>, Path(who): Path<String>) -> Result<StatusCode, Problem> {
    let user = users::find(&app, &who).await?;
    let by = (&app.tenant, &Asker::BreakGlass);
    app.domain.remove_admin(&mut admin(), by, user.id).await.map_err(problem)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn set_password(
    State(app): State<Arc<App>>,
    Path(who): Path<String>,
    Body(chosen): Body<Chosen>,
) -> Result<StatusCode, Problem> {
    let user = users::find(&app, &who).await?;
    let (password, by) = (Secret::from_text(chosen.password), (&app.tenant, &Asker::BreakGlass));
    // Tens of milliseconds on this thread, once, for one administrator: nothing waits for that here.
    let set = app.domain.set_admin_password(&mut admin(), by, user.id, (&password, chosen.must_change)).await;
    set.map_err(problem)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn roles(State(app): State<Arc<App>>) -> Shown {
    let mut items = Vec::new();
    for role in app.domain.roles(&app.tenant).await.map_err(problem)? {
        items.push(shown_role(&app, role).await?);
    }
    Ok(axum::Json(json!({ "items": items, "next": null })))
}

pub(super) async fn show_role(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    let role = find_role(&app, &which).await?;
    shown_role(&app, role).await.map(axum::Json)
}

pub(super) async fn add_role(State(app): State<Arc<App>>, Body(add): Body<Add>) -> Shown {
    let permissions = permissions(&add.permissions)?;
    let groups = match add.groups {
        None => None,
        Some(names) => Some(groups_named(&app, &names).await?),
    };
    let (new, by) = (NewRole { name: add.name, permissions, groups }, (&app.tenant, &Asker::BreakGlass));
    let role = app.domain.add_role(&mut admin(), by, new).await.map_err(problem)?;
    shown_role(&app, role).await.map(axum::Json)
}

pub(super) async fn change_role(
    State(app): State<Arc<App>>,
    Path(which): Path<String>,
    Body(edit): Body<Edit>,
) -> Shown {
    let (role, by) = (find_role(&app, &which).await?, (&app.tenant, &Asker::BreakGlass));
    let groups = match (edit.groups, edit.all_users) {
        (Some(_), true) => {
            return Err(Problem::bad_request("a role is for all users or for those of groups, not both"));
        }
        (Some(names), false) => Some(Some(groups_named(&app, &names).await?)),
        (None, true) => Some(None),
        (None, false) => None,
    };
    let permissions = edit.permissions.as_deref().map(permissions).transpose()?;
    let change = RoleChange { name: edit.name, permissions, groups };
    let role = app.domain.change_role(&mut admin(), by, role.id, change).await.map_err(problem)?;
    shown_role(&app, role).await.map(axum::Json)
}

pub(super) async fn remove_role(State(app): State<Arc<App>>, Path(which): Path<String>) -> Result<StatusCode, Problem> {
    let (role, by) = (find_role(&app, &which).await?, (&app.tenant, &Asker::BreakGlass));
    app.domain.remove_role(&mut admin(), by, role.id).await.map_err(problem)?;
    Ok(StatusCode::NO_CONTENT)
}

fn permissions(names: &[String]) -> Result<BTreeSet<Permission>, Problem> {
    names.iter().map(|name| name.parse()).collect::<Result<_, _>>().map_err(problem)
}

async fn groups_named(app: &App, names: &[String]) -> Result<BTreeSet<EntityId>, Problem> {
    let mut ids = BTreeSet::new();
    for name in names {
        ids.insert(groups::find(app, name).await?.id);
    }
    Ok(ids)
}

/// By its name or id.
async fn find_role(app: &App, which: &str) -> Result<Role, Problem> {
    let found = match which.parse::<RoleId>() {
        Ok(id) => app.domain.role(&app.tenant, id).await,
        Err(_) => app.domain.role_by_name(&app.tenant, which).await,
    };
    found.map_err(problem)
}

/// Without anything of the password but that there is one.
async fn shown(app: &App, admin: Admin) -> Result<Value, Problem> {
    let user = app.domain.user(&app.tenant, admin.user).await.map_err(problem)?;
    let role = app.domain.role(&app.tenant, admin.role).await.map_or_else(|_| admin.role.to_string(), |r| r.name);
    let password = admin.password.map(|p| json!({ "set": p.set, "must_change": p.must_change }));
    Ok(json!({
        "user": admin.user, "email": user.email, "active": user.active, "role": role, "created": admin.created,
        "last_sign_in": admin.last_sign_in, "password": password,
    }))
}

async fn shown_role(app: &App, role: Role) -> Result<Value, Problem> {
    let mut names = Vec::new();
    for group in role.groups.iter().flatten() {
        // One that was removed since limits it to nobody of it.
        let name = app.domain.group(&app.tenant, *group).await.map_or_else(|_| group.to_string(), |g| g.name);
        names.push(name);
    }
    let limited = role.groups.is_some();
    let own = matches!(role.id, RoleId::Custom(_));
    let mut value = json_of(role)?;
    value["groups"] = if limited { json!(names) } else { Value::Null };
    value["predefined"] = json!(!own);
    Ok(value)
}
