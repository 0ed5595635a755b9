//! What is measured: each subject starts its own processes, says which port leads to the target, and which process
//! plays which part.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hedgerow_runtime::loopback::reserve_port;

use crate::load::Way;
use crate::process::{Process, wait_for_port};
use crate::product::Product;

/// A running subject. Its processes end with it.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) way: Way,
    /// Part and process: `device`, `relay`, `node`.
    pub(crate) parts: Vec<(&'static str, u32)>,
    /// What can be done to it while it runs; absent for others' products.
    pub(crate) product: Option<Product>,
    _processes: Vec<Process>,
    _folder: Option<tempfile::TempDir>,
}

/// The names of all subjects, in the order they are measured.
pub(crate) const ALL: &[&str] =
    &["direct", "plain3", "lane", "link-tls", "link-quic", "ssh", "rathole", "rathole-noise"];

/// What can carry an end-to-end session of the product.
pub(crate) const CARRIERS: &[&str] = &["lane", "link-tls", "link-quic"];

/// Where `benches/peers/install` puts what it builds.
pub(crate) fn peers_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers")
}

pub(crate) fn start(name: &str, target: u16) -> anyhow::Result<Subject> {
    match name {
        "direct" => Ok(Subject {
            name: "direct",
            way: Way::Port(target),
            parts: vec![],
            product: None,
            _processes: vec![],
            _folder: None,
        }),
        "plain3" => plain3(target),
        "lane" => hedgerow("lane", "auto", "auto", target),
        "link-tls" => hedgerow("link-tls", "off", "tls", target),
        "link-quic" => hedgerow("link-quic", "off", "quic", target),
        "ssh" => ssh(target),
        "rathole" => rathole("rathole", "", target),
        "rathole-noise" => rathole("rathole-noise", "noise", target),
        other => bail!("no subject {other:?}; there are: {}", ALL.join(", ")),
    }
}

/// Fails when a peer is not installed: figures without their peers say nothing.
pub(crate) fn check_peers(names: &[String]) -> anyhow::Result<()> {
    let rathole = peers_folder().join("bin/rathole");
    let wants = |peer: &str| names.iter().any(|n| n.starts_with(peer));
    if wants("rathole") && !rathole.exists() {
        bail!("rathole is missing: run benches/peers/install");
    }
    if wants("ssh") && !(Path::new("/usr/sbin/sshd").exists() && Path::new("/usr/bin/ssh").exists()) {
        bail!("OpenSSH is missing: run benches/peers/install");
    }
    Ok(())
}

fn plain3(target: u16) -> anyhow::Result<Subject> {
    let folder = tempfile::tempdir()?;
    let me = std::env::current_exe()?;
    let (mut processes, mut parts, mut to) = (Vec::new(), Vec::new(), target);
    for part in ["node", "relay", "device"] {
        let port = reserve_port()?;
        let process = Process::start(
            Command::new(&me).args(["hop", &port.to_string(), &to.to_string()]),
            &folder.path().join(format!("{part}.log")),
        )?;
        wait_for_port(port, Duration::from_secs(5))?;
        parts.push((part, process.pid()));
        processes.push(process);
        to = port;
    }
    Ok(Subject {
        name: "plain3",
        way: Way::Port(to),
        parts,
        product: None,
        _processes: processes,
        _folder: Some(folder),
    })
}

