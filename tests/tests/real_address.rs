//! The real client address, with haproxy before the relay and nginx as the server inside.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use hedgerow_tests::curl::{attempt, curl, text};
use hedgerow_tests::office::{Office, Ways};
use hedgerow_tests::process::{Process, wait_until};

/// From where haproxy reaches the relay, which trusts nobody else.
const BALANCER: &str = "127.63.0.9";

/// haproxy at the office's gate: version 2 of the header on 443, version 1 on 3101.
fn balancer(office: &Office) -> Process {
    let (gate, relay) = (office.gate(), &office.address);
    let config = format!(
        "global\n  maxconn 500\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 600s\n  timeout server 600s\n\
         listen two\n  bind {gate}:443\n  server relay {relay}:443 send-proxy-v2 source {BALANCER}\n\
         listen one\n  bind {gate}:3101\n  server relay {relay}:3101 send-proxy source {BALANCER}\n"
    );
    std::fs::write(office.path("haproxy.cfg"), config).unwrap();
    let log = office.path("haproxy.log");
    let process =
        Process::start(Command::new("haproxy").args(["-db", "-f", &office.path("haproxy.cfg")]), log.as_ref());
    let ready = || TcpStream::connect((gate.as_str(), 3101)).is_ok();
    wait_until("haproxy listens", Duration::from_secs(10), ready);
    process
}

#[test]
fn p02_behind_haproxy_every_client_is_seen_as_itself_and_a_server_inside_is_told_whose_connection_it_gets() {
    let mut office = Office::open_behind(&[], &[BALANCER]);
    let _haproxy = balancer(&office);
    let (gate, told) = (office.gate(), office.site().told_port);
    let mut ways = Ways::all(&[format!("{gate}:443")], "");
    ways.node_relay = vec![format!("{gate}:3101")];
    ways.allow = vec![told];
    ways.node = format!("[proxy_protocol]\n\"127.0.0.1:{told}\" = 2\n");
    office.move_in(ways);
    assert_eq!(office.load_page(), "lane");

    // Lists: nobody is the balancer, which has a different address.
    let seen = office.at_relay();
    let addresses: Vec<&str> = seen
        .iter()
        .flat_map(|s| ["address", "device_address", "node_address"].map(|k| s[k].as_str()))
        .flatten()
        .collect();
    assert!(addresses.len() >= 5, "core, node, device, and both ends of a lane: {seen:?}");
    assert!(addresses.iter().all(|a| a.starts_with("127.0.0.1:")), "{seen:?}");
    for kind in ["v1", "v2"] {
        assert!(office.metric("relay", "hedgerow_relay_proxy_headers_total", kind) >= 1.0, "{kind}");
    }

    // The server inside hears of the device, as the relay sees it, and not of the node.
    let device = seen.iter().find(|s| s["role"] == "device").unwrap()["address"].as_str().unwrap();
    let url = format!("http://127.0.0.1:{told}/");
    let heard = text(curl().args(["--proxy", &office.socks(), &url]));
    assert_eq!(heard, device);
    assert_eq!(office.get("node", "/sessions")[0]["address"], device);
    assert!(office.log("node").contains(device), "{}", office.log("node"));
    // A header of the client's own comes behind the node's, and is no header any more.
    let forged = attempt(curl().args(["--haproxy-protocol", "--proxy", &office.socks(), &url]));
    assert!(!String::from_utf8_lossy(&forged.stdout).contains("127."), "{forged:?}");
}

#[test]
fn p02_curls_own_proxy_header_is_refused_and_counted() {
    let office = Office::open_behind(&[], &[BALANCER]);
    let url = format!("https://{}/", office.address);
    // The relay has no pages, and says so: 404 is its answer.
    let answers = |more: &[&str]| {
        let output = attempt(curl().args(["-k", "-o", "/dev/null", "-w", "%{http_code}", &url]).args(more));
        output.stdout == b"404"
    };
    let refused = || office.metric("relay", "hedgerow_dropped_total", "proxy_header");
    assert!(answers(&[]));
    assert!(!answers(&["--haproxy-protocol"]));
    assert_eq!(refused(), 1.0);
    // The trusted address itself must send one.
    assert!(!answers(&["--interface", BALANCER]));
    assert_eq!(refused(), 2.0);
    assert!(answers(&["--interface", BALANCER, "--haproxy-protocol"]));
    assert!(office.log("relay").contains("is the proxy set to send one?"), "{}", office.log("relay"));
}
