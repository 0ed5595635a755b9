//! The node's configuration file. Every key has a default except `state`; whose node it is stands in the state
//! folder since its enrolment.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hedgerow_proxy::publish::Published;
use hedgerow_proxy::target::{Host, Target};
use hedgerow_proxy::tell::Told;
use hedgerow_runtime::config::ConfigFault;
use hedgerow_runtime::config::sections::{Admin, Drain};
use hedgerow_runtime::dial::Outbound;
use hedgerow_runtime::link::Choice;
use hedgerow_runtime::proxy_protocol::Version;
use hedgerow_runtime::tls::TlsConfig;
use hedgerow_shared::Origin;
use hedgerow_shared::limits::Timers;
use serde::{Deserialize, Serialize};

pub use crate::tunnel::config::{Mode, TunnelConfig};

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfigFile {
    /// The folder for key, certificate and the signed configuration; made with mode 0700 by `node enroll`.
    pub state: PathBuf,
    /// Relays, `host:port`; the node keeps a link with each. Those named at enrolment when empty.
    #[serde(default)]
    pub relays: Vec<String>,
    /// How to reach relays: proxies, networks that open TLS.
    #[serde(default)]
    pub outbound: Outbound,
    /// How links travel: `auto` takes QUIC where UDP passes and TLS where it does not, `tls` and `quic` one of them only.
    #[serde(default)]
    pub transport: Choice,
    /// Addresses of names, asked before the system's resolver: `"intranet.example" = ["10.1.2.3"]`.
    #[serde(default)]
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    /// Servers inside that clients reach through the relay by server name.
    #[serde(default)]
    pub publish: Publish,
    /// Servers inside, `"host:port"` as devices ask for them or as their address is, that get the client's address in a
    /// PROXY header of version 1 or 2.
    #[serde(default)]
    pub proxy_protocol: BTreeMap<String, Version>,
    /// IP tunnels of devices.
    #[serde(default)]
    pub tunnel: TunnelConfig,
    /// The operator's listener.
    #[serde(default)]
    pub admin: Admin<9103>,
    /// What devices may use up.
    #[serde(default)]
    pub limits: Limits,
    /// Timers.
    #[serde(default)]
    pub timers: TimerConfig,
    /// TLS of this process.
    #[serde(default)]
    pub tls: TlsConfig,
    /// What happens on SIGTERM.
    #[serde(default)]
    pub drain: Drain<30>,
}

/// Servers inside, `host:port`, that end TLS for names registered at the core (`hedgerow name add`). The node's
/// certificate must allow the origin: `hedgerow token create --origins proxy,gateway,mdm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Publish {
    /// For names of origin `gateway`: a mail gateway or any other TLS server.
    pub gateway: Option<String>,
    /// For names of origin `mdm`.
    pub mdm: Option<String>,
    /// Connections at once, over both.
    pub connections: usize,
}

impl Default for Publish {
    fn default() -> Self {
        Self { gateway: None, mdm: None, connections: 10_000 }
    }
}

/// What devices may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Sessions at once, over all devices.
    pub sessions: usize,
    /// Sessions of one device at once.
    pub sessions_per_device: usize,
    /// Sessions in their hand-shake at once.
    pub handshakes: usize,
    /// Connections to servers inside at once, over all devices: each takes a file descriptor.
    pub connections: usize,
    /// Connections of one device at once.
    pub connections_per_device: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 10_000,
            sessions_per_device: 8,
            handshakes: 256,
            connections: 50_000,
            connections_per_device: 4096,
        }
    }
}

/// Timers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimerConfig {
    /// 1 is right; tests use 0.01 so that waiting through timers is quick.
    pub scale: f64,
    /// Seconds that resolving a name and connecting to a server inside may take together.
    pub connect_seconds: u64,
}

impl Default for TimerConfig {
    fn default() -> Self {
        Self { scale: 1.0, connect_seconds: Timers::default().connect.as_secs() }
    }
}

impl NodeConfigFile {
    /// A configuration with this state folder and defaults, for the demo and for tests.
    #[must_use]
    pub fn new(state: PathBuf) -> Self {
        Self {
            state,
            relays: Vec::new(),
            outbound: Outbound::default(),
            transport: Choice::default(),
            hosts: BTreeMap::new(),
            publish: Publish::default(),
            proxy_protocol: BTreeMap::new(),
            tunnel: TunnelConfig::default(),
            admin: Admin::default(),
            limits: Limits::default(),
            timers: TimerConfig::default(),
            tls: TlsConfig::default(),
            drain: Drain::default(),
        }
    }

