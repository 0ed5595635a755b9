//! One link, from its hand-shake to its end: admission, registration, then whatever the peer asks for: streams to an
//! origin, the relay's services (cores), lanes, waking others (cores).

mod licence;
mod service;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use hedgerow_runtime::clock;
use hedgerow_runtime::link::{self, Admit, Channel, Incoming, Link, LinkError, Peer};
use hedgerow_runtime::proxy_protocol::canonical;
use hedgerow_runtime::telemetry::dropped;
use hedgerow_shared::fault::{Code, DropReason, Fault};
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::{Feature, VerifiedCertificate};
use hedgerow_shared::wire::message::{
    Accept, Claim, Control, Destination, GoAway, LaneCall, LaneOffer, LaneRefused, LaneRequest, Limits, LinkOpen,
    PairRefused, Refuse, Wake,
};
use hedgerow_shared::{InstanceId, Role, TenantId};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::server::TlsStream;

use crate::accept::Place;
use crate::licence::{Refused, seated};
use crate::probe::Probe;
use crate::registry::{Facts, Live};
use crate::route::Asker;
use crate::state::{Relay, count_refusal};
use crate::udp::Outbox;
use crate::{admit, lane, pump, route, tunnel};

/// Requests of one link that may wait for an endpoint's answer at once: a peer that opens and resets streams without
/// end must not fill the nodes.
const MAX_OPENING: usize = 256;
/// Datagrams of one link that are taken in one turn.
const MAX_DATAGRAMS: usize = 64;
/// When to come back after a refusal that may mend itself soon.
const RETRY_SOON_MS: u64 = 1_000;
/// When to come back after one that needs somebody to act.
const RETRY_LATER_MS: u64 = 30_000;
/// When to come back after one by a licence: a new one may be installed, or a seat become free.
const RETRY_LICENCE_MS: u64 = 10_000;
/// When a displaced session may come back, if it must.
const RETRY_DISPLACED_MS: u64 = 5_000;

/// Serves one connection whose TLS agreed on the link protocol. `probe` is of the connection below it, where it is known.
pub async fn link<IO>(
    relay: &Arc<Relay>,
    tls: Box<TlsStream<IO>>,
    address: SocketAddr,
    probe: Option<Probe>,
    place: Place,
) where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    // The link's own tasks end with it.
    let scope = relay.work.child();
    let _end = scope.guard();
    let door = Door { relay };
    let limits = Limits::default();
    // Boxed, as below: what only the hand-shake needs must not be kept as long as the link.
    let shake = Box::pin(link::answer(tls, address.to_string(), &door, limits, relay.instance, &relay.timers, &scope));
    admitted(relay, shake, address, probe, place).await;
}

/// As `link`, on a QUIC connection.
pub async fn quic_link(relay: &Arc<Relay>, connection: quinn::Connection, address: SocketAddr, place: Place) {
    let scope = relay.work.child();
    let _end = scope.guard();
    let door = Door { relay };
    let limits = Limits::default();
    let shake = Box::pin(link::answer_quic(connection, &door, limits, relay.instance, &relay.timers, &scope));
    // One socket serves both families where the operator listens on [::].
    admitted(relay, shake, canonical(address), None, place).await;
}

async fn admitted(
    relay: &Arc<Relay>,
    shake: impl Future<Output = Result<(Link, Peer), LinkError>>,
    address: SocketAddr,
    probe: Option<Probe>,
    place: Place,
) {
    let opened = tokio::select! {
        opened = shake => opened,
        () = place.shown_out() => return,
    };
    drop(place);
    if let Some(registered) = entered(relay, opened, address, probe) {
        run(relay, registered).await;
    }
}

/// Registers a link that has come up; a failed hand-shake is counted. Not a part of what waits while the link is up, which
/// would keep room for all this.
fn entered(
    relay: &Arc<Relay>,
    opened: Result<(Link, Peer), LinkError>,
    address: SocketAddr,
    probe: Option<Probe>,
) -> Option<Registered> {
    match opened {
        Ok((link, peer)) => {
            return Some(register(relay, &link.mux, link.transport.label(), facts(peer, address, probe)));
        }
        Err(LinkError::Refused { fault, .. }) => {
            count_refusal(&fault);
            tracing::info!(%address, reason = %fault, "link refused");
        }
        Err(LinkError::Failed(fault) | LinkError::Twin(fault)) => {
            if fault.code == Code::TimedOut {
                dropped(DropReason::HandshakeTimeout);
            }
            tracing::debug!(%address, reason = %fault, "link hand-shake failed");
        }
    }
    None
}

/// What the hand-shake asks.
struct Door<'a> {
    relay: &'a Relay,
}

