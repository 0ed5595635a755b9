//! From a link to connections inside.
//!
//! ```text
//!   link ── stream to origin `proxy` ─┐
//!   link ── LaneCall: dial the relay, preamble ─┴─► end-to-end session (mutual TLS) ── stream ─► egress
//!   link ── stream to origin `gateway` or `mdm`, unopened TLS of a client ─► the published server
//! ```
//! Policy uses only the certificate of the end-to-end session; what the relay vouches for goes to the log.

use std::sync::Arc;
use std::time::Duration;

use hedgerow_proxy::publish::Published;
use hedgerow_proxy::tell::Told;
use hedgerow_runtime::dial::RelayTarget;
use hedgerow_runtime::lane::{self, Endpoint, Served};
use hedgerow_runtime::link::{Incoming, Link};
use hedgerow_runtime::scope::Scope;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::wire::message::{Control, LaneCall, LinkOpen, Vouched};
use hedgerow_shared::{Origin, Ticket};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::egress::{self, Inside};
use crate::leg::{Leg, Legs};
use crate::policy::Policies;
use crate::sessions::{Registered, Sessions, refused};
use crate::state::Enrolled;
use crate::tunnel::Tunnels;

/// How often a session is looked at for being idle.
const IDLE_CHECKS: u32 = 4;

/// What serving needs; one for the process.
pub(crate) struct Service {
    pub(crate) enrolled: Arc<Enrolled>,
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) policies: Arc<Policies>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) legs: Legs,
    pub(crate) handshakes: Arc<Semaphore>,
    pub(crate) inside: Inside,
    pub(crate) published: Published,
    pub(crate) told: Told,
    pub(crate) endpoint: Endpoint,
    pub(crate) tunnels: Option<Arc<Tunnels>>,
    pub(crate) timers: Timers,
    pub(crate) scope: Scope,
}

impl Service {
    /// Serves one link until it ends.
    pub(crate) async fn link(self: &Arc<Self>, link: Link) {
        loop {
            tokio::select! {
                incoming = link.mux.accept() => match incoming {
                    Some(incoming) => self.link_stream(incoming),
                    None => return,
                },
                control = link.mux.next_control() => match control {
                    Some(Control::LaneCall(call)) => self.lane_call(call, &link),
                    Some(Control::Wake(_)) => self.policies.wake.notify_one(),
                    Some(Control::PairCall(call)) if let Some(tunnels) = &self.tunnels => tunnels.pair(call, &link),
                    Some(Control::PairEnd(end)) if let Some(tunnels) = &self.tunnels => {
                        tunnels.unpaired(end.half, &end.fault, &link);
                    }
                    Some(_) => hedgerow_runtime::telemetry::dropped(hedgerow_shared::fault::DropReason::UnknownOptionalMessage),
                    None => return,
                },
            }
        }
    }

    fn link_stream(self: &Arc<Self>, incoming: Incoming) {
        let vouched = match self.wanted(&incoming) {
            Ok((Origin::Proxy, vouched)) => vouched,
            Ok((origin, vouched)) => {
                let (published, from) = (self.published.clone(), vouched.map(|v| v.address).unwrap_or_default());
                self.scope.spawn(async move { published.serve(origin, incoming, &from).await });
                return;
            }
            Err(fault) => {
                refused_session(&fault);
                return incoming.refuse(fault);
            }
        };
        let Ok(permit) = self.handshakes.clone().try_acquire_owned() else {
            return incoming.refuse(refused("handshakes", "this node is busy with other hand-shakes"));
        };
        let service = self.clone();
        self.scope.spawn(async move {
            let stream = incoming.accept();
            service.session(stream, "link", vouched, permit).await;
        });
    }

    fn wanted(&self, incoming: &Incoming) -> Result<(Origin, Option<Vouched>), Fault> {
        match incoming.read_header()? {
            LinkOpen::Through { to, vouched, .. }
                if (to.origin == Origin::Proxy || self.published.serves(to.origin))
                    && to.tenant == self.enrolled.record.tenant =>
            {
                Ok((to.origin, vouched))
            }
            LinkOpen::Through { to, .. } => {
                Err(Fault::new(Code::NoRoute, format!("this node does not serve {} here", to.origin)))
            }
            LinkOpen::Service { .. } => Err(Fault::new(Code::Protocol, "a node has no services of a relay")),
        }
    }

