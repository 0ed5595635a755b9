//! Links: admission, streams, lanes, revocation, drain.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{LONG, NAME, World, entity, eventually, service};
use hedgerow_runtime::link::{Credentials, Link, LinkError};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::secret::Secret;
use hedgerow_shared::wire::lane;
use hedgerow_shared::wire::message::{
    ALPN_LANE, CaRegistration, Control, Destination, LaneCall, LaneOffer, LaneRequest, LinkOpen, Service, Wake,
};
use hedgerow_shared::{Origin, Role, Ticket};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

fn to(world: &World, origin: Origin) -> Destination {
    Destination { tenant: world.tenant.clone(), origin, group: None, instance: None, node: None }
}

fn through(to: Destination) -> LinkOpen {
    LinkOpen::Through { to, vouched: None, trace: None }
}

fn code(result: Result<Link, LinkError>) -> Code {
    match result.unwrap_err() {
        LinkError::Refused { fault, .. } | LinkError::Failed(fault) | LinkError::Twin(fault) => fault.code,
    }
}

/// A ClientHello that carries a ticket, as a device's session begins.
fn hello(ticket: &Ticket, world: &World) -> Vec<u8> {
    let name = lane::server_name(ticket, NAME).try_into().unwrap();
    let config = common::config_for_tests(&[b"x"], &world.roots());
    let mut client = rustls::ClientConnection::new(config, name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

async fn lane_tickets(world: &World, device: &Link, node: &Link) -> (LaneOffer, LaneCall) {
    let request = LaneRequest { request: 7, to: to(world, Origin::Proxy) };
    device.mux.send_control(&request.into()).unwrap();
    let offer = timeout(LONG, device.mux.next_control()).await.unwrap().unwrap();
    let call = timeout(LONG, node.mux.next_control()).await.unwrap().unwrap();
    match (offer, call) {
        (Control::LaneOffer(offer), Control::LaneCall(call)) => (offer, call),
        other => panic!("{other:?}"),
    }
}

async fn closed(tcp: &mut TcpStream) -> bool {
    matches!(timeout(LONG, tcp.read(&mut [0; 1])).await, Ok(Ok(0) | Err(_)))
}

/// A joined lane: the device's and the node's socket.
async fn joined(world: &World, device: &Link, node: &Link) -> (TcpStream, TcpStream) {
    let (offer, call) = lane_tickets(world, device, node).await;
    let (mut device_leg, mut node_leg) = (world.tcp().await, world.tcp().await);
    let hello = hello(&offer.ticket, world);
    device_leg.write_all(&hello).await.unwrap();
    node_leg.write_all(&lane::preamble(&call.ticket)).await.unwrap();
    let mut got = vec![0; hello.len()];
    timeout(LONG, node_leg.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(got, hello, "the node reads the ClientHello as it was sent");
    (device_leg, node_leg)
}

#[tokio::test]
async fn p01_cores_nodes_and_devices_are_admitted_by_what_they_prove() {
    let world = World::new().await;
    let node = world.credentials(Role::Node, 5);
    assert_eq!(code(world.dial(&node, 5).await), Code::Unauthenticated, "no CA registered yet");
    let core = world.core().await;
    assert_eq!(core.accept.relay, NAME);
    assert!(core.accept.lookup_key.is_some());
    let node = world.dial(&node, 5).await.unwrap();
    assert!(node.accept.lookup_key.is_none() && node.accept.config.is_none());
    world.device(6).await;
    let wrong = Credentials::Srp { tenant: world.tenant.clone(), key: Secret::new(vec![9; 32]) };
    assert_eq!(code(world.dial(&wrong, 2).await), Code::Unauthenticated);
    let unknown = Credentials::Srp { tenant: "S99999999".parse().unwrap(), key: Secret::new(vec![9; 32]) };
    assert_eq!(code(world.dial(&unknown, 2).await), Code::Unauthenticated);
    let Credentials::Certificate { tenant, own, .. } = world.credentials(Role::Node, 5) else { panic!() };
    let more =
        Credentials::Certificate { role: Role::Node, tenant, own, origins: vec![Origin::Proxy, Origin::Directory] };
    assert_eq!(code(world.dial(&more, 5).await), Code::Forbidden);
    let sessions = world.control(Method::GET, "/sessions", None).await;
    let roles: Vec<_> = sessions.as_array().unwrap().iter().map(|s| s["role"].as_str().unwrap().to_owned()).collect();
    assert_eq!(roles.len(), 3, "{sessions}");
}

#[tokio::test]
async fn p01_streams_pass_through_to_the_origin_with_their_ends_kept() {
    let world = World::new().await;
    let _core = world.core().await;
    let (node, device) = (world.node(5).await, world.device(6).await);
    let header = through(to(&world, Origin::Proxy));
    let open = device.mux.open(&header);
    let serve = async {
        let incoming = node.mux.accept().await.unwrap();
        let Ok(LinkOpen::Through { vouched: Some(vouched), .. }) = incoming.read_header() else { panic!() };
        assert_eq!((vouched.role, vouched.id), (Some(Role::Device), Some(entity(6))));
        incoming.accept()
    };
    let (opened, mut served) = tokio::join!(open, serve);
    let mut opened = opened.unwrap();
    opened.write_chunk(Bytes::from_static(b"question")).await.unwrap();
    opened.finish();
    assert_eq!(served.read_chunk().await.unwrap().unwrap(), "question");
    assert_eq!(served.read_chunk().await.unwrap(), None, "FINISH passes, and only one way");
    served.write_chunk(Bytes::from_static(b"answer")).await.unwrap();
    assert_eq!(opened.read_chunk().await.unwrap().unwrap(), "answer");
    served.reset(Fault::new(Code::ConnectionReset, "the server reset it"));
    assert_eq!(opened.read_chunk().await.unwrap_err().code, Code::ConnectionReset, "RESET passes as what it is");
    // A refusal is the endpoint's own.
    let open = device.mux.open(&header);
    let refuse = async { node.mux.accept().await.unwrap().refuse(Fault::new(Code::DeniedByPolicy, "not this one")) };
    assert_eq!(tokio::join!(open, refuse).0.unwrap_err().code, Code::DeniedByPolicy);
}

#[tokio::test]
async fn p02_nothing_reaches_what_the_table_does_not_allow() {
    let world = World::new().await;
    let core = world.core().await;
    let (_node, device) = (world.node(5).await, world.device(6).await);
    let refused = async |link: &Link, header: LinkOpen| link.mux.open(&header).await.map(drop).unwrap_err().code;
    assert_eq!(refused(&device, through(to(&world, Origin::Gateway))).await, Code::Forbidden);
    assert_eq!(refused(&device, through(to(&world, Origin::Directory))).await, Code::NoRoute);
    assert_eq!(refused(&core, through(to(&world, Origin::Proxy))).await, Code::Forbidden);
    let foreign = Destination { tenant: "S99999999".parse().unwrap(), ..to(&world, Origin::Proxy) };
    assert_eq!(refused(&device, through(foreign)).await, Code::Forbidden);
    for forbidden in [Service::RegisterCa, Service::PutConfig, Service::PutRegistrations] {
        assert_eq!(refused(&device, LinkOpen::Service { service: forbidden }).await, Code::Forbidden);
    }
    let group = Destination { group: Some("elsewhere".parse().unwrap()), ..to(&world, Origin::Proxy) };
    device.mux.send_control(&LaneRequest { request: 1, to: group }.into()).unwrap();
    match device.mux.next_control().await.unwrap() {
        Control::LaneRefused(refused) => assert_eq!((refused.request, refused.fault.code), (1, Code::NoRoute)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_ca_of_another_tenant_and_an_older_configuration_are_refused() {
    let world = World::new().await;
    let core = world.core_only().await;
    let foreign = CaRegistration { certificate: common::TestCa::new("S99999999").der().to_vec() };
    assert_eq!(service(&core, Service::RegisterCa, &foreign).await.unwrap_err().fault.code, Code::Forbidden);
    let early = service(&core, Service::PutConfig, &world.ca.relay_config(1, &[])).await.unwrap_err();
    assert_eq!(early.fault.code, Code::Forbidden);
    service(&core, Service::RegisterCa, &CaRegistration { certificate: world.ca.der().to_vec() }).await.unwrap();
    let reply = service(&core, Service::PutConfig, &world.ca.relay_config(5, &[])).await.unwrap();
    assert_eq!(reply.version.unwrap().version, 5);
    let older = service(&core, Service::PutConfig, &world.ca.relay_config(4, &[])).await.unwrap_err();
    assert!(older.fault.text.contains("older"), "{}", older.fault);
    let nonsense = service(&core, Service::PutConfig, &7u8).await.unwrap_err();
    assert_eq!(nonsense.fault.code, Code::Protocol);
    assert_eq!(world.core_only().await.accept.config.unwrap().version, 5, "the relay tells what it holds");
}

#[tokio::test]
async fn p02_a_lane_joins_ticket_in_hello_and_bare_preamble_by_splice() {
    let world = World::new().await;
    let _core = world.core().await;
    let (node, device) = (world.node(5).await, world.device(6).await);
    let (mut device_leg, mut node_leg) = joined(&world, &device, &node).await;
    node_leg.write_all(b"server's flight").await.unwrap();
    let mut got = [0; 15];
    device_leg.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"server's flight");
    let sessions = world.control(Method::GET, "/sessions", None).await;
    let lane = sessions.as_array().unwrap().iter().find(|s| s["kind"] == "lane").unwrap();
    assert_eq!((lane["path"].as_str(), lane["bytes_down"].as_u64()), (Some("splice"), Some(15)));
    assert_eq!(lane["device"], entity(6).to_string());
    // It outlives its links.
    device.mux.close(Fault::new(Code::Ok, ""));
    node.mux.close(Fault::new(Code::Ok, ""));
    eventually("the links are gone", || world.relay.relay().registry.len() == 1).await;
    device_leg.write_all(b"still").await.unwrap();
    let mut got = [0; 5];
    node_leg.read_exact(&mut got).await.unwrap();
    drop(device_leg);
    assert!(closed(&mut node_leg).await);
    eventually("the lane is gone", || world.relay.relay().lanes.is_empty()).await;
}

#[tokio::test]
async fn p02_a_wrapped_leg_is_joined_by_copy() {
    let world = World::new().await;
    let _core = world.core().await;
    let (node, device) = (world.node(5).await, world.device(6).await);
    let (offer, call) = lane_tickets(&world, &device, &node).await;
    let mut node_leg = world.tls(NAME, ALPN_LANE).await.unwrap();
    node_leg.write_all(&lane::preamble(&call.ticket)).await.unwrap();
    let mut device_leg = world.tcp().await;
    let hello = hello(&offer.ticket, &world);
    device_leg.write_all(&hello).await.unwrap();
    let mut got = vec![0; hello.len()];
    timeout(LONG, node_leg.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(got, hello);
    node_leg.write_all(&vec![7; 1_000_000]).await.unwrap();
    let mut got = vec![0; 1_000_000];
    timeout(LONG, device_leg.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(world.relay.relay().lanes.live()[0].path, "copy");
}

#[tokio::test]
async fn a_used_ticket_and_an_invented_one_are_closed() {
    let world = World::new().await;
    let _core = world.core().await;
    let (node, device) = (world.node(5).await, world.device(6).await);
    let (offer, _call) = lane_tickets(&world, &device, &node).await;
    let mut first = world.tcp().await;
    first.write_all(&hello(&offer.ticket, &world)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    for ticket in [offer.ticket, Ticket::from_random([3; 20])] {
        let mut again = world.tcp().await;
        again.write_all(&hello(&ticket, &world)).await.unwrap();
        assert!(closed(&mut again).await);
        let mut bare = world.tcp().await;
        bare.write_all(&lane::preamble(&ticket)).await.unwrap();
        assert!(closed(&mut bare).await);
    }
    // The first leg waits for its other half, but not for ever.
    assert!(closed(&mut first).await);
}

#[tokio::test]
async fn a_revoked_device_loses_link_and_lane_within_five_seconds() {
    let world = World::new().await;
    let core = world.core().await;
    let (node, device, other) = (world.node(5).await, world.device(6).await, world.device(7).await);
    let (mut device_leg, mut node_leg) = joined(&world, &device, &node).await;
    let (mut other_leg, mut other_node_leg) = joined(&world, &other, &node).await;
    let start = Instant::now();
    service(&core, Service::PutConfig, &world.ca.relay_config(2, &[entity(6)])).await.unwrap();
    assert_eq!(timeout(LONG, device.mux.closed()).await.unwrap().code, Code::Revoked);
    assert!(closed(&mut device_leg).await && closed(&mut node_leg).await);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(code(world.dial(&world.credentials(Role::Device, 6), 6).await), Code::Revoked);
    other_leg.write_all(b"x").await.unwrap();
    other_node_leg.read_exact(&mut [0]).await.unwrap();
    assert!(!other.mux.is_closed());
}

#[tokio::test]
async fn a_blocked_or_removed_tenant_loses_everything_at_once() {
    let world = World::new().await;
    let core = world.core().await;
    let (node, device) = (world.node(5).await, world.device(6).await);
    let (mut device_leg, _node_leg) = joined(&world, &device, &node).await;
    let answer = world.control(Method::POST, "/tenants/S12345678/block", None).await;
    assert_eq!(answer["cut"], 4, "three links and a lane");
    for link in [&core, &node, &device] {
        assert_eq!(timeout(LONG, link.mux.closed()).await.unwrap().code, Code::Forbidden);
    }
    assert!(closed(&mut device_leg).await);
    let srp = Credentials::Srp { tenant: world.tenant.clone(), key: world.srp_key.clone() };
    assert_eq!(code(world.dial(&srp, 1).await), Code::Forbidden);
    world.control(Method::POST, "/tenants/S12345678/unblock", None).await;
    let core = world.dial(&srp, 1).await.unwrap();
    world.control(Method::DELETE, "/tenants/S12345678", None).await;
    timeout(LONG, core.mux.closed()).await.unwrap();
    // The same name again is another tenant: the old key does not fit.
    let made = world.control(Method::POST, "/tenants", Some(serde_json::json!({ "tenant": "S12345678" }))).await;
    assert_eq!(made["srp_key"].as_str().unwrap().len(), 64);
    assert_eq!(code(world.dial(&srp, 1).await), Code::Unauthenticated);
}

#[tokio::test]
async fn a_newer_session_displaces_the_older_and_says_so() {
    let world = World::new().await;
    let _core = world.core().await;
    let credentials = world.credentials(Role::Node, 5);
    let first = world.dial(&credentials, 1).await.unwrap();
    let second = world.dial(&credentials, 2).await.unwrap();
    let away = timeout(LONG, first.mux.peer_going_away()).await.unwrap();
    assert_eq!(away.fault.code, Code::Displaced);
    timeout(LONG, first.mux.closed()).await.unwrap();
    assert!(!second.mux.is_closed());
    // Two processes that fight over one certificate are slowed down, with the cause.
    let mut held = vec![second];
    let refused = loop {
        match world.dial(&credentials, if held.len() % 2 == 1 { 1 } else { 2 }).await {
            Ok(link) => held.push(link),
            Err(LinkError::Refused { fault, retry_after_ms }) => break (fault, retry_after_ms),
            Err(other) => panic!("{other}"),
        }
        assert!(held.len() < 30);
    };
    assert!(refused.0.code == Code::Displaced && refused.1 > 1_000, "{refused:?}");
}

#[tokio::test]
async fn a_core_wakes_nodes_and_nobody_else_may() {
    let world = World::new().await;
    let core = world.core().await;
    let (node, device) = (world.node(5).await, world.device(6).await);
    core.mux.send_control(&Wake { roles: vec![Role::Node], ids: vec![entity(6)] }.into()).unwrap();
    for link in [&node, &device] {
        let got = timeout(LONG, link.mux.next_control()).await.unwrap().unwrap();
        assert_eq!(got, Control::from(Wake { roles: vec![], ids: vec![] }));
    }
    device.mux.send_control(&Wake { roles: vec![Role::Node], ids: vec![] }.into()).unwrap();
    assert_eq!(timeout(LONG, device.mux.closed()).await.unwrap().code, Code::Protocol);
}

#[tokio::test]
async fn a_drain_tells_everybody_waits_for_streams_and_ends() {
    let world = World::with(|config| {
        config.drain.alternatives = vec!["other.example:3101".into()];
        config.drain.return_after = 3;
        config.drain.seconds = 100;
    })
    .await;
    let _core = world.core().await;
    let (node, device) = (world.node(5).await, world.device(6).await);
    let header = through(to(&world, Origin::Proxy));
    let open = device.mux.open(&header);
    let serve = async { node.mux.accept().await.unwrap().accept() };
    let (opened, mut served) = tokio::join!(open, serve);
    let mut opened = opened.unwrap();
    let World { relay, context, scope: _scope, _folder, .. } = world;
    let address = relay.device[0];
    context.drain();
    let drained = context.clone();
    let drain = relay.until_drained(&drained);
    tokio::pin!(drain);
    let during = async {
        let away = timeout(LONG, device.mux.peer_going_away()).await.unwrap();
        assert_eq!((away.alternatives.len(), away.fault.code), (1, Code::Draining));
        // Three links, each at a time of its own.
        assert!((3000..3010).contains(&away.return_after_ms), "{}", away.return_after_ms);
        opened.write_chunk(Bytes::from_static(b"late")).await.unwrap();
        assert_eq!(served.read_chunk().await.unwrap().unwrap(), "late", "streams go on during the drain");
        assert!(TcpStream::connect(address).await.is_err(), "the doors are closed");
    };
    tokio::select! {
        () = &mut drain => panic!("drained with a stream open"),
        () = during => {}
    }
    opened.finish();
    served.finish();
    while opened.read_chunk().await.unwrap().is_some() {}
    while served.read_chunk().await.unwrap().is_some() {}
    drop((opened, served));
    timeout(LONG, drain).await.unwrap();
    assert!(timeout(LONG, device.mux.closed()).await.is_ok());
}
