//! End-to-end sessions to nodes, one a server group: opened with the first stream, closed when no stream has been open
//! for a while, replaced when over. `path` finds what carries them; `keep` keeps them on it: a session whose lanes are
//! lost goes on over new ones, to the same process of the node, and its streams do not notice.

mod keep;
mod path;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use hedgerow_runtime::lane::{Endpoint, Session};
use hedgerow_runtime::link::{Link, Uplink};
use hedgerow_runtime::mux::Stream;
use hedgerow_runtime::scope::Scope;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::verify::Identity;
use hedgerow_shared::wire::message::{Control, SessionOpen, TUNNEL_HOST, TunnelAsk, TunnelGrant};
use hedgerow_shared::{EntityId, GroupName, InstanceId, SessionId};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::config::Lanes;
use crate::state::DeviceState;

/// How many times the time for connecting a new connection may take in all: a lane, a link stream, and once more.
const TURNS: u32 = 3;
/// How long a new connection waits for a session that has just lost its lane.
const PATIENCE: Duration = Duration::from_secs(1);

/// See the module. Clones are the same sessions.
#[derive(Clone)]
pub struct Sessions {
    inner: Arc<Inner>,
}

struct Inner {
    state: DeviceState,
    uplink: Uplink,
    endpoint: Endpoint,
    timers: Timers,
    lanes: Lanes,
    scope: Scope,
    /// The session that takes new streams of each group, being opened or open.
    open: Mutex<HashMap<GroupName, Slot>>,
    /// Every session that lives, also one that takes no new streams.
    live: Mutex<HashMap<SessionId, Carried>>,
    /// Lane requests that wait for the relay's answer.
    requests: Mutex<HashMap<u32, path::Waiting>>,
    next_request: AtomicU32,
    /// The link on whose network a lane failed, and until when that counts.
    no_lanes: Mutex<Option<(SessionId, Instant)>>,
}

/// Those who need a session while it is being opened wait for the same attempt.
type Slot = Arc<OnceCell<Carried>>;

/// A session and what carries it.
#[derive(Debug, Clone)]
pub struct Carried {
    /// What it leads to.
    pub group: GroupName,
    /// The session.
    pub session: Session,
    /// `lane` or `link`.
    pub path: &'static str,
    /// The link that it was had by.
    pub link: Link,
}

/// Who granted a tunnel.
#[derive(Debug, Clone, Copy)]
pub struct Granter {
    /// The node.
    pub node: EntityId,
    /// Its process.
    pub instance: InstanceId,
}

