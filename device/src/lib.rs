//! The Linux device agent: activates once, then keeps a link to the relay, end-to-end sessions to nodes, and a
//! loopback SOCKS5 and HTTP proxy whose traffic is split by the routes of the signed configuration.

pub mod activate;
pub mod agent;
mod commands;
pub mod config;
pub mod local_proxy;
pub mod sessions;
pub mod state;
mod tunnel;

use std::time::Duration;

use axum::Json;
use axum::routing::get;
use hedgerow_runtime::admin::Admin;
use hedgerow_runtime::boot::Context;
use hedgerow_runtime::link::UplinkStatus;
use tracing::info;

pub use activate::{ActivateRequest, activate};
pub use config::DeviceConfigFile;

use agent::Agent;

/// Runs the agent until the process drains.
///
/// # Errors
/// The device is not activated, its state cannot be used, or an address is taken.
pub async fn run(config: DeviceConfigFile, context: &Context) -> anyhow::Result<()> {
    hedgerow_runtime::tls::select(config.tls.provider);
    let timers = config.timers();
    let linked = context.readiness.check("relay link");
    let configured = context.readiness.check("configuration");
    let agent = Agent::start(config.clone(), &context.scope)?;
    agent.start_tunnel().await?;
    let admin = Admin::bind(config.admin.listen).await?;
    let proxy = local_proxy::start(&config.proxy, agent.clone(), &timers, &context.scope).await?;
    let (shown, dumped) = (agent.clone(), agent.clone());
    let routes = axum::Router::new().route("/status", get(move || async move { Json(shown.status()) }));
    info!(socks5 = %proxy.socks5, http = %proxy.http, admin = %admin.address(), "local proxy is up");
    admin.serve(context.metrics.clone(), context.readiness.clone(), routes, &context.scope);
    context.on_dump(move || dumped.status());

    let watched = agent.clone();
    context.scope.spawn(async move {
        let mut status = watched.link_status();
        loop {
            match &*status.borrow_and_update() {
                UplinkStatus::Up(_) => linked.pass(),
                UplinkStatus::Connecting(Some(fault)) => linked.fail(fault.to_string()),
                UplinkStatus::Connecting(None) => linked.fail("connecting"),
                UplinkStatus::Stopped => return,
            }
            if watched.is_configured() {
                configured.pass();
            } else {
                configured.fail("no valid configuration from the core");
            }
            // The configuration's state has no event of its own; a second is soon enough for readiness.
            let _ = tokio::time::timeout(Duration::from_secs(1), status.changed()).await;
        }
    });
    context.ready();
    let erased = tokio::select! {
        () = context.draining() => false,
        () = agent.erased() => true,
    };
    agent.drain(if erased { Duration::ZERO } else { context.drain_deadline() }).await;
    anyhow::ensure!(!erased, "this device was erased by its organisation: to use it again, activate it again");
    Ok(())
}

/// Puts back what an agent that was killed told the system for its tunnel: rules, routes, resolv.conf. Whether there
/// was a journal of it.
///
/// # Errors
/// A file cannot be put back.
pub async fn cleanup(config: &DeviceConfigFile) -> anyhow::Result<bool> {
    tunnel::cleanup(&config.state).await
}
