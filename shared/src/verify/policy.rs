//! Access rules (what a node may reach) and routes (what a device sends where), as signed configuration carries them.
//! `proxy::acl` evaluates them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::GroupName;

/// Why a rule's text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is not valid: {why}")]
pub struct PolicyError {
    what: &'static str,
    text: String,
    why: &'static str,
}

/// A rule's verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Let it pass.
    Allow,
    /// Refuse it.
    Deny,
}

/// What a rule or route applies to. Text forms: `*`, `intranet.example`, `*.intranet.example` (the domain itself
/// and all below it), `10.1.0.0/16`, `2001:db8::/32`, `10.1.2.3`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TargetPattern {
    /// Everything.
    Any,
    /// Exactly this name; lower case, no trailing dot.
    Domain(String),
    /// This name and every name below it; stored without the leading `*.`.
    Suffix(String),
    /// Addresses sharing the first `prefix` bits with `network`; host bits of `network` are zero.
    Network {
        /// The first address.
        network: IpAddr,
        /// Number of leading bits that count.
        prefix: u8,
    },
}

/// Normalises a host name for comparison: ASCII lower case, one trailing dot removed. `None` when it is not a host
/// name: empty, over 253 bytes, an empty or over-long label, a character outside letters, digits, `-`, `_`.
/// International names come in their ASCII (`xn--`) form.
#[must_use]
pub fn normal_name(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label_ok =
        |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let ok = !name.is_empty() && name.len() <= 253 && name.split('.').all(label_ok);
    ok.then(|| name.to_ascii_lowercase())
}

impl FromStr for TargetPattern {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let bad = |why| PolicyError { what: "target", text: text.chars().take(80).collect(), why };
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            return Ok(Self::Network { network: address, prefix });
        }
        if let Some((address, prefix)) = text.split_once('/') {
            let network: IpAddr = address.parse().map_err(|_| bad("before '/' stands an IPv4 or IPv6 address"))?;
            let prefix: u8 = prefix.parse().map_err(|_| bad("after '/' stands a number of bits"))?;
            if prefix > if network.is_ipv4() { 32 } else { 128 } {
                return Err(bad("the prefix is longer than the address"));
            }
            if masked(network, prefix) != network {
                return Err(bad("bits are set behind the prefix"));
            }
            return Ok(Self::Network { network, prefix });
        }
        // What a resolver would read as an IPv4 address in another notation is not a name.
        let last = text.trim_end_matches('.').rsplit('.').next().unwrap_or("");
        if !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad("a name does not end in a number; write addresses in full"));
        }
        match text.strip_prefix("*.") {
            Some(suffix) => normal_name(suffix).map(Self::Suffix),
            None => normal_name(text).map(Self::Domain),
        }
        .ok_or_else(|| bad("expected '*', a host name, '*.domain', an address or an address range"))
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(a) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((u32::from(a) & mask).into())
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((u128::from(a) & mask).into())
        }
    }
}

impl TargetPattern {
    /// Whether the pattern covers this address. IPv4-mapped IPv6 addresses are compared as IPv4.
    #[must_use]
    pub fn covers_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        match self {
            Self::Any => true,
            Self::Domain(_) | Self::Suffix(_) => false,
            Self::Network { network, prefix } => {
                network.is_ipv4() == address.is_ipv4() && masked(address, *prefix) == *network
            }
        }
    }

    /// Whether the pattern covers this name, which must be in the form of `normal_name`.
    #[must_use]
    pub fn covers_name(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Domain(domain) => domain == name,
            Self::Suffix(suffix) => {
                name.strip_suffix(suffix.as_str()).is_some_and(|head| head.is_empty() || head.ends_with('.'))
            }
            Self::Network { .. } => false,
        }
    }
}

impl fmt::Display for TargetPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Domain(domain) => f.write_str(domain),
            Self::Suffix(suffix) => write!(f, "*.{suffix}"),
            Self::Network { network, prefix } => {
                let full = if network.is_ipv4() { 32 } else { 128 };
                if *prefix == full { write!(f, "{network}") } else { write!(f, "{network}/{prefix}") }
            }
        }
    }
}

/// Ports: `*`, or numbers and ranges, `80,443,8000-8999`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortSet(Vec<(u16, u16)>);

impl Default for PortSet {
    fn default() -> Self {
        Self(vec![(1, u16::MAX)])
    }
}

impl PortSet {
    /// Whether `port` is in the set.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|(from, to)| (*from..=*to).contains(&port))
    }
}

