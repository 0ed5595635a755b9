//! What a session can run over: a lane, or a stream of the link where no lane can be had.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hedgerow_runtime::dial::{self, Socket};
use hedgerow_runtime::lane::{ResumeError, Session};
use hedgerow_runtime::link::{Link, Stream};
use hedgerow_runtime::tls;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::wire::lane::server_name;
use hedgerow_shared::wire::message::{ALPN_SESSION, Control, Destination, LaneOffer, LaneRequest, LinkOpen};
use hedgerow_shared::{EntityId, GroupName, Origin, Role};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::{Carried, Inner};
use crate::config::Lanes;

/// Lane requests without an answer at once.
const MAX_REQUESTS: usize = 64;
/// A network where a lane failed is taken to have none for so many times the idle time of sessions (ten minutes).
const NO_LANES: u32 = 10;

pub(super) type Waiting = oneshot::Sender<Result<LaneOffer, Fault>>;

/// Why there is no lane.
pub(super) enum LaneFault {
    /// The relay says no.
    Refused(Fault),
    /// The lane itself does not work here.
    Broken(Fault),
}

/// A connection to a node by way of a lane: the relay has it joined as soon as both ends are there.
struct Lane {
    tcp: Socket,
    name: ServerName<'static>,
    offer: LaneOffer,
}

impl Inner {
    /// A new session, by a lane where one can be had.
    pub(super) async fn open(&self, link: Link, group: &GroupName) -> Result<Carried, Fault> {
        let carried = |session, path| Carried { group: group.clone(), session, path, link: link.clone() };
        let mut broken = None;
        if self.may_use_lanes(&link) {
            match self.open_lane(&link, group).await {
                Ok(session) => return Ok(carried(session, "lane")),
                // No node, or not allowed: a link stream would fare no better.
                Err(LaneFault::Refused(fault)) => return Err(fault),
                Err(LaneFault::Broken(fault)) => broken = Some(fault),
            }
        }
        let stream = self.stream(&link, self.destination(group, None)).await?;
        let session = self.endpoint.open(stream, self.tls(None)?, tls::any_name()).await?;
        self.note_broken(&link, broken);
        Ok(carried(session, "link"))
    }

