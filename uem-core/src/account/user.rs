//! People.

use hedgerow_shared::{EntityId, TenantId, UnixTime};
use serde::{Deserialize, Serialize};

use super::Email;

/// A local user.
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
}
