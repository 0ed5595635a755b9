//! The core's configuration file. `tenant`, `state`, `srp_key_file` and at least one of `relays` must be given; the
//! rest has defaults.

mod database;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use hedgerow_proxy::dial::Dialer;
use hedgerow_proxy::publish::Published;
use hedgerow_runtime::config::sections::{Admin, Drain, TimerScale};
use hedgerow_runtime::config::{ConfigFault, SecretFile};
use hedgerow_runtime::dial::{Outbound, RelayTarget};
use hedgerow_runtime::link::Choice;
use hedgerow_runtime::tls::{self, RelayRoots, TlsConfig};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::policy::normal_name;
use hedgerow_shared::wire::core_api;
use hedgerow_shared::{Origin, TenantId};
use hedgerow_uem_core::account::TenantSettings;
use serde::{Deserialize, Serialize};

pub use database::{DatabaseConfig, DatabaseUrl};

use crate::store::Place;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoreConfig {
    /// Whose core this is, as the relay's operator named it: `S12345678`.
    pub tenant: TenantId,
    /// The organisation's name, for people; used when the tenant is made at the first start.
    #[serde(default)]
    pub name: Option<String>,
    /// The folder for the database, unless `database` says otherwise, its key and the control socket (`control.sock`); made with mode 0700.
    pub state: PathBuf,
    /// Where the database is.
    #[serde(default)]
    pub database: DatabaseConfig,
    /// The tenant's SRP authentication key, 64 hexadecimal digits, in a file that only its owner can read.
    pub srp_key_file: SecretFile,
    /// Relays to keep a link to, each of them all the time.
    #[serde(default)]
    pub relays: Vec<Relay>,
    /// How to reach them: proxies, networks that open TLS.
    #[serde(default)]
    pub outbound: Outbound,
    /// How to reach the relays: `auto` takes QUIC where UDP passes and TLS where it does not, `tls` and `quic` one of
    /// them only.
    #[serde(default)]
    pub transport: Choice,
    /// What nodes and devices are told about the relays.
    #[serde(default)]
    pub advertise: Advertise,
    /// The operator's listener.
    #[serde(default)]
    pub admin: Admin<9102>,
    /// Web services.
    #[serde(default)]
    pub bws: Bws,
    /// Servers beside the core that clients reach through the relay by server name.
    #[serde(default)]
    pub publish: Publish,
    /// Timers.
    #[serde(default)]
    pub timers: TimerScale,
    /// TLS of this process.
    #[serde(default)]
    pub tls: TlsConfig,
    /// What happens on SIGTERM.
    #[serde(default)]
    pub drain: Drain<10>,
}

/// One relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    /// The name in its TLS certificate.
    pub name: String,
    /// `host:port`, tried in this order.
    pub addresses: Vec<String>,
    /// PEM file with the CA of its certificate. Without it and without `pin` the system's CAs count.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// SHA-256 of the public key info of that CA, 64 hexadecimal digits, instead of `ca_file`.
    #[serde(default)]
    pub pin: Option<String>,
}

/// What nodes and devices are told. What is not given is taken from the first of `relays`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Advertise {
    /// `host:port` of relays, in order of preference.
    pub relays: Vec<String>,
    /// Their TLS name.
    pub name: Option<String>,
    /// PEM file with their CA.
    pub ca_file: Option<PathBuf>,
}

/// Certificate of the web services, so that REST clients need not know the tenant's CA. Both or none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bws {
    /// PEM file, leaf first. Without it the core's own certificate is shown.
    pub certificate: Option<PathBuf>,
    /// PEM file with its ECDSA P-256 key; only its owner may be able to read it.
    pub key_file: Option<PathBuf>,
}

/// Servers beside the core, `host:port`, that end TLS for names registered with `hedgerow name add`. Names of origin
/// `core` need nothing here: the core answers them itself, under its tenant's CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Publish {
    /// For names of origin `mdm`.
    pub mdm: Option<String>,
    /// Connections at once.
    pub connections: usize,
}

impl Default for Publish {
    fn default() -> Self {
        Self { mdm: None, connections: 10_000 }
    }
}

