//! Tunnels: pairings over links, and the datagrams that then pass.
#![allow(clippy::unwrap_used, reason = "a test stops at what should not happen")]

mod common;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::{LONG, World, entity, eventually, service};
use hedgerow_relay::fair::Flow;
use hedgerow_runtime::clock;
use hedgerow_runtime::link::Link;
use hedgerow_runtime::telemetry::Metrics;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::secret::Secret;
use hedgerow_shared::wire::message::{Control, PairEnd, PairRequest, Service};
use hedgerow_shared::wire::tunnel::{HEADER, Half, HalfId, MAX, Message, kind};
use hedgerow_shared::{InstanceId, Role, TunnelId};
use quinn_udp::{Transmit, UdpSocketState};
use serde_json::Value;
use tokio::net::UdpSocket;
use tokio::sync::RwLock;
use tokio::time::timeout;

/// Metrics belong to the process: those who read them are alone, the others beside each other.
static ALONE: RwLock<()> = RwLock::const_new(());

fn metric(name: &str, label: &str) -> f64 {
    let text = Metrics::install().render();
    let lines = text.lines().filter(|l| l.starts_with(name) && l.contains(label));
    lines
        .filter(|l| matches!(l.as_bytes().get(name.len()), Some(b' ' | b'{')))
        .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

fn drops(reason: &str) -> f64 {
    metric("hedgerow_dropped_total", &format!("\"{reason}\""))
}

/// A node's process is numbered as the node is.
fn request(node: u8) -> PairRequest {
    // Each test's tunnels are different ones.
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let tunnel = TunnelId::from_random([NEXT.fetch_add(1, Ordering::Relaxed); 16]);
    PairRequest { request: 7, tunnel, node: entity(node), instance: InstanceId::from_random([node; 16]) }
}

async fn next(link: &Link) -> Control {
    timeout(LONG, link.mux.next_control()).await.expect("a control message").unwrap()
}

async fn ended(link: &Link) -> PairEnd {
    match next(link).await {
        Control::PairEnd(end) => end,
        other => panic!("{other:?}"),
    }
}

/// Asks, and gives both ends' halves: the device's first.
async fn pair_as(device: &Link, node: &Link, request: PairRequest) -> Result<(Half, Half), Fault> {
    let tunnel = request.tunnel;
    device.mux.send_control(&request.into()).unwrap();
    let own = match next(device).await {
        Control::PairOffer(offer) => offer.half,
        Control::PairRefused(refused) => return Err(refused.fault),
        other => panic!("{other:?}"),
    };
    match next(node).await {
        Control::PairCall(call) => {
            assert_eq!((call.tunnel, call.vouched.role), (tunnel, Some(Role::Device)));
            Ok((own, call.half))
        }
        other => panic!("{other:?}"),
    }
}

async fn pair(device: &Link, node: &Link, number: u8) -> (Half, Half) {
    pair_as(device, node, request(number)).await.unwrap()
}

/// An end of a tunnel at a UDP address.
struct Peer {
    socket: UdpSocket,
    relay: SocketAddr,
}

impl Peer {
    async fn new(world: &World) -> Self {
        Self { socket: UdpSocket::bind("127.0.0.1:0").await.unwrap(), relay: world.relay.link[0] }
    }

    async fn send(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.relay).await.unwrap();
    }

    async fn say(&self, half: &Half, message: Message) {
        self.send(&message.to_datagram(half.id)).await;
    }

    async fn receive(&self) -> Vec<u8> {
        let mut buffer = [0; 4096];
        let length = timeout(LONG, self.socket.recv(&mut buffer)).await.expect("a datagram").unwrap();
        buffer[..length].to_vec()
    }

    async fn hear(&self, half: &Half) -> Message {
        let datagram = self.receive().await;
        let (id, message) = Message::parse(&datagram).unwrap_or_else(|| panic!("{datagram:?}"));
        assert_eq!(id, half.id);
        message
    }

    async fn challenge(&self, half: &Half, counter: u64) -> [u8; 16] {
        self.say(half, Message::attach(half, counter)).await;
        match self.hear(half).await {
            Message::Challenge { nonce } => nonce,
            other => panic!("{other:?}"),
        }
    }

    async fn attach(&self, half: &Half, counter: u64) {
        let nonce = self.challenge(half, counter).await;
        self.say(half, Message::confirm(half, nonce)).await;
        assert_eq!(self.hear(half).await, Message::Attached { nonce });
    }

    async fn attached(world: &World, half: &Half) -> Self {
        let own = Self::new(world).await;
        own.attach(half, 1).await;
        own
    }

    /// Everything that has been sent before has been looked at when this returns, and nothing has come of it: the relay
    /// takes one sender's datagrams in their order.
    async fn hears_nothing_but_pong(&self, half: &Half) {
        self.say(half, Message::Ping(99)).await;
        assert_eq!(self.hear(half).await, Message::Pong(99));
    }
}

