//! The core's state on disk: one private directory with the database (`core.db`), the key under which the
//! database's secrets are sealed (`kek`), and a lock that keeps a second process out.
//!
//! A copy of the database alone opens no secret; a backup needs both files, kept apart.

mod directory;
mod rows;
mod sqlite;
#[cfg(test)]
mod tests;

pub use directory::{OpenError, State, SystemRandom};
pub use sqlite::Sqlite;
