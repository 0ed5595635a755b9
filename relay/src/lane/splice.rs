//! splice(2) between two sockets through a pipe: the bytes never enter this process.
//!
//! A pipe is taken when the first bytes of a burst are there and goes back when the burst is over, so that an idle
//! lane holds none and few pipes serve many lanes. Without a pipe to be had (descriptors, the user's share of pipe
//! memory) the burst is copied.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use hedgerow_runtime::fair::Share;
use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::join::Toll;
use crate::fair::Grant;

/// What a pipe holds when the system allows it; its own default (64 KiB) serves too.
const PIPE: usize = 1024 * 1024;
/// Pipes kept for the next burst. A user may have 64 MiB of pipe memory by default; these take half.
const SPARE_PIPES: usize = 32;
/// What is copied at once where no pipe can be had.
const FALLBACK: usize = 64 * 1024;

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
}

static SPARE: Mutex<Vec<Pipe>> = Mutex::new(Vec::new());

impl Pipe {
    fn take() -> io::Result<Self> {
        if let Some(pipe) = SPARE.lock().pop() {
            return Ok(pipe);
        }
        let mut ends = [0; 2];
        // SAFETY: `ends` is a valid array of two ints.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: pipe2 succeeded: both are open descriptors that nobody else owns.
        let (read, write) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
        // SAFETY: fcntl on an open descriptor with an int argument.
        let size = unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE as libc::c_int) };
        Ok(Self { read, write, size: usize::try_from(size).unwrap_or(FALLBACK) })
    }

    /// Gives an empty pipe back. One that still holds bytes is dropped instead.
    fn put_back(self) {
        let mut spare = SPARE.lock();
        if spare.len() < SPARE_PIPES {
            spare.push(self);
        }
    }
}

/// Moves bytes until EOF, an error, or `stop` while nothing is held.
pub(super) async fn direction(
    from: &TcpStream,
    to: &TcpStream,
    toll: Toll<'_>,
    stop: &CancellationToken,
) -> io::Result<()> {
    loop {
        // Paused, if it must be, before there is a pipe.
        let reading = async {
            from.readable().await?;
            io::Result::Ok(toll.meter.admit(toll.way).await)
        };
        let grant = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            grant = reading => grant?,
        };
        // Boxed: an idle lane has no burst.
        let open = match Pipe::take() {
            Ok(pipe) => Box::pin(burst(pipe, from, to, toll, grant, stop)).await?,
            Err(error) => {
                tracing::debug!(%error, "no pipe: copying");
                metrics::counter!("hedgerow_relay_splice_fallbacks_total").increment(1);
                Box::pin(copy_burst(from, to, toll, grant)).await?
            }
        };
        if !open {
            // The other end must see the end of the data, not a reset.
            shut_write(to);
            return Ok(());
        }
    }
}

/// Splices while there are bytes and grants; `false` at EOF.
async fn burst(
    pipe: Pipe,
    from: &TcpStream,
    to: &TcpStream,
    toll: Toll<'_>,
    mut grant: Grant<'_>,
    stop: &CancellationToken,
) -> io::Result<bool> {
    let mut share = Share::default();
    loop {
        let most = grant.of(pipe.size);
        let filled = match from.try_io(Interest::READABLE, || splice(from.as_fd(), pipe.write.as_fd(), most)) {
            Ok(0) => {
                pipe.put_back();
                return Ok(false);
            }
            Ok(filled) => filled,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                pipe.put_back();
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        grant.spend(filled as u64);
        let mut held = filled;
        while held > 0 {
            match to.try_io(Interest::WRITABLE, || splice(pipe.read.as_fd(), to.as_fd(), held)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(moved) => {
                    held -= moved;
                    toll.count.fetch_add(moved as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
                Err(error) => return Err(error),
            }
        }
        if stop.is_cancelled() {
            pipe.put_back();
            return Ok(true);
        }
        match toll.meter.try_admit(toll.way) {
            Some(next) => grant = next,
            None => {
                pipe.put_back();
                return Ok(true);
            }
        }
        // Sockets that are always ready must not keep the other lanes of this worker waiting.
        share.moved(filled).await;
    }
}

async fn copy_burst(from: &TcpStream, to: &TcpStream, toll: Toll<'_>, mut grant: Grant<'_>) -> io::Result<bool> {
    let mut buffer = vec![0; FALLBACK];
    let mut share = Share::default();
    loop {
        let most = grant.of(FALLBACK);
        let length = match from.try_read(&mut buffer[..most]) {
            Ok(0) => return Ok(false),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        };
        grant.spend(length as u64);
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            match to.try_write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
                Err(error) => return Err(error),
            }
        }
        toll.count.fetch_add(length as u64, Ordering::Relaxed);
        match toll.meter.try_admit(toll.way) {
            Some(next) => grant = next,
            None => return Ok(true),
        }
        share.moved(length).await;
    }
}

fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    loop {
        // SAFETY: both descriptors are open for the length of the call; null offsets are right for pipes and sockets.
        let moved = unsafe {
            libc::splice(from.as_raw_fd(), std::ptr::null_mut(), to.as_raw_fd(), std::ptr::null_mut(), most, flags)
        };
        match usize::try_from(moved) {
            Ok(moved) => return Ok(moved),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Tells the peer that no more comes. Errors mean that it is gone already.
fn shut_write(socket: &TcpStream) {
    let _ = socket2::SockRef::from(socket).shutdown(Shutdown::Write);
}

/// Ends a leg for good.
pub(super) fn shut(socket: &TcpStream) {
    let _ = socket2::SockRef::from(socket).shutdown(Shutdown::Both);
}
