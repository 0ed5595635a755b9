//! One door to both databases. Repository code speaks of `Query`, `Value` and `SqlRow`; what differs between the two
//! drivers is in this file and nowhere else. A value is a number (BIGINT), text (TEXT) or the absence of either: no
//! dialect has more to say here, and both mean the same by these.

use std::future::Future;
use std::time::Duration;

use hedgerow_uem_core::store::StoreError;
use sqlx::postgres::{PgPool, PgRow};
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{ColumnIndex, Decode, Encode, Postgres, Row as _, Sqlite, Type};

/// The longest that one question or one commit may take, waiting for a connection included. A database host that
/// vanished answers nothing, not even a refusal; without this a request would wait for the kernel's quarter of an hour.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a column holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// BIGINT, or NULL.
    Int(Option<i64>),
    /// TEXT, or NULL.
    Text(Option<String>),
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(Some(number))
    }
}

impl From<Option<i64>> for Value {
    fn from(number: Option<i64>) -> Self {
        Self::Int(number)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(Some(text.to_owned()))
    }
}

impl From<Option<String>> for Value {
    fn from(text: Option<String>) -> Self {
        Self::Text(text)
    }
}

/// A statement with `$1`, `$2`, ... and what stands for them.
#[derive(Debug, Clone)]
pub(super) struct Query {
    sql: &'static str,
    values: Vec<Value>,
    /// It must touch exactly one row.
    is_condition: bool,
}

impl Query {
    pub(super) fn new(sql: &'static str) -> Self {
        Self { sql, values: Vec::new(), is_condition: false }
    }

    pub(super) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Whatever is to be committed with it is only if it touches exactly one row.
    pub(super) fn into_condition(self) -> Self {
        Self { is_condition: true, ..self }
    }

    fn prepare<Db: sqlx::Database>(self) -> sqlx::query::Query<'static, Db, Db::Arguments>
    where
        Option<i64>: Encode<'static, Db> + Type<Db>,
        Option<String>: Encode<'static, Db> + Type<Db>,
    {
        self.values.into_iter().fold(sqlx::query(self.sql), |query, value| match value {
            Value::Int(number) => query.bind(number),
            Value::Text(text) => query.bind(text),
        })
    }
}

/// A row of either database.
pub(super) enum SqlRow {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl SqlRow {
    /// A column; the caller says which type it has, and a NULL is an error unless that type is an `Option`.
    pub(super) fn get<'r, T>(&'r self, column: &str) -> Result<T, sqlx::Error>
    where
        T: Decode<'r, Sqlite> + Type<Sqlite> + Decode<'r, Postgres> + Type<Postgres>,
        for<'c> &'c str: ColumnIndex<SqliteRow> + ColumnIndex<PgRow>,
    {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }
}

/// The connections to either database. Clones share them.
#[derive(Debug, Clone)]
pub(super) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Pool {
    pub(super) async fn fetch(&self, query: Query) -> Result<Vec<SqlRow>, StoreError> {
        #[cfg(test)]
        if let Self::Sqlite(_) = self {
            asked::note(query.sql);
        }
        bounded(async {
            Ok(match self {
                Self::Sqlite(pool) => query.prepare().fetch_all(pool).await?.into_iter().map(SqlRow::Sqlite).collect(),
                Self::Postgres(pool) => {
                    query.prepare().fetch_all(pool).await?.into_iter().map(SqlRow::Postgres).collect()
                }
            })
        })
        .await
    }

    pub(super) async fn execute(&self, query: Query) -> Result<(), StoreError> {
        bounded(async {
            match self {
                Self::Sqlite(pool) => query.prepare().execute(pool).await.map(drop),
                Self::Postgres(pool) => query.prepare().execute(pool).await.map(drop),
            }
        })
        .await
    }

    /// All of it in one transaction, if every condition touches exactly one row; otherwise `Conflict`, and nothing is changed.
    ///
    /// SQLite: `BEGIN IMMEDIATE` takes the writer's place at once, so that what follows cannot lose it half-way.
    /// PostgreSQL: READ COMMITTED is enough. The first condition names the tenant's row and the revision it was decided on; of
    /// two such at a time the second waits for the row's lock, reads the row again as the first left it, finds another
    /// revision, and touches nothing. So it is with what may change without a revision, which is a condition of its own.
    /// Everything else in the transaction depends on nothing but these, so there is no second read that a stronger level would
    /// have to keep consistent with the first.
    pub(super) async fn commit(&self, queries: Vec<Query>) -> Result<(), StoreError> {
        // Dropping a transaction rolls it back.
        let done = bounded(async {
            match self {
                Self::Sqlite(pool) => {
                    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
                    for query in queries {
                        let is_condition = query.is_condition;
                        let touched = query.prepare().execute(&mut *transaction).await?.rows_affected();
                        if is_condition && touched != 1 {
                            return Ok(false);
                        }
                    }
                    transaction.commit().await?;
                }
                Self::Postgres(pool) => {
                    let mut transaction = pool.begin().await?;
                    for query in queries {
                        let is_condition = query.is_condition;
                        let touched = query.prepare().execute(&mut *transaction).await?.rows_affected();
                        if is_condition && touched != 1 {
                            return Ok(false);
                        }
                    }
                    transaction.commit().await?;
                }
            }
            Ok(true)
        });
        if done.await? { Ok(()) } else { Err(StoreError::Conflict) }
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

/// What SQLite was asked, for the test that looks at how it is answered.
#[cfg(test)]
pub(super) mod asked {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    static ASKED: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());

    pub(super) fn note(sql: &'static str) {
        ASKED.lock().expect("nobody panics with it").insert(sql);
    }

    pub(in crate::store) fn all() -> Vec<&'static str> {
        ASKED.lock().expect("nobody panics with it").iter().copied().collect()
    }
}

/// The database gives no answer.
#[derive(Debug, thiserror::Error)]
#[error("the database does not answer; the core goes on by itself as soon as it does")]
struct Away;

async fn bounded<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(Err(sqlx::Error::PoolTimedOut)) | Err(_) => Err(StoreError::Backend(Box::new(Away))),
        Ok(result) => result.map_err(|error| StoreError::Backend(Box::new(error))),
    }
}
