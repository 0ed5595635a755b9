//! Hostile peers on the UDP port, made by hand: what they can make the relay send, keep or believe.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
mod craft;

use std::sync::Arc;
use std::time::Duration;

use common::{LONG, NAME, World};
use craft::{Craft, DATA, FULL, Got, INITIAL, OURS, crypto, new_connection_id, parameters, stream, varint, with};
use hedgerow_runtime::link::{Channel, Link, connect_quic};
use hedgerow_runtime::quic;
use hedgerow_runtime::tls;
use hedgerow_shared::wire::message::ALPN_LINK;
use hedgerow_shared::{InstanceId, Role};
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// Long enough for an answer that comes at once, where none is expected.
const SOON: Duration = Duration::from_millis(500);

/// A node's link over the same port that behaves, and its core's.
struct Good {
    link: Link,
    _core: Link,
}

impl Good {
    async fn join(world: &World) -> Self {
        let core = world.core().await;
        let (timers, credentials) = (world.relay.relay().timers, world.credentials(Role::Node, 5));
        let (target, instance) = (world.target(), InstanceId::from_random([5; 16]));
        let link = timeout(LONG, connect_quic(&target, &credentials, instance, &timers, &world.scope)).await;
        Self { link: link.unwrap().unwrap(), _core: core }
    }

    /// Panics unless the relay still answers.
    async fn is_answered(&self) {
        let Channel::Quic(mux) = &self.link.mux else { panic!("a QUIC link") };
        mux.probe(LONG).await.unwrap();
        assert!(!mux.is_closed());
    }
}

/// A relay whose certificate alone is larger than three ClientHellos.
async fn heavy() -> (World, tempfile::TempDir) {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("c.key"));
    let names = (0..400).map(|n| format!("name-{n}.example")).chain([NAME.to_owned()]);
    let made = rcgen::generate_simple_self_signed(names.collect::<Vec<_>>()).unwrap();
    assert!(made.cert.der().len() > 6 * FULL);
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let files = (Some(certificate), Some(key));
    (World::with(|config| (config.tls.certificate, config.tls.key_file) = files).await, folder)
}

async fn silent_about_its_ca(world: &World, source: &str) -> Craft {
    Craft::with_roots(&tls::RelayRoots::Ca(vec![]), world.relay.link[0], source, &parameters()).await
}

#[tokio::test]
async fn p01_an_address_that_was_not_shown_gets_at_most_three_times_what_came_from_it() {
    let (world, _files) = heavy().await;
    let mut craft = silent_about_its_ca(&world, "127.0.0.1:0").await;
    craft.acknowledges = false;
    let first = craft.first();
    // Less than a full datagram gets nothing at all.
    let small = craft.packet(INITIAL, &crypto(0, &[1, 0, 0, 4]), 600);
    craft.send(&small).await;
    assert_eq!(craft.count(SOON).await, 0);
    craft.sent = 0;
    craft.send(&first).await;
    // As long as the relay tries: its time for a hand-shake, and a little.
    let got = craft.count(world.relay.relay().timers.handshake + Duration::from_secs(2)).await;
    assert!(got > 2 * craft.sent, "{got} bytes: the limit was not reached, so it was not shown");
    assert!(got <= 3 * craft.sent, "{got} bytes for {}", craft.sent);
}

