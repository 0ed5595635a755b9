//! Work on a device that lasts: an ssh session and a long download, both through the device's local proxy, both checked
//! byte by byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use crate::curl::curl;
use crate::nginx::{Nginx, sha256};
use crate::process::wait_until;
use crate::ssh::Sshd;

const SOON: Duration = Duration::from_secs(60);

const SIZE: u64 = 1 << 30;

/// A device's SOCKS5 proxy.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// `host:port`.
    pub socks5: String,
    /// The network namespace that it listens in.
    pub netns: Option<String>,
}

impl Proxy {
    /// The same command, in the proxy's namespace.
    #[must_use]
    pub fn beside(&self, command: Command) -> Command {
        let Some(netns) = &self.netns else { return command };
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", netns]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }
}

/// An ssh session that answers line by line: Debian's ssh through the device's proxy to Debian's sshd.
#[derive(Debug)]
pub struct Shell {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    said: u32,
}

impl Shell {
    /// Logs in.
    #[must_use]
    pub fn open(sshd: &Sshd, proxy: &Proxy) -> Self {
        let connect = format!("ProxyCommand=nc -X 5 -x {} %h %p", proxy.socks5);
        let mut ssh = sshd.client();
        ssh.args(["-o", &connect, "127.0.0.1", "cat"]);
        let mut child =
            proxy.beside(ssh).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ssh and nc are there");
        let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let (sender, lines) = sync_channel(1024);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut shell = Self { child, input, lines, said: 0 };
        shell.answers();
        shell
    }

    /// Says a line that was not said before and waits until it comes back, as the next one.
    pub fn answers(&mut self) {
        self.said += 1;
        let line = format!("line {}", self.said);
        writeln!(self.input, "{line}").expect("ssh still reads");
        assert_eq!(self.lines.recv_timeout(SOON).expect("the ssh session went silent"), line);
    }
}

impl Shell {
    /// Waits until the session ends; whether it ended well.
    pub fn ends(&mut self) -> bool {
        self.child.wait().expect("it can be waited for").success()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A download of a GiB that takes its time.
#[derive(Debug)]
pub struct Download {
    child: Child,
    file: PathBuf,
    expected: String,
    _folder: tempfile::TempDir,
}

impl Download {
    /// Begins, at so many MB a second, and waits for the first bytes.
    #[must_use]
    pub fn begin(nginx: &Nginx, proxy: &Proxy, rate: u32) -> Self {
        let expected = nginx.put_file("long", SIZE);
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("long");
        let (rate, socks) = (format!("{rate}M"), format!("socks5h://{}", proxy.socks5));
        let mut get = curl();
        get.args(["--max-time", "170", "--limit-rate", &rate, "--proxy", &socks, "--output"]).arg(&file);
        get.arg(format!("http://127.0.0.1:{}/long", nginx.port));
        let child = proxy.beside(get).stderr(Stdio::piped()).spawn().expect("curl is there");
        let this = Self { child, file, expected, _folder: folder };
        this.past(20 << 20);
        this
    }

    fn length(&self) -> u64 {
        self.file.metadata().map_or(0, |m| m.len())
    }

    /// Waits until so much has come.
    fn past(&self, length: u64) {
        wait_until(&format!("the download is past {length} bytes"), SOON, || self.length() >= length.min(SIZE));
    }

    /// Waits until more comes than is there now.
    pub fn goes_on(&self) {
        self.past(self.length() + (8 << 20));
    }

    /// Waits for the end and compares every byte.
    pub fn arrives_unchanged(mut self) {
        let status = self.child.wait().expect("it can be waited for");
        let mut said = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        assert!(status.success(), "{status}: {said}");
        assert_eq!(self.length(), SIZE);
        assert_eq!(sha256(&self.file), self.expected);
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
