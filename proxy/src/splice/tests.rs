use std::net::SocketAddr;
use std::time::Instant;

use hedgerow_runtime::mux::{Mux, Plain};
use hedgerow_runtime::scope::Scope;
use hedgerow_shared::limits::Timers;
use hedgerow_shared::session::{MuxConfig, Side};
use hedgerow_shared::wire::message::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// Two multiplexers over a pipe of 256 KiB.
fn pair(scope: &Scope) -> (Mux, Mux) {
    let (a, b) = tokio::io::duplex(256 * 1024);
    let config = MuxConfig::link(Limits::default(), Limits::default(), Timers::default());
    let a = Mux::start(Plain::new(a), Side::Dialler, config.clone(), Bytes::new(), scope);
    let b = Mux::start(Plain::new(b), Side::Acceptor, config, Bytes::new(), scope);
    (a, b)
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let (near, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), accepted.unwrap().0)
}

/// application ⇄ TCP ⇄ splice ⇄ stream ⇄ splice ⇄ TCP ⇄ server
struct Path {
    app: TcpStream,
    server: TcpStream,
    ends: Vec<tokio::sync::oneshot::Receiver<Outcome>>,
    _muxes: (Mux, Mux),
    _scope: tokio_util::sync::DropGuard,
}

async fn path() -> Path {
    let scope = Scope::new();
    let (a, b) = pair(&scope);
    let (opened, incoming) = tokio::join!(a.open(&1u8), async { b.accept().await.unwrap().accept() });
    let (app, near) = tcp_pair().await;
    let (server, far) = tcp_pair().await;
    let mut ends = Vec::new();
    for (tcp, stream) in [(near, opened.unwrap()), (far, incoming)] {
        let (done, end) = tokio::sync::oneshot::channel();
        ends.push(end);
        scope.spawn(async move {
            let _ = done.send(splice(tcp, Outbound::Tunnel(stream), ReadAhead::default()).await);
        });
    }
    Path { app, server, ends, _muxes: (a, b), _scope: scope.guard() }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[tokio::test]
async fn half_close_passes_and_the_other_direction_goes_on() {
    let Path { mut app, mut server, ends, _scope, .. } = path().await;
    app.write_all(b"request").await.unwrap();
    app.shutdown().await.unwrap();
    let mut request = Vec::new();
    timeout(SOON, server.read_to_end(&mut request)).await.expect("FIN arrives").unwrap();
    assert_eq!(request, b"request");
    server.write_all(b"answer").await.unwrap();
    drop(server);
    let mut answer = Vec::new();
    timeout(SOON, app.read_to_end(&mut answer)).await.expect("FIN comes back").unwrap();
    assert_eq!(answer, b"answer");
    for end in ends {
        let outcome = timeout(SOON, end).await.expect("both ends finish").unwrap();
        assert!(outcome.fault.is_none(), "{outcome:?}");
        assert_eq!(outcome.up.max(outcome.down), 7);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_arrives_whole_in_both_directions_at_once() {
    let Path { app, server, _scope, .. } = path().await;
    let data = pattern(64 * 1024 * 1024);
    let (mut app_read, mut app_write) = app.into_split();
    let (mut server_read, mut server_write) = server.into_split();
    let (up, down) = (data.clone(), data.clone());
    let started = Instant::now();
    let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
    let (_, _, a, b) = tokio::join!(
        async {
            app_write.write_all(&up).await.unwrap();
            app_write.shutdown().await.unwrap()
        },
        async {
            server_write.write_all(&down).await.unwrap();
            server_write.shutdown().await.unwrap()
        },
        server_read.read_to_end(&mut got_up),
        app_read.read_to_end(&mut got_down),
    );
    a.unwrap();
    b.unwrap();
    assert!(got_up == data && got_down == data);
    eprintln!("2 x 64 MiB through two splices in {:?}", started.elapsed());
}

#[tokio::test]
async fn a_reset_of_the_server_reaches_the_application_as_a_reset() {
    let Path { mut app, server, ends, _scope, .. } = path().await;
    app.write_all(b"x").await.unwrap();
    reset_on_close(&server);
    drop(server);
    let error = timeout(SOON, app.read_to_end(&mut Vec::new())).await.expect("noticed").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    for end in ends {
        assert_eq!(end.await.unwrap().fault.unwrap().code, Code::ConnectionReset);
    }
}

#[tokio::test]
async fn a_reset_of_the_application_is_seen_though_nobody_reads_it() {
    let Path { mut app, mut server, _scope, .. } = path().await;
    app.write_all(b"x").await.unwrap();
    app.shutdown().await.unwrap();
    let mut one = [0; 8];
    assert_eq!(server.read(&mut one).await.unwrap(), 1);
    assert_eq!(server.read(&mut one).await.unwrap(), 0);
    reset_on_close(&app);
    drop(app);
    let error = timeout(SOON, async {
        loop {
            if let Err(e) = server.write_all(b"still there?").await {
                return e;
            }
            tokio::task::yield_now().await;
        }
    });
    let error = error.await.expect("the server's writes fail");
    assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{error}");
}

#[tokio::test]
async fn the_end_of_the_session_is_a_reset_and_never_an_orderly_end() {
    let Path { mut app, mut server, _muxes, _scope, .. } = path().await;
    server.write_all(b"first half").await.unwrap();
    let mut got = [0; 10];
    app.read_exact(&mut got).await.unwrap();
    _muxes.0.close(Fault::new(Code::Revoked, "the device was revoked"));
    assert_eq!(timeout(SOON, app.read(&mut got)).await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(timeout(SOON, server.read(&mut got)).await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn the_end_of_the_session_is_noticed_after_a_half_close_and_while_the_reader_is_slow() {
    let Path { mut app, mut server, _muxes, ends, _scope, .. } = path().await;
    app.shutdown().await.unwrap();
    assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
    let flood = pattern(16 * 1024 * 1024);
    let _ = timeout(Duration::from_millis(300), server.write_all(&flood)).await;
    _muxes.0.close(Fault::new(Code::Revoked, "the device was revoked"));
    for end in ends {
        let outcome = timeout(SOON, end).await.expect("noticed though the application does not read").unwrap();
        assert!(outcome.fault.is_some());
    }
    drop(app);
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_sender() {
    let Path { app, mut server, _scope, .. } = path().await;
    let block = pattern(1024 * 1024);
    let mut sent = 0;
    while timeout(Duration::from_millis(500), server.write_all(&block)).await.is_ok() {
        sent += 1;
        assert!(sent < 64, "64 MiB went nowhere");
    }
    drop(app);
}

#[tokio::test]
async fn two_connections_are_spliced_with_what_was_read_ahead() {
    let (mut app, near) = tcp_pair().await;
    let (mut server, far) = tcp_pair().await;
    let ahead = ReadAhead { up: Bytes::from_static(b"early "), down: Bytes::from_static(b"banner ") };
    let client = async {
        app.write_all(b"late").await.unwrap();
        app.shutdown().await.unwrap();
        let mut got = String::new();
        app.read_to_string(&mut got).await.unwrap();
        got
    };
    let service = async {
        let mut got = String::new();
        server.read_to_string(&mut got).await.unwrap();
        server.write_all(b"bye").await.unwrap();
        drop(server);
        got
    };
    let (outcome, got_down, got_up) = tokio::join!(splice(near, Outbound::Direct(far), ahead), client, service);
    assert_eq!((got_up.as_str(), got_down.as_str()), ("early late", "banner bye"));
    assert_eq!((outcome.up, outcome.down), (10, 10));
    assert!(outcome.fault.is_none());
}
