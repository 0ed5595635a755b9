//! What a bench is doing now: one line on a terminal, nothing elsewhere.

use std::io::{IsTerminal, Write};

/// Steps of a bench.
pub(crate) struct Progress {
    steps: usize,
    step: usize,
}

impl Progress {
    pub(crate) fn new(steps: usize) -> Self {
        Self { steps, step: 0 }
    }

    pub(crate) fn next(&mut self, what: &str) {
        self.step += 1;
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K[{}/{}] {what}", self.step, self.steps);
            std::io::stderr().flush().ok();
        }
    }

    pub(crate) fn clear(&self) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}
