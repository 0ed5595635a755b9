//! Groups of users. A group may stand inside others: whoever is in it is in those too, up to `MAX_DEPTH` groups on top
//! of each other.

use std::collections::{BTreeMap, VecDeque};

use hedgerow_shared::{EntityId, TenantId, UnixTime};
use serde::{Deserialize, Serialize};

/// Groups on top of each other, the lowest counted.
pub const MAX_DEPTH: usize = 8;
/// Groups that a user or a group may stand in itself.
pub const MAX_STANDS_IN: usize = 256;
/// Longest description of a group or profile, characters.
pub const MAX_DESCRIPTION: usize = 1000;

/// A group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Whose.
    pub tenant: TenantId,
    /// Which one.
    pub id: EntityId,
    /// Unique in the tenant, whatever its case.
    pub name: String,
    /// For people.
    pub description: String,
    /// Since when the record exists.
    pub created: UnixTime,
}

/// Who can stand in a group, and to whom profiles are assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", content = "id", rename_all = "lowercase")]
pub enum Principal {
    /// A user.
    User(EntityId),
    /// A group, and so everybody in it.
    Group(EntityId),
}

impl Principal {
    /// The user's or the group's.
    #[must_use]
    pub fn id(self) -> EntityId {
        match self {
            Self::User(id) | Self::Group(id) => id,
        }
    }

    /// `user` or `group`.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::User(_) => "user",
            Self::Group(_) => "group",
        }
    }
}

/// What names of groups and profiles are compared by: names that differ in case alone are the same.
#[must_use]
pub fn name_key(name: &str) -> String {
    name.trim().to_lowercase()
}

/// Every group that somebody is in, by the shortest way to it: from the group they stand in themselves, up to it.
///
/// `direct` are the groups that they stand in themselves; `parents` are those that a group stands in. Of ways of one
/// length the one through smaller ids counts. A circle, should storage hold one, ends where it began.
#[must_use]
pub fn above(direct: &[EntityId], parents: &BTreeMap<EntityId, Vec<EntityId>>) -> BTreeMap<EntityId, Vec<EntityId>> {
    let mut ways: BTreeMap<EntityId, Vec<EntityId>> = BTreeMap::new();
    let mut first: Vec<EntityId> = direct.to_vec();
    first.sort_unstable();
    let mut next: VecDeque<Vec<EntityId>> = first.into_iter().map(|group| vec![group]).collect();
    while let Some(way) = next.pop_front() {
        let Some(group) = way.last().copied().filter(|group| !ways.contains_key(group)) else { continue };
        let mut on: Vec<EntityId> = parents.get(&group).cloned().unwrap_or_default();
        on.sort_unstable();
        next.extend(on.into_iter().map(|parent| way.iter().copied().chain([parent]).collect()));
        ways.insert(group, way);
    }
    ways
}

/// Why a group cannot stand inside another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NestError {
    /// The outer one stands inside the inner one, or is the same.
    #[error("the groups would stand inside each other in a circle")]
    Circle,
    /// Too many on top of each other.
    #[error("more than {MAX_DEPTH} groups would stand on top of each other")]
    Depth,
}

/// Whether `inner` may be put inside `outer`, with the nesting that there is: pairs of a group and one it stands in.
///
/// # Errors
/// Why not.
pub fn check_nesting(inner: EntityId, outer: EntityId, nesting: &[(EntityId, EntityId)]) -> Result<(), NestError> {
    let (mut up, mut down) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, Vec<_>>::new());
    for (child, parent) in nesting {
        up.entry(*child).or_default().push(*parent);
        down.entry(*parent).or_default().push(*child);
    }
    if above(&[outer], &up).contains_key(&inner) {
        return Err(NestError::Circle);
    }
    let depth = longest(outer, &up, MAX_DEPTH) + longest(inner, &down, MAX_DEPTH);
    if depth > MAX_DEPTH { Err(NestError::Depth) } else { Ok(()) }
}

/// Groups on the longest way from `from`, itself counted; no more than `most` and one.
fn longest(from: EntityId, edges: &BTreeMap<EntityId, Vec<EntityId>>, most: usize) -> usize {
    // By levels: a group that several ways lead to is looked at once a level.
    let mut level = vec![from];
    let mut length = 0;
    while !level.is_empty() && length <= most {
        length += 1;
        level = level.iter().flat_map(|group| edges.get(group)).flatten().copied().collect();
        level.sort_unstable();
        level.dedup();
    }
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> EntityId {
        EntityId::from_random([n; 16])
    }

    fn map(pairs: &[(EntityId, EntityId)]) -> BTreeMap<EntityId, Vec<EntityId>> {
        let mut map = BTreeMap::<_, Vec<_>>::new();
        pairs.iter().for_each(|(child, parent)| map.entry(*child).or_default().push(*parent));
        map
    }

    #[test]
    fn p18_who_is_in_a_group_is_in_those_around_it_by_the_shortest_way() {
        let (a, b, c, d) = (id(1), id(2), id(3), id(4));
        let ways = above(&[a], &map(&[(a, b), (b, c), (a, c), (c, d)]));
        assert_eq!(ways[&a], [a]);
        assert_eq!(ways[&c], [a, c]);
        assert_eq!(ways[&d], [a, c, d]);
        assert_eq!(above(&[], &map(&[(a, b)])).len(), 0);
        // A circle that should not be there ends all the same.
        assert_eq!(above(&[a], &map(&[(a, b), (b, a)])).len(), 2);
    }

    #[test]
    fn p18_groups_do_not_nest_in_circles_nor_too_deep() {
        let chain: Vec<_> = (1..8).map(|n| (id(n), id(n + 1))).collect();
        assert_eq!(check_nesting(id(1), id(1), &[]), Err(NestError::Circle));
        assert_eq!(check_nesting(id(8), id(1), &chain), Err(NestError::Circle));
        assert_eq!(check_nesting(id(8), id(9), &chain), Err(NestError::Depth), "eight are as many as there may be");
        assert_eq!(check_nesting(id(9), id(1), &chain), Err(NestError::Depth));
        assert_eq!(check_nesting(id(7), id(9), &chain[..6]), Ok(()));
        assert_eq!(check_nesting(id(3), id(9), &chain), Ok(()), "beside the chain there is room");
    }
}
