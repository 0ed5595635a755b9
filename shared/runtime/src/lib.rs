//! What every role needs of a process: boot, configuration, telemetry, task scopes, TLS, links and end-to-end
//! sessions over them, and the listener for health and metrics.

pub mod admin;
pub mod boot;
pub mod clock;
pub mod config;
pub mod core_client;
pub mod dial;
pub mod disk;
pub mod fair;
pub mod lane;
pub mod link;
pub mod loopback;
pub mod mux;
pub mod network;
pub mod proxy_protocol;
pub mod quic;
pub mod renewal;
pub mod scope;
mod stream;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod udp_buffers;
pub mod websocket;
