//! What one node lets tunnelled packets reach.
//!
//! Itinerary of a packet from a device: `check_source` (is it this device's address) → `check_destination` (devices
//! do not reach each other) → `Policy::outbound`. One from the intranet to a device: `Policy::inbound`.
//!
//! The rules are those of `proxy::acl`, and an address gets the same verdict here as there: the first rule that covers
//! it decides, without one it is denied; special addresses need an allow rule that names them; and when the first rule
//! for addresses that covers it denies, neither `*` nor a name opens it. What differs comes from packets:
//! - they carry no names. Rules for names cover the addresses that the node's own DNS servers gave the tunnel for them
//!   (`Learnt`); when an address has several names, the first rule that covers any of them or the address decides;
//! - `echo` has no port: it may go where an allow rule for any port comes before a deny rule for all ports;
//! - other protocols have no ports that rules could mean: they need an allow rule for all ports, with no deny rule for
//!   any port before it;
//! - an ICMP error is about another packet, which it quotes: it may pass when that packet might have been sent, and
//!   went the other way. Routers on the way report too, so who sends it counts only towards the intranet;
//! - a later fragment has no ports: it may pass when its first fragment did, within a time.

mod names;
mod rules;
mod tunnel;

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hedgerow_shared::GroupName;
use hedgerow_shared::verify::policy::Rule;

use crate::ip::{Fragment, Icmp, Quoted, Summary, protocol};
use crate::pool::Prefix;

pub use names::Learnt;
use rules::{Ask, Compiled};
use tunnel::Passed;
pub use tunnel::Tunnel;

/// Why a packet was denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Denied {
    /// Its source is not the address that the device was leased.
    SpoofedSource,
    /// It goes from a device to another.
    DeviceToDevice,
    /// A deny rule covers it, or no rule does.
    Rule,
    /// A special address that no rule names.
    Special,
    /// An address of the node itself or its relay.
    OwnAddress,
    /// No configuration is in force.
    NoConfiguration,
    /// A later fragment whose first was not let through, or not lately, or over which it would be laid.
    Fragment,
    /// ICMP that no tunnel needs, such as redirects.
    Protocol,
    /// An ICMP error about a packet that cannot have been sent.
    Quote,
}

impl Denied {
    /// Every reason.
    pub const ALL: &'static [Self] = &[
        Self::SpoofedSource,
        Self::DeviceToDevice,
        Self::Rule,
        Self::Special,
        Self::OwnAddress,
        Self::NoConfiguration,
        Self::Fragment,
        Self::Protocol,
        Self::Quote,
    ];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::SpoofedSource => "spoofed_source",
            Self::DeviceToDevice => "device_to_device",
            Self::Rule => "denied",
            Self::Special => "special",
            Self::OwnAddress => "own_address",
            Self::NoConfiguration => "no_configuration",
            Self::Fragment => "fragment",
            Self::Protocol => "protocol",
            Self::Quote => "quote",
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SpoofedSource => "the source is not the device's own address",
            Self::DeviceToDevice => "devices do not reach each other",
            Self::Rule => "no access rule of the node allows it",
            Self::Special => "it is a local or special address that no access rule names",
            Self::OwnAddress => "it is the node itself or its relay",
            Self::NoConfiguration => "the node has no valid configuration from its core",
            Self::Fragment => "the first fragment was not let through",
            Self::Protocol => "no such ICMP passes",
            Self::Quote => "it is about a packet that was not sent",
        })
    }
}

impl std::error::Error for Denied {}

/// Whether a packet from a device has the source that the device was leased.
///
/// # Errors
/// `Denied::SpoofedSource`.
pub fn check_source(packet: &Summary, lease_v4: Ipv4Addr, lease_v6: Option<Ipv6Addr>) -> Result<(), Denied> {
    let own = match packet.source {
        IpAddr::V4(source) => source == lease_v4,
        IpAddr::V6(source) => Some(source) == lease_v6,
    };
    if own { Ok(()) } else { Err(Denied::SpoofedSource) }
}

