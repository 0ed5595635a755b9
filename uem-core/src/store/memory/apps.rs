//! Apps, in memory.

use std::collections::{BTreeMap, BTreeSet};

use hedgerow_shared::{EntityId, TenantId};

use super::{Memory, page};
use crate::app::{App, AppConfig, AppGroup, Assignment, Listing, Target};
use crate::group::{Principal, name_key};
use crate::profile::Platform;
use crate::store::{AppChange, AppStore, Page, StoreError};

/// Of one tenant.
#[derive(Default)]
pub(super) struct Kept {
    apps: BTreeMap<EntityId, App>,
    configs: BTreeMap<EntityId, AppConfig>,
    groups: BTreeMap<EntityId, AppGroup>,
    /// A group, and an app in it.
    members: BTreeSet<(EntityId, EntityId)>,
    assignments: BTreeMap<(Target, Principal), Assignment>,
    listings: BTreeSet<Listing>,
}

impl Kept {
    pub(super) fn change(&mut self, change: AppChange) {
        match change {
            AppChange::Put(app) => drop(self.apps.insert(app.id, app)),
            AppChange::Delete(id) => {
                self.apps.remove(&id);
                self.configs.retain(|_, config| config.app != id);
                self.members.retain(|(_, app)| *app != id);
                self.assignments.retain(|(target, _), _| *target != Target::App(id));
            }
            AppChange::PutConfig(config) => drop(self.configs.insert(config.id, config)),
            AppChange::DeleteConfig(id) => {
                self.configs.remove(&id);
                self.assignments.values_mut().filter(|a| a.config == Some(id)).for_each(|a| a.config = None);
            }
            AppChange::PutGroup(group) => drop(self.groups.insert(group.id, group)),
            AppChange::DeleteGroup(id) => {
                self.groups.remove(&id);
                self.members.retain(|(group, _)| *group != id);
                self.assignments.retain(|(target, _), _| *target != Target::Group(id));
            }
            AppChange::PutMember { group, app } => _ = self.members.insert((group, app)),
            AppChange::DeleteMember { group, app } => _ = self.members.remove(&(group, app)),
            AppChange::Assign(one) => _ = self.assignments.insert((one.target, one.holder), one),
            AppChange::Unassign { target, holder } => _ = self.assignments.remove(&(target, holder)),
            AppChange::List(listing) => _ = self.listings.insert(listing),
            AppChange::Unlist(listing) => _ = self.listings.remove(&listing),
        }
    }

    /// A group of users is removed.
    pub(super) fn forget(&mut self, holder: Principal) {
        self.assignments.retain(|(_, other), _| *other != holder);
    }
}

impl AppStore for Memory {
    async fn app(&self, tenant: &TenantId, id: EntityId) -> Result<Option<App>, StoreError> {
        self.read(tenant, |d| d.apps.apps.get(&id).cloned())
    }

    async fn app_by_identifier(
        &self,
        tenant: &TenantId,
        platform: Platform,
        identifier: &str,
    ) -> Result<Option<App>, StoreError> {
        self.read(tenant, |d| {
            d.apps.apps.values().find(|app| app.platform == platform && app.identifier == identifier).cloned()
        })
    }

    async fn apps(&self, tenant: &TenantId, p: Page) -> Result<Vec<App>, StoreError> {
        self.read(tenant, |d| page(d.apps.apps.iter(), p))
    }

    async fn count_apps(&self, tenant: &TenantId) -> Result<u64, StoreError> {
        self.read(tenant, |d| d.apps.apps.len() as u64)
    }

    async fn app_config(&self, tenant: &TenantId, id: EntityId) -> Result<Option<AppConfig>, StoreError> {
        self.read(tenant, |d| d.apps.configs.get(&id).cloned())
    }

    async fn app_configs(&self, tenant: &TenantId, app: EntityId) -> Result<Vec<AppConfig>, StoreError> {
        self.read(tenant, |d| {
            let mut of: Vec<_> = d.apps.configs.values().filter(|config| config.app == app).cloned().collect();
            of.sort_by_key(|config| (config.rank, config.id));
            of
        })
    }

    async fn app_group(&self, tenant: &TenantId, id: EntityId) -> Result<Option<AppGroup>, StoreError> {
        self.read(tenant, |d| d.apps.groups.get(&id).cloned())
    }

    async fn app_group_by_name(&self, tenant: &TenantId, key: &str) -> Result<Option<AppGroup>, StoreError> {
        self.read(tenant, |d| d.apps.groups.values().find(|group| name_key(&group.name) == key).cloned())
    }

    async fn app_groups(&self, tenant: &TenantId, p: Page) -> Result<Vec<AppGroup>, StoreError> {
        self.read(tenant, |d| page(d.apps.groups.iter(), p))
    }

    async fn apps_in_group(&self, tenant: &TenantId, group: EntityId) -> Result<Vec<App>, StoreError> {
        self.read(tenant, |d| {
            let ids = d.apps.members.iter().filter(|(other, _)| *other == group).map(|(_, app)| app);
            ids.filter_map(|id| d.apps.apps.get(id)).cloned().collect()
        })
    }

    async fn app_assignments_of(&self, tenant: &TenantId, holder: Principal) -> Result<Vec<Assignment>, StoreError> {
        self.read(tenant, |d| {
            let mut of: Vec<_> = d.apps.assignments.values().filter(|a| a.holder == holder).copied().collect();
            of.sort_by_key(|a| a.target.id());
            of
        })
    }

    async fn app_assignments(&self, tenant: &TenantId, target: Target) -> Result<Vec<Assignment>, StoreError> {
        self.read(tenant, |d| {
            let mut of: Vec<_> = d.apps.assignments.values().filter(|a| a.target == target).copied().collect();
            of.sort_by_key(|a| a.holder.id());
            of
        })
    }

    async fn listings(&self, tenant: &TenantId, platform: Option<Platform>) -> Result<Vec<Listing>, StoreError> {
        self.read(tenant, |d| {
            d.apps.listings.iter().filter(|l| platform.is_none_or(|p| l.platform == p)).cloned().collect()
        })
    }
}
