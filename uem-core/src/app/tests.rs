//! The effective set of apps against a naive model; comparison with what is installed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hedgerow_shared::{EntityId, UnixTime};
use proptest::prelude::*;
use serde_json::Map;

use super::*;
use crate::inventory::InstalledApp;
use crate::profile::Reason;

fn id(kind: u8, n: usize) -> EntityId {
    let mut bytes = [kind; 16];
    bytes[15] = u8::try_from(n).unwrap();
    EntityId::from_random(bytes)
}

fn app(n: usize) -> App {
    App {
        tenant: "S12345678".parse().unwrap(),
        id: id(1, n),
        platform: if n.is_multiple_of(3) { Platform::Ios } else { Platform::Linux },
        identifier: format!("app{n}"),
        name: format!("App {n}"),
        vendor: String::new(),
        versions: Vec::new(),
        source: Source::Store(String::new()),
        created: UnixTime(0),
        modified: UnixTime(0),
    }
}

/// An assignment: of an app or (`Err`) an app group, to the user or (`Some`) by a way of that many groups.
#[derive(Debug, Clone)]
struct One {
    target: Result<usize, usize>,
    way: Option<usize>,
    disposition: Disposition,
    rank: Option<u32>,
}

#[derive(Debug, Clone)]
struct World {
    in_group: Vec<BTreeSet<usize>>,
    assigned: Vec<One>,
    platform: Option<Platform>,
}

const APPS: usize = 5;

fn world() -> impl Strategy<Value = World> {
    let one = (0..APPS + 3, proptest::option::weighted(0.6, 1..4usize), 0..3usize, proptest::option::of(1..9u32))
        .prop_map(|(target, way, disposition, rank)| One {
            target: if target < APPS { Ok(target) } else { Err(target - APPS) },
            way,
            disposition: Disposition::ALL[disposition],
            rank: rank.filter(|_| target < APPS),
        });
    let groups = proptest::collection::vec(proptest::collection::btree_set(0..APPS, 0..4), 3);
    let platform = proptest::option::of(prop_oneof![Just(Platform::Linux), Just(Platform::Ios)]);
    (groups, proptest::collection::vec(one, 0..12), platform).prop_map(|(in_group, assigned, platform)| World {
        in_group,
        assigned,
        platform,
    })
}

impl World {
    fn product(&self) -> Vec<EffectiveApp> {
        let mut all = Vec::new();
        for one in &self.assigned {
            let reason = match one.way {
                None => Reason::User,
                Some(length) => Reason::Group { way: (0..length).map(|n| id(3, n)).collect() },
            };
            let (apps, through) = match one.target {
                Ok(n) => ([n].into(), Through::Itself),
                Err(group) => (self.in_group[group].clone(), Through::AppGroup(id(4, group))),
            };
            for n in apps {
                let config = one.rank.map(|rank| {
                    Arc::new(AppConfig {
                        tenant: "S12345678".parse().unwrap(),
                        id: id(5, n * 20 + rank as usize),
                        app: id(1, n),
                        name: String::new(),
                        rank,
                        settings: Map::new(),
                    })
                });
                let (app, reason) = (Arc::new(app(n)), reason.clone());
                all.push(Assigned { app, through, reason, disposition: one.disposition, config });
            }
        }
        effective(all, self.platform)
    }

