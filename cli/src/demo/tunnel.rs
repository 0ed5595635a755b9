//! `--tunnel`: what is done and shown besides the steps of the plain demo.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use super::places::{DENIED, INSIDE, NETWORK, Places};
use super::site;
use super::world::{EMAIL, SITE, World};
use crate::output::print;

/// A name that the name server outside knows.
pub(super) const OUTSIDE_NAME: &str = "www.outside.demo";
/// Time for the tunnel to come up.
const LIMIT: Duration = Duration::from_secs(30);
/// An MTU that is found when it has been looked for: the wires carry 1500 bytes.
const LARGE: u64 = 1400;
/// Time to find out that UDP passes, and how large.
const SETTLING: Duration = Duration::from_secs(3);
/// Time between two looks at it.
const POLL: Duration = Duration::from_millis(20);

/// `[tunnel]` of the node.
pub(super) fn node_section() -> String {
    format!("\n[tunnel]\nenabled = true\ndns = [\"{INSIDE}\"]\nsuffixes = [\"hedgerow.demo\"]\n")
}

/// The networks, and the servers in them.
pub(super) async fn lay_out(world: &mut World) -> anyhow::Result<()> {
    let since = Instant::now();
    let left = Places::sweep();
    if !left.is_empty() {
        world.done(since, &format!("removed what a killed demo left: {}", left.join(", ")))?;
    }
    let since = Instant::now();
    let Some(places) = &world.places else { bail!("this demo has no places") };
    places.lay_out().await?;
    let [device, relay, node, inside] = ["device", "relay", "node", "inside"].map(|p| places.name(p));
    let places = format!("device {device}, relay and core {relay}, node {node}, intranet {inside}");
    world.done(since, &format!("four network namespaces: {places}"))?;
    let since = Instant::now();
    for server in ["site", "outside"] {
        world.start(server).await?;
    }
    world.done(since, &format!("intranet site at http://{INSIDE}/, and http://{SITE}/ for whoever asks DNS inside"))
}

/// What devices may reach.
pub(super) async fn policy(world: &mut World) -> anyhow::Result<()> {
    let since = Instant::now();
    world.command(&["rule", "add", "allow", INSIDE]).await?;
    for target in [NETWORK, "*.hedgerow.demo"] {
        world.command(&["route", "add", target, "group:default"]).await?;
    }
    world.command(&["user", "add", EMAIL, "--name", "Anna"]).await?;
    world.done(since, &format!("user {EMAIL}; devices' routes lead to {NETWORK} inside, the rules allow {INSIDE} only"))
}

/// Before the device has a tunnel.
pub(super) async fn without(world: &mut World) -> anyhow::Result<()> {
    for url in [format!("http://{INSIDE}/"), format!("http://{SITE}/")] {
        let since = Instant::now();
        match visit(world, &url).await? {
            Err(reason) => world.done(since, &format!("without the tunnel the device cannot fetch {url}: {reason}"))?,
            Ok(_) => bail!("the device reached {url} without the tunnel"),
        }
    }
    Ok(())
}

/// Waits for the tunnel.
pub(super) async fn up(world: &mut World) -> anyhow::Result<()> {
    let since = Instant::now();
    let mut tunnel = status(world).await?;
    while tunnel["state"] != "up" {
        if since.elapsed() > LIMIT {
            bail!("the device has no tunnel after {} s: {tunnel}", LIMIT.as_secs());
        }
        tokio::time::sleep(POLL).await;
        tunnel = status(world).await?;
    }
    // It may begin over the link, and move to UDP and a larger MTU when it knows that these pass.
    let up = Instant::now();
    while (tunnel["way"] != "udp" || tunnel["mtu"].as_u64() < Some(LARGE)) && up.elapsed() < SETTLING {
        tokio::time::sleep(POLL).await;
        tunnel = status(world).await?;
    }
    let text = |key: &str| tunnel[key].as_str().unwrap_or("?").to_owned();
    let (address, way, mtu) = (text("address"), text("way").to_uppercase(), &tunnel["mtu"]);
    world.done(since, &format!("the device's tunnel is up: {address}, MTU {mtu}, over {way}"))
}

