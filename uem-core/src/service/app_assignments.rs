//! Who is to have which apps, and what of it has effect on a device.

use std::collections::BTreeMap;
use std::sync::Arc;

use hedgerow_shared::{EntityId, TenantId};

use super::apps::named;
use super::groups::told;
use super::{Call, Core, Decided, Plan};
use crate::CoreError;
use crate::account::Device;
use crate::app::{App, Assigned, Assignment, EffectiveApp, MAX_ASSIGNED, Target, Through, compare, effective};
use crate::compliance::{AppFindings, Rule};
use crate::group::Principal;
use crate::inventory::{Attributes, Inventory, MAX_APPS};
use crate::profile::{Compliance, Platform, Reason};
use crate::store::{AppChange, Change, Store};

impl<S: Store> Core<S> {
    /// Assigns an app or a group of apps to a user or a group, in place of what they had of it.
    ///
    /// # Errors
    /// `NotFound`; `Invalid`: a configuration of another app, or there are too many; `Busy`, `Store`.
    pub async fn assign_app(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        assignment: Assignment,
    ) -> Result<(), CoreError> {
        self.decide(call, tenant, |_| async move {
            let Assignment { target, holder, disposition, config } = assignment;
            let what = self.target_name(tenant, target).await?;
            self.principal(tenant, holder).await?;
            if let Some(config) = config {
                let config = self.app_config(tenant, config).await?;
                if target != Target::App(config.app) {
                    return Err(CoreError::invalid("the configuration", "it is not of this app"));
                }
            }
            let has = self.store.app_assignments_of(tenant, holder).await.map_err(CoreError::Store)?;
            if has.contains(&assignment) {
                return Ok(Decided::Already(()));
            }
            if has.len() >= MAX_ASSIGNED && !has.iter().any(|other| other.target == target) {
                return Err(CoreError::invalid("the assignment", format!("there are {MAX_ASSIGNED} already")));
            }
            let plan = Plan::default().change(Change::App(AppChange::Assign(assignment)));
            let told = told(holder, &format!("{what}, {disposition}"));
            Ok(Decided::Commit(plan.record("app.assign", target.id().to_string(), told), ()))
        })
        .await
    }

    /// Ends an assignment.
    ///
    /// # Errors
    /// `NotFound` (the app or group, or it is not assigned so), `Busy`, `Store`.
    pub async fn unassign_app(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        target: Target,
        holder: Principal,
    ) -> Result<(), CoreError> {
        self.decide(call, tenant, |_| async move {
            let what = self.target_name(tenant, target).await?;
            let has = self.store.app_assignments_of(tenant, holder).await.map_err(CoreError::Store)?;
            if !has.iter().any(|other| other.target == target) {
                return Err(CoreError::not_found("assignment", holder.id()));
            }
            let plan = Plan::default().change(Change::App(AppChange::Unassign { target, holder }));
            Ok(Decided::Commit(plan.record("app.unassign", target.id().to_string(), told(holder, &what)), ()))
        })
        .await
    }

    /// To whom an app or a group of apps is assigned.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn app_assignments(&self, tenant: &TenantId, target: Target) -> Result<Vec<Assignment>, CoreError> {
        self.target_name(tenant, target).await?;
        self.store.app_assignments(tenant, target).await.map_err(CoreError::Store)
    }

    /// Which apps a user is to have on a device of this platform, and why: `app::effective`.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn effective_apps(
        &self,
        tenant: &TenantId,
        user: EntityId,
        platform: Option<Platform>,
    ) -> Result<Vec<EffectiveApp>, CoreError> {
        self.user(tenant, user).await?;
        let mut holders = vec![(Principal::User(user), Reason::User)];
        for (group, way) in self.groups_of_user(tenant, user).await? {
            holders.push((Principal::Group(group), Reason::Group { way }));
        }
        let mut assigned = Vec::new();
        let mut groups: BTreeMap<EntityId, Vec<Arc<App>>> = BTreeMap::new();
        for (holder, reason) in holders {
            for one in self.store.app_assignments_of(tenant, holder).await.map_err(CoreError::Store)? {
                let (apps, through) = match one.target {
                    Target::App(id) => {
                        let app = self.store.app(tenant, id).await.map_err(CoreError::Store)?;
                        (app.map(Arc::new).into_iter().collect(), Through::Itself)
                    }
                    Target::Group(id) => {
                        if let std::collections::btree_map::Entry::Vacant(vacant) = groups.entry(id) {
                            let apps = self.store.apps_in_group(tenant, id).await.map_err(CoreError::Store)?;
                            vacant.insert(apps.into_iter().map(Arc::new).collect());
                        }
                        (groups.get(&id).cloned().unwrap_or_default(), Through::AppGroup(id))
                    }
                };
                let config = match one.config {
                    Some(id) => self.store.app_config(tenant, id).await.map_err(CoreError::Store)?.map(Arc::new),
                    None => None,
                };
                let disposition = one.disposition;
                let with = |app| Assigned { app, through, reason: reason.clone(), disposition, config: config.clone() };
                assigned.extend(apps.into_iter().map(with));
            }
        }
        Ok(effective(assigned, platform))
    }

    /// Which apps are to be on a device, and why.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn effective_apps_on_device(
        &self,
        tenant: &TenantId,
        device: EntityId,
    ) -> Result<Vec<EffectiveApp>, CoreError> {
        let device = self.device(tenant, device).await?;
        self.effective_apps(tenant, device.user, Platform::told(&device.platform)).await
    }

    /// What is wrong with the apps on a device; `None`: it has not told them, or is of no platform of ours.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn app_findings(&self, tenant: &TenantId, device: EntityId) -> Result<Option<AppFindings>, CoreError> {
        let device = self.device(tenant, device).await?;
        let inventory = self.store.inventory(tenant, device.id).await.map_err(CoreError::Store)?.unwrap_or_default();
        self.compare_apps(tenant, &device, &inventory).await
    }

    /// The same where the profile wants to know it.
    pub(super) async fn watched_apps(
        &self,
        tenant: &TenantId,
        device: &Device,
        (settings, inventory): (&Compliance, &Inventory),
    ) -> Result<Option<AppFindings>, CoreError> {
        let about_apps = [Rule::RequiredApp, Rule::RestrictedApp, Rule::UnapprovedApp];
        match about_apps.iter().any(|rule| settings.rules.contains_key(rule)) {
            true => self.compare_apps(tenant, device, inventory).await,
            false => Ok(None),
        }
    }

    async fn compare_apps(
        &self,
        tenant: &TenantId,
        device: &Device,
        inventory: &Inventory,
    ) -> Result<Option<AppFindings>, CoreError> {
        let platform = inventory.attributes.as_ref().and_then(Attributes::platform);
        let platform = platform.or_else(|| Platform::told(&device.platform));
        let Some(platform) = platform.filter(|_| inventory.apps_told.is_some()) else { return Ok(None) };
        let most = u32::try_from(MAX_APPS).unwrap_or(u32::MAX);
        let installed = self.store.installed(tenant, device.id, "", most).await.map_err(CoreError::Store)?;
        let to_be = self.effective_apps(tenant, device.user, Some(platform)).await?;
        let listed = self.store.listings(tenant, Some(platform)).await.map_err(CoreError::Store)?;
        Ok(Some(compare(&installed, &to_be, &listed, platform)))
    }

    async fn target_name(&self, tenant: &TenantId, target: Target) -> Result<String, CoreError> {
        match target {
            Target::App(id) => self.app(tenant, id).await.map(|app| named(&app)),
            Target::Group(id) => self.app_group(tenant, id).await.map(|group| group.name),
        }
    }
}
