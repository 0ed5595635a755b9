//! Who is under which enterprise connectivity profile, as the configuration in force has it.
//!
//! It is worked out when something has changed and kept, so that every document of one version says the same.

use std::collections::HashMap;

use hedgerow_shared::EntityId;
use hedgerow_shared::verify::{Scope, Scopes};
use serde::{Deserialize, Serialize};

use crate::profile::Connectivity;

/// The largest part of the nodes' document that scopes may take, bytes: some 120,000 devices under other profiles than the
/// default. The rest is for rules and revocations.
pub const MAX_SCOPES: usize = 3 * 1024 * 1024;

/// The profiles that have effect on devices, each with its devices. Empty where there are no such profiles.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Placement {
    /// In the order of their first device.
    pub placed: Vec<Placed>,
}

/// Devices under one profile, in quarantine, or under none although others are under the default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// What they are under.
    pub under: Under,
    /// What it sets.
    pub settings: Connectivity,
    /// Its name and devices, as nodes are told.
    #[serde(flatten)]
    pub scope: Scope,
}

/// What a device is under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Under {
    /// No enterprise connectivity profile.
    Nothing,
    /// This one.
    Profile(EntityId),
    /// Its compliance profile's quarantine, whatever else there is: it reaches nothing but the core.
    Quarantine,
}

/// Something to be under, with what nodes and devices are told of it.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) under: Under,
    pub(crate) name: String,
    pub(crate) settings: Connectivity,
}

impl Terms {
    pub(crate) fn nothing() -> Self {
        Self { under: Under::Nothing, name: "no profile".to_owned(), settings: Connectivity::default() }
    }

    pub(crate) fn quarantine() -> Self {
        let settings = Connectivity { enabled: false, tunnel: false, ..Connectivity::default() };
        Self { under: Under::Quarantine, name: "quarantine".to_owned(), settings }
    }
}

impl Placement {
    /// Puts devices under what has effect on each. The `default` stands for all devices that are not named.
    pub(crate) fn new(of: impl IntoIterator<Item = (EntityId, Terms)>, default: Option<Terms>) -> Self {
        let mut placed: Vec<Placed> = Vec::new();
        let mut known: HashMap<Under, usize> = HashMap::new();
        let rest = default.as_ref().map_or(Under::Nothing, |terms| terms.under);
        placed.extend(default.map(|terms| Placed::of(terms, true)));
        for (device, terms) in of {
            if terms.under == rest {
                continue;
            }
            let at = *known.entry(terms.under).or_insert_with(|| {
                placed.push(Placed::of(terms, false));
                placed.len() - 1
            });
            placed[at].scope.devices.push(device);
        }
        Self { placed }
    }

    /// As nodes are told.
    pub(crate) fn scopes(&self) -> Vec<Scope> {
        self.placed.iter().map(|p| p.scope.clone()).collect()
    }

    /// Whether documents have room for it.
    pub(crate) fn fits(&self) -> bool {
        serde_json::to_vec(&self.scopes()).is_ok_and(|text| text.len() <= MAX_SCOPES)
    }

    /// This one, with other devices in quarantine: what counts when a new one cannot be put in force.
    pub(crate) fn with_quarantine(mut self, devices: &[EntityId]) -> Self {
        self.placed.retain(|placed| placed.under != Under::Quarantine);
        if !devices.is_empty() {
            // The first scope that names a device counts.
            let mut quarantine = Placed::of(Terms::quarantine(), false);
            quarantine.scope.devices = devices.to_vec();
            self.placed.insert(0, quarantine);
        }
        self
    }

    /// For looking up devices.
    #[must_use]
    pub fn index(&self) -> Scopes {
        Scopes::new(&self.scopes())
    }

    /// Devices that are named.
    #[must_use]
    pub fn devices(&self) -> usize {
        self.placed.iter().map(|p| p.scope.devices.len()).sum()
    }
}

impl Placed {
    fn of(terms: Terms, rest: bool) -> Self {
        let Terms { under, name, settings } = terms;
        let scope = Scope {
            name,
            enabled: settings.enabled,
            tunnel: settings.tunnel,
            rules: settings.rules.clone(),
            rest,
            devices: Vec::new(),
        };
        Self { under, settings, scope }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> EntityId {
        EntityId::from_random([n; 16])
    }

    fn terms(n: u8, name: &str) -> Terms {
        Terms { under: Under::Profile(id(n)), name: name.into(), settings: Connectivity::default() }
    }

    #[test]
    fn p21_quarantine_counts_before_everything_that_is_in_force() {
        let devices = [(id(1), terms(9, "field")), (id(2), Terms::quarantine()), (id(3), terms(8, "default"))];
        let placement = Placement::new(devices, Some(terms(8, "default")));
        let of = |placement: &Placement, n: u8| {
            placement
                .index()
                .of(&id(n))
                .map(|at| (placement.placed[at].scope.name.clone(), placement.placed[at].scope.enabled))
        };
        assert_eq!(of(&placement, 2), Some(("quarantine".into(), false)));
        assert_eq!(of(&placement, 7), Some(("default".into(), true)), "the default stands for all that are not named");
        assert_eq!(placement.devices(), 2, "and names none");
        let later = placement.with_quarantine(&[id(1), id(7)]);
        assert_eq!(of(&later, 1), Some(("quarantine".into(), false)), "also where a profile names it");
        assert_eq!(of(&later, 7), Some(("quarantine".into(), false)));
        assert_eq!(of(&later, 2), Some(("default".into(), true)), "and nobody else any more");
    }
}
