//! Addresses that no general rule opens, as in `proxy::acl`: a test compares the two lists.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether an address in its canonical form shares the first `prefix` bits with `network`: what `covers_address` tells,
/// without what that does for addresses in other forms.
pub(super) fn shares(network: IpAddr, prefix: u8, address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let differ = u32::from(network) ^ u32::from(address);
            differ.checked_shr(32 - u32::from(prefix.min(32))).unwrap_or(0) == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let differ = u128::from(network) ^ u128::from(address);
            differ.checked_shr(128 - u32::from(prefix.min(128))).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// An address, and the IPv4 address inside it when a gateway on the way would unpack one.
pub(super) struct Faces {
    pub(super) itself: IpAddr,
    pub(super) embedded: Option<IpAddr>,
}

impl Faces {
    pub(super) fn of(address: IpAddr) -> Self {
        let embedded = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => embedded_ipv4(v6).map(IpAddr::V4),
        };
        Self { itself: address, embedded }
    }

    pub(super) fn any(&self, test: impl Fn(IpAddr) -> bool) -> bool {
        test(self.itself) || self.embedded.is_some_and(test)
    }

    pub(super) fn special(&self) -> Option<&'static Special> {
        special(self.itself).or_else(|| self.embedded.and_then(special))
    }
}

/// IPv4 inside IPv6: compatible (::a.b.c.d), 6to4 (2002::/16), NAT64 (64:ff9b::/96), Teredo (2001::/32), ISATAP.
fn embedded_ipv4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let from = |high: u16, low: u16| Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match address.segments() {
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => from(high, low),
        [0x2002, high, low, ..] => from(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => from(high, low),
        [0x2001, 0, _, _, _, _, high, low] => from(!high, !low),
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => from(high, low),
        _ => None,
    }
}

/// A range of addresses that no general rule opens.
pub(super) struct Special {
    network: IpAddr,
    prefix: u8,
}

impl Special {
    const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Self {
        Self { network: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
    }

    const fn v6(segments: [u16; 8], prefix: u8) -> Self {
        let [a, b, c, d, e, f, g, h] = segments;
        Self { network: IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), prefix }
    }

    fn contains(&self, address: IpAddr) -> bool {
        shares(self.network, self.prefix, address)
    }

    /// Whether a range of addresses lies wholly inside.
    pub(super) fn is_named_by(&self, network: IpAddr, prefix: u8) -> bool {
        prefix >= self.prefix && self.contains(network.to_canonical())
    }
}

/// Narrow ranges first: a rule for all of link-local does not name the metadata service inside it.
const SPECIAL: &[Special] = &[
    // Metadata services of clouds.
    Special::v4(169, 254, 169, 254, 32),
    Special::v4(169, 254, 170, 2, 32),
    Special::v4(169, 254, 170, 23, 32),
    Special::v4(100, 100, 100, 200, 32),
    Special::v4(192, 0, 0, 192, 32),
    Special::v4(168, 63, 129, 16, 32),
    // Broadcast, unspecified, loopback, link-local, multicast, reserved.
    Special::v4(255, 255, 255, 255, 32),
    Special::v4(0, 0, 0, 0, 8),
    Special::v4(127, 0, 0, 0, 8),
    Special::v4(169, 254, 0, 0, 16),
    Special::v4(224, 0, 0, 0, 4),
    Special::v4(240, 0, 0, 0, 4),
    // Metadata services of clouds.
    Special::v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128),
    Special::v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23], 128),
    Special::v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
    // Unspecified, loopback, IPv4-compatible, local NAT64, discard, link-local, site-local, multicast.
    Special::v6([0, 0, 0, 0, 0, 0, 0, 0], 128),
    Special::v6([0, 0, 0, 0, 0, 0, 0, 1], 128),
    Special::v6([0, 0, 0, 0, 0, 0, 0, 0], 96),
    Special::v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
    Special::v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64),
    Special::v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    Special::v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10),
    Special::v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

fn special(address: IpAddr) -> Option<&'static Special> {
    SPECIAL.iter().find(|range| range.contains(address))
}
