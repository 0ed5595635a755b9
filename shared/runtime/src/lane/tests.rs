//! Two ends in one process, over a wire that may be tampered with.

mod resumption;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use hedgerow_shared::wire::message::{ALPN_SESSION, SessionOpen};
use hedgerow_shared::{InstanceId, Role};
use sha2::{Digest, Sha256};
use tokio::io::{DuplexStream, ReadBuf, duplex};

use super::*;
use crate::clock::random;
use crate::mux::Carrier;
use crate::testing::TestCa;

const ALPN: &[&[u8]] = &[ALPN_SESSION];

fn instance() -> InstanceId {
    InstanceId::from_random(random())
}

struct Ends {
    device: Result<Session, Fault>,
    node: Result<Session, Fault>,
}

async fn connect_over<A, B>(
    a: A,
    b: B,
    device_ca: &TestCa,
    node_ca: &TestCa,
    device_role: Role,
    revoked: bool,
    scope: &Scope,
) -> Ends
where
    A: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (device, _) = device_ca.issue(device_role, &[]);
    let (node, node_id) = node_ca.issue(Role::Node, &[]);
    let to_node = tls::to_tenant(device_ca.ca.clone(), Role::Node, Some(node_id), Some(&device), ALPN).unwrap();
    let as_node =
        tls::as_tenant(node_ca.ca.clone(), &[Role::Device], tls::Clients::Certified, &tls::InForce::new(node), ALPN)
            .unwrap();
    let end = |ca: &TestCa| {
        let timers = Timers { resume: std::time::Duration::from_millis(200), ..Timers::default() };
        Endpoint::new(ca.ca.clone(), instance(), timers, scope.clone())
    };
    let (device_end, node_end) = (end(device_ca), end(node_ca));
    let check = move |_: &VerifiedCertificate| if revoked { Err(Fault::new(Code::Revoked, "revoked")) } else { Ok(()) };
    let (device, node) =
        tokio::join!(device_end.open(a, to_node, tls::any_name()), node_end.serve(b, as_node, check, |_| None),);
    let node = node.map(|served| match served {
        Served::New(session) => session,
        Served::Lane(_) => panic!("a new session was taken for one that goes on"),
    });
    Ends { device, node }
}

async fn open(scope: &Scope) -> (Session, Session) {
    let ca = TestCa::new("S12345678");
    let (a, b) = duplex(1 << 20);
    let ends = connect_over(a, b, &ca, &ca, Role::Device, false, scope).await;
    (ends.device.unwrap(), ends.node.unwrap())
}

fn header() -> SessionOpen {
    SessionOpen { host: "intranet.example".into(), port: 80, trace: None, tunnel: None }
}

/// Echoes every stream.
pub(super) fn echo(mux: Mux, scope: &Scope) {
    let tasks = scope.clone();
    scope.spawn(async move {
        while let Some(incoming) = mux.accept().await {
            tasks.spawn(async move {
                let mut stream = incoming.accept();
                while let Ok(Some(chunk)) = stream.read_chunk().await {
                    if stream.write_chunk(chunk).await.is_err() {
                        return;
                    }
                }
                stream.finish();
                // Held until the other end has read everything.
                let _ = stream.read_chunk().await;
            });
        }
    });
}

