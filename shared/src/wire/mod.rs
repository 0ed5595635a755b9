//! Bytes on the wire. `frame` is the specification of links and end-to-end sessions; `message` holds what control
//! frames and the hand-shake carry; `lane` the preamble; `token` the one-string enrolment token; `tunnel` the
//! datagrams of IP tunnels; `core_api` what devices and nodes ask of their core.

pub mod core_api;
pub mod frame;
pub mod lane;
pub mod message;
pub mod names;
pub mod token;
pub mod tunnel;
