//! ClientHellos that no ordinary client sends, and what comes after them: answered, refused by an alert, or closed,
//! always at once, and never anything else.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
mod craft;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{LONG, NAME, World, config_for_tests};
use craft::{Craft, crypto};
use hedgerow_shared::wire::message::{ALPN_LANE, ALPN_LINK};
use rustls::ConnectionTrafficSecrets;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PROTOCOL_VERSION: u8 = 70;

/// What came back.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    ServerHello,
    Alert(u8),
    Closed,
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &(body.len() as u16).to_be_bytes(), body].concat()
}

fn list(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u16).to_be_bytes()[..], body].concat()
}

fn sni(name: &[u8]) -> Vec<u8> {
    extension(0, &list(&[&[0][..], &list(name)].concat()))
}

fn alpn<'a>(names: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let names: Vec<u8> = names.into_iter().flat_map(|n| [&[n.len() as u8][..], n].concat()).collect();
    extension(16, &list(&names))
}

/// What TLS 1.3 needs: versions, groups, a share of X25519, signature schemes.
fn needed() -> Vec<u8> {
    let share = [&[0, 0x1d][..], &list(&[9; 32])].concat();
    [
        extension(43, &[2, 3, 4]),
        extension(10, &list(&[0, 0x1d])),
        extension(51, &list(&share)),
        extension(13, &list(&[4, 3, 8, 4, 8, 5, 8, 6])),
    ]
    .concat()
}

/// A ClientHello with these extensions.
fn message(extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 4, 0x13, 0x01, 0xc0, 0x2b, 1, 0]);
    body.extend(list(extensions));
    [&[1][..], &(body.len() as u32).to_be_bytes()[1..], &body].concat()
}

fn records(message: &[u8], piece: usize) -> Vec<u8> {
    message.chunks(piece).flat_map(|c| [&[22, 3, 1][..], &list(c)].concat()).collect()
}

fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    records(&message(&[needed(), extensions.concat()].concat()), 16_000)
}

async fn ask(to: SocketAddr, bytes: &[u8]) -> Answer {
    let mut tcp = TcpStream::connect(to).await.unwrap();
    tcp.write_all(bytes).await.unwrap();
    let mut answer = [0; 7];
    match timeout(LONG, tcp.read_exact(&mut answer)).await.expect("an answer or an end") {
        Err(_) => Answer::Closed,
        Ok(_) if answer[0] == 22 && answer[5] == 2 => Answer::ServerHello,
        Ok(_) if answer[0] == 21 => Answer::Alert(answer[6]),
        Ok(_) => panic!("{answer:?}"),
    }
}

/// Each case at both doors, and none may have to wait for a limit.
async fn all(world: &World, cases: Vec<(&str, Vec<u8>, Answer)>) {
    let start = Instant::now();
    for (what, bytes, answer) in cases {
        for door in [world.relay.device[0], world.relay.link[0]] {
            assert_eq!(ask(door, &bytes).await, answer, "{what}");
        }
    }
    assert!(start.elapsed() < world.relay.relay().timers.handshake, "{:?}", start.elapsed());
}

#[tokio::test]
async fn p02_server_names_of_every_shape_are_answered_or_closed() {
    let world = World::new().await;
    let two = extension(0, &list(&[&[0][..], &list(NAME.as_bytes()), &[0], &list(b"b.example")].concat()));
    let kind = extension(0, &list(&[&[1][..], &list(NAME.as_bytes())].concat()));
    let lies = extension(0, &[0xff, 0xff, 0, 0, 1, b'a']);
    let label = format!("{}.example", "a".repeat(64));
    let long = ["a".repeat(63).as_str(), NAME].join(".");
    let cases = vec![
        ("none", hello(&[]), Answer::ServerHello),
        ("its own", hello(&[sni(NAME.as_bytes())]), Answer::ServerHello),
        ("upper and lower case", hello(&[sni(b"ReLaY.eXaMpLe")]), Answer::ServerHello),
        ("an IPv4 address", hello(&[sni(b"127.0.0.1")]), Answer::ServerHello),
        ("an IPv6 address", hello(&[sni(b"::1")]), Answer::ServerHello),
        ("empty", hello(&[sni(b"")]), Answer::Closed),
        ("an empty list", hello(&[extension(0, &list(b""))]), Answer::Closed),
        ("an empty extension", hello(&[extension(0, b"")]), Answer::Closed),
        ("255 bytes", hello(&[sni(&[b'a'; 255])]), Answer::Closed),
        ("256 bytes with dots", hello(&[sni("abcdefg.".repeat(32).as_bytes())]), Answer::Closed),
        ("60,000 bytes", hello(&[sni(&[b'a'; 14_000])]), Answer::Closed),
        ("a label of 64", hello(&[sni(label.as_bytes())]), Answer::Closed),
        ("somebody's below ours", hello(&[sni(long.as_bytes())]), Answer::Closed),
        ("a NUL inside", hello(&[sni(b"relay.example\0.evil.example")]), Answer::Closed),
        ("a NUL behind", hello(&[sni(b"relay.example\0")]), Answer::Closed),
        ("spaces", hello(&[sni(b" relay.example")]), Answer::Closed),
        ("a line's end", hello(&[sni(b"relay.example\r\n")]), Answer::Closed),
        ("no text", hello(&[sni(b"\xff\xfe.example")]), Answer::Closed),
        ("two names", hello(&[two]), Answer::Closed),
        ("twice", hello(&[sni(NAME.as_bytes()), sni(NAME.as_bytes())]), Answer::Closed),
        ("of another kind", hello(&[kind]), Answer::Closed),
        ("a length that lies", hello(&[lies]), Answer::Closed),
    ];
    all(&world, cases).await;
}

