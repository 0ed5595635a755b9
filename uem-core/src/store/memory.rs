//! Storage in memory, for tests and short-lived embedding: the reference that SQL is compared with.

mod admins;
mod apps;
mod inventory;
mod reports;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hedgerow_shared::verify::{Route, Rule, Version};
use hedgerow_shared::{EntityId, TenantId, UnixTime};

use super::{Acknowledgement, Change, Commit, MAX_COMMANDS, Page, Store, StoreError};
use crate::account::{Device, DeviceState, Email, Node, NodeState, ServerName, Tenant, Token, User};
use crate::activation::ActivationPassword;
use crate::audit;
use crate::ca::CertificateRecord;
use crate::command::Command;
use crate::group::{Group, Principal, name_key};
use crate::licence::Installed;
use crate::placement::Placement;
use crate::profile::{Category, Profile};

/// Everything of one tenant.
struct Data {
    tenant: Tenant,
    users: BTreeMap<EntityId, User>,
    passwords: BTreeMap<EntityId, ActivationPassword>,
    nodes: BTreeMap<EntityId, Node>,
    devices: BTreeMap<EntityId, Device>,
    tokens: BTreeMap<EntityId, Token>,
    certificates: Vec<CertificateRecord>,
    rules: Vec<Rule>,
    routes: Vec<Route>,
    names: BTreeMap<String, ServerName>,
    licence: Option<Installed>,
    placement: Option<Placement>,
    groups: BTreeMap<EntityId, Group>,
    /// A group, and who stands in it.
    members: BTreeSet<(EntityId, Principal)>,
    profiles: BTreeMap<EntityId, Profile>,
    /// A profile, and who has it.
    assignments: BTreeSet<(EntityId, Principal)>,
    commands: BTreeMap<EntityId, Command>,
    told: inventory::Kept,
    apps: apps::Kept,
    admins: admins::Kept,
    audit: Vec<audit::Record>,
    acknowledgements: BTreeMap<String, Acknowledgement>,
}

/// Storage that is gone with the process.
#[derive(Default)]
pub struct Memory {
    /// Held only within one method, never across an await.
    tenants: Mutex<BTreeMap<TenantId, Data>>,
}

impl Memory {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TenantId, Data>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T: Default>(&self, tenant: &TenantId, read: impl FnOnce(&Data) -> T) -> Result<T, StoreError> {
        Ok(self.lock().get(tenant).map(read).unwrap_or_default())
    }
}

fn page<'a, T: Clone + 'a>(map: impl Iterator<Item = (&'a EntityId, &'a T)>, page: Page) -> Vec<T> {
    map.filter(|(id, _)| page.after.is_none_or(|after| **id > after))
        .take(page.limit.min(Page::MAX) as usize)
        .map(|(_, value)| value.clone())
        .collect()
}

/// Whether a command is as it was read.
fn is_as_read(data: &Data, from: &Command) -> bool {
    data.commands.get(&from.id).is_some_and(|c| (c.state, c.sent) == (from.state, from.sent))
}

fn of_device(data: &Data, device: EntityId, which: impl Fn(&Command) -> bool) -> Vec<Command> {
    let mut of: Vec<_> = data.commands.values().filter(|c| c.device == device && which(c)).cloned().collect();
    of.sort_by_key(|c| (c.number, c.id));
    of
}

