//! Each world in a process of its own, forked from this one: nothing that another world has left in a static (tokio's
//! counter of runtimes seeds the choices of `select!`, for one) changes it, and a seed replays alone as it ran among a
//! thousand.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;

/// What `work` returns, done in a forked process; `None` when that died.
pub(crate) fn run(work: impl FnOnce() -> Vec<u8> + Send + 'static) -> Option<Vec<u8>> {
    let mut ends = [0; 2];
    // SAFETY: `ends` is a valid array of two ints.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return None;
    }
    // SAFETY: pipe2 succeeded: both are open descriptors that nobody else owns.
    let (mut from_child, to_parent) = unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) };
    // SAFETY: the child has this thread only. It takes no lock that another thread of the parent may have held (glibc
    // hands over its allocator in order), starts a thread for the world, and leaves by `_exit`.
    match unsafe { libc::fork() } {
        -1 => None,
        0 => child(to_parent, work),
        pid => {
            drop(to_parent);
            let mut length = [0; 8];
            let answer = from_child.read_exact(&mut length).ok().and_then(|()| {
                // Not to the end of the pipe: a sibling that was forked meanwhile has it open too.
                let mut bytes = vec![0; usize::try_from(u64::from_be_bytes(length)).ok()?];
                from_child.read_exact(&mut bytes).ok()?;
                Some(bytes)
            });
            // SAFETY: `pid` is our own child, waited for once.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            answer
        }
    }
}

fn child(mut to_parent: File, work: impl FnOnce() -> Vec<u8> + Send + 'static) -> ! {
    // On a thread of its own: this one's hash maps have their keys already.
    if let Ok(bytes) = std::thread::spawn(work).join() {
        let _ = to_parent.write_all(&(bytes.len() as u64).to_be_bytes());
        let _ = to_parent.write_all(&bytes);
    }
    // SAFETY: ends this process at once, without the parent's exit handlers.
    unsafe { libc::_exit(0) }
}
