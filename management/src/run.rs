//! The life of the core: open, dial, serve, drain.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hedgerow_runtime::admin::control::Problem;
use hedgerow_runtime::admin::{self, Admin};
use hedgerow_runtime::boot;
use hedgerow_runtime::clock::random;
use hedgerow_runtime::link::{Credentials, Twins, Uplink, UplinkConfig, UplinkStatus};
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls;
use hedgerow_shared::InstanceId;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::wire::message::GoAway;
use hedgerow_uem_core::service::NewTenant;

use crate::app::{App, MAX_CONNECTIONS, WebFiles};
use crate::config::CoreConfig;
use crate::{control, publish, status, store};

/// The control socket, in the state directory.
pub const CONTROL: &str = "control.sock";

/// A core that runs.
pub struct Running {
    /// What everything shares.
    pub app: Arc<App>,
    /// Where the admin listener is.
    pub admin: SocketAddr,
    /// Where the control socket is.
    pub control: PathBuf,
    uplinks: Vec<Uplink>,
}

/// Runs the core until the process drains.
///
/// # Errors
/// The configuration, the state directory or a listener cannot be used. Relays that cannot be reached are no error:
/// they are tried for ever.
pub async fn run(config: CoreConfig, context: boot::Context) -> anyhow::Result<()> {
    let running = tokio::select! {
        running = start(config, &context) => running?,
        // A start may wait for its database.
        () = context.draining() => return Ok(()),
    };
    context.ready();
    context.draining().await;
    running.drain(&context).await;
    Ok(())
}

/// Starts the core and returns; it lives as long as `context.scope`.
///
/// # Errors
/// As `run`.
pub async fn start(config: CoreConfig, context: &boot::Context) -> anyhow::Result<Running> {
    config.check()?;
    tls::select(config.tls.provider);
    let timers = config.timers();
    let (database, link) = (context.readiness.check("database"), context.readiness.check("relay link"));
    let listener = Admin::bind(config.admin.listen).await?;
    let address = listener.address();
    // It answers from the beginning: whoever waits for a core that waits for its database can see why.
    let shown = Arc::new(OnceLock::new());
    let routes = Router::new().route("/status", get(show)).with_state(shown.clone());
    listener.serve(context.metrics.clone(), context.readiness.clone(), routes, &context.scope);

    let state = store::State::open(&config.state, &config.place()?).await?;
    let name = config.name.clone().unwrap_or_else(|| config.tenant.to_string());
    let new = NewTenant { id: config.tenant.clone(), name, settings: config.settings()? };
    let names: Vec<String> = config.relays.iter().map(|r| r.name.clone()).collect();
    let app = App::open(state, new, &names, web(&config), config.published()?, timers).await?;
    database.pass();
    context.scope.spawn(watch_database(app.clone(), database));

    let socket = config.state.join(CONTROL);
    admin::control::serve(&socket, control::router(app.clone()), &context.scope).await?;
    // Nobody else sets it.
    let _ = shown.set(app.clone());

    let credentials = Credentials::Srp { tenant: config.tenant.clone(), key: config.srp_key()? };
    let instance = InstanceId::from_random(random());
    let (mut uplinks, twins) = (Vec::new(), Twins::default());
    for (i, target) in config.targets()?.into_iter().enumerate() {
        let uplink = UplinkConfig {
            relays: vec![target],
            credentials: credentials.clone(),
            instance,
            timers,
            transport: config.transport,
            twins: twins.clone(),
        };
        let uplink = Uplink::start(uplink, &context.scope);
        context.scope.spawn(publish::keep(app.clone(), i, uplink.clone(), context.scope.clone()));
        uplinks.push(uplink);
    }
    context.scope.spawn(publish::housekeep(app.clone()));
    context.scope.spawn(publish::keep_placed(app.clone()));
    context.scope.spawn(publish::watch_devices(app.clone()));
    context.scope.spawn(watch_links(uplinks.clone(), link));
    context.scope.spawn(follow_network(uplinks.clone(), context.scope.clone()));
    tracing::info!(tenant = %app.tenant, admin = %address, control = %socket.display(), ca = app.ca.pin(), "core started");
    Ok(Running { app, admin: address, control: socket, uplinks })
}

