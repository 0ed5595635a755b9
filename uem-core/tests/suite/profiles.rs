//! Groups, profiles, and what of them has effect.

use std::collections::BTreeSet;

use super::world::*;
use hedgerow_shared::EntityId;
use hedgerow_shared::verify::{DeviceConfig, NodeConfig, Scopes, Via};
use hedgerow_uem_core::config::Configs;
use hedgerow_uem_core::group::{Group, MAX_DEPTH, Principal};
use hedgerow_uem_core::profile::{Category, Passed, Platform, Profile, Reason};
use hedgerow_uem_core::service::{NewProfile, ProfileChange};
use hedgerow_uem_core::store::{Page, Store};
use hedgerow_uem_core::{Actor, Call, CoreError};

pub(super) fn new(category: Category, name: &str) -> NewProfile {
    let settings = serde_json::from_str(r#"{"note":"it's \"so\" – ünd 1.5"}"#).unwrap();
    NewProfile { category, name: name.into(), description: String::new(), disabled: BTreeSet::new(), settings }
}

impl<S: Store> World<S> {
    pub(super) async fn group(&mut self, name: &str) -> Group {
        self.core.add_group(call!(self), &self.tenant, name, "").await.unwrap()
    }

    pub(super) async fn join(&mut self, group: &Group, member: Principal) -> Result<(), CoreError> {
        self.core.add_member(call!(self), &self.tenant, group.id, member).await
    }

    pub(super) async fn profile(&mut self, category: Category, name: &str) -> Profile {
        self.core.add_profile(call!(self), &self.tenant, new(category, name)).await.unwrap()
    }

    pub(super) async fn assign(&mut self, profile: &Profile, holder: Principal) {
        self.core.assign_profile(call!(self), &self.tenant, profile.id, holder).await.unwrap();
    }

    pub(super) async fn in_effect(&self, user: EntityId) -> Vec<(String, Reason)> {
        let found = self.core.effective_profiles(&self.tenant, user, Some(Platform::Linux)).await.unwrap();
        found.into_iter().map(|e| (e.profile.name.clone(), e.reason)).collect()
    }
}

pub(crate) async fn p18_groups_have_unique_names_and_nest_within_bounds<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let sales = w.group("Sales").await;
    let again = w.core.add_group(call!(w), &w.tenant, " sALES ", "").await;
    assert!(matches!(again, Err(CoreError::Exists { kind: "group", .. })));
    assert_eq!(w.core.group_by_name(&w.tenant, "SALES").await.unwrap(), sales);
    assert!(w.core.add_group(call!(w), &w.tenant, "a\nb", "").await.is_err());
    let mut below = sales.clone();
    for n in 1..MAX_DEPTH {
        let on = w.group(&format!("level {n}")).await;
        w.join(&on, Principal::Group(below.id)).await.unwrap();
        below = on;
    }
    let over = w.group("one too many").await;
    let refused = w.join(&over, Principal::Group(below.id)).await.unwrap_err();
    assert!(refused.to_string().contains("on top of each other"), "{refused}");
    let refused = w.join(&sales, Principal::Group(below.id)).await.unwrap_err();
    assert!(refused.to_string().contains("circle"), "{refused}");
    let nobody = Principal::User(sales.id);
    assert!(matches!(w.join(&sales, nobody).await, Err(CoreError::NotFound { kind: "user", .. })));
    let anna = w.user("anna@example.com").await;
    w.join(&sales, Principal::User(anna.id)).await.unwrap();
    w.join(&sales, Principal::User(anna.id)).await.unwrap();
    assert_eq!(w.core.members(&w.tenant, sales.id, Page::first()).await.unwrap(), [Principal::User(anna.id)]);
    let ways = w.core.groups_of_user(&w.tenant, anna.id).await.unwrap();
    assert_eq!((ways.len(), ways[&below.id].len()), (MAX_DEPTH, MAX_DEPTH));
    w.core.remove_member(call!(w), &w.tenant, sales.id, Principal::User(anna.id)).await.unwrap();
    assert!(w.core.remove_member(call!(w), &w.tenant, sales.id, Principal::User(anna.id)).await.is_err());
    assert!(w.core.groups_of_user(&w.tenant, anna.id).await.unwrap().is_empty());
    w.core.verify_audit(&w.tenant).await.unwrap();
}

