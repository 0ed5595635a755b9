//! Relay and node, the product's own, with their state made by hand: there is no core, for none of the tunnels' work is
//! its. The devices' processes stand in the client's namespace.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hedgerow_connectivity_node::{Record, State};
use hedgerow_shared::Role;
use hedgerow_shared::verify::config::{Audience, NodeConfig, Revoked};
use hedgerow_shared::verify::policy::{Action, Rule};
use serde_json::Value;

use super::crowd::{Answer, Crowd, Order};
use crate::link::place::{self, Described, RELAY};
use crate::process::{cpu_seconds, memory_of_tree, metric};
use crate::tunnel::ground::{Ground, HOP, Place};

/// Devices of one process: each has two sockets, and a process 20,000 files.
const CROWD: usize = 4000;
/// How long relay and node may take to know what was opened.
const KNOWN: Duration = Duration::from_secs(60);
/// Where relay and node are asked, each in its namespace.
const ADMIN: &str = "127.0.0.1:9100";
/// Where the node reaches the relay.
const INNER: &str = "10.71.2.1:3101";
/// As many tunnels as a node has by default.
const LIMIT: usize = 10_000;

/// See the module. Devices end before what they are connected to.
pub(super) struct Site {
    crowds: Vec<Crowd>,
    relay: u32,
    node: u32,
    ground: Ground,
}

/// CPU seconds of relay and node, and when.
#[derive(Clone, Copy)]
pub(super) struct Cpu {
    at: Instant,
    relay: f64,
    node: f64,
}

impl Cpu {
    /// Seconds that have passed since, and CPU seconds of relay and node meanwhile.
    pub(super) fn since(self, before: Self) -> (f64, [f64; 2]) {
        let time = self.at.duration_since(before.at).as_secs_f64();
        (time, [self.relay - before.relay, self.node - before.node])
    }
}

impl Site {
    /// Relay, node and the processes for so many devices, none of them connected yet.
    pub(super) fn start(binary: &Path, devices: usize) -> anyhow::Result<Self> {
        let mut ground = Ground::new(0)?;
        let state = ground.path("relay");
        let place = place::prepare(&ground.path(""), &state, format!("{HOP}:3101"))?;
        let admin = format!("[admin]\nlisten = \"{ADMIN}\"\n");
        // As a relay has it by default, everything.
        let relay =
            format!("name = \"{RELAY}\"\nstate = {state:?}\n[listen]\nlink = [\"0.0.0.0:3101\"]\ndevice = []\n{admin}");
        let relay = run(&mut ground, binary, Place::Hop, "relay", &relay)?;
        let state = ground.path("node");
        enrol(&place, &state)?;
        let limit = devices.max(LIMIT);
        let node = format!("state = {state:?}\n{admin}[tunnel]\nenabled = true\nlimit = {limit}\n");
        let node = run(&mut ground, binary, Place::Server, "node", &node)?;
        let file = ground.path("place.json");
        std::fs::write(&file, serde_json::to_vec(&place)?)?;
        let me = std::env::current_exe()?.display().to_string();
        let crowd = |_| Crowd::start(&mut ground.at(Place::Client, &me), &file);
        let crowds = (0..devices.div_ceil(CROWD)).map(crowd).collect::<Result<_, _>>()?;
        Ok(Self { crowds, relay, node, ground })
    }

    pub(super) fn processes(&self) -> usize {
        self.crowds.len()
    }

    /// Has every process do its part at once; what came of it, and seconds until the last was done.
    pub(super) fn order(&mut self, order: impl Fn(usize) -> Order) -> anyhow::Result<(Answer, f64)> {
        let begun = Instant::now();
        let mut all = Answer::default();
        let done = self.crowds.iter_mut().enumerate().try_for_each(|(n, crowd)| crowd.order(order(n)));
        let done = done.and_then(|()| {
            self.crowds.iter_mut().try_for_each(|crowd| {
                let Answer { done, again, took, .. } = crowd.answer()?;
                all.done += done;
                all.again += again;
                all.took.extend(took);
                Ok(())
            })
        });
        done.with_context(|| ["relay", "node"].map(|role| last_words(&self.ground, role)).concat())?;
        all.took.sort_by(f64::total_cmp);
        Ok((all, begun.elapsed().as_secs_f64()))
    }

    pub(super) fn cpu(&self) -> Cpu {
        Cpu { at: Instant::now(), relay: cpu_seconds(self.relay), node: cpu_seconds(self.node) }
    }

