//! Bounds of a relay process: crowds of silent peers, descriptors that run out, limits that change while it runs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hedgerow_tests::curl::{attempt, curl};
use hedgerow_tests::process::{signal, wait_until};
use hedgerow_tests::world::{Options, World};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(60);

/// Sends without end, as fast as it can, to each visitor.
fn flooding_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut tcp in listener.incoming().flatten() {
            std::thread::spawn(move || while tcp.write_all(&[7; 65_536]).is_ok() {});
        }
    });
    port
}

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

/// Whether the relay answers a client that it has never seen, in full: TCP, TLS, HTTP.
fn answers_strangers(world: &World) -> bool {
    let url = format!("https://{}/", world.text("relay.device"));
    let output = attempt(curl().args(["--insecure", "--no-fail", "--max-time", "10", &url]));
    String::from_utf8_lossy(&output.stdout).contains("Hedgerow relay")
}

fn site_answers(world: &World) -> bool {
    attempt(curl().args(["--max-time", "10", "--proxy", &world.socks(), &world.text("intranet.url")])).status.success()
}

/// A peer that says nothing, or one byte a second, and comes again when it is thrown out.
struct Pest {
    from: SocketAddr,
    tcp: Option<TcpStream>,
    sent: usize,
    talks: bool,
}

/// The beginning of a ClientHello of 4 KiB that never comes to its end.
const HELLO: &[u8] = &[22, 3, 1, 16, 0, 1, 0, 15, 252, 3, 3];

impl Pest {
    fn new(n: usize) -> Self {
        let from = SocketAddr::from(([127, 8, 0, u8::try_from(1 + n % 8).unwrap()], 0));
        Self { from, tcp: None, sent: 0, talks: n % 2 == 1 }
    }

    fn come(&mut self, to: SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&self.from.into()).unwrap();
        self.sent = 0;
        self.tcp = socket.connect_timeout(&to.into(), Duration::from_secs(5)).ok().map(|()| {
            socket.set_nonblocking(true).unwrap();
            socket.into()
        });
    }

    /// Once a second.
    fn annoy(&mut self, to: SocketAddr) {
        let gone = self.tcp.as_mut().is_none_or(|tcp| match tcp.read(&mut [0; 64]) {
            Ok(_) => true,
            Err(e) => e.kind() != std::io::ErrorKind::WouldBlock,
        });
        if gone {
            return self.come(to);
        }
        if let Some(tcp) = self.tcp.as_mut().filter(|_| self.talks) {
            let byte = HELLO.get(self.sent).copied().unwrap_or(0);
            self.sent += 1;
            // A refusal is seen at the next reading.
            let _ = tcp.write(&[byte]);
        }
    }
}

/// The relay is a process of its own, so that neither end's 10,000 descriptors are in the other's way.
#[test]
fn p02_ten_thousand_silent_or_slow_peers_leave_room_for_good_ones() {
    const PESTS: usize = 10_000;
    let port = ticking_server();
    let world = World::start(&Options { allow: vec![format!("127.0.0.1:{port}")], ..Options::default() });
    let mut before = world.connect(port);
    let memory = resident(world.pid("relay"));
    let to: SocketAddr = world.text("relay.device").parse().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let pests = std::thread::spawn(move || {
        let mut pests: Vec<Pest> = (0..PESTS).map(Pest::new).collect();
        while !stopped.load(Ordering::Relaxed) {
            let round = Instant::now();
            pests.iter_mut().for_each(|p| p.annoy(to));
            std::thread::sleep(Duration::from_secs(1).saturating_sub(round.elapsed()));
        }
    });
    wait_until("nine of ten thousand places are taken", PATIENCE, || {
        world.metric("relay.admin", "hedgerow_relay_handshakes", "") > 9000.0
    });
    for _ in 0..10 {
        assert!(answers_strangers(&world), "a stranger was kept out");
        assert!(site_answers(&world), "the device was kept out");
    }
    let taken = world.metric("relay.admin", "hedgerow_relay_handshakes", "");
    let each = resident(world.pid("relay")).saturating_sub(memory) as f64 / taken.max(1.0);
    assert!(taken > 5000.0, "the crowd has gone: {taken}");
    assert!(each < 16_384.0, "{each} bytes of memory each");
    assert!(world.metric("relay.admin", "hedgerow_dropped_total", "handshake_timeout") > 0.0);
    before.read_exact(&mut [0; 10]).expect("what was open goes on");
    stop.store(true, Ordering::Relaxed);
    pests.join().unwrap();
}

