//! What the system knows of a TCP connection that something else owns: its round-trip time, and whether the peer is
//! there.
//!
//! A probe holds no descriptor: 15,000 links would need 15,000 more. It remembers the descriptor's number and the
//! socket's cookie, which the system never gives out twice; where the number belongs to another socket by now, it says
//! nothing.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use tokio::net::TcpStream;

/// One connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    number: RawFd,
    cookie: u64,
}

impl Probe {
    /// Of a connection; `None` where the system has no cookies.
    #[must_use]
    pub fn of(tcp: &TcpStream) -> Option<Self> {
        let number = tcp.as_raw_fd();
        let cookie: u64 = option(number, libc::SOL_SOCKET, libc::SO_COOKIE).ok()?;
        Some(Self { number, cookie })
    }

    /// The smoothed round-trip time to the other end of the connection: a proxy's, where one is in the way. `None` once
    /// the connection has ended.
    #[must_use]
    pub fn rtt(self) -> Option<Duration> {
        self.info().map(|info| Duration::from_micros(info.0[RTT].into()))
    }

    fn info(self) -> Option<TcpInfo> {
        let info = self.still().then(|| option(self.number, libc::IPPROTO_TCP, libc::TCP_INFO))?.ok()?;
        // It may have ended, and its number been given away, in between.
        self.still().then_some(info)
    }

    /// Asks the peer for signs of life every second, and ends the connection when three stay unanswered. A peer that is
    /// there notices nothing; undone by `relax`, for devices run on batteries.
    pub fn hasten(self) {
        // With bytes on their way there are no keep-alives, only those bytes again; without, this limit would let no
        // second keep-alive out.
        let unanswered = if self.info().is_some_and(|info| info.0[UNACKED] > 0) { 4000 } else { 0 };
        self.keepalive(1, 1, 3, unanswered);
    }

    /// Signs of life as `dial::prepare` asks for them.
    pub fn relax(self) {
        self.keepalive(60, 20, 9, 0);
    }

    /// Seconds, seconds, a number, milliseconds.
    fn keepalive(self, idle: libc::c_int, interval: libc::c_int, count: libc::c_int, unanswered: libc::c_int) {
        if !self.still() {
            return;
        }
        for (level, name, value) in [
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, idle),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, interval),
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, count),
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, unanswered),
        ] {
            // An improvement only: without it the ends' own pings find out later.
            let _ = set_option(self.number, level, name, value);
        }
    }

    fn still(self) -> bool {
        option::<u64>(self.number, libc::SOL_SOCKET, libc::SO_COOKIE).is_ok_and(|cookie| cookie == self.cookie)
    }
}

/// The beginning of `struct tcp_info` (linux/tcp.h): eight bytes, then words of 32 bits.
#[derive(Clone, Copy)]
#[repr(C)]
struct TcpInfo([u32; 26]);

/// `tcpi_unacked`, segments: the fifth.
const UNACKED: usize = 2 + 4;
/// `tcpi_rtt`, microseconds: the sixteenth word behind the first eight bytes.
const RTT: usize = 2 + 15;

/// A type that any bytes are a value of.
trait Plain: Copy {
    const ZERO: Self;
}

impl Plain for u64 {
    const ZERO: Self = 0;
}

impl Plain for TcpInfo {
    const ZERO: Self = Self([0; 26]);
}

fn option<T: Plain>(number: RawFd, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    let mut value = T::ZERO;
    let mut length = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: `value` has room for `length` bytes, and any bytes are a value of `T`. The number may belong to anything
    // by now: reading an option changes nothing there.
    let done = unsafe { libc::getsockopt(number, level, name, (&raw mut value).cast(), &raw mut length) };
    if done == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

fn set_option(number: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the value is an int of `length` bytes on this stack frame. Should the number be another socket's by now,
    // that one is asked for signs of life more often, which harms nobody.
    let done = unsafe { libc::setsockopt(number, level, name, (&raw const value).cast(), length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_round_trip_time_is_known_while_the_connection_lives_and_not_when_its_number_is_anothers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let near = listener.accept().await.unwrap().0;
        let probe = Probe::of(&near).unwrap();
        let rtt = probe.rtt().unwrap();
        assert!(rtt > Duration::ZERO && rtt < Duration::from_secs(1), "{rtt:?}");
        let other = Probe::of(&far).unwrap();
        assert_eq!(Probe { number: other.number, ..probe }.rtt(), None, "another socket's number");
        drop(near);
        assert_eq!(probe.rtt(), None);
    }
}
