//! The node behind the firewall: dials out to the relay, answers end-to-end sessions of devices, and lets them reach
//! what the tenant's rules allow. It opens no port to the outside.

pub mod config;
mod egress;
mod enroll;
mod leg;
mod policy;
mod serve;
mod sessions;
mod state;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::routing::get;
use axum::{Json, Router};
use hedgerow_proxy::dial::Dialer;
use hedgerow_proxy::publish::Published;
use hedgerow_proxy::target::Target;
use hedgerow_runtime::admin::Admin;
use hedgerow_runtime::boot::Context;
use hedgerow_runtime::clock;
use hedgerow_runtime::config::ConfigFault;
use hedgerow_runtime::lane::Endpoint;
use hedgerow_runtime::link::{Credentials, Twins, Uplink, UplinkConfig, UplinkStatus, Uplinks};
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::wire::message::{ALPN_SESSION, GoAway};
use hedgerow_shared::{InstanceId, Origin, Role};
use tokio::sync::Semaphore;
use tracing::info;

pub use config::NodeConfigFile;
pub use enroll::{enroll, enroll_over};
pub use sessions::SessionStatus;
pub use state::{Enrolled, Record, State};

use crate::leg::Legs;
use crate::policy::Policies;
use crate::serve::Service;
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

    let sessions = Sessions::new(config.limits);
    let policies = Arc::new(Policies::start(state, enrolled.clone(), own, sessions.clone()));
    let link_check = context.readiness.check("link");
    let config_check = context.readiness.check("configuration");
    link_check.fail("not yet connected to a relay");
    config_check.fail("no valid configuration from the core yet");

    let dialer = Dialer::new(config.hosts(), timers.connect);
    let told = config.told()?;
    let published = Published::new(targets, dialer.clone(), config.publish.connections).telling(told.clone());
    let origins = origins(&enrolled.certificate.identity.origins, &published)?;
    let scope = context.scope.child();
    let service = Arc::new(Service {
        enrolled: enrolled.clone(),
        tls: tls::as_tenant(enrolled.ca.clone(), &[Role::Device], false, &enrolled.own, &[ALPN_SESSION])?,
        policies: policies.clone(),
        sessions: sessions.clone(),
        legs: Legs::default(),
        handshakes: Arc::new(Semaphore::new(config.limits.handshakes)),
        dialer,
        published: published.clone(),
        told,
        endpoint: Endpoint::new(enrolled.ca.clone(), instance, timers, scope.clone()),
        timers,
        scope: scope.clone(),
    });
    let credentials = Credentials::Certificate {
        role: Role::Node,
        tenant: enrolled.record.tenant.clone(),
        leaf: enrolled.own.chain.first().context("the node has no certificate")?.clone(),
        key: enrolled.own.key.clone(),
        origins: origins.clone(),
    };
    let uplinks = Uplinks::start(
        &UplinkConfig {
            relays: relays.clone(),
            credentials,
            instance,
            timers,
            transport: config.transport,
            twins: Twins::default(),
        },
        &scope,
    );
    admin.serve(
        context.metrics.clone(),
        context.readiness.clone(),
        routes(&sessions, &policies, &uplinks, &enrolled, origins),
        &scope,
    );

    for uplink in uplinks.iter() {
        scope.spawn(serve_links(service.clone(), uplink.clone()));
    }
    scope.spawn(watch_links(uplinks.clone(), link_check));
    scope.spawn(follow_network(uplinks.clone(), sessions.clone(), scope.clone()));
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
    drain(&sessions, &published, &uplinks, Duration::from_secs(config.drain.seconds).min(context.drain_deadline()))
        .await;
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

/// Serves every link that comes up; an old one that drains is served to its end beside the new one.
async fn serve_links(service: Arc<Service>, uplink: Uplink) {
    let mut status = uplink.status();
    let mut last = None;
    loop {
        let now = status.borrow_and_update().clone();
        match now {
            UplinkStatus::Up(link) => {
                if last.replace(link.accept.session) != Some(link.accept.session) {
                    // News may have been missed while the link was down.
                    service.policies.wake.notify_one();
                    let (serving, scope) = (service.clone(), service.scope.clone());
                    scope.spawn(async move { serving.link(link).await });
                }
            }
            UplinkStatus::Connecting(_) => {}
            UplinkStatus::Stopped => return,
        }
        if status.changed().await.is_err() {
            return;
        }
    }
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

/// Finds out at once what stands on an address, or with a relay, that is gone.
async fn follow_network(uplinks: Uplinks, sessions: Arc<Sessions>, scope: Scope) {
    let mut changes = hedgerow_runtime::network::watch(&scope);
    loop {
        tokio::select! {
            changed = changes.changed() => match changed {
                Ok(()) => sessions.probe(),
                Err(_) => return,
            },
            // Whatever took a lane may have taken the link: over UDP nothing but silence would tell.
            () = sessions.lane_lost() => {}
        }
        uplinks.iter().for_each(|uplink| uplink.probe(&scope));
        // One look a second, however many lanes end together.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Tells relay and devices, then waits for connections to end.
async fn drain(sessions: &Sessions, published: &Published, uplinks: &Uplinks, limit: Duration) {
    let message = GoAway {
        fault: Fault::new(Code::Draining, "the node shuts down"),
        return_after_ms: 0,
        alternatives: Vec::new(),
    };
    for link in uplinks.links() {
        link.mux.go_away(&message);
    }
    sessions.go_away(&message);
    let all_ended = async {
        while sessions.open_connections() + published.open() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    if tokio::time::timeout(limit, all_ended).await.is_err() {
        info!(
            connections = sessions.open_connections() + published.open(),
            "the drain's time is over: the rest is cut"
        );
    }
    sessions.cut_all(&message.fault);
    let links: Vec<_> = uplinks.iter().filter_map(Uplink::current).collect();
    for link in &links {
        link.mux.close(message.fault.clone());
    }
    let all_closed = async {
        for link in &links {
            link.mux.closed().await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), all_closed).await;
}

/// `/sessions` and `/node` of the admin listener.
fn routes(
    sessions: &Arc<Sessions>,
    policies: &Arc<Policies>,
    uplinks: &Uplinks,
    enrolled: &Arc<Enrolled>,
    origins: Vec<Origin>,
) -> Router {
    let listed = sessions.clone();
    let (policies, uplinks, record) = (policies.clone(), uplinks.clone(), enrolled.record.clone());
    let not_after = enrolled.certificate.not_after;
    let node = move || async move {
        let policy = policies.current();
        let links: Vec<_> = uplinks.iter().filter_map(Uplink::current).map(|l| l.to_json()).collect();
        let waiting = |u: &Uplink| match &*u.status().borrow() {
            UplinkStatus::Connecting(Some(fault)) => Some(fault.to_string()),
            UplinkStatus::Connecting(None) | UplinkStatus::Up(_) | UplinkStatus::Stopped => None,
        };
        let not_linked: Vec<_> = uplinks.iter().filter_map(waiting).collect();
        Json(serde_json::json!({
            "not_linked": not_linked,
            "id": record.id, "name": record.name, "tenant": record.tenant, "group": record.group, "link": links.first(), "links": links,
            "certificate_not_after": not_after, "origins": origins, "tls": tls::status(),
            "configuration": policy.version.map(|v| serde_json::json!({ "version": v.to_string(), "expires": policy.expires })),
        }))
    };
    Router::new().route("/sessions", get(move || async move { Json(listed.status()) })).route("/node", get(node))
}
