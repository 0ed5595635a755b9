//! Connections that have not shown yet what they are. When they are too many, the oldest makes room, so that a crowd of
//! silent peers cannot keep a good one out.

use std::collections::BTreeMap;
use std::sync::Arc;

use hedgerow_runtime::telemetry::dropped;
use hedgerow_shared::fault::DropReason;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// See the module. Clones are the same room.
#[derive(Debug, Clone)]
pub struct Waiting {
    most: usize,
    /// Short critical sections, no await: one entry and one exit a connection.
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    counter: u64,
    places: BTreeMap<u64, CancellationToken>,
}

/// One connection's place; dropping it leaves the room.
#[derive(Debug)]
pub struct Place {
    number: u64,
    shown_out: CancellationToken,
    inner: Arc<Mutex<Inner>>,
}

impl Waiting {
    /// Room for `most` connections.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, inner: Arc::default() }
    }

    /// Takes a place; the oldest is shown out when there is none.
    #[must_use]
    pub fn enter(&self) -> Place {
        let mut inner = self.inner.lock();
        while inner.places.len() >= self.most {
            show_out(&mut inner);
        }
        inner.counter += 1;
        let (number, shown_out) = (inner.counter, CancellationToken::new());
        inner.places.insert(number, shown_out.clone());
        drop(inner);
        Place { number, shown_out, inner: self.inner.clone() }
    }

    /// Whether more than one place in `part` is taken.
    #[must_use]
    pub fn is_crowded(&self, part: usize) -> bool {
        self.inner.lock().places.len() > self.most / part.max(1)
    }

    /// Shows the oldest `count` out: descriptors are short.
    pub fn shed(&self, count: usize) {
        let mut inner = self.inner.lock();
        for _ in 0..count {
            show_out(&mut inner);
        }
    }
}

fn show_out(inner: &mut Inner) {
    if let Some((_, oldest)) = inner.places.pop_first() {
        oldest.cancel();
        dropped(DropReason::HandshakeTimeout);
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
        self.inner.lock().places.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_makes_room_and_those_who_left_do_not_count() {
        let waiting = Waiting::new(2);
        let (first, second) = (waiting.enter(), waiting.enter());
        drop(second);
        let third = waiting.enter();
        assert!(!first.shown_out.is_cancelled());
        let _fourth = waiting.enter();
        first.shown_out().await;
        assert!(!third.shown_out.is_cancelled());
        waiting.shed(1);
        third.shown_out().await;
    }
}
