//! The commented example files: each can be used, names every key, and shows the defaults.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use hedgerow_connectivity_node::NodeConfigFile;
use hedgerow_device::config::DeviceConfigFile;
use hedgerow_management::CoreConfig;
use hedgerow_relay::RelayConfig;
use hedgerow_runtime::config::Sources;

use crate::role::{self, RoleConfig};

fn example(role: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../examples/{role}.toml"))
}

/// Loads the example, and the same with only `needed` keys set; the two must agree: what the example shows beyond them
/// are the defaults.
fn check<T: RoleConfig + PartialEq + std::fmt::Debug>(role: &str, set: &[(&str, &str)], needed: &[&str]) {
    let flags = set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let sources = Sources { role: role.to_owned(), file: Some(example(role)), flags, environment: Vec::new() };
    let full = role::load::<T>(&sources).unwrap_or_else(|fault| panic!("{role}: {fault}"));

    let text = std::fs::read_to_string(example(role)).unwrap();
    let mut bare: toml::Table = text.parse().unwrap();
    bare.retain(|key, _| needed.contains(&key));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bare.toml");
    std::fs::write(&file, bare.to_string()).unwrap();
    let bare =
        role::load::<T>(&Sources { file: Some(file), ..sources }).unwrap_or_else(|fault| panic!("{role}: {fault}"));
    assert_eq!(full.value, bare.value, "{role}: what the example shows is not the default");

    let words: BTreeSet<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let mut keys = Vec::new();
    collect(&serde_json::to_value(&full.value).unwrap(), &mut keys);
    let missing: Vec<_> = keys.iter().filter(|k| !words.contains(k.as_str())).collect();
    assert!(missing.is_empty(), "{role}: the example does not name {missing:?}");
}

fn collect(value: &serde_json::Value, keys: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, below) in map {
                keys.push(key.clone());
                collect(below, keys);
            }
        }
        serde_json::Value::Array(list) => list.iter().for_each(|v| collect(v, keys)),
        _ => {}
    }
}

#[test]
fn the_relays_example_is_complete_and_shows_the_defaults() {
    check::<RelayConfig>("relay", &[], &["name", "state", "listen"]);
}

#[test]
fn the_cores_example_is_complete_and_shows_the_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("srp.key");
    std::fs::write(&key, "0a".repeat(32)).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let set = [("srp_key_file", key.to_str().unwrap())];
    check::<CoreConfig>("core", &set, &["tenant", "name", "state", "relays"]);
}

#[test]
fn the_nodes_example_is_complete_and_shows_the_defaults() {
    check::<NodeConfigFile>("node", &[], &["state"]);
}

#[test]
fn the_devices_example_is_complete_and_shows_the_defaults() {
    check::<DeviceConfigFile>("device", &[], &["state"]);
}
