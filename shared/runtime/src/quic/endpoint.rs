//! How quinn runs inside a scope, and the client's endpoint.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use hedgerow_shared::fault::Fault;
use quinn::{AsyncTimer, AsyncUdpSocket, Endpoint, Runtime, TokioRuntime};

use super::{any_port, endpoint_config};
use crate::dial::{Network, connect_fault, mark};
use crate::scope::Scope;

/// quinn's tasks, as tasks of a scope. They are not dropped when the scope is cancelled, so that last words still
/// leave: who owns the endpoint closes it, and they end by themselves.
#[derive(Debug)]
pub struct Tasks(pub Scope);

impl Runtime for Tasks {
    fn new_timer(&self, at: std::time::Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn_until_done(future);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> std::time::Instant {
        TokioRuntime.now()
    }
}

/// A socket on any port, for a peer; marked like all of this process.
pub(super) fn own_socket(peer: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(any_port(peer))?;
    mark::apply(&socket)?;
    Ok(socket)
}

/// An endpoint with a socket of its own, for one link to `peer`. Its tasks end when it and its connection are gone.
///
/// # Errors
/// No socket of the peer's address family.
pub fn client_endpoint(peer: SocketAddr, network: &Network, scope: &Scope) -> Result<Endpoint, Fault> {
    let tasks = Arc::new(Tasks(scope.clone()));
    let made = match network.sockets() {
        None => own_socket(peer).and_then(|socket| Endpoint::new(endpoint_config(), None, socket, tasks)),
        Some(sockets) => sockets
            .datagrams(peer)
            .and_then(|socket| Endpoint::new_with_abstract_socket(endpoint_config(), None, socket, tasks)),
    };
    made.map_err(|error| connect_fault(&format!("udp {peer}"), &error))
}
