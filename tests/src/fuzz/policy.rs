//! What administrators and applications write: rules, routes, targets, and the configuration files of the roles.

use std::net::IpAddr;

use hedgerow_connectivity_node::NodeConfigFile;
use hedgerow_device::DeviceConfigFile;
use hedgerow_proxy::acl::{Acl, Permit, route};
use hedgerow_proxy::target::{Host, Target};
use hedgerow_relay::RelayConfig;
use hedgerow_runtime::config::{ConfigFault, parse};
use hedgerow_shared::verify::config::{Audience, DeviceConfig, Head, Version};
use hedgerow_shared::verify::policy::{Action, PortSet, Route, Rule, TargetPattern, Via, normal_name};
use serde::de::DeserializeOwned;

use super::fixture::{NOW, fixture};
use super::{Input, json_round_trip, text_round_trip};

/// `verify::policy`: first byte modulo 5: a pattern, ports, a way, a rule in JSON, a route in JSON.
pub fn policy(data: &[u8]) {
    let mut input = Input(data);
    let choice = input.u8() % 5;
    let Some(text) = input.text() else { return };
    match choice {
        0 => match text_round_trip::<TargetPattern>(text) {
            Some(TargetPattern::Network { network, prefix }) => {
                let pattern = TargetPattern::Network { network, prefix };
                // IPv4-mapped addresses are compared as IPv4, so that a range of them covers nothing.
                assert!(pattern.covers_address(network) || network != network.to_canonical());
                assert!(!pattern.covers_name("intranet.example"));
            }
            Some(TargetPattern::Domain(name)) => {
                assert_eq!(normal_name(&name).as_ref(), Some(&name));
                assert!(name.parse::<IpAddr>().is_err());
                assert!(TargetPattern::Suffix(name.clone()).covers_name(&name));
                assert!(!TargetPattern::Suffix(name.clone()).covers_name(&format!("x{name}")));
            }
            Some(TargetPattern::Suffix(name)) => assert_eq!(normal_name(&name).as_ref(), Some(&name)),
            Some(TargetPattern::Any) => assert_eq!(text, "*"),
            None => {}
        },
        1 => {
            if let Some(ports) = text_round_trip::<PortSet>(text) {
                assert!(!ports.contains(0));
                let again: PortSet = ports.to_string().parse().expect("what was written can be read");
                assert!((1..=u16::MAX).step_by(251).all(|p| ports.contains(p) == again.contains(p)));
            }
        }
        2 => drop(text_round_trip::<Via>(text)),
        3 => drop(json_round_trip::<Rule>(text.as_bytes())),
        _ => drop(json_round_trip::<Route>(text.as_bytes())),
    }
}

/// `proxy::target`: a host or an authority; what is taken has one spelling and is never an address in disguise.
pub fn target(data: &[u8]) {
    let Some(text) = Input(data).text() else { return };
    if let Ok(host) = Host::parse(text) {
        assert_eq!(Host::parse(&host.to_string()).as_ref(), Ok(&host), "{text:?}");
        match &host {
            Host::Name(name) => {
                assert_eq!(normal_name(name).as_ref(), Some(name));
                let last = name.rsplit('.').next().unwrap_or_default();
                assert!(name.parse::<IpAddr>().is_err() && last.parse::<u64>().is_err(), "{text:?} became {name:?}");
            }
            Host::Address(address) => assert_eq!(address.to_canonical(), *address),
        }
    }
    for default in [None, Some(80)] {
        match Target::from_authority(text, default) {
            Ok(target) => {
                assert_ne!(target.port, 0);
                assert_eq!(Target::from_authority(&target.to_string(), None).as_ref(), Ok(&target), "{text:?}");
                assert_eq!(Target::new(&target.host_text(), target.port).as_ref(), Ok(&target), "{text:?}");
            }
            Err(error) => assert!(error.to_string().len() < 2048),
        }
    }
}

/// `proxy::acl`, over lines of text: `allow TARGET [PORTS]` and `deny TARGET [PORTS]` are rules in their order,
/// `own AUTHORITY` is never to be reached, `ask AUTHORITY [ADDRESS,...]` is decided.
pub fn acl(data: &[u8]) {
    let Some(text) = Input(data).text() else { return };
    let (mut rules, mut own, mut questions) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.lines().take(64) {
        let mut words = line.split(' ');
        let (verb, first, second) = (words.next(), words.next().unwrap_or_default(), words.next());
        match verb {
            Some("allow" | "deny") => {
                let action = if verb == Some("allow") { Action::Allow } else { Action::Deny };
                let (Ok(target), Ok(ports)) = (first.parse(), second.unwrap_or("*").parse()) else { continue };
                rules.push(Rule { action, target, ports, group: None });
            }
            Some("own") => own.extend(Target::from_authority(first, None)),
            Some("ask") => {
                let addresses: Vec<IpAddr> =
                    second.unwrap_or_default().split(',').filter_map(|a| a.parse().ok()).collect();
                questions.extend(Target::from_authority(first, Some(443)).map(|target| (target, addresses)));
            }
            _ => {}
        }
    }
    let acl = Acl::new(&rules, None).refusing(own.clone());
    for (target, addresses) in &questions {
        decide(&acl, &rules, &own, target, addresses);
        routed(&rules, target);
        assert!(Acl::without_configuration().after_resolving("a.example", target.port, addresses).is_err());
    }
}