impl CoreConfig {
    /// Checks what the types cannot; reads the CA files and nothing else.
    ///
    /// # Errors
    /// The first key that is wrong, and what to write there.
    pub fn check(&self) -> Result<(), ConfigFault> {
        let bad = |text: String| Err(ConfigFault::new(text));
        self.srp_key()?;
        self.place()?;
        if self.relays.is_empty() {
            return bad("relays: give at least one [[relays]] with name and addresses".into());
        }
        for (i, relay) in self.relays.iter().enumerate() {
            if normal_name(&relay.name).is_none() && relay.name.parse::<std::net::IpAddr>().is_err() {
                return bad(format!("relays[{i}].name: expected a host name or an address, not {:?}", relay.name));
            }
            if relay.addresses.is_empty() {
                return bad(format!("relays[{i}].addresses: give at least one, such as \"relay.example:3101\""));
            }
            if let Some(wrong) = relay.addresses.iter().find(|a| !is_address(a)) {
                return bad(format!("relays[{i}].addresses: expected host:port, not {wrong:?}"));
            }
            if relay.ca_file.is_some() && relay.pin.is_some() {
                return bad(format!("relays[{i}]: give ca_file or pin, not both"));
            }
            if self.relays.iter().take(i).any(|other| other.name == relay.name) {
                return bad(format!(
                    "relays[{i}].name: {} stands there twice; give all its addresses in one entry",
                    relay.name
                ));
            }
            relay.target(i)?;
        }
        if self.bws.certificate.is_some() != self.bws.key_file.is_some() {
            return bad("bws: certificate and key_file belong together: give both, or neither".into());
        }
        if self.publish.connections == 0 {
            return bad("publish.connections: must be at least 1".into());
        }
        self.published()?;
        if let Some((key, why)) = self.admin.problem().or_else(|| self.timers.problem()) {
            return bad(format!("{key}: {why}"));
        }
        if let Some(wrong) = self.advertise.relays.iter().find(|a| !is_address(a)) {
            return bad(format!("advertise.relays: expected host:port, not {wrong:?}"));
        }
        self.outbound.network()?;
        self.settings().map(|_| ())
    }

    /// Where the database is.
    ///
    /// # Errors
    /// Which key of `database` is wrong.
    pub fn place(&self) -> Result<Place, ConfigFault> {
        self.database.place(&self.state)
    }

    /// What is published.
    ///
    /// # Errors
    /// `publish.mdm` is not `host:port`.
    pub fn published(&self) -> Result<Published, ConfigFault> {
        let targets = Published::targets([(Origin::Mdm, self.publish.mdm.as_ref())])
            .map_err(|(origin, error)| ConfigFault::new(format!("publish.{origin}: {error}")))?;
        Ok(Published::new(targets, Dialer::new(HashMap::new(), self.timers().connect), self.publish.connections))
    }

    /// The timers, scaled; the drain as configured.
    #[must_use]
    pub fn timers(&self) -> Timers {
        let drain = Duration::from_secs(self.drain.seconds);
        Timers { drain, ..Timers::default() }.scaled(self.timers.scale)
    }

    /// The SRP key's 32 bytes.
    ///
    /// # Errors
    /// The file's content is not 64 hexadecimal digits.
    pub fn srp_key(&self) -> Result<Secret, ConfigFault> {
        let text = self.srp_key_file.secret().expose_text().map(str::trim).unwrap_or_default();
        match hex32(text) {
            Some(key) => Ok(Secret::new(key.to_vec())),
            None => Err(ConfigFault::new(format!(
                "srp_key_file: {} does not hold 64 hexadecimal digits, as the relay's operator gave them",
                self.srp_key_file.path().display()
            ))),
        }
    }

    /// The relays as diallers know them, in the order of the file.
    ///
    /// # Errors
    /// A CA file that cannot be read, or a wrong pin.
    pub fn targets(&self) -> Result<Vec<RelayTarget>, ConfigFault> {
        let network = self.outbound.network()?;
        self.relays.iter().enumerate().map(|(i, relay)| Ok(relay.target(i)?.over(network.clone()))).collect()
    }

