//! Between the TUN device and the tunnel: only packets of this device's own address leave, and only such for it arrive.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use hedgerow_runtime::telemetry::dropped;
use hedgerow_secure_connect::ip;
use hedgerow_shared::fault::DropReason;
use hedgerow_tunnel::{End, Inside, Packets, Sealed, Sealer, Taken, Tun};
use parking_lot::RwLock;
use tokio::sync::Notify;

/// Reads of the TUN device before other tasks of this worker get their turn.
const TURN: u32 = 8;

/// Reads before what was sealed is sent: a full call's worth of datagrams that programs send one by one.
const READS: usize = 64;

/// The device's addresses inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Option<Ipv6Addr>,
}

impl Addresses {
    fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4 == self.v4,
            IpAddr::V6(v6) => Some(v6) == self.v6,
        }
    }
}

/// See the module.
pub(super) struct Router {
    tun: Tun,
    up: RwLock<Option<(Arc<End>, Addresses)>>,
    /// A packet came that no tunnel takes.
    pub(super) wanted: Notify,
}

impl Router {
    pub(super) fn new(tun: Tun) -> Self {
        Self { tun, up: RwLock::default(), wanted: Notify::new() }
    }

    /// Packets go by this tunnel from now on; by none.
    pub(super) fn lead(&self, up: Option<(Arc<End>, Addresses)>) {
        *self.up.write() = up;
    }

    /// Packets of applications, until the TUN device is gone.
    pub(super) async fn outward(&self) {
        let mut taken = Taken::default();
        let mut sealer = Sealer::default();
        let mut back = Packets::default();
        let mut turns = 0u32;
        loop {
            if let Err(error) = self.tun.read(&mut taken).await {
                tracing::error!(%error, "the tunnel's TUN device is gone: no packet leaves any more");
                return;
            }
            let up = self.up.read().clone();
            let now = Instant::now();
            for _ in 0..READS {
                for packet in taken.packets() {
                    match &up {
                        Some((end, addresses)) => {
                            outward(end, *addresses, packet, now, &mut sealer, &mut back).await;
                        }
                        None => {
                            dropped(DropReason::TunnelDown);
                            self.wanted.notify_one();
                        }
                    }
                }
                if !self.tun.read_more(&mut taken) {
                    break;
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
}

async fn outward(
    end: &End,
    addresses: Addresses,
    packet: &mut [u8],
    now: Instant,
    sealer: &mut Sealer,
    back: &mut Packets,
) {
    // Multicast of the system's own (mDNS, router solicitations) among them: nothing for the other end.
    let Ok(summary) = ip::parse(packet) else { return dropped(DropReason::TunnelPacket) };
    if !addresses.has(summary.source) {
        return dropped(DropReason::TunnelSpoofed);
    }
    ip::clamp_mss_of(packet, &summary, end.mtu());
    let Sealed::TooLarge(mtu) = sealer.seal(end, packet, now).await else { return };
    let mut fragments = Vec::new();
    let may_cut = ip::fragment_v4(packet, mtu, |fragment| fragments.push(fragment.to_vec()));
    for fragment in fragments {
        sealer.seal(end, &fragment, now).await;
    }
    if !may_cut {
        // In the destination's name: no router of ours stands in between.
        let (v4, v6) = match summary.destination {
            IpAddr::V4(v4) => (v4, Ipv6Addr::UNSPECIFIED),
            IpAddr::V6(v6) => (Ipv4Addr::UNSPECIFIED, v6),
        };
        let mut answer = Vec::new();
        if ip::too_big(packet, mtu, v4, v6, &mut answer) {
            back.push(&answer);
        }
    }
}

impl Inside for Router {
    fn admit(&self, end: &Arc<End>, packet: &mut [u8], _: Instant) -> bool {
        let Ok(summary) = ip::parse(packet) else {
            dropped(DropReason::TunnelPacket);
            return false;
        };
        let ours = self
            .up
            .read()
            .as_ref()
            .is_some_and(|(up, addresses)| up.tunnel == end.tunnel && addresses.has(summary.destination));
        if !ours {
            dropped(DropReason::TunnelSpoofed);
            return false;
        }
        ip::clamp_mss_of(packet, &summary, end.mtu());
        true
    }

    fn deliver(&self, packets: &mut Packets) {
        self.tun.write(packets);
    }
}
