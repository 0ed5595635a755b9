//! Fairness between the tasks of one process: a task that moves bytes makes way for the others after its share, however
//! ready its sockets are. Tokio's own budget counts operations, and one operation here may move a megabyte.
//!
//! What a task waits for its turn is the number of busy tasks times their share. So a share is smaller when there are
//! many: with 16 downloads a small request beside them took 11 ms through device, relay and node with shares of
//! 256 KiB, 4.5 ms with 64 KiB; one download alone is a tenth faster with 256 KiB (docs/decisions/0009).

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task;

/// What a task that moves bytes may take at once: at least this much, however many there are.
pub const LEAST: usize = 64 * 1024;
/// And at most this much, however few.
pub const MOST: usize = 256 * 1024;
/// What all busy tasks together may take between two turns of a small one.
const ROUND: usize = 1024 * 1024;

/// Tasks of this process that have proved to move much, and still live. Its workers serve all of them.
static BUSY: AtomicUsize = AtomicUsize::new(0);

/// What a task has moved since it last made way.
#[derive(Debug, Default)]
pub struct Share {
    moved: usize,
    /// Bytes moved until it counted as busy.
    total: usize,
}

impl Share {
    /// Bytes to move in one go now.
    #[must_use]
    pub fn size(&self) -> usize {
        size(BUSY.load(Ordering::Relaxed))
    }

    /// To be called after `bytes` were moved: makes way when the share is used up. Cancel safe.
    pub async fn moved(&mut self, bytes: usize) {
        self.moved += bytes;
        if self.moved < self.size() {
            return task::consume_budget().await;
        }
        if !self.is_busy() {
            self.total = self.total.saturating_add(self.moved);
            if self.is_busy() {
                BUSY.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.moved = 0;
        task::yield_now().await;
    }

    fn is_busy(&self) -> bool {
        self.total >= ROUND
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.is_busy() {
            BUSY.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn size(busy: usize) -> usize {
    (ROUND / busy.max(1)).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_share_is_smaller_the_more_tasks_are_busy() {
        assert_eq!([0, 1, 4, 8, 16, 1000].map(size), [MOST, MOST, MOST, ROUND / 8, LEAST, LEAST]);
    }

    #[tokio::test]
    async fn a_task_that_never_waits_for_its_sockets_lets_others_work_after_its_share() {
        let moved = Cell::new(0);
        let bulk = async {
            let mut share = Share::default();
            while moved.get() < 100 * MOST {
                moved.set(moved.get() + LEAST);
                share.moved(LEAST).await;
            }
        };
        let small = async {
            let mut before = 0;
            for _ in 0..50 {
                assert!(moved.get() - before <= MOST, "it waited for {} bytes", moved.get() - before);
                before = moved.get();
                task::yield_now().await;
            }
        };
        tokio::join!(biased; bulk, small);
    }

    #[tokio::test]
    async fn a_task_counts_as_busy_once_it_has_moved_much_and_until_it_ends() {
        let mut share = Share::default();
        share.moved(ROUND - 1).await;
        assert!(!share.is_busy());
        share.moved(MOST).await;
        assert!(share.is_busy());
        assert!(BUSY.load(Ordering::Relaxed) >= 1);
    }
}
