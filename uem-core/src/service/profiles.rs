//! Profiles, their ranks and assignments, and what of them has effect.

use std::collections::BTreeSet;
use std::sync::Arc;

use hedgerow_shared::{EntityId, TenantId};
use serde_json::{Map, Value};

use super::groups::{checked_description, told};
use super::{Call, Core, Plan};
use crate::group::{Principal, name_key};
use crate::profile::{
    self, Assigned, Category, Effective, MAX_PROFILES, Platform, Profile, Reason, check_settings, effective,
};
use crate::store::{Change, Store};
use crate::{CoreError, account};

/// A profile to be added, behind all others of its category.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NewProfile {
    /// About what.
    pub category: Category,
    /// Unique in the category, whatever its case.
    pub name: String,
    /// For people.
    pub description: String,
    /// Platforms on which it is not there.
    pub disabled: BTreeSet<Platform>,
    /// What it sets.
    pub settings: Map<String, Value>,
}

/// What of a profile is to be another way; `None` leaves it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ProfileChange {
    /// See `NewProfile`.
    pub name: Option<String>,
    /// See `NewProfile`.
    pub description: Option<String>,
    /// See `NewProfile`.
    pub disabled: Option<BTreeSet<Platform>>,
    /// See `NewProfile`; all of it.
    pub settings: Option<Map<String, Value>>,
}

