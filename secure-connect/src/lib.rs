//! The IP tunnel between device and node, both ends, as pure logic: no runtime, no clock, no global randomness; the relay
//! never links it (`tests/tests/invariants.rs`).
//!
//! ```text
//!   TUN --> policy --> session (DTLS) --> leg: UDP or the link --> relay --> leg --> session --> policy --> TUN
//! ```
//!
//! `session` is what device and node have with each other, `leg` what each has with the relay, `ip` what passes inside,
//! `policy` what may, `pool` the addresses that a node gives away. `hedgerow-tunnel` (`secure-connect/runtime`) drives it
//! over sockets and TUN devices.

pub mod ip;
pub mod leg;
pub mod policy;
pub mod pool;
pub mod session;
