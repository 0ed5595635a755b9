//! What `--tunnel` needs of the machine, looked at before anything is changed.

use std::ffi::OsString;
use std::path::Path;

use anyhow::bail;

/// Bits of `CapEff` in `/proc/self/status`: what the roles need, each with its name.
const RIGHTS: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (21, "CAP_SYS_ADMIN")];
const TUN: &str = "/dev/net/tun";

/// Says everything that is missing, and what to do about it.
///
/// # Errors
/// Something is.
pub(super) fn check() -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let missing = all(root(), &status, Path::new(TUN), &search_path());
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "`hedgerow demo --tunnel` makes network namespaces and TUN devices; here it cannot:\n\n{}\n\n\
         Nothing was changed. `hedgerow demo` without --tunnel needs none of this.",
        missing.iter().map(|m| format!("  - {m}")).collect::<Vec<_>>().join("\n")
    );
}

/// `PATH`, and where Debian keeps `ip` and `nft`, which some root shells do not have in it.
pub(super) fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    path.push(":/usr/sbin:/sbin");
    path
}

fn root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn all(root: bool, status: &str, tun: &Path, path: &OsString) -> Vec<String> {
    let mut missing = Vec::new();
    if !root {
        missing.push("it does not run as root: start it with `sudo`, or in a shell of root".to_owned());
    }
    let rights: Vec<&str> = RIGHTS.iter().filter(|(bit, _)| !may(status, *bit)).map(|(_, name)| *name).collect();
    if root && !rights.is_empty() {
        missing.push(format!(
            "root here has no {}: give the container these rights, such as `docker run --privileged`",
            rights.join(", ")
        ));
    }
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(tun).err();
    // Who is not root is told so already, and may not be allowed to open it either.
    if let Some(why) = opened.filter(|e| root || e.kind() != std::io::ErrorKind::PermissionDenied) {
        missing.push(format!(
            "{} cannot be opened ({why}): `modprobe tun`; in a container: `docker run --device {TUN}`",
            tun.display()
        ));
    }
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        if !std::env::split_paths(path).any(|folder| folder.join(program).is_file()) {
            missing.push(format!("`{program}` is not installed: `apt-get install {package}`"));
        }
    }
    missing
}

/// Whether a right is in force; what cannot be read is not held against anybody.
fn may(status: &str, bit: u32) -> bool {
    let held = status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("CapEff:")?.trim(), 16).ok());
    held.is_none_or(|held| held >> bit & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_missing_is_named_at_once() {
        let none = OsString::from("/nonexistent");
        let missing = all(true, "CapEff:\t0000000000001000\n", Path::new("/nonexistent/tun"), &none).join("\n");
        for word in ["CAP_NET_RAW, CAP_SYS_ADMIN", "/nonexistent/tun", "iproute2", "nftables"] {
            assert!(missing.contains(word), "{missing}");
        }
        assert!(!missing.contains("CAP_NET_ADMIN"), "{missing}");
        assert!(all(false, "", Path::new("/dev/null"), &none)[0].contains("sudo"));
    }

    #[test]
    fn nothing_missing_is_nothing_said() {
        let folder = tempfile::tempdir().unwrap();
        for program in ["ip", "nft"] {
            std::fs::write(folder.path().join(program), "").unwrap();
        }
        let path = folder.path().as_os_str().to_owned();
        assert_eq!(all(true, "CapEff:\t000001ffffffffff\n", Path::new("/dev/null"), &path), Vec::<String>::new());
    }
}
