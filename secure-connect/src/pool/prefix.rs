//! A range of addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Why the text of a prefix was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("prefix {text:?} is not valid: {why}")]
pub struct PrefixError {
    text: String,
    why: &'static str,
}

/// Addresses that share their first `bits` bits. Text form: `10.64.0.0/16`, `fd00:1234::/64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    network: IpAddr,
    bits: u8,
}

impl Prefix {
    /// The prefix of so many bits that begins at `network`; none when it has fewer bits, or when bits are set behind
    /// the prefix.
    #[must_use]
    pub fn new(network: IpAddr, bits: u8) -> Option<Self> {
        let prefix = Self { network, bits };
        (bits <= prefix.width() && prefix.host_bits(network) == Some(0)).then_some(prefix)
    }

    /// The first address.
    #[must_use]
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// How many leading bits count.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Whether it covers an address. IPv4 and IPv6 never cover each other.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.place_of(address).is_some()
    }

    /// The highest place: one less than the number of addresses.
    pub(super) fn last(&self) -> u128 {
        let free = self.width().saturating_sub(self.bits);
        u128::MAX.checked_shr(128 - u32::from(free)).unwrap_or(0)
    }

    /// The address at a place, counted from 0.
    pub(super) fn at(&self, place: u128) -> Option<IpAddr> {
        if place > self.last() {
            return None;
        }
        match self.network {
            IpAddr::V4(network) => Some(Ipv4Addr::from(u32::from(network) | u32::try_from(place).ok()?).into()),
            IpAddr::V6(network) => Some(Ipv6Addr::from(u128::from(network) | place).into()),
        }
    }

    /// The place of an address, when it is covered.
    pub(super) fn place_of(&self, address: IpAddr) -> Option<u128> {
        let place = self.host_bits(address)?;
        (self.at(place)? == address).then_some(place)
    }

    fn host_bits(&self, address: IpAddr) -> Option<u128> {
        match (self.network, address) {
            (IpAddr::V4(_), IpAddr::V4(address)) => Some(u128::from(u32::from(address)) & self.last()),
            (IpAddr::V6(_), IpAddr::V6(address)) => Some(u128::from(address) & self.last()),
            _ => None,
        }
    }

    fn width(&self) -> u8 {
        if self.network.is_ipv4() { 32 } else { 128 }
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let bad = |why| PrefixError { text: text.chars().take(80).collect(), why };
        let (network, bits) = text.split_once('/').ok_or_else(|| bad("expected ADDRESS/BITS"))?;
        let network: IpAddr = network.parse().map_err(|_| bad("before '/' stands an IPv4 or IPv6 address"))?;
        let bits: u8 = bits.parse().map_err(|_| bad("after '/' stands a number of bits"))?;
        if bits > if network.is_ipv4() { 32 } else { 128 } {
            return Err(bad("the prefix is longer than the address"));
        }
        Self::new(network, bits).ok_or_else(|| bad("bits are set behind the prefix"))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.bits)
    }
}
