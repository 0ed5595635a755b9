//! The relay's configuration file. Every key has a default except `name`, `state` and `listen`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hedgerow_runtime::config::sections::{Admin, TimerScale};
use hedgerow_runtime::tls::Provider;
use hedgerow_shared::limits::Timers;
use hedgerow_shared::verify::licence::LicenceKey;
use hedgerow_shared::verify::policy::TargetPattern;
use serde::{Deserialize, Serialize};

use crate::fair::Bandwidth;
use crate::limit::Rate;
use crate::udp::shards;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayConfig {
    /// The name in the relay's TLS certificate, under which devices, nodes and cores dial it. Lane names end in it.
    pub name: String,
    /// The folder for tenants, keys and the control socket; made with mode 0700.
    pub state: PathBuf,
    /// Where to listen.
    pub listen: Listen,
    /// The relay's own certificate.
    #[serde(default)]
    pub tls: Tls,
    /// Joined connections.
    #[serde(default)]
    pub lanes: LaneConfig,
    /// The operator's listener.
    #[serde(default)]
    pub admin: Admin<9101>,
    /// What strangers may use up.
    #[serde(default)]
    pub limits: Limits,
    /// How many bytes may go through. Read again on HUP.
    #[serde(default)]
    pub bandwidth: Bandwidth,
    /// What tenants have to show. Read again on HUP.
    #[serde(default)]
    pub licences: Licences,
    /// Timers.
    #[serde(default)]
    pub timers: TimerScale,
    /// What happens on SIGTERM.
    #[serde(default)]
    pub drain: Drain,
}

/// Addresses. `link` and `device` take every kind of connection; two lists only because firewalls know two ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// For nodes and cores, port 3101 by convention.
    pub link: Vec<SocketAddr>,
    /// For devices, port 443 by convention.
    pub device: Vec<SocketAddr>,
    /// QUIC links and tunnel datagrams, over UDP on the same addresses.
    #[serde(default = "yes")]
    pub udp: bool,
    /// Balancers before this relay, addresses and networks (`192.0.2.10`, `10.0.0.0/8`): every TCP connection from them
    /// must begin with a PROXY header, version 1 or 2, and counts as the client's whom it names. From anybody else such
    /// a header is refused.
    #[serde(default)]
    pub trusted_proxies: Vec<TargetPattern>,
    /// Plain HTTP CONNECT for web-services clients, to origin `bws` only; none by default. The API manual's
    /// `http://proxyserverhost:proxyserverport`.
    #[serde(default)]
    pub http: Vec<SocketAddr>,
}

fn yes() -> bool {
    true
}

/// Certificate and key in PEM files; without them the relay makes a CA of its own (`STATE/relay-ca.pem`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Certificate chain, leaf first. Read again on HUP and when it changes; while it cannot be used, the old one stays.
    pub certificate: Option<PathBuf>,
    /// Its private key; only its owner may be able to read it.
    pub key_file: Option<PathBuf>,
    /// Further names and addresses that clients use for this relay; also put into a self-made certificate, which
    /// always names `localhost`, `127.0.0.1` and `::1`.
    pub names: Vec<String>,
    /// For diagnosis: the secrets of every TLS connection that the relay ends are appended here (`SSLKEYLOGFILE`
    /// format, mode 0600). Whoever has the file and a capture can read link control traffic, never work data.
    pub key_log_file: Option<PathBuf>,
    /// Which implementation of the algorithms: `aws-lc-rs`, or `ring`, which has no post-quantum key exchange.
    pub provider: Provider,
}

/// Joined connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LaneConfig {
    /// Moves bytes inside the kernel where both legs are plain sockets; `false` copies them through this process, for
    /// systems whose splice(2) is slow or missing.
    pub splice: bool,
}

impl Default for LaneConfig {
    fn default() -> Self {
        Self { splice: true }
    }
}

/// Licences of tenants.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Licences {
    /// Public keys that licences are verified with, PEM files. Without any, no licence is looked at.
    pub keys: Vec<PathBuf>,
    /// Refuses devices and nodes of tenants that have no licence, or one whose grace is over. Otherwise a tenant that has
    /// shown none is unlimited.
    pub required: bool,
}

