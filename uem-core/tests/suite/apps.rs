//! Apps: kept, assigned, compared with what is installed.

use super::world::*;
use hedgerow_uem_core::app::{App, Assignment, Disposition, List, Listing, MAX_VERSIONS, Source, Target, Through};
use hedgerow_uem_core::command::Kind;
use hedgerow_uem_core::compliance::{Rule, Verdict};
use hedgerow_uem_core::group::Principal;
use hedgerow_uem_core::profile::{Platform, Reason};
use hedgerow_uem_core::service::NewApp;
use hedgerow_uem_core::store::{Page, Store};
use hedgerow_uem_core::{Actor, Call, CoreError};
use serde_json::{Map, json};

pub(super) fn new_app(platform: Platform, identifier: &str) -> NewApp {
    NewApp {
        platform,
        identifier: identifier.into(),
        name: format!("App {identifier}"),
        vendor: String::new(),
        versions: vec!["2.0".into(), "1.0".into()],
        source: Source::Store(String::new()),
    }
}

impl<S: Store> World<S> {
    async fn app(&mut self, identifier: &str) -> App {
        self.core.add_app(call!(self), &self.tenant, new_app(Platform::Linux, identifier)).await.unwrap()
    }

    async fn give_app(&mut self, target: Target, holder: Principal, disposition: Disposition) {
        let assignment = Assignment { target, holder, disposition, config: None };
        self.core.assign_app(call!(self), &self.tenant, assignment).await.unwrap();
    }

    async fn list(&mut self, list: List, identifier: &str, is_on: bool) -> Result<(), CoreError> {
        let listing = Listing { list, platform: Platform::Linux, identifier: identifier.into() };
        self.core.set_listed(call!(self), &self.tenant, listing, is_on).await
    }
}

pub(crate) async fn p40_the_catalogue_keeps_apps_configurations_and_groups<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let mail = w.app("mail").await;
    let again = w.core.add_app(call!(w), &w.tenant, new_app(Platform::Linux, " mail ")).await;
    assert!(matches!(again, Err(CoreError::Exists { kind: "app", .. })));
    let phone = w.core.add_app(call!(w), &w.tenant, new_app(Platform::Ios, "mail")).await.unwrap();
    let file = NewApp { source: Source::File("repo/tool.deb".into()), ..new_app(Platform::Linux, "tool") };
    let tool = w.core.add_app(call!(w), &w.tenant, file).await.unwrap();
    assert_eq!(w.core.app_by_identifier(&w.tenant, Platform::Linux, "tool").await.unwrap(), tool);
    let first = w.core.apps(&w.tenant, Page { after: None, limit: 2 }).await.unwrap();
    let rest = w.core.apps(&w.tenant, Page { after: Some(first[1].id), limit: 2 }).await.unwrap();
    assert_eq!((first.len(), rest.len()), (2, 1));
    for bad in [
        NewApp { identifier: "a b".into(), ..new_app(Platform::Linux, "") },
        NewApp { versions: vec!["1".into(); MAX_VERSIONS + 1], ..new_app(Platform::Linux, "x") },
        NewApp { name: "\u{7}".into(), ..new_app(Platform::Linux, "x") },
    ] {
        assert!(matches!(w.core.add_app(call!(w), &w.tenant, bad).await, Err(CoreError::Invalid { .. })));
    }
    // Configurations are ranked in their app.
    let settings = |n: u32| Map::from_iter([("server".to_owned(), json!(n))]);
    let mut configs = Vec::new();
    for name in ["one", "two", "three"] {
        let made = w.core.put_app_config(call!(w), &w.tenant, mail.id, (name, settings(1))).await.unwrap();
        configs.push(made);
    }
    let changed = w.core.put_app_config(call!(w), &w.tenant, mail.id, ("ONE", settings(2))).await.unwrap();
    assert_eq!((changed.id, changed.rank, &changed.settings["server"]), (configs[0].id, 1, &json!(2)));
    let order = w.core.rank_app_config(call!(w), &w.tenant, configs[2].id, 1).await.unwrap();
    assert_eq!(
        order.iter().map(|c| (c.name.as_str(), c.rank)).collect::<Vec<_>>(),
        [("three", 1), ("one", 2), ("two", 3)]
    );
    assert_eq!(w.core.app_configs(&w.tenant, mail.id).await.unwrap(), order);
    // Groups of apps.
    let office = w.core.add_app_group(call!(w), &w.tenant, "Office", "").await.unwrap();
    assert!(w.core.add_app_group(call!(w), &w.tenant, "office", "").await.is_err());
    for app in [mail.id, phone.id, mail.id] {
        w.core.set_in_app_group(call!(w), &w.tenant, (office.id, app), true).await.unwrap();
    }
    assert_eq!(w.core.apps_in_group(&w.tenant, office.id).await.unwrap().len(), 2);
    w.core.set_in_app_group(call!(w), &w.tenant, (office.id, phone.id), false).await.unwrap();
    assert_eq!(w.core.apps_in_group(&w.tenant, office.id).await.unwrap(), std::slice::from_ref(&mail));
    // What goes takes with it what is of it.
    let anna = Principal::User(w.user("anna@example.com").await.id);
    w.give_app(Target::App(mail.id), anna, Disposition::Required).await;
    w.give_app(Target::Group(office.id), anna, Disposition::Optional).await;
    w.core.remove_app(call!(w), &w.tenant, mail.id).await.unwrap();
    assert!(w.core.apps_in_group(&w.tenant, office.id).await.unwrap().is_empty());
    assert!(w.core.app_config(&w.tenant, configs[0].id).await.is_err());
    assert!(w.core.effective_apps(&w.tenant, anna.id(), None).await.unwrap().is_empty());
    w.core.remove_app_group(call!(w), &w.tenant, office.id).await.unwrap();
    assert!(w.core.app_group_by_name(&w.tenant, "office").await.is_err());
    let records = serde_json::to_string(&w.core.audit(&w.tenant, 0, 1000).await.unwrap()).unwrap();
    assert!(records.contains("app.config.set") && !records.contains("server"), "settings may hold secrets");
    w.core.verify_audit(&w.tenant).await.unwrap();
}

