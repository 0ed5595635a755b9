//! The doors: every TCP connection to 3101 and 443, until it is known what it is.
//!
//! 1. Its first bytes are read into a buffer of ours, 16 KiB and the hand-shake's time at most. From a balancer that is
//!    trusted with it, they begin with a PROXY header; what it says of the client holds from here on.
//! 2. A lane preamble, or a ClientHello whose server name is `<ticket>.lane.<relay>`: a leg of a lane; the bytes go on
//!    unopened.
//! 3. A ClientHello for the relay itself: TLS is ended here, and the protocol that was agreed on decides: link, wrapped
//!    lane leg, HTTP.
//! 4. A ClientHello for a name that a tenant registered: the bytes go to that tenant unopened.
//! 5. Anything else is closed and counted.
//!
//! The plain-HTTP port is a door of its own: everything that comes there is HTTP.

pub mod balancer;
pub mod client_hello;
pub mod inside;
pub mod prefixed;
mod shortage;
mod waiting;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hedgerow_runtime::proxy_protocol::canonical;
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::telemetry::dropped;
use hedgerow_runtime::{clock, dial};
use hedgerow_shared::Ticket;
use hedgerow_shared::fault::DropReason;
use hedgerow_shared::limits::MAX_FIRST_BYTES;
use hedgerow_shared::wire::lane as wire;
use hedgerow_shared::wire::message::{ALPN_LANE, ALPN_LINK};
use parking_lot::RwLock;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::connect::Version;
use crate::lane::{Carrier, Leg};
use crate::pass::{self, Named};
use crate::probe::Probe;
use crate::state::Relay;
use crate::{connect, serve};
use client_hello::Parsed;
use prefixed::Prefixed;
pub use shortage::Shortage;
pub use waiting::{Place, Waiting};

/// Silent connections that make room when descriptors are short.
const SHED: usize = 64;

/// What every door of one relay shares.
#[derive(Clone)]
pub struct Doors {
    /// Whom connections are for.
    pub relay: Arc<Relay>,
    /// The relay's own TLS; replaced when the certificate is.
    pub tls: Arc<RwLock<TlsAcceptor>>,
    /// Connections of every kind.
    pub permits: Arc<Semaphore>,
    /// Connections that have not shown yet what they are.
    pub waiting: Waiting,
    /// Whether connections cannot be taken.
    pub shortage: Shortage,
}

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Everything that the module's header lists.
    Any,
    /// Plain HTTP CONNECT to `bws`.
    Web,
}

/// One relay connection whose TLS ends here.
pub type Own = TlsStream<Prefixed<TcpStream>>;

impl Doors {
    /// Accepts on one listener until `scope` ends; what was accepted lives on in the relay's own scope.
    pub fn open(&self, listener: TcpListener, door: Door, scope: &Scope) {
        let doors = self.clone();
        scope.spawn(async move {
            let mut failures = 0;
            loop {
                match listener.accept().await {
                    Ok((tcp, address)) => {
                        let address = canonical(address);
                        if std::mem::take(&mut failures) > 0 && doors.shortage.end() {
                            tracing::info!("connections are taken again");
                        }
                        let Some(permit) = doors.permit().await else { return };
                        let place = doors.waiting.enter(address.ip());
                        metrics::counter!("hedgerow_relay_accepts_total").increment(1);
                        let greeter = doors.clone();
                        doors.relay.work.spawn(async move {
                            match door {
                                Door::Any => greeter.greet(tcp, address, place, permit).await,
                                // Boxed: the others need no room for it.
                                Door::Web => Box::pin(greeter.greet_web(tcp, address, place, permit)).await,
                            }
                        });
                    }
                    Err(error) => {
                        failures += 1;
                        metrics::counter!("hedgerow_relay_accept_errors_total").increment(1);
                        if doors.shortage.begin(clock::monotonic()) {
                            tracing::warn!(%error, "no connection can be taken: new ones wait. {}", shortage::ADVICE);
                        }
                        doors.waiting.shed(SHED);
                        tokio::time::sleep(shortage::pause(failures)).await;
                    }
                }
            }
        });
    }

