//! Who is lied to: a tenant whose CA the test holds, nodes and devices of it as real processes whose state the test
//! wrote, and, where it is about activation, enrolment or configuration, a real core with a tenant of its own.
//! Everything is linked to the liar and ends with the scene.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hedgerow_connectivity_node::{Record, State};
use hedgerow_device::state as device_files;
use hedgerow_runtime::clock;
use hedgerow_runtime::tls::{Own, SigningKey};
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::config::Head;
use hedgerow_shared::verify::{
    Audience, DeviceConfig, Identity, NodeConfig, Revoked, SignedConfig, TenantCa, Version, Via,
};
use hedgerow_shared::{EntityId, GroupName, Origin, Role, TenantId};
use hedgerow_uem_core::ca::{Authority, ConfigKey, Key};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use super::{Known, Liar, RelayIdentity, lock};
use crate::process::{self, Process, free_port, hedgerow, wait_until};
use crate::tap::Needle;

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
/// A tenth: silence is noticed in seconds.
const TIMERS: &str = "[timers]\nscale = 0.1\n";
/// Of the document that the site sends, and of the one it takes.
pub const DOCUMENT: usize = 1 << 20;

fn dice(bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(32) {
        chunk.copy_from_slice(&clock::random::<32>()[..chunk.len()]);
    }
}

/// A certificate authority with its configuration key.
pub struct Tenant {
    /// The id.
    pub id: TenantId,
    /// The CA.
    pub ca: TenantCa,
    authority: Authority,
    config_key: ConfigKey,
}

impl std::fmt::Debug for Tenant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tenant({})", self.id)
    }
}

/// Somebody with a certificate.
pub struct Holder {
    /// Whom the certificate names.
    pub identity: Identity,
    /// The certificate, DER.
    pub leaf: Vec<u8>,
    /// Its key.
    pub key: Key,
}

impl std::fmt::Debug for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Holder({:?})", self.identity)
    }
}

impl Holder {
    /// As TLS takes it: leaf, then what is `above`.
    #[must_use]
    pub fn own(&self, above: &TenantCa) -> Own {
        let chain = vec![CertificateDer::from(self.leaf.clone()), above.der().clone()];
        Own { chain, key: self.signing_key() }
    }

    /// The key as TLS and links take it.
    #[must_use]
    pub fn signing_key(&self) -> Arc<SigningKey> {
        SigningKey::from_pkcs8(&self.key.to_pkcs8()).expect("its own encoding")
    }

    /// The private number, to look for.
    #[must_use]
    pub fn needle(&self) -> Needle {
        let der = self.key.to_pkcs8();
        let at = der.windows(5).position(|w| w == [2, 1, 1, 4, 32]).expect("a P-256 key") + 5;
        Needle { name: format!("private key of {}", self.identity.role), bytes: der[at..at + 32].to_vec() }
    }
}

impl Tenant {
    /// A tenant of this id with new keys.
    #[must_use]
    pub fn new(id: &str) -> Self {
        let id: TenantId = id.parse().expect("a tenant id");
        let authority = Authority::create(id.clone(), clock::now(), &mut dice).expect("a CA");
        let key = Key::generate(&mut dice).expect("a key");
        let certificate = authority.issue_config_key(&key, clock::now(), &mut dice).expect("a certificate");
        let ca = TenantCa::from_der(authority.certificate()).expect("a CA that verifiers take");
        Self { id, ca, config_key: ConfigKey::from_parts(key, certificate), authority }
    }

    /// A certificate for somebody new; `group` is for nodes.
    #[must_use]
    pub fn issue(&self, role: Role, group: &str) -> Holder {
        let group: Option<GroupName> = (role == Role::Node).then(|| group.parse().expect("a group"));
        let origins = match role {
            Role::Core => vec![Origin::Core, Origin::Bws],
            Role::Node => vec![Origin::Proxy],
            Role::Device => Vec::new(),
        };
        let id = EntityId::from_random(clock::random());
        let identity = Identity { tenant: self.id.clone(), role, id, group, origins };
        let key = Key::generate(&mut dice).expect("a key");
        let issued = self.authority.issue_for_key(&key, &identity, clock::now(), &mut dice).expect("a certificate");
        Holder { identity, leaf: issued.certificate, key }
    }

