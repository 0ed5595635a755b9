//! Administrators, roles, sign-in, users of directories.

use std::collections::BTreeMap;

use super::world::*;
use hedgerow_shared::EntityId;
use hedgerow_shared::secret::Secret;
use hedgerow_uem_core::account::{User, UserSource};
use hedgerow_uem_core::admin::{Asker, Permission, Predefined, Role, RoleId, SignInGuard, Subject, authorise};
use hedgerow_uem_core::group::Principal;
use hedgerow_uem_core::service::{NewRole, NewUser, SignedIn, WrongSignIn};
use hedgerow_uem_core::store::Store;
use hedgerow_uem_core::{Actor, Call, CoreError};

const SECURITY: RoleId = RoleId::Predefined(Predefined::Security);
const ENTERPRISE: RoleId = RoleId::Predefined(Predefined::Enterprise);
const JUNIOR: RoleId = RoleId::Predefined(Predefined::JuniorHelpdesk);

fn secret(text: &str) -> Secret {
    Secret::from_text(text.into())
}

impl<S: Store> World<S> {
    async fn make(&mut self, by: &Asker, user: &User, role: RoleId) -> Result<(), CoreError> {
        self.core.set_admin(call!(self), (&self.tenant, by), user.id, role).await.map(drop)
    }

    async fn add_role(
        &mut self,
        by: &Asker,
        name: &str,
        permissions: &[Permission],
        groups: Option<&[EntityId]>,
    ) -> Result<Role, CoreError> {
        let groups = groups.map(|groups| groups.iter().copied().collect());
        let new = NewRole { name: name.into(), permissions: permissions.iter().copied().collect(), groups };
        self.core.add_role(call!(self), (&self.tenant, by), new).await
    }

    async fn sign_in(&mut self, email: &str, password: &str) -> Result<SignedIn, WrongSignIn> {
        let from = std::net::IpAddr::from([192, 0, 2, 1]);
        let admitted = SignInGuard::default().admit((&self.tenant, &email.parse().unwrap()), from, self.now).unwrap();
        let (attempt, job) = self.core.begin_sign_in(admitted, secret(password)).await.unwrap();
        let right = job.run().unwrap();
        self.core.finish_sign_in(call!(self), attempt, right).await.unwrap()
    }
}

fn invalid<T: std::fmt::Debug>(result: Result<T, CoreError>, why: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, CoreError::Invalid { .. }) && error.to_string().contains(why), "{error}");
}

fn denied<T: std::fmt::Debug>(result: Result<T, CoreError>) {
    assert!(matches!(result, Err(CoreError::Denied(_))), "{result:?}");
}

pub(crate) async fn p18_one_administrator_keeps_the_security_role<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let (anna, bob) = (w.user("anna@example.com").await, w.user("bob@example.com").await);
    let root = Asker::BreakGlass;
    assert!(w.core.asker(&w.tenant, anna.id).await.is_err(), "a user is no administrator");
    w.make(&root, &anna, SECURITY).await.unwrap();
    assert!(matches!(w.core.asker(&w.tenant, anna.id).await.unwrap(), Asker::Admin { .. }));
    invalid(w.make(&root, &anna, ENTERPRISE).await, "last with the security role");
    invalid(w.core.remove_admin(call!(w), (&w.tenant, &root), anna.id).await, "last");
    invalid(w.core.set_user_active(call!(w), &w.tenant, anna.id, false).await, "last");
    // One that is off does not count.
    w.make(&root, &bob, SECURITY).await.unwrap();
    w.core.set_user_active(call!(w), &w.tenant, bob.id, false).await.unwrap();
    denied(w.core.asker(&w.tenant, bob.id).await);
    invalid(w.make(&root, &anna, JUNIOR).await, "last");
    w.core.set_user_active(call!(w), &w.tenant, bob.id, true).await.unwrap();
    w.make(&root, &anna, JUNIOR).await.unwrap();
    w.core.remove_admin(call!(w), (&w.tenant, &root), anna.id).await.unwrap();
    assert!(w.core.admin(&w.tenant, anna.id).await.is_err());
    assert_eq!(w.core.admins(&w.tenant).await.unwrap().len(), 1);
    w.core.set_user_active(call!(w), &w.tenant, anna.id, false).await.unwrap();
    invalid(w.make(&root, &anna, JUNIOR).await, "inactive");
    w.core.verify_audit(&w.tenant).await.unwrap();
}

