//! Debian's sshd as a server inside, and its ssh as the client.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use crate::process::{self, Process, free_port, wait_until};

/// A running sshd that lets the test's own user in with a key made for it.
#[derive(Debug)]
pub struct Sshd {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    folder: tempfile::TempDir,
    _process: Process,
}

impl Sshd {
    /// Starts it.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().display().to_string();
        for name in ["host", "user"] {
            let _ = process::run(
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &format!("{dir}/{name}")]),
                Duration::from_secs(20),
            );
        }
        let port = free_port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/user.pub\nPidFile none\n\
             UsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nMaxStartups 100\n"
        );
        let file = folder.path().join("sshd_config");
        std::fs::write(&file, config).expect("a configuration");
        // Privilege separation wants this folder; Debian's service makes it at start.
        let _ = std::fs::create_dir_all("/run/sshd");
        let process = Process::start(
            Command::new("/usr/sbin/sshd").args(["-D", "-e", "-f"]).arg(&file),
            &folder.path().join("sshd.log"),
        );
        wait_until("sshd listens", Duration::from_secs(10), || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { port, folder, _process: process }
    }

    /// ssh with the key, to this port, without a look at the user's own configuration.
    #[must_use]
    pub fn client(&self) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-p", &self.port.to_string(), "-i"]).arg(self.folder.path().join("user"));
        for option in ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"] {
            ssh.args(["-o", option]);
        }
        ssh
    }
}
