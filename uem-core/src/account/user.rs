//! People.

use hedgerow_shared::{EntityId, TenantId, UnixTime};
use serde::{Deserialize, Serialize};

use super::Email;

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Whose user.
    pub tenant: TenantId,
    /// Which one.
    pub id: EntityId,
    /// Unique in the tenant.
    pub email: Email,
    /// For people.
    pub display_name: String,
    /// An inactive user cannot activate, and their devices count as revoked while it lasts.
    pub active: bool,
    /// Since when the record exists.
    pub created: UnixTime,
    /// Where the record comes from.
    #[serde(default)]
    pub source: UserSource,
}

/// Where a user's record comes from, and who checks their password.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "lowercase")]
pub enum UserSource {
    /// This core.
    #[default]
    Local,
    /// A directory of the organisation; unique in the tenant.
    Directory {
        /// Which.
        directory: EntityId,
        /// What the directory knows them by: an object's GUID, an immutable id.
        external: String,
    },
}
