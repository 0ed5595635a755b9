//! Both ends of the hand-shake over real TLS on loopback, and what is refused.

use std::sync::Arc;

use hedgerow_shared::limits::Timers;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::{Usage, VerifiedCertificate};
use hedgerow_shared::wire::message::{ALPN_LINK, Claim, Limits, Refuse};
use hedgerow_shared::{InstanceId, Origin, Role, TenantId};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::clock::{now, random};
use crate::dial::RelayTarget;
use crate::scope::Scope;
use crate::testing::TestCa;
use crate::tls::{self, InForce, RelayRoots};

struct Relay {
    ca: TestCa,
    key: Secret,
    revoked: bool,
}

impl Admit for Relay {
    fn srp_key(&self, tenant: &TenantId) -> Option<Secret> {
        (*tenant == self.ca.tenant()).then(|| self.key.clone())
    }

    fn certificate(&self, claim: &Claim, leaf: &CertificateDer<'_>) -> Result<VerifiedCertificate, Fault> {
        if self.revoked {
            return Err(Fault::new(Code::Revoked, "the certificate was revoked"));
        }
        let verified = self.ca.ca.verify(leaf, claim.role, Usage::Client, now());
        verified.map_err(|e| Fault::new(Code::Unauthenticated, e.to_string()))
    }

    fn accept(&self, peer: &Peer) -> Result<Accept, Refuse> {
        Ok(Accept { session: peer.session, relay: "relay.test".into(), lookup_key: None, config: None, time: 0 })
    }
}

struct World {
    target: RelayTarget,
    scope: Scope,
    outcomes: tokio::sync::mpsc::Receiver<Result<(Link, Peer), LinkError>>,
}

async fn world(relay: Relay) -> World {
    let key = rcgen::generate_simple_self_signed(vec!["relay.test".to_owned()]).unwrap();
    let certificate = key.cert.der().clone();
    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()).into();
    let config = tls::as_relay(vec![certificate.clone()], private, &[ALPN_LINK]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = vec![listener.local_addr().unwrap().to_string()];
    let target = RelayTarget::new(addresses, "relay.test", RelayRoots::Ca(vec![certificate]));
    let scope = Scope::new();
    let (sender, outcomes) = tokio::sync::mpsc::channel(16);
    let relay = Arc::new(relay);
    let tasks = scope.clone();
    scope.spawn(async move {
        loop {
            let (tcp, address) = listener.accept().await.unwrap();
            let Ok(stream) = TlsAcceptor::from(config.clone()).accept(tcp).await else { continue };
            let instance = InstanceId::from_random(random());
            let result =
                answer(stream, address.to_string(), &*relay, Limits::default(), instance, &Timers::default(), &tasks)
                    .await;
            sender.send(result).await.unwrap();
        }
    });
    World { target, scope, outcomes }
}

fn relay() -> Relay {
    Relay { ca: TestCa::new("S12345678"), key: Secret::new(vec![7; 32]), revoked: false }
}

fn srp(tenant: &str, key: u8) -> Credentials {
    Credentials::Srp { tenant: tenant.parse().unwrap(), key: Secret::new(vec![key; 32]) }
}

fn node_of(ca: &TestCa) -> Credentials {
    let (own, _) = ca.issue(Role::Node, &[Origin::Proxy]);
    let own = InForce::new(own);
    Credentials::Certificate { role: Role::Node, tenant: ca.tenant(), own, origins: vec![Origin::Proxy] }
}

async fn dial(world: &World, credentials: &Credentials) -> Result<Link, LinkError> {
    connect(&world.target, credentials, InstanceId::from_random(random()), &Timers::default(), &world.scope).await
}

fn code(result: Result<Link, LinkError>) -> Code {
    match result {
        Ok(_) => Code::Ok,
        Err(error) => error.fault().code,
    }
}