/// Finds out at once what stands on an address that is gone.
async fn follow_network(uplinks: Vec<Uplink>, scope: Scope) {
    let mut changes = hedgerow_runtime::network::watch(&scope);
    while changes.changed().await.is_ok() {
        uplinks.iter().for_each(|uplink| uplink.probe(&scope));
    }
}

impl Running {
    /// Tells the relays to send no more, and waits for what is being answered, up to the context's deadline.
    pub async fn drain(&self, context: &boot::Context) {
        let fault = Fault::new(Code::Draining, "the core is shutting down");
        for link in self.uplinks.iter().filter_map(Uplink::current) {
            link.mux.go_away(&GoAway { fault: fault.clone(), return_after_ms: 0, alternatives: Vec::new() });
        }
        let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
        let idle = self.app.connections.acquire_many(all);
        let limit = context.drain_deadline().min(self.app.timers.drain);
        if tokio::time::timeout(limit, idle).await.is_err() {
            tracing::warn!("connections were still open at the end of the drain");
        }
        for link in self.uplinks.iter().filter_map(Uplink::current) {
            link.mux.close(fault.clone());
        }
    }
}

/// How often the database is asked whether it is there.
const DATABASE_LOOK: Duration = Duration::from_secs(2);
/// How long it may take to answer that.
const DATABASE_PATIENCE: Duration = Duration::from_secs(5);

/// Ready while the database answers. Whoever needs it meanwhile is told so; nothing has to be started again when it is
/// back.
async fn watch_database(app: Arc<App>, check: admin::Check) {
    let mut away = false;
    loop {
        tokio::time::sleep(DATABASE_LOOK).await;
        let why = match tokio::time::timeout(DATABASE_PATIENCE, app.domain.store().ping()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no answer".to_owned()),
        };
        match why {
            None if away => tracing::info!("the database answers again"),
            Some(ref why) if !away => tracing::error!(why, "the database does not answer"),
            None | Some(_) => {}
        }
        away = why.is_some();
        match why {
            None => check.pass(),
            Some(why) => check.fail(format!("it does not answer: {why}")),
        }
    }
}

/// Ready while at least one relay is linked.
async fn watch_links(uplinks: Vec<Uplink>, check: admin::Check) {
    let mut changes: Vec<_> = uplinks.iter().map(Uplink::status).collect();
    loop {
        // All of them are looked at: one left unseen would count as changed for ever.
        let up =
            changes.iter_mut().filter_map(|s| matches!(&*s.borrow_and_update(), UplinkStatus::Up(_)).then_some(()));
        if up.count() > 0 {
            check.pass();
        } else {
            let fault = changes.iter().find_map(|s| match &*s.borrow() {
                UplinkStatus::Connecting(fault) => fault.as_ref().map(ToString::to_string),
                UplinkStatus::Up(_) | UplinkStatus::Stopped => None,
            });
            check.fail(fault.unwrap_or_else(|| "no relay is linked yet".to_owned()));
        }
        let changed = changes.iter_mut().map(|s| Box::pin(s.changed()));
        let (result, _, _) = futures_util::future::select_all(changed).await;
        if result.is_err() {
            return;
        }
    }
}

/// The certificate of the web services, when there is one of its own.
fn web(config: &CoreConfig) -> Option<WebFiles> {
    let (Some(certificate), Some(key)) = (&config.bws.certificate, &config.bws.key_file) else { return None };
    Some(WebFiles { certificate: certificate.clone(), key: key.clone() })
}

async fn show(State(app): State<Arc<OnceLock<Arc<App>>>>) -> Response {
    let Some(app) = app.get() else {
        return Problem::new(http::StatusCode::SERVICE_UNAVAILABLE, "the core is starting").into_response();
    };
    match status::show(app).await {
        Ok(value) => axum::Json(value).into_response(),
        Err(error) => {
            tracing::error!(%error, "the status cannot be read");
            Problem::new(http::StatusCode::SERVICE_UNAVAILABLE, "the storage failed; see the log").into_response()
        }
    }
}
