//! Who is under which enterprise connectivity profile, as the configuration in force has it.
//!
//! It is worked out when something has changed and kept, so that every document of one version says the same.

use std::collections::HashMap;

use hedgerow_shared::EntityId;
use hedgerow_shared::verify::{Scope, Scopes};
use serde::{Deserialize, Serialize};

use crate::profile::Connectivity;

/// Devices that may stand under other profiles than the default: what a document has room for.
pub const MAX_PLACED: usize = 120_000;

/// The profiles that have effect on devices, each with its devices. Empty where there are no such profiles.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Placement {
    /// In the order of their first device.
    pub placed: Vec<Placed>,
}

/// Devices under one profile, or under none although others are under the default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// The profile; `None` for devices that are under none.
    pub profile: Option<EntityId>,
    /// What it sets.
    pub settings: Connectivity,
    /// Its name and devices, as nodes are told.
    #[serde(flatten)]
    pub scope: Scope,
}

impl Placement {
    /// Puts devices under their profiles. `of` is what has effect on each; the `default` stands for all devices that are
    /// not named.
    pub(crate) fn new(
        of: impl IntoIterator<Item = (EntityId, Option<(EntityId, String, Connectivity)>)>,
        default: Option<(EntityId, String, Connectivity)>,
    ) -> Self {
        let mut placed: Vec<Placed> = Vec::new();
        let mut known: HashMap<Option<EntityId>, usize> = HashMap::new();
        let rest = default.as_ref().map(|(id, ..)| *id);
        if let Some(default) = default {
            known.insert(rest, 0);
            placed.push(Placed::of(Some(default), true));
        }
        for (device, profile) in of {
            let id = profile.as_ref().map(|(id, ..)| *id);
            if id == rest {
                continue;
            }
            let at = *known.entry(id).or_insert_with(|| {
                placed.push(Placed::of(profile, false));
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
    fn of(profile: Option<(EntityId, String, Connectivity)>, rest: bool) -> Self {
        let (profile, name, settings) = match profile {
            Some((id, name, settings)) => (Some(id), name, settings),
            None => (None, "no profile".to_owned(), Connectivity::default()),
        };
        let scope = Scope {
            name,
            enabled: settings.enabled,
            tunnel: settings.tunnel,
            rules: settings.rules.clone(),
            rest,
            devices: Vec::new(),
        };
        Self { profile, settings, scope }
    }
}
