//! The core's state: one private directory with the key under which the database's secrets are sealed (`kek`), a lock
//! that keeps a second process out, and, unless a PostgreSQL server holds it, the database (`core.db`).
//!
//! A copy of the database alone opens no secret; a backup needs both, kept apart.
//!
//! A new table takes four steps: a file in `management/migrations`, a reader in `rows`, a writer in `writes`, and the
//! `Store` methods in `database`. Those of groups, profiles and commands stand together in `managed`, and `inventory`, `apps` and `admins` have all of their own. TEXT and BIGINT only; nothing in any of them names a dialect.

mod admins;
mod apps;
mod connect;
mod database;
mod directory;
mod inventory;
mod managed;
mod migrate;
mod reports;
mod rows;
mod sql;
#[cfg(test)]
mod tests;
mod writes;

pub use connect::{Place, ServerError};
pub use database::Database;
pub use directory::{Lock, OpenError, State, SystemRandom};
pub use migrate::{Migrated, Plan, Standing, Step};
