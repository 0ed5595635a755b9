//! The vocabulary every part of Hedgerow speaks: names, wire formats, limits, faults, the multiplexer as a
//! pure state machine, and the verification of certificates and signed configuration.
//!
//! Nothing here knows a socket, a clock or a source of randomness: bytes, time and random numbers come in as
//! arguments. A test over `cargo metadata` keeps it so.

mod encoding;
pub mod fault;
pub mod id;
pub mod limits;
pub mod secret;
pub mod session;
pub mod verify;
pub mod wire;

pub use id::{EntityId, GroupName, InstanceId, Origin, Role, SessionId, TenantId, Ticket, TunnelId, UnixTime};
