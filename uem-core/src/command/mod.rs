//! Commands to a device: a queue each, one command at a time.
//!
//! ```text
//!   Queued ──next──► Sent ──answer──► Succeeded | Failed
//!     ▲  │             └──"not now"──► NotNow ──next, later──► Sent
//!     │  └── cancel ─► Cancelled        (Queued, NotNow)
//!     └── its time is over ─► Expired   (Queued, Sent, NotNow)
//! ```
//!
//! A command is stored as sent before it is sent, and sent again until it is answered: at least once on the wire. The
//! device knows commands by their ids and carries each out once. Administration comes before requests for information,
//! and in both the older before the newer. What erases the device comes before all, and waits for no answer to another:
//! whoever has stolen a device would not give it.

mod kind;
mod properties;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use hedgerow_shared::{EntityId, TenantId, UnixTime};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use kind::{Class, Kind};
pub use properties::Properties;

/// Open commands that one device may have.
pub const MAX_OPEN: usize = 100;
/// How long a command waits for its device unless said otherwise, seconds: a week.
pub const DEFAULT_LIFETIME_SECONDS: u64 = 7 * 24 * 3600;
/// The longest it may wait, seconds: 90 days.
pub const MAX_LIFETIME_SECONDS: u64 = 90 * 24 * 3600;
/// Largest properties and result, bytes of JSON: a list of all packages of a machine.
pub const MAX_CONTENT: usize = 512 * 1024;
/// Longest error text that is kept, characters.
pub const MAX_ERROR: usize = 2000;
/// How long a device that said "not now" is left alone, seconds.
pub const NOT_NOW_SECONDS: u64 = 60;

/// Where a command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    /// It waits for the device.
    Queued,
    /// The device may have it.
    Sent,
    /// The device has it and will not carry it out yet.
    NotNow,
    /// Carried out.
    Succeeded,
    /// Not carried out; `error` says why.
    Failed,
    /// An administrator took it back before it was sent.
    Cancelled,
    /// Its time was over before it was answered.
    Expired,
}

impl State {
    /// All there are.
    pub const ALL: [Self; 7] =
        [Self::Queued, Self::Sent, Self::NotNow, Self::Succeeded, Self::Failed, Self::Cancelled, Self::Expired];

    /// As the web services write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Sent => "SENT",
            Self::NotNow => "NOT_NOW",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
            Self::Expired => "EXPIRED",
        }
    }

    /// Whether something may still become of it.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Queued | Self::Sent | Self::NotNow)
    }
}

/// A command, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Whose.
    pub tenant: TenantId,
    /// Which one: what the device knows it by.
    pub id: EntityId,
    /// To which device.
    pub device: EntityId,
    /// Its place in the queue: the older the smaller.
    pub number: u64,
    /// What is to be done.
    pub kind: Kind,
    /// What it takes; `Core::next_command` opens it.
    pub properties: Properties,
    /// Where it stands.
    pub state: State,
    /// When it was given.
    pub created: UnixTime,
    /// When it is no longer sent.
    pub expires: UnixTime,
    /// How often it was sent.
    pub sent: u32,
    /// When it may be sent again after "not now".
    pub not_before: Option<UnixTime>,
    /// When it came to its end.
    pub completed: Option<UnixTime>,
    /// Why it failed.
    pub error: Option<String>,
    /// What the device answered.
    pub result: Map<String, Value>,
}

/// What a device answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// Carried out.
    Done {
        /// What was asked for; empty for administration.
        #[serde(default)]
        result: Map<String, Value>,
    },
    /// It cannot be carried out.
    Failed {
        /// Why, for the administrator.
        error: String,
    },
    /// Later: a user is in a call, a disk is being encrypted.
    NotNow,
}

/// What a device asks with, again and again until it is told to be idle (`core_api::COMMAND_DEVICE`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// What became of the command that it got last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<Answered>,
    /// Commands that it has put off in this conversation: not to be sent again in it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub put_off: BTreeSet<EntityId>,
}

