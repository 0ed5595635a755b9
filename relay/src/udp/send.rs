//! Sends several datagrams of one size in one call (UDP_SEGMENT). quinn-udp does too, but when a peer's datagrams are
//! too large for a path it takes the kernel's answer for a sign that nothing can be sent this way, and stops for everybody.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::SockAddr;

/// Room for both control messages, as the kernel wants it aligned.
#[repr(C, align(8))]
struct Room([u8; 96]);

/// One call. Datagrams of `stride` bytes, the last one maybe shorter; `local` is the address of ours they come from.
///
/// # Errors
/// As sendmsg(2): `WouldBlock` when the socket is full, `EMSGSIZE` and `EINVAL` when the path takes none so large.
#[cfg(target_os = "linux")]
pub(super) fn send(
    socket: BorrowedFd<'_>,
    to: SocketAddr,
    local: Option<IpAddr>,
    stride: usize,
    datagrams: &[u8],
) -> io::Result<()> {
    let to = SockAddr::from(to);
    let mut room = Room([0; 96]);
    let mut piece = libc::iovec { iov_base: datagrams.as_ptr().cast_mut().cast(), iov_len: datagrams.len() };
    // SAFETY: a msghdr of zeros is valid: no name, no data, no control messages.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    let mut used = 0;
    if stride < datagrams.len() {
        // Callers send no more than fits into one UDP datagram.
        let size = u16::try_from(stride).unwrap_or(u16::MAX);
        used = put(&mut room, used, libc::SOL_UDP, libc::UDP_SEGMENT, size);
    }
    match local {
        Some(IpAddr::V4(ip)) => {
            let from = libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: from, ipi_addr: libc::in_addr { s_addr: 0 } };
            used = put(&mut room, used, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
        }
        Some(IpAddr::V6(ip)) => {
            let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: 0 };
            used = put(&mut room, used, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
        }
        None => {}
    }
    if used > 0 {
        message.msg_control = (&raw mut room).cast();
        message.msg_controllen = used as _;
    }
    loop {
        // SAFETY: everything that the message points to (the address, the datagrams, the control messages) lives until
        // the call returns, has the lengths given, and is only read.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Appends a control message at `at`; where the next one goes.
#[cfg(target_os = "linux")]
fn put<T: Copy>(room: &mut Room, at: usize, level: libc::c_int, kind: libc::c_int, value: T) -> usize {
    let length = u32::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: both only compute.
    let (space, whole) = unsafe { (libc::CMSG_SPACE(length) as usize, libc::CMSG_LEN(length) as usize) };
    let place = &mut room.0[at..at + space];
    let header = place.as_mut_ptr().cast::<libc::cmsghdr>();
    // SAFETY: `place` is as long as CMSG_SPACE says, so header and value lie within it; `Room` is aligned as the kernel
    // wants control messages, and `at` is a sum of CMSG_SPACEs, which keep that alignment.
    unsafe {
        (*header).cmsg_len = whole as _;
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
    }
    at + space
}

/// Where there is no UDP_SEGMENT: one datagram a call, from the address that the system chooses.
#[cfg(not(target_os = "linux"))]
pub(super) fn send(
    socket: BorrowedFd<'_>,
    to: SocketAddr,
    _local: Option<IpAddr>,
    stride: usize,
    datagrams: &[u8],
) -> io::Result<()> {
    for datagram in datagrams.chunks(stride) {
        socket2::SockRef::from(&socket).send_to(datagram, &SockAddr::from(to))?;
    }
    Ok(())
}
