//! A host that vanishes without a word: no FIN, no RST, no answer. It lives in a network namespace whose only cable is
//! pulled. Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{World, entity, eventually};
use hedgerow_relay::lane;
use hedgerow_relay::registry::Facts;
use hedgerow_shared::wire::lane as wire;
use hedgerow_shared::{InstanceId, Origin, Role, SessionId, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A namespace with a cable to this one; gone when dropped.
struct Island {
    name: String,
    /// This end's address.
    address: String,
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip (package iproute2)");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Island {
    fn new() -> Self {
        // SAFETY: geteuid has no preconditions and cannot fail.
        assert_eq!(unsafe { libc::geteuid() }, 0, "this test needs root: a network namespace of its own");
        let [a, b] = hedgerow_runtime::clock::random::<2>();
        let island = Self { name: format!("hgv{a:02x}{b:02x}"), address: format!("10.231.{a}.{}", b & 0xFC | 1) };
        let far = format!("10.231.{a}.{}/30", b & 0xFC | 2);
        let (near_end, far_end) = (island.near(), format!("{}b", island.name));
        ip(&["netns", "add", &island.name]);
        ip(&["link", "add", &near_end, "type", "veth", "peer", "name", &far_end, "netns", &island.name]);
        ip(&["addr", "add", &format!("{}/30", island.address), "dev", &near_end]);
        ip(&["link", "set", &near_end, "up"]);
        ip(&["-n", &island.name, "addr", "add", &far, "dev", &far_end]);
        ip(&["-n", &island.name, "link", "set", &far_end, "up"]);
        island
    }

    fn near(&self) -> String {
        format!("{}a", self.name)
    }

    /// A connection from there that says `words` and then nothing.
    fn connect(&self, port: u16, words: &[u8]) -> Child {
        let script = "import socket, sys, time\ns = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n\
                      s.sendall(bytes.fromhex(sys.argv[3]))\ntime.sleep(60)";
        let words = data_encoding::HEXLOWER.encode(words);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "/usr/bin/python3", "-c", script]);
        command.args([&self.address, &port.to_string(), &words]).stdin(Stdio::null()).spawn().unwrap()
    }

    fn pull_the_cable(&self) {
        ip(&["-n", &self.name, "link", "set", &format!("{}b", self.name), "down"]);
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.near()]).output();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

#[tokio::test]
async fn p01_lanes_of_a_host_that_vanished_end_within_5_s_of_its_link_and_those_of_one_that_is_there_go_on() {
    let island = Island::new();
    let listen = format!("{}:0", island.address).parse().unwrap();
    let world = World::with(|c| c.listen.device = vec!["127.0.0.1:0".parse().unwrap(), listen]).await;
    let _core = world.core().await;
    let relay = world.relay.relay().clone();
    let offer = || {
        let (device, node) = (world.end(&world.tenant, 6), world.end(&world.tenant, 5));
        let facts = lane::Facts { tenant: world.tenant.clone(), origin: Origin::Proxy, device, node };
        relay.lanes.offer(facts, Instant::now()).unwrap()
    };
    // Two lanes of one device: one from the island, one from here.
    let (island_ticket, node_ticket) = offer();
    let mut vanishing = island.connect(world.relay.device[1].port(), &wire::preamble(&island_ticket));
    let mut its_node = world.tcp().await;
    its_node.write_all(&wire::preamble(&node_ticket)).await.unwrap();
    let (device_ticket, node_ticket) = offer();
    let (mut device, mut node) = (world.tcp().await, world.tcp().await);
    device.write_all(&wire::preamble(&device_ticket)).await.unwrap();
    node.write_all(&wire::preamble(&node_ticket)).await.unwrap();
    eventually("both lanes are joined", || relay.lanes.len() == 2).await;

    island.pull_the_cable();
    let facts = Facts {
        id: SessionId::from_random([9; 16]),
        tenant: world.tenant.clone(),
        role: Role::Device,
        entity: Some(entity(6)),
        serial: None,
        not_after: None,
        issuer: None,
        group: None,
        origins: vec![],
        instance: InstanceId::from_random([9; 16]),
        address: "127.0.0.1:1".parse().unwrap(),
        probe: None,
        build: String::new(),
        since: UnixTime(0),
    };
    let since = Instant::now();
    relay.check_lanes(&facts);
    eventually("the vanished one's lane has ended", || relay.lanes.len() == 1).await;
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert_eq!(its_node.read(&mut [0]).await.unwrap_or(0), 0, "its other leg is closed too");
    // Past the time for which the other one is asked.
    tokio::time::sleep(Duration::from_secs(5)).await;
    device.write_all(b"still here").await.unwrap();
    node.read_exact(&mut [0; 10]).await.unwrap();
    let _ = vanishing.kill();
    let _ = vanishing.wait();
}
