//! Ports of 127.0.0.1 for what a program starts itself: the demo, the tests, the benches.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};

/// Below the range from which systems take ports for outgoing connections.
const PORTS: std::ops::Range<u16> = 14_000..32_000;

/// A port of 127.0.0.1 that is free for TCP and UDP, and that no other program gets from here while this one lives.
/// Between the choice and the moment at which a child listens there it is free for others: that is why it is reserved.
///
/// # Errors
/// When no port is left.
pub fn reserve_port() -> io::Result<u16> {
    let from = u32::from_be_bytes(crate::clock::random()) % u32::from(PORTS.end - PORTS.start);
    let from = PORTS.start + u16::try_from(from).unwrap_or_default();
    for port in (from..PORTS.end).chain(PORTS.start..from) {
        if reserve(port) && is_free(port) {
            return Ok(port);
        }
    }
    let none = format!("no free loopback port from {} to {}", PORTS.start, PORTS.end - 1);
    Err(io::Error::new(io::ErrorKind::AddrInUse, none))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok()
}

/// Takes the port's name among the abstract sockets of the network namespace. The system gives it back when the process
/// ends, however it ends.
#[cfg(target_os = "linux")]
fn reserve(port: u16) -> bool {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    static RESERVED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    let name = SocketAddr::from_abstract_name(format!("hedgerow-loopback-port-{port}"));
    match name.and_then(|name| UnixListener::bind_addr(&name)) {
        Ok(holder) => {
            RESERVED.lock().unwrap_or_else(PoisonError::into_inner).push(holder);
            true
        }
        Err(_) => false,
    }
}

/// Elsewhere within this process only.
#[cfg(not(target_os = "linux"))]
fn reserve(port: u16) -> bool {
    static RESERVED: Mutex<std::collections::BTreeSet<u16>> = Mutex::new(std::collections::BTreeSet::new());
    RESERVED.lock().unwrap_or_else(PoisonError::into_inner).insert(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once_while_the_program_lives() {
        let mut all: Vec<u16> = (0..200).map(|_| reserve_port().unwrap()).collect();
        assert!(all.iter().all(|p| PORTS.contains(p) && !reserve(*p)), "{all:?}");
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 200);
    }

    #[test]
    fn a_port_that_somebody_has_for_tcp_or_udp_is_not_free() {
        let port = reserve_port().unwrap();
        assert!(is_free(port));
        let udp = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        assert!(!is_free(port));
        drop(udp);
        let _tcp = TcpListener::bind(("127.0.0.1", port)).unwrap();
        assert!(!is_free(port));
    }
}
