//! Streams of one link whose far end does not take what came for it. What they hold counts against the link's window,
//! which all its streams share: were there enough of them, nobody else could be served on that link. So when they are
//! too many, those that have stood still longest are reset. Whoever reads, however slowly, is not standing still.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// A stream that has not moved for so long may be reset.
const STILL: Duration = Duration::from_secs(2);

/// Of one link.
#[derive(Debug, Default)]
pub struct Stalls {
    /// Short critical sections without await: a stream stops or goes on.
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    counter: u64,
    still: BTreeMap<u64, (Instant, Arc<Notify>)>,
}

impl Stalls {
    /// A stream that may stall now and then.
    pub fn stream(&self) -> Streaming<'_> {
        Streaming { stalls: self, told: Arc::default() }
    }

    /// Resets those that have stood still longest until no more than `most` do. How many.
    pub fn relieve(&self, most: usize, now: Instant) -> usize {
        let mut inner = self.inner.lock();
        let mut reset = 0;
        while inner.still.len() > most
            && let Some(oldest) = inner.still.first_entry()
            && now.saturating_duration_since(oldest.get().0) >= STILL
        {
            oldest.remove().1.notify_one();
            reset += 1;
        }
        reset
    }

    /// How many stand still.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().still.len()
    }

    /// Whether all move.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One direction of one stream.
#[derive(Debug)]
pub struct Streaming<'a> {
    stalls: &'a Stalls,
    told: Arc<Notify>,
}

/// The stream was reset to make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relieved;

impl Streaming<'_> {
    /// Writes what came, however long that takes, unless the stream must make room meanwhile.
    ///
    /// # Errors
    /// It must.
    pub async fn deliver<T>(&self, writing: impl Future<Output = T>) -> Result<T, Relieved> {
        tokio::pin!(writing);
        // Most writes find room at once.
        tokio::select! {
            biased;
            done = &mut writing => return Ok(done),
            () = std::future::ready(()) => {}
        }
        let _stands = Stands::new(self);
        tokio::select! {
            done = writing => Ok(done),
            () = self.told.notified() => Err(Relieved),
        }
    }
}

/// A stream that stands still; dropping it means that it moves again.
struct Stands<'a> {
    stalls: &'a Stalls,
    number: u64,
}

impl<'a> Stands<'a> {
    fn new(streaming: &Streaming<'a>) -> Self {
        let mut inner = streaming.stalls.inner.lock();
        inner.counter += 1;
        let number = inner.counter;
        inner.still.insert(number, (Instant::now(), streaming.told.clone()));
        Self { stalls: streaming.stalls, number }
    }
}

impl Drop for Stands<'_> {
    fn drop(&mut self) {
        self.stalls.inner.lock().still.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_that_stand_still_longest_make_room_and_those_that_move_do_not_count() {
        let stalls = Stalls::default();
        let streams: Vec<_> = (0..4).map(|_| stalls.stream()).collect();
        assert_eq!(streams[0].deliver(async { 7 }).await, Ok(7));
        assert!(stalls.is_empty());
        let mut waiting: Vec<_> = streams.iter().map(|s| Box::pin(s.deliver(std::future::pending::<()>()))).collect();
        for one in &mut waiting {
            assert!(futures_now(one.as_mut()).await.is_none());
        }
        let now = Instant::now();
        assert_eq!((stalls.len(), stalls.relieve(2, now)), (4, 0), "a moment is no standstill");
        assert_eq!(stalls.relieve(2, now + STILL), 2);
        let ended = [waiting.remove(0).await, waiting.remove(0).await];
        assert_eq!(ended, [Err(Relieved); 2]);
        assert!(futures_now(waiting[0].as_mut()).await.is_none());
        drop(waiting);
        assert!(stalls.is_empty());
    }

    /// What a future has now.
    async fn futures_now<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        tokio::time::timeout(Duration::ZERO, future).await.ok()
    }
}