#[tokio::test]
async fn p02_protocols_that_are_missing_unknown_or_a_thousand_are_answered_or_refused_by_an_alert() {
    let world = World::new().await;
    let many: Vec<Vec<u8>> = (0..1000).map(|n| format!("x/{n}").into_bytes()).collect();
    let with_ours = |ours: &'static [u8]| alpn(many.iter().map(Vec::as_slice).chain([ours]));
    let cases = vec![
        ("missing", hello(&[]), Answer::ServerHello),
        ("ours behind a thousand", hello(&[with_ours(ALPN_LINK)]), Answer::ServerHello),
        ("a lane's behind a thousand", hello(&[with_ours(ALPN_LANE)]), Answer::ServerHello),
        ("HTTP/2 behind a thousand", hello(&[with_ours(b"h2")]), Answer::ServerHello),
        ("given twice", hello(&[alpn([&b"h2"[..]]), alpn([&b"h2"[..]])]), Answer::Closed),
        ("a length that lies", hello(&[extension(16, &[0, 9, 200, b'h', b'2'])]), Answer::Closed),
    ];
    all(&world, cases).await;
    // These pass the look at the door, and TLS refuses them.
    for bytes in [hello(&[alpn([])]), hello(&[alpn([&b""[..]])])] {
        let answer = ask(world.relay.device[0], &bytes).await;
        assert!(matches!(answer, Answer::Alert(_)), "{answer:?}");
    }
    // The alert comes sealed: a client that knows TLS reads it.
    for unknown in [&[b"spdy/3".to_vec()][..], &[vec![b'x'; 255]], &many] {
        let mut config = Arc::unwrap_or_clone(config_for_tests(&[], &world.roots()));
        config.alpn_protocols = unknown.to_vec();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let error = connector.connect(NAME.try_into().unwrap(), world.tcp().await).await.unwrap_err().to_string();
        assert!(error.contains("NoApplicationProtocol"), "{error}");
    }
}

#[tokio::test]
async fn p02_hellos_in_pieces_too_large_or_too_old_are_answered_or_closed() {
    let world = World::new().await;
    let whole = message(&[needed(), sni(NAME.as_bytes())].concat());
    let old: Vec<u8> = [extension(10, &list(&[0, 0x1d])), extension(13, &list(&[4, 3])), sni(NAME.as_bytes())].concat();
    let first = |rest: &[u8]| [&records(&whole[..40], 40)[..], rest].concat();
    let mut cut_short = whole.clone();
    cut_short.truncate(100);
    cut_short[1..4].copy_from_slice(&[0, 0, 96]);
    let cases = vec![
        ("one byte a record", records(&whole, 1), Answer::ServerHello),
        ("seven bytes a record", records(&whole, 7), Answer::ServerHello),
        ("padded to 14,000 bytes", hello(&[extension(21, &[0; 14_000])]), Answer::ServerHello),
        ("an extension nobody knows of 14,000 bytes", hello(&[extension(0xfafa, &[1; 14_000])]), Answer::ServerHello),
        (
            "an extension of 17,000 bytes",
            records(&message(&[needed(), extension(21, &[0; 17_000])].concat()), 16_000),
            Answer::Closed,
        ),
        (
            "a length that reaches beyond",
            records(&message(&[needed(), vec![0xfa, 0xfa, 0xff, 0xff, 1]].concat()), 16_000),
            Answer::Closed,
        ),
        ("a body cut short", records(&cut_short, 200), Answer::Closed),
        ("an empty record", first(&[22, 3, 1, 0, 0]), Answer::Closed),
        ("close_notify inside", first(&[21, 3, 1, 0, 2, 1, 0]), Answer::Closed),
        ("data inside", first(&[23, 3, 3, 0, 1, 0]), Answer::Closed),
        ("close_notify first", vec![21, 3, 3, 0, 2, 1, 0], Answer::Closed),
        ("a ServerHello", records(&[&[2][..], &whole[1..]].concat(), 500), Answer::Closed),
        ("SSL 2", vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 16], Answer::Closed),
        ("TLS 1.2 and no newer", records(&message(&old), 500), Answer::Alert(PROTOCOL_VERSION)),
    ];
    all(&world, cases).await;
}

