//! Roles: four that are there, and those that an organisation makes.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use hedgerow_shared::EntityId;
use serde::{Deserialize, Serialize};

use super::Permission;
use crate::CoreError;

/// Groups that a role may be limited to.
pub const MAX_ROLE_GROUPS: usize = 100;

/// Roles that every organisation has, and that nobody changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Predefined {
    /// Everything, roles and administrators included.
    Security,
    /// Everything but roles and administrators.
    Enterprise,
    /// Users and devices: add, activate, assign, lock, erase work data.
    SeniorHelpdesk,
    /// Look, activate, lock.
    JuniorHelpdesk,
}

impl Predefined {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Security, Self::Enterprise, Self::SeniorHelpdesk, Self::JuniorHelpdesk];

    /// As it is stored, and typed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Security => "security",
            Self::Enterprise => "enterprise",
            Self::SeniorHelpdesk => "senior-helpdesk",
            Self::JuniorHelpdesk => "junior-helpdesk",
        }
    }

    /// What it includes.
    #[must_use]
    pub fn permissions(self) -> BTreeSet<Permission> {
        use Permission::{
            ActivationPasswords, AskDevices, AssignApps, AssignProfiles, DeleteWorkData, EditAdmins, EditGroups,
            EditRoles, EditUsers, LockDevices, ManageDevices, RemoveUsers, ViewApps, ViewDevices, ViewGroups,
            ViewProfiles, ViewReports, ViewUsers,
        };
        let junior =
            [ViewUsers, ViewGroups, ViewProfiles, ViewDevices, ViewApps, ActivationPasswords, AskDevices, LockDevices];
        let senior = [
            EditUsers,
            RemoveUsers,
            EditGroups,
            AssignProfiles,
            AssignApps,
            ManageDevices,
            DeleteWorkData,
            ViewReports,
        ];
        let all = Permission::ALL.iter().copied();
        match self {
            Self::Security => all.collect(),
            Self::Enterprise => all.filter(|p| !matches!(p, EditAdmins | EditRoles)).collect(),
            Self::SeniorHelpdesk => junior.into_iter().chain(senior).collect(),
            Self::JuniorHelpdesk => junior.into(),
        }
    }
}

/// Which role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum RoleId {
    /// One that is there.
    Predefined(Predefined),
    /// One of the organisation's own.
    Custom(EntityId),
}

impl fmt::Display for RoleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Predefined(role) => f.pad(role.as_str()),
            Self::Custom(id) => id.fmt(f),
        }
    }
}

impl FromStr for RoleId {
    type Err = hedgerow_shared::id::NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match Predefined::ALL.into_iter().find(|role| role.as_str().eq_ignore_ascii_case(text)) {
            Some(role) => Ok(Self::Predefined(role)),
            None => text.parse().map(Self::Custom),
        }
    }
}

impl From<RoleId> for String {
    fn from(id: RoleId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for RoleId {
    type Error = hedgerow_shared::id::NameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// A role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    /// Which one.
    pub id: RoleId,
    /// For people; unique in the tenant, whatever its case.
    pub name: String,
    /// What it includes.
    pub permissions: BTreeSet<Permission>,
    /// For the users of these groups alone; `None`: for all.
    pub groups: Option<BTreeSet<EntityId>>,
}

impl Role {
    /// One that is there.
    #[must_use]
    pub fn predefined(role: Predefined) -> Self {
        let name = role.as_str().to_owned();
        Self { id: RoleId::Predefined(role), name, permissions: role.permissions(), groups: None }
    }

    /// Checks one of the organisation's own.
    ///
    /// # Errors
    /// `Invalid`, with what is wrong.
    pub(crate) fn check(&self) -> Result<(), CoreError> {
        if self.permissions.is_empty() {
            return Err(CoreError::invalid("the role", "it includes nothing"));
        }
        if Predefined::ALL.iter().any(|role| role.as_str().eq_ignore_ascii_case(&self.name)) {
            return Err(CoreError::Exists { kind: "role", name: self.name.clone() });
        }
        match &self.groups {
            Some(groups) if groups.is_empty() => {
                Err(CoreError::invalid("the role", "it is limited to no group at all"))
            }
            Some(groups) if groups.len() > MAX_ROLE_GROUPS => {
                Err(CoreError::invalid("the role", format!("at most {MAX_ROLE_GROUPS} groups")))
            }
            Some(_) | None => Ok(()),
        }
    }
}
