//! Enterprise connectivity profiles become routes of devices and rules of nodes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use hedgerow_shared::verify::Version;
use hedgerow_shared::{EntityId, TenantId};

use super::{Call, Core, Plan};
use crate::CoreError;
use crate::account::DeviceState;
use crate::group::Principal;
use crate::placement::{Placement, Terms, Under};
use crate::profile::{self, Assigned, Category, Connectivity, Platform, Profile, Reason};
use crate::store::{Change, Page, Store};

impl<S: Store> Core<S> {
    /// The placement that the configuration in force has.
    ///
    /// # Errors
    /// `Store`.
    pub async fn placement(&self, tenant: &TenantId) -> Result<Placement, CoreError> {
        Ok(self.store.placement(tenant).await.map_err(CoreError::Store)?.unwrap_or_default())
    }

    /// To be called when something was committed: issues a configuration when devices have come under other connectivity
    /// profiles, or these have changed. The new version, if one was issued.
    ///
    /// Where the profiles come to more than a document has room for, those in force stay, and only quarantine is brought up
    /// to date; the error says so then, after it was.
    ///
    /// # Errors
    /// `Invalid` (no room), `NotFound`, `Busy`, `Store`.
    pub async fn place_if_changed(&self, call: &mut Call<'_>, tenant: &TenantId) -> Result<Option<Version>, CoreError> {
        let quarantined = self.quarantined(tenant).await?;
        let worked_out = self.work_out_placement(tenant, &quarantined).await?;
        let fits = worked_out.fits();
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            // Whatever was committed meanwhile is looked at by the next call: this one is not begun again for it.
            let row = self.load(tenant).await?;
            let old = self.placement(tenant).await?;
            let new = if fits { worked_out.clone() } else { old.clone().with_quarantine(&quarantined) };
            let version = Version { version: row.config.version.saturating_add(1), ..row.config };
            let is_new = old != new;
            if is_new {
                let detail = format!("{} profiles, {} devices", new.placed.len(), new.devices());
                let plan = Plan::default().publish().record("config.placement", tenant.as_str(), detail);
                if !self.commit(call, row, plan.change(Change::PutPlacement(new))).await? {
                    continue;
                }
            }
            if !fits {
                let why = format!(
                    "enterprise connectivity profiles name {} devices, for which a signed configuration has no room; those in \
                     force stay, with quarantine up to date: make the profile of most devices the default",
                    worked_out.devices()
                );
                return Err(CoreError::invalid("the assignment", why));
            }
            return Ok(is_new.then_some(version));
        }
    }

    async fn work_out_placement(&self, tenant: &TenantId, quarantined: &[EntityId]) -> Result<Placement, CoreError> {
        let profiles = self.profiles(tenant, Category::EnterpriseConnectivity).await?;
        let quarantined: HashSet<EntityId> = quarantined.iter().copied().collect();
        if profiles.is_empty() && quarantined.is_empty() {
            return Ok(Placement::default());
        }
        let profiles: Vec<Arc<Profile>> = profiles.into_iter().map(Arc::new).collect();
        let assigned = self.assigned_users(tenant, &profiles).await?;
        let default = profiles.iter().find(|p| p.default);
        let mut of = Vec::new();
        let mut page = Page::first();
        loop {
            let devices = self.devices(tenant, None, page).await?;
            for device in devices.iter().filter(|d| d.state == DeviceState::Active) {
                if quarantined.contains(&device.id) {
                    of.push((device.id, Terms::quarantine()));
                    continue;
                }
                let assigned = assigned.get(&device.user).cloned().unwrap_or_default();
                let defaults = default.cloned().into_iter().collect();
                let effective = profile::effective(assigned, defaults, Platform::told(&device.platform));
                let terms = effective.first().map_or_else(Terms::nothing, |e| read(&e.profile));
                of.push((device.id, terms));
            }
            let Some(next) = page.behind(&devices, |device| device.id) else { break };
            page = next;
        }
        Ok(Placement::new(of, default.map(|p| read(p))))
    }

    /// Users to whom these profiles are assigned, by themselves or by way of groups. Asks for each profile and each group
    /// below its holders, not for each user.
    async fn assigned_users(
        &self,
        tenant: &TenantId,
        profiles: &[Arc<Profile>],
    ) -> Result<HashMap<EntityId, Vec<Assigned>>, CoreError> {
        let mut below: HashMap<EntityId, Vec<EntityId>> = HashMap::new();
        for (inner, above) in self.store.nesting(tenant).await.map_err(CoreError::Store)? {
            below.entry(above).or_default().push(inner);
        }
        let mut users: HashMap<EntityId, Vec<Assigned>> = HashMap::new();
        let mut members: HashMap<EntityId, Vec<EntityId>> = HashMap::new();
        for profile in profiles {
            let mut groups: Vec<EntityId> = Vec::new();
            for holder in self.holders(tenant, profile.id).await? {
                match holder {
                    Principal::User(user) => {
                        let one = Assigned { profile: profile.clone(), reason: Reason::User };
                        users.entry(user).or_default().push(one);
                    }
                    Principal::Group(group) => groups.push(group),
                }
            }
            let mut reached: HashSet<EntityId> = groups.iter().copied().collect();
            while let Some(group) = groups.pop() {
                groups.extend(below.get(&group).into_iter().flatten().filter(|inner| reached.insert(**inner)));
            }
            for group in reached {
                if let std::collections::hash_map::Entry::Vacant(entry) = members.entry(group) {
                    entry.insert(self.users_in(tenant, group).await?);
                }
                for user in &members[&group] {
                    let one = Assigned { profile: profile.clone(), reason: Reason::Group { way: vec![group] } };
                    users.entry(*user).or_default().push(one);
                }
            }
        }
        Ok(users)
    }

    async fn users_in(&self, tenant: &TenantId, group: EntityId) -> Result<Vec<EntityId>, CoreError> {
        let mut users = Vec::new();
        let mut page = Page::first();
        loop {
            let part = self.members(tenant, group, page).await?;
            users.extend(part.iter().filter_map(|member| match member {
                Principal::User(user) => Some(*user),
                Principal::Group(_) => None,
            }));
            let Some(next) = page.behind(&part, |member| member.id()) else { return Ok(users) };
            page = next;
        }
    }
}

/// One whose settings cannot be read, as settings of another version may be, closes: its devices reach nothing.
fn read(profile: &Profile) -> Terms {
    let settings = Connectivity::read(&profile.settings);
    let name = if settings.is_ok() { profile.name.clone() } else { format!("{} (cannot be read)", profile.name) };
    let closed = || Connectivity { enabled: false, tunnel: false, ..Connectivity::default() };
    Terms { under: Under::Profile(profile.id), name, settings: settings.unwrap_or_else(|_| closed()) }
}
