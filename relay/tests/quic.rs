//! The relay's UDP port: links over QUIC beside those over TLS, and tunnel datagrams told apart from both.
#![allow(clippy::unwrap_used, reason = "a test stops at what should not happen")]

mod common;

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{LONG, NAME, World, entity, eventually, service};
use hedgerow_relay::config::Listen;
use hedgerow_relay::udp::{Arrived, Forwarder, Outbox, Port, TUNNEL};
use hedgerow_runtime::link::{Channel, Transport, connect_quic};
use hedgerow_runtime::quic;
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::wire::message::{ALPN_LINK, Destination, LinkOpen, Service};
use hedgerow_shared::{InstanceId, Origin, Role};
use quinn::{AsyncUdpSocket, UdpPoller};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::time::timeout;

#[tokio::test]
async fn p01_a_node_on_quic_and_a_device_on_tls_reach_each_other() {
    let world = World::new().await;
    let core = world.core().await;
    let node = world.dial_quic(&world.credentials(Role::Node, 5), 5).await.unwrap();
    assert_eq!(node.transport, Transport::Quic);
    let device = world.device(6).await;
    let to =
        Destination { tenant: world.tenant.clone(), origin: Origin::Proxy, group: None, instance: None, node: None };
    let header = LinkOpen::Through { to, vouched: None, trace: None };
    let (opened, served) = tokio::join!(device.mux.open(&header), async { node.mux.accept().await.unwrap().accept() });
    let (mut opened, mut served) = (opened.unwrap(), served);
    let sent = world.scope.clone();
    let (done, mut ends) = tokio::sync::mpsc::channel(1);
    sent.spawn(async move {
        for n in 0..64u8 {
            served.write_chunk(Bytes::from(vec![n; 65_536])).await.unwrap();
        }
        served.finish();
        done.send(served).await.unwrap();
    });
    let mut got = 0;
    while let Some(chunk) = timeout(LONG, opened.read_chunk()).await.unwrap().unwrap() {
        assert!(chunk.iter().enumerate().all(|(i, byte)| *byte == ((got + i) / 65_536) as u8));
        got += chunk.len();
    }
    assert_eq!(got, 64 * 65_536);
    let mut served = ends.recv().await.unwrap();
    opened.reset(Fault::new(Code::ConnectionReset, "the application went away"));
    assert_eq!(timeout(LONG, served.read_chunk()).await.unwrap().unwrap_err().code, Code::ConnectionReset);

    // What holds for a link over TLS holds here: revocation cuts it.
    service(&core, Service::PutConfig, &world.ca.relay_config(2, &[entity(5)])).await.unwrap();
    assert_eq!(timeout(LONG, node.mux.closed()).await.unwrap().code, Code::Revoked);
    let (target, credentials) = (world.target(), world.credentials(Role::Node, 5));
    let (instance, timers) = (InstanceId::from_random([5; 16]), world.relay.relay().timers);
    let again = connect_quic(&target, &credentials, instance, &timers, &world.scope).await;
    assert!(again.unwrap_err().to_string().contains("revoked"));
}

#[tokio::test]
async fn n02_the_list_of_sessions_follows_a_link_to_its_new_address() {
    let world = World::new().await;
    let _core = world.core().await;
    let node = world.dial_quic(&world.credentials(Role::Node, 5), 5).await.unwrap();
    let shown = async || {
        let sessions = world.control(http::Method::GET, "/sessions", None).await;
        let node = sessions.as_array().unwrap().iter().find(|s| s["role"] == "node").unwrap().clone();
        (node["address"].as_str().unwrap().to_owned(), node["transport"].as_str().unwrap().to_owned())
    };
    let before = shown().await;
    assert_eq!(before.1, "quic");
    let Channel::Quic(mux) = &node.mux else { panic!("a QUIC link") };
    mux.rebind().unwrap();
    let moved = async {
        while shown().await.0 == before.0 {
            mux.probe(Duration::from_secs(3)).await.unwrap();
        }
    };
    timeout(LONG, moved).await.expect("the new address is shown");
    let live = world.relay.relay().registry.select(None, |f| f.role == Role::Node).remove(0);
    assert_eq!(live.vouched().address, shown().await.0, "and it is what others are told");
}

