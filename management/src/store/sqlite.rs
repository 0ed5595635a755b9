//! The domain's storage in SQLite: write-ahead log, every commit on disk before it is answered, one writer at a time.

use std::path::Path;
use std::time::Duration;

use hedgerow_shared::verify::{Route, Rule};
use hedgerow_shared::{EntityId, TenantId, UnixTime};
use hedgerow_uem_core::account::{Device, Email, Node, ServerName, Tenant, Token, User};
use hedgerow_uem_core::activation::ActivationPassword;
use hedgerow_uem_core::audit;
use hedgerow_uem_core::ca::CertificateRecord;
use hedgerow_uem_core::store::{Acknowledgement, Change, Commit, Page, Store, StoreError};
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Sqlite as Db, Transaction};

use super::directory::OpenError;
use super::rows::{Row, base64, device_state, int, json, node_state, time};

/// Connections: writers take turns anyway, the others read.
const CONNECTIONS: u32 = 4;
/// How long a commit waits for another one, and a request for a connection.
const WAIT: Duration = Duration::from_secs(10);

type Query = sqlx::query::Query<'static, Db, SqliteArguments>;

/// The database. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Sqlite {
    pool: SqlitePool,
}

impl Sqlite {
    /// Opens the file, which must exist, and brings its tables up to date.
    pub(super) async fn open(path: &Path) -> Result<Self, OpenError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            // What was answered survives a power cut: a device must not hold a certificate that the core forgot.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(WAIT);
        let database = |source| OpenError::Database { path: path.to_owned(), source };
        let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(WAIT).connect_with(options);
        let pool = pool.await.map_err(database)?;
        let migrations = sqlx::migrate!("./migrations").run(&pool).await;
        migrations.map_err(|source| OpenError::Migration { path: path.to_owned(), source })?;
        Ok(Self { pool })
    }

    /// Writes everything out and closes the connections; later calls fail.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    #[cfg(test)]
    pub(super) async fn execute_for_test(&self, sql: &'static str) {
        sqlx::query(sql).execute(&self.pool).await.expect("the statement of a test");
    }

    async fn one<T>(
        &self,
        what: &'static str,
        query: Query,
        read: impl Fn(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let row = query.fetch_optional(&self.pool).await.map_err(backend)?;
        row.map(|row| read(&Row::new(what, &row))).transpose()
    }

    async fn all<T>(
        &self,
        what: &'static str,
        query: Query,
        read: impl Fn(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let rows: Vec<SqliteRow> = query.fetch_all(&self.pool).await.map_err(backend)?;
        rows.iter().map(|row| read(&Row::new(what, row))).collect()
    }
}

fn backend(error: sqlx::Error) -> StoreError {
    StoreError::Backend(Box::new(error))
}

fn by_tenant(sql: &'static str, tenant: &TenantId) -> Query {
    sqlx::query(sql).bind(tenant.to_string())
}

fn by_id(sql: &'static str, tenant: &TenantId, id: EntityId) -> Query {
    by_tenant(sql, tenant).bind(id.to_string())
}

/// `$2` is the id to begin behind (every id is above the empty text), `$3` the limit.
fn by_page(sql: &'static str, tenant: &TenantId, page: Page) -> Query {
    let after = page.after.map(|id| id.to_string()).unwrap_or_default();
    by_tenant(sql, tenant).bind(after).bind(i64::from(page.limit.min(Page::MAX)))
}

impl Store for Sqlite {
    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        self.all("tenant", sqlx::query("SELECT id FROM tenant ORDER BY id"), |row| row.tenant_id()).await
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

    async fn revoked(&self, tenant: &TenantId, now: UnixTime) -> Result<Vec<EntityId>, StoreError> {
        let sql = "SELECT d.id AS id FROM device d JOIN account a ON a.tenant = d.tenant AND a.id = d.account \
                   WHERE d.tenant = $1 AND d.not_after > $2 AND (d.state = 'revoked' OR a.active = 0) \
                   UNION SELECT n.id AS id FROM node n WHERE n.tenant = $1 AND n.not_after > $2 AND n.state = 'revoked' \
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
        // IMMEDIATE takes the writer's place at once, so that what follows cannot lose it half-way.
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(backend)?;
        let tenant = commit.tenant.id.clone();
        let done = run(&mut transaction, put_tenant(&commit.tenant, commit.expected)?).await?;
        if done != 1 {
            // Dropping the transaction rolls it back.
            return Err(StoreError::Conflict);
        }
        for change in &commit.changes {
            for query in change_queries(&tenant, change)? {
                run(&mut transaction, query).await?;
            }
        }
        for record in &commit.audit {
            run(&mut transaction, add_audit(&tenant, record)).await?;
        }
        transaction.commit().await.map_err(backend)
    }

    async fn seen(&self, tenant: &TenantId, id: EntityId, now: UnixTime) -> Result<(), StoreError> {
        for sql in [
            "UPDATE device SET last_seen = $3 WHERE tenant = $1 AND id = $2",
            "UPDATE node SET last_seen = $3 WHERE tenant = $1 AND id = $2",
        ] {
            by_id(sql, tenant, id).bind(int(now.0)).execute(&self.pool).await.map_err(backend)?;
        }
        Ok(())
    }

    async fn acknowledge(&self, tenant: &TenantId, ack: Acknowledgement) -> Result<(), StoreError> {
        let sql = "INSERT INTO acknowledgement (tenant, holder, epoch, version, time) \
                   SELECT id, $2, $3, $4, $5 FROM tenant WHERE id = $1 \
                   ON CONFLICT (tenant, holder) DO UPDATE SET epoch = excluded.epoch, version = excluded.version, time = excluded.time";
        let query = by_tenant(sql, tenant).bind(ack.holder).bind(int(ack.version.epoch)).bind(int(ack.version.version));
        query.bind(int(ack.time.0)).execute(&self.pool).await.map_err(backend).map(drop)
    }
}

async fn run(transaction: &mut Transaction<'_, Db>, query: Query) -> Result<u64, StoreError> {
    query.execute(&mut **transaction).await.map(|done| done.rows_affected()).map_err(backend)
}

/// Touches one row when the revision is the expected one, none otherwise.
fn put_tenant(tenant: &Tenant, expected: Option<u64>) -> Result<Query, StoreError> {
    let sql = match expected {
        None => {
            "INSERT INTO tenant (id, name, created, revision, config_epoch, config_version, config_issued, ca_certificate, \
             ca_key, config_certificate, config_key, settings, default_route, audit_number, audit_hash) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) ON CONFLICT (id) DO NOTHING"
        }
        Some(_) => {
            "UPDATE tenant SET name = $2, created = $3, revision = $4, config_epoch = $5, config_version = $6, \
             config_issued = $7, ca_certificate = $8, ca_key = $9, config_certificate = $10, config_key = $11, \
             settings = $12, default_route = $13, audit_number = $14, audit_hash = $15 WHERE id = $1 AND revision = $16"
        }
    };
    let query = by_tenant(sql, &tenant.id)
        .bind(tenant.name.clone())
        .bind(int(tenant.created.0))
        .bind(int(tenant.revision))
        .bind(int(tenant.config.epoch))
        .bind(int(tenant.config.version))
        .bind(int(tenant.config_issued.0))
        .bind(base64(&tenant.ca_certificate))
        .bind(base64(&tenant.ca_key.0))
        .bind(base64(&tenant.config_certificate))
        .bind(base64(&tenant.config_key.0))
        .bind(json(&tenant.settings)?)
        .bind(tenant.default_route.to_string())
        .bind(int(tenant.audit.number))
        .bind(base64(&tenant.audit.hash));
    Ok(match expected {
        None => query,
        Some(revision) => query.bind(int(revision)),
    })
}

fn change_queries(tenant: &TenantId, change: &Change) -> Result<Vec<Query>, StoreError> {
    Ok(match change {
        Change::PutUser(user) => vec![put_user(user)],
        Change::PutPassword(password) => vec![put_password(password)],
        Change::DeletePassword(user) => {
            vec![by_id("DELETE FROM activation_password WHERE tenant = $1 AND account = $2", tenant, *user)]
        }
        Change::PutNode(node) => vec![put_node(node)?],
        Change::PutDevice(device) => vec![put_device(device)],
        Change::PutToken(token) => vec![put_token(token)?],
        Change::AddCertificate(certificate) => vec![add_certificate(tenant, certificate)],
        Change::SetRules(rules) => {
            let delete = by_tenant("DELETE FROM access_rule WHERE tenant = $1", tenant);
            let insert = "INSERT INTO access_rule (tenant, position, rule) VALUES ($1, $2, $3)";
            replace_list(tenant, delete, insert, rules)?
        }
        Change::SetRoutes(routes) => {
            let delete = by_tenant("DELETE FROM route WHERE tenant = $1", tenant);
            let insert = "INSERT INTO route (tenant, position, route) VALUES ($1, $2, $3)";
            replace_list(tenant, delete, insert, routes)?
        }
        Change::PutName(name) => vec![put_name(name)],
        Change::DeleteName(name) => {
            vec![by_tenant("DELETE FROM server_name WHERE tenant = $1 AND name = $2", tenant).bind(name.clone())]
        }
    })
}

fn put_user(user: &User) -> Query {
    let sql = "INSERT INTO account (tenant, id, email, display_name, active, created) VALUES ($1, $2, $3, $4, $5, $6) \
               ON CONFLICT (tenant, id) DO UPDATE SET email = excluded.email, display_name = excluded.display_name, \
               active = excluded.active";
    let query = by_id(sql, &user.tenant, user.id).bind(user.email.to_string()).bind(user.display_name.clone());
    query.bind(i64::from(user.active)).bind(int(user.created.0))
}

fn put_password(password: &ActivationPassword) -> Query {
    let sql = "INSERT INTO activation_password (tenant, account, id, sealed, created, expires, wrong) \
               VALUES ($1, $2, $3, $4, $5, $6, $7) \
               ON CONFLICT (tenant, account) DO UPDATE SET id = excluded.id, sealed = excluded.sealed, \
               created = excluded.created, expires = excluded.expires, wrong = excluded.wrong";
    by_id(sql, &password.tenant, password.user)
        .bind(password.id.to_string())
        .bind(password.sealed.as_deref().map(base64))
        .bind(int(password.created.0))
        .bind(int(password.expires.0))
        .bind(i64::from(password.wrong))
}

fn put_device(device: &Device) -> Query {
    let sql = "INSERT INTO device (tenant, id, account, name, platform, state, created, revoked, last_seen, \
               serial, fingerprint, not_before, not_after) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
               ON CONFLICT (tenant, id) DO UPDATE SET account = excluded.account, name = excluded.name, \
               platform = excluded.platform, state = excluded.state, revoked = excluded.revoked, \
               last_seen = excluded.last_seen, serial = excluded.serial, fingerprint = excluded.fingerprint, \
               not_before = excluded.not_before, not_after = excluded.not_after";
    let query = by_id(sql, &device.tenant, device.id)
        .bind(device.user.to_string())
        .bind(device.name.clone())
        .bind(device.platform.clone())
        .bind(device_state(device.state))
        .bind(int(device.created.0))
        .bind(time(device.revoked))
        .bind(time(device.last_seen));
    bind_certificate(query, &device.certificate)
}

fn put_node(node: &Node) -> Result<Query, StoreError> {
    let sql = "INSERT INTO node (tenant, id, name, server_group, origins, state, created, revoked, last_seen, \
               serial, fingerprint, not_before, not_after) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
               ON CONFLICT (tenant, id) DO UPDATE SET name = excluded.name, server_group = excluded.server_group, \
               origins = excluded.origins, state = excluded.state, revoked = excluded.revoked, \
               last_seen = excluded.last_seen, serial = excluded.serial, fingerprint = excluded.fingerprint, \
               not_before = excluded.not_before, not_after = excluded.not_after";
    let query = by_id(sql, &node.tenant, node.id)
        .bind(node.name.clone())
        .bind(node.group.to_string())
        .bind(json(&node.origins)?)
        .bind(node_state(node.state))
        .bind(int(node.created.0))
        .bind(time(node.revoked))
        .bind(time(node.last_seen));
    Ok(bind_certificate(query, &node.certificate))
}

fn bind_certificate(query: Query, certificate: &CertificateRecord) -> Query {
    query
        .bind(certificate.serial.clone())
        .bind(certificate.fingerprint.clone())
        .bind(int(certificate.not_before.0))
        .bind(int(certificate.not_after.0))
}

fn put_token(token: &Token) -> Result<Query, StoreError> {
    let sql = "INSERT INTO enrolment_token (tenant, id, secret_hash, name, server_group, origins, created, expires, used, \
               used_by, revoked) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
               ON CONFLICT (tenant, id) DO UPDATE SET used = excluded.used, used_by = excluded.used_by, \
               revoked = excluded.revoked";
    let query = by_id(sql, &token.tenant, token.id)
        .bind(base64(&token.secret_hash))
        .bind(token.name.clone())
        .bind(token.group.to_string())
        .bind(json(&token.origins)?)
        .bind(int(token.created.0))
        .bind(int(token.expires.0))
        .bind(time(token.used.map(|(at, _)| at)))
        .bind(token.used.map(|(_, node)| node.to_string()))
        .bind(time(token.revoked));
    Ok(query)
}

fn put_name(name: &ServerName) -> Query {
    let sql = "INSERT INTO server_name (tenant, name, origin, created) VALUES ($1, $2, $3, $4) \
               ON CONFLICT (tenant, name) DO UPDATE SET origin = excluded.origin";
    by_tenant(sql, &name.tenant).bind(name.name.clone()).bind(name.origin.as_str()).bind(int(name.created.0))
}

fn add_certificate(tenant: &TenantId, certificate: &CertificateRecord) -> Query {
    let sql = "INSERT INTO certificate (tenant, holder, role, serial, fingerprint, not_before, not_after) \
               VALUES ($1, $2, $3, $4, $5, $6, $7)";
    bind_certificate(by_id(sql, tenant, certificate.holder).bind(certificate.role.as_str()), certificate)
}

fn replace_list<T: serde::Serialize>(
    tenant: &TenantId,
    delete: Query,
    insert: &'static str,
    entries: &[T],
) -> Result<Vec<Query>, StoreError> {
    let mut queries = vec![delete];
    for (position, entry) in (0i64..).zip(entries) {
        queries.push(by_tenant(insert, tenant).bind(position).bind(json(entry)?));
    }
    Ok(queries)
}

fn add_audit(tenant: &TenantId, record: &audit::Record) -> Query {
    let sql = "INSERT INTO audit (tenant, number, time, actor, action, subject, outcome, detail, hash) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    by_tenant(sql, tenant)
        .bind(int(record.number))
        .bind(int(record.time.0))
        .bind(record.actor.clone())
        .bind(record.action.clone())
        .bind(record.subject.clone())
        .bind(record.outcome.as_str())
        .bind(record.detail.clone())
        .bind(base64(&record.hash))
}
