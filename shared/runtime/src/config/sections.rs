//! Tables that every role's file has: `[admin]`, `[timers]`, `[drain]`. What a role's own default is, its type says.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// `[admin]`: the loopback listener with metrics, health, readiness and status, on `PORT` unless told otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, bound = "")]
pub struct Admin<const PORT: u16> {
    /// A loopback address; anything else is refused. Port 0 takes a free one.
    pub listen: SocketAddr,
}

impl<const PORT: u16> Default for Admin<PORT> {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], PORT)) }
    }
}

impl<const PORT: u16> Admin<PORT> {
    /// What is wrong with it: the key, and what to write there.
    #[must_use]
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let why = || format!("expected a loopback address such as 127.0.0.1:{PORT}: it shows who is connected");
        (!self.listen.ip().to_canonical().is_loopback()).then(|| ("admin.listen", why()))
    }
}

/// `[timers]`: their lengths are fixed; tests shorten them all by one factor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimerScale {
    /// 1 is right; tests use 0.01 so that waiting through timers is quick.
    pub scale: f64,
}

impl Default for TimerScale {
    fn default() -> Self {
        Self { scale: 1.0 }
    }
}

impl TimerScale {
    /// What is wrong with it: the key, and what to write there.
    #[must_use]
    pub fn problem(self) -> Option<(&'static str, String)> {
        let why = "expected a number above 0 and up to 10; 1 is right outside tests";
        let fits = self.scale > 0.0 && self.scale <= 10.0;
        (!fits).then(|| ("timers.scale", why.to_owned()))
    }
}

/// `[drain]`: what happens on SIGTERM, `SECONDS` unless told otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, bound = "")]
pub struct Drain<const SECONDS: u64> {
    /// Seconds that what is under way has to end.
    pub seconds: u64,
}

impl<const SECONDS: u64> Default for Drain<SECONDS> {
    fn default() -> Self {
        Self { seconds: SECONDS }
    }
}
