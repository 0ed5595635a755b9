//! What an operator sees (loopback HTTP, reading only) and does (control socket). Bodies and answers are JSON; refusals
//! are `{"error": "..."}`.
//!
//! | door | request | answer |
//! |---|---|---|
//! | both | `GET /sessions` | links, lanes, tunnels, CONNECT tunnels and connections passed through by name |
//! | both | `GET /status` | name, build, TLS (provider, post-quantum), proxy URLs for web services, numbers, licences |
//! | control | `GET /info` | name, instance, CA file and pin, TLS, proxy URLs for web services |
//! | control | `GET /tenants` | all tenants, without keys |
//! | control | `POST /tenants {"tenant"?, "srp_key"?}` | `{"tenant", "srp_key"}`, shown once |
//! | control | `DELETE /tenants/{id}` | `{"cut"}` |
//! | control | `POST /tenants/{id}/block`, `/unblock` | `{"cut"}` |
//! | control | `POST /tenants/{id}/holders/{id}/block`, `/unblock` | `{"cut"}`: one device or node |
//! | control | `POST /tenants/{id}/srp-key` | `{"tenant", "srp_key"}`: a new one |
//! | control | `POST /tenants/{id}/domains {"domain"}` | `{"domain"}` |
//! | control | `DELETE /tenants/{id}/domains/{domain}` | `{"domain"}` |
//! | control | `GET /names` | names that tenants registered, and those taken from them |
//! | control | `DELETE /tenants/{id}/names/{name}` | `{"name", "removed", "cut"}`: the tenant does not get it back |
//! | control | `POST /tenants/{id}/names/{name}/allow` | `{"name", "allowed"}`: undoes that |
//! | control | `DELETE /sessions/{id}` | `{"cut"}` |

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use data_encoding::HEXLOWER;
use hedgerow_runtime::admin::control::Problem;
use hedgerow_runtime::clock;
use hedgerow_runtime::link::Channel;
use hedgerow_runtime::proxy_protocol::canonical;
use hedgerow_runtime::tls;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::secret::Secret;
use hedgerow_shared::{EntityId, Origin, SessionId, TenantId, UnixTime};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::fair::Way;
use crate::identity::Identity;
use crate::lane;
use crate::pass::{Asked, Pass};
use crate::probe::Probe;
use crate::registry::Live;
use crate::state::Relay;
use crate::store::{StoreError, TenantState};
use crate::tunnel::{self, End, Pair};

type Shared = State<Arc<Relay>>;
type Answer = Result<Json<Value>, Problem>;

/// For the admin listener.
pub fn reading(relay: Arc<Relay>) -> Router {
    Router::new().route("/sessions", get(sessions)).route("/status", get(status)).with_state(relay)
}

/// For the control socket.
pub fn control(relay: Arc<Relay>, identity: &Identity) -> Router {
    let info = json!({
        "name": relay.config.name,
        "instance": relay.instance.to_string(),
        "ca": identity.ca,
        "ca_pin": identity.ca_pin.map(|pin| HEXLOWER.encode(&pin)),
        "tls": tls::status(),
        "web": relay.web.get(),
    });
    Router::new()
        .route("/info", get(move || async move { Json(info) }))
        .route("/status", get(status))
        .route("/sessions", get(sessions))
        .route("/sessions/{id}", delete(cut))
        .route("/tenants", get(tenants).post(add))
        .route("/tenants/{tenant}", delete(remove))
        .route("/tenants/{tenant}/block", post(block))
        .route("/tenants/{tenant}/unblock", post(unblock))
        .route("/tenants/{tenant}/holders/{holder}/block", post(block_holder))
        .route("/tenants/{tenant}/holders/{holder}/unblock", post(unblock_holder))
        .route("/tenants/{tenant}/srp-key", post(rotate))
        .route("/tenants/{tenant}/domains", post(claim))
        .route("/tenants/{tenant}/domains/{domain}", delete(unclaim))
        .route("/names", get(names))
        .route("/tenants/{tenant}/names/{name}", delete(withhold))
        .route("/tenants/{tenant}/names/{name}/allow", post(allow))
        .with_state(relay)
}