    /// Brings a session that lives something new to run over; `only_lane` leaves it alone where there is none. Returns
    /// the path.
    pub(super) async fn go_on(
        &self,
        link: &Link,
        group: &GroupName,
        session: &Session,
        only_lane: bool,
    ) -> Result<&'static str, ResumeError> {
        let mut broken = None;
        if self.may_use_lanes(link) {
            let moved = async {
                let lane = self.lane(link, group, Some(session)).await?;
                self.by_lane(session, lane, false).await
            };
            match moved.await {
                Ok(()) => return Ok("lane"),
                Err(LaneFault::Refused(fault)) if fault.code == Code::Gone => return Err(ResumeError::Refused(fault)),
                Err(LaneFault::Refused(fault)) => return Err(ResumeError::Failed(fault)),
                Err(LaneFault::Broken(fault)) if only_lane => {
                    note_foul(group, &fault);
                    self.note_broken(link, Some(fault.clone()));
                    return Err(ResumeError::Failed(fault));
                }
                Err(LaneFault::Broken(fault)) => {
                    note_foul(group, &fault);
                    broken = Some(fault);
                }
            }
        }
        let opened = self.stream(link, self.destination(group, Some(session))).await;
        let stream = opened.map_err(|fault| match fault.code {
            Code::Gone => ResumeError::Refused(fault),
            _ => ResumeError::Failed(fault),
        })?;
        let config = self.tls(Some(session.peer.identity.id))?;
        self.endpoint.resume(session, stream, config, tls::any_name()).await.inspect_err(|error| {
            if let ResumeError::Failed(fault) = error {
                note_foul(group, fault);
            }
        })?;
        self.note_broken(link, broken);
        Ok("link")
    }

    /// A stream of the link. A relay that leaves the request without an answer has as long as a server inside.
    async fn stream(&self, link: &Link, to: Destination) -> Result<Stream, Fault> {
        let opened = timeout(self.timers.connect, link.mux.open(&through(to))).await;
        opened.map_err(|_| Fault::new(Code::TimedOut, "the relay did not answer the request for a stream to a node"))?
    }

    /// One more lane for a session's long streams.
    pub(super) async fn add_lane(&self, link: &Link, group: &GroupName, session: &Session) -> Result<(), Fault> {
        let lane = self.lane(link, group, Some(session)).await;
        let added = match lane {
            Ok(lane) => self.by_lane(session, lane, true).await,
            Err(fault) => Err(fault),
        };
        added.map_err(|fault| match fault {
            LaneFault::Refused(fault) => fault,
            LaneFault::Broken(fault) => {
                note_foul(group, &fault);
                fault
            }
        })
    }

    pub(super) fn may_use_lanes(&self, link: &Link) -> bool {
        let none = *self.no_lanes.lock();
        let here = |(session, until)| session == link.accept.session && Instant::now() < until;
        self.lanes == Lanes::Auto && !none.is_some_and(here)
    }

    /// A lane failed where the link works: it is the network's doing.
    fn note_broken(&self, link: &Link, broken: Option<Fault>) {
        let Some(fault) = broken else { return };
        warn!(reason = %fault, "no lane on this network, using the link");
        metrics::counter!("hedgerow_device_lane_failures_total").increment(1);
        *self.no_lanes.lock() = Some((link.accept.session, Instant::now() + NO_LANES * self.timers.session_idle));
    }

    async fn open_lane(&self, link: &Link, group: &GroupName) -> Result<Session, LaneFault> {
        let Lane { tcp, name, offer } = self.lane(link, group, None).await?;
        let config = self.tls(Some(offer.node)).map_err(LaneFault::Broken)?;
        let config = tls::with_server_name(&config);
        let session = self.endpoint.open(tcp, config, name).await.map_err(LaneFault::Broken)?;
        if session.hello.instance != offer.instance {
            let fault = Fault::new(Code::Unauthenticated, "the lane leads to another process than the relay named");
            session.mux.close(fault.clone());
            return Err(LaneFault::Broken(fault));
        }
        Ok(session)
    }

    async fn by_lane(&self, session: &Session, lane: Lane, adds: bool) -> Result<(), LaneFault> {
        // The session's node, whatever the relay's offer says.
        let config = self.tls(Some(session.peer.identity.id)).map_err(LaneFault::Broken)?;
        let config = tls::with_server_name(&config);
        let brought = if adds {
            self.endpoint.add(session, lane.tcp, config, lane.name).await
        } else {
            self.endpoint.resume(session, lane.tcp, config, lane.name).await
        };
        brought.map_err(|error| match error {
            ResumeError::Refused(fault) => LaneFault::Refused(Fault { code: Code::Gone, ..fault }),
            ResumeError::Failed(fault) => LaneFault::Broken(fault),
        })
    }

    async fn lane(&self, link: &Link, group: &GroupName, session: Option<&Session>) -> Result<Lane, LaneFault> {
        let offer = self.request_lane(link, self.destination(group, session)).await?;
        let name = dial::server_name(&server_name(&offer.ticket, &link.accept.relay)).map_err(LaneFault::Broken)?;
        // The same relay process that gave the ticket, not just the same name.
        let tcp = wire(link, &self.timers).await;
        Ok(Lane { tcp: tcp.map_err(LaneFault::Broken)?, name, offer })
    }

    async fn request_lane(&self, link: &Link, to: Destination) -> Result<LaneOffer, LaneFault> {
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut requests = self.requests.lock();
            if requests.len() >= MAX_REQUESTS {
                return Err(LaneFault::Refused(Fault::new(Code::Limited, "too many lanes are being opened at once")));
            }
            requests.insert(request, sender);
        }
        let asked = link.mux.send_control(&LaneRequest { request, to }.into());
        let answer = async {
            asked.map_err(LaneFault::Broken)?;
            tokio::select! {
                answer = timeout(self.timers.lane_wait, answer) => match answer {
                    Ok(Ok(Ok(offer))) => Ok(offer),
                    Ok(Ok(Err(fault))) => Err(LaneFault::Refused(fault)),
                    Ok(Err(_)) | Err(_) => Err(LaneFault::Broken(Fault::new(Code::TimedOut, "the relay did not answer the request for a lane"))),
                },
                fault = link.mux.closed() => Err(LaneFault::Refused(Fault { code: Code::Lost, ..fault })),
            }
        }
        .await;
        self.requests.lock().remove(&request);
        answer
    }

    pub(super) fn answered(&self, message: Control) {
        let (request, answer) = match message {
            Control::LaneOffer(offer) => (offer.request, Ok(offer)),
            Control::LaneRefused(refused) => (refused.request, Err(refused.fault)),
            // The agent gives us nothing else.
            _ => return,
        };
        if let Some(waiting) = self.requests.lock().remove(&request) {
            // Whoever asked may have given up.
            let _ = waiting.send(answer);
        }
    }

    /// Any node of a group, or the very process that has a session.
    fn destination(&self, group: &GroupName, session: Option<&Session>) -> Destination {
        Destination {
            tenant: self.state.identity().tenant.clone(),
            origin: Origin::Proxy,
            group: Some(group.clone()),
            instance: session.map(|s| s.hello.instance),
            node: session.map(|s| s.peer.identity.id),
        }
    }

    fn tls(&self, node: Option<EntityId>) -> Result<Arc<ClientConfig>, Fault> {
        tls::to_tenant(self.state.ca.clone(), Role::Node, node, Some(&self.state.own.get()), &[ALPN_SESSION])
    }
}

/// A connection for the device's leg, by the link's own way. Where TLS is opened on the way none gets through.
async fn wire(link: &Link, timers: &Timers) -> Result<Socket, Fault> {
    match &link.at {
        Some(at) if !at.is_inspected() => at.connect(timers).await,
        Some(_) => Err(Fault::new(Code::Unreachable, "TLS is opened on the way to the relay, which lanes do not bear")),
        None => Err(Fault::new(Code::Internal, "the link does not know its relay")),
    }
}

/// Whoever answered for a session's node was not it, or said what it cannot say. No network does that by itself:
/// somebody should look.
fn note_foul(group: &GroupName, fault: &Fault) {
    if matches!(fault.code, Code::Unauthenticated | Code::Protocol) {
        warn!(%group, reason = %fault, "the way to a session's node is not honest");
    }
}

fn through(to: Destination) -> LinkOpen {
    LinkOpen::Through { to, vouched: None, trace: None }
}
