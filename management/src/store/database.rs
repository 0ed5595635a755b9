//! The domain's storage in a database. One code for SQLite and PostgreSQL; see `docs/decisions/0014-database.md`.

use hedgerow_shared::verify::{Route, Rule, Version};
use hedgerow_shared::{EntityId, TenantId, UnixTime};
use hedgerow_uem_core::account::{Device, Email, Node, ServerName, Tenant, Token, User};
use hedgerow_uem_core::activation::ActivationPassword;
use hedgerow_uem_core::audit;
use hedgerow_uem_core::ca::CertificateRecord;
use hedgerow_uem_core::command::Command;
use hedgerow_uem_core::group::{Group, Principal};
use hedgerow_uem_core::licence::Installed;
use hedgerow_uem_core::placement::Placement;
use hedgerow_uem_core::profile::{Category, Profile};
use hedgerow_uem_core::store::{Acknowledgement, Commit, MAX_COMMANDS, Page, Store, StoreError};

use super::managed::{move_command, of_principal};
use super::rows::{Row, int};
use super::sql::{Pool, Query};
use super::writes::{add_audit, change_queries, put_tenant};

/// The database. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Database {
    pub(super) pool: Pool,
}

impl Database {
    /// Whether it answers, asked anew.
    ///
    /// # Errors
    /// It does not, and why.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.pool.execute(Query::new("SELECT 1")).await
    }

    /// Writes everything out and closes the connections; later calls fail.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    #[cfg(test)]
    pub(super) async fn execute_for_test(&self, sql: &'static str) {
        self.pool.execute(Query::new(sql)).await.expect("the statement of a test");
    }

    #[cfg(test)]
    pub(super) async fn text_for_test(&self, sql: &'static str) -> String {
        let rows = self.pool.fetch(Query::new(sql)).await.expect("the question of a test");
        rows[0].get("text").expect("a column named text")
    }

    pub(super) async fn one<T>(
        &self,
        what: &'static str,
        query: Query,
        read: impl Fn(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        self.all(what, query, read).await.map(|all| all.into_iter().next())
    }

    pub(super) async fn all<T>(
        &self,
        what: &'static str,
        query: Query,
        read: impl Fn(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let rows = self.pool.fetch(query).await?;
        rows.iter().map(|row| read(&Row::new(what, row))).collect()
    }
}

pub(super) fn by_tenant(sql: &'static str, tenant: &TenantId) -> Query {
    Query::new(sql).bind(tenant.to_string())
}

pub(super) fn by_id(sql: &'static str, tenant: &TenantId, id: EntityId) -> Query {
    by_tenant(sql, tenant).bind(id.to_string())
}

/// `$2` is the id to begin behind (every id is above the empty text), `$3` the limit.
pub(super) fn by_page(sql: &'static str, tenant: &TenantId, page: Page) -> Query {
    let after = page.after.map(|id| id.to_string()).unwrap_or_default();
    by_tenant(sql, tenant).bind(after).bind(i64::from(page.limit.min(Page::MAX)))
}

impl Store for Database {
    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        self.all("tenant", Query::new("SELECT id FROM tenant ORDER BY id"), |row| row.tenant_id()).await
    }

    async fn tenant(&self, tenant: &TenantId) -> Result<Option<Tenant>, StoreError> {
        self.one("tenant", by_tenant("SELECT * FROM tenant WHERE id = $1", tenant), |row| row.tenant()).await
    }

    async fn user(&self, tenant: &TenantId, id: EntityId) -> Result<Option<User>, StoreError> {
        self.one("user", by_id("SELECT * FROM account WHERE tenant = $1 AND id = $2", tenant, id), |row| row.user())
            .await
    }

    async fn user_by_email(&self, tenant: &TenantId, email: &Email) -> Result<Option<User>, StoreError> {
        let query = by_tenant("SELECT * FROM account WHERE tenant = $1 AND email = $2", tenant).bind(email.to_string());
        self.one("user", query, |row| row.user()).await
    }

    async fn users(&self, tenant: &TenantId, page: Page) -> Result<Vec<User>, StoreError> {
        let sql = "SELECT * FROM account WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3";
        self.all("user", by_page(sql, tenant, page), |row| row.user()).await
    }

    async fn users_like(&self, tenant: &TenantId, begins: &str, limit: u32) -> Result<Vec<User>, StoreError> {
        // Two short walks along an index each, whatever the tenant's size: an OR would have the planner choose.
        let sql = "SELECT * FROM (SELECT * FROM account WHERE tenant = $1 AND email >= $2 AND email < $3 \
                                  ORDER BY email LIMIT $4) AS by_email \
                   UNION \
                   SELECT * FROM (SELECT * FROM account WHERE tenant = $1 AND name_key >= $2 AND name_key < $3 \
                                  ORDER BY name_key, email LIMIT $4) AS by_name \
                   ORDER BY email LIMIT $4";
        // Behind everything that begins so: no text holds the last character there is.
        let behind = format!("{begins}{}", char::MAX);
        let query = by_tenant(sql, tenant).bind(begins).bind(behind).bind(i64::from(limit.min(Page::MAX)));
        self.all("user", query, |row| row.user()).await
    }

    async fn password(&self, tenant: &TenantId, user: EntityId) -> Result<Option<ActivationPassword>, StoreError> {
        let query = by_id("SELECT * FROM activation_password WHERE tenant = $1 AND account = $2", tenant, user);
        self.one("activation password", query, |row| row.password()).await
    }

    async fn passwords(&self, tenant: &TenantId) -> Result<Vec<ActivationPassword>, StoreError> {
        let query = by_tenant("SELECT * FROM activation_password WHERE tenant = $1 ORDER BY account", tenant);
        self.all("activation password", query, |row| row.password()).await
    }

    async fn node(&self, tenant: &TenantId, id: EntityId) -> Result<Option<Node>, StoreError> {
        self.one("node", by_id("SELECT * FROM node WHERE tenant = $1 AND id = $2", tenant, id), |row| row.node()).await
    }

    async fn nodes(&self, tenant: &TenantId, page: Page) -> Result<Vec<Node>, StoreError> {
        let sql = "SELECT * FROM node WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3";
        self.all("node", by_page(sql, tenant, page), |row| row.node()).await
    }

    async fn device(&self, tenant: &TenantId, id: EntityId) -> Result<Option<Device>, StoreError> {
        self.one("device", by_id("SELECT * FROM device WHERE tenant = $1 AND id = $2", tenant, id), |row| row.device())
            .await
    }

    async fn devices(&self, tenant: &TenantId, user: Option<EntityId>, page: Page) -> Result<Vec<Device>, StoreError> {
        let query = match user {
            None => by_page("SELECT * FROM device WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3", tenant, page),
            Some(user) => {
                let sql = "SELECT * FROM device WHERE tenant = $1 AND id > $2 AND account = $4 ORDER BY id LIMIT $3";
                by_page(sql, tenant, page).bind(user.to_string())
            }
        };
        self.all("device", query, |row| row.device()).await
    }

    async fn token(&self, tenant: &TenantId, id: EntityId) -> Result<Option<Token>, StoreError> {
        let query = by_id("SELECT * FROM enrolment_token WHERE tenant = $1 AND id = $2", tenant, id);
        self.one("token", query, |row| row.token()).await
    }

    async fn tokens(&self, tenant: &TenantId, page: Page) -> Result<Vec<Token>, StoreError> {
        let sql = "SELECT * FROM enrolment_token WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3";
        self.all("token", by_page(sql, tenant, page), |row| row.token()).await
    }

    async fn rules(&self, tenant: &TenantId) -> Result<Vec<Rule>, StoreError> {
        let query = by_tenant("SELECT rule FROM access_rule WHERE tenant = $1 ORDER BY position", tenant);
        self.all("access rule", query, |row| row.json("rule")).await
    }

    async fn routes(&self, tenant: &TenantId) -> Result<Vec<Route>, StoreError> {
        let query = by_tenant("SELECT route FROM route WHERE tenant = $1 ORDER BY position", tenant);
        self.all("route", query, |row| row.json("route")).await
    }

    async fn names(&self, tenant: &TenantId) -> Result<Vec<ServerName>, StoreError> {
        let query = by_tenant("SELECT * FROM server_name WHERE tenant = $1 ORDER BY name", tenant);
        self.all("server name", query, |row| row.server_name()).await
    }

    async fn placement(&self, tenant: &TenantId) -> Result<Option<Placement>, StoreError> {
        self.one("placement", by_tenant("SELECT * FROM placement WHERE tenant = $1", tenant), |row| row.json("placed"))
            .await
    }

    async fn licence(&self, tenant: &TenantId) -> Result<Option<Installed>, StoreError> {
        self.one("licence", by_tenant("SELECT * FROM licence WHERE tenant = $1", tenant), |row| row.licence()).await
    }

    async fn active_devices(&self, tenant: &TenantId, user: Option<EntityId>) -> Result<u64, StoreError> {
        let query = match user {
            None => by_tenant("SELECT COUNT(*) AS active FROM device WHERE tenant = $1 AND state = 'active'", tenant),
            Some(user) => {
                let sql =
                    "SELECT COUNT(*) AS active FROM device WHERE tenant = $1 AND account = $2 AND state = 'active'";
                by_id(sql, tenant, user)
            }
        };
        let counted = self.one("number of devices", query, |row| row.number("active")).await?;
        Ok(counted.unwrap_or(0))
    }

    async fn group(&self, tenant: &TenantId, id: EntityId) -> Result<Option<Group>, StoreError> {
        let query = by_id("SELECT * FROM user_group WHERE tenant = $1 AND id = $2", tenant, id);
        self.one("group", query, |row| row.group()).await
    }

    async fn group_by_name(&self, tenant: &TenantId, key: &str) -> Result<Option<Group>, StoreError> {
        let query = by_tenant("SELECT * FROM user_group WHERE tenant = $1 AND name_key = $2", tenant).bind(key);
        self.one("group", query, |row| row.group()).await
    }

    async fn groups(&self, tenant: &TenantId, page: Page) -> Result<Vec<Group>, StoreError> {
        let sql = "SELECT * FROM user_group WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3";
        self.all("group", by_page(sql, tenant, page), |row| row.group()).await
    }

    async fn members(&self, tenant: &TenantId, group: EntityId, page: Page) -> Result<Vec<Principal>, StoreError> {
        let sql = "SELECT member, kind FROM group_member WHERE tenant = $1 AND member > $2 AND user_group = $4 \
                   ORDER BY member LIMIT $3";
        let query = by_page(sql, tenant, page).bind(group.to_string());
        self.all("member", query, |row| row.principal("member")).await
    }

    async fn groups_of(&self, tenant: &TenantId, member: Principal) -> Result<Vec<EntityId>, StoreError> {
        let sql =
            "SELECT user_group FROM group_member WHERE tenant = $1 AND member = $2 AND kind = $3 ORDER BY user_group";
        self.all("member", of_principal(sql, tenant, member), |row| row.parse("user_group")).await
    }

    async fn nesting(&self, tenant: &TenantId) -> Result<Vec<(EntityId, EntityId)>, StoreError> {
        let sql = "SELECT member, user_group FROM group_member WHERE tenant = $1 AND kind = 'group'";
        self.all("member", by_tenant(sql, tenant), |row| Ok((row.parse("member")?, row.parse("user_group")?))).await
    }

    async fn profile(&self, tenant: &TenantId, id: EntityId) -> Result<Option<Profile>, StoreError> {
        let query = by_id("SELECT * FROM profile WHERE tenant = $1 AND id = $2", tenant, id);
        self.one("profile", query, |row| row.profile()).await
    }

    async fn profiles(&self, tenant: &TenantId, category: Category) -> Result<Vec<Profile>, StoreError> {
        let sql = "SELECT * FROM profile WHERE tenant = $1 AND category = $2 ORDER BY place, id";
        self.all("profile", by_tenant(sql, tenant).bind(category.as_str()), |row| row.profile()).await
    }

    async fn default_profiles(&self, tenant: &TenantId) -> Result<Vec<Profile>, StoreError> {
        let sql = "SELECT * FROM profile WHERE tenant = $1 AND is_default = 1 ORDER BY id";
        self.all("profile", by_tenant(sql, tenant), |row| row.profile()).await
    }

    async fn profiles_of(&self, tenant: &TenantId, holder: Principal) -> Result<Vec<Profile>, StoreError> {
        // CROSS JOIN: SQLite would go through all profiles otherwise, to have them in order; PostgreSQL decides by itself.
        let sql = "SELECT p.* FROM profile_assignment a CROSS JOIN profile p \
                   WHERE a.tenant = $1 AND a.holder = $2 AND a.kind = $3 AND p.tenant = a.tenant AND p.id = a.profile \
                   ORDER BY p.id";
        self.all("profile", of_principal(sql, tenant, holder), |row| row.profile()).await
    }

    async fn holders_of(&self, tenant: &TenantId, profile: EntityId) -> Result<Vec<Principal>, StoreError> {
        let sql = "SELECT holder, kind FROM profile_assignment WHERE tenant = $1 AND profile = $2 \
                   ORDER BY kind DESC, holder";
        self.all("assignment", by_id(sql, tenant, profile), |row| row.principal("holder")).await
    }

    async fn command(&self, tenant: &TenantId, id: EntityId) -> Result<Option<Command>, StoreError> {
        let query = by_id("SELECT * FROM device_command WHERE tenant = $1 AND id = $2", tenant, id);
        self.one("command", query, |row| row.command()).await
    }

    async fn commands(&self, tenant: &TenantId, device: EntityId) -> Result<Vec<Command>, StoreError> {
        let sql =
            "SELECT * FROM device_command WHERE tenant = $1 AND device = $2 ORDER BY number DESC, id DESC LIMIT $3";
        let query = by_id(sql, tenant, device).bind(i64::from(MAX_COMMANDS));
        self.all("command", query, |row| row.command()).await
    }

    async fn open_commands(&self, tenant: &TenantId, device: EntityId) -> Result<Vec<Command>, StoreError> {
        let sql = "SELECT * FROM device_command WHERE tenant = $1 AND device = $2 AND completed IS NULL \
                   ORDER BY number, id";
        self.all("command", by_id(sql, tenant, device), |row| row.command()).await
    }

    async fn overdue_commands(&self, tenant: &TenantId, now: UnixTime, limit: u32) -> Result<Vec<Command>, StoreError> {
        let sql = "SELECT * FROM device_command WHERE tenant = $1 AND completed IS NULL AND expires <= $2 \
                   ORDER BY expires LIMIT $3";
        let query = by_tenant(sql, tenant).bind(int(now.0)).bind(i64::from(limit));
        self.all("command", query, |row| row.command()).await
    }

    async fn move_command(&self, from: &Command, to: Command) -> Result<(), StoreError> {
        self.pool.commit(vec![move_command(from, &to)?]).await
    }

    async fn revoked(&self, tenant: &TenantId, now: UnixTime) -> Result<Vec<EntityId>, StoreError> {
        // The devices of inactive users by way of those: CROSS JOIN, as in `profiles_of`.
        let sql = "SELECT d.id AS id FROM device d WHERE d.tenant = $1 AND d.state = 'revoked' AND (d.not_after > $2 OR EXISTS \
                   (SELECT 1 FROM certificate c WHERE c.tenant = d.tenant AND c.holder = d.id AND c.not_after > $2)) \
                   UNION SELECT d.id AS id FROM account a CROSS JOIN device d \
                   WHERE a.tenant = $1 AND a.active = 0 AND d.tenant = a.tenant AND d.account = a.id AND (d.not_after > $2 OR EXISTS \
                   (SELECT 1 FROM certificate c WHERE c.tenant = d.tenant AND c.holder = d.id AND c.not_after > $2)) \
                   UNION SELECT n.id AS id FROM node n \
                   WHERE n.tenant = $1 AND n.state = 'revoked' AND (n.not_after > $2 OR EXISTS \
                   (SELECT 1 FROM certificate c WHERE c.tenant = n.tenant AND c.holder = n.id AND c.not_after > $2)) \
                   ORDER BY id";
        self.all("revocation", by_tenant(sql, tenant).bind(int(now.0)), |row| row.parse("id")).await
    }

    async fn certificates(&self, tenant: &TenantId, holder: EntityId) -> Result<Vec<CertificateRecord>, StoreError> {
        let sql = "SELECT * FROM certificate WHERE tenant = $1 AND holder = $2 ORDER BY not_before, serial";
        self.all("certificate", by_id(sql, tenant, holder), |row| row.certificate()).await
    }

    async fn audit(&self, tenant: &TenantId, after: u64, limit: u32) -> Result<Vec<audit::Record>, StoreError> {
        let sql = "SELECT * FROM audit WHERE tenant = $1 AND number > $2 ORDER BY number LIMIT $3";
        let query = by_tenant(sql, tenant).bind(int(after)).bind(i64::from(limit.min(Page::MAX)));
        self.all("audit record", query, |row| row.audit()).await
    }

    async fn acknowledgements(&self, tenant: &TenantId) -> Result<Vec<Acknowledgement>, StoreError> {
        let query = by_tenant("SELECT * FROM acknowledgement WHERE tenant = $1 ORDER BY holder", tenant);
        self.all("acknowledgement", query, |row| row.acknowledgement()).await
    }

    async fn commit(&self, commit: Commit) -> Result<(), StoreError> {
        let tenant = &commit.tenant.id;
        let mut queries = vec![put_tenant(&commit.tenant, commit.expected)?.into_condition()];
        for change in &commit.changes {
            queries.extend(change_queries(tenant, change)?);
        }
        queries.extend(commit.audit.iter().map(|record| add_audit(tenant, record)));
        self.pool.commit(queries).await
    }

    async fn seen(&self, tenant: &TenantId, id: EntityId, now: UnixTime) -> Result<(), StoreError> {
        for sql in [
            "UPDATE device SET last_seen = $3 WHERE tenant = $1 AND id = $2",
            "UPDATE node SET last_seen = $3 WHERE tenant = $1 AND id = $2",
        ] {
            self.pool.execute(by_id(sql, tenant, id).bind(int(now.0))).await?;
        }
        Ok(())
    }

    async fn obeys(&self, tenant: &TenantId, device: EntityId, version: Version) -> Result<(), StoreError> {
        let sql = "UPDATE device SET obeys_epoch = $3, obeys_version = $4 WHERE tenant = $1 AND id = $2";
        let query = by_id(sql, tenant, device).bind(int(version.epoch)).bind(int(version.version));
        self.pool.execute(query).await
    }

    async fn acknowledge(&self, tenant: &TenantId, ack: Acknowledgement) -> Result<(), StoreError> {
        let sql = "INSERT INTO acknowledgement (tenant, holder, epoch, version, time) \
                   SELECT id, $2, $3, $4, $5 FROM tenant WHERE id = $1 \
                   ON CONFLICT (tenant, holder) DO UPDATE SET epoch = excluded.epoch, version = excluded.version, time = excluded.time";
        let query = by_tenant(sql, tenant).bind(ack.holder).bind(int(ack.version.epoch)).bind(int(ack.version.version));
        self.pool.execute(query.bind(int(ack.time.0))).await
    }
}
