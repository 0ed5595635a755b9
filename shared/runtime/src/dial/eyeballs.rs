//! Happy Eyeballs (RFC 8305): a name with several addresses is reached by the first that answers, whatever is wrong with
//! the others or with a whole family of addresses.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until};

use super::mark;

/// Addresses of one name that are tried at most.
const MAX_ADDRESSES: usize = 16;
/// The recommended delay between attempts (section 8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Connects to the first of these addresses that answers, in the resolver's order with the families alternating: the
/// next attempt begins when one fails or a quarter of a second after the one before. Bounded by the caller; cancel safe.
///
/// # Errors
/// What the last attempt said.
pub async fn first_to_connect(addresses: &[SocketAddr]) -> io::Result<(TcpStream, SocketAddr)> {
    let mut waiting = alternating(addresses).into_iter();
    let mut running = FuturesUnordered::new();
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "there is no address to connect to");
    let mut start_next_at = Instant::now();
    let mut start_next = true;
    loop {
        // Not by a timer that is due at once: those are late by a millisecond or two.
        if std::mem::take(&mut start_next) {
            running.extend(waiting.next().map(connect));
            start_next_at = Instant::now() + ATTEMPT_DELAY;
        }
        tokio::select! {
            biased;
            Some(result) = running.next(), if !running.is_empty() => match result {
                Ok(connected) => return Ok(connected),
                Err(e) => {
                    last_error = e;
                    start_next = true;
                }
            },
            () = sleep_until(start_next_at), if waiting.len() > 0 => start_next = true,
            else => return Err(last_error),
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<(TcpStream, SocketAddr)> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    mark::apply(&socket)?;
    let tcp = socket.connect(address).await?;
    // A port of the ephemeral range that nobody listens on may connect to itself on loopback.
    if tcp.local_addr()? == address {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok((tcp, address))
}

/// The resolver's order, families alternating from its first (section 4).
fn alternating(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut a, mut b): (Vec<_>, Vec<_>) = addresses.iter().copied().partition(|x| x.is_ipv6() == first_is_v6);
    a.reverse();
    b.reverse();
    let mut out = Vec::with_capacity(addresses.len().min(MAX_ADDRESSES));
    while let Some(next) = a.pop() {
        out.push(next);
        std::mem::swap(&mut a, &mut b);
        if a.is_empty() {
            std::mem::swap(&mut a, &mut b);
        }
    }
    out.truncate(MAX_ADDRESSES);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_alternate_from_the_resolvers_first() {
        let a = |t: &str| t.parse::<SocketAddr>().unwrap();
        let got =
            alternating(&[a("[2001:db8::1]:1"), a("[2001:db8::2]:1"), a("1.1.1.1:1"), a("1.1.1.2:1"), a("1.1.1.3:1")]);
        assert_eq!(got, [a("[2001:db8::1]:1"), a("1.1.1.1:1"), a("[2001:db8::2]:1"), a("1.1.1.2:1"), a("1.1.1.3:1")]);
        let many: Vec<_> = (0..40).map(|i| a(&format!("[2001:db8::{i}]:1"))).chain([a("1.1.1.1:1")]).collect();
        assert_eq!(alternating(&many)[1], a("1.1.1.1:1"), "many of one family do not crowd the other out");
    }
}
