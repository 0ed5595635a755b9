//! The node behind the firewall: dials out to the relay, answers end-to-end sessions of devices, and lets them reach
//! what the tenant's rules allow. It opens no port to the outside.

pub mod config;
mod egress;
mod enroll;
mod leg;
mod node;
mod policy;
mod serve;
mod sessions;
mod state;
mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use axum::routing::get;
use axum::{Json, Router};
use hedgerow_proxy::dial::Dialer;
use hedgerow_proxy::publish::Published;
use hedgerow_proxy::target::Target;
use hedgerow_runtime::admin::Admin;
use hedgerow_runtime::boot::Context;
use hedgerow_runtime::clock;
use hedgerow_runtime::config::ConfigFault;
use hedgerow_runtime::link::{Uplink, UplinkStatus, Uplinks};
use hedgerow_runtime::network;
use hedgerow_runtime::tls;
use hedgerow_shared::{InstanceId, Origin};
use tracing::info;

pub use config::NodeConfigFile;
pub use egress::{Inside, Servers};
pub use enroll::{enroll, enroll_over};
pub use node::{Node, Parts};
pub use sessions::SessionStatus;
pub use state::{Enrolled, Record, State};
pub use tunnel::Tunnels;

use crate::policy::Policies;
use crate::sessions::Sessions;

/// Runs an enrolled node until its process drains.
///
/// # Errors
/// Not enrolled, a file is damaged, the folder is in use, or the admin listener cannot be bound. Once it runs, nothing
/// ends it but the drain.
pub async fn run(config: NodeConfigFile, context: &Context) -> anyhow::Result<()> {
    config.check()?;
    tls::select(config.tls.provider);
    let state = State::at(&config.state);
    let enrolled = Arc::new(state.load()?);
    let _lock = state.lock()?;
    let relays = enrolled.record.relay_targets(&config.relays, &config.outbound.network()?)?;
    let admin = Admin::bind(config.admin.listen).await?;
    let timers = config.timers();
    let instance = InstanceId::from_random(clock::random());

    // What no rule opens: our own listener, and the relays, which would lead round in a circle.
    let mut own: Vec<Target> =
        relays.iter().flat_map(|r| &r.addresses).filter_map(|a| Target::from_authority(a, None).ok()).collect();
    own.extend(Target::new(&admin.address().ip().to_string(), admin.address().port()));
    let targets = config.published()?;
    if let Some((origin, target)) = targets.iter().find(|(_, target)| own.contains(target)) {
        let why = format!(
            "publish.{origin}: {target} is the relay, or this node itself: connections would go round in a circle"
        );
        return Err(ConfigFault::new(why).into());
    }

    let link_check = context.readiness.check("link");
    let config_check = context.readiness.check("configuration");
    link_check.fail("not yet connected to a relay");
    config_check.fail("no valid configuration from the core yet");

    let dialer = Dialer::new(config.hosts(), timers.connect);
    let told = config.told()?;
    let published = Published::new(targets, dialer.clone(), config.publish.connections).telling(told.clone());
    let origins = origins(&enrolled.certificate.identity.origins, &published)?;
    let scope = context.scope.child();
    let parts = Parts {
        state,
        enrolled: enrolled.clone(),
        instance,
        own: own.clone(),
        relays: relays.clone(),
        transport: config.transport,
        limits: config.limits,
        told,
        timers,
        inside: Inside::Network(dialer),
        published: published.clone(),
        origins: origins.clone(),
        tunnels: Tunnels::open(&config.tunnel, &enrolled, &own, &scope).await?,
    };
    let node = Node::start(parts, &scope)?;
    let Node { uplinks, sessions, policies, tunnels, .. } = node.clone();
    admin.serve(
        context.metrics.clone(),
        context.readiness.clone(),
        routes(&sessions, &policies, &uplinks, &enrolled, origins, tunnels),
        &scope,
    );

    scope.spawn(watch_links(uplinks.clone(), link_check));
    scope.spawn(node.clone().follow_network(network::watch(&scope), scope.clone()));
    let (fresh, fresh_uplinks, fresh_scope, scale) =
        (policies.clone(), uplinks.clone(), scope.clone(), config.timers.scale);
    scope.spawn(async move {
        let show = |policy: &policy::Policy| match policy.version {
            Some(_) => config_check.pass(),
            None => config_check.fail("no valid configuration from the core: everything is denied"),
        };
        fresh.keep_fresh(&fresh_uplinks, &relays, &timers, scale, &fresh_scope, show).await;
    });
    info!(node = %enrolled.record.id, tenant = %enrolled.record.tenant, group = %enrolled.record.group, "node runs");
    context.ready();

    context.draining().await;
    node.drain(Duration::from_secs(config.drain.seconds).min(context.drain_deadline())).await;
    scope.cancel();
    Ok(())
}

