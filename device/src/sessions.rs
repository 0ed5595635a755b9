//! End-to-end sessions to nodes, one a server group: opened with the first stream, by a lane where one can be had,
//! else over a stream of the link; closed when no stream has been open for a while; replaced when lost.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hedgerow_runtime::dial;
use hedgerow_runtime::lane::{self, Session};
use hedgerow_runtime::link::{Link, Uplink};
use hedgerow_runtime::mux::Stream;
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::wire::lane::server_name;
use hedgerow_shared::wire::message::{
    ALPN_SESSION, Control, Destination, LaneOffer, LaneRequest, LinkOpen, SessionOpen,
};
use hedgerow_shared::{EntityId, GroupName, InstanceId, Origin, Role};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::config::Lanes;
use crate::state::DeviceState;

/// How long a network where a lane failed is taken to have none.
const NO_LANES: Duration = Duration::from_secs(600);
/// Lane requests without an answer at once.
const MAX_REQUESTS: usize = 64;

/// See the module. Clones are the same sessions.
#[derive(Clone)]
pub struct Sessions {
    inner: Arc<Inner>,
}

struct Inner {
    state: DeviceState,
    uplink: Uplink,
    instance: InstanceId,
    timers: Timers,
    lanes: Lanes,
    scope: Scope,
    /// The session of each group, being opened or open.
    open: Mutex<HashMap<GroupName, Slot>>,
    /// Lane requests that wait for the relay's answer.
    requests: Mutex<HashMap<u32, oneshot::Sender<Result<LaneOffer, Fault>>>>,
    next_request: AtomicU32,
    no_lanes_until: Mutex<Option<Instant>>,
}

/// Those who need a session while it is being opened wait for the same attempt.
type Slot = Arc<OnceCell<Carried>>;

/// A session and what carries it.
#[derive(Debug, Clone)]
pub struct Carried {
    /// The session.
    pub session: Session,
    /// `lane` or `link`.
    pub path: &'static str,
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
        let inner = Inner {
            state,
            uplink,
            instance,
            timers,
            lanes,
            scope: scope.child(),
            open: Mutex::default(),
            requests: Mutex::default(),
            next_request: AtomicU32::new(1),
            no_lanes_until: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Opens a connection to `host:port` through a node of the group. Cancel safe.
    ///
    /// # Errors
    /// The node's refusal, or why no node can be reached.
    pub async fn connect(&self, group: &GroupName, host: String, port: u16) -> Result<Stream, Fault> {
        let header = SessionOpen { host, port, trace: None };
        // A session that ends while we ask says nothing about the target: one more try, on a new session.
        for attempt in 0..2 {
            let carried = self.session(group).await?;
            match carried.session.mux.open(&header).await {
                Ok(stream) => return Ok(stream),
                Err(fault) if attempt == 0 && carried.session.mux.is_closed() | fault_of_session(&fault) => {
                    self.forget(group, &carried);
                }
                Err(fault) => return Err(fault),
            }
        }
        Err(Fault::new(Code::Lost, "the session to the node ended twice while the connection was opened"))
    }

    /// What is open now: group and path.
    #[must_use]
    pub fn list(&self) -> Vec<(GroupName, Carried)> {
        let open = self.inner.open.lock();
        open.iter().filter_map(|(g, s)| Some((g.clone(), s.get()?.clone()))).collect()
    }

    /// Passes on the relay's answer to a lane request.
    pub fn handle(&self, message: Control) {
        let (request, answer) = match message {
            Control::LaneOffer(offer) => (offer.request, Ok(offer)),
            Control::LaneRefused(refused) => (refused.request, Err(refused.fault)),
            Control::LaneRequest(_) | Control::LaneCall(_) | Control::Wake(_) => return,
        };
        if let Some(waiting) = self.inner.requests.lock().remove(&request) {
            // Whoever asked may have given up.
            let _ = waiting.send(answer);
        }
    }

    /// Ends every session, with a reason the node is told.
    pub fn close(&self, fault: &Fault) {
        for (_, carried) in self.list() {
            carried.session.mux.close(fault.clone());
        }
    }

    async fn session(&self, group: &GroupName) -> Result<Carried, Fault> {
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

    fn forget(&self, group: &GroupName, carried: &Carried) {
        let mut open = self.inner.open.lock();
        let same = |c: &Carried| c.session.hello.nonce == carried.session.hello.nonce;
        if open.get(group).and_then(|s| s.get()).is_some_and(same) {
            open.remove(group);
        }
    }

    async fn open(&self, group: &GroupName) -> Result<Carried, Fault> {
        let started = Instant::now();
        let link = self.inner.uplink.link(self.inner.timers.connect).await?;
        let carried = self.open_on(&link, group).await?;
        let node = carried.session.peer.identity.id;
        info!(%group, %node, path = carried.path, ms = started.elapsed().as_millis() as u64, "session to node is open");
        metrics::counter!("hedgerow_device_sessions_total", "path" => carried.path).increment(1);
        self.watch(group.clone(), carried.clone());
        Ok(carried)
    }

    async fn open_on(&self, link: &Link, group: &GroupName) -> Result<Carried, Fault> {
        if self.may_use_lanes() {
            match self.open_lane(link, group).await {
                Ok(session) => return Ok(Carried { session, path: "lane" }),
                // No node, or not allowed: a link stream would fare no better.
                Err(LaneFault::Refused(fault)) => return Err(fault),
                Err(LaneFault::Broken(fault)) => {
                    warn!(reason = %fault, "no lane on this network, using the link");
                    metrics::counter!("hedgerow_device_lane_failures_total").increment(1);
                    *self.inner.no_lanes_until.lock() = Some(Instant::now() + NO_LANES);
                }
            }
        }
        let header = LinkOpen::Through { to: self.destination(group), vouched: None, trace: None };
        let stream = link.mux.open(&header).await?;
        let session = self.shake(stream, None, None).await?;
        Ok(Carried { session, path: "link" })
    }

    fn may_use_lanes(&self) -> bool {
        let until = *self.inner.no_lanes_until.lock();
        self.inner.lanes == Lanes::Auto && until.is_none_or(|t| Instant::now() >= t)
    }

    fn destination(&self, group: &GroupName) -> Destination {
        Destination {
            tenant: self.inner.state.identity().tenant.clone(),
            origin: Origin::Proxy,
            group: Some(group.clone()),
            instance: None,
        }
    }

    async fn open_lane(&self, link: &Link, group: &GroupName) -> Result<Session, LaneFault> {
        let offer = self.request_lane(link, group).await?;
        let name = dial::server_name(&server_name(&offer.ticket, &link.accept.relay)).map_err(LaneFault::Broken)?;
        // The same relay process that gave the ticket, not just the same name.
        let tcp = lane_wire(link, &self.inner.timers).await.map_err(LaneFault::Broken)?;
        let session = self.shake(tcp, Some(offer.node), Some(name)).await.map_err(LaneFault::Broken)?;
        if session.hello.instance != offer.instance {
            let fault = Fault::new(Code::Unauthenticated, "the lane leads to another process than the relay named");
            session.mux.close(fault.clone());
            return Err(LaneFault::Broken(fault));
        }
        Ok(session)
    }

    async fn request_lane(&self, link: &Link, group: &GroupName) -> Result<LaneOffer, LaneFault> {
        let request = self.inner.next_request.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut requests = self.inner.requests.lock();
            if requests.len() >= MAX_REQUESTS {
                return Err(LaneFault::Refused(Fault::new(Code::Limited, "too many lanes are being opened at once")));
            }
            requests.insert(request, sender);
        }
        let asked = link.mux.send_control(&LaneRequest { request, to: self.destination(group) }.into());
        let answer = async {
            asked.map_err(LaneFault::Broken)?;
            tokio::select! {
                answer = timeout(self.inner.timers.lane_wait, answer) => match answer {
                    Ok(Ok(Ok(offer))) => Ok(offer),
                    Ok(Ok(Err(fault))) => Err(LaneFault::Refused(fault)),
                    Ok(Err(_)) | Err(_) => Err(LaneFault::Broken(Fault::new(Code::TimedOut, "the relay did not answer the request for a lane"))),
                },
                fault = link.mux.closed() => Err(LaneFault::Refused(fault)),
            }
        }
        .await;
        self.inner.requests.lock().remove(&request);
        answer
    }

    async fn shake<IO>(
        &self,
        io: IO,
        node: Option<EntityId>,
        name: Option<rustls::pki_types::ServerName<'static>>,
    ) -> Result<Session, Fault>
    where
        IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let state = &self.inner.state;
        let config = tls::to_tenant(state.ca.clone(), Role::Node, node, Some(&state.own), &[ALPN_SESSION])?;
        let (config, name) = match name {
            Some(name) => (tls::with_server_name(&config), name),
            None => (config, tls::any_name()),
        };
        lane::client(io, config, name, &state.ca, self.inner.instance, &self.inner.timers, &self.inner.scope).await
    }

