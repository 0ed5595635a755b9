//! The roles started one by one, with what a corporate network stands between them and the relay. Needs root: the
//! relay listens on port 443, which is all that many proxies let through.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::nginx::Nginx;
use crate::process::{Process, free_port, hedgerow, run, try_run};
use crate::work::Proxy;

/// The relay's name: only proxies can resolve it.
pub const RELAY: &str = "relay.corp.test";
/// The second one's.
const RELAY2: &str = "relay2.corp.test";
const PATIENCE: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(90);
const PAGE: &str = "the page behind the proxies";
const VARIABLES: [&str; 8] =
    ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY"];

/// Where roles dial, and how they get there.
#[derive(Debug, Clone, Default)]
pub struct Ways {
    /// `host:port` of the relay, as core, token and device are told.
    pub relay: Vec<String>,
    /// CA certificates, PEM, that core and device trust for the relay beside its own.
    pub more_ca: String,
    /// Where the node finds the relay instead.
    pub node_relay: Vec<String>,
    /// The section `[outbound]` by role; none for a role that is not named.
    pub outbound: BTreeMap<&'static str, String>,
    /// More variables, by role.
    pub environment: BTreeMap<&'static str, Vec<(String, String)>>,
    /// The device's key `lanes`.
    pub lanes: &'static str,
    /// The device's key `timers.scale`; 0 leaves it out.
    pub device_timers: f64,
    /// The network namespace that the device runs in.
    pub netns: Option<String>,
    /// Further targets that the node lets devices reach, ports on 127.0.0.1.
    pub allow: Vec<u16>,
    /// More of the node's configuration.
    pub node: String,
    /// The addresses of the site's name, as the node resolves it; 127.0.0.1 when empty.
    pub site: Vec<String>,
    /// More of the device's configuration: whole sections.
    pub device: String,
}

impl Ways {
    /// Every role by the same section.
    #[must_use]
    pub fn all(relay: &[String], outbound: &str) -> Self {
        let outbound = ["core", "node", "device"].map(|role| (role, outbound.to_owned()));
        Self { relay: relay.to_vec(), outbound: outbound.into(), lanes: "auto", ..Self::default() }
    }
}

/// Relay, core, node, device and a site, each a process.
#[derive(Debug)]
pub struct Office {
    folder: tempfile::TempDir,
    /// The relay's loopback address; it listens on 3101 and 443 there.
    pub address: String,
    ports: BTreeMap<&'static str, u16>,
    ways: Ways,
    /// Of the second relay, when there is one.
    second: Option<String>,
    site: Nginx,
    running: BTreeMap<&'static str, Process>,
}

impl Office {
    /// A folder, a relay that runs, and a site.
    #[must_use]
    pub fn open() -> Self {
        Self::open_at(&[])
    }

    /// As `open`; the relay listens at these addresses too.
    #[must_use]
    pub fn open_at(more: &[String]) -> Self {
        Self::open_behind(more, &[])
    }

    /// As `open_at`; the relay trusts these addresses with PROXY headers.
    #[must_use]
    pub fn open_behind(more: &[String], trusted: &[&str]) -> Self {
        // SAFETY: geteuid has no preconditions and cannot fail.
        assert_eq!(unsafe { libc::geteuid() }, 0, "this test needs root: a relay on port 443, mounts of its own");
        let ports = ["relay", "relay2", "core", "node", "device", "socks5", "http"].map(|role| (role, free_port()));
        let mut office = Self {
            folder: tempfile::tempdir().expect("a folder"),
            address: own_address(),
            ports: ports.into(),
            ways: Ways::default(),
            second: None,
            site: Nginx::start(PAGE),
            running: BTreeMap::new(),
        };
        let listen = format!(
            "name = \"{RELAY}\"\n[listen]\nlink = [\"{a}:3101\"]\ndevice = {device:?}\ntrusted_proxies = {trusted:?}\n[tls]\nnames = [{gate:?}]\n",
            a = office.address,
            gate = office.gate(),
            device = [&[format!("{}:443", office.address)], more].concat()
        );
        office.configure("relay", &listen);
        office.start("relay");
        let key = office.path("srp.key");
        office.verb(&["relay", "tenant", "add", "S12345678", "--out", &key]);
        office.verb(&["relay", "domain", "add", "S12345678", "example.com"]);
        office
    }

    /// Another loopback address that the relay's certificate names: for what a test puts before the relay.
    #[must_use]
    pub fn gate(&self) -> String {
        self.address.replacen("127.61.", "127.62.", 1)
    }

