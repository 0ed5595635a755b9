//! `[tunnel]` of the node's file.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hedgerow_secure_connect::pool::{Pool, Prefix};
use hedgerow_secure_connect::session::mtu;
use serde::{Deserialize, Serialize};

/// IP tunnels of devices. The node then needs CAP_NET_ADMIN, `ip` (iproute2) and, to masquerade, `nft` (nftables).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TunnelConfig {
    /// Whether devices get any.
    pub enabled: bool,
    /// The TUN device's name, at most 15 characters.
    pub device: String,
    /// Where devices' IPv4 addresses come from. No other node of this network may use it.
    pub pool: String,
    /// The same for IPv6; none when empty.
    pub pool6: String,
    /// `masquerade`: servers see the node's address. `routed`: they see the device's, and the network must have a route
    /// for the pools to this node.
    pub mode: Mode,
    /// Name servers that devices are to ask, `address` or `address:port`; they may be asked whatever the rules say.
    pub dns: Vec<String>,
    /// The domains that devices ask them about; every name when empty.
    pub suffixes: Vec<String>,
    /// Whether devices reach each other.
    pub device_to_device: bool,
    /// Tunnels at once.
    pub limit: usize,
    /// Seconds without packets after which a tunnel is ended.
    pub idle_seconds: u32,
    /// Seconds after which a tunnel is ended, so that another with new keys takes its place.
    pub lifetime_seconds: u32,
    /// The largest IP packet, bytes.
    pub mtu: u16,
}

/// How packets leave the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// With the node's own address.
    Masquerade,
    /// With the device's.
    Routed,
}

impl Default for TunnelConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            device: "hedgerow0".into(),
            pool: "100.96.0.0/16".into(),
            pool6: String::new(),
            mode: Mode::Masquerade,
            dns: Vec::new(),
            suffixes: Vec::new(),
            device_to_device: false,
            limit: 10_000,
            idle_seconds: 3600,
            lifetime_seconds: 24 * 3600,
            mtu: mtu::MOST,
        }
    }
}

impl TunnelConfig {
    /// What is wrong, each with its key.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(problem) = self.pool() {
            problems.push(problem);
        }
        if let Err(problem) = self.dns() {
            problems.push(problem);
        }
        let named = (1..=15).contains(&self.device.len())
            && self.device.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !named {
            problems.push("tunnel.device: expected a name of at most 15 letters, digits, `-`, `_`, `.`".into());
        }
        if let Some(bad) = self.suffixes.iter().find(|s| hedgerow_shared::verify::policy::normal_name(s).is_none()) {
            problems.push(format!("tunnel.suffixes: {bad:?} is not a domain"));
        }
        if self.limit == 0 {
            problems.push("tunnel.limit: must be at least 1".into());
        }
        if !(10..=7 * 24 * 3600).contains(&self.idle_seconds) {
            problems.push("tunnel.idle_seconds: expected 10 to 604800".into());
        }
        if !(60..=7 * 24 * 3600).contains(&self.lifetime_seconds) {
            problems.push("tunnel.lifetime_seconds: expected 60 to 604800".into());
        }
        if !(mtu::FLOOR..=mtu::MOST).contains(&self.mtu) {
            problems.push(format!("tunnel.mtu: expected {} to {}", mtu::FLOOR, mtu::MOST));
        }
        problems
    }

    /// The addresses that devices get.
    ///
    /// # Errors
    /// The key that is wrong, and why.
    pub fn pool(&self) -> Result<Pool, String> {
        let v4: Prefix = self.pool.parse().map_err(|e| format!("tunnel.pool: {e}"))?;
        let v6 = match self.pool6.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|e| format!("tunnel.pool6: {e}"))?),
        };
        Pool::new(v4, v6).map_err(|e| format!("tunnel.pool: {e}"))
    }

    /// The name servers.
    ///
    /// # Errors
    /// One of them is no address.
    pub fn dns(&self) -> Result<Vec<SocketAddr>, String> {
        let one = |text: &String| {
            let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)).or_else(|_| text.parse());
            address.map_err(|_| format!("tunnel.dns: {text:?} is not an address"))
        };
        self.dns.iter().map(one).collect()
    }

    /// `idle_seconds`.
    #[must_use]
    pub fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_seconds.into())
    }

    /// `lifetime_seconds`.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        Duration::from_secs(self.lifetime_seconds.into())
    }
}
