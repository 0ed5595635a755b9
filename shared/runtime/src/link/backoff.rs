//! How long to wait before a relay is dialled again, so that one relay's diallers come back soon and yet spread out.
//!
//! *Always* the pause doubles with every failure, with full jitter. *For a while after a link was lost*, and as long as
//! nobody answers at all, it stays short: an attempt costs a relay that is not there nothing, and its sessions wait for
//! 30 s only. A relay that answers and then fails, or refuses, may be one that too many dial: the doubled pause counts.

use std::time::Duration;

use hedgerow_shared::fault::{Code, Fault};
use tokio::time::Instant;

use crate::clock::random;

/// The first pause after a link was lost; it doubles, with full jitter, up to `LONGEST`.
const FIRST: Duration = Duration::from_millis(200);
/// The longest pause: a relay that comes back is used again within this time.
const LONGEST: Duration = Duration::from_secs(10);
/// The longest pause while a link was lost lately and nobody answers: with an attempt over UDP that is given up after
/// about a second, a relay that comes back is found within one and a half.
const LONGEST_SOON: Duration = Duration::from_millis(750);
/// A link that lived this long resets the backoff.
const STABLE: Duration = Duration::from_secs(10);

/// The pauses of one dialler.
#[derive(Debug)]
pub(super) struct Backoff {
    attempt: u32,
    /// A link was lost; its sessions wait so long to be resumed.
    soon_until: Option<Instant>,
    /// How long sessions wait.
    resume: Duration,
}

impl Backoff {
    pub(super) fn new(resume: Duration) -> Self {
        Self { attempt: 0, soon_until: None, resume }
    }

    /// A link that lived so long has ended: how long to wait.
    pub(super) fn lost(&mut self, lived: Duration, now: Instant) -> Duration {
        if lived > STABLE {
            self.attempt = 0;
        }
        self.soon_until = Some(now + self.resume);
        self.next(LONGEST)
    }

    /// An attempt has failed: how long to wait.
    pub(super) fn failed(&mut self, fault: &Fault, now: Instant) -> Duration {
        let nobody = matches!(fault.code, Code::ConnectionRefused | Code::Unreachable | Code::TimedOut);
        let soon = nobody && self.soon_until.is_some_and(|until| now < until);
        self.next(if soon { LONGEST_SOON } else { LONGEST })
    }

    /// Full jitter: anything from nothing to the doubled limit, so that a crowd comes back spread out.
    fn next(&mut self, longest: Duration) -> Duration {
        let most = FIRST.saturating_mul(1 << self.attempt.min(10)).min(longest);
        self.attempt = self.attempt.saturating_add(1);
        let dice = u64::from_be_bytes(random()) as f64 / u64::MAX as f64;
        most.mul_f64(dice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESUME: Duration = Duration::from_secs(30);

    /// The longest of many pauses after `n` failures of this kind.
    fn longest(n: u32, code: Code, since_loss: Option<Duration>) -> Duration {
        let now = Instant::now();
        let pause = |_| {
            let mut backoff = Backoff::new(RESUME);
            if let Some(ago) = since_loss {
                backoff.lost(Duration::ZERO, now - ago);
            }
            (0..n).map(|_| backoff.failed(&Fault::new(code, ""), now)).last().unwrap_or_default()
        };
        (0..400).map(pause).max().unwrap_or_default()
    }

    #[test]
    fn pauses_grow_to_a_limit_and_differ() {
        assert!(longest(1, Code::Lost, None) <= FIRST);
        let late = longest(20, Code::Lost, None);
        assert!(late <= LONGEST && late > LONGEST / 2, "{late:?}");
        let mut backoff = Backoff::new(RESUME);
        let spread: std::collections::BTreeSet<_> =
            (0..50).map(|_| backoff.failed(&Fault::new(Code::Lost, ""), Instant::now())).collect();
        assert!(spread.len() > 40);
        assert!(backoff.lost(STABLE * 2, Instant::now()) <= FIRST, "a link that lasted makes it begin anew");
    }

    #[test]
    fn a_relay_that_was_here_and_is_silent_is_asked_often_for_a_while_and_one_that_answers_is_not() {
        let lately = Some(Duration::from_secs(5));
        for silent in [Code::ConnectionRefused, Code::TimedOut, Code::Unreachable] {
            assert!(longest(20, silent, lately) <= LONGEST_SOON);
            assert!(longest(20, silent, Some(RESUME)) > LONGEST / 2, "its sessions are over");
            assert!(longest(20, silent, None) > LONGEST / 2, "it was never here");
        }
        // One that breaks off or refuses is there, and may have too much to do.
        for busy in [Code::Lost, Code::Limited, Code::Draining] {
            assert!(longest(20, busy, lately) > LONGEST / 2);
        }
    }
}
