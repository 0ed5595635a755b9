//! Streams whose far end does not take what came for it. What they hold counts against the window of the link that it
//! came by, and against the queue of the link that it is to leave by, which all streams of these links share: were there
//! enough of them, nobody else could be served. So when they are too many, those that have stood still longest are reset.
//! Whoever reads, however slowly, is not standing still.

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
    /// Streams whose bytes came by it and wait in its window.
    pub unread: Still,
    /// Streams whose bytes are to leave by it and wait for room in its queue.
    pub unsent: Still,
}

impl Stalls {
    /// How many streams stand still here, in whichever direction has more of them.
    #[must_use]
    pub fn most(&self) -> usize {
        self.unread.len().max(self.unsent.len())
    }
}

/// One direction of a link.
#[derive(Debug, Default)]
pub struct Still {
    /// Short critical sections without await: a stream stops or goes on.
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    counter: u64,
    still: BTreeMap<u64, (Instant, Arc<Notify>)>,
}

impl Still {
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

/// One direction of one stream: where its bytes come from, and where they go to if that is a link.
#[derive(Debug)]
pub struct Streaming<'a> {
    from: Option<&'a Still>,
    to: Option<&'a Still>,
    told: Arc<Notify>,
}

impl<'a> Streaming<'a> {
    /// Between links, or between one and something that stands for itself.
    #[must_use]
    pub fn new(from: Option<&'a Stalls>, to: Option<&'a Stalls>) -> Self {
        Self { from: from.map(|s| &s.unread), to: to.map(|s| &s.unsent), told: Arc::default() }
    }
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
        let stands = |still| Stands::new(still, &self.told);
        let _stands = (self.from.map(stands), self.to.map(stands));
        tokio::select! {
            done = writing => Ok(done),
            () = self.told.notified() => Err(Relieved),
        }
    }
}

/// A stream that stands still; dropping it means that it moves again.
struct Stands<'a> {
    still: &'a Still,
    number: u64,
}

impl<'a> Stands<'a> {
    fn new(still: &'a Still, told: &Arc<Notify>) -> Self {
        let mut inner = still.inner.lock();
        inner.counter += 1;
        let number = inner.counter;
        inner.still.insert(number, (Instant::now(), told.clone()));
        Self { still, number }
    }
}

impl Drop for Stands<'_> {
    fn drop(&mut self) {
        self.still.inner.lock().still.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_that_stand_still_longest_make_room_and_those_that_move_do_not_count() {
        let (from, to) = (Stalls::default(), Stalls::default());
        let streams: Vec<_> = (0..4).map(|_| Streaming::new(Some(&from), Some(&to))).collect();
        assert_eq!(streams[0].deliver(async { 7 }).await, Ok(7));
        assert_eq!((from.most(), to.most()), (0, 0));
        let mut waiting: Vec<_> = streams.iter().map(|s| Box::pin(s.deliver(std::future::pending::<()>()))).collect();
        for one in &mut waiting {
            assert!(futures_now(one.as_mut()).await.is_none());
        }
        let now = Instant::now();
        assert_eq!((from.unread.len(), from.unsent.len(), to.unread.len(), to.unsent.len()), (4, 0, 0, 4));
        assert_eq!(from.unread.relieve(2, now), 0, "a moment is no standstill");
        assert_eq!(from.unread.relieve(2, now + STILL), 2);
        let ended = [waiting.remove(0).await, waiting.remove(0).await];
        assert_eq!(ended, [Err(Relieved); 2]);
        assert!(futures_now(waiting[0].as_mut()).await.is_none());
        assert_eq!((from.most(), to.most()), (2, 2), "who was reset stands still nowhere");
        assert_eq!(to.unsent.relieve(1, now + STILL), 1);
        assert_eq!(waiting.remove(0).await, Err(Relieved));
        drop(waiting);
        assert_eq!((from.most(), to.most()), (0, 0));
    }

    /// What a future has now.
    async fn futures_now<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        tokio::time::timeout(Duration::ZERO, future).await.ok()
    }
}
