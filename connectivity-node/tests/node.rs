//! The node against a relay, a core and devices that are ours but stand outside it, over real sockets and real TLS.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

mod world;

use std::time::{Duration, Instant};

use hedgerow_connectivity_node::enroll;
use hedgerow_runtime::lane::Session;
use hedgerow_runtime::mux::Stream;
use hedgerow_shared::Role;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::wire::message::SessionOpen;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use world::{Tenant, World, mode};

const SOON: Duration = Duration::from_secs(10);

async fn open(session: &Session, host: &str, port: u16) -> Result<Stream, Fault> {
    let header =
        SessionOpen { host: host.into(), port, trace: Some("0123456789abcdef0123456789abcdef".into()), tunnel: None };
    timeout(SOON, session.mux.open(&header)).await.expect("an answer comes")
}

async fn echoes(session: &Session, host: &str, port: u16) {
    let mut stream = open(session, host, port).await.unwrap();
    stream.write_all(b"hello intranet").await.unwrap();
    stream.finish();
    let mut got = String::new();
    timeout(SOON, stream.read_to_string(&mut got)).await.unwrap().unwrap();
    assert_eq!(got, "hello intranet");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p17_a_device_reaches_what_the_rules_allow_and_nothing_else() {
    let world = World::new().await;
    world.allow_intranet(1, &[]);
    world.enrolled().await;
    let node = world.run(|_| {});
    world.ready(&node).await;
    let (device, _) = world.tenant.issue(Role::Device);
    let port = world.intranet.port();
    for session in [world.session_by_link(&device).await.unwrap(), world.session_by_lane(&device).await.unwrap()] {
        echoes(&session, "Intranet.Demo.", port).await;
        echoes(&session, "127.0.0.1", port).await;
        echoes(&session, "::ffff:127.0.0.1", port).await;
        for (host, port, code) in [
            ("elsewhere.example", port, Code::DeniedByPolicy),
            ("127.0.0.1", 1, Code::DeniedByPolicy),
            ("127.1", port, Code::DeniedByPolicy),
            ("rebound.demo", port, Code::DeniedByPolicy),
            ("169.254.169.254", 80, Code::DeniedByPolicy),
            ("unknown-name.demo", port, Code::NameNotFound),
            ("127.0.0.1", world.relay.port(), Code::DeniedByPolicy),
        ] {
            let fault = open(&session, host, port).await.unwrap_err();
            assert_eq!(fault.code, code, "{host}:{port}: {fault}");
            assert!(!fault.text.is_empty() && !fault.text.contains("127.0.0.2"), "{fault}");
        }
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_revoked_devices_are_cut_within_five_seconds_with_their_streams() {
    let world = World::new().await;
    world.allow_intranet(1, &[]);
    world.enrolled().await;
    let node = world.run(|_| {});
    world.ready(&node).await;
    let (device, id) = world.tenant.issue(Role::Device);
    let (other, _) = world.tenant.issue(Role::Device);
    let sessions = [world.session_by_link(&device).await.unwrap(), world.session_by_lane(&device).await.unwrap()];
    let unharmed = world.session_by_lane(&other).await.unwrap();
    let mut streams = Vec::new();
    for session in &sessions {
        let mut stream = open(session, "intranet.demo", world.intranet.port()).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        streams.push(stream);
    }
    world.allow_intranet(2, &[id]);
    let started = Instant::now();
    world.wake().await;
    for (session, mut stream) in sessions.iter().zip(streams) {
        assert!(timeout(SOON, stream.read_chunk()).await.expect("the stream ends").is_err(), "not an orderly end");
        let fault = timeout(SOON, session.mux.closed()).await.expect("the session ends");
        assert_eq!(fault.code, Code::Revoked, "{fault}");
    }
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(world.session_by_link(&device).await.is_err(), "no new session either");
    echoes(&unharmed, "intranet.demo", world.intranet.port()).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_configuration_everything_is_denied_and_the_device_is_told() {
    let world = World::new().await;
    world.enrolled().await;
    let node = world.run(|_| {});
    let (device, _) = world.tenant.issue(Role::Device);
    let session = world.session_by_link(&device).await.unwrap();
    // The configuration that came with the enrolment allows nothing, and expires.
    let fault = open(&session, "127.0.0.1", world.intranet.port()).await.unwrap_err();
    assert_eq!(fault.code, Code::DeniedByPolicy);
    timeout(SOON, session.mux.closed()).await.expect("cut at expiry");
    let session = world.session_by_link(&device).await.unwrap();
    let fault = open(&session, "127.0.0.1", world.intranet.port()).await.unwrap_err();
    assert_eq!(fault.code, Code::DeniedByPolicy);
    assert!(fault.text.contains("no valid configuration"), "{fault}");
    assert!(node.context.readiness.failing().unwrap().contains("configuration"));
    world.allow_intranet(1, &[]);
    world.wake().await;
    world.ready(&node).await;
    echoes(&session, "127.0.0.1", world.intranet.port()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n12_the_configuration_on_disk_serves_without_the_core_and_older_ones_are_refused() {
    let world = World::new().await;
    world.allow_intranet(5, &[]);
    world.enrolled().await;
    let node = world.run(|_| {});
    world.ready(&node).await;
    node.stop().await;
    world.link_gone().await;

    // The core now offers an older version: a replay.
    *world.config.lock() = Some(world.tenant.config(4, 3600, json!([{"action": "deny", "target": "*"}]), &[]));
    let node = world.run(|_| {});
    let (device, _) = world.tenant.issue(Role::Device);
    let session = world.session_by_lane(&device).await.unwrap();
    world.wake().await;
    echoes(&session, "intranet.demo", world.intranet.port()).await;
    // One signed by another tenant's key is refused too, whatever its version.
    *world.config.lock() = Some(Tenant::new().config(9, 3600, json!([{"action": "deny", "target": "*"}]), &[]));
    world.wake().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    echoes(&session, "intranet.demo", world.intranet.port()).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_configuration_denies_and_cuts() {
    let world = World::new().await;
    let rules = json!([{"action": "allow", "target": "127.0.0.1"}]);
    *world.config.lock() = Some(world.tenant.config(1, 3, rules, &[]));
    world.enrolled().await;
    let node = world.run(|_| {});
    world.ready(&node).await;
    let (device, _) = world.tenant.issue(Role::Device);
    let session = world.session_by_link(&device).await.unwrap();
    let mut stream = open(&session, "127.0.0.1", world.intranet.port()).await.unwrap();
    assert!(timeout(SOON, stream.read_chunk()).await.expect("cut at expiry").is_err());
    let session = world.session_by_link(&device).await.unwrap();
    assert_eq!(open(&session, "127.0.0.1", world.intranet.port()).await.unwrap_err().code, Code::DeniedByPolicy);
    assert!(node.context.readiness.failing().unwrap().contains("configuration"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a09_strangers_are_refused_and_limits_hold() {
    let world = World::new().await;
    world.allow_intranet(1, &[]);
    world.enrolled().await;
    let node = world.run(|config| {
        config.limits.sessions_per_device = 2;
        config.limits.connections_per_device = 3;
    });
    world.ready(&node).await;
    let (stranger, _) = Tenant::new().issue(Role::Device);
    assert!(world.session_by_lane(&stranger).await.is_err(), "a device of another tenant");
    let (not_a_device, _) = world.tenant.issue(Role::Node);
    assert!(world.session_by_link(&not_a_device).await.is_err(), "a node is no device");

    let (device, _) = world.tenant.issue(Role::Device);
    let first = world.session_by_link(&device).await.unwrap();
    let second = world.session_by_link(&device).await.unwrap();
    let third = world.session_by_link(&device).await.unwrap();
    assert_eq!(timeout(SOON, third.mux.closed()).await.unwrap().code, Code::Limited);
    let port = world.intranet.port();
    let mut held = Vec::new();
    for session in [&first, &second, &first] {
        held.push(open(session, "127.0.0.1", port).await.unwrap());
    }
    assert_eq!(open(&second, "127.0.0.1", port).await.unwrap_err().code, Code::Limited);
    drop(held.pop());
    let again = timeout(SOON, async {
        loop {
            match open(&second, "127.0.0.1", port).await {
                Ok(stream) => return stream,
                Err(fault) => assert_eq!(fault.code, Code::Limited),
            }
        }
    });
    again.await.expect("a place comes free");
    let (other, _) = world.tenant.issue(Role::Device);
    echoes(&world.session_by_lane(&other).await.unwrap(), "127.0.0.1", port).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enrolment_keeps_the_key_private_and_a_token_is_good_once() {
    let world = World::new().await;
    let token = world.token();
    let timers = Timers::default();
    let record = enroll(&world.state(), &token, Some("berlin-1"), &timers).await.unwrap();
    assert_eq!(record.name, "berlin-1");
    assert_eq!(mode(&world.state()), 0o700);
    for file in ["node.key.pem", "node.json", "node.pem", "tenant-ca.pem"] {
        assert_eq!(mode(&world.state().join(file)), 0o600, "{file}");
    }
    let again = enroll(&world.state(), &world.token(), None, &timers).await.unwrap_err();
    assert!(again.to_string().contains("already holds"), "{again:#}");
    let reused = enroll(&world.folder.path().join("second"), &token, None, &timers).await.unwrap_err();
    assert!(format!("{reused:#}").contains("used already"), "{reused:#}");
    assert!(!format!("{reused:#}").contains("BwcH"), "no secret in errors");

    let (_, lock) = (world.run(|_| {}), tokio::time::sleep(Duration::from_millis(500)).await);
    let () = lock;
    let second = world.run(|_| {});
    let error = timeout(SOON, second.ended).await.unwrap().unwrap().unwrap_err();
    assert!(format!("{error:#}").contains("another process"), "{error:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_another_tenant_ca_is_refused_before_anything_is_told() {
    let world = World::new().await;
    let mut token = hedgerow_shared::wire::token::EnrolmentToken::from_secret(&world.token()).unwrap();
    token.tenant_ca_pin = [1; 32];
    let token = hedgerow_shared::secret::Secret::from_text(token.to_text());
    let error = enroll(&world.state(), &token, None, &Timers::default()).await.unwrap_err();
    assert!(format!("{error:#}").contains("certificate"), "{error:#}");
    assert!(!world.state().join("node.json").exists());
}
