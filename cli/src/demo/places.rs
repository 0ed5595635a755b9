//! The network namespaces of `--tunnel`: made at its start, removed at its end.
//!
//! ```text
//!   device 10.83.1.2 ──── 10.83.1.1 relay, core 10.83.2.1 ──── 10.83.2.2 node 10.83.3.1 ──── 10.83.3.2 intranet
//! ```
//!
//! Nobody has a route to a network that it is not in, but for the node's to the relay's public address: what gets from
//! the device to the intranet does so by the tunnel.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};
use tokio::process::Command;

use super::missing::search_path;
use super::warn;

/// How the demo's namespaces begin; the process id and a place follow.
const MARK: &str = "hgdemo";
/// Each place, and the letter that stands for it in the name.
const PLACES: [(&str, &str); 4] = [("device", "d"), ("relay", "r"), ("node", "n"), ("inside", "i")];
/// Where `ip` keeps the namespaces, and where it looks for their own files of /etc.
const FOLDERS: [&str; 2] = ["/run/netns", "/etc/netns"];

/// The relay's addresses: for devices, and for nodes and the core.
pub(super) const RELAY_OUTSIDE: &str = "10.83.1.1";
/// See `RELAY_OUTSIDE`.
pub(super) const RELAY_LINK: &str = "10.83.2.1";
/// The site's address.
pub(super) const INSIDE: &str = "10.83.3.2";
/// Another address of the same site that no rule allows.
pub(super) const DENIED: &str = "10.83.3.3";
/// The network of both.
pub(super) const NETWORK: &str = "10.83.3.0/24";

/// See the module.
pub(super) struct Places {
    prefix: String,
}

impl Places {
    /// The names of this process's namespaces; nothing is made yet.
    pub(super) fn new() -> Self {
        Self { prefix: format!("{MARK}{}-", std::process::id()) }
    }

    /// The namespace of a place, or of the role that runs there.
    pub(super) fn name(&self, place: &str) -> String {
        let place = match place {
            "core" | "outside" => "relay",
            "site" => "inside",
            other => other,
        };
        let letter = PLACES.iter().find(|(name, _)| *name == place).map_or(place, |(_, letter)| *letter);
        format!("{}{letter}", self.prefix)
    }

    /// A program in a place. `ip` becomes the program: the process id is the same.
    pub(super) fn program(&self, place: &str, program: &Path) -> Command {
        let mut command = ip();
        command.args(["netns", "exec", &self.name(place)]).arg(program);
        command
    }

    /// Makes the namespaces and the wires between them.
    pub(super) async fn lay_out(&self) -> anyhow::Result<()> {
        for (place, _) in PLACES {
            let name = self.name(place);
            run(&format!("netns add {name}")).await?;
            run(&format!("-n {name} link set lo up")).await?;
            let own = Path::new("/etc/netns").join(&name);
            let file = own.join("resolv.conf");
            // The device's is a name server outside, which does not know the intranet's names.
            std::fs::create_dir_all(&own)
                .and_then(|()| std::fs::write(&file, format!("nameserver {RELAY_OUTSIDE}\noptions timeout:2\n")))
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        self.connect(("device", "eth0", "10.83.1.2"), ("relay", "devices", RELAY_OUTSIDE)).await?;
        self.connect(("node", "eth0", "10.83.2.2"), ("relay", "nodes", RELAY_LINK)).await?;
        run(&format!("-n {} route add {RELAY_OUTSIDE} via {RELAY_LINK}", self.name("node"))).await?;
        self.connect(("node", "inside", "10.83.3.1"), ("inside", "eth0", INSIDE)).await?;
        run(&format!("-n {} addr add {DENIED}/24 dev eth0", self.name("inside"))).await
    }

    /// A wire: place, device and address at each end.
    async fn connect(&self, a: (&str, &str, &str), b: (&str, &str, &str)) -> anyhow::Result<()> {
        let (at_a, at_b) = (self.name(a.0), self.name(b.0));
        run(&format!("link add name {} netns {at_a} type veth peer name {} netns {at_b}", a.1, b.1)).await?;
        for (place, (_, device, address)) in [(at_a, a), (at_b, b)] {
            run(&format!("-n {place} addr add {address}/24 dev {device}")).await?;
            run(&format!("-n {place} link set {device} up")).await?;
        }
        Ok(())
    }

    /// Removes what demos left that were killed. The names of it.
    pub(super) fn sweep() -> Vec<String> {
        let left: Vec<String> = names().into_iter().filter(|name| !in_use(name)).collect();
        left.iter().for_each(|name| remove(name));
        left
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for name in names().iter().filter(|name| name.starts_with(&self.prefix)) {
            remove(name);
        }
    }
}

/// Every namespace, or folder of one, that a demo has made.
fn names() -> BTreeSet<String> {
    let entries = FOLDERS.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).filter(|name| owner(name).is_some()).collect()
}

/// The process that made a namespace.
fn owner(name: &str) -> Option<u32> {
    let (pid, place) = name.strip_prefix(MARK)?.split_once('-')?;
    PLACES.iter().any(|(_, letter)| *letter == place).then(|| pid.parse().ok())?
}

/// Whether the demo that made it still runs; another program with its process id is none.
fn in_use(name: &str) -> bool {
    let called = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    let owner = owner(name).filter(|pid| *pid != std::process::id()).and_then(|pid| called(&pid.to_string()));
    owner.is_some() && owner == called("self")
}

fn remove(name: &str) {
    let [namespace, folder] = FOLDERS.map(|folder| Path::new(folder).join(name));
    if namespace.exists() {
        let mut ip = std::process::Command::new("ip");
        let removed = ip.env("PATH", search_path()).args(["netns", "del", name]).stdin(Stdio::null()).output();
        if !removed.as_ref().is_ok_and(|o| o.status.success()) {
            warn(&format!("the namespace {name} is left: `ip netns del {name}` ({removed:?})"));
        }
    }
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            warn(&format!("{} is left: {error}", folder.display()));
        }
        Ok(()) | Err(_) => {}
    }
}

/// Runs `ip` to its end.
async fn run(words: &str) -> anyhow::Result<()> {
    let output = ip().args(words.split(' ')).output().await.context("cannot start ip")?;
    if !output.status.success() {
        bail!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn ip() -> Command {
    let mut command = Command::new("ip");
    command.env("PATH", search_path()).stdin(Stdio::null()).kill_on_drop(true);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_demo_made_is_a_demos() {
        assert_eq!(owner("hgdemo123-d"), Some(123));
        for other in ["hgdemo-d", "hgdemo123-x", "hgdemo123", "hg123d1", "hgdemo12a-d", "mine"] {
            assert_eq!(owner(other), None, "{other}");
        }
        let places = Places::new();
        assert_eq!(owner(&places.name("core")), Some(std::process::id()));
        assert_eq!(places.name("core"), places.name("relay"));
        assert_ne!(places.name("site"), places.name("node"));
    }

    #[test]
    fn what_a_dead_process_made_is_not_in_use() {
        assert!(!in_use(&format!("{MARK}{}-d", u32::MAX)));
        // Process 1 is no demo.
        assert!(!in_use(&format!("{MARK}1-d")));
    }
}
