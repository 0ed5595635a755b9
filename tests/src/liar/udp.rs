//! The liar on UDP: links over QUIC, and before them whoever moves datagrams between two ends and may do with them what
//! a network or a relay can: alter, cut short, repeat, reorder, leave out, misroute and invent.
//!
//! ```text
//!   peer ── public port (`carry`, meddling) ── inner port: QUIC ── link
//! ```

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use hedgerow_runtime::clock::random;
use hedgerow_runtime::link;
use hedgerow_runtime::quic;
use hedgerow_shared::InstanceId;
use hedgerow_shared::limits::Timers;
use hedgerow_shared::wire::message::Limits;
use rustls::ServerConfig;
use tokio::net::UdpSocket;

use super::{Shared, lock, middle};

/// What is done to datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datagrams {
    /// One bit is another, at a random place.
    Flip,
    /// The second half is missing.
    CutShort,
    /// It comes twice, the second time after the next one.
    Repeat,
    /// It comes after the next one.
    Swap,
    /// It does not come.
    Omit,
    /// It goes to, or seems to come from, another peer.
    Misroute,
    /// Before it comes noise that looks like the QUIC of this connection.
    Invent,
}

impl Datagrams {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Flip, Self::CutShort, Self::Repeat, Self::Swap, Self::Omit, Self::Misroute, Self::Invent];
}

/// Peers by address: the socket that stands for each at the inner port.
type Peers = Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>>;

/// Serves links over QUIC at `public`.
pub(super) async fn listen(shared: &Arc<Shared>, public: SocketAddr, tls: &ServerConfig) -> io::Result<()> {
    let config = quic::server_config(tls, &Timers::default()).map_err(io::Error::other)?;
    let inner = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = inner.local_addr()?;
    let tasks = Arc::new(quic::Tasks(shared.scope.clone()));
    let endpoint = quinn::Endpoint::new(quic::endpoint_config(), Some(config), inner, tasks)?;
    let near = Arc::new(UdpSocket::bind(public).await?);
    shared.scope.spawn(carry(shared.clone(), near, address));
    let serving = shared.clone();
    shared.scope.spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let shared = serving.clone();
            serving.scope.spawn(async move {
                // A peer that refuses the liar's certificate is what some tests are about.
                let Ok(connection) = incoming.await else {
                    return Shared::count(&shared.counts.disbelieved);
                };
                let elsewhere = lock(&shared.lies).links_led_to.clone();
                if let Some(relay) = elsewhere {
                    // The first stream is the link's hand-shake, which has the same frames on TLS.
                    let Ok((send, receive)) = connection.accept_bi().await else { return };
                    let _ = middle::lead(&shared, tokio::io::join(receive, send), &relay).await;
                    return;
                }
                let (limits, timers) = (Limits::default(), Timers::default());
                let instance = InstanceId::from_random(random());
                let opened = link::answer_quic(connection, &*shared, limits, instance, &timers, &shared.scope).await;
                if let Ok((link, peer)) = opened {
                    super::link::serve_opened(shared, link, peer).await;
                }
            });
        }
    });
    Ok(())
}

/// From the peers to the inner port; each gets a socket, whose datagrams go back to it.
async fn carry(shared: Arc<Shared>, near: Arc<UdpSocket>, inner: SocketAddr) {
    let peers = Peers::default();
    let mut block = vec![0; 64 * 1024];
    let mut held = HashMap::new();
    while let Ok((length, peer)) = near.recv_from(&mut block).await {
        let known = lock(&peers).get(&peer).cloned();
        let far = match known {
            Some(far) => far,
            None => {
                let Ok(far) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await else { continue };
                if far.connect(inner).await.is_err() {
                    continue;
                }
                let far = Arc::new(far);
                lock(&peers).insert(peer, far.clone());
                shared.scope.spawn(back(shared.clone(), near.clone(), far.clone(), peer, peers.clone()));
                far
            }
        };
        for (datagram, elsewhere) in meddle(&shared, held.entry(peer).or_default(), &block[..length]) {
            let other = elsewhere.then(|| another(&peers, peer).map(|(_, far)| far)).flatten();
            // A datagram that finds no room is lost, as datagrams are.
            let _ = other.as_ref().unwrap_or(&far).send(&datagram).await;
        }
    }
}

async fn back(shared: Arc<Shared>, near: Arc<UdpSocket>, far: Arc<UdpSocket>, peer: SocketAddr, peers: Peers) {
    let mut block = vec![0; 64 * 1024];
    let mut held = None;
    while let Ok(length) = far.recv(&mut block).await {
        for (datagram, elsewhere) in meddle(&shared, &mut held, &block[..length]) {
            let to = elsewhere.then(|| another(&peers, peer).map(|(to, _)| to)).flatten();
            let _ = near.send_to(&datagram, to.unwrap_or(peer)).await;
        }
    }
}

fn another(peers: &Peers, than: SocketAddr) -> Option<(SocketAddr, Arc<UdpSocket>)> {
    lock(peers).iter().find(|(p, _)| **p != than).map(|(p, far)| (*p, far.clone()))
}

/// What goes out instead of this datagram, and whether to somebody else. One in eight is meddled with.
fn meddle(shared: &Shared, held: &mut Option<Vec<u8>>, datagram: &[u8]) -> Vec<(Vec<u8>, bool)> {
    lock(&shared.datagrams).extend_from_slice(datagram);
    let mut out = Vec::new();
    let how = lock(&shared.lies).datagrams.filter(|_| random::<1>()[0].is_multiple_of(8));
    let mut whole = datagram.to_vec();
    if how.is_some() {
        Shared::count(&shared.counts.datagrams);
    }
    match how {
        None => out.push((whole, false)),
        Some(Datagrams::Flip) => {
            let dice = u64::from_be_bytes(random());
            let at = usize::try_from(dice >> 8).unwrap_or(0) % whole.len().max(1);
            if let Some(byte) = whole.get_mut(at) {
                *byte ^= 1 << (dice & 7);
            }
            out.push((whole, false));
        }
        Some(Datagrams::CutShort) => out.push((whole[..whole.len() / 2].to_vec(), false)),
        Some(Datagrams::Repeat) => {
            out.push((whole.clone(), false));
            out.extend(held.replace(whole).map(|h| (h, false)));
            return out;
        }
        Some(Datagrams::Swap) => {
            out.extend(held.replace(whole).map(|h| (h, false)));
            return out;
        }
        Some(Datagrams::Omit) => {}
        Some(Datagrams::Misroute) => out.push((whole, true)),
        Some(Datagrams::Invent) => {
            // The first bytes, with the connection id in them, are right.
            let noise: Vec<u8> =
                whole.iter().enumerate().map(|(i, b)| if i < 21 { *b } else { random::<1>()[0] }).collect();
            out.push((noise, false));
            out.push((whole, false));
        }
    }
    out.extend(held.take().map(|h| (h, false)));
    out
}
