//! Which devices have rules of their own at nodes: what enterprise connectivity profiles come to.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::policy::Rule;
use crate::EntityId;

/// Rules for some devices, before those for all. A device is in one scope at most.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scope {
    /// The profile's name, for logs and refusals.
    pub name: String,
    /// Whether its devices reach anything through nodes at all.
    pub enabled: bool,
    /// Whether they may have an IP tunnel.
    pub tunnel: bool,
    /// They are looked at before the rules for all; first match decides.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Stands for every device that is in no other scope.
    #[serde(default)]
    pub rest: bool,
    /// Its devices.
    #[serde(default, with = "packed")]
    pub devices: Vec<EntityId>,
}

/// Looks up the scope of a device: where it stands in the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scopes {
    by_device: HashMap<EntityId, usize>,
    rest: Option<usize>,
}

impl Scopes {
    /// Reads a list. Of two scopes that name a device the first counts.
    #[must_use]
    pub fn new(scopes: &[Scope]) -> Self {
        let mut by_device = HashMap::with_capacity(scopes.iter().map(|s| s.devices.len()).sum());
        for (at, scope) in scopes.iter().enumerate() {
            for device in &scope.devices {
                by_device.entry(*device).or_insert(at);
            }
        }
        Self { by_device, rest: scopes.iter().position(|scope| scope.rest) }
    }

    /// The scope of a device; `None` when only the rules for all apply.
    #[must_use]
    pub fn of(&self, device: &EntityId) -> Option<usize> {
        self.by_device.get(device).copied().or(self.rest)
    }
}

/// Ids behind one another, as base64: 22 characters each.
mod packed {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::EntityId;

    const LENGTH: usize = 16;

    pub(super) fn serialize<S: Serializer>(ids: &[EntityId], s: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| *id.as_bytes()).collect();
        s.serialize_str(&data_encoding::BASE64_NOPAD.encode(&bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<EntityId>, D::Error> {
        use serde::de::Error;
        let text = String::deserialize(d)?;
        let bytes = data_encoding::BASE64_NOPAD.decode(text.as_bytes()).map_err(|_| D::Error::custom("not base64"))?;
        let (ids, rest) = bytes.as_chunks::<LENGTH>();
        if !rest.is_empty() {
            return Err(D::Error::custom("the devices of a scope are not whole ids"));
        }
        Ok(ids.iter().map(|id| EntityId::from_bytes(*id)).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn id(n: u8) -> EntityId {
        EntityId::from_random([n; 16])
    }

    #[test]
    fn p21_a_device_is_in_the_first_scope_that_names_it_else_in_the_rest() {
        let scope = |name: &str, devices: &[u8], rest| Scope {
            name: name.into(),
            devices: devices.iter().map(|n| id(*n)).collect(),
            rest,
            ..Scope::default()
        };
        let list = [scope("a", &[1, 2], false), scope("rest", &[], true), scope("b", &[2, 3], false)];
        let text = serde_json::to_string(&list).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Scope>>(&text).unwrap(), list);
        let scopes = Scopes::new(&list);
        let at = |n| scopes.of(&id(n));
        assert_eq!([at(1), at(2), at(3), at(9)], [Some(0), Some(0), Some(2), Some(1)]);
        assert_eq!(Scopes::new(&list[..1]).of(&id(9)), None);
        let cut = text.replacen("\"devices\":\"", "\"devices\":\"AA", 1);
        assert!(serde_json::from_str::<Vec<Scope>>(&cut).is_err(), "{cut}");
    }
}
