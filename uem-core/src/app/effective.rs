//! Which apps a device is to have, and why.
//!
//! Assignments to the user come before all that come by groups; among several on one level denied comes before required,
//! and that before optional. An app that is assigned itself and by a group of apps counts by either. Of the configurations
//! that come with any assignment of the app, the one with the first rank has effect, whichever assignment won. Apps of
//! other platforms are not there at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use hedgerow_shared::EntityId;
use serde::{Deserialize, Serialize};

use super::{App, AppConfig, Disposition};
use crate::profile::{Platform, Reason};

/// By what an app is assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "through", content = "group", rename_all = "snake_case")]
pub enum Through {
    /// By itself.
    Itself,
    /// As one of a group of apps.
    AppGroup(EntityId),
}

/// An app that is assigned to a user, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// It.
    pub app: Arc<App>,
    /// By what.
    pub through: Through,
    /// `User` or `Group`.
    pub reason: Reason,
    /// What is to be with it.
    pub disposition: Disposition,
    /// With which configuration.
    pub config: Option<Arc<AppConfig>>,
}

/// What is to be with an app on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveApp {
    /// It.
    pub app: Arc<App>,
    /// What is to be with it.
    pub disposition: Disposition,
    /// Which assignment won: by what.
    pub through: Through,
    /// Which assignment won: to whom.
    pub reason: Reason,
    /// The configuration that has effect.
    pub config: Option<Arc<AppConfig>>,
    /// Assignments that would have had another effect, the next one first.
    pub passed_over: Vec<(Disposition, Passed)>,
}

/// Why an assignment has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Passed {
    /// The one that has effect is to the user, this one to a group.
    AssignedToGroup,
    /// Both are alike, and this one's disposition comes behind.
    Disposition,
}

/// Works out what has effect, of `assigned` in any order and with any number of assignments of one app. By identifier.
#[must_use]
pub fn effective(assigned: Vec<Assigned>, platform: Option<Platform>) -> Vec<EffectiveApp> {
    let mut by_app: BTreeMap<(Platform, String, EntityId), Vec<Assigned>> = BTreeMap::new();
    for one in assigned.into_iter().filter(|one| platform.is_none_or(|platform| one.app.platform == platform)) {
        by_app.entry((one.app.platform, one.app.identifier.clone(), one.app.id)).or_default().push(one);
    }
    by_app.into_values().filter_map(of_one).collect()
}

fn of_one(mut of: Vec<Assigned>) -> Option<EffectiveApp> {
    // What is told as the reason does not depend on the order either.
    of.sort_by(|a, b| order(a).cmp(&order(b)));
    let config = of.iter().filter_map(|one| one.config.clone()).min_by_key(|config| (config.rank, config.id));
    let mut of = of.into_iter();
    let first = of.next()?;
    let mut passed_over: Vec<_> = of
        .filter(|one| one.disposition != first.disposition)
        .map(|one| match is_direct(&one.reason) == is_direct(&first.reason) {
            true => (one.disposition, Passed::Disposition),
            false => (one.disposition, Passed::AssignedToGroup),
        })
        .collect();
    passed_over.dedup();
    // An app that must not be there has nothing to configure.
    let config = config.filter(|_| first.disposition != Disposition::Denied);
    let Assigned { app, through, reason, disposition, .. } = first;
    Some(EffectiveApp { app, disposition, through, reason, config, passed_over })
}

fn is_direct(reason: &Reason) -> bool {
    matches!(reason, Reason::User)
}

/// Level, disposition; then what is told: itself before a group of apps, the shorter way, smaller ids.
fn order(one: &Assigned) -> (bool, Disposition, Through, usize, &[EntityId]) {
    let way: &[EntityId] = match &one.reason {
        Reason::Group { way } => way,
        Reason::User | Reason::Default => &[],
    };
    (!is_direct(&one.reason), one.disposition, one.through, way.len(), way)
}