/// Whether a packet from a device stays out of the pools that devices have their addresses from, unless devices may
/// reach each other.
///
/// # Errors
/// `Denied::DeviceToDevice`.
pub fn check_destination(packet: &Summary, pools: &[Prefix], allowed: bool) -> Result<(), Denied> {
    if allowed || !pools.iter().any(|pool| pool.contains(packet.destination)) {
        return Ok(());
    }
    Err(Denied::DeviceToDevice)
}

/// Rules in force at one node, compiled.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    configured: bool,
    rules: Vec<Compiled>,
    refused: Vec<(IpAddr, Option<u16>)>,
    dns: Vec<SocketAddr>,
    /// Tells policies apart whose verdicts may differ, so that a tunnel forgets what another one said.
    fingerprint: u64,
}

impl Policy {
    /// The rules that apply to nodes of `group`.
    #[must_use]
    pub fn new(rules: &[Rule], group: Option<&GroupName>) -> Self {
        let rules = rules
            .iter()
            .filter(|rule| rule.group.as_ref().is_none_or(|of| Some(of) == group))
            .map(Compiled::new)
            .collect();
        Self { configured: true, rules, ..Self::default() }.fingerprinted()
    }

    /// Denies everything because there is no configuration.
    #[must_use]
    pub fn without_configuration() -> Self {
        Self::default()
    }

    /// Never allows these, whatever the rules say: addresses of the node and of its relays, at one port or at all.
    /// Tunnels inside a tunnel end here. An unspecified address stands for loopback too.
    #[must_use]
    pub fn refusing(mut self, own: Vec<(IpAddr, Option<u16>)>) -> Self {
        self.refused = own.into_iter().map(|(address, port)| (address.to_canonical(), port)).collect();
        self.fingerprinted()
    }

    /// Always allows TCP and UDP to these: the DNS servers that the node gives to devices. They come before the rules
    /// and before the refused addresses, as a node may be its own server.
    #[must_use]
    pub fn allowing_dns(mut self, servers: Vec<SocketAddr>) -> Self {
        self.dns = servers.into_iter().map(|at| SocketAddr::new(at.ip().to_canonical(), at.port())).collect();
        self.fingerprinted()
    }

    /// Whether a packet from a device may go on into the intranet.
    ///
    /// # Errors
    /// Why it may not.
    pub fn outbound(&self, packet: &Summary, tunnel: &mut Tunnel, now: Duration) -> Result<(), Denied> {
        self.judge(packet, Way::Out, tunnel, now)
    }

    /// Whether a packet from the intranet may go on to a device: when its source address and port are such that the
    /// device could have sent there. No connection is tracked: who may be asked may answer, and may also ask from the
    /// port at which it is asked. So this keeps everybody else out, and a firewall of the device does the rest.
    ///
    /// # Errors
    /// Why it may not.
    pub fn inbound(&self, packet: &Summary, tunnel: &mut Tunnel, now: Duration) -> Result<(), Denied> {
        self.judge(packet, Way::In, tunnel, now)
    }

    /// Whether a packet from the intranet is an answer of one of the node's DNS servers: then its payload is for
    /// `Tunnel::learn`.
    #[must_use]
    pub fn is_dns_answer(&self, packet: &Summary) -> bool {
        packet.protocol == protocol::UDP
            && packet.fragment == Fragment::Whole
            && packet.source_port.is_some_and(|port| self.is_dns(packet.source.to_canonical(), port))
    }

    fn judge(&self, packet: &Summary, way: Way, tunnel: &mut Tunnel, now: Duration) -> Result<(), Denied> {
        if !self.configured {
            return Err(Denied::NoConfiguration);
        }
        match packet.fragment {
            Fragment::Whole => self.judge_whole(packet, way, tunnel, now),
            Fragment::First => {
                self.judge_whole(packet, way, tunnel, now)?;
                passed(tunnel, way).remember(packet, now);
                Ok(())
            }
            Fragment::Later if passed(tunnel, way).continues(packet, now) => Ok(()),
            Fragment::Later => Err(Denied::Fragment),
        }
    }

