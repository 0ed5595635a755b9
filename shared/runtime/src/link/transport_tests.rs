//! Links over QUIC on loopback, the choice of the transport, and what happens when UDP dies or a relay drains.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hedgerow_shared::limits::{self, Timers};
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::VerifiedCertificate;
use hedgerow_shared::wire::message::{ALPN_LINK, Claim, Control, GoAway, Limits, Refuse, Wake};
use hedgerow_shared::{InstanceId, Role, TenantId};
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::clock::random;
use crate::dial::{self, RelayTarget};
use crate::quic;
use crate::scope::Scope;
use crate::tls::{self, RelayRoots};

const LONG: Duration = Duration::from_secs(20);

struct Door;

impl Admit for Door {
    fn srp_key(&self, tenant: &TenantId) -> Option<Secret> {
        (tenant.as_str() == "S12345678").then(|| Secret::new(vec![7; 32]))
    }

    fn certificate(&self, _: &Claim, _: &CertificateDer<'_>) -> Result<VerifiedCertificate, Fault> {
        Err(Fault::new(Code::Unauthenticated, "this relay takes cores"))
    }

    fn accept(&self, peer: &Peer) -> Result<Accept, Refuse> {
        Ok(Accept { session: peer.session, relay: "relay.test".into(), lookup_key: None, config: None, time: 0 })
    }
}

/// A relay that speaks both transports on one port, as far as links go.
struct Relay {
    target: RelayTarget,
    port: SocketAddr,
    links: mpsc::Receiver<Link>,
    /// What it shows.
    identity: Identity,
    scope: Scope,
}

fn timers() -> Timers {
    Timers {
        udp_retry: Duration::from_millis(400),
        drain: Duration::from_secs(5),
        lane_wait: Duration::from_millis(50),
        ..Timers::default()
    }
}

async fn relay(limits: Limits) -> Relay {
    relay_at(both_ports().await, limits, identity())
}

/// A relay at these ports.
fn relay_at((listener, socket): (TcpListener, UdpSocket), limits: Limits, identity: Identity) -> Relay {
    let (certificate, config) = identity.clone();
    let scope = Scope::new();
    let port = socket.local_addr().unwrap();
    let endpoint = quinn::Endpoint::new(
        quic::endpoint_config(),
        Some(quic::server_config(&config, &timers()).unwrap()),
        socket.into_std().unwrap(),
        Arc::new(quic::Tasks(scope.clone())),
    )
    .unwrap();
    let (sender, links) = mpsc::channel(64);
    let (tasks, sent) = (scope.clone(), sender.clone());
    scope.spawn(async move {
        loop {
            let (tcp, address) = listener.accept().await.unwrap();
            let Ok(stream) = TlsAcceptor::from(config.clone()).accept(tcp).await else { continue };
            let instance = InstanceId::from_random([1; 16]);
            let done = answer(stream, address.to_string(), &Door, limits, instance, &timers(), &tasks).await;
            if let Ok((link, _)) = done {
                sent.send(link).await.unwrap();
            }
        }
    });
    let tasks = scope.clone();
    scope.spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let Ok(connection) = incoming.await else { continue };
            let instance = InstanceId::from_random([1; 16]);
            if let Ok((link, _)) = answer_quic(connection, &Door, limits, instance, &timers(), &tasks).await {
                sender.send(link).await.unwrap();
            }
        }
    });
    let roots = RelayRoots::Ca(vec![certificate]);
    let target = RelayTarget::new(vec![port.to_string()], "relay.test", roots);
    Relay { target, port, links, identity, scope }
}

/// A certificate and what shows it.
type Identity = (CertificateDer<'static>, Arc<rustls::ServerConfig>);

fn identity() -> Identity {
    let key = rcgen::generate_simple_self_signed(vec!["relay.test".to_owned()]).unwrap();
    let certificate = key.cert.der().clone();
    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()).into();
    let config = tls::as_relay(vec![certificate.clone()], private, &[ALPN_LINK]).unwrap();
    (certificate, config)
}

