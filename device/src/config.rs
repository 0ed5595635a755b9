//! The device's configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;

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
    pub admin: Admin,
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

/// The loopback listener with health and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// A loopback address.
    pub listen: SocketAddr,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9104)) }
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

/// Timers; the lengths are fixed, tests shorten them all by one factor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimerScale {
    /// 1.0 in earnest.
    pub scale: f64,
}

impl Default for TimerScale {
    fn default() -> Self {
        Self { scale: 1.0 }
    }
}

impl TimerScale {
    /// The timers.
    #[must_use]
    pub fn timers(self) -> Timers {
        Timers::default().scaled(self.scale)
    }
}
