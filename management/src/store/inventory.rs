//! Inventory and compliance of devices in the database.

use std::sync::LazyLock;

use hedgerow_shared::{EntityId, TenantId};
use hedgerow_uem_core::compliance::{Standing, Verdict};
use hedgerow_uem_core::inventory::{AHEAD_SECONDS, InstalledApp, Inventory, MAX_APPS, Told};
use hedgerow_uem_core::store::{Change, InventoryStore, Page, StoreError};

use super::database::{Database, by_id, by_page, by_tenant};
use super::rows::{Row, int, json};
use super::sql::Query;

/// Apps of one statement: a list of thousands in dozens of statements instead.
const AT_ONCE: usize = 100;

/// One app.
const INSERT_APP: &str =
    "INSERT INTO installed_app (tenant, device, identifier, name, version) VALUES ($1, $2, $3, $4, $5)";
/// `AT_ONCE` apps.
static INSERT_APPS: LazyLock<String> = LazyLock::new(|| {
    let more = (1..AT_ONCE).map(|n| format!(", ($1, $2, ${}, ${}, ${})", 3 * n + 3, 3 * n + 4, 3 * n + 5));
    std::iter::once(INSERT_APP.to_owned()).chain(more).collect()
});

impl InventoryStore for Database {
    async fn inventory(&self, tenant: &TenantId, device: EntityId) -> Result<Option<Inventory>, StoreError> {
        let query = by_id("SELECT * FROM device_inventory WHERE tenant = $1 AND device = $2", tenant, device);
        self.one("inventory", query, |row| row.inventory()).await
    }

    async fn installed(
        &self,
        tenant: &TenantId,
        device: EntityId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<InstalledApp>, StoreError> {
        let sql = "SELECT * FROM installed_app WHERE tenant = $1 AND device = $2 AND identifier > $3 \
                   ORDER BY identifier LIMIT $4";
        let limit = i64::from(limit).min(MAX_APPS as i64);
        self.all("installed app", by_id(sql, tenant, device).bind(after).bind(limit), |row| row.installed()).await
    }

    async fn devices_with(&self, tenant: &TenantId, identifier: &str, page: Page) -> Result<Vec<EntityId>, StoreError> {
        let sql = "SELECT device FROM installed_app WHERE tenant = $1 AND device > $2 AND identifier = $4 \
                   ORDER BY device LIMIT $3";
        self.all("installed app", by_page(sql, tenant, page).bind(identifier), |row| row.parse("device")).await
    }

    async fn tell(&self, tenant: &TenantId, device: EntityId, told: Told) -> Result<(), StoreError> {
        // The first statement touches a row when the device is there and what it tells replaces what is (`replaces`).
        let queries = match told {
            Told::Attributes(attributes) => {
                let sql = "INSERT INTO device_inventory (tenant, device, attributes, told, apps) \
                           SELECT tenant, id, $3, $4, 0 FROM device WHERE tenant = $1 AND id = $2 \
                           ON CONFLICT (tenant, device) DO UPDATE SET attributes = excluded.attributes, told = excluded.told \
                           WHERE device_inventory.told IS NULL OR device_inventory.told <= excluded.told OR device_inventory.told > $5";
                let ahead = int(attributes.told.plus(AHEAD_SECONDS).0);
                let query = by_id(sql, tenant, device).bind(json(&attributes)?).bind(int(attributes.told.0));
                vec![query.bind(ahead).into_condition()]
            }
            Told::Apps { told, apps } => {
                let sql = "INSERT INTO device_inventory (tenant, device, apps, apps_told) \
                           SELECT tenant, id, $3, $4 FROM device WHERE tenant = $1 AND id = $2 \
                           ON CONFLICT (tenant, device) DO UPDATE SET apps = excluded.apps, apps_told = excluded.apps_told \
                           WHERE device_inventory.apps_told IS NULL OR device_inventory.apps_told <= excluded.apps_told \
                           OR device_inventory.apps_told > $5";
                let count = i64::try_from(apps.len()).unwrap_or(i64::MAX);
                let ahead = int(told.plus(AHEAD_SECONDS).0);
                let first = by_id(sql, tenant, device).bind(count).bind(int(told.0)).bind(ahead);
                let delete = by_id("DELETE FROM installed_app WHERE tenant = $1 AND device = $2", tenant, device);
                let mut queries = vec![first.into_condition(), delete];
                queries.extend(insert_apps(tenant, device, &apps));
                queries
            }
        };
        match self.pool.commit(queries).await {
            // Something newer is there, or no such device.
            Err(StoreError::Conflict) => Ok(()),
            other => other,
        }
    }

    async fn standing(&self, tenant: &TenantId, device: EntityId) -> Result<Option<Standing>, StoreError> {
        let query = by_id("SELECT * FROM device_compliance WHERE tenant = $1 AND device = $2", tenant, device);
        self.one("standing", query, |row| row.standing()).await
    }

    async fn standings(
        &self,
        tenant: &TenantId,
        verdict: Option<Verdict>,
        page: Page,
    ) -> Result<Vec<Standing>, StoreError> {
        let query = match verdict {
            None => {
                let sql = "SELECT * FROM device_compliance WHERE tenant = $1 AND device > $2 ORDER BY device LIMIT $3";
                by_page(sql, tenant, page)
            }
            Some(verdict) => {
                let sql = "SELECT * FROM device_compliance WHERE tenant = $1 AND device > $2 AND verdict = $4 \
                           ORDER BY device LIMIT $3";
                by_page(sql, tenant, page).bind(verdict.as_str())
            }
        };
        self.all("standing", query, |row| row.standing()).await
    }

    async fn verdicts(&self, tenant: &TenantId) -> Result<Vec<(Verdict, u64)>, StoreError> {
        let sql = "SELECT verdict, COUNT(*) AS devices FROM device_compliance WHERE tenant = $1 GROUP BY verdict";
        let read = |row: &Row<'_>| Ok((row.parse("verdict")?, row.number("devices")?));
        let mut all = self.all("standing", by_tenant(sql, tenant), read).await?;
        all.sort_unstable();
        Ok(all)
    }

    async fn quarantined(&self, tenant: &TenantId) -> Result<Vec<EntityId>, StoreError> {
        let sql = "SELECT c.device FROM device_compliance c JOIN device d ON d.tenant = c.tenant AND d.id = c.device \
                   WHERE c.tenant = $1 AND c.quarantined = 1 AND d.state = 'active' ORDER BY c.device";
        self.all("standing", by_tenant(sql, tenant), |row| row.parse("device")).await
    }
}

fn insert_apps<'a>(
    tenant: &'a TenantId,
    device: EntityId,
    apps: &'a [InstalledApp],
) -> impl Iterator<Item = Query> + 'a {
    let bind = |query: Query, app: &InstalledApp| {
        query.bind(app.identifier.clone()).bind(app.name.clone()).bind(app.version.clone())
    };
    let (whole, rest) = apps.split_at(apps.len() - apps.len() % AT_ONCE);
    let whole = whole.chunks(AT_ONCE).map(move |part| part.iter().fold(by_id(&INSERT_APPS, tenant, device), bind));
    whole.chain(rest.iter().map(move |app| bind(by_id(INSERT_APP, tenant, device), app)))
}

