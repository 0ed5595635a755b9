//! Who is connected, how, and how much they move: the relay's list of sessions, and cutting what stands in it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use hedgerow_tests::process::wait_until;
use hedgerow_tests::world::{Options, World};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);
const BYTES: usize = 3 << 20;

/// Sends so many bytes to each visitor and keeps the connection.
fn generous_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut visitors = Vec::new();
        for mut tcp in listener.incoming().flatten() {
            tcp.write_all(&vec![7; BYTES]).unwrap();
            visitors.push(tcp);
        }
    });
    port
}

fn sessions(world: &World, which: impl Fn(&Value) -> bool) -> Vec<Value> {
    let all = world.hedgerow(&["relay", "sessions"]);
    all.as_array().unwrap().iter().filter(|s| which(s)).cloned().collect()
}

fn list_is_true(transport: &str) {
    let port = generous_server();
    let world = World::start(&Options {
        allow: vec![format!("127.0.0.1:{port}")],
        environment: ["NODE", "DEVICE"].map(|r| (format!("HEDGEROW_{r}__TRANSPORT"), transport.to_owned())).to_vec(),
        ..Options::default()
    });
    let mut tcp = world.connect(port);
    tcp.read_exact(&mut vec![0; BYTES]).unwrap();
    let loopback = |v: &Value| v.as_str().unwrap().parse::<SocketAddr>().unwrap().ip().is_loopback();
    // A round trip on loopback takes no time at all and is measured all the same.
    let measured = |v: &Value| v.as_f64().is_some_and(|ms| ms > 0.0 && ms < 5000.0);

    let links = sessions(&world, |s| s["kind"] == "link");
    for role in ["core", "node", "device"] {
        let link = links.iter().find(|s| s["role"] == role).unwrap_or_else(|| panic!("no {role} in {links:#?}"));
        assert!(loopback(&link["address"]) && measured(&link["rtt_ms"]), "{link:#}");
        assert!(link["bytes_in"].as_u64() > Some(100) && link["bytes_out"].as_u64() > Some(100), "{link:#}");
        assert!(
            link["age_s"].as_u64() < Some(300) && link["build"].as_str().is_some_and(|b| !b.is_empty()),
            "{link:#}"
        );
        if role != "core" {
            assert_eq!(link["transport"], transport, "{link:#}");
        }
        assert_eq!(link["user"].as_str(), (role == "device").then_some("anna@hedgerow.demo"), "{link:#}");
    }
    let lanes = sessions(&world, |s| s["kind"] == "lane");
    let down: u64 = lanes.iter().map(|l| l["bytes_down"].as_u64().unwrap()).sum();
    assert!((BYTES as u64..2 * BYTES as u64).contains(&down), "{down} bytes of {BYTES}");
    for lane in &lanes {
        assert!(loopback(&lane["device_address"]) && loopback(&lane["node_address"]), "{lane:#}");
        assert!(measured(&lane["device_rtt_ms"]) && measured(&lane["node_rtt_ms"]), "{lane:#}");
        assert_eq!(lane["user"], "anna@hedgerow.demo");
        let device = links.iter().find(|s| s["role"] == "device").unwrap();
        assert_eq!(lane["device"], device["entity"]);
    }
    // The same for people: a table a kind.
    let table = world.try_hedgerow(&["relay", "sessions"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    for word in ["LINK", "LANE", "RTT MS", "anna@hedgerow.demo", "nothing passed through by name", "no CONNECT tunnels"]
    {
        assert!(table.contains(word), "no {word} in\n{table}");
    }
}

#[test]
fn p01_the_list_of_sessions_shows_users_addresses_round_trips_and_bytes_over_tls() {
    list_is_true("tls");
}

#[test]
fn p01_the_list_of_sessions_shows_users_addresses_round_trips_and_bytes_over_quic() {
    list_is_true("quic");
}

#[test]
fn p02_tunnels_by_connect_are_listed_and_can_be_cut() {
    let world = World::start(&Options::default());
    let mut tcp = TcpStream::connect(world.text("relay.http")).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp.write_all(b"CONNECT server01:18084 HTTP/1.1\r\nTenant-Id: S12345678\r\nOrigin-Server-Id: bws\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tcp.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    let tunnels = || sessions(&world, |s| s["kind"] == "connect");
    wait_until("it is listed", PATIENCE, || !tunnels().is_empty());
    let tunnel = &tunnels()[0];
    assert_eq!(
        (&tunnel["tenant"], &tunnel["origin"], &tunnel["name"]),
        (&"S12345678".into(), &"bws".into(), &"server01:18084".into())
    );
    assert_eq!(tunnel["address"], tcp.local_addr().unwrap().to_string());
    assert!(tunnel["rtt_ms"].as_f64() > Some(0.0), "{tunnel:#}");
    // Something that is no TLS: the core reads it and closes, or it is cut before that; bytes are counted.
    let _ = world.hedgerow(&["relay", "sessions", "cut", tunnel["id"].as_str().unwrap()]);
    wait_until("it is gone", PATIENCE, || tunnels().is_empty());
    assert!(matches!(tcp.read(&mut [0; 64]), Ok(0) | Err(_)), "bytes after the cut");
}