pub(super) async fn round_trip(mux: &Mux, size: usize, scope: &Scope) {
    let stream = mux.open(&header()).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let payload: Vec<u8> = (0..size).map(|i| ((i * 31) >> 3) as u8).collect();
    let sent = Sha256::digest(&payload);
    scope.spawn(async move {
        for chunk in payload.chunks(100_000) {
            write.write_chunk(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
        write.finish();
        std::future::pending::<()>().await;
    });
    let mut hash = Sha256::new();
    while let Some(chunk) = read.read_chunk().await.unwrap() {
        hash.update(&chunk);
    }
    assert_eq!(hash.finalize(), sent);
}

#[tokio::test]
async fn bytes_go_round_unchanged() {
    let scope = Scope::new();
    let (device, node) = open(&scope).await;
    echo(node.mux.clone(), &scope);
    round_trip(&device.mux, 16 << 20, &scope).await;
    assert_eq!(node.peer.identity.role, Role::Device);
    assert_eq!(device.peer.identity.role, Role::Node);
    scope.stop(std::time::Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_worn_key_is_replaced_while_data_flows() {
    let ca = TestCa::new("S12345678");
    let (device, _) = ca.issue(Role::Device, &[]);
    let (node, _) = ca.issue(Role::Node, &[]);
    let to_node = tls::to_tenant(ca.ca.clone(), Role::Node, None, Some(&device), ALPN).unwrap();
    let as_node =
        tls::as_tenant(ca.ca.clone(), &[Role::Device], tls::Clients::Certified, &tls::InForce::new(node), ALPN)
            .unwrap();
    let (a, b) = duplex(1 << 20);
    let (a, b) = tokio::join!(shake::client(a, to_node, tls::any_name()), shake::server(b, as_node));
    let (mut a, mut b) = (a.unwrap().0, b.unwrap().0);
    for round in 0..5u8 {
        a.wear_out();
        a.stage(&[&[round; 1000]]);
        std::future::poll_fn(|cx| a.poll_flush(cx)).await.unwrap();
        let mut pieces = Vec::new();
        std::future::poll_fn(|cx| b.poll_read(cx, &mut pieces)).await.unwrap();
        assert_eq!(pieces.concat(), [round; 1000]);
        a.stage(&[b"after"]);
        std::future::poll_fn(|cx| a.poll_flush(cx)).await.unwrap();
        pieces.clear();
        std::future::poll_fn(|cx| b.poll_read(cx, &mut pieces)).await.unwrap();
        assert_eq!(pieces.concat(), b"after");
    }
}

#[tokio::test]
async fn another_tenants_certificate_is_refused_by_either_end() {
    let scope = Scope::new();
    let (ours, theirs) = (TestCa::new("S12345678"), TestCa::new("S87654321"));
    let (a, b) = duplex(1 << 16);
    let ends = connect_over(a, b, &ours, &theirs, Role::Device, false, &scope).await;
    assert_eq!(ends.device.unwrap_err().code, Code::Unauthenticated);
    assert!(ends.node.is_err());
    // The same tenant name under another CA does not help.
    let forged = TestCa::new("S12345678");
    let (a, b) = duplex(1 << 16);
    let ends = connect_over(a, b, &forged, &ours, Role::Device, false, &scope).await;
    assert!(ends.device.is_err() && ends.node.is_err());
}

#[tokio::test]
async fn a_node_certificate_does_not_open_a_session_as_device() {
    let scope = Scope::new();
    let ca = TestCa::new("S12345678");
    let (a, b) = duplex(1 << 16);
    let ends = connect_over(a, b, &ca, &ca, Role::Node, false, &scope).await;
    assert_eq!(ends.node.unwrap_err().code, Code::Unauthenticated);
}

#[tokio::test]
async fn a_revoked_device_gets_no_session() {
    let scope = Scope::new();
    let ca = TestCa::new("S12345678");
    let (a, b) = duplex(1 << 16);
    let ends = connect_over(a, b, &ca, &ca, Role::Device, true, &scope).await;
    assert_eq!(ends.node.unwrap_err().code, Code::Revoked);
    assert!(ends.device.is_err());
}

/// A wire that changes one byte, or ends, after so many bytes.
struct Tampered {
    io: DuplexStream,
    left: Arc<AtomicUsize>,
    cut: bool,
}

impl AsyncRead for Tampered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 && self.cut {
            return Poll::Ready(Ok(()));
        }
        std::task::ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let n = buf.filled().len() - before;
        if left != usize::MAX && n >= left {
            if self.cut {
                buf.set_filled(before + left);
                self.left.store(0, Ordering::Relaxed);
            } else if left > 0 {
                buf.filled_mut()[before + left - 1] ^= 1;
                self.left.store(usize::MAX, Ordering::Relaxed);
            }
        } else if left != usize::MAX {
            self.left.store(left - n, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tampered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

async fn tampered(cut: bool) -> Fault {
    let scope = Scope::new();
    let ca = TestCa::new("S12345678");
    let (a, b) = duplex(1 << 20);
    let left = Arc::new(AtomicUsize::new(usize::MAX));
    let a = Tampered { io: a, left: left.clone(), cut };
    let ends = connect_over(a, b, &ca, &ca, Role::Device, false, &scope).await;
    let (device, node) = (ends.device.unwrap(), ends.node.unwrap());
    echo(node.mux, &scope);
    let mut stream = device.mux.open(&header()).await.unwrap();
    left.store(20_000, Ordering::Relaxed);
    stream.write_chunk(Bytes::from(vec![7; 100_000])).await.unwrap();
    loop {
        match stream.read_chunk().await {
            Ok(Some(chunk)) => assert!(chunk.iter().all(|b| *b == 7)),
            Ok(None) => panic!("tampering looked like the end of the stream"),
            Err(fault) => return fault,
        }
    }
}

#[tokio::test]
async fn a_changed_byte_loses_the_lane_and_is_never_delivered() {
    let fault = tampered(false).await;
    assert!(fault.text.contains("changed on its way"), "{fault}");
}

#[tokio::test]
async fn a_cut_lane_is_lost_and_never_the_end_of_a_stream() {
    let fault = tampered(true).await;
    assert!(fault.text.contains("cut without its proper end"), "{fault}");
}

#[tokio::test]
async fn a_proper_close_tells_its_reason() {
    let scope = Scope::new();
    let (device, node) = open(&scope).await;
    node.mux.close(Fault::new(Code::Revoked, "the device was revoked"));
    let fault = device.mux.closed().await;
    assert_eq!(fault.code, Code::Revoked);
    assert_eq!(device.mux.open(&header()).await.unwrap_err().code, Code::Draining);
}
