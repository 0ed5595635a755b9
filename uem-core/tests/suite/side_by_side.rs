//! Organisations in one database: whatever the others do, each is as it would be alone.

use super::profiles::new;
use super::world::*;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::Via;
use hedgerow_shared::{EntityId, Origin, Role, TenantId, UnixTime};
use hedgerow_uem_core::account::{Device, DeviceState};
use hedgerow_uem_core::activation::{DEFAULT_LIFETIME_SECONDS, PasswordChoice};
use hedgerow_uem_core::admin::{Asker, Permission, Predefined, RoleId};
use hedgerow_uem_core::app::{Assignment, Disposition, List, Listing, Target};
use hedgerow_uem_core::ca::CertificateRecord;
use hedgerow_uem_core::command::Kind;
use hedgerow_uem_core::group::Principal;
use hedgerow_uem_core::profile::{Category, Platform};
use hedgerow_uem_core::service::{NewCommand, NewProfile, NewRole, NewToken, NewUser, UserChange};
use hedgerow_uem_core::store::{Change, Commit, Memory, Page, Store};
use hedgerow_uem_core::{Actor, Call, CoreError};
use serde_json::{Value, json};

/// Organisations, each with an administrator who does something else.
const TENANTS: usize = 4;
/// Things that each of them does.
const ROUNDS: usize = 350;

/// One tenant's administrator, who does one thing after another.
struct Hand {
    tenant: TenantId,
    random: Seeded,
    users: Vec<EntityId>,
    groups: Vec<EntityId>,
    profiles: Vec<EntityId>,
    apps: Vec<EntityId>,
    devices: Vec<EntityId>,
}

impl Hand {
    fn new(tenant: &str, seed: u64) -> Self {
        let tenant = tenant.parse().unwrap();
        Self {
            tenant,
            random: Seeded(seed),
            users: Vec::new(),
            groups: Vec::new(),
            profiles: Vec::new(),
            apps: Vec::new(),
            devices: Vec::new(),
        }
    }

    fn below(&mut self, n: usize) -> usize {
        let mut byte = [0; 2];
        hedgerow_uem_core::Random::fill(&mut self.random, &mut byte);
        usize::from(u16::from_be_bytes(byte)) % n.max(1)
    }

    fn principal(&mut self) -> Option<Principal> {
        let (user, group) = (self.below(self.users.len()), self.below(self.groups.len()));
        match self.below(2) {
            0 => self.users.get(user).copied().map(Principal::User),
            _ => self.groups.get(group).copied().map(Principal::Group),
        }
    }

    /// A device as activation leaves it; its certificate is nobody's business here.
    async fn device<S: Store>(&mut self, w: &World<S>, user: EntityId) {
        let id = EntityId::from_random(std::array::from_fn(|_| self.below(256) as u8));
        let certificate = CertificateRecord {
            serial: id.to_string(),
            holder: id,
            role: Role::Device,
            fingerprint: String::new(),
            issuer: String::new(),
            not_before: w.now,
            not_after: w.now.plus(86_400),
        };
        let device = Device {
            tenant: self.tenant.clone(),
            id,
            user,
            name: "laptop".into(),
            platform: "Debian GNU/Linux 12".into(),
            certificate,
            state: DeviceState::Active,
            created: w.now,
            revoked: None,
            last_seen: None,
            obeys: None,
            activation: None,
        };
        let mut tenant = w.core.tenant(&self.tenant).await.unwrap();
        let expected = Some(tenant.revision);
        tenant.revision += 1;
        let changes = vec![Change::PutDevice(device)];
        w.core.store().commit(Commit { expected, tenant, changes, audit: vec![] }).await.unwrap();
        self.devices.push(id);
    }

    /// What a device says of itself, or has installed.
    async fn tell<S: Store>(&mut self, w: &World<S>, device: EntityId) {
        let (kind, told) = match self.below(2) {
            0 => (Kind::RequestDeviceInfo, json!({ "os": "Linux", "osVersion": format!("{}", 8 + self.below(8)) })),
            _ => {
                let packages: Vec<_> = (0..self.below(4)).map(|n| json!({ "name": format!("n{n}") })).collect();
                (Kind::ListApplications, json!({ "packages": packages }))
            }
        };
        let Value::Object(told) = told else { panic!("an answer is an object") };
        w.core.tell(&self.tenant, device, (kind, &told), w.now).await.unwrap();
    }

