//! Everything that administrators do, in parts that are granted one by one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::CoreError;

macro_rules! permissions {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// Something that a role may include.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Permission {
            $($(#[doc = $doc])+ #[serde(rename = $text)] $name,)+
        }

        impl Permission {
            /// All there are.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// As it is stored, and typed.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

permissions! {
    /// See users.
    ViewUsers = "view-users",
    /// Add and change users, in bulk too.
    EditUsers = "edit-users",
    /// Switch users off and on, and remove them.
    RemoveUsers = "remove-users",
    /// Give and withdraw activation passwords.
    ActivationPasswords = "activation-passwords",
    /// See groups and who is in them.
    ViewGroups = "view-groups",
    /// Add and remove groups, put users and groups into them.
    EditGroups = "edit-groups",
    /// See profiles, what they set, to whom they are assigned, and what has effect.
    ViewProfiles = "view-profiles",
    /// Add, change, rank and remove profiles.
    EditProfiles = "edit-profiles",
    /// Assign profiles.
    AssignProfiles = "assign-profiles",
    /// See devices, what they told, how they stand, and their commands.
    ViewDevices = "view-devices",
    /// Have devices tell something, fetch configuration, or be judged now.
    AskDevices = "ask-devices",
    /// Lock and unlock devices and work spaces, choose passwords, lost mode.
    LockDevices = "lock-devices",
    /// Update systems, remove apps, switch work spaces.
    ManageDevices = "manage-devices",
    /// Erase what belongs to the organisation, and revoke devices.
    DeleteWorkData = "delete-work-data",
    /// Erase everything.
    DeleteAllData = "delete-all-data",
    /// See apps, configurations, lists and assignments.
    ViewApps = "view-apps",
    /// Add, change and remove apps, configurations, groups of apps and entries of lists.
    EditApps = "edit-apps",
    /// Assign apps.
    AssignApps = "assign-apps",
    /// See nodes and tokens.
    ViewNodes = "view-nodes",
    /// Make tokens, revoke nodes.
    EditNodes = "edit-nodes",
    /// See rules, routes and server names.
    ViewPolicy = "view-policy",
    /// Change rules, routes and server names.
    EditPolicy = "edit-policy",
    /// See how the organisation and its core stand.
    ViewTenant = "view-tenant",
    /// Change its settings, raise the epoch.
    EditTenant = "edit-tenant",
    /// Read, export and verify the audit record.
    ViewAudit = "view-audit",
    /// Reports.
    ViewReports = "view-reports",
    /// See roles and administrators.
    ViewAdmins = "view-admins",
    /// Make administrators and take that back, set their passwords.
    EditAdmins = "edit-admins",
    /// Add, change and remove roles.
    EditRoles = "edit-roles",
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Permission {
    type Err = CoreError;

    fn from_str(text: &str) -> Result<Self, CoreError> {
        Self::ALL.iter().copied().find(|p| p.as_str().eq_ignore_ascii_case(text.trim())).ok_or_else(|| {
            let all: Vec<_> = Self::ALL.iter().map(|p| p.as_str()).collect();
            CoreError::invalid("the permission", format!("there are {}", all.join(", ")))
        })
    }
}
