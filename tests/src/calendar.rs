//! A calendar for processes that are started under it: libfaketime (Debian package `libfaketime`) tells them another date.
//! Clocks that only measure durations run as always, so timers do.

use std::path::Path;
use std::process::Command;

const LIBRARY: &str = "faketime/libfaketime.so.1";

/// A date that moves for every process of its environment at once. Clones are the same calendar.
#[derive(Debug, Clone)]
pub struct Calendar {
    file: String,
    library: String,
}

impl Calendar {
    /// Today, kept in `folder`.
    ///
    /// # Panics
    /// libfaketime is not installed.
    #[must_use]
    pub fn today(folder: &str) -> Self {
        let machine = Command::new("gcc").arg("-print-multiarch").output().expect("gcc says what this machine is");
        let machine = String::from_utf8_lossy(&machine.stdout).trim().to_owned();
        let library = format!("/usr/lib/{machine}/{LIBRARY}");
        assert!(Path::new(&library).exists(), "{library} is missing: install libfaketime (tests/run --needs)");
        let calendar = Self { file: format!("{folder}/calendar"), library };
        calendar.set_days(0.0);
        calendar
    }

    /// So many days from today, for everybody, now.
    pub fn set_days(&self, days: f64) {
        // Replaced whole: it is read at any moment.
        let beside = format!("{}.new", self.file);
        std::fs::write(&beside, format!("+{}s\n", (days * 86_400.0) as u64)).expect("the calendar can be written");
        std::fs::rename(&beside, &self.file).expect("the calendar can be replaced");
    }

    /// What a process needs to go by it.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![
            set("LD_PRELOAD", &self.library),
            set("FAKETIME_TIMESTAMP_FILE", &self.file),
            set("FAKETIME_NO_CACHE", "1"),
            set("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            set("NO_FAKE_STAT", "1"),
        ]
    }
}