/// One entry of `GET /sessions`.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Session {
    Link {
        id: String,
        tenant: String,
        role: &'static str,
        entity: Option<String>,
        group: Option<String>,
        origins: Vec<&'static str>,
        instance: String,
        transport: &'static str,
        address: String,
        build: String,
        rtt_ms: Option<f64>,
        bytes_in: u64,
        bytes_out: u64,
        streams: usize,
        draining: bool,
        age_s: u64,
    },
    Lane {
        id: String,
        tenant: String,
        origin: &'static str,
        device: String,
        node: String,
        device_address: String,
        node_address: String,
        device_rtt_ms: Option<f64>,
        node_rtt_ms: Option<f64>,
        path: &'static str,
        bytes_up: u64,
        bytes_down: u64,
        age_s: u64,
    },
    /// A pairing of a device with a node: DTLS between them.
    Tunnel {
        id: String,
        tenant: String,
        device: String,
        node: String,
        /// Where each end gets its datagrams: `udp`, `link` or `none`.
        device_path: &'static str,
        node_path: &'static str,
        device_address: Option<String>,
        node_address: Option<String>,
        bytes_up: u64,
        bytes_down: u64,
        age_s: u64,
    },
    /// A connection passed through by server name.
    Name(Passed),
    /// A tunnel by CONNECT; its name is the authority.
    Connect(Passed),
}

#[derive(Debug, Serialize)]
struct Passed {
    id: String,
    tenant: String,
    origin: &'static str,
    name: String,
    address: String,
    rtt_ms: Option<f64>,
    bytes_up: u64,
    bytes_down: u64,
    age_s: u64,
}

async fn sessions(State(relay): Shared) -> Json<Vec<Session>> {
    let now = clock::now();
    let links = relay.registry.select(None, |_| true);
    let links = links.iter().map(|live| link_entry(live, now));
    let lanes = relay.lanes.live();
    let tunnels = relay.pairings.live();
    let tunnels = tunnels.iter().map(|pair| tunnel_entry(pair, now));
    let passes = relay.passes.live();
    let passes = passes.iter().map(|pass| pass_entry(pass, now));
    Json(links.chain(lanes.iter().map(|lane| lane_entry(lane, now))).chain(tunnels).chain(passes).collect())
}

async fn status(State(relay): Shared) -> Json<Value> {
    Json(json!({
        "name": relay.config.name,
        "instance": relay.instance.to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "tls": tls::status(),
        "web": relay.web.get(),
        "tenants": relay.store.tenants().len(),
        "links": relay.registry.len(),
        "lanes": relay.lanes.len(),
        "tunnels": relay.pairings.len(),
        "passed": relay.passes.live().len(),
        "licences": relay.licences.show(&relay.store, &relay.registry, clock::now()),
        "draining": relay.is_draining(),
    }))
}

fn link_entry(live: &Live<Channel>, now: UnixTime) -> Session {
    let (facts, stats) = (&live.facts, live.handle.stats());
    // TLS measures by pings only, which a busy link does not send.
    let rtt = facts.probe.and_then(Probe::rtt).or(stats.rtt);
    Session::Link {
        id: facts.id.to_string(),
        tenant: facts.tenant.to_string(),
        role: facts.role.as_str(),
        entity: facts.entity.map(|e| e.to_string()),
        group: facts.group.as_ref().map(ToString::to_string),
        origins: Origin::ALL.iter().filter(|o| live.serves(**o)).map(|o| o.as_str()).collect(),
        instance: facts.instance.to_string(),
        transport: live.handle.transport().label(),
        address: live.address().to_string(),
        build: facts.build.clone(),
        rtt_ms: rtt.map(ms),
        bytes_in: stats.bytes_in,
        bytes_out: stats.bytes_out,
        streams: stats.streams,
        draining: live.is_draining(),
        age_s: now.since(facts.since),
    }
}

