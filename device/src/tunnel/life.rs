//! A tunnel's life: granted by a node, paired by the relay, connected, and kept on the link that is up.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hedgerow_runtime::clock;
use hedgerow_runtime::dial::mark;
use hedgerow_runtime::link::Link;
use hedgerow_secure_connect::session::Session;
use hedgerow_secure_connect::session::dtls::{self, Check, Side};
use hedgerow_secure_connect::session::mtu::{self, FLOOR};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::verify::Usage;
use hedgerow_shared::wire::message::{PairRequest, TunnelAsk, TunnelGrant};
use hedgerow_shared::wire::tunnel::Half;
use hedgerow_shared::{EntityId, InstanceId, Role};
use hedgerow_tunnel::{End, Gate, State};
use rustls::pki_types::CertificateDer;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::router::Addresses;
use super::{Inner, Up, home};

/// How long a tunnel may take to come up, once it was granted.
const CONNECT: Duration = Duration::from_secs(25);
/// How long UDP may take before the hand-shake begins over the link.
const MEET: Duration = Duration::from_millis(200);
/// Pair requests without an answer at once.
const MAX_REQUESTS: usize = 16;

impl Inner {
    /// From nothing to a tunnel whose packets pass.
    pub(super) async fn connect(&self) -> Result<Up, Fault> {
        let ask = TunnelAsk { mtu: mtu::MOST };
        let (grant, peer) = self.sessions.tunnel(&self.file.group, &ask).await?;
        let (node, instance) = (peer.node, peer.instance);
        let link = self.uplink.link(CONNECT).await?;
        let half = self.pair(&link, &grant, node, instance).await?;
        let end = End::new(grant.tunnel, node);
        let gate = self.gate(&link);
        gate.attach(&end, half);
        self.scope.spawn(end.clone().run());
        // The node is on its way too: what came before it would be lost, and asked again half a second later.
        let _ = timeout(MEET, end.attached()).await;
        let (check, most) = (self.check(node), grant.mtu.clamp(FLOOR, mtu::MOST));
        let (settings, own) = (self.settings.clone(), self.own()?);
        end.begin(|now| Session::new(&settings, &own, Side::Client, check, most, now));
        {
            let mut status = self.status.lock();
            status.end = Some(end.clone());
            status.grant = Some(grant.clone());
            status.node = Some(node);
        }
        let mut state = end.state();
        let settled = timeout(CONNECT, state.wait_for(|s| *s != State::Connecting)).await;
        let settled = settled.ok().and_then(Result::ok).map(|s| s.clone());
        match settled {
            Some(State::Up { .. }) => {}
            Some(State::Closed(why)) => return Err(why),
            Some(State::Connecting) | None => {
                let fault = Fault::new(Code::TimedOut, "the node did not answer over the relay's tunnel");
                end.close(fault.clone());
                return Err(fault);
            }
        }
        let up = Up { end, grant, node, instance, link, began: Instant::now() };
        if let Err(error) = self.tell_system(&up, true).await {
            let fault = Fault::new(Code::Internal, format!("{error:#}"));
            up.end.close(fault.clone());
            return Err(fault);
        }
        self.router.lead(Some((up.end.clone(), Addresses { v4: up.grant.v4, v6: up.grant.v6 })));
        let mut status = self.status.lock();
        status.since = Some(Instant::now());
        status.fault = None;
        status.times += 1;
        drop(status);
        info!(%node, address = %up.grant.v4, mtu = up.end.mtu(), "tunnel is up");
        metrics::counter!("hedgerow_device_tunnels_total").increment(1);
        Ok(up)
    }

