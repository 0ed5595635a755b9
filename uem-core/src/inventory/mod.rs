//! What a device tells of itself: what it is (`Attributes`), and which apps are on it (`InstalledApp`).
//!
//! It comes in answers to commands, `REQUEST_DEVICE_INFO` and `LIST_APPLICATIONS`. A device may tell anything: what is not
//! of the expected form is left out, texts are cut, lists have a bound. The newest telling counts as a whole.

mod apps;
mod attributes;

use hedgerow_shared::UnixTime;
use serde::{Deserialize, Serialize};

pub use apps::{InstalledApp, MAX_APPS, read_apps};
pub use attributes::Attributes;

/// What was told so much later than now, seconds, was told by a clock that ran ahead, and is replaced by what is told now;
/// what is less ahead came in while this was on its way, from a core whose clock is a little off.
pub const AHEAD_SECONDS: u64 = 600;

/// Whether what was told at one time is replaced by what is told at another.
#[must_use]
pub fn replaces(new: UnixTime, old: Option<UnixTime>) -> bool {
    old.is_none_or(|old| old <= new || old > new.plus(AHEAD_SECONDS))
}

/// What is kept of one device, its apps apart from their number.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Inventory {
    /// What it is; `None` until it has told.
    pub attributes: Option<Attributes>,
    /// How many apps are on it.
    pub apps: u32,
    /// When it told them; `None` until it has.
    pub apps_told: Option<UnixTime>,
    /// When the core last asked it by itself.
    pub asked: Option<UnixTime>,
}

/// What a device has told just now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "short-lived, one per answer")]
pub enum Told {
    /// What it is.
    Attributes(Attributes),
    /// Every app that is on it, in the order of identifiers, each once.
    Apps {
        /// When.
        told: UnixTime,
        /// Which.
        apps: Vec<InstalledApp>,
    },
}
