//! Since when devices could have spoken with this core.
//!
//! Silence of devices counts from then: while the process was not there, no relay was reached, the storage did not answer,
//! or the clock was wrong, they could not be heard.

use std::time::{Duration, Instant};

use hedgerow_shared::UnixTime;

/// How far the calendar clock may stray from the one that never jumps, seconds: rules count in hours.
const ASTRAY_SECONDS: u64 = 3600;
/// An interruption that is no longer is none: relays are restarted, links move.
const BLINK: Duration = Duration::from_secs(25 * 60);

/// What the clocks show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clocks {
    /// The calendar's.
    pub wall: UnixTime,
    /// The one that never jumps.
    pub steady: Instant,
}

/// The calendar clock jumped, or the machine slept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Jumped {
    /// Seconds that the calendar clock says have gone by, 0 when it went back,
    pub wall: u64,
    /// and those that have.
    pub steady: u64,
}

/// Since when, without interruption.
#[derive(Debug)]
pub(crate) struct Availability {
    /// When it began. Clocks are compared from here on, so that many small jumps are one large one.
    begun: Clocks,
    /// When a device could be heard last.
    heard: Instant,
}

impl Availability {
    /// It begins now.
    pub(crate) fn begin(now: Clocks) -> Self {
        Self { begun: now, heard: now.steady }
    }

    /// Since when devices can be heard, told whether they can at this moment; it begins anew after an interruption.
    ///
    /// # Errors
    /// The clock is another than before: nothing is to be concluded from it now, and availability begins anew.
    pub(crate) fn since(&mut self, now: Clocks, can_be_heard: bool) -> Result<UnixTime, Jumped> {
        let steady = now.steady.saturating_duration_since(self.begun.steady).as_secs();
        let expected = self.begun.wall.plus(steady);
        if now.wall.since(expected).max(expected.since(now.wall)) > ASTRAY_SECONDS {
            let jumped = Jumped { wall: now.wall.since(self.begun.wall), steady };
            *self = Self::begin(now);
            return Err(jumped);
        }
        if now.steady.saturating_duration_since(self.heard) > BLINK {
            *self = Self::begin(now);
        }
        if can_be_heard {
            self.heard = now.steady;
        }
        Ok(self.begun.wall)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const ROUND: u64 = 600;

    /// Clocks after some rounds, the calendar's off by seconds.
    fn at(begin: Clocks, rounds: u64, off: i64) -> Clocks {
        let wall = UnixTime(begin.wall.plus(rounds * ROUND).0.saturating_add_signed(off));
        Clocks { wall, steady: begin.steady + Duration::from_secs(rounds * ROUND) }
    }

    fn begin() -> Clocks {
        Clocks { wall: UnixTime(1_800_000_000), steady: Instant::now() }
    }

    #[test]
    fn a_clock_that_jumps_begins_availability_anew() {
        for off in [366 * 24 * 3600, -366 * 24 * 3600, 3601, -3601] {
            let begin = begin();
            let mut available = Availability::begin(begin);
            assert_eq!(available.since(at(begin, 1, 0), true), Ok(begin.wall));
            assert_eq!(available.since(at(begin, 2, 60), true), Ok(begin.wall), "a clock is set right now and then");
            available.since(at(begin, 3, off), true).unwrap_err();
            assert_eq!(available.since(at(begin, 4, off), true), Ok(at(begin, 3, off).wall));
        }
    }

    #[test]
    fn many_small_jumps_are_one_large_one() {
        let begin = begin();
        let mut available = Availability::begin(begin);
        available.since(at(begin, 1, 1800), true).unwrap();
        available.since(at(begin, 2, 3600), true).unwrap();
        available.since(at(begin, 3, 5400), true).unwrap_err();
    }

    #[test]
    fn a_core_that_no_device_reaches_is_not_available() {
        let begin = begin();
        let mut available = Availability::begin(begin);
        assert_eq!(available.since(at(begin, 1, 0), true), Ok(begin.wall));
        for rounds in [2, 3] {
            assert_eq!(available.since(at(begin, rounds, 0), false), Ok(begin.wall), "a blink");
        }
        assert_eq!(available.since(at(begin, 4, 0), false), Ok(at(begin, 4, 0).wall));
        assert_eq!(available.since(at(begin, 5, 0), true), Ok(at(begin, 4, 0).wall));
    }
}
