//! What the system is told while the tunnel is up, and how it is put back, also by another process after this one was
//! killed.
//!
//! Routes stand in a table of their own that a rule asks before all others, except for this process's own sockets, which
//! are marked: the relay is reached past the tunnel whatever the routes say. The TUN device and its routes go with the
//! process; the rules, and what was written to resolv.conf, are put back from a journal in the state folder.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use hedgerow_runtime::disk;
use hedgerow_tunnel::system::{family, ip};
use serde::{Deserialize, Serialize};

/// The mark of this process's sockets, the number of the routing table, and the rules' priority.
pub(super) const NUMBER: u32 = 3101;
/// The rule that leaves networks of the machine's own alone, where that is wanted.
const LOCAL: u32 = NUMBER - 1;
/// The journal in the state folder.
const JOURNAL: &str = "tunnel-journal.json";
/// The first line of a resolv.conf that is ours.
pub(super) const SIGNATURE: &str = "# written by hedgerow device; put back by `hedgerow device cleanup`";

/// What is to be put back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    /// The file with name servers, when it was changed.
    #[serde(default)]
    pub(super) resolv_conf: Option<Original>,
}

/// A file as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Original {
    pub(super) path: PathBuf,
    /// Its text,
    pub(super) text: String,
    /// or where it pointed.
    pub(super) link: Option<PathBuf>,
}

/// Where packets are to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RouteKind {
    /// Into the tunnel.
    Tunnel,
    /// Past it.
    Direct,
    /// Nowhere.
    Deny,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SystemRoute {
    pub(super) network: IpAddr,
    pub(super) bits: u8,
    pub(super) kind: RouteKind,
}

/// Gives the TUN device its addresses and brings it up.
pub(super) async fn addresses(device: &str, addresses: &[IpAddr]) -> anyhow::Result<()> {
    // Without it the kernel makes a link-local address, and asks for routers, at every start.
    ip(&format!("link set dev {device} addrgenmode none")).await?;
    ip(&format!("addr flush dev {device}")).await?;
    for address in addresses {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        ip(&format!("{} addr add {address}/{bits} dev {device}", family(*address))).await?;
    }
    ip(&format!("link set dev {device} up")).await?;
    Ok(())
}

/// Puts these routes in force, in place of those before.
pub(super) async fn routes(
    device: &str,
    sources: &[IpAddr],
    routes: &[SystemRoute],
    local_network: bool,
) -> anyhow::Result<()> {
    unroute().await;
    for route in routes {
        let family = family(route.network);
        let to = format!("{}/{}", route.network, route.bits);
        let source = sources.iter().find(|s| s.is_ipv4() == route.network.is_ipv4());
        match (&route.kind, source) {
            (RouteKind::Tunnel, Some(source)) => {
                ip(&format!("{family} route replace {to} dev {device} src {source} table {NUMBER}")).await?;
            }
            // Into a tunnel that does not carry this family: nowhere, rather than past it.
            (RouteKind::Tunnel, None) => {
                // A system without IPv6 has nothing to keep in.
                let _ = ip(&format!("{family} route replace unreachable {to} table {NUMBER}")).await;
            }
            (RouteKind::Direct, _) => _ = ip(&format!("{family} route replace throw {to} table {NUMBER}")).await?,
            (RouteKind::Deny, _) => _ = ip(&format!("{family} route replace prohibit {to} table {NUMBER}")).await?,
        }
    }
    for family in ["-4", "-6"] {
        let rule = format!("{family} rule add pref {NUMBER} not fwmark {NUMBER} lookup {NUMBER}");
        match ip(&rule).await {
            Ok(_) => {}
            Err(error) if family == "-6" => tracing::debug!(%error, "this system has no IPv6"),
            Err(error) => return Err(error.into()),
        }
        if local_network {
            let rule = format!("{family} rule add pref {LOCAL} lookup main suppress_prefixlength 0");
            let added = ip(&rule).await;
            if family == "-4" {
                added?;
            }
        }
    }
    Ok(())
}