/// RUSTSEC-2024-0336: an end that is said in the middle of the hand-shake made rustls turn in a loop.
#[tokio::test]
async fn p02_close_notify_in_the_hand_shake_ends_the_connection() {
    let world = World::new().await;
    let alert = [21, 3, 3, 0, 2, 1, 0];
    for end in [&alert[..], &[20, 3, 3, 0, 1, 1, 21, 3, 3, 0, 2, 1, 0], &[22, 3, 3, 0, 4, 0, 0, 0, 0]] {
        let bytes = [&hello(&[sni(NAME.as_bytes())])[..], end].concat();
        let mut tcp = TcpStream::connect(world.relay.device[0]).await.unwrap();
        tcp.write_all(&bytes).await.unwrap();
        let closed = async { while tcp.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {} };
        timeout(Duration::from_secs(5), closed).await.unwrap_or_else(|_| panic!("{end:?}: it stays open"));
    }
    assert!(timeout(LONG, world.tls(NAME, b"h2")).await.unwrap().is_ok());
}

/// One record under the client's keys of TLS 1.3.
fn sealed(secrets: &ConnectionTrafficSecrets, sequence: u64, kind: u8, content: &[u8]) -> Vec<u8> {
    use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
    let (algorithm, key, iv) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
        _ => panic!("another algorithm"),
    };
    let mut nonce: [u8; 12] = iv.as_ref().try_into().unwrap();
    nonce[4..].iter_mut().zip(sequence.to_be_bytes()).for_each(|(n, s)| *n ^= s);
    let mut inner = [content, &[kind]].concat();
    let header = [&[23, 3, 3][..], &((inner.len() + 16) as u16).to_be_bytes()].concat();
    let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).unwrap());
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&header), &mut inner).unwrap();
    [header, inner].concat()
}

#[tokio::test]
async fn p02_who_renegotiates_is_cut_off_over_tls_and_quic() {
    let world = World::new().await;
    let again = message(&[needed(), sni(NAME.as_bytes())].concat());
    for (what, kind, content) in [
        ("a ClientHello", 22, again.clone()),
        ("a HelloRequest", 22, vec![0, 0, 0, 0]),
        ("a change of ciphers, sealed", 20, vec![1]),
    ] {
        let mut config = Arc::unwrap_or_clone(config_for_tests(&[b"http/1.1"], &world.roots()));
        config.enable_secret_extraction = true;
        let tcp = TcpStream::connect(world.relay.device[0]).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let tls = connector.connect(NAME.try_into().unwrap(), tcp).await.unwrap();
        let (mut tcp, connection) = tls.into_inner();
        let secrets = connection.dangerous_extract_secrets().unwrap();
        // A request shows that the keys are right.
        let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        tcp.write_all(&sealed(&secrets.tx.1, secrets.tx.0, 23, request)).await.unwrap();
        let mut answer = vec![0; 16_384];
        while let Ok(read) = timeout(Duration::from_millis(300), tcp.read(&mut answer)).await {
            assert!(read.unwrap() > 0, "the keys are wrong");
        }
        tcp.write_all(&sealed(&secrets.tx.1, secrets.tx.0 + 1, kind, &content)).await.unwrap();
        let closed = async { while tcp.read(&mut answer).await.is_ok_and(|n| n > 0) {} };
        timeout(Duration::from_secs(5), closed).await.unwrap_or_else(|_| panic!("{what}: it stays open"));
    }
    let mut craft = Craft::connected(&world).await;
    craft.say(&crypto(0, &again)).await;
    // CRYPTO_ERROR and the alert unexpected_message.
    assert_eq!(craft.closed(LONG).await, Some(0x100 + 10));
}
