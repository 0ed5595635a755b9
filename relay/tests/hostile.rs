//! An authenticated peer that is hostile: whatever frames it writes, its own link ends or is held up, and the others go
//! on.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use common::{LONG, NAME, World, entity, eventually};
use hedgerow_runtime::link::{Credentials, Link, connect_quic};
use hedgerow_runtime::tls;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits;
use hedgerow_shared::wire::frame::{self, Frame, MAX_DATA, MAX_PAYLOAD, StreamId, kind};
use hedgerow_shared::wire::message::{
    ALPN_LINK, Claim, Control, Destination, GoAway, Hello, LaneCall, LaneOffer, LaneRefused, LaneRequest, Limits,
    LinkOpen, Proof, Prover, Vouched, Wake, transcript,
};
use hedgerow_shared::{InstanceId, Origin, Role, Ticket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

/// A link by hand: it has shown who it is, and writes what it likes.
struct Raw {
    tls: TlsStream<TcpStream>,
    input: BytesMut,
}

impl Raw {
    async fn new(world: &World, role: Role, id: u8) -> Self {
        let Credentials::Certificate { tenant, own, origins, .. } = world.credentials(role, id) else { panic!() };
        let own = own.get();
        let mut raw = Self { tls: world.tls(NAME, ALPN_LINK).await.unwrap(), input: BytesMut::new() };
        let claim = Some(Claim { role, tenant: tenant.clone() });
        let (instance, nonce) = (InstanceId::from_random([id; 16]), [id; 32]);
        let hello = Hello { claim, ..Hello::new(instance, nonce, Limits::default()) };
        raw.send(&frame::cbor(kind::HELLO, 0, &hello)).await;
        let Frame::Hello(body) = raw.next().await.unwrap() else { panic!("no HELLO") };
        let theirs: Hello = minicbor::decode(&body).unwrap();
        let exporter = tls::exporter(raw.tls.get_ref().1).unwrap();
        let text = transcript(Prover::Dialler(role), &tenant, &nonce, &theirs.nonce, &exporter);
        let (leaf, signature) = (own.chain[0].to_vec(), own.key.sign(&text));
        let proof = Proof::Certificate { challenge: theirs.nonce, leaf, signature, origins };
        raw.send(&frame::cbor(kind::PROOF, 0, &proof)).await;
        let Frame::Accept(_) = raw.next().await.unwrap() else { panic!("not accepted") };
        raw
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.tls.write_all(bytes).await.unwrap();
        self.tls.flush().await.unwrap();
    }

    /// Writes as long as the relay takes it; whether it took all.
    async fn pour(&mut self, bytes: &[u8]) -> bool {
        matches!(timeout(Duration::from_secs(2), self.tls.write_all(bytes)).await, Ok(Ok(())))
    }

    /// The next frame; `None` when the relay has closed.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = frame::take_first(&mut self.input).unwrap() {
                return Some(frame);
            }
            match timeout(LONG, self.tls.read_buf(&mut self.input)).await.expect("the relay says something") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Whether the link still answers a PING.
    async fn answers(&mut self) -> bool {
        self.send(&frame::raw(kind::PING, 0, &77u64.to_be_bytes())).await;
        while let Some(frame) = self.next().await {
            if frame == Frame::Pong(77) {
                return true;
            }
        }
        false
    }

    /// Reads to the end: why the relay closed.
    async fn end(&mut self) -> Code {
        let mut code = None;
        while let Some(frame) = self.next().await {
            if let Frame::GoAway(body) = frame {
                code = Some(minicbor::decode::<GoAway>(&body).unwrap().fault.code);
            }
        }
        code.expect("the relay says why")
    }

    /// The fault that answers one of our streams.
    async fn answer(&mut self, id: u32) -> Fault {
        loop {
            if let Frame::Answer(StreamId(stream), fault) = self.next().await.expect("an answer")
                && stream == id
            {
                return fault;
            }
        }
    }
}

fn to(world: &World) -> Destination {
    Destination { tenant: world.tenant.clone(), origin: Origin::Proxy, group: None, instance: None, node: None }
}

fn open(world: &World, id: u32) -> Bytes {
    frame::cbor(kind::OPEN, id, &LinkOpen::Through { to: to(world), vouched: None, trace: None })
}

fn data(id: u32, offset: u64, bytes: &[u8]) -> Vec<u8> {
    [frame::data_prefix(StreamId(id), offset, bytes.len()).as_slice(), bytes].concat()
}

fn reset(id: u32) -> Bytes {
    frame::cbor(kind::RESET, id, &Fault::new(Code::Ok, ""))
}

