//! What a command takes, as it is kept: sealed, because it may hold passwords.

use hedgerow_shared::{EntityId, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::random::Random;
use crate::seal::{Kek, SealError};

/// Properties of a command. Their names stay readable, for administrators; their values do not.
///
/// As JSON the two forms cannot be taken for each other: a list is sealed, an object is not.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Properties {
    /// Their names, and all of them as JSON, sealed under the key-encryption key for this one command.
    Sealed(Vec<String>, #[serde(with = "crate::encoding::base64")] Vec<u8>),
    /// In clear: none at all, or as versions before this one wrote them.
    Clear(Map<String, Value>),
}

impl Default for Properties {
    fn default() -> Self {
        Self::Clear(Map::new())
    }
}

/// Names only.
impl std::fmt::Debug for Properties {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl Properties {
    /// Seals properties for a command; none need no seal.
    pub(crate) fn seal(
        kek: &Kek,
        (tenant, id): (&TenantId, EntityId),
        properties: Map<String, Value>,
        random: &mut dyn Random,
    ) -> Self {
        if properties.is_empty() {
            return Self::default();
        }
        let names = properties.keys().cloned().collect();
        let text = zeroize::Zeroizing::new(Value::Object(properties).to_string());
        Self::Sealed(names, kek.seal(&place(tenant, &id.to_string()), text.as_bytes(), random))
    }

    /// The properties of that command.
    ///
    /// # Errors
    /// `SealError`: they are another command's, sealed under another key, or damaged.
    pub(crate) fn open(&self, kek: &Kek, (tenant, id): (&TenantId, EntityId)) -> Result<Map<String, Value>, SealError> {
        match self {
            Self::Clear(properties) => Ok(properties.clone()),
            Self::Sealed(_, sealed) => {
                let text = kek.open(&place(tenant, &id.to_string()), sealed)?;
                serde_json::from_slice(&text).map_err(|_| SealError)
            }
        }
    }

    /// What they are called, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let (sealed, clear) = match self {
            Self::Sealed(names, _) => (Some(names), None),
            Self::Clear(properties) => (None, Some(properties)),
        };
        let clear = clear.into_iter().flat_map(|properties| properties.keys());
        sealed.into_iter().flatten().chain(clear).map(String::as_str)
    }
}

fn place<'a>(tenant: &'a TenantId, id: &'a str) -> [&'a str; 3] {
    [tenant.as_str(), "command", id]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p22_the_form_says_whether_properties_are_sealed_and_each_command_opens_its_own_alone() {
        let (kek, tenant) = (Kek::new(&[7; 32]), "S12345678".parse().unwrap());
        let (one, other) = (EntityId::from_random([1; 16]), EntityId::from_random([2; 16]));
        // An object that looks like what is sealed, as near as an object can.
        for text in [r#"{"newPassword":"hunter2 ü"}"#, r#"{"0":["a"],"1":"AA==","Sealed":[["a"],"AA=="]}"#, "{}"] {
            let map: Map<String, Value> = serde_json::from_str(text).unwrap();
            let old: Properties = serde_json::from_str(text).unwrap();
            assert!(old == Properties::Clear(map.clone()) && old.open(&kek, (&tenant, one)) == Ok(map.clone()));
            let sealed = Properties::seal(&kek, (&tenant, one), map.clone(), &mut |b: &mut [u8]| b.fill(3));
            let stored = serde_json::to_string(&sealed).unwrap();
            assert!(!stored.contains("hunter2") && !format!("{sealed:?}{old:?}").contains("hunter2"), "{stored}");
            let back: Properties = serde_json::from_str(&stored).unwrap();
            assert_eq!(back, sealed);
            assert_eq!(back.open(&kek, (&tenant, one)), Ok(map.clone()));
            assert!(back.names().eq(map.keys()));
            if !map.is_empty() {
                assert!(matches!(back, Properties::Sealed(..)));
                assert!(back.open(&kek, (&tenant, other)).is_err());
                assert!(back.open(&Kek::new(&[8; 32]), (&tenant, one)).is_err());
            }
        }
    }
}
