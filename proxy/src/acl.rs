//! Access rules and routes: may this target be reached, and by which way. Pure: names are resolved elsewhere.
//!
//! Itinerary of a name: `before_resolving` (a name that no rule can allow costs no DNS query) → the resolver →
//! `after_resolving` checks every address and returns the ones that may be dialled. Exactly those are dialled, so a
//! name that resolves differently a moment later changes nothing. An address goes through `address`.
//!
//! For one address of a name the first rule that covers the name or the address decides, and without one it is
//! denied. Two things come before that:
//! - a *special* address (loopback, link-local, metadata service, ...) needs an allow rule that names it: an address
//!   range lying wholly inside the special range. `*` or `0.0.0.0/0` do not name it, and no host name rule does. A
//!   name that resolves to one needs both: a rule that allows the name, and one that names the address;
//! - when the first address rule that covers it denies, no host name rule allows it, wherever the rule stands.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use hedgerow_shared::GroupName;
use hedgerow_shared::verify::config::DeviceConfig;
use hedgerow_shared::verify::policy::{Action, Rule, TargetPattern, Via};
use hedgerow_shared::verify::special::{Faces, names_special};

use crate::target::{Host, Target};

/// What kind of denial: the metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A deny rule covers it.
    Rule,
    /// No rule covers it.
    NoRule,
    /// A special address that no rule names.
    Special,
    /// One of this process's own listeners, or its relay.
    Own,
    /// No configuration is in force.
    NoConfiguration,
}

impl Reason {
    /// Every reason.
    pub const ALL: &'static [Self] = &[Self::Rule, Self::NoRule, Self::Special, Self::Own, Self::NoConfiguration];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::NoRule => "no_rule",
            Self::Special => "special_address",
            Self::Own => "own_address",
            Self::NoConfiguration => "no_configuration",
        }
    }
}

/// Why a target may not be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Denial {
    /// Kind.
    pub reason: Reason,
    /// The rule that decided: its place in the signed list, from 0.
    pub rule: Option<usize>,
    /// In words, naming the rule; for audit and for the client.
    pub why: String,
}

impl Denial {
    /// What the one who asked is told: the rule's number, not its text, and no address inside.
    #[must_use]
    pub fn told(&self) -> String {
        match (self.reason, self.rule) {
            (Reason::Rule, Some(rule)) => format!("access rule {} of the node forbids it", rule + 1),
            (Reason::Rule, None) => "an access rule of the node forbids it".to_owned(),
            (Reason::NoRule, _) => "no access rule of the node allows it".to_owned(),
            (Reason::Special, _) => "it is a local or special address that no access rule names".to_owned(),
            (Reason::Own, _) => "it is the proxy itself or its relay".to_owned(),
            (Reason::NoConfiguration, _) => "the node has no valid configuration from its core".to_owned(),
        }
    }
}

/// What may be dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    /// These and no others, in the order given.
    pub addresses: Vec<SocketAddr>,
    /// The rule that decided for the first address: its place in the signed list, from 0.
    pub rule: usize,
    /// In words, naming the rule.
    pub why: String,
}

/// Rules in force at one node.
#[derive(Debug, Clone, Default)]
pub struct Acl {
    configured: bool,
    rules: Vec<(usize, Rule)>,
    own: Vec<Target>,
}

impl Acl {
    /// The rules that apply to nodes of `group`.
    #[must_use]
    pub fn new(rules: &[Rule], group: Option<&GroupName>) -> Self {
        let applies = |rule: &Rule| rule.group.as_ref().is_none_or(|g| Some(g) == group);
        let rules = rules.iter().cloned().enumerate().filter(|(_, rule)| applies(rule)).collect();
        Self { configured: true, rules, own: Vec::new() }
    }

    /// Denies everything because there is no configuration, and says so.
    #[must_use]
    pub fn without_configuration() -> Self {
        Self::default()
    }

    /// Never allows these, whatever the rules say: this process's listeners and its relays. A listener on an
    /// unspecified address stands for loopback too.
    #[must_use]
    pub fn refusing(mut self, own: Vec<Target>) -> Self {
        self.own = own;
        self
    }

