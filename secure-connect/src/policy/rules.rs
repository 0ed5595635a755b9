//! Rules in the form that packets are held against, and the verdict for one address of the intranet.

use std::net::IpAddr;

use hedgerow_shared::verify::policy::{Action, PortSet, Rule, TargetPattern};
use hedgerow_shared::verify::special::{Faces, shares};

use super::{Denied, Learnt};

/// What is asked about an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// This port.
    Port(u16),
    /// Is there any port at all: for echo.
    SomePort,
    /// Are all of them: for protocols without.
    EveryPort,
}

/// One rule.
#[derive(Debug, Clone)]
pub(super) struct Compiled {
    action: Action,
    target: TargetPattern,
    ports: PortSet,
    /// Whether the ports are all there are.
    all_ports: bool,
}

impl Compiled {
    pub(super) fn new(rule: &Rule) -> Self {
        // The search ends at the first port that is missing.
        let all_ports = rule.ports == PortSet::default() || (1..=u16::MAX).all(|port| rule.ports.contains(port));
        Self { action: rule.action, target: rule.target.clone(), ports: rule.ports.clone(), all_ports }
    }

    /// One spelling for all that behaves alike, for fingerprints.
    pub(super) fn text(&self) -> String {
        format!("{:?} {} {}", self.action, self.target, self.ports)
    }

    /// Whether the rule has a say at what is asked. Where ports are not known an allow rule for some is enough for
    /// echo and not enough for other protocols, and a deny rule for some is the other way round.
    fn counts(&self, ask: Ask) -> bool {
        match (ask, self.action) {
            (Ask::Port(port), _) => self.ports.contains(port),
            (Ask::SomePort, Action::Allow) => true,
            (Ask::SomePort, Action::Deny) => self.all_ports,
            (Ask::EveryPort, Action::Allow) => self.all_ports,
            (Ask::EveryPort, Action::Deny) => true,
        }
    }

    /// A deny rule covers either face; an allow rule must cover the address itself.
    fn covers(&self, faces: &Faces) -> bool {
        match self.action {
            Action::Deny => faces.any(|face| self.covers_face(face)),
            Action::Allow => self.covers_face(faces.itself),
        }
    }

    fn covers_face(&self, face: IpAddr) -> bool {
        match self.target {
            TargetPattern::Any => true,
            TargetPattern::Network { network, prefix } => shares(network, prefix, face),
            TargetPattern::Domain(_) | TargetPattern::Suffix(_) => false,
        }
    }

    fn covers_name(&self, address: IpAddr, names: &Learnt) -> bool {
        match self.target {
            TargetPattern::Domain(_) | TargetPattern::Suffix(_) => {
                names.of(address).any(|name| self.target.covers_name(name))
            }
            TargetPattern::Any | TargetPattern::Network { .. } => false,
        }
    }

    fn is_network(&self) -> bool {
        matches!(self.target, TargetPattern::Network { .. })
    }
}

/// The verdict for an address in its canonical form.
pub(super) fn decide(
    rules: &[Compiled],
    refused: &[(IpAddr, Option<u16>)],
    address: IpAddr,
    ask: Ask,
    names: &Learnt,
) -> Result<(), Denied> {
    let faces = Faces::of(address);
    if refused.iter().any(|(own, port)| refuses(*port, ask) && faces.any(|face| is_own(*own, face))) {
        return Err(Denied::OwnAddress);
    }
    let rules = || rules.iter().filter(|rule| rule.counts(ask));

    let by_address = rules().find(|rule| rule.is_network() && rule.covers(&faces));
    if by_address.is_some_and(|rule| rule.action == Action::Deny) {
        return Err(Denied::Rule);
    }
    if let Some(special) = faces.special() {
        // The embedded address of a 6to4 or NAT64 address is not what the rule names, so that one never passes.
        let named = by_address.is_some_and(|rule| faces.embedded.is_none() && special.is_named_by(&rule.target));
        if !named {
            return Err(Denied::Special);
        }
        // No name rule opens it, but one may close it, as one for everything does that stands first.
        let denies = |rule: Option<&Compiled>| rule.is_some_and(|rule| rule.action == Action::Deny);
        let closed = denies(rules().find(|rule| rule.covers_name(address, names)))
            || denies(rules().find(|rule| rule.covers(&faces)));
        return if closed { Err(Denied::Rule) } else { Ok(()) };
    }
    match rules().find(|rule| rule.covers(&faces) || rule.covers_name(address, names)) {
        Some(rule) if rule.action == Action::Allow => Ok(()),
        Some(_) | None => Err(Denied::Rule),
    }
}

fn refuses(port: Option<u16>, ask: Ask) -> bool {
    match (port, ask) {
        (None, _) => true,
        (Some(own), Ask::Port(port)) => own == port,
        (Some(_), Ask::SomePort) => false,
        (Some(_), Ask::EveryPort) => true,
    }
}

fn is_own(own: IpAddr, address: IpAddr) -> bool {
    if own.is_unspecified() {
        return address.is_loopback() || address.is_unspecified();
    }
    // Linux takes a connection to the unspecified address as one to loopback.
    own == address || (own.is_loopback() && address.is_unspecified())
}
