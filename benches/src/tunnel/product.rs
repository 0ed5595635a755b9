//! This product on a ground: device, relay, core and node as real processes; the relay is the hop.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use super::ground::{Ground, HOP, Place, run};
use super::subjects::Subject;

/// The relay's name in its certificate.
const RELAY: &str = "relay.bench.test";

/// What carries packets between device and relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Udp,
    /// UDP from the client to the relay is dropped, and the link runs over TLS.
    Link,
}

pub(crate) fn start(name: &'static str, ground: Ground, binary: &Path, way: Way) -> anyhow::Result<Subject> {
    let mut roles = Roles { ground, binary: binary.to_owned() };
    roles.configure(way)?;
    if way == Way::Link {
        let gate = "table inet gate { chain out { type filter hook output priority 0; oifname eth0 meta l4proto udp drop; }; }";
        run(roles.ground.at(Place::Client, "nft").arg(gate))?;
    }
    let relay = roles.start("relay")?;
    let key = roles.path("srp.key");
    roles.verb(&["relay", "tenant", "add", "S12345678", "--out", &key])?;
    roles.verb(&["relay", "domain", "add", "S12345678", "example.com"])?;
    let _core = roles.start("core")?;
    roles.verb(&["user", "add", "anna@example.com", "--name", "Anna"])?;
    roles.verb(&["rule", "add", "allow", "10.71.3.0/24"])?;
    roles.verb(&["route", "add", "10.71.3.0/24", "group:default"])?;
    let token = roles.path("node.token");
    roles.verb(&["token", "create", "--name", "node-1", "--out", &token])?;
    roles.verb(&["node", "enroll", "--token-file", &token])?;
    let node = roles.start("node")?;
    let password = roles.path("password");
    roles.verb(&["password", "generate", "anna@example.com", "--out", &password])?;
    let (gate, ca) = (format!("{HOP}:443"), roles.path("relay/relay-ca.pem"));
    let words = ["device", "activate", "--email", "anna@example.com", "--relay", &gate, "--relay-name", RELAY];
    let trust = ["--relay-ca", &ca, "--password-file", &password];
    roles.verb(&[&words[..], &trust].concat())?;
    let device = roles.start("device")?;

    let logs = ["device", "node", "relay"];
    roles.ground.wait(&format!("no tunnel by {way:?}"), &logs, || is_by(&roles.ground, way))?;
    roles.ground.wait_for_inside(&logs)?;
    let (ground, parts) = (roles.ground, vec![("client end", device), ("hop", relay), ("server end", node)]);
    Ok(Subject { name, ground, parts, way: Some(way) })
}

/// Whether the device's tunnel is up, this way.
pub(crate) fn is_by(ground: &Ground, way: Way) -> bool {
    let said = ground.say(Place::Client, &format!("curl -fs {}/status", admin("device"))).unwrap_or_default();
    let status: Value = serde_json::from_str(&said).unwrap_or_default();
    let wanted = match way {
        Way::Udp => "udp",
        Way::Link => "link",
    };
    status["tunnel"]["state"] == "up" && status["tunnel"]["way"] == wanted
}

/// Roles of the product, each where it belongs.
struct Roles {
    ground: Ground,
    binary: PathBuf,
}

impl Roles {
    fn configure(&self, way: Way) -> anyhow::Result<()> {
        let admin = "[admin]\nlisten = \"127.0.0.1:9100\"\n";
        let transport = match way {
            Way::Udp => "auto",
            Way::Link => "tls",
        };
        let ca = self.path("relay/relay-ca.pem");
        let key = self.path("srp.key");
        for (role, text) in [
            (
                "relay",
                format!(
                    "name = \"{RELAY}\"\n[listen]\nlink = [\"0.0.0.0:3101\"]\ndevice = [\"0.0.0.0:443\"]\n[tls]\nnames = [\"{HOP}\", \"10.71.2.1\"]\n{admin}"
                ),
            ),
            (
                "core",
                format!(
                    "tenant = \"S12345678\"\nsrp_key_file = {key:?}\n[[relays]]\nname = \"{RELAY}\"\naddresses = [\"10.71.2.1:3101\"]\nca_file = {ca:?}\n[advertise]\nrelays = [\"{HOP}:443\"]\n[admin]\nlisten = \"127.0.0.1:9101\"\n"
                ),
            ),
            ("node", format!("relays = [\"10.71.2.1:3101\"]\n{admin}[tunnel]\nenabled = true\n")),
            ("device", format!("transport = \"{transport}\"\n{admin}[tunnel]\nenabled = true\n")),
        ] {
            let text = format!("state = {:?}\n{text}", self.path(role));
            std::fs::write(self.path(&format!("{role}.toml")), text)?;
        }
        Ok(())
    }

    fn path(&self, name: &str) -> String {
        self.ground.path(name).display().to_string()
    }

    fn command(&self, role: &str, words: &[&str]) -> Command {
        let mut command = self.ground.at(place(role), &self.binary.display().to_string());
        command.args(words);
        for own in ["relay", "core", "node"] {
            let name = own.to_ascii_uppercase();
            command.env(format!("HEDGEROW_{name}_CONFIG"), self.path(&format!("{own}.toml")));
            command.env(format!("HEDGEROW_{name}_SOCKET"), self.path(&format!("{own}/control.sock")));
        }
        command.env("HEDGEROW_DEVICE_CONFIG", self.path("device.toml"));
        command
    }

    /// Runs a verb where its role is.
    fn verb(&self, words: &[&str]) -> anyhow::Result<()> {
        let role = match words {
            [role @ ("relay" | "node" | "device"), ..] => role,
            _ => "core",
        };
        run(&mut self.command(role, words)).map(drop)
    }

    /// Starts a role and waits until it is ready.
    fn start(&mut self, role: &str) -> anyhow::Result<u32> {
        let mut command = self.command(role, &[role, "run"]);
        let pid = self.ground.keep(&mut command, role).with_context(|| role.to_owned())?;
        let ready = format!("curl -fs {}/readyz", admin(role));
        self.ground
            .wait(&format!("{role} is not ready"), &[role, "relay"], || self.ground.say(place(role), &ready).is_ok())?;
        Ok(pid)
    }
}

fn place(role: &str) -> Place {
    match role {
        "device" => Place::Client,
        "node" => Place::Server,
        _ => Place::Hop,
    }
}

fn admin(role: &str) -> &'static str {
    // The core shares the relay's namespace.
    if role == "core" { "http://127.0.0.1:9101" } else { "http://127.0.0.1:9100" }
}
