//! What breaks, and what the device sees then.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use hedgerow_tests::curl::{attempt, curl, text};
use hedgerow_tests::process::{Process, free_port, run, signal, wait_until};
use hedgerow_tests::world::{Options, World};

/// Sends one byte every 20 ms to each visitor, for ever.
fn ticking_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut tcp = tcp;
                while tcp.write_all(b".").is_ok() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
    });
    port
}

/// Reads until the connection ends; says how long that took and whether it was an error (not a proper end).
fn until_it_ends(tcp: &mut TcpStream) -> (Duration, bool) {
    let since = Instant::now();
    let mut buffer = [0; 1024];
    loop {
        match tcp.read(&mut buffer) {
            Ok(0) => return (since.elapsed(), false),
            Ok(_) => assert!(since.elapsed() < Duration::from_secs(30), "it goes on"),
            Err(_) => return (since.elapsed(), true),
        }
    }
}

fn site_answers(world: &World) -> bool {
    attempt(curl().args(["--max-time", "5", "--proxy", &world.socks(), &world.text("intranet.url")])).status.success()
}

#[test]
fn p01_a_killed_node_is_an_error_within_seconds_and_the_next_request_uses_the_other_node() {
    let port = ticking_server();
    for without_lanes in [false, true] {
        let world =
            World::start(&Options { allow: vec![format!("127.0.0.1:{port}")], without_lanes, ..Options::default() });
        let mut tcp = world.connect(port);
        tcp.read_exact(&mut [0; 3]).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let first = world.pid("node");
        let second = second_node(&world);
        signal(first, libc::SIGKILL);
        let (after, error) = until_it_ends(&mut tcp);
        assert!(error, "a cut connection looked like its proper end");
        // The relay says "gone" when the process is not back within 3 s. Over a QUIC link nothing but silence tells that.
        let limit = if without_lanes { 14 } else { 6 };
        assert!(after < Duration::from_secs(limit), "{after:?}");
        let since = Instant::now();
        let page = text(curl().args(["--proxy", &world.socks(), &world.text("intranet.url")]));
        assert!(page.contains("behind the hedge"));
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        drop(second);
    }
}

/// Enrols and starts one more node by the commands an administrator uses.
fn second_node(world: &World) -> Process {
    let dir = world.dir();
    let site = world.text("intranet.url");
    let name = site.trim_start_matches("http://").split(':').next().unwrap().to_owned();
    let admin = free_port();
    let config = dir.join("node2.toml");
    std::fs::write(
        &config,
        format!(
            "state = {:?}\n[hosts]\n\"{name}\" = [\"127.0.0.1\"]\n[admin]\nlisten = \"127.0.0.1:{admin}\"\n",
            dir.join("node2")
        ),
    )
    .unwrap();
    let (config, token) = (config.display().to_string(), dir.join("node2.token").display().to_string());
    let _ = world.hedgerow(&["token", "create", "--name", "second", "--out", &token]);
    let _ = run(
        &mut world.command(&["node", "enroll", "--config", &config, "--token-file", &token]),
        Duration::from_secs(60),
    );
    let process = Process::start(&mut world.command(&["node", "run", "--config", &config]), &dir.join("log/node2.log"));
    let url = format!("http://127.0.0.1:{admin}/readyz");
    wait_until("the second node is ready", Duration::from_secs(20), || attempt(curl().arg(&url)).status.success());
    process
}

#[test]
fn p01_after_a_relay_restart_links_come_back_without_help_and_open_streams_go_on() {
    let port = ticking_server();
    let world = World::start(&Options { allow: vec![format!("127.0.0.1:{port}")], ..Options::default() });
    let mut tcp = world.connect(port);
    tcp.read_exact(&mut [0; 3]).unwrap();
    let before = world.pid("relay");
    signal(before, libc::SIGKILL);
    // The demo starts it again; nobody helps the links.
    wait_until("the relay runs again", Duration::from_secs(20), || world.pid("relay") != before);
    tcp.read_exact(&mut [0; 1000]).expect("the stream goes on, past whatever was on its way");
    wait_until("the site answers again", Duration::from_secs(40), || site_answers(&world));
    for role in ["core", "node", "device"] {
        world.wait_ready(role, Duration::from_secs(30));
    }
}

#[test]
fn p20_a_revoked_device_is_cut_within_5_s_and_stays_out() {
    let port = ticking_server();
    for without_lanes in [false, true] {
        let world =
            World::start(&Options { allow: vec![format!("127.0.0.1:{port}")], without_lanes, ..Options::default() });
        let mut tcp = world.connect(port);
        tcp.read_exact(&mut [0; 3]).unwrap();
        let devices = world.hedgerow(&["device", "list"]);
        let id = devices[0]["id"].as_str().expect("one device").to_owned();
        let since = Instant::now();
        let _ = world.hedgerow(&["device", "revoke", &id]);
        let (_, error) = until_it_ends(&mut tcp);
        assert!(error && since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        assert!(!site_answers(&world));
        wait_until("the device says why", Duration::from_secs(10), || world.log("device").contains("revoked"));
        // Also after a restart of the relay, which must remember.
        let before = world.pid("relay");
        signal(before, libc::SIGKILL);
        wait_until("the relay runs again", Duration::from_secs(20), || world.pid("relay") != before);
        std::thread::sleep(Duration::from_secs(2));
        assert!(!site_answers(&world));
        wait_until("the relay counts the refusal", Duration::from_secs(30), || {
            world.metric("relay.admin", "hedgerow_relay_refused_total", "revoked") >= 1.0
        });
    }
}

#[test]
fn sigterm_drains_and_ends_each_role() {
    let mut world = World::start(&Options::default());
    assert!(site_answers(&world));
    let demo = world.demo();
    signal(demo.pid(), libc::SIGTERM);
    let since = Instant::now();
    while !demo.has_ended() {
        assert!(since.elapsed() < Duration::from_secs(25), "the demo does not end");
        std::thread::sleep(Duration::from_millis(50));
    }
    for role in ["relay", "core", "node", "device"] {
        let pids = Command::new("pgrep")
            .args(["-f", &format!("hedgerow {role} run --config {}", world.dir().display())])
            .output()
            .unwrap();
        assert!(pids.stdout.is_empty(), "{role} is still there");
        assert!(!world.log(role).contains("panicked"), "{}", world.log(role));
    }
}