    /// Whether a target given as an address may be dialled.
    ///
    /// # Errors
    /// Which rule denied it, or that none allows it.
    pub fn address(&self, address: IpAddr, port: u16) -> Result<Permit, Denial> {
        self.decide(None, address, port)
    }

    /// Whether it is worth asking the resolver for `name` (in the form of `Host::Name`): false certainty is not
    /// given here, `after_resolving` decides.
    ///
    /// # Errors
    /// When no answer of the resolver could be allowed.
    pub fn before_resolving(&self, name: &str, port: u16) -> Result<(), Denial> {
        self.require_configuration()?;
        if self.own.iter().any(|own| own.port == port && matches!(&own.host, Host::Name(n) if n == name)) {
            return Err(denied_own(&format!("{name}:{port}")));
        }
        for (index, rule) in self.rules.iter().filter(|(_, rule)| rule.ports.contains(port)) {
            match (&rule.target, rule.action) {
                (TargetPattern::Network { .. }, Action::Allow) if !names_special(&rule.target) => return Ok(()),
                (TargetPattern::Network { .. }, Action::Allow) => {}
                (TargetPattern::Network { .. }, Action::Deny) => {}
                (target, Action::Allow) if target.covers_name(name) => return Ok(()),
                (target, Action::Deny) if target.covers_name(name) => {
                    return Err(denied_by(*index, rule, &format!("{name}:{port}")));
                }
                _ => {}
            }
        }
        Err(denied_by_default(&format!("{name}:{port}")))
    }

    /// Which of the addresses that `name` resolved to may be dialled.
    ///
    /// # Errors
    /// When none may: the denial of the first.
    pub fn after_resolving(&self, name: &str, port: u16, addresses: &[IpAddr]) -> Result<Permit, Denial> {
        self.before_resolving(name, port)?;
        let (mut permits, mut denials) = (Vec::new(), Vec::new());
        for address in addresses {
            match self.decide(Some(name), *address, port) {
                Ok(permit) => permits.push(permit),
                Err(denial) => denials.push(denial),
            }
        }
        let Some(first) = permits.first() else {
            return Err(denials.into_iter().next().unwrap_or_else(|| denied_by_default(&format!("{name}:{port}"))));
        };
        let (rule, why) = (first.rule, first.why.clone());
        let mut seen = Vec::with_capacity(permits.len());
        for address in permits.into_iter().flat_map(|p| p.addresses) {
            if !seen.contains(&address) {
                seen.push(address);
            }
        }
        Ok(Permit { addresses: seen, rule, why })
    }

    fn decide(&self, name: Option<&str>, address: IpAddr, port: u16) -> Result<Permit, Denial> {
        self.require_configuration()?;
        let address = address.to_canonical();
        let faces = Faces::of(address);
        let what = match name {
            Some(name) => format!("{name}:{port} (at {address})"),
            None => SocketAddr::new(address, port).to_string(),
        };
        if self.own.iter().any(|own| own.port == port && faces.any(|face| is_own(&own.host, face))) {
            return Err(denied_own(&what));
        }
        let rules = || self.rules.iter().filter(|(_, rule)| rule.ports.contains(port));

        let by_address = rules().find(|(_, rule)| {
            let network = matches!(rule.target, TargetPattern::Network { .. });
            network && covers(rule, &faces)
        });
        if let Some((index, rule)) = by_address
            && rule.action == Action::Deny
        {
            return Err(denied_by(*index, rule, &what));
        }
        if let Some(special) = faces.special() {
            // The embedded address of a 6to4 or NAT64 address is not what the rule names, so that one never passes.
            let naming = by_address.filter(|(_, rule)| faces.embedded.is_none() && special.is_named_by(&rule.target));
            let Some((index, rule)) = naming else {
                return Err(Denial {
                    reason: Reason::Special,
                    rule: None,
                    why: format!(
                        "{what} is {}; such addresses need an allow rule that names them by address",
                        special.what
                    ),
                });
            };
            let by_name = name.map(|name| rules().find(|(_, rule)| rule.target.covers_name(name)));
            return match by_name {
                // A rule for everything (`deny *`) is no address rule, and comes first all the same where it stands first.
                None => match rules().find(|(_, rule)| covers(rule, &faces)) {
                    Some((first, deny)) if deny.action == Action::Deny => Err(denied_by(*first, deny, &what)),
                    _ => Ok(permitted_by(*index, rule, address, port, &what)),
                },
                Some(Some((index, rule))) if rule.action == Action::Allow => {
                    Ok(permitted_by(*index, rule, address, port, &what))
                }
                Some(Some((index, rule))) => Err(denied_by(*index, rule, &what)),
                Some(None) => Err(denied_by_default(&what)),
            };
        }
        match rules().find(|(_, rule)| name.is_some_and(|n| rule.target.covers_name(n)) || covers(rule, &faces)) {
            Some((index, rule)) if rule.action == Action::Allow => Ok(permitted_by(*index, rule, address, port, &what)),
            Some((index, rule)) => Err(denied_by(*index, rule, &what)),
            None => Err(denied_by_default(&what)),
        }
    }