/// A number that is free for TCP and UDP.
async fn both_ports() -> (TcpListener, UdpSocket) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            return (tcp, udp);
        }
    }
}

/// A network between the dialler and the relay, whose UDP can be cut.
struct Network {
    target: RelayTarget,
    udp: Arc<AtomicBool>,
}

impl Network {
    async fn before(relay: &Relay, passes: bool) -> Self {
        let (listener, socket) = both_ports().await;
        let target =
            RelayTarget { addresses: vec![listener.local_addr().unwrap().to_string()], ..relay.target.clone() };
        let (port, scope, udp) = (relay.port, relay.scope.clone(), Arc::new(AtomicBool::new(passes)));
        scope.clone().spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                scope.spawn(async move {
                    let mut far = TcpStream::connect(port).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        let (passes, scope) = (udp.clone(), relay.scope.clone());
        scope.clone().spawn(async move {
            let socket = Arc::new(socket);
            let mut behind: std::collections::HashMap<SocketAddr, Arc<UdpSocket>> = Default::default();
            let mut buffer = vec![0; 65536];
            loop {
                let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
                if !passes.load(Ordering::Relaxed) {
                    continue;
                }
                if let std::collections::hash_map::Entry::Vacant(new) = behind.entry(from) {
                    let far = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                    far.connect(port).await.unwrap();
                    new.insert(far.clone());
                    let (near, passes) = (socket.clone(), passes.clone());
                    scope.spawn(async move {
                        let mut buffer = vec![0; 65536];
                        loop {
                            let Ok(length) = far.recv(&mut buffer).await else { continue };
                            if passes.load(Ordering::Relaxed) {
                                let _ = near.send_to(&buffer[..length], from).await;
                            }
                        }
                    });
                }
                let _ = behind[&from].send(&buffer[..length]).await;
            }
        });
        Self { target, udp }
    }
}

fn credentials() -> Credentials {
    Credentials::Srp { tenant: "S12345678".parse().unwrap(), key: Secret::new(vec![7; 32]) }
}

fn instance() -> InstanceId {
    InstanceId::from_random(random())
}

async fn pair(relay: &mut Relay) -> (Link, Link) {
    let ours = connect_quic(&relay.target, &credentials(), instance(), &timers(), &relay.scope).await.unwrap();
    (ours, relay.links.recv().await.unwrap())
}

async fn stream(opener: &Link, other: &Link) -> (Stream, Stream) {
    let (ours, theirs) = tokio::join!(opener.mux.open(&1u8), async { other.mux.accept().await.unwrap().accept() });
    (ours.unwrap(), theirs)
}

#[tokio::test]
async fn p01_streams_pass_over_quic_in_both_directions() {
    let mut relay = relay(Limits::default()).await;
    let (ours, theirs) = pair(&mut relay).await;
    assert_eq!((ours.transport, theirs.transport), (Transport::Quic, Transport::Quic));
    for (opener, other) in [(&ours, &theirs), (&theirs, &ours)] {
        let (mut a, mut b) = stream(opener, other).await;
        // More than every window, so that credit has to move.
        let (done, sent) = tokio::sync::oneshot::channel();
        relay.scope.spawn(async move {
            for n in 0..600u32 {
                a.write_chunk(Bytes::from(vec![n as u8; 100_000])).await.unwrap();
            }
            a.finish();
            done.send(a).unwrap();
        });
        let mut got = 0;
        while let Some(chunk) = b.read_chunk().await.unwrap() {
            assert!(chunk.iter().enumerate().all(|(i, byte)| *byte == ((got + i) / 100_000) as u8));
            got += chunk.len();
        }
        assert_eq!(got, 60_000_000);
        // Half-closed: the other direction still works.
        b.write_chunk(Bytes::from_static(b"thanks")).await.unwrap();
        b.finish();
        let mut a = sent.await.unwrap();
        assert_eq!(a.read_chunk().await.unwrap().unwrap(), "thanks");
        assert_eq!(a.read_chunk().await.unwrap(), None);
    }
    timeout(LONG, async {
        while ours.mux.open_streams() + theirs.mux.open_streams() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("ended streams do not count as open");
    relay.scope.stop(LONG).await;
}

#[tokio::test]
async fn a_reset_ends_both_directions_with_its_code_and_its_text() {
    let mut relay = relay(Limits::default()).await;
    let (ours, theirs) = pair(&mut relay).await;
    let (mut a, b) = stream(&ours, &theirs).await;
    let (mut read, write) = b.into_split();
    let (done, ended) = tokio::sync::oneshot::channel();
    relay.scope.spawn(async move { done.send(write.ended().await).unwrap() });
    let why = Fault::new(Code::ConnectionReset, "the application went away");
    a.reset(why.clone());
    assert_eq!(timeout(LONG, read.read_chunk()).await.unwrap().unwrap_err(), why);
    assert_eq!(timeout(LONG, ended).await.unwrap().unwrap(), why);
    assert_eq!(a.read_chunk().await.unwrap_err().code, Code::ConnectionReset);
    assert_eq!(a.write_chunk(Bytes::from_static(b"x")).await.unwrap_err().code, Code::ConnectionReset);
    // Whoever writes learns it too, and many at once do not mix up their reasons.
    let mut pairs = Vec::new();
    for n in 0..50 {
        let (mut a, b) = stream(&ours, &theirs).await;
        a.reset(Fault::new(Code::DeniedByPolicy, format!("reason {n}")));
        pairs.push((a, b));
    }
    for (n, (_a, b)) in pairs.iter_mut().enumerate() {
        let writes = async {
            loop {
                if let Err(fault) = b.write_chunk(Bytes::from(vec![0; 1000])).await {
                    return fault;
                }
            }
        };
        assert_eq!(timeout(LONG, writes).await.unwrap(), Fault::new(Code::DeniedByPolicy, format!("reason {n}")));
    }
    // A stream that is dropped unfinished is reset too.
    let (a, mut b) = stream(&ours, &theirs).await;
    drop(a);
    assert!(timeout(LONG, b.read_chunk()).await.unwrap().is_err());
}

#[tokio::test]
async fn what_was_finished_arrives_although_the_link_closes_at_once() {
    let mut relay = relay(Limits::default()).await;
    let (ours, theirs) = pair(&mut relay).await;
    let (mut a, mut b) = stream(&ours, &theirs).await;
    a.write_chunk(Bytes::from(vec![5; 500_000])).await.unwrap();
    a.finish();
    drop(a);
    ours.mux.send_control(&Wake { roles: vec![Role::Node], ids: vec![] }.into()).unwrap();
    ours.mux.close(Fault::new(Code::Draining, "done"));
    let mut got = 0;
    while let Some(chunk) = timeout(LONG, b.read_chunk()).await.unwrap().unwrap() {
        got += chunk.len();
    }
    assert_eq!(got, 500_000);
    assert!(matches!(theirs.mux.next_control().await.unwrap(), Control::Wake(_)));
    assert_eq!(timeout(LONG, theirs.mux.closed()).await.unwrap(), Fault::new(Code::Draining, "done"));
    assert_eq!(timeout(LONG, ours.mux.closed()).await.unwrap().code, Code::Draining);
    assert!(theirs.mux.accept().await.is_none() && theirs.mux.next_control().await.is_none());
}

#[tokio::test]
async fn as_many_streams_as_a_peer_was_promised_can_be_open_at_once_over_quic() {
    const MANY: usize = 1000;
    let mut relay = relay(Limits { streams: MANY as u32, ..Limits::default() }).await;
    let (ours, theirs) = pair(&mut relay).await;
    let (accepting, mut held) = (theirs.mux.clone(), Vec::new());
    let serve = async {
        let mut served = Vec::new();
        while served.len() < MANY {
            served.push(accepting.accept().await.unwrap().accept());
        }
        served
    };
    let open = futures_util::future::join_all((0..MANY).map(|_| ours.mux.open(&1u8)));
    let (opened, served) = timeout(LONG, async { tokio::join!(open, serve) }).await.expect("there is room for all");
    held.extend(opened.into_iter().map(Result::unwrap));
    assert_eq!((held.len(), served.len()), (MANY, MANY));
    assert_eq!(ours.mux.open(&1u8).await.unwrap_err().code, Code::Limited, "and for no more");
}

#[tokio::test]
async fn refusals_limits_and_going_away_hold_as_on_tls() {
    let mut relay = relay(Limits { streams: 2, ..Limits::default() }).await;
    let (ours, theirs) = pair(&mut relay).await;
    let refused = async { theirs.mux.accept().await.unwrap().refuse(Fault::new(Code::DeniedByPolicy, "not this one")) };
    let (answer, ()) = tokio::join!(ours.mux.open(&1u8), refused);
    assert_eq!(answer.unwrap_err(), Fault::new(Code::DeniedByPolicy, "not this one"));
    let dropped = async { drop(theirs.mux.accept().await.unwrap()) };
    let (answer, ()) = tokio::join!(ours.mux.open(&1u8), dropped);
    assert_eq!(answer.unwrap_err().code, Code::Internal);

    let long = "x".repeat(limits::MAX_OPEN_HEADER);
    assert_eq!(ours.mux.open(&long).await.unwrap_err().code, Code::Protocol);
    let _first = stream(&ours, &theirs).await;
    let _second = stream(&ours, &theirs).await;
    assert_eq!(ours.mux.open(&1u8).await.unwrap_err().code, Code::Limited);

    ours.mux.go_away(&GoAway { fault: Fault::new(Code::Draining, "soon"), return_after_ms: 5, alternatives: vec![] });
    assert_eq!(timeout(LONG, theirs.mux.peer_going_away()).await.unwrap().return_after_ms, 5);
    assert_eq!(theirs.mux.open(&1u8).await.unwrap_err().code, Code::Draining);
    assert_eq!(ours.mux.open(&1u8).await.unwrap_err().code, Code::Draining);
}

#[tokio::test]
async fn control_messages_are_bounded_and_held_back_while_nobody_takes_them() {
    let mut relay = relay(Limits::default()).await;
    let (ours, theirs) = pair(&mut relay).await;
    let message: Control = Wake { roles: vec![Role::Node; 100], ids: vec![] }.into();
    let mut sent = 0;
    let fault = loop {
        match ours.mux.send_control(&message) {
            Ok(()) => sent += 1,
            Err(fault) => break fault,
        }
        if sent % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(sent < 1_000_000, "the queue has a bound");
    };
    assert_eq!(fault.code, Code::Limited);
    // All of them arrive, in the end.
    for _ in 0..sent {
        timeout(LONG, theirs.mux.next_control()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn datagrams_pass_and_those_too_large_are_dropped() {
    let mut relay = relay(Limits::default()).await;
    let (ours, theirs) = pair(&mut relay).await;
    let metrics = crate::telemetry::Metrics::install();
    let counted = || {
        let shown = metrics.render();
        let line = shown.lines().find(|l| l.contains("reason=\"datagram_too_large\"")).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let before = counted();
    ours.mux.send_datagram(Bytes::from(vec![1; limits::MAX_DATAGRAM + 1]));
    // The peer takes this one, but the path carries no packet of its size.
    let Channel::Quic(mux) = &ours.mux else { panic!("a QUIC link") };
    assert!(mux.max_datagram() < 1500, "{}", mux.max_datagram());
    ours.mux.send_datagram(Bytes::from(vec![1; 1500]));
    assert!(counted() >= before + 2.0, "both are counted, by their reason");
    ours.mux.send_datagram(Bytes::from(vec![2; 1000]));
    assert_eq!(timeout(LONG, theirs.mux.next_datagram()).await.unwrap().unwrap(), vec![2; 1000]);
    mux.probe(Duration::from_secs(5)).await.unwrap();
    // A probe is not the application's datagram.
    assert!(timeout(Duration::from_millis(50), theirs.mux.next_datagram()).await.is_err());
}

#[tokio::test]
async fn a_peer_that_does_not_say_who_it_is_can_open_one_stream_and_is_cut_in_time() {
    let relay = relay(Limits::default()).await;
    let tls = tls::to_relay(&relay.target.roots, &[ALPN_LINK]).unwrap();
    let config = quic::client_config(tls, &timers()).unwrap();
    let endpoint = quic::client_endpoint(relay.port, &Default::default(), &relay.scope).unwrap();
    let connection = endpoint.connect_with(config, relay.port, "relay.test").unwrap().await.unwrap();
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    assert!(timeout(Duration::from_millis(200), connection.open_bi()).await.is_err(), "only one stream before ACCEPT");
    assert!(timeout(Duration::from_millis(200), connection.open_uni()).await.is_err());
    // Nor can it make the relay hold much: the window ends, or the relay has refused what is no HELLO.
    let flood = timeout(Duration::from_secs(5), send.write_all(&vec![0; 10 * 1024 * 1024])).await;
    assert!(!matches!(flood, Ok(Ok(()))), "10 MiB do not go through");
}

#[tokio::test]
async fn a_wrong_key_and_a_strangers_certificate_are_refused_over_quic_too() {
    let relay = relay(Limits::default()).await;
    let wrong = Credentials::Srp { tenant: "S12345678".parse().unwrap(), key: Secret::new(vec![8; 32]) };
    let error = connect_quic(&relay.target, &wrong, instance(), &timers(), &relay.scope).await.unwrap_err();
    assert!(error.to_string().contains("does not know this tenant's SRP authentication key"), "{error}");
    let other = rcgen::generate_simple_self_signed(vec!["relay.test".to_owned()]).unwrap();
    let target = RelayTarget { roots: RelayRoots::Ca(vec![other.cert.der().clone()]), ..relay.target.clone() };
    let error = connect_quic(&target, &credentials(), instance(), &timers(), &relay.scope).await.unwrap_err();
    assert!(matches!(error, LinkError::Failed(Fault { code: Code::Unauthenticated, .. })), "{error}");
}

#[tokio::test]
async fn n02_a_link_survives_a_change_of_the_clients_address() {
    let mut relay = relay(Limits::default()).await;
    let (ours, theirs) = pair(&mut relay).await;
    let (mut a, mut b) = stream(&ours, &theirs).await;
    let (Channel::Quic(near), Channel::Quic(far)) = (&ours.mux, &theirs.mux) else { panic!("QUIC links") };
    let before = far.remote_address();
    near.rebind().unwrap();
    for n in 0..20u8 {
        a.write_chunk(Bytes::from(vec![n; 1000])).await.unwrap();
        let mut got = 0;
        while got < 1000 {
            let chunk = timeout(LONG, b.read_chunk()).await.unwrap().unwrap().unwrap();
            assert!(chunk.iter().all(|byte| *byte == n));
            got += chunk.len();
        }
    }
    assert_ne!(far.remote_address(), before, "the relay answers to the new address");
}

async fn race(relay: &Relay, target: &RelayTarget, finder: &Pathfinder) -> Result<Link, LinkError> {
    finder.connect(target, &credentials(), instance(), &timers(), &relay.scope).await
}

#[tokio::test]
async fn n02_quic_wins_the_race_where_udp_passes_and_the_relay_sees_one_link() {
    let mut relay = relay(Limits::default()).await;
    let network = Network::before(&relay, true).await;
    let finder = Pathfinder::new(Choice::Auto, &timers());
    let link = race(&relay, &network.target, &finder).await.unwrap();
    assert_eq!((link.transport, link.reason), (Transport::Quic, Reason::Preferred));
    assert_eq!(relay.links.recv().await.unwrap().accept.session, link.accept.session);
    assert!(timeout(Duration::from_millis(600), relay.links.recv()).await.is_err(), "TLS did not go on");
    let tls = Pathfinder::new(Choice::Tls, &timers());
    assert_eq!(race(&relay, &network.target, &tls).await.unwrap().transport, Transport::Tls);
}

#[tokio::test]
async fn n02_a_black_hole_for_udp_costs_less_than_three_seconds_and_is_remembered() {
    let relay = relay(Limits::default()).await;
    let network = Network::before(&relay, false).await;
    let finder = Pathfinder::new(Choice::Auto, &timers());
    let start = Instant::now();
    let link = race(&relay, &network.target, &finder).await.unwrap();
    assert_eq!((link.transport, link.reason), (Transport::Tls, Reason::UdpDead));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let again = race(&relay, &network.target, &finder).await.unwrap();
    assert_eq!(again.reason, Reason::UdpRemembered);
    let quic = Pathfinder::new(Choice::Quic, &Timers { handshake: Duration::from_millis(300), ..timers() });
    let timers = Timers { handshake: Duration::from_millis(300), ..timers() };
    let error = quic.connect(&network.target, &credentials(), instance(), &timers, &relay.scope).await.unwrap_err();
    assert!(error.to_string().contains("UDP"), "{error}");
}

fn uplink(relays: Vec<RelayTarget>, scope: &Scope) -> Uplink {
    let config = UplinkConfig {
        relays,
        credentials: credentials(),
        instance: instance(),
        timers: timers(),
        transport: Choice::Auto,
        twins: Twins::default(),
    };
    Uplink::start(config, scope)
}

async fn until(uplink: &Uplink, wanted: impl Fn(&Link) -> bool) -> Link {
    let mut status = uplink.status();
    let up = status.wait_for(|s| matches!(s, UplinkStatus::Up(link) if wanted(link)));
    match &*timeout(LONG, up).await.expect("in time").unwrap() {
        UplinkStatus::Up(link) => link.clone(),
        _ => unreachable!("waited for"),
    }
}

#[tokio::test]
async fn n02_udp_that_dies_is_noticed_and_udp_that_comes_back_is_used() {
    let mut relay = relay(Limits::default()).await;
    let network = Network::before(&relay, true).await;
    let uplink = uplink(vec![network.target.clone()], &relay.scope);
    let first = until(&uplink, |_| true).await;
    assert_eq!((first.transport, first.reason), (Transport::Quic, Reason::Preferred));
    let at_relay = relay.links.recv().await.unwrap();
    let (mut a, _b) = stream(&first, &at_relay).await;

    network.udp.store(false, Ordering::Relaxed);
    // Something has to be sent for anybody to notice: the start of the three seconds.
    let start = Instant::now();
    a.write_chunk(Bytes::from_static(b"into the void")).await.unwrap();
    let second = until(&uplink, |l| l.transport == Transport::Tls).await;
    assert_eq!(second.reason, Reason::UdpDied);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(timeout(LONG, a.read_chunk()).await.unwrap().unwrap_err().code, Code::Lost);

    network.udp.store(true, Ordering::Relaxed);
    let third = until(&uplink, |l| l.transport == Transport::Quic).await;
    assert_eq!(third.reason, Reason::UdpBack);
    // Make before break: the TLS link was there until then, and is let go now.
    let closed = timeout(LONG, second.mux.closed()).await.unwrap();
    assert_eq!(closed.code, Code::Displaced);
    assert!(!third.mux.is_closed());
    assert_eq!(uplink.links().len(), 1);
}

#[tokio::test]
async fn n02_streams_on_the_old_link_end_by_themselves_when_quic_takes_over() {
    let mut relay = relay(Limits::default()).await;
    let network = Network::before(&relay, false).await;
    let uplink = uplink(vec![network.target.clone()], &relay.scope);
    let old = until(&uplink, |l| l.transport == Transport::Tls).await;
    let (mut a, mut b) = stream(&old, &relay.links.recv().await.unwrap()).await;
    network.udp.store(true, Ordering::Relaxed);
    until(&uplink, |l| l.transport == Transport::Quic).await;
    a.write_chunk(Bytes::from_static(b"still here")).await.unwrap();
    assert_eq!(b.read_chunk().await.unwrap().unwrap(), "still here");
    assert!(!old.mux.is_closed());
    a.finish();
    b.finish();
    assert_eq!((a.read_chunk().await.unwrap(), b.read_chunk().await.unwrap()), (None, None));
    drop((a, b));
    timeout(LONG, old.mux.closed()).await.expect("closed after its last stream");
}

#[tokio::test]
async fn n09_a_device_moves_from_a_draining_relay_before_it_lets_go() {
    let (mut a, mut b) = (relay(Limits::default()).await, relay(Limits::default()).await);
    let uplink = uplink(vec![a.target.clone(), b.target.clone()], &a.scope);
    let first = until(&uplink, |_| true).await;
    let at_a = a.links.recv().await.unwrap();
    let (mut ours, mut theirs) = stream(&first, &at_a).await;
    let alternatives = vec!["elsewhere.example:443".to_owned(), b.target.addresses[0].clone()];
    at_a.mux.go_away(&GoAway { fault: Fault::new(Code::Draining, "restart"), return_after_ms: 60_000, alternatives });
    let second = until(&uplink, |l| l.accept.session != first.accept.session).await;
    assert_eq!(second.address, b.target.addresses[0]);
    let at_b = b.links.recv().await.unwrap();
    // The old link carries what it carried.
    theirs.write_chunk(Bytes::from_static(b"bye")).await.unwrap();
    assert_eq!(ours.read_chunk().await.unwrap().unwrap(), "bye");
    assert_eq!(uplink.links().iter().map(|l| l.accept.session).collect::<Vec<_>>(), [second.accept.session]);
    drop((ours, theirs));
    timeout(LONG, first.mux.closed()).await.expect("let go");
    stream(&second, &at_b).await;
}

#[tokio::test]
async fn p01_nodes_and_cores_hold_a_link_with_every_relay() {
    let (mut a, mut b) = (relay(Limits::default()).await, relay(Limits::default()).await);
    let config = UplinkConfig {
        relays: vec![a.target.clone(), b.target.clone()],
        credentials: credentials(),
        instance: instance(),
        timers: timers(),
        transport: Choice::Auto,
        twins: Twins::default(),
    };
    let uplinks = Uplinks::start(&config, &a.scope);
    let (at_a, _at_b) = (a.links.recv().await.unwrap(), b.links.recv().await.unwrap());
    timeout(LONG, async {
        while uplinks.links().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("both");
    at_a.mux.close(Fault::new(Code::Draining, "restart"));
    assert_eq!(a.links.recv().await.unwrap().accept.relay, "relay.test");
    assert!(uplinks.link(LONG).await.is_ok());
}

#[tokio::test]
async fn p01_two_names_of_one_relay_get_one_link_and_the_other_entry_says_so() {
    let mut relay = relay(Limits::default()).await;
    let other = RelayTarget { addresses: vec![format!("localhost:{}", relay.port.port())], ..relay.target.clone() };
    for transport in [Choice::Quic, Choice::Tls] {
        let scope = Scope::new();
        let config = UplinkConfig {
            relays: vec![relay.target.clone(), other.clone()],
            credentials: credentials(),
            instance: instance(),
            timers: timers(),
            transport,
            twins: Twins::default(),
        };
        let uplinks = Uplinks::start(&config, &scope);
        let (mut up, mut resting) = (0, None);
        let mut statuses: Vec<_> = uplinks.iter().map(Uplink::status).collect();
        while up != 1 || resting.is_none() {
            timeout(LONG, Uplinks::changed(&mut statuses)).await.expect("both find out");
            (up, resting) = (0, None);
            for status in &mut statuses {
                match &*status.borrow_and_update() {
                    UplinkStatus::Up(_) => up += 1,
                    UplinkStatus::Connecting(Some(fault)) if fault.code == Code::Displaced => {
                        resting = Some(fault.clone())
                    }
                    _ => {}
                }
            }
        }
        let said = resting.unwrap().text;
        assert!(
            said.contains("leads to the same relay as relay.test (") && said.contains(&relay.port.port().to_string()),
            "{said}"
        );
        let at_relay = relay.links.recv().await.unwrap();
        assert!(relay.links.try_recv().is_err(), "the relay was never asked for a second link");
        // Whichever is free again finds its way back at once, not after the long rest.
        at_relay.mux.close(Fault::new(Code::Draining, "restart"));
        timeout(LONG, relay.links.recv()).await.expect("linked again").unwrap();
        scope.stop(LONG).await;
        while relay.links.try_recv().is_ok() {}
    }
}

mod restart;
