//! The node's leg of a lane: a connection to the very relay process that called, the ticket first.
//!
//! ```text
//!   bare      TCP, preamble, session                                    the first choice: the relay splices it
//!   wrapped   TLS to the relay (ALPN hedgerow-lane/1), preamble, session
//! ```
//! Some firewalls pass only what looks like TLS. A bare leg that is cut before the other end's first byte is brought
//! again at once, wrapped, with the same ticket: the relay has not seen it yet. If that works, the network's legs are
//! wrapped for an hour, or until our own address is another. A firewall may also swallow what it does not know and say
//! nothing: a preamble that is not acknowledged in time counts as cut, and where even a relay's own patience is over and
//! nothing came, not its goodbye either, the next leg goes wrapped, and if that works the network is known. Behind a proxy, and where TLS is opened on the way, legs
//! are wrapped from the start.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
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
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tokio_util::io::InspectReader;
use tracing::info;

/// How long a network that refused a bare leg gets wrapped ones only.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// How often it is looked whether the preamble was acknowledged.
const LOOK: Duration = Duration::from_millis(100);
/// Networks remembered; there are as many relays as the configuration names.
const MOST: usize = 64;

/// Which networks take wrapped legs only. Clones are the same memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Legs {
    /// By network; short critical sections.
    refused: Arc<Mutex<HashMap<Network, Instant>>>,
    /// Where a bare leg stayed without any answer: the next one is wrapped.
    suspected: Arc<Mutex<HashSet<Network>>>,
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
    /// The relay has waited for the device in vain.
    Alone,
    /// Nothing came, not even the relay's goodbye: a firewall may swallow what we send.
    Swallowed,
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
        if self.suspected.lock().remove(&network) {
            return wrapped(relay, ticket, timers, Some((self.clone(), network))).await;
        }
        match bare(relay.connect(timers).await?, ticket, timers).await {
            Bare::Passed(tcp) => Ok(Leg::Left(tcp)),
            Bare::Cut => wrapped(relay, ticket, timers, Some((self.clone(), network))).await,
            Bare::Alone => Err(Fault::new(Code::TimedOut, "the other end of the lane did not come")),
            Bare::Swallowed => {
                self.suspect(network);
                Err(Fault::new(Code::TimedOut, "the lane's relay is silent: the network may swallow bare legs"))
            }
        }
    }

    fn refuses_bare(&self, network: &Network, now: Instant) -> bool {
        let mut refused = self.refused.lock();
        refused.retain(|_, since| now.saturating_duration_since(*since) < REMEMBERED);
        refused.contains_key(network)
    }

    fn suspect(&self, network: Network) {
        let mut suspected = self.suspected.lock();
        if suspected.len() < MOST {
            suspected.insert(network);
        }
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
    let raw = match &tcp {
        Either::Left(tcp) => Some(tcp.as_raw_fd()),
        Either::Right(_) => None,
    };
    let spoken = async {
        tcp.write_all(&preamble(ticket)).await?;
        dial::heard(&mut tcp).await
    };
    // The relay itself ends a leg that waits alone, but only after `lane_wait`.
    let began = Instant::now();
    let ended = {
        let waiting = timeout(timers.lane_wait * 2, spoken);
        tokio::select! {
            ended = waiting => Some(ended),
            () = unacknowledged(raw, timers.lane_wait / 4) => None,
        }
    };
    match ended {
        None => Bare::Cut,
        Some(Ok(Ok(1..))) => Bare::Passed(tcp),
        Some(Ok(_)) if began.elapsed() < timers.lane_wait / 2 => Bare::Cut,
        Some(Ok(_)) => Bare::Alone,
        Some(Err(_)) => Bare::Swallowed,
    }
}

/// Completes when what was sent has not been acknowledged for so long; never, once it has been, or where no system
/// stands behind the connection. The socket must stay open meanwhile.
async fn unacknowledged(socket: Option<RawFd>, limit: Duration) {
    let Some(socket) = socket else { return std::future::pending().await };
    let until = Instant::now() + limit;
    while Instant::now() < until {
        sleep(LOOK.min(limit)).await;
        if waits_for_acknowledgement(socket) != Some(true) {
            return std::future::pending().await;
        }
    }
}

/// Whether bytes wait to be acknowledged by the other end's system; `None` where the system does not say.
#[cfg(target_os = "linux")]
fn waits_for_acknowledgement(socket: RawFd) -> Option<bool> {
    let mut waiting: libc::c_int = 0;
    // SAFETY: the descriptor is open for as long as the caller's socket, and the pointer is to an int, as TIOCOUTQ wants.
    let known = unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut waiting) } == 0;
    known.then_some(waiting > 0)
}

#[cfg(not(target_os = "linux"))]
fn waits_for_acknowledgement(_: RawFd) -> Option<bool> {
    None
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
    async fn a_relay_that_waited_in_vain_says_so_and_a_firewall_that_swallows_says_nothing() {
        let timers = Timers { lane_wait: Duration::from_millis(200), ..Timers::default() };
        let (ours, theirs) = pair().await;
        let ends = async {
            sleep(timers.lane_wait).await;
            drop(theirs);
        };
        let ticket = ticket();
        let (alone, ()) = tokio::join!(bare(ours, &ticket, &timers), ends);
        assert!(matches!(alone, Bare::Alone));
        let (ours, theirs) = pair().await;
        assert!(matches!(bare(ours, &ticket, &timers).await, Bare::Swallowed));
        drop(theirs);
    }

    #[tokio::test]
    async fn a_preamble_that_nobody_acknowledges_is_noticed_long_before_the_relays_patience_is_over() {
        let limit = Duration::from_millis(300);
        let (ours, theirs) = pair().await;
        let Either::Left(ours) = ours else { panic!("not a TCP connection") };
        // A peer whose buffers are full acknowledges no more, as one does whom nothing reaches.
        while ours.try_write(&[0; 65536]).is_ok() || {
            sleep(Duration::from_millis(20)).await;
            ours.try_write(&[0; 65536]).is_ok()
        } {}
        timeout(Duration::from_secs(10), unacknowledged(Some(ours.as_raw_fd()), limit)).await.expect("noticed");
        drop(theirs);
        let (mut ours, _theirs) = pair().await;
        ours.write_all(b"taken by the other end's system").await.unwrap();
        let Either::Left(ours) = ours else { panic!("not a TCP connection") };
        let noticed = timeout(limit * 3, unacknowledged(Some(ours.as_raw_fd()), limit)).await;
        assert!(noticed.is_err(), "what was acknowledged is no firewall's work, however long nothing comes");
    }

    #[tokio::test]
    async fn after_a_leg_that_was_swallowed_the_next_one_is_wrapped_and_then_the_network_is_looked_at_anew() {
        let timers =
            Timers { lane_wait: Duration::from_millis(50), handshake: Duration::from_millis(500), ..Timers::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let relay = RelayTarget::new(vec![address], "relay.example", hedgerow_runtime::tls::RelayRoots::Pin([0; 32]));
        let legs = Legs::default();
        for wrapped in [false, true] {
            let ticket = ticket();
            let (brought, (_kept, byte)) = tokio::join!(legs.bring(&relay, &ticket, &timers), async {
                let (mut tcp, _) = listener.accept().await.unwrap();
                let byte = tcp.read_u8().await.unwrap();
                (tcp, byte)
            });
            assert!(brought.is_err());
            assert_eq!(byte == 0x16, wrapped, "what begins with a TLS record is wrapped");
        }
        assert!(legs.suspected.lock().is_empty(), "a wrapped leg that fails tells nothing of bare ones");
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
