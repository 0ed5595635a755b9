//! A device reaches servers inside through relay and node, with curl and nginx as they are.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use hedgerow_tests::curl::{attempt, curl, text};
use hedgerow_tests::nginx::{Nginx, sha256, write_random};
use hedgerow_tests::process::{hedgerow, run};
use hedgerow_tests::world::{Options, World};

fn with_nginx(options: Options) -> (Nginx, World) {
    let nginx = Nginx::start("a page from inside\n");
    let allow = vec![format!("127.0.0.1:{}", nginx.port), format!("127.0.0.1:{}", nginx.tls_port)];
    let world = World::start(&Options { allow, ..options });
    (nginx, world)
}

#[test]
fn n01_one_command_shows_a_device_reaching_the_intranet() {
    let output = run(Command::new(hedgerow()).args(["demo", "--check"]), Duration::from_secs(120));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("check: ok") && said.contains("runs by lane"), "{said}");
}

#[test]
fn p02_small_pages_come_through_socks5_and_the_http_proxy() {
    let (nginx, world) = with_nginx(Options::default());
    let url = format!("http://127.0.0.1:{}/page", nginx.port);
    for proxy in [world.socks(), world.http_proxy()] {
        assert_eq!(text(curl().args(["--proxy", &proxy, &url])), "a page from inside\n", "{proxy}");
        assert_eq!(text(curl().args(["--proxytunnel", "--proxy", &proxy, &url])), "a page from inside\n", "{proxy}");
    }
    // A name that only the node can resolve.
    let site = world.text("intranet.url");
    assert!(text(curl().args(["--proxy", &world.socks(), &site])).contains("behind the hedge"));
}

#[test]
fn p02_a_gibibyte_arrives_unchanged() {
    let (nginx, world) = with_nginx(Options::default());
    let expected = nginx.put_file("large", 1 << 30);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large");
    let url = format!("http://127.0.0.1:{}/large", nginx.port);
    let _ = text(curl().args(["--proxy", &world.socks(), "--output"]).arg(&file).arg(&url));
    assert_eq!(file.metadata().unwrap().len(), 1 << 30);
    assert_eq!(sha256(&file), expected);
}

#[test]
fn p02_without_lanes_the_same_session_runs_over_the_link() {
    let (nginx, world) = with_nginx(Options { without_lanes: true, ..Options::default() });
    let expected = nginx.put_file("large", 64 << 20);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large");
    let url = format!("http://127.0.0.1:{}/large", nginx.port);
    let _ = text(curl().args(["--proxy", &world.socks(), "--output"]).arg(&file).arg(&url));
    assert_eq!(sha256(&file), expected);
    assert!(world.get("device.admin", "/status").contains("\"path\":\"link\""));
}

#[test]
fn p02_two_hundred_downloads_run_at_once() {
    let (nginx, world) = with_nginx(Options::default());
    let expected = nginx.put_file("one", 1 << 20);
    let folder = tempfile::tempdir().unwrap();
    let mut command = curl();
    command.args(["--parallel", "--parallel-immediate", "--parallel-max", "200", "--proxy", &world.socks()]);
    for n in 0..200 {
        command.arg("--output").arg(folder.path().join(n.to_string()));
        command.arg(format!("http://127.0.0.1:{}/one", nginx.port));
    }
    let _ = text(&mut command);
    for n in 0..200 {
        assert_eq!(sha256(&folder.path().join(n.to_string())), expected, "download {n}");
    }
}

#[test]
fn p17_a_chunked_upload_of_256_mib_arrives_whole() {
    for way in ["socks", "http"] {
        let (nginx, world) = with_nginx(Options::default());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("upload");
        let expected = write_random(&file, 256 << 20);
        let proxy = if way == "socks" { world.socks() } else { world.http_proxy() };
        let url = format!("http://127.0.0.1:{}/upload", nginx.port);
        let mut command = curl();
        command.args([
            "--proxy",
            &proxy,
            "--header",
            "Transfer-Encoding: chunked",
            "--request",
            "POST",
            "--upload-file",
        ]);
        assert_eq!(text(command.arg(&file).arg(&url)), "ok\n", "{way}");
        assert_eq!(nginx.uploaded(), (expected, 256 << 20), "{way}");
    }
}

#[test]
fn p17_http2_runs_end_to_end() {
    let (nginx, world) = with_nginx(Options::default());
    let url = format!("https://127.0.0.1:{}/page", nginx.tls_port);
    for proxy in [world.socks(), world.http_proxy()] {
        let said = text(curl().args([
            "--insecure",
            "--http2",
            "--write-out",
            "HTTP/%{http_version}",
            "--proxy",
            &proxy,
            &url,
        ]));
        assert_eq!(said, "a page from inside\nHTTP/2", "{proxy}");
    }
}

