//! Debian's curl, as applications on a device use it.

use std::process::{Command, Output};
use std::time::Duration;

use crate::process;

/// A curl command that fails on HTTP errors, shows why, and ends within a minute.
#[must_use]
pub fn curl() -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--max-time", "60", "--noproxy", ""]);
    // A user's own proxy settings are not part of the test.
    for variable in ["http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(variable);
    }
    command
}

/// Runs it; panics with its words when it fails. Returns what it printed.
#[must_use]
pub fn text(command: &mut Command) -> String {
    String::from_utf8(process::run(command, Duration::from_secs(120)).stdout).expect("text")
}

/// Runs it, whatever comes of it.
#[must_use]
pub fn attempt(command: &mut Command) -> Output {
    process::try_run(command, Duration::from_secs(120))
}
