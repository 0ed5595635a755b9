//! What is on a device against what is to be.

use std::collections::{BTreeMap, BTreeSet};

use super::{Disposition, EffectiveApp, List, Listing};
use crate::compliance::AppFindings;
use crate::inventory::InstalledApp;
use crate::profile::Platform;

/// Finds required apps that are missing, apps that must not be there, and, where the platform has a list of approved
/// ones, apps that are neither on it nor assigned. Identifiers are compared as they are. An app that is restricted is that
/// alone, approved or not; one that is required and restricted is wrong either way.
#[must_use]
pub fn compare(
    installed: &[InstalledApp],
    effective: &[EffectiveApp],
    listed: &[Listing],
    platform: Platform,
) -> AppFindings {
    let to_be: BTreeMap<&str, Disposition> = effective
        .iter()
        .filter(|one| one.app.platform == platform)
        .map(|one| (one.app.identifier.as_str(), one.disposition))
        .collect();
    let there: BTreeSet<&str> = installed.iter().map(|app| app.identifier.as_str()).collect();
    let (restricted, approved) =
        (Marked::of(listed, List::Restricted, platform), Marked::of(listed, List::Approved, platform));
    let mut findings = AppFindings::default();
    for (identifier, disposition) in &to_be {
        if *disposition == Disposition::Required && !there.contains(identifier) {
            findings.missing.push((*identifier).to_owned());
        }
    }
    for identifier in there {
        match to_be.get(identifier) {
            Some(Disposition::Denied) => findings.restricted.push(identifier.to_owned()),
            _ if restricted.has(identifier) => findings.restricted.push(identifier.to_owned()),
            Some(Disposition::Required | Disposition::Optional) => {}
            None if !approved.is_empty() && !approved.has(identifier) => {
                findings.unapproved.push(identifier.to_owned())
            }
            None => {}
        }
    }
    findings
}

/// The entries of one list on one platform.
struct Marked<'a> {
    whole: BTreeSet<&'a str>,
    begins: Vec<&'a str>,
}

impl<'a> Marked<'a> {
    fn of(listed: &'a [Listing], list: List, platform: Platform) -> Self {
        let mut marked = Self { whole: BTreeSet::new(), begins: Vec::new() };
        for entry in listed.iter().filter(|entry| entry.list == list && entry.platform == platform) {
            match entry.identifier.strip_suffix('*') {
                Some(begin) => marked.begins.push(begin),
                None => _ = marked.whole.insert(&entry.identifier),
            }
        }
        marked
    }

    fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.begins.is_empty()
    }

    fn has(&self, identifier: &str) -> bool {
        self.whole.contains(identifier) || self.begins.iter().any(|begin| identifier.starts_with(begin))
    }
}
