//! Addresses that no general rule opens, and addresses inside addresses: for every place that holds traffic against rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::policy::TargetPattern;

/// Whether an address in its canonical form shares the first `prefix` bits with `network`: what
/// `TargetPattern::covers_address` tells, without what that does for addresses in other forms.
#[must_use]
pub fn shares(network: IpAddr, prefix: u8, address: IpAddr) -> bool {
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

/// An address in its canonical form, and the IPv4 address inside it when a gateway on the way would unpack one.
#[derive(Debug, Clone, Copy)]
pub struct Faces {
    /// The address.
    pub itself: IpAddr,
    /// The one inside.
    pub embedded: Option<IpAddr>,
}

impl Faces {
    /// Both faces of an address in its canonical form.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        let embedded = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => embedded_ipv4(v6).map(IpAddr::V4),
        };
        Self { itself: address, embedded }
    }

    /// Whether it is true of one of them.
    pub fn any(&self, test: impl Fn(IpAddr) -> bool) -> bool {
        test(self.itself) || self.embedded.is_some_and(test)
    }

    /// The range that one of them lies in.
    #[must_use]
    pub fn special(&self) -> Option<&'static Special> {
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
#[derive(Debug)]
pub struct Special {
    network: IpAddr,
    prefix: u8,
    /// In words: "loopback".
    pub what: &'static str,
}

impl Special {
    const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8, what: &'static str) -> Self {
        Self { network: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix, what }
    }

    const fn v6(segments: [u16; 8], prefix: u8, what: &'static str) -> Self {
        let [a, b, c, d, e, f, g, h] = segments;
        Self { network: IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), prefix, what }
    }

    fn contains(&self, address: IpAddr) -> bool {
        shares(self.network, self.prefix, address)
    }

    /// Whether a rule's target lies wholly inside.
    #[must_use]
    pub fn is_named_by(&self, pattern: &TargetPattern) -> bool {
        match pattern {
            TargetPattern::Network { network, prefix } => {
                *prefix >= self.prefix && self.contains(network.to_canonical())
            }
            TargetPattern::Any | TargetPattern::Domain(_) | TargetPattern::Suffix(_) => false,
        }
    }
}

const METADATA: &str = "a cloud metadata service";

/// Narrow ranges first: a rule for all of link-local does not name the metadata service inside it.
const SPECIAL: &[Special] = &[
    Special::v4(169, 254, 169, 254, 32, METADATA),
    Special::v4(169, 254, 170, 2, 32, METADATA),
    Special::v4(169, 254, 170, 23, 32, METADATA),
    Special::v4(100, 100, 100, 200, 32, METADATA),
    Special::v4(192, 0, 0, 192, 32, METADATA),
    Special::v4(168, 63, 129, 16, 32, METADATA),
    Special::v4(255, 255, 255, 255, 32, "the broadcast address"),
    Special::v4(0, 0, 0, 0, 8, "unspecified"),
    Special::v4(127, 0, 0, 0, 8, "loopback"),
    Special::v4(169, 254, 0, 0, 16, "link-local"),
    Special::v4(224, 0, 0, 0, 4, "multicast"),
    Special::v4(240, 0, 0, 0, 4, "reserved"),
    Special::v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128, METADATA),
    Special::v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23], 128, METADATA),
    Special::v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128, METADATA),
    Special::v6([0, 0, 0, 0, 0, 0, 0, 0], 128, "unspecified"),
    Special::v6([0, 0, 0, 0, 0, 0, 0, 1], 128, "loopback"),
    Special::v6([0, 0, 0, 0, 0, 0, 0, 0], 96, "an IPv4-compatible address"),
    Special::v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, "a local NAT64 address"),
    Special::v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64, "a discard address"),
    Special::v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, "link-local"),
    Special::v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, "site-local"),
    Special::v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, "multicast"),
];

/// Whether a rule's target lies wholly inside a special range.
#[must_use]
pub fn names_special(pattern: &TargetPattern) -> bool {
    SPECIAL.iter().any(|range| range.is_named_by(pattern))
}

fn special(address: IpAddr) -> Option<&'static Special> {
    SPECIAL.iter().find(|range| range.contains(address))
}
