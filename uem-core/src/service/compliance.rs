//! What devices tell, how they stand, and what follows from that.

use std::collections::BTreeMap;

use hedgerow_shared::{EntityId, TenantId, UnixTime};
use serde_json::{Map, Value};

use super::{Call, Core, Decided, Plan};
use crate::CoreError;
use crate::account::{Device, DeviceState};
use crate::command::{Command, Kind, Properties, State};
use crate::compliance::{Facts, Finding, Moment, Standing, Verdict, follow, judge};
use crate::inventory::{self, Attributes, InstalledApp, Inventory, Told};
use crate::profile::{Category, Compliance, Platform};
use crate::random;
use crate::store::{Change, Page, Store};

/// How long a command of compliance waits for its device, seconds: 30 days.
const LIFETIME_SECONDS: u64 = 30 * 24 * 3600;
/// How long one that erases waits, seconds: a century. Whenever the device comes back, it is erased.
const ERASURE_LIFETIME_SECONDS: u64 = 100 * 366 * 24 * 3600;
/// Who gives such commands, in their properties.
const BECAUSE: &str = "because";

impl<S: Store> Core<S> {
    /// Keeps what a device answered to a question about itself, in place of what it told before. What else it answers, and
    /// what has no form, changes nothing. Whether something was kept.
    ///
    /// # Errors
    /// `Store`.
    pub async fn tell(
        &self,
        tenant: &TenantId,
        device: EntityId,
        (kind, answer): (Kind, &Map<String, Value>),
        now: UnixTime,
    ) -> Result<bool, CoreError> {
        let told = match kind {
            Kind::RequestDeviceInfo => Some(Told::Attributes(Attributes::read(answer, now))),
            Kind::ListApplications => inventory::read_apps(answer).map(|apps| Told::Apps { told: now, apps }),
            _ => None,
        };
        let Some(told) = told else { return Ok(false) };
        self.store.tell(tenant, device, told).await.map_err(CoreError::Store)?;
        Ok(true)
    }

