//! Administrators: who may do what to whom.
//!
//! An administrator is a user with a role; a role is a set of permissions, perhaps for the users of some groups alone. The
//! break-glass administrator, whoever is root beside the core, is none of them and may do everything.

mod guard;
mod password;
mod permission;
mod role;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use hedgerow_shared::{EntityId, TenantId, UnixTime};
use serde::{Deserialize, Serialize};

pub use guard::{Admitted, Locked, MAX_WRONG, MAX_WRONG_OF_ADDRESS, MAX_WRONG_OF_SOURCE, SignInGuard, Source};
pub use password::{HashJob, LoginPassword, MIN_CHARACTERS, checked as checked_password};
pub use permission::Permission;
pub use role::{MAX_ROLE_GROUPS, Predefined, Role, RoleId};

/// Administrators of a tenant.
pub const MAX_ADMINS: usize = 1000;
/// Roles of a tenant that it made itself.
pub const MAX_ROLES: usize = 200;

/// An administrator, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Whose.
    pub tenant: TenantId,
    /// Which user.
    pub user: EntityId,
    /// With which role.
    pub role: RoleId,
    /// Since when.
    pub created: UnixTime,
    /// With what they sign in here; `None`: they do not.
    pub password: Option<LoginPassword>,
    /// When they last signed in.
    pub last_sign_in: Option<UnixTime>,
}

/// Somebody who asks for something, with what they may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asker {
    /// Root beside the core.
    BreakGlass,
    /// An administrator whose user is active, and the role they have now.
    Admin {
        /// Which user.
        user: EntityId,
        /// With what.
        role: Role,
    },
}

/// Whom or what something is done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The organisation as a whole, or what belongs to no user: profiles, apps, nodes, rules.
    Organisation,
    /// A user or one of their devices; every group that they are in, by way of others too.
    User {
        /// All of them.
        groups: &'a BTreeSet<EntityId>,
    },
    /// A group of users.
    Group(EntityId),
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Denied {
    /// The role has not the permission.
    #[error("the role does not include this")]
    Permission,
    /// The role has it for some groups, and this is outside them.
    #[error("the role includes this for certain groups of users only")]
    Outside,
}

/// Whether somebody may do something. What is not granted is denied.
///
/// A role for certain groups says nothing about the organisation as a whole: whatever is not a user, a device of theirs, or
/// one of those groups itself is outside it.
///
/// # Errors
/// Why not.
pub fn authorise(asker: &Asker, permission: Permission, subject: Subject<'_>) -> Result<(), Denied> {
    let role = match asker {
        Asker::BreakGlass => return Ok(()),
        Asker::Admin { role, .. } => role,
    };
    if !role.permissions.contains(&permission) {
        return Err(Denied::Permission);
    }
    let Some(groups) = &role.groups else { return Ok(()) };
    let inside = match subject {
        Subject::Organisation => false,
        Subject::User { groups: of_user } => !groups.is_disjoint(of_user),
        Subject::Group(group) => groups.contains(&group),
    };
    if inside { Ok(()) } else { Err(Denied::Outside) }
}

/// Whether somebody may make another an administrator with this role, or take it from one: who may administer
/// administrators, and has everything himself that the role has, for at least the same users.
///
/// # Errors
/// Why not.
pub fn may_grant(asker: &Asker, role: &Role) -> Result<(), Denied> {
    let own = match asker {
        Asker::BreakGlass => return Ok(()),
        Asker::Admin { role, .. } => role,
    };
    if !own.permissions.contains(&Permission::EditAdmins) || !own.permissions.is_superset(&role.permissions) {
        return Err(Denied::Permission);
    }
    match (&own.groups, &role.groups) {
        (None, _) => Ok(()),
        (Some(own), Some(of_role)) if of_role.is_subset(own) => Ok(()),
        (Some(_), _) => Err(Denied::Outside),
    }
}
