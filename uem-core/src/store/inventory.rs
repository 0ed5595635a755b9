//! What is kept of devices besides their records: what they told, and how they stand.

use std::future::Future;

use hedgerow_shared::{EntityId, TenantId};

use super::{Page, StoreError};
use crate::compliance::{Standing, Verdict};
use crate::inventory::{InstalledApp, Inventory, Told};

/// Storage of inventory and compliance; part of `Store`. As there, every method may be cancelled at any await.
pub trait InventoryStore: Send + Sync + 'static {
    /// What a device has told; `None`: nothing yet.
    fn inventory(
        &self,
        tenant: &TenantId,
        device: EntityId,
    ) -> impl Future<Output = Result<Option<Inventory>, StoreError>> + Send;
    /// Apps on a device with an identifier above `after`, in the order of identifiers, at most `limit` (and
    /// `inventory::MAX_APPS`).
    fn installed(
        &self,
        tenant: &TenantId,
        device: EntityId,
        after: &str,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<InstalledApp>, StoreError>> + Send;
    /// Devices that an app is on, by its identifier.
    fn devices_with(
        &self,
        tenant: &TenantId,
        identifier: &str,
        page: Page,
    ) -> impl Future<Output = Result<Vec<EntityId>, StoreError>> + Send;
    /// Replaces what a device told before by what it tells now, as a whole, on disk when this returns. Not audited, no new
    /// revision. What is older than what is there changes nothing (`inventory::replaces`, by which what a clock told that ran
    /// ahead does not stand in the way); neither does what an unknown device tells.
    fn tell(
        &self,
        tenant: &TenantId,
        device: EntityId,
        told: Told,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// How a device stands; `None`: it has never been judged.
    fn standing(
        &self,
        tenant: &TenantId,
        device: EntityId,
    ) -> impl Future<Output = Result<Option<Standing>, StoreError>> + Send;
    /// How devices stand, of one verdict or of all, in the order of their ids.
    fn standings(
        &self,
        tenant: &TenantId,
        verdict: Option<Verdict>,
        page: Page,
    ) -> impl Future<Output = Result<Vec<Standing>, StoreError>> + Send;
    /// How many devices stand in each way.
    fn verdicts(&self, tenant: &TenantId) -> impl Future<Output = Result<Vec<(Verdict, u64)>, StoreError>> + Send;
    /// Devices in quarantine that are not revoked, in the order of ids.
    fn quarantined(&self, tenant: &TenantId) -> impl Future<Output = Result<Vec<EntityId>, StoreError>> + Send;
}