    fn lane_call(self: &Arc<Self>, call: LaneCall, link: &Link) {
        if call.origin != Origin::Proxy {
            return refused_session(&Fault::new(Code::NoRoute, "a lane for an origin that this node does not serve"));
        }
        let Ok(permit) = self.handshakes.clone().try_acquire_owned() else {
            let _ = refused("handshakes", "this node is busy with other hand-shakes");
            return;
        };
        let (service, relay) = (self.clone(), link.at.clone());
        self.scope.spawn(async move {
            match service.lane_leg(relay, &call.ticket).await {
                Ok(leg) => service.session(leg, "lane", Some(call.vouched), permit).await,
                Err(fault) => {
                    metrics::counter!("hedgerow_node_lane_legs_failed_total", "reason" => fault.code.label())
                        .increment(1);
                    if fault.code == Code::Unauthenticated {
                        warn!(reason = %fault, "somebody else answers where the relay called for the leg of a lane");
                    } else {
                        debug!(%fault, "cannot bring the leg of a lane");
                    }
                }
            }
        });
    }

    /// The node's leg: to the very relay that called, bare or wrapped, the ticket first.
    async fn lane_leg(&self, relay: Option<Arc<RelayTarget>>, ticket: &Ticket) -> Result<Leg, Fault> {
        let relay = relay.ok_or_else(|| Fault::new(Code::Internal, "the link does not know its relay"))?;
        self.legs.bring(&relay, ticket, &self.timers).await
    }

    async fn session<IO>(
        self: &Arc<Self>,
        io: IO,
        carrier: &'static str,
        vouched: Option<Vouched>,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let check = |device: &_| self.policies.current().admits(device);
        let opened = self.endpoint.serve(io, self.tls.clone(), check, |id| self.sessions.find(id)).await;
        drop(permit);
        let client = vouched.as_ref().and_then(|v| v.address.parse().ok());
        let session = match opened {
            Ok(Served::New(session)) => session,
            Ok(Served::Lane(id)) => {
                metrics::counter!("hedgerow_node_session_lanes_total", "carrier" => carrier).increment(1);
                debug!(session = %id, carrier, "a session goes on over another connection");
                return self.sessions.carried_by(id, carrier, client);
            }
            Err(fault) => {
                // Its certificate does not hold, or the relay meddles: either way somebody should look.
                let vouched = vouched.and_then(|v| v.id).map(|id| id.to_string());
                warn!(reason = %fault, carrier, vouched, "session refused");
                return refused_session(&fault);
            }
        };
        let registered = match self.sessions.register(&session, carrier, client, &self.scope) {
            Ok(registered) => Arc::new(registered),
            Err(fault) => return session.mux.close(fault),
        };
        // The policy may have changed between the hand-shake's check and the registration.
        if let Err(fault) = self.policies.current().admits(&session.peer) {
            refused_session(&fault);
            return session.mux.close(fault);
        }
        metrics::counter!("hedgerow_node_sessions_total", "carrier" => carrier).increment(1);
        let device = session.peer.identity.id;
        info!(%device, carrier, instance = %session.hello.instance, "session open");
        let fault = self.serve_session(&session, &registered).await;
        registered.streams.cancel();
        info!(%device, carrier, reason = %fault, "session ended");
    }

    async fn serve_session(self: &Arc<Self>, session: &lane::Session, registered: &Arc<Registered>) -> Fault {
        let look = (self.timers.session_idle * 2 / IDLE_CHECKS).max(Duration::from_millis(50));
        let mut used = Instant::now();
        let mut is_carried = true;
        loop {
            tokio::select! {
                Some(reason) = session.mux.suspended(), if is_carried => {
                    is_carried = false;
                    debug!(device = %session.peer.identity.id, %reason, "session waits for another lane");
                    self.sessions.note_lane_lost();
                }
                () = session.mux.carried(), if !is_carried => is_carried = true,
                incoming = session.mux.accept() => match incoming {
                    Some(incoming) => {
                        used = Instant::now();
                        let connection = egress::connection(self.clone(), session.peer.clone(), registered.clone(), incoming);
                        registered.streams.spawn(connection);
                    }
                    None => return session.mux.closed().await,
                },
                // The device closes idle sessions; this is for devices that forget.
                () = sleep(look) => {
                    if session.mux.open_streams() > 0 {
                        used = Instant::now();
                    } else if used.elapsed() > self.timers.session_idle * 2 {
                        session.mux.close(Fault::new(Code::Draining, "the session was idle"));
                    }
                }
            }
        }
    }
}

fn refused_session(fault: &Fault) {
    metrics::counter!("hedgerow_node_sessions_refused_total", "reason" => fault.code.label()).increment(1);
}
