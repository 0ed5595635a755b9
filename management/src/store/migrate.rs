//! Bringing a database up to date: what is applied, what is pending, a copy before anything changes.
//!
//! `management/migrations` is the one set for both databases. It says TEXT and BIGINT; for PostgreSQL every TEXT becomes
//! `TEXT COLLATE "C"`, so that ids and names sort there by their bytes, as in SQLite, whatever the database's locale.

use std::fs;
use std::path::{Path, PathBuf};

use sqlx::migrate::{Migration, Migrator};
use sqlx::{Executor as _, SqlSafeStr as _};

use super::connect::Place;
use super::database::Database;
use super::directory::{OpenError, private};
use super::sql::{Pool, Query};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// How one migration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The database has it.
    Applied,
    /// The database lacks it.
    Pending,
    /// The database has it and this program does not know it: a newer one was here.
    Unknown,
    /// The database has it with another content than this program.
    Changed,
    /// It was begun and not ended.
    Unfinished,
}

impl Standing {
    /// One word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Pending => "pending",
            Self::Unknown => "unknown",
            Self::Changed => "changed",
            Self::Unfinished => "unfinished",
        }
    }
}

/// One migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its number.
    pub version: i64,
    /// What it is about.
    pub name: String,
    /// Where it stands.
    pub standing: Standing,
}

/// Every migration that the database or this program knows, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan(pub Vec<Step>);

impl Plan {
    /// The plan of a database that is not there yet.
    pub(super) fn empty() -> Self {
        Self::of(&[])
    }

    /// Whether there is nothing to do and nothing wrong.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.0.iter().all(|s| s.standing == Standing::Applied)
    }

    /// Whether nothing was ever applied.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.0.iter().all(|s| s.standing == Standing::Pending)
    }

    /// The versions that stand so.
    #[must_use]
    pub fn versions(&self, standing: Standing) -> Vec<i64> {
        self.0.iter().filter(|s| s.standing == standing).map(|s| s.version).collect()
    }

    /// The newest migration that the database has; 0 for none.
    #[must_use]
    pub fn schema(&self) -> i64 {
        self.0.iter().filter(|s| s.standing != Standing::Pending).map(|s| s.version).max().unwrap_or(0)
    }

    fn of(applied: &[Applied]) -> Self {
        let mut steps: Vec<Step> = MIGRATIONS
            .iter()
            .map(|known| {
                let standing = match applied.iter().find(|a| a.version == known.version) {
                    None => Standing::Pending,
                    Some(a) if !a.finished => Standing::Unfinished,
                    Some(a) if a.checksum != hex(&known.checksum) => Standing::Changed,
                    Some(_) => Standing::Applied,
                };
                Step { version: known.version, name: known.description.to_string(), standing }
            })
            .collect();
        let unknown = applied.iter().filter(|a| !MIGRATIONS.version_exists(a.version));
        steps.extend(unknown.map(|a| Step { version: a.version, name: a.name.clone(), standing: Standing::Unknown }));
        steps.sort_by_key(|s| s.version);
        Self(steps)
    }

    /// Refuses a database that a newer program made, or whose history is not ours.
    fn check(&self, place: &Place) -> Result<(), OpenError> {
        for (standing, error) in [
            (Standing::Unknown, OpenError::Newer as fn(_, _) -> _),
            (Standing::Changed, OpenError::Changed),
            (Standing::Unfinished, OpenError::Unfinished),
        ] {
            if let Some(version) = self.versions(standing).first() {
                return Err(error(place.to_string(), *version));
            }
        }
        Ok(())
    }
}

/// What the database says of one migration.
struct Applied {
    version: i64,
    name: String,
    checksum: String,
    finished: bool,
}

/// Who asks for the database to be brought up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// The core, because it starts.
    ByStart,
    /// An administrator.
    ByHand {
        /// Who says that there is a backup.
        backup_exists: bool,
    },
}

/// What bringing up to date did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// The migrations applied now.
    pub applied: Vec<i64>,
    /// The copy made before, when there was something to lose.
    pub backup: Option<PathBuf>,
}

impl Database {
    /// How every migration stands. Changes nothing.
    pub(super) async fn plan(&self) -> Result<Plan, OpenError> {
        let (table, list) = match &self.pool {
            Pool::Sqlite(_) => (
                "SELECT 1 AS found FROM sqlite_master WHERE type = 'table' AND name = '_sqlx_migrations'",
                "SELECT version, description, lower(hex(checksum)) AS checksum, success AS finished \
                 FROM (SELECT version, description, checksum, CAST(success AS BIGINT) AS success FROM _sqlx_migrations)",
            ),
            Pool::Postgres(_) => (
                "SELECT 1::BIGINT AS found WHERE to_regclass('_sqlx_migrations') IS NOT NULL",
                "SELECT version, description, encode(checksum, 'hex') AS checksum, success::INT::BIGINT AS finished \
                 FROM _sqlx_migrations",
            ),
        };
        if self.pool.fetch(Query::new(table)).await?.is_empty() {
            return Ok(Plan::empty());
        }
        let rows = self.pool.fetch(Query::new(list)).await?;
        let applied = rows.iter().map(|row| {
            Ok(Applied {
                version: row.get("version")?,
                name: row.get("description")?,
                checksum: row.get("checksum")?,
                finished: row.get::<i64>("finished")? != 0,
            })
        });
        Ok(Plan::of(&applied.collect::<Result<Vec<_>, sqlx::Error>>()?))
    }

