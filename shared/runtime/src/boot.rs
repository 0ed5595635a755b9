//! The life of a process: runtime, signals, the word to systemd, exit code.
//!
//! A role's main future runs under `run`. The first TERM or INT makes `Context::draining` complete: the role stops
//! accepting, tells its peers, waits for its streams, and returns. It has `Context::drain_deadline` for that; after
//! it, or at a second signal, the process ends anyway. HUP calls what `on_reload` named; USR1 logs what `on_dump`
//! returns.

mod notify;

use std::future::Future;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::admin::Readiness;
use crate::config::{self, ConfigFault};
use crate::scope::Scope;
use crate::telemetry::{self, Logging, Metrics};

/// A failure without a better code.
const EXIT_FAILURE: u8 = 1;
/// `EX_UNAVAILABLE` of sysexits.h.
const EXIT_UNREACHABLE: u8 = 69;
/// How long tasks may take to end after the role's main future returned.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// What a drain may take beyond the deadline that the role was told: telling the last peers, flushing.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// An error that means "what this depends on cannot be reached": the process exits with 69.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(pub String);

type Reload = Box<dyn Fn() -> anyhow::Result<()> + Send + Sync>;
type Dump = Box<dyn Fn() -> serde_json::Value + Send + Sync>;

/// What a role gets from its process. Clones are the same.
#[derive(Clone)]
pub struct Context {
    /// Every task of the process.
    pub scope: Scope,
    /// What must be so before the process is ready.
    pub readiness: Readiness,
    /// The metrics of the process.
    pub metrics: Metrics,
    drain: Scope,
    deadline: Duration,
    hooks: Arc<Mutex<Hooks>>,
}

#[derive(Default)]
struct Hooks {
    reload: Option<Reload>,
    dump: Option<Dump>,
}

impl Context {
    /// A context outside `run`, for tests and for roles that share a process: signals do not reach it, `drain` does.
    #[must_use]
    pub fn new(deadline: Duration) -> Self {
        Self {
            scope: Scope::new(),
            readiness: Readiness::default(),
            metrics: Metrics::install(),
            drain: Scope::new(),
            deadline,
            hooks: Arc::default(),
        }
    }

    /// Completes when the process is to drain. Cancel safe.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    /// Whether the process drains.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Begins the drain, as TERM does: not ready from here on.
    pub fn drain(&self) {
        self.readiness.drain();
        self.drain.cancel();
    }

    /// How long the role may wait for its streams once it drains.
    #[must_use]
    pub fn drain_deadline(&self) -> Duration {
        self.deadline
    }

    /// Says that the role serves now: to systemd, and in the log.
    pub fn ready(&self) {
        notify::send("READY=1");
        tracing::info!("ready");
    }

    /// What HUP does. The callback parses, validates and swaps as a whole; on an error the old state stays.
    pub fn on_reload(&self, reload: impl Fn() -> anyhow::Result<()> + Send + Sync + 'static) {
        self.hooks.lock().reload = Some(Box::new(reload));
    }

    /// What USR1 writes to the log. No secrets.
    pub fn on_dump(&self, dump: impl Fn() -> serde_json::Value + Send + Sync + 'static) {
        self.hooks.lock().dump = Some(Box::new(dump));
    }

    fn reload(&self) {
        let hooks = self.hooks.lock();
        let Some(reload) = &hooks.reload else {
            tracing::warn!("reload asked for, but nothing here can be reloaded without a restart");
            return;
        };
        notify::send("RELOADING=1");
        match reload() {
            Ok(()) => {
                metrics::counter!("hedgerow_config_reloads_total", "result" => "ok").increment(1);
                tracing::info!("reloaded");
            }
            Err(error) => {
                metrics::counter!("hedgerow_config_reloads_total", "result" => "refused").increment(1);
                tracing::error!(error = format!("{error:#}"), "reloading was refused; what was in use stays");
            }
        }
        notify::send("READY=1");
    }

