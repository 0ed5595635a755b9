//! The running product from its operator's side: what carries its session now, and what an operator can cut.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::process::http_get;

/// One `hedgerow demo` that runs.
pub(crate) struct Product {
    binary: PathBuf,
    state: PathBuf,
    device_admin: String,
    /// Where the relay takes devices: TCP answers there as soon as it is back.
    relay: String,
}

impl Product {
    pub(crate) fn new(binary: PathBuf, state: PathBuf, described: &Value) -> anyhow::Result<Self> {
        let text = |part: &str, key: &str| {
            let text = described[part][key].as_str().map(str::to_owned);
            text.with_context(|| format!("demo.json has no {part}.{key}"))
        };
        Ok(Self { device_admin: text("device", "admin")?, relay: text("relay", "device")?, binary, state })
    }

    /// The relay's process, as `demo.json` has it now.
    pub(crate) fn relay_pid(&self) -> anyhow::Result<i32> {
        let described: Value = serde_json::from_slice(&std::fs::read(self.state.join("demo.json"))?)?;
        let pid = described["pids"]["relay"].as_i64().and_then(|n| i32::try_from(n).ok());
        pid.context("demo.json has no pids.relay")
    }

    /// Whether the relay takes connections.
    pub(crate) fn relay_answers(&self) -> bool {
        TcpStream::connect(&self.relay).is_ok()
    }

    /// What carries the device's session now, as the bench's carriers are named; empty when there is none.
    pub(crate) fn carrier(&self) -> anyhow::Result<String> {
        let status: Value = serde_json::from_str(&self.device("/status")?)?;
        let transport = status["link"]["transport"].as_str().unwrap_or_default();
        Ok(match status["sessions"][0]["path"].as_str() {
            Some("lane") => "lane".to_owned(),
            Some(path) => format!("{path}-{transport}"),
            None => String::new(),
        })
    }

    /// How often the device's sessions got something new to run over.
    pub(crate) fn changes(&self) -> anyhow::Result<f64> {
        let names = ["hedgerow_device_sessions_resumed_total", "hedgerow_device_sessions_moved_total"];
        let metrics = self.device("/metrics")?;
        let ours = metrics.lines().filter(|l| names.iter().any(|name| l.starts_with(name)));
        Ok(ours.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Cuts at the relay, as its operator can, what `which` wants; fails when that is nothing.
    pub(crate) fn cut(&self, what: &str, which: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        let all = self.relay_command(&[])?;
        let ids: Vec<&str> =
            all.as_array().into_iter().flatten().filter(|s| which(s)).filter_map(|s| s["id"].as_str()).collect();
        if ids.is_empty() {
            bail!("the relay lists no {what} to cut");
        }
        for id in ids {
            self.relay_command(&["cut", id])?;
        }
        Ok(())
    }

    fn relay_command(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let output = Command::new(&self.binary)
            .args(["relay", "sessions"])
            .args(arguments)
            .env("HEDGEROW_RELAY_SOCKET", self.state.join("relay/control.sock"))
            .env("HEDGEROW_JSON", "true")
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            bail!("hedgerow relay sessions: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
    }

    /// One GET at the device's admin listener.
    fn device(&self, path: &str) -> anyhow::Result<String> {
        http_get(&self.device_admin, path).context("the device's admin listener")
    }
}
