//! Who is lied to: a tenant whose CA the test holds, nodes and devices of it as real processes whose state the test
//! wrote, and, where it is about activation, enrolment or configuration, a real core with a tenant of its own.
//! Everything is linked to the liar and ends with the scene.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use hedgerow_connectivity_node::{Record, State};
use hedgerow_device::state as device_files;
use hedgerow_runtime::clock;
use hedgerow_runtime::tls::SESSION_KEY_LOG;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::{SignedConfig, Version};
use hedgerow_shared::{EntityId, Origin, Role};
use serde_json::Value;

use super::site::exchange;
use super::{Known, Liar, Reading, RelayIdentity, Site, Tenant};
use crate::process::{self, Process, free_port, hedgerow, wait_until};
use crate::tap::{KeyLog, Needle};

/// The tenant of every scene.
pub const TENANT: &str = "S12345678";
/// The server group of nodes and routes, unless a test wants another.
pub const GROUP: &str = "default";
/// The relay's name.
pub const RELAY: &str = "relay.liar.test";
/// Longest wait for anything that should take a moment.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Hand-shakes that a node does at once.
pub const HANDSHAKES: usize = 16;

/// What is different from the plain scene.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Of the document that the site sends, and of the one it takes.
    pub document: usize,
    /// Of timers. A tenth: silence is noticed in seconds.
    pub scale: f64,
    /// The liar listens on UDP too, and its peers use nothing else for links.
    pub quic: bool,
    /// The liar has another CA than the one its peers know, with the same names.
    pub own_ca: bool,
    /// Environment of every process.
    pub environment: Vec<(String, String)>,
}

impl Default for Setting {
    fn default() -> Self {
        Self { document: 1 << 20, scale: 0.1, quic: false, own_ca: false, environment: Vec::new() }
    }
}

struct Running {
    name: String,
    admin: SocketAddr,
    process: Process,
}

/// See the module.
pub struct Scene {
    /// The relay.
    pub liar: Liar,
    /// Of nodes and devices whose state the test writes.
    pub tenant: Tenant,
    /// What there is to reach.
    pub site: Site,
    /// The relay's identity.
    pub relay: RelayIdentity,
    setting: Setting,
    running: Vec<Running>,
    secrets: Vec<Needle>,
    folder: tempfile::TempDir,
}

impl std::fmt::Debug for Scene {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scene({})", self.folder.path().display())
    }
}

impl Scene {
    /// The liar and the site; nobody else yet.
    #[must_use]
    pub fn new() -> Self {
        Self::set(Setting::default())
    }

