use hedgerow_runtime::mux::{Mux, Plain};
use hedgerow_shared::fault::Code;
use hedgerow_shared::session::{MuxConfig, Side};
use hedgerow_shared::wire::message::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// `direct.example` and addresses go from here, `*.corp.example` through a tunnel that sends back what it gets.
struct ToEcho {
    mux: Mux,
}

impl Ways for ToEcho {
    async fn open(&self, target: &Target) -> Result<Path, Fault> {
        match target.host_text().as_str() {
            "closed.example" => Err(Fault::new(Code::NoRoute, "no node of this group is connected")),
            name if name.ends_with("corp.example") => self.mux.open(&target.to_string()).await.map(Path::Tunnel),
            "127.0.0.1" | "localhost" => Ok(Path::Direct),
            _ => Err(Fault::new(Code::DeniedByPolicy, "this device's routes deny the target")),
        }
    }
}

fn echo_tunnel(scope: &Scope) -> ToEcho {
    let (a, b) = tokio::io::duplex(64 * 1024);
    let config = MuxConfig::link(Limits::default(), Limits::default(), Timers::default());
    let mux = Mux::start(Plain::new(a), Side::Dialler, config.clone(), bytes::Bytes::new(), scope);
    let far = Mux::start(Plain::new(b), Side::Acceptor, config, bytes::Bytes::new(), scope);
    let inner = scope.clone();
    scope.spawn(async move {
        while let Some(incoming) = far.accept().await {
            let mut stream = incoming.accept();
            inner.spawn(async move {
                while let Ok(Some(chunk)) = stream.read_chunk().await {
                    let _ = stream.write_chunk(chunk).await;
                }
                stream.finish();
            });
        }
    });
    ToEcho { mux }
}

struct World {
    proxy: Listening,
    direct: SocketAddr,
    _stop: tokio_util::sync::DropGuard,
}

async fn world() -> World {
    let scope = Scope::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let direct = listener.local_addr().unwrap();
    scope.spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let _ = tcp.write_all(b"direct").await;
        }
    });
    let proxy = start(&anywhere(), echo_tunnel(&scope), &Timers::default(), &scope).await.unwrap();
    World { proxy, direct, _stop: scope.guard() }
}

fn anywhere() -> LocalProxy {
    let any = "127.0.0.1:0".parse().unwrap();
    LocalProxy { socks5: any, http: any, connections: 100 }
}

impl World {
    async fn connect(&self, authority: &str) -> (String, TcpStream) {
        let mut tcp = TcpStream::connect(self.proxy.http).await.unwrap();
        tcp.write_all(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await.unwrap());
        }
        let length = String::from_utf8_lossy(&head)
            .to_lowercase()
            .split("content-length: ")
            .nth(1)
            .map_or(0, |l| l.split("\r\n").next().unwrap().parse().unwrap());
        let mut body = vec![0; length];
        tcp.read_exact(&mut body).await.unwrap();
        head.extend(body);
        (String::from_utf8(head).unwrap(), tcp)
    }
}

#[tokio::test]
async fn the_way_is_taken_and_refusals_are_told() {
    let world = world().await;
    let (head, mut tcp) = world.connect("www.corp.example:443").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    tcp.write_all(b"through").await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut got = String::new();
    tcp.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "through");

    let (head, mut tcp) = world.connect(&world.direct.to_string()).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut got = String::new();
    tcp.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "direct");

    let (head, _) = world.connect("elsewhere.example:443").await;
    assert!(head.starts_with("HTTP/1.1 403") && head.contains("routes deny"), "{head}");
    let (head, _) = world.connect("closed.example:443").await;
    assert!(head.starts_with("HTTP/1.1 502") && head.contains("no node of this group"), "{head}");
}

#[tokio::test]
async fn the_proxy_does_not_connect_to_itself() {
    let world = world().await;
    for port in [world.proxy.http.port(), world.proxy.socks5.port()] {
        let (head, _) = world.connect(&format!("localhost:{port}")).await;
        assert!(!head.starts_with("HTTP/1.1 200"), "{head}");
    }
}

#[tokio::test]
async fn only_loopback_is_served() {
    let settings = LocalProxy { socks5: "0.0.0.0:0".parse().unwrap(), ..anywhere() };
    let scope = Scope::new();
    let result = start(&settings, echo_tunnel(&scope), &Timers::default(), &scope).await;
    assert!(matches!(result, Err(ListenError::NotLoopback(_))));
}
