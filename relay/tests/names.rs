//! Names that a tenant registered: passed through unopened, as long as they are the tenant's. And the plain-HTTP port.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{LONG, NAME, World, config_for_tests, eventually, service};
use hedgerow_runtime::link::Stream;
use hedgerow_runtime::link::{Credentials, Link};
use hedgerow_runtime::tls::{InForce, SigningKey};
use hedgerow_shared::verify::certificate::Identity;
use hedgerow_shared::wire::message::{LinkOpen, Registrations, Service, ServiceReply};
use hedgerow_shared::wire::names::RegisteredName;
use hedgerow_shared::{Origin, Role};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const MAIL: &str = "mail.tenant.example";

async fn register(core: &Link, names: &[(&str, Origin)]) -> ServiceReply {
    let names = names.iter().map(|(name, origin)| RegisteredName { name: (*name).to_owned(), origin: *origin });
    let wanted = Registrations { names: names.collect(), ..Registrations::default() };
    service(core, Service::PutRegistrations, &wanted).await.unwrap()
}

/// A node whose certificate allows the gateway.
async fn gateway(world: &World) -> Link {
    let origins = vec![Origin::Gateway];
    let identity = Identity {
        tenant: world.tenant.clone(),
        role: Role::Node,
        id: common::entity(40),
        group: Some("default".parse().unwrap()),
        origins: origins.clone(),
    };
    let (leaf, key) = world.ca.leaf(&identity, Duration::from_secs(3600));
    let key = SigningKey::from_pkcs8(&key.serialize_der()).unwrap();
    let own = InForce::of(leaf, key);
    let credentials = Credentials::Certificate { role: Role::Node, tenant: world.tenant.clone(), own, origins };
    world.dial(&credentials, 40).await.unwrap()
}