/// One round through the tunnel, and what must be refused.
pub(super) async fn round(world: &mut World) -> anyhow::Result<()> {
    let by_name = format!("http://{SITE}/");
    let outside = format!("http://{OUTSIDE_NAME}/");
    for (url, page, what) in [
        (format!("http://{INSIDE}/"), &site::INSIDE, "through the tunnel"),
        (by_name, &site::INSIDE, "through the tunnel; its name was asked inside"),
        (outside, &site::OUTSIDE, "past the tunnel; its name was asked outside"),
    ] {
        let since = Instant::now();
        let body = visit(world, &url).await?.map_err(|e| anyhow::anyhow!("the device cannot fetch {url}: {e}"))?;
        if !body.contains(page.greeting) {
            bail!("{url} is another page than expected: {}", body.chars().take(200).collect::<String>());
        }
        world.done(since, &format!("fetched {url} {what}"))?;
    }
    let since = Instant::now();
    let said = part(world, "device", &["ping", INSIDE]).await?;
    let (asked, answered) = (said["asked"].as_u64(), said["answered"].as_u64());
    let counted = format!("{} of {}", answered.unwrap_or(0), asked.unwrap_or(0));
    if asked.is_none() || asked != answered {
        bail!("pinged {INSIDE}: {counted} came back ({})", said["lost"]);
    }
    let median = said["median_ms"].as_f64().unwrap_or(f64::NAN);
    world.done(since, &format!("pinged {INSIDE} through the tunnel: {counted}, median {median:.1} ms"))?;

    let since = Instant::now();
    let url = format!("http://{DENIED}/");
    match visit(world, &url).await? {
        Err(reason) => world.done(since, &format!("the same site at {DENIED}, which no rule allows: {reason}")),
        Ok(_) => bail!("the device reached {url}, which no rule allows"),
    }
}

/// What to try while it is up.
pub(super) fn invite(world: &World) -> anyhow::Result<()> {
    let Some(places) = &world.places else { bail!("this demo has no places") };
    let enter = format!("ip netns exec {}", places.name("device"));
    let exe = std::env::current_exe()?;
    let config = |role: &str| world.path(&format!("{role}.toml")).display().to_string();
    print(&format!(
        "\nUp. Enter the device's namespace and use the intranet as if you were there:\n\n\
         \x20 {enter} curl http://{INSIDE}/\n\
         \x20 {enter} curl http://{SITE}/\n\
         \x20 {enter} ping {INSIDE}\n\
         \x20 {enter} ip route get {INSIDE}\n\
         \x20 {enter} {exe} device status --config {device}\n\n\
         Look at the node, and administer the core:\n\n\
         \x20 ip netns exec {node} nft list ruleset\n\
         \x20 ip netns exec {node} tcpdump -ni inside\n\
         \x20 HEDGEROW_CORE_SOCKET={socket} {exe} device list\n\n\
         Configurations and logs are in {folder}. Ctrl-C ends it, and removes the namespaces.\n",
        exe = exe.display(),
        device = config("device"),
        node = places.name("node"),
        socket = world.path("core/control.sock").display(),
        folder = world.folder.display(),
    ))
}

/// What the device says of its tunnel.
async fn status(world: &World) -> anyhow::Result<Value> {
    let config = world.path("device.toml").display().to_string();
    Ok(world.command(&["device", "status", "--config", &config]).await?["tunnel"].clone())
}

/// A fetch from the device's namespace: the page, or why there is none.
async fn visit(world: &World, url: &str) -> anyhow::Result<Result<String, String>> {
    let said = part(world, "device", &["fetch", url]).await?;
    if let Some(reason) = said["failed"].as_str() {
        return Ok(Err(reason.to_owned()));
    }
    let body = said["body"].as_str().context("`demo fetch` says nothing")?;
    match said["status"].as_u64() {
        Some(200) => Ok(Ok(body.to_owned())),
        other => Ok(Err(format!("status {other:?}"))),
    }
}

/// One of `part`'s commands in a place.
pub(super) async fn part(world: &World, place: &str, words: &[&str]) -> anyhow::Result<Value> {
    world.command_at(place, &[&["demo"], words].concat()).await
}
