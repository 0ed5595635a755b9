//! HTTP at the relay's own name: CONNECT and the look-up.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Body, LONG, NAME, World};
use hedgerow_runtime::dial;
use hedgerow_runtime::link::Link;
use hedgerow_shared::Origin;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::wire::message::LinkOpen;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// One request over a connection of its own.
async fn ask(world: &World, request: Request<Body>) -> (StatusCode, String) {
    let tls = world.tls(NAME, b"http/1.1").await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
    world.scope.spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    read(sender.send_request(request).await.unwrap()).await
}

async fn read(answer: Response<Incoming>) -> (StatusCode, String) {
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

fn connect(headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::builder().method(Method::CONNECT).uri("server01:18084").header("host", "server01:18084");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::default()).unwrap()
}

fn lookup(email: &str) -> Request<Body> {
    let body = serde_json::json!({ "email": email }).to_string();
    Request::post("/lookup").header("host", NAME).body(Body::from(body)).unwrap()
}

/// A core that echoes `bws` and refuses `core`.
fn echo(world: &World, core: &Link) {
    let (mux, scope) = (core.mux.clone(), world.scope.clone());
    world.scope.spawn(async move {
        while let Some(incoming) = mux.accept().await {
            let Ok(LinkOpen::Through { to, vouched, .. }) = incoming.read_header() else { continue };
            assert!(vouched.is_some_and(|v| v.role.is_none() && v.address.starts_with("127.0.0.1:")));
            if to.origin == Origin::Core {
                incoming.refuse(Fault::new(Code::Internal, "not today"));
                continue;
            }
            let mut stream = incoming.accept();
            scope.spawn(async move {
                while let Ok(Some(chunk)) = stream.read_chunk().await {
                    if stream.write_chunk(chunk).await.is_err() {
                        return;
                    }
                }
                stream.write_chunk(Bytes::from_static(b"<end>")).await.unwrap();
                stream.finish();
            });
        }
    });
}

