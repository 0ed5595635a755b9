//! The device's configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;

use hedgerow_runtime::config::sections::{Admin, TimerScale};
use hedgerow_runtime::dial::Outbound;
use hedgerow_runtime::link::Choice;
use hedgerow_runtime::tls::TlsConfig;
use hedgerow_shared::GroupName;
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
    /// The IP tunnel.
    #[serde(default)]
    pub tunnel: TunnelConfig,
    /// What the organisation's core may have this device do.
    #[serde(default)]
    pub commands: Commands,
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

/// What the organisation's core may have this device do. Whatever stands here, it may ask what the device is and what is
/// installed, and erase the device's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Commands {
    /// Whether commands are fetched at all.
    pub enabled: bool,
    /// The program that locks the screen, with its arguments; none: it cannot be locked.
    pub lock: Vec<String>,
    /// Files and folders of the organisation's, erased with everything in them before the key is.
    pub erase: Vec<PathBuf>,
}

impl Default for Commands {
    fn default() -> Self {
        Self { enabled: true, lock: ["loginctl", "lock-sessions"].map(str::to_owned).to_vec(), erase: Vec::new() }
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

/// The IP tunnel to a node: routes and names of the whole machine, not only of applications that use the local proxy.
/// Needs CAP_NET_ADMIN and `ip` (iproute2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TunnelConfig {
    /// Whether there is to be one.
    pub enabled: bool,
    /// To nodes of this server group.
    pub group: GroupName,
    /// The TUN device's name, at most 15 characters.
    pub device: String,
    /// `split`: what the configuration's routes send to the group. `all`: everything that they do not name otherwise.
    pub routes: TunnelRoutes,
    /// Whether networks that this machine is in stay reachable, whatever the routes say.
    pub local_network: bool,
    /// Whether names inside are asked inside: takes over `resolv_conf` while the tunnel is up.
    pub dns: bool,
    /// Where the machine's programs find their name servers.
    pub resolv_conf: PathBuf,
    /// Where names are asked while the tunnel is up: a loopback address, port 53.
    pub dns_listen: SocketAddr,
    /// How to tell that this machine is in the network that the tunnel leads to; then there is none.
    pub home: Home,
}

/// A server inside that speaks TLS 1.3, and what tells it from others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Home {
    /// `host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// SHA-256 of its certificate (DER), hexadecimal, as `openssl x509 -fingerprint -sha256` prints it; colons are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_sha256: Option<String>,
}

impl Home {
    /// The fingerprint; `None` when there is none, or it is none.
    #[must_use]
    pub fn pin(&self) -> Option<[u8; 32]> {
        let text: String = self.certificate_sha256.as_ref()?.chars().filter(|c| *c != ':').collect();
        let byte = |at: usize| text.get(2 * at..2 * at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let bytes: Vec<u8> = (0..32).map_while(byte).collect();
        (text.len() == 64).then(|| bytes.try_into().ok()).flatten()
    }
}

/// What goes into the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelRoutes {
    /// What the routes name.
    Split,
    /// The whole device.
    All,
}

impl Default for TunnelConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            group: "default".parse().expect("a group's name"),
            device: "hedgerow1".into(),
            routes: TunnelRoutes::Split,
            local_network: false,
            dns: true,
            resolv_conf: "/etc/resolv.conf".into(),
            dns_listen: SocketAddr::from(([127, 0, 0, 153], 53)),
            home: Home::default(),
        }
    }
}

impl DeviceConfigFile {
    /// The timers in force.
    #[must_use]
    pub fn timers(&self) -> Timers {
        Timers::default().scaled(self.timers.scale)
    }
}
