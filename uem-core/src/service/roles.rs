//! Roles: what administrators may do.

use std::collections::BTreeSet;

use hedgerow_shared::{EntityId, TenantId};

use super::{Call, Core, Decided, Plan};
use crate::admin::{Asker, MAX_ROLES, Permission, Predefined, Role, RoleId, Subject, authorise, may_grant};
use crate::group::name_key;
use crate::store::{AdminChange, Change, Store};
use crate::{CoreError, account};

/// A role to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRole {
    /// Unique in the tenant, whatever its case.
    pub name: String,
    /// What it includes.
    pub permissions: BTreeSet<Permission>,
    /// For the users of these groups alone.
    pub groups: Option<BTreeSet<EntityId>>,
}

/// What of a role is to be another; `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoleChange {
    /// Unique in the tenant, whatever its case.
    pub name: Option<String>,
    /// What it includes.
    pub permissions: Option<BTreeSet<Permission>>,
    /// For the users of these groups alone; `Some(None)`: for all.
    pub groups: Option<Option<BTreeSet<EntityId>>>,
}

impl<S: Store> Core<S> {
    /// One role.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn role(&self, tenant: &TenantId, id: RoleId) -> Result<Role, CoreError> {
        match id {
            RoleId::Predefined(role) => Ok(Role::predefined(role)),
            RoleId::Custom(id) => {
                let found = self.store.role(tenant, id).await.map_err(CoreError::Store)?;
                found.ok_or_else(|| CoreError::not_found("role", id))
            }
        }
    }

    /// The role of this name, whatever its case.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn role_by_name(&self, tenant: &TenantId, name: &str) -> Result<Role, CoreError> {
        let all = self.roles(tenant).await?;
        let found = all.into_iter().find(|role| name_key(&role.name) == name_key(name));
        found.ok_or_else(|| CoreError::not_found("role", name))
    }

    /// Every role: those that are there first.
    ///
    /// # Errors
    /// `Store`.
    pub async fn roles(&self, tenant: &TenantId) -> Result<Vec<Role>, CoreError> {
        let mut all: Vec<_> = Predefined::ALL.into_iter().map(Role::predefined).collect();
        all.extend(self.store.roles(tenant).await.map_err(CoreError::Store)?);
        Ok(all)
    }

    /// Adds a role. Whoever adds one has everything that it includes, for at least the same users.
    ///
    /// # Errors
    /// `Denied`, `Exists`, `Invalid`, `NotFound` (the tenant, a group), `Busy`, `Store`.
    pub async fn add_role(
        &self,
        call: &mut Call<'_>,
        (tenant, asker): (&TenantId, &Asker),
        new: NewRole,
    ) -> Result<Role, CoreError> {
        let name = account::name("the name", &new.name)?;
        let role = &Role { id: RoleId::Custom(call.id()), name, permissions: new.permissions, groups: new.groups };
        role.check()?;
        self.decide(call, tenant, |_| async move {
            let asker = self.again(tenant, asker).await?;
            may_grant(&asker, role)?;
            authorise(&asker, Permission::EditRoles, Subject::Organisation)?;
            for group in role.groups.iter().flatten() {
                self.group(tenant, *group).await?;
            }
            if self.refuse_same_role(tenant, role).await? >= MAX_ROLES {
                return Err(CoreError::invalid("the role", format!("there are {MAX_ROLES} already")));
            }
            let plan = Plan::default().change(Change::Admin(AdminChange::PutRole(role.clone())));
            Ok(Decided::Commit(plan.record("role.add", role.id.to_string(), told(role)), role.clone()))
        })
        .await
    }

    /// Changes one of the organisation's own roles, and so what everybody who has it may do from then on. Whoever does it
    /// has everything that it included and will include.
    ///
    /// # Errors
    /// `Denied`, `Exists`; `Invalid`: one that is there stays as it is; `NotFound` (a group, too), `Busy`, `Store`.
    pub async fn change_role(
        &self,
        call: &mut Call<'_>,
        (tenant, asker): (&TenantId, &Asker),
        id: RoleId,
        change: RoleChange,
    ) -> Result<Role, CoreError> {
        refuse_predefined(id)?;
        let (name, change) = (change.name.as_deref().map(|name| account::name("the name", name)).transpose()?, &change);
        let name = &name;
        self.decide(call, tenant, |_| async move {
            let (old, asker) = (self.role(tenant, id).await?, self.again(tenant, asker).await?);
            let mut role = old.clone();
            role.name = name.clone().unwrap_or(role.name);
            role.permissions = change.permissions.clone().unwrap_or(role.permissions);
            role.groups = change.groups.clone().unwrap_or(role.groups);
            role.check()?;
            may_grant(&asker, &old)?;
            may_grant(&asker, &role)?;
            authorise(&asker, Permission::EditRoles, Subject::Organisation)?;
            if role == old {
                return Ok(Decided::Already(role));
            }
            for group in change.groups.iter().flatten().flatten() {
                self.group(tenant, *group).await?;
            }
            self.refuse_same_role(tenant, &role).await?;
            let plan = Plan::default().change(Change::Admin(AdminChange::PutRole(role.clone())));
            Ok(Decided::Commit(plan.record("role.change", id.to_string(), told(&role)), role))
        })
        .await
    }

    /// Removes a role that nobody has.
    ///
    /// # Errors
    /// `Denied`, `NotFound`; `Invalid`: one that is there stays, and one that somebody has; `Busy`, `Store`.
    pub async fn remove_role(
        &self,
        call: &mut Call<'_>,
        (tenant, asker): (&TenantId, &Asker),
        id: RoleId,
    ) -> Result<Role, CoreError> {
        let own = refuse_predefined(id)?;
        self.decide(call, tenant, |_| async move {
            let (role, asker) = (self.role(tenant, id).await?, self.again(tenant, asker).await?);
            may_grant(&asker, &role)?;
            authorise(&asker, Permission::EditRoles, Subject::Organisation)?;
            let admins = self.store.admins(tenant).await.map_err(CoreError::Store)?;
            let have = admins.iter().filter(|admin| admin.role == id).count();
            if have > 0 {
                return Err(CoreError::invalid("the role", format!("{have} administrators have it")));
            }
            let plan = Plan::default().change(Change::Admin(AdminChange::DeleteRole(own)));
            Ok(Decided::Commit(plan.record("role.remove", id.to_string(), role.name.as_str()), role))
        })
        .await
    }

    /// How many other roles of the organisation's own there are.
    async fn refuse_same_role(&self, tenant: &TenantId, role: &Role) -> Result<usize, CoreError> {
        let mut others = self.store.roles(tenant).await.map_err(CoreError::Store)?;
        others.retain(|other| other.id != role.id);
        match others.iter().any(|other| name_key(&other.name) == name_key(&role.name)) {
            true => Err(CoreError::Exists { kind: "role", name: role.name.clone() }),
            false => Ok(others.len()),
        }
    }
}

fn refuse_predefined(id: RoleId) -> Result<EntityId, CoreError> {
    match id {
        RoleId::Custom(own) => Ok(own),
        RoleId::Predefined(_) => Err(CoreError::invalid("the role", "it belongs to the product, and stays as it is")),
    }
}

/// For the audit record.
fn told(role: &Role) -> String {
    let includes: Vec<_> = role.permissions.iter().map(|p| p.as_str()).collect();
    format!("{}: {}", role.name, includes.join(" "))
}
