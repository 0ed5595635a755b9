//! The signed configuration in force, its hourly re-issue, and who has it.

use hedgerow_shared::verify::Version;
use hedgerow_shared::verify::config::LIFETIME_SECONDS;
use hedgerow_shared::{TenantId, UnixTime};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Call, Core, Plan};
use crate::CoreError;
use crate::account::Tenant;
use crate::activation::PasswordState;
use crate::config::{self, Configs};
use crate::store::{Acknowledgement, Change, Store};

/// The configuration key's certificate is renewed when less than this is left of it.
const CONFIG_CERTIFICATE_RESERVE: u64 = LIFETIME_SECONDS + 30 * 24 * 3600;

impl<S: Store> Core<S> {
    /// The three documents of the version in force. Cheap enough to be asked after every change.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, `Busy`, `Store`.
    pub async fn configs(&self, tenant: &TenantId) -> Result<Configs, CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let rules = self.store.rules(tenant).await.map_err(CoreError::Store)?;
            let routes = self.store.routes(tenant).await.map_err(CoreError::Store)?;
            let revoked = self.store.revoked(tenant, row.config_issued).await.map_err(CoreError::Store)?;
            let placement = self.placement(tenant).await?;
            // Read around the lists, so that a version never carries another one's content.
            if self.load(tenant).await?.config == row.config {
                return Ok(config::build(&row, &self.config_key(&row)?, revoked, rules, routes, &placement)?);
            }
        }
    }

    /// The version in force, for comparison with what peers hold.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn config_version(&self, tenant: &TenantId) -> Result<Version, CoreError> {
        Ok(self.load(tenant).await?.config)
    }

    /// To be called every few minutes and at start: issues the configuration again when an hour has passed since
    /// the last version, renews the configuration key's certificate in time, and removes activation passwords whose
    /// time is over. The new version, if one was issued.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, `Busy`, `Store`.
    pub async fn reissue_if_due(&self, call: &mut Call<'_>, tenant: &TenantId) -> Result<Option<Version>, CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let mut row = self.load(tenant).await?;
            let mut plan = Plan::default();
            for password in self.store.passwords(tenant).await.map_err(CoreError::Store)? {
                if password.state(call.now) == PasswordState::Expired {
                    plan = plan.change(Change::DeletePassword(password.user)).record(
                        "activation.expire",
                        password.user.to_string(),
                        "",
                    );
                }
            }
            if config_certificate_ends(&row)?.0 < call.now.plus(CONFIG_CERTIFICATE_RESERVE).0 {
                let key = self.open_key(&row, &row.config_key.0, "config key", "the configuration key")?;
                row.config_certificate = self.authority(&row)?.issue_config_key(&key, call.now, call.random)?;
                plan = plan.publish().record("config.certificate", tenant.as_str(), "renewed");
            }
            if config::reissue_due(&row, call.now) {
                plan = plan.publish();
            }
            if !plan.publishes && plan.changes.is_empty() {
                return Ok(None);
            }
            let version = Version { version: row.config.version.saturating_add(1), ..row.config };
            let published = plan.publishes;
            if self.commit(call, row, plan).await? {
                return Ok(published.then_some(version));
            }
        }
    }

    /// Notes that a relay or node (`relay:NAME`, `node:ID`) has a version in force.
    ///
    /// # Errors
    /// `Store`.
    pub async fn acknowledge(
        &self,
        tenant: &TenantId,
        holder: &str,
        version: Version,
        now: UnixTime,
    ) -> Result<(), CoreError> {
        let ack = Acknowledgement { holder: crate::account::told(holder), version, time: now };
        self.store.acknowledge(tenant, ack).await.map_err(CoreError::Store)
    }

    /// How far relays and nodes have come.
    ///
    /// # Errors
    /// `Store`.
    pub async fn acknowledgements(&self, tenant: &TenantId) -> Result<Vec<Acknowledgement>, CoreError> {
        self.store.acknowledgements(tenant).await.map_err(CoreError::Store)
    }
}

fn config_certificate_ends(tenant: &Tenant) -> Result<UnixTime, CoreError> {
    let damaged = CoreError::Damaged("the configuration key's certificate");
    let der = CertificateDer::from(tenant.config_certificate.as_slice());
    let Ok((_, parsed)) = X509Certificate::from_der(&der) else { return Err(damaged) };
    u64::try_from(parsed.validity().not_after.timestamp()).map(UnixTime).map_err(|_| damaged)
}
