//! What happened in a world, line by line: the product's own log, and what the world itself does, each at its virtual
//! time. The same seed gives the same lines.

use std::cell::RefCell;
use std::io;

use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

#[derive(Default)]
struct Trace {
    begun: Option<Instant>,
    lines: Vec<String>,
}

thread_local! {
    static TRACE: RefCell<Trace> = RefCell::default();
}

/// Begins the trace of this thread, at virtual time 0.
pub(crate) fn begin() {
    TRACE.set(Trace { begun: Some(Instant::now()), lines: Vec::new() });
}

pub(crate) fn line(text: &str) {
    TRACE.with_borrow_mut(|trace| {
        let Some(begun) = trace.begun else { return };
        let at = begun.elapsed().as_secs_f64();
        trace.lines.push(format!("{at:>9.3} {}", text.trim_end()));
    });
}

pub(crate) fn take() -> Vec<String> {
    TRACE.with_borrow_mut(|trace| std::mem::take(&mut trace.lines))
}

/// A short name for all lines together.
pub(crate) fn hash(lines: &[String]) -> String {
    let mut hash = Sha256::new();
    for line in lines {
        hash.update(line.as_bytes());
        hash.update(b"\n");
    }
    data_encoding::HEXLOWER.encode(&hash.finalize()[..8])
}

/// Puts the product's log into the trace, for as long as the guard lives.
pub(crate) fn subscribe() -> tracing::subscriber::DefaultGuard {
    let ours = Targets::new().with_target("hedgerow", LevelFilter::DEBUG).with_target("audit", LevelFilter::INFO);
    let layer = tracing_subscriber::fmt::layer().with_writer(Lines).with_ansi(false).without_time().with_target(false);
    tracing::subscriber::set_default(tracing_subscriber::registry().with(ours).with(layer))
}

struct Lines;

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        line(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
