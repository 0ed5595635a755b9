//! Users, groups and roles that become others and stay the same ones.

use std::collections::BTreeSet;

use super::world::*;
use hedgerow_shared::EntityId;
use hedgerow_uem_core::account::User;
use hedgerow_uem_core::activation::Refusal;
use hedgerow_uem_core::admin::{Asker, Permission, Predefined, Role, RoleId, Subject, authorise};
use hedgerow_uem_core::group::Principal;
use hedgerow_uem_core::service::{NewRole, NewUser, RoleChange, UserChange};
use hedgerow_uem_core::store::{Page, Store};
use hedgerow_uem_core::{Actor, Call, CoreError};

impl<S: Store> World<S> {
    async fn change(&mut self, user: EntityId, email: Option<&str>, name: Option<&str>) -> Result<User, CoreError> {
        let change = UserChange { email: email.map(|e| e.parse().unwrap()), display_name: name.map(Into::into) };
        self.core.change_user(call!(self), &self.tenant, user, change).await
    }

    async fn change_role(&mut self, by: &Asker, role: RoleId, change: RoleChange) -> Result<Role, CoreError> {
        self.core.change_role(call!(self), (&self.tenant, by), role, change).await
    }

    async fn details(&self, action: &str) -> Vec<String> {
        let all = self.core.audit(&self.tenant, 0, 1000).await.unwrap();
        all.into_iter().filter(|record| record.action == action).map(|record| record.detail).collect()
    }
}

pub(crate) async fn p18_a_user_gets_another_address_and_keeps_devices_groups_and_password<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let (anna, bert) = (w.user("anna@example.com").await, w.user("bert@example.com").await);
    let group = w.group("sales").await;
    w.join(&group, Principal::User(anna.id)).await.unwrap();
    w.password(&anna, "open sesame").await;
    let taken = w.change(anna.id, Some("BERT@example.com"), None).await;
    assert!(matches!(taken, Err(CoreError::Exists { kind: "user", .. })), "{taken:?}");
    assert!(matches!(w.change(anna.id, None, Some("a\nb")).await, Err(CoreError::Invalid { .. })));
    assert_eq!(w.change(anna.id, Some("anna@example.com"), None).await.unwrap(), anna, "nothing to do");
    let changed = w.change(anna.id, Some("anna.miller@example.com"), Some("Anna Miller")).await.unwrap();
    assert_eq!((changed.id, changed.created), (anna.id, anna.created));
    assert_eq!(w.core.user(&w.tenant, anna.id).await.unwrap(), changed);
    assert!(w.core.user_by_email(&w.tenant, &anna.email).await.is_err());
    assert_eq!(w.core.find_users(&w.tenant, "anna m", 10).await.unwrap(), std::slice::from_ref(&changed));
    let as_before = w.core.find_users(&w.tenant, "anna s", 10).await.unwrap();
    assert_eq!(as_before, std::slice::from_ref(&bert), "all are called so at first");
    assert_eq!(w.core.group_names_of(&w.tenant, anna.id).await.unwrap(), ["sales".to_owned()].into());
    let open: Vec<_> = w.core.open_addresses(&w.tenant, w.now).await.unwrap().into_iter().map(|o| o.email).collect();
    assert_eq!(open, std::slice::from_ref(&changed.email));
    assert_eq!(w.refusal("anna@example.com", "open sesame").await, Refusal::UnknownUser);
    let (_, device) = w.activate("anna.miller@example.com", "open sesame").await.unwrap();
    assert_eq!(device.user, anna.id);
    // The old address is free, and leads to nothing of hers.
    let other = w.user("anna@example.com").await;
    assert_ne!(other.id, anna.id);
    w.change(bert.id, None, Some("Bert")).await.unwrap();
    assert_eq!(w.core.user(&w.tenant, bert.id).await.unwrap().display_name, "Bert");
    let told = w.details("user.change").await;
    assert_eq!(told[0], "anna@example.com (Anna Smith), now anna.miller@example.com (Anna Miller)");
    assert_eq!(told.len(), 2);

    let of_directory = NewUser { email: "carol@example.com".parse().unwrap(), display_name: "Carol".into() };
    let directory = EntityId::from_random([7; 16]);
    let carol = w.core.add_directory_user(call!(w), &w.tenant, of_directory, (directory, "carol")).await.unwrap();
    let refused = w.change(carol.id, None, Some("Caroline")).await.unwrap_err();
    assert!(refused.to_string().contains("directory"), "{refused}");
    assert!(matches!(w.change(group.id, None, Some("x")).await, Err(CoreError::NotFound { kind: "user", .. })));
    w.core.verify_audit(&w.tenant).await.unwrap();
}