fn data(id: HalfId, body: &[u8]) -> Vec<u8> {
    [&[kind::DATA][..], &id.to_bytes(), body].concat()
}

/// Core, node 5, and devices from 6 on.
async fn people<const N: usize>(world: &World) -> (Link, Link, [Link; N]) {
    let (core, node) = (world.core().await, world.node(5).await);
    let mut devices = Vec::new();
    for number in 0..N {
        devices.push(world.device(6 + u8::try_from(number).unwrap()).await);
    }
    (core, node, devices.try_into().unwrap_or_else(|_| panic!("as many as were made")))
}

async fn tunnels(world: &World) -> Vec<Value> {
    let all = world.control(http::Method::GET, "/sessions", None).await;
    all.as_array().unwrap().iter().filter(|s| s["kind"] == "tunnel").cloned().collect()
}

#[tokio::test]
async fn p01_a_tunnel_is_paired_over_links_and_its_datagrams_pass_over_udp_both_ways() {
    let _beside = ALONE.read().await;
    let world = World::new().await;
    let (_core, node_link, [device_link]) = people(&world).await;
    let (own, other) = pair(&device_link, &node_link, 5).await;
    let (device, node) = (Peer::new(&world).await, Peer::attached(&world, &other).await);
    // Nobody knows yet where the device is, and it has not shown that it is there.
    node.send(&data(other.id, b"too early")).await;
    device.send(&data(own.id, b"too early")).await;
    node.hears_nothing_but_pong(&other).await;
    device.attach(&own, 1).await;
    for n in 0..100u8 {
        device.send(&data(own.id, &[n; 1000])).await;
        assert_eq!(node.receive().await, data(other.id, &[n; 1000]));
        node.send(&data(other.id, &[n; 100])).await;
        assert_eq!(device.receive().await, data(own.id, &[n; 100]));
    }
    device.hears_nothing_but_pong(&own).await;
    let shown = tunnels(&world).await.remove(0);
    assert_eq!((&shown["device_path"], &shown["node_path"]), (&"udp".into(), &"udp".into()));
    assert_eq!(shown["device_address"], device.socket.local_addr().unwrap().to_string());
    assert_eq!(shown["node_address"], node.socket.local_addr().unwrap().to_string());
    assert_eq!((&shown["device"], &shown["node"]), (&entity(6).to_string().into(), &entity(5).to_string().into()));
    assert_eq!((&shown["bytes_up"], &shown["bytes_down"]), (&100_900.into(), &10_900.into()));
}

