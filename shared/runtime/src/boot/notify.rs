//! Words to systemd (`sd_notify(3)`): one datagram to the socket named by `NOTIFY_SOCKET`.

use std::ffi::{OsStr, OsString};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Sends one state; without systemd, nothing. A failure is worth a line, never more: the service runs either way.
pub(super) fn send(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|s| !s.is_empty()) else { return };
    // RELOADING asks for the time of the monotonic clock besides.
    let text =
        if state == "RELOADING=1" { format!("{state}\nMONOTONIC_USEC={}", monotonic_usec()) } else { state.to_owned() };
    if let Err(error) = send_to(&socket, &text) {
        tracing::warn!(%error, state, "systemd was not told");
    }
}

fn send_to(socket: &OsStr, text: &str) -> std::io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    // A full queue at systemd must not hold a worker.
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(text.as_bytes(), &address).map(drop)
}

/// How often to beat: half of what systemd waits for. `None` when it does not watch this process.
pub(super) fn watchdog_interval() -> Option<Duration> {
    interval(std::env::var_os("WATCHDOG_USEC"), std::env::var_os("WATCHDOG_PID"), std::process::id())
}

fn interval(usec: Option<OsString>, pid: Option<OsString>, ours: u32) -> Option<Duration> {
    let usec: u64 = usec?.to_str()?.parse().ok().filter(|u| *u > 0)?;
    let for_us = pid.is_none_or(|p| p.to_str().and_then(|p| p.parse().ok()) == Some(ours));
    for_us.then(|| Duration::from_micros(usec / 2).max(Duration::from_millis(1)))
}

fn monotonic_usec() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec on this stack frame.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_reaches_a_path_and_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("hedgerow-test-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (receiver, address) in
            [(UnixDatagram::bind(&path).unwrap(), path.into_os_string()), (by_name, format!("@{name}").into())]
        {
            send_to(&address, "READY=1").unwrap();
            let mut buffer = [0; 64];
            let n = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..n], b"READY=1");
        }
        assert!(send_to(OsStr::new("/nonexistent/notify"), "READY=1").is_err());
    }

    #[test]
    fn the_watchdog_beats_at_half_time_and_only_for_this_process() {
        let some = |s: &str| Some(OsString::from(s));
        assert_eq!(interval(some("30000000"), some("7"), 7), Some(Duration::from_secs(15)));
        assert_eq!(interval(some("30000000"), None, 7), Some(Duration::from_secs(15)));
        assert_eq!(interval(some("30000000"), some("8"), 7), None);
        assert_eq!(interval(some("x"), None, 7), None);
        assert_eq!(interval(some("0"), None, 7), None);
        assert_eq!(interval(None, None, 7), None);
    }
}
