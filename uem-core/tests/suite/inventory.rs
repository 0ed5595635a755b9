//! What devices tell, and what follows from it.

use super::world::*;
use hedgerow_shared::{EntityId, UnixTime};
use hedgerow_uem_core::account::{Device, DeviceState};
use hedgerow_uem_core::command::{Kind, Reply, State};
use hedgerow_uem_core::compliance::{Action, Rule, Standing, Verdict};
use hedgerow_uem_core::group::Principal;
use hedgerow_uem_core::inventory::{InstalledApp, MAX_APPS};
use hedgerow_uem_core::profile::{Category, Profile};
use hedgerow_uem_core::service::NewProfile;
use hedgerow_uem_core::store::{Change, Commit, Page, Store};
use hedgerow_uem_core::{Actor, Call};
use serde_json::{Value, json};

impl<S: Store> World<S> {
    /// A device is asked and answers.
    pub(super) async fn told(&mut self, device: &Device, kind: Kind, answer: Value) {
        let asked = self.give(device, kind).await.unwrap();
        let (got, _) = self.core.next_command(call!(self), &self.tenant, device.id, &[].into()).await.unwrap().unwrap();
        assert_eq!(got.id, asked.id);
        let Value::Object(result) = answer else { panic!("an answer is an object") };
        self.answer(device, asked.id, Reply::Done { result }).await.unwrap();
    }

    /// A compliance profile that is the default.
    pub(super) async fn compliance(&mut self, settings: Value) -> Profile {
        let Value::Object(settings) = settings else { panic!("settings are an object") };
        let new =
            NewProfile { category: Category::Compliance, name: "rules".into(), settings, ..NewProfile::default() };
        let profile = self.core.add_profile(call!(self), &self.tenant, new).await.unwrap();
        self.core.set_default_profile(call!(self), &self.tenant, profile.id, true).await.unwrap()
    }

    pub(super) async fn open(&self, device: &Device) -> Vec<(Kind, EntityId)> {
        let all = self.core.commands(&self.tenant, device.id).await.unwrap();
        all.iter().filter(|c| c.state.is_open()).map(|c| (c.kind, c.id)).collect()
    }

    /// Judges a device where the core has been available since then.
    async fn judged(&mut self, device: &Device, available: UnixTime) -> Standing {
        let mut call = Call::new(Actor::System, self.now, &mut self.random).available_since(available);
        self.core.judge_device(&mut call, &self.tenant, device.id).await.unwrap().0.unwrap()
    }

    /// What a device answers is kept, without a command.
    async fn tell(&self, device: &Device, kind: Kind, answer: Value) {
        let Value::Object(told) = answer else { panic!("an answer is an object") };
        self.core.tell(&self.tenant, device.id, (kind, &told), self.now).await.unwrap();
    }

    /// Hours go by.
    fn wait(&mut self, hours: u64) {
        self.now = self.now.plus(hours * 3600);
    }

    async fn seen(&self, device: &Device) {
        self.core.store().seen(&self.tenant, device.id, self.now).await.unwrap();
    }

    async fn version(&self) -> u64 {
        self.core.config_version(&self.tenant).await.unwrap().version
    }
}

fn app(name: &str, version: &str) -> InstalledApp {
    InstalledApp { identifier: name.into(), name: name.into(), version: version.into() }
}