impl Licences {
    /// Reads the keys.
    ///
    /// # Errors
    /// Which file is wrong, and why.
    pub fn read(&self) -> Result<Vec<LicenceKey>, ConfigError> {
        let key = |path: &PathBuf| {
            let bad =
                |why: String| ConfigError { key: "licences.keys".into(), why: format!("{}: {why}", path.display()) };
            let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
            LicenceKey::from_pem(&text).map_err(|e| bad(e.to_string()))
        };
        self.keys.iter().map(key).collect()
    }
}

/// What strangers may use up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections at once, of every kind.
    pub connections: usize,
    /// Connections at once that have not shown yet what they are; beyond it the oldest silent one makes room.
    pub handshakes: usize,
    /// TLS and QUIC hand-shakes begun a second. When everybody comes back at once, after this relay was away, the rest is
    /// closed unanswered and comes again later; a processor core makes about 1,500.
    pub handshakes_per_second: f64,
    /// How many of them may come from one client address; beyond it the oldest of that address makes room. Enough for a
    /// site whose devices all come back at once behind one address.
    pub handshakes_per_client: usize,
    /// CONNECT requests a second of one client address (an IPv6 client is its /64).
    pub connect_per_client: f64,
    /// How many it may save up.
    pub connect_burst_per_client: f64,
    /// CONNECT tunnels open at once of one client address.
    pub tunnels_per_client: usize,
    /// Tunnels at once, of all tenants.
    pub tunnels: usize,
    /// Of them, of one tenant; as many as of all when it is not given.
    pub tunnels_per_tenant: Option<usize>,
    /// Sockets of each UDP address that tunnel datagrams are received on beside the one for QUIC; 1 is none beside it. As
    /// many as there are processor cores when it is not given.
    pub tunnel_shards: Option<usize>,
    /// CONNECT requests a second to one tenant, of all clients.
    pub connect_per_tenant: f64,
    /// How many may be saved up.
    pub connect_burst_per_tenant: f64,
    /// Look-ups a second of one client address.
    pub lookup_per_client: f64,
    /// How many it may save up.
    pub lookup_burst_per_client: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 200_000,
            handshakes: 16_384,
            handshakes_per_second: 1000.0,
            handshakes_per_client: 2048,
            connect_per_client: 20.0,
            connect_burst_per_client: 200.0,
            tunnels_per_client: 1000,
            // A tunnel is one device that works: half of what links a relay of two cores holds.
            tunnels: 20_000,
            tunnels_per_tenant: None,
            tunnel_shards: None,
            connect_per_tenant: 200.0,
            connect_burst_per_tenant: 1000.0,
            lookup_per_client: 2.0,
            lookup_burst_per_client: 60.0,
        }
    }
}

impl Limits {
    /// Hand-shakes of everybody; a quarter of a second's may be saved up.
    #[must_use]
    pub fn pace(&self) -> Rate {
        Rate { per_second: self.handshakes_per_second, burst: (self.handshakes_per_second / 4.0).max(1.0) }
    }

    /// CONNECT by client.
    #[must_use]
    pub fn connect_client(&self) -> Rate {
        Rate { per_second: self.connect_per_client, burst: self.connect_burst_per_client }
    }

    /// CONNECT by tenant.
    #[must_use]
    pub fn connect_tenant(&self) -> Rate {
        Rate { per_second: self.connect_per_tenant, burst: self.connect_burst_per_tenant }
    }

    /// Tunnels of one tenant.
    #[must_use]
    pub fn tunnels_of_tenant(&self) -> usize {
        self.tunnels_per_tenant.unwrap_or(self.tunnels)
    }

    /// Sockets for tunnel datagrams beside the one for QUIC.
    #[must_use]
    pub fn shards(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(shards::MOST);
        let wanted = self.tunnel_shards.unwrap_or_else(cores);
        if wanted > 1 { wanted } else { 0 }
    }

    /// Look-ups by client.
    #[must_use]
    pub fn lookup_client(&self) -> Rate {
        Rate { per_second: self.lookup_per_client, burst: self.lookup_burst_per_client }
    }
}

