//! A simulated device: what a device does for a link and a tunnel, without a TUN device. What lies behind the tunnel's end
//! is a counter.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hedgerow_runtime::clock;
use hedgerow_runtime::dial::RelayTarget;
use hedgerow_runtime::lane::Endpoint;
use hedgerow_runtime::link::{self, Link};
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls::{self, RelayRoots};
use hedgerow_secure_connect::leg::Way;
use hedgerow_secure_connect::session::dtls::{self, Check, Side};
use hedgerow_secure_connect::session::mtu::{self, FLOOR};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::verify::{TenantCa, Usage};
use hedgerow_shared::wire::message::{
    ALPN_SESSION, Control, Destination, LinkOpen, PairRequest, SessionOpen, TUNNEL_HOST, TunnelAsk, TunnelGrant,
};
use hedgerow_shared::wire::tunnel::Half;
use hedgerow_shared::{EntityId, InstanceId, Origin, Role};
use hedgerow_tunnel::{End, Gate, Inside, Packets, Sealed, Sealer, State};
use rustls::pki_types::CertificateDer;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::link::Transport;
use crate::link::place::{Described, RELAY};
use crate::tenant::{Holder, Tenant};

/// How long a link, or a tunnel, may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long UDP may take before the hand-shake begins over the link: as devices do.
const MEET: Duration = Duration::from_millis(200);
/// How long an answer from inside may take, and how often it is asked for: a datagram may be lost.
const ANSWER: Duration = Duration::from_secs(2);
const PINGS: usize = 3;

/// What all devices of this process share.
pub(super) struct World {
    address: String,
    roots: RelayRoots,
    tenant: Tenant,
    ca: TenantCa,
    timers: Timers,
    settings: dtls::Settings,
    scope: Scope,
}

impl World {
    pub(super) fn new(place: &Described) -> anyhow::Result<Self> {
        let tenant = place.tenant()?;
        Ok(Self {
            address: place.address.clone(),
            roots: place.roots()?,
            ca: TenantCa::from_der(&CertificateDer::from(tenant.ca().to_vec()))?,
            tenant,
            timers: Timers::default(),
            settings: dtls::Settings::new()?,
            scope: Scope::new(),
        })
    }
}

/// See the module.
pub(super) struct Device {
    holder: Holder,
    instance: InstanceId,
    link: Link,
    up: Option<Up>,
}

struct Up {
    end: Arc<End>,
    address: Ipv4Addr,
}

/// Echo replies count, nothing else comes in.
struct Counter;

impl Inside for Counter {
    fn admit(&self, _: &Arc<End>, packet: &mut [u8], _: Instant) -> bool {
        matches!(packet, [0x45, rest @ ..] if rest.get(8) == Some(&ICMP) && rest.get(19) == Some(&ECHO_REPLY))
    }

    fn deliver(&self, packets: &mut Packets) {
        drop(packets.drain());
    }
}

impl Device {
    /// Somebody new, with a link.
    pub(super) async fn link(world: &World, by: Transport) -> anyhow::Result<Self> {
        let holder = world.tenant.holder(Role::Device)?;
        let instance = InstanceId::from_random(clock::random());
        let target = RelayTarget::new(vec![world.address.clone()], RELAY, world.roots.clone());
        let credentials = holder.credentials();
        let opened = async {
            match by {
                Transport::Tls => link::connect(&target, &credentials, instance, &world.timers, &world.scope).await,
                Transport::Quic => {
                    link::connect_quic(&target, &credentials, instance, &world.timers, &world.scope).await
                }
            }
        };
        let link = timeout(PATIENCE, opened).await.context("no link in time")?.with_context(|| format!("a {by}"))?;
        Ok(Self { holder, instance, link, up: None })
    }

    /// Its tunnel, from nothing to packets that pass.
    pub(super) async fn tunnel(&mut self, world: &World) -> anyhow::Result<()> {
        let up = timeout(PATIENCE, self.bring_up(world)).await.context("no tunnel in time")??;
        self.up = Some(up);
        Ok(())
    }

    async fn bring_up(&self, world: &World) -> anyhow::Result<Up> {
        let (grant, node, instance) = self.ask(world).await.context("no grant")?;
        let half = self.pair(&grant, node, instance).await.context("no pairing")?;
        let end = End::new(grant.tunnel, node);
        let gate = Gate::open(self.link.clone(), None, Arc::new(Counter), &world.scope);
        gate.attach(&end, half);
        world.scope.spawn(end.clone().run());
        let _ = timeout(MEET, end.attached()).await;
        let own = dtls::Own { certificate: self.holder.leaf.to_vec(), key: self.holder.key.secret() };
        let (check, most) = (check(world, node), grant.mtu.clamp(FLOOR, mtu::MOST));
        end.begin(|now| dtls_session(world, &own, check, most, now));
        let mut state = end.state();
        let settled = state.wait_for(|s| *s != State::Connecting).await?.clone();
        if let State::Closed(why) = settled {
            bail!("the tunnel did not come up: {why}");
        }
        Ok(Up { end, address: grant.v4 })
    }

