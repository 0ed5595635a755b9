//! The real client behind a balancer: PROXY headers believed from those who are trusted with them, refused from others.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{LONG, NAME, World, config_for_tests};
use hedgerow_relay::config::RelayConfig;
use hedgerow_runtime::link::Link;
use hedgerow_runtime::proxy_protocol::{self, Version};
use hedgerow_shared::wire::message::LinkOpen;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The one address that the relay of these tests trusts.
const BALANCER: &str = "127.0.0.8:0";
const CONNECT: &[u8] =
    b"CONNECT server01:18084 HTTP/1.1\r\nHost: server01\r\nTenant-Id: S12345678\r\nOrigin-Server-Id: bws\r\n\r\n";

fn trusting(config: &mut RelayConfig) {
    config.listen.trusted_proxies = vec!["127.0.0.8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
}

async fn from(source: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(source.parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

fn header(version: Version, client: &str) -> Vec<u8> {
    proxy_protocol::header(version, client.parse().ok(), "10.0.0.1:443".parse().unwrap())
}

/// A core that takes every stream and tells whose it was.
fn clients(world: &World, core: &Link) -> mpsc::Receiver<String> {
    let (tell, told) = mpsc::channel(16);
    let mux = core.mux.clone();
    world.scope.spawn(async move {
        let mut open = Vec::new();
        while let Some(incoming) = mux.accept().await {
            let Ok(LinkOpen::Through { vouched, .. }) = incoming.read_header() else { continue };
            open.push(incoming.accept());
            let _ = tell.send(vouched.unwrap().address).await;
        }
    });
    told
}

/// Asks for a tunnel; the status line of the answer.
async fn connect(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    io.write_all(CONNECT).await.unwrap();
    let mut answer = [0; 12];
    timeout(LONG, io.read_exact(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn the_client_that_a_trusted_balancer_names_is_whom_logs_and_limits_see() {
    let world = World::with(|config| {
        trusting(config);
        config.limits.tunnels_per_client = 1;
    })
    .await;
    let core = world.core().await;
    let mut told = clients(&world, &core);
    let mut open = Vec::new();
    for (version, client, answer) in [
        (Version::One, "192.0.2.7:4711", "HTTP/1.1 200"),
        (Version::Two, "192.0.2.7:4712", "HTTP/1.1 429"),
        (Version::Two, "192.0.2.8:4713", "HTTP/1.1 200"),
        (Version::One, "[2001:db8:1:2::3]:4714", "HTTP/1.1 200"),
        (Version::Two, "[2001:db8:1:2::4]:4715", "HTTP/1.1 429"),
        (Version::Two, "[::ffff:192.0.2.8]:4716", "HTTP/1.1 429"),
    ] {
        let mut tcp = from(BALANCER, world.relay.http[0]).await;
        tcp.write_all(&header(version, client)).await.unwrap();
        assert_eq!(connect(&mut tcp).await, answer, "{client}");
        if answer.ends_with("200") {
            assert_eq!(timeout(LONG, told.recv()).await.unwrap().unwrap(), client);
        }
        open.push(tcp);
    }
    // Who speaks for itself counts as itself, and takes nobody's share.
    let mut own = from("127.0.0.9:0", world.relay.http[0]).await;
    assert_eq!(connect(&mut own).await, "HTTP/1.1 200");
    assert!(told.recv().await.unwrap().starts_with("127.0.0.9:"));
}

#[tokio::test]
async fn the_door_for_tls_takes_the_header_in_pieces_and_the_client_hello_with_it() {
    let world = World::with(trusting).await;
    let core = world.core().await;
    let mut told = clients(&world, &core);
    for (version, client) in [(Version::One, "192.0.2.7:4711"), (Version::Two, "[2001:db8::7]:4712")] {
        let mut tcp = from(BALANCER, world.relay.device[0]).await;
        tcp.set_nodelay(true).unwrap();
        let header = header(version, client);
        let (first, rest) = header.split_at(header.len() - 3);
        for byte in first {
            tcp.write_all(std::slice::from_ref(byte)).await.unwrap();
        }
        tcp.write_all(rest).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(config_for_tests(&[b"http/1.1"], &world.roots()));
        let mut tls = connector.connect(NAME.try_into().unwrap(), tcp).await.unwrap();
        assert_eq!(connect(&mut tls).await, "HTTP/1.1 200");
        assert_eq!(timeout(LONG, told.recv()).await.unwrap().unwrap(), client);
    }
}

#[tokio::test]
async fn what_names_no_client_counts_as_the_balancers_own() {
    let world = World::with(trusting).await;
    let core = world.core().await;
    let mut told = clients(&world, &core);
    for version in [Version::One, Version::Two] {
        let mut tcp = from(BALANCER, world.relay.http[0]).await;
        tcp.write_all(&header(version, "nobody")).await.unwrap();
        assert_eq!(connect(&mut tcp).await, "HTTP/1.1 200");
        let client = told.recv().await.unwrap();
        assert_eq!(client, tcp.local_addr().unwrap().to_string());
    }
}

/// Whether the relay ends the connection without a word, and soon.
async fn is_closed(tcp: &mut TcpStream, limit: Duration) -> bool {
    let mut bytes = Vec::new();
    match timeout(limit, tcp.read_to_end(&mut bytes)).await {
        Ok(Ok(_)) => bytes.is_empty(),
        Ok(Err(_)) => true,
        Err(_) => false,
    }
}

#[tokio::test]
async fn forged_missing_and_malformed_headers_are_closed_at_once() {
    let world = World::with(trusting).await;
    // Nothing here may end by the hand-shake's time.
    let limit = world.relay.relay().timers.handshake * 2 / 3;
    let (one, two) = (header(Version::One, "192.0.2.7:1"), header(Version::Two, "192.0.2.7:1"));
    let long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 100]].concat();
    let mut huge = two.clone();
    huge[14..16].copy_from_slice(&[0xff, 0xff]);
    let mut other_version = two.clone();
    other_version[12] = 0x11;
    let mut tlv = two.clone();
    tlv[15] += 3;
    tlv.extend_from_slice(&[4, 0, 9]);
    let hello = [22, 3, 1, 0, 0].as_slice();
    for (what, source, bytes) in [
        ("version 1 of a stranger", "127.0.0.1:0", one.clone()),
        ("version 2 of a stranger", "127.0.0.1:0", two.clone()),
        ("none", BALANCER, hello.to_vec()),
        ("another protocol", BALANCER, b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("twice the same", BALANCER, [&one[..], &one].concat()),
        ("2 behind 1", BALANCER, [&one[..], &two].concat()),
        ("1 behind 2", BALANCER, [&two[..], &one].concat()),
        ("1 inside 2", BALANCER, [&two[..12], &one].concat()),
        ("no CR", BALANCER, b"PROXY TCP4 192.0.2.7 10.0.0.1 1 443\n".to_vec()),
        ("no address", BALANCER, b"PROXY TCP4 localhost 10.0.0.1 1 443\r\n".to_vec()),
        ("too long", BALANCER, long),
        ("64 KiB announced", BALANCER, huge),
        ("another version", BALANCER, other_version),
        ("lengths that lie", BALANCER, tlv),
    ] {
        for door in [world.relay.device[0], world.relay.link[0]] {
            let mut tcp = from(source, door).await;
            tcp.write_all(&bytes).await.unwrap();
            assert!(is_closed(&mut tcp, limit).await, "{what}");
        }
    }
}

#[tokio::test]
async fn a_slow_header_ends_with_the_hand_shakes_time() {
    let world = World::with(trusting).await;
    let mut slow = Vec::new();
    for bytes in [&b"PROXY TCP4 192.0.2.7"[..], &header(Version::Two, "192.0.2.7:1")[..20]] {
        for door in [world.relay.device[0], world.relay.http[0]] {
            let mut tcp = from(BALANCER, door).await;
            tcp.write_all(bytes).await.unwrap();
            slow.push(tcp);
        }
    }
    // All at once: each takes the hand-shake's time, 10 s, which no configuration shortens.
    for tcp in &mut slow {
        assert!(is_closed(tcp, LONG).await);
    }
}