pub(crate) async fn p18_nobody_grants_what_they_do_not_have_and_roles_reach_their_groups_alone<S: Store>(store: S) {
    use Permission::{EditAdmins, EditRoles, LockDevices, ViewUsers};
    let mut w = World::new(store).await;
    let (anna, bob, carol) =
        (w.user("anna@example.com").await, w.user("bob@example.com").await, w.user("carol@example.com").await);
    let (sales, berlin) = (w.group("sales").await, w.group("berlin").await);
    w.join(&berlin, Principal::Group(sales.id)).await.unwrap();
    w.join(&sales, Principal::User(carol.id)).await.unwrap();
    let root = Asker::BreakGlass;
    let limited = w
        .add_role(&root, "Berlin", &[ViewUsers, LockDevices, EditAdmins, EditRoles], Some(&[berlin.id]))
        .await
        .unwrap();
    assert_eq!(w.core.role_by_name(&w.tenant, "bERLIN").await.unwrap(), limited);
    assert!(matches!(w.add_role(&root, "berlin", &[ViewUsers], None).await, Err(CoreError::Exists { .. })));
    assert!(matches!(w.add_role(&root, "Security", &[ViewUsers], None).await, Err(CoreError::Exists { .. })));
    invalid(w.add_role(&root, "nothing", &[], None).await, "includes nothing");
    assert!(matches!(w.add_role(&root, "x", &[ViewUsers], Some(&[carol.id])).await, Err(CoreError::NotFound { .. })));
    w.make(&root, &bob, limited.id).await.unwrap();
    let asker = w.core.asker(&w.tenant, bob.id).await.unwrap();
    // Carol is in Berlin by way of sales; Anna is not.
    w.core.authorise_for_user(&w.tenant, &asker, LockDevices, carol.id).await.unwrap();
    denied(w.core.authorise_for_user(&w.tenant, &asker, LockDevices, anna.id).await);
    denied(w.core.authorise_for_user(&w.tenant, &asker, Permission::DeleteWorkData, carol.id).await);
    assert!(authorise(&asker, ViewUsers, Subject::Organisation).is_err());
    assert!(authorise(&asker, ViewUsers, Subject::Group(berlin.id)).is_ok());
    // Roles and administrators reach as far as his own.
    denied(w.make(&asker, &anna, SECURITY).await);
    denied(w.make(&asker, &anna, JUNIOR).await);
    denied(w.add_role(&asker, "mine", &[ViewUsers], None).await);
    denied(w.add_role(&asker, "mine", &[ViewUsers], Some(&[berlin.id])).await);
    let less = w.add_role(&root, "Berlin, less", &[ViewUsers], Some(&[berlin.id])).await.unwrap();
    w.make(&asker, &anna, less.id).await.unwrap();
    w.make(&root, &carol, SECURITY).await.unwrap();
    denied(w.make(&asker, &carol, less.id).await);
    denied(w.core.remove_admin(call!(w), (&w.tenant, &asker), carol.id).await);
    denied(
        w.core
            .set_admin_password(call!(w), (&w.tenant, &asker), carol.id, (&secret("correct horse battery"), false))
            .await,
    );
    // What they were when they began to ask does not count.
    w.make(&root, &bob, JUNIOR).await.unwrap();
    denied(w.core.remove_admin(call!(w), (&w.tenant, &asker), anna.id).await);
    invalid(w.core.remove_role(call!(w), (&w.tenant, &root), less.id).await, "1 administrators have it");
    w.core.remove_role(call!(w), (&w.tenant, &root), limited.id).await.unwrap();
    invalid(w.core.remove_role(call!(w), (&w.tenant, &root), SECURITY).await, "stays");
    assert_eq!(w.core.roles(&w.tenant).await.unwrap().len(), 5);
    w.core.verify_audit(&w.tenant).await.unwrap();
}