/// A header with a length of its own.
fn header(kind: u8, length: u16, stream: u32) -> Vec<u8> {
    [&[kind, 0][..], &length.to_be_bytes(), &stream.to_be_bytes()].concat()
}

/// A node that echoes every stream.
fn echo(world: &World, node: &Link) {
    let (mux, scope) = (node.mux.clone(), world.scope.clone());
    world.scope.spawn(async move {
        while let Some(incoming) = mux.accept().await {
            let mut stream = incoming.accept();
            scope.spawn(async move {
                while let Ok(Some(chunk)) = stream.read_chunk().await {
                    if stream.write_chunk(chunk).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Somebody else's request comes back.
async fn works(world: &World, good: &Link) {
    let header = LinkOpen::Through { to: to(world), vouched: None, trace: None };
    let mut stream = timeout(LONG, good.mux.open(&header)).await.unwrap().unwrap();
    stream.write_chunk(Bytes::from_static(b"small request")).await.unwrap();
    assert_eq!(timeout(LONG, stream.read_chunk()).await.unwrap().unwrap().unwrap(), "small request");
}

#[tokio::test]
async fn a08_what_no_frame_may_be_ends_its_own_link_with_the_reason_and_no_other() {
    let world = World::new().await;
    let _core = world.core().await;
    let (node, good) = (world.node(5).await, world.device(6).await);
    echo(&world, &node);
    let ok = Fault::new(Code::Ok, "");
    let word = 9u64.to_be_bytes();
    let vouched = || Vouched { address: "x".into(), role: None, id: None };
    let control = |message: Control| message.to_frame().to_vec();
    let to_all = |k: u8| header(k, 0, u32::from((0x10..0x20).contains(&k)) * 2);
    let lane = (Ticket::from_random([1; 20]), entity(5), InstanceId::from_random([5; 16]));
    let mut cases: Vec<(&str, Vec<u8>)> = vec![
        ("a length of one more than the most", header(kind::DATAGRAM, MAX_PAYLOAD as u16 + 1, 0)),
        ("the largest length that can be written", header(kind::DATA, u16::MAX, 2)),
        ("an unknown required kind", frame::raw(0x30, 0, b"x").to_vec()),
        ("an unknown required kind on a stream", frame::raw(0x7f, 2, b"").to_vec()),
        ("an id again", open(&world, 2).to_vec()),
        ("an id left out", open(&world, 6).to_vec()),
        ("an id of the relay's side", open(&world, 1).to_vec()),
        ("stream 0", open(&world, 0).to_vec()),
        ("a header that is too long", frame::raw(kind::OPEN, 4, &[0; limits::MAX_OPEN_HEADER + 1]).to_vec()),
        ("a stream that was never opened", data(8, 0, b"x")),
        ("a gap", data(2, 1, b"x")),
        ("an offset beyond 2^64", data(2, u64::MAX, b"xx")),
        ("empty data", header(kind::DATA, 8, 2).into_iter().chain([0; 8]).collect()),
        ("after the end", [frame::raw(kind::FINISH, 2, &[0; 8]).to_vec(), data(2, 0, b"x")].concat()),
        ("an end beyond the data", frame::raw(kind::FINISH, 2, &word).to_vec()),
        ("an acknowledgement of what was never sent", frame::window(Some(StreamId(2)), 1, 1).to_vec()),
        ("the same for the whole link", frame::window(None, 1, 1).to_vec()),
        ("an answer to its own stream", frame::cbor(kind::ANSWER, 2, &ok).to_vec()),
        ("a ping on a stream", frame::raw(kind::PING, 2, &word).to_vec()),
        ("a hand-shake frame", frame::raw(kind::ACCEPT, 0, b"").to_vec()),
        ("RESUME on a link", frame::raw(kind::RESUME, 0, b"").to_vec()),
        ("a farewell of nonsense", frame::raw(kind::GOAWAY, 0, b"\xff").to_vec()),
        ("a control message of an unknown required kind", frame::control(0x7001, b"").to_vec()),
        ("one of nonsense", frame::control(1, b"\xff").to_vec()),
        ("one that only relays send", control(LaneRefused { request: 1, fault: ok.clone() }.into())),
        ("another", control(LaneCall { ticket: lane.0, origin: Origin::Proxy, vouched: vouched() }.into())),
        ("a third", control(LaneOffer { request: 1, ticket: lane.0, node: lane.1, instance: lane.2 }.into())),
        ("one that only cores send", control(Wake { roles: vec![Role::Node], ids: vec![] }.into())),
    ];
    // Every kind whose payload cannot be empty.
    for empty in [
        kind::ANSWER,
        kind::DATA,
        kind::WINDOW,
        kind::FINISH,
        kind::RESET,
        kind::CONTROL,
        kind::PING,
        kind::PONG,
        kind::GOAWAY,
        kind::HELLO,
    ] {
        cases.push(("nothing", to_all(empty)));
    }
    for (n, (what, bytes)) in cases.into_iter().enumerate() {
        let mut raw = Raw::new(&world, Role::Device, 30 + u8::try_from(n).unwrap()).await;
        raw.send(&open(&world, 2)).await;
        assert_eq!(raw.answer(2).await.code, Code::Ok);
        raw.send(&bytes).await;
        assert_eq!(raw.end().await, Code::Protocol, "{what} ({:#04x})", bytes[0]);
    }
    works(&world, &good).await;
    eventually("their streams are gone at the node", || node.mux.open_streams() == 0).await;
}

#[tokio::test]
async fn a08_frames_of_every_permitted_length_in_pieces_of_a_byte_and_after_the_end_leave_the_link_up() {
    let world = World::new().await;
    let _core = world.core().await;
    let node = world.node(5).await;
    echo(&world, &node);
    let mut raw = Raw::new(&world, Role::Device, 6).await;
    // What may be skipped, empty and as large as can be; and datagrams, which nobody takes.
    for (kind, length) in
        [(0x80, 0), (0xff, 0), (0x90, MAX_PAYLOAD), (kind::DATAGRAM, 0), (kind::DATAGRAM, MAX_PAYLOAD)]
    {
        let stream = u32::from(kind >= 0x80) * 77;
        raw.send(&frame::raw(kind, stream, &vec![1; length])).await;
    }
    raw.send(&frame::control(0xfff0, b"from the future")).await;
    assert!(raw.answers().await);
    // A record for each byte.
    let request = [open(&world, 2).to_vec(), data(2, 0, b"in pieces")].concat();
    for byte in request {
        raw.send(&[byte]).await;
    }
    let mut got = Vec::new();
    while got != b"in pieces" {
        if let Frame::Data(_, _, bytes) = raw.next().await.unwrap() {
            got.extend_from_slice(&bytes);
        }
    }
    raw.send(&data(2, 9, &[7; MAX_DATA])).await;
    while got.len() < 9 + MAX_DATA {
        if let Frame::Data(_, _, bytes) = raw.next().await.unwrap() {
            got.extend_from_slice(&bytes);
        }
    }
    // After its end a stream's frames are noise, whatever they say.
    raw.send(&reset(2)).await;
    eventually("the node knows", || node.mux.open_streams() == 0).await;
    for late in [data(2, 0, b"x"), data(2, u64::MAX, b"xx"), reset(2).to_vec()] {
        raw.send(&late).await;
    }
    raw.send(&frame::window(Some(StreamId(2)), u64::MAX, u64::MAX)).await;
    raw.send(&frame::raw(kind::FINISH, 2, &[9; 8])).await;
    assert!(raw.answers().await);
    // And after a farewell the link is still read: what it says is taken for what it is.
    raw.send(&frame::cbor(
        kind::GOAWAY,
        0,
        &GoAway { fault: Fault::new(Code::Draining, ""), return_after_ms: 0, alternatives: vec![] },
    ))
    .await;
    raw.send(&frame::raw(0x30, 0, b"x")).await;
    assert_eq!(raw.end().await, Code::Protocol);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a08_streams_opened_and_reset_without_end_fill_neither_the_relay_nor_a_node_and_others_go_on() {
    let world = World::with(|c| c.timers.scale = 1.0).await;
    let _core = world.core().await;
    let (node, good) = (world.node(5).await, world.device(6).await);
    echo(&world, &node);
    let mut raw = Raw::new(&world, Role::Device, 7).await;
    let (mut most, mut taken) = (0, true);
    for round in 0..100u32 {
        let burst: Vec<u8> =
            (0..200).map(|n| 2 + 2 * (round * 200 + n)).flat_map(|id| [open(&world, id), reset(id)].concat()).collect();
        taken = taken && raw.pour(&burst).await;
        most = most.max(node.mux.open_streams());
        if round % 20 == 10 {
            works(&world, &good).await;
        }
    }
    assert!(most <= 512, "{most} streams at the node");
    works(&world, &good).await;
    eventually("all are gone at the node", || node.mux.open_streams() <= 1).await;
    // Whoever does it reads its answers like everybody, or is cut.
    if taken {
        let live = async { while raw.next().await.is_some_and(|f| f != Frame::Pong(1)) {} };
        drop(timeout(Duration::from_millis(200), live).await);
    }
    let streams = || {
        let live = world.relay.relay().registry.select(None, |f| f.entity == Some(entity(7)));
        live.first().map_or(0, |l| l.handle.open_streams())
    };
    eventually("none is left at the relay", || streams() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a08_opens_to_a_node_that_never_answers_are_refused_beyond_a_bound_or_end_the_link() {
    let world = World::with(|c| c.timers.scale = 1.0).await;
    let _core = world.core().await;
    let (node, good) = (world.node(5).await, world.device(6).await);
    // One that reads: 256 wait, the others hear that they are too many, and the link stays.
    let mut raw = Raw::new(&world, Role::Device, 7).await;
    let mut refused = 0;
    for first in (0..5000u32).step_by(500) {
        let burst: Vec<u8> = (first..first + 500).flat_map(|n| open(&world, 2 + 2 * n).to_vec()).collect();
        raw.send(&burst).await;
        while refused + 256 < first + 500 {
            match raw.next().await.unwrap() {
                Frame::Answer(_, fault) => {
                    assert_eq!(fault.code, Code::Limited);
                    refused += 1;
                }
                other => assert!(!matches!(other, Frame::GoAway(_)), "{other:?}"),
            }
        }
    }
    assert_eq!(refused, 5000 - 256);
    assert!(raw.answers().await);
    assert!(node.mux.open_streams() <= 256);
    // What is sent to a stream that nobody reads yet stays within its window.
    let mut greedy = Raw::new(&world, Role::Device, 9).await;
    greedy.send(&open(&world, 2)).await;
    greedy.send(&(0..16).flat_map(|n| data(2, n * 16_000, &[0; 16_000])).collect::<Vec<_>>()).await;
    assert!(greedy.answers().await);
    greedy.send(&data(2, 16 * 16_000, &[0; 16_000])).await;
    assert_eq!(greedy.end().await, Code::Protocol);
    // One that reads nothing: it is cut long before a million.
    let mut deaf = Raw::new(&world, Role::Device, 8).await;
    let burst = |n: u32| -> Vec<u8> { (n..n + 5000).flat_map(|n| open(&world, 2 + 2 * n).to_vec()).collect() };
    let mut opened = 0;
    while opened < 1_000_000 && deaf.pour(&burst(opened)).await {
        opened += 5000;
    }
    assert!(opened < 1_000_000, "a million streams were taken");
    drop(deaf);
    let waiting = node.mux.open_streams();
    assert!(waiting <= 2 * 256 + 1, "{waiting}: 256 of each link, and the one that was cut");
    drop(raw);
    // With the links their requests are gone.
    echo(&world, &node);
    works(&world, &good).await;
    eventually("nothing waits any more", || node.mux.open_streams() <= 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a08_floods_of_pings_windows_ends_and_control_messages_hold_up_nobody_else() {
    let world = World::with(|c| c.timers.scale = 1.0).await;
    let _core = world.core().await;
    let (node, good) = (world.node(5).await, world.device(6).await);
    echo(&world, &node);
    let nowhere = Destination { group: Some("elsewhere".parse().unwrap()), ..to(&world) };
    let request = |n| Control::from(LaneRequest { request: n, to: nowhere.clone() }).to_frame();
    let elsewhere = LaneRequest { request: 1, to: Destination { tenant: "S99999999".parse().unwrap(), ..to(&world) } };
    let fault = Fault::new(Code::Draining, "x".repeat(100));
    let floods: Vec<(&str, Vec<u8>)> = vec![
        ("pings", (0..50_000u64).flat_map(|n| frame::raw(kind::PING, 0, &n.to_be_bytes()).to_vec()).collect()),
        ("pongs", (0..50_000u64).flat_map(|n| frame::raw(kind::PONG, 0, &n.to_be_bytes()).to_vec()).collect()),
        ("windows", (0..50_000u64).flat_map(|n| frame::window(Some(StreamId(2)), 0, n).to_vec()).collect()),
        ("windows of the link", (0..50_000u64).flat_map(|n| frame::window(None, 0, n).to_vec()).collect()),
        ("ends", (0..50_000).flat_map(|_| frame::raw(kind::FINISH, 2, &[0; 8]).to_vec()).collect()),
        ("resets", (0..20_000).flat_map(|_| reset(2).to_vec()).collect()),
        ("skipped frames", (0..50_000).flat_map(|_| frame::raw(0x90, 7, b"x").to_vec()).collect()),
        ("skipped messages", (0..50_000).flat_map(|_| frame::control(0xfff0, b"").to_vec()).collect()),
        ("datagrams", (0..20_000).flat_map(|_| frame::raw(kind::DATAGRAM, 0, &[0x80; 40]).to_vec()).collect()),
        ("requests for lanes", (0..20_000).flat_map(|n| request(n).to_vec()).collect()),
        (
            "requests for lanes of others",
            (0..20_000).flat_map(|_| Control::from(elsewhere.clone()).to_frame().to_vec()).collect(),
        ),
        (
            "farewells",
            (0..10_000)
                .flat_map(|_| {
                    let away = GoAway { fault: fault.clone(), return_after_ms: 0, alternatives: vec![] };
                    frame::cbor(kind::GOAWAY, 0, &away).to_vec()
                })
                .collect(),
        ),
    ];
    for (n, (what, flood)) in floods.into_iter().enumerate() {
        let mut raw = Raw::new(&world, Role::Device, 30 + u8::try_from(n).unwrap()).await;
        raw.send(&open(&world, 2)).await;
        assert_eq!(raw.answer(2).await.code, Code::Ok);
        // Nothing is read meanwhile. Answers that do not fit into a queue of 64 KiB are left out.
        let (all, ()) = tokio::join!(raw.pour(&flood), works(&world, &good));
        assert!(all, "{what} are read");
        assert!(raw.answers().await, "{what}");
    }
    works(&world, &good).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a08_over_quic_streams_without_end_and_nonsense_on_the_first_stream_harm_nobody_else() {
    let world = World::with(|c| c.timers.scale = 1.0).await;
    let _core = world.core().await;
    let (node, good) = (world.node(5).await, world.device(6).await);
    let timers = world.relay.relay().timers;
    let quic = async |id: u8| {
        let instance = InstanceId::from_random([id; 16]);
        connect_quic(&world.target(), &world.credentials(Role::Device, id), instance, &timers, &world.scope)
            .await
            .unwrap()
    };
    // Opened and let go at once, ten thousand times; the node never answers.
    let flood = quic(7).await;
    let header = LinkOpen::Through { to: to(&world), vouched: None, trace: None };
    let mut most = 0;
    for _ in 0..100 {
        let (let_go, mut gone) = tokio::sync::mpsc::channel(100);
        for _ in 0..100 {
            let (mux, header, let_go) = (flood.mux.clone(), header.clone(), let_go.clone());
            world.scope.spawn(async move {
                drop(timeout(Duration::from_millis(5), mux.open(&header)).await);
                let_go.send(()).await.unwrap();
            });
        }
        drop(let_go);
        while gone.recv().await.is_some() {}
        most = most.max(node.mux.open_streams());
    }
    assert!(most <= 256, "{most} streams at the node");
    echo(&world, &node);
    works(&world, &good).await;
    eventually("all are gone at the node", || node.mux.open_streams() <= 1).await;
    // Messages that only relays send, and farewells without end.
    let liar = quic(8).await;
    for _ in 0..1000 {
        liar.mux.go_away(&GoAway { fault: Fault::new(Code::Draining, ""), return_after_ms: 0, alternatives: vec![] });
    }
    works(&world, &good).await;
    let liar = quic(9).await;
    liar.mux.send_control(&Wake { roles: vec![Role::Node], ids: vec![] }.into()).unwrap();
    assert_eq!(timeout(LONG, liar.mux.closed()).await.unwrap().code, Code::Protocol);
    works(&world, &good).await;
}

#[tokio::test]
async fn a09_a_peer_says_of_itself_only_what_its_certificate_says() {
    let world = World::new().await;
    let _core = world.core().await;
    let node = world.node(5).await;
    let mut raw = Raw::new(&world, Role::Device, 6).await;
    // A device that vouches for itself as another one, and as the core's address, is told apart by the relay.
    let forged = Vouched { address: "10.0.0.1:1".into(), role: Some(Role::Core), id: Some(entity(9)) };
    let header = LinkOpen::Through { to: to(&world), vouched: Some(forged), trace: Some("\r\nforged".into()) };
    raw.send(&frame::cbor(kind::OPEN, 2, &header)).await;
    let incoming = timeout(LONG, node.mux.accept()).await.unwrap().unwrap();
    let Ok(LinkOpen::Through { vouched: Some(vouched), trace, .. }) = incoming.read_header() else { panic!() };
    assert_eq!((vouched.role, vouched.id), (Some(Role::Device), Some(entity(6))));
    assert!(vouched.address.starts_with("127.0.0.1:"), "{}", vouched.address);
    assert_eq!(trace, None, "what is no trace id is not passed on");
}
