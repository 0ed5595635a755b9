//! One file a noun of the command line.

pub(crate) mod admin;
pub(crate) mod admin_role;
pub(crate) mod app;
pub(crate) mod audit;
pub(crate) mod ca;
pub(crate) mod command;
pub(crate) mod compliance;
pub(crate) mod core;
pub(crate) mod device;
pub(crate) mod group;
pub(crate) mod health;
pub(crate) mod licence;
pub(crate) mod name;
pub(crate) mod node;
pub(crate) mod password;
pub(crate) mod profile;
pub(crate) mod relay;
pub(crate) mod report;
pub(crate) mod route;
pub(crate) mod rule;
pub(crate) mod tenant;
pub(crate) mod token;
pub(crate) mod user;
pub(crate) mod version;

mod control;
