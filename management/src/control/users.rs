//! Users and their activation passwords.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use hedgerow_runtime::admin::control::Problem;
use hedgerow_runtime::clock;
use hedgerow_shared::secret::Secret;
use hedgerow_uem_core::account::{DeviceState, Email, User};
use hedgerow_uem_core::activation::{DEFAULT_LIFETIME_SECONDS, PasswordChoice};
use hedgerow_uem_core::bulk::{self, LineFault, MAX_FAULTS};
use hedgerow_uem_core::service::{ImportError, NewUser, UserChange};
use hedgerow_uem_core::store::Page;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Body, Params, Part, Shown, admin, json_of, problem};
use crate::app::App;

/// How long setting a password waits for the relays to learn the address.
const LISTED_WITHIN: Duration = Duration::from_secs(3);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Add {
    email: String,
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Edit {
    email: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Choice {
    password: Option<String>,
    lifetime_seconds: Option<u64>,
}

/// The largest body of an import: the text, as JSON escapes it.
pub(super) const MAX_IMPORT: usize = 2 * bulk::MAX_TEXT;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Import {
    csv: String,
}

pub(super) async fn import(State(app): State<Arc<App>>, Body(import): Body<Import>) -> Shown {
    let lines = match bulk::read(&import.csv) {
        Ok(lines) => lines,
        Err(faults) => return Err(unusable(&faults)),
    };
    match app.domain.import_users(&mut admin(), &app.tenant, &lines).await {
        Ok(imported) => json_of(imported).map(axum::Json),
        Err(ImportError::Lines(faults)) => Err(unusable(&faults)),
        Err(ImportError::Core(error)) => Err(problem(error)),
    }
}

fn unusable(faults: &[LineFault]) -> Problem {
    let lines: Vec<_> = faults.iter().map(|fault| format!("line {}: {}", fault.line, fault.why)).collect();
    let more = if faults.len() >= MAX_FAULTS { "\n(there may be more)" } else { "" };
    Problem::bad_request(format!("nothing was imported\n{}{more}", lines.join("\n")))
}

/// One part of the table: whoever wants all of it puts parts together without their first lines.
pub(super) async fn export(State(app): State<Arc<App>>, Params(part): Params<Part>) -> Shown {
    let page = part.page()?;
    let users = app.domain.users(&app.tenant, page).await.map_err(problem)?;
    let next = users.last().filter(|_| users.len() >= page.limit as usize).map(|u| u.id.to_string());
    let mut rows = Vec::with_capacity(users.len());
    for user in users {
        let groups = app.domain.group_names_of(&app.tenant, user.id).await.map_err(problem)?;
        rows.push((user, groups));
    }
    let csv = bulk::write(rows.iter().map(|(user, groups)| (user, groups)));
    Ok(axum::Json(json!({ "csv": csv, "next": next })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Like {
    begins: String,
}

pub(super) async fn find_like(State(app): State<Arc<App>>, Params(like): Params<Like>) -> Shown {
    let users = app.domain.find_users(&app.tenant, &like.begins, Page::MAX).await.map_err(problem)?;
    let mut items = Vec::with_capacity(users.len());
    for user in users {
        items.push(shown(&app, user).await?);
    }
    Ok(axum::Json(json!({ "items": items, "next": null })))
}

pub(super) async fn list(State(app): State<Arc<App>>, Params(part): Params<Part>) -> Shown {
    let page = part.page()?;
    let users = app.domain.users(&app.tenant, page).await.map_err(problem)?;
    let next = users.last().map(|u| u.id.to_string());
    let mut items = Vec::with_capacity(users.len());
    for user in users {
        items.push(shown(&app, user).await?);
    }
    Ok(super::list(items, page.limit, next))
}

pub(super) async fn add(State(app): State<Arc<App>>, Body(add): Body<Add>) -> Shown {
    let email = address(&add.email)?;
    let display_name = add.name.unwrap_or_else(|| email.to_string());
    let new = NewUser { email, display_name };
    let user = app.domain.add_user(&mut admin(), &app.tenant, new).await.map_err(problem)?;
    app.changed();
    shown(&app, user).await.map(axum::Json)
}

pub(super) async fn show(State(app): State<Arc<App>>, Path(who): Path<String>) -> Shown {
    let user = find(&app, &who).await?;
    let (own, mut others) = (app.domain.group_names_of(&app.tenant, user.id).await.map_err(problem)?, BTreeSet::new());
    for id in app.domain.groups_of_user(&app.tenant, user.id).await.map_err(problem)?.into_keys() {
        let name = app.domain.group(&app.tenant, id).await.map_err(problem)?.name;
        if !own.contains(&name) {
            others.insert(name);
        }
    }
    let mut value = shown(&app, user).await?;
    value["groups"] = json!(own);
    value["by_way_of_groups"] = json!(others);
    Ok(axum::Json(value))
}

pub(super) async fn change(State(app): State<Arc<App>>, Path(who): Path<String>, Body(edit): Body<Edit>) -> Shown {
    let (user, email) = (find(&app, &who).await?, edit.email.as_deref().map(address).transpose()?);
    let change = UserChange { email, display_name: edit.name };
    let user = app.domain.change_user(&mut admin(), &app.tenant, user.id, change).await.map_err(problem)?;
    // The relays list addresses that may activate.
    app.changed();
    shown(&app, user).await.map(axum::Json)
}

/// The devices go first: were it cut short, nothing of the user would count more than before.
pub(super) async fn remove(State(app): State<Arc<App>>, Path(who): Path<String>) -> Shown {
    let user = find(&app, &who).await?;
    app.domain.keep_a_security_admin(&app.tenant, user.id, None).await.map_err(problem)?;
    let mut page = Page::first();
    loop {
        let devices = app.domain.devices(&app.tenant, Some(user.id), page).await.map_err(problem)?;
        for device in devices.iter().filter(|d| d.state == DeviceState::Active) {
            app.domain.revoke_device(&mut admin(), &app.tenant, device.id).await.map_err(problem)?;
        }
        let Some(next) = page.behind(&devices, |device| device.id) else { break };
        page = next;
    }
    switch(&app, user, false).await
}

pub(super) async fn activate(State(app): State<Arc<App>>, Path(who): Path<String>) -> Shown {
    let user = find(&app, &who).await?;
    switch(&app, user, true).await
}

pub(super) async fn deactivate(State(app): State<Arc<App>>, Path(who): Path<String>) -> Shown {
    let user = find(&app, &who).await?;
    switch(&app, user, false).await
}

async fn switch(app: &App, user: User, active: bool) -> Shown {
    let result = app.domain.set_user_active(&mut admin(), &app.tenant, user.id, active).await;
    // Devices may have been revoked before this failed.
    app.changed();
    shown(app, result.map_err(problem)?).await.map(axum::Json)
}

pub(super) async fn set_password(
    State(app): State<Arc<App>>,
    Path(who): Path<String>,
    Body(choice): Body<Choice>,
) -> Shown {
    let user = find(&app, &who).await?;
    let lifetime = choice.lifetime_seconds.unwrap_or(DEFAULT_LIFETIME_SECONDS);
    let choice = match choice.password {
        Some(text) => PasswordChoice::Set(Secret::from_text(text)),
        None => PasswordChoice::Generate,
    };
    let made = app.domain.set_activation_password(&mut admin(), &app.tenant, user.id, choice, lifetime).await;
    let made = made.map_err(problem)?;
    app.changed();
    // Whoever gets the password may use it at once: the relays should know the address by then.
    let not_yet = app.not_listed(&user.email, LISTED_WITHIN).await;
    let password = made.password.expose_text().unwrap_or_default();
    Ok(axum::Json(json!({ "email": user.email, "password": password, "expires": made.expires, "not_yet": not_yet })))
}

pub(super) async fn password(State(app): State<Arc<App>>, Path(who): Path<String>) -> Shown {
    let user = find(&app, &who).await?;
    match activation(&app, &user).await? {
        Value::Null => Err(Problem::not_found(format!("{} has no activation password", user.email))),
        state => Ok(axum::Json(state)),
    }
}

pub(super) async fn clear_password(
    State(app): State<Arc<App>>,
    Path(who): Path<String>,
) -> Result<StatusCode, Problem> {
    let user = find(&app, &who).await?;
    app.domain.clear_activation_password(&mut admin(), &app.tenant, user.id).await.map_err(problem)?;
    app.changed();
    Ok(StatusCode::NO_CONTENT)
}

/// The user with this id or address.
pub(super) async fn find(app: &App, who: &str) -> Result<User, Problem> {
    let found = match who.contains('@') {
        true => app.domain.user_by_email(&app.tenant, &address(who)?).await,
        false => app.domain.user(&app.tenant, super::id(who)?).await,
    };
    found.map_err(problem)
}

fn address(text: &str) -> Result<Email, Problem> {
    text.parse().map_err(|e: hedgerow_uem_core::account::EmailError| Problem::bad_request(e.to_string()))
}

async fn shown(app: &App, user: User) -> Result<Value, Problem> {
    let activation = activation(app, &user).await?;
    let mut value = json_of(user)?;
    value["activation"] = activation;
    Ok(value)
}

async fn activation(app: &App, user: &User) -> Result<Value, Problem> {
    let state = app.domain.activation_state(&app.tenant, user.id, clock::now()).await.map_err(problem)?;
    Ok(match state {
        Some((state, expires, wrong)) => json!({ "state": state, "expires": expires, "wrong": wrong }),
        None => Value::Null,
    })
}