/// The first flight of a TLS client that asks for a name.
fn hello(world: &World, name: &str) -> Vec<u8> {
    let config = config_for_tests(&[b"http/1.1"], &world.roots());
    let mut client = rustls::ClientConnection::new(config, name.to_owned().try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

async fn arrived(link: &Link) -> Stream {
    let incoming = timeout(LONG, link.mux.accept()).await.unwrap().unwrap();
    let LinkOpen::Through { to, vouched, .. } = incoming.read_header().unwrap() else { panic!("not a stream") };
    assert_eq!(to.origin, Origin::Gateway);
    let vouched = vouched.unwrap();
    assert!(vouched.role.is_none() && vouched.id.is_none() && vouched.address.starts_with("127.0.0.1:"));
    incoming.accept()
}

async fn read(stream: &mut Stream, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length {
        all.extend_from_slice(&timeout(LONG, stream.read_chunk()).await.unwrap().unwrap().expect("more bytes"));
    }
    all
}

/// Whether the relay ends the connection without a word.
async fn is_closed(mut tcp: TcpStream) -> bool {
    let mut bytes = Vec::new();
    match timeout(LONG, tcp.read_to_end(&mut bytes)).await {
        Ok(Ok(_)) => bytes.is_empty(),
        Ok(Err(_)) => true,
        Err(_) => false,
    }
}

async fn greet(world: &World, name: &str) -> TcpStream {
    let mut tcp = world.tcp().await;
    tcp.write_all(&hello(world, name)).await.unwrap();
    tcp
}

#[tokio::test]
async fn p02_a_registered_name_is_passed_through_byte_for_byte_with_its_ends_kept() {
    let world = World::new().await;
    let core = world.core().await;
    let node = gateway(&world).await;
    assert_eq!(register(&core, &[(MAIL, Origin::Gateway)]).await.refused, Some(vec![]));
    for door in [world.relay.device[0], world.relay.link[0]] {
        let mut tcp = TcpStream::connect(door).await.unwrap();
        let hello = hello(&world, "MAIL.tenant.example");
        // In two pieces: the name is not known from the first.
        tcp.write_all(&hello[..40]).await.unwrap();
        tcp.flush().await.unwrap();
        tcp.write_all(&hello[40..]).await.unwrap();
        let mut stream = arrived(&node).await;
        assert_eq!(read(&mut stream, hello.len()).await, hello);
        stream.write_chunk(Bytes::from_static(b"server's words")).await.unwrap();
        stream.finish();
        let mut said = Vec::new();
        timeout(LONG, tcp.read_to_end(&mut said)).await.unwrap().unwrap();
        assert_eq!(said, b"server's words");
        // The other direction is still open.
        tcp.write_all(b"client's").await.unwrap();
        assert_eq!(read(&mut stream, 8).await, b"client's");
        tcp.shutdown().await.unwrap();
        assert_eq!(timeout(LONG, stream.read_chunk()).await.unwrap().unwrap(), None);
    }
    eventually("nothing is passed any more", || world.relay.relay().passes.live().is_empty()).await;
}

#[tokio::test]
async fn p02_names_are_closed_that_are_nobodys_withdrawn_or_of_a_blocked_tenant() {
    let world = World::new().await;
    let core = world.core().await;
    let node = gateway(&world).await;
    assert!(is_closed(greet(&world, MAIL).await).await, "not registered yet");
    for bad in [NAME, "x.lane.relay.example", "localhost", "192.0.2.7"] {
        let reply = register(&core, &[(bad, Origin::Gateway), (MAIL, Origin::Gateway)]).await;
        let refused = reply.refused.unwrap();
        assert!(refused.len() == 1 && refused[0].name == bad, "{refused:?}");
    }
    let live = |world: &World| world.relay.relay().passes.live().len();
    let open = async |world: &World| {
        let tcp = greet(world, MAIL).await;
        let stream = arrived(&node).await;
        eventually("it is passed", || live(world) == 1).await;
        (tcp, stream)
    };
    // Withdrawn by the tenant.
    let (tcp, _stream) = open(&world).await;
    register(&core, &[]).await;
    assert!(is_closed(tcp).await && is_closed(greet(&world, MAIL).await).await);
    // Taken by the operator: the core does not get it back.
    register(&core, &[(MAIL, Origin::Gateway)]).await;
    let (tcp, _stream) = open(&world).await;
    let answer = world.control(Method::DELETE, "/tenants/S12345678/names/mail.tenant.example", None).await;
    assert_eq!((answer["removed"].as_bool(), answer["cut"].as_u64()), (Some(true), Some(1)));
    assert!(is_closed(tcp).await && is_closed(greet(&world, MAIL).await).await);
    assert_eq!(register(&core, &[(MAIL, Origin::Gateway)]).await.refused.unwrap()[0].name, MAIL);
    let listed = world.control(Method::GET, "/names", None).await;
    assert_eq!((listed[0]["name"].as_str(), listed[0]["state"].as_str()), (Some(MAIL), Some("removed")));
    world.control(Method::POST, "/tenants/S12345678/names/mail.tenant.example/allow", None).await;
    assert_eq!(register(&core, &[(MAIL, Origin::Gateway)]).await.refused, Some(vec![]));
    // An operator cuts one connection; its client may come back.
    let (tcp, _stream) = open(&world).await;
    let sessions = world.control(Method::GET, "/sessions", None).await;
    let id = sessions.as_array().unwrap().iter().find(|s| s["kind"] == "name").unwrap()["id"].as_str().unwrap();
    world.control(Method::DELETE, &format!("/sessions/{id}"), None).await;
    assert!(is_closed(tcp).await);
    // A blocked tenant.
    let (tcp, _stream) = open(&world).await;
    world.control(Method::POST, "/tenants/S12345678/block", None).await;
    assert!(is_closed(tcp).await && is_closed(greet(&world, MAIL).await).await);
}

#[tokio::test]
async fn a_name_without_a_server_is_closed_and_its_limits_are_those_of_connect() {
    let world = World::with(|c| c.limits.tunnels_per_client = 1).await;
    let core = world.core().await;
    register(&core, &[(MAIL, Origin::Gateway)]).await;
    assert!(is_closed(greet(&world, MAIL).await).await, "nothing serves it");
    let node = gateway(&world).await;
    let first = greet(&world, MAIL).await;
    let stream = arrived(&node).await;
    assert!(is_closed(greet(&world, MAIL).await).await, "one tunnel of one client at once");
    drop((first, stream));
    eventually("the first has ended", || world.relay.relay().passes.live().is_empty()).await;
    let _second = greet(&world, MAIL).await;
    let _stream = arrived(&node).await;
}

#[tokio::test]
async fn a_core_serves_mdm_only_when_it_says_so_and_nothing_else_beyond_its_own() {
    let world = World::new().await;
    let core = world.core().await;
    let name = RegisteredName { name: "mdm.tenant.example".into(), origin: Origin::Mdm };
    let mut wanted = Registrations { names: vec![name], serves: vec![Origin::Gateway], ..Registrations::default() };
    assert!(service(&core, Service::PutRegistrations, &wanted).await.is_err(), "a core serves no gateway");
    wanted.serves = vec![];
    service(&core, Service::PutRegistrations, &wanted).await.unwrap();
    assert!(is_closed(greet(&world, "mdm.tenant.example").await).await);
    wanted.serves = vec![Origin::Mdm];
    service(&core, Service::PutRegistrations, &wanted).await.unwrap();
    let _tcp = greet(&world, "mdm.tenant.example").await;
    let incoming = timeout(LONG, core.mux.accept()).await.unwrap().unwrap();
    let LinkOpen::Through { to, .. } = incoming.read_header().unwrap() else { panic!("not a stream") };
    assert_eq!(to.origin, Origin::Mdm);
}

#[tokio::test]
async fn p02_a_client_that_does_not_read_holds_its_server_up_and_loses_nothing() {
    const SENT: usize = 64 << 20;
    let world = World::new().await;
    let core = world.core().await;
    let node = gateway(&world).await;
    register(&core, &[(MAIL, Origin::Gateway)]).await;
    let mut tcp = greet(&world, MAIL).await;
    let mut stream = arrived(&node).await;
    let written = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = written.clone();
    world.scope.spawn(async move {
        let chunk = Bytes::from(vec![7; 64 << 10]);
        for _ in 0..SENT / chunk.len() {
            stream.write_chunk(chunk.clone()).await.unwrap();
            counted.fetch_add(chunk.len(), std::sync::atomic::Ordering::Relaxed);
        }
        stream.finish();
    });
    let so_far = || written.load(std::sync::atomic::Ordering::Relaxed);
    // It stands still once windows and socket buffers are full.
    let mut before = usize::MAX;
    while so_far() != before || before == 0 {
        before = so_far();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before < SENT, "{before} bytes were taken from a client that reads none");
    let mut read = 0;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match timeout(LONG, tcp.read(&mut buffer)).await.unwrap().unwrap() {
            0 => break,
            n => read += n,
        }
    }
    assert_eq!(read, SENT);
}

#[tokio::test]
async fn a_name_is_one_tenants_at_a_time_and_never_leads_to_another() {
    let world = World::new().await;
    let first = world.core().await;
    let tenant: hedgerow_shared::TenantId = "S87654321".parse().unwrap();
    let key = world.relay.relay().store.add(tenant.clone()).unwrap().srp_key.clone();
    let second = world.dial(&Credentials::Srp { tenant: tenant.clone(), key }, 2).await.unwrap();
    register(&first, &[("name.example", Origin::Core)]).await;
    let refused = register(&second, &[("name.example", Origin::Core)]).await.refused.unwrap();
    assert!(refused.len() == 1 && refused[0].fault.text.contains("another tenant holds"), "{refused:?}");
    let arrives_at = async |core: &Link| {
        let _tcp = greet(&world, "name.example").await;
        let incoming = timeout(LONG, core.mux.accept()).await.unwrap().unwrap();
        let LinkOpen::Through { to, .. } = incoming.read_header().unwrap() else { panic!("not a stream") };
        to.tenant
    };
    assert_eq!(arrives_at(&first).await, world.tenant);
    register(&first, &[]).await;
    assert_eq!(register(&second, &[("name.example", Origin::Core)]).await.refused, Some(vec![]));
    assert_eq!(arrives_at(&second).await, tenant);
}

/// One HTTP/1.1 exchange without TLS: everything the relay says.
async fn plain(world: &World, request: &str) -> String {
    let mut tcp = TcpStream::connect(world.relay.http[0]).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut said = Vec::new();
    timeout(LONG, tcp.read_to_end(&mut said)).await.unwrap().unwrap();
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn p07_the_plain_port_takes_connect_to_bws_and_nothing_else() {
    let world = World::with(|c| c.listen.http = vec!["127.0.0.1:0".parse().unwrap()]).await;
    let core = Arc::new(world.core().await);
    let connect = |origin: &str| {
        format!(
            "CONNECT server01:18084 HTTP/1.1\r\nHost: x\r\nTenant-Id: S12345678\r\nOrigin-Server-Id: {origin}\r\n\r\n"
        )
    };
    for (request, status, word) in [
        (connect("core"), "403", "origin bws only"),
        (connect("proxy"), "403", "origin bws only"),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "405", "CONNECT"),
        ("POST /lookup HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".to_owned(), "405", "CONNECT"),
        ("CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400", "Tenant-Id"),
    ] {
        let said = plain(&world, &request).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")) && said.contains(word), "{request}: {said}");
    }
    // TLS has no business here.
    let mut tcp = TcpStream::connect(world.relay.http[0]).await.unwrap();
    tcp.write_all(&hello(&world, NAME)).await.unwrap();
    let mut said = Vec::new();
    timeout(LONG, tcp.read_to_end(&mut said)).await.unwrap().unwrap();
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 400"), "{said:?}");

    let serving = core.clone();
    world.scope.spawn(async move {
        let mut stream = serving.mux.accept().await.unwrap().accept();
        while let Ok(Some(chunk)) = stream.read_chunk().await {
            stream.write_chunk(chunk).await.unwrap();
        }
        stream.finish();
    });
    let mut tcp = TcpStream::connect(world.relay.http[0]).await.unwrap();
    tcp.write_all(connect("bws").as_bytes()).await.unwrap();
    let mut head = [0; 19];
    timeout(LONG, tcp.read_exact(&mut head)).await.unwrap().unwrap();
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
    tcp.write_all(b"client's own TLS").await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut rest = Vec::new();
    timeout(LONG, tcp.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.ends_with(b"client's own TLS"), "{}", String::from_utf8_lossy(&rest));
    let info = world.control(Method::GET, "/info", None).await;
    let port = world.relay.http[0].port();
    assert_eq!(info["web"][0].as_str(), Some(format!("http://{NAME}:{port}").as_str()));
}

#[tokio::test]
async fn n10_a_hand_shake_with_the_relay_uses_the_post_quantum_exchange() {
    let world = World::new().await;
    let tls = world.tls(NAME, b"http/1.1").await.unwrap();
    let group = tls.get_ref().1.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    let info = world.control(Method::GET, "/info", None).await;
    assert_eq!(info["tls"], serde_json::json!({ "provider": "aws-lc-rs", "post_quantum": true }));
}