/// Statements of a change, if it is about these.
pub(super) fn change_queries(tenant: &TenantId, change: &Change) -> Result<Vec<Query>, StoreError> {
    Ok(match change {
        Change::PutStanding(standing) => vec![put_standing(standing)?],
        Change::NoteAsked { device, at } => {
            let sql = "INSERT INTO device_inventory (tenant, device, apps, asked) VALUES ($1, $2, 0, $3) \
                       ON CONFLICT (tenant, device) DO UPDATE SET asked = excluded.asked";
            vec![by_id(sql, tenant, *device).bind(int(at.0))]
        }
        _ => Vec::new(),
    })
}

fn put_standing(standing: &Standing) -> Result<Query, StoreError> {
    let sql = "INSERT INTO device_compliance (tenant, device, verdict, quarantined, profile, changed, causes) \
               VALUES ($1, $2, $3, $4, $5, $6, $7) \
               ON CONFLICT (tenant, device) DO UPDATE SET verdict = excluded.verdict, quarantined = excluded.quarantined, \
               profile = excluded.profile, changed = excluded.changed, causes = excluded.causes";
    let query = by_id(sql, &standing.tenant, standing.device)
        .bind(standing.verdict.as_str())
        .bind(i64::from(standing.quarantined))
        .bind(standing.profile.map(|id| id.to_string()))
        .bind(int(standing.changed.0))
        .bind(json(&standing.causes)?);
    Ok(query)
}

impl Row<'_> {
    fn inventory(&self) -> Result<Inventory, StoreError> {
        let attributes = self.text_or_null("attributes")?;
        let attributes = attributes.map(|text| serde_json::from_str(&text)).transpose();
        Ok(Inventory {
            attributes: attributes.map_err(|e| self.corrupt("attributes", e))?,
            apps: self.small("apps")?,
            apps_told: self.time_or_null("apps_told")?,
            asked: self.time_or_null("asked")?,
        })
    }

    fn installed(&self) -> Result<InstalledApp, StoreError> {
        Ok(InstalledApp {
            identifier: self.text("identifier")?,
            name: self.text("name")?,
            version: self.text("version")?,
        })
    }

    fn standing(&self) -> Result<Standing, StoreError> {
        let profile = self.text_or_null("profile")?;
        Ok(Standing {
            tenant: self.parse("tenant")?,
            device: self.parse("device")?,
            verdict: self.parse("verdict")?,
            quarantined: self.number("quarantined")? != 0,
            profile: profile.map(|id| id.parse().map_err(|e| self.corrupt("profile", e))).transpose()?,
            changed: self.time("changed")?,
            causes: self.json("causes")?,
        })
    }
}