/// What became of one command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// Of which.
    pub id: EntityId,
    /// This.
    pub reply: Reply,
}

/// What a device gets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// What it answers with, and what it knows it by should it come again.
    pub id: EntityId,
    /// What is to be done.
    pub kind: Kind,
    /// What it takes.
    pub properties: Map<String, Value>,
}

/// The command to send now, of a device's open ones: one that erases; the one that is under way, if one is; else the first
/// that may be sent.
/// `skip` are commands that the device has put off in this conversation.
#[must_use]
pub fn next<'a>(open: &'a [Command], skip: &BTreeSet<EntityId>, now: UnixTime) -> Option<&'a Command> {
    let live = || open.iter().filter(|c| c.state.is_open() && c.expires > now && !skip.contains(&c.id));
    let may = |c: &&Command| c.not_before.is_none_or(|at| at <= now);
    let erases = live().filter(|c| c.kind.ends_the_device()).filter(may);
    let erases = erases.min_by_key(|c| (c.state != State::Sent, c.number, c.id));
    let under_way = || live().filter(|c| c.state == State::Sent).min_by_key(|c| (c.number, c.id));
    let first = || live().filter(may).min_by_key(|c| (c.kind.class(), c.number, c.id));
    erases.or_else(under_way).or_else(first)
}

impl Command {
    /// It is sent now. Only what `next` gave.
    #[must_use]
    pub fn sent(&self) -> Self {
        Self { state: State::Sent, sent: self.sent.saturating_add(1), not_before: None, ..self.clone() }
    }

    /// The device has answered. `None` where that changes nothing: it has come to its end, by an answer that was heard
    /// before, or otherwise.
    #[must_use]
    pub fn answered(&self, reply: Reply, now: UnixTime) -> Option<Self> {
        // What is erased is erased, however late it is told: the device has no key any more, and must not count.
        let is_erased = self.state == State::Expired
            && self.sent > 0
            && self.kind.ends_the_device()
            && matches!(reply, Reply::Done { .. });
        // Also when it was taken for not sent: a device that answers has it.
        if !self.state.is_open() && !is_erased {
            return None;
        }
        let ended = Self { completed: Some(now), not_before: None, ..self.clone() };
        Some(match reply {
            Reply::Done { result } if fits(&result) => Self { state: State::Succeeded, result, ..ended },
            Reply::Done { .. } => {
                let error = format!("the answer is larger than the {MAX_CONTENT} bytes that are kept");
                Self { state: State::Failed, error: Some(error), ..ended }
            }
            Reply::Failed { error } => {
                let error = error.chars().filter(|c| !c.is_control() || *c == '\n').take(MAX_ERROR).collect();
                Self { state: State::Failed, error: Some(error), ..ended }
            }
            Reply::NotNow => Self { state: State::NotNow, not_before: Some(now.plus(NOT_NOW_SECONDS)), ..self.clone() },
        })
    }

    /// An administrator takes it back; `None` once a device may have it, or when it has come to its end.
    #[must_use]
    pub fn cancelled(&self, now: UnixTime) -> Option<Self> {
        matches!(self.state, State::Queued | State::NotNow).then(|| Self {
            state: State::Cancelled,
            completed: Some(now),
            ..self.clone()
        })
    }

    /// Its end, if its time is over.
    #[must_use]
    pub fn expired(&self, now: UnixTime) -> Option<Self> {
        (self.state.is_open() && self.expires <= now).then(|| Self {
            state: State::Expired,
            completed: Some(now),
            ..self.clone()
        })
    }
}

/// Whether properties or a result are small enough to be kept.
#[must_use]
pub fn fits(content: &Map<String, Value>) -> bool {
    serde_json::to_string(content).is_ok_and(|text| text.len() <= MAX_CONTENT)
}