    /// Checks what the types cannot; touches neither disk nor network.
    ///
    /// # Errors
    /// Every key that is wrong, and what to write there.
    pub fn check(&self) -> Result<(), ConfigFault> {
        let mut problems = self.outbound.network().err().map(|f| f.problems).unwrap_or_default();
        problems.extend(self.tunnel.problems());
        problems.extend(self.admin.problem().map(|(key, why)| format!("{key}: {why}")));
        let l = &self.limits;
        if [l.sessions, l.sessions_per_device, l.handshakes, l.connections, l.connections_per_device].contains(&0) {
            problems.push("limits: every limit must be at least 1".to_owned());
        }
        if !(self.timers.scale.is_finite() && self.timers.scale > 0.0) {
            problems.push("timers.scale: expected a number above 0".to_owned());
        }
        if !(1..=300).contains(&self.timers.connect_seconds) {
            problems.push("timers.connect_seconds: expected 1 to 300".to_owned());
        }
        if self.publish.connections == 0 {
            problems.push("publish.connections: must be at least 1".to_owned());
        }
        if let Err(fault) = self.published() {
            problems.extend(fault.problems);
        }
        if let Err(fault) = self.told() {
            problems.extend(fault.problems);
        }
        for (name, addresses) in &self.hosts {
            match Host::parse(name) {
                Ok(Host::Name(_)) if !addresses.is_empty() => {}
                Ok(Host::Name(_)) => problems.push(format!("hosts.{name:?}: give at least one address")),
                Ok(Host::Address(_)) => problems.push(format!("hosts.{name:?}: expected a name, not an address")),
                Err(error) => problems.push(format!("hosts: {error}")),
            }
        }
        problems.extend(
            self.relays.iter().filter(|r| relay_host(r).is_none()).map(|r| format!("relays: {r:?} is not host:port")),
        );
        if problems.is_empty() { Ok(()) } else { Err(ConfigFault { problems }) }
    }

    /// The timers in force.
    #[must_use]
    pub fn timers(&self) -> Timers {
        let timers = Timers::default().scaled(self.timers.scale);
        Timers { connect: Duration::from_secs(self.timers.connect_seconds), ..timers }
    }

    /// The published servers by origin.
    ///
    /// # Errors
    /// One of them is not `host:port`.
    pub fn published(&self) -> Result<BTreeMap<Origin, Target>, ConfigFault> {
        let (gateway, mdm) = (self.publish.gateway.as_ref(), self.publish.mdm.as_ref());
        Published::targets([(Origin::Gateway, gateway), (Origin::Mdm, mdm)])
            .map_err(|(origin, error)| ConfigFault::new(format!("publish.{origin}: {error}")))
    }

    /// The servers that are told the client's address.
    ///
    /// # Errors
    /// One of them is not `host:port`.
    pub fn told(&self) -> Result<Told, ConfigFault> {
        Told::new(&self.proxy_protocol)
            .map_err(|(key, error)| ConfigFault::new(format!("proxy_protocol.{key:?}: {error}")))
    }

    /// `hosts` with names in the form that targets have.
    #[must_use]
    pub fn hosts(&self) -> HashMap<String, Vec<IpAddr>> {
        let named = self.hosts.iter().filter_map(|(name, addresses)| match Host::parse(name) {
            Ok(Host::Name(name)) => Some((name, addresses.clone())),
            _ => None,
        });
        named.collect()
    }
}

/// The host part of `host:port`; without brackets for IPv6.
pub(crate) fn relay_host(relay: &str) -> Option<String> {
    let target = hedgerow_proxy::target::Target::from_authority(relay, None).ok()?;
    Some(target.host_text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_is_wrong_with_it() {
        let file = |more: &str| {
            hedgerow_runtime::config::parse::<NodeConfigFile>("node.toml", &format!("state = \"/tmp/n\"\n{more}"))
        };
        file("").unwrap().check().unwrap();
        file("relays = [\"relay.example:3101\"]\n[hosts]\n\"Intranet.Example\" = [\"10.1.2.3\"]")
            .unwrap()
            .check()
            .unwrap();
        for (bad, word) in [
            ("[admin]\nlisten = \"0.0.0.0:9103\"", "loopback"),
            ("[limits]\nsessions = 0", "at least 1"),
            ("[hosts]\n\"10.1.2.3\" = [\"10.1.2.3\"]", "not an address"),
            ("relays = [\"relay.example\"]", "host:port"),
            ("[publish]\ngateway = \"mail.inside\"", "publish.gateway"),
            ("[publish]\nconnections = 0", "publish.connections"),
            ("[proxy_protocol]\n\"mail.inside\" = 2", "proxy_protocol.\"mail.inside\""),
        ] {
            let fault = file(bad).unwrap().check().unwrap_err().to_string();
            assert!(fault.contains(word), "{fault}");
        }
        assert!(file("stat = 1").is_err());
        assert!(file("[proxy_protocol]\n\"mail.inside:25\" = 3").is_err());
    }

    #[test]
    fn host_names_are_brought_into_one_form() {
        let mut config = NodeConfigFile::new("/tmp/n".into());
        config.hosts.insert("Intranet.Example.".into(), vec!["10.1.2.3".parse().unwrap()]);
        assert!(config.hosts().contains_key("intranet.example"));
        assert_eq!(relay_host("[::1]:3101").as_deref(), Some("::1"));
    }
}
