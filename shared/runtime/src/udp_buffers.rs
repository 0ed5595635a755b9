//! Kernel buffers of UDP sockets: bursts wait there while the receive loop is busy, and what does not fit is lost.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Once;

use socket2::SockRef;

/// What a socket should have each way: a hundred milliseconds at half a gigabit a second.
const WANTED: usize = 7 * 1024 * 1024;

/// Raises both buffers: past the system's limit where this process may (CAP_NET_ADMIN), else up to it; warns once when
/// they stay small.
pub fn raise(socket: &impl AsFd) {
    let fd = socket.as_fd();
    let socket = SockRef::from(&fd);
    force(&fd, libc::SO_RCVBUFFORCE);
    force(&fd, libc::SO_SNDBUFFORCE);
    // The kernel doubles what is asked for, and says the doubled figure.
    let has = |size: std::io::Result<usize>| size.unwrap_or(0) / 2;
    if has(socket.recv_buffer_size()) < WANTED {
        let _ = socket.set_recv_buffer_size(WANTED);
    }
    if has(socket.send_buffer_size()) < WANTED {
        let _ = socket.set_send_buffer_size(WANTED);
    }
    let (receive, send) = (has(socket.recv_buffer_size()), has(socket.send_buffer_size()));
    if receive < WANTED || send < WANTED {
        static WARNED: Once = Once::new();
        WARNED.call_once(|| {
            tracing::warn!(receive, send, "UDP buffers are small, bursts will be lost; run: {}", command());
        });
    }
}

/// What the operator runs to mend it.
fn command() -> String {
    format!("sysctl -w net.core.rmem_max={WANTED} net.core.wmem_max={WANTED}")
}

fn force(fd: &impl AsRawFd, option: libc::c_int) {
    let size = libc::c_int::try_from(WANTED).unwrap_or(libc::c_int::MAX);
    // Refused without the privilege; the ordinary way follows.
    // SAFETY: the descriptor is open for as long as it is borrowed, and the pointer is to an int of the given length.
    let _ = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_grow_as_far_as_the_system_allows() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let before = SockRef::from(&socket).recv_buffer_size().unwrap();
        raise(&socket);
        let after = SockRef::from(&socket).recv_buffer_size().unwrap();
        let limit = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap().trim().parse::<usize>().unwrap();
        assert!(after >= before.max(2 * WANTED.min(limit)), "{before} to {after}, limit {limit}");
        assert_eq!(command(), "sysctl -w net.core.rmem_max=7340032 net.core.wmem_max=7340032");
    }
}
