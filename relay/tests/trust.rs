//! Who gets in by which certificate, whose name counts, and what a drain leaves standing.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use common::{LONG, TestCa, World, entity, service};
use hedgerow_relay::admit;
use hedgerow_runtime::clock;
use hedgerow_runtime::link::{Credentials, Link, LinkError};
use hedgerow_runtime::tls::{InForce, SigningKey};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::verify::certificate::{CONFIG_KEY_EKU, Identity};
use hedgerow_shared::wire::message::{Claim, Control, Destination, LaneRequest, LinkOpen, Service};
use hedgerow_shared::{EntityId, Origin, Role, TenantId, UnixTime};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use tokio::time::timeout;

const HOUR: Duration = Duration::from_secs(3600);
const YEAR: u64 = 365 * 24 * 3600;

fn node(world: &World, id: u8) -> Identity {
    Identity {
        tenant: world.tenant.clone(),
        role: Role::Node,
        id: entity(id),
        group: Some(Default::default()),
        origins: vec![Origin::Proxy],
    }
}

fn credentials(tenant: &TenantId, (leaf, key): (rustls_pki_types::CertificateDer<'static>, KeyPair)) -> Credentials {
    let key = SigningKey::from_pkcs8(&key.serialize_der()).unwrap();
    let own = InForce::of(leaf, key);
    Credentials::Certificate { role: Role::Node, tenant: tenant.clone(), own, origins: vec![Origin::Proxy] }
}

fn code(result: Result<Link, LinkError>) -> Code {
    match result {
        Ok(_) => Code::Ok,
        Err(LinkError::Refused { fault, .. } | LinkError::Failed(fault) | LinkError::Twin(fault)) => fault.code,
    }
}

fn to(tenant: &TenantId) -> Destination {
    Destination { tenant: tenant.clone(), origin: Origin::Proxy, group: None, instance: None, node: None }
}

#[tokio::test]
async fn a06_a_certificate_that_is_old_early_misused_or_wrongly_named_opens_no_link() {
    let world = World::new().await;
    let _core = world.core().await;
    let identity = node(&world, 5);
    let uri = |text: &str| SanType::URI(Ia5String::try_from(text.to_owned()).unwrap());
    let day = Duration::from_secs(24 * 3600);
    type Change = Box<dyn Fn(&mut CertificateParams)>;
    let cases: Vec<(&str, Change)> = vec![
        ("expired", Box::new(move |p| p.not_after = (SystemTime::now() - day).into())),
        ("not yet valid", Box::new(move |p| p.not_before = (SystemTime::now() + day).into())),
        ("a server's only", Box::new(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])),
        (
            "a configuration key",
            Box::new(|p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(CONFIG_KEY_EKU.to_vec())];
            }),
        ),
        ("a CA", Box::new(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("no name", Box::new(|p| p.subject_alt_names = vec![])),
        ("a host's name", Box::new(|p| p.subject_alt_names = vec![SanType::DnsName("x.example".try_into().unwrap())])),
        ("subject and name disagree", Box::new(|p| p.distinguished_name.push(DnType::CommonName, "another"))),
    ];
    let names = [
        identity.to_uri().replace("/node/", "/device/"),
        identity.to_uri().replace("S12345678", "S99999999"),
        identity.to_uri().replace(&entity(5).to_string(), "*"),
        identity.to_uri().replace("S12345678", "*"),
        identity.to_uri().to_uppercase(),
        format!("{}/../x", identity.to_uri()),
    ];
    for (what, change) in cases {
        let leaf = world.ca.leaf_with(&identity, HOUR, |p| change(p));
        let got = code(world.dial(&credentials(&world.tenant, leaf), 5).await);
        assert_eq!(got, Code::Unauthenticated, "{what}");
    }
    for name in names {
        let leaf = world.ca.leaf_with(&identity, HOUR, |p| p.subject_alt_names = vec![uri(&name)]);
        assert_eq!(code(world.dial(&credentials(&world.tenant, leaf), 5).await), Code::Unauthenticated, "{name}");
    }
    let both = |p: &mut CertificateParams| p.subject_alt_names.push(uri(&node(&world, 6).to_uri()));
    let leaf = world.ca.leaf_with(&identity, HOUR, both);
    assert_eq!(code(world.dial(&credentials(&world.tenant, leaf), 5).await), Code::Unauthenticated, "two names");
    // Whoever holds a good certificate makes none of its own: nothing stands between the CA and a leaf.
    let (_, key) = world.ca.leaf(&identity, HOUR);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, world.tenant.as_str());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let between = CertifiedIssuer::self_signed(params, key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(&node(&world, 7).to_uri())];
    let leaf = params.signed_by(&key, &between).unwrap();
    assert_eq!(
        code(world.dial(&credentials(&world.tenant, (leaf.der().clone(), key)), 7).await),
        Code::Unauthenticated
    );
    // The good one, so that it was not something else.
    let good = credentials(&world.tenant, world.ca.leaf(&identity, HOUR));
    assert_eq!(code(world.dial(&good, 5).await), Code::Ok);
}

