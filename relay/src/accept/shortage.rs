//! What the doors do when no connection can be taken: descriptors are short, or every permit is held. They wait, longer
//! each time, instead of asking again and again; and the log says once what to do, however many doors there are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The first pause after a failed accept; doubles up to `LONGEST`.
const FIRST: Duration = Duration::from_millis(50);
/// The longest pause: how late a door may notice that descriptors are back.
const LONGEST: Duration = Duration::from_millis(800);
/// Connections that were shown out have left by then, if any were.
pub(super) const SHED_TIME: Duration = Duration::from_millis(200);
/// What an operator can do.
pub(super) const ADVICE: &str = "Raise LimitNOFILE= of the unit (ulimit -n) or limits.connections, whichever is lower, or add a relay; \
    `hedgerow relay sessions` shows who is connected";
/// A shortage that comes back within this time is the same one.
const SAME: Duration = Duration::from_secs(60);

/// Shared by all doors of one relay; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Shortage {
    /// When it was said last. Touched only while there is a shortage, and once after it.
    said: Arc<Mutex<Said>>,
}

#[derive(Debug, Default)]
struct Said {
    lasts: bool,
    at: Option<Instant>,
}

impl Shortage {
    /// No connection can be taken now. Whether the log should say so.
    #[must_use]
    pub fn begin(&self, now: Instant) -> bool {
        let mut said = self.said.lock();
        let again = said.at.is_none_or(|at| now.saturating_duration_since(at) >= SAME);
        let fresh = !said.lasts && again;
        said.lasts = true;
        if fresh {
            said.at = Some(now);
        }
        fresh
    }

    /// A connection was taken by a door that had failed before. Whether the log should say that it is over.
    #[must_use]
    pub fn end(&self) -> bool {
        std::mem::take(&mut self.said.lock().lasts)
    }
}

/// The pause of one door after `failures` in a row, one at least.
#[must_use]
pub(super) fn pause(failures: u32) -> Duration {
    (FIRST * 2u32.saturating_pow(failures.saturating_sub(1).min(8))).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_and_again_only_when_it_comes_back_much_later() {
        let (shortage, now) = (Shortage::default(), Instant::now());
        assert!(shortage.begin(now) && !shortage.clone().begin(now));
        assert!(shortage.end() && !shortage.end());
        assert!(!shortage.begin(now + Duration::from_secs(30)));
        let _ = shortage.end();
        assert!(shortage.begin(now + Duration::from_secs(61)));
    }

    #[test]
    fn pauses_grow_and_stay_short_enough_to_notice_the_end() {
        assert_eq!((pause(1), pause(2), pause(1000)), (FIRST, FIRST * 2, LONGEST));
    }
}
