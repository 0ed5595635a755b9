//! What the relay does with the first bytes of a connection.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::Write;
use std::time::{Duration, Instant};

use common::{LONG, NAME, World, config_for_tests};
use hedgerow_runtime::tls::{self, RelayRoots};
use hedgerow_shared::wire::message::ALPN_LINK;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Whether the relay closes the connection, by FIN or RST, without a word.
async fn is_closed(tcp: &mut TcpStream) -> bool {
    let mut bytes = Vec::new();
    match timeout(LONG, tcp.read_to_end(&mut bytes)).await {
        Ok(Ok(_)) => bytes.is_empty(),
        Ok(Err(_)) => true,
        Err(_) => false,
    }
}

#[tokio::test]
async fn unknown_first_bytes_are_closed_at_once() {
    let world = World::new().await;
    let start = Instant::now();
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"SSH-2.0-x\r\n",
        b"\0\0\0\0",
        b"HGLN\x02",
        b"\x16\x02\x00\x00\x10",
        b"\x16\x03\x01\x00\x00",
    ] {
        let mut tcp = world.tcp().await;
        tcp.write_all(bytes).await.unwrap();
        assert!(is_closed(&mut tcp).await, "{bytes:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(5), "closed by the time limit, not at once");
}

#[tokio::test]
async fn an_oversize_client_hello_is_closed_before_it_is_whole() {
    let world = World::new().await;
    let mut tcp = world.tcp().await;
    // A handshake message of 60,000 bytes, announced in its first record.
    tcp.write_all(&[22, 3, 1, 0x40, 0, 1, 0, 0xea, 0x60]).await.unwrap();
    assert!(is_closed(&mut tcp).await);
}

#[tokio::test]
async fn foreign_names_and_names_under_lane_without_a_ticket_are_closed() {
    let world = World::new().await;
    for name in ["other.example", "x.lane.relay.example", "lane.relay.example", "x.relay.example"] {
        assert!(world.tls(name, b"http/1.1").await.is_err(), "{name}");
    }
    for name in [NAME, "localhost", "127.0.0.1", "RELAY.example"] {
        assert!(world.tls(name, b"http/1.1").await.is_ok(), "{name}");
    }
}

#[tokio::test]
async fn a_client_hello_in_tiny_records_and_segments_is_understood() {
    let world = World::new().await;
    let config = config_for_tests(&[b"http/1.1"], &world.roots());
    let mut client = rustls::ClientConnection::new(config, NAME.try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let mut tcp = world.tcp().await;
    tcp.set_nodelay(true).unwrap();
    for piece in hello[5..].chunks(700) {
        let record = [&[22, 3, 1][..], &u16::try_from(piece.len()).unwrap().to_be_bytes(), piece].concat();
        for part in record.chunks(300) {
            tcp.write_all(part).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    let mut input = vec![0; 16_384];
    while client.is_handshaking() {
        let n = timeout(LONG, tcp.read(&mut input)).await.unwrap().unwrap();
        assert!(n > 0, "closed during the hand-shake");
        client.read_tls(&mut &input[..n]).unwrap();
        client.process_new_packets().unwrap();
    }
    client.writer().write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut output = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut output).unwrap();
    }
    tcp.write_all(&output).await.unwrap();
    assert!(timeout(LONG, tcp.read(&mut input)).await.unwrap().unwrap() > 0);
}

#[tokio::test]
async fn a_silent_peer_and_one_that_dribbles_are_closed_by_the_time_limit() {
    let world = World::new().await;
    let limit = world.relay.relay().timers.handshake;
    let start = Instant::now();
    let mut silent = world.tcp().await;
    let mut dribbling = world.tcp().await;
    let (read, mut write) = dribbling.split();
    let dribble = async {
        let mut read = read;
        let hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 252][..], &[0; 500]].concat();
        for byte in hello {
            if write.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            if matches!(timeout(Duration::from_millis(1), read.read(&mut [0])).await, Ok(Ok(0) | Err(_))) {
                break;
            }
        }
    };
    let (closed, ()) = tokio::join!(is_closed(&mut silent), dribble);
    assert!(closed);
    let took = start.elapsed();
    assert!(took > limit - Duration::from_secs(1) && took < limit + Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn silent_peers_make_room_for_a_good_one() {
    for (handshakes, connections) in [(8, 1000), (1000, 8)] {
        let world =
            World::with(|config| (config.limits.handshakes, config.limits.connections) = (handshakes, connections))
                .await;
        let mut silent = Vec::new();
        for _ in 0..40 {
            silent.push(world.tcp().await);
        }
        let start = Instant::now();
        assert!(world.tls(NAME, b"http/1.1").await.is_ok());
        assert!(is_closed(&mut silent[0]).await, "the oldest made room");
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn a_replaced_certificate_is_used_without_a_restart() {
    let world = World::new().await;
    let leaf = async || world.tls(NAME, b"http/1.1").await.unwrap().get_ref().1.peer_certificates().unwrap()[0].clone();
    let before = leaf().await;
    let state = world.relay.control.parent().unwrap().to_owned();
    std::fs::remove_file(state.join("relay.key")).unwrap();
    world.relay.certificate.reload().unwrap();
    let after = leaf().await;
    assert_ne!(before, after);
    std::fs::write(state.join("relay.pem"), "nonsense").unwrap();
    assert!(world.relay.certificate.reload().is_err());
    assert_eq!(leaf().await, after, "the old one stays");
}

#[tokio::test]
async fn a_certificate_whose_files_change_is_used_over_tls_and_quic_without_being_told() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("relay.crt"), folder.path().join("relay.crt.key"));
    let replace = |by: &rcgen::CertifiedKey<rcgen::KeyPair>| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(&certificate, by.cert.pem()).unwrap();
        std::fs::write(&key, by.signing_key.serialize_pem()).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    let make = || rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).unwrap();
    let (first, second) = (make(), make());
    replace(&first);
    let (at, key_at) = (certificate.clone(), key.clone());
    let world = World::with(|config| (config.tls.certificate, config.tls.key_file) = (Some(at), Some(key_at))).await;
    let trusting = |by: &rcgen::CertifiedKey<rcgen::KeyPair>| RelayRoots::Ca(vec![by.cert.der().clone()]);
    let shows = async |roots: &RelayRoots| {
        let config = config_for_tests(&[b"http/1.1"], roots);
        let tcp = world.tcp().await;
        tokio_rustls::TlsConnector::from(config).connect(NAME.try_into().unwrap(), tcp).await.is_ok()
    };
    assert!(shows(&trusting(&first)).await && !shows(&trusting(&second)).await);
    // A key that does not fit is no reason to stop.
    std::fs::write(&key, second.signing_key.serialize_pem()).unwrap();
    let why = world.relay.certificate.reload().unwrap_err().to_string();
    assert!(why.contains("relay.crt") && why.contains("relay.crt.key"), "{why}");
    assert!(shows(&trusting(&first)).await, "the old one stays");
    replace(&second);
    let changed = async {
        while !shows(&trusting(&second)).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(LONG, changed).await.expect("read again by itself");
    // QUIC shows the new one to the very next connection.
    let tls = tls::to_relay(&trusting(&second), &[ALPN_LINK]).unwrap();
    let timers = world.relay.relay().timers;
    let config = hedgerow_runtime::quic::client_config(tls, &timers).unwrap();
    let port = world.relay.link[0];
    let endpoint = hedgerow_runtime::quic::client_endpoint(port, &Default::default(), &world.scope).unwrap();
    timeout(LONG, endpoint.connect_with(config, port, NAME).unwrap()).await.unwrap().unwrap();
}