/// Bytes of memory that a process holds.
fn resident(pid: u32) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Processor time that a process has used, in hundredths of a second.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after = stat.rsplit(')').next().unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    after[11].parse::<u64>().unwrap() + after[12].parse::<u64>().unwrap()
}

/// Sets how many descriptors a running process may have; returns how many it had before.
fn descriptors(pid: u32, most: u64) -> u64 {
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let pid = i32::try_from(pid).unwrap();
    // SAFETY: both structures live on this stack frame; a null pointer means "leave it" or "do not tell".
    unsafe {
        assert_eq!(libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut old), 0);
        let new = libc::rlimit { rlim_cur: most, rlim_max: old.rlim_max };
        assert_eq!(libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const new, std::ptr::null_mut()), 0);
    }
    old.rlim_cur
}

#[test]
fn p01_out_of_descriptors_the_relay_waits_says_so_once_and_goes_on_when_they_are_back() {
    let port = ticking_server();
    let world = World::start(&Options { allow: vec![format!("127.0.0.1:{port}")], ..Options::default() });
    let mut open = world.connect(port);
    let relay = world.pid("relay");
    let in_use = std::fs::read_dir(format!("/proc/{relay}/fd")).unwrap().count();
    let granted = descriptors(relay, u64::try_from(in_use).unwrap());
    let to: SocketAddr = world.text("relay.device").parse().unwrap();
    // Connections that the system has taken and the relay cannot.
    let waiting: Vec<_> = (0..50).map(|_| TcpStream::connect(to).unwrap()).collect();
    wait_until("it says what to do", PATIENCE, || world.log("relay").contains("LimitNOFILE"));
    let (before, since) = (ticks(relay), Instant::now());
    while since.elapsed() < Duration::from_secs(3) {
        open.read_exact(&mut [0; 10]).expect("what was open goes on");
    }
    let used = ticks(relay) - before;
    assert!(used < 60, "{used} hundredths of a second in three seconds: it spins");
    descriptors(relay, granted);
    wait_until("strangers are answered again", PATIENCE, || answers_strangers(&world));
    let log = world.log("relay");
    assert_eq!(log.matches("no connection can be taken").count(), 1, "{log}");
    assert!(log.contains("taken again"), "{log}");
    let errors = world.metric("relay.admin", "hedgerow_relay_accept_errors_total", "");
    assert!((1.0..200.0).contains(&errors), "{errors}");
    assert!(site_answers(&world));
    drop(waiting);
}

