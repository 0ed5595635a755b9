//! Between the tunnels and the TUN device: who may send what where, and to whom what comes back belongs.
//!
//! ```text
//!   tunnel --> parse --> the device's own address? --> not another device? --> rules --> MSS --> TUN --> kernel, network
//!   tunnel <-- fits the path? else fragments or "too big" <-- rules <-- whose address? <-- parse <-- TUN
//! ```

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use hedgerow_runtime::telemetry::dropped;
use hedgerow_secure_connect::ip::{self, Summary};
use hedgerow_secure_connect::policy::{self, Denied};
use hedgerow_secure_connect::pool::{Lease, Prefix};
use hedgerow_shared::TunnelId;
use hedgerow_shared::fault::DropReason;
use hedgerow_tunnel::{End, Inside, Packets, Sealed, Sealer, Taken, Tun};
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc;

use super::Tunnel;

/// Answers for devices (ICMP) that wait for the task that sends; more than this at once help nobody.
const REPLIES: usize = 64;
/// Answers a second, in all: a scan through a tunnel costs little.
const REPLIES_A_SECOND: u32 = 200;
/// Reads of the TUN device before other tasks of this worker get their turn.
const TURN: u32 = 8;

/// Reads before what was sealed is sent: a full call's worth of datagrams that programs send one by one.
const READS: usize = 64;

/// A packet of ours for a device.
type Reply = (Arc<Tunnel>, Vec<u8>);

/// See the module. Packets are judged by whoever brings them; the locks are held for a look-up.
pub(crate) struct Router {
    tun: Tun,
    gateway: Lease,
    pools: Vec<Prefix>,
    device_to_device: bool,
    began: Instant,
    by_address: RwLock<HashMap<IpAddr, Arc<Tunnel>>>,
    by_id: RwLock<HashMap<TunnelId, Arc<Tunnel>>>,
    replies: mpsc::Sender<Reply>,
    waiting: Mutex<Option<mpsc::Receiver<Reply>>>,
    budget: Mutex<(u64, u32)>,
}

impl Router {
    pub(crate) fn new(tun: Tun, gateway: Lease, pools: Vec<Prefix>, device_to_device: bool) -> Self {
        let (replies, waiting) = mpsc::channel(REPLIES);
        Self {
            tun,
            gateway,
            pools,
            device_to_device,
            began: Instant::now(),
            by_address: RwLock::default(),
            by_id: RwLock::default(),
            replies,
            waiting: Mutex::new(Some(waiting)),
            budget: Mutex::new((0, 0)),
        }
    }

    pub(crate) fn add(&self, tunnel: &Arc<Tunnel>) {
        self.by_id.write().insert(tunnel.end.tunnel, tunnel.clone());
        let mut by_address = self.by_address.write();
        by_address.insert(tunnel.lease.v4.into(), tunnel.clone());
        if let Some(v6) = tunnel.lease.v6 {
            by_address.insert(v6.into(), tunnel.clone());
        }
    }

    pub(crate) fn remove(&self, tunnel: &Tunnel) {
        self.by_id.write().remove(&tunnel.end.tunnel);
        let mut by_address = self.by_address.write();
        for address in [Some(IpAddr::from(tunnel.lease.v4)), tunnel.lease.v6.map(IpAddr::from)].into_iter().flatten() {
            // The device may have another tunnel with the same address by now.
            if by_address.get(&address).is_some_and(|holder| holder.end.tunnel == tunnel.end.tunnel) {
                by_address.remove(&address);
            }
        }
    }

    fn judge(&self, tunnel: &Tunnel, packet: &Summary, now: Instant) -> Result<(), Denied> {
        policy::check_source(packet, tunnel.lease.v4, tunnel.lease.v6)?;
        policy::check_destination(packet, &self.pools, self.device_to_device)?;
        let time = now.saturating_duration_since(self.began);
        if self.device_to_device && self.pools.iter().any(|pool| pool.contains(packet.destination)) {
            return Ok(());
        }
        let policy = tunnel.policy();
        policy.outbound(packet, &mut tunnel.memory.lock(), time)
    }

