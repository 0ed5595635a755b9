//! Access rules and routes: replaced as whole lists, because their order decides.

use hedgerow_shared::TenantId;
use hedgerow_shared::verify::{Route, Rule, Via};

use super::{Call, Core, Plan};
use crate::CoreError;
use crate::store::{Change, Store};

/// Most rules or routes of a tenant: what a signed document holds with room to spare.
const MAX_ENTRIES: usize = 10_000;

impl<S: Store> Core<S> {
    /// What devices may reach through nodes; the first rule that covers a target decides, without one it is denied.
    ///
    /// # Errors
    /// `Store`.
    pub async fn rules(&self, tenant: &TenantId) -> Result<Vec<Rule>, CoreError> {
        self.store.rules(tenant).await.map_err(CoreError::Store)
    }

    /// Replaces the rules.
    ///
    /// # Errors
    /// `Invalid` (too many), `NotFound`, `Busy`, `Store`.
    pub async fn set_rules(&self, call: &mut Call<'_>, tenant: &TenantId, rules: Vec<Rule>) -> Result<(), CoreError> {
        if rules.len() > MAX_ENTRIES {
            return Err(CoreError::invalid("the list of rules", format!("it has more than {MAX_ENTRIES} entries")));
        }
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let plan = Plan::default().publish().change(Change::SetRules(rules.clone()));
            let detail = serde_json::to_string(&rules).unwrap_or_default();
            if self.commit(call, row, plan.record("rules.set", tenant.as_str(), detail)).await? {
                return Ok(());
            }
        }
    }

    /// Where devices send what, and where they send what no route covers.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn routes(&self, tenant: &TenantId) -> Result<(Vec<Route>, Via), CoreError> {
        let default = self.load(tenant).await?.default_route;
        Ok((self.store.routes(tenant).await.map_err(CoreError::Store)?, default))
    }

    /// Replaces the routes and the default route.
    ///
    /// # Errors
    /// `Invalid` (too many), `NotFound`, `Busy`, `Store`.
    pub async fn set_routes(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        routes: Vec<Route>,
        default: Via,
    ) -> Result<(), CoreError> {
        if routes.len() > MAX_ENTRIES {
            return Err(CoreError::invalid("the list of routes", format!("it has more than {MAX_ENTRIES} entries")));
        }
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let mut row = self.load(tenant).await?;
            row.default_route = default.clone();
            let plan = Plan::default().publish().change(Change::SetRoutes(routes.clone()));
            let detail = format!("{}; otherwise {default}", serde_json::to_string(&routes).unwrap_or_default());
            if self.commit(call, row, plan.record("routes.set", tenant.as_str(), detail)).await? {
                return Ok(());
            }
        }
    }
}