pub(crate) async fn p23_what_a_device_tells_is_kept_and_the_newest_counts<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let (device, other) = (w.device_of("anna@example.com").await, w.device_of("bob@example.com").await);
    assert_eq!(w.core.inventory(&w.tenant, device.id).await.unwrap(), Default::default());
    w.told(&device, Kind::RequestDeviceInfo, json!({ "os": "Linux", "osVersion": "12", "kernel": "6.1 „x\" 'y'" }))
        .await;
    let first = w.core.inventory(&w.tenant, device.id).await.unwrap();
    let told = first.attributes.clone().unwrap();
    assert_eq!((told.told, told.os_version.as_deref()), (w.now, Some("12")));
    assert_eq!(told.kernel.as_deref(), Some("6.1 „x\" 'y'"));
    w.now = w.now.plus(60);
    w.told(&device, Kind::RequestDeviceInfo, json!({ "os": "Linux", "internalStorageFree": 5 })).await;
    let second = w.core.inventory(&w.tenant, device.id).await.unwrap().attributes.unwrap();
    assert_eq!((second.told, second.os_version, second.internal_storage_free), (w.now, None, Some(5)));
    // What was told before and arrives late changes nothing.
    let late = (Kind::RequestDeviceInfo, &serde_json::from_str(r#"{"os":"late"}"#).unwrap());
    w.core.tell(&w.tenant, device.id, late, NOW).await.unwrap();
    assert_eq!(w.core.inventory(&w.tenant, device.id).await.unwrap().attributes.unwrap().os.as_deref(), Some("Linux"));
    let unknown = EntityId::from_random([9; 16]);
    w.core.tell(&w.tenant, unknown, late, w.now).await.unwrap();
    assert!(w.core.inventory(&w.tenant, unknown).await.is_err());
    assert_eq!(w.core.inventory(&w.tenant, other.id).await.unwrap(), Default::default());
    // Failure and other commands tell nothing.
    w.told(&other, Kind::LockDevice, json!({ "os": "odd" })).await;
    assert_eq!(w.core.inventory(&w.tenant, other.id).await.unwrap(), Default::default());
}

pub(crate) async fn p40_a_list_of_apps_is_replaced_as_a_whole_and_read_in_pages<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let (device, other) = (w.device_of("anna@example.com").await, w.device_of("bob@example.com").await);
    let names = |n: usize| (0..n).map(|n| json!({ "name": format!("p{n:03}"), "version": "1" })).collect::<Vec<_>>();
    w.told(&device, Kind::ListApplications, json!({ "packages": names(235) })).await;
    let inventory = w.core.inventory(&w.tenant, device.id).await.unwrap();
    assert_eq!((inventory.apps, inventory.apps_told, inventory.attributes), (235, Some(w.now), None));
    let first = w.core.installed(&w.tenant, device.id, "", 100).await.unwrap();
    let rest = w.core.installed(&w.tenant, device.id, &first[99].identifier, 1000).await.unwrap();
    assert_eq!(
        (first[0].clone(), first.len(), rest.len(), rest[134].clone()),
        (app("p000", "1"), 100, 135, app("p234", "1"))
    );
    w.told(&other, Kind::ListApplications, json!({ "packages": [{ "name": "p001" }] })).await;
    let mut both = [device.id, other.id];
    both.sort();
    assert_eq!(w.core.devices_with(&w.tenant, "p001", Page::first()).await.unwrap(), both);
    w.now = w.now.plus(1);
    w.told(&device, Kind::ListApplications, json!({ "packages": [{ "name": "zsh", "version": "5.9" }] })).await;
    assert_eq!(w.core.installed(&w.tenant, device.id, "", 1000).await.unwrap(), [app("zsh", "5.9")]);
    assert_eq!(w.core.devices_with(&w.tenant, "p001", Page::first()).await.unwrap(), [other.id]);
    // What is no list changes nothing.
    w.told(&device, Kind::ListApplications, json!({ "odd": [] })).await;
    assert_eq!(w.core.inventory(&w.tenant, device.id).await.unwrap().apps, 1);
    let most: Vec<_> = (0..MAX_APPS + 10).map(|n| json!({ "name": format!("q{n:05}") })).collect();
    w.told(&device, Kind::ListApplications, json!({ "packages": most })).await;
    assert_eq!(w.core.inventory(&w.tenant, device.id).await.unwrap().apps as usize, MAX_APPS);
    let none: [Value; 0] = [];
    w.told(&device, Kind::ListApplications, json!({ "packages": none })).await;
    assert!(w.core.installed(&w.tenant, device.id, "", 1000).await.unwrap().is_empty());
}

