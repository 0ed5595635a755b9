//! Where connections come from: this machine's own sockets, or a world that is only modelled and hands them over.
//!
//! Everything above (proxies, TLS, links, lanes) is the same in both.

use std::fmt::Debug;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use quinn::AsyncUdpSocket;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::either::Either;

/// A world that makes connections in place of the operating system.
pub trait Sockets: Debug + Send + Sync {
    /// A connection to `host:port`. Cancel safe.
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Given>>>;

    /// A socket for datagrams to `peer`.
    ///
    /// # Errors
    /// There is none to be had.
    fn datagrams(&self, peer: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>>;
}

/// A connection of such a world: ordered bytes both ways, as TCP has them.
pub trait Given: AsyncRead + AsyncWrite + Debug + Send + Unpin {
    /// Waits for bytes, or the end, without taking them; how many there are, 0 at the end.
    fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>>;
}

/// A connection: the system's, or a given one.
pub type Socket = Either<TcpStream, Box<dyn Given>>;

/// Waits until the other end has sent something, or has closed, without taking it; how many bytes there are at least,
/// 0 at the end. Cancel safe.
///
/// # Errors
/// Why the connection broke.
pub async fn heard(socket: &mut Socket) -> io::Result<usize> {
    match socket {
        Either::Left(tcp) => tcp.peek(&mut [0]).await,
        Either::Right(given) => poll_fn(|cx| given.poll_peek(cx)).await,
    }
}