    fn dump(&self) {
        let state = self.hooks.lock().dump.as_ref().map(|dump| dump());
        let state = state.unwrap_or(serde_json::Value::Null);
        tracing::info!(draining = self.is_draining(), not_ready = self.readiness.failing(), %state, "state");
    }
}

/// Runs a role as this process: logs, metrics, as many workers as cores, every file descriptor the system grants,
/// signals, systemd. `deadline` is how long a drain may take.
pub fn run<F, Fut>(name: &'static str, logging: &Logging, deadline: Duration, main: F) -> ExitCode
where
    F: FnOnce(Context) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    if let Err(fault) = telemetry::init_logs(logging) {
        return failed(&fault.into());
    }
    log_panics();
    raise_descriptor_limit();
    keep_bulk_buffers();
    let runtime = match runtime(name) {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::new(error).context("the async runtime cannot start")),
    };
    let result = runtime.block_on(live(name, deadline, main));
    // Blocking look-ups (names, files) that hang must not hold the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Runs a short command of the command line: no signals handled, no logs, one thread.
pub fn block_on<Fut: Future<Output = anyhow::Result<()>>>(command: Fut) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(anyhow::Error::new).and_then(|r| {
        let result = r.block_on(command);
        r.shutdown_timeout(Duration::from_millis(100));
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

async fn live<F, Fut>(name: &'static str, deadline: Duration, main: F) -> anyhow::Result<()>
where
    F: FnOnce(Context) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let context = Context::new(deadline);
    let mut signals = Signals::new()?;
    context.scope.spawn(housekeeping(context.metrics.clone()));
    tracing::info!(
        role = name,
        version = telemetry::VERSION,
        commit = telemetry::commit(),
        pid = std::process::id(),
        "starting"
    );
    let mut role = std::pin::pin!(main(context.clone()));
    let mut overrun = std::pin::pin!(overrun(&context));
    let result = loop {
        tokio::select! {
            result = &mut role => break result,
            order = signals.next() => match order {
                Order::Reload => context.reload(),
                Order::Dump => context.dump(),
                Order::Stop if !context.is_draining() => {
                    tracing::info!(deadline_seconds = deadline.as_secs_f64(), "draining; a second signal stops at once");
                    notify::send("STOPPING=1");
                    context.drain();
                }
                Order::Stop => anyhow::bail!("stopped at once by a second signal"),
            },
            () = &mut overrun => {
                tracing::warn!("the drain took longer than its deadline; what was still open is cut");
                break Ok(());
            }
        }
    };
    notify::send("STOPPING=1");
    context.drain();
    let left = context.scope.stop(STOP_TIMEOUT).await;
    if left > 0 {
        tracing::warn!(tasks = left, "tasks did not end in time");
    }
    telemetry::note_repeats();
    tracing::info!(ok = result.is_ok(), "stopped");
    result
}

/// Completes when the drain has lasted too long.
async fn overrun(context: &Context) {
    context.draining().await;
    tokio::time::sleep(context.deadline + DRAIN_GRACE).await;
}

/// What a signal asks for.
enum Order {
    Stop,
    Reload,
    Dump,
}

struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
    usr1: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
            usr1: signal(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.term.recv() => Order::Stop,
            _ = self.int.recv() => Order::Stop,
            _ = self.hup.recv() => Order::Reload,
            _ = self.usr1.recv() => Order::Dump,
        }
    }
}

/// Beats for systemd's watchdog and what must be done now and then. It runs as a task beside all others, so a
/// runtime that no longer turns stops beating.
async fn housekeeping(metrics: Metrics) {
    let beat = notify::watchdog_interval();
    let mut beats = tokio::time::interval(beat.unwrap_or(telemetry::REPEATS_WINDOW));
    let mut chores = tokio::time::interval(telemetry::REPEATS_WINDOW);
    loop {
        tokio::select! {
            _ = beats.tick() => if beat.is_some() { notify::send("WATCHDOG=1") },
            _ = chores.tick() => {
                telemetry::note_repeats();
                metrics.upkeep();
            }
        }
    }
}

