//! The TUN device, its addresses, forwarding, and the rule that masquerades; all of it is undone at the end, and what a
//! process that was killed left behind is replaced at the next start.

use std::net::IpAddr;

use anyhow::Context as _;
use hedgerow_runtime::network;
use hedgerow_secure_connect::pool::Pool;
use hedgerow_tunnel::system::{self, ip, nft};
use hedgerow_tunnel::{Tun, TunSetup};

use super::config::{Mode, TunnelConfig};

/// The nftables table that is ours.
const TABLE: &str = "hedgerow_tunnel";
/// What the kernel has to be told to forward, and for which family.
const FORWARDING: [(&str, bool); 2] =
    [("/proc/sys/net/ipv4/ip_forward", true), ("/proc/sys/net/ipv6/conf/all/forwarding", false)];

/// Makes everything.
///
/// # Errors
/// What is missing: a privilege, a program, a free name.
pub(crate) async fn up(config: &TunnelConfig, pool: &Pool) -> anyhow::Result<Tun> {
    let made = Tun::open(&TunSetup { name: config.device.clone(), mtu: config.mtu });
    let tun = made.with_context(|| {
        format!(
            "cannot make the TUN device {}: tunnels need /dev/net/tun and CAP_NET_ADMIN (run as root, or in systemd \
             AmbientCapabilities=CAP_NET_ADMIN); [tunnel] enabled = false does without",
            config.device
        )
    })?;
    let gateway = pool.gateway();
    network::own([Some(gateway.v4.into()), gateway.v6.map(IpAddr::from)].into_iter().flatten().collect());
    for prefix in pool.prefixes() {
        let (family, bits) = (system::family(prefix.network()), prefix.bits());
        let own: IpAddr = match prefix.network() {
            IpAddr::V4(_) => gateway.v4.into(),
            IpAddr::V6(_) => gateway.v6.map_or(prefix.network(), IpAddr::from),
        };
        ip(&format!("{family} addr add {own}/{bits} dev {}", tun.name())).await?;
    }
    ip(&format!("link set dev {} addrgenmode none", tun.name())).await?;
    ip(&format!("link set dev {} up", tun.name())).await?;
    for (path, is_v4) in FORWARDING {
        if is_v4 || gateway.v6.is_some() {
            forward(path)?;
        }
    }
    if config.mode == Mode::Masquerade {
        masquerade(config, pool).await?;
    }
    Ok(tun)
}

/// Other programs may rely on it by now: what was switched on stays on.
fn forward(path: &str) -> anyhow::Result<()> {
    let now = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    if now.trim() != "0" {
        return Ok(());
    }
    std::fs::write(path, "1").with_context(|| format!("cannot switch on forwarding: write 1 to {path} as root"))
}

async fn masquerade(config: &TunnelConfig, pool: &Pool) -> anyhow::Result<()> {
    let device = &config.device;
    let mut rules = format!("table inet {TABLE} {{}}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
    rules += "  chain postrouting {\n    type nat hook postrouting priority srcnat;\n";
    for prefix in pool.prefixes() {
        let family = if prefix.network().is_ipv4() { "ip" } else { "ip6" };
        rules += &format!("    {family} saddr {prefix} oifname != \"{device}\" masquerade\n");
    }
    rules += "  }\n";
    // Only answers come back: nobody inside begins a connection to a device that he cannot see.
    rules += "  chain forward {\n    type filter hook forward priority filter;\n";
    rules += &format!("    oifname \"{device}\" iifname != \"{device}\" ct state new drop\n  }}\n}}\n");
    nft(&rules).await.context("cannot masquerade; [tunnel] mode = \"routed\" does without nftables")
}

/// Undoes what outlives the TUN device.
pub(crate) async fn down(config: &TunnelConfig) {
    if config.mode == Mode::Masquerade
        && let Err(error) = nft(&format!("delete table inet {TABLE}\n")).await
    {
        tracing::warn!(%error, "the rule that masquerades stays");
    }
}

/// Every address of this machine: devices reach none of them.
pub(crate) async fn own_addresses() -> Vec<IpAddr> {
    let listed = ip("-o addr show").await.inspect_err(|error| tracing::warn!(%error, "this node's own addresses"));
    let listed = listed.unwrap_or_default();
    // `2: eth0    inet 10.1.2.3/24 brd ...`
    let address = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|w| !matches!(*w, "inet" | "inet6"));
        words.nth(1)?.split('/').next()?.parse().ok()
    };
    listed.lines().filter_map(address).collect()
}
