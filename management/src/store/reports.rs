//! What reports look at, in the database.

use hedgerow_shared::{TenantId, UnixTime};
use hedgerow_uem_core::audit;
use hedgerow_uem_core::report::{AuditQuery, Count, DevicesBy, MAX_GROUPS, Quiet};
use hedgerow_uem_core::store::{Page, ReportStore, StoreError};

use super::database::{Database, by_page, by_tenant};
use super::rows::{Row, int};

/// `$2` and `$3`: from and until; `$4` and `$5`: behind this time and number; `$6` to `$8`: actor, action, subject, or the
/// empty text for any; `$9`: the limit. Named in full each time: which of them stands as an equation decides the index.
macro_rules! find {
    ($column:literal) => {
        concat!(
            "SELECT * FROM audit WHERE tenant = $1 AND ",
            $column,
            " AND time >= $2 AND time < $3 AND time >= $4 AND (time > $4 OR number > $5) \
             AND ($6 = '' OR actor = $6) AND ($7 = '' OR action = $7) AND ($8 = '' OR subject = $8) \
             ORDER BY time, number LIMIT $9"
        )
    };
}

impl ReportStore for Database {
    async fn find_audit(&self, tenant: &TenantId, query: &AuditQuery) -> Result<Vec<audit::Record>, StoreError> {
        // What is said of a subject are few, of an actor fewer than of all.
        let sql = match (&query.subject, &query.actor, &query.action) {
            (Some(_), ..) => find!("subject = $8"),
            (None, Some(_), _) => find!("actor = $6"),
            (None, None, Some(_)) => find!("action = $7"),
            (None, None, None) => find!("1 = 1"),
        };
        // Behind nothing is behind number 0 of the first moment there is: records are numbered from 1.
        let (time, number) = query.after.unwrap_or_default();
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let question = by_tenant(sql, tenant)
            .bind(query.from.map_or(0, |at| int(at.0)))
            .bind(query.until.map_or(i64::MAX, |at| int(at.0)))
            .bind(int(time.0))
            .bind(int(number))
            .bind(text(&query.actor))
            .bind(text(&query.action))
            .bind(text(&query.subject))
            .bind(i64::from(query.limit.min(Page::MAX)));
        self.all("audit record", question, |row| row.audit()).await
    }

    async fn count_audit(&self, tenant: &TenantId, from: UnixTime, until: UnixTime) -> Result<Vec<Count>, StoreError> {
        let sql = "SELECT action AS what, COUNT(*) AS n FROM audit WHERE tenant = $1 AND time >= $2 AND time < $3 \
                   GROUP BY action ORDER BY n DESC, what LIMIT $4";
        let query = by_tenant(sql, tenant).bind(int(from.0)).bind(int(until.0)).bind(i64::from(MAX_GROUPS));
        self.all("count", query, |row| row.count()).await
    }

    async fn count_devices(&self, tenant: &TenantId, by: DevicesBy) -> Result<Vec<Count>, StoreError> {
        let sql = match by {
            DevicesBy::State => {
                "SELECT state AS what, COUNT(*) AS n FROM device WHERE tenant = $1 \
                 GROUP BY state ORDER BY n DESC, what LIMIT $2"
            }
            DevicesBy::Platform => {
                "SELECT platform AS what, COUNT(*) AS n FROM device WHERE tenant = $1 AND state = 'active' \
                 GROUP BY platform ORDER BY n DESC, what LIMIT $2"
            }
        };
        self.all("count", by_tenant(sql, tenant).bind(i64::from(MAX_GROUPS)), |row| row.count()).await
    }

    async fn count_seen(&self, tenant: &TenantId, since: UnixTime) -> Result<u64, StoreError> {
        let sql = "SELECT COUNT(*) AS n FROM device WHERE tenant = $1 AND state = 'active' AND last_seen >= $2";
        let query = by_tenant(sql, tenant).bind(int(since.0));
        Ok(self.one("count", query, |row| row.number("n")).await?.unwrap_or(0))
    }

    async fn quiet(&self, tenant: &TenantId, before: UnixTime, page: Page) -> Result<Vec<Quiet>, StoreError> {
        let sql = "SELECT id, name, account, last_seen FROM device WHERE tenant = $1 AND id > $2 AND state = 'active' \
                   AND (last_seen IS NULL OR last_seen < $4) ORDER BY id LIMIT $3";
        let read = |row: &Row<'_>| {
            Ok(Quiet {
                device: row.parse("id")?,
                name: row.text("name")?,
                user: row.parse("account")?,
                last_seen: row.time_or_null("last_seen")?,
            })
        };
        self.all("device", by_page(sql, tenant, page).bind(int(before.0)), read).await
    }
}

impl Row<'_> {
    fn count(&self) -> Result<Count, StoreError> {
        Ok(Count { what: self.text("what")?, count: self.number("n")? })
    }
}
