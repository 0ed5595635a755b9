//! Opening a connection to a target: resolve, check, connect to what the check returned.
//!
//! Addresses are tried in the manner of RFC 8305. One deadline covers everything.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hedgerow_runtime::dial::{first_to_connect, resolve};
use hedgerow_shared::fault::{Code, Fault};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::acl::{Acl, Denial, Permit, Reason};
use crate::target::{Host, Target};

/// Addresses of one name that are tried at most.
const MAX_ADDRESSES: usize = 16;
/// Names being resolved at once: the system's resolver blocks a thread for each.
const MAX_LOOKUPS: usize = 64;
/// A server that vanished is noticed within two minutes, however idle the connection is.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The rules deny it.
    #[error("{denial}")]
    Denied {
        /// The target.
        target: Target,
        /// Which rule, and why.
        denial: Denial,
    },
    /// The name does not resolve.
    #[error("{name} does not resolve: {source}")]
    Name {
        /// The name.
        name: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Every address failed; this is what the last one said.
    #[error("cannot connect to {target}: {source}")]
    Connect {
        /// The target.
        target: Target,
        /// The last error.
        source: io::Error,
    },
    /// The deadline passed.
    #[error("{target} did not answer within {} s", .after.as_secs_f32())]
    TimedOut {
        /// The target.
        target: Target,
        /// The deadline.
        after: Duration,
    },
}

impl DialError {
    /// What travels to the other end: a code and a text for people, without the addresses names resolve to inside and
    /// without the rules themselves.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Denied { target, denial } => {
                Fault::new(self.code(), format!("{target} is denied: {}", denial.told()))
            }
            other => Fault::new(self.code(), other.to_string()),
        }
    }

    /// The kind.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Denied { .. } => Code::DeniedByPolicy,
            Self::Name { .. } => Code::NameNotFound,
            Self::Connect { source, .. } => match source.kind() {
                io::ErrorKind::ConnectionRefused => Code::ConnectionRefused,
                io::ErrorKind::TimedOut => Code::TimedOut,
                io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Code::ConnectionReset,
                // No descriptors or no ports left is this end's trouble, not the server's.
                _ if matches!(
                    source.raw_os_error(),
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::EADDRNOTAVAIL)
                ) =>
                {
                    Code::Limited
                }
                _ => Code::Unreachable,
            },
            Self::TimedOut { .. } => Code::TimedOut,
        }
    }
}

/// Resolves and connects. Clones share the limit on look-ups.
#[derive(Debug, Clone)]
pub struct Dialer {
    hosts: Arc<HashMap<String, Vec<IpAddr>>>,
    deadline: Duration,
    lookups: Arc<Semaphore>,
    own: Arc<[SocketAddr]>,
}

/// A connection, and what allowed it.
#[derive(Debug)]
pub struct Dialled {
    /// With TCP_NODELAY set.
    pub tcp: TcpStream,
    /// The address that answered.
    pub address: SocketAddr,
    /// The rule that allowed it; none when no rules were asked.
    pub permit: Option<Permit>,
}

