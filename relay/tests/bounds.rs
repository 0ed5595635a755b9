//! Each bound of a relay, driven to its limit and read back from its metrics.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::{LONG, NAME, World, eventually};
use hedgerow_runtime::link::{Link, Stream};
use hedgerow_runtime::telemetry::Metrics;
use hedgerow_shared::fault::Code;
use hedgerow_shared::limits;
use hedgerow_shared::wire::message::{Control, Destination, LaneRequest, LinkOpen};
use hedgerow_shared::{Origin, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Mutex;
use tokio::time::timeout;

/// Metrics belong to the process: one test at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

fn metric(name: &str, label: &str) -> f64 {
    let text = Metrics::install().render();
    let lines = text.lines().filter(|l| l.starts_with(name) && l.contains(label));
    lines
        .filter(|l| matches!(l.as_bytes().get(name.len()), Some(b' ' | b'{')))
        .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

fn to(world: &World) -> Destination {
    Destination { tenant: world.tenant.clone(), origin: Origin::Proxy, group: None, instance: None, node: None }
}

async fn from(source: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((source, 0))).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test]
async fn p01_handshakes_at_once_are_bounded_in_all_and_for_each_address() {
    let _alone = ALONE.lock().await;
    let world = World::with(|c| (c.limits.handshakes, c.limits.handshakes_per_client) = (40, 10)).await;
    let at = world.relay.device[0];
    let count = || metric("hedgerow_relay_handshakes", "");
    let shown_out = || metric("hedgerow_dropped_total", "handshake_timeout");
    let before = shown_out();
    let mut held = Vec::new();
    for _ in 0..30 {
        held.push(from([127, 9, 0, 1], at).await);
    }
    eventually("twenty made room", || shown_out() - before >= 20.0).await;
    assert_eq!(count(), 10.0, "of one address");
    for n in 0..60 {
        held.push(from([127, 9, 1, 1 + n / 10], at).await);
    }
    eventually("thirty more made room", || shown_out() - before >= 50.0).await;
    assert_eq!(count(), 40.0, "of all");
    // A good one comes in beside them.
    world.tls(NAME, b"http/1.1").await.unwrap();
    drop(held);
    eventually("the room is empty", || count() == 0.0).await;
}

#[tokio::test]
async fn p01_connections_are_bounded_and_the_next_one_comes_in_when_one_goes() {
    let _alone = ALONE.lock().await;
    let world = World::with(|c| c.limits.connections = 4).await;
    let _core = world.core().await;
    let (_node, _device, last) = (world.node(5).await, world.device(6).await, world.device(7).await);
    eventually("four links", || metric("hedgerow_relay_links", "") == 4.0).await;
    let fifth = world.tls(NAME, b"http/1.1");
    tokio::pin!(fifth);
    assert!(timeout(Duration::from_millis(500), &mut fifth).await.is_err(), "a fifth connection was taken");
    last.mux.close(hedgerow_shared::fault::Fault::new(Code::Ok, "done"));
    timeout(LONG, fifth).await.unwrap().unwrap();
}

#[tokio::test]
async fn p01_lanes_that_wait_are_bounded_for_each_link() {
    let _alone = ALONE.lock().await;
    let world = World::with(|c| c.timers.scale = 1.0).await;
    let _core = world.core().await;
    let (node, device) = (world.node(5).await, world.device(6).await);
    let most = u32::try_from(hedgerow_relay::lane::MAX_PENDING_PER_SESSION).unwrap();
    for request in 0..most + 10 {
        device.mux.send_control(&LaneRequest { request, to: to(&world) }.into()).unwrap();
    }
    let (mut offered, mut refused) = (0, 0);
    while offered + refused < most + 10 {
        match timeout(LONG, device.mux.next_control()).await.unwrap().unwrap() {
            Control::LaneOffer(_) => offered += 1,
            Control::LaneRefused(r) => {
                assert_eq!(r.fault.code, Code::Limited);
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((offered, refused), (most, 10));
    eventually("the gauge shows them", || metric("hedgerow_relay_lanes_waiting", "") == f64::from(most)).await;
    drop(node);
}

#[tokio::test]
async fn p01_streams_that_wait_for_an_answer_are_bounded_for_each_link() {
    let _alone = ALONE.lock().await;
    let world = World::with(|c| c.timers.scale = 1.0).await;
    let _core = world.core().await;
    let (_node, device) = (world.node(5).await, world.device(6).await);
    let header = LinkOpen::Through { to: to(&world), vouched: None, trace: None };
    let refused = |label: &str| metric("hedgerow_relay_refused_total", label);
    let before = refused("limited");
    for _ in 0..276 {
        let (mux, header) = (device.mux.clone(), header.clone());
        // The node never answers.
        world.scope.spawn(async move { drop(mux.open(&header).await) });
    }
    eventually("those beyond 256 are refused", || refused("limited") - before >= 20.0).await;
    eventually("the rest waits", || metric("hedgerow_relay_link_streams_max", "") == 256.0).await;
    assert_eq!(refused("limited") - before, 20.0);
}

async fn stream(world: &World, device: &Link, node: &Link) -> (Stream, Stream) {
    let header = LinkOpen::Through { to: to(world), vouched: None, trace: None };
    let serve = async { node.mux.accept().await.unwrap().accept() };
    let (opened, served) = tokio::join!(device.mux.open(&header), serve);
    (opened.unwrap(), served)
}

/// What one stream may hold, and what all streams of a link may hold together, however many there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_bytes_held_for_streams_are_bounded_for_each_stream_and_each_link() {
    let _alone = ALONE.lock().await;
    let world = World::with(|c| c.timers.scale = 1.0).await;
    let _core = world.core().await;
    let (node, device) = (world.node(5).await, world.device(6).await);
    let most = || metric("hedgerow_relay_link_held_bytes_max", "");
    eventually("nothing is held of the test before", || most() == 0.0).await;
    let mut unread = Vec::new();
    // What was received waits within the link's window; what is to be sent, in the link's queue, and a chunk more.
    const { assert!(limits::CONNECTION_QUEUE == limits::CONNECTION_WINDOW) };
    for (streams, least, bound) in [
        (1, limits::INITIAL_STREAM_WINDOW / 2, limits::MAX_STREAM_WINDOW),
        (150, limits::CONNECTION_WINDOW / 2, limits::CONNECTION_QUEUE + (64 << 10)),
    ] {
        while unread.len() < streams {
            let (at_device, mut at_node) = stream(&world, &device, &node).await;
            unread.push(at_device);
            world
                .scope
                .spawn(async move { while at_node.write_chunk(Bytes::from_static(&[7; 16_384])).await.is_ok() {} });
        }
        let (least, bound) = (least as f64, bound as f64);
        let mut highest = 0.0_f64;
        eventually("it is filled", || {
            highest = highest.max(most());
            highest >= least
        })
        .await;
        // The gauge moves once a second.
        for _ in 0..300 {
            highest = highest.max(most());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(highest <= bound, "{streams} streams: {highest} of {bound}");
    }
    let stalled = || metric("hedgerow_relay_link_stalled_streams_max", "");
    let made_room = || (1.0..150.0).contains(&stalled()) && most() < QUEUE * 0.75;
    eventually("those that stand still longest have made room for others", made_room).await;
}

/// REST clients that send to a core which reads nothing: what they sent waits in the queue of the core's link.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_bytes_of_strangers_that_a_core_does_not_read_are_bounded_and_the_longest_stuck_make_room() {
    let _alone = ALONE.lock().await;
    let world = World::with(|c| (c.timers.scale, c.limits.connect_burst_per_client) = (1.0, 1000.0)).await;
    let core = world.core().await;
    let mux = core.mux.clone();
    world.scope.spawn(async move {
        let mut unread = Vec::new();
        while let Some(incoming) = mux.accept().await {
            unread.push(incoming.accept());
        }
    });
    let client = || async {
        let mut tcp = TcpStream::connect(world.relay.http[0]).await.unwrap();
        let head = "CONNECT bws:1 HTTP/1.1\r\nTenant-Id: S12345678\r\nOrigin-Server-Id: bws\r\n\r\n";
        tcp.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        timeout(LONG, tcp.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        tcp
    };
    let (ended, count) = (Arc::new(AtomicUsize::new(0)), 400);
    for _ in 0..count {
        let (mut tcp, ended) = (client().await, ended.clone());
        world.scope.spawn(async move {
            while tcp.write_all(&[7; 65_536]).await.is_ok() {}
            ended.fetch_add(1, Ordering::Relaxed);
        });
    }
    let most = || metric("hedgerow_relay_link_held_bytes_max", "");
    let mut highest = 0.0_f64;
    eventually("as many are stuck as may be, and the rest has ended", || {
        highest = highest.max(most());
        let stuck = metric("hedgerow_relay_link_stalled_streams_max", "");
        let gone = ended.load(Ordering::Relaxed);
        gone > 0 && stuck > 0.0 && gone as f64 + stuck == f64::from(count) && most() < QUEUE * 0.75
    })
    .await;
    assert!((QUEUE * 0.75..=QUEUE + 65_536.0).contains(&highest), "{highest}");
    // Nobody is kept out by those who are stuck.
    client().await;
}

const QUEUE: f64 = limits::CONNECTION_QUEUE as f64;

#[tokio::test]
async fn p01_datagrams_that_nobody_takes_are_bounded_for_each_link() {
    let _alone = ALONE.lock().await;
    let world = World::new().await;
    let _core = world.core().await;
    let device = world.device(6).await;
    let before = metric("hedgerow_dropped_total", "datagram_queue_full");
    // The relay takes what comes on links; a device whose tunnel has stopped does not.
    let live = world.relay.relay().registry.select(None, |f| f.role == Role::Device).remove(0);
    for _ in 0..40 {
        // Fewer at once than wait at the sender.
        for _ in 0..100 {
            live.handle.send_datagram(Bytes::from_static(&[0x80; 1000]));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    eventually("the oldest are dropped", || metric("hedgerow_dropped_total", "datagram_queue_full") - before >= 1000.0)
        .await;
    assert!(!live.handle.is_closed());
    assert!(!device.mux.is_closed());
}
