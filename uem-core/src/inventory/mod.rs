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