#[tokio::test]
async fn p01_versions_are_named_in_less_than_what_asked_and_never_in_an_answer_to_an_answer() {
    let world = World::new().await;
    let mut craft = Craft::new(&world, "127.0.0.1:0", &parameters()).await;
    let unknown = |length: usize| {
        let mut packet = vec![0xc3, 0x1a, 0x2a, 0x3a, 0x4a, 8];
        packet.extend([5; 8]);
        packet.push(8);
        packet.extend(OURS);
        packet.resize(length, 0);
        packet
    };
    craft.send(&unknown(FULL)).await;
    let got = craft.receive(LONG).await.unwrap();
    let [Got::Versions(versions)] = &got[..] else { panic!("{got:?}") };
    assert!(versions.contains(&1) && !versions.contains(&0x1a2a_3a4a), "{versions:x?}");
    assert!(craft.largest < 100, "{} bytes", craft.largest);
    // Its own answer, sent back, and the like of it: no loop can be made of two relays.
    let mut answer = vec![0x80, 0, 0, 0, 0, 8];
    answer.extend(OURS);
    answer.push(8);
    answer.extend([5; 8]);
    versions.iter().for_each(|v| answer.extend(v.to_be_bytes()));
    craft.socket.send_to(&answer, craft.to).await.unwrap();
    answer[0] = 0xc0;
    answer.resize(FULL, 0);
    craft.socket.send_to(&answer, craft.to).await.unwrap();
    // Nor is a small datagram worth an answer that could be larger than it.
    craft.socket.send_to(&unknown(20), craft.to).await.unwrap();
    assert_eq!(craft.receive(SOON).await, None);
    Good::join(&world).await.is_answered().await;
}

/// A relay that asks everybody for a proof of the address: its waiting room is never empty.
async fn crowded() -> (World, Vec<tokio::net::TcpStream>) {
    let world = World::with(|c| c.limits.handshakes_per_client = 4).await;
    let mut silent = Vec::new();
    for source in ["127.0.0.1", "127.0.0.9"] {
        for _ in 0..3 {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
            silent.push(socket.connect(world.relay.link[0]).await.unwrap());
        }
    }
    (world, silent)
}

/// One that has been given a token.
async fn with_token(world: &World) -> (Craft, Vec<u8>) {
    let mut craft = Craft::new(world, "127.0.0.1:0", &parameters()).await;
    let first = craft.first();
    craft.send(&first).await;
    let got = craft.receive(LONG).await.unwrap();
    let [Got::Retry(token)] = &got[..] else { panic!("{got:?}") };
    assert!(craft.largest < FULL, "the proof is asked for in less than what asked");
    (craft, token.clone())
}

#[tokio::test]
async fn p01_a_retry_token_is_good_for_its_own_address_and_connection_only() {
    let (world, _silent) = crowded().await;
    let (mut honest, _) = with_token(&world).await;
    let first = honest.first();
    honest.send(&first).await;
    honest.shake().await;

    // Another address, and another port of the same one.
    for source in ["127.0.0.9:0", "127.0.0.1:0"] {
        let (thrifty, token) = with_token(&world).await;
        let mut thief = Craft::new(&world, source, &parameters()).await;
        thief.use_token(&thrifty.theirs, token);
        let first = thief.first();
        thief.send(&first).await;
        assert_eq!(thief.closed(LONG).await, Some(craft::INVALID_TOKEN), "{source}");
        assert!(thief.received < FULL);
    }
    // The same address may begin again with it, and gains nothing: it has shown itself. But not for long.
    let (mut thrifty, token) = with_token(&world).await;
    thrifty.use_token(&[3; 8], token.clone());
    let first = thrifty.first();
    thrifty.send(&first).await;
    assert_eq!(thrifty.is_greeted(LONG).await, Some(true));
    // One that nobody made: asked again, or turned away; never believed.
    for at in [0, 20, usize::MAX] {
        let (mut forger, mut token) = with_token(&world).await;
        let at = at.min(token.len() - 1);
        token[at] ^= 1;
        let theirs = forger.theirs.clone();
        forger.use_token(&theirs, token);
        let first = forger.first();
        forger.send(&first).await;
        let got = forger.receive(LONG).await.unwrap();
        assert!(matches!(got[..], [Got::Retry(_)] | [Got::Close(craft::INVALID_TOKEN)]), "{at}: {got:?}");
    }
    // Fifteen seconds, says quinn.
    tokio::time::sleep(Duration::from_secs(16)).await;
    let mut late = Craft::on(thrifty.socket, &world);
    late.use_token(&[4; 8], token);
    let first = late.first();
    late.send(&first).await;
    assert_eq!(late.closed(LONG).await, Some(craft::INVALID_TOKEN));
}