    /// A session to the node, and in it a tunnel. It ends at once: devices keep it for a while, for connections.
    async fn ask(&self, world: &World) -> anyhow::Result<(TunnelGrant, EntityId, InstanceId)> {
        let to = Destination {
            tenant: world.tenant.id.clone(),
            origin: Origin::Proxy,
            group: Some(Default::default()),
            instance: None,
            node: None,
        };
        let stream = self.link.mux.open(&LinkOpen::Through { to, vouched: None, trace: None }).await?;
        let config = tls::to_tenant(world.ca.clone(), Role::Node, None, Some(&self.holder.own()), &[ALPN_SESSION])?;
        let endpoint = Endpoint::new(world.ca.clone(), self.instance, world.timers, world.scope.clone());
        let session = endpoint.open(stream, config, tls::any_name()).await?;
        let ask = TunnelAsk { mtu: mtu::MOST };
        let header = SessionOpen { host: TUNNEL_HOST.into(), port: 0, trace: None, tunnel: Some(ask) };
        let stream = session.mux.open(&header).await?;
        let mut answer = Vec::new();
        stream.take(TunnelGrant::MAX as u64).read_to_end(&mut answer).await?;
        session.mux.close(Fault::new(Code::Ok, "done"));
        Ok((minicbor::decode(&answer)?, session.peer.identity.id, session.hello.instance))
    }

    async fn pair(&self, grant: &TunnelGrant, node: EntityId, instance: InstanceId) -> anyhow::Result<Half> {
        let request = PairRequest { request: 1, tunnel: grant.tunnel, node, instance };
        self.link.mux.send_control(&request.into())?;
        loop {
            match self.link.mux.next_control().await.context("the link has ended")? {
                Control::PairOffer(offer) => return Ok(offer.half),
                Control::PairRefused(refused) => return Err(refused.fault.into()),
                // Of no tunnel's concern.
                _ => {}
            }
        }
    }

    /// Whether its tunnel is up, and its packets go by UDP.
    pub(super) fn is_up(&self) -> bool {
        let state = self.up.as_ref().map(|up| up.end.state().borrow().clone());
        matches!(state, Some(State::Up { way: Way::Udp, .. }))
    }

    /// One answer from inside.
    pub(super) async fn ping(&self, to: Ipv4Addr, sealer: &mut Sealer) -> anyhow::Result<()> {
        let up = self.up.as_ref().context("no tunnel")?;
        let answered = || up.end.counts.packets_in.load(Ordering::Relaxed);
        let before = answered();
        for _ in 0..PINGS {
            if sealer.seal(&up.end, &echo_request(up.address, to), Instant::now()).await != Sealed::Yes {
                bail!("the tunnel of {} takes no packet: {:?}", up.address, *up.end.state().borrow());
            }
            sealer.flush().await;
            let until = Instant::now() + ANSWER;
            while Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(1)).await;
                if answered() != before {
                    return Ok(());
                }
            }
        }
        bail!("{to} does not answer {}: {:?}", up.address, *up.end.state().borrow())
    }
}

fn dtls_session(
    world: &World,
    own: &dtls::Own,
    check: Check,
    most: u16,
    now: Instant,
) -> hedgerow_secure_connect::session::Session {
    hedgerow_secure_connect::session::Session::new(&world.settings, own, Side::Client, check, most, now)
}

/// As a device checks its node's certificate.
fn check(world: &World, node: EntityId) -> Check {
    let ca = world.ca.clone();
    Box::new(move |der| {
        let verified = ca.verify(&CertificateDer::from(der), Role::Node, Usage::Server, clock::now());
        let verified = verified.map_err(|e| Fault::new(Code::Unauthenticated, e.to_string()))?;
        match verified.identity.id == node {
            true => Ok(()),
            false => Err(Fault::new(Code::Unauthenticated, "another node than the one that granted the tunnel")),
        }
    })
}

const ICMP: u8 = 1;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

/// An IPv4 packet with an ICMP echo request (RFC 792).
fn echo_request(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    const HEADER: usize = 20;
    let mut packet = vec![0; HEADER + 16];
    let length = packet.len() as u16;
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[8] = 64;
    packet[9] = ICMP;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    packet[HEADER] = ECHO_REQUEST;
    packet[HEADER + 4..HEADER + 6].copy_from_slice(&from.octets()[2..]);
    for (range, at) in [(0..HEADER, 10), (HEADER..packet.len(), HEADER + 2)] {
        let sum = checksum(&packet[range]);
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_request_is_one_that_everybody_takes() {
        let packet = echo_request(Ipv4Addr::new(100, 96, 200, 7), Ipv4Addr::new(10, 71, 3, 2));
        // With its checksum in place the sum of a whole is zero.
        assert_eq!([checksum(&packet[..20]), checksum(&packet[20..])], [0, 0]);
        let summary = hedgerow_secure_connect::ip::parse(&packet).expect("a packet");
        assert_eq!(summary.source, Ipv4Addr::new(100, 96, 200, 7));
    }
}
