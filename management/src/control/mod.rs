//! The control socket: how `hedgerow` verbs change a running core. HTTP/1.1 with JSON over `STATE/control.sock`.
//!
//! Whoever may open it (root on this machine, by the socket's mode) is the break-glass administrator: no role limits them,
//! and what they do stands in the audit record as `admin:local`.
//!
//! Every list is `{"items": [..], "next": "ID" | null}`; with `next`, ask again with `?after=ID` (and `?limit=N`, at
//! most 1000). A refusal is `{"error": "text"}` with 400, 404, 409 or 503. Times are seconds since 1970, ids UUIDs,
//! versions `EPOCH.VERSION`. Bodies refuse unknown fields. `WHO` is a user's id or e-mail address, percent-encoded.
//!
//! | verb | request | body | answer |
//! |---|---|---|---|
//! | status | `GET /status` | | `{tenant, version, uptime_seconds, tls {provider, post_quantum}, config {version, issued}, licence LICENCE\|null, relays [{name, up, since, error, ca_registered, config, lookup_entries, names, names_refused [{name, reason}], web [url], licence {state, reason, standing, required}}], acknowledged [{holder, version}], not_yet [holder], connections}` |
//! | tenant show | `GET /tenant` | | `{id, name, created, ca_pin, ca_pem, config, config_issued, relays, relay_name, relay_ca_pem, default_route}` |
//! | tenant epoch | `POST /tenant/epoch` | | `{version}`: after a restore from a backup |
//! | ca show | `GET /ca` | | `{pin, next}`; next is `null` or `{pin, begun, announced, certifies, unaware [holder], behind [{kind, id}]}` |
//! | ca begin | `POST /ca/begin` | | as ca show |
//! | ca switch, finish | `POST /ca/switch`, `/ca/finish` | `{anyway?}` | as ca show; 400 names who would be out |
//! | user add | `POST /users` | `{email, name?}` | USER |
//! | user list | `GET /users` | | list of USER `{id, email, display_name, active, created, activation}`; activation is `null` or `{state: open\|expired\|blocked, expires, wrong}` |
//! | user find | `GET /found/users?begins=TEXT` | | list of USER whose address or name begins so, at most 1000 |
//! | user import | `POST /import/users` | `{csv}`: `uem_core::bulk` | `{added, changed, unchanged}`; 400 names lines, and nothing is done |
//! | user export | `GET /export/users[?after=ID]` | | `{csv, next}`: part by part |
//! | user show | `GET /users/WHO` | | USER, with `groups` and `by_way_of_groups`: names |
//! | user remove | `DELETE /users/WHO` | | USER, inactive: devices revoked, password withdrawn; the record stays for the audit |
//! | user activate, deactivate | `POST /users/WHO/activate`, `/deactivate` | | USER; devices of an inactive user do not count while it lasts |
//! | password set | `PUT /users/WHO/activation` | `{password?, lifetime_seconds?}` | `{email, password, expires, not_yet}`; generated when not given; shown this once; waits up to 3 s for the relays to know the address, `not_yet` names those that do not |
//! | password show | `GET /users/WHO/activation` | | `{state, expires, wrong}`, 404 when there is none |
//! | password clear | `DELETE /users/WHO/activation` | | 204 |
//! | group add | `POST /groups` | `{name, description?}` | GROUP `{tenant, id, name, description, created}` |
//! | group list, show | `GET /groups`, `/groups/G` | | list of GROUP; `G` is a group's id or name |
//! | group remove | `DELETE /groups/G` | | GROUP |
//! | group members | `GET /groups/G/members` | | list of `{kind: user\|group, id, name}` |
//! | group join, leave | `PUT`, `DELETE /groups/G/members/P` | | 204; `P` is `WHO` or `group:G` |
//! | profile add | `POST /profiles` | `{category, name, description?, disabled? [PLATFORM], settings?}` | PROFILE: those and `{id, rank, default, created, modified}` |
//! | profile list, show | `GET /profiles[?category=C]`, `/profiles/F` | | list of PROFILE; `F` is a profile's id or `CATEGORY/NAME`, percent-encoded |
//! | profile change | `PUT /profiles/F` | `{name?, description?, disabled?, settings?}` | PROFILE |
//! | profile rank | `PUT /profiles/F/rank` | `{to}`, from 1 | the category's list |
//! | profile default | `PUT /profiles/F/default` | `{default}` | PROFILE |
//! | profile remove | `DELETE /profiles/F` | | PROFILE |
//! | profile holders | `GET /profiles/F/holders` | | list of `{kind, id, name}` |
//! | profile assign, unassign | `PUT`, `DELETE /profiles/F/holders/P` | | 204 |
//! | profile effective | `GET /users/WHO/profiles[?platform=P]`, `/devices/ID/profiles` | | list of `{category, id, name, rank, by: user\|group\|default, groups [name], passed_over [{id, name, why: assigned_to_group\|rank}], settings}` |
//! | command send | `POST /devices/ID/commands` | `{kind, properties?, lifetime_seconds?}` | COMMAND `{id, device, number, kind, properties [name], state, created, expires, sent, not_before, completed, error, result}`; a week when no lifetime is given |
//! | command list | `GET /devices/ID/commands` | | list of COMMAND, the newest first, at most 500 |
//! | command show | `GET /commands/ID` | | COMMAND |
//! | command cancel | `DELETE /commands/ID` | | COMMAND; 400 when the device may have it already |
//! | device list | `GET /devices[?user=WHO]` | | list of DEVICE `{id, user, email, name, platform, certificate, state, created, revoked, last_seen, config}`; config is the version it acknowledged |
//! | device show | `GET /devices/ID` | | DEVICE with `certificates [..]`, `inventory {attributes, apps, apps_told, asked}`, `compliance`: STANDING or null |
//! | device apps | `GET /devices/ID/installed` | | list of `{identifier, name, version}` |
//! | admin list | `GET /admins` | | list of ADMIN `{user, email, active, role, created, last_sign_in, password}`; password is `null` or `{set, must_change}` |
//! | admin add, role | `PUT /admins/WHO` | `{role}`: a name or id | ADMIN |
//! | admin remove | `DELETE /admins/WHO` | | 204; 400 for the last with the security role |
//! | admin password | `PUT /admins/WHO/password` | `{password, must_change?}` | 204 |
//! | role list, show | `GET /roles`, `/roles/R` | | list of ROLE `{id, name, permissions, groups [name] or null, predefined}` |
//! | role add | `POST /roles` | `{name, permissions, groups? [G]}` | ROLE |
//! | role remove | `DELETE /roles/R` | | 204; 400 while somebody has it |
//! | app add | `POST /apps` | `{platform, identifier, name?, vendor?, versions? [text], source? {from: store\|file, at}}` | APP: those and `{id, created, modified}` |
//! | app list, show | `GET /apps`, `/apps/A` | | list of APP; APP with `configs [{id, name, rank, settings}]`; `A` is an app's id or `PLATFORM/IDENTIFIER`, percent-encoded |
//! | app remove | `DELETE /apps/A` | | APP |
//! | app config set, rank | `PUT /apps/A/configs/NAME` | `{settings?, rank?}` | `{id, name, rank, settings}` |
//! | app config remove | `DELETE /apps/A/configs/NAME` | | the same |
//! | app assign | `PUT /apps/T/holders/P` | `{disposition?: required\|optional\|denied, config?}` | 204; `T` is `A` or `group:NAME` of apps; optional when not given |
//! | app unassign | `DELETE /apps/T/holders/P` | | 204 |
//! | app holders | `GET /apps/T/holders` | | list of `{kind, id, name, disposition, config}` |
//! | app group add, list | `POST`, `GET /app-groups` | `{name, description?}` | `{id, name, description, created}` |
//! | app group show, remove | `GET`, `DELETE /app-groups/G` | | the same; with `apps [APP]` |
//! | app group join, leave | `PUT`, `DELETE /app-groups/G/apps/A` | | 204 |
//! | app restrict, approve | `PUT`, `DELETE /app-lists/LIST/PLATFORM/IDENTIFIER` | | 204; LIST is restricted or approved; the identifier may end in `*` |
//! | app lists | `GET /app-lists[?platform=P]` | | list of `{list, platform, identifier}` |
//! | app effective | `GET /users/WHO/apps[?platform=P]`, `/devices/ID/apps` | | list of `{id, platform, identifier, name, versions, source, disposition, by: user\|group, groups [name], app_group, config {name, rank, settings}, passed_over [{disposition, why: assigned_to_group\|disposition}]}` |
//! | app findings | `GET /devices/ID/app-findings` | | `{missing, restricted, unapproved}`: identifiers |
//! | app installed | `GET /installed/IDENTIFIER` | | list of `{id, email, name, platform}`: devices that it is on |
//! | compliance list | `GET /compliance[?verdict=V]` | | list of STANDING `{device, name, email, verdict, quarantined, profile, profile_name, changed, causes [{rule, what, count, since, taken [{action, at, command}]}]}` |
//! | compliance show, check | `GET`, `POST /devices/ID/compliance` | | STANDING; 404 before the first judgement |
//! | compliance check | `POST /compliance[?after=ID]` | | `{looked_at, changed, next, failed}`: 200 devices a time; `failed` are `{device, why}`, that could not be judged |
//! | device revoke | `DELETE /devices/ID[?wait=SECONDS]` | | `{device, version, not_yet [holder]}`: waits (5 s) for relays and nodes |
//! | node list | `GET /nodes` | | list of NODE `{id, name, group, origins, certificate, state, created, revoked, last_seen, config}`; config is the version it acknowledged |
//! | node show | `GET /nodes/ID` | | NODE with `certificates [..]` |
//! | node revoke | `DELETE /nodes/ID[?wait=SECONDS]` | | `{node, version, not_yet [holder]}` |
//! | token create | `POST /tokens` | `{name, group?, origins?, lifetime_seconds?}` | `{token TOKEN, text}`; the text is shown this once; defaults: group `default`, origins `["proxy"]`, one day |
//! | token list | `GET /tokens` | | list of TOKEN `{id, name, group, origins, created, expires, used, revoked, state: open\|used\|expired\|revoked}` |
//! | token revoke | `DELETE /tokens/ID` | | TOKEN |
//! | rule list | `GET /rules` | | `{items [RULE], next: null}`; RULE is `{action: allow\|deny, target, ports?, group?}` |
//! | rule add | `POST /rules` | `{rule RULE, at?}` | the list; `at` counts from 0, at the end when absent |
//! | rule replace | `PUT /rules/N` | RULE | the list |
//! | rule remove | `DELETE /rules/N` | | the list |
//! | rule move | `POST /rules/N/move` | `{to}` | the list |
//! | rule set | `PUT /rules` | `{items [RULE]}` | the list |
//! | route list | `GET /routes` | | `{items [ROUTE], next: null, default}`; ROUTE is `{target, ports?, via: direct\|deny\|group:NAME}` |
//! | route add, replace, remove, move, set | as for rules, at `/routes` | `{route ROUTE, at?}` and so on; set also takes `default?` | the list |
//! | route default | `PUT /routes/default` | `{via}` | the list |
//! | name list | `GET /names` | | `{items [NAME], next: null}`; NAME is `{name, origin: gateway\|mdm\|core, created, relays [{relay, state: passed\|not_yet\|refused, reason}]}` |
//! | name add | `POST /names` | `{name, origin}` | NAME with `not_yet [holder]`: waits up to 3 s for the relays |
//! | name remove | `DELETE /names/NAME` | | `{name, origin, created, not_yet [holder]}` |
//! | licence show | `GET /licence` | | LICENCE `{id, tenant, licensee, issued, not_before, expires, grace_until, seats, seats_used, features, standing: not_yet\|valid\|grace\|expired, warning, installed, verified, relays [{relay, state: accepted\|refused\|not_yet\|not_shown, reason, standing, required}]}`; 404 when there is none |
//! | licence install | `PUT /licence` | `{licence}`: PEM | LICENCE with `not_yet [holder]`: waits up to 3 s for the relays |
//! | licence remove | `DELETE /licence` | | `{id}`; relays keep what they were shown |
//! | config show | `GET /config` | | `{version, expires, relay {..}, node {..}, device {..}}`: the documents as signed |
//! | audit list | `GET /audit[?after=NUMBER]` | | list of `{number, time, actor, action, subject, outcome, detail, hash}` |
//! | audit list by time, actor, action, subject | `GET /audit/find[?from=T][&until=T][&actor=A][&action=A][&subject=S]` | | list of the same, in the order of time; `next` is `TIME.NUMBER` |
//! | audit export | `GET /audit/export`, queried alike | | `{csv, next}`: part by part |
//! | report devices | `GET /reports/devices` | | `{by_state, by_platform, by_verdict}`: each `[{what, count}]` |
//! | report activity | `GET /reports/activity[?from=T][&until=T]` | | `{from, until, actions [{what, count}], devices_seen {day, week, month}}` |
//! | report activity, quiet devices | `GET /reports/quiet?before=T` | | list of `{device, name, user, email, last_seen}` |
//! | audit verify | `POST /audit/verify` | | `{records, hash}`; 503 when the chain is broken |

