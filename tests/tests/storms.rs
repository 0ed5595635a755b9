//! Storms against a relay process: connections that are torn down by the thousand, and memory that runs out.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use hedgerow_tests::curl::{attempt, curl};
use hedgerow_tests::process::wait_until;
use hedgerow_tests::world::{Options, World};
use socket2::{Domain, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(60);

/// The beginning of a ClientHello of 15,000 bytes.
const HELLO: &[u8] = &[22, 3, 1, 0x3a, 0x98, 1, 0, 0x3a, 0x94, 3, 3];

/// Sends one byte every 20 ms to each visitor, for ever.
fn ticking_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut tcp in listener.incoming().flatten() {
            std::thread::spawn(move || {
                while tcp.write_all(b".").is_ok() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
    });
    port
}

fn site_answers(world: &World) -> bool {
    attempt(curl().args(["--max-time", "10", "--proxy", &world.socks(), &world.text("intranet.url")])).status.success()
}

/// A connection from one of eight addresses; `None` when the relay's queue is full.
fn come(n: usize, to: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let from = SocketAddr::from(([127, 12, 0, u8::try_from(1 + n % 8).unwrap()], 0));
    socket.bind(&from.into()).unwrap();
    socket.connect_timeout(&to.into(), Duration::from_secs(5)).ok()?;
    Some(socket.into())
}

/// Ends a connection with RST.
fn tear(tcp: TcpStream) {
    socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
    drop(tcp);
}

fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// A figure of /proc/PID/status, in bytes.
fn memory(pid: u32, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn p01_thousands_of_connections_torn_down_leave_nothing_behind_and_disturb_nobody() {
    let port = ticking_server();
    let world = World::start(&Options { allow: vec![format!("127.0.0.1:{port}")], ..Options::default() });
    let mut open = world.connect(port);
    let relay = world.pid("relay");
    let doors = ["relay.device", "relay.link", "relay.http"].map(|d| world.text(d).parse::<SocketAddr>().unwrap());
    let (files, held) = (open_files(relay), memory(relay, "VmRSS"));
    let accepted = world.metric("relay.admin", "hedgerow_relay_accepts_total", "");
    for n in 0..9000 {
        let Some(mut tcp) = come(n, doors[n % 3]) else { continue };
        // As soon as it stands, with a word half said, or with a request whose answer is on its way.
        let words = match n % 5 {
            0 | 1 => b"",
            2 | 3 => HELLO,
            _ => &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        };
        let _ = tcp.write_all(words);
        tear(tcp);
        if n % 1000 == 0 {
            open.read_exact(&mut [0; 3]).expect("what was open goes on");
            assert!(site_answers(&world), "the device was kept out");
        }
    }
    // The same from the device's side: connections through the whole of it.
    for _ in 0..200 {
        let mut tcp = world.connect(port);
        tcp.read_exact(&mut [0; 1]).unwrap();
        tear(tcp);
    }
    let seen = world.metric("relay.admin", "hedgerow_relay_accepts_total", "") - accepted;
    assert!(seen > 5000.0, "{seen} reached the relay");
    wait_until("nobody is left at the doors", PATIENCE, || {
        world.metric("relay.admin", "hedgerow_relay_handshakes", "") == 0.0
    });
    // Lanes of sessions that stand, their pipes, and a curl: a few.
    wait_until("all files are closed", PATIENCE, || open_files(relay) < files + 40);
    let grown = memory(relay, "VmRSS").saturating_sub(held);
    assert!(grown < 64 << 20, "{grown} bytes more");
    open.read_exact(&mut [0; 3]).expect("what was open goes on");
    assert!(site_answers(&world));
    assert_eq!(world.pid("relay"), relay);
}

#[test]
fn p01_a_relay_that_runs_out_of_memory_ends_at_once_and_its_links_come_back_without_help() {
    let port = ticking_server();
    let world = World::start(&Options { allow: vec![format!("127.0.0.1:{port}")], ..Options::default() });
    let mut open = world.connect(port);
    open.read_exact(&mut [0; 3]).unwrap();
    let relay = world.pid("relay");
    let most = memory(relay, "VmData") + (4 << 20);
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the structure lives on this stack frame; a null pointer means "do not tell".
    let set = unsafe {
        libc::prlimit(i32::try_from(relay).unwrap(), libc::RLIMIT_DATA, &raw const limit, std::ptr::null_mut())
    };
    assert_eq!(set, 0);
    let to: SocketAddr = world.text("relay.device").parse().unwrap();
    let mut crowd = Vec::new();
    let words = [HELLO, &[0; 14_000]].concat();
    for n in 0..4000 {
        if world.pid("relay") != relay {
            break;
        }
        let Some(mut tcp) = come(n, to) else { continue };
        let _ = tcp.write_all(&words);
        crowd.push(tcp);
    }
    wait_until("it ended and was started again", PATIENCE, || world.pid("relay") != relay);
    assert!(world.log("relay").contains("memory allocation"), "it ended for another reason");
    drop(crowd);
    wait_until("the site answers again", PATIENCE, || site_answers(&world));
    open.read_exact(&mut [0; 3]).expect("what was open goes on");
}
