//! Processes of a subject: started, waited for, measured from /proc, and ended with the bench.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// A child that does not outlive the bench.
pub(crate) struct Process(Child);

impl Process {
    /// Starts a command; its output goes to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let file = std::fs::File::create(log)?;
        Self::spawn(command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file))
    }

    /// Starts a command that is talked to by lines: what it reads and what it writes.
    pub(crate) fn talking(command: &mut Command) -> anyhow::Result<(Self, ChildStdin, ChildStdout)> {
        let mut process = Self::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let (input, output) = (process.0.stdin.take(), process.0.stdout.take());
        Ok((process, input.context("no way in")?, output.context("no way out")?))
    }

    fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        use std::os::unix::process::CommandExt;
        // SAFETY: prctl with these arguments is async-signal-safe and touches no memory of the parent.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Self(child))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    /// Ends it with SIGTERM, so that it ends its own children, and kills it after `patience`.
    pub(crate) fn stop(&mut self, patience: Duration) {
        let Ok(pid) = i32::try_from(self.0.id()) else { return };
        // SAFETY: kill has no memory effects; the child has not been waited for, so the pid is still its.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if self.has_ended() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(20));
    }
}

/// Whether a process has ended; who started it may not have asked yet.
pub(crate) fn is_gone(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, fields)| fields.trim_start().starts_with(['Z', 'X']))
}

/// CPU seconds of a process, user and system.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0.0 };
    // The name in brackets may hold anything; the fields begin after the last bracket.
    let Some((_, fields)) = stat.rsplit_once(')') else { return 0.0 };
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    // SAFETY: sysconf reads a constant of the system.
    ticks as f64 / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}

/// CPU seconds of a process and of those it started.
pub(crate) fn cpu_of_tree(pid: u32) -> f64 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    cpu_seconds(pid) + children.split_whitespace().filter_map(|c| c.parse().ok()).map(cpu_of_tree).sum::<f64>()
}

/// Proportional set size, bytes.
pub(crate) fn memory_of_tree(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let own: u64 = rollup
        .lines()
        .find_map(|l| l.strip_prefix("Pss:"))
        .and_then(|l| l.split_whitespace().next())
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    own * 1024 + children.split_whitespace().filter_map(|c| c.parse().ok()).map(memory_of_tree).sum::<u64>()
}

/// One GET at an admin listener.
pub(crate) fn http_get(address: &str, path: &str) -> anyhow::Result<String> {
    let mut tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(tcp, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut reply = String::new();
    tcp.read_to_string(&mut reply)?;
    let (head, body) = reply.split_once("\r\n\r\n").context("not an HTTP answer")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{path}: {}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

/// The sum of a metric over its labels.
pub(crate) fn metric(metrics: &str, name: &str) -> f64 {
    let of = |l: &&str| l.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
    metrics.lines().filter(of).filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// File descriptors that a load tool may have.
const DESCRIPTORS: u64 = 20_000;

/// Lets this process open as many files as a load tool needs.
pub(crate) fn raise_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write one rlimit that lives on this stack frame. Where it cannot be raised, opening
    // sockets fails and says so.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max.min(DESCRIPTORS);
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Takes memory as it is written to: a load tool has thousands of receive buffers of megabytes, and a few pages of each
/// in use. A huge page for each, or an allocator that clears them itself, would need all of this machine's memory.
pub(crate) fn take_memory_late() {
    // SAFETY: both set a parameter of this process. A threshold that is set does not grow: glibc gives larger buffers
    // mappings of their own, which the kernel clears page by page.
    unsafe {
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
        #[cfg(target_env = "gnu")]
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
    }
}

/// Waits until something listens on a loopback port.
pub(crate) fn wait_for_port(port: u16, limit: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > deadline {
            bail!("nothing listens on 127.0.0.1:{port} after {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
