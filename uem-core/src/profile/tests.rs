//! The effective set against a naive model, over small worlds of groups, profiles and assignments.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hedgerow_shared::{EntityId, UnixTime};
use proptest::prelude::*;

use super::*;
use crate::group::above;

fn id(kind: u8, n: usize) -> EntityId {
    let mut bytes = [kind; 16];
    bytes[15] = u8::try_from(n).unwrap();
    EntityId::from_random(bytes)
}

fn profile(n: usize, category: Category, rank: u32, default: bool, disabled: BTreeSet<Platform>) -> Profile {
    Profile {
        tenant: "S12345678".parse().unwrap(),
        id: id(2, n),
        category,
        name: format!("profile {n}"),
        description: String::new(),
        rank,
        default,
        disabled,
        settings: Map::new(),
        created: UnixTime(0),
        modified: UnixTime(0),
    }
}

/// A world for one user: groups they stand in, groups that stand in groups, profiles, and who has them assigned.
#[derive(Debug, Clone)]
struct World {
    stands_in: Vec<usize>,
    nesting: Vec<(usize, usize)>,
    profiles: Vec<Profile>,
    /// Profile, and the group or (`None`) the user.
    assigned: Vec<(usize, Option<usize>)>,
    platform: Option<Platform>,
}

/// A profile that has effect, why, and those that it keeps from that.
type Found = (EntityId, Reason, Vec<(EntityId, Passed)>);

const GROUPS: usize = 6;
const CATEGORIES: [Category; 3] = [Category::ItConfig, Category::Compliance, Category::Wifi];

fn world() -> impl Strategy<Value = World> {
    let kinds = proptest::collection::vec((0..CATEGORIES.len(), any::<u8>(), any::<bool>(), 0..4u8), 1..9);
    let nesting = proptest::collection::vec((0..GROUPS, 0..GROUPS), 0..8);
    let assigned = proptest::collection::vec((0..9usize, proptest::option::weighted(0.7, 0..GROUPS)), 0..12);
    let platform = proptest::option::of(prop_oneof![Just(Platform::Linux), Just(Platform::Ios)]);
    (proptest::collection::vec(0..GROUPS, 0..3), nesting, kinds, assigned, platform).prop_map(
        |(stands_in, nesting, kinds, assigned, platform)| {
            let mut has_default = BTreeSet::new();
            let mut profiles: Vec<_> = kinds
                .iter()
                .enumerate()
                .map(|(n, (category, _, default, off))| {
                    let category = CATEGORIES[*category];
                    let default = *default && !category.adds_up() && has_default.insert(category);
                    let off = if *off == 0 { [Platform::Linux].into() } else { BTreeSet::new() };
                    profile(n, category, 0, default, off)
                })
                .collect();
            // Ranks are unique in a category, in any order.
            for category in CATEGORIES {
                let mut of: Vec<_> = (0..profiles.len()).filter(|n| profiles[*n].category == category).collect();
                of.sort_by_key(|n| (kinds[*n].1, *n));
                for (rank, n) in (1..).zip(of) {
                    profiles[n].rank = rank;
                }
            }
            let assigned = assigned.into_iter().filter(|(profile, _)| *profile < profiles.len()).collect();
            // Downwards only, so that there is no circle.
            let nesting = nesting.into_iter().filter(|(inner, outer)| inner < outer).collect();
            World { stands_in, nesting, profiles, assigned, platform }
        },
    )
}

impl World {
    /// As the product does it.
    fn product(&self) -> Vec<Found> {
        let mut parents = BTreeMap::<_, Vec<_>>::new();
        for (inner, outer) in &self.nesting {
            parents.entry(id(1, *inner)).or_default().push(id(1, *outer));
        }
        let direct: Vec<_> = self.stands_in.iter().map(|n| id(1, *n)).collect();
        let ways = above(&direct, &parents);
        let assigned = self
            .assigned
            .iter()
            .filter_map(|(profile, holder)| {
                let reason = match holder {
                    None => Reason::User,
                    Some(group) => Reason::Group { way: ways.get(&id(1, *group))?.clone() },
                };
                Some(Assigned { profile: Arc::new(self.profiles[*profile].clone()), reason })
            })
            .collect();
        let defaults = self.profiles.iter().filter(|p| p.default).cloned().map(Arc::new).collect();
        let found = effective(assigned, defaults, self.platform);
        let passed = |e: &Effective| e.passed_over.iter().map(|(p, why)| (p.id, *why)).collect();
        found.iter().map(|e| (e.profile.id, e.reason.clone(), passed(e))).collect()
    }

