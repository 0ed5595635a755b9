//! A token bucket that is paid in advance and may run into debt: whoever takes more than is there is told how long to
//! wait, and those who come after wait behind them. Pure; time is an argument.

use std::time::{Duration, Instant};

/// A rate that is enforced; never zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    /// Bytes a second.
    pub(super) per_second: f64,
    /// Bytes that may be saved up.
    pub(super) burst: f64,
}

/// One direction of one account.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    /// Below zero: bytes promised that are not earned yet.
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst, at: now }
    }

    /// Takes `bytes`. How long to wait before they may be moved.
    pub(super) fn take(&mut self, bytes: u64, rate: Rate, now: Instant) -> Duration {
        self.refill(rate, now);
        self.tokens -= bytes as f64;
        if self.tokens >= 0.0 {
            return Duration::ZERO;
        }
        // Rates are at least a byte a second, and what is taken at once is bounded: no overflow, only patience.
        Duration::try_from_secs_f64(-self.tokens / rate.per_second).unwrap_or(Duration::MAX)
    }

    /// Puts back what was taken and not moved.
    pub(super) fn give_back(&mut self, bytes: u64, rate: Rate) {
        self.tokens = (self.tokens + bytes as f64).min(rate.burst);
    }

    /// Bytes promised that are not earned yet.
    pub(super) fn owes(&mut self, rate: Rate, now: Instant) -> u64 {
        self.refill(rate, now);
        // Rounded down: what is left of a byte is nobody's.
        (-self.tokens).max(0.0) as u64
    }

    /// Whether it remembers nothing: a new one would be the same.
    pub(super) fn is_full(&mut self, rate: Rate, now: Instant) -> bool {
        self.refill(rate, now);
        self.tokens >= rate.burst
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * rate.per_second;
        self.tokens = (self.tokens + earned).min(rate.burst);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { per_second: 1000.0, burst: 500.0 };

    #[test]
    fn a_burst_passes_and_those_who_come_after_wait_in_their_order() {
        let now = Instant::now();
        let mut bucket = Bucket::new(RATE, now);
        assert_eq!(bucket.take(500, RATE, now), Duration::ZERO);
        assert_eq!(bucket.take(100, RATE, now), Duration::from_millis(100));
        assert_eq!(bucket.take(100, RATE, now), Duration::from_millis(200), "behind the one before");
        assert_eq!(bucket.take(100, RATE, now + Duration::from_millis(250)), Duration::from_millis(50));
    }

    #[test]
    fn a_pause_saves_up_the_burst_and_no_more() {
        let now = Instant::now();
        let mut bucket = Bucket::new(RATE, now);
        bucket.take(500, RATE, now);
        assert!(!bucket.is_full(RATE, now + Duration::from_millis(499)));
        let later = now + Duration::from_secs(3600);
        assert!(bucket.is_full(RATE, later));
        assert_eq!(bucket.take(600, RATE, later), Duration::from_millis(100));
    }

    proptest! {
        /// Several flows, each of which waits as it is told before it moves and takes again: in no stretch of time
        /// moves more than burst and rate allow, beyond the one piece that straddles the beginning.
        #[test]
        fn no_stretch_of_time_carries_more_than_burst_and_rate(
            per_second in 100u32..10_000_000,
            burst in 1u32..5_000_000,
            flows in 1usize..12,
            pieces in prop::collection::vec((1u64..262_144, 0u64..2_000, 0u64..=100), 1..120),
        ) {
            let rate = Rate { per_second: f64::from(per_second), burst: f64::from(burst) };
            let start = Instant::now();
            let mut bucket = Bucket::new(rate, start);
            let mut free = vec![start; flows];
            let (mut moved, mut largest) = (Vec::new(), 0);
            for (bytes, pause, part) in pieces {
                // Whoever is free first is next: time does not run backwards.
                let next = (0..flows).min_by_key(|i| free[*i]).unwrap();
                let now = free[next] + Duration::from_micros(pause);
                let at = now + bucket.take(bytes, rate, now);
                let used = bytes * part / 100;
                bucket.give_back(bytes - used, rate);
                moved.push((at, used));
                largest = largest.max(bytes);
                free[next] = at;
            }
            moved.sort_unstable();
            for (i, (from, _)) in moved.iter().enumerate() {
                let mut sum = 0;
                for (until, bytes) in &moved[i..] {
                    sum += bytes;
                    let allowed = rate.burst + (*until - *from).as_secs_f64() * rate.per_second + largest as f64;
                    // What a flow gave back late shifts those who were told to wait for it.
                    let slack = flows as f64 * largest as f64;
                    prop_assert!(sum as f64 <= allowed + slack + 1.0, "{sum} of {allowed}");
                }
            }
        }

        #[test]
        fn what_is_given_back_was_never_taken(taken in 1u64..1_000_000, later in 0u64..10_000) {
            let now = Instant::now();
            let (mut bucket, mut same) = (Bucket::new(RATE, now), Bucket::new(RATE, now));
            bucket.take(taken, RATE, now);
            bucket.give_back(taken, RATE);
            let then = now + Duration::from_millis(later);
            prop_assert_eq!(bucket.take(700, RATE, then), same.take(700, RATE, then));
        }

        #[test]
        fn nobody_waits_longer_than_what_was_taken_before_them_costs(
            takes in prop::collection::vec((1u64..100_000, 0u64..1000), 1..60),
        ) {
            let mut now = Instant::now();
            let mut bucket = Bucket::new(RATE, now);
            let mut taken = 0;
            for (bytes, pause) in takes {
                now += Duration::from_millis(pause);
                taken += bytes;
                let most = taken as f64 / RATE.per_second;
                prop_assert!(bucket.take(bytes, RATE, now).as_secs_f64() <= most + 1e-6);
            }
        }

        #[test]
        fn a_clock_that_steps_back_gives_nothing(back in 0u64..100_000) {
            let now = Instant::now() + Duration::from_secs(1000);
            let mut bucket = Bucket::new(RATE, now);
            bucket.take(500, RATE, now);
            bucket.take(1, RATE, now - Duration::from_millis(back));
            prop_assert_eq!(bucket.take(99, RATE, now), Duration::from_millis(100));
        }
    }
}
