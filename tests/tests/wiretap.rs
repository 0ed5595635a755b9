//! N04: nobody on the wire and nobody inside the relay can read work data, or a key that would open it.
//!
//! ```text
//!   device ──tap── relay ──tap── node, core          the relay's memory by gcore, its TLS by its key log
//! ```
//! A marked document passes both ways and is held on its way while the memory is taken. What the relay could see is
//! searched for the markers and for every key of the ends; what the ends see must have them, or the tap missed the
//! traffic. The control run sends the same document without the end-to-end session: the same search must find it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_runtime::clock;
use hedgerow_runtime::dial::{self, RelayTarget};
use hedgerow_runtime::link::Stream;
use hedgerow_runtime::link::{Credentials, Link, Transport, connect, connect_quic};
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls::{InForce, RelayRoots, SESSION_KEY_LOG, SigningKey, read_certificates};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::wire::lane::{LENGTH, preamble};
use hedgerow_shared::wire::message::{Control, Destination, LaneRequest, LinkOpen};
use hedgerow_shared::{InstanceId, Origin, Role};
use hedgerow_tests::curl::{curl, text};
use hedgerow_tests::nginx::Nginx;
use hedgerow_tests::process::{Process, hedgerow, wait_until};
use hedgerow_tests::tap::{Conversation, Gate, KeyLog, Needle, Tap, find, memory, open_tls, streams};
use hedgerow_tests::udp_tap::UdpTap;
use hedgerow_tests::world::{Options, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Of the document, each way.
const LENGTH_OF_DOCUMENT: usize = 16 << 20;
/// Recorded, over all taps, when the gate shuts: the documents are on their way and far from their end.
const HELD_AFTER: usize = 12 << 20;

// ---- the document --------------------------------------------------------------------------------------------------

/// Two marks that nobody has written before: for the way to the device, and for the way to the server.
struct Marks {
    down: String,
    up: String,
}

impl Marks {
    fn new() -> Self {
        let mark = |way: &str| {
            let dice: String = clock::random::<16>().iter().map(|b| format!("{b:02x}")).collect();
            format!("<marked {way} {dice}>")
        };
        Self { down: mark("down"), up: mark("up") }
    }

    fn needles(&self) -> Vec<Needle> {
        let needle = |mark: &String| Needle { name: mark.clone(), bytes: mark.clone().into_bytes() };
        vec![needle(&self.down), needle(&self.up)]
    }

    fn names(&self) -> Vec<String> {
        vec![self.down.clone(), self.up.clone()]
    }
}

fn document(mark: &str) -> Vec<u8> {
    mark.as_bytes().iter().copied().cycle().take(LENGTH_OF_DOCUMENT).collect()
}

/// Sends the one document and takes the other, at the same time, to each visitor.
fn server(marks: &Marks) -> u16 {
    let (send, take): (Arc<[u8]>, Arc<[u8]>) = (document(&marks.down).into(), document(&marks.up).into());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            let (send, take) = (send.clone(), take.clone());
            std::thread::spawn(move || exchange(&tcp, &send, &take));
        }
    });
    port
}

/// Sends and takes; panics when what came is not `take`.
fn exchange(tcp: &TcpStream, send: &[u8], take: &[u8]) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (&mut &*tcp).write_all(send).unwrap();
            tcp.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        (&mut &*tcp).read_to_end(&mut got).unwrap();
        assert!(got == take, "{} bytes arrived, {} were sent", got.len(), take.len());
    });
}

fn through_socks(world: &World, port: u16) -> TcpStream {
    let mut tcp = TcpStream::connect(world.text("device.socks5")).unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    tcp.write_all(&[5, 1, 0]).unwrap();
    let mut reply = [0; 10];
    tcp.read_exact(&mut reply[..2]).unwrap();
    let [high, low] = port.to_be_bytes();
    tcp.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low]).unwrap();
    tcp.read_exact(&mut reply).unwrap();
    assert_eq!(reply[1], 0, "SOCKS reply");
    tcp
}

// ---- the scene -----------------------------------------------------------------------------------------------------

/// The demo's roles, started again with taps between them and key logs. Fields end in this order: devices first.
struct Scene {
    _roles: Vec<Process>,
    relay: Process,
    gate: Gate,
    device_side: Tap,
    link_side: Tap,
    /// The same two places, for datagrams.
    udp: [UdpTap; 2],
    world: World,
}

impl Scene {
    /// Makes the world, then starts relay, core and `others`, each overheard.
    fn set(options: &Options, splice: bool, others: &[&str]) -> Self {
        Self::set_with(options, splice, others, Tap::start)
    }

