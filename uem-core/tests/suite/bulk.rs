//! Many users at once.

use super::world::*;
use hedgerow_uem_core::bulk::{self, Line};
use hedgerow_uem_core::group::Principal;
use hedgerow_uem_core::service::{ImportError, Imported};
use hedgerow_uem_core::store::{Page, Store};
use hedgerow_uem_core::{Actor, Call};

fn lines(text: &str) -> Vec<Line> {
    bulk::read(text).unwrap()
}

pub(crate) async fn p18_users_are_imported_once_and_changed_where_they_differ<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let before = w.user("user7@example.com").await;
    let sales = w.core.add_group(call!(w), &w.tenant, "Sales", "").await.unwrap();
    let mut text = "email,name,groups\n".to_owned();
    for n in 0..1200 {
        text += &format!("user{n}@example.com,Person {n},{}\n", if n % 100 == 0 { "SALES" } else { "" });
    }
    let done = w.core.import_users(call!(w), &w.tenant, &lines(&text)).await.unwrap();
    assert_eq!(done, Imported { added: 1199, changed: 1, unchanged: 0 });
    let again = w.core.import_users(call!(w), &w.tenant, &lines(&text)).await.unwrap();
    assert_eq!(again, Imported { added: 0, changed: 0, unchanged: 1200 });
    let now = w.core.user(&w.tenant, before.id).await.unwrap();
    assert_eq!((now.display_name.as_str(), now.created), ("Person 7", before.created));
    assert_eq!(w.core.members(&w.tenant, sales.id, Page::first()).await.unwrap().len(), 12);
    // Who stands in a group stays in it; who is not named is not touched.
    let moved = lines("email,name,groups\nuser1@example.com,Person 1,sales\nuser100@example.com,Renamed,\n");
    let done = w.core.import_users(call!(w), &w.tenant, &moved).await.unwrap();
    assert_eq!(done, Imported { added: 0, changed: 2, unchanged: 0 });
    assert_eq!(w.core.members(&w.tenant, sales.id, Page::first()).await.unwrap().len(), 13);
    // Without a name nobody is renamed; whoever was switched off elsewhere is added so, and stays as they are here.
    let bare = lines("email,groups,active\nuser2@example.com,,false\nleft@example.com,,false\n");
    let done = w.core.import_users(call!(w), &w.tenant, &bare).await.unwrap();
    assert_eq!(done, Imported { added: 1, changed: 0, unchanged: 1 });
    let [there, left] = ["user2", "left"].map(|name| format!("{name}@example.com").parse().unwrap());
    let (there, left) =
        (w.core.user_by_email(&w.tenant, &there).await.unwrap(), w.core.user_by_email(&w.tenant, &left).await.unwrap());
    assert_eq!((there.display_name.as_str(), there.active), ("Person 2", true));
    assert_eq!((left.display_name.as_str(), left.active), ("left@example.com", false));
    let nobody = lines("email,groups\nnew@example.com,\nuser3@example.com,nowhere\n");
    let Err(ImportError::Lines(faults)) = w.core.import_users(call!(w), &w.tenant, &nobody).await else {
        panic!("a group that does not exist")
    };
    assert_eq!((faults.len(), faults[0].line), (1, 3));
    assert!(w.core.user_by_email(&w.tenant, &"new@example.com".parse().unwrap()).await.is_err(), "nothing is done");
    let user = w.core.user_by_email(&w.tenant, &"user100@example.com".parse().unwrap()).await.unwrap();
    assert_eq!(w.core.group_names_of(&w.tenant, user.id).await.unwrap(), ["Sales".to_owned()].into());
    assert_eq!(w.core.groups_of_user(&w.tenant, user.id).await.unwrap().len(), 1);
    w.core.remove_member(call!(w), &w.tenant, sales.id, Principal::User(user.id)).await.unwrap();
    w.core.verify_audit(&w.tenant).await.unwrap();
}

pub(crate) async fn p18_users_are_found_by_what_their_address_or_name_begins_with<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let text =
        "email,name\nanna@example.com,Zoe Ärger\nbob@example.com,anna Miller\nzed@example.com,Bob\nx_a@example.com,%\n";
    w.core.import_users(call!(w), &w.tenant, &lines(text)).await.unwrap();
    for (begins, expected) in [
        ("ANNA", "anna@example.com bob@example.com"),
        ("bob", "bob@example.com zed@example.com"),
        ("zoe Ä", "anna@example.com"),
        // No patterns: these are characters.
        ("%", "x_a@example.com"),
        ("x_", "x_a@example.com"),
        ("_", ""),
        ("example", ""),
        ("", "anna@example.com bob@example.com x_a@example.com zed@example.com"),
    ] {
        let found = w.core.find_users(&w.tenant, begins, 100).await.unwrap();
        let found: Vec<_> = found.iter().map(|user| user.email.as_str()).collect();
        assert_eq!(found.join(" "), expected, "{begins:?}");
    }
    let found = w.core.find_users(&w.tenant, "", 2).await.unwrap();
    assert_eq!(found.len(), 2);
}