    /// Keeps it up; returns why it ended.
    pub(super) async fn attend(&self, mut up: Up) -> Fault {
        let mut state = up.end.state();
        let mut links = self.uplink.status();
        let mut config = self.config.clone();
        config.mark_unchanged();
        let lifetime = Duration::from_secs(u64::from(up.grant.lifetime_s)) * 9 / 10;
        let mut pair_at: Option<tokio::time::Instant> = None;
        loop {
            if let State::Closed(why) = &*state.borrow_and_update() {
                return why.clone();
            }
            if let Err(error) = self.tun.set_mtu(up.end.mtu()) {
                debug!(%error, "the TUN device's MTU stays");
            }
            let later = tokio::time::Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                changed = state.changed() => if changed.is_err() {
                    return Fault::new(Code::Internal, "the tunnel's task has ended");
                },
                changed = links.changed() => {
                    if changed.is_err() {
                        return Fault::new(Code::Draining, "this process is shutting down");
                    }
                    let other = self.uplink.current().filter(|l| l.accept.session != up.link.accept.session);
                    if other.is_some() {
                        pair_at = Some(tokio::time::Instant::now());
                    }
                }
                () = tokio::time::sleep_until(pair_at.unwrap_or(later)), if pair_at.is_some() => {
                    pair_at = match self.pair_again(&mut up).await {
                        Ok(()) => None,
                        Err(fault) => {
                            debug!(reason = %fault, "no new pairing yet; the old one serves while it can");
                            Some(tokio::time::Instant::now() + clock::jitter(Duration::from_secs(1)))
                        }
                    };
                }
                changed = config.changed() => {
                    if changed.is_ok() && let Err(error) = self.tell_system(&up, false).await {
                        warn!(error = format!("{error:#}"), "the new routes are not in force");
                    }
                }
                () = async {
                    tokio::select! {
                        () = self.moved.notified() => {}
                        () = sleep(home::LOOK), if self.file.home.server.is_some() => {}
                    }
                } => {
                    if self.is_unpaired(&up.end) {
                        pair_at = Some(tokio::time::Instant::now());
                    }
                    if self.is_home().await {
                        let why = Fault::new(Code::Displaced, "there is a better way: this machine is in the network inside");
                        up.end.close(why.clone());
                        return why;
                    }
                }
                () = sleep(lifetime.saturating_sub(up.began.elapsed())) => {
                    let why = Fault::new(Code::Draining, "its time is over: another with new keys takes its place");
                    up.end.close(why.clone());
                    return why;
                }
            }
        }
    }

    /// Whether this machine is where the tunnel leads.
    pub(super) async fn is_home(&self) -> bool {
        home::is_here(&self.file.home, &self.timers).await
    }

    /// Whether the relay has ended the pairing that the tunnel goes by: somebody cut it, and did not revoke the device.
    fn is_unpaired(&self, end: &End) -> bool {
        let last = *self.unpaired.lock();
        last.is_some() && last == end.half()
    }

    /// The same tunnel by way of the link that is up now.
    async fn pair_again(&self, up: &mut Up) -> Result<(), Fault> {
        let link = self.uplink.current().ok_or_else(|| Fault::new(Code::Lost, "no link"))?;
        if link.accept.session == up.link.accept.session && !self.is_unpaired(&up.end) {
            return Ok(());
        }
        let half = self.pair(&link, &up.grant, up.node, up.instance).await?;
        self.gate(&link).attach(&up.end, half);
        info!(relay = link.accept.relay, "the tunnel goes by another link");
        metrics::counter!("hedgerow_device_tunnels_paired_again_total").increment(1);
        up.link = link;
        Ok(())
    }

    /// The gate of a link: the one that there is, or a new one. An older one serves until its end has left it, and ends with its
    /// link.
    fn gate(&self, link: &Link) -> Arc<Gate> {
        let mut gate = self.gate.lock();
        match &*gate {
            Some(open) if open.link().accept.session == link.accept.session && !open.is_closed() => open.clone(),
            _ => {
                let opened = Gate::open(link.clone(), mark::get(), self.router.clone(), &self.scope);
                gate.insert(opened).clone()
            }
        }
    }

    async fn pair(
        &self,
        link: &Link,
        grant: &TunnelGrant,
        node: EntityId,
        instance: InstanceId,
    ) -> Result<Half, Fault> {
        let request = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut requests = self.requests.lock();
            if requests.len() >= MAX_REQUESTS {
                return Err(Fault::new(Code::Limited, "too many pairings are asked for at once"));
            }
            requests.insert(request, sender);
        }
        let asked = link.mux.send_control(&PairRequest { request, tunnel: grant.tunnel, node, instance }.into());
        let answer = async {
            asked?;
            match timeout(Duration::from_secs(10), answer).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) | Err(_) => {
                    Err(Fault::new(Code::TimedOut, "the relay did not answer the request for a tunnel's pairing"))
                }
            }
        }
        .await;
        self.requests.lock().remove(&request);
        answer
    }

    /// The certificate in force, as DTLS shows it.
    fn own(&self) -> Result<dtls::Own, Fault> {
        let own = self.state.own.get();
        Ok(dtls::Own { certificate: own.leaf()?.to_vec(), key: own.key.secret() })
    }

    fn check(&self, node: EntityId) -> Check {
        let (ca, group) = (self.state.ca.clone(), self.file.group.clone());
        Box::new(move |der| {
            let leaf = CertificateDer::from(der);
            let verified = ca.verify(&leaf, Role::Node, Usage::Server, clock::now());
            let verified = verified.map_err(|e| Fault::new(Code::Unauthenticated, e.to_string()))?;
            if verified.identity.id != node || verified.identity.group.as_ref() != Some(&group) {
                return Err(Fault::new(Code::Unauthenticated, "another node than the one that granted the tunnel"));
            }
            Ok(())
        })
    }
}