#[test]
fn p17_websocket_runs_end_to_end() {
    let server = r#"
import asyncio, sys, websockets
async def echo(ws, path=None):
    async for message in ws: await ws.send(message)
async def main():
    async with websockets.serve(echo, "127.0.0.1", int(sys.argv[1])): await asyncio.Future()
asyncio.run(main())"#;
    let client = r#"
import sys, websocket
host, port = sys.argv[2].split(":")
ws = websocket.create_connection("ws://127.0.0.1:%s/" % sys.argv[1], timeout=20, http_proxy_host=host, http_proxy_port=int(port), proxy_type="http")
for size in (1, 1000, 70000):
    ws.send("x" * size)
    assert ws.recv() == "x" * size, size
ws.close()
print("ok")"#;
    let port = hedgerow_tests::process::free_port();
    let folder = tempfile::tempdir().unwrap();
    let mut python = Command::new("/usr/bin/python3");
    let log = folder.path().join("server.log");
    let _server = hedgerow_tests::process::Process::start(python.args(["-c", server, &port.to_string()]), &log);
    hedgerow_tests::process::wait_until("the WebSocket server listens", Duration::from_secs(10), || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let world = World::start(&Options { allow: vec![format!("127.0.0.1:{port}")], ..Options::default() });
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", client, &port.to_string(), &world.text("device.http_proxy")]);
    assert_eq!(run(&mut python, Duration::from_secs(60)).stdout, b"ok\n");
}

/// Echoes lines for ever.
fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut from = tcp.try_clone().unwrap();
                let _ = std::io::copy(&mut from, &mut &tcp);
            });
        }
    });
    port
}

fn echo(tcp: &mut TcpStream, word: &[u8]) {
    tcp.write_all(word).unwrap();
    let mut back = vec![0; word.len()];
    tcp.read_exact(&mut back).unwrap();
    assert_eq!(back, word);
}

/// A connection that is silent for `time`, by lane and by link stream.
fn stays_open(short_timers: bool, time: Duration) {
    let port = echo_server();
    for without_lanes in [false, true] {
        let allow = vec![format!("127.0.0.1:{port}")];
        let world = World::start(&Options { allow, short_timers, without_lanes, ..Options::default() });
        let mut tcp = world.connect(port);
        echo(&mut tcp, b"before");
        std::thread::sleep(time);
        echo(&mut tcp, b"after");
    }
}

/// With timers at 1/100 the longest (a session without streams, 60 s) is 0.6 s.
#[test]
fn p02_a_connection_may_be_idle_longer_than_every_timer() {
    stays_open(true, Duration::from_secs(5));
}

#[test]
#[ignore = "long: twice ten minutes of real silence"]
fn p02_a_connection_may_be_idle_for_ten_minutes() {
    stays_open(false, Duration::from_secs(605));
}

#[test]
fn p17_half_close_passes_both_ways() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut tcp, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        tcp.read_to_end(&mut all).unwrap();
        tcp.write_all(format!("{} bytes", all.len()).as_bytes()).unwrap();
    });
    let world = World::start(&Options { allow: vec![format!("127.0.0.1:{port}")], ..Options::default() });
    let mut tcp = world.connect(port);
    tcp.write_all(&[7; 100_000]).unwrap();
    tcp.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "100000 bytes");
}

#[test]
fn p17_what_no_rule_allows_is_refused_with_a_reason() {
    let (nginx, world) = with_nginx(Options::default());
    let closed = hedgerow_tests::process::free_port();
    // Not in the routes of the device: it goes from the device itself, where nothing listens.
    let direct = attempt(curl().args(["--proxy", &world.http_proxy(), &format!("http://127.0.0.1:{closed}/")]));
    assert!(!direct.status.success());
    // In the routes, but not in the rules of the node.
    let said = attempt(Command::new("curl").args([
        "-s",
        "--noproxy",
        "",
        "--proxy",
        &world.http_proxy(),
        "http://denied.hedgerow.demo/",
    ]));
    let body = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(body.contains("no rule") || body.contains("denied"), "{body}");
    assert!(
        world.metric("node.admin", "hedgerow_node_connections_refused_total", "no_rule") >= 1.0,
        "{}",
        world.get("node.admin", "/metrics")
    );
    // IPv4 in disguise does not help, though the address itself is allowed. (curl would write it in full by itself.)
    for disguise in ["2130706433", "0x7f.1", "127.1", "0177.0.0.1"] {
        let mut tcp = TcpStream::connect(world.text("device.socks5")).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut request = vec![5, 1, 0, 5, 1, 0, 3, u8::try_from(disguise.len()).unwrap()];
        request.extend_from_slice(disguise.as_bytes());
        request.extend_from_slice(&nginx.port.to_be_bytes());
        tcp.write_all(&request[..3]).unwrap();
        let mut reply = [0; 4];
        tcp.read_exact(&mut reply[..2]).unwrap();
        tcp.write_all(&request[3..]).unwrap();
        tcp.read_exact(&mut reply).unwrap();
        assert_ne!(reply[1], 0, "{disguise}");
    }
}