#[tokio::test]
async fn p01_tunnel_datagrams_pass_between_udp_and_links_and_between_links() {
    let _beside = ALONE.read().await;
    let world = World::new().await;
    let _core = world.core().await;
    let node_link = world.dial_quic(&world.credentials(Role::Node, 5), 5).await.unwrap();
    let device_link = world.device(6).await;
    let (own, other) = pair(&device_link, &node_link, 5).await;
    let from = async |link: &Link| timeout(LONG, link.mux.next_datagram()).await.expect("a datagram").unwrap();
    let node = Peer::attached(&world, &other).await;
    device_link.mux.send_datagram(Message::Bind.to_datagram(own.id).into());
    device_link.mux.send_datagram(data(own.id, b"from the link").into());
    assert_eq!(node.receive().await, data(other.id, b"from the link"));
    node.send(&data(other.id, b"to the link")).await;
    assert_eq!(from(&device_link).await, data(own.id, b"to the link"));
    // Many, in their order.
    for n in 0..200u8 {
        device_link.mux.send_datagram(data(own.id, &[n; 300]).into());
    }
    for n in 0..200u8 {
        assert_eq!(node.receive().await[HEADER], n);
    }
    // The node's UDP dies as well. It notices that after some seconds: a BIND that comes at once after the address was
    // confirmed is one that UDP has overtaken.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    node_link.mux.send_datagram(Message::Bind.to_datagram(other.id).into());
    node_link.mux.send_datagram(data(other.id, b"both on links").into());
    assert_eq!(from(&device_link).await, data(own.id, b"both on links"));
    device_link.mux.send_datagram(data(own.id, b"and back").into());
    assert_eq!(from(&node_link).await, data(other.id, b"and back"));
    // What comes from the address that counted before does not any more.
    node.send(&data(other.id, b"late")).await;
    node.attach(&other, 2).await;
    device_link.mux.send_datagram(data(own.id, b"UDP is back").into());
    assert_eq!(node.receive().await, data(other.id, b"UDP is back"));
    // A new link of the same process takes the old one's place without being told.
    let newer = world.device(6).await;
    node.send(&data(other.id, b"to the new link")).await;
    assert_eq!(from(&newer).await, data(own.id, b"to the new link"));
    let shown = tunnels(&world).await.remove(0);
    assert_eq!((&shown["device_path"], &shown["node_path"]), (&"link".into(), &"udp".into()));
}

/// The kernel hands the relay what one socket sent as one batch, whatever ids stand in it.
#[tokio::test]
async fn a04_tunnels_that_share_a_socket_get_their_own_datagrams_however_the_kernel_merges_them() {
    let _beside = ALONE.read().await;
    const ROUNDS: u32 = 200;
    const SEGMENT: usize = 200;
    let world = World::new().await;
    let (_core, node_link, [a, b, c]) = people(&world).await;
    let node = Peer::new(&world).await;
    let (mut devices, mut halves) = (Vec::new(), Vec::new());
    for link in [&a, &b, &c] {
        let (own, other) = pair(link, &node_link, 5).await;
        node.attach(&other, 1).await;
        devices.push((Peer::attached(&world, &own).await, own));
        halves.push(other);
    }
    let body = |device: usize, number: u32| {
        let mut body = vec![0; SEGMENT - HEADER];
        body[0] = u8::try_from(device).unwrap();
        body[1..5].copy_from_slice(&number.to_be_bytes());
        body
    };
    let state = UdpSocketState::new((&node.socket).into()).unwrap();
    let mut sent = [0u32; 3];
    let mut expected = [0u32; 3];
    let mut dice = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..ROUNDS {
        let mut batch = Vec::new();
        for _ in 0..20 {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            let to = usize::try_from(dice % 3).unwrap();
            batch.extend_from_slice(&data(halves[to].id, &body(to, sent[to])));
            sent[to] += 1;
        }
        let segment_size = Some(SEGMENT);
        let transmit = Transmit { destination: node.relay, ecn: None, contents: &batch, segment_size, src_ip: None };
        state.send((&node.socket).into(), &transmit).unwrap();
        for (number, (device, own)) in devices.iter().enumerate() {
            while expected[number] < sent[number] {
                assert_eq!(
                    device.receive().await,
                    data(own.id, &body(number, expected[number])),
                    "in order, and its own"
                );
                expected[number] += 1;
            }
        }
    }
    assert!(sent.iter().all(|n| *n > 1000));
    // The other way: what the relay puts together for the node comes from three senders.
    for n in 0..300u32 {
        for (number, (device, own)) in devices.iter().enumerate() {
            device.send(&data(own.id, &body(number, n))).await;
        }
        if n % 20 == 19 {
            let mut left = 60;
            let mut merged = vec![0; 65_536];
            while left > 0 {
                // This socket takes batches as the kernel merges them.
                let length = timeout(LONG, node.socket.recv(&mut merged)).await.expect("a batch").unwrap();
                for got in merged[..length].chunks(SEGMENT) {
                    let number = usize::from(got[HEADER]);
                    assert_eq!(HalfId::of(got), Some(halves[number].id));
                    assert_eq!(got.len(), SEGMENT);
                    left -= 1;
                }
            }
        }
    }
}

