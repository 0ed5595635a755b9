//! Peers that say nothing, or one byte a second, at every stage of every door: each is closed by the limit of its stage,
//! and its permit goes back.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
mod craft;

use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{LONG, NAME, World};
use craft::{Craft, FULL, Got, INITIAL, crypto, parameters, stream};
use futures_util::future::join_all;
use hedgerow_runtime::mux::{Mux, Plain};
use hedgerow_runtime::{clock, websocket};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::session::{MuxConfig, Side};
use hedgerow_shared::wire::frame::{kind, raw};
use hedgerow_shared::wire::message::{ALPN_LANE, ALPN_LINK, Limits};
use hedgerow_shared::{InstanceId, Role, Ticket};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// The pace of those who are not silent.
const PAUSE: Duration = Duration::from_secs(1);
/// What a stage may take beyond its limit: the relay looks at idle HTTP connections every five seconds.
const GRACE: Duration = Duration::from_secs(12);

const CONNECT: &[u8] = b"CONNECT server01:18084 HTTP/1.1\r\nHost: server01\r\nTenant-Id: S12345678\r\n";
const LOOKUP: &[u8] = b"POST /lookup HTTP/1.1\r\nHost: relay.example\r\nContent-Length: 1000\r\n\r\n";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The beginning of an HTTP/2 HEADERS frame that never ends.
const HEADERS: &[u8] = &[0, 0x10, 0, 1, 0, 0, 0, 0, 1];
/// The beginning of a ClientHello of 4 KiB.
const HELLO: &[u8] = &[22, 3, 1, 16, 0, 1, 0, 15, 252, 3, 3];

/// One byte a second of what is given and then of zeros, or nothing where nothing is given, until the other end closes.
async fn dribble(mut io: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) {
    let (mut buffer, mut sent) = ([0; 4096], 0);
    loop {
        match timeout(PAUSE, io.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => return,
            // An answer to those who were too slow.
            Ok(Ok(_)) => continue,
            Err(_) if bytes.is_empty() => continue,
            Err(_) => {}
        }
        let byte = bytes.get(sent).copied().unwrap_or(0);
        sent += 1;
        if io.write_all(&[byte]).await.is_err() || io.flush().await.is_err() {
            return;
        }
    }
}

type Peer<'a> = (&'static str, Pin<Box<dyn Future<Output = ()> + 'a>>);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p02_silent_and_slow_peers_are_closed_at_every_stage_and_their_permits_come_back() {
    const ROOM: usize = 40;
    let world = World::with(|c| (c.limits.connections, c.timers.scale) = (ROOM, 1.0)).await;
    let limit = world.relay.relay().timers.handshake;
    let (link, device, http) = (world.relay.link[0], world.relay.device[0], world.relay.http[0]);
    let preamble = hedgerow_shared::wire::lane::preamble(&Ticket::from_random([9; 20]));
    let mut hello = Vec::new();
    let config = common::config_for_tests(&[b"http/1.1"], &world.roots());
    rustls::ClientConnection::new(config, NAME.try_into().unwrap()).unwrap().write_tls(&mut hello).unwrap();
    let upgrade = format!(
        "GET {} HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: {}\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        websocket::PATH,
        websocket::PROTOCOL,
    );
    let frame = raw(kind::HELLO, 0, &[0; 400]);
    let (world, preamble, hello, upgrade, frame) = (&world, &preamble[..], &hello[..], upgrade.as_bytes(), &frame[..]);

    let mut peers: Vec<Peer<'_>> = Vec::new();
    for (what, to, all, slow) in [
        ("443: silence", device, &b""[..], &b""[..]),
        ("443: a slow ClientHello", device, b"", HELLO),
        ("443: a slow lane preamble", device, b"", preamble),
        ("443: silence after the ClientHello", device, hello, b""),
        ("443: a slow answer to the relay's hello", device, hello, &[20, 3, 3, 0, 1]),
        ("3101: silence", link, b"", b""),
        ("3101: a slow ClientHello", link, b"", HELLO),
        ("3101: a slow lane preamble", link, b"", preamble),
        ("plain HTTP: silence", http, b"", b""),
        ("plain HTTP: a slow head", http, b"", CONNECT),
        ("plain HTTP: a head without its end", http, CONNECT, b""),
    ] {
        peers.push((
            what,
            Box::pin(async move {
                let mut tcp = TcpStream::connect(to).await.unwrap();
                tcp.write_all(all).await.unwrap();
                dribble(tcp, slow).await;
            }),
        ));
    }
    for (what, alpn, all, slow) in [
        ("HTTP/1.1: silence after TLS", &b"http/1.1"[..], &b""[..], &b""[..]),
        ("HTTP/1.1: a slow head", b"http/1.1", b"", CONNECT),
        ("HTTP/1.1: a head without its end", b"http/1.1", CONNECT, b""),
        ("HTTP/1.1: a slow body", b"http/1.1", LOOKUP, b"{\"email\""),
        ("HTTP/1.1: a body that does not come", b"http/1.1", LOOKUP, b""),
        ("HTTP/2: silence after TLS", b"h2", b"", b""),
        ("HTTP/2: a slow preface", b"h2", b"", PREFACE),
        ("HTTP/2: silence after the preface", b"h2", PREFACE, b""),
        ("HTTP/2: slow headers", b"h2", PREFACE, HEADERS),
        ("a link: silence after TLS", ALPN_LINK, b"", b""),
        ("a link: a slow HELLO", ALPN_LINK, b"", frame),
        ("a wrapped lane: silence after TLS", ALPN_LANE, b"", b""),
        ("a wrapped lane: a slow preamble", ALPN_LANE, b"", preamble),
        ("inside a WebSocket: silence", b"http/1.1", upgrade, b""),
        ("inside a WebSocket: slow frames", b"http/1.1", upgrade, &[0x82, 0x8b, 1, 2, 3, 4, 22, 3, 1]),
    ] {
        peers.push((
            what,
            Box::pin(async move {
                let mut tls = world.tls(NAME, alpn).await.unwrap();
                tls.write_all(all).await.unwrap();
                tls.flush().await.unwrap();
                dribble(tls, slow).await;
            }),
        ));
    }
    peers.push((
        "QUIC: silence after the first packet",
        Box::pin(async move {
            let mut craft = Craft::new(world, "127.0.0.1:0", &parameters()).await;
            let first = craft.first();
            craft.send(&first).await;
            // The relay sends its own flight again and again until it gives up, which it does without a word.
            while craft.count(Duration::from_secs(7)).await > 0 {}
        }),
    ));
    peers.push((
        "QUIC: a slow ClientHello",
        Box::pin(async move {
            let mut craft = Craft::new(world, "127.0.0.1:0", &parameters()).await;
            // Each byte is acknowledged for as long as the relay has a connection.
            for at in 0.. {
                let byte = [u8::from(at == 0 || at == 2)];
                let packet = craft.packet(INITIAL, &crypto(at, &byte), FULL);
                craft.send(&packet).await;
                let next = tokio::time::sleep(PAUSE);
                match craft.receive(PAUSE).await {
                    None => return,
                    Some(got) if got.iter().any(|g| matches!(g, Got::Close(_))) => return,
                    Some(_) => next.await,
                }
            }
        }),
    ));
    for (what, slow) in [("QUIC: silence after the hand-shake", &b""[..]), ("QUIC: a slow HELLO", frame)] {
        peers.push((
            what,
            Box::pin(async move {
                let mut craft = Craft::connected(world).await;
                for (at, byte) in slow.iter().chain(std::iter::repeat(&0)).enumerate() {
                    if !slow.is_empty() {
                        craft.say(&stream(0, at as u64, &[*byte])).await;
                    }
                    if craft.closed(PAUSE).await.is_some() {
                        return;
                    }
                }
            }),
        ));
    }
    assert!(peers.len() <= ROOM, "they would have to make room for each other");

    let ends = join_all(peers.into_iter().map(|(what, peer)| async move {
        let start = Instant::now();
        assert!(timeout(limit + GRACE, peer).await.is_ok(), "{what}: not closed");
        (what, start.elapsed())
    }))
    .await;
    for (what, after) in ends {
        assert!(after > limit / 2, "{what}: closed after {after:?}, by something else than the limit");
    }
    // Were one permit lost, the last of these would wait for it until the others are closed for their silence.
    let (start, mut room) = (Instant::now(), Vec::new());
    for n in 0..ROOM {
        let tls = timeout(limit / 2, world.tls(NAME, b"http/1.1")).await;
        room.push(tls.unwrap_or_else(|_| panic!("only {n} permits are back")).unwrap());
    }
    assert!(start.elapsed() < limit, "{:?}", start.elapsed());
}

