//! Profiles: named settings of one category, ranked, assigned to users and groups.

mod activation;
mod category;
mod compliance;
mod connectivity;
mod effective;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use hedgerow_shared::{EntityId, TenantId, UnixTime};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use activation::{Activation, ActivationType, Bar, Barred};
pub use category::{Category, Platform};
pub use compliance::{Compliance, Hardware, Listed};
pub use connectivity::Connectivity;
pub use effective::{Assigned, Effective, Passed, Reason, effective};

use crate::CoreError;

/// Largest settings of a profile, bytes of JSON.
pub const MAX_SETTINGS: usize = 64 * 1024;
/// Profiles of one category that a tenant may have, and that a user or group may have assigned.
pub const MAX_PROFILES: usize = 1000;

/// A profile, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Whose.
    pub tenant: TenantId,
    /// Which one.
    pub id: EntityId,
    /// About what.
    pub category: Category,
    /// Unique in the category, whatever its case.
    pub name: String,
    /// For people.
    pub description: String,
    /// Its place in the category, from 1, the first to win; unique in the category.
    pub rank: u32,
    /// Has effect where none of the category is assigned; one a category at most.
    pub default: bool,
    /// Platforms on which it is not there.
    pub disabled: BTreeSet<Platform>,
    /// What it sets: a JSON object, checked by `check_settings`.
    pub settings: Map<String, Value>,
    /// Since when the record exists.
    pub created: UnixTime,
    /// When it was changed last.
    pub modified: UnixTime,
}

/// Checks what a profile of the category is to set: its size, and its form where the core itself acts on it.
///
/// # Errors
/// `Invalid`, with what is wrong.
pub fn check_settings(category: Category, settings: &Map<String, Value>) -> Result<(), CoreError> {
    let size = serde_json::to_string(settings).map_or(usize::MAX, |text| text.len());
    if size > MAX_SETTINGS {
        return Err(CoreError::invalid("the settings", format!("{size} bytes; at most {MAX_SETTINGS} are kept")));
    }
    match category {
        Category::Activation => Activation::read(settings).map(drop),
        Category::Compliance => Compliance::read(settings).map(drop),
        Category::EnterpriseConnectivity => Connectivity::read(settings).map(drop),
        _ => Ok(()),
    }
}

/// Reads what the core acts on. A fault names the setting, as in `rules.osVersion.minimum`.
fn read<T: DeserializeOwned>(what: &'static str, settings: &Map<String, Value>) -> Result<T, CoreError> {
    serde_path_to_error::deserialize(Value::Object(settings.clone()))
        .map_err(|error| CoreError::invalid(what, error.to_string()))
}
