//! Inventory and compliance, in memory.

use std::collections::BTreeMap;

use hedgerow_shared::{EntityId, TenantId};

use super::{Memory, page};
use crate::account::DeviceState;
use crate::compliance::{Standing, Verdict};
use crate::inventory::{InstalledApp, Inventory, MAX_APPS, Told, replaces};
use crate::store::{InventoryStore, Page, StoreError};

/// Of one tenant.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) inventory: BTreeMap<EntityId, Inventory>,
    pub(super) apps: BTreeMap<EntityId, Vec<InstalledApp>>,
    pub(super) standings: BTreeMap<EntityId, Standing>,
}

impl InventoryStore for Memory {
    async fn inventory(&self, tenant: &TenantId, device: EntityId) -> Result<Option<Inventory>, StoreError> {
        self.read(tenant, |d| d.told.inventory.get(&device).cloned())
    }

    async fn installed(
        &self,
        tenant: &TenantId,
        device: EntityId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<InstalledApp>, StoreError> {
        self.read(tenant, |d| {
            let of = d.told.apps.get(&device).into_iter().flatten();
            of.filter(|app| app.identifier.as_str() > after).take((limit as usize).min(MAX_APPS)).cloned().collect()
        })
    }

    async fn devices_with(&self, tenant: &TenantId, identifier: &str, p: Page) -> Result<Vec<EntityId>, StoreError> {
        self.read(tenant, |d| {
            let has = |apps: &&Vec<InstalledApp>| apps.iter().any(|app| app.identifier == identifier);
            let ids: BTreeMap<_, _> =
                d.told.apps.iter().filter(|(_, apps)| has(apps)).map(|(device, _)| (*device, *device)).collect();
            page(ids.iter(), p)
        })
    }

    async fn tell(&self, tenant: &TenantId, device: EntityId, told: Told) -> Result<(), StoreError> {
        let mut tenants = self.lock();
        let Some(data) = tenants.get_mut(tenant).filter(|d| d.devices.contains_key(&device)) else { return Ok(()) };
        let inventory = data.told.inventory.entry(device).or_default();
        match told {
            Told::Attributes(new) => {
                if replaces(new.told, inventory.attributes.as_ref().map(|old| old.told)) {
                    inventory.attributes = Some(new);
                }
            }
            Told::Apps { told, apps } => {
                if replaces(told, inventory.apps_told) {
                    inventory.apps_told = Some(told);
                    inventory.apps = u32::try_from(apps.len()).unwrap_or(u32::MAX);
                    data.told.apps.insert(device, apps);
                }
            }
        }
        Ok(())
    }

    async fn standing(&self, tenant: &TenantId, device: EntityId) -> Result<Option<Standing>, StoreError> {
        self.read(tenant, |d| d.told.standings.get(&device).cloned())
    }

    async fn standings(
        &self,
        tenant: &TenantId,
        verdict: Option<Verdict>,
        p: Page,
    ) -> Result<Vec<Standing>, StoreError> {
        self.read(tenant, |d| page(d.told.standings.iter().filter(|(_, s)| verdict.is_none_or(|v| s.verdict == v)), p))
    }

    async fn verdicts(&self, tenant: &TenantId) -> Result<Vec<(Verdict, u64)>, StoreError> {
        self.read(tenant, |d| {
            let mut counts = BTreeMap::new();
            d.told.standings.values().for_each(|s| *counts.entry(s.verdict).or_insert(0) += 1);
            counts.into_iter().collect()
        })
    }

    async fn quarantined(&self, tenant: &TenantId) -> Result<Vec<EntityId>, StoreError> {
        self.read(tenant, |d| {
            let live = |id: &EntityId| d.devices.get(id).is_some_and(|device| device.state == DeviceState::Active);
            d.told.standings.values().filter(|s| s.quarantined && live(&s.device)).map(|s| s.device).collect()
        })
    }
}
