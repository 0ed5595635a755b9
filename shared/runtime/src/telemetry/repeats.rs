//! Keeps a line that comes hundreds of times a second from drowning the others: of each WARN or ERROR line in the
//! source, so many pass in each window; the rest is counted and noted once afterwards.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Lines of one place that pass in a window: enough to see a pattern.
const BURST: u32 = 20;
/// The window; also how often `boot` calls `note_repeats`.
pub(crate) const WINDOW: Duration = Duration::from_secs(10);
/// The metric of what was left out.
pub(super) const SUPPRESSED: &str = "hedgerow_log_suppressed_total";

static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// The layer. The map holds one entry a place in the source, so it is bounded by the program; the lock is held for
/// a look-up, and only for WARN and ERROR.
#[derive(Debug, Default)]
pub(super) struct Limit {
    seen: Mutex<HashMap<Identifier, (Instant, u32)>>,
}

impl Limit {
    fn passes(&self, place: Identifier, now: Instant) -> bool {
        let mut seen = self.seen.lock();
        let (since, count) = seen.entry(place).or_insert((now, 0));
        if now.duration_since(*since) >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= BURST
    }
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        if *event.metadata().level() > Level::WARN {
            return true;
        }
        let passes = self.passes(event.metadata().callsite(), Instant::now());
        if !passes {
            LEFT_OUT.fetch_add(1, Ordering::Relaxed);
            metrics::counter!(SUPPRESSED).increment(1);
        }
        passes
    }
}

/// Logs how many lines were left out since the last call, if any.
pub fn note_repeats() {
    let lines = LEFT_OUT.swap(0, Ordering::Relaxed);
    if lines > 0 {
        tracing::info!(lines, "repeated log lines were left out");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_cut_and_its_end_is_seen() {
        let limit = Limit::default();
        let place = || tracing::callsite::Identifier(&PLACE);
        let start = Instant::now();
        let passed = (0..100).filter(|_| limit.passes(place(), start)).count();
        assert_eq!(passed, BURST as usize);
        assert!(limit.passes(place(), start + WINDOW));
    }

    struct Place;
    static PLACE: Place = Place;
    impl tracing::callsite::Callsite for Place {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}
        fn metadata(&self) -> &tracing::Metadata<'_> {
            unreachable!("the limit compares places only")
        }
    }
}