pub(crate) async fn p18_lists_of_groups_and_members_come_in_pages<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let all = w.group("everybody").await;
    let mut expected = BTreeSet::new();
    for n in 0..5 {
        let user = w.user(&format!("user{n}@example.com")).await;
        let group = w.group(&format!("group {n}")).await;
        for member in [Principal::User(user.id), Principal::Group(group.id)] {
            w.join(&all, member).await.unwrap();
            expected.insert(member.id());
        }
    }
    let (mut seen, mut page) = (Vec::new(), Page { after: None, limit: 3 });
    loop {
        let part = w.core.members(&w.tenant, all.id, page).await.unwrap();
        seen.extend(part.iter().map(|member| member.id()));
        match part.last() {
            Some(last) if part.len() == 3 => page.after = Some(last.id()),
            _ => break,
        }
    }
    assert_eq!(seen, Vec::from_iter(expected));
    let first = w.core.groups(&w.tenant, Page { after: None, limit: 4 }).await.unwrap();
    let rest = w.core.groups(&w.tenant, Page { after: first.last().map(|g| g.id), limit: 4 }).await.unwrap();
    assert_eq!((first.len(), rest.len()), (4, 2));
}

pub(crate) async fn p21_profiles_are_ranked_and_ranks_move<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let mut made = Vec::new();
    for name in ["one", "two", "three", "four"] {
        made.push(w.profile(Category::ItConfig, name).await);
    }
    w.profile(Category::Email, "one").await;
    let again = w.core.add_profile(call!(w), &w.tenant, new(Category::ItConfig, "ONE")).await;
    assert!(matches!(again, Err(CoreError::Exists { kind: "profile", .. })));
    for (moved, to, expected) in [
        (3, 1, "four one two three"),
        (3, 3, "one two four three"),
        (0, 99, "two four three one"),
        (0, 4, "two four three one"),
    ] {
        let told = w.core.rank_profile(call!(w), &w.tenant, made[moved].id, to).await.unwrap();
        let now = w.core.profiles(&w.tenant, Category::ItConfig).await.unwrap();
        assert_eq!(told, now);
        assert_eq!(now.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(" "), expected);
        assert_eq!(now.iter().map(|p| p.rank).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }
    assert!(w.core.rank_profile(call!(w), &w.tenant, made[0].id, 0).await.is_err());
    let change = ProfileChange {
        name: Some("uno".into()),
        disabled: Some([Platform::Ios, Platform::Linux].into()),
        settings: serde_json::from_str(r#"{"passwordLength":12,"list":[1,null,{"a":true}]}"#).unwrap(),
        ..ProfileChange::default()
    };
    w.now = w.now.plus(60);
    let changed = w.core.change_profile(call!(w), &w.tenant, made[0].id, change).await.unwrap();
    assert_eq!(w.core.profile(&w.tenant, made[0].id).await.unwrap(), changed);
    assert_eq!((changed.modified, changed.created, changed.rank), (w.now, NOW, 4));
    let taken = ProfileChange { name: Some("Two".into()), ..ProfileChange::default() };
    assert!(w.core.change_profile(call!(w), &w.tenant, made[0].id, taken).await.is_err());
    w.core.verify_audit(&w.tenant).await.unwrap();
}

pub(crate) async fn p21_a_category_has_one_default_and_it_stays<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let (one, two) = (w.profile(Category::Compliance, "one").await, w.profile(Category::Compliance, "two").await);
    w.core.set_default_profile(call!(w), &w.tenant, one.id, true).await.unwrap();
    w.core.set_default_profile(call!(w), &w.tenant, two.id, true).await.unwrap();
    let now = w.core.profiles(&w.tenant, Category::Compliance).await.unwrap();
    assert_eq!(now.iter().map(|p| p.default).collect::<Vec<_>>(), [false, true]);
    assert!(w.core.remove_profile(call!(w), &w.tenant, two.id).await.is_err());
    let rename = ProfileChange { name: Some("deux".into()), ..ProfileChange::default() };
    assert!(w.core.change_profile(call!(w), &w.tenant, two.id, rename).await.is_err());
    w.core.set_default_profile(call!(w), &w.tenant, two.id, false).await.unwrap();
    w.core.remove_profile(call!(w), &w.tenant, two.id).await.unwrap();
    assert!(matches!(w.core.profile(&w.tenant, two.id).await, Err(CoreError::NotFound { .. })));
    let wifi = w.profile(Category::Wifi, "guests").await;
    assert!(w.core.set_default_profile(call!(w), &w.tenant, wifi.id, true).await.is_err());
}

