//! How this process gets out: directly, through a corporate proxy, through a network that inspects TLS.
//!
//! What counts, in this order: `outbound.proxy` (file, `HEDGEROW_<ROLE>__OUTBOUND__PROXY` or `--set`; `none` means
//! no proxy), else the environment: `https_proxy`, `HTTPS_PROXY`, `all_proxy`, `ALL_PROXY`. Exceptions are
//! `outbound.no_proxy` when it is given; `no_proxy` and `NO_PROXY` count only where the proxy comes from the
//! environment too, and then loopback targets are never proxied.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hedgerow_shared::secret::Secret;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::Sockets;
use crate::config::{ConfigFault, SecretFile};
use crate::tls;

/// How long a network that inspected TLS is taken to do so still.
const REMEMBERED: Duration = Duration::from_secs(600);
/// The longest user name and password: SOCKS5 has one byte for each length.
const MAX_CREDENTIAL: usize = 255;

/// The section `[outbound]` of a role's configuration file: how to reach relays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outbound {
    /// `http://host:port`, `socks5://host:port`, or `none`. Without it the environment counts: HTTPS_PROXY, ALL_PROXY.
    pub proxy: Option<String>,
    /// The proxy's user name, if it wants one.
    pub proxy_user: Option<String>,
    /// File with the password, which only its owner can read.
    pub proxy_password_file: Option<SecretFile>,
    /// Relays that are dialled directly: names with what is below them, addresses, networks, each with `:port` if only
    /// that port is meant; `*` is everything.
    pub no_proxy: Vec<String>,
    /// Go on where the network opens TLS: the link then runs with its own TLS inside a WebSocket.
    pub inspected_ok: bool,
    /// PEM file with the CA of such a network, when it is not among the system's.
    pub inspection_ca_file: Option<PathBuf>,
}

impl Outbound {
    /// The network as this section and the process's environment have it. Reads the CA file.
    ///
    /// # Errors
    /// The key that is wrong, and what to write there; a variable is named without its value.
    pub fn network(&self) -> Result<Network, ConfigFault> {
        self.network_with(|name| std::env::var(name).ok())
    }

