//! What reports ask of storage.

use std::future::Future;

use hedgerow_shared::{TenantId, UnixTime};

use super::{Page, StoreError};
use crate::audit;
use crate::report::{AuditQuery, Count, DevicesBy, Quiet};

/// Storage of what reports look at; part of `Store`. As there, every method may be cancelled at any await.
pub trait ReportStore: Send + Sync + 'static {
    /// Audit records that match, in the order of time and number, at most `Page::MAX`.
    fn find_audit(
        &self,
        tenant: &TenantId,
        query: &AuditQuery,
    ) -> impl Future<Output = Result<Vec<audit::Record>, StoreError>> + Send;
    /// How many records of each action there are from a moment until another, the largest counts first, at most
    /// `report::MAX_GROUPS`.
    fn count_audit(
        &self,
        tenant: &TenantId,
        from: UnixTime,
        until: UnixTime,
    ) -> impl Future<Output = Result<Vec<Count>, StoreError>> + Send;
    /// How many devices there are of each kind, the largest counts first, at most `report::MAX_GROUPS`.
    fn count_devices(
        &self,
        tenant: &TenantId,
        by: DevicesBy,
    ) -> impl Future<Output = Result<Vec<Count>, StoreError>> + Send;
    /// How many active devices were seen at or after a moment.
    fn count_seen(&self, tenant: &TenantId, since: UnixTime) -> impl Future<Output = Result<u64, StoreError>> + Send;
    /// Active devices that were seen before a moment, or never, in the order of ids.
    fn quiet(
        &self,
        tenant: &TenantId,
        before: UnixTime,
        page: Page,
    ) -> impl Future<Output = Result<Vec<Quiet>, StoreError>> + Send;
}
