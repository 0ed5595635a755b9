//! Administrators and roles, in memory.

use std::collections::BTreeMap;

use hedgerow_shared::{EntityId, TenantId};

use super::Memory;
use crate::account::{User, UserSource};
use crate::admin::{Admin, Role, RoleId};
use crate::store::{AdminChange, AdminStore, StoreError};

/// Of one tenant.
#[derive(Default)]
pub(super) struct Kept {
    admins: BTreeMap<EntityId, Admin>,
    roles: BTreeMap<EntityId, Role>,
}

impl Kept {
    pub(super) fn change(&mut self, change: AdminChange) {
        match change {
            AdminChange::Put(admin) => drop(self.admins.insert(admin.user, admin)),
            AdminChange::Delete(user) => drop(self.admins.remove(&user)),
            AdminChange::PutRole(role) => {
                if let RoleId::Custom(id) = role.id {
                    self.roles.insert(id, role);
                }
            }
            AdminChange::DeleteRole(id) => drop(self.roles.remove(&id)),
        }
    }
}

impl AdminStore for Memory {
    async fn admin(&self, tenant: &TenantId, user: EntityId) -> Result<Option<Admin>, StoreError> {
        self.read(tenant, |d| d.admins.admins.get(&user).cloned())
    }

    async fn admins(&self, tenant: &TenantId) -> Result<Vec<Admin>, StoreError> {
        self.read(tenant, |d| d.admins.admins.values().cloned().collect())
    }

    async fn role(&self, tenant: &TenantId, id: EntityId) -> Result<Option<Role>, StoreError> {
        self.read(tenant, |d| d.admins.roles.get(&id).cloned())
    }

    async fn roles(&self, tenant: &TenantId) -> Result<Vec<Role>, StoreError> {
        self.read(tenant, |d| d.admins.roles.values().cloned().collect())
    }

    async fn user_by_external(
        &self,
        tenant: &TenantId,
        directory: EntityId,
        external: &str,
    ) -> Result<Option<User>, StoreError> {
        let source = UserSource::Directory { directory, external: external.to_owned() };
        self.read(tenant, |d| d.users.values().find(|user| user.source == source).cloned())
    }
}
