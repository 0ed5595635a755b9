//! The running agent: link, configuration, sessions, local proxy, status.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hedgerow_proxy::acl;
use hedgerow_proxy::target::Target;
use hedgerow_runtime::clock;
use hedgerow_runtime::core_client::{self, CoreClient};
use hedgerow_runtime::dial::Network;
use hedgerow_runtime::link::{Credentials, Link, Twins, Uplink, UplinkConfig, UplinkStatus};
use hedgerow_runtime::mux::Stream;
use hedgerow_runtime::renewal::Renewal;
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::verify::{DeviceConfig, SignedConfig, Version, Via};
use hedgerow_shared::wire::core_api;
use hedgerow_shared::wire::message::Control;
use hedgerow_shared::{InstanceId, Role, UnixTime};
use serde_json::json;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::commands::Commands;
use crate::config::DeviceConfigFile;
use crate::sessions::Sessions;
use crate::state::{self, DeviceState};
use crate::tunnel::Tunnel;

/// The core is asked for news this often, should a wake-up be lost.
const POLL: Duration = Duration::from_secs(600);
/// Between word from the core and the question: several words become one.
const WAKE_PAUSE: Duration = Duration::from_millis(100);
/// After a failed request.
const RETRY: Duration = Duration::from_secs(5);

/// The running agent. Clones are the same agent.
#[derive(Clone)]
pub struct Agent {
    inner: Arc<Inner>,
}

struct Inner {
    state: DeviceState,
    uplink: Uplink,
    sessions: Sessions,
    config: watch::Sender<Option<DeviceConfig>>,
    tunnel: OnceLock<Tunnel>,
    wake: Notify,
    /// The core has commands, perhaps.
    commands: Notify,
    erased: watch::Sender<bool>,
    scope: Scope,
    instance: InstanceId,
    file: DeviceConfigFile,
}

/// Where a target goes.
#[derive(Debug)]
pub enum Path {
    /// From this device.
    Direct,
    /// Through a node.
    Tunnel(Stream),
}

impl Agent {
    /// Starts everything but the local proxy.
    ///
    /// # Errors
    /// The device is not activated, or its state cannot be used.
    pub fn start(file: DeviceConfigFile, scope: &Scope) -> anyhow::Result<Self> {
        let state = DeviceState::load(&file.state)?;
        let network = file.outbound.network()?;
        Self::over(file, state, &network, hedgerow_runtime::network::watch(scope), scope)
    }

    /// As `start`, over a network that is given; `changes` counts the changes of its addresses.
    ///
    /// # Errors
    /// The state cannot be used.
    pub fn over(
        file: DeviceConfigFile,
        state: DeviceState,
        network: &Network,
        changes: watch::Receiver<u64>,
        scope: &Scope,
    ) -> anyhow::Result<Self> {
        let timers = file.timers();
        let instance = InstanceId::from_random(clock::random());
        let credentials = Credentials::Certificate {
            role: Role::Device,
            tenant: state.identity().tenant.clone(),
            own: state.own.clone(),
            origins: Vec::new(),
        };
        let relays: Vec<_> = state.relay.targets()?.into_iter().map(|relay| relay.over(network.clone())).collect();
        let renewal = Renewal {
            files: state::files(&state.dir),
            own: state.own.clone(),
            ca: state.ca.clone(),
            relays: relays.clone(),
            timers,
            scope: scope.clone(),
        };
        let uplink = Uplink::start(
            UplinkConfig { relays, credentials, instance, timers, transport: file.transport, twins: Twins::default() },
            scope,
        );
        let sessions = Sessions::new(state.clone(), uplink.clone(), instance, timers, file.lanes, scope);
        let config = stored_config(&state, clock::now());
        let inner = Inner {
            state,
            uplink,
            sessions,
            config: watch::Sender::new(config),
            tunnel: OnceLock::new(),
            wake: Notify::new(),
            commands: Notify::new(),
            erased: watch::Sender::new(false),
            scope: scope.clone(),
            instance,
            file,
        };
        let agent = Self { inner: Arc::new(inner) };
        let uplink = agent.inner.uplink.clone();
        scope.spawn(renewal.keep(move || uplink.current()));
        scope.spawn(agent.clone().listen());
        scope.spawn(agent.clone().keep_config());
        scope.spawn(agent.clone().follow_network(changes));
        if agent.inner.file.commands.enabled {
            scope.spawn(agent.clone().keep_commands());
        }
        Ok(agent)
    }

    /// Starts the IP tunnel, where the file wants one.
    ///
    /// # Errors
    /// What is missing for it.
    pub async fn start_tunnel(&self) -> anyhow::Result<()> {
        let Inner { file, state, uplink, sessions, config, scope, .. } = &*self.inner;
        let started =
            Tunnel::start(&file.tunnel, state, uplink, sessions, config.subscribe(), file.timers(), scope).await?;
        if let Some(tunnel) = started {
            // There is one start.
            let _ = self.inner.tunnel.set(tunnel);
        }
        Ok(())
    }

