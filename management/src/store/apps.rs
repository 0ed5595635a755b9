//! Apps in the database.

use hedgerow_shared::{EntityId, TenantId};
use hedgerow_uem_core::app::{App, AppConfig, AppGroup, Assignment, Listing, Target};
use hedgerow_uem_core::group::{Principal, name_key};
use hedgerow_uem_core::profile::Platform;
use hedgerow_uem_core::store::{AppChange, AppStore, Page, StoreError};

use super::database::{Database, by_id, by_page, by_tenant};
use super::managed::of_principal;
use super::rows::{Row, int, json};
use super::sql::Query;

impl AppStore for Database {
    async fn app(&self, tenant: &TenantId, id: EntityId) -> Result<Option<App>, StoreError> {
        self.one("app", by_id("SELECT * FROM app WHERE tenant = $1 AND id = $2", tenant, id), |row| row.app()).await
    }

    async fn app_by_identifier(
        &self,
        tenant: &TenantId,
        platform: Platform,
        identifier: &str,
    ) -> Result<Option<App>, StoreError> {
        let sql = "SELECT * FROM app WHERE tenant = $1 AND platform = $2 AND identifier = $3";
        let query = by_tenant(sql, tenant).bind(platform.as_str()).bind(identifier);
        self.one("app", query, |row| row.app()).await
    }

    async fn apps(&self, tenant: &TenantId, page: Page) -> Result<Vec<App>, StoreError> {
        let sql = "SELECT * FROM app WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3";
        self.all("app", by_page(sql, tenant, page), |row| row.app()).await
    }

    async fn count_apps(&self, tenant: &TenantId) -> Result<u64, StoreError> {
        let query = by_tenant("SELECT COUNT(*) AS apps FROM app WHERE tenant = $1", tenant);
        Ok(self.one("app", query, |row| row.number("apps")).await?.unwrap_or(0))
    }

    async fn app_config(&self, tenant: &TenantId, id: EntityId) -> Result<Option<AppConfig>, StoreError> {
        let query = by_id("SELECT * FROM app_config WHERE tenant = $1 AND id = $2", tenant, id);
        self.one("app configuration", query, |row| row.app_config()).await
    }

    async fn app_configs(&self, tenant: &TenantId, app: EntityId) -> Result<Vec<AppConfig>, StoreError> {
        let sql = "SELECT * FROM app_config WHERE tenant = $1 AND app = $2 ORDER BY place, id";
        self.all("app configuration", by_id(sql, tenant, app), |row| row.app_config()).await
    }

    async fn app_group(&self, tenant: &TenantId, id: EntityId) -> Result<Option<AppGroup>, StoreError> {
        let query = by_id("SELECT * FROM app_group WHERE tenant = $1 AND id = $2", tenant, id);
        self.one("group of apps", query, |row| row.app_group()).await
    }

    async fn app_group_by_name(&self, tenant: &TenantId, key: &str) -> Result<Option<AppGroup>, StoreError> {
        let query = by_tenant("SELECT * FROM app_group WHERE tenant = $1 AND name_key = $2", tenant).bind(key);
        self.one("group of apps", query, |row| row.app_group()).await
    }

    async fn app_groups(&self, tenant: &TenantId, page: Page) -> Result<Vec<AppGroup>, StoreError> {
        let sql = "SELECT * FROM app_group WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3";
        self.all("group of apps", by_page(sql, tenant, page), |row| row.app_group()).await
    }

    async fn apps_in_group(&self, tenant: &TenantId, group: EntityId) -> Result<Vec<App>, StoreError> {
        // CROSS JOIN: SQLite would go through the whole catalogue otherwise, to have it in order.
        let sql = "SELECT a.* FROM app_group_member m CROSS JOIN app a \
                   WHERE m.tenant = $1 AND m.app_group = $2 AND a.tenant = m.tenant AND a.id = m.app ORDER BY a.id";
        self.all("app", by_id(sql, tenant, group), |row| row.app()).await
    }

    async fn app_assignments_of(&self, tenant: &TenantId, holder: Principal) -> Result<Vec<Assignment>, StoreError> {
        let sql = "SELECT * FROM app_assignment WHERE tenant = $1 AND holder = $2 AND holder_kind = $3 ORDER BY target";
        self.all("assignment", of_principal(sql, tenant, holder), |row| row.app_assignment()).await
    }