impl Sessions {
    /// Sessions over this uplink.
    #[must_use]
    pub fn new(
        state: DeviceState,
        uplink: Uplink,
        instance: InstanceId,
        timers: Timers,
        lanes: Lanes,
        scope: &Scope,
    ) -> Self {
        let scope = scope.child();
        let inner = Inner {
            endpoint: Endpoint::new(state.ca.clone(), instance, timers, scope.clone()),
            state,
            uplink,
            timers,
            lanes,
            scope,
            open: Mutex::default(),
            live: Mutex::default(),
            requests: Mutex::default(),
            next_request: AtomicU32::new(1),
            no_lanes: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Opens a connection to `host:port` through a node of the group; it takes 30 s at most. Cancel safe.
    ///
    /// # Errors
    /// The node's refusal, or why no node can be reached.
    pub async fn connect(&self, group: &GroupName, host: String, port: u16) -> Result<Stream, Fault> {
        // Those who wait for a session take turns in opening it: without a limit the last waits for all before it.
        let limit = self.inner.timers.connect * TURNS;
        timeout(limit, self.connect_in_turn(group, host, port)).await.unwrap_or_else(|_| {
            let text = format!("no session to a node of group {group} within {} s", limit.as_secs());
            Err(Fault::new(Code::TimedOut, text))
        })
    }

    /// Asks a node of the group for an IP tunnel. Cancel safe.
    ///
    /// # Errors
    /// The node's refusal, or why no node can be reached.
    pub async fn tunnel(&self, group: &GroupName, ask: &TunnelAsk) -> Result<(TunnelGrant, Granter), Fault> {
        let limit = self.inner.timers.connect * TURNS;
        let asked = async {
            let carried = self.session(group).await?;
            let header = SessionOpen { host: TUNNEL_HOST.into(), port: 0, trace: None, tunnel: Some(ask.clone()) };
            let stream = carried.session.mux.open(&header).await?;
            let mut answer = Vec::new();
            let read = stream.take(TunnelGrant::MAX as u64).read_to_end(&mut answer).await;
            read.map_err(|e| Fault::new(Code::Lost, format!("the node's answer did not arrive: {e}")))?;
            let grant = minicbor::decode(&answer);
            let grant = grant.map_err(|_| Fault::new(Code::Protocol, "the node's grant of a tunnel is malformed"))?;
            let session = &carried.session;
            Ok((grant, Granter { node: session.peer.identity.id, instance: session.hello.instance }))
        };
        timeout(limit, asked).await.unwrap_or_else(|_| {
            Err(Fault::new(
                Code::TimedOut,
                format!("no tunnel from a node of group {group} within {} s", limit.as_secs()),
            ))
        })
    }

    async fn connect_in_turn(&self, group: &GroupName, host: String, port: u16) -> Result<Stream, Fault> {
        let header = SessionOpen { host, port, trace: None, tunnel: None };
        // A session that ends while we ask says nothing about the target: one more try, on a new session.
        for attempt in 0..2 {
            let carried = self.session(group).await?;
            let mux = &carried.session.mux;
            match mux.open(&header).await {
                Ok(stream) => return Ok(stream),
                Err(fault) if attempt > 0 => return Err(fault),
                Err(_) if mux.is_closed() || mux.is_going_away() => self.forget(&carried),
                // The answer was lost with a lane; no byte had gone either way.
                Err(fault) if fault.code == Code::Lost => {}
                Err(fault) => return Err(fault),
            }
        }
        Err(Fault::new(Code::Lost, "the session to the node ended twice while the connection was opened"))
    }

    /// What lives now.
    #[must_use]
    pub fn list(&self) -> Vec<Carried> {
        self.inner.live.lock().values().cloned().collect()
    }

    /// Passes on the relay's answer to a lane request.
    pub fn handle(&self, message: Control) {
        self.inner.answered(message);
    }

    /// Asks every node for a sign of life: the network below may have changed.
    pub fn probe(&self) {
        for carried in self.list() {
            carried.session.mux.probe();
        }
    }

    /// Ends every session, with a reason the node is told.
    pub fn close(&self, fault: &Fault) {
        for carried in self.list() {
            carried.session.mux.close(fault.clone());
        }
    }

    async fn session(&self, group: &GroupName) -> Result<Carried, Fault> {
        let suspended =
            self.inner.open.lock().get(group).and_then(|s| s.get()).filter(|c| c.session.mux.is_suspended()).cloned();
        if let Some(carried) = suspended
            && timeout(PATIENCE, carried.session.mux.carried()).await.is_err()
        {
            // It may come back for the streams it has; new ones had better try another node.
            self.forget(&carried);
        }
        let slot = {
            let mut open = self.inner.open.lock();
            let slot = open.entry(group.clone()).or_default();
            if slot.get().is_some_and(|c| c.session.mux.is_closed() || c.session.mux.is_going_away()) {
                *slot = Slot::default();
            }
            slot.clone()
        };
        slot.get_or_try_init(|| self.open(group)).await.cloned()
    }

    /// Gives a session no new streams.
    fn forget(&self, carried: &Carried) {
        let mut open = self.inner.open.lock();
        if open.get(&carried.group).and_then(|s| s.get()).is_some_and(|c| c.session.id == carried.session.id) {
            open.remove(&carried.group);
        }
    }

    async fn open(&self, group: &GroupName) -> Result<Carried, Fault> {
        let started = Instant::now();
        let link = self.inner.uplink.link(self.inner.timers.connect).await?;
        let refused = |fault: &Fault| warn!(%group, reason = %fault, "no session to a node");
        let carried = self.inner.open(link, group).await.inspect_err(|fault| {
            refused(fault);
            // The link may carry no more than small packets, which nothing but a probe tells.
            if matches!(fault.code, Code::TimedOut | Code::Lost) {
                self.inner.uplink.probe(&self.inner.scope);
            }
        })?;
        let Identity { id: node, group: theirs, .. } = &carried.session.peer.identity;
        // The relay chose the node. Its certificate must say that it stands where the route leads: the same address
        // inside is another server elsewhere.
        if theirs.as_ref() != Some(group) {
            let text = format!("the relay led to node {node} of another group than {group}");
            let fault = Fault::new(Code::Unauthenticated, text);
            refused(&fault);
            carried.session.mux.close(fault.clone());
            return Err(fault);
        }
        info!(%group, %node, path = carried.path, ms = started.elapsed().as_millis() as u64, "session to node is open");
        metrics::counter!("hedgerow_device_sessions_total", "path" => carried.path).increment(1);
        self.inner.live.lock().insert(carried.session.id, carried.clone());
        let (sessions, kept) = (self.clone(), carried.clone());
        self.inner.scope.spawn(async move { sessions.keep(kept).await });
        Ok(carried)
    }
}