impl Admit for Door<'_> {
    fn srp_key(&self, tenant: &TenantId) -> Option<Secret> {
        self.relay.store.tenant(tenant).map(|t| t.srp_key.clone())
    }

    fn certificate(&self, claim: &Claim, leaf: &CertificateDer<'_>) -> Result<VerifiedCertificate, Fault> {
        admit::certificate(self.relay.store.tenant(&claim.tenant).as_deref(), claim, leaf, clock::now())
    }

    fn accept(&self, peer: &Peer) -> Result<Accept, Refuse> {
        let relay = self.relay;
        if relay.is_draining() {
            let away = relay.farewell();
            return Err(Refuse { fault: away.fault, retry_after_ms: away.return_after_ms });
        }
        let now = clock::now();
        let tenant = relay.store.tenant(&peer.tenant);
        admit::link(tenant.as_deref(), peer.role, peer.certificate.as_ref(), &peer.origins, now).map_err(|fault| {
            // A configuration that is missing comes with the core's next link.
            let soon = fault.code == Code::Forbidden && tenant.as_ref().is_some_and(|t| t.config.is_none());
            Refuse { fault, retry_after_ms: if soon { RETRY_SOON_MS } else { RETRY_LATER_MS } }
        })?;
        if let (Some(certificate), Some(tenant)) = (&peer.certificate, &tenant) {
            let entity = certificate.identity.id;
            let licensed = relay.licences.admits(tenant, now).and_then(|()| match seated(peer.role, Some(entity)) {
                Some(device) if !relay.registry.is_linked(&tenant.id, device) => {
                    relay.licences.seat(tenant, relay.registry.devices(&tenant.id))
                }
                Some(_) | None => Ok(()),
            });
            let licensed = licensed.map_err(Refused::counted);
            licensed.map_err(|fault| Refuse { fault, retry_after_ms: RETRY_LICENCE_MS })?;
        }
        if let Some(certificate) = &peer.certificate {
            let entered = relay.registry.may_enter(
                &peer.tenant,
                certificate.identity.id,
                peer.hello.instance,
                clock::monotonic(),
            );
            entered.map_err(|fight| {
                let text = format!(
                    "another process holds the same certificate and is connected from {}: give each its own, stop one of them",
                    fight.other
                );
                let retry_after_ms = u64::try_from(fight.wait.as_millis()).unwrap_or(RETRY_LATER_MS);
                Refuse { fault: Fault::new(Code::Displaced, text), retry_after_ms }
            })?;
        }
        let core = peer.role == Role::Core;
        Ok(Accept {
            session: peer.session,
            relay: relay.config.name.clone(),
            lookup_key: core.then(|| *relay.store.lookup_key()),
            config: tenant.filter(|_| core).and_then(|t| t.seen),
            time: now.0,
        })
    }
}

/// An open link: registered for as long as this future lives.
struct Registered {
    relay: Arc<Relay>,
    live: Arc<Live<Channel>>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let facts = &self.live.facts;
        self.relay.registry.remove(&facts.tenant, facts.id, clock::monotonic());
        self.relay.lanes.session_ended(facts.id);
        metrics::gauge!("hedgerow_relay_links", "role" => facts.role.as_str()).decrement(1.0);
    }
}

/// What the registry keeps of a peer; the rest is let go of.
fn facts(peer: Peer, address: SocketAddr, probe: Option<Probe>) -> Facts {
    let certificate = peer.certificate;
    Facts {
        id: peer.session,
        tenant: peer.tenant,
        role: peer.role,
        entity: certificate.as_ref().map(|c| c.identity.id),
        not_after: certificate.as_ref().map(|c| c.not_after),
        issuer: certificate.as_ref().map(|c| c.issuer),
        group: certificate.as_ref().and_then(|c| c.identity.group.clone()),
        serial: certificate.map(|c| c.serial),
        origins: peer.origins,
        instance: peer.hello.instance,
        address,
        probe,
        build: peer.hello.build.chars().filter(|c| c.is_ascii_graphic()).take(64).collect(),
        since: clock::now(),
    }
}

/// Puts a link that has come up into the registry.
fn register(relay: &Arc<Relay>, mux: &Channel, transport: &'static str, facts: Facts) -> Registered {
    tracing::info!(tenant = %facts.tenant, role = %facts.role, id = ?facts.entity, session = %facts.id, transport, "link is up");
    metrics::gauge!("hedgerow_relay_links", "role" => facts.role.as_str()).increment(1.0);
    let inserted = relay.registry.insert(facts, mux.clone(), clock::monotonic());
    let registered = Registered { relay: relay.clone(), live: inserted.live };
    let live = &registered.live;
    for old in inserted.displaced {
        displace(relay, &old, live.facts.instance);
    }
    if live.facts.role == Role::Core {
        relay.doubt_other_cores(live);
    }
    // Whoever was revoked, whose seat was taken, and a relay that began to drain, between the hand-shake's questions and
    // this line.
    let stays = relay.may_stay(&live.facts).and_then(|()| relay.has_seat(&live.facts, inserted.newcomer_beside));
    if let Err(fault) = stays {
        count_refusal(&fault);
        live.drain();
        mux.close(fault);
    } else if relay.is_draining() {
        live.drain();
        mux.go_away(&relay.farewell());
    }
    registered
}