#[tokio::test]
async fn p01_transport_parameters_out_of_range_end_the_hand_shake() {
    let world = World::new().await;
    let without = |id| parameters().into_iter().filter(|(other, _)| *other != id).collect::<Vec<_>>();
    let twice = |id, value: Vec<u8>| [parameters(), vec![(id, value)]].concat();
    for (what, said) in [
        ("payloads below 1200", with(3, varint(1199))),
        ("an exponent above 20", with(0x0a, varint(21))),
        ("a delay of 2^14", with(0x0b, varint(1 << 14))),
        ("fewer than two connection ids", with(0x0e, varint(1))),
        ("more streams than there are", with(8, varint((1 << 60) + 1))),
        ("more streams of one direction than there are", with(9, varint((1 << 60) + 1))),
        ("what only a server says: the first connection id", with(0, OURS.to_vec())),
        ("what only a server says: a reset token", with(2, vec![1; 16])),
        ("what only a server says: an address", with(0x0d, vec![0; 41])),
        ("what only a server says: the connection id of a retry", with(0x10, OURS.to_vec())),
        ("no connection id", without(0x0f)),
        ("another connection id", with(0x0f, vec![8; 8])),
        ("one twice", twice(4, varint(7))),
        ("a number cut short", with(4, vec![0xc0, 1])),
        ("a number with something behind it", with(4, vec![1, 2, 3])),
        ("a length that lies", twice(0x7f, vec![])[..].iter().cloned().chain([(0x3fff, vec![])]).collect()),
    ] {
        let lies = what == "a length that lies";
        let mut craft = match lies {
            true => {
                Craft::with_raw_parameters(
                    &world,
                    &[&craft::encoded(&parameters())[..], &[0x40, 0x7f, 0x20, 1]].concat(),
                )
                .await
            }
            false => Craft::new(&world, "127.0.0.1:0", &said).await,
        };
        let first = craft.first();
        craft.send(&first).await;
        let error = craft.closed(LONG).await;
        assert_eq!(error, Some(craft::TRANSPORT_PARAMETER), "{what}");
    }
    // What is unknown is nobody's fault.
    let mut craft = Craft::new(&world, "127.0.0.1:0", &with(0x1234, vec![1; 200])).await;
    let first = craft.first();
    craft.send(&first).await;
    craft.shake().await;
    Good::join(&world).await.is_answered().await;
}

