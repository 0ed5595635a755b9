//! Who may what: against the naive question, and the rules that must never break.

use std::collections::BTreeSet;

use hedgerow_shared::EntityId;
use proptest::prelude::*;

use super::*;

fn id(n: u8) -> EntityId {
    EntityId::from_random([n; 16])
}

fn role() -> impl Strategy<Value = Role> {
    let permissions = proptest::collection::btree_set(0..Permission::ALL.len(), 0..Permission::ALL.len());
    let groups = proptest::option::of(proptest::collection::btree_set(0..4u8, 1..4));
    (permissions, any::<bool>(), groups).prop_map(|(permissions, admins, groups)| {
        let mut permissions: BTreeSet<_> = permissions.into_iter().map(|n| Permission::ALL[n]).collect();
        if admins {
            permissions.insert(Permission::EditAdmins);
        }
        let groups = groups.map(|groups| groups.into_iter().map(id).collect());
        Role { id: RoleId::Custom(id(200)), name: "x".into(), permissions, groups }
    })
}

fn may(role: &Role, permission: Permission, of_user: &BTreeSet<EntityId>) -> bool {
    let asker = Asker::Admin { user: id(100), role: role.clone() };
    authorise(&asker, permission, Subject::User { groups: of_user }).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// What somebody can grant never reaches a user, or a thing, that their own role does not.
    #[test]
    fn p18_nobody_can_grant_what_they_do_not_have(own in role(), other in role(), users in proptest::collection::btree_set(0..6u8, 0..4)) {
        let asker = Asker::Admin { user: id(100), role: own.clone() };
        let users = users.into_iter().map(id).collect();
        if may_grant(&asker, &other).is_ok() {
            prop_assert!(own.permissions.contains(&Permission::EditAdmins));
            let theirs = Asker::Admin { user: id(101), role: other.clone() };
            for permission in Permission::ALL {
                prop_assert!(!may(&other, *permission, &users) || may(&own, *permission, &users));
                for subject in [Subject::Organisation, Subject::Group(id(1)), Subject::Group(id(5))] {
                    prop_assert!(authorise(&theirs, *permission, subject).is_err() || authorise(&asker, *permission, subject).is_ok());
                }
            }
        }
    }

    #[test]
    fn p18_what_is_not_granted_is_denied(role in role(), n in 0..Permission::ALL.len(), users in proptest::collection::btree_set(0..6u8, 0..4)) {
        let permission = Permission::ALL[n];
        let users: BTreeSet<_> = users.into_iter().map(id).collect();
        let in_reach = role.groups.as_ref().is_none_or(|groups| groups.iter().any(|group| users.contains(group)));
        prop_assert_eq!(may(&role, permission, &users), role.permissions.contains(&permission) && in_reach);
        let asker = Asker::Admin { user: id(100), role: role.clone() };
        let whole = authorise(&asker, permission, Subject::Organisation).is_ok();
        prop_assert_eq!(whole, role.permissions.contains(&permission) && role.groups.is_none());
    }
}

#[test]
fn p18_the_roles_that_are_there_include_each_other() {
    use Predefined::{Enterprise, JuniorHelpdesk, Security, SeniorHelpdesk};
    let [security, enterprise, senior, junior] =
        [Security, Enterprise, SeniorHelpdesk, JuniorHelpdesk].map(Predefined::permissions);
    assert!(security.len() == Permission::ALL.len() && security.is_superset(&enterprise));
    assert!(enterprise.is_superset(&senior) && senior.is_superset(&junior) && junior.len() < senior.len());
    assert!(!enterprise.contains(&Permission::EditAdmins) && !enterprise.contains(&Permission::EditRoles));
    assert!(!senior.contains(&Permission::DeleteAllData) && !junior.contains(&Permission::DeleteWorkData));
    for permission in Permission::ALL {
        assert_eq!(permission.as_str().parse::<Permission>().unwrap(), *permission);
        assert_eq!(serde_json::to_string(permission).unwrap(), format!("\"{permission}\""));
    }
    for role in Predefined::ALL {
        assert_eq!(role.as_str().parse::<RoleId>().unwrap(), RoleId::Predefined(role));
    }
}
