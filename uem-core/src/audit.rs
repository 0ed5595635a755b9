//! The audit record: who did what to whom, in an order that cannot be rewritten unnoticed. Each record carries the
//! hash of the one before it; the tenant holds the hash of the newest.

use hedgerow_shared::UnixTime;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Done.
    Done,
    /// Refused by the rules.
    Refused,
}

impl Outcome {
    /// As it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
        }
    }
}

impl std::str::FromStr for Outcome {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "done" => Ok(Self::Done),
            "refused" => Ok(Self::Refused),
            _ => Err("not an outcome"),
        }
    }
}

/// What is to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When.
    pub time: UnixTime,
    /// Who: the words of `service::Actor`.
    pub actor: String,
    /// What: `user.add`, `device.revoke`.
    pub action: &'static str,
    /// To whom or what: an id, with a name where there is one.
    pub subject: String,
    /// How it went.
    pub outcome: Outcome,
    /// More, for people; no secrets.
    pub detail: String,
}

/// One record of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, from 1, without gaps.
    pub number: u64,
    /// When.
    pub time: UnixTime,
    /// Who.
    pub actor: String,
    /// What.
    pub action: String,
    /// To whom or what.
    pub subject: String,
    /// How it went.
    pub outcome: Outcome,
    /// More, for people.
    pub detail: String,
    /// Hash over the record before it and this one's fields.
    #[serde(with = "crate::encoding::base64")]
    pub hash: [u8; 32],
}

/// The newest record of a chain; all zero before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Number of the newest record.
    pub number: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

impl Head {
    /// Appends a record and moves the head.
    pub fn append(&mut self, entry: Entry) -> Record {
        let number = self.number.saturating_add(1);
        let mut record = Record {
            number,
            time: entry.time,
            actor: entry.actor,
            action: entry.action.to_owned(),
            subject: entry.subject,
            outcome: entry.outcome,
            detail: entry.detail,
            hash: [0; 32],
        };
        record.hash = record.hash_after(&self.hash);
        *self = Self { number, hash: record.hash };
        record
    }

    /// Checks that `records` continue this head without gap or change, and moves it to the last of them.
    ///
    /// # Errors
    /// The number of the first record that does not fit.
    pub fn follow(&mut self, records: &[Record]) -> Result<(), u64> {
        for record in records {
            if record.number != self.number.saturating_add(1) || record.hash != record.hash_after(&self.hash) {
                return Err(record.number);
            }
            *self = Self { number: record.number, hash: record.hash };
        }
        Ok(())
    }
}

impl Record {
    fn hash_after(&self, previous: &[u8; 32]) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"hedgerow audit record v1\0");
        hash.update(previous);
        hash.update(self.number.to_be_bytes());
        hash.update(self.time.0.to_be_bytes());
        for text in [&self.actor, &self.action, &self.subject, self.outcome.as_str(), &self.detail] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text.as_bytes());
        }
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(subject: &str) -> Entry {
        Entry {
            time: UnixTime(7),
            actor: "system".into(),
            action: "user.add",
            subject: subject.into(),
            outcome: Outcome::Done,
            detail: String::new(),
        }
    }

    #[test]
    fn a_changed_or_missing_record_breaks_the_chain() {
        let mut head = Head::default();
        let records: Vec<_> = ["a", "b", "c"].into_iter().map(|s| head.append(entry(s))).collect();
        let mut check = Head::default();
        check.follow(&records).unwrap();
        assert_eq!(check, head);

        let mut changed = records.clone();
        changed[1].subject = "x".into();
        assert_eq!(Head::default().follow(&changed), Err(2));
        assert_eq!(Head::default().follow(&[records[0].clone(), records[2].clone()]), Err(3));
        // Moving a character from one field to the next changes the hash as well.
        let mut shifted = records;
        shifted[0].actor = "syste".into();
        shifted[0].action = "muser.add".into();
        assert_eq!(Head::default().follow(&shifted), Err(1));
    }
}