pub(crate) async fn p21_a_device_that_breaks_a_rule_is_recorded_and_dealt_with_once<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let device = w.device_of("anna@example.com").await;
    let info = |model: &str, set: bool| json!({ "os": "Linux", "hardwareModel": model, "passwordSet": set });
    w.told(&device, Kind::RequestDeviceInfo, info("X1", false)).await;
    assert_eq!(w.core.standing(&w.tenant, device.id).await.unwrap(), None, "no profile, nothing to stand by");
    let profile = w
        .compliance(json!({ "hardware": "restricted", "models": ["Bad"], "rules": {
            "hardware": { "steps": [{ "action": "quarantine" }, { "action": "lock" }] },
            "password": { "steps": [{ "action": "lock" }, { "action": "deleteWorkData", "afterHours": 24 }] },
        }}))
        .await;
    let before = w.version().await;
    w.told(&device, Kind::RequestDeviceInfo, info("Bad", false)).await;
    let standing = w.core.standing(&w.tenant, device.id).await.unwrap().unwrap();
    assert_eq!(
        (standing.verdict, standing.quarantined, standing.profile),
        (Verdict::NotCompliant, true, Some(profile.id))
    );
    let [(Kind::LockDevice, lock)] = w.open(&device).await[..] else { panic!("{:?}", w.open(&device).await) };
    let rules: Vec<_> = standing.causes.iter().map(|c| c.finding.rule).collect();
    assert_eq!(rules, [Rule::Hardware, Rule::Password]);
    let by: Vec<_> = standing.causes.iter().flat_map(|c| &c.taken).filter(|t| t.action == Action::Lock).collect();
    assert_eq!(by.iter().map(|taken| taken.command).collect::<Vec<_>>(), [Some(lock); 2]);
    assert_eq!(w.core.quarantined(&w.tenant).await.unwrap(), [device.id]);
    assert_eq!(w.version().await, before + 1, "whoever makes the configuration learns of it");
    let (_, waiting) = w.core.next_command(call!(w), &w.tenant, device.id, &[].into()).await.unwrap().unwrap();
    assert_eq!(waiting["because"], json!(["hardware", "password"]));
    w.answer(&device, lock, Reply::Done { result: Default::default() }).await.unwrap();
    // Again and again: nothing more is done.
    let records = w.core.audit(&w.tenant, 0, 1000).await.unwrap().len();
    for _ in 0..3 {
        assert!(!w.core.judge_device(call!(w), &w.tenant, device.id).await.unwrap().1);
    }
    assert_eq!((w.open(&device).await.len(), w.core.audit(&w.tenant, 0, 1000).await.unwrap().len()), (0, records));
    w.told(&device, Kind::RequestDeviceInfo, info("Good", false)).await;
    let standing = w.core.standing(&w.tenant, device.id).await.unwrap().unwrap();
    assert_eq!((standing.verdict, standing.quarantined, standing.causes.len()), (Verdict::NotCompliant, false, 1));
    assert!(w.core.quarantined(&w.tenant).await.unwrap().is_empty());
    assert_eq!(w.version().await, before + 2);
    w.now = w.now.plus(24 * 3600);
    // One that an administrator gave waits already: it is that one.
    let wipe = w.give(&device, Kind::DeleteWorkSpaceData).await.unwrap();
    let (standing, changed) = w.core.judge_device(call!(w), &w.tenant, device.id).await.unwrap();
    let taken = standing.unwrap().causes[0].taken[1];
    assert_eq!((changed, taken.action, taken.command), (true, Action::DeleteWorkData, Some(wipe.id)));
    assert_eq!(w.open(&device).await, [(Kind::DeleteWorkSpaceData, wipe.id)]);
    assert_eq!(w.core.verdicts(&w.tenant).await.unwrap(), [(Verdict::NotCompliant, 1)]);
    let page = Page::first();
    assert_eq!(w.core.standings(&w.tenant, Some(Verdict::NotCompliant), page).await.unwrap().len(), 1);
    assert_eq!(w.core.standings(&w.tenant, Some(Verdict::Compliant), page).await.unwrap(), []);
    let records = w.core.audit(&w.tenant, 0, 1000).await.unwrap();
    let acts: Vec<_> = records.iter().filter(|r| r.action == "compliance.act").map(|r| r.detail.as_str()).collect();
    assert_eq!(acts.len(), 3, "{acts:?}");
    assert!(acts[0].starts_with("quarantine, because of hardware"), "{acts:?}");
    w.answer(&device, wipe.id, Reply::Done { result: Default::default() }).await.unwrap();
    assert!(!w.core.judge_device(call!(w), &w.tenant, device.id).await.unwrap().1, "a revoked device stays as it is");
    assert_eq!(w.core.command(&w.tenant, wipe.id).await.unwrap().state, State::Succeeded);
    w.core.verify_audit(&w.tenant).await.unwrap();
}