mod admins;
mod app_assignments;
mod apps;
mod authority;
mod commands;
mod groups;
mod holders;
mod inventory;
mod licence;
mod names;
mod policy;
mod profiles;
mod reports;
mod show;
mod users;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::routing::{delete, get, post, put};
use bytes::Bytes;
use hedgerow_runtime::admin::control::Problem;
use hedgerow_shared::EntityId;
use hedgerow_shared::fault::with_causes;
use hedgerow_uem_core::store::Page;
use hedgerow_uem_core::{Actor, Call, CoreError};
use http::StatusCode;
use http::request::Parts;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::app::{App, call};

/// The largest request body, bytes: a full list of rules.
const MAX_BODY: usize = 4 * 1024 * 1024;
/// How long a revocation waits for relays and nodes unless told otherwise.
const WAIT: Duration = Duration::from_secs(5);
/// The longest it may be told to wait.
const MAX_WAIT: Duration = Duration::from_secs(50);

/// What a verb answers.
type Shown = Result<axum::Json<Value>, Problem>;

/// The verbs of the table.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/status", get(show::status))
        .route("/tenant", get(show::tenant))
        .route("/tenant/epoch", post(show::raise_epoch))
        .route("/ca", get(authority::show))
        .route("/ca/begin", post(authority::begin))
        .route("/ca/switch", post(authority::switch))
        .route("/ca/finish", post(authority::finish))
        .route("/config", get(show::config))
        .route("/audit", get(show::audit))
        .route("/audit/find", get(reports::find))
        .route("/audit/export", get(reports::export))
        .route("/reports/devices", get(reports::devices))
        .route("/reports/activity", get(reports::activity))
        .route("/reports/quiet", get(reports::quiet))
        .route("/audit/verify", post(show::verify_audit))
        .route("/users", get(users::list).post(users::add))
        .route("/found/users", get(users::find_like))
        .route("/export/users", get(users::export))
        .route("/import/users", post(users::import).layer(axum::extract::DefaultBodyLimit::max(users::MAX_IMPORT)))
        .route("/users/{who}", get(users::show).put(users::change).delete(users::remove))
        .route("/users/{who}/activate", post(users::activate))
        .route("/users/{who}/deactivate", post(users::deactivate))
        .route("/users/{who}/activation", get(users::password).put(users::set_password).delete(users::clear_password))
        .route("/users/{who}/profiles", get(profiles::of_user))
        .route("/groups", get(groups::groups).post(groups::add))
        .route("/groups/{group}", get(groups::show).put(groups::change).delete(groups::remove))
        .route("/groups/{group}/members", get(groups::members))
        .route("/groups/{group}/members/{who}", put(groups::join).delete(groups::leave))
        .route("/profiles", get(profiles::profiles).post(profiles::add))
        .route("/profiles/{profile}", get(profiles::show).put(profiles::change).delete(profiles::remove))
        .route("/profiles/{profile}/rank", put(profiles::rank))
        .route("/profiles/{profile}/default", put(profiles::set_default))
        .route("/profiles/{profile}/holders", get(profiles::holders))
        .route("/profiles/{profile}/holders/{who}", put(profiles::assign).delete(profiles::unassign))
        .route("/devices/{id}/profiles", get(profiles::of_device))
        .route("/devices/{id}/commands", get(commands::of_device).post(commands::give))
        .route("/admins", get(admins::admins))
        .route("/admins/{who}", put(admins::set).delete(admins::remove))
        .route("/admins/{who}/password", put(admins::set_password))
        .route("/roles", get(admins::roles).post(admins::add_role))
        .route("/roles/{role}", get(admins::show_role).put(admins::change_role).delete(admins::remove_role))
        .route("/apps", get(apps::apps).post(apps::add))
        .route("/apps/{app}", get(apps::show).delete(apps::remove))
        .route("/apps/{app}/configs/{name}", put(apps::set_config).delete(apps::remove_config))
        .route("/apps/{app}/holders", get(app_assignments::holders))
        .route("/apps/{app}/holders/{who}", put(app_assignments::assign).delete(app_assignments::unassign))
        .route("/app-groups", get(apps::groups).post(apps::add_group))
        .route("/app-groups/{group}", get(apps::show_group).delete(apps::remove_group))
        .route("/app-groups/{group}/apps/{app}", put(apps::join).delete(apps::leave))
        .route("/app-lists", get(apps::listings))
        .route("/app-lists/{list}/{platform}/{identifier}", put(apps::enlist).delete(apps::delist))
        .route("/users/{who}/apps", get(app_assignments::of_user))
        .route("/devices/{id}/apps", get(app_assignments::of_device))
        .route("/devices/{id}/app-findings", get(app_assignments::findings))
        .route("/devices/{id}/installed", get(inventory::installed))
        .route("/devices/{id}/compliance", get(inventory::standing).post(inventory::judge))
        .route("/installed/{identifier}", get(inventory::devices_with))
        .route("/compliance", get(inventory::standings).post(inventory::judge_all))
        .route("/commands/{id}", get(commands::show).delete(commands::cancel))
        .route("/devices", get(holders::devices))
        .route("/devices/{id}", get(holders::device).delete(holders::revoke_device))
        .route("/nodes", get(holders::nodes))
        .route("/nodes/{id}", get(holders::node).delete(holders::revoke_node))
        .route("/tokens", get(holders::tokens).post(holders::create_token))
        .route("/tokens/{id}", delete(holders::revoke_token))
        .route("/rules", get(policy::rules).post(policy::add_rule).put(policy::set_rules))
        .route("/rules/{at}", put(policy::replace_rule).delete(policy::remove_rule))
        .route("/rules/{at}/move", post(policy::move_rule))
        .route("/routes", get(policy::routes).post(policy::add_route).put(policy::set_routes))
        .route("/routes/default", put(policy::set_default))
        .route("/routes/{at}", put(policy::replace_route).delete(policy::remove_route))
        .route("/routes/{at}/move", post(policy::move_route))
        .route("/licence", get(licence::show).put(licence::install).delete(licence::remove))
        .route("/names", get(names::names).post(names::add))
        .route("/names/{name}", delete(names::remove))
        .fallback(|| async { Problem::not_found("this core knows no such verb; is the command newer than the core?") })
        .method_not_allowed_fallback(|| async {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this verb goes by another method; is the command newer than the core?",
            )
        })
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .with_state(app)
}

