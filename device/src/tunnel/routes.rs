//! From the signed configuration to routes and domains of the system.
//!
//! The first route of a configuration that covers a target decides; in a routing table the longest prefix does. So a
//! route is left out when one before it covers it wholly; what is left says the same in both. Ports are the node's to
//! judge: a route with ports leads all of its addresses into the tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hedgerow_shared::GroupName;
use hedgerow_shared::verify::policy::TargetPattern;
use hedgerow_shared::verify::{DeviceConfig, Via};

use super::system::{RouteKind, SystemRoute};

/// Every route of both families.
fn everything(kind: &RouteKind) -> [SystemRoute; 2] {
    [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)].map(|network| SystemRoute {
        network,
        bits: 0,
        kind: kind.clone(),
    })
}

/// What leads into the tunnel of `group`, past it, or nowhere. `whole`: everything that is not named otherwise goes in.
pub(super) fn routes(config: &DeviceConfig, group: &GroupName, whole: bool) -> Vec<SystemRoute> {
    let kind = |via: &Via| match via {
        Via::Group(via) if via == group => Some(RouteKind::Tunnel),
        // Other groups are reached through the local proxy, whatever the system's routes say.
        Via::Group(_) => None,
        Via::Direct => Some(RouteKind::Direct),
        Via::Deny => Some(RouteKind::Deny),
    };
    let mut all: Vec<SystemRoute> = Vec::new();
    let mut add = |route: SystemRoute| {
        let covered = all.iter().any(|before| covers(before, &route));
        if !covered {
            all.push(route);
        }
    };
    for route in &config.routes {
        let Some(kind) = kind(&route.via) else { continue };
        match &route.target {
            TargetPattern::Network { network, prefix } => {
                add(SystemRoute { network: *network, bits: *prefix, kind });
            }
            TargetPattern::Any => everything(&kind).into_iter().for_each(&mut add),
            // Names become addresses only when somebody asks for them.
            TargetPattern::Domain(_) | TargetPattern::Suffix(_) => {}
        }
    }
    let last = if whole { Some(RouteKind::Tunnel) } else { kind(&config.default_route) };
    if let Some(kind) = last {
        everything(&kind).into_iter().for_each(&mut add);
    }
    // Without a route into the tunnel behind it, "past it" says what the system does anyway.
    let leads_in = all.iter().any(|r| r.kind == RouteKind::Tunnel);
    if !leads_in {
        all.retain(|r| r.kind == RouteKind::Deny);
    }
    all
}

fn covers(wide: &SystemRoute, narrow: &SystemRoute) -> bool {
    wide.bits <= narrow.bits
        && TargetPattern::Network { network: wide.network, prefix: wide.bits }.covers_address(narrow.network)
}

/// Domains whose routes lead to `group`: the domain itself and all below it.
pub(super) fn domains(config: &DeviceConfig, group: &GroupName) -> Vec<String> {
    let ours = config.routes.iter().filter(|r| matches!(&r.via, Via::Group(via) if via == group));
    let domain = |pattern: &TargetPattern| match pattern {
        TargetPattern::Domain(name) | TargetPattern::Suffix(name) => Some(name.clone()),
        TargetPattern::Any | TargetPattern::Network { .. } => None,
    };
    let mut all: Vec<_> = ours.filter_map(|r| domain(&r.target)).collect();
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use hedgerow_proxy::acl;
    use hedgerow_proxy::target::Target;
    use hedgerow_shared::UnixTime;
    use hedgerow_shared::verify::config::{Audience, Head};
    use hedgerow_shared::verify::{Route, Version};

    use super::*;

    fn config(routes: &[(&str, &str)], default: &str) -> DeviceConfig {
        let route = |(target, via): &(&str, &str)| Route {
            target: target.parse().unwrap(),
            ports: Default::default(),
            via: via.parse().unwrap(),
        };
        DeviceConfig {
            authorities: Vec::new(),
            head: Head {
                tenant: "S12345678".parse().unwrap(),
                audience: Audience::Device,
                version: Version::default(),
                issued: UnixTime(0),
                expires: UnixTime(u64::MAX),
            },
            routes: routes.iter().map(route).collect(),
            default_route: default.parse().unwrap(),
        }
    }

    /// What a routing table does: the longest prefix.
    fn looked_up(routes: &[SystemRoute], address: IpAddr) -> Option<RouteKind> {
        let covering = routes
            .iter()
            .filter(|r| TargetPattern::Network { network: r.network, prefix: r.bits }.covers_address(address));
        covering.max_by_key(|r| r.bits).map(|r| r.kind.clone())
    }

    #[test]
    fn the_table_says_what_the_configuration_says() {
        let group: GroupName = "default".parse().unwrap();
        let config = config(
            &[
                ("10.1.2.0/24", "direct"),
                ("10.1.0.0/16", "group:default"),
                ("10.1.2.128/25", "deny"),
                ("10.0.0.0/8", "deny"),
                ("10.1.3.0/24", "direct"),
                ("*.corp.example", "group:default"),
                ("2001:db8::/32", "group:default"),
                ("192.0.2.0/24", "group:other"),
            ],
            "direct",
        );
        let routes = routes(&config, &group, false);
        for address in
            ["10.1.2.1", "10.1.2.200", "10.1.9.9", "10.1.3.1", "10.9.9.9", "8.8.8.8", "2001:db8::1", "2001::1"]
        {
            let expected = match acl::route(&config, &Target::new(address, 80).unwrap()).via {
                Via::Direct => RouteKind::Direct,
                Via::Deny => RouteKind::Deny,
                Via::Group(_) => RouteKind::Tunnel,
            };
            assert_eq!(looked_up(&routes, address.parse().unwrap()), Some(expected), "{address}");
        }
        assert_eq!(domains(&config, &group), ["corp.example"]);
    }

    #[test]
    fn a_whole_device_leaves_nothing_beside_the_tunnel_but_what_is_named() {
        let group: GroupName = "default".parse().unwrap();
        let config = config(&[("192.0.2.0/24", "direct")], "direct");
        assert!(routes(&config, &group, false).is_empty(), "nothing to do with a tunnel");
        let whole = routes(&config, &group, true);
        assert_eq!(looked_up(&whole, "8.8.8.8".parse().unwrap()), Some(RouteKind::Tunnel));
        assert_eq!(looked_up(&whole, "2001::1".parse().unwrap()), Some(RouteKind::Tunnel));
        assert_eq!(looked_up(&whole, "192.0.2.1".parse().unwrap()), Some(RouteKind::Direct));
    }
}