    /// A permit for a connection that came. When all are held, the oldest silent one makes room; when nobody is silent,
    /// this one waits, and those after it in the system's queue. `None` when the relay ends.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        let permits = self.permits.clone();
        if let Ok(permit) = permits.clone().try_acquire_owned() {
            return Some(permit);
        }
        while self.waiting.shed(1) > 0 {
            if let Ok(permit) = tokio::time::timeout(shortage::SHED_TIME, permits.clone().acquire_owned()).await {
                return permit.ok();
            }
        }
        if self.shortage.begin(clock::monotonic()) {
            tracing::warn!("as many connections are open as may be: new ones wait. {}", shortage::ADVICE);
        }
        let permit = permits.acquire_owned().await.ok()?;
        if self.shortage.end() {
            tracing::info!("connections are taken again");
        }
        Some(permit)
    }

    async fn greet(self, tcp: TcpStream, address: SocketAddr, place: Place, permit: OwnedSemaphorePermit) {
        dial::prepare(&tcp);
        let probe = Probe::of(&tcp);
        // One deadline for everything that comes before a peer is known, however many steps it takes.
        let until = tokio::time::Instant::now() + self.relay.timers.handshake;
        // Boxed: a link or a tunnel that comes of it must not keep room for what came before it.
        let sorting = Box::pin(async {
            let (address, first) = self.client(&tcp, address, &place).await?;
            Some((address, self.sort(tcp, first).await?))
        });
        let greeted = tokio::select! {
            greeted = tokio::time::timeout_at(until, sorting) => greeted,
            () = place.shown_out() => return,
        };
        let (address, kind, sorted) = match greeted {
            Ok(Some((address, sorted))) => (address, sorted.kind(), sorted),
            Ok(None) => return,
            Err(_) => return dropped(DropReason::HandshakeTimeout),
        };
        metrics::counter!("hedgerow_relay_connections_total", "kind" => kind).increment(1);
        // Each is boxed, so that a peer that says nothing holds no room for what it might become: 45 KB a peer otherwise.
        let from = pass::From { address, probe };
        match sorted {
            Sorted::Lane(ticket, carrier, first) => {
                let leg = Leg { carrier, first, address, probe, permit: Box::new(permit) };
                self.relay.lanes.arrive(&ticket, leg, clock::monotonic());
            }
            Sorted::Link(tls) => {
                let _permit = permit;
                Box::pin(serve::link(&self.relay, tls, address, probe, place)).await;
            }
            Sorted::Http(tls, version) => {
                drop(place);
                let binding = connect::binding(tls.get_ref().1);
                let doors = Some(&self);
                Box::pin(connect::serve(&self.relay, *tls, version, from, permit, doors, binding)).await;
            }
            Sorted::Name(to, tcp, first) => {
                Box::pin(pass::serve(&self.relay, Prefixed::new(first, tcp), to, from, place, permit)).await;
            }
        }
    }

    /// Plain HTTP: the place among the silent is kept until the first byte.
    async fn greet_web(self, tcp: TcpStream, address: SocketAddr, place: Place, permit: OwnedSemaphorePermit) {
        dial::prepare(&tcp);
        let hearing = async {
            let (address, first) = self.client(&tcp, address, &place).await?;
            if first.is_empty() {
                tcp.readable().await.ok()?;
            }
            Some((address, first))
        };
        let heard = tokio::select! {
            heard = tokio::time::timeout(self.relay.timers.handshake, hearing) => heard,
            () = place.shown_out() => return,
        };
        let (address, first) = match heard {
            Ok(Some(heard)) => heard,
            Ok(None) => return,
            Err(_) => return dropped(DropReason::HandshakeTimeout),
        };
        drop(place);
        metrics::counter!("hedgerow_relay_connections_total", "kind" => "web").increment(1);
        let from = pass::From { address, probe: Probe::of(&tcp) };
        let io = Prefixed::new(first.freeze(), tcp);
        Box::pin(connect::serve(&self.relay, io, Version::Plain, from, permit, None, None)).await;
    }

    /// Whose connection it is, and what has been read of it beyond the header that said so. `None` when it was closed;
    /// that is counted already.
    async fn client(&self, tcp: &TcpStream, peer: SocketAddr, place: &Place) -> Option<(SocketAddr, BytesMut)> {
        let mut first = BytesMut::new();
        if !balancer::is_trusted(&self.relay.config.listen.trusted_proxies, peer.ip()) {
            return Some((peer, first));
        }
        match balancer::client(tcp, peer, &mut first).await {
            Ok(client) => {
                self.waiting.is_of(place, client.ip());
                Some((client, first))
            }
            Err(reason) => {
                reason.into_iter().for_each(dropped);
                None
            }
        }
    }

    /// Finds out what a connection is, of which `first` has been read. `None` when it was closed; that is counted
    /// already.
    async fn sort(&self, tcp: TcpStream, mut first: BytesMut) -> Option<Sorted> {
        let seen = match read_first(&tcp, &mut first, &self.relay).await {
            Ok(seen) => seen,
            Err(reason) => {
                if let Some(reason) = reason {
                    dropped(reason);
                }
                return None;
            }
        };
        if let Seen::Lane(ticket, skip) = seen {
            return Some(Sorted::Lane(ticket, Carrier::Plain(tcp), first.split_off(skip).freeze()));
        }
        if let Seen::Name(to) = seen {
            return Some(Sorted::Name(to, tcp, first.freeze()));
        }
        if self.relay.handshakes.take((), clock::monotonic()).is_err() {
            dropped(DropReason::HandshakesPaced);
            return None;
        }
        let acceptor = self.tls.read().clone();
        // Boxed: what begins only now must not cost a peer that says nothing.
        let tls = match Box::pin(acceptor.accept(Prefixed::new(first.freeze(), tcp))).await {
            Ok(tls) => tls,
            Err(error) => {
                tracing::debug!(%error, "TLS hand-shake failed");
                metrics::counter!("hedgerow_relay_tls_failures_total").increment(1);
                return None;
            }
        };
        let group = tls.get_ref().1.negotiated_key_exchange_group().and_then(|g| g.name().as_str());
        metrics::counter!("hedgerow_relay_tls_handshakes_total", "group" => group.unwrap_or("unknown")).increment(1);
        match tls.get_ref().1.alpn_protocol() {
            Some(p) if p == ALPN_LINK => Some(Sorted::Link(Box::new(tls))),
            Some(p) if p == ALPN_LANE => Box::pin(wrapped(tls)).await,
            Some(b"h2") => Some(Sorted::Http(Box::new(tls), Version::Two)),
            _ => Some(Sorted::Http(Box::new(tls), Version::One)),
        }
    }
}