    fn set_with(options: &Options, splice: bool, others: &[&str], link_tap: impl FnOnce(&str, &Gate) -> Tap) -> Self {
        let mut world = World::start(options);
        world.demo().stop(Duration::from_secs(15));
        let gate = Gate::default();
        let device_side = Tap::start(&world.text("relay.device"), &gate);
        let link_side = link_tap(&world.text("relay.link"), &gate);
        let udp = [(&device_side, "relay.device"), (&link_side, "relay.link")]
            .map(|(tap, relay)| UdpTap::start(&tap.address(), &world.text(relay)));
        let dir = world.dir();
        let log = dir.join("relay-keys");
        edit(
            &dir.join("relay.toml"),
            "[admin]",
            &format!("[tls]\nkey_log_file = {log:?}\n[lanes]\nsplice = {splice}\n[admin]"),
        );
        edit(&dir.join("core.toml"), &world.text("relay.link"), &link_side.address());
        edit(&dir.join("node.toml"), "state =", &format!("relays = [{:?}]\nstate =", link_side.address()));
        edit(&dir.join("device/relay.json"), &world.text("relay.device"), &device_side.address());
        let relay = start(&world, "relay", &[]);
        // Where a test does not ask for QUIC, links are on TLS: what is in them can be opened here.
        let mut environment: Vec<_> =
            ["CORE", "NODE", "DEVICE"].map(|r| (format!("HEDGEROW_{r}__TRANSPORT"), "tls".to_owned())).to_vec();
        environment.extend(options.environment.iter().cloned());
        let roles = [&["core"], others].concat().iter().map(|role| start(&world, role, &environment)).collect();
        Self { _roles: roles, relay, gate, device_side, link_side, udp, world }
    }