fn decide(acl: &Acl, rules: &[Rule], own: &[Target], target: &Target, addresses: &[IpAddr]) {
    let (name, permit) = match &target.host {
        Host::Address(address) => (None, acl.address(*address, target.port)),
        Host::Name(name) => {
            let permit = acl.after_resolving(name, target.port, addresses);
            if let Err(denial) = acl.before_resolving(name, target.port) {
                assert_eq!(permit.as_ref().err(), Some(&denial));
            }
            (Some(name), permit)
        }
    };
    match permit {
        Ok(Permit { addresses: permitted, rule, why }) => {
            assert!(!permitted.is_empty() && !why.is_empty());
            let rule = &rules[rule];
            assert!(rule.action == Action::Allow && rule.ports.contains(target.port));
            for at in &permitted {
                let address = at.ip();
                let asked = match &target.host {
                    Host::Address(a) => *a == address,
                    Host::Name(_) => addresses.iter().any(|a| a.to_canonical() == address),
                };
                assert!(asked && at.port() == target.port, "{at} was not asked for");
                assert!(!own.iter().any(|o| o.port == at.port() && o.host == Host::Address(address)), "{at} is own");
                let covering = |r: &&Rule| {
                    r.ports.contains(target.port)
                        && (r.target.covers_address(address) || name.is_some_and(|n| r.target.covers_name(n)))
                };
                assert!(rules.iter().filter(|r| covering(r)).any(|r| r.action == Action::Allow), "no rule allows {at}");
                assert!(!is_special(address) || rules.iter().any(|r| names(r, address)), "{at} was never named");
            }
        }
        Err(denial) => {
            assert!(!denial.why.is_empty() && !denial.told().is_empty());
            assert!(denial.rule.is_none_or(|i| rules[i].action == Action::Deny));
        }
    }
}

/// Some of the special addresses, told by the standard library and not by the list under test.
fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_loopback() || a.is_link_local() || a.is_unspecified() || a.is_multicast(),
        IpAddr::V6(a) => {
            a.is_loopback() || a.is_unspecified() || a.is_multicast() || a.segments()[0] & 0xffc0 == 0xfe80
        }
    }
}

/// Whether a rule names this address by a range that holds nothing but special addresses of its kind.
fn names(rule: &Rule, address: IpAddr) -> bool {
    let narrow = match (&rule.target, address) {
        (TargetPattern::Network { prefix, .. }, IpAddr::V4(_)) => *prefix >= 4,
        (TargetPattern::Network { prefix, .. }, IpAddr::V6(_)) => *prefix >= 8,
        _ => false,
    };
    narrow && rule.action == Action::Allow && rule.target.covers_address(address)
}

/// A device's choice with the same lines as routes: `allow` goes through a group, `deny` nowhere.
fn routed(rules: &[Rule], target: &Target) {
    let way = |rule: &Rule| match rule.action {
        Action::Allow => Via::Group("berlin".parse().expect("it is a group name")),
        Action::Deny => Via::Deny,
    };
    let routes: Vec<Route> =
        rules.iter().map(|r| Route { target: r.target.clone(), ports: r.ports.clone(), via: way(r) }).collect();
    let version = Version::default();
    let tenant = fixture().tenant.clone();
    let head = Head { tenant, audience: Audience::Device, version, issued: NOW, expires: NOW.plus(1) };
    let config = DeviceConfig { authorities: Vec::new(), head, routes, default_route: Via::Direct };
    let routed = route(&config, target);
    match routed.route {
        Some(index) => {
            assert_eq!(routed.via, config.routes[index].via);
            assert!(config.routes[index].ports.contains(target.port));
        }
        None => assert_eq!(routed.via, Via::Direct),
    }
}

/// `runtime::config` with a role's file: the first byte modulo 3 chooses relay, node or device. A complaint says where
/// and is one line; what passes the role's own check can be used.
pub fn role_config(data: &[u8]) {
    let mut input = Input(data);
    let choice = input.u8() % 3;
    let Some(text) = input.text() else { return };
    match choice {
        0 => {
            if let Some(config) = read::<RelayConfig>(text)
                && config.check().is_ok()
            {
                let _ = config.timers();
                let _ = config.answers_to("relay.example");
            }
        }
        1 => {
            if let Some(config) = read::<NodeConfigFile>(text) {
                match config.check() {
                    Ok(()) => drop(config.timers()),
                    Err(fault) => complaint(&fault, ""),
                }
            }
        }
        _ => {
            if let Some(config) = read::<DeviceConfigFile>(text) {
                let _ = config.timers();
            }
        }
    }
}

fn read<T: DeserializeOwned>(text: &str) -> Option<T> {
    match parse("role.toml", text) {
        Ok(config) => Some(config),
        Err(fault) => {
            complaint(&fault, "role.toml:");
            None
        }
    }
}

fn complaint(fault: &ConfigFault, begins: &str) {
    assert!(!fault.problems.is_empty());
    for problem in &fault.problems {
        assert!(problem.starts_with(begins), "it does not say where: {problem:?}");
        assert!(!problem.contains('\n'), "it is more than one line: {problem:?}");
    }
}