enum Sorted {
    Lane(Ticket, Carrier, Bytes),
    Link(Box<Own>),
    Http(Box<Own>, Version),
    Name(Named, TcpStream, Bytes),
}

impl Sorted {
    fn kind(&self) -> &'static str {
        match self {
            Self::Lane(_, Carrier::Plain(_), _) => "lane",
            Self::Lane(_, Carrier::Wrapped(_), _) => "wrapped_lane",
            Self::Link(_) => "link",
            Self::Http(..) => "http",
            Self::Name(..) => "name",
        }
    }
}

/// What the first bytes say.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// A lane leg; so many bytes are the preamble's.
    Lane(Ticket, usize),
    /// A ClientHello for the relay itself.
    Own,
    /// A ClientHello for a tenant's name.
    Name(Named),
}

/// Reads until it is clear. No buffer is held while nothing has come.
async fn read_first(tcp: &TcpStream, first: &mut BytesMut, relay: &Relay) -> Result<Seen, Option<DropReason>> {
    loop {
        let wanted = match look(first, relay) {
            Look::Seen(seen) => return Ok(seen),
            Look::Close(reason) => return Err(Some(reason)),
            Look::Wait(wanted) => wanted,
        };
        fill(tcp, first, wanted, DropReason::UnknownFirstBytes).await?;
    }
}

/// Reads until `wanted` bytes are there: a peer that sends byte by byte is looked at again only when it has sent enough.
/// One that ends halfway is dropped for `cut`.
async fn fill(tcp: &TcpStream, first: &mut BytesMut, wanted: usize, cut: DropReason) -> Result<(), Option<DropReason>> {
    while first.len() < wanted {
        tcp.readable().await.map_err(|_| None)?;
        first.reserve((wanted - first.len()).max(2048));
        match tcp.try_read_buf(first) {
            Ok(0) => return Err((!first.is_empty()).then_some(cut)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(None),
        }
    }
    Ok(())
}

enum Look {
    Seen(Seen),
    Close(DropReason),
    Wait(usize),
}

fn look(first: &[u8], relay: &Relay) -> Look {
    match wire::parse(first) {
        wire::Parsed::Ticket(ticket, length) => return Look::Seen(Seen::Lane(ticket, length)),
        wire::Parsed::Incomplete => return Look::Wait(first.len() + 1),
        wire::Parsed::Unknown => {}
    }
    let hello = match client_hello::parse(first) {
        Parsed::Incomplete(wanted) => return Look::Wait(wanted.min(MAX_FIRST_BYTES)),
        Parsed::Hello(hello) => hello,
        Parsed::NotTls => return Look::Close(balancer::reason(first)),
        Parsed::Malformed(why) => {
            tracing::debug!(why, "ClientHello refused");
            return Look::Close(DropReason::UnknownFirstBytes);
        }
    };
    let Some(name) = hello.server_name else { return Look::Seen(Seen::Own) };
    match wire::ticket_of(&name, &relay.config.name) {
        Some(Ok(ticket)) => Look::Seen(Seen::Lane(ticket, 0)),
        Some(Err(())) => Look::Close(DropReason::UnknownTicket),
        None if relay.config.answers_to(&name) => Look::Seen(Seen::Own),
        None => match relay.named(&name) {
            Some(to) => Look::Seen(Seen::Name(to)),
            None => Look::Close(DropReason::UnknownName),
        },
    }
}

/// A lane leg inside TLS to the relay: the preamble, then the session.
async fn wrapped(mut tls: Own) -> Option<Sorted> {
    match preamble(&mut tls).await {
        Some((ticket, rest)) => Some(Sorted::Lane(ticket, Carrier::Wrapped(Box::new(tls)), rest)),
        None => {
            dropped(DropReason::UnknownFirstBytes);
            None
        }
    }
}

async fn preamble(io: &mut (impl AsyncRead + Unpin)) -> Option<(Ticket, Bytes)> {
    let mut bytes = BytesMut::with_capacity(wire::LENGTH);
    loop {
        match wire::parse(&bytes) {
            wire::Parsed::Ticket(ticket, length) => return Some((ticket, bytes.split_off(length).freeze())),
            wire::Parsed::Unknown => return None,
            wire::Parsed::Incomplete => {
                if io.read_buf(&mut bytes).await.ok()? == 0 {
                    return None;
                }
            }
        }
    }
}