    /// What is refused is refused: which of both is for the other cases.
    async fn act<S: Store>(&mut self, w: &World<S>) {
        let (tenant, what, name) = (self.tenant.clone(), self.below(27), format!("n{}", self.below(12)));
        let (principal, group) = (self.principal(), self.below(self.groups.len()));
        let (group, place) = (self.groups.get(group).copied(), self.below(self.profiles.len()));
        let (profile, category) = (self.profiles.get(place).copied(), Category::ALL[self.below(4)]);
        let app = self.below(self.apps.len());
        let app = self.apps.get(app).copied();
        let device = self.below(self.devices.len());
        let device = self.devices.get(device).copied();
        match (what, principal, device) {
            (15, Some(Principal::User(user)), _) => return self.device(w, user).await,
            (16 | 17, _, Some(device)) => return self.tell(w, device).await,
            _ => {}
        }
        let mut call = Call::new(Actor::Admin("root".into()), w.now, &mut self.random);
        let (core, call) = (&w.core, &mut call);
        match (what, principal, group, profile) {
            (0, ..) => {
                let email = format!("{name}@example.com").parse().unwrap();
                let user = core.add_user(call, &tenant, NewUser { email, display_name: name }).await;
                self.users.extend(user.map(|user| user.id));
            }
            (1, ..) => self.groups.extend(core.add_group(call, &tenant, &name, "").await.map(|group| group.id)),
            (2, ..) => {
                let made = core.add_profile(call, &tenant, new(category, &name)).await;
                self.profiles.extend(made.map(|profile| profile.id));
            }
            (3, Some(member), Some(group), _) => _ = core.add_member(call, &tenant, group, member).await,
            (4, Some(member), Some(group), _) => _ = core.remove_member(call, &tenant, group, member).await,
            (5, Some(holder), _, Some(profile)) => _ = core.assign_profile(call, &tenant, profile, holder).await,
            (6, _, _, Some(profile)) => _ = core.set_default_profile(call, &tenant, profile, true).await,
            (7, _, _, Some(profile)) => _ = core.rank_profile(call, &tenant, profile, 1).await,
            (9, ..) => {
                let made = core.add_app(call, &tenant, super::apps::new_app(Platform::Linux, &name)).await;
                self.apps.extend(made.map(|app| app.id));
            }
            (10, Some(holder), ..) => {
                if let Some(app) = app {
                    let disposition = Disposition::ALL[place % 3];
                    let one = Assignment { target: Target::App(app), holder, disposition, config: None };
                    _ = core.assign_app(call, &tenant, one).await;
                }
            }
            (11, ..) => {
                let listing = Listing { list: List::Restricted, platform: Platform::Linux, identifier: name };
                _ = core.set_listed(call, &tenant, listing, place % 3 > 0).await;
            }
            (12, Some(Principal::User(user)), ..) => {
                let role = RoleId::Predefined(Predefined::ALL[place % 4]);
                _ = core.set_admin(call, (&tenant, &Asker::BreakGlass), user, role).await;
            }
            (13, ..) => {
                let new = NewRole { name, permissions: [Permission::ViewUsers].into(), groups: None };
                _ = core.add_role(call, (&tenant, &Asker::BreakGlass), new).await;
            }
            (14, _, _, _) if place == 0 => {
                if let Some(app) = app {
                    _ = core.remove_app(call, &tenant, app).await;
                }
            }
            (18, ..) => {
                let settings = json!({ "rules": {
                    "osVersion": { "minimum": { "linux": "12" }, "steps": [{ "action": "quarantine" }] },
                    "restrictedApp": { "steps": [{ "action": "lock" }] },
                } });
                let Value::Object(settings) = settings else { panic!("settings are an object") };
                let made =
                    core.add_profile(call, &tenant, NewProfile { settings, ..new(Category::Compliance, &name) }).await;
                if let Ok(made) = made {
                    _ = core.set_default_profile(call, &tenant, made.id, true).await;
                    self.profiles.push(made.id);
                }
            }
            (19, ..) => _ = core.sweep(call, &tenant, Page::first()).await.unwrap(),
            (20, ..) => {
                if let Some(device) = device {
                    let kind = [Kind::LockDevice, Kind::RequestDeviceInfo][place % 2];
                    let properties = serde_json::Map::new();
                    let new = NewCommand { device, kind, properties, lifetime_seconds: 3600 };
                    _ = core.queue_command(call, &tenant, new).await;
                }
            }
            (21, ..) => {
                let target = format!("{name}.example.com");
                let rule = serde_json::from_value(json!({ "action": "allow", "target": target })).unwrap();
                let route = serde_json::from_value(json!({ "target": target, "via": "group:berlin" })).unwrap();
                core.set_rules(call, &tenant, vec![rule]).await.unwrap();
                core.set_routes(call, &tenant, vec![route], Via::Direct).await.unwrap();
            }
            (22, ..) => {
                let group = "berlin".parse().unwrap();
                let new = NewToken { name, group, origins: vec![Origin::Proxy], lifetime_seconds: 3600 };
                core.create_token(call, &tenant, new).await.unwrap();
            }
            (23, ..) => _ = core.add_name(call, &tenant, &format!("{name}.example.com"), Origin::Proxy).await,
            (24, Some(Principal::User(user)), ..) => {
                let choice = PasswordChoice::Set(Secret::new(b"open sesame 55".to_vec()));
                _ = core.set_activation_password(call, &tenant, user, choice, DEFAULT_LIFETIME_SECONDS).await;
            }
            (25, Some(Principal::User(user)), ..) => {
                let email = Some(format!("{name}@example.com").parse().unwrap());
                _ = core.change_user(call, &tenant, user, UserChange { email, display_name: Some(name) }).await;
            }
            (26, _, Some(group), _) => {
                _ = core.change_group(call, &tenant, group, (Some(&name), Some("changed"))).await;
            }
            (8, _, Some(group), _) if place == 0 => _ = core.remove_group(call, &tenant, group).await,
            _ => {}
        }
    }

