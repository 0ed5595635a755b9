//! The end-to-end session: mutual TLS 1.3 between device and node with our multiplexer inside, over a lane (a TCP
//! connection that the relay joined) or over a stream of a link. Same code, same bytes.
//!
//! rustls makes the hand-shake (unbuffered interface); then we seal and open records ourselves, because stock streams
//! cost 70 % more on bulk (`docs/decisions/0006`). `records` is the record layer, `shake` the hand-shake.

mod keys;
mod records;
mod shake;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hedgerow_shared::InstanceId;
use hedgerow_shared::Role;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::session::{MuxConfig, Side};
use hedgerow_shared::verify::{TenantCa, Usage, VerifiedCertificate};
use hedgerow_shared::wire::frame::{self, Frame, kind};
use hedgerow_shared::wire::message::{Hello, Limits};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

pub use records::Records;

use crate::clock::random;
use crate::mux::{Carrier, Mux};
use crate::scope::Scope;
use crate::tls;

/// An end-to-end session that is open.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its streams.
    pub mux: Mux,
    /// The verified certificate of the other end: what policy uses.
    pub peer: VerifiedCertificate,
    /// What the other end said of itself.
    pub hello: Hello,
}

/// Opens a session as device: TLS client. `config` comes from `tls::to_tenant` with `ALPN_SESSION`; `name` is
/// `tls::any_name()`, or the lane's server name. Cancel safe: dropping closes.
///
/// # Errors
/// `Unauthenticated` when the node's certificate does not hold, otherwise what failed.
pub async fn client<IO>(
    io: IO,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    ca: &TenantCa,
    instance: InstanceId,
    timers: &Timers,
    scope: &Scope,
) -> Result<Session, Fault>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let open = async {
        let (records, chain) = shake::client(io, config, name).await?;
        let peer = tls::peer_certificate(Some(&chain), ca, Role::Node, Usage::Server)?;
        greet(records, Side::Dialler, peer, instance, timers, scope).await
    };
    timeout(timers.handshake, open).await.map_err(|_| late())?
}

/// Answers a session as node: TLS server. `config` comes from `tls::as_tenant` with `ALPN_SESSION`; `check` is asked
/// about the device's verified certificate (revocation) before anything else happens. Cancel safe: dropping closes.
///
/// # Errors
/// `Unauthenticated` when the device's certificate does not hold, what `check` said, otherwise what failed.
pub async fn server<IO>(
    io: IO,
    config: Arc<ServerConfig>,
    ca: &TenantCa,
    check: impl FnOnce(&VerifiedCertificate) -> Result<(), Fault>,
    instance: InstanceId,
    timers: &Timers,
    scope: &Scope,
) -> Result<Session, Fault>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let open = async {
        let (records, chain) = shake::server(io, config).await?;
        let peer = tls::peer_certificate(Some(&chain), ca, Role::Device, Usage::Client)?;
        check(&peer)?;
        greet(records, Side::Acceptor, peer, instance, timers, scope).await
    };
    timeout(timers.handshake, open).await.map_err(|_| late())?
}

fn late() -> Fault {
    Fault::new(Code::TimedOut, "the end-to-end hand-shake took too long")
}

/// HELLO both ways, then the multiplexer.
async fn greet<IO>(
    mut records: Records<IO>,
    side: Side,
    peer: VerifiedCertificate,
    instance: InstanceId,
    timers: &Timers,
    scope: &Scope,
) -> Result<Session, Fault>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let ours = Limits::default();
    let hello = Hello::new(instance, random(), ours);
    records.stage(&[&frame::cbor(kind::HELLO, 0, &hello)]);
    std::future::poll_fn(|cx| records.poll_flush(cx)).await.map_err(cut)?;
    let mut input = BytesMut::new();
    let mut pieces = Vec::new();
    let theirs: Hello = loop {
        let first = frame::take_first(&mut input).map_err(|e| Fault::new(Code::Protocol, e.to_string()))?;
        match first {
            Some(Frame::Hello(body)) => {
                break minicbor::decode(&body).map_err(|_| Fault::new(Code::Protocol, "HELLO is malformed"))?;
            }
            Some(_) => return Err(Fault::new(Code::Protocol, "the session does not begin with HELLO")),
            None => {}
        }
        if std::future::poll_fn(|cx| records.poll_read(cx, &mut pieces)).await.map_err(cut)? == 0 {
            return Err(Fault::new(Code::Lost, "the peer closed before its HELLO"));
        }
        pieces.drain(..).for_each(|p: Bytes| input.extend_from_slice(&p));
    };
    hello.agree(&theirs)?;
    let config = MuxConfig::session(ours, theirs.limits, *timers);
    let mux = Mux::start(records, side, config, input.freeze(), scope);
    Ok(Session { mux, peer, hello: theirs })
}

fn cut(error: std::io::Error) -> Fault {
    Fault::new(Code::Lost, format!("the connection ended during the end-to-end hand-shake: {error}"))
}

#[cfg(test)]
mod tests;
