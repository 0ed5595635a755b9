//! Another CA for the tenant, without a day on which somebody is out.
//!
//! ```text
//!   begin    the next CA is made and announced, endorsed by the one in force: everybody believes both
//!   switch   it certifies devices and nodes: whoever fetches the configuration asks for a new certificate
//!   finish   the core and the configuration key stand under it too; nobody believes the old one any more
//! ```
//! Until the last step everything can be verified under the old CA, so whoever was away in between comes along later.

use hedgerow_shared::verify::Version;
use hedgerow_shared::{EntityId, TenantId};

use super::{Call, Core, Plan};
use crate::CoreError;
use crate::account::{DeviceState, NodeState, Rollover, SealedKey, Tenant, TokenState};
use crate::ca::{Authority, Key};
use crate::store::{Change, Page, Store};

/// What the next CA's key is sealed for.
pub(super) const NEXT_KEY: &str = "next ca key";

/// So many of those that are left behind are named.
const MAX_NAMED: usize = 1000;

/// Where a rollover stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloverStatus {
    /// The rollover.
    pub rollover: Rollover,
    /// `TenantCa::pin` of the next CA.
    pub pin: String,
    /// Relays and nodes that have not acknowledged a configuration that announces it, `relay:NAME` or `node:ID`.
    pub unaware: Vec<String>,
    /// Active devices and nodes whose newest certificate stands under the old CA, at most 1000.
    pub behind: Vec<(&'static str, EntityId)>,
}