fn ms(rtt: Duration) -> f64 {
    rtt.as_secs_f64() * 1000.0
}

fn lane_entry(lane: &lane::Live, now: UnixTime) -> Session {
    Session::Lane {
        id: lane.id.to_string(),
        tenant: lane.facts.tenant.to_string(),
        origin: lane.facts.origin.as_str(),
        device: lane.facts.device.entity.to_string(),
        node: lane.facts.node.entity.to_string(),
        device_address: lane.device_address.to_string(),
        node_address: lane.node_address.to_string(),
        device_rtt_ms: lane.device_probe.and_then(Probe::rtt).map(ms),
        node_rtt_ms: lane.node_probe.and_then(Probe::rtt).map(ms),
        path: lane.path,
        bytes_up: lane.up.load(Ordering::Relaxed),
        bytes_down: lane.down.load(Ordering::Relaxed),
        age_s: now.since(lane.since),
    }
}

fn tunnel_entry(pair: &Pair, now: UnixTime) -> Session {
    let path = |end: &End| match end.path() {
        tunnel::Path::None => ("none", None),
        tunnel::Path::Udp(target) => ("udp", Some(canonical(target.address).to_string())),
        tunnel::Path::Link(live) => ("link", live.upgrade().map(|live| live.address().to_string())),
    };
    let ((device_path, device_address), (node_path, node_address)) = (path(&pair.device), path(&pair.node));
    Session::Tunnel {
        id: pair.id.to_string(),
        tenant: pair.tenant.to_string(),
        device: pair.device.owner.entity.to_string(),
        node: pair.node.owner.entity.to_string(),
        device_path,
        node_path,
        device_address,
        node_address,
        bytes_up: pair.device.bytes.load(Ordering::Relaxed),
        bytes_down: pair.node.bytes.load(Ordering::Relaxed),
        age_s: now.since(pair.since),
    }
}

fn pass_entry(pass: &Pass, now: UnixTime) -> Session {
    let passed = Passed {
        id: pass.id.to_string(),
        tenant: pass.to.tenant.to_string(),
        origin: pass.to.origin.as_str(),
        name: pass.to.name.clone(),
        address: pass.from.address.to_string(),
        rtt_ms: pass.from.probe.and_then(Probe::rtt).map(ms),
        bytes_up: pass.meter.moved(Way::Up),
        bytes_down: pass.meter.moved(Way::Down),
        age_s: now.since(pass.since),
    };
    match pass.asked {
        Asked::Name => Session::Name(passed),
        Asked::Connect => Session::Connect(passed),
    }
}

async fn cut(State(relay): Shared, Path(id): Path<String>) -> Answer {
    let id: SessionId = id.parse().map_err(|e| Problem::bad_request(format!("{e}")))?;
    if let Some(lane) = relay.lanes.get(id) {
        lane.cut();
        return Ok(Json(json!({ "cut": 1 })));
    }
    let by_operator = Fault::new(Code::Lost, "an operator of the relay ended the tunnel");
    if relay.pairings.cut(&relay.registry, id, &by_operator) {
        return Ok(Json(json!({ "cut": 1 })));
    }
    if let Some(pass) = relay.passes.get(id) {
        pass.cut();
        return Ok(Json(json!({ "cut": 1 })));
    }
    let found = relay.registry.select(None, |facts| facts.id == id);
    if found.is_empty() {
        return Err(Problem::not_found("no live session has this id; `GET /sessions` lists those that are"));
    }
    for live in &found {
        live.handle.close(Fault::new(Code::Lost, "an operator of the relay closed the link"));
    }
    Ok(Json(json!({ "cut": found.len() })))
}

