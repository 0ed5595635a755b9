//! Apps or packages that are on a device.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::account;

/// Apps of one device that are kept; those behind them in the order of identifiers are not.
pub const MAX_APPS: usize = 8000;

/// An app that is on a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InstalledApp {
    /// What it is known by: bundle id, package id, or package name.
    pub identifier: String,
    /// For people.
    pub name: String,
    /// As the device writes it; may be empty.
    pub version: String,
}

/// Reads a device's answer: `{"packages": [{"name", "version"?, "identifier"?}]}`, where a package without an identifier
/// has its name for one. Of two with one identifier (two architectures, two versions side by side) the one with the larger
/// version counts. In the order of identifiers, at most `MAX_APPS`. `None`: there is no list.
#[must_use]
pub fn read_apps(answer: &Map<String, Value>) -> Option<Vec<InstalledApp>> {
    let list = ["packages", "applications"].into_iter().find_map(|key| answer.get(key)?.as_array())?;
    let mut apps: BTreeMap<String, InstalledApp> = BTreeMap::new();
    for one in list {
        let text = |key: &str| one.get(key).and_then(Value::as_str).map(account::told).filter(|text| !text.is_empty());
        let (name, version) = (text("name"), text("version").unwrap_or_default());
        let Some(identifier) = text("identifier").or_else(|| name.clone()) else { continue };
        let app = InstalledApp { name: name.unwrap_or_else(|| identifier.clone()), version, identifier };
        match apps.get(&app.identifier) {
            Some(other) if other.version >= app.version => {}
            _ => _ = apps.insert(app.identifier.clone(), app),
        }
    }
    Some(apps.into_values().take(MAX_APPS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p40_a_list_of_packages_is_sorted_bounded_and_each_stands_once() {
        let answer = serde_json::json!({ "packages": [
            { "name": "zsh", "version": "5.9" }, { "name": "bash" }, { "name": "bash", "version": "5.2" },
            { "identifier": "com.example.mail", "name": "Mail\u{7}" }, { "version": "1" }, "odd", { "name": 5 },
        ] });
        let apps = read_apps(answer.as_object().unwrap()).unwrap();
        let told: Vec<_> = apps.iter().map(|a| (a.identifier.as_str(), a.name.as_str(), a.version.as_str())).collect();
        assert_eq!(told, [("bash", "bash", "5.2"), ("com.example.mail", "Mail", ""), ("zsh", "zsh", "5.9")]);
        let many: Vec<_> = (0..MAX_APPS + 5).map(|n| serde_json::json!({ "name": format!("p{n:05}") })).collect();
        let many = serde_json::json!({ "packages": many });
        let many = read_apps(many.as_object().unwrap()).unwrap();
        assert_eq!((many.len(), many[0].identifier.as_str()), (MAX_APPS, "p00000"));
        assert_eq!(read_apps(&Map::new()), None);
    }
}