    /// Packets from the network, until the TUN device is gone.
    pub(crate) async fn outward(&self) {
        let Some(mut replies) = self.waiting.lock().take() else { return };
        let mut taken = Taken::default();
        let mut sealer = Sealer::default();
        let mut back = Packets::default();
        let mut turns = 0u32;
        loop {
            tokio::select! {
                read = self.tun.read(&mut taken) => {
                    if let Err(error) = read {
                        tracing::error!(%error, "the tunnels' TUN device is gone: no packet reaches a device any more");
                        return;
                    }
                    let now = Instant::now();
                    for _ in 0..READS {
                        for packet in taken.packets() {
                            self.to_device(packet, now, &mut sealer, &mut back).await;
                        }
                        if !self.tun.read_more(&mut taken) {
                            break;
                        }
                    }
                }
                Some((tunnel, reply)) = replies.recv() => {
                    sealer.seal(&tunnel.end, &reply, Instant::now()).await;
                }
            }
            sealer.flush().await;
            self.tun.write(&mut back);
            turns += 1;
            if turns.is_multiple_of(TURN) {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn to_device(&self, packet: &mut [u8], now: Instant, sealer: &mut Sealer, back: &mut Packets) {
        let Ok(summary) = ip::parse(packet) else { return dropped(DropReason::TunnelPacket) };
        let Some(tunnel) = self.by_address.read().get(&summary.destination).cloned() else {
            return dropped(DropReason::TunnelNoDevice);
        };
        let from_device = self.device_to_device && self.pools.iter().any(|pool| pool.contains(summary.source));
        if !from_device && !self.is_gateway(summary.source) {
            let policy = tunnel.policy();
            let time = now.saturating_duration_since(self.began);
            let mut memory = tunnel.memory.lock();
            if policy.inbound(&summary, &mut memory, time).is_err() {
                return dropped(DropReason::TunnelDenied);
            }
            if policy.is_dns_answer(&summary)
                && let Some(answer) = ip::udp_payload(packet, &summary)
            {
                memory.learn(answer, time);
            }
        }
        ip::clamp_mss_of(packet, &summary, tunnel.end.mtu());
        let Sealed::TooLarge(mtu) = sealer.seal(&tunnel.end, packet, now).await else { return };
        let mut fragments = Vec::new();
        let may_cut = ip::fragment_v4(packet, mtu, |fragment| fragments.push(fragment.to_vec()));
        for fragment in fragments {
            sealer.seal(&tunnel.end, &fragment, now).await;
        }
        if !may_cut && self.may_reply(now) {
            let mut answer = Vec::new();
            if ip::too_big(packet, mtu, self.gateway.v4, self.gateway_v6(), &mut answer) {
                back.push(&answer);
            }
        }
    }

    /// What the kernel itself has to say: time exceeded, too big.
    fn is_gateway(&self, address: IpAddr) -> bool {
        address == IpAddr::from(self.gateway.v4) || self.gateway.v6.is_some_and(|v6| address == IpAddr::from(v6))
    }

    fn gateway_v6(&self) -> Ipv6Addr {
        self.gateway.v6.unwrap_or(Ipv6Addr::UNSPECIFIED)
    }

    /// A budget of answers, so that nobody makes us talk more than listen.
    fn may_reply(&self, now: Instant) -> bool {
        let second = now.saturating_duration_since(self.began).as_secs();
        let mut budget = self.budget.lock();
        if budget.0 != second {
            *budget = (second, 0);
        }
        budget.1 += 1;
        budget.1 <= REPLIES_A_SECOND
    }
}

impl Inside for Router {
    fn admit(&self, end: &Arc<End>, packet: &mut [u8], now: Instant) -> bool {
        let Some(tunnel) = self.by_id.read().get(&end.tunnel).cloned() else {
            dropped(DropReason::TunnelDown);
            return false;
        };
        let summary = match ip::parse(packet) {
            Ok(summary) => summary,
            Err(malformed) => {
                dropped(DropReason::TunnelPacket);
                metrics::counter!("hedgerow_node_tunnel_malformed_total", "reason" => malformed.label()).increment(1);
                return false;
            }
        };
        match self.judge(&tunnel, &summary, now) {
            Ok(()) => {
                ip::clamp_mss_of(packet, &summary, end.mtu());
                true
            }
            Err(Denied::SpoofedSource) => {
                dropped(DropReason::TunnelSpoofed);
                false
            }
            Err(denied) => {
                dropped(DropReason::TunnelDenied);
                metrics::counter!("hedgerow_node_tunnel_denied_total", "reason" => denied.label()).increment(1);
                let mut answer = Vec::new();
                if self.may_reply(now)
                    && ip::unreachable(packet, self.gateway.v4, self.gateway_v6(), &mut answer)
                    && self.replies.try_send((tunnel, answer)).is_err()
                {
                    dropped(DropReason::RateLimited);
                }
                false
            }
        }
    }

    fn deliver(&self, packets: &mut Packets) {
        self.tun.write(packets);
    }
}
