//! From `host:port` to a TCP connection: names resolved, both address families tried.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hedgerow_shared::fault::{Code, Fault};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// The next address of a name is tried this long after the one before (RFC 8305).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

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
    let found: Vec<SocketAddr> = match timeout(limit, lookup_host(address)).await {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => return Err(Fault::new(Code::NameNotFound, format!("{address}: {error}"))),
        Err(_) => {
            return Err(Fault::new(Code::TimedOut, format!("{address}: the name did not resolve in time")));
        }
    };
    match race(interleave(found), limit).await {
        Ok(stream) => {
            prepare(&stream);
            Ok(stream)
        }
        Err(error) => Err(connect_fault(address, &error)),
    }
}

/// IPv6 and IPv4 in turn, IPv6 first.
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let (six, four): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv6);
    let mut out = Vec::with_capacity(six.len() + four.len());
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    loop {
        match (six.next(), four.next()) {
            (None, None) => return out,
            (a, b) => out.extend(a.into_iter().chain(b)),
        }
    }
}

/// Happy eyeballs: each attempt starts when the one before fails or has taken `ATTEMPT_DELAY`.
async fn race(addresses: Vec<SocketAddr>, limit: Duration) -> io::Result<TcpStream> {
    use futures_util::stream::{FuturesUnordered, StreamExt};
    let mut waiting = addresses.into_iter();
    let mut running = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        match waiting.next() {
            Some(address) => running.push(TcpStream::connect(address)),
            None if running.is_empty() => return Err(last),
            None => {}
        }
        let pause = if waiting.len() == 0 { limit } else { ATTEMPT_DELAY };
        tokio::select! {
            done = running.next() => match done {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => last = error,
                None => {}
            },
            () = tokio::time::sleep(pause) => {}
            () = tokio::time::sleep_until(deadline) => return Err(io::ErrorKind::TimedOut.into()),
        }
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

    #[test]
    fn both_families_are_tried_in_turn() {
        let list = ["1.1.1.1:1", "2.2.2.2:1", "[::1]:1"].map(|a| a.parse().unwrap()).to_vec();
        let order: Vec<String> = interleave(list).iter().map(ToString::to_string).collect();
        assert_eq!(order, ["[::1]:1", "1.1.1.1:1", "2.2.2.2:1"]);
    }

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