    fn judge_whole(&self, packet: &Summary, way: Way, tunnel: &mut Tunnel, now: Duration) -> Result<(), Denied> {
        let (remote, port) = match way {
            Way::Out => (packet.destination, packet.destination_port),
            Way::In => (packet.source, packet.source_port),
        };
        match (packet.protocol, port, packet.icmp) {
            (protocol::TCP | protocol::UDP, Some(port), _) => self.ask(remote, Ask::Port(port), tunnel, now),
            (_, _, Some(icmp)) => match (icmp, way) {
                (Icmp::EchoRequest, Way::Out) | (Icmp::EchoReply, Way::In) => {
                    self.ask(remote, Ask::SomePort, tunnel, now)
                }
                (Icmp::Error, _) => self.judge_error(packet, way, tunnel, now),
                (Icmp::EchoRequest | Icmp::EchoReply | Icmp::Other, _) => Err(Denied::Protocol),
            },
            _ => self.ask(remote, Ask::EveryPort, tunnel, now),
        }
    }

    /// An error travels against the packet that it quotes. One for a device is about what the device sent; one of a
    /// device, which forwards nothing, goes to the sender of what it got.
    fn judge_error(&self, packet: &Summary, way: Way, tunnel: &mut Tunnel, now: Duration) -> Result<(), Denied> {
        let quoted = packet.quoted.ok_or(Denied::Quote)?;
        let Quoted { source, destination, protocol, ports, icmp } = quoted;
        let (remote, port, fits) = match way {
            Way::In => (destination, ports.map(|(_, to)| to), source == packet.destination),
            Way::Out => {
                (source, ports.map(|(from, _)| from), source == packet.destination && destination == packet.source)
            }
        };
        let echo = match way {
            Way::In => Icmp::EchoRequest,
            Way::Out => Icmp::EchoReply,
        };
        let ask = match (protocol, port, icmp) {
            (protocol::TCP | protocol::UDP, Some(port), _) => Ask::Port(port),
            (_, _, Some(icmp)) if icmp == echo => Ask::SomePort,
            (_, _, Some(_)) => return Err(Denied::Quote),
            _ => Ask::EveryPort,
        };
        if !fits {
            return Err(Denied::Quote);
        }
        self.ask(remote, ask, tunnel, now)
    }

    /// The verdict for an address of the intranet, from the tunnel's memory when it is there.
    fn ask(&self, address: IpAddr, ask: Ask, tunnel: &mut Tunnel, now: Duration) -> Result<(), Denied> {
        let address = address.to_canonical();
        tunnel.refresh(self.fingerprint, now);
        if let Some(verdict) = tunnel.verdicts.get(address, ask) {
            return verdict;
        }
        let verdict = self.decide(address, ask, &tunnel.names);
        tunnel.verdicts.put(address, ask, verdict);
        verdict
    }

    fn decide(&self, address: IpAddr, ask: Ask, names: &Learnt) -> Result<(), Denied> {
        if let Ask::Port(port) = ask
            && self.is_dns(address, port)
        {
            return Ok(());
        }
        rules::decide(&self.rules, &self.refused, address, ask, names)
    }

    fn is_dns(&self, address: IpAddr, port: u16) -> bool {
        self.dns.iter().any(|server| server.ip() == address && server.port() == port)
    }

    /// The hasher of the standard library with its fixed keys: the rules are signed, so nobody makes two lists collide
    /// who could not as well sign the one he wants.
    fn fingerprinted(mut self) -> Self {
        let mut hasher = DefaultHasher::new();
        for rule in &self.rules {
            rule.text().hash(&mut hasher);
        }
        (&self.refused, &self.dns, self.rules.len()).hash(&mut hasher);
        self.fingerprint = hasher.finish();
        self
    }
}

fn passed(tunnel: &mut Tunnel, way: Way) -> &mut Passed {
    match way {
        Way::Out => &mut tunnel.passed_out,
        Way::In => &mut tunnel.passed_in,
    }
}

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Device to intranet.
    Out,
    /// Intranet to device.
    In,
}

#[cfg(test)]
mod tests;
