//! The node's leg of a lane: a connection to the very relay process that called, the ticket first.
//!
//! ```text
//!   bare      TCP, preamble, session                                    the first choice: the relay splices it
//!   wrapped   TLS to the relay (ALPN hedgerow-lane/1), preamble, session
//! ```
//! Some firewalls pass only what looks like TLS. A bare leg that is cut before the other end's first byte is brought
//! again at once, wrapped, with the same ticket: the relay has not seen it yet. If that works, the network's legs are
//! wrapped for an hour, or until our own address is another. Behind a proxy, and where TLS is opened on the way, legs
//! are wrapped from the start.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use hedgerow_runtime::dial::{self, RelayTarget, Socket, Wire};
use hedgerow_shared::Ticket;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::wire::lane::preamble;
use hedgerow_shared::wire::message::ALPN_LANE;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tokio_util::io::InspectReader;
use tracing::info;

/// How long a network that refused a bare leg gets wrapped ones only.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Networks remembered; there are as many relays as the configuration names.
const MOST: usize = 64;

/// Which networks take wrapped legs only. Clones are the same memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Legs {
    /// By network; short critical sections.
    refused: Arc<Mutex<HashMap<Network, Instant>>>,
}

/// The way to a relay, as far as we can tell: another address of our own is another network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Network {
    relay: String,
    from: Option<IpAddr>,
}

impl Network {
    fn to(relay: &RelayTarget) -> Self {
        let relay = relay.addresses.first().cloned().unwrap_or_default();
        // Connecting a datagram socket sends nothing: the system only says which address it would send from.
        let from = relay.parse::<SocketAddr>().ok().and_then(|to| {
            let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0)).ok()?;
            socket.connect(to).ok()?;
            Some(socket.local_addr().ok()?.ip())
        });
        Self { relay, from }
    }
}

/// A leg that was brought; the end-to-end session runs on it. A plain socket, or TLS to the relay.
pub(crate) type Leg = Either<Socket, InspectReader<Box<TlsStream<Wire>>, OnRead>>;
/// Is shown what arrives.
type OnRead = Box<dyn FnMut(&[u8]) + Send>;

/// What became of a bare leg.
enum Bare {
    /// The other end has spoken.
    Passed(Socket),
    /// It ended sooner than a relay ends it.
    Cut,
    /// The relay has waited for the device in vain, or a firewall swallows what we send.
    Silent,
}

impl Legs {
    /// Brings a leg to the relay that called; waits for the device's first byte when the leg is bare.
    pub(crate) async fn bring(&self, relay: &RelayTarget, ticket: &Ticket, timers: &Timers) -> Result<Leg, Fault> {
        if relay.is_proxied() {
            return wrapped(relay, ticket, timers, None).await;
        }
        let network = Network::to(relay);
        if self.refuses_bare(&network, Instant::now()) {
            return wrapped(relay, ticket, timers, None).await;
        }
        match bare(relay.connect(timers).await?, ticket, timers).await {
            Bare::Passed(tcp) => Ok(Leg::Left(tcp)),
            Bare::Cut => wrapped(relay, ticket, timers, Some((self.clone(), network))).await,
            Bare::Silent => Err(Fault::new(Code::TimedOut, "the other end of the lane did not come")),
        }
    }

    fn refuses_bare(&self, network: &Network, now: Instant) -> bool {
        let mut refused = self.refused.lock();
        refused.retain(|_, since| now.saturating_duration_since(*since) < REMEMBERED);
        refused.contains_key(network)
    }

    fn note_refused(&self, network: Network) {
        info!(relay = network.relay, "this network cuts bare lane legs: the next ones go wrapped in TLS");
        metrics::counter!("hedgerow_node_lane_legs_refused_total").increment(1);
        let mut refused = self.refused.lock();
        if refused.len() < MOST {
            refused.insert(network, Instant::now());
        }
    }
}

async fn bare(mut tcp: Socket, ticket: &Ticket, timers: &Timers) -> Bare {
    let spoken = async {
        tcp.write_all(&preamble(ticket)).await?;
        dial::heard(&mut tcp).await
    };
    // The relay itself ends a leg that waits alone, but only after `lane_wait`.
    let began = Instant::now();
    match timeout(timers.lane_wait * 2, spoken).await {
        Ok(Ok(1..)) => Bare::Passed(tcp),
        Ok(_) if began.elapsed() < timers.lane_wait / 2 => Bare::Cut,
        Ok(_) | Err(_) => Bare::Silent,
    }
}

/// `confirms` is a network that cut the bare leg before: known to do so once this leg's first byte is here.
async fn wrapped(
    relay: &RelayTarget,
    ticket: &Ticket,
    timers: &Timers,
    mut confirms: Option<(Legs, Network)>,
) -> Result<Leg, Fault> {
    let mut tls = dial::relay_tls(relay, &[ALPN_LANE], timers).await?;
    if tls.get_ref().1.alpn_protocol() != Some(ALPN_LANE) {
        return Err(Fault::new(
            Code::Protocol,
            "the relay takes no wrapped lane legs: it is too old, or another server",
        ));
    }
    let sent = async {
        tls.write_all(&preamble(ticket)).await?;
        tls.flush().await
    };
    let on_read = move |bytes: &[u8]| {
        if !bytes.is_empty()
            && let Some((legs, network)) = confirms.take()
        {
            legs.note_refused(network);
        }
    };
    match timeout(timers.handshake, sent).await {
        Ok(Ok(())) => Ok(Leg::Right(InspectReader::new(Box::new(tls), Box::new(on_read)))),
        Ok(Err(error)) => Err(Fault::new(Code::Lost, format!("the relay closed the lane: {error}"))),
        Err(_) => Err(Fault::new(Code::TimedOut, "the relay does not read the lane's preamble")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    fn ticket() -> Ticket {
        Ticket::from_random(hedgerow_runtime::clock::random())
    }

    async fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Either::Left(ours), listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_leg_that_is_cut_at_once_is_told_from_one_whose_device_speaks() {
        let timers = Timers::default();
        let (ours, theirs) = pair().await;
        drop(theirs);
        assert!(matches!(bare(ours, &ticket(), &timers).await, Bare::Cut));
        let (ours, mut theirs) = pair().await;
        theirs.write_all(b"ClientHello").await.unwrap();
        let Bare::Passed(mut leg) = bare(ours, &ticket(), &timers).await else { panic!("not passed") };
        let mut first = [0; 11];
        leg.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"ClientHello", "nothing is lost by looking");
    }

    #[tokio::test]
    async fn a_relay_that_waited_in_vain_is_no_firewall() {
        let timers = Timers { lane_wait: Duration::from_millis(50), ..Timers::default() };
        let (ours, theirs) = pair().await;
        assert!(matches!(bare(ours, &ticket(), &timers).await, Bare::Silent));
        drop(theirs);
    }

    #[test]
    fn a_network_is_remembered_for_a_while_and_by_our_own_address() {
        let legs = Legs::default();
        let network = |from: &str| Network { relay: "192.0.2.1:3101".into(), from: from.parse().ok() };
        legs.note_refused(network("10.0.0.1"));
        let now = Instant::now();
        assert!(legs.refuses_bare(&network("10.0.0.1"), now));
        assert!(!legs.refuses_bare(&network("10.9.0.1"), now), "another network");
        assert!(!legs.refuses_bare(&network("10.0.0.1"), now + REMEMBERED), "it may have changed its mind");
    }
}