#[tokio::test]
async fn a06_a_clock_that_steps_back_a_year_lets_nobody_in_and_breaks_nothing() {
    let world = World::new().await;
    let _core = world.core().await;
    let (leaf, _) = world.ca.leaf_with(&node(&world, 5), HOUR, |p| p.not_before = SystemTime::now().into());
    let tenant = world.relay.relay().store.tenant(&world.tenant);
    let claim = Claim { role: Role::Node, tenant: world.tenant.clone() };
    let at = |now| admit::certificate(tenant.as_deref(), &claim, &leaf, now).map(drop).map_err(|f| f.code);
    let now = clock::now();
    assert_eq!(at(now.plus(1)), Ok(()));
    assert_eq!(at(UnixTime(now.0 - YEAR)), Err(Code::Unauthenticated));
    assert_eq!(at(UnixTime(0)), Err(Code::Unauthenticated));
    assert_eq!(at(now.plus(YEAR)), Err(Code::Unauthenticated));
    // A configuration from what is now the future is refused, and the one in force stays.
    let store = &world.relay.relay().store;
    let signed = minicbor::to_vec(world.ca.relay_config(2, &[])).unwrap();
    assert!(store.put_config(&world.tenant, minicbor::decode(&signed).unwrap(), UnixTime(now.0 - YEAR)).is_err());
    assert_eq!(store.tenant(&world.tenant).unwrap().seen.unwrap().version, 1);
}

/// A second tenant at the same relay, with a node of its own.
async fn neighbour(world: &World) -> (TenantId, TestCa, Link) {
    let other: TenantId = "S87654321".parse().unwrap();
    let (store, ca) = (&world.relay.relay().store, TestCa::new(other.as_str()));
    store.add(other.clone()).unwrap();
    store.register_ca(&other, ca.der()).unwrap();
    let config = minicbor::to_vec(ca.relay_config(1, &[])).unwrap();
    store.put_config(&other, minicbor::decode(&config).unwrap(), clock::now()).unwrap();
    let identity = Identity { tenant: other.clone(), ..node(world, 8) };
    let link = world.dial(&credentials(&other, ca.leaf(&identity, HOUR)), 8).await.unwrap();
    (other, ca, link)
}

#[tokio::test]
async fn a09_nobody_claims_another_tenant_or_reaches_its_nodes() {
    let world = World::new().await;
    let core = world.core().await;
    let (other, theirs, their_node) = neighbour(&world).await;
    let device = world.device(6).await;
    // A node of ours that says it is theirs: by claim, by a certificate of our CA that names them, and both.
    let ours = node(&world, 5);
    let named = Identity { tenant: other.clone(), ..ours.clone() };
    for (claim, leaf) in [
        (&other, world.ca.leaf(&ours, HOUR)),
        (&other, world.ca.leaf(&named, HOUR)),
        (&world.tenant, world.ca.leaf(&named, HOUR)),
        (&world.tenant, theirs.leaf(&named, HOUR)),
        (&world.tenant, theirs.leaf(&ours, HOUR)),
    ] {
        assert_eq!(code(world.dial(&credentials(claim, leaf), 5).await), Code::Unauthenticated);
    }
    // A core with our key that says it is theirs.
    let srp = Credentials::Srp { tenant: other.clone(), key: world.srp_key.clone() };
    assert_eq!(code(world.dial(&srp, 1).await), Code::Unauthenticated);
    // A device that asks for their node, in every way there is.
    let instance = their_node.mux.clone();
    let refused = async |link: &Link, to: Destination| {
        let header = LinkOpen::Through { to, vouched: None, trace: None };
        link.mux.open(&header).await.map(drop).unwrap_err().code
    };
    let by_id = Destination { node: Some(entity(8)), ..to(&other) };
    for to in [to(&other), by_id.clone()] {
        assert_eq!(refused(&device, to.clone()).await, Code::Forbidden);
        device.mux.send_control(&LaneRequest { request: 1, to }.into()).unwrap();
        match timeout(LONG, device.mux.next_control()).await.unwrap().unwrap() {
            Control::LaneRefused(refused) => assert_eq!(refused.fault.code, Code::Forbidden),
            got => panic!("{got:?}"),
        }
    }
    // Their node's id under our own tenant leads nowhere.
    let mixed = Destination { tenant: world.tenant.clone(), ..by_id };
    assert_eq!(refused(&device, mixed).await, Code::NoRoute);
    assert_eq!(refused(&core, to(&other)).await, Code::Forbidden);
    assert!(timeout(Duration::from_millis(100), instance.accept()).await.is_err(), "something reached their node");
    // Our core's configuration is not theirs.
    let wrong = service(&core, Service::PutConfig, &theirs.relay_config(9, &[])).await.unwrap_err();
    assert_eq!(wrong.fault.code, Code::Forbidden);
}

