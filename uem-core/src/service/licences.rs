//! The tenant's licence: installed, shown, removed; and whether it lets one more device in.

use hedgerow_shared::{TenantId, UnixTime};

use super::{Call, Core, Decided, Plan};
use crate::CoreError;
use crate::licence::{Installed, Overview, Unlicensed};
use crate::store::{Change, Store};

impl<S: Store> Core<S> {
    /// The installed licence, for relays.
    ///
    /// # Errors
    /// `Store`.
    pub async fn licence(&self, tenant: &TenantId) -> Result<Option<Installed>, CoreError> {
        self.store.licence(tenant).await.map_err(CoreError::Store)
    }

    /// How the installed licence stands at `now`.
    ///
    /// # Errors
    /// `Store`.
    pub async fn licence_overview(&self, tenant: &TenantId, now: UnixTime) -> Result<Option<Overview>, CoreError> {
        let Some(installed) = self.licence(tenant).await? else { return Ok(None) };
        let seats_used = self.store.active_devices(tenant, None).await.map_err(CoreError::Store)?;
        let licence = &installed.licence;
        let full = licence.seats.filter(|seats| seats_used >= u64::from(*seats));
        let full =
            full.map(|seats| format!("all {seats} seats of licence {} are taken ({seats_used} active)", licence.id));
        let warning = licence.warning(now).or(full);
        Ok(Some(Overview { standing: licence.standing(now), seats_used, warning, installed }))
    }

    /// Installs a licence in the place of the one before. Nothing is verified here: relays do.
    ///
    /// # Errors
    /// `Invalid` (not a licence, another tenant's, issued before the installed one), `NotFound`, `Busy`, `Store`.
    pub async fn install_licence(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        text: &str,
    ) -> Result<Installed, CoreError> {
        let new = &Installed::for_tenant(text, tenant, call.now)?;
        self.decide(call, tenant, |_| async move {
            if let Some(old) = self.licence(tenant).await?.filter(|old| old.licence.issued > new.licence.issued) {
                let why = format!(
                    "it was issued before {}, which is installed and which relays will not go back from",
                    old.licence.id
                );
                return Err(CoreError::invalid("the licence", why));
            }
            let licence = &new.licence;
            let seats = licence.seats.map_or("any number of".to_owned(), |n| n.to_string());
            let features: Vec<&str> = licence.features.iter().map(String::as_str).collect();
            let detail = format!("{seats} seats, expires {}, features {}", licence.expires.0, features.join(" "));
            let plan = Plan::default().change(Change::PutLicence(new.clone()));
            Ok(Decided::Commit(plan.record("licence.install", licence.id.clone(), detail), new.clone()))
        })
        .await
    }

    /// Removes the installed licence. Relays that were shown it keep it.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Store`.
    pub async fn remove_licence(&self, call: &mut Call<'_>, tenant: &TenantId) -> Result<Installed, CoreError> {
        self.decide(call, tenant, |_| async move {
            let old = self.licence(tenant).await?.ok_or_else(|| CoreError::not_found("licence of", tenant))?;
            let plan = Plan::default().change(Change::DeleteLicence);
            Ok(Decided::Commit(plan.record("licence.remove", old.licence.id.clone(), ""), old))
        })
        .await
    }

    /// Whether one more device may become active; `Some` says why not. A device that is active is never asked about.
    pub(super) async fn unlicensed(&self, tenant: &TenantId, now: UnixTime) -> Result<Option<Unlicensed>, CoreError> {
        let Some(installed) = self.licence(tenant).await? else { return Ok(None) };
        let active = self.store.active_devices(tenant, None).await.map_err(CoreError::Store)?;
        Ok(installed.admits(active, now).err())
    }
}