    /// Starts a second relay of the same CA, which answers to the first one's name too; returns its address. Core, node
    /// and device are told of both.
    pub fn open_second(&mut self) -> String {
        let address = own_address();
        let from = self.path("relay");
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().mode(0o700).create(self.path("relay2")).expect("a folder");
        for file in std::fs::read_dir(&from).expect("the first relay's folder").flatten() {
            let name = file.file_name();
            if name.to_string_lossy().starts_with("relay-ca") {
                std::fs::copy(file.path(), PathBuf::from(self.path("relay2")).join(&name)).expect("a copy");
            }
        }
        let listen = format!(
            "name = \"{RELAY2}\"\n[listen]\nlink = [\"{address}:3101\"]\ndevice = [\"{address}:443\"]\n[tls]\nnames = [\"{RELAY}\"]\n"
        );
        self.configure("relay2", &listen);
        self.start("relay2");
        let key = self.path("srp.key");
        let add = ["relay", "tenant", "add", "S12345678", "--srp-key-file", &key];
        let _ = run(&mut self.command("relay2", &add), LIMIT);
        self.second = Some(address.clone());
        address
    }

    /// Where the device's proxy is.
    #[must_use]
    pub fn proxy(&self) -> Proxy {
        Proxy { socks5: format!("127.0.0.1:{}", self.ports["socks5"]), netns: self.ways.netns.clone() }
    }

    /// curl's argument for the device's SOCKS5 proxy, names resolved at the node.
    #[must_use]
    pub fn socks(&self) -> String {
        format!("socks5h://127.0.0.1:{}", self.ports["socks5"])
    }

    /// The site inside, for files of a test's own.
    #[must_use]
    pub fn site(&self) -> &Nginx {
        &self.site
    }

    /// Asks a role to end, and waits until it has.
    pub fn stop(&mut self, role: &'static str, patience: Duration) {
        let mut process = self.running.remove(role).expect("it runs");
        crate::process::signal(process.pid(), libc::SIGTERM);
        crate::process::wait_until(&format!("{role} has ended"), patience, || process.has_ended());
    }

    /// Asks a role to end, and sends it a second signal so much later; returns once it has ended.
    pub fn hurry(&mut self, role: &'static str, after: Duration, second: i32, patience: Duration) {
        let mut process = self.running.remove(role).expect("it runs");
        crate::process::signal(process.pid(), libc::SIGTERM);
        std::thread::sleep(after);
        crate::process::signal(process.pid(), second);
        crate::process::wait_until(&format!("{role} has ended"), patience, || process.has_ended());
    }

    /// A file or folder of this office.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Starts core, node and device, which find the relay by these ways. Enrolment and activation go by them too.
    pub fn move_in(&mut self, ways: Ways) {
        self.ways = ways;
        let mut core = format!("tenant = \"S12345678\"\nsrp_key_file = {:?}\n", self.path("srp.key"));
        let second = self.second.as_ref().map(|a| vec![format!("{a}:443"), format!("{a}:3101")]);
        let all: Vec<String> = self.ways.relay.iter().chain(second.iter().flatten()).cloned().collect();
        for (name, addresses) in [(RELAY, Some(self.ways.relay.clone())), (RELAY2, second)] {
            let Some(addresses) = addresses else { continue };
            core += &format!(
                "[[relays]]\nname = \"{name}\"\naddresses = {addresses:?}\nca_file = {:?}\n",
                self.path("trusted.pem")
            );
        }
        core += &format!("[advertise]\nrelays = {all:?}\n");
        let own = std::fs::read_to_string(self.path("relay/relay-ca.pem")).expect("the relay has made it");
        std::fs::write(self.path("trusted.pem"), format!("{own}{}", self.ways.more_ca)).expect("a file");
        self.configure("core", &core);
        let relays = &self.ways.node_relay;
        let site = match self.ways.site.as_slice() {
            [] => vec!["127.0.0.1".to_owned()],
            given => given.to_vec(),
        };
        self.configure(
            "node",
            &format!("relays = {relays:?}\n[hosts]\n\"wiki.intranet.example.com\" = {site:?}\n{}", self.ways.node),
        );
        self.configure_device();
        self.start("core");
        self.verb(&["user", "add", "anna@example.com", "--name", "Anna"]);
        let (password, token) = (self.path("password"), self.path("node.token"));
        self.verb(&["password", "generate", "anna@example.com", "--out", &password]);
        let port = self.site.port.to_string();
        self.verb(&["rule", "add", "allow", "wiki.intranet.example.com", "--ports", &port]);
        for address in &site {
            self.verb(&["rule", "add", "allow", address, "--ports", &port]);
        }
        for port in self.ways.allow.clone() {
            self.verb(&["rule", "add", "allow", "127.0.0.1", "--ports", &port.to_string()]);
        }
        if !self.ways.allow.is_empty() {
            self.verb(&["route", "add", "127.0.0.1", "group:default"]);
        }
        self.verb(&["route", "add", "*.intranet.example.com", "group:default"]);
        self.verb(&["token", "create", "--name", "node-1", "--out", &token]);
        self.verb(&["node", "enroll", "--token-file", &token]);
        self.start("node");
        self.activate();
        self.start("device");
    }

