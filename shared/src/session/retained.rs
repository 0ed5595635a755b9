//! Sent bytes that are kept until acknowledged: how many one session and one process may keep. The cap is the sender's
//! own, whatever windows the peer grants.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a session may keep even when the process has used up its budget: without it a session would stand still.
const FLOOR: u64 = 256 * 1024;

/// What all sessions of a process may keep together.
#[derive(Debug)]
pub struct RetainBudget {
    limit: u64,
    used: AtomicU64,
}

impl RetainBudget {
    /// At most so many bytes; a session always gets 256 KiB beyond it.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0) })
    }

    /// Bytes kept now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// What one session keeps. Gives everything back when dropped.
#[derive(Debug)]
pub(super) struct Retained {
    own: u64,
    /// `None`: nothing is kept, and nothing counted.
    cap: Option<u64>,
    budget: Option<Arc<RetainBudget>>,
}

impl Retained {
    pub(super) fn new(cap: Option<u64>, budget: Option<Arc<RetainBudget>>) -> Self {
        Self { own: 0, cap, budget }
    }

    /// How many more bytes may be sent.
    pub(super) fn room(&self) -> u64 {
        self.cap_now().map_or(u64::MAX, |cap| cap.saturating_sub(self.own))
    }

    /// Whether three quarters are used: time to ask the peer what it has.
    pub(super) fn is_tight(&self) -> bool {
        self.cap_now().is_some_and(|cap| self.own >= cap - cap / 4)
    }

    fn cap_now(&self) -> Option<u64> {
        let spent = self.budget.as_ref().is_some_and(|b| b.used() >= b.limit);
        self.cap.map(|cap| if spent { cap.min(FLOOR) } else { cap })
    }

    pub(super) fn add(&mut self, bytes: u64) {
        self.set(self.own.saturating_add(bytes));
    }

    pub(super) fn give_back(&mut self, bytes: u64) {
        self.set(self.own.saturating_sub(bytes));
    }

    pub(super) fn set(&mut self, bytes: u64) {
        if self.cap.is_none() {
            return;
        }
        if let Some(budget) = &self.budget {
            if bytes > self.own {
                budget.used.fetch_add(bytes - self.own, Ordering::Relaxed);
            } else {
                budget.used.fetch_sub(self.own - bytes, Ordering::Relaxed);
            }
        }
        self.own = bytes;
    }

    /// Bytes kept now.
    pub(super) fn own(&self) -> u64 {
        self.own
    }
}

impl Drop for Retained {
    fn drop(&mut self) {
        self.set(0);
    }
}
