//! Looking into the audit record and over all devices.

use hedgerow_shared::{TenantId, UnixTime};

use super::Core;
use crate::report::{AuditQuery, Count, DevicesBy, Quiet};
use crate::store::{Page, Store};
use crate::{CoreError, audit};

impl<S: Store> Core<S> {
    /// Audit records that match, in the order of time and number, at most `query.limit` (and `Page::MAX`).
    ///
    /// # Errors
    /// `Store`.
    pub async fn find_audit(&self, tenant: &TenantId, query: &AuditQuery) -> Result<Vec<audit::Record>, CoreError> {
        self.store.find_audit(tenant, query).await.map_err(CoreError::Store)
    }

    /// How often each action was done from a moment until another, the most frequent first.
    ///
    /// # Errors
    /// `Store`.
    pub async fn count_audit(
        &self,
        tenant: &TenantId,
        from: UnixTime,
        until: UnixTime,
    ) -> Result<Vec<Count>, CoreError> {
        self.store.count_audit(tenant, from, until).await.map_err(CoreError::Store)
    }

    /// How many devices there are of each kind, the largest counts first.
    ///
    /// # Errors
    /// `Store`.
    pub async fn count_devices(&self, tenant: &TenantId, by: DevicesBy) -> Result<Vec<Count>, CoreError> {
        self.store.count_devices(tenant, by).await.map_err(CoreError::Store)
    }

    /// How many active devices were seen at or after a moment.
    ///
    /// # Errors
    /// `Store`.
    pub async fn count_seen(&self, tenant: &TenantId, since: UnixTime) -> Result<u64, CoreError> {
        self.store.count_seen(tenant, since).await.map_err(CoreError::Store)
    }

    /// Active devices that were seen before a moment, or never, in the order of ids.
    ///
    /// # Errors
    /// `Store`.
    pub async fn quiet_devices(
        &self,
        tenant: &TenantId,
        before: UnixTime,
        page: Page,
    ) -> Result<Vec<Quiet>, CoreError> {
        self.store.quiet(tenant, before, page).await.map_err(CoreError::Store)
    }
}