#[tokio::test]
async fn a04_a_spoofed_sender_or_another_ones_link_passes_nothing() {
    let _alone = ALONE.write().await;
    let world = World::new().await;
    let (_core, node_link, [device_link, stranger]) = people(&world).await;
    let (own, other) = pair(&device_link, &node_link, 5).await;
    let (foreign, _) = pair(&stranger, &node_link, 5).await;
    let (device, node) = (Peer::attached(&world, &own).await, Peer::attached(&world, &other).await);
    let before = ["tunnel_address", "tunnel_unknown", "tunnel_malformed"].map(drops);
    let elsewhere = Peer::new(&world).await;
    elsewhere.attach(&foreign, 1).await;
    // An id that was seen going by, from another address: data and signs of life.
    elsewhere.send(&data(own.id, b"spoofed")).await;
    elsewhere.say(&own, Message::Ping(1)).await;
    // Both in one batch with what is its own.
    let state = UdpSocketState::new((&elsewhere.socket).into()).unwrap();
    let batch = [data(foreign.id, b"mine"), data(own.id, b"not!"), data(HalfId::from_random([9; 8]), b"none")].concat();
    let segment_size = Some(HEADER + 4);
    let transmit = Transmit { destination: elsewhere.relay, ecn: None, contents: &batch, segment_size, src_ip: None };
    state.send((&elsewhere.socket).into(), &transmit).unwrap();
    elsewhere.hears_nothing_but_pong(&foreign).await;
    // On the link of another device, also as its new place; and of the other end.
    for link in [&stranger, &node_link] {
        link.mux.send_datagram(data(own.id, b"on a link").into());
        link.mux.send_datagram(Message::Bind.to_datagram(own.id).into());
    }
    // What links do not carry, and what UDP does not.
    let nothing: [&[u8]; 4] = [&[], &[0x80], &[0x40; 20], &data(own.id, b"")];
    for odd in nothing {
        device_link.mux.send_datagram(Bytes::copy_from_slice(odd));
    }
    device_link.mux.send_datagram(Message::attach(&own, 9).to_datagram(own.id).into());
    elsewhere.say(&foreign, Message::Bind).await;
    elsewhere.say(&foreign, Message::Pong(1)).await;
    elsewhere.send(&data(foreign.id, &[0; MAX])).await;
    elsewhere.hears_nothing_but_pong(&foreign).await;
    let now = || ["tunnel_address", "tunnel_unknown", "tunnel_malformed"].map(drops);
    eventually("all are counted", || now() == [before[0] + 7.0, before[1] + 1.0, before[2] + 8.0]).await;
    device.send(&data(own.id, b"still here")).await;
    assert_eq!(node.receive().await, data(other.id, b"still here"), "and nothing came before it");
    node.send(&data(other.id, b"still there")).await;
    assert_eq!(device.receive().await, data(own.id, b"still there"));
}

#[tokio::test]
async fn a04_a_new_address_counts_only_when_its_holder_has_shown_it_and_the_old_one_serves_until_then() {
    let _beside = ALONE.read().await;
    let world = World::new().await;
    let (_core, node_link, [device_link]) = people(&world).await;
    let (own, other) = pair(&device_link, &node_link, 5).await;
    let (device, node) = (Peer::attached(&world, &own).await, Peer::attached(&world, &other).await);
    let away = Peer::new(&world).await;
    let nonce = away.challenge(&own, 2).await;
    node.send(&data(other.id, b"one")).await;
    assert_eq!(device.receive().await, data(own.id, b"one"), "the old address serves");
    device.send(&data(own.id, b"two")).await;
    assert_eq!(node.receive().await, data(other.id, b"two"));
    // Who saw the ATTACH and its challenge, and sends copies and guesses from elsewhere.
    let thief = Peer::new(&world).await;
    let forged = Half { id: own.id, secret: Secret::new(vec![1; 32]) };
    for message in [
        Message::attach(&own, 2),
        Message::attach(&own, 1),
        Message::attach(&forged, 3),
        Message::confirm(&own, nonce),
        Message::confirm(&forged, nonce),
    ] {
        thief.say(&own, message).await;
    }
    away.say(&own, Message::confirm(&forged, nonce)).await;
    away.say(&own, Message::confirm(&own, [0; 16])).await;
    device.hears_nothing_but_pong(&own).await;
    away.say(&own, Message::confirm(&own, nonce)).await;
    assert_eq!(away.hear(&own).await, Message::Attached { nonce });
    node.send(&data(other.id, b"three")).await;
    assert_eq!(away.receive().await, data(own.id, b"three"));
    device.send(&data(own.id, b"from the old address")).await;
    // All of it again, and the old address asks in vain: its counter is used up.
    for message in [Message::attach(&own, 2), Message::attach(&own, 1), Message::confirm(&own, nonce)] {
        thief.say(&own, message).await;
        device.say(&own, message).await;
    }
    away.send(&data(own.id, b"four")).await;
    assert_eq!(node.receive().await, data(other.id, b"four"));
    let mut nothing = [0; 10];
    for silent in [&thief, &device] {
        silent.say(&own, Message::Ping(5)).await;
        assert!(silent.socket.try_recv(&mut nothing).is_err(), "no answer of any kind");
    }
    away.hears_nothing_but_pong(&own).await;
    assert!(thief.socket.try_recv(&mut nothing).is_err() && device.socket.try_recv(&mut nothing).is_err());
}