pub(crate) async fn p18_a_group_gets_another_name_and_keeps_its_members<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let (anna, sales, staff) = (w.user("anna@example.com").await, w.group("Sales").await, w.group("staff").await);
    w.join(&sales, Principal::User(anna.id)).await.unwrap();
    for (name, is_exists) in [("STAFF", true), ("a;b", false), ("", false)] {
        let refused = w.core.change_group(call!(w), &w.tenant, sales.id, (Some(name), None)).await.unwrap_err();
        assert_eq!(matches!(refused, CoreError::Exists { kind: "group", .. }), is_exists, "{refused}");
    }
    for change in [(Some("sales"), None), (Some("Selling"), Some("who sells")), (None, Some("they sell"))] {
        w.core.change_group(call!(w), &w.tenant, sales.id, change).await.unwrap();
    }
    let selling = w.core.group_by_name(&w.tenant, "SELLING").await.unwrap();
    assert_eq!((selling.id, selling.description.as_str(), selling.created), (sales.id, "they sell", sales.created));
    assert!(w.core.group_by_name(&w.tenant, "sales").await.is_err());
    assert_eq!(w.core.members(&w.tenant, sales.id, Page::first()).await.unwrap(), [Principal::User(anna.id)]);
    w.core.change_group(call!(w), &w.tenant, staff.id, (Some("Sales"), None)).await.unwrap();
    assert_eq!(w.core.groups(&w.tenant, Page::first()).await.unwrap().len(), 2);
    assert_eq!(
        w.details("group.change").await,
        ["Sales, now sales", "sales, now Selling", "Selling", "staff, now Sales"]
    );
    w.core.verify_audit(&w.tenant).await.unwrap();
}

pub(crate) async fn p18_a_role_that_is_changed_counts_at_once_for_who_has_it<S: Store>(store: S) {
    use Permission::{DeleteAllData, EditRoles, EditUsers, ViewUsers};
    let mut w = World::new(store).await;
    let (anna, berlin) = (w.user("anna@example.com").await, w.group("berlin").await);
    let root = Asker::BreakGlass;
    let set = |all: &[Permission]| Some(all.iter().copied().collect::<BTreeSet<_>>());
    let mut roles = Vec::new();
    for name in ["Desk", "Doors"] {
        let new = NewRole { name: name.into(), permissions: [ViewUsers, EditRoles].into(), groups: None };
        roles.push(w.core.add_role(call!(w), (&w.tenant, &root), new).await.unwrap());
    }
    let desk = roles[0].id;
    w.core.set_admin(call!(w), (&w.tenant, &root), anna.id, desk).await.unwrap();
    let asker = w.core.asker(&w.tenant, anna.id).await.unwrap();
    let named = |name: &str| RoleChange { name: Some(name.into()), ..RoleChange::default() };
    let included = |permissions: &[Permission]| RoleChange { permissions: set(permissions), ..RoleChange::default() };
    // Nobody gives a role what they do not have, their own least of all, nor touches one that has more.
    let refused = w.change_role(&asker, desk, included(&[ViewUsers, EditRoles, EditUsers])).await;
    assert!(matches!(refused, Err(CoreError::Denied(_))), "{refused:?}");
    w.change_role(&root, roles[1].id, included(&[ViewUsers, DeleteAllData])).await.unwrap();
    let refused = w.change_role(&asker, roles[1].id, included(&[ViewUsers])).await;
    assert!(matches!(refused, Err(CoreError::Denied(_))), "{refused:?}");
    for name in ["doors", "Security"] {
        let refused = w.change_role(&root, desk, named(name)).await;
        assert!(matches!(refused, Err(CoreError::Exists { kind: "role", .. })), "{refused:?}");
    }
    let predefined = w.change_role(&root, RoleId::Predefined(Predefined::JuniorHelpdesk), named("x")).await;
    assert!(matches!(predefined, Err(CoreError::Invalid { .. })), "{predefined:?}");
    assert!(matches!(w.change_role(&root, desk, included(&[])).await, Err(CoreError::Invalid { .. })));
    let nowhere = RoleChange { groups: Some(Some([anna.id].into())), ..RoleChange::default() };
    assert!(matches!(w.change_role(&root, desk, nowhere).await, Err(CoreError::NotFound { kind: "group", .. })));

    let limited = RoleChange { groups: Some(Some([berlin.id].into())), ..named("desk of Berlin") };
    let changed = w.change_role(&root, desk, limited).await.unwrap();
    assert_eq!((changed.id, changed.permissions.len()), (desk, 2));
    let asker = w.core.asker(&w.tenant, anna.id).await.unwrap();
    assert!(authorise(&asker, ViewUsers, Subject::Organisation).is_err());
    assert!(authorise(&asker, ViewUsers, Subject::Group(berlin.id)).is_ok());
    // A group that is gone limits the role to nobody of it, and does not keep the rest from being changed.
    w.core.remove_group(call!(w), &w.tenant, berlin.id).await.unwrap();
    w.change_role(&root, desk, included(&[EditUsers])).await.unwrap();
    let everywhere = RoleChange { groups: Some(None), ..RoleChange::default() };
    w.change_role(&root, desk, everywhere).await.unwrap();
    let asker = w.core.asker(&w.tenant, anna.id).await.unwrap();
    assert!(authorise(&asker, EditUsers, Subject::Organisation).is_ok());
    assert!(authorise(&asker, ViewUsers, Subject::Organisation).is_err());
    assert_eq!(w.core.role(&w.tenant, desk).await.unwrap().name, "desk of Berlin");
    assert_eq!(w.details("role.change").await.len(), 4);
    w.core.verify_audit(&w.tenant).await.unwrap();
}
