//! Reaching a relay: TCP, proxies, TLS, and HTTP CONNECT to an origin behind it.
//!
//! ```text
//!   RelayTarget ── ways (addresses × proxy) ── tcp | socks | http_proxy ── TLS (relay's name and CA)
//!                                                     └── inspected: TLS, WebSocket ──┘
//! ```

mod eyeballs;
mod http_proxy;
mod inspected;
pub mod mark;
mod network;
mod origin;
mod resolve;
mod sockets;
mod socks;
mod tcp;
mod way;

use std::sync::Arc;

use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::wire::message::ALPN_LINK;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use crate::tls::{self, Below, RelayRoots, RelaySessions};
use crate::websocket::ByteStream;
use way::Way;

pub use eyeballs::first_to_connect;
pub use http_proxy::{Head, Parsed, parse as parse_proxy_answer};
pub use inspected::{BINDING, binding};
pub use network::{Kind, Network, Outbound, Proxy};
pub use origin::{OriginStream, origin};
pub use resolve::resolve;
pub use sockets::{Given, Socket, Sockets, heard};
pub use tcp::{connect_fault, prepare, tcp};

/// A relay as a dialler knows it.
#[derive(Debug, Clone)]
pub struct RelayTarget {
    /// `host:port`, tried in this order.
    pub addresses: Vec<String>,
    /// The relay's configured name: what its certificate must name.
    pub name: String,
    /// Whom to trust for it.
    pub roots: RelayRoots,
    /// How to get out of the network we are in.
    pub network: Network,
    /// What links to it resume.
    pub sessions: RelaySessions,
}

impl RelayTarget {
    /// A relay that is dialled directly.
    #[must_use]
    pub fn new(addresses: Vec<String>, name: impl Into<String>, roots: RelayRoots) -> Self {
        Self { addresses, name: name.into(), roots, network: Network::default(), sessions: RelaySessions::default() }
    }

    /// The same relay, reached by this network.
    #[must_use]
    pub fn over(self, network: Network) -> Self {
        Self { network, ..self }
    }

    /// Whether TLS over TCP is the only way: through a proxy, or where TLS is opened on the way. UDP is of no use then.
    #[must_use]
    pub fn is_proxied(&self) -> bool {
        self.network.is_inspected() || self.addresses.iter().any(|a| self.network.proxy_for(a).is_some())
    }

    /// Whether the network opens TLS and the link goes inside a WebSocket: no other TLS gets through.
    #[must_use]
    pub fn is_inspected(&self) -> bool {
        self.network.is_inspected()
    }

    /// The relay did not believe who we are although TLS held. Where TLS is opened by somebody whose CA is trusted that
    /// is so, since the exporter differs at both ends: the next attempt goes inside a WebSocket, if that is allowed.
    pub fn suspect_inspection(&self) {
        self.network.note_inspected(true);
    }

    /// The proxy in use, without its credentials, for status; `None` when dialled directly.
    #[must_use]
    pub fn proxy(&self) -> Option<String> {
        self.addresses.iter().find_map(|a| self.network.proxy_for(a)).map(ToString::to_string)
    }

    /// A plain TCP connection, for a lane leg that the relay passes on unopened. `self` should be a target as
    /// `relay` narrowed it.
    ///
    /// # Errors
    /// What the last way said.
    pub async fn connect(&self, timers: &Timers) -> Result<Socket, Fault> {
        let mut faults = Faults::default();
        for way in way::ways(self) {
            match way.connect(timers).await {
                Ok((socket, _)) => return Ok(socket),
                Err(fault) => faults.push(fault),
            }
        }
        Err(faults.worst())
    }

    /// The very relay process that answers at `address`, which was reached directly: for the lane legs of a link that
    /// is no TCP connection.
    #[must_use]
    pub fn directly_at(&self, address: String) -> Self {
        Self { addresses: vec![address], network: self.network.pinned(None), ..self.clone() }
    }

    /// The very relay process behind `address`, by the same way.
    fn narrowed(&self, address: String, way: &Way) -> Self {
        Self { addresses: vec![address], network: self.network.pinned(way.proxy.clone()), ..self.clone() }
    }
}

/// What TLS to a relay runs on: a connection, to the relay or to a proxy that joined it with one, or a WebSocket
/// inside TLS that somebody on the way opens.
pub type Wire = Either<Socket, Box<ByteStream<TlsStream<Socket>>>>;

/// TLS to a relay that has been reached.
#[derive(Debug)]
pub struct Reached {
    /// The connection; ALPN has been negotiated but not looked at.
    pub stream: TlsStream<Wire>,
    /// The same relay process by the same way: for the lane legs that belong to this connection.
    pub at: RelayTarget,
}