impl<S: Store> Core<S> {
    /// Makes the next CA and announces it.
    ///
    /// # Errors
    /// `Exists` (one is under way), `NotFound`, `Damaged`, `Randomness`, `Busy`, `Store`.
    pub async fn begin_rollover(&self, call: &mut Call<'_>, tenant: &TenantId) -> Result<Rollover, CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let mut row = self.load(tenant).await?;
            if row.rollover.is_some() {
                return Err(CoreError::Exists { kind: "next CA of tenant", name: tenant.to_string() });
            }
            let next = Authority::create(tenant.clone(), call.now, call.random)?;
            let rollover = Rollover {
                certificate: next.certificate().to_vec(),
                key: self.seal_key(tenant, NEXT_KEY, next.key(), call.random).0,
                endorsement: self.authority(&row)?.endorse(next.certificate()),
                begun: call.now,
                announced: Version { version: row.config.version.saturating_add(1), ..row.config },
                certifies: false,
            };
            row.rollover = Some(rollover.clone());
            let plan = Plan::default().publish().record("ca.begin", tenant.as_str(), next.pin()?);
            if self.commit(call, row, plan).await? {
                return Ok(rollover);
            }
        }
    }

    /// Has the next CA certify devices and nodes from now on. `relays` are the names of those that must know it.
    ///
    /// # Errors
    /// `Invalid` (none was begun; relays or nodes do not know it yet, unless `anyway`), `NotFound`, `Busy`, `Store`.
    pub async fn switch_rollover(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        relays: &[String],
        anyway: bool,
    ) -> Result<Rollover, CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let mut row = self.load(tenant).await?;
            let mut rollover = under_way(&row)?;
            if rollover.certifies {
                return Ok(rollover);
            }
            let unaware = self.unaware(tenant, &rollover, relays).await?;
            if !unaware.is_empty() && !anyway {
                let why = format!(
                    "these do not know the next CA yet, and would refuse its certificates: {}",
                    unaware.join(", ")
                );
                return Err(CoreError::invalid("the moment", why));
            }
            rollover.certifies = true;
            row.rollover = Some(rollover.clone());
            let plan = Plan::default().publish().record("ca.switch", tenant.as_str(), unaware.join(" "));
            if self.commit(call, row, plan).await? {
                return Ok(rollover);
            }
        }
    }

    /// Drops the old CA: whoever still stands under it has to be activated or enrolled again, unless there is nobody.
    /// Open enrolment tokens pin the old CA and are withdrawn.
    ///
    /// # Errors
    /// `Invalid` (not switched; devices or nodes are left behind, unless `anyway`), `NotFound`, `Damaged`, `Busy`, `Store`.
    pub async fn finish_rollover(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        anyway: bool,
    ) -> Result<Tenant, CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let mut row = self.load(tenant).await?;
            let rollover = under_way(&row)?;
            if !rollover.certifies {
                return Err(CoreError::invalid("the moment", "the next CA certifies nobody yet: switch first"));
            }
            let behind = self.behind(tenant, &self.renewing_authority(&row)?.pin()?).await?;
            if !behind.is_empty() && !anyway {
                let first: Vec<_> = behind.iter().take(3).map(|(kind, id)| format!("{kind} {id}")).collect();
                let why = format!(
                    "{} devices and nodes have no certificate of the next CA yet, and would be out: {}",
                    behind.len(),
                    first.join(", ")
                );
                return Err(CoreError::invalid("the moment", why));
            }
            let next = self.renewing_authority(&row)?;
            row.config_certificate = {
                let key: Key = self.open_key(&row, &row.config_key.0, "config key", "the configuration key")?;
                next.issue_config_key(&key, call.now, call.random)?
            };
            row.ca_key = SealedKey(self.seal_key(tenant, "ca key", next.key(), call.random).0);
            row.ca_certificate = rollover.certificate;
            row.rollover = None;
            let mut plan = Plan::default().publish().record(
                "ca.finish",
                tenant.as_str(),
                format!("left behind: {}", behind.len()),
            );
            let mut page = Page::first();
            loop {
                let tokens = self.tokens(tenant, page).await?;
                for mut token in tokens.iter().filter(|t| t.state(call.now) == TokenState::Open).cloned() {
                    token.revoked = Some(call.now);
                    plan = plan
                        .record("token.revoke", token.id.to_string(), "it pins the old CA")
                        .change(Change::PutToken(token));
                }
                let Some(next) = page.behind(&tokens, |token| token.id) else { break };
                page = next;
            }
            if self.commit(call, row.clone(), plan).await? {
                return Ok(row);
            }
        }
    }

    /// Where the rollover stands; `None` when none is under way.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, `Store`.
    pub async fn rollover(&self, tenant: &TenantId, relays: &[String]) -> Result<Option<RolloverStatus>, CoreError> {
        let row = self.load(tenant).await?;
        let Some(rollover) = row.rollover.clone() else { return Ok(None) };
        let key = self.open_key(&row, &rollover.key, NEXT_KEY, "the next CA key")?;
        let pin = Authority::from_parts(tenant.clone(), rollover.certificate.clone(), key).pin()?;
        let unaware = self.unaware(tenant, &rollover, relays).await?;
        let behind = self.behind(tenant, &pin).await?;
        Ok(Some(RolloverStatus { rollover, pin, unaware, behind }))
    }

    async fn unaware(
        &self,
        tenant: &TenantId,
        rollover: &Rollover,
        relays: &[String],
    ) -> Result<Vec<String>, CoreError> {
        let known = self.acknowledgements(tenant).await?;
        let knows = |holder: &String| known.iter().any(|a| a.holder == *holder && a.version >= rollover.announced);
        let mut unaware: Vec<_> = relays.iter().map(|r| format!("relay:{r}")).filter(|r| !knows(r)).collect();
        let mut page = Page::first();
        loop {
            let nodes = self.nodes(tenant, page).await?;
            let active = nodes.iter().filter(|n| n.state == NodeState::Active).map(|n| format!("node:{}", n.id));
            unaware.extend(active.filter(|n| !knows(n)));
            let Some(next) = page.behind(&nodes, |node| node.id) else { return Ok(unaware) };
            page = next;
        }
    }

    async fn behind(&self, tenant: &TenantId, pin: &str) -> Result<Vec<(&'static str, EntityId)>, CoreError> {
        let mut behind = Vec::new();
        let mut page = Page::first();
        loop {
            let nodes = self.nodes(tenant, page).await?;
            let late = nodes.iter().filter(|n| n.state == NodeState::Active && n.certificate.issuer != pin);
            behind.extend(late.map(|n| ("node", n.id)));
            let Some(next) = page.behind(&nodes, |node| node.id) else { break };
            page = next;
        }
        page = Page::first();
        loop {
            let devices = self.devices(tenant, None, page).await?;
            let late = devices.iter().filter(|d| d.state == DeviceState::Active && d.certificate.issuer != pin);
            behind.extend(late.map(|d| ("device", d.id)));
            behind.truncate(MAX_NAMED);
            match page.behind(&devices, |device| device.id).filter(|_| behind.len() < MAX_NAMED) {
                Some(next) => page = next,
                None => return Ok(behind),
            }
        }
    }
}

fn under_way(row: &Tenant) -> Result<Rollover, CoreError> {
    row.rollover.clone().ok_or_else(|| CoreError::invalid("the moment", "no next CA was begun"))
}