/// The product's own demo: real processes, real wires; `lanes` and `transport` choose the path.
fn hedgerow(name: &'static str, lanes: &str, transport: &str, target: u16) -> anyhow::Result<Subject> {
    let folder = tempfile::tempdir()?;
    let binary = std::env::current_exe()?.with_file_name("hedgerow");
    let state = folder.path().join("state");
    let mut demo = Process::start(
        Command::new(&binary)
            .args(["demo", "--lanes", lanes, "--transport", transport])
            .args(["--also-allow", &format!("127.0.0.1:{target}"), "--state"])
            .arg(&state)
            // A drain that nobody can end sooner is over sooner; see `outage`.
            .env("HEDGEROW_RELAY__DRAIN__SECONDS", crate::outage::DRAIN_SECONDS.to_string()),
        &folder.path().join("demo.log"),
    )?;
    let file = state.join("demo.json");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !file.exists() {
        if demo.has_ended() || Instant::now() > deadline {
            let log = std::fs::read_to_string(folder.path().join("demo.log")).unwrap_or_default();
            bail!("the demo did not come up:\n{log}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let described: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let socks = described["device"]["socks5"].as_str().and_then(|a| a.rsplit(':').next()?.parse().ok());
    let proxy: u16 = socks.context("demo.json has no device.socks5")?;
    let part = |p: &'static str| {
        let pid = described["pids"][p].as_u64().and_then(|n| u32::try_from(n).ok());
        pid.map(|pid| (p, pid)).with_context(|| format!("demo.json has no pids.{p}"))
    };
    let parts = vec![part("device")?, part("relay")?, part("node")?];
    let product = Some(Product::new(binary, state, &described)?);
    let way = Way::Socks { proxy, target };
    Ok(Subject { name, way, parts, product, _processes: vec![demo], _folder: Some(folder) })
}

/// OpenSSH's reverse tunnel with its fastest cipher: sshd plays the relay, ssh the node.
fn ssh(target: u16) -> anyhow::Result<Subject> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name).display().to_string();
    for key in ["host", "user"] {
        let status = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f", &at(key)])
            .stdin(Stdio::null())
            .status()?;
        if !status.success() {
            bail!("ssh-keygen failed");
        }
    }
    std::fs::copy(at("user.pub"), at("authorized"))?;
    std::fs::set_permissions(at("authorized"), std::fs::Permissions::from_mode(0o600))?;
    // sshd wants this folder for its privilege separation.
    std::fs::create_dir_all("/run/sshd")?;
    let (port, entry) = (reserve_port()?, reserve_port()?);
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
         PermitRootLogin yes\nPidFile none\nAllowTcpForwarding yes\nMaxStartups 100\n",
        at("host"),
        at("authorized"),
    );
    std::fs::write(at("sshd.conf"), config)?;
    let server = Process::start(
        Command::new("/usr/sbin/sshd").args(["-D", "-e", "-f", &at("sshd.conf")]),
        &folder.path().join("sshd.log"),
    )?;
    wait_for_port(port, Duration::from_secs(5))?;
    let user = std::env::var("USER").unwrap_or_else(|_| "root".into());
    let client = Process::start(
        Command::new("ssh")
            .args(["-N", "-F", "none", "-p", &port.to_string(), "-i", &at("user"), "-c", "aes128-gcm@openssh.com"])
            .args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                &format!("UserKnownHostsFile={}", at("known")),
                "-o",
                "LogLevel=ERROR",
            ])
            .args(["-R", &format!("{entry}:127.0.0.1:{target}"), &format!("{user}@127.0.0.1")]),
        &folder.path().join("ssh.log"),
    )?;
    wait_for_port(entry, Duration::from_secs(10))
        .with_context(|| std::fs::read_to_string(at("ssh.log")).unwrap_or_default())?;
    let parts = vec![("relay", server.pid()), ("node", client.pid())];
    Ok(Subject {
        name: "ssh",
        way: Way::Port(entry),
        parts,
        product: None,
        _processes: vec![client, server],
        _folder: Some(folder),
    })
}

fn rathole(name: &'static str, transport: &str, target: u16) -> anyhow::Result<Subject> {
    let folder = tempfile::tempdir()?;
    let binary = peers_folder().join("bin/rathole");
    let (port, entry) = (reserve_port()?, reserve_port()?);
    let (mut server_tls, mut client_tls) = (String::new(), String::new());
    if transport == "noise" {
        let keys = String::from_utf8(Command::new(&binary).arg("--genkey").output()?.stdout)?;
        let mut lines = keys.lines();
        let (private, public) = (lines.nth(1).unwrap_or_default().trim(), lines.nth(2).unwrap_or_default().trim());
        server_tls = format!(
            "[server.transport]\ntype = \"noise\"\n[server.transport.noise]\nlocal_private_key = \"{private}\"\n"
        );
        client_tls = format!(
            "[client.transport]\ntype = \"noise\"\n[client.transport.noise]\nremote_public_key = \"{public}\"\n"
        );
    }
    let server_file = folder.path().join("server.toml");
    std::fs::write(
        &server_file,
        format!(
            "[server]\nbind_addr = \"127.0.0.1:{port}\"\ndefault_token = \"bench\"\n{server_tls}[server.services.bench]\nbind_addr = \"127.0.0.1:{entry}\"\n"
        ),
    )?;
    let client_file = folder.path().join("client.toml");
    std::fs::write(
        &client_file,
        format!(
            "[client]\nremote_addr = \"127.0.0.1:{port}\"\ndefault_token = \"bench\"\n{client_tls}[client.services.bench]\nlocal_addr = \"127.0.0.1:{target}\"\n"
        ),
    )?;
    let run = |side: &str, file: &Path| {
        Process::start(
            Command::new(&binary).arg(format!("--{side}")).arg(file).env("RUST_LOG", "warn"),
            &folder.path().join(format!("{side}.log")),
        )
    };
    let server = run("server", &server_file)?;
    wait_for_port(port, Duration::from_secs(5))?;
    let client = run("client", &client_file)?;
    wait_for_port(entry, Duration::from_secs(10))?;
    std::thread::sleep(Duration::from_millis(500));
    let parts = vec![("relay", server.pid()), ("node", client.pid())];
    Ok(Subject {
        name,
        way: Way::Port(entry),
        parts,
        product: None,
        _processes: vec![client, server],
        _folder: Some(folder),
    })
}
