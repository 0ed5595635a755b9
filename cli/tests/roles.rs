//! The README's production section: every role as a process of its own, from its commented example file.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for anything that should take a moment; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(30);
const PAGE: &str = "the page behind the hedge";

/// A folder with the example files, each with a `conf.d` that moves it into the folder and onto free ports.
struct World {
    folder: tempfile::TempDir,
    processes: Vec<(&'static str, Child)>,
    link: SocketAddr,
    device: SocketAddr,
    socks5: SocketAddr,
    admin: Vec<(&'static str, SocketAddr)>,
}

impl World {
    fn new(site: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Held open together so that all differ; then given to the roles.
        let held: Vec<TcpListener> = (0..8).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let port: Vec<SocketAddr> = held.iter().map(|l| l.local_addr().unwrap()).collect();
        drop(held);
        let admin = vec![("relay", port[4]), ("core", port[5]), ("node", port[6]), ("device", port[7])];
        let world = Self { folder, processes: Vec::new(), link: port[0], device: port[1], socks5: port[2], admin };
        let at = |name: &str| world.path(name).display().to_string();
        world.configure("relay", &format!("[listen]\nlink = [\"{}\"]\ndevice = [\"{}\"]\n", port[0], port[1]));
        world.configure(
            "core",
            &format!(
                "srp_key_file = {:?}\n[[relays]]\nname = \"relay.example.com\"\naddresses = [\"{}\"]\nca_file = {:?}\n",
                at("srp.key"),
                port[0],
                at("relay/relay-ca.pem")
            ),
        );
        world.configure("node", &format!("[hosts]\n\"wiki.intranet.example.com\" = [\"{}\"]\n", site.ip()));
        world.configure("device", &format!("[proxy]\nsocks5 = \"{}\"\nhttp = \"{}\"\n", port[2], port[3]));
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Copies a role's example and puts `more`, the state folder and the admin address over it.
    fn configure(&self, role: &str, more: &str) {
        let folder = self.path(&format!("etc-{role}"));
        std::fs::create_dir_all(folder.join("conf.d")).unwrap();
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../examples/{role}.toml"));
        std::fs::copy(example, folder.join("config.toml")).unwrap();
        let admin = self.admin.iter().find(|(r, _)| *r == role).unwrap().1;
        let text = format!("state = {:?}\n{more}[admin]\nlisten = \"{admin}\"\n", self.path(role));
        std::fs::write(folder.join("conf.d/10-test.toml"), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hedgerow"));
        command.args(arguments).env_clear().stdin(Stdio::null());
        for role in ["relay", "core", "node", "device"] {
            let name = role.to_ascii_uppercase();
            command.env(format!("HEDGEROW_{name}_CONFIG"), self.path(&format!("etc-{role}/config.toml")));
            command.env(format!("HEDGEROW_{name}_SOCKET"), self.path(role).join("control.sock"));
        }
        command
    }

    /// Runs a verb that must succeed; its standard output.
    fn verb(&self, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        assert!(status.success(), "{arguments:?}: {status}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.verb(arguments)).unwrap()
    }

    /// Starts a role and waits until it says it is ready.
    fn start(&mut self, role: &'static str) {
        let log = std::fs::File::create(self.path(&format!("{role}.log"))).unwrap();
        let child = self.command(&[role, "run"]).stderr(log).spawn().unwrap();
        self.processes.push((role, child));
        let admin = self.admin.iter().find(|(r, _)| *r == role).unwrap().1.to_string();
        let ready = || self.command(&["health", "--admin", &admin]).output().unwrap().status.success();
        assert!(within(PATIENCE, ready), "{role} is not ready:\n{}", self.log(role));
    }

    fn log(&self, role: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{role}.log"))).unwrap_or_default()
    }

    /// What curl (Debian's) gets through the device's SOCKS5 proxy; `None` when it fails.
    fn curl(&self, url: &str) -> Option<String> {
        let proxy = format!("socks5h://{}", self.socks5);
        let output =
            Command::new("curl").args(["-sS", "-m", "5", "--proxy", &proxy, url]).output().expect("curl is installed");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// TERM to all, devices first; each must end well.
    fn end(mut self) {
        while let Some((role, mut child)) = self.processes.pop() {
            assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
            let mut status = None;
            let ended = within(PATIENCE, || {
                status = child.try_wait().unwrap();
                status.is_some()
            });
            assert!(ended && status.unwrap().success(), "{role} ended with {status:?}:\n{}", self.log(role));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for (_, child) in &mut self.processes {
            // Only after a failure is one left.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn within(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !done() {
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

/// A site that answers every request with `PAGE`.
fn site() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut io in listener.incoming().flatten() {
            let _ = io.read(&mut [0; 4096]);
            let _ = write!(io, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{PAGE}", PAGE.len());
        }
    });
    address
}

#[test]
fn n01_roles_started_one_by_one_from_their_example_files_reach_the_intranet() {
    let site = site();
    let mut world = World::new(site);
    let file = |world: &World, name: &str| world.path(name).display().to_string();

    world.start("relay");
    let key = file(&world, "srp.key");
    world.verb(&["relay", "tenant", "add", "S12345678", "--out", &key]);
    world.verb(&["relay", "domain", "add", "S12345678", "example.com"]);

    world.start("core");
    world.verb(&["user", "add", "anna@example.com", "--name", "Anna"]);
    let (password, token) = (file(&world, "password"), file(&world, "node.token"));
    world.verb(&["password", "generate", "anna@example.com", "--out", &password]);
    let port = site.port().to_string();
    world.verb(&["rule", "add", "allow", "wiki.intranet.example.com", "--ports", &port]);
    // The site of this test is on loopback, which a rule must name.
    world.verb(&["rule", "add", "allow", "127.0.0.1", "--ports", &port]);
    world.verb(&["route", "add", "*.intranet.example.com", "group:default"]);
    world.verb(&["token", "create", "--name", "node-1", "--out", &token]);

    world.verb(&["node", "enroll", "--token-file", &token]);
    world.start("node");
    assert_eq!(world.json(&["token", "list", "--json"])[0]["state"], "used");

    let (relay, ca) = (world.device.to_string(), file(&world, "relay/relay-ca.pem"));
    let activate = ["device", "activate", "--email", "anna@example.com", "--relay", &relay];
    let trust = ["--relay-name", "relay.example.com", "--relay-ca", &ca, "--password-file", &password, "--json"];
    let device = world.json(&[&activate[..], &trust].concat())["device"].as_str().unwrap().to_owned();
    world.start("device");

    let page = format!("http://wiki.intranet.example.com:{port}/");
    assert_eq!(world.curl(&page).as_deref(), Some(PAGE), "{}\n{}", world.log("device"), world.log("node"));
    assert_eq!(world.curl(&format!("http://other.intranet.example.com:{port}/")), None, "denied by default");

    let links = world.json(&["relay", "sessions", "--json"]);
    let roles: Vec<_> = links.as_array().unwrap().iter().filter_map(|l| l["role"].as_str()).collect();
    for role in ["core", "node", "device"] {
        assert!(roles.contains(&role), "{links:#}");
    }
    assert_eq!(world.json(&["device", "status", "--json"])["link"]["state"], "up");
    assert_eq!(world.json(&["device", "list", "--json"])[0]["email"], "anna@example.com");
    assert!(world.json(&["audit", "verify", "--json"])["records"].as_u64().unwrap() > 5);

    world.verb(&["device", "revoke", &device]);
    assert!(
        within(Duration::from_secs(5), || world.curl(&page).is_none()),
        "a revoked device still reaches the intranet"
    );

    for role in ["relay", "core", "node", "device"] {
        let log = world.log(role);
        for secret in ["srp.key", "password", "node.token"] {
            let text = std::fs::read_to_string(world.path(secret)).unwrap();
            assert!(!log.contains(text.trim()), "{role} logs what is in {secret}");
        }
        assert!(!log.contains("panic"), "{log}");
    }
    assert_ne!(world.link, world.device);
    world.end();
}