#[tokio::test]
async fn p01_frames_that_no_peer_may_send_end_their_own_connection_and_no_other() {
    let world = World::new().await;
    let good = Good::join(&world).await;
    let mut flood = Vec::new();
    (1..20).for_each(|n| flood.extend(new_connection_id(n, 0)));
    let cases: Vec<(&str, Vec<u8>, &[u64])> = vec![
        ("a frame that is unknown", vec![0x21, 1, 2, 3], &[craft::FRAME_ENCODING]),
        ("a frame with a long number", [varint(0x3fff_ffff), vec![0]].concat(), &[craft::FRAME_ENCODING]),
        ("a frame cut short", vec![1, 1, 1, 0x06, 0], &[craft::FRAME_ENCODING]),
        ("data longer than its packet", [&[0x0a, 0][..], &varint(5000), b"x"].concat(), &[craft::FRAME_ENCODING]),
        (
            "an end beyond the largest number",
            stream(0, (1 << 62) - 1, b"xx"),
            &[craft::FLOW_CONTROL, craft::FRAME_ENCODING],
        ),
        ("more than the window", stream(0, 64 * 1024, b"x"), &[craft::FLOW_CONTROL]),
        ("a second stream before the first was admitted", stream(4, 0, b"x"), &[craft::STREAM_LIMIT]),
        ("the last stream there is", stream((1 << 62) - 4, 0, b"x"), &[craft::STREAM_LIMIT]),
        ("a stream of one direction", stream(2, 0, b"x"), &[craft::STREAM_LIMIT]),
        ("a stream that the relay would open", stream(1, 0, b"x"), &[craft::STREAM_STATE]),
        ("a reset of a stream that the relay would open", vec![0x04, 1, 0, 0], &[craft::STREAM_STATE]),
        ("two ends of one stream", [&[0x0f, 0, 0, 1, 7][..], &[0x0f, 0, 0, 2, 7, 7]].concat(), &[6]),
        (
            "more streams granted than there are",
            [&[0x12][..], &varint((1 << 60) + 1)].concat(),
            &[craft::FRAME_ENCODING],
        ),
        ("the hand-shake done, said by a client", vec![0x1e], &[craft::PROTOCOL_VIOLATION]),
        ("a token, given by a client", vec![0x07, 1, 9], &[craft::PROTOCOL_VIOLATION]),
        (
            "an acknowledgement of what was never sent",
            [&[2][..], &varint(1 << 20), &[0, 0, 0]].concat(),
            &[craft::PROTOCOL_VIOLATION],
        ),
        ("an acknowledgement of less than nothing", vec![2, 1, 0, 0, 9], &[craft::FRAME_ENCODING]),
        ("an id given back that was never given", [&[0x19][..], &varint(4000)].concat(), &[craft::PROTOCOL_VIOLATION]),
        ("an id of no length", [&[0x18, 1, 0, 0][..], &[9; 16]].concat(), &[craft::FRAME_ENCODING]),
        ("an id too long", [&[0x18, 1, 0, 21][..], &[9; 37]].concat(), &[craft::FRAME_ENCODING]),
        (
            "an id that ends more than there are",
            new_connection_id(1, 2),
            &[craft::PROTOCOL_VIOLATION, craft::FRAME_ENCODING],
        ),
        ("more ids than were asked for", flood, &[craft::CONNECTION_ID_LIMIT]),
        ("TLS data out of all order", crypto(1 << 20, &[0; 10]), &[craft::CRYPTO_BUFFER]),
    ];
    for (what, frames, errors) in cases {
        let mut craft = Craft::connected(&world).await;
        craft.say(&frames).await;
        let error = craft.closed(LONG).await;
        assert!(error.is_some_and(|e| errors.contains(&e)), "{what}: {error:?}");
    }
    // Before the hand-shake is over hardly anything is allowed.
    for frames in [stream(0, 0, b"x"), vec![0x1a, 1, 2, 3, 4, 5, 6, 7, 8], vec![0x10, 1], vec![0x1e]] {
        let mut craft = Craft::new(&world, "127.0.0.1:0", &parameters()).await;
        let first = craft.packet(INITIAL, &frames, FULL);
        craft.send(&first).await;
        assert_eq!(craft.closed(LONG).await, Some(craft::PROTOCOL_VIOLATION), "{frames:?}");
    }
    good.is_answered().await;
}

#[tokio::test]
async fn p01_ids_that_are_replaced_without_end_are_bounded() {
    let world = World::new().await;
    let mut craft = Craft::connected(&world).await;
    craft.acknowledges = false;
    // Each takes the place of the one before, which the relay must give back; nothing of that is acknowledged. What it
    // may have on its way it gives back, a few more wait, and then the connection ends.
    let (mut given, mut ended) = (0, false);
    let flood = async {
        for round in 0.. {
            let ids = (1 + round * 30..).take(30).flat_map(|n| new_connection_id(n, n));
            craft.say(&ids.collect::<Vec<_>>()).await;
            while let Some(got) = craft.receive(Duration::from_millis(1)).await {
                given += got.iter().filter(|g| matches!(g, Got::RetireConnectionId(_))).count();
                // The reason, or that of a connection that is forgotten already: its window may have no room for words.
                ended |= got.iter().any(|g| matches!(g, Got::Close(craft::CONNECTION_ID_LIMIT) | Got::Sealed(..100)));
            }
            if ended {
                return;
            }
        }
    };
    // Before the relay would end it for the HELLO that does not come.
    timeout(world.relay.relay().timers.handshake / 2, flood).await.expect("it ends");
    assert!((1..5000).contains(&given), "{given}");
}