/// One more route into the tunnel: an address that a name has.
pub(super) async fn route_address(device: &str, address: IpAddr, source: IpAddr) -> anyhow::Result<()> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let to = format!("{address}/{bits}");
    ip(&format!("{} route replace {to} dev {device} src {source} table {NUMBER}", family(address))).await?;
    Ok(())
}

/// Takes it away again.
pub(super) async fn unroute_address(device: &str, address: IpAddr) {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    // Gone with the others, where it is gone already.
    let _ = ip(&format!("{} route del {address}/{bits} dev {device} table {NUMBER}", family(address))).await;
}

/// Takes rules and routes away. What is not there is no error: another process may have been killed at any point.
pub(super) async fn unroute() {
    for family in ["-4", "-6"] {
        for pref in [NUMBER, LOCAL] {
            // One at a time; at most as many as two processes can have left.
            for _ in 0..4 {
                if ip(&format!("{family} rule del pref {pref}")).await.is_err() {
                    break;
                }
            }
        }
        let _ = ip(&format!("{family} route flush table {NUMBER}")).await;
    }
}

/// Takes over resolv.conf: the text as it was is written to the journal first.
pub(super) fn take_resolv_conf(state: &Path, path: &Path, text: &str) -> anyhow::Result<()> {
    let link = fs::read_link(path).ok();
    let now = fs::read_to_string(path).unwrap_or_default();
    if !now.starts_with(SIGNATURE) {
        let original = Original { path: path.to_owned(), text: now, link: link.clone() };
        write_journal(state, &Journal { resolv_conf: Some(original) })?;
    }
    if link.is_some() {
        // What it points to belongs to somebody else.
        fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Puts back what the journal names. Whether there was anything.
pub(super) fn restore(state: &Path) -> anyhow::Result<bool> {
    let Some(journal) = read_journal(state)? else { return Ok(false) };
    if let Some(original) = &journal.resolv_conf {
        let path = &original.path;
        let now = fs::read_to_string(path).unwrap_or_default();
        // Somebody else has written it since: his counts.
        if now.starts_with(SIGNATURE) {
            let put = match &original.link {
                Some(link) => fs::remove_file(path).and_then(|()| std::os::unix::fs::symlink(link, path)),
                None => fs::write(path, &original.text),
            };
            put.with_context(|| format!("cannot put back {}", path.display()))?;
        }
    }
    fs::remove_file(state.join(JOURNAL)).context("cannot remove the journal")?;
    Ok(true)
}

pub(super) fn read_journal(state: &Path) -> anyhow::Result<Option<Journal>> {
    let path = state.join(JOURNAL);
    match fs::read(&path) {
        Ok(bytes) => {
            let journal = serde_json::from_slice(&bytes);
            Ok(Some(journal.with_context(|| format!("{} is damaged: put back resolv.conf by hand", path.display()))?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn write_journal(state: &Path, journal: &Journal) -> anyhow::Result<()> {
    let path = state.join(JOURNAL);
    let bytes = serde_json::to_vec_pretty(journal).unwrap_or_default();
    disk::replace(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_put_back_as_it_was_and_not_over_somebody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        let ours = format!("{SIGNATURE}\nnameserver 127.0.0.153\n");
        take_resolv_conf(folder.path(), &path, &ours).unwrap();
        // A second process after the first was killed: the original is not forgotten.
        take_resolv_conf(folder.path(), &path, &ours).unwrap();
        assert!(restore(folder.path()).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.1\n");
        assert!(!restore(folder.path()).unwrap());

        take_resolv_conf(folder.path(), &path, &ours).unwrap();
        fs::write(&path, "nameserver 192.0.2.2\n").unwrap();
        restore(folder.path()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.2\n");
    }

    #[test]
    fn a_link_is_put_back_as_a_link_and_its_target_is_never_written() {
        let folder = tempfile::tempdir().unwrap();
        let (path, target) = (folder.path().join("resolv.conf"), folder.path().join("stub"));
        fs::write(&target, "nameserver 127.0.0.53\n").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        take_resolv_conf(folder.path(), &path, &format!("{SIGNATURE}\n")).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(fs::read_to_string(&target).unwrap(), "nameserver 127.0.0.53\n");
        restore(folder.path()).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), target);
    }
}