    /// Opens the way to a target that the routes give it.
    ///
    /// # Errors
    /// Denied, no configuration, or what the node or relay said.
    pub async fn connect(&self, target: &Target) -> Result<Path, Fault> {
        let via = self.route(target)?;
        match via {
            Via::Direct => Ok(Path::Direct),
            Via::Deny => Err(Fault::new(Code::DeniedByPolicy, "this device's routes deny the target")),
            Via::Group(group) => {
                self.inner.sessions.connect(&group, target.host_text(), target.port).await.map(Path::Tunnel)
            }
        }
    }

    fn route(&self, target: &Target) -> Result<Via, Fault> {
        let config = self.inner.config.borrow();
        let config = config.as_ref().filter(|c| c.head.expires > clock::now()).ok_or_else(|| {
            Fault::new(Code::DeniedByPolicy, "this device has no valid configuration: it must reach its core once")
        })?;
        Ok(acl::route(config, target).via)
    }

    /// Changes of the link's state.
    #[must_use]
    pub fn link_status(&self) -> watch::Receiver<UplinkStatus> {
        self.inner.uplink.status()
    }

    /// The file this agent runs by.
    #[must_use]
    pub fn file(&self) -> &DeviceConfigFile {
        &self.inner.file
    }

    /// What `hedgerow device status` and the loopback listener show.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        let link = match &*self.inner.uplink.status().borrow() {
            UplinkStatus::Up(link) => json!({
                "state": "up",
                "relay": link.accept.relay,
                "address": link.address,
                "proxy": link.at.as_ref().and_then(|at| at.proxy()),
                "transport": link.transport.label(),
                "transport_reason": link.reason.label(),
                "session": link.accept.session.to_string(),
                "rtt_ms": link.mux.stats().rtt.map(|r| r.as_secs_f64() * 1e3),
            }),
            UplinkStatus::Connecting(fault) => {
                json!({"state": "connecting", "reason": fault.as_ref().map(ToString::to_string)})
            }
            UplinkStatus::Stopped => json!({"state": "stopped"}),
        };
        let sessions: Vec<_> = self
            .inner
            .sessions
            .list()
            .into_iter()
            .map(|carried| {
                let stats = carried.session.mux.stats();
                json!({
                    "group": carried.group, "path": carried.path, "relay": carried.link.accept.relay,
                    "lanes": stats.lanes, "resumed": stats.resumed, "retained": stats.retained, "node": carried.session.peer.identity.id,
                    "streams": stats.streams, "bytes_in": stats.bytes_in, "bytes_out": stats.bytes_out,
                    "rtt_ms": stats.rtt.map(|r| r.as_secs_f64() * 1e3),
                })
            })
            .collect();
        let config = self.inner.config.borrow().as_ref().map(|c| {
            json!({
                "version": c.head.version.to_string(), "expires": c.head.expires, "routes": c.routes.len(),
                "default_route": c.default_route,
            })
        });
        let identity = self.inner.state.identity();
        json!({
            "tenant": identity.tenant, "device": identity.id, "instance": self.inner.instance.to_string(),
            "certificate_expires": self.inner.state.certificate().ok().map(|c| c.not_after),
            "link": link, "sessions": sessions, "config": config,
            "tunnel": self.inner.tunnel.get().map(Tunnel::status),
            "tls": hedgerow_runtime::tls::status(),
        })
    }

    /// Whether a configuration that still holds is in force.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.inner.config.borrow().as_ref().is_some_and(|c| c.head.expires > clock::now())
    }

    /// Lets open connections finish, at most until `deadline`, then says goodbye to nodes.
    pub async fn drain(&self, deadline: Duration) {
        let busy = || self.inner.sessions.list().iter().any(|c| c.session.mux.open_streams() > 0);
        let until = tokio::time::Instant::now() + deadline;
        while busy() && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if let Some(tunnel) = self.inner.tunnel.get() {
            tunnel.stop().await;
        }
        self.inner.sessions.close(&Fault::new(Code::Draining, "the device is shutting down"));
    }

    /// Takes the relay's control messages, link after link.
    async fn listen(self) {
        let mut status = self.inner.uplink.status();
        loop {
            let link = match &*status.borrow_and_update() {
                UplinkStatus::Up(link) => Some(link.clone()),
                UplinkStatus::Connecting(_) => None,
                UplinkStatus::Stopped => return,
            };
            if let Some(link) = link {
                self.inner.wake.notify_one();
                self.inner.commands.notify_one();
                let agent = self.clone();
                // A task a link: a draining link's last offers are taken while the next one is up.
                self.inner.scope.spawn(async move {
                    while let Some(message) = link.mux.next_control().await {
                        match message {
                            Control::Wake(_) => {
                                agent.inner.wake.notify_one();
                                agent.inner.commands.notify_one();
                            }
                            pair @ (Control::PairOffer(_) | Control::PairRefused(_) | Control::PairEnd(_)) => {
                                if let Some(tunnel) = agent.inner.tunnel.get() {
                                    tunnel.handle(pair);
                                }
                            }
                            other => agent.inner.sessions.handle(other),
                        }
                    }
                    // What took the link may have taken lanes through the same relay, and only the node's half of them
                    // noticed: asked at once, a session is resumed while the node still waits for it.
                    agent.inner.sessions.probe();
                });
            }
            if status.changed().await.is_err() {
                return;
            }
        }
    }

    /// Finds out at once what stands on an address that is gone.
    async fn follow_network(self, mut changes: watch::Receiver<u64>) {
        while changes.changed().await.is_ok() {
            self.inner.sessions.probe();
            self.inner.uplink.probe(&self.inner.scope);
            if let Some(tunnel) = self.inner.tunnel.get() {
                tunnel.network_changed();
            }
        }
    }

    /// Completes when the organisation has had this device erased. Cancel safe.
    pub async fn erased(&self) {
        // The sender lives as long as the agent.
        let _ = self.inner.erased.subscribe().wait_for(|erased| *erased).await;
    }

    async fn keep_commands(self) {
        let refreshed = self.clone();
        let inner = &self.inner;
        let commands = Commands {
            config: inner.file.commands.clone(),
            state: inner.state.clone(),
            uplink: inner.uplink.clone(),
            timers: inner.file.timers(),
            scope: inner.scope.clone(),
            refresh: Box::new(move || refreshed.inner.wake.notify_one()),
            erased: inner.erased.clone(),
        };
        commands.keep(&inner.commands).await;
    }

    /// Keeps the configuration fresh: at every link-up and wake-up, and now and then.
    async fn keep_config(self) {
        loop {
            let link = self.inner.uplink.link(Duration::from_secs(3600)).await;
            let pause = match link {
                Err(_) => RETRY,
                Ok(link) => {
                    let have = self.inner.config.borrow().as_ref().map(|c| c.head.version);
                    match fetch_config(&self.inner.state, &link, have, &self.inner.file.timers(), &self.inner.scope)
                        .await
                    {
                        Ok(None) => POLL,
                        Ok(Some(signed)) => match self.take_config(&signed, have) {
                            // The next question tells the core that it is in force.
                            Ok(version) if have != Some(version) => {
                                tokio::time::sleep(WAKE_PAUSE).await;
                                continue;
                            }
                            Ok(_) => POLL,
                            Err(error) => {
                                warn!(
                                    error = format!("{error:#}"),
                                    "the core's configuration was refused; the old one stays"
                                );
                                RETRY
                            }
                        },
                        Err(fault) => {
                            warn!(reason = %fault, "cannot ask the core for configuration");
                            RETRY
                        }
                    }
                }
            };
            tokio::select! {
                // A relay that cries wolf costs a request now and then, not a loop.
                () = self.inner.wake.notified() => tokio::time::sleep(WAKE_PAUSE).await,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn take_config(&self, signed: &SignedConfig, seen: Option<Version>) -> anyhow::Result<Version> {
        let config: DeviceConfig = signed.verify(&self.inner.state.ca, seen, clock::now())?;
        self.inner.state.take(&config, signed)?;
        let version = config.head.version;
        info!(%version, routes = config.routes.len(), "new configuration");
        self.inner.config.send_replace(Some(config));
        Ok(version)
    }
}

/// Asks the core, over the relay's link and with mutual TLS, for a configuration newer than `have`; not yet verified.
async fn fetch_config(
    state: &DeviceState,
    link: &Link,
    have: Option<Version>,
    timers: &Timers,
    scope: &Scope,
) -> Result<Option<SignedConfig>, Fault> {
    let io = core_client::open(link, &state.identity().tenant, timers).await?;
    let config = tls::to_tenant(state.ca.clone(), Role::Core, None, Some(&state.own.get()), &[core_api::ALPN_HTTP])?;
    let mut core = CoreClient::handshake(config, io, timers, scope).await?;
    core.config(core_api::CONFIG_DEVICE, have).await
}

/// The configuration on disk, when it still holds.
fn stored_config(state: &DeviceState, now: UnixTime) -> Option<DeviceConfig> {
    let signed =
        state.read_config().inspect_err(|e| warn!(error = format!("{e:#}"), "stored configuration")).ok()??;
    signed.verify(&state.ca, None, now).inspect_err(|e| warn!(error = %e, "stored configuration")).ok()
}