pub(crate) async fn p21_time_alone_breaks_rules_and_the_round_finds_it<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let mut devices = Vec::new();
    for n in 0..5 {
        devices.push(w.device_of(&format!("user{n}@example.com")).await);
    }
    let round = async |w: &mut World<S>| {
        let (mut all, mut page) = (Vec::new(), Page { after: None, limit: 2 });
        loop {
            let mut call = Call::new(Actor::System, w.now, &mut w.random).available_since(NOW);
            let swept = w.core.sweep(&mut call, &w.tenant, page).await.unwrap();
            all.extend(swept.to_wake);
            match swept.next {
                Some(next) => page.after = Some(next),
                None => return all,
            }
        }
    };
    assert_eq!(round(&mut w).await, [], "without a profile nobody is asked");
    w.compliance(json!({ "rules": { "notTold": { "hours": 48, "steps": [{ "action": "quarantine" }] } } })).await;
    assert_eq!(round(&mut w).await.len(), 5, "they comply now, and are asked what they are");
    for device in &devices {
        let mut kinds: Vec<_> = w.open(device).await.into_iter().map(|(kind, _)| kind).collect();
        kinds.sort();
        assert_eq!(kinds, [Kind::RequestDeviceInfo, Kind::ListApplications]);
    }
    assert_eq!(round(&mut w).await, [], "once");
    w.now = w.now.plus(47 * 3600);
    while let Some(command) = w.fetch(devices[0].id).await {
        let result = serde_json::from_str(r#"{"os":"Linux"}"#).unwrap();
        w.answer(&devices[0], command.id, Reply::Done { result }).await.unwrap();
    }
    w.now = w.now.plus(3600);
    round(&mut w).await;
    let mut silent: Vec<_> = devices[1..].iter().map(|d| d.id).collect();
    silent.sort();
    assert_eq!(w.core.quarantined(&w.tenant).await.unwrap(), silent);
    w.core.revoke_device(call!(w), &w.tenant, silent[0]).await.unwrap();
    assert_eq!(w.core.quarantined(&w.tenant).await.unwrap(), silent[1..]);
    assert_eq!(w.core.verdicts(&w.tenant).await.unwrap(), [(Verdict::Compliant, 1), (Verdict::NotCompliant, 4)]);
}

/// A device that is silent for three days is put into quarantine, and erased four days later.
fn silence() -> Value {
    let steps = json!([{ "action": "quarantine" }, { "action": "deleteWorkData", "afterHours": 96 }]);
    json!({ "rules": { "outOfContact": { "hours": 72, "steps": steps } } })
}

