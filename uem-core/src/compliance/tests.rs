//! Judging, and following up step by step.

use std::collections::BTreeMap;

use hedgerow_shared::{EntityId, UnixTime};
use proptest::prelude::*;

use super::*;
use crate::command::State;
use crate::inventory::Attributes;
use crate::profile::{Compliance, Platform};

const NOW: UnixTime = UnixTime(1_800_000_000);

fn profile(text: &str) -> Compliance {
    Compliance::read(&serde_json::from_str(text).unwrap()).unwrap()
}

fn told(text: &str) -> Attributes {
    Attributes::read(&serde_json::from_str(text).unwrap(), NOW)
}

fn found(profile: &Compliance, attributes: Option<&Attributes>, apps: Option<&AppFindings>) -> Vec<Rule> {
    let facts = Facts {
        platform: Some(Platform::Linux),
        attributes,
        apps,
        created: NOW,
        last_seen: Some(NOW),
        available: None,
        before: None,
    };
    judge(profile, facts, NOW).into_iter().map(|finding| finding.rule).collect()
}

#[test]
fn p21_each_rule_is_broken_by_what_it_is_about() {
    let all = profile(
        r#"{"hardware":"restricted","models":["SM-1"],"rules":{
            "compromised":{}, "osVersion":{"minimum":{"linux":"12.1"}}, "securityPatch":{"minimumPatch":"2026-01-05"},
            "encryption":{}, "password":{}, "requiredApp":{}, "restrictedApp":{}, "unapprovedApp":{}}}"#,
    );
    let bad = told(
        r#"{"hardwareModel":"sm-1","compromised":true,"osVersion":"12.0.9","securityPatchLevel":"2025-12-31",
            "encrypted":false,"passwordSet":false}"#,
    );
    let apps = AppFindings { missing: vec!["a".into()], restricted: vec!["b".into()], unapproved: vec!["c".into()] };
    assert_eq!(found(&all, Some(&bad), Some(&apps)).len(), 9);
    let good = told(
        r#"{"hardwareModel":"SM-2","compromised":false,"osVersion":"12.10","securityPatchLevel":"2026-01-05",
            "encrypted":true,"passwordSet":true}"#,
    );
    assert_eq!(found(&all, Some(&good), Some(&AppFindings::default())), []);
    // Who has told nothing is not taken for rooted.
    assert_eq!(found(&all, Some(&told("{}")), None), []);
    assert_eq!(found(&all, None, None), []);
    assert_eq!(found(&profile("{}"), Some(&bad), Some(&apps)), [], "what is not watched breaks nothing");
}