impl<S: Store> Core<S> {
    /// Adds a profile.
    ///
    /// # Errors
    /// `Exists`, `Invalid`, `NotFound` (the tenant), `Busy`, `Store`.
    pub async fn add_profile(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        new: NewProfile,
    ) -> Result<Profile, CoreError> {
        let name = account::name("the name", &new.name)?;
        let description = checked_description(&new.description)?;
        check_settings(new.category, &new.settings)?;
        let mut profile = Profile {
            tenant: tenant.clone(),
            id: call.id(),
            category: new.category,
            name,
            description,
            rank: 1,
            default: false,
            disabled: new.disabled,
            settings: new.settings,
            created: call.now,
            modified: call.now,
        };
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let others = self.profiles(tenant, profile.category).await?;
            refuse_same_name(&others, &profile)?;
            if others.len() >= MAX_PROFILES {
                return Err(CoreError::invalid("the profile", format!("there are {MAX_PROFILES} of its category")));
            }
            profile.rank = others.last().map_or(1, |last| last.rank + 1);
            let plan = Plan::default().change(Change::PutProfile(profile.clone()));
            let plan = plan.record("profile.add", profile.id.to_string(), named(&profile));
            if self.commit(call, row, plan).await? {
                return Ok(profile);
            }
        }
    }

    /// One profile.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn profile(&self, tenant: &TenantId, id: EntityId) -> Result<Profile, CoreError> {
        let found = self.store.profile(tenant, id).await.map_err(CoreError::Store)?;
        found.ok_or_else(|| CoreError::not_found("profile", id))
    }

    /// Profiles of a category, the first in rank first.
    ///
    /// # Errors
    /// `Store`.
    pub async fn profiles(&self, tenant: &TenantId, category: Category) -> Result<Vec<Profile>, CoreError> {
        self.store.profiles(tenant, category).await.map_err(CoreError::Store)
    }

    /// To whom a profile is assigned.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn holders(&self, tenant: &TenantId, profile: EntityId) -> Result<Vec<Principal>, CoreError> {
        self.profile(tenant, profile).await?;
        self.store.holders_of(tenant, profile).await.map_err(CoreError::Store)
    }

    /// Changes a profile.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `Invalid` (a default profile keeps its name), `Busy`, `Store`.
    pub async fn change_profile(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        id: EntityId,
        change: ProfileChange,
    ) -> Result<Profile, CoreError> {
        let name = change.name.as_deref().map(|name| account::name("the name", name)).transpose()?;
        let description = change.description.as_deref().map(checked_description).transpose()?;
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let mut profile = self.profile(tenant, id).await?;
            if let Some(name) = name.clone().filter(|name| *name != profile.name) {
                if profile.default {
                    return Err(CoreError::invalid("the name", "a default profile keeps its name"));
                }
                profile.name = name;
                refuse_same_name(&self.profiles(tenant, profile.category).await?, &profile)?;
            }
            if let Some(settings) = change.settings.clone() {
                check_settings(profile.category, &settings)?;
                profile.settings = settings;
            }
            profile.description = description.clone().unwrap_or(profile.description);
            profile.disabled = change.disabled.clone().unwrap_or(profile.disabled);
            profile.modified = call.now;
            let plan = Plan::default().change(Change::PutProfile(profile.clone()));
            if self.commit(call, row, plan.record("profile.change", id.to_string(), named(&profile))).await? {
                return Ok(profile);
            }
        }
    }

    /// Makes a profile the default of its category, in place of the one that is; or takes that from it.
    ///
    /// # Errors
    /// `NotFound`; `Invalid`: of a category that adds up there is none; `Busy`, `Store`.
    pub async fn set_default_profile(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        id: EntityId,
        default: bool,
    ) -> Result<Profile, CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let mut profile = self.profile(tenant, id).await?;
            if profile.category.adds_up() {
                return Err(CoreError::invalid(
                    "the profile",
                    format!("every assigned profile of {} has effect, so there is no default", profile.category),
                ));
            }
            if profile.default == default {
                return Ok(profile);
            }
            profile.default = default;
            let others = self.profiles(tenant, profile.category).await?;
            let mut plan = Plan::default().change(Change::PutProfile(profile.clone()));
            for other in others.into_iter().filter(|other| default && other.default && other.id != id) {
                plan = plan.change(Change::PutProfile(Profile { default: false, ..other }));
            }
            let action = if default { "profile.default" } else { "profile.no_default" };
            if self.commit(call, row, plan.record(action, id.to_string(), named(&profile))).await? {
                return Ok(profile);
            }
        }
    }

    /// Gives a profile another place in its category, from 1; those between move by one. Beyond the last is the last.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`, `Busy`, `Store`.
    pub async fn rank_profile(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        id: EntityId,
        to: u32,
    ) -> Result<Vec<Profile>, CoreError> {
        let at = usize::try_from(to).unwrap_or(usize::MAX).checked_sub(1);
        let at = at.ok_or_else(|| CoreError::invalid("the rank", "ranks begin with 1"))?;
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let profile = self.profile(tenant, id).await?;
            let mut order = self.profiles(tenant, profile.category).await?;
            order.retain(|other| other.id != id);
            order.insert(at.min(order.len()), profile.clone());
            let mut plan = Plan::default();
            for (rank, moved) in (1..).zip(&mut order).filter(|(rank, profile)| profile.rank != *rank) {
                moved.rank = rank;
                plan = plan.change(Change::PutProfile(moved.clone()));
            }
            if plan.changes.is_empty() {
                return Ok(order);
            }
            let plan = plan.record("profile.rank", id.to_string(), format!("{}, place {to}", named(&profile)));
            if self.commit(call, row, plan).await? {
                return Ok(order);
            }
        }
    }

    /// Removes a profile and its assignments.
    ///
    /// # Errors
    /// `NotFound`; `Invalid`: a default profile stays while it is; `Busy`, `Store`.
    pub async fn remove_profile(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        id: EntityId,
    ) -> Result<Profile, CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let profile = self.profile(tenant, id).await?;
            if profile.default {
                return Err(CoreError::invalid(
                    "the profile",
                    "it is its category's default; make another one that first",
                ));
            }
            let plan = Plan::default().change(Change::DeleteProfile(id));
            if self.commit(call, row, plan.record("profile.remove", id.to_string(), named(&profile))).await? {
                return Ok(profile);
            }
        }
    }

    /// Assigns a profile to a user or a group. Done already is done.
    ///
    /// # Errors
    /// `NotFound`; `Invalid`: there are too many; `Busy`, `Store`.
    pub async fn assign_profile(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        id: EntityId,
        holder: Principal,
    ) -> Result<(), CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let profile = self.profile(tenant, id).await?;
            self.principal(tenant, holder).await?;
            let has = self.store.profiles_of(tenant, holder).await.map_err(CoreError::Store)?;
            if has.iter().any(|other| other.id == id) {
                return Ok(());
            }
            if has.len() >= MAX_PROFILES {
                return Err(CoreError::invalid("the assignment", format!("there are {MAX_PROFILES} already")));
            }
            let plan = Plan::default().change(Change::PutAssignment { profile: id, holder });
            let plan = plan.record("profile.assign", id.to_string(), told(holder, &named(&profile)));
            if self.commit(call, row, plan).await? {
                return Ok(());
            }
        }
    }

    /// Ends an assignment.
    ///
    /// # Errors
    /// `NotFound` (the profile, or it is not assigned so), `Busy`, `Store`.
    pub async fn unassign_profile(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        id: EntityId,
        holder: Principal,
    ) -> Result<(), CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let profile = self.profile(tenant, id).await?;
            let holders = self.store.holders_of(tenant, id).await.map_err(CoreError::Store)?;
            if !holders.contains(&holder) {
                return Err(CoreError::not_found("assignment", holder.id()));
            }
            let plan = Plan::default().change(Change::DeleteAssignment { profile: id, holder });
            let plan = plan.record("profile.unassign", id.to_string(), told(holder, &named(&profile)));
            if self.commit(call, row, plan).await? {
                return Ok(());
            }
        }
    }

    /// What has effect for a user on a device of this platform, and why: `profile::effective`.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn effective_profiles(
        &self,
        tenant: &TenantId,
        user: EntityId,
        platform: Option<Platform>,
    ) -> Result<Vec<Effective>, CoreError> {
        let (assigned, defaults) = self.profiles_for(tenant, user).await?;
        Ok(effective(assigned, defaults, platform))
    }

    /// What may have effect for a user, whatever the platform: what is assigned, and the defaults.
    pub(super) async fn profiles_for(
        &self,
        tenant: &TenantId,
        user: EntityId,
    ) -> Result<(Vec<Assigned>, Vec<Arc<Profile>>), CoreError> {
        self.user(tenant, user).await?;
        let of = async |holder| self.store.profiles_of(tenant, holder).await.map_err(CoreError::Store);
        let with = |profiles: Vec<Profile>, reason: Reason| {
            profiles.into_iter().map(move |p| Assigned { profile: Arc::new(p), reason: reason.clone() })
        };
        let mut assigned: Vec<_> = with(of(Principal::User(user)).await?, Reason::User).collect();
        for (group, way) in self.groups_of_user(tenant, user).await? {
            assigned.extend(with(of(Principal::Group(group)).await?, Reason::Group { way }));
        }
        let defaults = self.store.default_profiles(tenant).await.map_err(CoreError::Store)?;
        Ok((assigned, defaults.into_iter().map(Arc::new).collect()))
    }

    /// What has effect on a device, and why.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn effective_on_device(&self, tenant: &TenantId, device: EntityId) -> Result<Vec<Effective>, CoreError> {
        let device = self.device(tenant, device).await?;
        self.effective_profiles(tenant, device.user, profile::Platform::told(&device.platform)).await
    }
}

fn refuse_same_name(others: &[Profile], profile: &Profile) -> Result<(), CoreError> {
    let key = name_key(&profile.name);
    if others.iter().any(|other| other.id != profile.id && name_key(&other.name) == key) {
        return Err(CoreError::Exists { kind: "profile", name: profile.name.clone() });
    }
    Ok(())
}

/// For the audit record.
fn named(profile: &Profile) -> String {
    format!("{} {}", profile.category, profile.name)
}