    /// Closes the session when nothing has used it for a while, and forgets it when it has ended.
    fn watch(&self, group: GroupName, carried: Carried) {
        let sessions = self.clone();
        self.inner.scope.spawn(async move {
            let idle = sessions.inner.timers.session_idle;
            let mux = &carried.session.mux;
            let mut opened = mux.stats().opened;
            loop {
                tokio::select! {
                    fault = mux.closed() => {
                        debug!(%group, reason = %fault, "session to node ended");
                        break;
                    }
                    () = sleep(idle) => {
                        let stats = mux.stats();
                        if stats.streams == 0 && stats.opened == opened {
                            // Forgotten first: nobody may begin a stream on a session that is about to close.
                            sessions.forget(&group, &carried);
                            mux.close(Fault::new(Code::Ok, "idle"));
                            break;
                        }
                        opened = stats.opened;
                    }
                }
            }
            sessions.forget(&group, &carried);
        });
    }
}

/// A connection for the device's leg, by the link's own way. Where TLS is opened on the way none gets through.
async fn lane_wire(link: &Link, timers: &Timers) -> Result<tokio::net::TcpStream, Fault> {
    match &link.at {
        Some(at) if !at.is_inspected() => at.connect(timers).await,
        Some(_) => Err(Fault::new(Code::Unreachable, "TLS is opened on the way to the relay, which lanes do not bear")),
        None => Err(Fault::new(Code::Internal, "the link does not know its relay")),
    }
}

/// Whether the session, not the target, is the reason.
fn fault_of_session(fault: &Fault) -> bool {
    matches!(fault.code, Code::Draining | Code::Lost)
}

enum LaneFault {
    /// The relay says no.
    Refused(Fault),
    /// The lane itself does not work here.
    Broken(Fault),
}