    fn head(&self, audience: Audience, version: u64, lifetime: u64) -> Head {
        let now = clock::now();
        let version = Version { epoch: 1, version };
        Head { tenant: self.id.clone(), audience, version, issued: now, expires: now.plus(lifetime) }
    }

    /// A nodes' document that allows 127.0.0.1 at `port`, good for `lifetime` seconds.
    #[must_use]
    pub fn node_config(&self, version: u64, lifetime: u64, port: u16, revoked: &[EntityId]) -> SignedConfig {
        let rule = json!({ "action": "allow", "target": "127.0.0.1", "ports": port.to_string() });
        let document = NodeConfig {
            head: self.head(Audience::Node, version, lifetime),
            revoked: Revoked { ids: revoked.to_vec(), serials: Vec::new() },
            rules: vec![serde_json::from_value(rule).expect("a rule")],
        };
        self.config_key.sign(&document).expect("a signature")
    }

    /// A devices' document that sends 127.0.0.1 to the nodes of `group`.
    #[must_use]
    pub fn device_config(&self, version: u64, lifetime: u64, group: &str) -> SignedConfig {
        let route = json!({ "target": "127.0.0.1", "via": format!("group:{group}") });
        let document = DeviceConfig {
            head: self.head(Audience::Device, version, lifetime),
            routes: vec![serde_json::from_value(route).expect("a route")],
            default_route: Via::Deny,
        };
        self.config_key.sign(&document).expect("a signature")
    }
}

/// How a stream looked at the end that read it.
#[derive(Clone, PartialEq, Eq)]
pub struct Reading {
    /// What came.
    pub bytes: Vec<u8>,
    /// Whether it ended in order.
    pub in_order: bool,
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, {}", self.bytes.len(), if self.in_order { "ended in order" } else { "cut" })
    }
}

