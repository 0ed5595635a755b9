//! Devices, relay, node and intranet, each in a network namespace of its own, so that what crosses a network really
//! does. Needs root, TUN and nftables.
//!
//! ```text
//!   d1 10.71.11.2 ──┐
//!   d2 10.71.12.2 ──┤ relay, core ──── 10.71.2.2 node 10.71.3.1 ──── 10.71.3.2 intranet (sshd, nginx, dnsmasq, ...)
//!   d3 10.71.13.2 ──┘ .1 of each                 fd71:3::1 ────────── fd71:3::2
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{Process, hedgerow, run, signal, try_run, wait_until};

/// How long a step may take.
const LIMIT: Duration = Duration::from_secs(60);
/// The relay's name in its certificate.
const RELAY: &str = "relay.field.test";
/// The intranet server.
pub const INSIDE: &str = "10.71.3.2";
/// The same over IPv6.
pub const INSIDE_V6: &str = "fd71:3::2";
/// A name that only the intranet's DNS server knows; its address is `INSIDE`.
pub const NAME: &str = "wiki.corp.test";

/// What a field is to be like.
#[derive(Debug, Clone)]
pub struct Terrain {
    /// How many devices.
    pub devices: usize,
    /// More of the node's section `[tunnel]`.
    pub node: String,
    /// More of the devices' section `[tunnel]`.
    pub device: String,
    /// The devices' `transport`.
    pub transport: &'static str,
    /// More of the relay's configuration.
    pub relay: String,
    /// What the node lets devices reach.
    pub rules: Vec<Vec<String>>,
    /// The devices' routes: target, via.
    pub routes: Vec<(String, String)>,
}

impl Default for Terrain {
    fn default() -> Self {
        let rule = |text: &str| text.split(' ').map(str::to_owned).collect();
        Self {
            devices: 1,
            node: String::new(),
            device: String::new(),
            transport: "auto",
            relay: String::new(),
            rules: vec![rule("allow 10.71.3.0/24"), rule("allow fd71:3::/64")],
            routes: [
                ("10.71.3.0/24", "group:default"),
                ("fd71:3::/64", "group:default"),
                ("*.corp.test", "group:default"),
            ]
            .map(|(to, via)| (to.to_owned(), via.to_owned()))
            .into(),
        }
    }
}

/// See the module. Everything ends with it.
#[derive(Debug)]
pub struct Field {
    folder: tempfile::TempDir,
    prefix: String,
    terrain: Terrain,
    running: BTreeMap<String, Process>,
    servers: Vec<Process>,
}