    /// What a device has told; nothing yet is the empty inventory.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn inventory(&self, tenant: &TenantId, device: EntityId) -> Result<Inventory, CoreError> {
        self.device(tenant, device).await?;
        Ok(self.store.inventory(tenant, device).await.map_err(CoreError::Store)?.unwrap_or_default())
    }

    /// Apps on a device behind the identifier `after`, in the order of identifiers, at most `limit` (and `Page::MAX`).
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn installed(
        &self,
        tenant: &TenantId,
        device: EntityId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<InstalledApp>, CoreError> {
        self.device(tenant, device).await?;
        self.store.installed(tenant, device, after, limit.min(Page::MAX)).await.map_err(CoreError::Store)
    }

    /// Devices that an app is on, by its identifier, in the order of ids.
    ///
    /// # Errors
    /// `Store`.
    pub async fn devices_with(
        &self,
        tenant: &TenantId,
        identifier: &str,
        page: Page,
    ) -> Result<Vec<EntityId>, CoreError> {
        self.store.devices_with(tenant, identifier, page).await.map_err(CoreError::Store)
    }

    /// How a device stood when it was judged last; `None`: it has not been.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn standing(&self, tenant: &TenantId, device: EntityId) -> Result<Option<Standing>, CoreError> {
        self.device(tenant, device).await?;
        self.store.standing(tenant, device).await.map_err(CoreError::Store)
    }

    /// How devices stand, of one verdict or of all, in the order of their ids.
    ///
    /// # Errors
    /// `Store`.
    pub async fn standings(
        &self,
        tenant: &TenantId,
        verdict: Option<Verdict>,
        page: Page,
    ) -> Result<Vec<Standing>, CoreError> {
        self.store.standings(tenant, verdict, page).await.map_err(CoreError::Store)
    }

    /// How many of the devices that were judged stand in each way.
    ///
    /// # Errors
    /// `Store`.
    pub async fn verdicts(&self, tenant: &TenantId) -> Result<Vec<(Verdict, u64)>, CoreError> {
        self.store.verdicts(tenant).await.map_err(CoreError::Store)
    }

    /// Devices that are to reach nothing of the organisation but the core, in the order of ids. Whatever makes the signed
    /// configuration cuts their access; each change of this list raises the configuration's version.
    ///
    /// # Errors
    /// `Store`.
    pub async fn quarantined(&self, tenant: &TenantId) -> Result<Vec<EntityId>, CoreError> {
        self.store.quarantined(tenant).await.map_err(CoreError::Store)
    }

    /// Judges a device now. What has changed is recorded, and what is due is done, in one commit: once for one cause,
    /// however often this is called; what came to nothing is done again. The standing, and whether anything changed. A
    /// revoked device stays as it is. Silence begins only where `call` says since when the core is available.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Store`.
    pub async fn judge_device(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        id: EntityId,
    ) -> Result<(Option<Standing>, bool), CoreError> {
        let (now, available) = (call.now, call.available);
        // One for each action that there is, in the order of what is due.
        let ids: [EntityId; 6] = std::array::from_fn(|_| call.id());
        let seed = random::bytes(call.random);
        self.decide(call, tenant, |revision| async move {
            let device = self.device(tenant, id).await?;
            let before = self.store.standing(tenant, id).await.map_err(CoreError::Store)?;
            if device.state == DeviceState::Revoked {
                return Ok(Decided::Already((before, false)));
            }
            let (profile, settings) = self.compliance_of(tenant, &device).await?;
            let open = self.store.open_commands(tenant, id).await.map_err(CoreError::Store)?;
            let commands = self.commands_of(tenant, before.as_ref(), &open, now).await?;
            let moment = Moment { now, available, commands: &commands };
            let findings = self.findings(tenant, (&device, before.as_ref()), &settings, (now, available)).await?;
            let judged = (findings, &settings.rules);
            let (mut standing, due) = follow((tenant, id), before.as_ref(), profile, judged, moment);
            let was = before.as_ref().map_or(Verdict::NoProfile, |b| b.verdict);
            if before.as_ref().is_some_and(|b| standing.is_like(b))
                || before.is_none() && standing.verdict == Verdict::NoProfile
            {
                return Ok(Decided::Already((before, false)));
            }
            let mut plan = Plan::default();
            for (place, (due, id)) in due.iter().zip(ids).enumerate() {
                let rules: Vec<_> = due.rules.iter().map(|rule| rule.as_str()).collect();
                let mut told = format!("{}, because of {}", due.action.as_str(), rules.join(", "));
                if let Some(kind) = due.action.command() {
                    // One that waits already does it: an administrator's, or for another rule.
                    let waits = open.iter().find(|c| c.kind == kind && c.expires > now).map(|c| c.id);
                    let command = waits.unwrap_or(id);
                    if waits.is_none() {
                        let rules = due.rules.iter().map(|rule| Value::from(rule.as_str())).collect();
                        let because = Map::from_iter([(BECAUSE.to_owned(), Value::Array(rules))]);
                        let mut random = random::of_seed(seed, revision, place);
                        let properties = Properties::seal(&self.kek, (tenant, id), because, &mut random);
                        let given = asked(&device, (id, kind), (revision, now), lifetime(kind));
                        let given = Command { properties, ..given };
                        plan = plan.change(Change::PutCommand(given));
                    }
                    standing.note(due, command);
                    told.push_str(&format!(", {kind} {command}"));
                }
                plan = plan.record("compliance.act", device.id.to_string(), told);
            }
            if before.as_ref().is_some_and(|b| b.quarantined) != standing.quarantined {
                plan = plan.publish();
            }
            if was != standing.verdict || due.is_empty() {
                plan = plan.record("compliance.change", device.id.to_string(), standing.told());
            }
            Ok(Decided::Commit(plan.change(Change::PutStanding(standing.clone())), (Some(standing), true)))
        })
        .await
    }

    /// The compliance profile that has effect on a device, and what it sets.
    pub(super) async fn compliance_of(
        &self,
        tenant: &TenantId,
        device: &Device,
    ) -> Result<(Option<EntityId>, Compliance), CoreError> {
        let found = self.effective_profiles(tenant, device.user, Platform::told(&device.platform)).await?;
        let found = found.into_iter().find(|one| one.profile.category == Category::Compliance);
        let Some(found) = found else { return Ok((None, Compliance::default())) };
        Ok((Some(found.profile.id), Compliance::read(&found.profile.settings)?))
    }

    /// What has become of the commands of steps that were taken.
    async fn commands_of(
        &self,
        tenant: &TenantId,
        before: Option<&Standing>,
        open: &[Command],
        now: UnixTime,
    ) -> Result<BTreeMap<EntityId, State>, CoreError> {
        let mut states = BTreeMap::new();
        let taken = before.into_iter().flat_map(|standing| &standing.causes).flat_map(|cause| &cause.taken);
        for id in taken.filter_map(|taken| taken.command) {
            let known = open.iter().find(|command| command.id == id).cloned();
            let command = match known {
                Some(command) => Some(command),
                None => self.store.command(tenant, id).await.map_err(CoreError::Store)?,
            };
            if let Some(command) = command {
                states.insert(id, command.expired(now).map_or(command.state, |expired| expired.state));
            }
        }
        Ok(states)
    }

    async fn findings(
        &self,
        tenant: &TenantId,
        (device, before): (&Device, Option<&Standing>),
        settings: &Compliance,
        (now, available): (UnixTime, Option<UnixTime>),
    ) -> Result<Vec<Finding>, CoreError> {
        let inventory = self.store.inventory(tenant, device.id).await.map_err(CoreError::Store)?.unwrap_or_default();
        let apps = self.watched_apps(tenant, device, (settings, &inventory)).await?;
        let told = inventory.attributes.as_ref();
        let facts = Facts {
            platform: told.and_then(Attributes::platform).or_else(|| Platform::told(&device.platform)),
            attributes: told,
            apps: apps.as_ref(),
            created: device.created,
            last_seen: device.last_seen,
            available,
            before,
        };
        Ok(judge(settings, facts, now))
    }
}

/// For how long a command for an action waits.
fn lifetime(kind: Kind) -> u64 {
    if kind.ends_the_device() { ERASURE_LIFETIME_SECONDS } else { LIFETIME_SECONDS }
}

/// A command that the core gives by itself.
pub(super) fn asked(
    device: &Device,
    (id, kind): (EntityId, Kind),
    (number, now): (u64, UnixTime),
    lifetime_seconds: u64,
) -> Command {
    Command {
        tenant: device.tenant.clone(),
        id,
        device: device.id,
        number,
        kind,
        properties: Properties::default(),
        state: crate::command::State::Queued,
        created: now,
        expires: now.plus(lifetime_seconds),
        sent: 0,
        not_before: None,
        completed: None,
        error: None,
        result: Map::new(),
    }
}