impl FromStr for PortSet {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let bad = |why| PolicyError { what: "ports", text: text.chars().take(80).collect(), why };
        if text.trim() == "*" {
            return Ok(Self::default());
        }
        let mut ranges = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let from: u16 =
                from.trim().parse().map_err(|_| bad("expected port numbers such as 80,443,8000-8999, or *"))?;
            let to: u16 = to.trim().parse().map_err(|_| bad("expected port numbers such as 80,443,8000-8999, or *"))?;
            if from == 0 || from > to {
                return Err(bad("a range goes from a smaller to a larger port, starting at 1"));
            }
            ranges.push((from, to));
        }
        Ok(Self(ranges))
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::default() {
            return f.write_str("*");
        }
        for (i, (from, to)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if from == to { write!(f, "{comma}{from}")? } else { write!(f, "{comma}{from}-{to}")? }
        }
        Ok(())
    }
}

/// One access rule of a node. The first rule that covers a target decides; without one it is denied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Allow or deny.
    pub action: Action,
    /// To what.
    pub target: TargetPattern,
    /// At which ports.
    #[serde(default)]
    pub ports: PortSet,
    /// Only nodes of this server group; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
}

/// Where a device sends traffic. Text forms: `direct`, `deny`, `group:NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Via {
    /// From the device itself, past the relay.
    Direct,
    /// Nowhere.
    Deny,
    /// Through a node of this server group.
    Group(GroupName),
}

impl FromStr for Via {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let bad = |why| PolicyError { what: "route", text: text.chars().take(80).collect(), why };
        match (text, text.strip_prefix("group:")) {
            ("direct", _) => Ok(Self::Direct),
            ("deny", _) => Ok(Self::Deny),
            (_, Some(group)) => Ok(Self::Group(group.parse().map_err(|_| bad("the group name is not valid"))?)),
            _ => Err(bad("expected direct, deny or group:NAME")),
        }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::Deny => f.write_str("deny"),
            Self::Group(group) => write!(f, "group:{group}"),
        }
    }
}

/// One route of a device. The first route that covers a target decides; without one `DeviceConfig::default_route`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// What it applies to.
    pub target: TargetPattern,
    /// At which ports.
    #[serde(default)]
    pub ports: PortSet,
    /// Where to.
    pub via: Via,
}

macro_rules! text_serde {
    ($($name:ident),+) => {$(
        impl TryFrom<String> for $name {
            type Error = PolicyError;
            fn try_from(text: String) -> Result<Self, PolicyError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(v: $name) -> String {
                v.to_string()
            }
        }
    )+};
}
text_serde!(TargetPattern, PortSet, Via);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_round_trip_through_text() {
        for text in ["*", "intranet.example", "*.intranet.example", "10.1.0.0/16", "10.1.2.3", "2001:db8::/32", "::1"] {
            assert_eq!(text.parse::<TargetPattern>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "*.",
            "10.1.2.3/8",
            "10.0.0.0/33",
            "::/129",
            "a..b",
            "a b",
            "*.*.x",
            "-\u{e9}",
            "1.2.3",
            "0x7f.1",
            "2130706433",
            "1.2.3.4.",
        ] {
            let parsed = bad.parse::<TargetPattern>();
            assert!(parsed.is_err() || bad == "0x7f.1" && parsed.is_err(), "{bad:?} parsed as {parsed:?}");
        }
    }

    #[test]
    fn a_suffix_covers_the_domain_and_below_but_not_a_longer_word() {
        let p: TargetPattern = "*.corp.example".parse().unwrap();
        assert!(p.covers_name("corp.example") && p.covers_name("a.b.corp.example"));
        assert!(!p.covers_name("evilcorp.example") && !p.covers_name("example"));
    }

    #[test]
    fn mapped_addresses_are_compared_as_ipv4() {
        let p: TargetPattern = "127.0.0.0/8".parse().unwrap();
        assert!(p.covers_address("::ffff:127.0.0.1".parse().unwrap()));
        assert!(!p.covers_address("::1".parse().unwrap()));
        assert!("0.0.0.0/0".parse::<TargetPattern>().unwrap().covers_address("8.8.8.8".parse().unwrap()));
        assert!("::/0".parse::<TargetPattern>().unwrap().covers_address("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn port_sets() {
        let set: PortSet = "80, 443,8000-8999".parse().unwrap();
        assert!(set.contains(80) && set.contains(8500) && !set.contains(81) && !set.contains(0));
        assert_eq!(set.to_string(), "80,443,8000-8999");
        for bad in ["", "0", "9-8", "65536", "http", "80,,443"] {
            assert!(bad.parse::<PortSet>().is_err(), "{bad}");
        }
    }
}
