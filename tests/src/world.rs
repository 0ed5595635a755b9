//! The product as its user starts it: `hedgerow demo` with real processes, administered by the same commands.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{self, Process, hedgerow, wait_until};

/// What is different from the plain demo.
#[derive(Debug, Default, Clone)]
pub struct Options {
    /// Targets inside, `host:port`, that rules allow and routes send to the node.
    pub allow: Vec<String>,
    /// No lanes: sessions run over link streams.
    pub without_lanes: bool,
    /// TLS servers that the node publishes: `gateway=127.0.0.1:8443`.
    pub publish: Vec<String>,
    /// Environment of every role, such as keys of its configuration.
    pub environment: Vec<(String, String)>,
    /// Timers at 1/100.
    pub short_timers: bool,
}

/// Relay, core, node and device, each a process.
#[derive(Debug)]
pub struct World {
    /// `DIR/demo.json`.
    pub about: Value,
    folder: tempfile::TempDir,
    demo: Process,
}

impl World {
    /// Starts everything and waits until it is up.
    #[must_use]
    pub fn start(options: &Options) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("demo");
        let log = folder.path().join("demo.log");
        let mut command = Command::new(hedgerow());
        command.arg("demo").arg("--state").arg(&state);
        for target in &options.allow {
            command.args(["--also-allow", target]);
        }
        for server in &options.publish {
            command.args(["--publish", server]);
        }
        command.envs(options.environment.iter().cloned());
        if options.without_lanes {
            command.args(["--lanes", "off"]);
        }
        if options.short_timers {
            command.args(["--timer-scale", "0.01"]);
        }
        let mut demo = Process::start(&mut command, &log);
        let file = state.join("demo.json");
        let deadline = Instant::now() + Duration::from_secs(90);
        while !file.exists() {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            assert!(!demo.has_ended() && Instant::now() < deadline, "the demo did not come up:\n{text}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let about = serde_json::from_slice(&std::fs::read(file).expect("demo.json")).expect("JSON");
        Self { about, folder, demo }
    }

    /// The demo's folder.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("demo")
    }

    /// The demo's own process.
    pub fn demo(&mut self) -> &mut Process {
        &mut self.demo
    }

    /// A text of `demo.json`, by its path: `text("device.socks5")`.
    #[must_use]
    pub fn text(&self, path: &str) -> String {
        let value = path.split('.').fold(&self.about, |v, key| &v[key]);
        value.as_str().unwrap_or_else(|| panic!("demo.json has no text {path}")).to_owned()
    }

    /// The process of a role, as `demo.json` has it now.
    #[must_use]
    pub fn pid(&self, role: &str) -> u32 {
        let now: Value =
            serde_json::from_slice(&std::fs::read(self.dir().join("demo.json")).expect("demo.json")).expect("JSON");
        u32::try_from(now["pids"][role].as_u64().unwrap_or_else(|| panic!("no pid of {role}"))).expect("a pid")
    }

    /// curl's argument for the device's SOCKS5 proxy, names resolved at the node.
    #[must_use]
    pub fn socks(&self) -> String {
        format!("socks5h://{}", self.text("device.socks5"))
    }

    /// curl's argument for the device's HTTP proxy.
    #[must_use]
    pub fn http_proxy(&self) -> String {
        format!("http://{}", self.text("device.http_proxy"))
    }

    /// A connection to a loopback port inside, through the device's SOCKS5 proxy. Reads wait 10 s at most.
    #[must_use]
    pub fn connect(&self, port: u16) -> TcpStream {
        let mut tcp = TcpStream::connect(self.text("device.socks5")).expect("the device's proxy listens");
        tcp.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let mut reply = [0; 10];
        let [high, low] = port.to_be_bytes();
        tcp.write_all(&[5, 1, 0]).expect("a greeting");
        tcp.read_exact(&mut reply[..2]).expect("an answer to the greeting");
        tcp.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low]).expect("a request");
        tcp.read_exact(&mut reply).expect("an answer to the request");
        assert_eq!(reply[1], 0, "SOCKS reply");
        tcp
    }

    /// One of our commands, at this world's core and relay.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        command_at(&self.dir(), arguments)
    }

    /// Runs a command and reads its JSON.
    #[must_use]
    pub fn hedgerow(&self, arguments: &[&str]) -> Value {
        let output = process::run(self.command(arguments).env("HEDGEROW_JSON", "true"), Duration::from_secs(60));
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Runs a command that may fail.
    #[must_use]
    pub fn try_hedgerow(&self, arguments: &[&str]) -> Output {
        process::try_run(&mut self.command(arguments), Duration::from_secs(60))
    }

    /// One GET at a loopback admin listener: `get("relay.admin", "/metrics")`.
    #[must_use]
    pub fn get(&self, listener: &str, path: &str) -> String {
        let url = format!("http://{}{path}", self.text(listener));
        crate::curl::text(crate::curl::curl().arg(url))
    }

    /// The value of one metric, labels summed up; 0 when there is none.
    #[must_use]
    pub fn metric(&self, listener: &str, name: &str, label: &str) -> f64 {
        self.get(listener, "/metrics")
            .lines()
            .filter(|l| l.starts_with(name) && l.contains(label))
            .filter(|l| matches!(l.as_bytes().get(name.len()), Some(b' ' | b'{')))
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Waits until a role's admin listener says it is ready.
    pub fn wait_ready(&self, role: &str, limit: Duration) {
        let url = format!("http://{}/readyz", self.text(&format!("{role}.admin")));
        wait_until(&format!("{role} is ready"), limit, || {
            crate::curl::attempt(crate::curl::curl().arg(&url)).status.success()
        });
    }

    /// What a role logged.
    #[must_use]
    pub fn log(&self, role: &str) -> String {
        std::fs::read_to_string(self.dir().join(format!("log/{role}.log"))).unwrap_or_default()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for role in ["relay", "core", "node", "device"] {
                let log = self.log(role);
                let tail: Vec<&str> = log.lines().rev().take(15).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                say(&format!("-- {role}:\n{}", tail.join("\n")));
            }
        }
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// One of our commands, for the core and relay whose state is under `dir`.
#[must_use]
pub fn command_at(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(hedgerow());
    command
        .args(arguments)
        .env("HEDGEROW_CORE_SOCKET", dir.join("core/control.sock"))
        .env("HEDGEROW_RELAY_SOCKET", dir.join("relay/control.sock"));
    command
}
