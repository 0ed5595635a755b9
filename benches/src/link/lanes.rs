//! Joined lanes of the load tool: asked for by devices on their links, brought by a device's ClientHello and a node's
//! preamble, and then left alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hedgerow_runtime::link::Link;
use hedgerow_runtime::tls;
use hedgerow_shared::wire::lane;
use hedgerow_shared::wire::message::{ALPN_SESSION, Control, Destination, LaneRequest};
use hedgerow_shared::{Origin, Role, Ticket};
use rustls::ClientConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Transport;
use super::crowd::{Answer, Crowd};
use super::place::RELAY;

/// Links of devices that the lanes are shared out to.
const DEVICES: usize = 50;
const PATIENCE: Duration = Duration::from_secs(10);

/// Lanes, and the links they were asked for on.
pub(super) struct Lanes {
    devices: Vec<Link>,
    node: Link,
    legs: Vec<[TcpStream; 2]>,
}

impl Lanes {
    pub(super) async fn join(crowd: &Arc<Crowd>, lanes: &mut Option<Self>, count: usize) -> anyhow::Result<Answer> {
        let begun = Instant::now();
        let lanes = match lanes {
            Some(lanes) => lanes,
            None => lanes.insert(Self::open(crowd).await?),
        };
        for n in 0..count {
            let device = &lanes.devices[n % DEVICES];
            let legs = timeout(PATIENCE, lane(crowd, device, &lanes.node)).await.context("a lane was not joined")??;
            lanes.legs.push(legs);
        }
        Ok(Answer { done: count, seconds: begun.elapsed().as_secs_f64(), ..Answer::default() })
    }

    async fn open(crowd: &Arc<Crowd>) -> anyhow::Result<Self> {
        let node = crowd.link(Transport::Tls, Role::Node).await?;
        let mut devices = Vec::new();
        for _ in 0..DEVICES {
            devices.push(crowd.link(Transport::Tls, Role::Device).await?);
        }
        Ok(Self { devices, node, legs: Vec::new() })
    }
}

/// One lane: both legs, once the device's first bytes have come through it.
async fn lane(crowd: &Crowd, device: &Link, node: &Link) -> anyhow::Result<[TcpStream; 2]> {
    let tenant = crowd.tenant().clone();
    let to = Destination { tenant, origin: Origin::Proxy, group: None, instance: None, node: None };
    device.mux.send_control(&LaneRequest { request: 1, to }.into())?;
    let (offer, call) = tokio::join!(device.mux.next_control(), node.mux.next_control());
    let (Some(Control::LaneOffer(offer)), Some(Control::LaneCall(call))) = (offer, call) else {
        bail!("the relay offered no lane");
    };
    let hello = hello(crowd, &offer.ticket)?;
    let mut device_leg = crowd.source().tcp(&crowd.address).await?;
    device_leg.write_all(&hello).await?;
    let mut node_leg = crowd.source().tcp(&crowd.address).await?;
    node_leg.write_all(&lane::preamble(&call.ticket)).await?;
    let mut got = vec![0; hello.len()];
    node_leg.read_exact(&mut got).await?;
    if got != hello {
        bail!("the lane changed its bytes");
    }
    Ok([device_leg, node_leg])
}

/// What a session begins with on the device's leg.
fn hello(crowd: &Crowd, ticket: &Ticket) -> anyhow::Result<Vec<u8>> {
    let config = tls::to_relay(crowd.roots(), &[ALPN_SESSION])?;
    let mut client = ClientConnection::new(config, lane::server_name(ticket, RELAY).try_into()?)?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    Ok(hello)
}
