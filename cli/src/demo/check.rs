//! One round through everything, and what must be refused.

use std::time::Instant;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::site;
use super::world::{SITE, World, exchange, get};

pub(super) async fn round(world: &mut World) -> anyhow::Result<()> {
    let since = Instant::now();
    let tcp = socks(world, SITE, world.port("site")).await?.map_err(|reply| anyhow::anyhow!("SOCKS5 reply {reply}"))?;
    let (status, body) = exchange(tcp, SITE, "/").await?;
    expect_page("through SOCKS5", status, &body)?;
    world.done(since, "site reached through SOCKS5: device, relay, node, site")?;

    let since = Instant::now();
    let tcp = TcpStream::connect(world.address("http")).await?;
    let (status, body) = exchange(tcp, SITE, &world.site_url()).await?;
    expect_page("through the HTTP proxy", status, &body)?;
    world.done(since, "site reached through the HTTP proxy")?;

    let since = Instant::now();
    match socks(world, "denied.hedgerow.demo", 80).await? {
        Err(2) => {}
        Err(other) => bail!("a target that no rule allows was refused with SOCKS5 reply {other}, not 2 (by the rules)"),
        Ok(_) => bail!("a target that no rule allows was reached"),
    }
    world.done(since, "a target that no rule allows is refused, and the reply says so")?;

    let since = Instant::now();
    let (_, status) = get(&world.address("device-admin"), "/status").await?;
    let status: serde_json::Value = serde_json::from_str(&status).context("the device's status is not JSON")?;
    let path = status["sessions"][0]["path"].as_str().unwrap_or("none").to_owned();
    world.done(since, &format!("the session to the node runs by {path}"))
}

fn expect_page(way: &str, status: u16, body: &str) -> anyhow::Result<()> {
    if status != 200 || !body.contains(site::INSIDE.greeting) {
        bail!("{way} came status {status} and not the site's page: {}", body.chars().take(200).collect::<String>());
    }
    Ok(())
}

/// A connection through the device's SOCKS5 proxy, by name; or the reply code of the refusal.
async fn socks(world: &World, host: &str, port: u16) -> anyhow::Result<Result<TcpStream, u8>> {
    let mut tcp = TcpStream::connect(world.address("socks5")).await?;
    tcp.write_all(&[5, 1, 0]).await?;
    let mut reply = [0; 10];
    tcp.read_exact(&mut reply[..2]).await?;
    let mut request = vec![5, 1, 0, 3, u8::try_from(host.len())?];
    request.extend_from_slice(host.as_bytes());
    request.extend_from_slice(&port.to_be_bytes());
    tcp.write_all(&request).await?;
    tcp.read_exact(&mut reply).await.context("the SOCKS5 proxy closed without a reply")?;
    Ok(if reply[1] == 0 { Ok(tcp) } else { Err(reply[1]) })
}