    /// As `network`, with another environment.
    ///
    /// # Errors
    /// As `network`.
    pub fn network_with(&self, environment: impl Fn(&str) -> Option<String>) -> Result<Network, ConfigFault> {
        let inspection = match (&self.inspection_ca_file, self.inspected_ok) {
            (_, false) => None,
            (None, true) => Some(Inspection::default()),
            (Some(file), true) => {
                let ca = tls::read_certificates(file)
                    .map_err(|e| ConfigFault::new(format!("outbound.inspection_ca_file: {e}")))?;
                Some(Inspection { ca, ..Inspection::default() })
            }
        };
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|n| Some((n, environment(n).filter(|v| !v.trim().is_empty())?)))
        };
        let chosen = match self.proxy.as_deref().map(str::trim).filter(|p| !p.is_empty()) {
            Some("none") => None,
            Some(url) => Some((self.proxy_of_file(url)?, Exceptions::parse(&self.no_proxy, false)?)),
            None => match first(["https_proxy", "HTTPS_PROXY"]).or_else(|| first(["all_proxy", "ALL_PROXY"])) {
                None => None,
                Some((name, url)) => {
                    let proxy = Proxy::parse(&url).map_err(|why| ConfigFault::new(format!("{name}: {why}")))?;
                    let listed = match (&self.no_proxy, first(["no_proxy", "NO_PROXY"])) {
                        (none, Some((_, text))) if none.is_empty() => {
                            text.split([',', ' ']).map(str::to_owned).collect()
                        }
                        (given, _) => given.clone(),
                    };
                    Some((self.with_credentials(proxy)?, Exceptions::parse(&listed, true)?))
                }
            },
        };
        let chosen = chosen.map(|(proxy, exceptions)| (Arc::new(proxy), Arc::new(exceptions)));
        Ok(Network { chosen, inspection: inspection.map(Arc::new), sockets: None })
    }

    fn proxy_of_file(&self, url: &str) -> Result<Proxy, ConfigFault> {
        let proxy = Proxy::parse(url).map_err(|why| ConfigFault::new(format!("outbound.proxy: {why}")))?;
        if proxy.credentials().is_some_and(|c| !c.password.expose().is_empty()) {
            return Err(ConfigFault::new(
                "outbound.proxy: a password does not belong here: use outbound.proxy_password_file",
            ));
        }
        self.with_credentials(proxy)
    }

    /// The section's user name and password, when given, instead of the URL's.
    fn with_credentials(&self, mut proxy: Proxy) -> Result<Proxy, ConfigFault> {
        let in_url = proxy.credentials.take();
        let user = self.proxy_user.clone().or_else(|| in_url.as_ref().map(|c| c.user.clone()));
        let password = self.proxy_password_file.as_ref().map(|f| f.secret().clone());
        proxy.credentials = match (user, password.or(in_url.map(|c| c.password))) {
            (None, Some(_)) => {
                return Err(ConfigFault::new("outbound.proxy_user: a password needs a user name"));
            }
            (None, None) => None,
            (Some(user), password) => {
                let password = password.unwrap_or_else(|| Secret::new(Vec::new()));
                if user.is_empty() || user.contains(':') || user.chars().any(char::is_control) {
                    return Err(ConfigFault::new("outbound.proxy_user: a user name has no colon and is not empty"));
                }
                if user.len() > MAX_CREDENTIAL || password.expose().len() > MAX_CREDENTIAL {
                    return Err(ConfigFault::new(format!(
                        "outbound.proxy_user and the password have at most {MAX_CREDENTIAL} bytes"
                    )));
                }
                Some(Credentials { user, password })
            }
        };
        Ok(proxy)
    }
}

/// How a process gets out. Clones share what they have learnt. The default is: directly.
#[derive(Debug, Clone, Default)]
pub struct Network {
    chosen: Option<(Arc<Proxy>, Arc<Exceptions>)>,
    pub(super) inspection: Option<Arc<Inspection>>,
    sockets: Option<Arc<dyn Sockets>>,
}

impl Network {
    /// The network of a world that is only modelled: everything is reached directly, by its connections.
    #[must_use]
    pub fn given(sockets: Arc<dyn Sockets>) -> Self {
        Self { sockets: Some(sockets), ..Self::default() }
    }

    /// Who makes connections, when it is not the system.
    #[must_use]
    pub fn sockets(&self) -> Option<&Arc<dyn Sockets>> {
        self.sockets.as_ref()
    }

    /// The proxy for a target `host:port`; `None` means directly.
    #[must_use]
    pub fn proxy_for(&self, target: &str) -> Option<&Arc<Proxy>> {
        let (host, port) = split(target)?;
        self.chosen.as_ref().filter(|(_, except)| !except.contain(host, port)).map(|(proxy, _)| proxy)
    }

    /// The same network with this way out for every target.
    pub(super) fn pinned(&self, proxy: Option<Arc<Proxy>>) -> Self {
        let chosen = proxy.map(|p| (p, Arc::default()));
        Self { chosen, inspection: self.inspection.clone(), sockets: self.sockets.clone() }
    }

    /// Whether the link goes inside a WebSocket now.
    pub(super) fn is_inspected(&self) -> bool {
        let seen = self.inspection.as_ref().and_then(|i| *i.seen.lock());
        seen.is_some_and(|at| at.elapsed() < REMEMBERED)
    }

    /// Notes that TLS was opened on the way, or that it was not.
    pub(super) fn note_inspected(&self, inspected: bool) {
        if let Some(inspection) = &self.inspection {
            *inspection.seen.lock() = inspected.then(Instant::now);
        }
    }
}