pub(crate) async fn p21_a_stolen_device_does_not_outwait_its_erasure<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let device = w.device_of("anna@example.com").await;
    w.compliance(silence()).await;
    w.wait(72);
    assert!(w.judged(&device, NOW).await.quarantined);
    w.wait(96);
    w.judged(&device, NOW).await;
    let [(Kind::DeleteWorkSpaceData, wipe)] = w.open(&device).await[..] else { panic!("{:?}", w.open(&device).await) };
    // Years later the device is back, and asks before it is judged again.
    w.wait(5 * 366 * 24);
    w.seen(&device).await;
    let standing = w.judged(&device, NOW).await;
    assert!(
        standing.quarantined && standing.verdict == Verdict::NotCompliant,
        "it reaches nothing before it is erased"
    );
    w.give(&device, Kind::RequestDeviceInfo).await.unwrap();
    assert_eq!(w.fetch(device.id).await.unwrap().id, wipe, "first of all");
    // It says that it cannot: that does not free it.
    w.answer(&device, wipe, Reply::Failed { error: "no".into() }).await.unwrap();
    assert!(w.judged(&device, w.now).await.quarantined);
    w.wait(1);
    assert!(w.judged(&device, w.now).await.quarantined);
    let again = w.fetch(device.id).await.unwrap();
    assert!(again.kind == Kind::DeleteWorkSpaceData && again.id != wipe);
    w.answer(&device, again.id, Reply::Done { result: Default::default() }).await.unwrap();
    assert_eq!(w.core.device(&w.tenant, device.id).await.unwrap().state, DeviceState::Revoked);
    w.core.verify_audit(&w.tenant).await.unwrap();
}

pub(crate) async fn p21_a_step_whose_command_came_to_nothing_is_taken_again<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let device = w.device_of("anna@example.com").await;
    w.compliance(silence()).await;
    w.wait(72);
    w.judged(&device, NOW).await;
    w.wait(96);
    // One of an administrator waits already, and counts; it expires.
    let wipe = w.give(&device, Kind::DeleteWorkSpaceData).await.unwrap();
    w.judged(&device, NOW).await;
    assert_eq!(w.open(&device).await, [(Kind::DeleteWorkSpaceData, wipe.id)]);
    w.now = wipe.expires;
    let taken = w.judged(&device, NOW).await.causes[0].taken.clone();
    let second = taken.iter().find(|taken| taken.action == Action::DeleteWorkData).unwrap().command.unwrap();
    assert!(second != wipe.id && taken.len() == 2, "{taken:?}");
    // One that is taken back comes again as long as the device is silent,
    w.core.cancel_command(call!(w), &w.tenant, second).await.unwrap();
    w.judged(&device, NOW).await;
    assert!(w.fetch(device.id).await.is_none(), "after a while");
    w.wait(1);
    w.judged(&device, NOW).await;
    let third = w.open(&device).await.iter().find(|(_, id)| *id != wipe.id).unwrap().1;
    // and no more when it is there again.
    w.core.cancel_command(call!(w), &w.tenant, third).await.unwrap();
    w.wait(1);
    w.seen(&device).await;
    assert_eq!(w.judged(&device, NOW).await.verdict, Verdict::Compliant);
    assert!(w.fetch(device.id).await.is_none());
    w.core.verify_audit(&w.tenant).await.unwrap();
}