/// A JSON body; what is wrong with it is said in the form of every refusal.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|e| Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body cannot be read: {e}")))?;
        // A verb whose fields are all optional may be sent without a body.
        let bytes = if bytes.is_empty() { Bytes::from_static(b"{}") } else { bytes };
        serde_json::from_slice(&bytes).map(Self).map_err(|e| Problem::bad_request(format!("the body: {e}")))
    }
}

/// The query; what is wrong with it is said in the form of every refusal.
struct Params<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = Query::try_from_uri(&parts.uri);
        query.map(|Query(value)| Self(value)).map_err(|e| Problem::bad_request(format!("the query: {}", e.body_text())))
    }
}

/// Which part of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    after: Option<String>,
    limit: Option<u32>,
    user: Option<String>,
}

impl Part {
    fn page(&self) -> Result<Page, Problem> {
        let after = self.after.as_deref().map(id).transpose()?;
        Ok(Page { after, limit: self.limit() })
    }

    fn limit(&self) -> u32 {
        self.limit.unwrap_or(Page::MAX).clamp(1, Page::MAX)
    }
}

/// How long to wait for relays and nodes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Patience {
    wait: Option<u64>,
}

impl Patience {
    fn limit(&self) -> Duration {
        self.wait.map_or(WAIT, Duration::from_secs).min(MAX_WAIT)
    }
}

