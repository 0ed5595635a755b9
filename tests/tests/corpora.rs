//! Replays every stored input of `tests/fuzz/corpus` through its fuzz target.
//!
//! `HEDGEROW_WRITE_CORPUS=1 cargo test -p hedgerow-tests --test corpora` writes the inputs the corpora begin with.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use hedgerow_tests::fuzz::{TARGETS, seeds};

/// Together the corpora stay small enough for a repository.
const MAX_FILES: usize = 1600;
const MAX_BYTES: u64 = 3 * 1024 * 1024;

#[test]
fn no_stored_input_makes_its_target_panic() {
    let mut failed = Vec::new();
    for (name, target) in TARGETS {
        for file in files(&corpus().join(name)) {
            let bytes = fs::read(&file).unwrap();
            if catch_unwind(AssertUnwindSafe(|| target(&bytes))).is_err() {
                failed.push(file);
            }
        }
    }
    assert!(failed.is_empty(), "these inputs break their targets: {failed:#?}");
}

#[test]
fn every_target_has_a_corpus_and_an_entry_and_nothing_else_does() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let fuzz = corpus().parent().unwrap().to_owned();
    let names = |folder: &Path| -> BTreeSet<String> {
        let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
        entries.map(|p| p.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&corpus()), targets);
    assert_eq!(names(&fuzz.join("fuzz_targets")), targets);
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    let (mut count, mut size) = (0, 0);
    for name in &targets {
        let entry = fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(entry.contains(&format!("hedgerow_tests::fuzz::{name}(data)")), "{name} runs another target");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in tests/fuzz/Cargo.toml");
        let files = files(&corpus().join(name));
        assert!(files.iter().any(|f| f.metadata().unwrap().len() > 0), "the corpus of {name} is empty");
        count += files.len();
        size += files.iter().map(|f| f.metadata().unwrap().len()).sum::<u64>();
    }
    assert!(count <= MAX_FILES && size <= MAX_BYTES, "{count} files of {size} bytes: minimise with `cargo fuzz cmin`");
}

#[test]
fn the_corpora_hold_something_valid_of_every_kind() {
    let write = std::env::var_os("HEDGEROW_WRITE_CORPUS").is_some_and(|v| !v.is_empty());
    let mut expected: BTreeMap<&str, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
    for seed in seeds() {
        let twice = expected.entry(seed.target).or_default().insert(seed.name.clone(), seed.bytes);
        assert!(twice.is_none(), "two seeds of {} are called {}", seed.target, seed.name);
    }
    for (name, _) in TARGETS {
        let folder = corpus().join(name);
        let expected = expected.remove(name).unwrap_or_else(|| panic!("{name} has no seeds"));
        if write {
            fs::create_dir_all(&folder).unwrap();
            stored(&folder).into_keys().for_each(|file| fs::remove_file(folder.join(file)).unwrap());
            expected.iter().for_each(|(file, bytes)| fs::write(folder.join(file), bytes).unwrap());
        }
        let stored = stored(&folder);
        let differing: Vec<_> = expected
            .keys()
            .chain(stored.keys())
            .filter(|file| expected.get(*file) != stored.get(*file))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        assert!(
            differing.is_empty(),
            "a format has changed, or a seed: {name} {differing:?}; write them anew with HEDGEROW_WRITE_CORPUS=1"
        );
    }
    assert!(expected.is_empty(), "seeds of no target: {:?}", expected.keys());
}

/// The files that come from `seeds`.
fn stored(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let seeds = files(folder).into_iter().map(|f| (f.file_name().unwrap().to_str().unwrap().to_owned(), f));
    seeds.filter(|(name, _)| name.starts_with("seed-")).map(|(name, f)| (name, fs::read(f).unwrap())).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}
