//! What is kept of administrators and roles.

use std::future::Future;

use hedgerow_shared::{EntityId, TenantId};

use super::StoreError;
use crate::account::User;
use crate::admin::{Admin, Role};

/// A change of administrators and roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminChange {
    /// Adds or replaces an administrator.
    Put(Admin),
    /// A user is no administrator any more.
    Delete(EntityId),
    /// Adds or replaces a role of the organisation's own.
    PutRole(Role),
    /// Removes one.
    DeleteRole(EntityId),
}

/// Storage of administrators; part of `Store`. As there, every method may be cancelled at any await.
pub trait AdminStore: Send + Sync + 'static {
    /// The administrator that a user is.
    fn admin(
        &self,
        tenant: &TenantId,
        user: EntityId,
    ) -> impl Future<Output = Result<Option<Admin>, StoreError>> + Send;
    /// Administrators, in the order of users' ids.
    fn admins(&self, tenant: &TenantId) -> impl Future<Output = Result<Vec<Admin>, StoreError>> + Send;
    /// One role of the organisation's own.
    fn role(&self, tenant: &TenantId, id: EntityId) -> impl Future<Output = Result<Option<Role>, StoreError>> + Send;
    /// Roles of the organisation's own, in the order of ids.
    fn roles(&self, tenant: &TenantId) -> impl Future<Output = Result<Vec<Role>, StoreError>> + Send;
    /// The user that a directory knows by this.
    fn user_by_external(
        &self,
        tenant: &TenantId,
        directory: EntityId,
        external: &str,
    ) -> impl Future<Output = Result<Option<User>, StoreError>> + Send;
}