pub(crate) async fn p21_the_cores_own_absence_is_not_the_devices_silence<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let (device, other) = (w.device_of("anna@example.com").await, w.device_of("bob@example.com").await);
    w.compliance(silence()).await;
    // The core, or its clock, was away for a year.
    w.wait(366 * 24);
    let back = w.now;
    assert_eq!(w.judged(&device, back).await.verdict, Verdict::Compliant);
    w.wait(71);
    assert_eq!(w.judged(&device, back).await.verdict, Verdict::Compliant);
    w.seen(&other).await;
    w.wait(1);
    assert!(w.judged(&device, back).await.quarantined);
    assert_eq!(w.judged(&other, back).await.verdict, Verdict::Compliant);
    // Who was silent before another absence still is, but is not erased before it could have been heard.
    w.wait(366 * 24);
    let back = w.now;
    let (standing, _) = w.core.judge_device(call!(w), &w.tenant, device.id).await.unwrap();
    assert!(standing.unwrap().quarantined, "where nothing is known of the core, what stands goes on");
    w.wait(71);
    assert!(w.judged(&device, back).await.quarantined && w.open(&device).await.is_empty());
    w.wait(1);
    w.judged(&device, back).await;
    assert_eq!(w.open(&device).await.len(), 1);
    // Who is heard is silent no more, also where the core was away since.
    w.judged(&other, back).await;
    w.seen(&other).await;
    w.wait(100);
    assert_eq!(w.judged(&other, w.now).await.verdict, Verdict::Compliant);
}

pub(crate) async fn p21_one_bad_device_does_not_stop_the_round<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let mut devices = Vec::new();
    for n in 0..3 {
        devices.push(w.device_of(&format!("user{n}@example.com")).await);
    }
    devices.sort_by_key(|device| device.id);
    w.compliance(json!({ "rules": { "notTold": { "hours": 48 } } })).await;
    // Settings that nothing here wrote have effect on the first.
    let settings = serde_json::from_value(json!({ "rules": {} })).unwrap();
    let new = NewProfile { category: Category::Compliance, name: "odd".into(), settings, ..NewProfile::default() };
    let odd = w.core.add_profile(call!(w), &w.tenant, new).await.unwrap();
    let changes = vec![
        Change::PutProfile(Profile { settings: serde_json::from_value(json!({ "rules": 7 })).unwrap(), ..odd.clone() }),
        Change::PutAssignment { profile: odd.id, holder: Principal::User(devices[0].user) },
    ];
    let mut tenant = w.core.tenant(&w.tenant).await.unwrap();
    let expected = Some(tenant.revision);
    tenant.revision += 1;
    w.core.store().commit(Commit { expected, tenant, changes, audit: vec![] }).await.unwrap();
    let swept = w.core.sweep(call!(w), &w.tenant, Page::first()).await.unwrap();
    assert_eq!((swept.looked_at, swept.changed), (3, 2));
    assert_eq!(swept.to_wake, [devices[1].id, devices[2].id]);
    let [(failed, why)] = &swept.failed[..] else { panic!("{swept:?}") };
    assert_eq!(*failed, devices[0].id);
    assert!(why.contains("compliance profile"), "{why}");
}

pub(crate) async fn p23_a_clock_that_ran_ahead_does_not_silence_devices<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let device = w.device_of("anna@example.com").await;
    w.compliance(json!({ "rules": { "notTold": { "hours": 48 } } })).await;
    let right = w.now;
    w.wait(366 * 24);
    w.core.sweep(call!(w), &w.tenant, Page::first()).await.unwrap();
    w.tell(&device, Kind::RequestDeviceInfo, json!({ "os": "ahead" })).await;
    w.tell(&device, Kind::ListApplications, json!({ "packages": [{ "name": "ahead" }] })).await;
    w.now = right.plus(60);
    for (_, id) in w.open(&device).await {
        let _ = w.core.cancel_command(call!(w), &w.tenant, id).await;
    }
    // What it told is yet to come: it is asked.
    let swept = w.core.sweep(call!(w), &w.tenant, Page::first()).await.unwrap();
    assert_eq!(swept.to_wake, [device.id]);
    w.tell(&device, Kind::RequestDeviceInfo, json!({ "os": "now" })).await;
    w.tell(&device, Kind::ListApplications, json!({ "packages": [{ "name": "a" }, { "name": "b" }] })).await;
    let inventory = w.core.inventory(&w.tenant, device.id).await.unwrap();
    assert_eq!((inventory.apps, inventory.apps_told), (2, Some(w.now)));
    assert_eq!(inventory.attributes.unwrap().os.as_deref(), Some("now"));
}