/// What is needed where TLS is opened on the way.
#[derive(Debug, Default)]
pub(super) struct Inspection {
    /// CAs beside the system's.
    pub(super) ca: Vec<CertificateDer<'static>>,
    /// When it was last seen; a short critical section.
    seen: Mutex<Option<Instant>>,
}

/// What a proxy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// HTTP CONNECT; only port 443 of relays is tried.
    Http,
    /// SOCKS5.
    Socks5,
}

/// A proxy. Shown without its credentials.
#[derive(Debug)]
pub struct Proxy {
    pub(super) kind: Kind,
    host: String,
    port: u16,
    credentials: Option<Credentials>,
    /// It asked for credentials once: they are sent at once from then on.
    pub(super) asked: AtomicBool,
}

/// A user name and password for a proxy.
#[derive(Debug)]
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: Secret,
}

impl Proxy {
    /// Reads a URL; the complaint does not repeat it, since it may hold a password.
    fn parse(url: &str) -> Result<Self, &'static str> {
        const FORM: &str = "expected http://host:port, socks5://host:port or none";
        let (scheme, rest) = url.trim().split_once("://").ok_or(FORM)?;
        let (kind, usual) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Kind::Http, 80),
            "socks5" | "socks5h" => (Kind::Socks5, 1080),
            "https" => return Err("TLS to a proxy is not supported: expected http://host:port or socks5://host:port"),
            _ => return Err(FORM),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user_info, authority) = match rest.rsplit_once('@') {
            Some((user_info, authority)) => (Some(user_info), authority),
            None => (None, rest),
        };
        let (host, port) = match split(authority) {
            Some(found) => found,
            None => (bare(authority).ok_or(FORM)?, usual),
        };
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if host.is_empty() || host.len() > 253 || port == 0 || !host.chars().all(known) {
            return Err(FORM);
        }
        let decode = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
        let credentials = match user_info {
            None | Some("") => None,
            Some(user_info) => {
                let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
                let user = String::from_utf8(decode(user)).map_err(|_| "the user name is not UTF-8")?;
                Some(Credentials { user, password: Secret::new(decode(password)) })
            }
        };
        Ok(Self { kind, host: host.to_owned(), port, credentials, asked: AtomicBool::new(false) })
    }

    pub(super) fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// The credentials that go out before the proxy asks.
    pub(super) fn credentials_at_once(&self) -> Option<&Credentials> {
        self.credentials.as_ref().filter(|_| self.asked.load(Ordering::Relaxed))
    }

    /// Where it listens, `host:port`.
    pub(super) fn address(&self) -> String {
        join(&self.host, self.port)
    }

    #[cfg(test)]
    pub(super) fn for_tests(url: &str, credentials: Option<(&str, &str)>) -> Self {
        let mut proxy = Self::parse(url).unwrap();
        proxy.credentials = credentials
            .map(|(user, password)| Credentials { user: user.into(), password: Secret::new(password.into()) });
        proxy
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            Kind::Http => "http",
            Kind::Socks5 => "socks5",
        };
        write!(f, "{scheme}://{}", self.address())
    }
}

/// Targets that are not proxied.
#[derive(Debug, Default)]
struct Exceptions {
    entries: Vec<(What, Option<u16>)>,
    loopback: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    Everything,
    /// A name and what is below it.
    Name(String),
    Net(IpAddr, u8),
}

impl Exceptions {
    fn parse(entries: &[String], loopback: bool) -> Result<Self, ConfigFault> {
        let used = entries.iter().map(|e| e.trim()).filter(|e| !e.is_empty());
        let entries = used.map(|entry| {
            entry_of(entry).ok_or_else(|| {
                ConfigFault::new(format!(
                    "outbound.no_proxy: expected a name, an address, a network such as 10.0.0.0/8, or *, not {entry:?}"
                ))
            })
        });
        Ok(Self { entries: entries.collect::<Result<_, _>>()?, loopback })
    }