#[tokio::test]
async fn n02_changing_the_transport_displaces_without_a_penalty() {
    let world = World::new().await;
    let _core = world.core().await;
    let credentials = world.credentials(Role::Node, 5);
    let mut last = world.dial(&credentials, 5).await.unwrap();
    for n in 0..12 {
        let next = match n % 2 {
            0 => world.dial_quic(&credentials, 5).await.unwrap(),
            _ => world.dial(&credentials, 5).await.unwrap(),
        };
        let away = timeout(LONG, last.mux.peer_going_away()).await.unwrap();
        assert_eq!((away.fault.code, away.return_after_ms), (Code::Displaced, 0));
        last = next;
    }
    // Those that were left close by themselves: the core's and the newest stay.
    eventually("the old ones are gone", || world.relay.relay().registry.len() == 2).await;
    assert!(!last.mux.is_closed());
}

#[tokio::test]
async fn a_drain_reaches_links_over_quic() {
    let world = World::new().await;
    let _core = world.core().await;
    let node = world.dial_quic(&world.credentials(Role::Node, 5), 5).await.unwrap();
    let ended = async { timeout(LONG, node.mux.peer_going_away()).await.unwrap() };
    let (away, ()) = tokio::join!(ended, world.relay.drain());
    assert_eq!(away.fault.code, Code::Draining);
    assert_eq!(timeout(LONG, node.mux.closed()).await.unwrap().code, Code::Draining);
}