    /// Whether the user is in the group, asked again and again from below.
    fn is_in(&self, group: usize) -> bool {
        self.stands_in.contains(&group)
            || self.nesting.iter().any(|(inner, outer)| *outer == group && self.is_in(*inner))
    }

    /// Groups on the shortest way to it.
    fn distance(&self, group: usize) -> usize {
        if self.stands_in.contains(&group) {
            return 1;
        }
        let inner = self.nesting.iter().filter(|(inner, outer)| *outer == group && self.is_in(*inner));
        1 + inner.map(|(inner, _)| self.distance(*inner)).min().unwrap_or(99)
    }

    fn to_user(&self, profile: usize) -> bool {
        self.assigned.contains(&(profile, None))
    }

    fn to_group(&self, profile: usize) -> bool {
        (0..GROUPS).any(|group| self.assigned.contains(&(profile, Some(group))) && self.is_in(group))
    }

    fn is_there(&self, profile: usize) -> bool {
        self.platform.is_none_or(|platform| !self.profiles[profile].disabled.contains(&platform))
    }

    /// Whether the first wins over the second, both assigned.
    fn beats(&self, a: usize, b: usize) -> bool {
        match (self.to_user(a), self.to_user(b)) {
            (true, false) => true,
            (false, true) => false,
            _ => self.profiles[a].rank < self.profiles[b].rank,
        }
    }

    /// Profiles that have effect, by asking of each whether it has.
    fn naive(&self) -> BTreeSet<usize> {
        let all = 0..self.profiles.len();
        let comes = |n: usize| self.is_there(n) && (self.to_user(n) || self.to_group(n));
        let same = |a: usize, b: usize| self.profiles[a].category == self.profiles[b].category;
        all.clone()
            .filter(|&n| {
                if self.profiles[n].category.adds_up() {
                    return comes(n);
                }
                if comes(n) {
                    return !all
                        .clone()
                        .any(|other| other != n && same(n, other) && comes(other) && self.beats(other, n));
                }
                self.is_there(n) && self.profiles[n].default && !all.clone().any(|other| same(n, other) && comes(other))
            })
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn p21_the_effective_set_is_that_of_the_naive_model(world in world()) {
        let found = world.product();
        let naive: BTreeSet<_> = world.naive().into_iter().map(|n| world.profiles[n].id).collect();
        prop_assert_eq!(found.iter().map(|(id, ..)| *id).collect::<BTreeSet<_>>(), naive);
        prop_assert_eq!(found.len(), found.iter().map(|(id, ..)| *id).collect::<BTreeSet<_>>().len());
        for (id, reason, passed) in &found {
            let n = world.profiles.iter().position(|p| p.id == *id).unwrap();
            match reason {
                Reason::User => prop_assert!(world.to_user(n)),
                Reason::Group { way } => {
                    prop_assert!(!world.to_user(n));
                    let groups = (0..GROUPS).filter(|g| world.assigned.contains(&(n, Some(*g))) && world.is_in(*g));
                    prop_assert_eq!(way.len(), groups.map(|g| world.distance(g)).min().unwrap());
                }
                Reason::Default => prop_assert!(world.profiles[n].default && !world.to_user(n) && !world.to_group(n)),
            }
            for (other, why) in passed {
                let m = world.profiles.iter().position(|p| p.id == *other).unwrap();
                prop_assert!(world.beats(n, m) && world.is_there(m));
                let expected = if world.to_user(n) && !world.to_user(m) { Passed::AssignedToGroup } else { Passed::Rank };
                prop_assert_eq!(*why, expected);
            }
        }
    }

    #[test]
    fn p21_the_order_of_assignments_changes_nothing(world in world(), seed in any::<u8>()) {
        let before = world.product();
        let mut other = world;
        if let Some(turn) = usize::from(seed).checked_rem(other.assigned.len()) {
            other.assigned.rotate_left(turn);
        }
        other.assigned.reverse();
        other.assigned.extend(other.assigned.clone());
        other.stands_in.reverse();
        prop_assert_eq!(before, other.product());
    }
}

#[test]
fn p21_settings_have_a_bound_and_a_form() {
    let large = Map::from_iter([("notes".to_owned(), Value::String("x".repeat(MAX_SETTINGS)))]);
    assert!(check_settings(Category::ItConfig, &large).unwrap_err().to_string().contains("at most"));
    let odd = Map::from_iter([("brands".to_owned(), Value::from(7))]);
    assert!(check_settings(Category::Compliance, &odd).is_err());
    assert!(check_settings(Category::ItConfig, &odd).is_ok());
}