#[test]
fn p01_bandwidth_is_read_again_on_hup_and_no_session_is_touched() {
    let port = flooding_server();
    let world = World::start(&Options { allow: vec![format!("127.0.0.1:{port}")], ..Options::default() });
    let mut tcp = world.connect(port);
    let mut read = |bytes: usize| {
        let mut buffer = vec![0; bytes];
        tcp.read_exact(&mut buffer).expect("the download goes on");
        assert!(buffer.iter().all(|b| *b == 7));
    };
    read(1 << 20);
    let ids = || {
        let all = world.hedgerow(&["relay", "sessions"]);
        let mut ids: Vec<String> = all.as_array().unwrap().iter().map(|s| s["id"].to_string()).collect();
        ids.sort();
        ids
    };
    let pauses = || world.metric("relay.admin", "hedgerow_relay_pauses_total", "device");
    let reloads = |result: &str| world.metric("relay.admin", "hedgerow_config_reloads_total", result);
    let file = world.dir().join("relay.toml");
    let plain = std::fs::read_to_string(&file).unwrap();
    let reload = |more: &str, result: &str| {
        let before = reloads(result);
        std::fs::write(&file, format!("{plain}\n{more}\n")).unwrap();
        signal(world.pid("relay"), libc::SIGHUP);
        wait_until("the file is read again", PATIENCE, || reloads(result) > before);
    };
    let before = ids();
    assert!(before.len() >= 4, "{before:?}");
    assert_eq!(pauses(), 0.0);

    // What is on its way already is not paced; there is less of it than this.
    let mut until_paused = |before: f64| {
        (0..64).any(|_| {
            read(1 << 20);
            pauses() > before
        })
    };
    reload("[bandwidth.device]\nbytes_per_second = 4000000\nburst_bytes = 65536", "ok");
    assert!(until_paused(0.0));
    reload("[bandwidth.device]\nbytes_per_second = \"fast\"", "refused");
    assert!(until_paused(pauses()), "a file that is wrong leaves the old limit in force");
    reload("", "ok");
    // What is on its way was paced by the old limit.
    read(8 << 20);
    let free = pauses();
    read(64 << 20);
    assert_eq!(pauses(), free);
    assert_eq!(ids(), before, "sessions came or went");
}

/// Reads until the connection ends; says how long that took and whether it was an error (not a proper end).
fn until_it_ends(tcp: &mut TcpStream) -> (Duration, bool) {
    let since = Instant::now();
    loop {
        match tcp.read(&mut [0; 1024]) {
            Ok(0) => return (since.elapsed(), false),
            Ok(_) => assert!(since.elapsed() < Duration::from_secs(30), "it goes on"),
            Err(_) => return (since.elapsed(), true),
        }
    }
}

/// Lanes at the relay now.
fn lanes(world: &World) -> Vec<Value> {
    let all = world.hedgerow(&["relay", "sessions"]);
    all.as_array().unwrap().iter().filter(|s| s["kind"] == "lane").cloned().collect()
}

const AT_ONCE: Duration = Duration::from_secs(5);

#[test]
fn p01_lanes_of_a_blocked_tenant_end_within_5_s() {
    let port = ticking_server();
    let world = World::start(&Options { allow: vec![format!("127.0.0.1:{port}")], ..Options::default() });
    let mut tcp = world.connect(port);
    tcp.read_exact(&mut [0; 3]).unwrap();
    assert!(!lanes(&world).is_empty());
    let _ = world.hedgerow(&["relay", "tenant", "block", "S12345678"]);
    wait_until("no lane is left", AT_ONCE, || lanes(&world).is_empty());
    // At the device the session may wait to be resumed, but nobody lets it.
    let before = Instant::now();
    let mut buffer = [0; 1024];
    tcp.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    while tcp.read(&mut buffer).is_ok_and(|n| n > 0) {
        assert!(before.elapsed() < AT_ONCE, "bytes of a blocked tenant");
    }
    assert!(!site_answers(&world));
    let _ = world.hedgerow(&["relay", "tenant", "unblock", "S12345678"]);
    wait_until("it works again", PATIENCE, || site_answers(&world));
}

#[test]
fn p01_lanes_of_a_dead_link_end_within_5_s() {
    let port = ticking_server();
    let world = World::start(&Options { allow: vec![format!("127.0.0.1:{port}")], ..Options::default() });
    let mut tcp = world.connect(port);
    tcp.read_exact(&mut [0; 3]).unwrap();
    assert!(!lanes(&world).is_empty());
    signal(world.pid("node"), libc::SIGKILL);
    wait_until("no lane is left", AT_ONCE, || lanes(&world).is_empty());
    tcp.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let (after, error) = until_it_ends(&mut tcp);
    assert!(error, "a cut connection looked like its proper end");
    // The relay says "gone" when the process is not back within 3 s.
    assert!(after < Duration::from_secs(6), "{after:?}");
}
