//! From nothing to a device that reaches the site, step by step.

use std::time::Instant;

use hedgerow_runtime::scope::Scope;

use super::world::{EMAIL, RELAY, SITE, TENANT, World};
use super::{DemoArgs, site, tunnel};

pub(super) async fn all(world: &mut World, args: &DemoArgs) -> anyhow::Result<()> {
    if args.tunnel {
        tunnel::lay_out(world).await?;
    } else {
        let since = Instant::now();
        site::serve(world.address("site").parse()?, &site::INSIDE, &Scope::new()).await?;
        world.done(since, &format!("intranet site at {} (a name that only the node knows)", world.site_url()))?;
    }
    relay(world, args).await?;
    core(world, args).await?;
    if args.tunnel {
        tunnel::policy(world).await?;
    } else {
        policy(world, args).await?;
    }
    node(world, args).await?;
    if args.tunnel {
        tunnel::without(world).await?;
    }
    device(world, args).await?;
    if args.tunnel {
        tunnel::up(world).await?;
    }
    Ok(())
}

async fn relay(world: &mut World, args: &DemoArgs) -> anyhow::Result<()> {
    let since = Instant::now();
    world.write(
        "relay.toml",
        &format!(
            "name = \"{RELAY}\"\nstate = {state:?}\n\n[listen]\nlink = [\"{link}\"]\ndevice = [\"{public}\"]\nhttp = [\"{web}\"]\n\n\
             [admin]\nlisten = \"{admin}\"\n\n[timers]\nscale = {scale:?}\n",
            state = world.path("relay"),
            link = world.address("link"),
            public = world.address("public"),
            web = world.address("web"),
            admin = world.address("relay-admin"),
            scale = args.timer_scale,
        ),
    )?;
    world.start("relay").await?;
    world.done(
        since,
        &format!("relay up: devices at {}, nodes and core at {}", world.address("public"), world.address("link")),
    )?;
    let key = world.path("srp.key");
    if !key.exists() {
        let since = Instant::now();
        let key = key.display().to_string();
        world.command(&["relay", "tenant", "add", TENANT, "--out", &key]).await?;
        world.done(since, &format!("tenant {TENANT} added at the relay; its key went into a file for the core"))?;
    }
    Ok(())
}

async fn core(world: &mut World, args: &DemoArgs) -> anyhow::Result<()> {
    let since = Instant::now();
    world.write(
        "core.toml",
        &format!(
            "tenant = \"{TENANT}\"\nname = \"Hedgerow demo\"\nstate = {state:?}\nsrp_key_file = {key:?}\ntransport = \"{transport}\"\n\n\
             [[relays]]\nname = \"{RELAY}\"\naddresses = [\"{link}\"]\nca_file = {ca:?}\n\n\
             [advertise]\nrelays = [\"{public}\"]\n\n\
             [admin]\nlisten = \"{admin}\"\n\n[timers]\nscale = {scale:?}\n",
            state = world.path("core"),
            key = world.path("srp.key"),
            transport = args.transport,
            link = world.address("link"),
            public = world.address("public"),
            ca = world.path("relay/relay-ca.pem"),
            admin = world.address("core-admin"),
            scale = args.timer_scale,
        ),
    )?;
    world.start("core").await?;
    world
        .done(since, "core up: database and tenant CA made, link to the relay authenticated both ways, nothing listens")
}

async fn policy(world: &mut World, args: &DemoArgs) -> anyhow::Result<()> {
    if world.path("policy.done").exists() {
        return Ok(());
    }
    let since = Instant::now();
    let site_port = world.port("site").to_string();
    // The name, and the loopback address behind it: loopback is refused unless a rule names it.
    for target in [SITE, "127.0.0.1"] {
        world.command(&["rule", "add", "allow", target, "--ports", &site_port]).await?;
        world.command(&["route", "add", target, "group:default", "--ports", &site_port]).await?;
    }
    for target in &args.also_allow {
        let (host, port) =
            target.rsplit_once(':').ok_or_else(|| anyhow::anyhow!("--also-allow {target}: expected HOST:PORT"))?;
        world.command(&["rule", "add", "allow", host, "--ports", port]).await?;
        world.command(&["route", "add", host, "group:default", "--ports", port]).await?;
    }
    world.command(&["route", "add", "*.hedgerow.demo", "group:default"]).await?;
    world.command(&["user", "add", EMAIL, "--name", "Anna"]).await?;
    world.write("policy.done", "")?;
    world.done(since, &format!("user {EMAIL}, access rules for the node and routes for devices set at the core"))
}

