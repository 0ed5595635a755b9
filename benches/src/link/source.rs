//! Connections and sockets from several addresses of 127/8: as clients of many networks, and with ports enough.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use hedgerow_runtime::dial::{Given, Network, Sockets};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

/// Addresses that are used in turn.
const SOURCES: u8 = 16;

/// One address of 127/8.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source(SocketAddr);

impl Source {
    /// The `n`th, round and round.
    pub(super) fn nth(n: usize) -> Self {
        let last = 1 + u8::try_from(n % usize::from(SOURCES)).unwrap_or(0);
        Self(SocketAddr::from(([127, 77, 0, last], 0)))
    }

    pub(super) fn network(self) -> Network {
        Network::given(Arc::new(self))
    }

    pub(super) async fn tcp(self, address: &str) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(self.0)?;
        let tcp = socket.connect(address.parse().map_err(io::Error::other)?).await?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }
}

impl Sockets for Source {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Given>>> {
        Box::pin(async move {
            let given: Box<dyn Given> = Box::new(Tcp(self.tcp(address).await?));
            Ok(given)
        })
    }

    fn datagrams(&self, _: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(std::net::UdpSocket::bind(self.0)?)
    }
}

struct Tcp(TcpStream);

impl fmt::Debug for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Given for Tcp {
    fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.0.poll_peek(cx, &mut ReadBuf::new(&mut [0]))
    }
}

impl AsyncRead for Tcp {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