    /// Whether nothing was ever sealed in it.
    pub(super) async fn is_empty(&self, plan: &Plan) -> Result<bool, OpenError> {
        // The first migration makes the table.
        Ok(plan.is_fresh() || self.pool.fetch(Query::new("SELECT id FROM tenant LIMIT 1")).await?.is_empty())
    }

    /// Applies what is pending. SQLite: after a copy beside the file. PostgreSQL: a start applies only to an empty
    /// database, and an administrator must say that there is a backup; the tools and rights for a good one are theirs.
    pub(super) async fn migrate(&self, place: &Place, plan: &Plan, asked: Asked) -> Result<Migrated, OpenError> {
        plan.check(place)?;
        let applied = plan.versions(Standing::Pending);
        if applied.is_empty() {
            return Ok(Migrated { applied, backup: None });
        }
        let failed = |source| OpenError::Migration { place: place.to_string(), source };
        let mut backup = None;
        if let Place::Sqlite(path) = place {
            if !plan.is_fresh() {
                backup = Some(self.copy(path, plan.schema()).await?);
            }
        } else if !plan.is_fresh() && asked != (Asked::ByHand { backup_exists: true }) {
            let error = if asked == Asked::ByStart { OpenError::Pending } else { OpenError::NoBackup };
            return Err(error(place.to_string(), applied.len()));
        }
        match &self.pool {
            Pool::Sqlite(pool) => MIGRATIONS.run(pool).await.map_err(failed)?,
            Pool::Postgres(pool) => {
                let mut connection = pool.acquire().await?.detach();
                // A large table takes its time; the lock timeout stays.
                connection.execute("SET statement_timeout = 0").await?;
                for_postgres().run(&mut connection).await.map_err(failed)?;
            }
        }
        tracing::info!(database = %place, ?applied, ?backup, "the database was brought up to date");
        Ok(Migrated { applied, backup })
    }

    /// Applies the migrations up to `version` only: the database as an older program left it.
    #[cfg(test)]
    pub(super) async fn migrate_to_for_test(&self, version: i64) {
        match &self.pool {
            Pool::Sqlite(pool) => MIGRATIONS.run_to(version, pool).await,
            Pool::Postgres(pool) => for_postgres().run_to(version, pool).await,
        }
        .expect("the migrations of a test");
    }

    /// A consistent copy of SQLite's file, named after the schema in it, on disk when this returns. An earlier copy is
    /// never replaced.
    async fn copy(&self, path: &Path, schema: i64) -> Result<PathBuf, OpenError> {
        let beside = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        let mut names = std::iter::once(beside(&format!(".schema-{schema}")))
            .chain((2..).map(|n| beside(&format!(".schema-{schema}.{n}"))));
        let copy = names.find(|name| !name.exists()).expect("some number is free");
        // Whole under another name first: a copy that was cut short must not be taken for one.
        let new = beside(".copying");
        let io = |source| OpenError::Backup { path: copy.clone(), source: Box::new(source) };
        match fs::remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        // Made here because SQLite would make it with the umask's mode.
        let file = private(&new).map_err(io)?;
        let target = new.to_string_lossy().into_owned();
        let done = self.pool.execute(Query::new("VACUUM INTO $1").bind(target)).await;
        done.map_err(|source| OpenError::Backup { path: copy.clone(), source: Box::new(source) })?;
        file.sync_all().map_err(io)?;
        fs::rename(&new, &copy).map_err(io)?;
        fs::File::open(path.parent().unwrap_or(Path::new("."))).and_then(|d| d.sync_all()).map_err(io)?;
        Ok(copy)
    }
}

/// The one set, as PostgreSQL reads it, under the same checksums.
fn for_postgres() -> Migrator {
    let migrations = MIGRATIONS.iter().map(|known| {
        let sql = sqlx::AssertSqlSafe(collated(known.sql.as_str())).into_sql_str();
        Migration { sql, ..known.clone() }
    });
    Migrator::with_migrations(migrations.collect())
}

/// Every type TEXT gets its collation. Comments may hold the word as well; nobody reads them there.
fn collated(sql: &str) -> String {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = String::with_capacity(sql.len() * 2);
    let mut rest = sql;
    while let Some(at) = rest.find("TEXT") {
        let (before, after) = (&rest[..at], &rest[at + 4..]);
        let word = !before.ends_with(is_name) && !after.starts_with(is_name);
        out.push_str(before);
        out.push_str(if word { "TEXT COLLATE \"C\"" } else { "TEXT" });
        rest = after;
    }
    out + rest
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_column_gets_its_collation_and_no_other_word_changes() {
        let sql = "id TEXT NOT NULL, CONTEXT BIGINT, TEXTUAL BIGINT, s TEXT, t TEXT\n)";
        let expected = "id TEXT COLLATE \"C\" NOT NULL, CONTEXT BIGINT, TEXTUAL BIGINT, s TEXT COLLATE \"C\", t TEXT COLLATE \"C\"\n)";
        assert_eq!(collated(sql), expected);
    }
}