#[test]
fn p21_silence_is_found_by_the_time_it_lasts() {
    let silent = profile(r#"{"rules":{"outOfContact":{"hours":2},"notTold":{"hours":3}}}"#);
    let at = |hours: u64, last_seen, attributes| {
        let facts = Facts {
            platform: None,
            attributes,
            apps: None,
            created: NOW,
            last_seen,
            available: Some(NOW),
            before: None,
        };
        judge(&silent, facts, NOW.plus(hours * 3600)).into_iter().map(|f| f.rule).collect::<Vec<_>>()
    };
    assert_eq!(at(1, None, None), []);
    assert_eq!(at(2, None, None), [Rule::OutOfContact]);
    assert_eq!(at(3, Some(NOW.plus(3600 * 2)), None), [Rule::NotTold]);
    let told = Attributes { told: NOW.plus(3600), ..Attributes::default() };
    assert_eq!(at(3, Some(NOW.plus(3600 * 2)), Some(&told)), []);
}

#[test]
fn p21_settings_of_rules_have_a_form() {
    for (text, why) in [
        (r#"{"rules":{"outOfContact":{}}}"#, "hours is missing"),
        (r#"{"rules":{"outOfContact":{"hours":0}}}"#, "use 1 to"),
        (r#"{"rules":{"password":{"hours":1}}}"#, "not for this rule"),
        (r#"{"rules":{"osVersion":{}}}"#, "needs one"),
        (r#"{"rules":{"osVersion":{"minimum":{"linux":"new"}}}}"#, "no number"),
        (r#"{"rules":{"securityPatch":{"minimumPatch":"yesterday"}}}"#, "expected a day"),
        (r#"{"rules":{"password":{"steps":[{"action":"shout"}]}}}"#, "unknown variant"),
        (r#"{"rules":{"colour":{}}}"#, "unknown variant"),
    ] {
        let error = Compliance::read(&serde_json::from_str(text).unwrap()).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}

fn who() -> (hedgerow_shared::TenantId, EntityId) {
    ("S12345678".parse().unwrap(), EntityId::from_random([1; 16]))
}

/// Hours later, with no commands known.
fn at(hours: u64) -> Moment<'static> {
    static NONE: BTreeMap<EntityId, State> = BTreeMap::new();
    Moment { now: NOW.plus(hours * 3600), available: None, commands: &NONE }
}

fn finding(rule: Rule) -> Finding {
    Finding { rule, what: vec!["x".into()], count: 1 }
}

#[test]
fn p21_steps_are_taken_once_for_a_cause_and_anew_for_the_next() {
    let (tenant, device) = who();
    let rules: BTreeMap<Rule, Watch> = profile(
        r#"{"rules":{"password":{"steps":[{"action":"lock"},{"action":"quarantine","afterHours":2}]},
            "encryption":{"steps":[{"action":"lock"}]}}}"#,
    )
    .rules;
    let broken = |before: Option<&Standing>, findings: &[Rule], hours: u64| {
        let findings = findings.iter().map(|rule| finding(*rule)).collect();
        follow((&tenant, device), before, Some(device), (findings, &rules), at(hours))
    };
    let (first, due) = broken(None, &[Rule::Encryption, Rule::Password], 0);
    assert_eq!((first.verdict, first.quarantined), (Verdict::NotCompliant, false));
    assert_eq!(
        due,
        [Due { action: Action::Lock, rules: [Rule::Encryption, Rule::Password].into() }],
        "one lock for both"
    );
    let (second, due) = broken(Some(&first), &[Rule::Encryption, Rule::Password], 1);
    assert_eq!((due.len(), second.changed), (0, NOW));
    assert!(second.is_like(&first));
    let (third, due) = broken(Some(&second), &[Rule::Password], 2);
    assert_eq!((due[0].action, third.quarantined, third.changed), (Action::Quarantine, true, NOW.plus(7200)));
    let (fourth, due) = broken(Some(&third), &[], 3);
    assert_eq!((due.len(), fourth.verdict, fourth.quarantined), (0, Verdict::Compliant, false));
    let (_, due) = broken(Some(&fourth), &[Rule::Password], 4);
    assert_eq!(due[0].action, Action::Lock, "another cause");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes and goes, an action is due for a rule once from its begin to its end, and never before its time.
    #[test]
    fn p21_no_action_is_due_twice_for_one_cause(
        days in proptest::collection::vec(proptest::collection::btree_set(0..3usize, 0..4), 1..20),
        after in proptest::collection::vec(0..5u64, 3),
    ) {
        const RULES: [Rule; 3] = [Rule::Compromised, Rule::Encryption, Rule::Password];
        let (tenant, device) = who();
        let watch = |n: usize| Watch { steps: vec![Step { action: Action::Lock, after_hours: after[n] }], ..Watch::default() };
        let rules: BTreeMap<_, _> = (0..3).map(|n| (RULES[n], watch(n))).collect();
        let mut before: Option<Standing> = None;
        let mut since: BTreeMap<usize, (u64, bool)> = BTreeMap::new();
        for (hour, day) in (0u64..).zip(&days) {
            since.retain(|rule, _| day.contains(rule));
            let findings = day.iter().map(|n| finding(RULES[*n])).collect();
            let (standing, due) = follow((&tenant, device), before.as_ref(), Some(device), (findings, &rules), at(hour));
            let mut expected = std::collections::BTreeSet::new();
            for n in day {
                let (begun, done) = since.entry(*n).or_insert((hour, false));
                if !*done && hour - *begun >= after[*n] {
                    *done = true;
                    expected.insert(RULES[*n]);
                }
            }
            let got = due.into_iter().next().map(|due| due.rules).unwrap_or_default();
            prop_assert_eq!(got, expected);
            before = Some(standing);
        }
    }
}
