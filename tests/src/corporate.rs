//! Proxies as corporations run them, Debian's own: squid and dante, both with user name and password.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::process::{Process, free_port, run, wait_until};

/// The account at every proxy here.
pub const USER: &str = "corpuser";
/// Its password.
pub const PASSWORD: &str = "correct horse";
/// From where squid dials, so that the relay sees who came through it.
pub const SQUID: &str = "127.0.7.1";

/// A running proxy.
#[derive(Debug)]
pub struct CorporateProxy {
    /// Where it listens.
    pub port: u16,
    folder: tempfile::TempDir,
    _process: Process,
}

impl CorporateProxy {
    /// Debian's squid with Debian's configuration: its port rules (`Safe_ports`, `SSL_ports`: CONNECT to 443 only) stay
    /// as they are, and Basic authentication is added. `hosts` are lines of a hosts file that only squid reads.
    #[must_use]
    pub fn squid(hosts: &str) -> Self {
        let (folder, port) = (open_folder(), free_port());
        let dir = folder.path().display().to_string();
        let mut htpasswd = Command::new("htpasswd");
        let _ = run(htpasswd.args(["-bc", &format!("{dir}/users"), USER, PASSWORD]), Duration::from_secs(20));
        readable(&folder.path().join("users"));
        std::fs::write(folder.path().join("hosts"), hosts).expect("a file");
        let debian = std::fs::read_to_string("/etc/squid/squid.conf").expect("Debian's squid; tests/run installs it");
        for rule in ["http_access deny !Safe_ports", "http_access deny CONNECT !SSL_ports", "acl SSL_ports port 443"] {
            assert!(debian.lines().any(|l| l.trim() == rule), "squid.conf is not Debian's: no {rule:?}");
        }
        let authentication = format!(
            "\nauth_param basic program /usr/lib/squid/basic_ncsa_auth {dir}/users\nauth_param basic realm corp\n\
             acl users proxy_auth REQUIRED\nhttp_access allow users\nhttp_access deny all\n"
        );
        let config = debian
            .replace("\nhttp_port 3128\n", &format!("\nhttp_port 127.0.0.1:{port}\n"))
            .replace("\ninclude /etc/squid/conf.d/*.conf\n", &authentication);
        let own = format!(
            "\npid_filename {dir}/pid\naccess_log stdio:{dir}/access.log\ncache_log {dir}/cache.log\ncoredump_dir {dir}\n\
             hosts_file {dir}/hosts\nshutdown_lifetime 0 seconds\npinger_enable off\nnetdb_filename none\n\
             tcp_outgoing_address {SQUID}\n"
        );
        std::fs::write(folder.path().join("squid.conf"), config + &own).expect("a configuration");
        let mut squid = Command::new("squid");
        squid.args(["-N", "-f", &format!("{dir}/squid.conf")]);
        Self::start("squid", &mut squid, folder, port)
    }

    /// Debian's dante. It knows system users only, so it gets a `passwd`, `shadow` and `hosts` of its own in a mount
    /// namespace of its own.
    #[must_use]
    pub fn dante(hosts: &str) -> Self {
        let (folder, port) = (open_folder(), free_port());
        let dir = folder.path().display().to_string();
        let hash = run(Command::new("openssl").args(["passwd", "-6", PASSWORD]), Duration::from_secs(20)).stdout;
        let hash = String::from_utf8(hash).expect("a hash").trim().to_owned();
        let with = |file: &str, line: &str| {
            let text = std::fs::read_to_string(format!("/etc/{file}")).expect("root reads it");
            std::fs::write(folder.path().join(file), format!("{text}\n{line}\n")).expect("a file");
        };
        with("passwd", &format!("{USER}:x:54321:65534::/nonexistent:/usr/sbin/nologin"));
        with("shadow", &format!("{USER}:{hash}:19000:0:99999:7:::"));
        with("hosts", hosts);
        let config = format!(
            "logoutput: {dir}/access.log\ninternal: 127.0.0.1 port = {port}\nexternal: 127.0.0.1\nsocksmethod: username\n\
             clientmethod: none\nuser.privileged: root\nuser.unprivileged: nobody\n\
             client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}\n\
             socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0\n command: connect\n log: connect error\n}}\n"
        );
        std::fs::write(folder.path().join("danted.conf"), config).expect("a configuration");
        let script = format!(
            "for f in passwd shadow hosts; do mount --bind {dir}/$f /etc/$f || exit 1; done; \
             exec danted -f {dir}/danted.conf -p {dir}/pid"
        );
        let mut dante = Command::new("unshare");
        dante.args(["--mount", "sh", "-c", &script]);
        Self::start("danted", &mut dante, folder, port)
    }

    fn start(name: &str, command: &mut Command, folder: tempfile::TempDir, port: u16) -> Self {
        let log = folder.path().join("out.log");
        let process = Process::start(command, &log);
        wait_until(&format!("{name} listens"), Duration::from_secs(20), || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self { port, folder, _process: process }
    }

    /// What it noted of connections.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default()
    }
}

/// A folder that a proxy's own user can write to.
fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).expect("permissions");
    folder
}

fn readable(file: &Path) {
    std::fs::set_permissions(file, PermissionsExt::from_mode(0o644)).expect("permissions");
}

/// A password file as `outbound.proxy_password_file` wants it; its path.
#[must_use]
pub fn password_file(path: &str, password: &str) -> String {
    std::fs::write(path, password).expect("a file");
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).expect("permissions");
    path.to_owned()
}