#[tokio::test]
async fn a04_no_tunnel_datagram_gets_more_out_than_came_in() {
    let _beside = ALONE.read().await;
    let world = World::new().await;
    let (_core, node_link, [device_link]) = people(&world).await;
    let (own, other) = pair(&device_link, &node_link, 5).await;
    let (_other, peer) = (Peer::attached(&world, &other).await, Peer::new(&world).await);
    let forged = Half { id: own.id, secret: Secret::new(vec![1; 32]) };
    // Of all kinds and lengths: for ids that are nobody's, and for one that is known.
    let mut dice = 1u64;
    for first in 0x80..=0xbfu8 {
        for length in [1, 8, 9, 10, 13, 25, 33, 41, 100, 1200] {
            for id in [None, Some(own.id)] {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let mut datagram: Vec<u8> = (0..length).map(|n| (dice >> (n % 57)) as u8).collect();
                datagram[0] = first;
                if let (Some(id), Some(place)) = (id, datagram.get_mut(1..HEADER)) {
                    place.copy_from_slice(&id.to_bytes());
                }
                peer.send(&datagram).await;
            }
        }
    }
    for message in [Message::attach(&forged, 1), Message::confirm(&forged, [1; 16]), Message::Ping(1), Message::Bind] {
        peer.say(&own, message).await;
    }
    // One second for what is checked to be checked again.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(peer.socket.try_recv(&mut [0; 10]).is_err(), "no answer at all");
    // Those who hold the secret get answers, each smaller than what asked for it, and one for one.
    let attach = Message::attach(&own, 1).to_datagram(own.id);
    for _ in 0..5 {
        peer.send(&attach).await;
        assert!(peer.receive().await.len() < attach.len());
    }
    let nonce = peer.challenge(&own, 1).await;
    let confirm = Message::confirm(&own, nonce).to_datagram(own.id);
    for _ in 0..5 {
        peer.send(&confirm).await;
        assert!(peer.receive().await.len() < confirm.len());
    }
    peer.hears_nothing_but_pong(&own).await;
    assert!(peer.socket.try_recv(&mut [0; 10]).is_err());
}

