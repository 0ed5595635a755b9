//! Bandwidth: who is greedy is slowed down, and nobody else.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use common::{LONG, TestCa, World};
use hedgerow_relay::fair::{Bandwidth, Flow};
use hedgerow_relay::lane;
use hedgerow_runtime::clock;
use hedgerow_runtime::link::Link;
use hedgerow_shared::wire::lane as wire;
use hedgerow_shared::wire::message::{Destination, LinkOpen};
use hedgerow_shared::{Origin, Role, TenantId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const MIB: u64 = 1024 * 1024;
const LIMIT: Flow = Flow { bytes_per_second: 2 * MIB, burst_bytes: MIB / 4 };

/// Bytes that came out at the far end, by who they are charged to.
type Counted = Arc<AtomicU64>;

/// A joined lane of a device at a node, as if their links had asked for it: its two sockets.
async fn lane(world: &World, tenant: &TenantId, device: u8, node: u8) -> (TcpStream, TcpStream) {
    let (device, node) = (world.end(tenant, device), world.end(tenant, node));
    let facts = lane::Facts { tenant: tenant.clone(), origin: Origin::Proxy, device, node };
    let (for_device, for_node) = world.relay.relay().lanes.offer(facts, Instant::now()).unwrap();
    let (mut device, mut node) = (world.tcp().await, world.tcp().await);
    device.write_all(&wire::preamble(&for_device)).await.unwrap();
    node.write_all(&wire::preamble(&for_node)).await.unwrap();
    node.write_all(b"?").await.unwrap();
    timeout(LONG, device.read_exact(&mut [0])).await.unwrap().unwrap();
    (device, node)
}

/// Sends without end, and counts what arrives.
fn flood(world: &World, (from, to): (TcpStream, TcpStream), arrived: &Counted) {
    let (mut from, mut to, arrived) = (from, to, arrived.clone());
    world.scope.spawn(async move { while from.write_all(&[7; 65_536]).await.is_ok() {} });
    world.scope.spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok(n @ 1..) = to.read(&mut buffer).await {
            arrived.fetch_add(n as u64, Ordering::Relaxed);
        }
    });
}