pub(crate) async fn p40_which_apps_have_effect_is_told_with_its_reason<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    let (sales, staff) = (w.group("sales").await, w.group("staff").await);
    w.join(&sales, Principal::User(anna.id)).await.unwrap();
    w.join(&staff, Principal::Group(sales.id)).await.unwrap();
    let (mail, chat) = (w.app("mail").await, w.app("chat").await);
    let office = w.core.add_app_group(call!(w), &w.tenant, "office", "").await.unwrap();
    w.core.set_in_app_group(call!(w), &w.tenant, (office.id, mail.id), true).await.unwrap();
    w.core.set_in_app_group(call!(w), &w.tenant, (office.id, chat.id), true).await.unwrap();
    let effective = async |w: &World<S>| {
        let found = w.core.effective_apps(&w.tenant, anna.id, Some(Platform::Linux)).await.unwrap();
        found.into_iter().map(|e| (e.app.identifier.clone(), e.disposition, e.through, e.reason)).collect::<Vec<_>>()
    };
    let by_staff = Reason::Group { way: vec![sales.id, staff.id] };
    w.give_app(Target::Group(office.id), Principal::Group(staff.id), Disposition::Optional).await;
    let through = Through::AppGroup(office.id);
    assert_eq!(
        effective(&w).await,
        [
            ("chat".into(), Disposition::Optional, through, by_staff.clone()),
            ("mail".into(), Disposition::Optional, through, by_staff.clone()),
        ]
    );
    // Required over optional, among groups.
    w.give_app(Target::App(mail.id), Principal::Group(sales.id), Disposition::Required).await;
    let by_sales = Reason::Group { way: vec![sales.id] };
    assert_eq!(effective(&w).await[1], ("mail".into(), Disposition::Required, Through::Itself, by_sales.clone()));
    // Direct over inherited; what was there is replaced.
    w.give_app(Target::App(chat.id), Principal::User(anna.id), Disposition::Required).await;
    w.give_app(Target::App(chat.id), Principal::User(anna.id), Disposition::Denied).await;
    assert_eq!(effective(&w).await[0], ("chat".into(), Disposition::Denied, Through::Itself, Reason::User));
    assert_eq!(w.core.app_assignments(&w.tenant, Target::App(chat.id)).await.unwrap().len(), 1);
    // The first configuration of all that come wins, whichever assignment does.
    let mut configs = Vec::new();
    for name in ["first", "second"] {
        configs.push(w.core.put_app_config(call!(w), &w.tenant, mail.id, (name, Map::new())).await.unwrap());
    }
    for (holder, config) in [(Principal::User(anna.id), 1), (Principal::Group(staff.id), 0)] {
        let config = Some(configs[config].id);
        let one = Assignment { target: Target::App(mail.id), holder, disposition: Disposition::Optional, config };
        w.core.assign_app(call!(w), &w.tenant, one).await.unwrap();
        let other = Assignment { target: Target::App(chat.id), ..one };
        assert!(matches!(w.core.assign_app(call!(w), &w.tenant, other).await, Err(CoreError::Invalid { .. })));
    }
    let found = w.core.effective_apps(&w.tenant, anna.id, None).await.unwrap();
    let mail_now = found.iter().find(|e| e.app.id == mail.id).unwrap();
    assert_eq!((mail_now.disposition, &mail_now.reason), (Disposition::Optional, &Reason::User));
    assert_eq!(mail_now.config.as_ref().unwrap().name, "first");
    w.core.remove_app_config(call!(w), &w.tenant, configs[0].id).await.unwrap();
    let found = w.core.effective_apps(&w.tenant, anna.id, None).await.unwrap();
    assert_eq!(found[1].config.as_ref().unwrap().name, "second");
    assert!(w.core.effective_apps(&w.tenant, anna.id, Some(Platform::Ios)).await.unwrap().is_empty());
    w.core.unassign_app(call!(w), &w.tenant, Target::App(chat.id), Principal::User(anna.id)).await.unwrap();
    let twice = w.core.unassign_app(call!(w), &w.tenant, Target::App(chat.id), Principal::User(anna.id)).await;
    assert!(matches!(twice, Err(CoreError::NotFound { kind: "assignment", .. })));
    assert_eq!(effective(&w).await[0].1, Disposition::Optional);
    w.core.remove_group(call!(w), &w.tenant, staff.id).await.unwrap();
    assert_eq!(effective(&w).await.len(), 1, "chat came by the group that is gone");
}

