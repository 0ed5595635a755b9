//! What a compliance profile can watch, and what it can have done.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::CoreError;
use crate::command::Kind;
use crate::profile::Platform;

/// Steps that one rule may have.
pub const MAX_STEPS: usize = 8;
/// The longest time of a rule or a step, hours: a year.
const MAX_HOURS: u64 = 366 * 24;

/// What can be wrong with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Rule {
    /// Its hardware is not on the profile's list of allowed, or on that of restricted.
    Hardware,
    /// It is rooted or jailbroken.
    Compromised,
    /// Its operating system is older than the `minimum` of its platform.
    OsVersion,
    /// Its security patches are older than `minimumPatch`.
    SecurityPatch,
    /// Its storage is not encrypted.
    Encryption,
    /// It has no password.
    Password,
    /// It has not spoken with the core for `hours`.
    OutOfContact,
    /// It has not told what it is for `hours`.
    NotTold,
    /// An app that it must have is missing.
    RequiredApp,
    /// An app is on it that must not be.
    RestrictedApp,
    /// An app is on it that is not on the list of approved ones, where there is one.
    UnapprovedApp,
}

impl Rule {
    /// As settings and lists write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hardware => "hardware",
            Self::Compromised => "compromised",
            Self::OsVersion => "osVersion",
            Self::SecurityPatch => "securityPatch",
            Self::Encryption => "encryption",
            Self::Password => "password",
            Self::OutOfContact => "outOfContact",
            Self::NotTold => "notTold",
            Self::RequiredApp => "requiredApp",
            Self::RestrictedApp => "restrictedApp",
            Self::UnapprovedApp => "unapprovedApp",
        }
    }

    /// Whether it is broken by hearing nothing: what the core hears depends on the core as well.
    #[must_use]
    pub fn is_silence(self) -> bool {
        matches!(self, Self::OutOfContact | Self::NotTold)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What is done about a device that breaks a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Nothing but the record of it.
    Monitor,
    /// It reaches nothing of the organisation but the core, as long as the rule is broken.
    Quarantine,
    /// It is locked.
    Lock,
    /// Its work space is locked away, as long as somebody does not enable it.
    DisableWorkSpace,
    /// What belongs to the organisation is erased.
    DeleteWorkData,
    /// Everything is erased.
    DeleteAllData,
}

impl Action {
    /// As settings and lists write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Monitor => "monitor",
            Self::Quarantine => "quarantine",
            Self::Lock => "lock",
            Self::DisableWorkSpace => "disableWorkSpace",
            Self::DeleteWorkData => "deleteWorkData",
            Self::DeleteAllData => "deleteAllData",
        }
    }

    /// The command that does it, where one does.
    #[must_use]
    pub fn command(self) -> Option<Kind> {
        match self {
            Self::Monitor | Self::Quarantine => None,
            Self::Lock => Some(Kind::LockDevice),
            Self::DisableWorkSpace => Some(Kind::DisableWorkSpace),
            Self::DeleteWorkData => Some(Kind::DeleteWorkSpaceData),
            Self::DeleteAllData => Some(Kind::DeleteDeviceData),
        }
    }

    /// Whether it cannot be undone.
    #[must_use]
    pub fn erases(self) -> bool {
        self.command().is_some_and(Kind::ends_the_device)
    }
}

/// One thing to be done, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Step {
    /// What.
    pub action: Action,
    /// How long the rule has to be broken before, hours.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub after_hours: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// How a rule is watched. A rule that does not stand in a profile is not watched.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Watch {
    /// What is done, in any order; none: the device is recorded as not compliant, and that is all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// `outOfContact`, `notTold`: after how long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hours: Option<u64>,
    /// `osVersion`: the oldest version that passes, by platform; a platform that is not there has none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub minimum: BTreeMap<Platform, String>,
    /// `securityPatch`: the oldest day that passes, `YYYY-MM-DD`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_patch: Option<String>,
}

impl Watch {
    /// Whether it makes sense for the rule.
    ///
    /// # Errors
    /// `Invalid`, with what is wrong.
    pub fn check(&self, rule: Rule) -> Result<(), CoreError> {
        let wrong = |why: String| Err(CoreError::invalid("the compliance profile", format!("rule {rule}: {why}")));
        if self.steps.len() > MAX_STEPS {
            return wrong(format!("it has more than {MAX_STEPS} steps"));
        }
        let timed = rule.is_silence();
        match self.hours {
            Some(hours) if timed && !(1..=MAX_HOURS).contains(&hours) => {
                return wrong(format!("hours: use 1 to {MAX_HOURS}"));
            }
            None if timed => return wrong("hours is missing: after how long?".to_owned()),
            Some(_) if !timed => return wrong("hours is not for this rule".to_owned()),
            Some(_) | None => {}
        }
        if self.steps.iter().any(|step| step.after_hours > MAX_HOURS) {
            return wrong(format!("afterHours: use at most {MAX_HOURS}"));
        }
        if self.minimum.is_empty() == (rule == Rule::OsVersion) {
            return wrong("minimum is for osVersion, and it needs one: {\"linux\": \"12\"}".to_owned());
        }
        if let Some(text) = self.minimum.values().find(|text| !text.contains(|c: char| c.is_ascii_digit())) {
            return wrong(format!("minimum: {text:?} has no number"));
        }
        if self.minimum_patch.is_some() != (rule == Rule::SecurityPatch) {
            return wrong("minimumPatch is for securityPatch, and it needs one: \"2026-01-05\"".to_owned());
        }
        let is_day = |text: &String| {
            text.len() == 10
                && text.bytes().enumerate().all(|(n, b)| if n == 4 || n == 7 { b == b'-' } else { b.is_ascii_digit() })
        };
        if self.minimum_patch.as_ref().is_some_and(|text| !is_day(text)) {
            return wrong("minimumPatch: expected a day such as 2026-01-05".to_owned());
        }
        Ok(())
    }
}
