//! What is kept of apps.

use std::future::Future;

use hedgerow_shared::{EntityId, TenantId};

use super::{Page, StoreError};
use crate::app::{App, AppConfig, AppGroup, Assignment, Listing, Target};
use crate::group::Principal;
use crate::profile::Platform;

/// A change of apps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppChange {
    /// Adds or replaces an app.
    Put(App),
    /// Removes an app, its configurations and assignments, and from groups of apps.
    Delete(EntityId),
    /// Adds or replaces a configuration.
    PutConfig(AppConfig),
    /// Removes a configuration; assignments with it stay, without one.
    DeleteConfig(EntityId),
    /// Adds or replaces a group of apps.
    PutGroup(AppGroup),
    /// Removes a group of apps and its assignments; the apps stay.
    DeleteGroup(EntityId),
    /// Puts an app into a group of apps, if it is not in it.
    PutMember {
        /// Into which.
        group: EntityId,
        /// Which.
        app: EntityId,
    },
    /// Takes an app out of a group of apps.
    DeleteMember {
        /// Out of which.
        group: EntityId,
        /// Which.
        app: EntityId,
    },
    /// Adds or replaces what one holder has of one target.
    Assign(Assignment),
    /// Ends that.
    Unassign {
        /// Of what.
        target: Target,
        /// Whose.
        holder: Principal,
    },
    /// Adds an entry to a list, if it is not there.
    List(Listing),
    /// Removes an entry from a list.
    Unlist(Listing),
}

/// Storage of apps; part of `Store`. As there, every method may be cancelled at any await.
pub trait AppStore: Send + Sync + 'static {
    /// One app.
    fn app(&self, tenant: &TenantId, id: EntityId) -> impl Future<Output = Result<Option<App>, StoreError>> + Send;
    /// The app with this identifier on a platform.
    fn app_by_identifier(
        &self,
        tenant: &TenantId,
        platform: Platform,
        identifier: &str,
    ) -> impl Future<Output = Result<Option<App>, StoreError>> + Send;
    /// Apps, in the order of ids.
    fn apps(&self, tenant: &TenantId, page: Page) -> impl Future<Output = Result<Vec<App>, StoreError>> + Send;
    /// How many apps there are.
    fn count_apps(&self, tenant: &TenantId) -> impl Future<Output = Result<u64, StoreError>> + Send;
    /// One configuration.
    fn app_config(
        &self,
        tenant: &TenantId,
        id: EntityId,
    ) -> impl Future<Output = Result<Option<AppConfig>, StoreError>> + Send;
    /// Configurations of an app, in the order of ranks.
    fn app_configs(
        &self,
        tenant: &TenantId,
        app: EntityId,
    ) -> impl Future<Output = Result<Vec<AppConfig>, StoreError>> + Send;
    /// One group of apps.
    fn app_group(
        &self,
        tenant: &TenantId,
        id: EntityId,
    ) -> impl Future<Output = Result<Option<AppGroup>, StoreError>> + Send;
    /// The group of apps whose name has this `name_key`.
    fn app_group_by_name(
        &self,
        tenant: &TenantId,
        key: &str,
    ) -> impl Future<Output = Result<Option<AppGroup>, StoreError>> + Send;
    /// Groups of apps, in the order of ids.
    fn app_groups(
        &self,
        tenant: &TenantId,
        page: Page,
    ) -> impl Future<Output = Result<Vec<AppGroup>, StoreError>> + Send;
    /// Apps of a group, in the order of ids.
    fn apps_in_group(
        &self,
        tenant: &TenantId,
        group: EntityId,
    ) -> impl Future<Output = Result<Vec<App>, StoreError>> + Send;
    /// What is assigned to somebody themselves, in the order of targets' ids.
    fn app_assignments_of(
        &self,
        tenant: &TenantId,
        holder: Principal,
    ) -> impl Future<Output = Result<Vec<Assignment>, StoreError>> + Send;
    /// To whom an app or a group of apps is assigned, in the order of holders' ids.
    fn app_assignments(
        &self,
        tenant: &TenantId,
        target: Target,
    ) -> impl Future<Output = Result<Vec<Assignment>, StoreError>> + Send;
    /// Entries of the lists, of one platform or of all, by list, platform and identifier.
    fn listings(
        &self,
        tenant: &TenantId,
        platform: Option<Platform>,
    ) -> impl Future<Output = Result<Vec<Listing>, StoreError>> + Send;
}