#[tokio::test]
async fn p01_tunnels_of_who_may_not_be_here_any_more_end_within_five_seconds_and_both_ends_are_told() {
    let _beside = ALONE.read().await;
    let world = World::new().await;
    let (core, node_link, [a, b, c]) = people(&world).await;
    let mut made = Vec::new();
    for link in [&a, &b, &c] {
        let (own, other) = pair(link, &node_link, 5).await;
        let (device, node) = (Peer::attached(&world, &own).await, Peer::attached(&world, &other).await);
        made.push((own, other, device, node));
    }
    service(&core, Service::PutConfig, &world.ca.relay_config(2, &[entity(6)])).await.unwrap();
    let in_time = async {
        let (device, node) = (ended(&a).await, ended(&node_link).await);
        assert_eq!((device.half, device.fault.code), (made[0].0.id, Code::Revoked));
        assert_eq!((node.half, node.fault.code), (made[0].1.id, Code::Revoked));
    };
    timeout(Duration::from_secs(5), in_time).await.unwrap();
    assert_eq!(timeout(LONG, a.mux.closed()).await.unwrap().code, Code::Revoked);
    let (own, _, device, _) = &made[0];
    device.send(&data(own.id, b"revoked")).await;
    let (own, other, device, node) = &made[1];
    device.send(&data(own.id, b"not revoked")).await;
    assert_eq!(node.receive().await, data(other.id, b"not revoked"));
    assert_eq!(world.relay.relay().pairings.len(), 2);
    // The node is: all of its tunnels end.
    service(&core, Service::PutConfig, &world.ca.relay_config(3, &[entity(5), entity(6)])).await.unwrap();
    for (link, n) in [(&b, 1), (&c, 2)] {
        let end = timeout(Duration::from_secs(5), ended(link)).await.unwrap();
        assert_eq!((end.half, end.fault.code), (made[n].0.id, Code::Revoked));
    }
    assert!(world.relay.relay().pairings.is_empty());
    // A blocked tenant's.
    service(&core, Service::PutConfig, &world.ca.relay_config(4, &[])).await.unwrap();
    let node_link = world.node(5).await;
    let (own, _) = pair(&b, &node_link, 5).await;
    world.control(http::Method::POST, &format!("/tenants/{}/block", world.tenant), None).await;
    assert_eq!((ended(&b).await.half, ended(&node_link).await.fault.code), (own.id, Code::Forbidden));
    assert!(world.relay.relay().pairings.is_empty());
}

#[tokio::test]
async fn p01_an_end_ends_its_own_tunnels_and_no_others_and_the_newest_request_counts() {
    let _beside = ALONE.read().await;
    let world = World::new().await;
    let (_core, node_link, [a, b]) = people(&world).await;
    let (own, other) = pair(&a, &node_link, 5).await;
    let bye = |half: HalfId| PairEnd { half, fault: Fault::new(Code::Ok, "bye") };
    b.mux.send_control(&bye(own.id).into()).unwrap();
    node_link.mux.send_control(&bye(own.id).into()).unwrap();
    b.mux.send_control(&bye(HalfId::from_random([1; 8])).into()).unwrap();
    let (device, node) = (Peer::attached(&world, &own).await, Peer::attached(&world, &other).await);
    device.send(&data(own.id, b"goes on")).await;
    assert_eq!(node.receive().await, data(other.id, b"goes on"));
    a.mux.send_control(&bye(own.id).into()).unwrap();
    assert_eq!(ended(&node_link).await, bye(other.id));
    assert!(world.relay.relay().pairings.is_empty());
    // The same tunnel again on a new link of the same process, and once more on that.
    let request = request(5);
    let (first, first_node) = pair_as(&a, &node_link, request.clone()).await.unwrap();
    let newer = world.device(6).await;
    newer.mux.send_control(&request.into()).unwrap();
    assert_eq!(ended(&newer).await.half, first.id);
    let Control::PairOffer(offer) = next(&newer).await else { panic!("an offer") };
    assert_eq!(ended(&node_link).await.half, first_node.id);
    let Control::PairCall(call) = next(&node_link).await else { panic!("a call") };
    assert_eq!(world.relay.relay().pairings.len(), 1);
    node_link.mux.send_control(&bye(call.half.id).into()).unwrap();
    assert_eq!(ended(&newer).await.half, offer.half.id);
    // Nobody else's process, and nobody but devices.
    for (wrong, code) in [
        (PairRequest { instance: InstanceId::from_random([9; 16]), ..self::request(5) }, Code::Gone),
        (PairRequest { node: entity(9), ..self::request(5) }, Code::NoRoute),
        (self::request(6), Code::NoRoute),
    ] {
        assert_eq!(pair_as(&newer, &node_link, wrong).await.unwrap_err().code, code);
    }
    assert_eq!(pair_as(&node_link, &b, self::request(5)).await.unwrap_err().code, Code::Forbidden);
    assert!(world.relay.relay().pairings.is_empty() && !node_link.mux.is_closed());
}