    fn contain(&self, host: &str, port: u16) -> bool {
        let address = host.parse::<IpAddr>().ok().map(|a| a.to_canonical());
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        if self.loopback && (name == "localhost" || address.is_some_and(|a| a.is_loopback())) {
            return true;
        }
        self.entries.iter().filter(|(_, only)| only.is_none_or(|p| p == port)).any(|(what, _)| match (what, address) {
            (What::Everything, _) => true,
            (What::Net(net, bits), Some(address)) => is_inside(address, *net, *bits),
            (What::Name(suffix), None) => {
                name.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            (What::Net(..), None) | (What::Name(_), Some(_)) => false,
        })
    }
}

fn entry_of(entry: &str) -> Option<(What, Option<u16>)> {
    if let Some((net, bits)) = entry.split_once('/') {
        let (net, bits) = (net.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?);
        return (bits <= width(net)).then_some((What::Net(net, bits), None));
    }
    let (host, port) = match split(entry) {
        Some((host, port)) => (host, Some(port)),
        None => (bare(entry)?, None),
    };
    if host == "*" {
        return Some((What::Everything, port));
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        let address = address.to_canonical();
        return Some((What::Net(address, width(address)), port));
    }
    let name = host.trim_start_matches("*.").trim_start_matches('.').trim_end_matches('.').to_ascii_lowercase();
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (!name.is_empty() && name.chars().all(known)).then_some((What::Name(name), port))
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn is_inside(address: IpAddr, net: IpAddr, bits: u8) -> bool {
    // Both as 128 bits from the left, so that the same shift serves both families.
    let left = |a: IpAddr| match a {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let differ = left(address) ^ left(net);
    address.is_ipv4() == net.is_ipv4() && (bits == 0 || differ >> (128 - u32::from(bits)) == 0)
}

/// Host (without brackets) and port of `host:port`.
pub(super) fn split(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok()?;
    match host.strip_prefix('[') {
        Some(inside) => Some((inside.strip_suffix(']')?, port)),
        None if host.contains(':') => None,
        None => Some((host, port)),
    }
}

/// A host without a port, and without brackets.
fn bare(text: &str) -> Option<&str> {
    match text.strip_prefix('[') {
        Some(inside) => inside.strip_suffix(']'),
        None if text.contains(':') && text.parse::<IpAddr>().is_err() => None,
        None => Some(text),
    }
}

/// `host:port`, with brackets where they are needed.
pub(super) fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(outbound: &Outbound, environment: &[(&str, &str)]) -> Result<Network, ConfigFault> {
        outbound.network_with(|name| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    fn shown(network: &Network, target: &str) -> String {
        network.proxy_for(target).map_or_else(|| "directly".to_owned(), ToString::to_string)
    }

    #[test]
    fn the_file_counts_before_the_environment_and_none_switches_off() {
        let environment = [("HTTPS_PROXY", "http://env:3128"), ("ALL_PROXY", "socks5://all"), ("NO_PROXY", "relay.b")];
        let file = |proxy: &str| Outbound { proxy: Some(proxy.into()), ..Outbound::default() };
        let plain = with(&Outbound::default(), &environment).unwrap();
        assert_eq!(shown(&plain, "relay.a:443"), "http://env:3128");
        assert_eq!(shown(&plain, "relay.b:443"), "directly");
        assert_eq!(shown(&plain, "127.0.0.1:443"), "directly", "a variable does not take loopback targets away");
        let own = with(&file("socks5h://file:1081"), &environment).unwrap();
        assert_eq!(shown(&own, "relay.b:443"), "socks5://file:1081", "the variable's exceptions go with its proxy");
        assert_eq!(shown(&own, "127.0.0.1:443"), "socks5://file:1081");
        assert_eq!(shown(&with(&file("none"), &environment).unwrap(), "relay.a:443"), "directly");
        let all = with(&Outbound::default(), &environment[1..2]).unwrap();
        assert_eq!(shown(&all, "relay.a:443"), "socks5://all:1080");
        let lower = with(&Outbound::default(), &[("https_proxy", "http://[::1]:1"), ("HTTPS_PROXY", "x")]).unwrap();
        assert_eq!(shown(&lower, "relay.a:443"), "http://[::1]:1");
        assert_eq!(shown(&with(&Outbound::default(), &[("HTTPS_PROXY", " ")]).unwrap(), "relay.a:443"), "directly");
    }

    #[test]
    fn exceptions_are_names_networks_and_ports() {
        let list = [".corp.example", "*.lab", "10.0.0.0/8", "192.0.2.7", "relay.c:3101", "2001:db8::/32", "[::2]:443"];
        let outbound = Outbound {
            proxy: Some("http://p:1".into()),
            no_proxy: list.map(str::to_owned).to_vec(),
            ..Outbound::default()
        };
        let network = with(&outbound, &[]).unwrap();
        for (target, direct) in [
            ("corp.example:443", true),
            ("a.b.Corp.Example.:443", true),
            ("notcorp.example:443", false),
            ("x.lab:1", true),
            ("10.255.0.1:443", true),
            ("11.0.0.1:443", false),
            ("192.0.2.7:443", true),
            ("192.0.2.8:443", false),
            ("relay.c:3101", true),
            ("relay.c:443", false),
            ("[2001:db8::5]:443", true),
            ("[2001:db9::5]:443", false),
            ("[::2]:443", true),
            ("[::2]:444", false),
            ("[::ffff:10.0.0.1]:443", true),
        ] {
            assert_eq!(network.proxy_for(target).is_none(), direct, "{target}");
        }
        let all = Outbound { no_proxy: vec!["*".into()], ..outbound };
        assert!(with(&all, &[]).unwrap().proxy_for("relay.a:443").is_none());
    }

    #[test]
    fn passwords_come_by_file_or_variable_and_are_never_shown() {
        let in_file = Outbound { proxy: Some("http://u:hunter2@p:1".into()), ..Outbound::default() };
        let fault = with(&in_file, &[]).unwrap_err().to_string();
        assert!(fault.contains("proxy_password_file") && !fault.contains("hunter2"), "{fault}");
        let network = with(&Outbound::default(), &[("HTTPS_PROXY", "http://u%40corp:hunter%32@p:1/")]).unwrap();
        let proxy = network.proxy_for("relay.a:443").unwrap();
        let credentials = proxy.credentials().unwrap();
        assert_eq!((credentials.user.as_str(), credentials.password.expose_text()), ("u@corp", Some("hunter2")));
        let shown = format!("{proxy} {network:?}");
        assert!(!shown.contains("hunter"), "{shown}");
        for bad in ["http://u:hunter2@", "https://u:hunter2@p:1", "u:hunter2@p", "http://u:hunter2@p:99999", "://"] {
            let fault = with(&Outbound::default(), &[("HTTPS_PROXY", bad)]).unwrap_err().to_string();
            assert!(fault.starts_with("HTTPS_PROXY: ") && !fault.contains("hunter2"), "{fault}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        type Break = fn(&mut Outbound);
        let cases: &[(&str, Break)] = &[
            ("outbound.proxy:", |o| o.proxy = Some("proxy.corp:3128".into())),
            ("outbound.proxy_user", |o| o.proxy_user = Some("a:b".into())),
            ("outbound.proxy_user", |o| o.proxy_user = Some("x".repeat(256))),
            ("outbound.no_proxy", |o| o.no_proxy = vec!["10.0.0.0/33".into()]),
            ("outbound.no_proxy", |o| o.no_proxy = vec!["sp ace".into()]),
            ("outbound.inspection_ca_file", |o| {
                o.inspected_ok = true;
                o.inspection_ca_file = Some("/nonexistent".into());
            }),
        ];
        for (name, damage) in cases {
            let mut outbound = Outbound { proxy: Some("http://p:1".into()), ..Outbound::default() };
            damage(&mut outbound);
            let fault = with(&outbound, &[]).unwrap_err().to_string();
            assert!(fault.starts_with(name), "{name}: {fault}");
        }
    }
}