impl Store for Memory {
    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        Ok(self.lock().keys().cloned().collect())
    }

    async fn tenant(&self, tenant: &TenantId) -> Result<Option<Tenant>, StoreError> {
        self.read(tenant, |d| Some(d.tenant.clone()))
    }

    async fn user(&self, tenant: &TenantId, id: EntityId) -> Result<Option<User>, StoreError> {
        self.read(tenant, |d| d.users.get(&id).cloned())
    }

    async fn user_by_email(&self, tenant: &TenantId, email: &Email) -> Result<Option<User>, StoreError> {
        self.read(tenant, |d| d.users.values().find(|u| u.email == *email).cloned())
    }

    async fn users(&self, tenant: &TenantId, p: Page) -> Result<Vec<User>, StoreError> {
        self.read(tenant, |d| page(d.users.iter(), p))
    }

    async fn users_like(&self, tenant: &TenantId, begins: &str, limit: u32) -> Result<Vec<User>, StoreError> {
        self.read(tenant, |d| {
            let limit = limit.min(Page::MAX) as usize;
            let by = |key: fn(&User) -> String| {
                let mut found: Vec<_> = d.users.values().filter(|u| key(u).starts_with(begins)).cloned().collect();
                found.sort_by_key(|u| (key(u), u.email.clone()));
                found.truncate(limit);
                found
            };
            let both = by(|u| u.email.to_string()).into_iter().chain(by(|u| name_key(&u.display_name)));
            let by_email: BTreeMap<_, _> = both.map(|u| (u.email.clone(), u)).collect();
            by_email.into_values().take(limit).collect()
        })
    }

    async fn password(&self, tenant: &TenantId, user: EntityId) -> Result<Option<ActivationPassword>, StoreError> {
        self.read(tenant, |d| d.passwords.get(&user).cloned())
    }

    async fn passwords(&self, tenant: &TenantId) -> Result<Vec<ActivationPassword>, StoreError> {
        self.read(tenant, |d| d.passwords.values().cloned().collect())
    }

    async fn node(&self, tenant: &TenantId, id: EntityId) -> Result<Option<Node>, StoreError> {
        self.read(tenant, |d| d.nodes.get(&id).cloned())
    }

    async fn nodes(&self, tenant: &TenantId, p: Page) -> Result<Vec<Node>, StoreError> {
        self.read(tenant, |d| page(d.nodes.iter(), p))
    }

    async fn device(&self, tenant: &TenantId, id: EntityId) -> Result<Option<Device>, StoreError> {
        self.read(tenant, |d| d.devices.get(&id).cloned())
    }

    async fn devices(&self, tenant: &TenantId, user: Option<EntityId>, p: Page) -> Result<Vec<Device>, StoreError> {
        self.read(tenant, |d| page(d.devices.iter().filter(|(_, v)| user.is_none_or(|u| v.user == u)), p))
    }

    async fn token(&self, tenant: &TenantId, id: EntityId) -> Result<Option<Token>, StoreError> {
        self.read(tenant, |d| d.tokens.get(&id).cloned())
    }

    async fn tokens(&self, tenant: &TenantId, p: Page) -> Result<Vec<Token>, StoreError> {
        self.read(tenant, |d| page(d.tokens.iter(), p))
    }

    async fn rules(&self, tenant: &TenantId) -> Result<Vec<Rule>, StoreError> {
        self.read(tenant, |d| d.rules.clone())
    }

    async fn routes(&self, tenant: &TenantId) -> Result<Vec<Route>, StoreError> {
        self.read(tenant, |d| d.routes.clone())
    }

    async fn names(&self, tenant: &TenantId) -> Result<Vec<ServerName>, StoreError> {
        self.read(tenant, |d| d.names.values().cloned().collect())
    }

    async fn placement(&self, tenant: &TenantId) -> Result<Option<Placement>, StoreError> {
        self.read(tenant, |d| d.placement.clone())
    }

    async fn licence(&self, tenant: &TenantId) -> Result<Option<Installed>, StoreError> {
        self.read(tenant, |d| d.licence.clone())
    }

    async fn active_devices(&self, tenant: &TenantId, user: Option<EntityId>) -> Result<u64, StoreError> {
        self.read(tenant, |d| {
            let of = d.devices.values().filter(|v| user.is_none_or(|u| v.user == u));
            of.filter(|v| v.state == DeviceState::Active).count() as u64
        })
    }

    async fn group(&self, tenant: &TenantId, id: EntityId) -> Result<Option<Group>, StoreError> {
        self.read(tenant, |d| d.groups.get(&id).cloned())
    }

    async fn group_by_name(&self, tenant: &TenantId, key: &str) -> Result<Option<Group>, StoreError> {
        self.read(tenant, |d| d.groups.values().find(|g| name_key(&g.name) == key).cloned())
    }

    async fn groups(&self, tenant: &TenantId, p: Page) -> Result<Vec<Group>, StoreError> {
        self.read(tenant, |d| page(d.groups.iter(), p))
    }

    async fn members(&self, tenant: &TenantId, group: EntityId, p: Page) -> Result<Vec<Principal>, StoreError> {
        self.read(tenant, |d| {
            let of: BTreeMap<_, _> =
                d.members.iter().filter(|(g, _)| *g == group).map(|(_, member)| (member.id(), *member)).collect();
            page(of.iter(), p)
        })
    }

    async fn groups_of(&self, tenant: &TenantId, member: Principal) -> Result<Vec<EntityId>, StoreError> {
        self.read(tenant, |d| d.members.iter().filter(|(_, m)| *m == member).map(|(group, _)| *group).collect())
    }

    async fn nesting(&self, tenant: &TenantId) -> Result<Vec<(EntityId, EntityId)>, StoreError> {
        self.read(tenant, |d| {
            let inner = |(outer, member): &(EntityId, Principal)| match member {
                Principal::Group(inner) => Some((*inner, *outer)),
                Principal::User(_) => None,
            };
            d.members.iter().filter_map(inner).collect()
        })
    }

    async fn profile(&self, tenant: &TenantId, id: EntityId) -> Result<Option<Profile>, StoreError> {
        self.read(tenant, |d| d.profiles.get(&id).cloned())
    }

    async fn profiles(&self, tenant: &TenantId, category: Category) -> Result<Vec<Profile>, StoreError> {
        self.read(tenant, |d| {
            let mut of: Vec<_> = d.profiles.values().filter(|p| p.category == category).cloned().collect();
            of.sort_by_key(|p| (p.rank, p.id));
            of
        })
    }

    async fn default_profiles(&self, tenant: &TenantId) -> Result<Vec<Profile>, StoreError> {
        self.read(tenant, |d| d.profiles.values().filter(|p| p.default).cloned().collect())
    }

    async fn profiles_of(&self, tenant: &TenantId, holder: Principal) -> Result<Vec<Profile>, StoreError> {
        self.read(tenant, |d| {
            let ids = d.assignments.iter().filter(|(_, h)| *h == holder).map(|(profile, _)| profile);
            ids.filter_map(|id| d.profiles.get(id)).cloned().collect()
        })
    }

    async fn holders_of(&self, tenant: &TenantId, profile: EntityId) -> Result<Vec<Principal>, StoreError> {
        self.read(tenant, |d| d.assignments.iter().filter(|(p, _)| *p == profile).map(|(_, h)| *h).collect())
    }

    async fn command(&self, tenant: &TenantId, id: EntityId) -> Result<Option<Command>, StoreError> {
        self.read(tenant, |d| d.commands.get(&id).cloned())
    }

    async fn commands(&self, tenant: &TenantId, device: EntityId) -> Result<Vec<Command>, StoreError> {
        let mut all = self.read(tenant, |d| of_device(d, device, |_| true))?;
        all.reverse();
        all.truncate(MAX_COMMANDS as usize);
        Ok(all)
    }

    async fn open_commands(&self, tenant: &TenantId, device: EntityId) -> Result<Vec<Command>, StoreError> {
        self.read(tenant, |d| of_device(d, device, |c| c.state.is_open()))
    }

    async fn overdue_commands(&self, tenant: &TenantId, now: UnixTime, limit: u32) -> Result<Vec<Command>, StoreError> {
        self.read(tenant, |d| {
            let mut over: Vec<_> = d.commands.values().filter(|c| c.expired(now).is_some()).cloned().collect();
            over.sort_by_key(|c| c.expires);
            over.truncate(limit as usize);
            over
        })
    }

    async fn move_command(&self, from: &Command, to: Command) -> Result<(), StoreError> {
        let mut tenants = self.lock();
        let data = tenants.get_mut(&to.tenant).filter(|d| is_as_read(d, from)).ok_or(StoreError::Conflict)?;
        data.commands.insert(to.id, to);
        Ok(())
    }

    async fn revoked(&self, tenant: &TenantId, now: UnixTime) -> Result<Vec<EntityId>, StoreError> {
        self.read(tenant, |d| {
            let inactive = |user: &EntityId| d.users.get(user).is_none_or(|u| !u.active);
            let devices = d.devices.values().filter(|v| v.state == DeviceState::Revoked || inactive(&v.user));
            // Any certificate that was issued may be shown, also one that its holder has never confirmed.
            let lasts = |id: EntityId, newest: &CertificateRecord| {
                newest.not_after > now || d.certificates.iter().any(|c| c.holder == id && c.not_after > now)
            };
            let devices = devices.filter(|v| lasts(v.id, &v.certificate)).map(|v| v.id);
            let nodes = d.nodes.values().filter(|n| n.state == NodeState::Revoked && lasts(n.id, &n.certificate));
            let mut ids: Vec<_> = devices.chain(nodes.map(|n| n.id)).collect();
            ids.sort_unstable();
            ids
        })
    }

    async fn certificates(&self, tenant: &TenantId, holder: EntityId) -> Result<Vec<CertificateRecord>, StoreError> {
        self.read(tenant, |d| {
            let mut of_holder: Vec<_> = d.certificates.iter().filter(|c| c.holder == holder).cloned().collect();
            of_holder.sort_by(|a, b| (a.not_before, &a.serial).cmp(&(b.not_before, &b.serial)));
            of_holder
        })
    }

    async fn audit(&self, tenant: &TenantId, after: u64, limit: u32) -> Result<Vec<audit::Record>, StoreError> {
        self.read(tenant, |d| {
            let limit = limit.min(Page::MAX) as usize;
            d.audit.iter().filter(|r| r.number > after).take(limit).cloned().collect()
        })
    }

    async fn acknowledgements(&self, tenant: &TenantId) -> Result<Vec<Acknowledgement>, StoreError> {
        self.read(tenant, |d| d.acknowledgements.values().cloned().collect())
    }

    async fn commit(&self, commit: Commit) -> Result<(), StoreError> {
        let mut tenants = self.lock();
        let id = commit.tenant.id.clone();
        if tenants.get(&id).map(|d| d.tenant.revision) != commit.expected {
            return Err(StoreError::Conflict);
        }
        let moves = commit.changes.iter().filter_map(|change| match change {
            Change::MoveCommand { from, .. } => Some(from),
            _ => None,
        });
        if !moves.into_iter().all(|from| tenants.get(&id).is_some_and(|d| is_as_read(d, from))) {
            return Err(StoreError::Conflict);
        }
        let data = tenants.entry(id).or_insert_with(|| Data {
            tenant: commit.tenant.clone(),
            users: BTreeMap::new(),
            passwords: BTreeMap::new(),
            nodes: BTreeMap::new(),
            devices: BTreeMap::new(),
            tokens: BTreeMap::new(),
            certificates: Vec::new(),
            rules: Vec::new(),
            routes: Vec::new(),
            names: BTreeMap::new(),
            licence: None,
            placement: None,
            groups: BTreeMap::new(),
            members: BTreeSet::new(),
            profiles: BTreeMap::new(),
            assignments: BTreeSet::new(),
            commands: BTreeMap::new(),
            told: inventory::Kept::default(),
            apps: apps::Kept::default(),
            admins: admins::Kept::default(),
            audit: Vec::new(),
            acknowledgements: BTreeMap::new(),
        });
        data.tenant = commit.tenant;
        for change in commit.changes {
            match change {
                Change::PutUser(user) => drop(data.users.insert(user.id, user)),
                Change::PutPassword(password) => drop(data.passwords.insert(password.user, password)),
                Change::DeletePassword(user) => drop(data.passwords.remove(&user)),
                Change::PutNode(node) => drop(data.nodes.insert(node.id, node)),
                Change::PutDevice(device) => drop(data.devices.insert(device.id, device)),
                Change::PutToken(token) => drop(data.tokens.insert(token.id, token)),
                Change::AddCertificate(certificate) => data.certificates.push(certificate),
                Change::SetRules(rules) => data.rules = rules,
                Change::SetRoutes(routes) => data.routes = routes,
                Change::PutName(name) => drop(data.names.insert(name.name.clone(), name)),
                Change::DeleteName(name) => drop(data.names.remove(&name)),
                Change::PutPlacement(placement) => data.placement = Some(placement),
                Change::PutLicence(licence) => data.licence = Some(licence),
                Change::DeleteLicence => data.licence = None,
                Change::PutGroup(group) => drop(data.groups.insert(group.id, group)),
                Change::DeleteGroup(id) => {
                    data.groups.remove(&id);
                    data.members.retain(|(group, member)| *group != id && *member != Principal::Group(id));
                    data.assignments.retain(|(_, holder)| *holder != Principal::Group(id));
                    data.apps.forget(Principal::Group(id));
                }
                Change::PutMember { group, member } => _ = data.members.insert((group, member)),
                Change::DeleteMember { group, member } => _ = data.members.remove(&(group, member)),
                Change::PutProfile(profile) => drop(data.profiles.insert(profile.id, profile)),
                Change::DeleteProfile(id) => {
                    data.profiles.remove(&id);
                    data.assignments.retain(|(profile, _)| *profile != id);
                }
                Change::Admin(change) => data.admins.change(change),
                Change::App(change) => data.apps.change(change),
                Change::PutStanding(standing) => drop(data.told.standings.insert(standing.device, standing)),
                Change::NoteAsked { device, at } => data.told.inventory.entry(device).or_default().asked = Some(at),
                Change::PutCommand(command) => drop(data.commands.insert(command.id, command)),
                Change::MoveCommand { to, .. } => drop(data.commands.insert(to.id, to)),
                Change::ForgetCommands { device, before } => {
                    data.commands.retain(|_, c| c.device != device || c.completed.is_none_or(|at| at >= before));
                }
                Change::PutAssignment { profile, holder } => _ = data.assignments.insert((profile, holder)),
                Change::DeleteAssignment { profile, holder } => _ = data.assignments.remove(&(profile, holder)),
            }
        }
        data.audit.extend(commit.audit);
        Ok(())
    }

    async fn seen(&self, tenant: &TenantId, id: EntityId, now: UnixTime) -> Result<(), StoreError> {
        if let Some(data) = self.lock().get_mut(tenant) {
            let device = data.devices.get_mut(&id).map(|d| &mut d.last_seen);
            let node = data.nodes.get_mut(&id).map(|n| &mut n.last_seen);
            for seen in device.into_iter().chain(node) {
                *seen = Some(now);
            }
        }
        Ok(())
    }

    async fn obeys(&self, tenant: &TenantId, device: EntityId, version: Version) -> Result<(), StoreError> {
        if let Some(device) = self.lock().get_mut(tenant).and_then(|data| data.devices.get_mut(&device)) {
            device.obeys = Some(version);
        }
        Ok(())
    }

    async fn acknowledge(&self, tenant: &TenantId, ack: Acknowledgement) -> Result<(), StoreError> {
        if let Some(data) = self.lock().get_mut(tenant) {
            data.acknowledgements.insert(ack.holder.clone(), ack);
        }
        Ok(())
    }
}