async fn node(world: &mut World, args: &DemoArgs) -> anyhow::Result<()> {
    let publish: String = args.publish.iter().map(|(origin, server)| format!("{origin} = {server:?}\n")).collect();
    world.write(
        "node.toml",
        &format!(
            "state = {state:?}\ntransport = \"{transport}\"\n\n[hosts]\n\"{SITE}\" = [\"{site}\"]\n\n[publish]\n{publish}\n[admin]\nlisten = \"{admin}\"\n\n[timers]\nscale = {scale:?}\n{tunnel}",
            state = world.path("node"),
            transport = args.transport,
            site = world.ip("site"),
            admin = world.address("node-admin"),
            tunnel = if args.tunnel { tunnel::node_section() } else { String::new() },
            scale = args.timer_scale,
        ),
    )?;
    let config = world.path("node.toml").display().to_string();
    if !world.path("node/node.pem").exists() {
        let since = Instant::now();
        let token = world.path("node.token");
        // A token of a run that did not come to its end is of no use.
        let _ = std::fs::remove_file(&token);
        let token = token.display().to_string();
        world
            .command(&["token", "create", "--name", "demo-node", "--origins", "proxy,gateway,mdm", "--out", &token])
            .await?;
        world.command(&["node", "enroll", "--config", &config, "--token-file", &token]).await?;
        world.done(since, "node enrolled with a one-string token: certificate from the tenant's CA")?;
    }
    let since = Instant::now();
    world.start("node").await?;
    world.done(since, "node up: it dialled out to the relay; no port is open")
}

async fn device(world: &mut World, args: &DemoArgs) -> anyhow::Result<()> {
    world.write(
        "device.toml",
        &format!(
            "state = {state:?}\nlanes = \"{lanes}\"\ntransport = \"{transport}\"\n\n[proxy]\nsocks5 = \"{socks}\"\nhttp = \"{http}\"\n\n[admin]\nlisten = \"{admin}\"\n\n[timers]\nscale = {scale:?}\n{tunnel}",
            state = world.path("device"),
            lanes = args.lanes,
            transport = args.transport,
            socks = world.address("socks5"),
            http = world.address("http"),
            admin = world.address("device-admin"),
            tunnel = if args.tunnel { "\n[tunnel]\nenabled = true\n" } else { "" },
            scale = args.timer_scale,
        ),
    )?;
    let config = world.path("device.toml").display().to_string();
    if !world.path("device/certificate.pem").exists() {
        let since = Instant::now();
        let password = world.path("anna.password");
        // Of a run that did not come to its end.
        let _ = std::fs::remove_file(&password);
        let password = password.display().to_string();
        world.command(&["password", "generate", EMAIL, "--out", &password]).await?;
        let ca = world.path("relay/relay-ca.pem").display().to_string();
        let public = world.address("public");
        world
            .command(&[
                "device",
                "activate",
                "--config",
                &config,
                "--email",
                EMAIL,
                "--relay",
                &public,
                "--relay-name",
                RELAY,
                "--relay-ca",
                &ca,
                "--name",
                "demo laptop",
                "--password-file",
                &password,
            ])
            .await?;
        world.done(since, "device activated: look-up at the relay, PAKE with the core, certificate and routes")?;
    }
    let since = Instant::now();
    world.start("device").await?;
    world.done(
        since,
        &format!("device up: SOCKS5 at {}, HTTP proxy at {}", world.address("socks5"), world.address("http")),
    )
}
