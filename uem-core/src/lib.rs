//! The domain: who belongs to a tenant, how a device or node becomes one of its own, what each may do, and the
//! record of who changed it.
//!
//! Pure: time comes in as `UnixTime`, randomness as `&mut dyn Random`, storage as a `Store`; no HTTP, no SQL, no
//! runtime. `service::Core` is the door for everything that changes something; `activation::pake` is also the device's
//! half of activation, and `ca::Key` the key and certificate request of devices and nodes.
//!
//! `examples/embed.rs` runs it inside another program.

pub mod account;
pub mod activation;
pub mod admin;
pub mod app;
pub mod audit;
pub mod bulk;
pub mod ca;
pub mod command;
pub mod compliance;
pub mod config;
mod encoding;
pub mod error;
pub mod group;
pub mod inventory;
pub mod licence;
pub mod placement;
pub mod profile;
pub mod random;
pub mod report;
pub mod seal;
pub mod service;
pub mod store;

pub use error::CoreError;
pub use random::Random;
pub use service::{Actor, Call, Core};
