//! Which profiles have effect on a device, and why those.
//!
//! Of a category that does not add up, one profile has effect. One that is assigned to the user comes before all that are
//! assigned to groups; among several on one level the rank decides, the smaller number first; without any the
//! category's default has effect. Of a category that adds up, all that are assigned have effect, in the order of ranks.
//! Profiles that are switched off for the device's platform are not there at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use hedgerow_shared::EntityId;
use serde::{Deserialize, Serialize};

use super::{Category, Platform, Profile};

/// How a profile comes to a user.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "lowercase")]
pub enum Reason {
    /// Assigned to the user.
    User,
    /// Assigned to a group that the user is in.
    Group {
        /// From the group that the user stands in, up to the one that has the assignment.
        way: Vec<EntityId>,
    },
    /// The category's default: none is assigned.
    Default,
}

/// A profile that has effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// It.
    pub profile: Arc<Profile>,
    /// By what it comes to the user.
    pub reason: Reason,
    /// Profiles of its category that would have effect without it, the next one first.
    pub passed_over: Vec<(Arc<Profile>, Passed)>,
}

/// Why a profile has no effect although it is assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Passed {
    /// The one that has effect is assigned to the user, this one to a group.
    AssignedToGroup,
    /// Both are assigned alike, and this one has the larger rank.
    Rank,
}

/// A profile that is assigned to a user, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// It.
    pub profile: Arc<Profile>,
    /// `User` or `Group`.
    pub reason: Reason,
}

/// Works out what has effect: of `assigned`, in any order and with any number of ways to one profile, and of `defaults`,
/// one a category at most. By category.
#[must_use]
pub fn effective(assigned: Vec<Assigned>, defaults: Vec<Arc<Profile>>, platform: Option<Platform>) -> Vec<Effective> {
    let here = |profile: &Profile| platform.is_none_or(|platform| !profile.disabled.contains(&platform));
    let mut by_category: BTreeMap<Category, Vec<Assigned>> = BTreeMap::new();
    for one in assigned.into_iter().filter(|one| here(&one.profile)) {
        by_category.entry(one.profile.category).or_default().push(one);
    }
    for default in defaults.into_iter().filter(|default| here(default)) {
        let of = by_category.entry(default.category).or_default();
        if of.is_empty() {
            of.push(Assigned { profile: default, reason: Reason::Default });
        }
    }
    by_category.into_iter().flat_map(|(category, of)| in_category(category, of)).collect()
}

fn in_category(category: Category, mut of: Vec<Assigned>) -> Vec<Effective> {
    // The best way to each profile first.
    of.sort_by(|a, b| (a.profile.id, order(&a.reason)).cmp(&(b.profile.id, order(&b.reason))));
    of.dedup_by(|later, earlier| later.profile.id == earlier.profile.id);
    let alone = |one: Assigned| Effective { profile: one.profile, reason: one.reason, passed_over: Vec::new() };
    if category.adds_up() {
        of.sort_by_key(|one| (one.profile.rank, one.profile.id));
        return of.into_iter().map(alone).collect();
    }
    of.sort_by_key(|one| (level(&one.reason), one.profile.rank, one.profile.id));
    let mut of = of.into_iter();
    let Some(first) = of.next() else { return Vec::new() };
    let first_level = level(&first.reason);
    let passed = |one: Assigned| {
        let why = if level(&one.reason) == first_level { Passed::Rank } else { Passed::AssignedToGroup };
        (one.profile, why)
    };
    vec![Effective { passed_over: of.map(passed).collect(), ..alone(first) }]
}

fn level(reason: &Reason) -> u8 {
    match reason {
        Reason::User => 0,
        Reason::Group { .. } => 1,
        Reason::Default => 2,
    }
}

/// Which of two ways to one profile is told: the shorter.
fn order(reason: &Reason) -> (u8, usize, &[EntityId]) {
    match reason {
        Reason::Group { way } => (level(reason), way.len(), way),
        Reason::User | Reason::Default => (level(reason), 0, &[]),
    }
}