    async fn app_assignments(&self, tenant: &TenantId, target: Target) -> Result<Vec<Assignment>, StoreError> {
        let sql = "SELECT * FROM app_assignment WHERE tenant = $1 AND target = $2 AND target_kind = $3 ORDER BY holder";
        self.all("assignment", by_id(sql, tenant, target.id()).bind(target.kind()), |row| row.app_assignment()).await
    }

    async fn listings(&self, tenant: &TenantId, platform: Option<Platform>) -> Result<Vec<Listing>, StoreError> {
        let query = match platform {
            None => by_tenant("SELECT * FROM app_listing WHERE tenant = $1", tenant),
            Some(platform) => by_tenant("SELECT * FROM app_listing WHERE tenant = $1 AND platform = $2", tenant)
                .bind(platform.as_str()),
        };
        let mut all = self.all("listing", query, |row| row.listing()).await?;
        // In the order of the domain's words, which is not that of their texts.
        all.sort();
        Ok(all)
    }
}

/// Statements of a change of apps.
pub(super) fn change_queries(tenant: &TenantId, change: &AppChange) -> Result<Vec<Query>, StoreError> {
    let delete = |sql, id| by_id(sql, tenant, id);
    Ok(match change {
        AppChange::Put(app) => vec![put_app(app)?],
        AppChange::Delete(id) => vec![
            delete("DELETE FROM app_assignment WHERE tenant = $1 AND target = $2 AND target_kind = 'app'", *id),
            delete("DELETE FROM app_group_member WHERE tenant = $1 AND app = $2", *id),
            delete("DELETE FROM app_config WHERE tenant = $1 AND app = $2", *id),
            delete("DELETE FROM app WHERE tenant = $1 AND id = $2", *id),
        ],
        AppChange::PutConfig(config) => vec![put_config(config)?],
        AppChange::DeleteConfig(id) => vec![
            delete("UPDATE app_assignment SET config = NULL WHERE tenant = $1 AND config = $2", *id),
            delete("DELETE FROM app_config WHERE tenant = $1 AND id = $2", *id),
        ],
        AppChange::PutGroup(group) => vec![put_group(group)],
        AppChange::DeleteGroup(id) => vec![
            delete("DELETE FROM app_assignment WHERE tenant = $1 AND target = $2 AND target_kind = 'group'", *id),
            delete("DELETE FROM app_group_member WHERE tenant = $1 AND app_group = $2", *id),
            delete("DELETE FROM app_group WHERE tenant = $1 AND id = $2", *id),
        ],
        AppChange::PutMember { group, app } => {
            let sql = "INSERT INTO app_group_member (tenant, app_group, app) VALUES ($1, $2, $3) \
                       ON CONFLICT (tenant, app_group, app) DO NOTHING";
            vec![by_id(sql, tenant, *group).bind(app.to_string())]
        }
        AppChange::DeleteMember { group, app } => {
            let sql = "DELETE FROM app_group_member WHERE tenant = $1 AND app_group = $2 AND app = $3";
            vec![by_id(sql, tenant, *group).bind(app.to_string())]
        }
        AppChange::Assign(one) => vec![assign(tenant, one)],
        AppChange::Unassign { target, holder } => {
            let sql = "DELETE FROM app_assignment WHERE tenant = $1 AND target = $2 AND holder = $3";
            vec![by_id(sql, tenant, target.id()).bind(holder.id().to_string())]
        }
        AppChange::List(entry) => {
            let sql = "INSERT INTO app_listing (tenant, list, platform, identifier) VALUES ($1, $2, $3, $4) \
                       ON CONFLICT (tenant, platform, list, identifier) DO NOTHING";
            vec![of_listing(sql, tenant, entry)]
        }
        AppChange::Unlist(entry) => {
            let sql = "DELETE FROM app_listing WHERE tenant = $1 AND list = $2 AND platform = $3 AND identifier = $4";
            vec![of_listing(sql, tenant, entry)]
        }
    })
}

fn put_app(app: &App) -> Result<Query, StoreError> {
    let sql = "INSERT INTO app (tenant, id, platform, identifier, name, vendor, versions, source, created, modified) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
               ON CONFLICT (tenant, id) DO UPDATE SET name = excluded.name, vendor = excluded.vendor, \
               versions = excluded.versions, source = excluded.source, modified = excluded.modified";
    let query = by_id(sql, &app.tenant, app.id)
        .bind(app.platform.as_str())
        .bind(app.identifier.clone())
        .bind(app.name.clone())
        .bind(app.vendor.clone())
        .bind(json(&app.versions)?)
        .bind(json(&app.source)?)
        .bind(int(app.created.0))
        .bind(int(app.modified.0));
    Ok(query)
}

