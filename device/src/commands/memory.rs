//! What was carried out, on disk: a command that comes again gets the answer that it got.

use std::fs;
use std::path::{Path, PathBuf};

use hedgerow_shared::EntityId;
use hedgerow_uem_core::command::Reply;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::state::write_file;

/// The file in the state folder.
pub(crate) const FILE: &str = "commands.json";
/// Answers that are kept. The core sends one command at a time, so the last would do.
const MOST: usize = 16;

#[derive(Serialize, Deserialize)]
struct Entry {
    id: EntityId,
    /// `None`: it has begun, and nothing is known of its end.
    reply: Option<Reply>,
    /// The device's key is to go once the core has been told.
    #[serde(default)]
    erases: bool,
}

/// See the module.
pub(super) struct Memory {
    dir: PathBuf,
    entries: Vec<Entry>,
}

impl Memory {
    pub(super) fn read(dir: &Path) -> Self {
        let read = fs::read(dir.join(FILE)).ok();
        let entries = read.and_then(|bytes| {
            serde_json::from_slice(&bytes)
                .inspect_err(|error| warn!(%error, "{FILE} does not parse: a command may be carried out twice"))
                .ok()
        });
        Self { dir: dir.to_owned(), entries: entries.unwrap_or_default() }
    }

    /// The answer that a command got; for one that has begun and was cut short, that nobody knows.
    pub(super) fn answer(&self, id: EntityId) -> Option<Reply> {
        let entry = self.entries.iter().find(|entry| entry.id == id)?;
        let unknown = || Reply::Failed {
            error: "the agent was ended while it carried this out: whether it was done is not known".to_owned(),
        };
        Some(entry.reply.clone().unwrap_or_else(unknown))
    }

    /// Whether an erasure has begun and was cut short: the core may have revoked the device meanwhile, so that nothing
    /// comes of telling it again.
    pub(super) fn is_to_be_erased(&self) -> bool {
        self.entries.iter().any(|entry| entry.erases)
    }

    /// Notes that a command begins: should the agent be ended before its answer is kept, it is not carried out again.
    pub(super) fn begin(&mut self, id: EntityId) {
        self.put(Entry { id, reply: None, erases: false });
    }

    /// It was put off, and is to come again.
    pub(super) fn forget(&mut self, id: EntityId) {
        self.entries.retain(|entry| entry.id != id);
        self.write();
    }

    /// Writes an answer down. Where the disk does not take it, a command may be carried out twice, rather than never.
    pub(super) fn keep(&mut self, id: EntityId, reply: &Reply, erases: bool) {
        self.put(Entry { id, reply: Some(reply.clone()), erases });
    }

    fn put(&mut self, entry: Entry) {
        self.entries.retain(|other| other.id != entry.id);
        self.entries.push(entry);
        let surplus = self.entries.len().saturating_sub(MOST);
        self.entries.drain(..surplus);
        self.write();
    }

    fn write(&self) {
        let written =
            serde_json::to_vec(&self.entries).map_err(Into::into).and_then(|b| write_file(&self.dir, FILE, &b));
        if let Err(error) = written {
            warn!(error = format!("{error:#}"), "an answer cannot be written down");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p22_answers_are_there_after_a_restart_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let id = |n: u8| EntityId::from_random([n; 16]);
        let mut memory = Memory::read(dir.path());
        for n in 0..20 {
            memory.keep(id(n), &Reply::Failed { error: n.to_string() }, false);
        }
        let again = Memory::read(dir.path());
        assert_eq!(again.answer(id(19)), Some(Reply::Failed { error: "19".into() }));
        assert_eq!((again.answer(id(3)), again.entries.len()), (None, MOST));
        assert!(!again.is_to_be_erased());
        memory.keep(id(20), &Reply::Done { result: serde_json::Map::new() }, true);
        assert!(Memory::read(dir.path()).is_to_be_erased(), "killed before the key was gone");
        fs::write(dir.path().join(FILE), "[{").unwrap();
        assert!(Memory::read(dir.path()).entries.is_empty());
    }

    #[test]
    fn p22_one_that_was_cut_short_is_told_so_and_not_carried_out_again() {
        let dir = tempfile::tempdir().unwrap();
        let [cut, put_off] = [1u8, 2].map(|n| EntityId::from_random([n; 16]));
        let mut memory = Memory::read(dir.path());
        memory.begin(cut);
        memory.begin(put_off);
        memory.forget(put_off);
        let again = Memory::read(dir.path());
        let Some(Reply::Failed { error }) = again.answer(cut) else { panic!("it is known") };
        assert!(error.contains("not known"), "{error}");
        assert_eq!(again.answer(put_off), None);
        memory.keep(cut, &Reply::Done { result: serde_json::Map::new() }, false);
        assert_eq!(Memory::read(dir.path()).answer(cut), Some(Reply::Done { result: serde_json::Map::new() }));
        assert_eq!(memory.entries.len(), 1);
    }
}