    /// Bytes of relay, node and devices.
    pub(super) fn memory(&self) -> anyhow::Result<[f64; 3]> {
        let devices = self.crowds.iter().map(|c| memory_of_tree(c.pid())).sum();
        let all = [memory_of_tree(self.relay), memory_of_tree(self.node), devices];
        if all.contains(&0) {
            bail!("a process's smaps_rollup cannot be read, or it has ended");
        }
        Ok(all.map(|bytes| bytes as f64))
    }

    /// A metric of the relay.
    pub(super) fn relay_metric(&self, name: &str) -> anyhow::Result<f64> {
        self.ask(Place::Hop, "metrics").map(|text| metric(&text, name))
    }

    /// Waits until the relay has so many links, with the node's.
    pub(super) fn wait_for_links(&self, count: usize) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let links = self.relay_metric("hedgerow_relay_links")?;
            if links == count as f64 {
                return Ok(());
            }
            if begun.elapsed() > KNOWN {
                bail!("the relay has {links} links, expected {count}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until so many tunnels are up, by UDP, at the node and at the devices: a tunnel begins over its link where UDP
    /// loses a datagram.
    pub(super) fn wait_until_all_are_up(&mut self, count: usize) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let at_devices = self.order(|_| Order::Count)?.0.done;
            let tunnels: Value = serde_json::from_str(&self.ask(Place::Server, "tunnels")?)?;
            let is_up = |t: &&Value| t["state"] == "up" && t["way"] == "udp";
            let at_node = tunnels.as_array().context("no list of tunnels")?.iter().filter(is_up).count();
            if (at_node, at_devices) == (count, count) {
                return Ok(());
            }
            if begun.elapsed() > KNOWN {
                let words = ["relay", "node"].map(|role| last_words(&self.ground, role)).concat();
                bail!("of {count} tunnels {at_node} are up by UDP at the node, {at_devices} at the devices{words}");
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn ask(&self, place: Place, what: &str) -> anyhow::Result<String> {
        self.ground.say(place, &format!("curl -fsS -m 30 http://{ADMIN}/{what}"))
    }
}

/// The state of a node that was enrolled, with the rules that it would have from its core.
fn enrol(place: &Described, folder: &Path) -> anyhow::Result<()> {
    let tenant = place.tenant()?;
    let holder = tenant.holder(Role::Node)?;
    let state = State::create(folder)?;
    state.store_key(holder.key.secret().expose())?;
    let rule = Rule { action: Action::Allow, target: "10.71.3.0/24".parse()?, ports: Default::default(), group: None };
    let signed = tenant.sign(Audience::Node, |head| NodeConfig {
        scopes: Vec::new(),
        authorities: Vec::new(),
        head,
        revoked: Revoked::default(),
        rules: vec![rule],
    })?;
    let version = hedgerow_shared::verify::Version { epoch: 0, version: 1 };
    state.store_config(&signed, version)?;
    let record = Record {
        tenant: tenant.id.clone(),
        id: holder.identity.id,
        name: "node-1".into(),
        group: Default::default(),
        origins: holder.identity.origins.clone(),
        relays: vec![INNER.into()],
        relay_name: Some(RELAY.into()),
        relay_ca_pem: Some(std::fs::read_to_string(&place.relay_ca)?),
        relay_ca_pin: None,
    };
    state.store_enrolment(&record, tenant.ca(), &holder.leaf)
}

/// Runs a role of the product and waits until it is ready.
fn run(ground: &mut Ground, binary: &Path, place: Place, role: &str, config: &str) -> anyhow::Result<u32> {
    let file = ground.path(&format!("{role}.toml"));
    std::fs::write(&file, config)?;
    let mut command = ground.at(place, &binary.display().to_string());
    command.args([role, "run"]).env(format!("HEDGEROW_{}_CONFIG", role.to_ascii_uppercase()), &file);
    let pid = ground.keep(&mut command, role)?;
    let ready = format!("curl -fs http://{ADMIN}/readyz");
    ground.wait(&format!("{role} is not ready"), &[role], || ground.say(place, &ready).is_ok())?;
    Ok(pid)
}

/// What a role wrote last: of ten thousand tunnels the whole would be megabytes.
fn last_words(ground: &Ground, role: &str) -> String {
    let log = ground.log(role);
    let lines: Vec<&str> = log.lines().collect();
    let of_note = |l: &&&str| l.contains("WARN") || l.contains("ERROR") || l.contains("\"warn\"");
    let warnings: Vec<&str> = lines.iter().filter(of_note).copied().collect();
    let warnings = &warnings[warnings.len().saturating_sub(5)..];
    let last = lines[lines.len().saturating_sub(5)..].join("\n");
    format!("\n{role}, the last warnings and lines:\n{}\n{last}", warnings.join("\n"))
}
