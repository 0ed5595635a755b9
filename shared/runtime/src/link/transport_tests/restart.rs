//! A relay that is killed and started again under links that may use nothing but QUIC.

use std::collections::BTreeSet;

use super::*;

#[tokio::test]
async fn n02_a_relay_that_is_started_again_is_asked_anew_instead_of_waited_for() {
    // A killed process says no goodbye: this relay's tasks are dropped where they stand.
    let process = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut first = process.spawn(relay(Limits::default())).await.unwrap();
    let scope = Scope::new();
    // One attempt with QUIC's own doubling pauses would outlast this test.
    let patient = Timers { handshake: LONG * 3, ping_interval: Duration::from_millis(600), ..timers() };
    let config = UplinkConfig {
        relays: vec![first.target.clone()],
        credentials: credentials(),
        instance: instance(),
        timers: patient,
        transport: Choice::Quic,
        twins: Twins::default(),
    };
    let uplink = Uplink::start(config, &scope);
    let before = until(&uplink, |_| true).await;
    first.links.recv().await.unwrap();
    let (port, identity) = (first.port, first.identity.clone());
    process.shutdown_background();
    drop(first);
    let silent = free_again(port).await;
    let (mut attempts, mut buffer) = (BTreeSet::new(), [0; 2048]);
    while attempts.len() < 2 {
        let (_, from) = timeout(LONG, silent.recv_from(&mut buffer)).await.expect("attempts go on").unwrap();
        // A first packet: every attempt has a socket of its own.
        if buffer[0] & 0xf0 == 0xc0 {
            attempts.insert(from);
        }
    }
    drop(silent);
    let mut second = relay_at(
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), free_again(port).await),
        Limits::default(),
        identity,
    );
    let after = until(&uplink, |link| link.accept.session != before.accept.session).await;
    assert_eq!(after.transport, Transport::Quic);
    stream(&after, &second.links.recv().await.unwrap()).await;
}

/// The port, as soon as whoever had it has let it go.
async fn free_again(port: SocketAddr) -> UdpSocket {
    let bound = async {
        loop {
            match UdpSocket::bind(port).await {
                Ok(socket) => return socket,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    timeout(LONG, bound).await.expect("the port is free again")
}