async fn tenants(State(relay): Shared) -> Json<Value> {
    let all = relay.store.tenants();
    let list = all.iter().map(|t| {
        json!({
            "tenant": t.id,
            "state": t.state,
            "domains": t.domains,
            "blocked": t.blocked,
            "names": t.names.len(),
            "ca_pin": t.ca.as_ref().map(hedgerow_shared::verify::TenantCa::pin),
            "config_version": t.seen.map(|v| v.to_string()),
            "config_expires": t.config.as_ref().map(|c| c.head.expires),
            "open_activations": t.open_activations(),
            "licence": relay.licences.show_one(t, &relay.registry, clock::now()),
            "links": relay.registry.select(Some(&t.id), |_| true).len(),
            "created": t.created,
        })
    });
    Json(list.collect())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTenant {
    tenant: Option<TenantId>,
    /// The key that its core has already, 64 hexadecimal digits.
    srp_key: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Domain {
    domain: String,
}

async fn add(State(relay): Shared, Json(new): Json<NewTenant>) -> Answer {
    let given = match new.srp_key {
        None => None,
        Some(text) => {
            let key = HEXLOWER.decode(text.trim().as_bytes()).ok().filter(|k| k.len() == 32);
            let wrong = "srp_key: expected the 64 hexadecimal digits that the first relay gave out";
            Some(Secret::new(key.ok_or_else(|| Problem::bad_request(wrong))?))
        }
    };
    blocking(relay, move |relay| {
        let id = new.tenant.map_or_else(|| free_id(relay), Ok)?;
        let tenant = match given {
            None => relay.store.add(id)?,
            Some(key) => relay.store.add_with_key(id, key)?,
        };
        tracing::info!(tenant = %tenant.id, "tenant added");
        Ok(key_answer(&tenant.id, &tenant.srp_key))
    })
    .await
}

fn free_id(relay: &Relay) -> Result<TenantId, StoreError> {
    loop {
        let number = u32::from_be_bytes(clock::random()) % 100_000_000;
        let text = format!("S{number:08}");
        let id: TenantId = text.parse().map_err(|_| StoreError::NotADomain(text.clone()))?;
        if relay.store.tenant(&id).is_none() {
            return Ok(id);
        }
    }
}

async fn remove(State(relay): Shared, Path(tenant): Path<String>) -> Answer {
    let tenant = id(&tenant)?;
    blocking(relay, move |relay| {
        relay.store.remove(&tenant)?;
        tracing::info!(%tenant, "tenant removed");
        Ok(json!({ "cut": relay.enforce(Some(&tenant)) }))
    })
    .await
}

async fn block(State(relay): Shared, Path(tenant): Path<String>) -> Answer {
    set_state(relay, id(&tenant)?, TenantState::Blocked).await
}

async fn unblock(State(relay): Shared, Path(tenant): Path<String>) -> Answer {
    set_state(relay, id(&tenant)?, TenantState::Active).await
}

async fn set_state(relay: Arc<Relay>, tenant: TenantId, state: TenantState) -> Answer {
    blocking(relay, move |relay| {
        relay.store.set_state(&tenant, state)?;
        tracing::info!(%tenant, ?state, "tenant changed");
        Ok(json!({ "cut": relay.enforce(Some(&tenant)) }))
    })
    .await
}

async fn block_holder(State(relay): Shared, Path((tenant, holder)): Path<(String, EntityId)>) -> Answer {
    set_blocked(relay, id(&tenant)?, holder, true).await
}

async fn unblock_holder(State(relay): Shared, Path((tenant, holder)): Path<(String, EntityId)>) -> Answer {
    set_blocked(relay, id(&tenant)?, holder, false).await
}

async fn set_blocked(relay: Arc<Relay>, tenant: TenantId, holder: EntityId, blocked: bool) -> Answer {
    blocking(relay, move |relay| {
        relay.store.set_blocked(&tenant, holder, blocked)?;
        tracing::info!(%tenant, %holder, blocked, "a device or node was blocked or let in again");
        Ok(json!({ "cut": relay.enforce(Some(&tenant)) }))
    })
    .await
}

async fn rotate(State(relay): Shared, Path(tenant): Path<String>) -> Answer {
    let tenant = id(&tenant)?;
    blocking(relay, move |relay| {
        let key = relay.store.rotate_srp_key(&tenant)?;
        tracing::info!(%tenant, "SRP key replaced");
        Ok(key_answer(&tenant, &key))
    })
    .await
}

async fn claim(State(relay): Shared, Path(tenant): Path<String>, Json(new): Json<Domain>) -> Answer {
    let tenant = id(&tenant)?;
    blocking(relay, move |relay| Ok(json!({ "domain": relay.store.claim_domain(&tenant, &new.domain)? }))).await
}

async fn unclaim(State(relay): Shared, Path((tenant, domain)): Path<(String, String)>) -> Answer {
    let tenant = id(&tenant)?;
    blocking(relay, move |relay| {
        let there = relay.store.unclaim_domain(&tenant, &domain)?;
        Ok(json!({ "domain": domain, "removed": there }))
    })
    .await
}

async fn names(State(relay): Shared) -> Json<Value> {
    let all = relay.store.tenants();
    let list = all.iter().flat_map(|t| {
        let state = match t.state {
            TenantState::Active => "passed",
            TenantState::Blocked => "blocked",
        };
        let held = t
            .names
            .iter()
            .map(move |(name, origin)| json!({ "name": name, "tenant": t.id, "origin": origin, "state": state }));
        held.chain(t.withheld.iter().map(|name| json!({ "name": name, "tenant": t.id, "state": "removed" })))
    });
    Json(list.collect())
}

async fn withhold(State(relay): Shared, Path((tenant, name)): Path<(String, String)>) -> Answer {
    let tenant = id(&tenant)?;
    blocking(relay, move |relay| {
        let there = relay.store.withhold_name(&tenant, &name)?;
        tracing::info!(%tenant, name, "name taken from a tenant");
        Ok(json!({ "name": name, "removed": there, "cut": relay.cut_lost_names() }))
    })
    .await
}

async fn allow(State(relay): Shared, Path((tenant, name)): Path<(String, String)>) -> Answer {
    let tenant = id(&tenant)?;
    blocking(relay, move |relay| {
        let there = relay.store.allow_name(&tenant, &name)?;
        Ok(json!({ "name": name, "allowed": there }))
    })
    .await
}

fn key_answer(tenant: &TenantId, key: &Secret) -> Value {
    json!({ "tenant": tenant, "srp_key": HEXLOWER.encode(key.expose()) })
}

fn id(text: &str) -> Result<TenantId, Problem> {
    text.parse().map_err(|e| Problem::bad_request(format!("{e}")))
}

/// The store waits for the disk.
async fn blocking(
    relay: Arc<Relay>,
    work: impl FnOnce(&Relay) -> Result<Value, StoreError> + Send + 'static,
) -> Answer {
    match tokio::task::spawn_blocking(move || work(&relay)).await {
        Ok(Ok(answer)) => Ok(Json(answer)),
        Ok(Err(error)) => Err(problem(&error)),
        Err(_) => {
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be carried out; see the log"))
        }
    }
}

fn problem(error: &StoreError) -> Problem {
    let status = match error {
        StoreError::UnknownTenant(_) => StatusCode::NOT_FOUND,
        StoreError::Exists(_)
        | StoreError::DomainTaken(_)
        | StoreError::CaKeyTaken
        | StoreError::CaFixed
        | StoreError::OlderLicence { .. } => StatusCode::CONFLICT,
        StoreError::NotADomain(_)
        | StoreError::Ca(_)
        | StoreError::ForeignCa(_)
        | StoreError::NoCa
        | StoreError::Config(_)
        | StoreError::TooManyRegistrations
        | StoreError::TooManyNames
        | StoreError::TooManyBlocked => StatusCode::BAD_REQUEST,
        StoreError::Io { .. } | StoreError::Damaged { .. } | StoreError::Exposed(_) | StoreError::InUse(_) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    Problem::new(status, error.to_string())
}
