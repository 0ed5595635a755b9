//! What an enterprise connectivity profile sets: how its devices reach the organisation.

use hedgerow_shared::verify::{Route, Rule, Via};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::CoreError;

/// Routes and rules that one profile may have.
const MAX_LINES: usize = 200;

/// Settings that the core acts on; others are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Connectivity {
    /// Whether its devices reach anything through nodes at all.
    pub enabled: bool,
    /// Whether they may have an IP tunnel.
    pub tunnel: bool,
    /// Routes of its devices, before those for all.
    pub routes: Vec<Route>,
    /// Where its devices send what no route covers; as for all when absent.
    pub default_route: Option<Via>,
    /// Rules of nodes for its devices, before those for all.
    pub rules: Vec<Rule>,
}

impl Default for Connectivity {
    fn default() -> Self {
        Self { enabled: true, tunnel: true, routes: Vec::new(), default_route: None, rules: Vec::new() }
    }
}

impl Connectivity {
    /// Reads a profile's settings.
    ///
    /// # Errors
    /// `Invalid`: a setting is not of its form, or there is too much of it.
    pub fn read(settings: &Map<String, Value>) -> Result<Self, CoreError> {
        let what = "the enterprise connectivity profile";
        let read: Self = super::read(what, settings)?;
        if read.routes.len() > MAX_LINES || read.rules.len() > MAX_LINES {
            return Err(CoreError::invalid(what, format!("at most {MAX_LINES} routes and as many rules")));
        }
        Ok(read)
    }

    /// The routes of its devices: its own, then those for all. Where it is not enabled nothing leads into the organisation,
    /// and what would have does not go out in the open instead.
    #[must_use]
    pub fn routes(&self, for_all: &[Route], default: &Via) -> (Vec<Route>, Via) {
        let allowed = |via: &Via| if self.enabled || !matches!(via, Via::Group(_)) { via.clone() } else { Via::Deny };
        let routes = self.routes.iter().chain(for_all).map(|route| Route { via: allowed(&route.via), ..route.clone() });
        (routes.collect(), allowed(self.default_route.as_ref().unwrap_or(default)))
    }
}
