//! Who holds certificates: devices and nodes; and the tokens that make nodes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use axum::extract::{Path, State};
use hedgerow_runtime::admin::control::Problem;
use hedgerow_runtime::clock;
use hedgerow_shared::{EntityId, GroupName, Origin};
use hedgerow_uem_core::account::{Device, Node, Token};
use hedgerow_uem_core::service::NewToken;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Body, Params, Part, Patience, Shown, admin, id, json_of, list, problem, users};
use crate::app::App;

/// How long a token is good unless said otherwise: somebody goes and uses it.
const TOKEN_LIFETIME_SECONDS: u64 = 24 * 3600;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    name: String,
    #[serde(default)]
    group: GroupName,
    #[serde(default = "proxy")]
    origins: Vec<Origin>,
    lifetime_seconds: Option<u64>,
}

fn proxy() -> Vec<Origin> {
    vec![Origin::Proxy]
}

pub(super) async fn devices(State(app): State<Arc<App>>, Params(part): Params<Part>) -> Shown {
    let page = part.page()?;
    let user = match &part.user {
        Some(who) => Some(users::find(&app, who).await?.id),
        None => None,
    };
    let devices = app.domain.devices(&app.tenant, user, page).await.map_err(problem)?;
    let next = devices.last().map(|d| d.id.to_string());
    // Standings are of devices: as many behind the same id reach at least as far.
    let standings = app.domain.standings(&app.tenant, None, page).await.map_err(problem)?;
    let verdicts: BTreeMap<_, _> = standings.into_iter().map(|s| (s.device, s.verdict)).collect();
    let mut emails = BTreeMap::new();
    let mut items = Vec::with_capacity(devices.len());
    for device in devices {
        let verdict = verdicts.get(&device.id).copied();
        let mut value = shown_device(&app, device, &mut emails).await?;
        value["verdict"] = json!(verdict);
        items.push(value);
    }
    Ok(list(items, page.limit, next))
}

pub(super) async fn device(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    let device = app.domain.device(&app.tenant, id(&which)?).await.map_err(problem)?;
    let certificates = app.domain.certificates(&app.tenant, device.id).await.map_err(problem)?;
    let inventory = app.domain.inventory(&app.tenant, device.id).await.map_err(problem)?;
    let compliance = match app.domain.standing(&app.tenant, device.id).await.map_err(problem)? {
        Some(standing) => super::inventory::shown(&app, standing, &mut BTreeMap::new()).await?,
        None => Value::Null,
    };
    let mut value = shown_device(&app, device, &mut BTreeMap::new()).await?;
    value["certificates"] = json_of(certificates)?;
    value["inventory"] = json_of(inventory)?;
    value["compliance"] = compliance;
    Ok(axum::Json(value))
}

pub(super) async fn revoke_device(
    State(app): State<Arc<App>>,
    Path(which): Path<String>,
    Params(patience): Params<Patience>,
) -> Shown {
    let device = app.domain.revoke_device(&mut admin(), &app.tenant, id(&which)?).await.map_err(problem)?;
    let (version, not_yet) = spread(&app, &patience).await?;
    let device = shown_device(&app, device, &mut BTreeMap::new()).await?;
    Ok(axum::Json(json!({ "device": device, "version": version, "not_yet": not_yet })))
}

pub(super) async fn nodes(State(app): State<Arc<App>>, Params(part): Params<Part>) -> Shown {
    let page = part.page()?;
    let nodes = app.domain.nodes(&app.tenant, page).await.map_err(problem)?;
    let next = nodes.last().map(|n| n.id.to_string());
    let acknowledged = acknowledged(&app).await?;
    let items = nodes.into_iter().map(|n| shown_node(n, &acknowledged)).collect::<Result<_, _>>()?;
    Ok(list(items, page.limit, next))
}

pub(super) async fn node(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    let node = app.domain.node(&app.tenant, id(&which)?).await.map_err(problem)?;
    let certificates = app.domain.certificates(&app.tenant, node.id).await.map_err(problem)?;
    let mut value = shown_node(node, &acknowledged(&app).await?)?;
    value["certificates"] = json_of(certificates)?;
    Ok(axum::Json(value))
}

pub(super) async fn revoke_node(
    State(app): State<Arc<App>>,
    Path(which): Path<String>,
    Params(patience): Params<Patience>,
) -> Shown {
    let node = app.domain.revoke_node(&mut admin(), &app.tenant, id(&which)?).await.map_err(problem)?;
    let (version, not_yet) = spread(&app, &patience).await?;
    let node = shown_node(node, &acknowledged(&app).await?)?;
    Ok(axum::Json(json!({ "node": node, "version": version, "not_yet": not_yet })))
}

pub(super) async fn tokens(State(app): State<Arc<App>>, Params(part): Params<Part>) -> Shown {
    let page = part.page()?;
    let tokens = app.domain.tokens(&app.tenant, page).await.map_err(problem)?;
    let next = tokens.last().map(|t| t.id.to_string());
    let items = tokens.into_iter().map(shown_token).collect::<Result<_, _>>()?;
    Ok(list(items, page.limit, next))
}

pub(super) async fn create_token(State(app): State<Arc<App>>, Body(create): Body<Create>) -> Shown {
    let new = NewToken {
        name: create.name,
        group: create.group,
        origins: create.origins,
        lifetime_seconds: create.lifetime_seconds.unwrap_or(TOKEN_LIFETIME_SECONDS),
    };
    let (token, text) = app.domain.create_token(&mut admin(), &app.tenant, new).await.map_err(problem)?;
    Ok(axum::Json(json!({ "token": shown_token(token)?, "text": text.to_text() })))
}

pub(super) async fn revoke_token(State(app): State<Arc<App>>, Path(which): Path<String>) -> Shown {
    let token = app.domain.revoke_token(&mut admin(), &app.tenant, id(&which)?).await.map_err(problem)?;
    shown_token(token).map(axum::Json)
}

/// Tells everybody of what was just committed, and who has not taken it in time.
async fn spread(app: &App, patience: &Patience) -> Result<(String, Vec<String>), Problem> {
    app.changed();
    let version = app.domain.config_version(&app.tenant).await.map_err(problem)?;
    let late = app.not_yet(version, patience.limit()).await.map_err(problem)?;
    Ok((version.to_string(), late))
}

async fn shown_device(app: &App, device: Device, emails: &mut BTreeMap<EntityId, Value>) -> Result<Value, Problem> {
    let email = match emails.entry(device.user) {
        Entry::Occupied(known) => known.get().clone(),
        Entry::Vacant(new) => {
            let user = app.domain.user(&app.tenant, device.user).await.map_err(problem)?;
            new.insert(json!(user.email)).clone()
        }
    };
    let config = device.obeys.map(|version| version.to_string());
    let mut value = json_of(device)?;
    value["email"] = email;
    value["config"] = json!(config);
    Ok(value)
}

async fn acknowledged(app: &App) -> Result<BTreeMap<String, String>, Problem> {
    let all = app.domain.acknowledgements(&app.tenant).await.map_err(problem)?;
    Ok(all.into_iter().map(|a| (a.holder, a.version.to_string())).collect())
}

fn shown_node(node: Node, acknowledged: &BTreeMap<String, String>) -> Result<Value, Problem> {
    let config = json!(acknowledged.get(&format!("node:{}", node.id)));
    let mut value = json_of(node)?;
    value["config"] = config;
    Ok(value)
}

fn shown_token(token: Token) -> Result<Value, Problem> {
    let state = token.state(clock::now());
    let mut value = json_of(token)?;
    value["state"] = json_of(state)?;
    Ok(value)
}
