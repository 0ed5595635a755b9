//! What the SOCKS5 and the HTTP server have in common: the trait they connect through, the listener on loopback, and
//! the accept loop with its limits.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hedgerow_runtime::scope::Scope;
use hedgerow_shared::fault::{Code, Fault};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::splice::Outbound;
use crate::target::Target;

/// Opens the far side of a connection that a local application asked for: through a node, or from here.
pub trait Connector: Send + Sync + 'static {
    /// Connects to `target`. Dropped when the client leaves, so it must be cancel safe. A `Fault` carries the code
    /// that the client's protocol maps, and a text that it shows where it can.
    fn connect(&self, target: &Target) -> impl Future<Output = Result<Outbound, Fault>> + Send;
}

/// Limits of local servers.
#[derive(Debug, Clone)]
pub struct ServeLimits {
    /// Connections of clients at once; further ones are closed and counted. Servers whose limits are clones share it.
    pub connections: Arc<Semaphore>,
    /// A client's time to say what it wants.
    pub handshake: Duration,
    /// The time connecting may take, whatever the connector does.
    pub connect: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            connections: Arc::new(Semaphore::new(4096)),
            handshake: Duration::from_secs(10),
            connect: Duration::from_secs(45),
        }
    }
}

/// Why a local server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Everyone on the network could use the tunnel.
    #[error("the local proxy may only listen on a loopback address (127.0.0.1 or ::1), not on {0}")]
    NotLoopback(SocketAddr),
    /// The system refused.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// Opens a listener on a loopback address; port 0 lets the system choose.
///
/// # Errors
/// When the address is not loopback, or is taken.
pub async fn bind_loopback(address: SocketAddr) -> Result<TcpListener, ListenError> {
    if !address.ip().to_canonical().is_loopback() {
        return Err(ListenError::NotLoopback(address));
    }
    TcpListener::bind(address).await.map_err(|source| ListenError::Bind { address, source })
}

/// The same port on the loopback address of the other family, so that `localhost` leads here whichever it means; `None`
/// where the machine has none, or somebody else is there.
pub async fn bind_other_family(bound: SocketAddr) -> Option<TcpListener> {
    let other: IpAddr = match bound.ip() {
        IpAddr::V4(Ipv4Addr::LOCALHOST) => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Ipv4Addr::LOCALHOST.into(),
        _ => return None,
    };
    let address = SocketAddr::new(other, bound.port());
    let listener = TcpListener::bind(address).await;
    listener
        .inspect_err(|error| tracing::debug!(%address, %error, "the local proxy serves one address family only"))
        .ok()
}

/// Accepts until the scope is cancelled; each connection is a task of the scope and holds its permit to its very end,
/// after an upgrade too.
pub(crate) async fn accept_loop<F, Fut>(
    listener: TcpListener,
    kind: &'static str,
    permits: &Arc<Semaphore>,
    scope: &Scope,
    serve: F,
) where
    F: Fn(TcpStream, OwnedSemaphorePermit) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    loop {
        let tcp = tokio::select! {
            () = scope.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) if peer.ip().to_canonical().is_loopback() => tcp,
                Ok(_) => {
                    refused(kind, "not_local");
                    continue;
                }
                Err(error) => {
                    // Out of descriptors, mostly: waiting lets others close theirs; spinning would not.
                    tracing::warn!(%error, kind, "accept failed");
                    refused(kind, "accept_failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            refused(kind, "too_many_connections");
            continue;
        };
        let _ = tcp.set_nodelay(true);
        metrics::counter!("hedgerow_proxy_local_connections_total", "kind" => kind).increment(1);
        scope.spawn(serve(tcp, permit));
    }
}

/// Connects within the limit and counts what is refused.
pub(crate) async fn connect<C: Connector>(
    connector: &C,
    target: &Target,
    kind: &'static str,
    limits: &ServeLimits,
) -> Result<Outbound, Fault> {
    let result = match tokio::time::timeout(limits.connect, connector.connect(target)).await {
        Ok(result) => result,
        Err(_) => {
            Err(Fault::new(Code::TimedOut, format!("connecting took longer than {} s", limits.connect.as_secs_f32())))
        }
    };
    if let Err(fault) = &result {
        refused(kind, fault.code.label());
        tracing::debug!(%target, %fault, kind, "not connected");
    }
    result
}

/// Counts a connection or request that a local server turned away.
pub(crate) fn refused(kind: &'static str, reason: &'static str) {
    metrics::counter!("hedgerow_proxy_local_refused_total", "kind" => kind, "reason" => reason).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_loopback_addresses_are_listened_on() {
        for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[::ffff:0.0.0.0]:0"] {
            assert!(matches!(bind_loopback(open.parse().unwrap()).await, Err(ListenError::NotLoopback(_))), "{open}");
        }
        assert!(bind_loopback("127.0.0.1:0".parse().unwrap()).await.is_ok());
    }
}
