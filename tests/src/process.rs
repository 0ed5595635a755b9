//! Child processes that do not outlive their test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A child that is killed when it is dropped, or when the test's process ends however it ends.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts a command with its output in `log`.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        use std::os::unix::process::CommandExt;
        let file = std::fs::File::create(log).expect("a log file");
        // SAFETY: prctl with these arguments is async-signal-safe and touches no memory of the parent.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.stdin(Stdio::null()).stdout(file.try_clone().expect("a log file")).stderr(file).spawn();
        Self(child.unwrap_or_else(|e| {
            panic!("cannot start {:?}: {e}; tests/run installs what is missing", command.get_program())
        }))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    /// Asks it to end and waits; kills it after `patience`.
    pub fn stop(&mut self, patience: Duration) {
        signal(self.0.id(), libc::SIGTERM);
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline && !self.has_ended() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(8));
    }
}

/// Sends a signal.
pub fn signal(pid: u32, signal: i32) {
    // SAFETY: kill has no memory effects.
    unsafe { libc::kill(i32::try_from(pid).expect("a pid"), signal) };
}

/// The product's binary, built with the same profile as the tests. `tests/run` builds it first.
#[must_use]
pub fn hedgerow() -> PathBuf {
    let me = std::env::current_exe().expect("the test's own path");
    let folder = me.ancestors().find(|p| p.join("deps").is_dir()).expect("a target folder");
    let binary = folder.join("hedgerow");
    assert!(binary.exists(), "{} is missing: run tests/run, or `cargo build -p hedgerow-cli` first", binary.display());
    binary
}

/// Runs a command to its end within `limit`; panics with its output when it does not succeed.
#[must_use]
pub fn run(command: &mut Command, limit: Duration) -> Output {
    let output = try_run(command, limit);
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a command to its end within `limit`, whatever it returns.
#[must_use]
pub fn try_run(command: &mut Command, limit: Duration) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|e| {
        panic!("cannot start {:?}: {e}; tests/run installs what is missing", command.get_program())
    });
    let pid = child.id();
    let (done, watch) = std::sync::mpsc::sync_channel::<()>(1);
    let watchdog = std::thread::spawn(move || {
        if watch.recv_timeout(limit).is_err() {
            signal(pid, libc::SIGKILL);
        }
    });
    let output = child.wait_with_output().expect("its output");
    let _ = done.send(());
    watchdog.join().expect("the watchdog does not panic");
    output
}

/// A loopback port that nobody listens on, and that no other test or bench gets while this process lives.
#[must_use]
pub fn free_port() -> u16 {
    hedgerow_runtime::loopback::reserve_port().expect("a free port")
}

/// Waits until `ready` says so, or panics with `what`.
pub fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !ready() {
        assert!(Instant::now() < deadline, "{what}: not within {} s", limit.as_secs_f64());
        std::thread::sleep(Duration::from_millis(20));
    }
}
