//! From facts to findings.

use hedgerow_shared::UnixTime;
use serde::{Deserialize, Serialize};

use super::{Rule, Standing, Watch};
use crate::inventory::Attributes;
use crate::profile::{Compliance, Platform};

/// Things that one finding names; it counts all.
const NAMED: usize = 20;
/// Seconds of an hour.
const HOUR: u64 = 3600;

/// What is known of a device.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Its family of operating systems.
    pub platform: Option<Platform>,
    /// What it told of itself; `None`: nothing yet.
    pub attributes: Option<&'a Attributes>,
    /// What is wrong with its apps; `None`: it has not told them.
    pub apps: Option<&'a AppFindings>,
    /// When it activated.
    pub created: UnixTime,
    /// When it last spoke with the core.
    pub last_seen: Option<UnixTime>,
    /// Since when it could have done so without interruption; `None`: not known.
    pub available: Option<UnixTime>,
    /// How it stood before.
    pub before: Option<&'a Standing>,
}

/// Apps that make a device break a rule, by identifier.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AppFindings {
    /// Required, and not there.
    pub missing: Vec<String>,
    /// There, and must not be.
    pub restricted: Vec<String>,
    /// There, and not on the list of what may be.
    pub unapproved: Vec<String>,
}

/// A rule that is broken, and by what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which.
    pub rule: Rule,
    /// By what, for people: a version, apps; at most `NAMED`.
    pub what: Vec<String>,
    /// How many there are.
    pub count: u32,
}

/// Rules of the profile that the device breaks, in the order of rules.
///
/// What a device has not told breaks no rule but `hardware` with a list of allowed ones, `outOfContact` and `notTold`: who
/// keeps silent is found by these, and not taken for rooted. A platform that is unknown has no minimum.
///
/// Silence begins to count when the device could have spoken (`available`), so that neither an absence of the core nor a jump
/// of its clock is taken for it. Silence that stands already goes on until the device is heard.
#[must_use]
pub fn judge(profile: &Compliance, facts: Facts<'_>, now: UnixTime) -> Vec<Finding> {
    let mut watched = profile.rules.clone();
    // Lists of hardware are watched without being asked to: they stand in the profile for that.
    watched.entry(Rule::Hardware).or_default();
    watched.iter().filter_map(|(rule, watch)| broken(*rule, watch, profile, facts, now)).collect()
}

fn broken(rule: Rule, watch: &Watch, profile: &Compliance, facts: Facts<'_>, now: UnixTime) -> Option<Finding> {
    let one = |what: String| Some(Finding { rule, what: vec![what], count: 1 });
    let many = |what: Option<&Vec<String>>| {
        let what = what.filter(|what| !what.is_empty())?;
        let count = u32::try_from(what.len()).unwrap_or(u32::MAX);
        Some(Finding { rule, what: what.iter().take(NAMED).cloned().collect(), count })
    };
    let told = facts.attributes;
    match rule {
        Rule::Hardware => {
            // Before it has told anything it is nothing yet.
            let hardware = told?.hardware();
            let named = [hardware.vendor, hardware.brand, hardware.model].join(" ").trim().to_owned();
            if profile.allows(hardware) { None } else { one(if named.is_empty() { "not told".into() } else { named }) }
        }
        Rule::Compromised => (told?.compromised == Some(true)).then(|| one("rooted or jailbroken".into()))?,
        Rule::OsVersion => {
            let (version, minimum) = (told?.os_version.as_deref()?, watch.minimum.get(&facts.platform?)?);
            (numbers(version) < numbers(minimum)).then(|| one(format!("{version}, at least {minimum} is wanted")))?
        }
        Rule::SecurityPatch => {
            let (level, minimum) = (told?.security_patch_level.as_deref()?, watch.minimum_patch.as_deref()?);
            // Days written alike are in the order of their texts.
            (level < minimum).then(|| one(format!("{level}, at least {minimum} is wanted")))?
        }
        Rule::Encryption => (told?.encrypted == Some(false)).then(|| one("not encrypted".into()))?,
        Rule::Password => (told?.password_set == Some(false)).then(|| one("no password".into()))?,
        Rule::OutOfContact => late(rule, facts.last_seen, watch, facts, now).and_then(one),
        Rule::NotTold => late(rule, told.map(|told| told.told), watch, facts, now).and_then(one),
        Rule::RequiredApp => many(facts.apps.map(|apps| &apps.missing)),
        Rule::RestrictedApp => many(facts.apps.map(|apps| &apps.restricted)),
        Rule::UnapprovedApp => many(facts.apps.map(|apps| &apps.unapproved)),
    }
}

/// The text does not change while time goes on: what is found again is the same.
fn late(rule: Rule, last: Option<UnixTime>, watch: &Watch, facts: Facts<'_>, now: UnixTime) -> Option<String> {
    let hours = watch.hours?;
    let limit = hours.saturating_mul(HOUR);
    // A time that is yet to come was told by a clock that ran ahead: it says nothing.
    let heard = Some(last.unwrap_or(facts.created)).filter(|at| *at <= now);
    let causes = facts.before.map(|before| &before.causes[..]).unwrap_or_default();
    let begun = causes.iter().find(|cause| cause.finding.rule == rule && cause.since <= now).map(|cause| cause.since);
    let goes_on = begun.is_some_and(|begun| heard.is_none_or(|at| at < begun && now.since(at) >= limit));
    let begins = facts.available.is_some_and(|since| now.since(heard.unwrap_or(since).max(since)) >= limit);
    (goes_on || begins).then(|| match last {
        Some(_) => format!("for more than {hours} h"),
        None => format!("never, and it activated more than {hours} h ago"),
    })
}

/// Versions as people compare them: number by number. A missing one is a zero.
fn numbers(version: &str) -> Vec<u64> {
    let parts = version.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    let mut numbers: Vec<u64> = parts.map(|part| part.parse().unwrap_or(u64::MAX)).collect();
    while numbers.last() == Some(&0) {
        numbers.pop();
    }
    numbers
}
