//! What makes the core a server: its database, the device services behind the relay, the first web service, and the
//! control socket of the administrator.
//!
//! `run` opens the state directory, dials the relays and keeps them up to date (`publish`); what comes through them is
//! answered by `services` (origin `core`) and `bws`. The domain itself is `uem_core`; this crate only drives it.

pub mod app;
mod available;
pub mod bws;
pub mod config;
pub mod control;
mod publish;
mod run;
pub mod services;
mod status;
pub mod store;

pub use config::CoreConfig;
pub use run::{CONTROL, Running, run, start};