/// What the node registers: as far as its certificate allows, sessions of devices and what it publishes.
fn origins(allowed: &[Origin], published: &Published) -> Result<Vec<Origin>, ConfigFault> {
    let published = published.origins();
    if let Some(origin) = published.iter().find(|o| !allowed.contains(o)) {
        return Err(ConfigFault::new(format!(
            "publish.{origin}: this node's certificate does not allow it; enrol a node with a token made by \
             `hedgerow token create --origins proxy,{origin}`, or take the line out"
        )));
    }
    let devices = allowed.contains(&Origin::Proxy).then_some(Origin::Proxy);
    let all: Vec<Origin> = devices.into_iter().chain(published).collect();
    if all.is_empty() {
        return Err(ConfigFault::new(
            "publish: this node's certificate allows no sessions of devices, so it would serve nothing: publish something",
        ));
    }
    Ok(all)
}

/// Ready while at least one relay is linked.
async fn watch_links(uplinks: Uplinks, check: hedgerow_runtime::admin::Check) {
    let mut statuses: Vec<_> = uplinks.iter().map(Uplink::status).collect();
    loop {
        let (mut up, mut fault) = (false, None);
        // All of them are looked at: one left unseen would count as changed for ever.
        for status in &mut statuses {
            match &*status.borrow_and_update() {
                UplinkStatus::Up(_) => up = true,
                UplinkStatus::Connecting(Some(why)) => fault = fault.or_else(|| Some(why.to_string())),
                UplinkStatus::Connecting(None) | UplinkStatus::Stopped => {}
            }
        }
        match fault {
            _ if up => check.pass(),
            Some(fault) => check.fail(fault),
            None => check.fail("connecting to the relay"),
        }
        Uplinks::changed(&mut statuses).await;
    }
}

/// `/sessions` and `/node` of the admin listener.
fn routes(
    sessions: &Arc<Sessions>,
    policies: &Arc<Policies>,
    uplinks: &Uplinks,
    enrolled: &Arc<Enrolled>,
    origins: Vec<Origin>,
    tunnels: Option<Arc<Tunnels>>,
) -> Router {
    let listed = sessions.clone();
    let (policies, uplinks, record) = (policies.clone(), uplinks.clone(), enrolled.record.clone());
    let own = enrolled.own.clone();
    let node = move || async move {
        let policy = policies.current();
        let links: Vec<_> = uplinks.iter().filter_map(Uplink::current).map(|l| l.to_json()).collect();
        let waiting = |u: &Uplink| match &*u.status().borrow() {
            UplinkStatus::Connecting(Some(fault)) => Some(fault.to_string()),
            UplinkStatus::Connecting(None) | UplinkStatus::Up(_) | UplinkStatus::Stopped => None,
        };
        let not_linked: Vec<_> = uplinks.iter().filter_map(waiting).collect();
        let not_after = own.get().read().ok().map(|c| c.not_after);
        Json(serde_json::json!({
            "not_linked": not_linked,
            "id": record.id, "name": record.name, "tenant": record.tenant, "group": record.group, "link": links.first(), "links": links,
            "certificate_not_after": not_after, "origins": origins, "tls": tls::status(),
            "configuration": policy.version.map(|v| serde_json::json!({ "version": v.to_string(), "expires": policy.expires })),
        }))
    };
    let tunnels = move || async move { Json(tunnels.map_or_else(|| serde_json::json!([]), |t| t.status())) };
    Router::new()
        .route("/sessions", get(move || async move { Json(listed.status()) }))
        .route("/tunnels", get(tunnels))
        .route("/node", get(node))
}