pub(crate) async fn p18_who_signs_in_is_an_active_administrator_with_the_password_of_now<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let (anna, root) = (w.user("anna@example.com").await, Asker::BreakGlass);
    let set = (&secret("correct horse battery"), true);
    assert!(w.core.set_admin_password(call!(w), (&w.tenant, &root), anna.id, set).await.is_err(), "no administrator");
    w.make(&root, &anna, JUNIOR).await.unwrap();
    w.sign_in("anna@example.com", "").await.expect_err("no password, no sign-in");
    for bad in ["short", "anna@example.com", &"x".repeat(600)] {
        invalid(
            w.core.set_admin_password(call!(w), (&w.tenant, &root), anna.id, (&secret(bad), false)).await,
            "the password",
        );
    }
    w.core.set_admin_password(call!(w), (&w.tenant, &root), anna.id, set).await.unwrap();
    let signed_in = w.sign_in("Anna@Example.com", "correct horse battery").await.unwrap();
    assert_eq!((signed_in.user.id, signed_in.must_change), (anna.id, true));
    assert_eq!(w.core.admin(&w.tenant, anna.id).await.unwrap().last_sign_in, Some(w.now));
    // One's own may be chosen anew, with nothing else to show than that one has signed in.
    let own = (&secret("another horse battery"), false);
    w.core.set_admin_password(call!(w), (&w.tenant, &signed_in.asker), anna.id, own).await.unwrap();
    let mut wrong = BTreeMap::new();
    for (email, times) in [("anna@example.com", 3), ("nobody@example.com", 2)] {
        for _ in 0..times {
            let before = w.core.audit(&w.tenant, 0, 1000).await.unwrap().len();
            let refused = w.sign_in(email, "correct horse battery").await.unwrap_err();
            assert_eq!(refused.to_string(), "the address or the password is wrong");
            assert_eq!(w.core.audit(&w.tenant, 0, 1000).await.unwrap().len(), before, "nothing is written meanwhile");
            *wrong.entry(refused).or_default() += 1;
        }
    }
    assert!(!w.sign_in("anna@example.com", "another horse battery").await.unwrap().must_change);
    w.core.record_wrong_sign_ins(call!(w), &w.tenant, &BTreeMap::new()).await.unwrap();
    w.core.record_wrong_sign_ins(call!(w), &w.tenant, &wrong).await.unwrap();
    let records = w.core.audit(&w.tenant, 0, 1000).await.unwrap();
    let text = serde_json::to_string(&records).unwrap();
    assert!(!text.contains("horse") && !text.contains("nobody@"), "{text}");
    let refused = records.iter().filter(|r| r.action == "admin.sign_in" && r.outcome.as_str() == "refused");
    let mut refused: Vec<_> = refused.map(|r| (r.subject.clone(), r.detail.clone())).collect();
    refused.sort();
    let nobody = "2 times from 1 sources, with addresses that are no administrator's";
    let mut expected =
        [(anna.id.to_string(), "3 times from 192.0.2.1".to_owned()), (w.tenant.to_string(), nobody.to_owned())];
    expected.sort();
    assert_eq!(refused, expected);
    // The password that was right when the sign-in began is another one when it ends.
    let from = std::net::IpAddr::from([192, 0, 2, 1]);
    let admitted = SignInGuard::default().admit((&w.tenant, &anna.email), from, w.now).unwrap();
    let (attempt, job) = w.core.begin_sign_in(admitted, secret("another horse battery")).await.unwrap();
    let newest = (&secret("yet another horse battery"), false);
    w.core.set_admin_password(call!(w), (&w.tenant, &root), anna.id, newest).await.unwrap();
    assert!(job.run().unwrap());
    w.core.finish_sign_in(call!(w), attempt, true).await.unwrap().expect_err("that is not her password any more");
    w.sign_in("anna@example.com", "yet another horse battery").await.unwrap();
    w.core.set_user_active(call!(w), &w.tenant, anna.id, false).await.unwrap();
    w.sign_in("anna@example.com", "yet another horse battery").await.expect_err("she is nobody now");
    w.core.verify_audit(&w.tenant).await.unwrap();
}

pub(crate) async fn p18_users_of_a_directory_are_unique_and_have_no_password_here<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let directories = [7u8, 8].map(|n| EntityId::from_random([n; 16]));
    let new = |email: &str| NewUser { email: email.parse().unwrap(), display_name: "Anna".into() };
    let add = async |w: &mut World<S>, email: &str, directory, external: &str| {
        w.core.add_directory_user(call!(w), &w.tenant, new(email), (directory, external)).await
    };
    let anna = add(&mut w, "anna@example.com", directories[0], "S-1-5-21").await.unwrap();
    assert_eq!(w.core.user(&w.tenant, anna.id).await.unwrap(), anna);
    assert!(matches!(anna.source, UserSource::Directory { .. }));
    let again = add(&mut w, "other@example.com", directories[0], "S-1-5-21").await;
    assert!(matches!(again, Err(CoreError::Exists { kind: "user of the directory", .. })));
    add(&mut w, "bob@example.com", directories[1], "S-1-5-21").await.unwrap();
    assert!(matches!(add(&mut w, "anna@example.com", directories[1], "x").await, Err(CoreError::Exists { .. })));
    invalid(add(&mut w, "carol@example.com", directories[1], "").await, "characters");
    let found = w.core.store().user_by_external(&w.tenant, directories[0], "S-1-5-21").await.unwrap();
    assert_eq!(found, Some(anna.clone()));
    let root = Asker::BreakGlass;
    w.make(&root, &anna, SECURITY).await.unwrap();
    let password = (&secret("correct horse battery"), false);
    invalid(w.core.set_admin_password(call!(w), (&w.tenant, &root), anna.id, password).await, "directory keeps it");
    w.sign_in("anna@example.com", "correct horse battery").await.expect_err("it is the directory's");
}