    /// What nodes and devices are told.
    ///
    /// # Errors
    /// The CA file cannot be read, or is missing although a pin says that the CA is no public one.
    pub fn settings(&self) -> Result<TenantSettings, ConfigFault> {
        let first = self.relays.first();
        let relays = match &self.advertise.relays {
            none if none.is_empty() => first.map(|r| r.addresses.clone()).unwrap_or_default(),
            given => given.clone(),
        };
        let relay_name = self.advertise.name.clone().or_else(|| first.map(|r| r.name.clone()));
        // A name that follows from the address need not be said.
        let relay_name = relay_name.filter(|n| core_api::relay_name(None, &relays).as_ref() != Some(n));
        let ca_file = self.advertise.ca_file.as_ref().or_else(|| first.and_then(|r| r.ca_file.as_ref()));
        if ca_file.is_none() && first.is_some_and(|r| r.pin.is_some()) {
            return Err(ConfigFault::new(
                "advertise.ca_file: the relay's CA is known by pin only, but nodes and devices need its certificate",
            ));
        }
        let relay_ca_pem = match ca_file {
            None => None,
            Some(path) => Some(std::fs::read_to_string(path).map_err(|e| {
                ConfigFault::new(format!("advertise.ca_file or relays[0].ca_file: cannot read {}: {e}", path.display()))
            })?),
        };
        Ok(TenantSettings { relays, relay_name, relay_ca_pem })
    }
}

impl Relay {
    fn target(&self, index: usize) -> Result<RelayTarget, ConfigFault> {
        let roots = match (&self.ca_file, &self.pin) {
            (Some(path), _) => RelayRoots::Ca(
                tls::read_certificates(path).map_err(|e| ConfigFault::new(format!("relays[{index}].ca_file: {e}")))?,
            ),
            (None, Some(pin)) => RelayRoots::Pin(hex32(pin.trim()).ok_or_else(|| {
                ConfigFault::new(format!("relays[{index}].pin: expected 64 hexadecimal digits (a SHA-256)"))
            })?),
            (None, None) => RelayRoots::System,
        };
        Ok(RelayTarget::new(self.addresses.clone(), &self.name, roots))
    }
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
}

fn hex32(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key_file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("srp.key");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        (dir, path)
    }

    fn minimal(key: &std::path::Path) -> CoreConfig {
        let text = format!(
            "tenant = \"s12345678\"\nstate = \"/tmp/x\"\nsrp_key_file = {key:?}\n[[relays]]\nname = \"relay.example\"\naddresses = [\"relay.example:3101\"]\n"
        );
        hedgerow_runtime::config::parse("core.toml", &text).unwrap()
    }

    #[test]
    fn the_shortest_file_is_complete() {
        let (_dir, key) = key_file(&format!("{}\n", "0a".repeat(32)));
        let config = minimal(&key);
        config.check().unwrap();
        assert_eq!(config.srp_key().unwrap().expose(), [10; 32]);
        assert_eq!(config.tenant.as_str(), "S12345678");
        let told = config.settings().unwrap();
        assert_eq!((told.relays.as_slice(), told.relay_name), (["relay.example:3101".to_owned()].as_slice(), None));
    }

    #[test]
    fn what_cannot_work_is_named() {
        type Break = fn(&mut CoreConfig);
        let cases: &[(&str, Break)] = &[
            ("relays:", |c| c.relays.clear()),
            ("relays[0].name", |c| c.relays[0].name = "a b".into()),
            ("relays[0].addresses", |c| c.relays[0].addresses.clear()),
            ("relays[0].addresses", |c| c.relays[0].addresses = vec!["relay.example".into()]),
            ("relays[1].name", |c| c.relays.push(c.relays[0].clone())),
            ("relays[0].ca_file", |c| c.relays[0].ca_file = Some("/nonexistent".into())),
            ("relays[0].pin", |c| c.relays[0].pin = Some("12".into())),
            ("advertise.ca_file", |c| c.relays[0].pin = Some("ab".repeat(32))),
            ("admin.listen", |c| c.admin.listen = "0.0.0.0:1".parse().unwrap()),
            ("timers.scale", |c| c.timers.scale = f64::NAN),
            ("bws", |c| c.bws.key_file = Some("x".into())),
        ];
        let (_dir, key) = key_file(&"0a".repeat(32));
        for (name, damage) in cases {
            let mut config = minimal(&key);
            damage(&mut config);
            let fault = config.check().unwrap_err().to_string();
            assert!(fault.starts_with(name), "{name}: {fault}");
        }
    }

    #[test]
    fn a_key_that_is_no_key_is_not_repeated() {
        let (_dir, key) = key_file("hunter2hunter2");
        let fault = minimal(&key).check().unwrap_err().to_string();
        assert!(fault.starts_with("srp_key_file") && !fault.contains("hunter2"), "{fault}");
    }
}