#[tokio::test]
async fn p01_core_and_node_show_who_they_are_and_a_stream_passes() {
    let relay = relay();
    let node = node_of(&relay.ca);
    let mut world = world(relay).await;
    let core = dial(&world, &srp("S12345678", 7)).await.unwrap();
    let (_, peer) = world.outcomes.recv().await.unwrap().unwrap();
    assert_eq!((peer.role, peer.certificate.is_none()), (Role::Core, true));
    let node = dial(&world, &node).await.unwrap();
    let (at_relay, peer) = world.outcomes.recv().await.unwrap().unwrap();
    assert_eq!((peer.role, peer.origins), (Role::Node, vec![Origin::Proxy]));
    let opening = node.mux.open(&1u8);
    let accepting = async { at_relay.mux.accept().await.unwrap().accept() };
    let (mut ours, mut theirs) = tokio::join!(async { opening.await.unwrap() }, accepting);
    ours.write_chunk(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(theirs.read_chunk().await.unwrap().unwrap(), "hello");
    drop(theirs);
    assert!(ours.read_chunk().await.is_err());
    core.mux.close(Fault::new(Code::Ok, ""));
    world.scope.stop(std::time::Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_wrong_srp_key_is_noticed_by_the_core_before_it_shows_anything() {
    let world = world(relay()).await;
    let error = dial(&world, &srp("S12345678", 8)).await.unwrap_err();
    assert!(error.to_string().contains("does not know this tenant's SRP authentication key"), "{error}");
    // An unknown tenant looks the same.
    assert_eq!(code(dial(&world, &srp("S00000001", 7)).await), Code::Unauthenticated);
}

#[tokio::test]
async fn another_tenants_certificate_is_refused() {
    let stranger = TestCa::new("S12345678");
    let mut world = world(relay()).await;
    assert_eq!(code(dial(&world, &node_of(&stranger)).await), Code::Unauthenticated);
    assert!(matches!(world.outcomes.recv().await.unwrap(), Err(LinkError::Refused { .. })));
}

#[tokio::test]
async fn a_certificate_without_its_key_is_refused() {
    let relay = relay();
    let (Credentials::Certificate { role, tenant, own, origins }, Credentials::Certificate { own: other, .. }) =
        (node_of(&relay.ca), node_of(&relay.ca))
    else {
        panic!("both are certificates")
    };
    let own = InForce::new(tls::Own { chain: own.get().chain.clone(), key: other.get().key.clone() });
    let world = world(relay).await;
    let error = dial(&world, &Credentials::Certificate { role, tenant, own, origins }).await.unwrap_err();
    assert!(error.to_string().contains("does not hold its certificate's key"), "{error}");
}

#[tokio::test]
async fn a_device_certificate_does_not_open_a_node_link() {
    let relay = relay();
    let (own, _) = relay.ca.issue(Role::Device, &[]);
    let credentials = Credentials::Certificate {
        role: Role::Node,
        tenant: relay.ca.tenant(),
        own: InForce::new(own),
        origins: vec![Origin::Proxy],
    };
    let world = world(relay).await;
    assert_eq!(code(dial(&world, &credentials).await), Code::Unauthenticated);
}

#[tokio::test]
async fn a_revoked_certificate_is_told_so() {
    let relay = Relay { revoked: true, ..relay() };
    let node = node_of(&relay.ca);
    let world = world(relay).await;
    assert_eq!(code(dial(&world, &node).await), Code::Revoked);
}

#[tokio::test]
async fn a_replayed_proof_is_refused_as_a_replay() {
    let relay = relay();
    let (own, _) = relay.ca.issue(Role::Node, &[Origin::Proxy]);
    let tenant = relay.ca.tenant();
    let mut world = world(relay).await;
    let stream = crate::dial::relay_tls(&world.target, &[ALPN_LINK], &Timers::default()).await.unwrap();
    let mut shaking = Shaking::new(stream);
    let claim = Some(Claim { role: Role::Node, tenant });
    let hello = Hello { claim, ..Hello::new(InstanceId::from_random(random()), random(), Limits::default()) };
    use hedgerow_shared::wire::frame::kind;
    use hedgerow_shared::wire::message::Proof;
    shaking.send(frame::cbor(kind::HELLO, 0, &hello)).await.unwrap();
    shaking.next().await.unwrap();
    let captured = Proof::Certificate {
        challenge: [9; 32],
        leaf: own.chain[0].to_vec(),
        signature: own.key.sign(b"an older transcript"),
        origins: vec![Origin::Proxy],
    };
    shaking.send(frame::cbor(kind::PROOF, 0, &captured)).await.unwrap();
    let Frame::Refuse(body) = shaking.next().await.unwrap() else { panic!("not refused") };
    let refuse: Refuse = read("REFUSE", &body).unwrap();
    assert!(refuse.fault.text.contains("a replay"), "{}", refuse.fault);
    assert!(world.outcomes.recv().await.unwrap().is_err());
}

#[tokio::test]
async fn a_relay_with_another_certificate_is_refused() {
    let world = world(relay()).await;
    let other = rcgen::generate_simple_self_signed(vec!["relay.test".to_owned()]).unwrap();
    let target = RelayTarget { roots: RelayRoots::Ca(vec![other.cert.der().clone()]), ..world.target.clone() };
    let result =
        connect(&target, &srp("S12345678", 7), InstanceId::from_random(random()), &Timers::default(), &world.scope)
            .await;
    assert_eq!(code(result), Code::Unauthenticated);
    let target = RelayTarget { roots: RelayRoots::Pin([1; 32]), ..world.target.clone() };
    let result =
        connect(&target, &srp("S12345678", 7), InstanceId::from_random(random()), &Timers::default(), &world.scope)
            .await;
    assert_eq!(code(result), Code::Unauthenticated);
}

#[tokio::test]
async fn an_uplink_comes_back_by_itself() {
    let relay = relay();
    let mut world = world(relay).await;
    let config = UplinkConfig {
        relays: vec![world.target.clone()],
        credentials: srp("S12345678", 7),
        instance: InstanceId::from_random(random()),
        timers: Timers::default(),
        transport: Choice::Tls,
        twins: Twins::default(),
    };
    let uplink = Uplink::start(config, &world.scope);
    let limit = std::time::Duration::from_secs(20);
    let first = uplink.link(limit).await.unwrap();
    let (at_relay, _) = world.outcomes.recv().await.unwrap().unwrap();
    at_relay.mux.close(Fault::new(Code::Draining, "restart"));
    first.mux.closed().await;
    let second = uplink.link(limit).await.unwrap();
    assert_ne!(first.accept.session, second.accept.session);
}
