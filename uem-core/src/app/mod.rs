//! Apps: the catalogue, groups of apps, configurations, assignments, lists; and which of them a device is to have.
//!
//! ```text
//!   App ◄── AppGroup          Assignment: App or AppGroup ──► user or group, required | optional | denied
//!    └── AppConfig                          └── with an AppConfig of the app
//!   Listing: identifiers that are restricted (must not be installed) or approved (only these may be)
//! ```

mod compare;
mod effective;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use hedgerow_shared::{EntityId, TenantId, UnixTime};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use compare::compare;
pub use effective::{Assigned, EffectiveApp, Passed, Through, effective};

use crate::CoreError;
use crate::group::Principal;
use crate::profile::Platform;

/// Apps of a tenant's catalogue.
pub const MAX_CATALOGUE: u64 = 10_000;
/// Apps of one group of apps.
pub const MAX_IN_GROUP: usize = 500;
/// Configurations of one app.
pub const MAX_CONFIGS: usize = 100;
/// What one user or group may have assigned.
pub const MAX_ASSIGNED: usize = 500;
/// Identifiers on one list of a platform.
pub const MAX_LISTED: usize = 5000;
/// Versions that an app may have in the catalogue.
pub const MAX_VERSIONS: usize = 20;
/// Longest identifier, version, and reference to a source, characters.
pub const MAX_TEXT: usize = 255;
/// Largest settings of a configuration, bytes of JSON.
pub const MAX_CONFIG: usize = 32 * 1024;

/// An app of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Whose.
    pub tenant: TenantId,
    /// Which one.
    pub id: EntityId,
    /// On which platform.
    pub platform: Platform,
    /// What devices know it by: package id, bundle id, package name. Unique on its platform.
    pub identifier: String,
    /// For people.
    pub name: String,
    /// Who makes it.
    pub vendor: String,
    /// Versions that are there, the newest first; none: whatever the store has.
    pub versions: Vec<String>,
    /// Where it comes from.
    pub source: Source,
    /// Since when the record exists.
    pub created: UnixTime,
    /// When it was changed last.
    pub modified: UnixTime,
}

/// Where an app comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", content = "at", rename_all = "lowercase")]
pub enum Source {
    /// The platform's store or repository; where in it, if that is to be said.
    Store(String),
    /// A file of the organisation's own, by its reference.
    File(String),
}

/// Named settings for an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppConfig {
    /// Whose.
    pub tenant: TenantId,
    /// Which one.
    pub id: EntityId,
    /// Of which app.
    pub app: EntityId,
    /// Unique in the app, whatever its case.
    pub name: String,
    /// Its place among the app's, from 1, the first to win; unique in the app.
    pub rank: u32,
    /// Keys and values: a JSON object.
    pub settings: Map<String, Value>,
}

/// A group of apps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppGroup {
    /// Whose.
    pub tenant: TenantId,
    /// Which one.
    pub id: EntityId,
    /// Unique in the tenant, whatever its case.
    pub name: String,
    /// For people.
    pub description: String,
    /// Since when the record exists.
    pub created: UnixTime,
}

/// What is to be with an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Disposition {
    /// It must not be there.
    Denied,
    /// It must be there.
    Required,
    /// It may be there.
    Optional,
}

impl Disposition {
    /// All there are; of two assignments alike the first counts.
    pub const ALL: [Self; 3] = [Self::Denied, Self::Required, Self::Optional];

    /// As on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Required => "required",
            Self::Optional => "optional",
        }
    }
}

impl fmt::Display for Disposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Disposition {
    type Err = CoreError;

    fn from_str(text: &str) -> Result<Self, CoreError> {
        Self::ALL.into_iter().find(|d| d.as_str().eq_ignore_ascii_case(text.trim())).ok_or_else(|| {
            CoreError::invalid("the disposition", format!("there are {}", Self::ALL.map(Self::as_str).join(", ")))
        })
    }
}

/// What is assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", content = "id", rename_all = "snake_case")]
pub enum Target {
    /// An app.
    App(EntityId),
    /// Every app of a group.
    Group(EntityId),
}

impl Target {
    /// The app's or the group's.
    #[must_use]
    pub fn id(self) -> EntityId {
        match self {
            Self::App(id) | Self::Group(id) => id,
        }
    }

    /// As it is stored.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::App(_) => "app",
            Self::Group(_) => "group",
        }
    }
}

/// That somebody is to have apps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Assignment {
    /// What; one assignment for each holder.
    pub target: Target,
    /// Who.
    pub holder: Principal,
    /// What is to be with it.
    pub disposition: Disposition,
    /// With which configuration; of an app alone.
    pub config: Option<EntityId>,
}

/// Which list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum List {
    /// Must not be installed.
    Restricted,
    /// Where there is one on a platform, nothing else may be installed but what is assigned.
    Approved,
}

impl List {
    /// As on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Restricted => "restricted",
            Self::Approved => "approved",
        }
    }
}

impl FromStr for List {
    type Err = CoreError;

    fn from_str(text: &str) -> Result<Self, CoreError> {
        [Self::Restricted, Self::Approved]
            .into_iter()
            .find(|list| list.as_str().eq_ignore_ascii_case(text.trim()))
            .ok_or_else(|| CoreError::invalid("the list", "there are restricted, approved"))
    }
}

/// An entry of a list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listing {
    /// Which list.
    pub list: List,
    /// Of which platform.
    pub platform: Platform,
    /// An identifier, or the begin of identifiers with `*` behind it.
    pub identifier: String,
}

/// Checks an identifier, version or reference: 1 to `MAX_TEXT` characters, none of them a control character or space.
pub(crate) fn text(what: &'static str, text: &str) -> Result<String, CoreError> {
    let text = text.trim();
    let fits = (1..=MAX_TEXT).contains(&text.chars().count());
    if fits && !text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Ok(text.to_owned());
    }
    Err(CoreError::invalid(what, format!("use 1 to {MAX_TEXT} characters, without spaces")))
}