    /// Of each app, by asking one question after the other.
    fn naive(&self) -> BTreeMap<usize, (Disposition, Option<u32>)> {
        let mut found = BTreeMap::new();
        for n in (0..APPS).filter(|n| self.platform.is_none_or(|platform| app(*n).platform == platform)) {
            let of: Vec<_> = self
                .assigned
                .iter()
                .filter(|one| match one.target {
                    Ok(app) => app == n,
                    Err(group) => self.in_group[group].contains(&n),
                })
                .collect();
            let says = |direct: bool, disposition: Disposition| {
                of.iter().any(|one| one.way.is_none() == direct && one.disposition == disposition)
            };
            let mut decided = None;
            for direct in [true, false] {
                for disposition in [Disposition::Denied, Disposition::Required, Disposition::Optional] {
                    if decided.is_none() && says(direct, disposition) {
                        decided = Some(disposition);
                    }
                }
            }
            if let Some(disposition) = decided {
                let rank = of.iter().filter_map(|one| one.rank).min();
                found.insert(n, (disposition, rank.filter(|_| disposition != Disposition::Denied)));
            }
        }
        found
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn p40_the_effective_apps_are_those_of_the_naive_model(world in world()) {
        let found: BTreeMap<_, _> = world.product().into_iter().map(|one| (one.app.id, one)).collect();
        let naive = world.naive();
        prop_assert_eq!(found.len(), naive.len());
        for (n, (disposition, rank)) in naive {
            let one = &found[&id(1, n)];
            prop_assert_eq!((one.disposition, one.config.as_ref().map(|c| c.rank)), (disposition, rank));
            // The reason is an assignment that there is, and says so.
            let fits = world.assigned.iter().any(|a| {
                let through = match one.through {
                    Through::Itself => a.target == Ok(n),
                    Through::AppGroup(group) => {
                        a.target.is_err_and(|g| id(4, g) == group && world.in_group[g].contains(&n))
                    }
                };
                let way = match &one.reason {
                    Reason::Group { way } => Some(way.len()),
                    Reason::User | Reason::Default => None,
                };
                through && a.way == way && a.disposition == disposition
            });
            prop_assert!(fits, "{:?}", one);
            for (other, why) in &one.passed_over {
                prop_assert!(*why == Passed::AssignedToGroup || *other > disposition);
            }
        }
    }

    #[test]
    fn p40_the_order_of_assignments_changes_nothing(world in world(), seed in any::<u8>()) {
        let before = world.product();
        let mut other = world;
        if let Some(turn) = usize::from(seed).checked_rem(other.assigned.len()) {
            other.assigned.rotate_left(turn);
        }
        other.assigned.reverse();
        other.assigned.extend(other.assigned.clone());
        prop_assert_eq!(before, other.product());
    }

    /// What is found is each time an app that is there, or one that is to be; and never one in two ways.
    #[test]
    fn p40_findings_are_apart_from_each_other(world in world(), there in proptest::collection::btree_set(0..9usize, 0..9),
        listed in proptest::collection::vec((any::<bool>(), 0..9usize, any::<bool>()), 0..5)) {
        let installed: Vec<_> = there.iter().map(|n| installed(&format!("app{n}"))).collect();
        let listed: Vec<_> = listed.into_iter().map(|(list, n, all)| Listing {
            list: if list { List::Restricted } else { List::Approved },
            platform: Platform::Linux,
            identifier: if all { "app*".to_owned() } else { format!("app{n}") },
        }).collect();
        let found = compare(&installed, &world.product(), &listed, Platform::Linux);
        let is_there = |name: &String| installed.iter().any(|app| app.identifier == *name);
        prop_assert!(found.missing.iter().all(|name| !is_there(name)));
        prop_assert!(found.restricted.iter().chain(&found.unapproved).all(is_there));
        prop_assert!(found.restricted.iter().all(|name| !found.unapproved.contains(name)));
        let approves = listed.iter().any(|entry| entry.list == List::Approved);
        prop_assert!(approves || found.unapproved.is_empty());
    }
}

fn installed(identifier: &str) -> InstalledApp {
    InstalledApp { identifier: identifier.into(), name: identifier.into(), version: "1".into() }
}

#[test]
fn p40_restricted_comes_before_approved_and_lists_have_begins() {
    let entry = |list, identifier: &str| Listing { list, platform: Platform::Linux, identifier: identifier.into() };
    let listed = [entry(List::Restricted, "telnet*"), entry(List::Approved, "lib*"), entry(List::Approved, "telnetd")];
    let there = [installed("libc6"), installed("telnetd"), installed("nmap")];
    let found = compare(&there, &[], &listed, Platform::Linux);
    assert_eq!((found.restricted, found.unapproved), (vec!["telnetd".to_owned()], vec!["nmap".to_owned()]));
    assert_eq!(compare(&there, &[], &listed, Platform::Ios), Default::default(), "lists are of a platform");
}