pub(crate) async fn p40_what_is_installed_is_compared_and_compliance_follows<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let device = w.device_of("anna@example.com").await;
    let user = Principal::User(device.user);
    let mail = w.app("mail").await;
    w.give_app(Target::App(mail.id), user, Disposition::Required).await;
    w.list(List::Restricted, "telnet*", true).await.unwrap();
    assert!(w.list(List::Restricted, "te*net", true).await.is_err());
    assert_eq!(w.core.app_findings(&w.tenant, device.id).await.unwrap(), None, "it has told nothing");
    w.compliance(json!({ "rules": { "requiredApp": {}, "restrictedApp": {}, "unapprovedApp": {} } })).await;
    let tell = |names: &[&str]| json!({ "packages": names.iter().map(|n| json!({ "name": n })).collect::<Vec<_>>() });
    w.told(&device, Kind::ListApplications, tell(&["bash", "telnetd"])).await;
    let broken = async |w: &World<S>| {
        let standing = w.core.standing(&w.tenant, device.id).await.unwrap().unwrap();
        standing.causes.iter().map(|c| (c.finding.rule, c.finding.what.clone())).collect::<Vec<_>>()
    };
    let one = |what: &str| vec![what.to_owned()];
    assert_eq!(broken(&w).await, [(Rule::RequiredApp, one("mail")), (Rule::RestrictedApp, one("telnetd"))]);
    w.list(List::Approved, "coreutils", true).await.unwrap();
    w.told(&device, Kind::ListApplications, tell(&["bash", "mail", "coreutils"])).await;
    assert_eq!(broken(&w).await, [(Rule::UnapprovedApp, one("bash"))]);
    w.list(List::Approved, "bash", true).await.unwrap();
    w.list(List::Approved, "bash", true).await.unwrap();
    assert_eq!(w.core.listings(&w.tenant, Some(Platform::Linux)).await.unwrap().len(), 3);
    let (standing, _) = w.core.judge_device(call!(w), &w.tenant, device.id).await.unwrap();
    assert_eq!(standing.unwrap().verdict, Verdict::Compliant);
    w.list(List::Approved, "bash", false).await.unwrap();
    assert_eq!(w.core.app_findings(&w.tenant, device.id).await.unwrap().unwrap().unapproved, one("bash"));
}