    /// Everything that this tenant has, as text.
    async fn sees<S: Store>(&self, w: &World<S>) -> String {
        let (core, tenant) = (&w.core, &self.tenant);
        let mut all = format!("{:?}", core.users(tenant, Page::first()).await.unwrap());
        for group in core.groups(tenant, Page::first()).await.unwrap() {
            let members = core.members(tenant, group.id, Page::first()).await.unwrap();
            all += &format!("\n{group:?} {members:?}");
        }
        for category in Category::ALL {
            for profile in core.profiles(tenant, category).await.unwrap() {
                all += &format!("\n{profile:?} {:?}", core.holders(tenant, profile.id).await.unwrap());
            }
        }
        all += &format!("\n{:?}", core.listings(tenant, None).await.unwrap());
        all += &format!("\n{:?} {:?}", core.admins(tenant).await.unwrap(), core.roles(tenant).await.unwrap());
        for app in core.apps(tenant, Page::first()).await.unwrap() {
            all += &format!("\n{app:?} {:?}", core.app_assignments(tenant, Target::App(app.id)).await.unwrap());
        }
        for user in &self.users {
            all += &format!("\n{:?}", core.effective_apps(tenant, *user, None).await.unwrap());
            all += &format!("\n{:?}", core.effective_profiles(tenant, *user, None).await.unwrap());
        }
        all += &format!("\n{:?}", core.devices(tenant, None, Page::first()).await.unwrap());
        all += &format!("\n{:?}", core.standings(tenant, None, Page::first()).await.unwrap());
        all += &format!("\n{:?}", core.devices_with(tenant, "n1", Page::first()).await.unwrap());
        for device in &self.devices {
            all += &format!("\n{:?}", core.inventory(tenant, *device).await.unwrap());
            all += &format!("\n{:?}", core.installed(tenant, *device, "", 100).await.unwrap());
            all += &format!("\n{:?}", core.commands(tenant, *device).await.unwrap());
            all += &format!("\n{:?}", core.app_findings(tenant, *device).await.unwrap());
        }
        all += &format!("\n{:?}", core.find_users(tenant, "n", 100).await.unwrap());
        all += &format!("\n{:?} {:?}", core.rules(tenant).await.unwrap(), core.routes(tenant).await.unwrap());
        all += &format!("\n{:?}", core.tokens(tenant, Page::first()).await.unwrap());
        all += &format!("\n{:?}", core.names(tenant).await.unwrap());
        all += &format!("\n{:?}", core.open_addresses(tenant, w.now).await.unwrap());
        all += &format!("\n{:?} {:?}", core.verdicts(tenant).await.unwrap(), core.quarantined(tenant).await.unwrap());
        all += &format!("\n{:?}", core.count_audit(tenant, UnixTime(0), w.now.plus(1)).await.unwrap());
        all += &format!("\n{:?}", core.quiet_devices(tenant, w.now, Page::first()).await.unwrap());
        all += &format!("\n{:?}", core.tenant(tenant).await.unwrap().config);
        let actions = core.audit(tenant, 0, 1000).await.unwrap();
        all + &format!("\n{:?}", actions.iter().map(|r| (&r.action, &r.subject, &r.detail)).collect::<Vec<_>>())
    }
}