#[tokio::test]
async fn p01_tunnels_are_bounded_for_each_device_each_tenant_and_in_all() {
    let _alone = ALONE.write().await;
    let world = World::with(|c| (c.limits.tunnels, c.limits.tunnels_per_tenant) = (20, Some(6))).await;
    let (_core, node_link, [a, b]) = people(&world).await;
    let refused = || metric("hedgerow_relay_refused_total", "limited");
    let before = refused();
    for _ in 0..4 {
        pair(&a, &node_link, 5).await;
    }
    let fault = pair_as(&a, &node_link, request(5)).await.unwrap_err();
    assert!(fault.code == Code::Limited && fault.text.contains("a device may have 4"), "{fault}");
    let last = (pair(&b, &node_link, 5).await, pair(&b, &node_link, 5).await).1;
    let fault = pair_as(&b, &node_link, request(5)).await.unwrap_err();
    assert!(fault.code == Code::Limited && fault.text.contains("limits.tunnels_per_tenant"), "{fault}");
    eventually("read back", || metric("hedgerow_relay_pairings", "") == 6.0).await;
    b.mux.send_control(&PairEnd { half: last.0.id, fault: Fault::new(Code::Ok, "") }.into()).unwrap();
    ended(&node_link).await;
    pair(&b, &node_link, 5).await;
    world.relay.relay().pairings.set(6, 100);
    let fault = pair_as(&b, &node_link, request(5)).await.unwrap_err();
    assert!(fault.text.contains("(limits.tunnels)"), "{fault}");
    assert_eq!(refused() - before, 3.0);
    // Requests are: a node is not told more than it reads.
    let mut asked = 0;
    loop {
        let fault = pair_as(&a, &node_link, request(5)).await.unwrap_err();
        if fault.text.contains("faster") {
            break;
        }
        asked += 1;
        assert!(asked < 20);
    }
}