pub(crate) async fn p21_what_has_effect_is_told_with_its_reason<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    let (sales, staff) = (w.group("sales").await, w.group("staff").await);
    w.join(&sales, Principal::User(anna.id)).await.unwrap();
    w.join(&staff, Principal::Group(sales.id)).await.unwrap();
    let strict = w.profile(Category::ItConfig, "strict").await;
    let normal = w.profile(Category::ItConfig, "normal").await;
    let usual = w.profile(Category::ItConfig, "usual").await;
    w.core.set_default_profile(call!(w), &w.tenant, usual.id, true).await.unwrap();
    assert_eq!(w.in_effect(anna.id).await, [("usual".into(), Reason::Default)]);
    w.assign(&normal, Principal::Group(sales.id)).await;
    assert_eq!(w.in_effect(anna.id).await, [("normal".into(), Reason::Group { way: vec![sales.id] })]);
    // The rank decides, not how near the group is.
    w.assign(&strict, Principal::Group(staff.id)).await;
    assert_eq!(w.in_effect(anna.id).await, [("strict".into(), Reason::Group { way: vec![sales.id, staff.id] })]);
    w.assign(&normal, Principal::User(anna.id)).await;
    let found = w.core.effective_profiles(&w.tenant, anna.id, None).await.unwrap();
    let passed: Vec<_> = found[0].passed_over.iter().map(|(p, why)| (p.name.as_str(), *why)).collect();
    assert_eq!((found[0].profile.id, &found[0].reason), (normal.id, &Reason::User));
    assert_eq!(passed, [("strict", Passed::AssignedToGroup)]);
    let off = ProfileChange { disabled: Some([Platform::Linux].into()), ..ProfileChange::default() };
    w.core.change_profile(call!(w), &w.tenant, normal.id, off).await.unwrap();
    assert_eq!(w.in_effect(anna.id).await[0].0, "strict");
    w.core.remove_group(call!(w), &w.tenant, staff.id).await.unwrap();
    assert_eq!(w.in_effect(anna.id).await, [("usual".into(), Reason::Default)]);
    assert!(w.core.holders(&w.tenant, strict.id).await.unwrap().is_empty());
    // Of Wi-Fi networks a device gets all.
    for name in ["guests", "office"] {
        let wifi = w.profile(Category::Wifi, name).await;
        w.assign(&wifi, Principal::User(anna.id)).await;
    }
    let names: Vec<_> = w.in_effect(anna.id).await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["usual", "guests", "office"]);
    w.core.unassign_profile(call!(w), &w.tenant, normal.id, Principal::User(anna.id)).await.unwrap();
    let twice = w.core.unassign_profile(call!(w), &w.tenant, normal.id, Principal::User(anna.id)).await;
    assert!(matches!(twice, Err(CoreError::NotFound { kind: "assignment", .. })));
}