/// The one shape of lists. `next` is the id to go on behind when the part is full.
fn list(items: Vec<Value>, limit: u32, next: Option<String>) -> axum::Json<Value> {
    let full = items.len() >= limit as usize;
    axum::Json(json!({ "items": items, "next": next.filter(|_| full) }))
}

fn id(text: &str) -> Result<EntityId, Problem> {
    text.parse().map_err(|e: hedgerow_shared::id::NameError| Problem::bad_request(e.to_string()))
}

fn json_of(value: impl Serialize) -> Result<Value, Problem> {
    serde_json::to_value(value).map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
}

/// A call in the name of whoever may open the socket.
fn admin() -> Call<'static> {
    call(Actor::Admin("local".to_owned()))
}

fn problem(error: CoreError) -> Problem {
    let status = match &error {
        CoreError::NotFound { .. } => StatusCode::NOT_FOUND,
        CoreError::Exists { .. } | CoreError::Revoked { .. } | CoreError::Lapsed => StatusCode::CONFLICT,
        CoreError::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
        CoreError::Invalid { .. } => StatusCode::BAD_REQUEST,
        CoreError::Denied(_) => StatusCode::FORBIDDEN,
        CoreError::Busy | CoreError::Randomness | CoreError::Store(_) | CoreError::Damaged(_) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    if status != StatusCode::SERVICE_UNAVAILABLE {
        return Problem::new(status, error.to_string());
    }
    let text = with_causes(&error);
    tracing::error!(error = text, "a verb failed");
    Problem::new(status, text)
}