/// Serves a link until it ends.
async fn run(relay: &Arc<Relay>, registered: Registered) {
    let live = &registered.live;
    let mux = &live.handle;
    let opening = Arc::new(Semaphore::new(MAX_OPENING));
    let requests = relay.work.child();
    let _end = requests.guard();
    let reason = loop {
        tokio::select! {
            fault = mux.closed() => break fault,
            Some(incoming) = mux.accept() => {
                let Ok(permit) = opening.clone().try_acquire_owned() else {
                    let fault = Fault::new(Code::Limited, "too many streams wait for their answers");
                    count_refusal(&fault);
                    incoming.refuse(fault);
                    continue;
                };
                let (relay, live) = (relay.clone(), live.clone());
                requests.spawn(async move { stream(&relay, &live, incoming, permit).await });
            }
            Some(message) = mux.next_control() => control(relay, live, message),
            Some(datagram) = mux.next_datagram() => {
                if datagrams(relay, live, datagram) {
                    tokio::task::yield_now().await;
                }
            }
            _ = mux.peer_going_away(), if !live.is_draining() => live.drain(),
        }
    };
    tracing::info!(tenant = %live.facts.tenant, role = %live.facts.role, session = %live.facts.id, %reason, "link is down");
    if reason.code == Code::Lost {
        relay.check_lanes(&live.facts);
    }
}

/// Takes a datagram, and those that wait behind it. `true` when there may be more: then it is the turn of the link's
/// other business, and of other links.
fn datagrams(relay: &Relay, live: &Arc<Live<Channel>>, first: Bytes) -> bool {
    let (mut out, now) = (Outbox::default(), clock::monotonic());
    let mut next = Some(first);
    let mut taken = 0;
    while let Some(datagram) = next {
        relay.pairings.take_from_link(&relay.registry, live, datagram, now, &mut out);
        taken += 1;
        next = if taken < MAX_DATAGRAMS { live.handle.next_datagram().now_or_never().flatten() } else { None };
    }
    out.finish();
    taken == MAX_DATAGRAMS
}

/// A link makes room for a newer one. That of the same process has only moved (to the other transport, or after its
/// address changed): lanes that were offered on it may still be joined, and nobody has to come back later.
fn displace(relay: &Arc<Relay>, old: &Arc<Live<Channel>>, by: InstanceId) {
    let moved = old.facts.instance == by;
    let fault = Fault::new(Code::Displaced, "a newer link of the same process or certificate took this one's place");
    if !moved {
        metrics::counter!("hedgerow_relay_displacements_total").increment(1);
    }
    tracing::info!(tenant = %old.facts.tenant, session = %old.facts.id, address = %old.address(), moved, "link displaced");
    let return_after_ms = if moved { 0 } else { RETRY_DISPLACED_MS };
    old.handle.go_away(&GoAway { fault: fault.clone(), return_after_ms, alternatives: vec![] });
    let (old, least, limit) = (old.clone(), relay.timers.lane_wait, relay.timers.drain);
    relay.work.spawn(async move {
        // Its process may have moved because nothing passes any more. Who is at the other end of its streams learns that
        // from us alone, and should while their sessions can still be resumed.
        old.handle.probe().await;
        if moved {
            let _ = tokio::time::timeout(least, old.handle.closed()).await;
        }
        // Its streams may end first.
        let _ = tokio::time::timeout(limit, async {
            while old.handle.open_streams() > 0 && !old.handle.is_closed() {
                tokio::time::sleep(limit / 100).await;
            }
        })
        .await;
        old.handle.close(fault);
    });
}

async fn stream(relay: &Arc<Relay>, live: &Arc<Live<Channel>>, incoming: Incoming, permit: OwnedSemaphorePermit) {
    let header: LinkOpen = match incoming.read_header() {
        Ok(header) => header,
        Err(fault) => return incoming.refuse(fault),
    };
    match header {
        LinkOpen::Through { to, trace, .. } => through(relay, live, incoming, permit, &to, trace).await,
        LinkOpen::Service { service } => service::serve(relay, live, incoming, service).await,
    }
}