    /// The same, with differences.
    #[must_use]
    pub fn set(setting: Setting) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let relay = RelayIdentity::new(RELAY);
        let another = RelayIdentity::new(RELAY);
        let liar = Liar::start(if setting.own_ca { &another } else { &relay }, folder.path());
        if setting.quic {
            liar.listen_on_udp();
        }
        let site = Site::start(setting.document);
        let secrets = site.marks.clone();
        let tenant = Tenant::new(TENANT);
        let scene = Self { liar, tenant, site, relay, setting, running: Vec::new(), secrets, folder };
        std::fs::write(scene.path("relay-ca.pem"), &scene.relay.ca_pem).expect("a file");
        scene
    }

    /// A path in the scene's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// One more thing that the liar must not learn.
    pub fn secret(&mut self, needle: Needle) {
        self.secrets.push(needle);
    }

    /// A node of the tenant, running; `config` is what it begins with.
    pub fn node(&mut self, name: &str, group: &str, config: &SignedConfig) -> EntityId {
        let holder = self.tenant.issue(Role::Node, group);
        let folder = self.path(name);
        let state = State::create(&folder).expect("a folder");
        let record = Record {
            tenant: self.tenant.id.clone(),
            id: holder.identity.id,
            name: name.to_owned(),
            group: group.parse().expect("a group"),
            origins: vec![Origin::Proxy],
            relays: vec![self.liar.address()],
            relay_name: Some(RELAY.into()),
            relay_ca_pem: Some(self.relay.ca_pem.clone()),
            relay_ca_pin: None,
        };
        state.store_key(&holder.key.to_pkcs8()).expect("a key file");
        state.store_config(config, version_of(config)).expect("a configuration file");
        state.store_enrolment(&record, &self.tenant.ca.der(), &holder.leaf).expect("files");
        self.secrets.push(holder.needle());
        self.run_node(name);
        self.wait_for_link(name, holder.identity.id);
        holder.identity.id
    }

    fn wait_for_link(&self, name: &str, id: EntityId) {
        if !self.setting.own_ca {
            let _ = self.liar.wait_for_link(name, |k| k.entity == Some(id));
        }
    }

    /// Starts the node whose state lies in the folder of its name.
    pub fn run_node(&mut self, name: &str) {
        let text = format!(
            "state = {:?}\n{}[limits]\nhandshakes = {HANDSHAKES}\n[drain]\nseconds = 1\n{}",
            self.path(name),
            self.transport(),
            self.timers()
        );
        self.start("node", name, &text, true);
    }

    /// A device of the tenant, running.
    pub fn device(&mut self, name: &str, config: &SignedConfig, lanes: bool) -> Device {
        let holder = self.tenant.issue(Role::Device, GROUP);
        let folder = self.path(name);
        device_files::make_dir(&folder).expect("a folder");
        let relay = device_files::RelayFile {
            addresses: vec![self.liar.address()],
            name: RELAY.into(),
            ca: Some(self.relay.ca_pem.clone()),
        };
        let pem = |label: &str, der: &[u8]| pem::encode(&pem::Pem::new(label, der)).into_bytes();
        let files = [
            (device_files::KEY, pem("PRIVATE KEY", &holder.key.to_pkcs8())),
            (device_files::TENANT_CA, pem("CERTIFICATE", &self.tenant.ca.der())),
            (device_files::RELAY, serde_json::to_vec(&relay).expect("JSON")),
            (device_files::CONFIG, minicbor::to_vec(config).expect("CBOR")),
            (device_files::CERTIFICATE, pem("CERTIFICATE", &holder.leaf)),
        ];
        for (file, bytes) in files {
            device_files::write_file(&folder, file, &bytes).expect("a file");
        }
        self.secrets.push(holder.needle());
        let socks = self.run_device(name, lanes);
        self.wait_for_link(name, holder.identity.id);
        Device { id: holder.identity.id, name: name.to_owned(), socks }
    }

    /// Starts the device whose state lies in the folder of its name; where its SOCKS5 proxy listens.
    pub fn run_device(&mut self, name: &str, lanes: bool) -> SocketAddr {
        let socks = loopback();
        let text = format!(
            "state = {:?}\n{}lanes = \"{}\"\n[proxy]\nsocks5 = \"{socks}\"\nhttp = \"{}\"\n{}",
            self.path(name),
            self.transport(),
            if lanes { "auto" } else { "off" },
            loopback(),
            self.timers()
        );
        self.start("device", name, &text, true);
        wait_until("the device's proxy listens", PATIENCE, || TcpStream::connect(socks).is_ok());
        socks
    }

    fn transport(&self) -> &'static str {
        if self.setting.quic { "transport = \"quic\"\n" } else { "" }
    }

    fn timers(&self) -> String {
        format!("[timers]\nscale = {}\n", self.setting.scale)
    }

    /// A real core with a tenant of its own, a user `anna@example.com`, and a rule and a route for the site.
    pub fn core(&mut self) {
        self.core_files();
        self.run_core(true);
        let port = self.site.port.to_string();
        self.command(&["user", "add", "anna@example.com", "--name", "Anna"]);
        self.command(&["rule", "add", "allow", "127.0.0.1", "--ports", &port]);
        self.command(&["route", "add", "127.0.0.1", "group:default"]);
    }

    /// What a core needs before it can run: the tenant's key, which the relay has too.
    pub fn core_files(&mut self) {
        let key = Secret::new(clock::random::<32>().to_vec());
        let text: String = key.expose().iter().map(|b| format!("{b:02x}")).collect();
        self.private_file("srp.key", text.as_bytes());
        self.secrets.push(Needle { name: "SRP key".into(), bytes: key.expose().to_vec() });
        self.secrets.push(Needle { name: "SRP key in digits".into(), bytes: text.into_bytes() });
        self.liar.give_srp_key(key);
        self.liar.give_address("anna@example.com", &TENANT.parse().expect("a tenant id"));
    }

    /// Starts the core; whether it is waited for.
    pub fn run_core(&mut self, wait: bool) {
        let text = format!(
            "tenant = \"{TENANT}\"\nname = \"Test\"\nstate = {:?}\n{}srp_key_file = {:?}\n[[relays]]\nname = \"{RELAY}\"\n\
             addresses = [\"{}\"]\nca_file = {:?}\n[advertise]\nrelays = [\"{}\"]\nname = \"{RELAY}\"\nca_file = {:?}\n[drain]\nseconds = 1\n",
            self.path("core"),
            self.transport(),
            self.path("srp.key"),
            self.liar.address(),
            self.path("relay-ca.pem"),
            self.liar.address(),
            self.path("relay-ca.pem"),
        );
        self.start("core", "core", &text, wait);
    }

    fn private_file(&self, name: &str, bytes: &[u8]) {
        let mut options = std::fs::OpenOptions::new();
        let file = options.create(true).truncate(true).write(true).mode(0o600).open(self.path(name));
        file.expect("a file").write_all(bytes).expect("room on the disk");
    }

    /// An activation password for the user: its file. The liar must not learn it.
    pub fn password(&mut self) -> PathBuf {
        let file = self.secret_file(&["password", "generate", "anna@example.com"]);
        let text = std::fs::read(&file).expect("the password");
        self.secrets.push(Needle { name: "activation password".into(), bytes: text.trim_ascii().to_vec() });
        file
    }

    /// An enrolment token: its file. The liar must not learn its secret.
    pub fn token(&mut self) -> PathBuf {
        let file = self.secret_file(&["token", "create", "--name", "node"]);
        let text = std::fs::read_to_string(&file).expect("the token");
        let token = hedgerow_shared::wire::token::EnrolmentToken::from_secret(&Secret::from_text(text));
        let secret = token.expect("a token").secret;
        let base64 = data_encoding::BASE64.encode(&secret).into_bytes();
        self.secrets.push(Needle { name: "token's secret".into(), bytes: secret.to_vec() });
        self.secrets.push(Needle { name: "token's secret in base64".into(), bytes: base64 });
        file
    }

    /// Runs a verb that writes a secret to a new file.
    fn secret_file(&self, arguments: &[&str]) -> PathBuf {
        let file = self.path(&format!("{}-{:08x}", arguments[0], u32::from_be_bytes(clock::random())));
        self.command(&[arguments, &["--out", &file.display().to_string()]].concat());
        file
    }

    /// Activates a device at the core, into the folder `name`.
    #[must_use]
    pub fn activate(&self, name: &str, password: &Path) -> Output {
        let config = self.path(&format!("{name}-activate.toml"));
        std::fs::write(&config, format!("state = {:?}\n", self.path(name))).expect("a file");
        let mut command = self.hedgerow(&["device", "activate", "--email", "anna@example.com", "--relay-name", RELAY]);
        command.arg("--relay").arg(self.liar.address()).arg("--relay-ca").arg(self.path("relay-ca.pem"));
        command.arg("--password-file").arg(password).arg("--config").arg(config);
        process::try_run(&mut command, PATIENCE)
    }

    /// Enrols a node at the core, into the folder `name`.
    #[must_use]
    pub fn enrol(&self, name: &str, token: &Path) -> Output {
        let config = self.path(&format!("{name}-enrol.toml"));
        std::fs::write(&config, format!("state = {:?}\n", self.path(name))).expect("a file");
        let mut command = self.hedgerow(&["node", "enroll", "--token-file"]);
        command.arg(token).arg("--config").arg(config);
        process::try_run(&mut command, PATIENCE)
    }

    /// One of the core's verbs, which must succeed; what it printed as JSON.
    pub fn command(&self, arguments: &[&str]) -> Value {
        let mut command = self.hedgerow(arguments);
        let output = process::run(command.env("HEDGEROW_JSON", "true"), PATIENCE);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    fn hedgerow(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(hedgerow());
        command.args(arguments).env("HEDGEROW_CORE_SOCKET", self.path("core/control.sock"));
        command
    }

    fn start(&mut self, role: &str, name: &str, text: &str, wait: bool) {
        let admin = loopback();
        let config = self.path(&format!("{name}.toml"));
        std::fs::write(&config, format!("{text}[admin]\nlisten = \"{admin}\"\n")).expect("a file");
        let mut command = Command::new(hedgerow());
        command.args([role, "run", "--config"]).arg(config).env_remove("HEDGEROW_LOG");
        command.env(SESSION_KEY_LOG, self.path("end-keys")).envs(self.setting.environment.iter().cloned());
        let process = Process::start(&mut command, &self.path(&format!("{name}.log")));
        self.running.push(Running { name: name.to_owned(), admin, process });
        if wait && role == "core" {
            wait_until("the core is ready", PATIENCE, || self.get(name, "/readyz").starts_with("HTTP/1.1 200"));
        }
    }

    /// Ends a process at once.
    pub fn kill(&mut self, name: &str) {
        if let Some(at) = self.running.iter().position(|r| r.name == name) {
            let running = self.running.remove(at);
            process::signal(running.process.pid(), libc::SIGKILL);
        }
    }

    /// What a process has logged.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// Waits until a process has logged something.
    pub fn wait_for_log(&self, name: &str, text: &str) {
        let since = Instant::now();
        while !self.log(name).contains(text) {
            assert!(since.elapsed() < PATIENCE, "{name} does not say {text:?}:\n{}", self.log(name));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// One GET at a process's admin listener: head and body.
    #[must_use]
    pub fn get(&self, name: &str, path: &str) -> String {
        let running = self.running.iter().find(|r| r.name == name).expect("it runs");
        let Ok(mut tcp) = TcpStream::connect(running.admin) else { return String::new() };
        tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", running.admin);
        let mut answer = String::new();
        if tcp.write_all(request.as_bytes()).is_ok() {
            // What came counts; the rest shows in the assertion that uses it.
            let _ = tcp.read_to_string(&mut answer);
        }
        answer
    }

    /// The JSON at a path of a process's admin listener.
    #[must_use]
    pub fn json(&self, name: &str, path: &str) -> Value {
        let answer = self.get(name, path);
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        let from = body.find(['{', '[']).unwrap_or(0);
        let to = body.rfind(['}', ']']).map_or(body.len(), |at| at + 1);
        serde_json::from_str(&body[from..to]).unwrap_or(Value::Null)
    }

    /// The value of a metric, labels summed up.
    #[must_use]
    pub fn metric(&self, process: &str, name: &str, label: &str) -> f64 {
        self.get(process, "/metrics")
            .lines()
            .filter(|l| l.starts_with(name) && l.contains(label))
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Exchanges the documents with the site through a device; `None` when the connection was refused.
    #[must_use]
    pub fn visit(&self, device: &Device) -> Option<Reading> {
        let tcp = device.connect(self.site.port)?;
        Some(exchange(&tcp, &self.site.up))
    }

    /// A visit that must go well in both directions.
    pub fn visit_well(&self, device: &Device) {
        let reading = self.visit(device);
        let reading = reading.unwrap_or_else(|| panic!("refused:\n{}", self.log(&device.name)));
        assert!(reading.check(&self.site.down, "download"), "the download was cut");
        let taken = self.site.readings();
        assert!(!taken.is_empty() && taken.iter().all(|r| r.check(&self.site.up, "upload")), "the upload was cut");
    }

    /// Panics when the liar has seen anything it must not know.
    pub fn assert_nothing_learnt(&self) {
        let mut secrets = self.secrets.clone();
        // Whoever has one of these opens a session.
        secrets.extend(self.end_keys().needles("ends"));
        let found = self.liar.notes().search(&secrets);
        assert!(found.is_empty(), "the relay has learnt: {found:#?}");
    }

    /// Secrets of every end-to-end connection that somebody of the scene has opened.
    #[must_use]
    pub fn end_keys(&self) -> KeyLog {
        KeyLog::read(&self.path("end-keys"))
    }

    /// What the liar must not learn, as far as the scene knows.
    #[must_use]
    pub fn secrets(&self) -> &[Needle] {
        &self.secrets
    }

    /// The link of this holder.
    #[must_use]
    pub fn link_of(&self, id: EntityId) -> Known {
        self.liar.wait_for_link("somebody", |k| k.entity == Some(id))
    }
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for running in &self.running {
            if std::thread::panicking() {
                let log = self.log(&running.name);
                let tail: Vec<&str> = log.lines().rev().take(25).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                let _ = writeln!(std::io::stderr(), "-- {}:\n{}", running.name, tail.join("\n"));
            }
            process::signal(running.process.pid(), libc::SIGKILL);
        }
    }
}

/// A device that runs.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its id.
    pub id: EntityId,
    /// Of its process in the scene.
    pub name: String,
    /// Its SOCKS5 proxy.
    pub socks: SocketAddr,
}

impl Device {
    /// A connection to a loopback port inside; `None` when it was refused.
    #[must_use]
    pub fn connect(&self, port: u16) -> Option<TcpStream> {
        let mut tcp = TcpStream::connect(self.socks).ok()?;
        tcp.set_read_timeout(Some(PATIENCE)).ok()?;
        let [high, low] = port.to_be_bytes();
        let mut reply = [0; 10];
        tcp.write_all(&[5, 1, 0]).ok()?;
        tcp.read_exact(&mut reply[..2]).ok()?;
        tcp.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low]).ok()?;
        tcp.read_exact(&mut reply).ok()?;
        (reply[1] == 0).then_some(tcp)
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

fn version_of(config: &SignedConfig) -> Version {
    let payload: Value = serde_json::from_slice(&config.payload).expect("JSON");
    let number = |key: &str| payload[key].as_u64().expect("a number");
    Version { epoch: number("epoch"), version: number("version") }
}