impl Reading {
    fn of(mut tcp: &TcpStream) -> Self {
        let mut bytes = Vec::new();
        let end = tcp.read_to_end(&mut bytes);
        let stood = end.as_ref().is_err_and(|e| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
        assert!(!stood, "{} bytes, then nothing for {} s: neither data nor an error", bytes.len(), PATIENCE.as_secs());
        Self { bytes, in_order: end.is_ok() }
    }

    /// Whether everything came and ended in order. Panics when anything came that was not sent, or when what was cut
    /// off looks as if it were all.
    pub fn check(&self, sent: &[u8], what: &str) -> bool {
        assert!(sent.starts_with(&self.bytes), "{what}: wrong bytes among {} of {}", self.bytes.len(), sent.len());
        let whole = self.bytes.len() == sent.len();
        assert!(whole || !self.in_order, "{what}: {} of {} bytes, and an end in order", self.bytes.len(), sent.len());
        whole && self.in_order
    }
}

/// A server inside: sends one document and takes another from each visitor, and remembers what it read.
#[derive(Debug)]
pub struct Site {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// What it sends; begins with a mark that nobody has written before.
    pub down: Arc<[u8]>,
    /// What visitors send.
    pub up: Arc<[u8]>,
    marks: Vec<Needle>,
    read: Arc<Mutex<Vec<Reading>>>,
    visitors: Arc<AtomicUsize>,
}

impl Site {
    fn start() -> Self {
        let mark = |way: &str| {
            let dice: String = clock::random::<16>().iter().map(|b| format!("{b:02x}")).collect();
            format!("<marked {way} {dice}>").into_bytes()
        };
        let marks = [mark("down"), mark("up")];
        let document = |mark: &[u8]| {
            // A counter, so that bytes at a wrong place are wrong bytes.
            let mut text = mark.to_vec();
            let mut n = 0u64;
            while text.len() < DOCUMENT {
                n += 1;
                text.extend_from_slice(mark);
                text.extend_from_slice(&n.to_be_bytes());
            }
            Arc::<[u8]>::from(text)
        };
        let (down, up) = (document(&marks[0]), document(&marks[1]));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let read: Arc<Mutex<Vec<Reading>>> = Arc::default();
        let visitors: Arc<AtomicUsize> = Arc::default();
        let (send, kept, here) = (down.clone(), read.clone(), visitors.clone());
        std::thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                here.fetch_add(1, Ordering::SeqCst);
                let (send, kept, here) = (send.clone(), kept.clone(), here.clone());
                std::thread::spawn(move || {
                    let reading = exchange(&tcp, &send);
                    lock(&kept).push(reading);
                    here.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        let marks = marks.iter().map(|m| Needle { name: "the document's mark".into(), bytes: m.clone() }).collect();
        Self { port, down, up, marks, read, visitors }
    }

    /// What visitors sent, as it was read, since the last time it was asked; waits until all have gone. A connection
    /// that a node opened in vain, before anybody was told of it, is none of them.
    #[must_use]
    pub fn readings(&self) -> Vec<Reading> {
        wait_until("the site's visitors have gone", PATIENCE, || self.visitors.load(Ordering::SeqCst) == 0);
        let mut readings = std::mem::take(&mut *lock(&self.read));
        readings.retain(|r| !(r.in_order && r.bytes.is_empty()));
        readings
    }
}

/// Sends and reads at the same time. A reset is told once, to the writer or to the reader; whichever heard of it, the
/// end was not in order.
fn exchange(tcp: &TcpStream, send: &[u8]) -> Reading {
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| {
            (&mut &*tcp).write_all(send)?;
            tcp.shutdown(Shutdown::Write)
        });
        let mut reading = Reading::of(tcp);
        reading.in_order &= sent.join().expect("it does not panic").is_ok();
        reading
    })
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
        let folder = tempfile::tempdir().expect("a folder");
        let relay = RelayIdentity::new(RELAY);
        let liar = Liar::start(&relay, folder.path());
        let site = Site::start();
        let secrets = site.marks.clone();
        let scene = Self { liar, tenant: Tenant::new(TENANT), site, relay, running: Vec::new(), secrets, folder };
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
        state.store_enrolment(&record, self.tenant.ca.der(), &holder.leaf).expect("files");
        self.secrets.push(holder.needle());
        self.run_node(name);
        let _ = self.liar.wait_for_link(name, |k| k.entity == Some(holder.identity.id));
        holder.identity.id
    }

    /// Starts the node whose state lies in the folder of its name.
    pub fn run_node(&mut self, name: &str) {
        let text = format!(
            "state = {:?}\n[limits]\nhandshakes = {HANDSHAKES}\n[drain]\nseconds = 1\n{TIMERS}",
            self.path(name)
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
            (device_files::TENANT_CA, pem("CERTIFICATE", self.tenant.ca.der())),
            (device_files::RELAY, serde_json::to_vec(&relay).expect("JSON")),
            (device_files::CONFIG, minicbor::to_vec(config).expect("CBOR")),
            (device_files::CERTIFICATE, pem("CERTIFICATE", &holder.leaf)),
        ];
        for (file, bytes) in files {
            device_files::write_file(&folder, file, &bytes).expect("a file");
        }
        self.secrets.push(holder.needle());
        let socks = self.run_device(name, lanes);
        let _ = self.liar.wait_for_link(name, |k| k.entity == Some(holder.identity.id));
        Device { id: holder.identity.id, name: name.to_owned(), socks }
    }

    /// Starts the device whose state lies in the folder of its name; where its SOCKS5 proxy listens.
    pub fn run_device(&mut self, name: &str, lanes: bool) -> SocketAddr {
        let socks = loopback();
        let text = format!(
            "state = {:?}\nlanes = \"{}\"\n[proxy]\nsocks5 = \"{socks}\"\nhttp = \"{}\"\n{TIMERS}",
            self.path(name),
            if lanes { "auto" } else { "off" },
            loopback()
        );
        self.start("device", name, &text, true);
        wait_until("the device's proxy listens", PATIENCE, || TcpStream::connect(socks).is_ok());
        socks
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
            "tenant = \"{TENANT}\"\nname = \"Test\"\nstate = {:?}\nsrp_key_file = {:?}\n[[relays]]\nname = \"{RELAY}\"\n\
             addresses = [\"{}\"]\nca_file = {:?}\n[advertise]\nrelays = [\"{}\"]\nname = \"{RELAY}\"\nca_file = {:?}\n[drain]\nseconds = 1\n",
            self.path("core"),
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
        let found = self.liar.notes().search(&self.secrets);
        assert!(found.is_empty(), "the relay has learnt: {found:#?}");
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
