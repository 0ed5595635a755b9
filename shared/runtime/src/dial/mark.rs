//! `SO_MARK` of this process's own sockets: routes of a tunnel that this process carries must not lead its own traffic
//! back into that tunnel.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::SockRef;

/// 0: none.
static MARK: AtomicU32 = AtomicU32::new(0);

/// Marks every socket that this process opens from now on. Needs CAP_NET_ADMIN.
pub fn set(mark: u32) {
    MARK.store(mark, Ordering::Relaxed);
}

/// The mark, when there is one.
#[must_use]
pub fn get() -> Option<u32> {
    match MARK.load(Ordering::Relaxed) {
        0 => None,
        mark => Some(mark),
    }
}

/// Marks a socket.
///
/// # Errors
/// This process may not.
pub fn apply(socket: &impl AsFd) -> io::Result<()> {
    get().map_or(Ok(()), |mark| SockRef::from(socket).set_mark(mark))
}