#[tokio::test]
async fn p01_path_challenges_without_end_get_few_answers_and_to_another_address_no_more_than_came() {
    let world = World::new().await;
    let good = Good::join(&world).await;
    let mut craft = Craft::connected(&world).await;
    let challenges: Vec<u8> = (0..120u64).flat_map(|n| [&[0x1a][..], &n.to_be_bytes()].concat()).collect();
    craft.say(&challenges).await;
    let mut answers = 0;
    while let Some(got) = craft.receive(SOON).await {
        answers += got.iter().filter(|g| matches!(g, Got::PathResponse(_))).count();
    }
    assert!((1..=16).contains(&answers), "{answers} answers to one packet");
    // From an address that has shown nothing, a thousand of them.
    let elsewhere = UdpSocket::bind("127.0.0.77:0").await.unwrap();
    let mut sent = 0;
    for _ in 0..1000 {
        let packet = craft.packet(DATA, &[0x1a, 1, 2, 3, 4, 5, 6, 7, 8], 0);
        sent += packet.len();
        elsewhere.send_to(&packet, craft.to).await.unwrap();
    }
    let (mut got, mut buffer) = (0, [0; 2048]);
    while let Ok(Ok(length)) = timeout(SOON, elsewhere.recv(&mut buffer)).await {
        got += length;
    }
    assert!(got <= 3 * sent, "{got} bytes for {sent}");
    good.is_answered().await;
}

/// Bytes of memory that this process holds.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Set for a second run of this program, with one test: the memory of a process is that of all its tests.
const ALONE: &str = "HEDGEROW_TEST_ALONE";

