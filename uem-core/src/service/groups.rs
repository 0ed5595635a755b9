//! Groups, and who stands in them.

use std::collections::BTreeMap;

use hedgerow_shared::{EntityId, TenantId};

use super::{Call, Core, Plan};
use crate::group::{self, Group, MAX_DESCRIPTION, MAX_STANDS_IN, Principal, name_key};
use crate::store::{Change, Page, Store};
use crate::{CoreError, account};

impl<S: Store> Core<S> {
    /// Adds a group with nobody in it.
    ///
    /// # Errors
    /// `Exists`, `Invalid`, `NotFound` (the tenant), `Busy`, `Store`.
    pub async fn add_group(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        name: &str,
        description: &str,
    ) -> Result<Group, CoreError> {
        let (name, description) = (checked_name(name)?, checked_description(description)?);
        let group = Group { tenant: tenant.clone(), id: call.id(), name, description, created: call.now };
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            self.refuse_same_name(&group).await?;
            let plan = Plan::default().change(Change::PutGroup(group.clone()));
            if self.commit(call, row, plan.record("group.add", group.id.to_string(), group.name.as_str())).await? {
                return Ok(group);
            }
        }
    }

    /// One group.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn group(&self, tenant: &TenantId, id: EntityId) -> Result<Group, CoreError> {
        self.store.group(tenant, id).await.map_err(CoreError::Store)?.ok_or_else(|| CoreError::not_found("group", id))
    }

    /// The group of this name, whatever its case.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn group_by_name(&self, tenant: &TenantId, name: &str) -> Result<Group, CoreError> {
        let found = self.store.group_by_name(tenant, &name_key(name)).await.map_err(CoreError::Store)?;
        found.ok_or_else(|| CoreError::not_found("group", name))
    }

    /// Groups, in the order of ids.
    ///
    /// # Errors
    /// `Store`.
    pub async fn groups(&self, tenant: &TenantId, page: Page) -> Result<Vec<Group>, CoreError> {
        self.store.groups(tenant, page).await.map_err(CoreError::Store)
    }

    /// Who stands in a group itself, in the order of ids.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn members(&self, tenant: &TenantId, group: EntityId, page: Page) -> Result<Vec<Principal>, CoreError> {
        self.group(tenant, group).await?;
        self.store.members(tenant, group, page).await.map_err(CoreError::Store)
    }

    /// Gives a group another name or description; who is in it, and what is assigned to it, stays. `None` stays as it is.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `Invalid`, `Busy`, `Store`.
    pub async fn change_group(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        id: EntityId,
        (name, description): (Option<&str>, Option<&str>),
    ) -> Result<Group, CoreError> {
        let (name, description) =
            (name.map(checked_name).transpose()?, description.map(checked_description).transpose()?);
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let old = self.group(tenant, id).await?;
            let mut group = old.clone();
            group.name = name.clone().unwrap_or(group.name);
            group.description = description.clone().unwrap_or(group.description);
            if group == old {
                return Ok(group);
            }
            self.refuse_same_name(&group).await?;
            let told = if group.name == old.name { old.name } else { format!("{}, now {}", old.name, group.name) };
            let plan = Plan::default().change(Change::PutGroup(group.clone()));
            if self.commit(call, row, plan.record("group.change", id.to_string(), told)).await? {
                return Ok(group);
            }
        }
    }

    /// Removes a group; whoever stood in it stays, and what was assigned to it no longer comes to them.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Store`.
    pub async fn remove_group(&self, call: &mut Call<'_>, tenant: &TenantId, id: EntityId) -> Result<Group, CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let group = self.group(tenant, id).await?;
            let plan = Plan::default().change(Change::DeleteGroup(id));
            if self.commit(call, row, plan.record("group.remove", id.to_string(), group.name.as_str())).await? {
                return Ok(group);
            }
        }
    }

    /// Puts a user or another group into a group. Done already is done.
    ///
    /// # Errors
    /// `NotFound`; `Invalid`: a circle, too many groups on top of each other, or the member stands in too many; `Busy`,
    /// `Store`.
    pub async fn add_member(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        group: EntityId,
        member: Principal,
    ) -> Result<(), CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let into = self.group(tenant, group).await?;
            self.principal(tenant, member).await?;
            let stands_in = self.store.groups_of(tenant, member).await.map_err(CoreError::Store)?;
            if stands_in.contains(&group) {
                return Ok(());
            }
            if stands_in.len() >= MAX_STANDS_IN {
                return Err(CoreError::invalid("the member", format!("stands in {MAX_STANDS_IN} groups already")));
            }
            if let Principal::Group(inner) = member {
                let nesting = self.store.nesting(tenant).await.map_err(CoreError::Store)?;
                group::check_nesting(inner, group, &nesting)
                    .map_err(|why| CoreError::invalid("the member", why.to_string()))?;
            }
            let plan = Plan::default().change(Change::PutMember { group, member });
            let plan = plan.record("group.member.add", group.to_string(), told(member, &into.name));
            if self.commit(call, row, plan).await? {
                return Ok(());
            }
        }
    }

    /// Takes a user or another group out of a group.
    ///
    /// # Errors
    /// `NotFound` (the group, or the member does not stand in it), `Busy`, `Store`.
    pub async fn remove_member(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        group: EntityId,
        member: Principal,
    ) -> Result<(), CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let from = self.group(tenant, group).await?;
            let stands_in = self.store.groups_of(tenant, member).await.map_err(CoreError::Store)?;
            if !stands_in.contains(&group) {
                return Err(CoreError::not_found("member", member.id()));
            }
            let plan = Plan::default().change(Change::DeleteMember { group, member });
            let plan = plan.record("group.member.remove", group.to_string(), told(member, &from.name));
            if self.commit(call, row, plan).await? {
                return Ok(());
            }
        }
    }

    /// Every group that a user is in, by the way to it: `group::above`.
    ///
    /// # Errors
    /// `Store`.
    pub async fn groups_of_user(
        &self,
        tenant: &TenantId,
        user: EntityId,
    ) -> Result<BTreeMap<EntityId, Vec<EntityId>>, CoreError> {
        let groups_of = async |of| self.store.groups_of(tenant, of).await.map_err(CoreError::Store);
        let direct = groups_of(Principal::User(user)).await?;
        // Upwards, each group once: what it costs depends on the user's groups, not on the tenant's.
        let (mut parents, mut open) = (BTreeMap::new(), direct.clone());
        while let Some(group) = open.pop() {
            if let std::collections::btree_map::Entry::Vacant(vacant) = parents.entry(group) {
                let on = groups_of(Principal::Group(group)).await?;
                open.extend(&on);
                vacant.insert(on);
            }
        }
        Ok(group::above(&direct, &parents))
    }

    async fn refuse_same_name(&self, group: &Group) -> Result<(), CoreError> {
        let there = self.store.group_by_name(&group.tenant, &name_key(&group.name)).await.map_err(CoreError::Store)?;
        match there.is_some_and(|other| other.id != group.id) {
            true => Err(CoreError::Exists { kind: "group", name: group.name.clone() }),
            false => Ok(()),
        }
    }

    /// That there is such a user or group.
    pub(super) async fn principal(&self, tenant: &TenantId, principal: Principal) -> Result<(), CoreError> {
        match principal {
            Principal::User(id) => self.user(tenant, id).await.map(drop),
            Principal::Group(id) => self.group(tenant, id).await.map(drop),
        }
    }
}

fn checked_name(text: &str) -> Result<String, CoreError> {
    let name = account::name("the name", text)?;
    match name.contains(';') {
        true => Err(CoreError::invalid("the name", "no ';': it stands between groups in tables of users")),
        false => Ok(name),
    }
}

/// Of a group or a profile.
pub(super) fn checked_description(text: &str) -> Result<String, CoreError> {
    let text = text.trim();
    let fits = text.chars().count() <= MAX_DESCRIPTION && !text.chars().any(|c| c.is_control() && c != '\n');
    if fits {
        return Ok(text.to_owned());
    }
    Err(CoreError::invalid(
        "the description",
        format!("use at most {MAX_DESCRIPTION} characters, and no control characters"),
    ))
}

/// For the audit record: who, and which group or profile.
pub(super) fn told(who: Principal, what: &str) -> String {
    format!("{} {}, {what}", who.kind(), who.id())
}
