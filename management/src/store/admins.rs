//! Administrators and roles in the database.

use hedgerow_shared::{EntityId, TenantId};
use hedgerow_uem_core::account::User;
use hedgerow_uem_core::admin::{Admin, LoginPassword, Role, RoleId};
use hedgerow_uem_core::store::{AdminChange, AdminStore, StoreError};

use super::database::{Database, by_id, by_tenant};
use super::rows::{Row, base64, int, json, time};
use super::sql::Query;

impl AdminStore for Database {
    async fn admin(&self, tenant: &TenantId, user: EntityId) -> Result<Option<Admin>, StoreError> {
        let query = by_id("SELECT * FROM administrator WHERE tenant = $1 AND account = $2", tenant, user);
        self.one("administrator", query, |row| row.admin()).await
    }

    async fn admins(&self, tenant: &TenantId) -> Result<Vec<Admin>, StoreError> {
        let query = by_tenant("SELECT * FROM administrator WHERE tenant = $1 ORDER BY account", tenant);
        self.all("administrator", query, |row| row.admin()).await
    }

    async fn role(&self, tenant: &TenantId, id: EntityId) -> Result<Option<Role>, StoreError> {
        let query = by_id("SELECT * FROM admin_role WHERE tenant = $1 AND id = $2", tenant, id);
        self.one("role", query, |row| row.role()).await
    }

    async fn roles(&self, tenant: &TenantId) -> Result<Vec<Role>, StoreError> {
        let query = by_tenant("SELECT * FROM admin_role WHERE tenant = $1 ORDER BY id", tenant);
        self.all("role", query, |row| row.role()).await
    }

    async fn user_by_external(
        &self,
        tenant: &TenantId,
        directory: EntityId,
        external: &str,
    ) -> Result<Option<User>, StoreError> {
        let sql = "SELECT * FROM account WHERE tenant = $1 AND directory = $2 AND external = $3";
        self.one("user", by_id(sql, tenant, directory).bind(external), |row| row.user()).await
    }
}

/// Statements of a change of administrators.
pub(super) fn change_queries(tenant: &TenantId, change: &AdminChange) -> Result<Vec<Query>, StoreError> {
    Ok(match change {
        AdminChange::Put(admin) => vec![put_admin(admin)],
        AdminChange::Delete(user) => {
            vec![by_id("DELETE FROM administrator WHERE tenant = $1 AND account = $2", tenant, *user)]
        }
        AdminChange::PutRole(role) => {
            let sql = "INSERT INTO admin_role (tenant, id, name, permissions, user_groups) VALUES ($1, $2, $3, $4, $5) \
                       ON CONFLICT (tenant, id) DO UPDATE SET name = excluded.name, permissions = excluded.permissions, \
                       user_groups = excluded.user_groups";
            let query = by_tenant(sql, tenant).bind(role.id.to_string()).bind(role.name.clone());
            vec![query.bind(json(&role.permissions)?).bind(json(&role.groups)?)]
        }
        AdminChange::DeleteRole(id) => {
            vec![by_id("DELETE FROM admin_role WHERE tenant = $1 AND id = $2", tenant, *id)]
        }
    })
}

fn put_admin(admin: &Admin) -> Query {
    let sql = "INSERT INTO administrator (tenant, account, role, created, last_sign_in, sealed, must_change, password_set) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
               ON CONFLICT (tenant, account) DO UPDATE SET role = excluded.role, last_sign_in = excluded.last_sign_in, \
               sealed = excluded.sealed, must_change = excluded.must_change, password_set = excluded.password_set";
    let password = admin.password.as_ref();
    by_id(sql, &admin.tenant, admin.user)
        .bind(admin.role.to_string())
        .bind(int(admin.created.0))
        .bind(time(admin.last_sign_in))
        .bind(password.map(|p| base64(&p.sealed)))
        .bind(i64::from(password.is_some_and(|p| p.must_change)))
        .bind(time(password.map(|p| p.set)))
}

impl Row<'_> {
    fn admin(&self) -> Result<Admin, StoreError> {
        let password = match (self.bytes_or_null("sealed")?, self.time_or_null("password_set")?) {
            (Some(sealed), Some(set)) => {
                Some(LoginPassword { sealed, must_change: self.number("must_change")? != 0, set })
            }
            (None, None) => None,
            _ => return Err(self.corrupt("sealed", "a password without its time, or the other way round")),
        };
        Ok(Admin {
            tenant: self.parse("tenant")?,
            user: self.parse("account")?,
            role: self.parse("role")?,
            created: self.time("created")?,
            password,
            last_sign_in: self.time_or_null("last_sign_in")?,
        })
    }

    fn role(&self) -> Result<Role, StoreError> {
        Ok(Role {
            id: RoleId::Custom(self.parse("id")?),
            name: self.text("name")?,
            permissions: self.json("permissions")?,
            groups: self.json("user_groups")?,
        })
    }
}
