//! What a compliance profile wants: which hardware it lets pass, and the rules of `compliance`.
//!
//! Three lists: vendors, brands, models. A vendor stands for all its brands, a brand for all its models: "when more than
//! one of them is specified, vendors is given the highest priority, then brands, and then models". A device is on the
//! list when any of the three names it; reading a profile returns what was set, and nothing that follows from it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::CoreError;
use crate::compliance::{Rule, Watch};

/// What stands on the lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Listed {
    /// Hardware that complies; all other does not.
    Allowed,
    /// Hardware that does not comply; all other does.
    #[default]
    Restricted,
}

/// Settings of a compliance profile that the core acts on; others are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Compliance {
    /// What the three lists mean.
    pub hardware: Listed,
    /// Vendors: "Samsung".
    pub vendors: BTreeSet<String>,
    /// Brands: "Galaxy S10".
    pub brands: BTreeSet<String>,
    /// Models: "SM-G973F".
    pub models: BTreeSet<String>,
    /// Other rules, and what is done where one is broken; `hardware` may stand here for its steps.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rules: BTreeMap<Rule, Watch>,
}

/// What a device is, as it tells; unknown parts are empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hardware<'a> {
    /// Who made it.
    pub vendor: &'a str,
    /// What it is sold as.
    pub brand: &'a str,
    /// Which one exactly.
    pub model: &'a str,
}

impl Compliance {
    /// Reads a profile's settings.
    ///
    /// # Errors
    /// `Invalid`: a setting is not of its form.
    pub fn read(settings: &Map<String, Value>) -> Result<Self, CoreError> {
        let read: Self = super::read("the compliance profile", settings)?;
        read.rules.iter().try_for_each(|(rule, watch)| watch.check(*rule))?;
        Ok(read)
    }

    /// Whether the hardware complies. Names are compared whatever their case. Without any list everything does; a
    /// device that tells nothing of itself is on no list.
    #[must_use]
    pub fn allows(&self, hardware: Hardware<'_>) -> bool {
        if self.vendors.is_empty() && self.brands.is_empty() && self.models.is_empty() {
            return true;
        }
        let on = |list: &BTreeSet<String>, name: &str| {
            !name.is_empty() && list.iter().any(|entry| entry.eq_ignore_ascii_case(name))
        };
        let listed =
            on(&self.vendors, hardware.vendor) || on(&self.brands, hardware.brand) || on(&self.models, hardware.model);
        match self.hardware {
            Listed::Allowed => listed,
            Listed::Restricted => !listed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(text: &str) -> Compliance {
        Compliance::read(&serde_json::from_str(text).unwrap()).unwrap()
    }

    const S9: Hardware<'_> = Hardware { vendor: "Samsung", brand: "Galaxy S9", model: "SM-G960F" };
    const S10: Hardware<'_> = Hardware { vendor: "samsung", brand: "Galaxy S10", model: "SM-G973FD" };
    const EDGE: Hardware<'_> = Hardware { vendor: "Motorola", brand: "Edge", model: "XT2063" };

    #[test]
    fn p21_a_vendor_on_the_list_covers_brands_that_are_not() {
        for (word, on) in [("allowed", true), ("restricted", false)] {
            let both = profile(&format!(r#"{{"hardware":"{word}","vendors":["Samsung"],"brands":["Galaxy S10"]}}"#));
            assert_eq!([S9, S10, EDGE].map(|h| both.allows(h)), [on, on, !on], "{word}");
        }
    }

    #[test]
    fn p21_a_brand_on_the_list_covers_models_that_are_not() {
        let both = profile(r#"{"hardware":"allowed","brands":["Galaxy S10"],"models":["SM-G973F","SM-G973N"]}"#);
        assert_eq!([S9, S10, EDGE].map(|h| both.allows(h)), [false, true, false]);
        let models = profile(r#"{"hardware":"allowed","models":["SM-G973F","SM-G973N"]}"#);
        assert!(!models.allows(S10), "only those");
    }

    #[test]
    fn p21_reading_returns_what_was_set_and_nothing_more() {
        let text = r#"{"hardware":"restricted","vendors":["Samsung"],"brands":[],"models":[]}"#;
        assert_eq!(serde_json::to_string(&profile(text)).unwrap(), text);
        assert!(profile("{}").allows(Hardware::default()));
        assert!(!profile(r#"{"hardware":"allowed","vendors":["Samsung"]}"#).allows(Hardware::default()));
        let wrong = Compliance::read(&serde_json::from_str(r#"{"vendors":"Samsung"}"#).unwrap());
        assert!(wrong.unwrap_err().to_string().contains("compliance profile is not valid: vendors: "));
    }
}