    /// Activates the device; it must succeed.
    fn activate(&self) {
        let output = self.try_activate();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Tries to activate the device with its settings.
    #[must_use]
    pub fn try_activate(&self) -> Output {
        let (password, ca) = (self.path("password"), self.path("relay/relay-ca.pem"));
        let relay = self.ways.relay.last().expect("a relay");
        let activate = ["device", "activate", "--email", "anna@example.com", "--relay", relay, "--relay-name", RELAY];
        let trust = ["--relay-ca", &ca, "--password-file", &password];
        try_run(&mut self.command("device", &[&activate[..], &trust].concat()), LIMIT)
    }

    /// Tries to activate another device at `relay`, which gets out by this section `[outbound]`.
    #[must_use]
    pub fn try_activate_at(&self, relay: &str, outbound: &str) -> Output {
        self.try_activate_trusting(&self.path("relay/relay-ca.pem"), relay, outbound)
    }

    /// As `try_activate_at`, where the system trusts the CAs of this file.
    #[must_use]
    pub fn try_activate_trusting(&self, ca: &str, relay: &str, outbound: &str) -> Output {
        let config = self.path("other.toml");
        let text = format!("state = {:?}\n[outbound]\n{outbound}\n", self.path("other"));
        std::fs::write(&config, text).expect("a configuration");
        let password = self.path("password");
        let activate = ["device", "activate", "--email", "anna@example.com", "--relay", relay, "--relay-name", RELAY];
        let trust = ["--relay-ca", ca, "--password-file", &password, "--config", &config];
        try_run(&mut self.command("other", &[&activate[..], &trust].concat()), LIMIT)
    }

    /// Kills a role in the middle of whatever it does.
    pub fn kill(&mut self, role: &'static str) {
        let mut process = self.running.remove(role).expect("it runs");
        crate::process::signal(process.pid(), libc::SIGKILL);
        crate::process::wait_until(&format!("{role} has ended"), PATIENCE, || process.has_ended());
    }

    /// Kills a role and starts it again.
    pub fn restart(&mut self, role: &'static str) {
        self.running.remove(role);
        self.start(role);
    }

    /// Gives every role these variables from its next start on.
    pub fn set_environment(&mut self, variables: &[(String, String)]) {
        self.ways.environment = ["relay", "core", "node", "device"].map(|role| (role, variables.to_vec())).into();
    }

    /// The device again, with another value for `lanes`.
    pub fn restart_device(&mut self, lanes: &'static str) {
        self.ways.lanes = lanes;
        self.configure_device();
        self.running.remove("device");
        self.start("device");
    }

    fn configure_device(&self) {
        let (socks5, http) = (self.ports["socks5"], self.ports["http"]);
        let scale = self.ways.device_timers;
        let timers = if scale > 0.0 { format!("timers.scale = {scale}\n") } else { String::new() };
        let text = format!(
            "lanes = \"{}\"\n{timers}[proxy]\nsocks5 = \"127.0.0.1:{socks5}\"\nhttp = \"127.0.0.1:{http}\"\n{}",
            self.ways.lanes, self.ways.device
        );
        self.configure("device", &text);
    }

    fn configure(&self, role: &'static str, more: &str) {
        let outbound = self.ways.outbound.get(role).map(|o| format!("[outbound]\n{o}\n")).unwrap_or_default();
        let text = format!(
            "state = {:?}\n{more}{outbound}[admin]\nlisten = \"127.0.0.1:{}\"\n",
            self.path(role),
            self.ports[role]
        );
        std::fs::write(self.path(&format!("{role}.toml")), text).expect("a configuration");
    }

    /// One of our commands as this role gives it.
    #[must_use]
    pub fn command(&self, role: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(hedgerow());
        command.args(arguments);
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        for own in ["relay", "core", "node", "device"] {
            let name = own.to_ascii_uppercase();
            let role = if role == "relay2" && own == "relay" { role } else { own };
            command.env(format!("HEDGEROW_{name}_CONFIG"), self.path(&format!("{role}.toml")));
            command.env(format!("HEDGEROW_{name}_SOCKET"), self.path(&format!("{role}/control.sock")));
        }
        command.envs(self.ways.environment.get(role).into_iter().flatten().cloned());
        if role == "device" { self.proxy().beside(command) } else { command }
    }

    /// curl where the role's own listeners can be reached.
    fn curl(&self, role: &str) -> Command {
        let curl = crate::curl::curl();
        if role == "device" { self.proxy().beside(curl) } else { curl }
    }

    /// Runs one of our commands, which must succeed.
    fn verb(&self, arguments: &[&str]) {
        let _ = run(&mut self.command(arguments[0], arguments), LIMIT);
    }

    /// Starts a role and waits until it is ready.
    pub fn start(&mut self, role: &'static str) {
        let verb = if role == "relay2" { "relay" } else { role };
        let process = Process::start(&mut self.command(role, &[verb, "run"]), &self.log_of(role));
        self.running.insert(role, process);
        let url = format!("http://127.0.0.1:{}/readyz", self.ports[role]);
        let ready = || crate::curl::attempt(self.curl(role).arg(&url)).status.success();
        let begun = std::time::Instant::now();
        while !ready() {
            assert!(begun.elapsed() < PATIENCE, "{role} is not ready:\n{}\n{}", self.log(role), self.log("relay"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn log_of(&self, role: &str) -> PathBuf {
        self.folder.path().join(format!("{role}.log"))
    }

    /// What a role logged since it was started last.
    #[must_use]
    pub fn log(&self, role: &str) -> String {
        std::fs::read_to_string(self.log_of(role)).unwrap_or_default()
    }

    /// The address of one of a role's own pages.
    #[must_use]
    pub fn url(&self, role: &str, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports[role])
    }

    /// A role's own JSON: `get("device", "/status")`.
    #[must_use]
    pub fn get(&self, role: &str, path: &str) -> Value {
        let url = format!("http://127.0.0.1:{}{path}", self.ports[role]);
        serde_json::from_str(&crate::curl::text(self.curl(role).arg(url))).expect("JSON")
    }

    /// The value of one metric, labels summed up.
    #[must_use]
    pub fn metric(&self, role: &str, name: &str, label: &str) -> f64 {
        let url = format!("http://127.0.0.1:{}/metrics", self.ports[role]);
        let text = crate::curl::text(self.curl(role).arg(url));
        let lines = text.lines().filter(|l| l.starts_with(name) && l.contains(label));
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Loads the page through the device with curl; how the session that carried it travels.
    #[must_use]
    pub fn load_page(&self) -> String {
        let url = format!("http://wiki.intranet.example.com:{}/page", self.site.port);
        let output = crate::curl::attempt(crate::curl::curl().args(["--proxy", &self.socks(), &url]));
        let page = String::from_utf8_lossy(&output.stdout).into_owned();
        let logs = || format!("{}\n{}\n{}", self.log("device"), self.log("node"), self.log("relay"));
        assert_eq!(page, PAGE, "{}\n{}", String::from_utf8_lossy(&output.stderr), logs());
        self.get("device", "/status")["sessions"][0]["path"].as_str().unwrap_or_default().to_owned()
    }

    /// Links and lanes at the relay.
    #[must_use]
    pub fn at_relay(&self) -> Vec<Value> {
        self.get("relay", "/sessions").as_array().cloned().unwrap_or_default()
    }

    /// What carries the device's session: `lane`, `link`, or nothing while there is none.
    #[must_use]
    pub fn path_of_session(&self) -> String {
        self.get("device", "/status")["sessions"][0]["path"].as_str().unwrap_or_default().to_owned()
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        // In the order of people leaving: the device first, the relay last.
        for role in ["device", "node", "core", "relay", "relay2"] {
            self.running.remove(role);
        }
    }
}

/// A loopback address that no other test of this machine uses.
fn own_address() -> String {
    loop {
        let [a, b] = hedgerow_runtime::clock::random::<2>();
        let address = format!("127.61.{a}.{}", b.max(1));
        let free = [443, 3101].iter().all(|p| std::net::TcpListener::bind((address.as_str(), *p)).is_ok());
        if free {
            return address;
        }
    }
}