#[tokio::test]
async fn a10_a_tenant_made_again_under_its_name_takes_no_certificate_of_the_former_one() {
    let world = World::new().await;
    let core = world.core().await;
    let old = world.credentials(Role::Node, 5);
    assert_eq!(code(world.dial(&old, 5).await), Code::Ok);
    world.control(http::Method::DELETE, "/tenants/S12345678", None).await;
    timeout(LONG, core.mux.closed()).await.unwrap();
    assert_eq!(code(world.dial(&old, 5).await), Code::Unauthenticated);
    let store = &world.relay.relay().store;
    store.add(world.tenant.clone()).unwrap();
    assert_eq!(code(world.dial(&old, 5).await), Code::Unauthenticated, "no CA yet");
    let new = TestCa::new(world.tenant.as_str());
    store.register_ca(&world.tenant, new.der()).unwrap();
    let config = minicbor::to_vec(new.relay_config(1, &[])).unwrap();
    store.put_config(&world.tenant, minicbor::decode(&config).unwrap(), clock::now()).unwrap();
    assert_eq!(code(world.dial(&old, 5).await), Code::Unauthenticated);
    let fresh = credentials(&world.tenant, new.leaf(&node(&world, 5), HOUR));
    assert_eq!(code(world.dial(&fresh, 5).await), Code::Ok);
}

async fn stream(
    world: &World,
    device: &Link,
    node: &Link,
) -> (hedgerow_runtime::link::Stream, hedgerow_runtime::link::Stream) {
    let header = LinkOpen::Through { to: to(&world.tenant), vouched: None, trace: None };
    let serve = async { node.mux.accept().await.unwrap().accept() };
    let (opened, served) = timeout(LONG, async { tokio::join!(device.mux.open(&header), serve) }).await.unwrap();
    (opened.unwrap(), served)
}

#[tokio::test]
async fn a11_during_a_drain_a_new_configuration_is_obeyed_and_a_second_drain_changes_nothing() {
    let world = World::with(|c| c.drain.seconds = 100).await;
    let core = world.core().await;
    let (node, kept, revoked) = (world.node(5).await, world.device(6).await, world.device(7).await);
    let (mut near, mut far) = stream(&world, &kept, &node).await;
    let (_cut_near, _cut_far) = stream(&world, &revoked, &node).await;
    // The upload begins before the drain and ends in it.
    let mut upload = core.mux.open(&LinkOpen::Service { service: Service::PutConfig }).await.unwrap();
    let late: [EntityId; 1] = [entity(7)];
    let config = minicbor::to_vec(world.ca.relay_config(2, &late)).unwrap();
    let relay = world.relay.relay().clone();
    relay.begin_drain();
    assert_eq!(timeout(LONG, core.mux.peer_going_away()).await.unwrap().fault.code, Code::Draining);
    relay.begin_drain();
    upload.write_chunk(config.into()).await.unwrap();
    upload.finish();
    assert_eq!(timeout(LONG, revoked.mux.closed()).await.unwrap().code, Code::Revoked);
    assert_eq!(relay.store.tenant(&world.tenant).unwrap().seen.unwrap().version, 2);
    for n in 0..10u8 {
        near.write_chunk(Bytes::from(vec![n; 1000])).await.unwrap();
        assert_eq!(timeout(LONG, far.read_chunk()).await.unwrap().unwrap().unwrap(), vec![n; 1000]);
    }
    // Peers that say farewell themselves, twice, are let end what they began.
    let away = hedgerow_shared::wire::message::GoAway {
        fault: Fault::new(Code::Draining, "the node drains too"),
        return_after_ms: 0,
        alternatives: vec![],
    };
    node.mux.go_away(&away);
    node.mux.go_away(&away);
    far.write_chunk(Bytes::from_static(b"last")).await.unwrap();
    far.finish();
    assert_eq!(timeout(LONG, near.read_chunk()).await.unwrap().unwrap().unwrap(), "last");
    assert_eq!(timeout(LONG, near.read_chunk()).await.unwrap().unwrap(), None);
    assert!(!kept.mux.is_closed());
}