fn runtime(name: &'static str) -> std::io::Result<tokio::runtime::Runtime> {
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let next = AtomicUsize::new(0);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_name_fn(move || format!("{name}-{}", next.fetch_add(1, Ordering::Relaxed)))
        .enable_all()
        .build()
}

/// Memory that the allocator keeps for the next bulk buffer instead of giving it back, bytes an arena.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_MEMORY: libc::c_int = 32 * 1024 * 1024;

/// Bulk moves through buffers of 256 to 512 KiB that live for milliseconds. By default glibc hands such memory back to
/// the system at once and takes it again page by page: 186,000 page faults a GiB at a node (2026-11-22), a third of its
/// CPU.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_bulk_buffers() {
    for parameter in [libc::M_TRIM_THRESHOLD, libc::M_MMAP_THRESHOLD] {
        // SAFETY: mallopt sets a number inside the allocator; no other thread runs yet.
        if unsafe { libc::mallopt(parameter, KEPT_MEMORY) } == 0 {
            tracing::debug!(parameter, "the allocator keeps its own thresholds");
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_bulk_buffers() {}

/// Every connection is a descriptor: takes all that the system grants without privilege.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write one rlimit that lives on this stack frame.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    if raised {
        tracing::debug!(descriptors = limit.rlim_cur, "descriptor limit raised");
    } else {
        tracing::warn!("the limit of open files could not be raised; LimitNOFILE= in the unit, or ulimit -n");
    }
}

/// A panic is a bug in one task; it goes to the log like everything else, with its place.
fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string);
        let text = info.payload_as_str().unwrap_or("no text");
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        tracing::error!(place, thread, "panic: {text}");
    }));
}

/// Prints an error once, with its causes, and turns it into the exit code.
pub fn failed(error: &anyhow::Error) -> ExitCode {
    let mut text = format!("error: {error}\n");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("  because: {cause}\n"));
    }
    // There is nowhere to say that standard error is closed.
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::from(exit_code(error))
}

/// 78 for a wrong configuration, 69 for an unreachable upstream, else 1.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.is::<ConfigFault>() {
            return config::EXIT_CODE;
        }
        if cause.is::<Unreachable>() {
            return EXIT_UNREACHABLE;
        }
    }
    EXIT_FAILURE
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn exit_codes_are_found_below_their_context() {
        let config = Err::<(), _>(ConfigFault::new("x")).context("starting").unwrap_err();
        assert_eq!(exit_code(&config), 78);
        let upstream = Err::<(), _>(Unreachable("the relay".into())).context("a").context("b").unwrap_err();
        assert_eq!(exit_code(&upstream), 69);
        assert_eq!(exit_code(&anyhow::anyhow!("x")), 1);
    }

    #[tokio::test]
    async fn a_drain_makes_not_ready_and_wakes_the_role() {
        let context = Context::new(Duration::from_secs(1));
        assert_eq!(context.readiness.failing(), None);
        context.drain();
        context.draining().await;
        assert!(context.is_draining() && context.readiness.failing().is_some());
    }

    #[tokio::test]
    async fn a_refused_reload_keeps_going_and_a_dump_without_a_hook_is_harmless() {
        let context = Context::new(Duration::from_secs(1));
        context.reload();
        context.dump();
        let calls = Arc::new(AtomicUsize::new(0));
        let seen = calls.clone();
        context.on_reload(move || {
            seen.fetch_add(1, Ordering::Relaxed);
            anyhow::bail!("line 3 is wrong")
        });
        context.reload();
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_descriptor_limit_reaches_what_the_system_grants() {
        raise_descriptor_limit();
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: writes one rlimit on this stack frame.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
        assert_eq!(limit.rlim_cur, limit.rlim_max);
    }
}