#[tokio::test]
async fn p02_connect_reaches_a_tenants_origin_and_says_why_when_not() {
    let world = World::new().await;
    let tenant = ("Tenant-Id", "S12345678");
    let (status, why) = ask(&world, connect(&[tenant, ("Origin-Server-Id", "bws")])).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(why.contains("nothing that serves bws is connected"), "{why}");
    let core = world.core().await;
    echo(&world, &core);
    for (headers, wanted) in [
        (vec![("Origin-Server-Id", "bws")], StatusCode::BAD_REQUEST),
        (vec![tenant], StatusCode::BAD_REQUEST),
        (vec![tenant, tenant, ("Origin-Server-Id", "bws")], StatusCode::BAD_REQUEST),
        (vec![tenant, ("Origin-Server-Id", "shell")], StatusCode::BAD_REQUEST),
        (vec![tenant, ("Origin-Server-Id", "proxy")], StatusCode::FORBIDDEN),
        (vec![tenant, ("Origin-Server-Id", "mdm")], StatusCode::FORBIDDEN),
        (vec![("Tenant-Id", "S99999999"), ("Origin-Server-Id", "bws")], StatusCode::NOT_FOUND),
        (vec![tenant, ("Origin-Server-Id", "core")], StatusCode::BAD_GATEWAY),
    ] {
        let (status, why) = ask(&world, connect(&headers)).await;
        assert_eq!(status, wanted, "{headers:?}: {why}");
        assert!(why.ends_with('\n') && why.lines().count() == 1 && why.len() > 10, "{why:?}");
    }
    for (method, path, wanted) in [
        (Method::GET, "/", StatusCode::NOT_FOUND),
        (Method::GET, "/lookup", StatusCode::METHOD_NOT_ALLOWED),
        (Method::PUT, "/", StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let request = Request::builder().method(method).uri(path).header("host", NAME).body(Body::default()).unwrap();
        assert_eq!(ask(&world, request).await.0, wanted);
    }
    world.control(Method::POST, "/tenants/S12345678/block", None).await;
    let (status, why) = ask(&world, connect(&[tenant, ("Origin-Server-Id", "bws")])).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(why.contains("blocked"), "{why}");
}

#[tokio::test]
async fn p02_bytes_pass_both_ways_and_half_close_is_kept() {
    let world = World::new().await;
    let core = world.core().await;
    echo(&world, &core);
    let timers = world.relay.relay().timers;
    let mut io = dial::origin(&world.target(), &world.tenant, Origin::Bws, &timers, &world.scope).await.unwrap();
    let sent: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    let (mut read, mut write) = tokio::io::split(&mut io);
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (_, received) = tokio::join!(send, read.read_to_end(&mut got));
    received.unwrap();
    assert!(got.strip_suffix(b"<end>").is_some_and(|body| body == sent), "{} bytes", got.len());
}

#[tokio::test]
async fn p02_connect_over_http2_carries_several_tunnels() {
    let world = World::new().await;
    let core = world.core().await;
    echo(&world, &core);
    let tls = world.tls(NAME, b"h2").await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
    world.scope.spawn(async move {
        let _ = connection.await;
    });
    for n in 0..3u8 {
        let request = Request::builder().method(Method::CONNECT).uri("server01:18084");
        let request =
            request.header("tenant-id", "S12345678").header("origin-server-id", "bws").body(Body::default()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let mut io = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
        io.write_all(&[n; 5]).await.unwrap();
        let mut got = [0; 5];
        io.read_exact(&mut got).await.unwrap();
        assert_eq!(got, [n; 5]);
    }
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_a_gateway_timeout() {
    let world = World::new().await;
    let core = world.core().await;
    let (status, _) =
        timeout(LONG, ask(&world, connect(&[("Tenant-Id", "S12345678"), ("Origin-Server-Id", "bws")]))).await.unwrap();
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    drop(core);
}

#[tokio::test]
async fn oversize_headers_and_slow_headers_end_the_connection() {
    let world = World::new().await;
    let mut tls = world.tls(NAME, b"http/1.1").await.unwrap();
    let head = format!("CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\nX: {}\r\n\r\n", "a".repeat(20_000));
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(LONG, tls.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    let start = Instant::now();
    let mut tls = world.tls(NAME, b"http/1.1").await.unwrap();
    tls.write_all(b"CONNECT x:1 HTTP/1.1\r\nHost:").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(LONG, tls.read_to_end(&mut answer)).await.unwrap();
    assert!(start.elapsed() < world.relay.relay().timers.handshake + Duration::from_secs(5));
}

#[tokio::test]
async fn anonymous_clients_are_rate_limited() {
    let world = World::with(|config| {
        (config.limits.connect_per_client, config.limits.connect_burst_per_client) = (0.01, 2.0);
        (config.limits.lookup_per_client, config.limits.lookup_burst_per_client) = (0.01, 2.0);
    })
    .await;
    for wanted in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS] {
        assert_eq!(ask(&world, connect(&[("Tenant-Id", "S12345678"), ("Origin-Server-Id", "bws")])).await.0, wanted);
    }
    for wanted in [StatusCode::NOT_FOUND, StatusCode::NOT_FOUND, StatusCode::TOO_MANY_REQUESTS] {
        assert_eq!(ask(&world, lookup("ann@example.com")).await.0, wanted);
    }
}

#[tokio::test]
async fn p03_a_claimed_domain_answers_alike_and_an_unclaimed_one_only_for_open_activations() {
    let world = World::with(|config| config.limits.lookup_burst_per_client = 1000.0).await;
    let core = world.core().await;
    world.open_activation(&core, "ann@mail.test").await;
    let domain = serde_json::json!({ "domain": "example.com" });
    world.control(Method::POST, "/tenants/S12345678/domains", Some(domain)).await;
    let expected = (StatusCode::OK, r#"{"origin":"core","tenant":"S12345678"}"#.to_owned());
    for email in ["ann@example.com", "nobody@example.com", "NOBODY@Example.COM"] {
        assert_eq!(ask(&world, lookup(email)).await, expected, "{email}");
    }
    assert_eq!(ask(&world, lookup(" Ann@MAIL.test")).await, expected);
    let unknown = ask(&world, lookup("bob@mail.test")).await;
    assert_eq!(unknown.0, StatusCode::NOT_FOUND);
    assert_eq!(ask(&world, lookup("bob@elsewhere.test")).await, unknown, "unknown is unknown alike");
    for bad in ["", "ann", "ann@", "@example.com"] {
        assert_eq!(ask(&world, lookup(bad)).await.0, StatusCode::BAD_REQUEST, "{bad:?}");
    }
    let huge = Request::post("/lookup").header("host", NAME).body(Body::from(vec![b' '; 100_000])).unwrap();
    assert_eq!(ask(&world, huge).await.0, StatusCode::BAD_REQUEST);
    world.control(Method::DELETE, "/tenants/S12345678/domains/example.com", None).await;
    assert_eq!(ask(&world, lookup("ann@example.com")).await, unknown);
}
