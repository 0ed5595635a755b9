//! More sockets for one UDP address, so that tunnel datagrams are received on every processor core. A program in the
//! kernel picks the socket: the first one for whatever is not tunnel, so that QUIC does not notice, one of the others by
//! the sender's address and port. By the sender, not by the id in the datagram: the kernel merges neighbours of one
//! sender whatever their ids are, and one sender's datagrams must not overtake each other on different cores.

use std::io;
use std::net::UdpSocket;

/// As many as anybody has cores for.
pub const MOST: usize = 256;

/// Sockets beside `first`, of its address. They must be read until the port ends.
///
/// # Errors
/// What the system does not allow; `first` goes on alone.
#[cfg(target_os = "linux")]
pub fn beside(first: &UdpSocket, count: usize) -> io::Result<Vec<UdpSocket>> {
    use socket2::{Domain, SockRef, Socket, Type};

    let address = first.local_addr()?;
    // Only now: until it was bound, nobody else could have the address, whoever else shares theirs.
    SockRef::from(first).set_reuse_port(true)?;
    let mut all = Vec::new();
    for _ in 0..count.min(MOST) {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(SockRef::from(first).only_v6()?)?;
        }
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        all.push(socket.into());
    }
    steer(first, all.len())?;
    Ok(all)
}

/// No system but Linux steers so.
#[cfg(not(target_os = "linux"))]
pub fn beside(_: &UdpSocket, _: usize) -> io::Result<Vec<UdpSocket>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Gives the sockets of the address their program. It is asked with the UDP header taken off, and answers with the place
/// of a socket in the order in which they were bound. A datagram that it cannot read (an empty one) goes to the first.
#[cfg(target_os = "linux")]
fn steer(first: &UdpSocket, count: usize) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    use libc::{
        BPF_A, BPF_ABS, BPF_ADD, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_MISC, BPF_MOD,
        BPF_MUL, BPF_RET, BPF_RSH, BPF_TAX, BPF_X, BPF_XOR,
    };

    // Where the IP header begins, which the program may reach too.
    let ip = |offset: u32| (libc::SKF_NET_OFF as u32).wrapping_add(offset);
    let load = |size: u32, offset: u32| step(BPF_LD | size | BPF_ABS, offset);
    let count = u32::try_from(count).unwrap_or(1).max(1);
    let jump = |k: u32, yes: u8, no: u8| libc::sock_filter { jt: yes, jf: no, ..step(BPF_JMP | BPF_JEQ | BPF_K, k) };
    let mut program = [
        load(BPF_B, 0),
        step(BPF_ALU | BPF_AND | BPF_K, 0xC0),
        // Other kinds: to the last line.
        jump(0x80, 0, 16),
        load(BPF_B, ip(0)),
        step(BPF_ALU | BPF_AND | BPF_K, 0xF0),
        jump(0x60, 4, 0),
        // IPv4: the lower half of the sender's address, and its port.
        load(BPF_H, ip(14)),
        step(BPF_MISC | BPF_TAX, 0),
        load(BPF_H, ip(20)),
        step(libc::BPF_JMP | libc::BPF_JA, 3),
        // IPv6: the same.
        load(BPF_H, ip(22)),
        step(BPF_MISC | BPF_TAX, 0),
        load(BPF_H, ip(40)),
        step(BPF_ALU | BPF_XOR | BPF_X, 0),
        // Neighbouring ports are told apart by their lower bits, or by none: mixed, then the upper half.
        step(BPF_ALU | BPF_MUL | BPF_K, 0x9E37_79B1),
        step(BPF_ALU | BPF_RSH | BPF_K, 16),
        step(BPF_ALU | BPF_MOD | BPF_K, count),
        step(BPF_ALU | BPF_ADD | BPF_K, 1),
        step(BPF_RET | BPF_A, 0),
        step(BPF_RET | BPF_K, 0),
    ];
    let program =
        libc::sock_fprog { len: libc::c_ushort::try_from(program.len()).unwrap_or(0), filter: program.as_mut_ptr() };
    // SAFETY: the descriptor is open for as long as it is borrowed; the pointer is to a sock_fprog of the length given,
    // whose filter has as many lines as it says and lives until the call returns. The kernel copies and checks it.
    let done = unsafe {
        libc::setsockopt(
            first.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(target_os = "linux")]
fn step(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt: 0, jf: 0, k }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sockets(address: &str, count: usize) -> Option<Vec<UdpSocket>> {
        let first = UdpSocket::bind(address).ok()?;
        let mut all = beside(&first, count).unwrap();
        all.insert(0, first);
        for socket in &all {
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        }
        Some(all)
    }

    /// Which socket got a datagram.
    fn at(sockets: &[UdpSocket]) -> usize {
        for socket in sockets {
            socket.set_nonblocking(true).unwrap();
        }
        loop {
            if let Some(place) = sockets.iter().position(|s| s.recv(&mut [0; 100]).is_ok()) {
                return place;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn quic_goes_to_the_first_socket_and_each_tunnel_sender_to_one_of_the_others() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Some(all) = sockets(address, 3) else { continue };
            let to = all[0].local_addr().unwrap();
            let mut used = [0; 4];
            for _ in 0..64 {
                let sender = UdpSocket::bind(address).unwrap();
                let send = |bytes: &[u8]| {
                    sender.send_to(bytes, to).unwrap();
                    at(&all)
                };
                for quic in [&[0x40, 1][..], &[0x7f], &[0xc0], &[0xff, 1, 2], &[]] {
                    assert_eq!(send(quic), 0, "{quic:?}");
                }
                let own = send(&[0x80, 1]);
                assert!(own > 0);
                for tunnel in [&[0x80][..], &[0xbf, 9, 9], &[0x90; 90]] {
                    assert_eq!(send(tunnel), own, "one sender's stay together");
                }
                used[own] += 1;
            }
            assert!(used[1..].iter().all(|n| *n > 4), "{used:?}");
        }
    }

    #[test]
    fn an_address_that_somebody_shares_is_not_taken_by_another_relay() {
        let all = sockets("127.0.0.1:0", 2).unwrap();
        assert!(UdpSocket::bind(all[0].local_addr().unwrap()).is_err());
    }
}
