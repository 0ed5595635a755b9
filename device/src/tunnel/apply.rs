//! What the system is told of a tunnel that is up: addresses, routes, name servers.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use hedgerow_runtime::network;
use hedgerow_shared::verify::DeviceConfig;

use super::system::{self, RouteKind, SystemRoute};
use super::{Inner, Up, dns, routes};
use crate::config::TunnelRoutes;

impl Inner {
    /// Addresses, routes, name servers. With `fresh` the device is new to them.
    pub(super) async fn tell_system(&self, up: &Up, fresh: bool) -> anyhow::Result<()> {
        let own: Vec<IpAddr> =
            [Some(up.grant.v4.into()), up.grant.v6.map(IpAddr::from)].into_iter().flatten().collect();
        if fresh {
            network::own(own.clone());
            self.tun.set_mtu(up.end.mtu())?;
            system::addresses(self.tun.name(), &own).await?;
        }
        let config = self.config.borrow().clone();
        let mut routes = Vec::new();
        // The name servers, wherever they stand.
        let host = |network: &IpAddr| SystemRoute {
            network: *network,
            bits: if network.is_ipv4() { 32 } else { 128 },
            kind: RouteKind::Tunnel,
        };
        if self.file.dns {
            routes.extend(up.grant.dns.iter().map(host));
        }
        let whole = self.file.routes == TunnelRoutes::All;
        if let Some(config) = &config {
            routes.extend(routes::routes(config, &self.file.group, whole));
        }
        self.told.fetch_add(1, Ordering::Relaxed);
        system::routes(self.tun.name(), &own, &routes, self.file.local_network).await?;
        self.resolve_inside(up, config.as_ref())
    }

    fn resolve_inside(&self, up: &Up, config: Option<&DeviceConfig>) -> anyhow::Result<()> {
        let Some(forwarder) = &self.forwarder else { return Ok(()) };
        let path = &self.file.resolv_conf;
        let original = match system::read_journal(&self.state.dir)?.and_then(|j| j.resolv_conf) {
            Some(original) => original.text,
            None => std::fs::read_to_string(path).unwrap_or_default(),
        };
        let mut suffixes: Vec<String> = up.grant.suffixes.clone();
        suffixes.extend(config.map(|c| routes::domains(c, &self.file.group)).unwrap_or_default());
        let whole = self.file.routes == TunnelRoutes::All || (suffixes.is_empty() && !up.grant.dns.is_empty());
        let host = |address: &String| address.rsplit_once(':').map(|(host, _)| host.to_ascii_lowercase());
        let relays = self.state.relay.targets()?;
        let mut never_inside: Vec<String> = relays.iter().map(|r| r.name.to_ascii_lowercase()).collect();
        never_inside.extend(relays.iter().flat_map(|r| &r.addresses).filter_map(host));
        forwarder.set(dns::Split {
            inside: up.grant.dns.iter().map(|ip| (*ip, 53).into()).collect(),
            suffixes: if whole { Vec::new() } else { suffixes.clone() },
            outside: dns::servers_of(&original),
            never_inside,
        });
        if up.grant.dns.is_empty() {
            return Ok(());
        }
        let text = dns::resolv_conf(self.file.dns_listen, &original, &up.grant.suffixes);
        system::take_resolv_conf(&self.state.dir, path, &text)
    }

    /// While the tunnel is down, names are asked where they were asked before it.
    pub(super) fn resolve_outside(&self) {
        let Some(forwarder) = &self.forwarder else { return };
        let original = system::read_journal(&self.state.dir).ok().flatten().and_then(|j| j.resolv_conf);
        let outside = original.map(|o| dns::servers_of(&o.text)).unwrap_or_default();
        forwarder.set(dns::Split { outside, ..dns::Split::default() });
    }
}
