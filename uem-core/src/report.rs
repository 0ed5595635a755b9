//! Looking into the record and over all devices: questions with bounds, answers that are counts or pages, and the texts that
//! go to other systems.

use hedgerow_shared::{EntityId, UnixTime};
use serde::{Deserialize, Serialize};

use crate::account::DeviceState;
use crate::audit::Record;
use crate::bulk;

/// Groups that one count answers, the largest first.
pub const MAX_GROUPS: u32 = 500;

/// Which audit records. All that is said must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditQuery {
    /// Not before this moment.
    pub from: Option<UnixTime>,
    /// Before this moment.
    pub until: Option<UnixTime>,
    /// By whom, as the record names them: `admin:local`, `device:ID`.
    pub actor: Option<String>,
    /// What: `user.add`.
    pub action: Option<String>,
    /// To what, as the record names it: an id.
    pub subject: Option<String>,
    /// Behind this record: its time and number.
    pub after: Option<(UnixTime, u64)>,
    /// At most so many.
    pub limit: u32,
}

impl AuditQuery {
    /// Whether a record is one of them; `limit` aside.
    #[must_use]
    pub fn matches(&self, record: &Record) -> bool {
        let is = |wanted: &Option<String>, there: &String| wanted.as_ref().is_none_or(|wanted| wanted == there);
        self.from.is_none_or(|from| record.time >= from)
            && self.until.is_none_or(|until| record.time < until)
            && is(&self.actor, &record.actor)
            && is(&self.action, &record.action)
            && is(&self.subject, &record.subject)
            && self.after.is_none_or(|after| (record.time, record.number) > after)
    }
}

/// So many of one kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Count {
    /// Which.
    pub what: String,
    /// How many.
    pub count: u64,
}

/// By what devices are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DevicesBy {
    /// What they say of their platform, active ones alone.
    Platform,
    /// Whether they count.
    State,
}

/// A device that is active and was seen last before a moment, or never.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quiet {
    /// Which.
    pub device: EntityId,
    /// What it calls itself.
    pub name: String,
    /// Whose.
    pub user: EntityId,
    /// When it was seen last.
    pub last_seen: Option<UnixTime>,
}

/// As reports write it.
#[must_use]
pub fn state(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Active => "active",
        DeviceState::Revoked => "revoked",
    }
}

/// A table as CSV (RFC 4180, UTF-8), with the guard of `bulk` against cells that spreadsheets would take for formulas.
#[must_use]
pub fn csv<'a>(rows: impl IntoIterator<Item = &'a [String]>) -> String {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).flexible(true).from_writer(Vec::new());
    for row in rows {
        // Memory takes everything.
        let _ = writer.write_record(row.iter().map(|cell| bulk::guarded(cell)));
    }
    writer.into_inner().ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
}

/// Heads of the columns of `audit_row`.
pub const AUDIT_COLUMNS: [&str; 7] = ["number", "time", "actor", "action", "subject", "outcome", "detail"];

/// A record as a row; the time in seconds since 1970.
#[must_use]
pub fn audit_row(record: &Record) -> [String; 7] {
    let Record { number, time, actor, action, subject, outcome, detail, hash: _ } = record.clone();
    [number.to_string(), time.0.to_string(), actor, action, subject, outcome.as_str().to_owned(), detail]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Entry, Head, Outcome};

    #[test]
    fn p23_no_spreadsheet_takes_what_strangers_wrote_for_a_formula() {
        let mut head = Head::default();
        let detail = "=HYPERLINK(\"http://evil\"), \"quoted\"\nline".to_owned();
        let (actor, subject) = ("stranger".to_owned(), "@SUM(A1)".to_owned());
        let entry = Entry { time: UnixTime(5), actor, action: "x", subject, outcome: Outcome::Refused, detail };
        let row = audit_row(&head.append(entry));
        let text = csv([&AUDIT_COLUMNS.map(str::to_owned)[..], &row[..]]);
        assert!(
            text.starts_with("number,time,actor,action,subject,outcome,detail\r\n1,5,stranger,x,'@SUM(A1),refused,"),
            "{text}"
        );
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let cells: Vec<_> = reader.records().next().unwrap().unwrap().iter().map(str::to_owned).collect();
        assert_eq!(cells[6], format!("'{}", row[6]));
        assert!(cells.iter().all(|cell| !cell.starts_with(['=', '+', '-', '@'])), "{cells:?}");
    }
}
