//! Many users at once, and finding one among many.

use std::collections::{BTreeMap, BTreeSet};

use hedgerow_shared::{EntityId, TenantId, UnixTime};
use serde::{Deserialize, Serialize};

use super::{Call, Core, Plan};
use crate::CoreError;
use crate::account::{User, UserSource};
use crate::bulk::{Line, LineFault, MAX_FAULTS};
use crate::group::{MAX_STANDS_IN, Principal, name_key};
use crate::store::{Change, Page, Store};

/// Users of one commit: what is half done when a power cut comes between two is done by importing again.
const AT_ONCE: usize = 500;

/// What an import did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Imported {
    /// Users that were not there.
    pub added: usize,
    /// Users whose name or groups are others now.
    pub changed: usize,
    /// Users that were as they were to be.
    pub unchanged: usize,
}

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Lines that cannot be done.
    #[error("nothing was imported: {} line(s) cannot be done", .0.len())]
    Lines(Vec<LineFault>),
    /// As for other operations. Batches before are done.
    #[error(transparent)]
    Core(#[from] CoreError),
}

impl<S: Store> Core<S> {
    /// Adds users that are not there, and gives those that are the names that are given and, besides those they stand in, their
    /// groups. Nobody is removed or switched. Every group must exist; otherwise nothing is done. What was done already is not
    /// done again.
    ///
    /// # Errors
    /// `Lines`: a group that does not exist; `Core`: `NotFound`, `Invalid`, `Busy`, `Store`.
    pub async fn import_users(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        lines: &[Line],
    ) -> Result<Imported, ImportError> {
        self.load(tenant).await?;
        let groups = self.named_groups(tenant, lines).await?;
        let mut done = Imported::default();
        for batch in lines.chunks(AT_ONCE) {
            let ids: Vec<EntityId> = batch.iter().map(|_| call.id()).collect();
            let mut turn = self.turn();
            let of_batch = loop {
                turn.next().await?;
                let row = self.load(tenant).await?;
                let (mut plan, mut of_batch) = (Plan::default(), Imported::default());
                for (line, id) in batch.iter().zip(&ids) {
                    plan = self.plan_line(call.now, tenant, (line, *id), &groups, plan, &mut of_batch).await?;
                }
                if plan.changes.is_empty() || self.commit(call, row, plan).await? {
                    break of_batch;
                }
            };
            done.added += of_batch.added;
            done.changed += of_batch.changed;
            done.unchanged += of_batch.unchanged;
        }
        Ok(done)
    }

    /// Ids of all groups that the lines name.
    async fn named_groups(&self, tenant: &TenantId, lines: &[Line]) -> Result<BTreeMap<String, EntityId>, ImportError> {
        let (mut groups, mut faults) = (BTreeMap::new(), Vec::new());
        let mut missing = BTreeSet::new();
        for line in lines {
            for name in &line.groups {
                let key = name_key(name);
                if groups.contains_key(&key) || !missing.insert(key.clone()) {
                    continue;
                }
                match self.store.group_by_name(tenant, &key).await.map_err(CoreError::Store)? {
                    Some(group) => {
                        missing.remove(&key);
                        groups.insert(key, group.id);
                    }
                    None => faults.push(LineFault { line: line.line, why: format!("there is no group {name:?}") }),
                }
                if faults.len() >= MAX_FAULTS {
                    return Err(ImportError::Lines(faults));
                }
            }
        }
        if faults.is_empty() { Ok(groups) } else { Err(ImportError::Lines(faults)) }
    }

    async fn plan_line(
        &self,
        now: UnixTime,
        tenant: &TenantId,
        (line, id): (&Line, EntityId),
        groups: &BTreeMap<String, EntityId>,
        mut plan: Plan,
        done: &mut Imported,
    ) -> Result<Plan, CoreError> {
        let there = self.store.user_by_email(tenant, &line.email).await.map_err(CoreError::Store)?;
        let is_new = there.is_none();
        let mut user = there.unwrap_or_else(|| User {
            tenant: tenant.clone(),
            id,
            email: line.email.clone(),
            display_name: line.email.to_string(),
            active: line.active,
            created: now,
            source: UserSource::Local,
        });
        let stands_in = match is_new || line.groups.is_empty() {
            true => Vec::new(),
            false => self.store.groups_of(tenant, Principal::User(user.id)).await.map_err(CoreError::Store)?,
        };
        let wanted: BTreeSet<EntityId> =
            line.groups.iter().filter_map(|name| groups.get(&name_key(name))).copied().collect();
        let joins: Vec<_> = wanted.into_iter().filter(|group| !stands_in.contains(group)).collect();
        if stands_in.len() + joins.len() > MAX_STANDS_IN {
            let why = format!("line {}: more than {MAX_STANDS_IN} groups", line.line);
            return Err(CoreError::invalid("the import", why));
        }
        let new_name = line.display_name.as_ref().filter(|name| **name != user.display_name);
        let renamed = new_name.is_some();
        match (is_new, renamed || !joins.is_empty()) {
            (true, _) => done.added += 1,
            (false, true) => done.changed += 1,
            (false, false) => {
                done.unchanged += 1;
                return Ok(plan);
            }
        }
        let (subject, email) = (user.id.to_string(), user.email.to_string());
        if is_new || renamed {
            if let Some(name) = new_name {
                user.display_name.clone_from(name);
            }
            plan = plan.change(Change::PutUser(user.clone()));
        }
        for group in joins {
            plan = plan.change(Change::PutMember { group, member: Principal::User(user.id) });
        }
        Ok(plan.record(if is_new { "user.add" } else { "user.change" }, subject, format!("{email}, imported")))
    }

    /// Users whose address or display name begins with these characters, whatever their case, in the order of addresses; at
    /// most `limit` (and `Page::MAX`).
    ///
    /// # Errors
    /// `Store`.
    pub async fn find_users(&self, tenant: &TenantId, begins: &str, limit: u32) -> Result<Vec<User>, CoreError> {
        self.store.users_like(tenant, &name_key(begins), limit.min(Page::MAX)).await.map_err(CoreError::Store)
    }

    /// Names of the groups that a user stands in themselves.
    ///
    /// # Errors
    /// `Store`.
    pub async fn group_names_of(&self, tenant: &TenantId, user: EntityId) -> Result<BTreeSet<String>, CoreError> {
        let mut names = BTreeSet::new();
        for id in self.store.groups_of(tenant, Principal::User(user)).await.map_err(CoreError::Store)? {
            names.extend(self.store.group(tenant, id).await.map_err(CoreError::Store)?.map(|group| group.name));
        }
        Ok(names)
    }
}