/// Which profile a device is under comes into force with a configuration, for its node and for itself, and only then.
pub(crate) async fn p21_connectivity_profiles_become_routes_of_devices_and_rules_of_nodes<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let mut devices = Vec::new();
    for email in ["anna@example.com", "bob@example.com", "carol@example.com"] {
        let user = w.user(email).await;
        w.password(&user, "open sesame").await;
        devices.push((user.id, w.activate(email, "open sesame").await.unwrap().1.id));
    }
    let [(anna, at_anna), (bob, at_bob), (_, at_carol)] = devices[..] else { panic!("three") };
    let settings = |text: &str| serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).unwrap();
    let made = async |w: &mut World<S>, name: &str, text: &str| {
        let profile = NewProfile { settings: settings(text), ..new(Category::EnterpriseConnectivity, name) };
        w.core.add_profile(call!(w), &w.tenant, profile).await
    };
    let wrong = made(&mut w, "wrong", r#"{"rules":[{"action":"allow","target":"10.1.2.3/8"}]}"#).await.unwrap_err();
    assert!(wrong.to_string().contains("bits are set behind the prefix"), "{wrong}");
    let route =
        serde_json::from_value(serde_json::json!({ "target": "*.example.com", "via": "group:berlin" })).unwrap();
    w.core.set_routes(call!(w), &w.tenant, vec![route], Via::Direct).await.unwrap();
    let place = async |w: &mut World<S>| w.core.place_if_changed(call!(w), &w.tenant).await.unwrap();
    assert_eq!(place(&mut w).await, None, "no such profile");

    let field = made(
        &mut w,
        "field",
        r#"{"tunnel":false,"routes":[{"target":"10.0.0.0/8","via":"group:field"}],
        "rules":[{"action":"deny","target":"10.9.0.0/16"}]}"#,
    )
    .await
    .unwrap();
    let off = made(&mut w, "off", r#"{"enabled":false}"#).await.unwrap();
    let (outer, inner) = (w.group("outer").await, w.group("inner").await);
    w.join(&outer, Principal::Group(inner.id)).await.unwrap();
    w.join(&inner, Principal::User(anna)).await.unwrap();
    w.assign(&field, Principal::Group(outer.id)).await;
    w.assign(&off, Principal::User(bob)).await;
    let before = w.core.configs(&w.tenant).await.unwrap();
    assert!(read_node(&before).scopes.is_empty(), "not before it is issued");
    let version = place(&mut w).await.unwrap();
    assert!(version > before.version);
    assert_eq!(place(&mut w).await, None, "once");

    let configs = w.core.configs(&w.tenant).await.unwrap();
    let node = read_node(&configs);
    let scopes = Scopes::new(&node.scopes);
    let of = |device| scopes.of(&device).map(|at| node.scopes[at].clone());
    let anna_scope = of(at_anna).unwrap();
    assert_eq!((anna_scope.name.as_str(), anna_scope.enabled, anna_scope.tunnel), ("field", true, false));
    assert_eq!(anna_scope.rules.len(), 1);
    assert!(!of(at_bob).unwrap().enabled);
    assert_eq!(of(at_carol), None);
    let routes = |device| read_device(&configs, device).routes.iter().map(|r| r.via.to_string()).collect::<Vec<_>>();
    assert_eq!(routes(at_anna), ["group:field", "group:berlin"]);
    assert_eq!(routes(at_bob), ["deny"], "what would lead into the organisation does not go out in the open");
    assert_eq!(routes(at_carol), ["group:berlin"]);

    // The default stands for everybody else, without naming them; what is not there on a platform is named.
    w.core.set_default_profile(call!(w), &w.tenant, off.id, true).await.unwrap();
    let linux = ProfileChange { disabled: Some(BTreeSet::from([Platform::Linux])), ..ProfileChange::default() };
    place(&mut w).await.unwrap();
    let node = read_node(&w.core.configs(&w.tenant).await.unwrap());
    assert_eq!(node.scopes.iter().map(|s| (s.rest, s.devices.len())).collect::<Vec<_>>(), [(true, 0), (false, 1)]);
    w.core.change_profile(call!(w), &w.tenant, off.id, linux).await.unwrap();
    place(&mut w).await.unwrap();
    let node = read_node(&w.core.configs(&w.tenant).await.unwrap());
    let scopes = Scopes::new(&node.scopes);
    assert!(node.scopes[scopes.of(&at_carol).unwrap()].enabled, "switched off is the profile, not the device");
    w.core.remove_member(call!(w), &w.tenant, inner.id, Principal::User(anna)).await.unwrap();
    place(&mut w).await.unwrap();
    let node = read_node(&w.core.configs(&w.tenant).await.unwrap());
    assert!(!node.scopes.iter().any(|s| s.name == "field"));
    w.core.verify_audit(&w.tenant).await.unwrap();
}

fn read_node(configs: &Configs) -> NodeConfig {
    serde_json::from_slice(&configs.node.payload).unwrap()
}

fn read_device(configs: &Configs, device: EntityId) -> DeviceConfig {
    serde_json::from_slice(&configs.for_device(&device).payload).unwrap()
}