impl Dialer {
    /// `hosts` answers before the system's resolver does (names in the form of `Host::Name`); `deadline` covers
    /// resolving and connecting together.
    #[must_use]
    pub fn new(hosts: HashMap<String, Vec<IpAddr>>, deadline: Duration) -> Self {
        Self { hosts: Arc::new(hosts), deadline, lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)), own: [].into() }
    }

    /// Never connects to these: the listeners of this process, whatever name led to them.
    #[must_use]
    pub fn refusing(mut self, own: &[SocketAddr]) -> Self {
        self.own = own.into();
        self
    }

    /// Opens a connection that `acl` allows. Cancel safe: dropping the future closes what is half open.
    ///
    /// # Errors
    /// The denial, or what failed.
    pub async fn dial(&self, target: &Target, acl: &Acl) -> Result<Dialled, DialError> {
        let by = Instant::now() + self.deadline;
        let denied = |denial| DialError::Denied { target: target.clone(), denial };
        let permit = match &target.host {
            Host::Address(address) => acl.address(*address, target.port).map_err(denied)?,
            Host::Name(name) => {
                acl.before_resolving(name, target.port).map_err(denied)?;
                let resolved = self.resolve(target, name, by).await?;
                acl.after_resolving(name, target.port, &resolved).map_err(denied)?
            }
        };
        let (tcp, address) = self.connect(target, &permit.addresses, by).await?;
        Ok(Dialled { tcp, address, permit: Some(permit) })
    }

    /// Opens a connection without asking any rules: a device's direct route. Cancel safe.
    ///
    /// # Errors
    /// What failed.
    pub async fn dial_unchecked(&self, target: &Target) -> Result<Dialled, DialError> {
        let by = Instant::now() + self.deadline;
        let addresses = match &target.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => self.resolve(target, name, by).await?,
        };
        let addresses = addresses.into_iter().map(|a| SocketAddr::new(a.to_canonical(), target.port));
        let addresses: Vec<_> = addresses.filter(|a| !self.own.contains(a)).collect();
        if addresses.is_empty() {
            let why = format!("{target} is this proxy itself: the request would come back here");
            let denial = Denial { reason: Reason::Own, rule: None, why };
            return Err(DialError::Denied { target: target.clone(), denial });
        }
        let (tcp, address) = self.connect(target, &addresses, by).await?;
        Ok(Dialled { tcp, address, permit: None })
    }

    async fn resolve(&self, target: &Target, name: &str, by: Instant) -> Result<Vec<IpAddr>, DialError> {
        if let Some(addresses) = self.hosts.get(name) {
            return Ok(addresses.clone());
        }
        let not_found = |source| DialError::Name { name: name.to_owned(), source };
        let lookup = async {
            // A look-up that is given up still blocks a thread for a while; the resolver's own limits end it.
            let _permit = self.lookups.acquire().await.map_err(|_| not_found(io::ErrorKind::Other.into()))?;
            let found = resolve(&format!("{name}:{}", target.port)).await.map_err(not_found)?;
            Ok::<_, DialError>(found.into_iter().map(|a| a.ip()).take(MAX_ADDRESSES).collect::<Vec<_>>())
        };
        let addresses = timeout_at(by, lookup).await.map_err(|_| self.timed_out(target))??;
        if addresses.is_empty() {
            return Err(not_found(io::Error::new(io::ErrorKind::NotFound, "the resolver knows no address")));
        }
        Ok(addresses)
    }

    async fn connect(
        &self,
        target: &Target,
        addresses: &[SocketAddr],
        by: Instant,
    ) -> Result<(TcpStream, SocketAddr), DialError> {
        match timeout_at(by, first_to_connect(addresses)).await {
            Ok(Ok((tcp, address))) => {
                // Improvements only; a socket that refuses them still works.
                let _ = tcp.set_nodelay(true);
                let _ = SockRef::from(&tcp).set_tcp_keepalive(&KEEPALIVE);
                Ok((tcp, address))
            }
            Ok(Err(source)) => Err(DialError::Connect { target: target.clone(), source }),
            Err(_) => Err(self.timed_out(target)),
        }
    }

    fn timed_out(&self, target: &Target) -> DialError {
        DialError::TimedOut { target: target.clone(), after: self.deadline }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn dialer(hosts: &[(&str, &[&str])]) -> Dialer {
        let hosts =
            hosts.iter().map(|(n, a)| ((*n).to_owned(), a.iter().map(|a| a.parse().unwrap()).collect())).collect();
        Dialer::new(hosts, Duration::from_secs(5))
    }

    fn rules(json: serde_json::Value) -> Acl {
        Acl::new(&serde_json::from_value::<Vec<_>>(json).unwrap(), None)
    }

    #[tokio::test]
    async fn only_what_the_rules_returned_is_dialled() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dialer = dialer(&[("intranet.demo", &["127.0.0.2", "127.0.0.1"]), ("rebound.demo", &["127.0.0.1"])]);
        let acl = rules(serde_json::json!([
            {"action": "allow", "target": "*.demo"}, {"action": "deny", "target": "127.0.0.2"}, {"action": "allow", "target": "127.0.0.1", "ports": port.to_string()},
        ]));
        let dialled = dialer.dial(&Target::new("Intranet.Demo", port).unwrap(), &acl).await.unwrap();
        assert_eq!(dialled.address, listener.local_addr().unwrap());
        assert!(dialled.tcp.nodelay().unwrap());

        let open = rules(serde_json::json!([{"action": "allow", "target": "*"}]));
        for host in ["rebound.demo", "127.0.0.1", "localhost"] {
            let error = dialer.dial(&Target::new(host, port).unwrap(), &open).await.unwrap_err();
            assert_eq!(error.code(), Code::DeniedByPolicy, "{host}: {error}");
        }
    }

    #[tokio::test]
    async fn a_dead_first_address_does_not_keep_the_second_waiting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dialer = dialer(&[("two.demo", &["127.0.0.9", "127.0.0.1"])]);
        let started = Instant::now();
        let dialled = dialer.dial_unchecked(&Target::new("two.demo", port).unwrap()).await.unwrap();
        assert_eq!(dialled.address.ip().to_string(), "127.0.0.1");
        assert!(started.elapsed() < Duration::from_secs(2));
    }

    #[tokio::test]
    async fn refusal_and_unknown_names_have_their_own_codes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let dialer = dialer(&[("empty.demo", &[])]);
        let error = dialer.dial_unchecked(&Target::new("127.0.0.1", port).unwrap()).await.unwrap_err();
        assert_eq!(error.code(), Code::ConnectionRefused, "{error}");
        let error = dialer.dial_unchecked(&Target::new("no-such-host.invalid", 80).unwrap()).await.unwrap_err();
        assert_eq!(error.code(), Code::NameNotFound, "{error}");
    }
}