/// What happens on SIGTERM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drain {
    /// Seconds that streams and lanes have to end.
    pub seconds: u64,
    /// Peers are told to come back after so many seconds,
    pub return_after: u64,
    /// or to try these relays (`host:port`) at once.
    pub alternatives: Vec<String>,
}

impl Default for Drain {
    fn default() -> Self {
        Self { seconds: Timers::default().drain.as_secs(), return_after: 2, alternatives: Vec::new() }
    }
}

/// Why a configuration cannot be used: which key, and what to write there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {why}")]
pub struct ConfigError {
    key: String,
    why: String,
}

impl RelayConfig {
    /// Checks what the types cannot; touches neither disk nor network.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        let bad = |key, why: &str| Err(ConfigError { key: String::from(key), why: why.to_owned() });
        let name = hedgerow_shared::verify::policy::normal_name(&self.name);
        // Room for `<ticket>.lane.` in front.
        if name.is_none_or(|n| n.len() > 253 - 38) || self.name.parse::<std::net::IpAddr>().is_ok() {
            return bad("name", "expected a host name of at most 215 characters, not an address");
        }
        if self.listen.link.is_empty() && self.listen.device.is_empty() {
            return bad("listen", "give at least one address in listen.link or listen.device, such as 0.0.0.0:3101");
        }
        let network = |p: &TargetPattern| matches!(p, TargetPattern::Network { prefix: 1.., .. });
        if let Some(wrong) = self.listen.trusted_proxies.iter().find(|p| !network(p)) {
            let why = format!("expected addresses or networks that are not the whole Internet, not {wrong}");
            return bad("listen.trusted_proxies", &why);
        }
        if self.tls.certificate.is_some() != self.tls.key_file.is_some() {
            return bad("tls", "certificate and key_file belong together: give both, or neither for a self-made CA");
        }
        if let Some((key, why)) = self.admin.problem().or_else(|| self.timers.problem()) {
            return Err(ConfigError { key: key.to_owned(), why });
        }
        let l = &self.limits;
        if [l.connections, l.handshakes, l.handshakes_per_client, l.tunnels_per_client].contains(&0) {
            let why = "connections, handshakes, handshakes_per_client and tunnels_per_client must be at least 1";
            return bad("limits", why);
        }
        if l.tunnels == 0 || l.tunnels_per_tenant == Some(0) {
            return bad("limits", "tunnels and tunnels_per_tenant must be at least 1");
        }
        if l.tunnel_shards.is_some_and(|n| !(1..=shards::MOST).contains(&n)) {
            return bad("limits.tunnel_shards", "expected 1 (one socket) to 256");
        }
        let rates = [l.pace(), l.connect_client(), l.connect_tenant(), l.lookup_client()];
        if rates
            .iter()
            .any(|r| !(r.per_second > 0.0 && r.per_second.is_finite() && r.burst >= 1.0 && r.burst.is_finite()))
        {
            return bad("limits", "rates must be above 0 and bursts at least 1");
        }
        if self.licences.required && self.licences.keys.is_empty() {
            return bad(
                "licences",
                "required needs keys: without any, no licence can be verified and everybody is refused",
            );
        }
        for (key, flow) in self.bandwidth.flows() {
            flow.check().map_err(|why| ConfigError { key, why })?;
        }
        Ok(())
    }

    /// The keys in which `new` differs and that a running relay cannot change.
    #[must_use]
    pub fn fixed_differences(&self, new: &Self) -> Vec<&'static str> {
        let limits = |l: &Limits| (l.connections, l.handshakes, l.handshakes_per_client, l.tunnel_shards);
        [
            ("name", self.name != new.name),
            ("state", self.state != new.state),
            ("listen", self.listen != new.listen),
            ("tls", self.tls != new.tls),
            ("lanes", self.lanes != new.lanes),
            ("admin", self.admin != new.admin),
            (
                "limits.connections, limits.handshakes, limits.handshakes_per_client, limits.tunnel_shards",
                limits(&self.limits) != limits(&new.limits),
            ),
            ("timers", self.timers != new.timers),
            ("drain", self.drain != new.drain),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }

    /// The timers, scaled; the drain as configured.
    #[must_use]
    pub fn timers(&self) -> Timers {
        let timers = Timers { drain: Duration::from_secs(self.drain.seconds), ..Timers::default() };
        timers.scaled(self.timers.scale)
    }

    /// Whether no tenant may register `name` (lower case) with this relay: one of its own, or under `lane.` of it.
    #[must_use]
    pub fn is_own(&self, name: &str) -> bool {
        self.answers_to(name) || hedgerow_shared::wire::lane::ticket_of(name, &self.name).is_some()
    }

    /// Whether a client may call this relay by `name` (lower case): its name, an alias, or an address.
    #[must_use]
    pub fn answers_to(&self, name: &str) -> bool {
        let known = |own: &str| own.trim_end_matches('.').eq_ignore_ascii_case(name);
        name == "localhost"
            || name.parse::<std::net::IpAddr>().is_ok()
            || known(&self.name)
            || self.tls.names.iter().any(|n| known(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> RelayConfig {
        serde_json::from_str(
            r#"{"name": "relay.example", "state": "/tmp/x", "listen": {"link": ["127.0.0.1:3101"], "device": ["[::1]:443"]}}"#,
        )
        .unwrap()
    }

    #[test]
    fn the_shortest_file_is_complete_and_unknown_keys_are_refused() {
        minimal().check().unwrap();
        let unknown = r#"{"name": "r.example", "state": "/tmp/x", "listen": {"link": [], "device": [], "https": []}}"#;
        assert!(serde_json::from_str::<RelayConfig>(unknown).is_err());
    }

    #[test]
    fn what_cannot_work_is_named() {
        type Break = fn(&mut RelayConfig);
        let cases: &[(&str, Break)] = &[
            ("name", |c| c.name = "10.0.0.1".into()),
            ("name", |c| c.name = String::new()),
            ("listen", |c| {
                c.listen.link.clear();
                c.listen.device.clear();
            }),
            ("listen.trusted_proxies", |c| c.listen.trusted_proxies = vec!["*.lb.example".parse().unwrap()]),
            ("listen.trusted_proxies", |c| c.listen.trusted_proxies = vec!["::/0".parse().unwrap()]),
            ("tls", |c| c.tls.certificate = Some("x".into())),
            ("admin.listen", |c| c.admin.listen = "0.0.0.0:1".parse().unwrap()),
            ("limits", |c| c.limits.handshakes = 0),
            ("limits", |c| c.limits.tunnels = 0),
            ("limits.tunnel_shards", |c| c.limits.tunnel_shards = Some(0)),
            ("limits", |c| c.limits.lookup_per_client = f64::NAN),
            ("licences", |c| c.licences.required = true),
            ("bandwidth.node", |c| c.bandwidth.node.bytes_per_second = 100),
            ("bandwidth.tenant", |c| c.bandwidth.tenant.burst_bytes = 100),
            ("bandwidth.tenants.S12345678", |c| {
                let slow = crate::fair::Flow { bytes_per_second: 1, burst_bytes: 0 };
                c.bandwidth.tenants.insert("S12345678".parse().unwrap(), slow);
            }),
            ("timers.scale", |c| c.timers.scale = 0.0),
        ];
        for (key, damage) in cases {
            let mut config = minimal();
            damage(&mut config);
            assert_eq!(config.check().unwrap_err().key, *key);
        }
    }

    #[test]
    fn own_names_are_recognised() {
        let mut config = minimal();
        config.tls.names = vec!["Alias.Example".into()];
        for name in ["relay.example", "alias.example", "127.0.0.1", "::1", "localhost"] {
            assert!(config.answers_to(name), "{name}");
        }
        assert!(!config.answers_to("other.example") && !config.answers_to("x.relay.example"));
        for name in ["relay.example", "alias.example", "lane.relay.example", "x.lane.relay.example"] {
            assert!(config.is_own(name), "{name}");
        }
        assert!(!config.is_own("mail.relay.example") && !config.is_own("other.example"));
    }
}