#[tokio::test]
async fn p01_a_tunnel_of_which_nothing_is_heard_ends_and_one_that_shows_signs_of_life_does_not() {
    let _beside = ALONE.read().await;
    let world = World::with(|c| c.timers.scale = 0.002).await;
    let (_core, node_link, [a, b]) = people(&world).await;
    let (alive, _) = pair(&b, &node_link, 5).await;
    let peer = Peer::attached(&world, &alive).await;
    let (silent, silent_node) = pair(&a, &node_link, 5).await;
    let pings = async {
        loop {
            peer.hears_nothing_but_pong(&alive).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let ends = async { (ended(&a).await, ended(&node_link).await) };
    let (device, node) = tokio::select! {
        ends = ends => ends,
        () = pings => unreachable!(),
    };
    assert_eq!((device.half, device.fault.code), (silent.id, Code::TimedOut));
    assert_eq!((node.half, node.fault.code), (silent_node.id, Code::TimedOut));
    peer.hears_nothing_but_pong(&alive).await;
    assert_eq!(world.relay.relay().pairings.len(), 1);
    // Then it does not either.
    assert_eq!(ended(&b).await.half, alive.id);
}

#[tokio::test]
async fn p01_an_operator_sees_tunnels_and_cuts_them() {
    let _beside = ALONE.read().await;
    let world = World::new().await;
    let (_core, node_link, [device_link]) = people(&world).await;
    let (own, other) = pair(&device_link, &node_link, 5).await;
    let shown = tunnels(&world).await.remove(0);
    assert_eq!((&shown["device_path"], &shown["device_address"]), (&"none".into(), &Value::Null));
    let path = format!("/sessions/{}", shown["id"].as_str().unwrap());
    assert_eq!(world.control(http::Method::DELETE, &path, None).await["cut"], 1);
    let (device, node) = (ended(&device_link).await, ended(&node_link).await);
    assert_eq!((device.half, node.half, device.fault.code), (own.id, other.id, Code::Lost));
    assert!(device.fault.text.contains("operator"));
    assert!(tunnels(&world).await.is_empty());
}

#[tokio::test]
async fn p01_a_draining_relay_makes_no_new_tunnels_and_passes_on_what_the_old_ones_carry() {
    let _beside = ALONE.read().await;
    let world = World::new().await;
    let (_core, node_link, [device_link]) = people(&world).await;
    let (own, other) = pair(&device_link, &node_link, 5).await;
    let (device, node) = (Peer::attached(&world, &own).await, Peer::attached(&world, &other).await);
    world.relay.relay().begin_drain();
    let fault = pair_as(&device_link, &node_link, request(5)).await.unwrap_err();
    assert_eq!(fault.code, Code::Draining);
    device.send(&data(own.id, b"goes on")).await;
    assert_eq!(node.receive().await, data(other.id, b"goes on"));
    node_link.mux.send_datagram(Message::Bind.to_datagram(other.id).into());
    node_link.mux.send_datagram(data(other.id, b"on links too").into());
    assert_eq!(device.receive().await, data(own.id, b"on links too"));
}

#[tokio::test]
async fn p01_a_tunnel_that_is_faster_than_its_device_may_be_loses_datagrams_and_no_other_does() {
    let _alone = ALONE.write().await;
    const LIMIT: u64 = 100_000;
    let world = World::with(|c| c.bandwidth.device = Flow { bytes_per_second: LIMIT, burst_bytes: 0 }).await;
    let (_core, node_link, [a, b]) = people(&world).await;
    let mut made = Vec::new();
    for link in [&a, &b] {
        let (own, other) = pair(link, &node_link, 5).await;
        made.push((Peer::attached(&world, &own).await, own, Peer::attached(&world, &other).await, other));
    }
    let before = drops("rate_limited");
    let [(greedy, own, node, _), (modest, other_own, other_node, other)] = &made[..] else { panic!("two") };
    let (began, mut sent, mut passed) = (clock::monotonic(), 0, 0);
    let mut arrived = || {
        while node.socket.try_recv(&mut [0; 2000]).is_ok() {
            passed += 1;
        }
        passed
    };
    while began.elapsed() < Duration::from_secs(2) {
        greedy.send(&data(own.id, &[0; 991])).await;
        sent += 1;
        if sent % 20 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            arrived();
        }
    }
    modest.send(&data(other_own.id, b"another device")).await;
    assert_eq!(other_node.receive().await, data(other.id, b"another device"));
    greedy.hears_nothing_but_pong(own).await;
    let passed = arrived();
    let took = began.elapsed().as_secs_f64();
    let most = LIMIT as f64 * (1.0 + took) / 1000.0 + 40.0;
    assert!(f64::from(passed) <= most && f64::from(passed) > most / 2.0, "{passed} of {sent}, {most} may pass");
    let lost = || (drops("rate_limited") - before) as i32;
    eventually("every one is counted", || lost() + passed == sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_tunnel_datagrams_come_in_by_sockets_of_their_own_and_quic_links_do_not_notice() {
    let _beside = ALONE.read().await;
    let world = World::with(|c| c.limits.tunnel_shards = Some(3)).await;
    let _core = world.core().await;
    let node_link = world.dial_quic(&world.credentials(Role::Node, 5), 5).await.unwrap();
    let mut made = Vec::new();
    for number in 10..26 {
        let link = world.dial_quic(&world.credentials(Role::Device, number), number).await.unwrap();
        let (own, other) = pair(&link, &node_link, 5).await;
        made.push((Peer::attached(&world, &own).await, own, Peer::attached(&world, &other).await, other, link));
    }
    let port = &world.relay.udp[0];
    let quic = port.received()[0];
    for n in 0..20u8 {
        for (device, own, node, other, _) in &made {
            device.send(&data(own.id, &[n; 50])).await;
            assert_eq!(node.receive().await, data(other.id, &[n; 50]));
            node.send(&data(other.id, &[n; 70])).await;
            assert_eq!(device.receive().await, data(own.id, &[n; 70]));
        }
    }
    let received = port.received();
    assert_eq!(received.len(), 4);
    assert!(received[1..].iter().all(|n| *n > 20), "{received:?}");
    assert!(received[1..].iter().sum::<u64>() >= 16 * 20 * 2, "{received:?}");
    assert!(received[0] - quic < 16 * 20, "none came by the socket of QUIC: {quic}, {received:?}");
    for (.., link) in &made {
        link.mux.probe().await;
        assert!(!link.mux.is_closed());
    }
    let one = World::with(|c| c.limits.tunnel_shards = Some(1)).await;
    assert_eq!(one.relay.udp[0].received().len(), 1);
}
