//! What carries packets between client and inside: nothing, this product, or what a user could pick instead.

use std::path::{Path, PathBuf};

use anyhow::bail;

use super::ground::{Ground, Place, SERVER, ip};
use super::{peers, product};
use crate::process::cpu_of_tree;

/// A subject that works. Its processes and namespaces end with it.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) ground: Ground,
    /// Part and process: `client end`, `hop`, `server end`.
    pub(crate) parts: Vec<(&'static str, u32)>,
    /// What this product's packets must go by; absent for others.
    pub(crate) way: Option<product::Way>,
}

impl Subject {
    /// Fails when its packets have gone by another way than the one that it stands for.
    pub(crate) fn check_way(&self) -> anyhow::Result<()> {
        if self.way.is_some_and(|way| !product::is_by(&self.ground, way)) {
            bail!("the tunnel left its way:\n{}", self.ground.log("device"));
        }
        Ok(())
    }

    /// CPU seconds that each part has used so far, with what it started.
    pub(crate) fn cpu(&self) -> Vec<(&'static str, f64)> {
        PARTS
            .iter()
            .filter(|part| self.parts.iter().any(|(p, _)| p == *part))
            .map(|part| {
                let own = self.parts.iter().filter(|(p, _)| p == part);
                (*part, own.map(|(_, pid)| cpu_of_tree(*pid)).sum())
            })
            .collect()
    }
}

const PARTS: [&str; 3] = ["client end", "hop", "server end"];

/// The names of all subjects, in the order they are measured.
pub(crate) const ALL: &[&str] =
    &["direct", "hedgerow-udp", "hedgerow-link", "ocserv", "ocserv+hop", "boringtun", "boringtun+hop"];

/// What the product over UDP is compared with: it has a hop too.
pub(crate) const RIVALS: [&str; 2] = ["ocserv+hop", "boringtun+hop"];

/// Starts a subject on a ground of its own; `number` tells grounds apart.
pub(crate) fn start(name: &str, number: usize, binary: &Path) -> anyhow::Result<Subject> {
    let ground = Ground::new(number)?;
    match name {
        "direct" => direct(ground),
        "hedgerow-udp" => product::start("hedgerow-udp", ground, binary, product::Way::Udp),
        "hedgerow-link" => product::start("hedgerow-link", ground, binary, product::Way::Link),
        "ocserv" => peers::ocserv("ocserv", ground, false),
        "ocserv+hop" => peers::ocserv("ocserv+hop", ground, true),
        "boringtun" => peers::boringtun("boringtun", ground, false),
        "boringtun+hop" => peers::boringtun("boringtun+hop", ground, true),
        other => bail!("no subject {other:?}; there are: {}", ALL.join(", ")),
    }
}

/// The kernel routes at hop and server: no tunnel.
fn direct(ground: Ground) -> anyhow::Result<Subject> {
    ground.route_at(Place::Hop)?;
    ground.route_at(Place::Server)?;
    ip(&format!("-n {} route add 10.71.3.0/24 via {SERVER}", ground.netns(Place::Hop)))?;
    ground.wait_for_inside(&[])?;
    Ok(Subject { name: "direct", ground, parts: vec![], way: None })
}

/// Fails when something is not installed: figures without their peers say nothing.
pub(crate) fn check(names: &[String]) -> anyhow::Result<()> {
    // SAFETY: geteuid has no preconditions and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!("this bench needs root: network namespaces and TUN devices");
    }
    if !Path::new("/dev/net/tun").exists() {
        bail!("this bench needs TUN devices, and /dev/net/tun is missing");
    }
    let mut wanted = vec!["ip", "iperf3", "ping", "curl", "nft"];
    for (peer, programs) in [
        ("ocserv", &["ocserv", "ocpasswd", "openconnect", "openssl"][..]),
        ("boringtun", &["wg"]),
        ("+hop", &["socat"]),
    ] {
        if names.iter().any(|n| n.contains(peer)) {
            wanted.extend(programs);
        }
    }
    let folders: Vec<PathBuf> = std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
    let missing: Vec<&str> =
        wanted.into_iter().filter(|program| !folders.iter().any(|f| f.join(program).exists())).collect();
    if !missing.is_empty() {
        bail!("missing: {}; run benches/peers/install", missing.join(", "));
    }
    if names.iter().any(|n| n.contains("boringtun")) && !peers::boringtun_binary().exists() {
        bail!("boringtun is missing: run benches/peers/install");
    }
    Ok(())
}