    fn require_configuration(&self) -> Result<(), Denial> {
        if self.configured {
            return Ok(());
        }
        let why = "everything is denied: this node has no valid configuration from its core yet".to_owned();
        Err(Denial { reason: Reason::NoConfiguration, rule: None, why })
    }
}

fn permitted_by(index: usize, rule: &Rule, address: IpAddr, port: u16, what: &str) -> Permit {
    let why = format!("{what} is allowed by rule {} ({})", index + 1, describe(rule));
    Permit { addresses: vec![SocketAddr::new(address, port)], rule: index, why }
}

fn denied_by(index: usize, rule: &Rule, what: &str) -> Denial {
    let why = format!("{what} is denied by rule {} ({})", index + 1, describe(rule));
    Denial { reason: Reason::Rule, rule: Some(index), why }
}

fn denied_by_default(what: &str) -> Denial {
    Denial { reason: Reason::NoRule, rule: None, why: format!("{what} is denied: no access rule allows it") }
}

fn denied_own(what: &str) -> Denial {
    Denial { reason: Reason::Own, rule: None, why: format!("{what} is denied: it is this service itself or its relay") }
}

fn describe(rule: &Rule) -> impl fmt::Display {
    let action = match rule.action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    };
    format!("{action} {} ports {}", rule.target, rule.ports)
}

fn is_own(own: &Host, address: IpAddr) -> bool {
    match own {
        Host::Address(own) if own.is_unspecified() => address.is_loopback() || address.is_unspecified(),
        // Linux takes a connection to the unspecified address as one to loopback.
        Host::Address(own) => *own == address || (own.is_loopback() && address.is_unspecified()),
        Host::Name(_) => false,
    }
}

/// A deny rule covers either face; an allow rule must cover the address itself.
fn covers(rule: &Rule, faces: &Faces) -> bool {
    match rule.action {
        Action::Deny => faces.any(|face| rule.target.covers_address(face)),
        Action::Allow => rule.target.covers_address(faces.itself),
    }
}

/// Where a device sends a target, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routed {
    /// The way.
    pub via: Via,
    /// The route that decided: its place in the signed list, from 0; none for the default route.
    pub route: Option<usize>,
    /// In words.
    pub why: String,
}

/// Chooses the way for a target: the first route that covers it, else the default route. Names are not resolved for
/// this, so routes by address range apply to targets given as addresses.
#[must_use]
pub fn route(config: &DeviceConfig, target: &Target) -> Routed {
    let found = config.routes.iter().enumerate().find(|(_, route)| {
        let covers = match &target.host {
            Host::Name(name) => route.target.covers_name(name),
            Host::Address(address) => route.target.covers_address(*address),
        };
        covers && route.ports.contains(target.port)
    });
    match found {
        Some((index, route)) => Routed {
            via: route.via.clone(),
            route: Some(index),
            why: format!("{target} goes {} by route {} ({} ports {})", route.via, index + 1, route.target, route.ports),
        },
        None => Routed {
            via: config.default_route.clone(),
            route: None,
            why: format!("{target} goes {} by the default route", config.default_route),
        },
    }
}

#[cfg(test)]
mod tests;
