//! Who decides again when commits come in between.
//!
//! An operation reads, decides, and commits on the revision that it has read; where somebody else has committed meanwhile it
//! begins anew. With many at once that would go on for ever for some of them, so whoever has been beaten takes a turn, and keeps it
//! until it is through. Nobody begins meanwhile; those who wait for that begin in the order in which they came, side by side.

use async_lock::{Mutex, MutexGuard};

use crate::CoreError;

/// How often an operation decides again before it answers `Busy`. Each time somebody else's commit got through; within this
/// process that is once or twice, so it is another process's.
const ATTEMPTS: usize = 64;

/// The turns of one process.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<()>);

/// One operation's attempts. No other operation may begin while it lives: it would wait for its own end.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    held: Option<MutexGuard<'a, ()>>,
    attempts: usize,
}

impl Turns {
    pub(super) fn turn(&self) -> Turn<'_> {
        Turn { turns: self, held: None, attempts: 0 }
    }
}

impl Turn<'_> {
    /// Before each attempt. Waits for those who have been beaten, each of whom is as bounded as this one.
    ///
    /// # Errors
    /// `Busy`: it was beaten too often.
    pub(super) async fn next(&mut self) -> Result<(), CoreError> {
        if self.attempts >= ATTEMPTS {
            return Err(CoreError::Busy);
        }
        self.attempts += 1;
        if self.held.is_none() {
            let turn = self.turns.0.lock().await;
            // The first attempt only lets others finish.
            self.held = (self.attempts > 1).then_some(turn);
        }
        Ok(())
    }
}