pub(crate) async fn two_tenants_side_by_side_are_each_as_if_alone<S: Store>(store: S) {
    let mut shared = World::new(store).await;
    let named = |n: usize| format!("S8765432{n}");
    let mut hands = Vec::new();
    for n in 0..TENANTS {
        shared.make_tenant(&named(n)).await.unwrap();
        hands.push(Hand::new(&named(n), 11 + n as u64));
    }
    for _ in 0..ROUNDS {
        for hand in &mut hands {
            hand.act(&shared).await;
        }
    }
    for (n, hand) in hands.iter().enumerate() {
        let mut alone = World::new(Memory::new()).await;
        alone.make_tenant(hand.tenant.as_str()).await.unwrap();
        let mut same = Hand::new(hand.tenant.as_str(), 11 + n as u64);
        for _ in 0..ROUNDS {
            same.act(&alone).await;
        }
        assert_eq!(hand.sees(&shared).await, same.sees(&alone).await);
        assert!(
            hand.users.len() > 3 && hand.groups.len() > 3 && hand.profiles.len() > 5 && hand.apps.len() > 3,
            "too little was done"
        );
        assert!(hand.sees(&shared).await.contains("compliance.act"), "nobody was found out");
    }
    // Ids of the other tenant are nobody's here.
    let [one, two, ..] = &hands[..] else { panic!("there are some") };
    let (core, mine) = (&shared.core, &one.tenant);
    let mut random = Seeded(13);
    let call = &mut Call::new(Actor::System, NOW, &mut random);
    let theirs = (Principal::User(two.users[0]), two.profiles[0]);
    assert!(matches!(core.effective_profiles(mine, two.users[0], None).await, Err(CoreError::NotFound { .. })));
    assert!(matches!(core.assign_profile(call, mine, theirs.1, theirs.0).await, Err(CoreError::NotFound { .. })));
    assert!(matches!(
        core.assign_profile(call, mine, one.profiles[0], theirs.0).await,
        Err(CoreError::NotFound { .. })
    ));
    assert!(matches!(core.remove_profile(call, mine, theirs.1).await, Err(CoreError::NotFound { .. })));
    assert!(matches!(core.holders(mine, theirs.1).await, Err(CoreError::NotFound { .. })));
    let app = two.apps.last().copied().unwrap();
    assert!(matches!(core.app(mine, app).await, Err(CoreError::NotFound { .. })));
    let one =
        Assignment { target: Target::App(app), holder: theirs.0, disposition: Disposition::Required, config: None };
    assert!(matches!(core.assign_app(call, mine, one).await, Err(CoreError::NotFound { .. })));
    let device = two.devices[0];
    assert!(matches!(core.inventory(mine, device).await, Err(CoreError::NotFound { .. })));
    assert!(matches!(core.standing(mine, device).await, Err(CoreError::NotFound { .. })));
    assert!(matches!(core.commands(mine, device).await, Err(CoreError::NotFound { .. })));
    assert!(matches!(core.judge_device(call, mine, device).await, Err(CoreError::NotFound { .. })));
    assert!(matches!(core.revoke_device(call, mine, device).await, Err(CoreError::NotFound { .. })));
    let role = RoleId::Predefined(Predefined::Security);
    let made = core.set_admin(call, (mine, &Asker::BreakGlass), two.users[0], role).await;
    assert!(matches!(made, Err(CoreError::NotFound { .. })));
}
