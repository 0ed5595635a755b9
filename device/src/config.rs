//! The device's configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;

use hedgerow_runtime::config::sections::{Admin, TimerScale};
use hedgerow_runtime::dial::Outbound;
use hedgerow_runtime::link::Choice;
use hedgerow_runtime::tls::TlsConfig;
use hedgerow_shared::limits::Timers;
use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfigFile {
    /// The folder with key, certificate and configuration; mode 0700.
    pub state: PathBuf,
    /// How to reach the relay: proxies, networks that open TLS.
    #[serde(default)]
    pub outbound: Outbound,
    /// Loopback listeners for applications.
    #[serde(default)]
    pub proxy: LocalProxy,
    /// The loopback listener with health, metrics and status.
    #[serde(default)]
    pub admin: Admin<9104>,
    /// How to reach the relay: `auto` takes QUIC where UDP passes and TLS where it does not, `tls` and `quic` one of
    /// them only.
    #[serde(default)]
    pub transport: Choice,
    /// How work streams travel.
    #[serde(default)]
    pub lanes: Lanes,
    /// Timers.
    #[serde(default)]
    pub timers: TimerScale,
    /// TLS of this process.
    #[serde(default)]
    pub tls: TlsConfig,
}

/// Loopback listeners; anything but a loopback address is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocalProxy {
    /// SOCKS5.
    pub socks5: SocketAddr,
    /// HTTP proxy.
    pub http: SocketAddr,
    /// Connections at once, over both.
    pub connections: usize,
}

impl Default for LocalProxy {
    fn default() -> Self {
        Self {
            socks5: SocketAddr::from(([127, 0, 0, 1], 1080)),
            http: SocketAddr::from(([127, 0, 0, 1], 3128)),
            connections: 8192,
        }
    }
}

/// How work streams travel to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lanes {
    /// By a lane where one can be had, else by a stream of the link.
    #[default]
    Auto,
    /// Only by streams of the link.
    Off,
}

impl DeviceConfigFile {
    /// The timers in force.
    #[must_use]
    pub fn timers(&self) -> Timers {
        Timers::default().scaled(self.timers.scale)
    }
}