#[tokio::test]
async fn p01_data_with_gaps_costs_no_more_than_the_window_of_its_connection() {
    const PEERS: usize = 16;
    if std::env::var_os(ALONE).is_none() {
        let mut alone = tokio::process::Command::new(std::env::current_exe().unwrap());
        let name = "p01_data_with_gaps_costs_no_more_than_the_window_of_its_connection";
        let output = alone.args([name, "--exact", "--nocapture"]).env(ALONE, "1").output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    let world = World::new().await;
    let good = Good::join(&world).await;
    let mut peers = Vec::new();
    for _ in 0..PEERS {
        peers.push(Craft::connected(&world).await);
    }
    let before = resident();
    for craft in &mut peers {
        // Every other byte of all that may be sent before a peer is known, a few in each packet, the last ones first.
        let offsets: Vec<u64> = (0..32_000).map(|n| 1 + 2 * n).rev().collect();
        for some in offsets.chunks(160) {
            let frames: Vec<u8> = some.iter().flat_map(|at| stream(0, *at, b"x")).collect();
            craft.say(&frames).await;
            while craft.receive(Duration::from_micros(200)).await.is_some() {}
        }
    }
    good.is_answered().await;
    let each = resident().saturating_sub(before) / PEERS;
    assert!(each < 512 * 1024, "{each} bytes each");
    for craft in &mut peers {
        craft.say(&[1]).await;
        assert_eq!(craft.closed(Duration::from_millis(20)).await, None, "it is no more than was allowed");
    }
}

#[tokio::test]
async fn p01_resets_are_smaller_than_what_they_answer_and_guesses_end_no_link() {
    let world = World::new().await;
    let good = Good::join(&world).await;
    // Resets answer for connections that were; for ids that never were there is no answer at all.
    let mut craft = Craft::connected(&world).await;
    craft.say(&[0x1d, 0, 0]).await;
    let (mut buffer, theirs) = ([0; 2048], craft.theirs.clone());
    let packet = |length: usize| {
        let random = hedgerow_runtime::clock::random::<1200>();
        let mut packet = [&[0x40 | random[0] & 0x3f][..], &theirs, &random].concat();
        packet.truncate(length);
        packet
    };
    let forgotten = async {
        loop {
            craft.socket.send_to(&packet(900), craft.to).await.unwrap();
            // Shorter than what was said before the end, so a reset.
            match timeout(Duration::from_millis(50), craft.socket.recv(&mut buffer)).await {
                Ok(Ok(length)) if length < 100 && buffer[0] & 0xc0 == 0x40 => return,
                _ => {}
            }
        }
    };
    timeout(LONG, forgotten).await.expect("a reset");
    while timeout(SOON, craft.socket.recv(&mut buffer)).await.is_ok() {}
    let mut answered = 0;
    for length in [1, 5, 20, 21, 22, 30, 40, 43, 100, 1200] {
        craft.socket.send_to(&packet(length), craft.to).await.unwrap();
        if let Ok(got) = timeout(Duration::from_millis(200), craft.socket.recv(&mut buffer)).await {
            answered += 1;
            let got = got.unwrap();
            assert!(got < length, "{got} bytes for {length}");
        }
    }
    assert!(answered > 0);
    // Packets that end in a guess, for connection ids of all kinds.
    for _ in 0..20_000 {
        let mut packet = hedgerow_runtime::clock::random::<64>();
        packet[0] = 0x40 | packet[0] & 0x3f;
        craft.socket.send_to(&packet, craft.to).await.unwrap();
        if craft.socket.try_recv(&mut buffer).is_err() {
            tokio::task::yield_now().await;
        }
    }
    good.is_answered().await;
}

#[tokio::test]
async fn p01_nobody_gets_to_send_before_the_hand_shake_is_over_by_quic_or_tls() {
    let world = World::new().await;
    // Two connections by one client that would resume, and send early, if it could.
    let mut tls = Arc::unwrap_or_clone(tls::to_relay(&world.roots(), &[ALPN_LINK]).unwrap());
    tls.resumption = rustls::client::Resumption::in_memory_sessions(8);
    tls.enable_early_data = true;
    let tls = Arc::new(tls);
    let timers = world.relay.relay().timers;
    let config = quic::client_config(tls.clone(), &timers).unwrap();
    let address = world.relay.link[0];
    let endpoint = quic::client_endpoint(address, &Default::default(), &world.scope).unwrap();
    for round in 0..2 {
        let connecting = endpoint.connect_with(config.clone(), address, NAME).unwrap();
        let connection = match connecting.into_0rtt() {
            Ok(_) => panic!("early data in round {round}"),
            Err(connecting) => timeout(LONG, connecting).await.unwrap().unwrap(),
        };
        // Long enough for a ticket, were there one.
        tokio::time::sleep(Duration::from_millis(100)).await;
        connection.close(0u32.into(), b"");
    }
    let connector = tokio_rustls::TlsConnector::from(tls.clone());
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut io = timeout(LONG, connector.connect(NAME.try_into().unwrap(), tcp)).await.unwrap().unwrap();
    let _ = timeout(SOON, tokio::io::AsyncReadExt::read(&mut io, &mut [0; 1])).await;
    assert!(io.get_ref().1.tls13_tickets_received() > 0, "TLS over TCP resumes");
    let mut again = rustls::ClientConnection::new(tls, NAME.try_into().unwrap()).unwrap();
    assert!(again.early_data().is_none(), "but takes no early data");
    // A packet of early data beside the first one is no more than noise.
    let mut craft = Craft::new(&world, "127.0.0.1:0", &parameters()).await;
    let mut first = craft.first();
    let mut early = vec![0xd3, 0, 0, 0, 1, 8];
    early.extend(&craft.theirs);
    early.push(8);
    early.extend(OURS);
    early.extend([0x40, 40]);
    early.extend([9; 40]);
    first.extend(early);
    craft.send(&first).await;
    craft.shake().await;
}
