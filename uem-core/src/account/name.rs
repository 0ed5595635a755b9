//! Server names whose clients the relays pass through, unopened, to the tenant.

use hedgerow_shared::{Origin, TenantId, UnixTime};
use serde::{Deserialize, Serialize};

/// One name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerName {
    /// Whose.
    pub tenant: TenantId,
    /// Lower case, as `RegisteredName::check` wants it.
    pub name: String,
    /// What serves it: `gateway`, `mdm` or `core`.
    pub origin: Origin,
    /// When it was added.
    pub created: UnixTime,
}