impl Field {
    /// Everything up to a node that serves; devices are activated and started one by one (`join`).
    #[must_use]
    pub fn open(terrain: Terrain) -> Self {
        // SAFETY: geteuid has no preconditions and cannot fail.
        assert_eq!(unsafe { libc::geteuid() }, 0, "this test needs root: network namespaces and TUN devices");
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("hg{}x{}", std::process::id() % 100_000, NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::tempdir().expect("a folder");
        let mut field = Self { folder, prefix, terrain, running: BTreeMap::new(), servers: Vec::new() };
        field.lay_out();
        field.configure();
        field.start("relay");
        let key = field.path("srp.key");
        field.verb(&["relay", "tenant", "add", "S12345678", "--out", &key]);
        field.verb(&["relay", "domain", "add", "S12345678", "example.com"]);
        field.start("core");
        field.verb(&["user", "add", "anna@example.com", "--name", "Anna"]);
        for rule in field.terrain.rules.clone() {
            let words: Vec<&str> = ["rule", "add"].into_iter().chain(rule.iter().map(String::as_str)).collect();
            field.verb(&words);
        }
        for (to, via) in field.terrain.routes.clone() {
            field.verb(&["route", "add", &to, &via]);
        }
        let token = field.path("node.token");
        field.verb(&["token", "create", "--name", "node-1", "--out", &token]);
        field.verb(&["node", "enroll", "--token-file", &token]);
        field.start("node");
        field
    }

    /// A field whose devices all have their tunnel.
    #[must_use]
    pub fn with_tunnels(terrain: Terrain) -> Self {
        let devices = terrain.devices;
        let mut field = Self::open(terrain);
        for n in 1..=devices {
            field.join(n);
            field.wait_for_tunnel(n);
        }
        field
    }

    fn lay_out(&self) {
        let devices = (1..=self.terrain.devices).map(|n| format!("d{n}"));
        for place in devices.clone().chain(["relay", "node", "inside"].map(str::to_owned)) {
            let name = self.netns(&place);
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
            let own = PathBuf::from(format!("/etc/netns/{name}"));
            std::fs::create_dir_all(&own).expect("a folder");
            // Nobody answers there: what resolves does so through the tunnel.
            std::fs::write(own.join("resolv.conf"), "nameserver 10.71.99.99\noptions timeout:1 attempts:1\n")
                .expect("a file");
        }
        for (n, place) in devices.enumerate() {
            let net = format!("10.71.{}", 11 + n);
            self.connect(&place, "eth0", &format!("{net}.2"), "relay", &format!("to{}", n + 1), &format!("{net}.1"));
            ip(&format!("-n {} route add default via {net}.1", self.netns(&place)));
        }
        self.connect("node", "eth0", "10.71.2.2", "relay", "tonode", "10.71.2.1");
        ip(&format!("-n {} route add default via 10.71.2.1", self.netns("node")));
        self.connect("node", "in0", "10.71.3.1", "inside", "eth0", INSIDE);
        for (place, device, address) in [("node", "in0", "fd71:3::1"), ("inside", "eth0", INSIDE_V6)] {
            ip(&format!("-n {} addr add {address}/64 dev {device} nodad", self.netns(place)));
        }
    }

    /// A wire between two places: device and address at either end.
    pub fn connect(&self, a: &str, at_a: &str, address_a: &str, b: &str, at_b: &str, address_b: &str) {
        let (a, b) = (self.netns(a), self.netns(b));
        ip(&format!("link add name {at_a} netns {a} type veth peer name {at_b} netns {b}"));
        for (place, device, address) in [(&a, at_a, address_a), (&b, at_b, address_b)] {
            ip(&format!("-n {place} addr add {address}/24 dev {device}"));
            ip(&format!("-n {place} link set {device} up"));
        }
    }

    fn configure(&self) {
        let write = |role: &str, text: String| {
            let text = format!("state = {:?}\n{text}", self.path(role));
            std::fs::write(self.path(&format!("{role}.toml")), text).expect("a configuration");
        };
        let admin = "[admin]\nlisten = \"127.0.0.1:9100\"\n";
        let gates: Vec<String> = (1..=self.terrain.devices).map(|n| format!("10.71.{}.1", 10 + n)).collect();
        let names = [&gates[..], &["10.71.2.1".to_owned()]].concat();
        write(
            "relay",
            format!(
                "name = \"{RELAY}\"\n[listen]\nlink = [\"0.0.0.0:3101\"]\ndevice = [\"0.0.0.0:443\"]\n[tls]\nnames = {names:?}\n{}\n{admin}",
                self.terrain.relay
            ),
        );
        let addresses: Vec<String> = gates.iter().map(|g| format!("{g}:443")).collect();
        write(
            "core",
            format!(
                "tenant = \"S12345678\"\nsrp_key_file = {:?}\n[[relays]]\nname = \"{RELAY}\"\naddresses = [\"10.71.2.1:3101\"]\nca_file = {:?}\n[advertise]\nrelays = {addresses:?}\n[admin]\nlisten = \"127.0.0.1:9101\"\n",
                self.path("srp.key"),
                self.path("relay/relay-ca.pem")
            ),
        );
        write(
            "node",
            format!(
                "relays = [\"10.71.2.1:3101\"]\n{admin}[tunnel]\nenabled = true\ndns = [\"{INSIDE}\"]\nsuffixes = [\"corp.test\"]\npool6 = \"fd71:96::/64\"\n{}",
                self.terrain.node
            ),
        );
        for n in 1..=self.terrain.devices {
            write(
                &format!("d{n}"),
                format!(
                    "transport = \"{}\"\n{admin}[tunnel]\nenabled = true\n{}",
                    self.terrain.transport, self.terrain.device
                ),
            );
        }
    }

    /// A file or folder of this field.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// The namespace of `d1`, `relay`, `node` or `inside`.
    #[must_use]
    pub fn netns(&self, place: &str) -> String {
        let short = match place {
            "relay" | "core" => "r",
            "node" => "n",
            "inside" => "i",
            device => device,
        };
        format!("{}{short}", self.prefix)
    }

    /// A command in a place: `d1`, `relay`, `node`, `inside`.
    #[must_use]
    pub fn at(&self, place: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns(place), program]);
        command
    }

    /// Runs words in a place; they must succeed. What they print.
    pub fn say(&self, place: &str, words: &str) -> String {
        let mut words = words.split_whitespace();
        let mut command = self.at(place, words.next().expect("a program"));
        String::from_utf8_lossy(&run(command.args(words), LIMIT).stdout).into_owned()
    }

    /// As `say`, whatever comes of it.
    pub fn try_say(&self, place: &str, words: &str) -> Output {
        let mut words = words.split_whitespace();
        let mut command = self.at(place, words.next().expect("a program"));
        try_run(command.args(words), LIMIT)
    }

    /// One of our commands, for `hedgerow ROLE ...`.
    #[must_use]
    pub fn hedgerow(&self, role: &str, words: &[&str]) -> Command {
        let binary = hedgerow().display().to_string();
        let mut command = self.at(role, &binary);
        command.args(words);
        for own in ["relay", "core", "node"] {
            let name = own.to_ascii_uppercase();
            command.env(format!("HEDGEROW_{name}_CONFIG"), self.path(&format!("{own}.toml")));
            command.env(format!("HEDGEROW_{name}_SOCKET"), self.path(&format!("{own}/control.sock")));
        }
        let device = if role.starts_with('d') { role } else { "d1" };
        command.env("HEDGEROW_DEVICE_CONFIG", self.path(&format!("{device}.toml")));
        command
    }

    /// Runs one of our verbs where its role is; it must succeed.
    pub fn verb(&self, words: &[&str]) -> String {
        let role = match words[0] {
            "relay" | "node" => words[0],
            _ => "core",
        };
        String::from_utf8_lossy(&run(&mut self.hedgerow(role, words), LIMIT).stdout).into_owned()
    }

    /// Starts a role (`relay`, `core`, `node`, `d1`) and waits until it is ready.
    pub fn start(&mut self, role: &str) {
        let verb = if role.starts_with('d') { "device" } else { role };
        let process = Process::start(&mut self.hedgerow(role, &[verb, "run"]), &self.log_of(role));
        self.running.insert(role.to_owned(), process);
        let begun = Instant::now();
        while !self.try_say(role, &format!("curl -fs {}/readyz", self.admin(role))).status.success() {
            assert!(begun.elapsed() < LIMIT, "{role} is not ready:\n{}\n{}", self.log(role), self.log("relay"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Activates device `n` and starts it.
    pub fn join(&mut self, n: usize) {
        let (role, password) = (format!("d{n}"), self.path(&format!("password{n}")));
        self.verb(&["password", "generate", "anna@example.com", "--out", &password]);
        let activated = self.try_activate(n);
        assert!(activated.status.success(), "{}", String::from_utf8_lossy(&activated.stderr));
        self.start(&role);
    }

    /// Tries to activate device `n` with the password in `password{n}`.
    #[must_use]
    pub fn try_activate(&self, n: usize) -> Output {
        let (role, password) = (format!("d{n}"), self.path(&format!("password{n}")));
        let (gate, ca) = (format!("10.71.{}.1:443", 10 + n), self.path("relay/relay-ca.pem"));
        let words = ["device", "activate", "--email", "anna@example.com", "--relay", &gate, "--relay-name", RELAY];
        let trust = ["--relay-ca", &ca, "--password-file", &password];
        try_run(&mut self.hedgerow(&role, &[&words[..], &trust].concat()), LIMIT)
    }

    /// Has a role read its configuration again.
    pub fn hang_up(&self, role: &str) {
        signal(self.running.get(role).expect("it runs").pid(), libc::SIGHUP);
    }

    /// Waits until a device's tunnel is up.
    pub fn wait_for_tunnel(&self, n: usize) {
        let begun = Instant::now();
        while self.tunnel(n)["state"] != "up" {
            let logs = || format!("{}\n{}\n{}", self.log(&format!("d{n}")), self.log("node"), self.log("relay"));
            assert!(begun.elapsed() < LIMIT, "device {n} has no tunnel: {}\n{}", self.tunnel(n), logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What a device's status says of its tunnel.
    #[must_use]
    pub fn tunnel(&self, n: usize) -> Value {
        self.get(&format!("d{n}"), "/status")["tunnel"].clone()
    }

    /// Stops a role by a signal and waits until it has ended.
    pub fn end(&mut self, role: &str, by: i32) {
        let mut process = self.running.remove(role).expect("it runs");
        signal(process.pid(), by);
        wait_until(&format!("{role} has ended"), LIMIT, || process.has_ended());
    }

    /// A real server in a place, until the field ends; it is waited for until `words` succeed there.
    pub fn serve(&mut self, place: &str, command: &str, ready: &str) {
        let mut words = command.split_whitespace();
        let mut server = self.at(place, words.next().expect("a program"));
        let log = self.folder.path().join(format!("server{}.log", self.servers.len()));
        self.servers.push(Process::start(server.args(words), &log));
        wait_until(command, LIMIT, || self.try_say(place, ready).status.success());
    }

    fn admin(&self, role: &str) -> String {
        // The core shares the relay's namespace.
        format!("http://127.0.0.1:{}", if role == "core" { 9101 } else { 9100 })
    }

    /// A role's own JSON.
    #[must_use]
    pub fn get(&self, role: &str, path: &str) -> Value {
        let text = self.say(role, &format!("curl -fs {}{path}", self.admin(role)));
        serde_json::from_str(&text).expect("JSON")
    }

    /// The value of one metric, labels summed up.
    #[must_use]
    pub fn metric(&self, role: &str, name: &str, label: &str) -> f64 {
        let text = self.say(role, &format!("curl -fs {}/metrics", self.admin(role)));
        let lines = text.lines().filter(|l| l.starts_with(name) && l.contains(label));
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    fn log_of(&self, role: &str) -> PathBuf {
        self.folder.path().join(format!("{role}.log"))
    }

    /// What a role logged since it was started last.
    #[must_use]
    pub fn log(&self, role: &str) -> String {
        std::fs::read_to_string(self.log_of(role)).unwrap_or_default()
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        self.servers.clear();
        while let Some((_, process)) = self.running.pop_first() {
            drop(process);
        }
        let devices = (1..=self.terrain.devices).map(|n| format!("d{n}"));
        for place in devices.chain(["relay", "node", "inside"].map(str::to_owned)) {
            let name = self.netns(&place);
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
            let _ = std::fs::remove_dir_all(format!("/etc/netns/{name}"));
        }
    }
}

fn ip(words: &str) {
    let _ = run(Command::new("ip").args(words.split_whitespace()), LIMIT);
}