async fn until(arrived: &Counted, bytes: u64) {
    let all = async {
        while arrived.load(Ordering::Relaxed) < bytes {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    timeout(3 * LONG, all).await.unwrap();
}

/// When one flow of the modest has brought 4 MiB, the many flows of the greedy have brought no more than that, their
/// burst, and what stands in sockets.
async fn same_for_both(greedy: &Counted, modest: &Counted) {
    until(modest, 4 * MIB).await;
    let (greedy, modest) = (greedy.load(Ordering::Relaxed), modest.load(Ordering::Relaxed));
    assert!(greedy < modest * 3 / 2 + MIB / 2, "greedy {greedy}, modest {modest}");
    assert!(greedy > modest / 3, "greedy {greedy}, modest {modest}");
}

/// A tenant with all that it needs for its lanes to stay.
fn known(world: &World, tenant: &TenantId) {
    let (store, ca) = (&world.relay.relay().store, TestCa::new(tenant.as_str()));
    store.add(tenant.clone()).unwrap();
    store.register_ca(tenant, ca.der()).unwrap();
    let config = minicbor::to_vec(ca.relay_config(1, &[])).unwrap();
    store.put_config(tenant, minicbor::decode(&config).unwrap(), clock::now()).unwrap();
}

async fn tenants_side_by_side(splice: bool) {
    let world = World::with(|c| {
        c.bandwidth = Bandwidth { tenant: LIMIT, ..Bandwidth::default() };
        c.lanes.splice = splice;
    })
    .await;
    let other: TenantId = "S87654321".parse().unwrap();
    known(&world, &other);
    let _core = world.core().await;
    let (greedy, modest) = (Counted::default(), Counted::default());
    for device in 10..18 {
        let (device, node) = lane(&world, &world.tenant, device, 5).await;
        flood(&world, (device, node), &greedy);
    }
    let (device, node) = lane(&world, &other, 30, 31).await;
    flood(&world, (device, node), &modest);
    same_for_both(&greedy, &modest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_eight_lanes_of_one_tenant_get_no_more_than_one_of_another_by_splice() {
    tenants_side_by_side(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_eight_lanes_of_one_tenant_get_no_more_than_one_of_another_by_copy() {
    tenants_side_by_side(false).await;
}

/// Whoever is named has a limit of its own; the others have the common one, or none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_a_limit_for_one_tenant_slows_that_one_and_nobody_else() {
    let world = World::with(|c| {
        c.bandwidth.tenants.insert("S12345678".parse().unwrap(), LIMIT);
    })
    .await;
    assert_eq!(world.tenant.as_str(), "S12345678");
    let other: TenantId = "S87654321".parse().unwrap();
    known(&world, &other);
    let _core = world.core().await;
    let (slow, free) = (Counted::default(), Counted::default());
    flood(&world, lane(&world, &world.tenant, 10, 5).await, &slow);
    flood(&world, lane(&world, &other, 30, 31).await, &free);
    until(&slow, MIB).await;
    // What the slow one has left of its limit takes seconds; the free one moves more meanwhile than it could in all.
    let before = free.load(Ordering::Relaxed);
    until(&free, before + 64 * MIB).await;
    let moved = slow.load(Ordering::Relaxed);
    assert!(moved < 32 * MIB, "{moved}");

    // An exception also lifts what holds for all.
    let mut config = world.relay.relay().config.clone();
    config.bandwidth.tenant = LIMIT;
    config.bandwidth.tenants.insert(world.tenant.clone(), Flow::default());
    world.relay.relay().reload(&config).unwrap();
    let before = slow.load(Ordering::Relaxed);
    until(&slow, before + 64 * MIB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_four_downloads_of_one_device_get_no_more_than_one_of_another_and_limits_are_lifted_at_run_time() {
    let world = World::with(|c| c.bandwidth = Bandwidth { device: LIMIT, ..Bandwidth::default() }).await;
    let _core = world.core().await;
    let (greedy, modest) = (Counted::default(), Counted::default());
    for _ in 0..4 {
        let (device, node) = lane(&world, &world.tenant, 6, 5).await;
        flood(&world, (node, device), &greedy);
    }
    let (device, node) = lane(&world, &world.tenant, 7, 5).await;
    flood(&world, (node, device), &modest);
    same_for_both(&greedy, &modest).await;

    // The other direction of the same lanes, and other devices, are not held up.
    let (mut device, mut node) = lane(&world, &world.tenant, 6, 5).await;
    device.write_all(b"small request").await.unwrap();
    timeout(LONG, node.read_exact(&mut [0; 13])).await.unwrap().unwrap();

    let mut config = world.relay.relay().config.clone();
    config.bandwidth = Bandwidth::default();
    config.drain.seconds += 1;
    assert_eq!(world.relay.relay().reload(&config).unwrap(), ["drain"]);
    until(&modest, 64 * MIB).await;
    config.bandwidth.device.bytes_per_second = 3;
    assert!(world.relay.relay().reload(&config).is_err());
}

/// A stream of a device to the node over their links.
async fn stream(
    world: &World,
    device: &Link,
    node: &Link,
) -> (hedgerow_runtime::link::Stream, hedgerow_runtime::link::Stream) {
    let to =
        Destination { tenant: world.tenant.clone(), origin: Origin::Proxy, group: None, instance: None, node: None };
    let header = LinkOpen::Through { to, vouched: None, trace: None };
    let open = device.mux.open(&header);
    let serve = async { node.mux.accept().await.unwrap().accept() };
    let (opened, served) = timeout(LONG, async { tokio::join!(open, serve) }).await.unwrap();
    (opened.unwrap(), served)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_eight_streams_of_one_device_get_no_more_than_one_of_another() {
    let world = World::with(|c| c.bandwidth = Bandwidth { device: LIMIT, ..Bandwidth::default() }).await;
    let _core = world.core().await;
    let (node, first, second) = (world.node(5).await, world.device(6).await, world.device(7).await);
    let (greedy, modest) = (Counted::default(), Counted::default());
    for (device, arrived, streams) in [(&first, &greedy, 8), (&second, &modest, 1)] {
        for _ in 0..streams {
            let (mut at_device, mut at_node) = stream(&world, device, &node).await;
            let arrived = arrived.clone();
            world.scope.spawn(async move {
                let piece = Bytes::from(vec![7; 16_384]);
                while at_node.write_chunk(piece.clone()).await.is_ok() {}
            });
            world.scope.spawn(async move {
                while let Ok(Some(chunk)) = at_device.read_chunk().await {
                    arrived.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                }
            });
        }
    }
    same_for_both(&greedy, &modest).await;
}

/// Whoever reads nothing holds up its own stream. Per-stream windows are why: with one for the whole link the first
/// stalled stream would take it all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_a_device_that_does_not_read_holds_up_neither_its_own_other_streams_nor_other_devices() {
    let world = World::new().await;
    let _core = world.core().await;
    let (node, slow, quick) = (world.node(5).await, world.device(6).await, world.device(7).await);
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let (at_device, mut at_node) = stream(&world, &slow, &node).await;
        stalled.push(at_device);
        let counted = Counted::default();
        let sent = counted.clone();
        world.scope.spawn(async move {
            let piece = Bytes::from(vec![7; 16_384]);
            while at_node.write_chunk(piece.clone()).await.is_ok() {
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Until nothing moves any more.
        let mut before = u64::MAX;
        while before != counted.load(Ordering::Relaxed) {
            before = counted.load(Ordering::Relaxed);
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert!(before > 0);
    }
    for device in [&slow, &quick] {
        serves(&world, device, &node).await;
    }
    drop(stalled);
}

/// A device gets 8 MiB of a node.
async fn serves(world: &World, device: &Link, node: &Link) {
    let (mut at_device, mut at_node) = stream(world, device, node).await;
    let send = async {
        for _ in 0..512 {
            at_node.write_chunk(Bytes::from(vec![1; 16_384])).await.unwrap();
        }
    };
    let receive = async {
        let mut got = 0;
        while got < 512 * 16_384 {
            got += at_device.read_chunk().await.unwrap().unwrap().len();
        }
    };
    let served = timeout(LONG, async { tokio::join!(send, receive) }).await;
    let links = world.relay.relay().registry.select(None, |_| true);
    let stand = links.iter().map(|l| (l.facts.role, l.handle.stats(), l.stalls.unread.len(), l.stalls.unsent.len()));
    assert!(served.is_ok(), "{:#?}", stand.collect::<Vec<_>>());
}

/// As many streams stand still as would fill the whole window of the node's link: those that stand still longest make
/// room, and another device is served.
async fn crowded(world: &World, node: &Link, streams: usize) {
    let (slow, quick) = (world.device(6).await, world.device(7).await);
    let mut stalled = Vec::new();
    for _ in 0..streams {
        let (at_device, mut at_node) = stream(world, &slow, node).await;
        stalled.push(at_device);
        world.scope.spawn(async move {
            let piece = Bytes::from(vec![7; 16_384]);
            while at_node.write_chunk(piece.clone()).await.is_ok() {}
        });
    }
    serves(world, &quick, node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_so_many_stalled_streams_of_one_device_that_they_fill_the_nodes_link_make_room_for_another() {
    let world = World::new().await;
    let _core = world.core().await;
    crowded(&world, &world.node(5).await, 160).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_so_many_stalled_streams_that_they_fill_a_nodes_link_over_quic_make_room_for_another_device() {
    let world = World::new().await;
    let _core = world.core().await;
    let node = world.dial_quic(&world.credentials(Role::Node, 5), 5).await.unwrap();
    crowded(&world, &node, 80).await;
}
