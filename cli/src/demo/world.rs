//! The demo's folder, ports and processes.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hedgerow_runtime::loopback::reserve_port;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::places::{INSIDE, Places, RELAY_LINK, RELAY_OUTSIDE};
use super::tunnel::OUTSIDE_NAME;
use super::{DemoArgs, tunnel, warn};
use crate::output::print;

/// The organisation.
pub(super) const TENANT: &str = "S12345678";
/// The user whose device is activated.
pub(super) const EMAIL: &str = "anna@hedgerow.demo";
/// The relay's name in its certificate.
pub(super) const RELAY: &str = "relay.hedgerow.demo";
/// The site's name; only the node knows its address.
pub(super) const SITE: &str = "intranet.hedgerow.demo";
/// The order of starting; stopping is the other way round.
const ROLES: [&str; 6] = ["site", "outside", "relay", "core", "node", "device"];
const PORTS: [&str; 10] =
    ["link", "public", "web", "relay-admin", "core-admin", "node-admin", "device-admin", "socks5", "http", "site"];

/// The same in namespaces, where nobody else has taken any.
const OWN_PORTS: [u16; 10] = [3101, 443, 8080, 9100, 9101, 9103, 9104, 1080, 3128, 80];

/// See the module.
pub(super) struct World {
    pub(super) folder: PathBuf,
    ports: BTreeMap<String, u16>,
    children: BTreeMap<&'static str, Child>,
    started: Instant,
    step: usize,
    /// Where the roles run, unless all of them are on loopback. Goes last: processes in it have ended then.
    pub(super) places: Option<Places>,
}

impl World {
    /// Makes the folder and chooses ports; a folder of an earlier demo is taken up again.
    pub(super) fn prepare(folder: &Path, args: &DemoArgs) -> anyhow::Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        std::fs::create_dir_all(folder.join("log"))?;
        let ports = if args.tunnel {
            PORTS.into_iter().map(str::to_owned).zip(OWN_PORTS).collect()
        } else {
            choose_ports(&folder.join("ports.json"))?
        };
        let places = args.tunnel.then(Places::new);
        // Of an earlier run: it must not be taken for this one's.
        let _ = std::fs::remove_file(folder.join("demo.json"));
        Ok(Self { folder, ports, children: BTreeMap::new(), started: Instant::now(), step: 0, places })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn port(&self, name: &str) -> u16 {
        self.ports.get(name).copied().unwrap_or_default()
    }

    pub(super) fn address(&self, name: &str) -> String {
        format!("{}:{}", self.ip(name), self.port(name))
    }

    /// Where one of the ports is.
    pub(super) fn ip(&self, name: &str) -> &'static str {
        match name {
            "link" if self.places.is_some() => RELAY_LINK,
            "public" if self.places.is_some() => RELAY_OUTSIDE,
            "site" if self.places.is_some() => INSIDE,
            _ => "127.0.0.1",
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Says what was done, and how long it took.
    pub(super) fn done(&mut self, since: Instant, what: &str) -> anyhow::Result<()> {
        self.step += 1;
        print(&format!("{:>3}. {:>6.0} ms  {what}\n", self.step, since.elapsed().as_secs_f64() * 1e3))
    }

    /// Writes a file that only its owner can read.
    pub(super) fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        use std::io::Write;
        let path = self.path(name);
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Runs one of our own commands to its end; its output is kept, and told when it fails.
    pub(super) async fn command(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let place = arguments.first().filter(|verb| matches!(**verb, "node" | "device"));
        self.command_at(place.unwrap_or(&"relay"), arguments).await
    }

    /// As `command`, where a role is.
    pub(super) async fn command_at(&self, place: &str, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut command = self.hedgerow(place)?;
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        for (variable, socket) in
            [("HEDGEROW_CORE_SOCKET", "core/control.sock"), ("HEDGEROW_RELAY_SOCKET", "relay/control.sock")]
        {
            command.env(variable, self.path(socket));
        }
        let output = tokio::time::timeout(Duration::from_secs(60), command.env("HEDGEROW_JSON", "true").output());
        let output =
            output.await.with_context(|| format!("hedgerow {} took more than a minute", arguments.join(" ")))??;
        let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        self.log(&format!("$ hedgerow {}\n{out}{error}", arguments.join(" ")));
        if !output.status.success() {
            bail!("hedgerow {}: {}", arguments.join(" "), error.trim());
        }
        Ok(serde_json::from_str(&out).unwrap_or(Value::Null))
    }

    /// This program, where a role is.
    fn hedgerow(&self, place: &str) -> anyhow::Result<Command> {
        let exe = std::env::current_exe()?;
        Ok(match &self.places {
            Some(places) => places.program(place, &exe),
            None => Command::new(exe),
        })
    }

    fn log(&self, text: &str) {
        use std::io::Write;
        let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(self.path("log/demo.log"));
        // The log is a help, not a part of the demo.
        let _ = file.and_then(|mut f| f.write_all(text.as_bytes()));
    }

    /// Starts a role and waits until it is ready.
    pub(super) async fn start(&mut self, role: &'static str) -> anyhow::Result<()> {
        self.spawn(role)?;
        self.ready(role).await
    }

    fn spawn(&mut self, role: &'static str) -> anyhow::Result<()> {
        let log = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(self.path(&format!("log/{role}.log")))?;
        let mut command = self.hedgerow(role)?;
        match role {
            "site" => command.args(["demo", "serve", INSIDE, SITE]),
            "outside" => command.args(["demo", "serve", RELAY_OUTSIDE, OUTSIDE_NAME]),
            _ => command.arg(role).arg("run").arg("--config").arg(self.path(&format!("{role}.toml"))),
        };
        // A group of its own: Ctrl-C at the terminal reaches the demo, which stops the roles in order.
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0).kill_on_drop(true);
        // SAFETY: prctl with these arguments is async-signal-safe and touches no memory of the parent.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        self.children.insert(role, command.spawn()?);
        Ok(())
    }