/// Bytes that make no frame are no sign of life.
#[tokio::test]
async fn p01_a_frame_that_comes_byte_by_byte_does_not_keep_a_link_that_answers_no_ping() {
    let world = World::new().await;
    let timers = Timers {
        ping_interval: Duration::from_millis(300),
        ping_timeout: Duration::from_millis(500),
        ..Timers::default()
    };
    for bytes in [raw(kind::DATAGRAM, 0, &[0; 10_000]), raw(kind::CONTROL, 0, &[0; 500])] {
        let (mut peer, ours) = tokio::io::duplex(64 * 1024);
        let config = MuxConfig::link(Limits::default(), Limits::default(), timers);
        let mux = Mux::start(Plain::new(ours), Side::Acceptor, config, Bytes::new(), &world.scope);
        let dribble = async {
            for byte in &bytes[..300] {
                if peer.write_all(&[*byte]).await.is_err() {
                    return;
                }
                // Far more often than pings go out.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let ended = async { timeout(Duration::from_secs(10), mux.closed()).await };
        let (ended, ()) = tokio::join!(ended, dribble);
        assert_eq!(ended.expect("it ends").code, hedgerow_shared::fault::Code::Lost);
    }
}

/// QUIC costs a peer one datagram, with any address on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_ten_thousand_silent_quic_peers_leave_room_for_a_good_one() {
    let world = World::new().await;
    let mut crowd = Vec::new();
    for n in 1..=8 {
        let mut craft = Craft::new(&world, &format!("127.11.0.{n}:0"), &parameters()).await;
        for _ in 0..1250 {
            craft.use_token(&clock::random::<8>(), Vec::new());
            let first = craft.first();
            craft.send(&first).await;
            if craft.sent.is_multiple_of(8 * FULL) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        crowd.push(craft);
    }
    let credentials = world.credentials(Role::Node, 5);
    let _core = world.core().await;
    let timers = world.relay.relay().timers;
    for n in 1..4 {
        let instance = InstanceId::from_random([n; 16]);
        let target = world.target();
        let link = hedgerow_runtime::link::connect_quic(&target, &credentials, instance, &timers, &world.scope);
        timeout(LONG, link).await.unwrap().unwrap();
    }
    // A stranger over TCP too.
    let tcp = TcpSocket::new_v4().unwrap().connect(world.relay.device[0]).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(common::config_for_tests(&[b"h2"], &world.roots()));
    timeout(LONG, connector.connect(NAME.try_into().unwrap(), tcp)).await.unwrap().unwrap();
    for craft in crowd {
        drop(craft);
    }
}
