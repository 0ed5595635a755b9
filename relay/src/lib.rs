//! The relay: brokers links, streams and lanes between devices, nodes and cores of many tenants, and reads none of it.
//!
//! A connection walks through these rooms in order: `accept` (what is it?), then one of `connect` (HTTP CONNECT and
//! look-up), `pass` (by a tenant's own name, unopened), `lane` (join and splice) or `serve` (a link; over UDP, `udp`
//! comes first); what is no connection, the datagrams of tunnels, goes through `tunnel`; `admit` and `route` say who may, `licence` what a tenant has paid for, `registry` who is there,
//! `store` who the tenants are. `run` starts and drains it all; `admin` shows it.
//!
//! The relay holds no end-to-end key and links no code that could use one.

pub mod accept;
pub mod admin;
pub mod admit;
pub mod certificate;
pub mod config;
pub mod connect;
pub mod fair;
pub mod identity;
pub mod lane;
pub mod licence;
pub mod limit;
pub mod pass;
pub mod probe;
pub mod pump;
pub mod registry;
pub mod route;
pub mod run;
pub mod serve;
pub mod stall;
pub mod state;
pub mod store;
#[cfg(test)]
mod testing;
pub mod tunnel;
pub mod udp;

pub use certificate::Certificate;
pub use config::RelayConfig;
pub use run::{Running, StartError, run};