    async fn ready(&mut self, role: &'static str) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let Err(why) = self.ask(role).await else { return Ok(()) };
            if let Some(status) = self.children.get_mut(role).map(Child::try_wait).transpose()?.flatten() {
                bail!("{role} ended with {status}");
            }
            if Instant::now() > deadline {
                bail!("{role} is not ready after 20 s: {why}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether a role is ready; its admin listener is on loopback, which is another in each namespace.
    async fn ask(&self, role: &str) -> anyhow::Result<()> {
        let address = self.address(&format!("{role}-admin"));
        if matches!(role, "site" | "outside") {
            let said = tunnel::part(self, role, &["fetch", "http://127.0.0.1/"]).await?;
            anyhow::ensure!(said["status"] == 200, "it answers {said}");
        } else if self.places.is_some() {
            self.command_at(role, &["health", "--admin", &address]).await?;
        } else {
            let (status, body) = get(&address, "/readyz").await?;
            anyhow::ensure!(status == 200, "{}", body.trim());
        }
        Ok(())
    }

    /// Writes `demo.json`: where everything is.
    pub(super) fn describe(&self) -> anyhow::Result<()> {
        let pids: BTreeMap<_, _> =
            self.children.iter().filter_map(|(role, child)| Some((*role, child.id()?))).collect();
        let described = json!({
            "tenant": TENANT,
            "relay": {
                "name": RELAY, "device": self.address("public"), "link": self.address("link"), "http": self.address("web"),
                "admin": self.address("relay-admin"), "ca": self.path("relay/relay-ca.pem"),
                "control": self.path("relay/control.sock"), "config": self.path("relay.toml"),
            },
            "core": {
                "admin": self.address("core-admin"), "control": self.path("core/control.sock"),
                "config": self.path("core.toml"),
            },
            "node": { "admin": self.address("node-admin"), "config": self.path("node.toml") },
            "device": {
                "socks5": self.address("socks5"), "http_proxy": self.address("http"),
                "admin": self.address("device-admin"), "config": self.path("device.toml"),
            },
            "intranet": { "url": self.site_url() },
            "user": { "email": EMAIL },
            "pids": pids,
            "log": self.path("log"),
        });
        let temporary = self.path(".demo.json");
        std::fs::write(&temporary, format!("{described:#}\n"))?;
        std::fs::rename(temporary, self.path("demo.json"))?;
        Ok(())
    }

    pub(super) fn site_url(&self) -> String {
        format!("http://{SITE}:{}/", self.port("site"))
    }

    /// What to try while it is up.
    pub(super) fn invitation(&self) -> String {
        let url = self.site_url();
        format!(
            "\nUp. The site {url} answers only through the tunnel:\n\n\
             \x20 curl --proxy socks5h://{socks} {url}\n\
             \x20 curl --proxy http://{http} {url}\n\n\
             \x20 relay   devices {public}, links {link}, web services through http://{web}\n\
             \x20 status  http://{relay}/sessions  http://{core}/status  http://{device}/status\n\
             \x20 metrics http://{relay}/metrics (also core {core}, node {node}, device {device})\n\
             \x20 folder  {folder}\n\n\
             Call the core's web services through the relay:\n\n\
             \x20 curl --proxy http://{web} --proxy-header 'Tenant-Id: {TENANT}' --proxy-header 'Origin-Server-Id: bws' \\\n\
             \x20      --insecure https://server01:18084/{TENANT}/api/v1/util/ping\n\n\
             Administer it in another terminal:\n\n\
             \x20 export HEDGEROW_CORE_SOCKET={core_socket}\n\
             \x20 {exe} device list\n\n\
             Ctrl-C ends it.\n",
            socks = self.address("socks5"),
            http = self.address("http"),
            public = self.address("public"),
            link = self.address("link"),
            web = self.address("web"),
            relay = self.address("relay-admin"),
            core = self.address("core-admin"),
            node = self.address("node-admin"),
            device = self.address("device-admin"),
            folder = self.folder.display(),
            core_socket = self.path("core/control.sock").display(),
            exe = std::env::current_exe().unwrap_or_default().display(),
        )
    }

    /// Keeps the roles up: one that ends is started again.
    pub(super) async fn watch(&mut self) -> anyhow::Result<()> {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            for role in ROLES {
                let Some(status) = self.children.get_mut(role).map(Child::try_wait).transpose()?.flatten() else {
                    continue;
                };
                warn(&format!("{role} ended ({status}); starting it again"));
                tokio::time::sleep(Duration::from_secs(1)).await;
                self.spawn(role)?;
                self.describe()?;
            }
        }
    }

    /// The end of each log, for a failure.
    pub(super) fn last_words(&self) -> String {
        let mut out = String::new();
        for role in ROLES {
            let text = std::fs::read_to_string(self.path(&format!("log/{role}.log"))).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(8)..];
            if !tail.is_empty() {
                out.push_str(&format!("-- last lines of {role}:\n{}\n", tail.join("\n")));
            }
        }
        out
    }

    /// Ends every role, the last started first, and waits.
    pub(super) async fn stop(&mut self, patience: Duration) {
        for role in ROLES.iter().rev() {
            let Some(mut child) = self.children.remove(role) else { continue };
            if let Some(pid) = child.id().and_then(|p| i32::try_from(p).ok()) {
                // SAFETY: kill has no memory effects; the child has not been waited for, so the pid is still its.
                unsafe { libc::kill(pid, libc::SIGTERM) };
            }
            if tokio::time::timeout(patience, child.wait()).await.is_err() {
                warn(&format!("{role} did not stop in time and was killed"));
                // It is on its way out either way.
                let _ = child.kill().await;
            }
        }
        let _ = std::fs::remove_file(self.path("demo.json"));
    }
}

/// Ports of the folder's earlier demo, and free ones for what it did not have; all different.
fn choose_ports(file: &Path) -> anyhow::Result<BTreeMap<String, u16>> {
    let mut ports: BTreeMap<String, u16> = match std::fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{} does not parse", file.display()))?,
        Err(_) => BTreeMap::new(),
    };
    let mut held = Vec::new();
    for (name, port) in &ports {
        let taken = || format!("port {port} ({name}) is taken: does another demo use this folder?");
        held.push(TcpListener::bind(("127.0.0.1", *port)).with_context(taken)?);
    }
    for name in PORTS {
        if !ports.contains_key(name) {
            ports.insert(name.to_owned(), reserve_port()?);
        }
    }
    std::fs::write(file, serde_json::to_vec(&ports)?)?;
    Ok(ports)
}

/// One plain HTTP GET.
pub(super) async fn get(address: &str, path: &str) -> anyhow::Result<(u16, String)> {
    exchange(TcpStream::connect(address).await?, address, path).await
}

/// One HTTP/1.1 exchange on an open connection: status and body.
pub(super) async fn exchange(mut tcp: TcpStream, host: &str, target: &str) -> anyhow::Result<(u16, String)> {
    let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await?;
    let mut reply = Vec::new();
    let mut limited = tcp.take(1 << 20);
    tokio::time::timeout(Duration::from_secs(15), limited.read_to_end(&mut reply))
        .await
        .context("no answer within 15 s")??;
    let reply = String::from_utf8_lossy(&reply);
    let (head, body) = reply.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("not an HTTP answer")?;
    Ok((status, body.to_owned()))
}
