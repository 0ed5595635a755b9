//! What a client asks to reach: a host and a port, in one spelling.
//!
//! Resolvers read many notations as an address (`127.1`, `0x7f.1`, `2130706433`); access rules must not be fooled by
//! them. Here an address has one form and everything else that could be taken for one is refused.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use hedgerow_shared::verify::policy::normal_name;

/// Why a target was refused before any rule was looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Neither a host name nor an address.
    #[error("{0:?} is neither a host name nor an address")]
    NotAHost(String),
    /// A notation that some resolvers read as an address.
    #[error("{0:?} is an address in an unusual notation: write it in full, as in 10.1.2.3")]
    UnusualAddress(String),
    /// An IPv6 address with a zone.
    #[error("{0:?}: addresses with a zone (%) cannot be reached through a proxy")]
    Zone(String),
    /// User name or password in an authority.
    #[error("the target must not hold a user name or password")]
    UserInfo,
    /// Port missing, 0, or not a number.
    #[error("the port is missing or not a number from 1 to 65535")]
    Port,
}

/// A host: a name for the resolver, or an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// Lower case, without trailing dot, international names in `xn--` form; never something like an address.
    Name(String),
    /// IPv4-mapped IPv6 addresses are kept as IPv4.
    Address(IpAddr),
}

/// A host and a port (never 0).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Where.
    pub host: Host,
    /// Which port, 1 to 65535.
    pub port: u16,
}

impl Target {
    /// Reads a host as clients write it, with or without brackets around an IPv6 address.
    ///
    /// # Errors
    /// What is wrong with it; the text is cut to 80 characters.
    pub fn new(host: &str, port: u16) -> Result<Self, TargetError> {
        if port == 0 {
            return Err(TargetError::Port);
        }
        Ok(Self { host: Host::parse(host)?, port })
    }

    /// Reads `host:port`, `[v6]:port`, or with `default_port` also without a port: the authority of a request.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_authority(text: &str, default_port: Option<u16>) -> Result<Self, TargetError> {
        if text.contains('@') {
            return Err(TargetError::UserInfo);
        }
        let (host, port) = match (text.rsplit_once(':'), text.ends_with(']')) {
            (Some((host, port)), false) => (host, Some(port)),
            (None, _) | (Some(_), true) => (text, None),
        };
        if host.contains(':') && !host.starts_with('[') {
            return Err(TargetError::NotAHost(shortened(text)));
        }
        let port = match port.filter(|p| !p.is_empty()) {
            Some(p) if p.bytes().all(|b| b.is_ascii_digit()) => p.parse().map_err(|_| TargetError::Port)?,
            Some(_) => return Err(TargetError::Port),
            None => default_port.ok_or(TargetError::Port)?,
        };
        Self::new(host, port)
    }

    /// The host as it stands in a session's OPEN: no brackets.
    #[must_use]
    pub fn host_text(&self) -> String {
        match &self.host {
            Host::Name(name) => name.clone(),
            Host::Address(address) => address.to_string(),
        }
    }
}

impl Host {
    /// Reads a host as clients write it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or_else(|| TargetError::NotAHost(shortened(text)))?;
            if inner.contains('%') {
                return Err(TargetError::Zone(shortened(text)));
            }
            let address: Ipv6Addr = inner.parse().map_err(|_| TargetError::NotAHost(shortened(text)))?;
            return Ok(Self::Address(IpAddr::V6(address).to_canonical()));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        if text.contains(':') && text.contains('%') {
            return Err(TargetError::Zone(shortened(text)));
        }
        // Longer texts cannot become a name of 253 bytes; do not spend time on mapping them.
        if text.len() > 1024 {
            return Err(TargetError::NotAHost(shortened(text)));
        }
        let ascii = if text.is_ascii() {
            text.to_owned()
        } else {
            idna::domain_to_ascii(text).map_err(|_| TargetError::NotAHost(shortened(text)))?
        };
        let name = normal_name(&ascii).ok_or_else(|| TargetError::NotAHost(shortened(text)))?;
        if ends_in_a_number(&name) {
            return Err(TargetError::UnusualAddress(shortened(text)));
        }
        Ok(Self::Name(name))
    }
}

/// The rule of browsers: a name whose last label is a number, in decimal or `0x`, is an address to some resolver.
fn ends_in_a_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or("");
    let hexadecimal = last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
    hexadecimal || last.bytes().all(|b| b.is_ascii_digit())
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusual_notations_of_addresses_are_refused() {
        let unusual = [
            "127.1",
            "127.0.1",
            "2130706433",
            "0x7f.1",
            "0x7f000001",
            "0X7F000001",
            "017700000001",
            "0177.0.0.1",
            "127.0.0.01",
            "127.0.0.1.",
            "1.2.3.4.5",
            "0x",
            "a.0x1",
            "999.1.1.1",
            "127。0。0。1",
            "１２７.0.0.1",
            "①②⑦.0.0.1",
        ];
        for text in unusual {
            let parsed = Host::parse(text);
            let loopback = parsed == Ok(Host::Address("127.0.0.1".parse().unwrap()));
            assert!(parsed.is_err() || loopback, "{text:?} became {parsed:?}");
            assert!(!matches!(parsed, Ok(Host::Name(_))), "{text:?} became {parsed:?}");
        }
    }

    #[test]
    fn one_host_has_one_spelling() {
        assert_eq!(Host::parse("Intranet.Example.").unwrap(), Host::Name("intranet.example".into()));
        assert_eq!(Host::parse("B\u{fc}cher.example").unwrap(), Host::Name("xn--bcher-kva.example".into()));
        assert_eq!(Host::parse("::FFFF:127.0.0.1").unwrap(), Host::Address("127.0.0.1".parse().unwrap()));
        assert_eq!(Host::parse("[::1]").unwrap(), Host::Address("::1".parse().unwrap()));
        assert_eq!(Host::parse("[0:0::0:1]").unwrap(), Host::Address("::1".parse().unwrap()));
    }

    #[test]
    fn what_is_no_host_is_refused_in_words() {
        for text in [
            "",
            ".",
            "a..b",
            "a b",
            "a\0b",
            "a\r\nX: y",
            "user@host",
            "[::1",
            "::1]",
            "[127.0.0.1]",
            "*",
            "a/b",
            "host%00",
        ] {
            assert!(Host::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(Host::parse("fe80::1%eth0"), Err(TargetError::Zone("fe80::1%eth0".into())));
        assert!(Host::parse(&"a".repeat(64)).is_err());
        assert!(Host::parse(&"\u{fc}".repeat(100_000)).is_err());
    }

    #[test]
    fn authorities() {
        let target = |t: &str| Target::from_authority(t, None).map(|t| t.to_string());
        assert_eq!(target("Host.Example:443").unwrap(), "host.example:443");
        assert_eq!(target("[2001:db8::1]:8443").unwrap(), "[2001:db8::1]:8443");
        assert_eq!(Target::from_authority("h", Some(80)).unwrap().port, 80);
        assert_eq!(Target::from_authority("h:", Some(80)).unwrap().port, 80);
        assert_eq!(Target::from_authority("[::1]", Some(80)).unwrap().to_string(), "[::1]:80");
        for bad in
            ["", "h", ":80", "h:0", "h:65536", "h:+80", "h: 80", "2001:db8::1:80", "u:p@h:80", "u@h:80", "[::1]x:80"]
        {
            assert!(target(bad).is_err(), "{bad:?}");
        }
    }
}
