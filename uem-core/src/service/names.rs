//! Server names of the tenant. Relays are told of them apart from the signed configuration: a relay that lies about
//! names can only send a client to the wrong place, where the client's own TLS notices.

use hedgerow_shared::wire::names::{MAX_NAMES, RegisteredName};
use hedgerow_shared::{Origin, TenantId};

use super::{Call, Core, Plan};
use crate::CoreError;
use crate::account::ServerName;
use crate::store::{Change, Store};

impl<S: Store> Core<S> {
    /// The tenant's names, in their order.
    ///
    /// # Errors
    /// `Store`.
    pub async fn names(&self, tenant: &TenantId) -> Result<Vec<ServerName>, CoreError> {
        self.store.names(tenant).await.map_err(CoreError::Store)
    }

    /// Adds a name. The case of `name` and a dot at its end do not matter.
    ///
    /// # Errors
    /// `Invalid` (not a host name, an origin that is not reached by name, too many), `Exists`, `NotFound`, `Busy`,
    /// `Store`.
    pub async fn add_name(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        name: &str,
        origin: Origin,
    ) -> Result<ServerName, CoreError> {
        let wanted = RegisteredName { name: spelt(name), origin };
        wanted.check().map_err(|why| CoreError::invalid("the name", why))?;
        let new = ServerName { tenant: tenant.clone(), name: wanted.name, origin, created: call.now };
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let names = self.names(tenant).await?;
            if names.iter().any(|n| n.name == new.name) {
                return Err(CoreError::Exists { kind: "name", name: new.name });
            }
            if names.len() >= MAX_NAMES {
                return Err(CoreError::invalid("the list of names", format!("it has {MAX_NAMES} entries already")));
            }
            let plan = Plan::default().change(Change::PutName(new.clone()));
            if self.commit(call, row, plan.record("name.add", new.name.clone(), format!("to {origin}"))).await? {
                return Ok(new);
            }
        }
    }

    /// Removes a name.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Store`.
    pub async fn remove_name(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        name: &str,
    ) -> Result<ServerName, CoreError> {
        let name = spelt(name);
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let found = self.names(tenant).await?.into_iter().find(|n| n.name == name);
            let old = found.ok_or_else(|| CoreError::not_found("name", &name))?;
            let plan = Plan::default().change(Change::DeleteName(name.clone()));
            let detail = format!("from {}", old.origin);
            if self.commit(call, row, plan.record("name.remove", name.clone(), detail)).await? {
                return Ok(old);
            }
        }
    }
}

/// In the one spelling that names are compared in.
fn spelt(name: &str) -> String {
    let name = name.trim();
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}
