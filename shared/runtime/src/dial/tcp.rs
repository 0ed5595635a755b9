//! From `host:port` to a TCP connection: names resolved, both address families tried.

use std::io;
use std::time::Duration;

use hedgerow_shared::fault::{Code, Fault};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::eyeballs::first_to_connect;
use super::resolve::resolve;

/// Connects to the first of `host:port` addresses that answers; both address families are tried, interleaved.
///
/// # Errors
/// What the last attempt said, with the address.
pub async fn tcp(addresses: &[String], limit: Duration) -> Result<TcpStream, Fault> {
    let mut last = Fault::new(Code::Unreachable, "no relay address is configured");
    for address in addresses {
        match connect(address, limit).await {
            Ok(stream) => return Ok(stream),
            Err(fault) => last = fault,
        }
    }
    Err(last)
}

/// Connects to one `host:port`; resolving and connecting may take `limit` each.
pub(super) async fn connect(address: &str, limit: Duration) -> Result<TcpStream, Fault> {
    let found = match timeout(limit, resolve(address)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(Fault::new(Code::NameNotFound, format!("{address}: {error}"))),
        Err(_) => {
            return Err(Fault::new(Code::TimedOut, format!("{address}: the name did not resolve in time")));
        }
    };
    match timeout(limit, first_to_connect(&found)).await {
        Ok(Ok((stream, _))) => {
            prepare(&stream);
            Ok(stream)
        }
        Ok(Err(error)) => Err(connect_fault(address, &error)),
        Err(_) => Err(connect_fault(address, &io::ErrorKind::TimedOut.into())),
    }
}

/// A socket for small frames at once, whose dead peer is noticed even when nothing is sent.
pub fn prepare(stream: &TcpStream) {
    // Both are improvements only; a socket that refuses them still works.
    let _ = stream.set_nodelay(true);
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(20));
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// What a failed connection attempt means.
#[must_use]
pub fn connect_fault(address: &str, error: &io::Error) -> Fault {
    let code = match error.kind() {
        io::ErrorKind::ConnectionRefused => Code::ConnectionRefused,
        io::ErrorKind::TimedOut => Code::TimedOut,
        io::ErrorKind::ConnectionReset => Code::ConnectionReset,
        io::ErrorKind::NotFound => Code::NameNotFound,
        _ => Code::Unreachable,
    };
    Fault::new(code, format!("{address}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refused_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let fault = tcp(std::slice::from_ref(&address), Duration::from_secs(2)).await.unwrap_err();
        assert_eq!(fault.code, Code::ConnectionRefused);
        assert!(fault.text.contains(&address));
    }
}