/// TLS to a relay, its certificate checked for `target.name`: each way in turn until one leads to it.
///
/// # Errors
/// `Unauthenticated` when a certificate did not hold, otherwise what failed last.
pub async fn relay(target: &RelayTarget, alpn: &[&[u8]], timers: &Timers) -> Result<Reached, Fault> {
    let mut faults = Faults::default();
    for way in way::ways(target) {
        match by(&way, target, alpn, timers).await {
            Ok(reached) => return Ok(reached),
            Err(fault) => faults.push(fault),
        }
    }
    Err(faults.worst())
}

/// As `relay`, for those who need no second connection.
///
/// # Errors
/// As `relay`.
pub async fn relay_tls(target: &RelayTarget, alpn: &[&[u8]], timers: &Timers) -> Result<TlsStream<Wire>, Fault> {
    Ok(relay(target, alpn, timers).await?.stream)
}

async fn by(way: &Way, target: &RelayTarget, alpn: &[&[u8]], timers: &Timers) -> Result<Reached, Fault> {
    let name = server_name(&target.name)?;
    let (config, foreign) = match alpn {
        [alpn] if *alpn == ALPN_LINK => target.sessions.link(Below::Tcp, &target.roots)?,
        _ => tls::to_relay_watched(&target.roots, alpn)?,
    };
    if !target.network.is_inspected() {
        let (tcp, address) = way.connect(timers).await?;
        let fault = match client_tls(config.clone(), name.clone(), Wire::Left(tcp), timers).await {
            Ok(stream) if stream.get_ref().1.alpn_protocol().is_some() => {
                return Ok(Reached { stream, at: target.narrowed(address, way) });
            }
            // A relay always agrees on a protocol; an inspector whose CA is trusted may know none of ours.
            Ok(stream) => match stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
                Some(leaf) => inspected::fault(target, &way.address, leaf),
                None => Fault::new(Code::Protocol, "the server shows no certificate"),
            },
            Err(fault) => match foreign.take() {
                Some(leaf) => inspected::fault(target, &way.address, &leaf),
                None if fault.code == Code::Protocol => inspected::look(way, target, timers).await.unwrap_or(fault),
                None => fault,
            },
        };
        // An inspector may also not know TLS 1.3, or not our protocol's name: it ends the hand-shake then.
        let may_be_inspected = matches!(fault.code, Code::Unauthenticated | Code::Protocol | Code::Lost);
        if !(target.network.inspection.is_some() && may_be_inspected) {
            return Err(fault);
        }
        tracing::info!(address = way.address, reason = %fault, "TLS is opened on the way: trying inside a WebSocket");
    }
    let inside = async {
        let (tcp, address) = way.connect(timers).await?;
        let wire = inspected::wire(target, tcp, &way.address, timers).await?;
        let stream = client_tls(config, name, wire, timers).await?;
        Ok((stream, address))
    };
    let inside: Result<_, Fault> = inside.await;
    target.network.note_inspected(inside.is_ok());
    let (stream, address) = inside?;
    metrics::counter!("hedgerow_dial_inspected_total").increment(1);
    Ok(Reached { stream, at: target.narrowed(address, way) })
}

/// A TLS client hand-shake with a deadline and an explanation.
///
/// # Errors
/// `Unauthenticated` when the certificate does not hold, otherwise what failed.
pub async fn client_tls<IO>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    io: IO,
    timers: &Timers,
) -> Result<TlsStream<IO>, Fault>
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    match timeout(timers.handshake, TlsConnector::from(config).connect(name, io)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(tls_fault(&error)),
        Err(_) => Err(Fault::new(Code::TimedOut, "the TLS hand-shake took too long")),
    }
}

/// What a failed TLS hand-shake means.
#[must_use]
pub fn tls_fault(error: &std::io::Error) -> Fault {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(why)) => {
            Fault::new(Code::Unauthenticated, format!("the server's certificate was refused: {why}"))
        }
        Some(other) => Fault::new(Code::Protocol, format!("the TLS hand-shake failed: {other}")),
        None => Fault::new(Code::Lost, format!("the connection ended during the TLS hand-shake: {error}")),
    }
}

/// A TLS server name from configuration.
///
/// # Errors
/// `Protocol` when it is neither a host name nor an address.
pub fn server_name(name: &str) -> Result<ServerName<'static>, Fault> {
    ServerName::try_from(name.to_owned())
        .map_err(|_| Fault::new(Code::Protocol, format!("{name:?} is not a host name or address")))
}

/// What the ways to a relay said; the one that tells most is passed on.
#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn push(&mut self, fault: Fault) {
        tracing::debug!(%fault, "one way to the relay failed");
        self.0.push(fault);
    }

    /// Somebody's certificate or a proxy's refusal says more than a port that is silent.
    fn worst(mut self) -> Fault {
        let telling = |f: &Fault| match f.code {
            Code::Unauthenticated => 2,
            Code::Forbidden => 1,
            _ => 0,
        };
        let at = (0..self.0.len()).max_by_key(|i| self.0.get(*i).map(telling));
        let none = || Fault::new(Code::Unreachable, "no relay address is configured");
        at.map_or_else(none, |at| self.0.swap_remove(at))
    }
}
