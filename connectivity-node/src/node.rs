//! A running node without the process around it: what it is made of, and the tasks that serve its links.

use std::sync::Arc;
use std::time::Duration;

use hedgerow_proxy::publish::Published;
use hedgerow_proxy::target::Target;
use hedgerow_proxy::tell::Told;
use hedgerow_runtime::dial::RelayTarget;
use hedgerow_runtime::lane::Endpoint;
use hedgerow_runtime::link::{Choice, Credentials, Twins, Uplink, UplinkConfig, UplinkStatus, Uplinks};
use hedgerow_runtime::renewal::Renewal;
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls::{self, Clients};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::wire::message::{ALPN_SESSION, GoAway};
use hedgerow_shared::{InstanceId, Origin, Role};
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;
use tracing::info;

use crate::config::Limits;
use crate::egress::Inside;
use crate::leg::Legs;
use crate::policy::Policies;
use crate::serve::Service;
use crate::sessions::Sessions;
use crate::state::{Enrolled, State};
use crate::tunnel::Tunnels;

/// What a node is made of.
#[derive(Debug)]
pub struct Parts {
    /// Where its configuration is kept.
    pub state: State,
    /// Who it is.
    pub enrolled: Arc<Enrolled>,
    /// This process.
    pub instance: InstanceId,
    /// What devices never reach through it, whatever the rules say.
    pub own: Vec<Target>,
    /// Relays to be linked with, all of them.
    pub relays: Vec<RelayTarget>,
    /// Over which transports.
    pub transport: Choice,
    /// How much it serves.
    pub limits: Limits,
    /// Timers.
    pub timers: Timers,
    /// What stands behind it.
    pub inside: Inside,
    /// Servers that clients reach by name.
    pub published: Published,
    /// Which servers inside are told the client's address.
    pub told: Told,
    /// What it registers with relays.
    pub origins: Vec<Origin>,
    /// IP tunnels, where there are any.
    pub tunnels: Option<Arc<Tunnels>>,
}

/// A node that serves; its tasks are the scope's. Clones are the same node.
#[derive(Clone)]
pub struct Node {
    pub(crate) uplinks: Uplinks,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) policies: Arc<Policies>,
    pub(crate) tunnels: Option<Arc<Tunnels>>,
    published: Published,
}

impl Node {
    /// Starts to link and to serve. The configuration on disk counts until a newer one is fetched.
    ///
    /// # Errors
    /// The certificate cannot be used.
    pub fn start(parts: Parts, scope: &Scope) -> anyhow::Result<Self> {
        let Parts { enrolled, instance, timers, limits, relays, transport, origins, .. } = parts;
        let sessions = Sessions::new(limits);
        let files = parts.state.files();
        let policies = Arc::new(Policies::start(parts.state, enrolled.clone(), parts.own, sessions.clone()));
        let tunnels = parts.tunnels;
        if let Some(tunnels) = &tunnels {
            tunnels.serve(&policies);
        }
        let service = Arc::new(Service {
            tunnels: tunnels.clone(),
            tls: tls::as_tenant(
                enrolled.ca.clone(),
                &[Role::Device],
                Clients::Certified,
                &enrolled.own,
                &[ALPN_SESSION],
            )?,
            policies: policies.clone(),
            sessions: sessions.clone(),
            legs: Legs::default(),
            handshakes: Arc::new(Semaphore::new(limits.handshakes)),
            inside: parts.inside,
            published: parts.published.clone(),
            told: parts.told,
            endpoint: Endpoint::new(enrolled.ca.clone(), instance, timers, scope.clone()),
            timers,
            scope: scope.clone(),
            enrolled: enrolled.clone(),
        });
        let credentials = Credentials::Certificate {
            role: Role::Node,
            tenant: enrolled.record.tenant.clone(),
            own: enrolled.own.clone(),
            origins,
        };
        let uplinks = Uplinks::start(
            &UplinkConfig { relays: relays.clone(), credentials, instance, timers, transport, twins: Twins::default() },
            scope,
        );
        let renewal =
            Renewal { files, own: enrolled.own.clone(), ca: enrolled.ca.clone(), relays, timers, scope: scope.clone() };
        let linked = uplinks.clone();
        scope.spawn(renewal.keep(move || linked.current()));
        for uplink in uplinks.iter() {
            scope.spawn(serve_links(service.clone(), uplink.clone()));
        }
        Ok(Self { uplinks, sessions, policies, tunnels, published: parts.published })
    }

    /// Its links.
    #[must_use]
    pub fn uplinks(&self) -> &Uplinks {
        &self.uplinks
    }

    /// Connections of devices that are open now.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.sessions.open_connections()
    }

    /// Tells relay and devices, then waits up to `limit` for connections to end.
    pub async fn drain(&self, limit: Duration) {
        let Self { uplinks, sessions, published, .. } = self;
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
        if let Some(tunnels) = &self.tunnels {
            tunnels.stop().await;
        }
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

    /// Finds out at once what stands on an address, or with a relay, that is gone, until `changes` ends.
    pub async fn follow_network(self, mut changes: watch::Receiver<u64>, scope: Scope) {
        loop {
            tokio::select! {
                changed = changes.changed() => match changed {
                    Ok(()) => {
                        self.sessions.probe();
                        if let Some(tunnels) = &self.tunnels {
                            tunnels.network_changed();
                        }
                    }
                    Err(_) => return,
                },
                // Whatever took a lane may have taken the link: over UDP nothing but silence would tell.
                () = self.sessions.lane_lost() => {}
            }
            self.uplinks.iter().for_each(|uplink| uplink.probe(&scope));
            // One look a second, however many lanes end together.
            sleep(Duration::from_secs(1)).await;
        }
    }
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
                    scope.spawn(async move {
                        serving.link(link).await;
                        // What took the link may have taken lanes through the same relay.
                        serving.sessions.probe();
                    });
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
