//! Against an HTTP/1.1 server that tells what it received, over raw sockets so that odd bytes can be sent.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::testing::{ToEcho, echo_server};

const SOON: Duration = Duration::from_secs(20);

/// Echoes heads as text under `/head`, counts bytes under `/count`, sends them under `/bytes/N`, changes the protocol
/// under `/ws`, answers before reading under `/early`.
async fn web_server(scope: &Scope, connections: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let inner = scope.clone();
    scope.spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::SeqCst);
            let scope = inner.clone();
            let service = service_fn(move |request| page(request, scope.clone()));
            inner.spawn(async move {
                let builder = hyper::server::conn::http1::Builder::new();
                let _ = builder.serve_connection(TokioIo::new(tcp), service).with_upgrades().await;
            });
        }
    });
    address
}

type Page = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>>;

async fn page(mut request: Request<Incoming>, scope: Scope) -> Result<Page, Infallible> {
    let text = |t: String| Response::new(Full::new(Bytes::from(t)).boxed_unsync());
    let path = request.uri().path().to_owned();
    Ok(match path.as_str() {
        "/head" => {
            let mut head = format!("{} {}\n", request.method(), request.uri());
            for (name, value) in request.headers() {
                head.push_str(&format!("{name}: {}\n", value.to_str().unwrap_or("?")));
            }
            let mut response = text(head);
            response.headers_mut().insert("keep-alive", HeaderValue::from_static("timeout=5"));
            response.headers_mut().insert("proxy-authenticate", HeaderValue::from_static("Basic"));
            response
        }
        "/count" => {
            let mut count = 0usize;
            while let Some(Ok(frame)) = request.frame().await {
                count += frame.data_ref().map_or(0, Bytes::len);
            }
            text(count.to_string())
        }
        "/early" => text("no need".into()),
        "/ws" => {
            let upgrade = hyper::upgrade::on(&mut request);
            scope.spawn(async move {
                let Ok(upgraded) = upgrade.await else { return };
                let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
                let _ = write.write_all(b"hello from the server;").await;
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
            let mut response = text(String::new());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            headers::set_upgrade(response.headers_mut(), HeaderValue::from_static("websocket"));
            response
        }
        other => {
            let blocks: usize = other.strip_prefix("/blocks/").and_then(|n| n.parse().ok()).unwrap_or(0);
            let block = Bytes::from(vec![7u8; 64 * 1024]);
            let frames = futures_util::stream::iter((0..blocks).map(move |_| Ok(Frame::data(block.clone()))));
            Response::new(StreamBody::new(frames).boxed_unsync())
        }
    })
}

struct World {
    proxy: SocketAddr,
    connections: Arc<AtomicUsize>,
    _stop: tokio_util::sync::DropGuard,
}

struct ToWeb {
    web: SocketAddr,
    other: ToEcho,
}

impl Connector for ToWeb {
    async fn connect(&self, target: &Target) -> Result<Outbound, Fault> {
        if target.host_text().ends_with("web.test") {
            return Ok(Outbound::Direct(TcpStream::connect(self.web).await.unwrap()));
        }
        self.other.connect(target).await
    }
}

async fn world() -> World {
    let scope = Scope::new();
    let connections = Arc::new(AtomicUsize::new(0));
    let web = web_server(&scope, connections.clone()).await;
    let connector = Arc::new(ToWeb { web, other: ToEcho { echo: echo_server(&scope).await } });
    let listener = crate::listen::bind_loopback("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let proxy = listener.local_addr().unwrap();
    scope.spawn(serve(listener, connector, ServeLimits::default(), scope.clone()));
    World { proxy, connections, _stop: scope.guard() }
}

impl World {
    /// Sends bytes and reads until the end; requests should ask to close.
    async fn raw(&self, request: impl AsRef<[u8]>) -> String {
        let mut tcp = TcpStream::connect(self.proxy).await.unwrap();
        tcp.write_all(request.as_ref()).await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(SOON, tcp.read_to_end(&mut answer)).await.expect("the proxy closes");
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn status(&self, request: &str) -> String {
        self.raw(request).await.chars().skip(9).take(3).collect()
    }
}

async fn read_until(tcp: &mut TcpStream, end: &str) -> String {
    let mut got = Vec::new();
    while !String::from_utf8_lossy(&got).ends_with(end) {
        let mut byte = [0];
        assert_eq!(
            timeout(SOON, tcp.read(&mut byte)).await.unwrap().unwrap(),
            1,
            "{:?}",
            String::from_utf8_lossy(&got)
        );
        got.push(byte[0]);
    }
    String::from_utf8(got).unwrap()
}

#[tokio::test]
async fn a_silent_client_and_a_slow_head_are_closed_and_room_is_kept() {
    let scope = Scope::new();
    let listener = crate::listen::bind_loopback("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let proxy = listener.local_addr().unwrap();
    let limits = ServeLimits {
        connections: Arc::new(tokio::sync::Semaphore::new(1)),
        handshake: Duration::from_millis(400),
        ..ServeLimits::default()
    };
    let connector = Arc::new(ToEcho { echo: echo_server(&scope).await });
    scope.spawn(serve(listener, connector, limits, scope.clone()));
    for head in ["", "CONNECT echo.test:80 HTTP/1.1\r\nHost: echo.test:80\r\nX: 0123456789"] {
        let mut tcp = TcpStream::connect(proxy).await.unwrap();
        let mut closed = false;
        for byte in head.bytes() {
            // Far less than the limit apart: what counts is the whole.
            if tcp.write_all(&[byte]).await.is_err() {
                closed = true;
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(closed || head.is_empty(), "a head may take its time");
        let ended = async { while tcp.read(&mut [0; 64]).await.is_ok_and(|n| n > 0) {} };
        timeout(SOON, ended).await.expect("it is closed");
    }
    let mut tcp = TcpStream::connect(proxy).await.unwrap();
    tcp.write_all(b"CONNECT echo.test:80 HTTP/1.1\r\nHost: echo.test:80\r\n\r\n").await.unwrap();
    assert!(read_until(&mut tcp, "\r\n\r\n").await.starts_with("HTTP/1.1 200"), "the place is free again");
    scope.cancel();
}

#[tokio::test]
async fn connect_splices_what_was_sent_early_too() {
    let world = world().await;
    let mut tcp = TcpStream::connect(world.proxy).await.unwrap();
    tcp.write_all(b"CONNECT echo.test:443 HTTP/1.1\r\nHost: echo.test:443\r\n\r\nearly").await.unwrap();
    let head = read_until(&mut tcp, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(
        !head.to_lowercase().contains("content-length") && !head.to_lowercase().contains("transfer-encoding"),
        "{head}"
    );
    tcp.write_all(b" and late").await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut rest = String::new();
    tcp.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "early and late");
}

#[tokio::test]
async fn a_request_goes_on_in_origin_form_without_headers_of_this_hop() {
    let world = world().await;
    let answer = world
        .raw("GET http://Web.Test:8080/head?q=1 HTTP/1.1\r\nHost: other.test\r\nX-Case: kept\r\nProxy-Authorization: Basic eDp5\r\n\
              Proxy-Connection: keep-alive\r\nConnection: close, X-Listed\r\nX-Listed: 1\r\nTE: trailers\r\n\r\n")
        .await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!head.contains("proxy-authenticate") && !head.contains("timeout=5"), "{head}");
    assert!(body.starts_with("GET /head?q=1\n"), "{body}");
    assert!(body.contains("host: Web.Test:8080\n") && body.contains("x-case: kept"), "{body}");
    for gone in ["other.test", "proxy-", "x-listed", "te:", "connection"] {
        assert!(!body.contains(gone), "{gone} in {body}");
    }
}

#[tokio::test]
async fn requests_of_one_client_share_a_connection_and_those_of_two_never() {
    let world = world().await;
    let request = b"GET http://web.test/head HTTP/1.1\r\nHost: web.test\r\n\r\n";
    let mut first = TcpStream::connect(world.proxy).await.unwrap();
    for _ in 0..3 {
        first.write_all(request).await.unwrap();
        read_until(&mut first, "host: web.test\n").await;
    }
    assert_eq!(world.connections.load(Ordering::SeqCst), 1);
    first.write_all(b"GET http://b.web.test/head HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
    read_until(&mut first, "host: b.web.test\n").await;
    assert_eq!(world.connections.load(Ordering::SeqCst), 2, "another target, another connection");
    let mut second = TcpStream::connect(world.proxy).await.unwrap();
    second.write_all(request).await.unwrap();
    read_until(&mut second, "host: web.test\n").await;
    assert_eq!(world.connections.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_stream_both_ways() {
    let world = world().await;
    let mut tcp = TcpStream::connect(world.proxy).await.unwrap();
    tcp.write_all(b"POST http://web.test/count HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    assert!(read_until(&mut tcp, "\r\n\r\n").await.starts_with("HTTP/1.1 100"));
    let chunk = [b"10000\r\n".as_slice(), &vec![1; 0x10000], b"\r\n"].concat();
    for _ in 0..512 {
        tcp.write_all(&chunk).await.unwrap();
    }
    tcp.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with(&format!("{}", 512 * 0x10000)), "{answer}");

    let mut tcp = TcpStream::connect(world.proxy).await.unwrap();
    tcp.write_all(b"GET http://web.test/blocks/512 HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await.unwrap();
    assert!(answer.len() > 512 * 64 * 1024 && answer.len() < 512 * 64 * 1024 + 1000, "{}", answer.len());
}

#[tokio::test]
async fn an_upgrade_in_absolute_form_becomes_a_pipe() {
    let world = world().await;
    let mut tcp = TcpStream::connect(world.proxy).await.unwrap();
    tcp.write_all(b"GET http://web.test/ws HTTP/1.1\r\nHost: w\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    let head = read_until(&mut tcp, "\r\n\r\n").await.to_lowercase();
    assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: websocket"), "{head}");
    read_until(&mut tcp, "hello from the server;").await;
    tcp.write_all(b"frame").await.unwrap();
    read_until(&mut tcp, "frame").await;
}

#[tokio::test]
async fn a_tunnel_counts_as_a_connection_until_it_ends() {
    let scope = Scope::new();
    let _stop = scope.guard();
    let connector = Arc::new(ToEcho { echo: echo_server(&scope).await });
    let listener = crate::listen::bind_loopback("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let proxy = listener.local_addr().unwrap();
    let limits = ServeLimits { connections: Arc::new(tokio::sync::Semaphore::new(1)), ..ServeLimits::default() };
    let places = limits.connections.clone();
    scope.spawn(serve(listener, connector, limits, scope.clone()));
    let mut tunnel = TcpStream::connect(proxy).await.unwrap();
    tunnel.write_all(b"CONNECT echo.test:1 HTTP/1.1\r\nHost: e\r\n\r\nx").await.unwrap();
    read_until(&mut tunnel, "\r\n\r\nx").await;
    let mut second = TcpStream::connect(proxy).await.unwrap();
    let closed = timeout(SOON, second.read(&mut [0; 1])).await.unwrap();
    assert!(!matches!(closed, Ok(1..)), "the second is closed");
    drop(tunnel);
    let _ = timeout(SOON, places.acquire()).await.expect("the place comes free").unwrap();
}

#[tokio::test]
async fn a_change_of_protocol_that_nobody_asked_for_is_refused() {
    let world = world().await;
    assert_eq!(world.status("GET http://web.test/ws HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n").await, "502");
}

#[tokio::test]
async fn faults_become_statuses_that_say_what_was_wrong() {
    let world = world().await;
    for (host, status) in [
        ("denied.test", "403"),
        ("unknown.test", "502"),
        ("refused.test", "502"),
        ("slow.test", "504"),
        ("nonode.test", "502"),
    ] {
        let answer =
            world.raw(format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains("is a test") && answer.contains("text/plain"), "{answer}");
        let answer =
            world.raw(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}

#[tokio::test]
async fn a12_a18_a19_hostile_requests_are_refused() {
    let world = world().await;
    let bad = [
        "GET http://user:pass@web.test/head HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n",
        "GET https://web.test/head HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n",
        "GET ftp://web.test/head HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n",
        "GET http://2130706433/ HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n",
        "GET http://0x7f.1/ HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n",
        "GET http://web.test/head HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n",
        "CONNECT web.test HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n",
        "CONNECT user@web.test:443 HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n",
        "CONNECT web.test:0 HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n",
        "CONNECT web.test:443 HTTP/1.1\r\nHost: w\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        "GET http://web.test/head HTTP/1.1\r\nHost : w\r\nConnection: close\r\n\r\n",
        "GET http://web.test/head HTTP/1.1\r\nHost: w\r\n folded\r\nConnection: close\r\n\r\n",
        "POST http://web.test/count HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: xchunked\r\nConnection: close\r\n\r\n",
        "POST http://web.test/count HTTP/1.0\r\nHost: w\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST http://web.test/count HTTP/1.1\r\nHost: w\r\nContent-Length: +5\r\nConnection: close\r\n\r\nhello",
        "POST http://web.test/count HTTP/1.1\r\nHost: w\r\nContent-Length: 5\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello",
        "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ];
    for request in bad {
        let answer = world.raw(request).await;
        assert!(answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.0 400"), "{request:?} got {answer:?}");
    }
    let before = world.connections.load(Ordering::SeqCst);
    assert_eq!(before, 0, "none of them reached the server");
    assert_eq!(world.status("GET / HTTP/1.1\r\nHost: rebound.example\r\nConnection: close\r\n\r\n").await, "421");
    let own = format!("GET http://{}/ HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", world.proxy, world.proxy);
    assert_eq!(world.status(&own).await, "400");
    let long = format!(
        "GET http://web.test/head HTTP/1.1\r\nHost: w\r\nX: {}\r\nConnection: close\r\n\r\n",
        "a".repeat(80 * 1024)
    );
    let answer = world.raw(long).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn a12_both_lengths_reach_the_server_as_one() {
    let world = world().await;
    let answer = world
        .raw("POST http://web.test/count HTTP/1.1\r\nHost: w\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        .await;
    assert!(answer.ends_with("\r\n\r\n5") || answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn an_answer_before_the_body_was_read_arrives() {
    let world = world().await;
    let mut tcp = TcpStream::connect(world.proxy).await.unwrap();
    tcp.write_all(b"POST http://web.test/early HTTP/1.1\r\nHost: w\r\nContent-Length: 1000000\r\n\r\nsome")
        .await
        .unwrap();
    read_until(&mut tcp, "no need").await;
}