async fn through(
    relay: &Arc<Relay>,
    live: &Live<Channel>,
    incoming: Incoming,
    opening: OwnedSemaphorePermit,
    to: &Destination,
    trace: Option<String>,
) {
    let facts = &live.facts;
    let trace = trace.filter(|t| t.len() == 32 && t.bytes().all(|b| b.is_ascii_hexdigit()));
    let may = route::stream(Asker::of(facts), to).and_then(|()| relay.licensed(&to.tenant, Feature::of(to.origin)));
    let opened = match may {
        Ok(()) => relay.open(to, live.vouched(), trace, Some(facts.id)).await,
        Err(fault) => Err(fault),
    };
    drop(opening);
    match opened {
        Ok((target, by)) => {
            metrics::counter!("hedgerow_relay_streams_total", "origin" => to.origin.as_str()).increment(1);
            let meter = relay.fair.meter(&to.tenant, &[facts.holder(), by.facts.holder()]);
            pump::streams((incoming.accept(), &live.stalls), (target, &by.stalls), &meter).await;
        }
        Err(fault) => {
            count_refusal(&fault);
            incoming.refuse(fault);
        }
    }
}

impl<'a> Asker<'a> {
    pub(crate) fn of(facts: &'a Facts) -> Self {
        Self::Link(facts.role, &facts.tenant)
    }
}

fn control(relay: &Arc<Relay>, live: &Arc<Live<Channel>>, message: Control) {
    match message {
        Control::LaneRequest(request) => {
            let id = request.request;
            if let Err(fault) = offer_lane(relay, live, request) {
                count_refusal(&fault);
                // A link that takes no more messages has other troubles; it is counted there.
                let _ = live.handle.send_control(&LaneRefused { request: id, fault }.into());
            }
        }
        Control::Wake(wake) => forward_wake(relay, live, wake),
        Control::LicencePresent(shown) => licence::shown(relay, live, shown),
        Control::PairRequest(request) => {
            if let Err(fault) = tunnel::pair(relay, live, &request) {
                count_refusal(&fault);
                let _ = live.handle.send_control(&PairRefused { request: request.request, fault }.into());
            }
        }
        Control::PairEnd(end) => relay.pairings.ended_by(&relay.registry, live, &end),
        Control::LaneOffer(_)
        | Control::LaneRefused(_)
        | Control::LaneCall(_)
        | Control::PairOffer(_)
        | Control::PairRefused(_)
        | Control::PairCall(_)
        | Control::LicenceVerdict(_) => {
            live.handle.close(Fault::new(Code::Protocol, "this message goes from the relay to its peers only"));
        }
    }
}

fn offer_lane(relay: &Arc<Relay>, live: &Live<Channel>, LaneRequest { request, to }: LaneRequest) -> Result<(), Fault> {
    route::lane(Asker::of(&live.facts), &to)?;
    relay.licensed(&to.tenant, Feature::of(to.origin))?;
    let node = relay.registry.pick(&to, &[live.facts.id]).ok_or_else(|| relay.no_route(&to))?;
    let uncertified = || Fault::new(Code::Forbidden, "lanes join devices and nodes, which have certificates");
    let device_end = end(live).ok_or_else(uncertified)?;
    let node_end = end(&node).ok_or_else(uncertified)?;
    let (entity, instance) = (node_end.entity, node.facts.instance);
    let facts = lane::Facts { tenant: to.tenant, origin: to.origin, device: device_end, node: node_end };
    let offered = relay.lanes.offer(facts, clock::monotonic());
    let (device_ticket, node_ticket) =
        offered.ok_or_else(|| Fault::new(Code::Limited, "too many lanes asked for and not taken"))?;
    let call = LaneCall { ticket: node_ticket, origin: to.origin, vouched: live.vouched() };
    node.handle.send_control(&call.into())?;
    relay.check_alive(node);
    metrics::counter!("hedgerow_relay_lanes_offered_total").increment(1);
    live.handle.send_control(&LaneOffer { request, ticket: device_ticket, node: entity, instance }.into())
}

fn end(live: &Live<Channel>) -> Option<lane::End> {
    let facts = &live.facts;
    Some(lane::End {
        session: facts.id,
        entity: facts.entity?,
        serial: facts.serial.clone()?,
        not_after: facts.not_after?,
        issuer: facts.issuer?,
        address: live.address(),
    })
}

/// To every live session of the tenant that the core names; the message carries nothing but the wish.
fn forward_wake(relay: &Relay, live: &Live<Channel>, wake: Wake) {
    if live.facts.role != Role::Core {
        live.handle.close(Fault::new(Code::Protocol, "only cores wake others"));
        return;
    }
    let meant = |f: &Facts| wake.roles.contains(&f.role) || f.entity.is_some_and(|e| wake.ids.contains(&e));
    let awake = Control::from(Wake { roles: vec![], ids: vec![] });
    for session in relay.registry.select(Some(&live.facts.tenant), |f| f.id != live.facts.id && meant(f)) {
        if session.handle.send_control(&awake).is_err() {
            dropped(DropReason::ControlQueueFull);
        }
    }
}
