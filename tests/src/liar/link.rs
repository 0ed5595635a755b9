//! Links: admits whoever comes, and serves what they ask.

use std::sync::Arc;

use hedgerow_runtime::clock::{self, random};
use hedgerow_runtime::link::{self, Admit, Channel, Incoming, Link, Peer, Transport};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::VerifiedCertificate;
use hedgerow_shared::verify::certificate::read_leaf;
use hedgerow_shared::wire::message::{Accept, Claim, Control, Limits, LinkOpen, Refuse, ServiceReply, Vouched, Wake};
use hedgerow_shared::{InstanceId, Origin, Role, TenantId};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::server::TlsStream;

use super::conduit::{Conn, What, carry};
use super::notes::Recorded;
use super::{Answer, Known, Shared, door, lanes, lock, middle};

impl Admit for Shared {
    fn srp_key(&self, _: &TenantId) -> Option<Secret> {
        if lock(&self.lies).srp_key_unknown {
            return Some(Secret::new(random::<32>().to_vec()));
        }
        lock(&self.srp_key).clone()
    }

    fn certificate(&self, _: &Claim, leaf: &CertificateDer<'_>) -> Result<VerifiedCertificate, Fault> {
        read_leaf(leaf).map_err(|e| Fault::new(Code::Unauthenticated, e.to_string()))
    }

    fn accept(&self, peer: &Peer) -> Result<Accept, Refuse> {
        let relay = lock(&self.lies).relay_name.clone().unwrap_or_else(|| self.name.clone());
        let lookup_key = (peer.role == Role::Core).then_some([7; 32]);
        Ok(Accept { session: peer.session, relay, lookup_key, config: None, time: clock::now().0 })
    }
}

/// One link, until it ends.
pub(super) async fn serve<IO>(shared: Arc<Shared>, tls: TlsStream<IO>, address: String)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let instance = InstanceId::from_random(random());
    let (limits, timers) = (Limits::default(), Timers::default());
    let opened = link::answer(tls, address, &*shared, limits, instance, &timers, &shared.scope).await;
    if let Ok((link, peer)) = opened {
        serve_opened(shared, link, peer).await;
    }
}

/// The same, once it is open.
pub(super) async fn serve_opened(shared: Arc<Shared>, link: Link, peer: Peer) {
    Shared::count(&shared.counts.links);
    let entity = peer.certificate.as_ref().map(|c| c.identity.id);
    let known = Known { role: peer.role, entity, instance: peer.hello.instance, link };
    lock(&shared.links).push(known.clone());
    let mux = known.link.mux.clone();
    loop {
        tokio::select! {
            incoming = mux.accept() => {
                let Some(incoming) = incoming else { break };
                let (shared, known) = (shared.clone(), known.clone());
                shared.scope.clone().spawn(async move {
                    // A stream whose other end went away is over.
                    let _ = stream(&shared, &known, incoming).await;
                });
            }
            control = mux.next_control() => match control {
                None => break,
                Some(Control::LaneRequest(request)) => lanes::offer(&shared, &known, &request),
                Some(Control::Wake(wake)) => pass_on(&shared, &wake),
                Some(_) => {}
            }
        }
    }
}

fn pass_on(shared: &Shared, wake: &Wake) {
    if lock(&shared.lies).wakes_withheld {
        return;
    }
    let meant = |k: &Known| wake.roles.contains(&k.role) || k.entity.is_some_and(|e| wake.ids.contains(&e));
    for known in shared.live_links().iter().filter(|k| meant(k)) {
        // A link that takes no more has other troubles.
        let _ = known.link.mux.send_control(&Wake { roles: vec![], ids: vec![] }.into());
    }
}

async fn stream(shared: &Arc<Shared>, from: &Known, incoming: Incoming) -> Result<(), Fault> {
    let (to, vouched) = match incoming.read_header()? {
        LinkOpen::Service { .. } => return service(incoming).await,
        LinkOpen::Through { to, .. } => {
            let vouched = Vouched { role: Some(from.role), id: from.entity, address: from.link.address.clone() };
            (to, vouched)
        }
    };
    if to.origin == Origin::Core {
        match door::far_end(shared, to, vouched).await {
            Ok(far) => door::to_core(shared, Box::new(incoming.accept()), far).await,
            Err(fault) => incoming.refuse(fault),
        }
        return Ok(());
    }
    let (answer, called, vouched, gone, ignored) = {
        let lies = lock(&shared.lies);
        let vouched = lies.vouched.clone().unwrap_or(vouched);
        (lies.node.clone(), lies.called, vouched, lies.gone_said && to.instance.is_some(), lies.requests_ignored)
    };
    if gone {
        incoming.refuse(lanes::gone());
        return Ok(());
    }
    if ignored {
        from.link.mux.closed().await;
        return Ok(());
    }
    if let Answer::Imposter(imposter) = answer {
        middle::answer(shared, &imposter, Box::new(incoming.accept())).await;
        return Ok(());
    }
    if let Answer::Replay(bytes) = answer {
        middle::replay(bytes, Box::new(incoming.accept())).await;
        return Ok(());
    }
    let nodes = shared.live_links().into_iter().filter(|k| k.role == Role::Node);
    let Some(node) = nodes.filter(|k| k.is_meant(called, &to)).last() else {
        incoming.refuse(Fault::new(Code::NoRoute, "no node is linked to this relay"));
        return Ok(());
    };
    let header = LinkOpen::Through { to, vouched: Some(vouched), trace: None };
    let far = open(&node.link.mux, &header).await?;
    let near: Conn = match from.link.transport {
        Transport::Tls => Box::new(incoming.accept()),
        // What the liar reads of TLS is opened from the record of the socket.
        Transport::Quic => Box::new(Recorded::new(incoming.accept(), shared.notes.plain("a stream of a QUIC link"))),
    };
    match answer {
        Answer::Middle(imposter) => middle::between(shared, &imposter, near, Box::new(far)).await,
        _ => carry(shared.clone(), What::LinkStream, near, Box::new(far)).await,
    }
    Ok(())
}

async fn open(mux: &Channel, header: &LinkOpen) -> Result<link::Stream, Fault> {
    mux.open(header).await
}

/// The relay's own services: everything a core asks is done, it says.
async fn service(incoming: Incoming) -> Result<(), Fault> {
    let mut stream = incoming.accept();
    let mut request = Vec::new();
    let lost = |e: std::io::Error| Fault::new(Code::Lost, e.to_string());
    stream.read_to_end(&mut request).await.map_err(lost)?;
    let reply = ServiceReply::new(Fault::new(Code::Ok, ""));
    stream.write_all(&minicbor::to_vec(reply).unwrap_or_default()).await.map_err(lost)?;
    stream.shutdown().await.map_err(lost)
}