fn put_config(config: &AppConfig) -> Result<Query, StoreError> {
    let sql = "INSERT INTO app_config (tenant, id, app, name, place, settings) VALUES ($1, $2, $3, $4, $5, $6) \
               ON CONFLICT (tenant, id) DO UPDATE SET name = excluded.name, place = excluded.place, \
               settings = excluded.settings";
    let query = by_id(sql, &config.tenant, config.id).bind(config.app.to_string()).bind(config.name.clone());
    Ok(query.bind(i64::from(config.rank)).bind(json(&config.settings)?))
}

fn put_group(group: &AppGroup) -> Query {
    let sql = "INSERT INTO app_group (tenant, id, name, name_key, description, created) VALUES ($1, $2, $3, $4, $5, $6) \
               ON CONFLICT (tenant, id) DO UPDATE SET name = excluded.name, name_key = excluded.name_key, \
               description = excluded.description";
    by_id(sql, &group.tenant, group.id)
        .bind(group.name.clone())
        .bind(name_key(&group.name))
        .bind(group.description.clone())
        .bind(int(group.created.0))
}

fn assign(tenant: &TenantId, one: &Assignment) -> Query {
    let sql = "INSERT INTO app_assignment (tenant, target, target_kind, holder, holder_kind, disposition, config) \
               VALUES ($1, $2, $3, $4, $5, $6, $7) \
               ON CONFLICT (tenant, target, holder) DO UPDATE SET disposition = excluded.disposition, config = excluded.config";
    by_id(sql, tenant, one.target.id())
        .bind(one.target.kind())
        .bind(one.holder.id().to_string())
        .bind(one.holder.kind())
        .bind(one.disposition.as_str())
        .bind(one.config.map(|id| id.to_string()))
}

fn of_listing(sql: &'static str, tenant: &TenantId, entry: &Listing) -> Query {
    by_tenant(sql, tenant).bind(entry.list.as_str()).bind(entry.platform.as_str()).bind(entry.identifier.clone())
}

impl Row<'_> {
    fn app(&self) -> Result<App, StoreError> {
        Ok(App {
            tenant: self.parse("tenant")?,
            id: self.parse("id")?,
            platform: self.parse("platform")?,
            identifier: self.text("identifier")?,
            name: self.text("name")?,
            vendor: self.text("vendor")?,
            versions: self.json("versions")?,
            source: self.json("source")?,
            created: self.time("created")?,
            modified: self.time("modified")?,
        })
    }

    fn app_config(&self) -> Result<AppConfig, StoreError> {
        Ok(AppConfig {
            tenant: self.parse("tenant")?,
            id: self.parse("id")?,
            app: self.parse("app")?,
            name: self.text("name")?,
            rank: self.small("place")?,
            settings: self.json("settings")?,
        })
    }

    fn app_group(&self) -> Result<AppGroup, StoreError> {
        Ok(AppGroup {
            tenant: self.parse("tenant")?,
            id: self.parse("id")?,
            name: self.text("name")?,
            description: self.text("description")?,
            created: self.time("created")?,
        })
    }

    fn app_assignment(&self) -> Result<Assignment, StoreError> {
        let (target, holder) = (self.parse("target")?, self.parse("holder")?);
        let target = match self.text("target_kind")?.as_str() {
            "app" => Target::App(target),
            "group" => Target::Group(target),
            _ => return Err(self.corrupt("target_kind", "unknown word")),
        };
        let holder = match self.text("holder_kind")?.as_str() {
            "user" => Principal::User(holder),
            "group" => Principal::Group(holder),
            _ => return Err(self.corrupt("holder_kind", "unknown word")),
        };
        let config = self.text_or_null("config")?;
        let config = config.map(|id| id.parse().map_err(|e| self.corrupt("config", e))).transpose()?;
        Ok(Assignment { target, holder, disposition: self.parse("disposition")?, config })
    }

    fn listing(&self) -> Result<Listing, StoreError> {
        Ok(Listing {
            list: self.parse("list")?,
            platform: self.parse("platform")?,
            identifier: self.text("identifier")?,
        })
    }
}