#[tokio::test]
async fn tunnel_datagrams_without_a_forwarder_are_dropped_and_counted() {
    let port = Port::new(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    let (scope, own) = (Scope::new(), port.clone());
    let _end = scope.guard();
    scope.spawn_until_done(async move { own.receive(0, None).await });
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for first in [0x80, 0x9f, 0xbf] {
        socket.send_to(&[first, 1, 2, 3], port.local_addr().unwrap()).unwrap();
    }
    socket.send_to(&[], port.local_addr().unwrap()).unwrap();
    let counts = port.counts();
    eventually("all are dropped", || counts.dropped.load(Ordering::Relaxed) == 4).await;
    assert_eq!(counts.quic.load(Ordering::Relaxed), 0);
}

/// Whatever a tunnel datagram holds, nothing comes back: a forged sender address makes nobody the target of anything.
#[tokio::test]
async fn a04_tunnel_datagrams_of_any_content_are_answered_by_nothing() {
    let world = World::new().await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let counts = world.relay.udp[0].counts();
    let mut sent = 0;
    for first in 0x80..=0xbfu8 {
        // One byte, what looks like a DTLS 1.2 ClientHello behind it, and as much as fits; with bytes of any kind.
        for length in [1, 14, 1200] {
            let mut datagram: Vec<u8> = (0..length).map(|n| (n as u8).wrapping_mul(first)).collect();
            datagram[0] = first;
            if length > 13 {
                datagram[1..14].copy_from_slice(&[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            }
            socket.send_to(&datagram, world.relay.link[0]).unwrap();
            sent += 1;
        }
        eventually("the forwarder has it", || counts.tunnel.load(Ordering::Relaxed) == sent).await;
    }
    // Everything sent was looked at before this answer, which does come: a QUIC packet of an unknown version.
    let mut unknown = vec![0; 1200];
    unknown[0] = 0xc0;
    unknown[1..5].copy_from_slice(&[0x1a; 4]);
    unknown[5..14].copy_from_slice(&[8, 1, 2, 3, 4, 5, 6, 7, 8]);
    socket.send_to(&unknown, world.relay.link[0]).unwrap();
    let mut answer = [0; 2048];
    let mut length = 0;
    eventually("QUIC answers", || {
        length = socket.recv(&mut answer).unwrap_or(0);
        length > 0
    })
    .await;
    assert!(answer[0] & 0x80 != 0 && answer[1..5] == [0; 4], "the first answer is QUIC's own");
    assert!(length <= unknown.len());
}

#[tokio::test]
async fn a_udp_port_that_is_taken_is_a_clear_start_error() {
    // The port must be free for TCP, where it may be that of anybody's connection.
    let holder = loop {
        let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
        if std::net::TcpListener::bind(holder.local_addr().unwrap()).is_ok() {
            break holder;
        }
    };
    let taken = holder.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let world = World::new().await;
    let config = hedgerow_relay::RelayConfig {
        state: folder.path().join("state"),
        listen: Listen { link: vec![taken], device: vec![], udp: true, http: vec![], trusted_proxies: vec![] },
        ..world.relay.relay().config.clone()
    };
    let context = hedgerow_runtime::boot::Context::new(LONG);
    let error = hedgerow_relay::run(config.clone(), &context).await.err().unwrap().to_string();
    assert!(error.contains(&format!("cannot use UDP on {taken}")) && error.contains("listen.udp"), "{error}");
    let without = hedgerow_relay::RelayConfig {
        listen: Listen { udp: false, ..config.listen.clone() },
        state: folder.path().join("other"),
        ..config
    };
    hedgerow_relay::run(without, &context).await.unwrap();
    drop(holder);
}

/// Datagrams that are sent, in all.
const MANY: u64 = 1_000_000;
const SOURCES: u64 = 4;
/// Datagrams in one send, which the kernel splits late or never.
const BURST: u64 = 50;
const LENGTH: usize = 64;

/// Every datagram says its number; the forwarder sees each at most once, and only its own kind.
struct Counting {
    seen: Vec<AtomicBool>,
    taken: AtomicU64,
    wrong: AtomicU64,
}

impl Forwarder for Counting {
    fn take(&self, _: &Arrived<'_>, stride: usize, datagrams: &mut [u8], _: &mut Outbox) {
        for datagram in datagrams.chunks(stride) {
            let number = usize::try_from(u64::from_be_bytes(datagram[1..9].try_into().unwrap())).unwrap();
            if !TUNNEL.contains(&datagram[0])
                || datagram.len() != LENGTH
                || self.seen[number].swap(true, Ordering::Relaxed)
            {
                self.wrong.fetch_add(1, Ordering::Relaxed);
            }
            self.taken.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What quinn is given.
#[derive(Debug)]
struct Spy {
    port: Arc<Port>,
    taken: AtomicU64,
    wrong: AtomicU64,
}

impl AsyncUdpSocket for Spy {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.port.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.port.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let polled = self.port.poll_recv(cx, buffers, metas);
        if let Poll::Ready(Ok(count)) = polled {
            for (buffer, meta) in buffers.iter().zip(metas.iter()).take(count) {
                for datagram in buffer[..meta.len].chunks(meta.stride) {
                    self.taken.fetch_add(1, Ordering::Relaxed);
                    if TUNNEL.contains(&datagram[0]) {
                        self.wrong.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
        polled
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.port.local_addr()
    }

    fn max_receive_segments(&self) -> usize {
        self.port.max_receive_segments()
    }

    fn max_transmit_segments(&self) -> usize {
        self.port.max_transmit_segments()
    }
}

/// Datagrams on their way at once, so that a slow machine's kernel need not drop any.
const WINDOW: u64 = 1000;

/// Bursts from one socket, both kinds mixed in each.
fn shoot(source: u64, to: SocketAddr, sent: &AtomicU64, port: &Port) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let state = UdpSocketState::new((&socket).into()).unwrap();
    socket.set_nonblocking(false).unwrap();
    let each = MANY / SOURCES;
    let mut dice = source.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut burst = Vec::new();
    for n in source * each..(source + 1) * each {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        // Half of them tunnel-looking, the others anything else.
        let first = dice.to_be_bytes()[0];
        let first = if dice.is_multiple_of(2) {
            0x80 | first & 0x3f
        } else if first & 0xc0 == 0x80 {
            first ^ 0x80
        } else {
            first
        };
        burst.push(first);
        burst.extend_from_slice(&n.to_be_bytes());
        burst.resize(burst.len().next_multiple_of(LENGTH), 0);
        if (n + 1).is_multiple_of(BURST) {
            let segment_size = Some(LENGTH);
            let transmit = Transmit { destination: to, ecn: None, contents: &burst, segment_size, src_ip: None };
            while state.send((&socket).into(), &transmit).is_err() {
                std::thread::yield_now();
            }
            burst.clear();
            let sent = sent.fetch_add(BURST, Ordering::Relaxed) + BURST;
            // What the kernel has dropped after all must not stop the test.
            let patience = Instant::now() + Duration::from_millis(200);
            while sent > port.counts().received.load(Ordering::Relaxed) + WINDOW && Instant::now() < patience {
                std::thread::yield_now();
            }
        }
    }
}

/// What the kernel dropped at this port, for want of room: bursts that it had not split count once.
fn kernel_drops(port: u16) -> u64 {
    let table = std::fs::read_to_string("/proc/net/udp").unwrap();
    let own = format!(":{port:04X}");
    let line = table.lines().find(|l| l.split_whitespace().nth(1).is_some_and(|a| a.ends_with(&own))).unwrap();
    line.split_whitespace().last().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_mixed_datagrams_go_where_they_belong_beside_a_live_quic_link() {
    let certificate = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).unwrap();
    let der = certificate.cert.der().clone();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(certificate.signing_key.serialize_der()).into();
    let server = tls::as_relay(vec![der.clone()], key, &[ALPN_LINK]).unwrap();
    let (scope, timers) = (Scope::new(), Timers::default());

    let port = Port::new(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    let address = port.local_addr().unwrap();
    let forwarder = Arc::new(Counting {
        seen: (0..MANY).map(|_| AtomicBool::new(false)).collect(),
        taken: AtomicU64::new(0),
        wrong: AtomicU64::new(0),
    });
    let (own, takes) = (port.clone(), forwarder.clone());
    scope.spawn(async move { own.receive(0, Some(takes)).await });
    let spy = Arc::new(Spy { port: port.clone(), taken: AtomicU64::new(0), wrong: AtomicU64::new(0) });
    let endpoint = quinn::Endpoint::new_with_abstract_socket(
        quic::endpoint_config(),
        Some(quic::server_config(&server, &timers).unwrap()),
        spy.clone(),
        Arc::new(quic::Tasks(scope.clone())),
    )
    .unwrap();
    let accepting = endpoint.clone();
    scope.spawn(async move {
        let connection = accepting.accept().await.unwrap().await.unwrap();
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        let mut buffer = [0; 1000];
        while receive.read_exact(&mut buffer).await.is_ok() && send.write_all(&buffer).await.is_ok() {}
    });
    let near = quic::client_endpoint(address, &Default::default(), &scope).unwrap();
    let tls = tls::to_relay(&tls::RelayRoots::Ca(vec![der]), &[ALPN_LINK]).unwrap();
    let config = quic::client_config(tls, &timers).unwrap();
    let connection = near.connect_with(config, address, NAME).unwrap().await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();

    let sent = Arc::new(AtomicU64::new(0));
    let shooter = |n| {
        let (sent, port) = (sent.clone(), port.clone());
        std::thread::spawn(move || shoot(n, address, &sent, &port))
    };
    let threads: Vec<_> = (0..SOURCES).map(shooter).collect();
    let mut echoes = 0u32;
    while threads.iter().any(|t| !t.is_finished()) {
        let message = [echoes as u8; 1000];
        send.write_all(&message).await.unwrap();
        let mut back = [0; 1000];
        timeout(LONG, receive.read_exact(&mut back)).await.expect("the link works in the storm").unwrap();
        assert_eq!(back, message);
        echoes += 1;
    }
    threads.into_iter().for_each(|t| t.join().unwrap());
    assert!(echoes > 0);

    // Everything sent was received, or dropped by the kernel, which says how much.
    let counts = port.counts();
    let all = |c: &AtomicU64| c.load(Ordering::Relaxed);
    let balance = || (MANY + connection.stats().udp_tx.datagrams, all(&counts.received), kernel_drops(address.port()));
    let balanced =
        |(sent, received, drops): (u64, u64, u64)| (drops..=drops * BURST).contains(&sent.saturating_sub(received));
    timeout(LONG, async {
        while !balanced(balance()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("sent, received, dropped by the kernel: {:?}", balance()));
    timeout(LONG, async {
        while all(&spy.taken) != all(&counts.quic) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("quinn takes all that it was given");
    assert_eq!(all(&counts.received), all(&counts.quic) + all(&counts.tunnel) + all(&counts.dropped));
    assert_eq!(all(&forwarder.taken), all(&counts.tunnel));
    assert_eq!((all(&forwarder.wrong), all(&spy.wrong)), (0, 0), "none misdelivered");
    // Far more than a little came through at all.
    assert!(all(&counts.tunnel) > MANY / 20, "{counts:?}");
    endpoint.close(0u32.into(), b"");
    scope.stop(Duration::from_secs(5)).await;
}
