//! P20, P37: a device becomes one of the tenant's over TLS, and nobody else does.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use bytes::Bytes;
use common::{EMAIL, PASSWORD, World};
use hedgerow_runtime::{clock, tls};
use hedgerow_shared::verify::{DeviceConfig, SignedConfig, TenantCa, Usage};
use hedgerow_shared::wire::core_api::{self, ACTIVATE_FINISH, ACTIVATE_START, ALPN_HTTP, CONFIG_DEVICE, CONFIG_NODE};
use hedgerow_shared::{Origin, Role};
use hedgerow_uem_core::Actor;
use hedgerow_uem_core::activation::PasswordState;
use hedgerow_uem_core::activation::pake::Start;
use http::{Request, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const UNAUTHORIZED: StatusCode = StatusCode::UNAUTHORIZED;

#[tokio::test]
async fn p20_the_right_password_makes_a_device_that_fetches_its_configuration() {
    let world = World::new().await;
    world.password(0, 600).await;
    let device = world.activate(PASSWORD).await.unwrap();
    let ca = TenantCa::from_der(&device.reply.ca).unwrap();
    let verified = ca.verify(&device.own.chain[0], Role::Device, Usage::Client, clock::now()).unwrap();
    assert_eq!(verified.identity.id, device.reply.device);
    let config: DeviceConfig = device.config.verify(&ca, None, clock::now()).unwrap();

    let mut client = world.as_holder(&device.own).await.unwrap();
    let (head, body) = client.get(CONFIG_DEVICE).await;
    assert_eq!((head.status, head.headers["content-type"].to_str().unwrap()), (StatusCode::OK, "application/cbor"));
    let signed: SignedConfig = minicbor::decode(&body).unwrap();
    let fetched: DeviceConfig = signed.verify(&ca, Some(config.head.version), clock::now()).unwrap();
    let (head, body) = client.get(&core_api::config_path(CONFIG_DEVICE, Some(fetched.head.version))).await;
    assert_eq!((head.status, body.len()), (StatusCode::NO_CONTENT, 0));
    // What nodes may reach is not a device's to know.
    assert_eq!(client.get(CONFIG_NODE).await.0.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn p37_a_wrong_password_fails_at_confirmation_and_the_sixth_is_refused_even_if_right() {
    let world = World::new().await;
    world.password(0, 600).await;
    for _ in 0..5 {
        assert_eq!(world.activate("open sesamf").await.err(), Some(("confirm", UNAUTHORIZED)));
    }
    assert_eq!(world.activate(PASSWORD).await.err(), Some(("confirm", UNAUTHORIZED)));
    let state = world.app.domain.activation_state(&world.app.tenant, world.user, clock::now()).await.unwrap();
    assert_eq!(state.map(|s| s.0), Some(PasswordState::Blocked));
}

#[tokio::test]
async fn p37_four_wrong_attempts_leave_the_password_good() {
    let world = World::new().await;
    world.password(0, 600).await;
    for _ in 0..4 {
        assert!(world.activate("open sesamf").await.is_err());
    }
    world.activate(PASSWORD).await.unwrap();
}

#[tokio::test]
async fn p37_a_password_is_good_once_and_for_its_time() {
    let world = World::new().await;
    assert_eq!(world.activate(PASSWORD).await.err(), Some(("confirm", UNAUTHORIZED)), "no password yet");
    world.password(100, 50).await;
    assert_eq!(world.activate(PASSWORD).await.err(), Some(("confirm", UNAUTHORIZED)), "expired");
    world.password(0, 600).await;
    world.activate(PASSWORD).await.unwrap();
    assert_eq!(world.activate(PASSWORD).await.err(), Some(("confirm", UNAUTHORIZED)), "used");
}

#[tokio::test]
async fn a_user_who_does_not_exist_gets_an_offer_and_the_same_words() {
    let world = World::new().await;
    world.password(0, 600).await;
    let refused = world.stranger().await.activate("nobody@example.com", PASSWORD).await;
    assert_eq!(refused.err(), Some(("confirm", UNAUTHORIZED)));
}

/// A relay that ends TLS itself and passes on every byte of what is inside.
#[tokio::test]
async fn somebody_in_between_with_their_own_tls_gets_no_key() {
    let world = World::new().await;
    world.password(0, 600).await;
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let inside = world.dial(Origin::Core);
    world.scope.spawn(async move {
        let key = rcgen::KeyPair::generate().unwrap();
        let forged = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = tls::as_relay(vec![forged.der().clone()], key.into(), &[ALPN_HTTP]).unwrap();
        let mut outer = TlsAcceptor::from(config).accept(theirs).await.unwrap();
        let config = tls::to_anyone(&[ALPN_HTTP]).unwrap();
        let mut inner = TlsConnector::from(config).connect(tls::any_name(), inside).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
    });
    let config = tls::to_anyone(&[ALPN_HTTP]).unwrap();
    let mut client = common::Client::over(ours, config, &world.scope).await.unwrap();
    // The password is right: only the exporters differ.
    assert_eq!(client.activate(EMAIL, PASSWORD).await.err(), Some(("confirm", UNAUTHORIZED)));
}

#[tokio::test]
async fn messages_out_of_order_are_refused_and_end_the_connection() {
    let world = World::new().await;
    world.password(0, 600).await;
    let start = Start { user: EMAIL.parse().unwrap() };
    let mut client = world.stranger().await;
    assert_eq!(client.post(ACTIVATE_START, &start).await.0, StatusCode::OK);
    assert_eq!(client.post(ACTIVATE_START, &start).await.0, StatusCode::CONFLICT);
    assert!(client.sender.ready().await.is_err(), "the connection is closed");
    let mut client = world.stranger().await;
    assert_eq!(client.post(ACTIVATE_FINISH, &start).await.0, StatusCode::CONFLICT);
}

#[tokio::test]
async fn malformed_and_oversized_requests_are_refused() {
    let world = World::new().await;
    let mut client = world.stranger().await;
    assert_eq!(client.post(ACTIVATE_START, &"no object").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(world.stranger().await.post("/activate/v1/else", &1).await.0, StatusCode::NOT_FOUND);
    let (head, _) = world.stranger().await.get(ACTIVATE_START).await;
    assert_eq!((head.status, head.headers["allow"].to_str().unwrap()), (StatusCode::METHOD_NOT_ALLOWED, "POST"));
    let long = "x".repeat(core_api::MAX_REQUEST);
    assert_eq!(world.stranger().await.post(ACTIVATE_START, &long).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    let mut client = world.stranger().await;
    let body = Full::new(Bytes::new());
    let head = Request::builder().uri(CONFIG_DEVICE).header("x-long", "x".repeat(20 * 1024)).body(body).unwrap();
    assert_eq!(client.send(head).await.0.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    // Bytes that are no TLS end the connection, nothing more.
    let mut io = world.dial(Origin::Core);
    io.write_all(&[0x41; 4096]).await.unwrap();
    let mut answer = Vec::new();
    let _ = io.read_to_end(&mut answer).await;
    assert!(answer.len() < 64, "a TLS alert at most");
}

#[tokio::test]
async fn a_revoked_device_is_refused_on_open_connections_too() {
    let world = World::new().await;
    world.password(0, 600).await;
    let device = world.activate(PASSWORD).await.unwrap();
    let mut client = world.as_holder(&device.own).await.unwrap();
    assert_eq!(client.get(CONFIG_DEVICE).await.0.status, StatusCode::OK);
    let mut call = hedgerow_management::app::call(Actor::System);
    world.app.domain.revoke_device(&mut call, &world.app.tenant, device.reply.device).await.unwrap();
    assert_eq!(client.get(CONFIG_DEVICE).await.0.status, StatusCode::FORBIDDEN);
    let mut client = world.as_holder(&device.own).await.unwrap();
    assert_eq!(client.get(CONFIG_DEVICE).await.0.status, StatusCode::FORBIDDEN);
}
