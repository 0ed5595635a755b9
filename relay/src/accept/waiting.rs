//! Connections that have not shown yet what they are. When they are too many, the oldest makes room, so that a crowd of
//! silent peers cannot keep a good one out; when they are too many of one address, the oldest of that address does, so
//! that a crowd behind one address costs nobody else anything.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use hedgerow_runtime::telemetry::dropped;
use hedgerow_shared::fault::DropReason;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::limit::client_key;

/// See the module. Clones are the same room.
#[derive(Debug, Clone)]
pub struct Waiting {
    most: usize,
    most_per_client: usize,
    /// Short critical sections, no await: one entry and one exit a connection.
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    counter: u64,
    places: BTreeMap<u64, (IpAddr, CancellationToken)>,
    clients: HashMap<IpAddr, BTreeSet<u64>>,
}

/// One connection's place; dropping it leaves the room.
#[derive(Debug)]
pub struct Place {
    number: u64,
    shown_out: CancellationToken,
    inner: Arc<Mutex<Inner>>,
}

impl Waiting {
    /// Room for `most` connections, and for so many of one client address (an IPv6 client is its /64).
    #[must_use]
    pub fn new(most: usize, most_per_client: usize) -> Self {
        Self { most, most_per_client, inner: Arc::default() }
    }

    /// Takes a place; the oldest is shown out when there is none: of the same address, or of all.
    #[must_use]
    pub fn enter(&self, address: IpAddr) -> Place {
        let client = client_key(address);
        let mut inner = self.inner.lock();
        inner.make_room(client, self.most_per_client);
        while inner.places.len() >= self.most {
            inner.show_out_oldest();
        }
        inner.counter += 1;
        let (number, shown_out) = (inner.counter, CancellationToken::new());
        inner.places.insert(number, (client, shown_out.clone()));
        inner.clients.entry(client).or_default().insert(number);
        inner.tell();
        drop(inner);
        Place { number, shown_out, inner: self.inner.clone() }
    }

    /// The connection turned out to be another client's: a balancer said so.
    pub fn is_of(&self, place: &Place, address: IpAddr) {
        let client = client_key(address);
        let mut inner = self.inner.lock();
        let Some(shown_out) = inner.leave(place.number) else { return };
        inner.make_room(client, self.most_per_client);
        inner.places.insert(place.number, (client, shown_out));
        inner.clients.entry(client).or_default().insert(place.number);
    }

    /// Whether more than one place in `part` is taken, of all or of those that one address may have.
    #[must_use]
    pub fn is_crowded(&self, part: usize, address: IpAddr) -> bool {
        let (inner, part) = (self.inner.lock(), part.max(1));
        let own = inner.clients.get(&client_key(address)).map_or(0, BTreeSet::len);
        inner.places.len() > self.most / part || own > self.most_per_client / part
    }

    /// Shows the oldest `count` out: descriptors are short. How many there were.
    pub fn shed(&self, count: usize) -> usize {
        let mut inner = self.inner.lock();
        let before = inner.places.len();
        for _ in 0..count.min(before) {
            inner.show_out_oldest();
        }
        inner.tell();
        before - inner.places.len()
    }
}

impl Inner {
    /// The oldest of a client that has all its places makes room.
    fn make_room(&mut self, client: IpAddr, most: usize) {
        while let Some(own) = self.clients.get(&client)
            && own.len() >= most
            && let Some(oldest) = own.first().copied()
        {
            self.show_out(oldest);
        }
    }

    fn show_out_oldest(&mut self) {
        if let Some(oldest) = self.places.keys().next().copied() {
            self.show_out(oldest);
        }
    }

    fn show_out(&mut self, number: u64) {
        if let Some(place) = self.leave(number) {
            place.cancel();
            dropped(DropReason::HandshakeTimeout);
        }
    }

    fn leave(&mut self, number: u64) -> Option<CancellationToken> {
        let (client, place) = self.places.remove(&number)?;
        if let Some(own) = self.clients.get_mut(&client) {
            own.remove(&number);
            if own.is_empty() {
                self.clients.remove(&client);
            }
        }
        Some(place)
    }

    fn tell(&self) {
        metrics::gauge!("hedgerow_relay_handshakes").set(self.places.len() as f64);
    }
}

impl Place {
    /// Completes when this connection must make room. Cancel safe.
    pub async fn shown_out(&self) {
        self.shown_out.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.inner.lock();
        inner.leave(self.number);
        inner.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[tokio::test]
    async fn connections_through_a_balancer_count_for_their_clients() {
        let waiting = Waiting::new(10, 2);
        let places: Vec<Place> = (1..=3)
            .map(|client| {
                let place = waiting.enter(from(100));
                waiting.is_of(&place, from(client));
                place
            })
            .collect();
        assert!(places.iter().all(|p| !p.shown_out.is_cancelled()));
        let crowd: Vec<Place> = (0..3)
            .map(|_| {
                let place = waiting.enter(from(100));
                waiting.is_of(&place, from(9));
                place
            })
            .collect();
        assert!(crowd[0].shown_out.is_cancelled() && !crowd[1].shown_out.is_cancelled());
        assert!(places.iter().all(|p| !p.shown_out.is_cancelled()));
    }

    #[tokio::test]
    async fn the_oldest_makes_room_and_those_who_left_do_not_count() {
        let waiting = Waiting::new(2, 2);
        let (first, second) = (waiting.enter(from(1)), waiting.enter(from(2)));
        drop(second);
        let third = waiting.enter(from(3));
        assert!(!first.shown_out.is_cancelled());
        let _fourth = waiting.enter(from(4));
        first.shown_out().await;
        assert!(!third.shown_out.is_cancelled());
        waiting.shed(1);
        third.shown_out().await;
    }

    #[tokio::test]
    async fn a_crowd_of_one_address_makes_room_among_itself() {
        let waiting = Waiting::new(100, 2);
        let alone = waiting.enter(from(1));
        let crowd: Vec<_> = (0..5).map(|_| waiting.enter(from(2))).collect();
        for (i, place) in crowd.iter().enumerate() {
            assert_eq!(place.shown_out.is_cancelled(), i < 3, "{i}");
        }
        assert!(!alone.shown_out.is_cancelled());
        assert!(waiting.is_crowded(2, from(2)) && !waiting.is_crowded(2, from(1)));
        drop((crowd, alone));
        let inner = waiting.inner.lock();
        assert!(inner.places.is_empty() && inner.clients.is_empty());
    }
}
