//! What the verbs share: the control socket of a core or relay that runs on this machine.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use hedgerow_runtime::admin::control::{self, ControlError};
use hedgerow_runtime::boot::{self, Unreachable};
use http::Method;
use serde_json::Value;

use crate::output::{self, Column};

/// Which core, and how to print.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct AtCore {
    /// Control socket of the running core
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "HEDGEROW_CORE_SOCKET",
        default_value = "/var/lib/hedgerow/core/control.sock",
        help_heading = "Core"
    )]
    pub core_socket: PathBuf,
    /// Print JSON
    #[arg(long, global = true, env = "HEDGEROW_JSON")]
    pub json: bool,
}

/// Which relay, and how to print.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct AtRelay {
    /// Control socket of the running relay
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "HEDGEROW_RELAY_SOCKET",
        default_value = "/var/lib/hedgerow/relay/control.sock",
        help_heading = "Relay"
    )]
    pub relay_socket: PathBuf,
    /// Print JSON
    #[arg(long, global = true, env = "HEDGEROW_JSON")]
    pub json: bool,
}

impl AtCore {
    /// The socket and the way to print.
    pub(crate) fn at(&self) -> At<'_> {
        At { socket: &self.core_socket, json: self.json }
    }
}

impl AtRelay {
    /// The socket and the way to print.
    pub(crate) fn at(&self) -> At<'_> {
        At { socket: &self.relay_socket, json: self.json }
    }
}

/// A socket and a way to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    pub(super) socket: &'a Path,
    pub(super) json: bool,
}

impl At<'_> {
    /// Reads.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send(Method::GET, path, None).await
    }

    /// Adds or acts.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(Method::POST, path, Some(body)).await
    }

    /// Replaces.
    pub(crate) async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(Method::PUT, path, Some(body)).await
    }

    /// Removes.
    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.send(Method::DELETE, path, None).await
    }

    /// Reads a whole list, page by page: `{items, next}` until `next` is null.
    pub(crate) async fn list(&self, path: &str) -> anyhow::Result<Value> {
        let mut all = Vec::new();
        let mut page = self.get(path).await?;
        loop {
            all.append(page["items"].as_array_mut().context("the answer is not a list")?);
            let Some(next) = page["next"].as_str().filter(|n| !n.is_empty()) else { return Ok(all.into()) };
            let mark = if path.contains('?') { '&' } else { '?' };
            page = self.get(&format!("{path}{mark}after={}", segment(next))).await?;
        }
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        control::request(self.socket, method, path, body).await.map_err(|error| match error {
            e @ (ControlError::NoSocket(_) | ControlError::NobodyAnswers(_) | ControlError::TimedOut(_)) => {
                anyhow::Error::new(Unreachable(e.to_string()))
            }
            other => other.into(),
        })
    }

    /// Prints a list.
    pub(crate) fn table(&self, rows: &Value, columns: &[Column], nothing: &str) -> anyhow::Result<()> {
        output::answer(self.json, rows, |rows| output::table(rows, columns, nothing))
    }

    /// Prints one thing.
    pub(crate) fn record(&self, value: &Value, columns: &[Column]) -> anyhow::Result<()> {
        output::answer(self.json, value, |value| output::record(value, columns))
    }

    /// Prints one sentence, or the answer as JSON.
    pub(crate) fn done(&self, value: &Value, sentence: &str) -> anyhow::Result<()> {
        output::answer(self.json, value, |_| format!("{sentence}\n"))
    }
}

/// After a revocation: who has not heard of it in time.
pub(crate) fn not_yet(answer: &Value) -> String {
    let late: Vec<&str> = answer["not_yet"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if late.is_empty() { String::new() } else { format!("; not yet known to {}", late.join(", ")) }
}

/// Runs a verb.
pub(crate) fn verb(command: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    boot::block_on(command)
}

/// A segment of a path: everything but letters, digits and a few harmless marks is escaped.
pub(crate) fn segment(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, b| {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'@' => out.push(char::from(b)),
            _ => out.push_str(&format!("%{b:02X}")),
        }
        out
    })
}

/// `90s`, `30m`, `24h`, `7d`: a length of time in seconds.
pub(crate) fn duration(text: &str) -> Result<u64, String> {
    let wrong = || "expected a number and s, m, h or d, such as 24h".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(factor).filter(|s| *s > 0).ok_or_else(wrong)
}

/// `2026-11-27` (its begin, UTC), seconds since 1970, or so long ago (`24h`): seconds since 1970.
pub(crate) fn moment(text: &str) -> Result<u64, String> {
    let wrong = || "expected a day such as 2026-11-27, seconds since 1970, or so long ago such as 24h".to_owned();
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    if let Ok(ago) = duration(text) {
        return Ok(hedgerow_runtime::clock::now().0.saturating_sub(ago));
    }
    day(text).ok_or_else(wrong)
}

/// `2027-01-31`, the begin of that day in UTC: seconds since 1970.
pub(crate) fn day(text: &str) -> Option<u64> {
    let mut parts = text.split('-').map(str::parse::<u64>);
    let (Some(Ok(year)), Some(Ok(month)), Some(Ok(day)), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Howard Hinnant's days_from_civil.
    let y = year - u64::from(month <= 2);
    let doy = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let doe = y % 400 * 365 + y % 400 / 4 - y % 400 / 100 + doy;
    let seconds = (y / 400 * 146_097 + doe - 719_468) * 86_400;
    // A day that the month does not have comes out as one of the next.
    let is_there = output::time(seconds).starts_with(&format!("{year:04}-{month:02}-{day:02}"));
    is_there.then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        assert_eq!(["1s", "30m", "24h", "7d"].map(duration), [Ok(1), Ok(1800), Ok(86_400), Ok(604_800)]);
        for bad in ["", "5", "h", "-1h", "0s", "1.5h", "99999999999999999999d", "1\u{e9}"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn moments_are_days_seconds_or_so_long_ago() {
        assert_eq!(moment("1970-01-01"), Ok(0));
        assert_eq!(moment("2000-02-29"), Ok(951_782_400));
        assert_eq!(moment("2026-11-22").map(crate::output::time), Ok("2026-11-22 00:00:00Z".into()));
        assert_eq!(moment("1795309534"), Ok(1_795_309_534));
        assert!(moment("24h").unwrap() > 1_700_000_000);
        for bad in
            ["", "yesterday", "2026-13-01", "2027-02-29", "2026-11", "26-11-22", "1969-12-31", "2026-11-22-1", "-5"]
        {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_segment_cannot_leave_its_place() {
        assert_eq!(segment("a/../b?c#d%"), "a%2F..%2Fb%3Fc%23d%25");
        assert_eq!(segment("anna@example.com"), "anna@example.com");
    }
}
