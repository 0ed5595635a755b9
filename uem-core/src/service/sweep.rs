//! Going round all devices, page by page: what they told grows old, and time alone breaks rules.

use hedgerow_shared::fault::with_causes;
use hedgerow_shared::{EntityId, TenantId, UnixTime};

use super::compliance::asked;
use super::{Call, Core, Decided, Plan};
use crate::CoreError;
use crate::account::DeviceState;
use crate::command::{DEFAULT_LIFETIME_SECONDS, Kind, MAX_OPEN};
use crate::compliance::Verdict;
use crate::profile::Category;
use crate::store::{Change, Page, Store, StoreError};

/// A device with a compliance profile is asked what it is when what it told is older than this, seconds: a day.
const STALE_SECONDS: u64 = 24 * 3600;

/// What one page of the round did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Swept {
    /// Devices looked at.
    pub looked_at: u64,
    /// Devices that stand otherwise than before.
    pub changed: u64,
    /// Devices that could not be judged or asked, and why: somebody has to look at them. The others are done.
    pub failed: Vec<(EntityId, String)>,
    /// Devices that have something to fetch: to be woken.
    pub to_wake: Vec<EntityId>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<EntityId>,
}

impl<S: Store> Core<S> {
    /// Judges the devices of one page, and asks those that told nothing for a day; nothing where no compliance profile is. To
    /// be called for all pages every few minutes; it is as often done as it is called, and nothing is done twice. A device
    /// that fails is told in the answer, and holds up no other.
    ///
    /// # Errors
    /// `Store`: the list of devices, or the storage as a whole, cannot be read. Devices before are done.
    pub async fn sweep(&self, call: &mut Call<'_>, tenant: &TenantId, page: Page) -> Result<Swept, CoreError> {
        if !self.anything_watched(tenant).await? {
            return Ok(Swept::default());
        }
        let devices = self.devices(tenant, None, page).await?;
        let next = page.behind(&devices, |device| device.id).and_then(|next| next.after);
        let mut swept = Swept { next, ..Swept::default() };
        for device in devices.into_iter().filter(|d| d.state == DeviceState::Active) {
            swept.looked_at += 1;
            match self.sweep_one(call, tenant, (device.id, &mut swept)).await {
                Ok(()) => {}
                // Every other would fail as well.
                Err(CoreError::Store(StoreError::Backend(why))) => {
                    return Err(CoreError::Store(StoreError::Backend(why)));
                }
                Err(why) => swept.failed.push((device.id, with_causes(&why))),
            }
        }
        Ok(swept)
    }

    async fn sweep_one(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        (device, swept): (EntityId, &mut Swept),
    ) -> Result<(), CoreError> {
        let (standing, changed) = self.judge_device(call, tenant, device).await?;
        if changed {
            // At once: what was judged is to be fetched even where asking fails.
            swept.changed += 1;
            swept.to_wake.push(device);
        }
        let watched = standing.is_some_and(|standing| standing.profile.is_some());
        if watched && self.ask_if_stale(call, tenant, device).await? && !changed {
            swept.to_wake.push(device);
        }
        Ok(())
    }

    /// Whether there is a compliance profile, or a device that stood by one and has to be told that there is none.
    async fn anything_watched(&self, tenant: &TenantId) -> Result<bool, CoreError> {
        let profiles = self.store.profiles(tenant, Category::Compliance).await.map_err(CoreError::Store)?;
        let verdicts = self.store.verdicts(tenant).await.map_err(CoreError::Store)?;
        Ok(!profiles.is_empty() || verdicts.iter().any(|(verdict, _)| *verdict != Verdict::NoProfile))
    }

    /// Whether the device is asked now.
    async fn ask_if_stale(&self, call: &mut Call<'_>, tenant: &TenantId, device: EntityId) -> Result<bool, CoreError> {
        let (now, ids) = (call.now, [call.id(), call.id()]);
        self.decide(call, tenant, |revision| async move {
            let device = self.device(tenant, device).await?;
            let inventory = self.store.inventory(tenant, device.id).await.map_err(CoreError::Store)?;
            let inventory = inventory.unwrap_or_default();
            // What is yet to come was noted by a clock that ran ahead.
            let old = |told: Option<UnixTime>| told.is_none_or(|at| at > now || now.since(at) >= STALE_SECONDS);
            // Asked once a day, whatever comes of it: one that cannot tell is not asked all day.
            if device.state == DeviceState::Revoked || !old(inventory.asked) {
                return Ok(Decided::Already(false));
            }
            let open = self.store.open_commands(tenant, device.id).await.map_err(CoreError::Store)?;
            let kinds = [
                (Kind::RequestDeviceInfo, inventory.attributes.map(|told| told.told)),
                (Kind::ListApplications, inventory.apps_told),
            ];
            let mut plan = Plan::default();
            for ((kind, told), id) in kinds.into_iter().zip(ids) {
                if old(told) && open.len() + 2 <= MAX_OPEN && !open.iter().any(|c| c.kind == kind && c.expires > now) {
                    let command = asked(&device, (id, kind), (revision, now), DEFAULT_LIFETIME_SECONDS);
                    plan = plan.change(Change::PutCommand(command));
                }
            }
            if plan.changes.is_empty() {
                return Ok(Decided::Already(false));
            }
            Ok(Decided::Commit(plan.change(Change::NoteAsked { device: device.id, at: now }), true))
        })
        .await
    }
}
