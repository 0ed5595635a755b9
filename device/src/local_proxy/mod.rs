//! The loopback SOCKS5 and HTTP proxies that applications use.
//!
//! The agent chooses the way of each connection by the routes of the signed configuration: from here, through a node,
//! or not at all, and then the application is told why.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use hedgerow_proxy::dial::Dialer;
use hedgerow_proxy::listen::{Connector, ListenError, ServeLimits, bind_loopback, bind_other_family};
use hedgerow_proxy::splice::Outbound;
use hedgerow_proxy::target::Target;
use hedgerow_proxy::{http, socks};
use hedgerow_runtime::scope::Scope;
use hedgerow_shared::fault::Fault;
use hedgerow_shared::limits::Timers;
use tokio::sync::Semaphore;

use crate::agent::{Agent, Path};
use crate::config::LocalProxy;

/// Opens the way to a target; the agent does. A trait so that tests need no agent.
pub trait Ways: Send + Sync + 'static {
    /// The way that the routes give `target`, opened when it leads through a node. Cancel safe. A refusal by routes,
    /// relay or node comes back as its fault.
    fn open(&self, target: &Target) -> impl Future<Output = Result<Path, Fault>> + Send;
}

impl Ways for Agent {
    async fn open(&self, target: &Target) -> Result<Path, Fault> {
        self.connect(target).await
    }
}

/// The servers that run; they end with the scope.
#[derive(Debug, Clone, Copy)]
pub struct Listening {
    /// Where SOCKS5 is served.
    pub socks5: SocketAddr,
    /// Where HTTP is served.
    pub http: SocketAddr,
}

/// Binds both listeners (port 0 lets the system choose) and serves them until the scope ends. What listens on 127.0.0.1
/// listens on ::1 too, and the other way round, where that can be had.
///
/// # Errors
/// An address that is not loopback, or is taken; then nothing is served.
pub async fn start<W: Ways>(
    config: &LocalProxy,
    ways: W,
    timers: &Timers,
    scope: &Scope,
) -> Result<Listening, ListenError> {
    let socks_listener = bind_loopback(config.socks5).await?;
    let http_listener = bind_loopback(config.http).await?;
    let bound = |listener: &tokio::net::TcpListener, asked| {
        listener.local_addr().map_err(|source| ListenError::Bind { address: asked, source })
    };
    let listening =
        Listening { socks5: bound(&socks_listener, config.socks5)?, http: bound(&http_listener, config.http)? };

    let own = [listening.socks5, listening.http]
        .into_iter()
        .flat_map(|at| [at, (Ipv4Addr::LOCALHOST, at.port()).into(), (Ipv6Addr::LOCALHOST, at.port()).into()]);
    let own: Vec<SocketAddr> = own.collect();
    let dialer = Dialer::new(HashMap::new(), timers.connect).refusing(&own);
    let connector = Arc::new(ByWay { ways, dialer });
    let limits = ServeLimits {
        connections: Arc::new(Semaphore::new(config.connections)),
        handshake: timers.handshake,
        ..ServeLimits::default()
    };
    for listener in [Some(socks_listener), bind_other_family(listening.socks5).await].into_iter().flatten() {
        scope.spawn(socks::serve(listener, connector.clone(), limits.clone(), scope.clone()));
    }
    for listener in [Some(http_listener), bind_other_family(listening.http).await].into_iter().flatten() {
        scope.spawn(http::serve(listener, connector.clone(), limits.clone(), scope.clone()));
    }
    Ok(listening)
}

struct ByWay<W> {
    ways: W,
    dialer: Dialer,
}

impl<W: Ways> Connector for ByWay<W> {
    async fn connect(&self, target: &Target) -> Result<Outbound, Fault> {
        let path = self.ways.open(target).await;
        metrics::counter!("hedgerow_device_connections_total", "way" => way(&path)).increment(1);
        match path? {
            Path::Direct => {
                let dialled = self.dialer.dial_unchecked(target).await.map_err(|e| e.fault())?;
                Ok(Outbound::Direct(dialled.tcp))
            }
            Path::Tunnel(stream) => Ok(Outbound::Tunnel(stream)),
        }
    }
}

fn way(path: &Result<Path, Fault>) -> &'static str {
    match path {
        Ok(Path::Direct) => "direct",
        Ok(Path::Tunnel(_)) => "tunnel",
        Err(_) => "refused",
    }
}

#[cfg(test)]
mod tests;