    fn taps(&self) -> [(&'static str, &Tap); 2] {
        [("between device and relay", &self.device_side), ("between relay and node", &self.link_side)]
    }

    fn relay_keys(&self) -> KeyLog {
        let keys = KeyLog::read(&self.world.dir().join("relay-keys"));
        assert!(!keys.is_empty(), "the relay logged no keys");
        keys
    }

    /// Secrets of every end-to-end connection that device and node have opened, and of the ends' certificates.
    fn end_keys(&self) -> KeyLog {
        KeyLog::read(&self.world.dir().join("end-keys"))
    }

    fn private_keys(&self) -> Vec<Needle> {
        let files = ["device/key.pem", "node/node.key.pem"];
        let needle =
            |file: &&str| Needle { name: format!("private key {file}"), bytes: scalar(self.world.dir().join(file)) };
        files.iter().map(needle).collect()
    }

    /// Everything that passes the relay, as the relay can read it: raw, opened by its keys, and its streams.
    fn seen_by_the_relay(&self) -> Vec<(String, Vec<u8>)> {
        let keys = self.relay_keys();
        let (mut seen, mut opened) = (Vec::new(), Vec::new());
        for (place, tap) in self.taps() {
            for raw in tap.conversations() {
                if let Some(plain) = open_tls(&raw, &keys) {
                    streams(&plain).into_iter().for_each(|s| add(&mut seen, place, "a link's stream", s));
                    opened.extend_from_slice(&plain.up);
                    add(&mut seen, place, "opened by the relay's keys", plain);
                }
                add(&mut seen, place, "raw", raw);
            }
        }
        // Links were really opened: this is how each begins (CBOR of MAGIC).
        assert!(
            !find(&[Needle { name: String::new(), bytes: b"hedgerow/0.1".to_vec() }], &opened).is_empty(),
            "no HELLO"
        );
        seen
    }

    /// What the ends read from the same bytes at one tap, by their keys.
    fn seen_by_the_ends(&self, tap: &Tap, end_keys: &KeyLog) -> Vec<u8> {
        let relay_keys = self.relay_keys();
        let mut plain = Vec::new();
        for raw in tap.conversations() {
            // A lane's leg: the device's as it is, the node's behind the preamble and with node and device swapped.
            let leg = Conversation { up: raw.down.clone(), down: raw.up.get(LENGTH..).unwrap_or_default().to_vec() };
            let mut sealed = vec![leg, raw.clone()];
            if let Some(outer) = open_tls(&raw, &relay_keys) {
                sealed.extend(streams(&outer));
                sealed.push(after_connect(&outer));
                // A node's leg that came wrapped.
                sealed.push(Conversation {
                    up: outer.down.clone(),
                    down: outer.up.get(LENGTH..).unwrap_or_default().to_vec(),
                });
            }
            for session in sealed.iter().filter_map(|s| open_tls(s, end_keys)) {
                streams(&session).into_iter().for_each(|s| plain.extend([s.up, s.down].concat()));
                plain.extend([session.up, session.down].concat());
            }
        }
        plain
    }
}

fn add(seen: &mut Vec<(String, Vec<u8>)>, place: &str, what: &str, conversation: Conversation) {
    seen.push((format!("{place}, {what}, upwards"), conversation.up));
    seen.push((format!("{place}, {what}, downwards"), conversation.down));
}

/// What follows the heads of CONNECT and its answer.
fn after_connect(outer: &Conversation) -> Conversation {
    let body = |bytes: &[u8]| {
        let head = bytes.windows(4).take(4096).position(|w| w == b"\r\n\r\n");
        head.map(|at| bytes[at + 4..].to_vec()).unwrap_or_default()
    };
    Conversation { up: body(&outer.up), down: body(&outer.down) }
}

fn edit(path: &PathBuf, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{from} in {}:\n{text}", path.display());
    std::fs::write(path, text.replace(from, to)).unwrap();
}

fn start(world: &World, role: &str, environment: &[(String, String)]) -> Process {
    let dir = world.dir();
    let mut command = Command::new(hedgerow());
    command.args([role, "run", "--config"]).arg(dir.join(format!("{role}.toml")));
    command.envs(environment.iter().cloned());
    if role != "relay" {
        command.env(SESSION_KEY_LOG, dir.join("end-keys"));
    }
    let process = Process::start(&mut command, &dir.join(format!("log/{role}.log")));
    world.wait_ready(role, Duration::from_secs(20));
    process
}

/// The secret number of a P-256 key: in PKCS#8 it follows version 1 as an octet string of 32 bytes.
fn scalar(path: PathBuf) -> Vec<u8> {
    let pem = String::from_utf8(std::fs::read(path).unwrap()).unwrap();
    let base64: String = pem.lines().filter(|l| !l.starts_with('-')).collect();
    let der = data_encoding::BASE64.decode(base64.as_bytes()).unwrap();
    let at = der.windows(5).position(|w| w == [2, 1, 1, 4, 32]).expect("a P-256 key") + 5;
    der[at..at + 32].to_vec()
}

/// The relay's own keys are in its memory: so would be others, if it had them.
fn assert_own_keys(scene: &Scene, dump: &[u8]) {
    let found = find(&scene.relay_keys().needles("relay"), dump);
    assert!(found.iter().any(|f| f.contains("secret")) && found.iter().any(|f| f.contains("record key")), "{found:?}");
}

/// Panics with every place where something was found.
fn assert_nowhere(needles: &[Needle], seen: &[(String, Vec<u8>)]) {
    let found: Vec<_> =
        seen.iter().map(|(place, bytes)| (place, find(needles, bytes))).filter(|(_, f)| !f.is_empty()).collect();
    assert!(found.is_empty(), "what only the ends may know was found: {found:#?}");
}

/// Whether the dump holds anything of what was on its way, as the relay moves it: sealed by the ends.
fn holds_traffic(scene: &Scene, dump: &[u8]) -> bool {
    let all = scene.device_side.conversations();
    let largest = all.into_iter().max_by_key(|c| c.up.len() + c.down.len()).expect("a connection");
    let moved = open_tls(&largest, &scene.relay_keys()).unwrap_or(largest);
    let pieces = [moved.up, moved.down].into_iter().flat_map(|side| {
        // Beyond the hand-shake, whose first bytes the relay reads on every lane.
        let pieces = side.chunks_exact(32).skip(1024).step_by(256);
        pieces.map(|c| Needle { name: "a piece".into(), bytes: c.to_vec() }).collect::<Vec<_>>()
    });
    !find(&pieces.collect::<Vec<_>>(), dump).is_empty()
}

// ---- the tests -----------------------------------------------------------------------------------------------------

enum Way {
    LaneBySplice,
    LaneByCopy,
    /// The node's leg is wrapped in TLS to the relay.
    WrappedLeg,
    LinkStream,
}

fn work_data_passes_unread(way: &Way) {
    let marks = Marks::new();
    let port = server(&marks);
    let without_lanes = matches!(way, Way::LinkStream);
    let options = Options { allow: vec![format!("127.0.0.1:{port}")], without_lanes, ..Options::default() };
    let link_tap = if matches!(way, Way::WrappedLeg) { Tap::behind_a_firewall } else { Tap::start };
    let scene = Scene::set_with(&options, !matches!(way, Way::LaneByCopy), &["node", "device"], link_tap);
    let tcp = through_socks(&scene.world, port);
    scene.gate.shut_after(HELD_AFTER);
    let (up, down) = (document(&marks.up), document(&marks.down));
    let dump = std::thread::scope(|scope| {
        scope.spawn(|| exchange(&tcp, &up, &down));
        scene.gate.wait_shut(Duration::from_secs(30));
        let dump = memory(scene.relay.pid());
        scene.gate.open();
        dump
    });

    // It went the way that is meant.
    let path = if without_lanes { "\"path\":\"link\"" } else { "\"path\":\"lane\"" };
    assert!(scene.world.get("device.admin", "/status").contains(path));
    let joined = |path: &str| scene.world.metric("relay.admin", "hedgerow_relay_lanes_joined_total", path);
    let expected = match way {
        Way::LaneBySplice => (1.0, 0.0),
        Way::LaneByCopy | Way::WrappedLeg => (0.0, 1.0),
        Way::LinkStream => (0.0, 0.0),
    };
    assert_eq!((joined("splice"), joined("copy")), expected);

    // By their keys the ends read the marks in what the taps recorded: these are the right bytes and the right keys.
    let end_keys = scene.end_keys();
    for (place, tap) in scene.taps() {
        assert_eq!(find(&marks.needles(), &scene.seen_by_the_ends(tap, &end_keys)), marks.names(), "{place}");
    }
    // The dump is of this relay at that moment: it has the relay's own keys, and sealed bytes that were on their way,
    // unless splice keeps even those out of the process.
    assert_own_keys(&scene, &dump);
    assert_eq!(holds_traffic(&scene, &dump), !matches!(way, Way::LaneBySplice), "sealed traffic in the dump");

    // The relay, and whoever listens, find neither the marks nor a key.
    let mut forbidden = marks.needles();
    let keys = end_keys.needles("ends");
    assert!(keys.len() > 20, "{} keys of the ends are known", keys.len());
    forbidden.extend(keys);
    forbidden.extend(scene.private_keys());
    assert_nowhere(&forbidden, &scene.seen_by_the_relay());
    assert_nowhere(&forbidden, &[("the relay's memory".into(), dump)]);
}

#[test]
fn n04_neither_taps_nor_the_relays_memory_show_work_data_on_a_lane_by_splice() {
    work_data_passes_unread(&Way::LaneBySplice);
}

#[test]
fn n04_neither_taps_nor_the_relays_memory_show_work_data_on_a_lane_by_copy() {
    work_data_passes_unread(&Way::LaneByCopy);
}

#[test]
fn n04_neither_taps_nor_the_relays_memory_show_work_data_on_a_lane_whose_node_leg_is_wrapped() {
    work_data_passes_unread(&Way::WrappedLeg);
}

/// The environment that puts every link on QUIC, without a way back to TLS.
fn quic() -> Vec<(String, String)> {
    ["CORE", "NODE", "DEVICE"].map(|role| (format!("HEDGEROW_{role}__TRANSPORT"), "quic".to_owned())).to_vec()
}

/// The relay's memory while datagrams are on their way: after `bytes` have passed both taps.
fn dump_in_the_middle(scene: &Scene, bytes: usize) -> Vec<u8> {
    let before: usize = scene.udp.iter().map(UdpTap::bytes).sum();
    wait_until("datagrams pass", Duration::from_secs(30), || {
        scene.udp.iter().map(UdpTap::bytes).sum::<usize>() >= before + bytes
    });
    memory(scene.relay.pid())
}

/// What both UDP taps saw, and what little went by TCP.
fn on_the_wires(scene: &Scene) -> Vec<(String, Vec<u8>)> {
    let mut seen = Vec::new();
    for ((place, tcp), udp) in scene.taps().into_iter().zip(&scene.udp) {
        add(&mut seen, place, "datagrams", udp.seen());
        tcp.conversations().into_iter().for_each(|raw| add(&mut seen, place, "raw", raw));
    }
    seen
}

#[test]
fn n04_neither_datagrams_nor_the_relays_memory_show_work_data_on_a_stream_of_quic_links() {
    let marks = Marks::new();
    let port = server(&marks);
    let allow = vec![format!("127.0.0.1:{port}")];
    let options = Options { allow, without_lanes: true, environment: quic(), ..Options::default() };
    let scene = Scene::set(&options, true, &["node", "device"]);
    let tcp = through_socks(&scene.world, port);
    let (up, down) = (document(&marks.up), document(&marks.down));
    let dump = std::thread::scope(|scope| {
        scope.spawn(|| exchange(&tcp, &up, &down));
        dump_in_the_middle(&scene, HELD_AFTER)
    });
    let status: serde_json::Value = serde_json::from_str(&scene.world.get("device.admin", "/status")).unwrap();
    assert_eq!((&status["link"]["transport"], &status["sessions"][0]["path"]), (&"quic".into(), &"link".into()));
    for ((place, _), tap) in scene.taps().into_iter().zip(&scene.udp) {
        let both = || tap.bytes() >= 2 * LENGTH_OF_DOCUMENT;
        wait_until(&format!("both documents have passed by UDP {place}"), Duration::from_secs(10), both);
    }

    let end_keys = scene.end_keys();
    assert!(end_keys.len() >= 2, "device and node have logged their sessions");
    let mut forbidden = marks.needles();
    forbidden.extend(end_keys.needles("ends"));
    forbidden.extend(scene.private_keys());
    assert_nowhere(&forbidden, &[("the relay's memory".into(), dump)]);
    // On the wire not even who it is, and whose key opens the links.
    forbidden.extend(scene.relay_keys().needles("relay"));
    let mut name = |what: &str, text: &serde_json::Value| {
        let bytes = text.as_str().unwrap_or_default().as_bytes().to_vec();
        forbidden.push(Needle { name: what.to_owned(), bytes });
    };
    name("the device's id", &status["device"]);
    name("the node's id", &status["sessions"][0]["node"]);
    name("the relay's name", &scene.world.text("relay.name").into());
    forbidden.push(Needle { name: "a HELLO".into(), bytes: b"hedgerow/0.1".to_vec() });
    assert_nowhere(&forbidden, &on_the_wires(&scene));
}

#[test]
fn n04_neither_taps_nor_the_relays_memory_show_work_data_on_a_link_stream() {
    work_data_passes_unread(&Way::LinkStream);
}

/// curl logs the keys of both of its TLS connections; those that the relay does not know are end to end.
#[test]
fn n04_neither_taps_nor_the_relays_memory_show_what_rest_clients_send_by_connect() {
    let scene = Scene::set(&Options::default(), true, &[]);
    let marks = Marks::new();
    let dir = scene.world.dir();
    let tenant = scene.world.text("tenant");
    let (relay, port) =
        scene.device_side.address().rsplit_once(':').map(|(h, p)| (h.to_owned(), p.to_owned())).unwrap();
    let keys = dir.join("curl-keys");
    let (head, body) = (dir.join("head"), dir.join("body"));
    // Upwards a header full of marks; downwards there is the resource's own text.
    std::fs::write(&head, format!("X-Marked: {}", marks.up.repeat(250))).unwrap();
    let mut command = curl();
    command.env("SSLKEYLOGFILE", &keys).args(["--proxytunnel", "--proxy-cacert"]).arg(scene.world.text("relay.ca"));
    command.args(["--proxy", &format!("https://{relay}:{port}"), "--insecure", "--output"]).arg(&body);
    command.args(["--proxy-header", &format!("Tenant-Id: {tenant}"), "--proxy-header", "Origin-Server-Id: bws"]);
    command.arg("--header").arg(format!("@{}", head.display()));
    let url = format!("https://bws.{tenant}.hedgerow:443/{tenant}/api/v1/util/ping");
    command.arg(&url);
    // Both hand-shakes, and the request at the first tap, take less.
    scene.gate.shut_after(24_000);
    let dump = std::thread::scope(|scope| {
        scope.spawn(|| text(&mut command));
        scene.gate.wait_shut(Duration::from_secs(30));
        let dump = memory(scene.relay.pid());
        scene.gate.open();
        dump
    });
    let answer = std::fs::read_to_string(&body).unwrap();
    assert!(answer.starts_with("Up and running"), "{answer}");

    let end_keys = KeyLog::read(&keys).without(&scene.relay_keys());
    assert_eq!(end_keys.len(), 1, "one connection of curl's is not the relay's");
    let answer = Needle { name: "the answer".into(), bytes: answer.into_bytes() };
    let mark = Needle { name: "the mark".into(), bytes: marks.up.clone().into_bytes() };
    let mut forbidden = vec![mark, answer];
    let plain = scene.seen_by_the_ends(&scene.device_side, &end_keys);
    assert_eq!(find(&forbidden, &plain), ["the mark", "the answer"], "what curl itself can read");
    let plain = scene.seen_by_the_ends(&scene.link_side, &end_keys);
    assert_eq!(find(&forbidden, &plain), ["the mark", "the answer"], "what the core itself can read");

    forbidden.extend(end_keys.needles("curl"));
    forbidden.extend(scene.private_keys());
    let seen = scene.seen_by_the_relay();
    let connect = [Needle { name: "CONNECT".into(), bytes: format!("CONNECT bws.{tenant}").into_bytes() }];
    assert!(seen.iter().any(|(_, bytes)| !find(&connect, bytes).is_empty()), "the relay's own TLS was not opened");
    assert_nowhere(&forbidden, &seen);
    assert_own_keys(&scene, &dump);
    assert_nowhere(&forbidden, &[("the relay's memory".into(), dump)]);
}

/// The API manual's plain-HTTP port: what the client and the core say is sealed all the same.
#[test]
fn n04_a_tap_before_the_plain_http_port_shows_where_rest_clients_go_and_nothing_of_what_they_send() {
    let scene = Scene::set(&Options::default(), true, &[]);
    let (marks, dir, tenant) = (Marks::new(), scene.world.dir(), scene.world.text("tenant"));
    let tap = Tap::start(&scene.world.text("relay.http"), &scene.gate);
    let keys = dir.join("curl-keys");
    let mut command = curl();
    command.env("SSLKEYLOGFILE", &keys).args(["--proxytunnel", "--insecure", "--proxy"]);
    command.arg(format!("http://{}", tap.address()));
    command.args(["--proxy-header", &format!("Tenant-Id: {tenant}"), "--proxy-header", "Origin-Server-Id: bws"]);
    command.args(["--header", &format!("X-Marked: {}", marks.up)]);
    command.arg(format!("https://server01:18084/{tenant}/api/v1/util/ping"));
    let answer = text(&mut command);
    assert!(answer.starts_with("Up and running"), "{answer}");

    let end_keys = KeyLog::read(&keys);
    let answer = Needle { name: "the answer".into(), bytes: answer.into_bytes() };
    let mark = Needle { name: "the mark".into(), bytes: marks.up.into_bytes() };
    let mut forbidden = vec![mark, answer];
    let raw = tap.conversations().remove(0);
    let opened = open_tls(&after_connect(&raw), &end_keys).expect("curl's own keys open it");
    assert_eq!(find(&forbidden, &[opened.up, opened.down].concat()), ["the mark", "the answer"]);
    let connect = [Needle { name: "CONNECT".into(), bytes: b"CONNECT server01:18084".to_vec() }];
    assert_eq!(find(&connect, &raw.up), ["CONNECT"], "this is the conversation");

    forbidden.extend(end_keys.needles("curl"));
    let mut seen = scene.seen_by_the_relay();
    add(&mut seen, "before the plain port", "raw", raw);
    assert_nowhere(&forbidden, &seen);
    assert_nowhere(&forbidden, &[("the relay's memory".into(), memory(scene.relay.pid()))]);
}

/// A name of the tenant's that leads to a server behind the node: the client's TLS ends there.
#[test]
fn n04_neither_taps_nor_the_relays_memory_show_what_passes_by_a_registered_name() {
    const NAME: &str = "mail.names.test";
    let marks = Marks::new();
    let nginx = Nginx::start(&marks.down.repeat(20_000));
    let publish = vec![format!("gateway=127.0.0.1:{}", nginx.tls_port)];
    let scene = Scene::set(&Options { publish, ..Options::default() }, true, &["node"]);
    let _ = scene.world.hedgerow(&["name", "add", NAME, "--origin", "gateway"]);
    let dir = scene.world.dir();
    let (keys, page) = (dir.join("curl-keys"), dir.join("page"));
    let mut command = curl();
    command.env("SSLKEYLOGFILE", &keys).arg("--cacert").arg(nginx.certificate()).arg("--output").arg(&page);
    command.args(["--connect-to", &format!("{NAME}:443:{}", scene.device_side.address())]);
    command.args(["--header", &format!("X-Marked: {}", marks.up), &format!("https://{NAME}/page")]);
    // The page is on its way.
    scene.gate.shut_after(400_000);
    let dump = std::thread::scope(|scope| {
        scope.spawn(|| text(&mut command));
        scene.gate.wait_shut(Duration::from_secs(30));
        let dump = memory(scene.relay.pid());
        scene.gate.open();
        dump
    });
    assert_eq!(std::fs::read_to_string(&page).unwrap(), marks.down.repeat(20_000));

    let end_keys = KeyLog::read(&keys);
    assert_eq!(end_keys.len(), 1);
    for (place, tap) in scene.taps() {
        // HTTP/2 may write the header's mark with Huffman's code; the page comes as it is.
        let plain = scene.seen_by_the_ends(tap, &end_keys);
        assert_eq!(find(&marks.needles()[..1], &plain), marks.names()[..1], "{place}");
    }
    let mut forbidden = marks.needles();
    forbidden.extend(end_keys.needles("curl"));
    forbidden.extend(scene.private_keys());
    assert_nowhere(&forbidden, &scene.seen_by_the_relay());
    assert_own_keys(&scene, &dump);
    assert!(holds_traffic(&scene, &dump), "the page was not on its way through the relay");
    assert_nowhere(&forbidden, &[("the relay's memory".into(), dump)]);
}

// ---- control: the same without the end-to-end session --------------------------------------------------------------

/// A peer with the real one's certificate that sends plain text where the session should be.
async fn impostor(scene: &Scene, role: Role, transport: Transport, scope: &Scope) -> Link {
    let dir = scene.world.dir();
    let (key, certificate, tap) = match role {
        Role::Node => ("node/node.key.pem", "node/node.pem", &scene.link_side),
        _ => ("device/key.pem", "device/certificate.pem", &scene.device_side),
    };
    let credentials = Credentials::Certificate {
        role,
        tenant: scene.world.text("tenant").parse().unwrap(),
        own: InForce::of(
            read_certificates(&dir.join(certificate)).unwrap().remove(0),
            SigningKey::read(&dir.join(key)).unwrap(),
        ),
        origins: if role == Role::Node { vec![Origin::Proxy] } else { Vec::new() },
    };
    let instance = InstanceId::from_random(clock::random());
    let (target, timers) = (target(scene, tap), Timers::default());
    match transport {
        Transport::Tls => connect(&target, &credentials, instance, &timers, scope).await.unwrap(),
        Transport::Quic => connect_quic(&target, &credentials, instance, &timers, scope).await.unwrap(),
    }
}

fn target(scene: &Scene, tap: &Tap) -> RelayTarget {
    let roots = RelayRoots::Ca(read_certificates(scene.world.text("relay.ca").as_ref()).unwrap());
    RelayTarget::new(vec![tap.address()], scene.world.text("relay.name"), roots)
}

fn destination(scene: &Scene) -> Destination {
    let tenant = scene.world.text("tenant").parse().unwrap();
    Destination { tenant, origin: Origin::Proxy, group: Some("default".parse().unwrap()), instance: None, node: None }
}

/// The next control message that is about a lane: the core wakes peers now and then.
async fn lane_message(link: &Link) -> Control {
    loop {
        match link.mux.next_control().await.expect("the link is up") {
            Control::Wake(_) => {}
            other => return other,
        }
    }
}

/// Both documents at once over a joined pair of anything; they are held by the gate in the middle.
async fn plain_exchange<A, B>(device: A, node: B, marks: &Marks)
where
    A: tokio::io::AsyncRead + tokio::io::AsyncWrite,
    B: tokio::io::AsyncRead + tokio::io::AsyncWrite,
{
    let (up, down) = (document(&marks.up), document(&marks.down));
    let (mut device_read, mut device_write) = tokio::io::split(device);
    let (mut node_read, mut node_write) = tokio::io::split(node);
    let (mut up_got, mut down_got) = (vec![0; up.len()], vec![0; down.len()]);
    let (a, b, c, d) = tokio::join!(
        device_write.write_all(&up),
        node_write.write_all(&down),
        node_read.read_exact(&mut up_got),
        device_read.read_exact(&mut down_got),
    );
    a.and(b).unwrap();
    c.and(d).unwrap();
    assert!(up_got == up && down_got == down);
}

/// Runs an exchange with the gate shut in its middle; the relay's memory at that moment.
async fn held(scene: &Scene, exchange: impl Future<Output = ()>) -> Vec<u8> {
    scene.gate.shut_after(HELD_AFTER);
    let (gate, pid) = (scene.gate.clone(), scene.relay.pid());
    let dump = tokio::task::spawn_blocking(move || {
        gate.wait_shut(Duration::from_secs(30));
        let dump = memory(pid);
        gate.open();
        dump
    });
    let (dump, ()) = tokio::join!(dump, exchange);
    dump.unwrap()
}

/// The same over QUIC: the relay's memory has the marks when no session seals them, and the wires still do not.
#[tokio::test(flavor = "multi_thread")]
async fn n04_control_without_the_end_to_end_session_the_relays_memory_shows_what_passes_by_quic() {
    let scene = Scene::set(&Options { environment: quic(), ..Options::default() }, false, &[]);
    let scope = Scope::new();
    let node = impostor(&scene, Role::Node, Transport::Quic, &scope).await;
    let device = impostor(&scene, Role::Device, Transport::Quic, &scope).await;
    let marks = Marks::new();
    let header = LinkOpen::Through { to: destination(&scene), vouched: None, trace: None };
    let (ours, theirs) = tokio::join!(device.mux.open(&header), async { node.mux.accept().await.unwrap().accept() });
    let (ours, theirs): (Stream, Stream) = (ours.unwrap(), theirs);
    let dump = tokio::task::block_in_place(|| {
        std::thread::scope(|threads| {
            let dump = threads.spawn(|| dump_in_the_middle(&scene, HELD_AFTER));
            tokio::runtime::Handle::current().block_on(plain_exchange(ours, theirs, &marks));
            dump.join().unwrap()
        })
    });
    assert_eq!(find(&marks.needles(), &dump), marks.names(), "the relay's memory");
    assert_nowhere(&marks.needles(), &on_the_wires(&scene));
}

/// The search that finds nothing above finds the marks here: at both taps, and in memory.
fn assert_everywhere(scene: &Scene, marks: &Marks, dump: &[u8], what: &str) {
    let seen = scene.seen_by_the_relay();
    for (place, _) in scene.taps() {
        for needle in marks.needles() {
            let places = seen.iter().filter(|(p, bytes)| {
                p.contains(place) && p.contains(what) && !find(std::slice::from_ref(&needle), bytes).is_empty()
            });
            assert!(places.count() > 0, "{} was not found {place}, {what}", needle.name);
        }
    }
    assert_eq!(find(&marks.needles(), dump), marks.names(), "the relay's memory");
}

#[tokio::test(flavor = "multi_thread")]
async fn n04_control_without_the_end_to_end_session_the_same_search_finds_the_document() {
    let scene = Scene::set(&Options::default(), false, &[]);
    let scope = Scope::new();
    let node = impostor(&scene, Role::Node, Transport::Tls, &scope).await;
    let device = impostor(&scene, Role::Device, Transport::Tls, &scope).await;

    let marks = Marks::new();
    let header = LinkOpen::Through { to: destination(&scene), vouched: None, trace: None };
    let (ours, theirs) = tokio::join!(device.mux.open(&header), async { node.mux.accept().await.unwrap().accept() });
    let (ours, theirs): (Stream, Stream) = (ours.unwrap(), theirs);
    let dump = held(&scene, plain_exchange(ours, theirs, &marks)).await;
    assert_everywhere(&scene, &marks, &dump, "opened by the relay's keys");

    let marks = Marks::new();
    device.mux.send_control(&LaneRequest { request: 1, to: destination(&scene) }.into()).unwrap();
    let (offer, call) = tokio::join!(lane_message(&device), lane_message(&node));
    let (Control::LaneOffer(offer), Control::LaneCall(call)) = (offer, call) else { panic!("no lane") };
    let mut legs = Vec::new();
    for (tap, ticket) in [(&scene.device_side, offer.ticket), (&scene.link_side, call.ticket)] {
        let mut leg = tokio::net::TcpStream::connect(tap.address()).await.unwrap();
        leg.write_all(&preamble(&ticket)).await.unwrap();
        legs.push(leg);
    }
    let (node_leg, device_leg) = (legs.remove(1), legs.remove(0));
    let dump = held(&scene, plain_exchange(device_leg, node_leg, &marks)).await;
    assert_everywhere(&scene, &marks, &dump, "raw");

    let mark = Marks::new().up;
    let needle = [Needle { name: "the mark".into(), bytes: mark.clone().into_bytes() }];
    let tenant = scene.world.text("tenant").parse().unwrap();
    let relay = target(&scene, &scene.device_side);
    let mut tunnel = dial::origin(&relay, &tenant, Origin::Bws, &Timers::default(), &scope).await.unwrap();
    tunnel.write_all(mark.as_bytes()).await.unwrap();
    // The core answers plain text with a TLS alert.
    let _ = tunnel.read(&mut [0; 64]).await;
    let seen = scene.seen_by_the_relay();
    for (place, _) in scene.taps() {
        assert!(
            seen.iter().any(|(p, bytes)| p.contains(place) && !find(&needle, bytes).is_empty()),
            "CONNECT: {place}"
        );
    }
    let dump = memory(scene.relay.pid());
    assert!(!find(&needle, &dump).is_empty(), "CONNECT: the relay's memory");
}
