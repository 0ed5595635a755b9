//! The one place that reads the calendar clock; pure crates get its value as an argument.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hedgerow_shared::UnixTime;

/// Now. A clock set before 1970 reads as 0, which makes every certificate "not yet valid": closed, not open.
#[must_use]
pub fn now() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
}

/// The time that never jumps, of the same clock as every timer of the runtime: a test that moves that one moves all.
#[must_use]
pub fn monotonic() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Anything from half of `most` to all of it, so that those who lost the same thing do not come back in step.
#[must_use]
pub fn jitter(most: std::time::Duration) -> std::time::Duration {
    let dice = f64::from(u32::from_be_bytes(random())) / f64::from(u32::MAX);
    most.mul_f64(0.5 + dice / 2.0)
}

/// Random bytes from the system.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::RngCore::fill_bytes(&mut rand::rngs::OsRng.unwrap_err(), &mut bytes);
    bytes
}

use rand::TryRngCore;
