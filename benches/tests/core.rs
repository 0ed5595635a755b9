//! The bench `core` works: both databases are measured, with few users and with more. Needs PostgreSQL's programs.

use std::process::Command;

#[test]
fn the_bench_of_the_core_measures_both_databases() {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("core.json");
    let output = Command::new(env!("CARGO_BIN_EXE_hedgerow-benches"))
        .args(["core", "--users", "20,50", "--devices", "10", "--questions", "5", "--json"])
        .arg(&json)
        .output()
        .expect("the bench starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let figures = std::fs::read_to_string(json).expect("figures");
    for subject in ["sqlite, 20 users", "sqlite, 50 users", "postgres, 20 users", "postgres, 50 users"] {
        for figure in ["effective profiles of a user, p50", "commands fetched and answered", "users imported"] {
            let has = |row: &serde_json::Value| row["subject"] == subject && row["figure"] == figure;
            let rows: serde_json::Value = serde_json::from_str(&figures).expect("JSON");
            let rows = rows["rows"].as_array().expect("rows").clone();
            assert!(rows.iter().any(has), "{subject}: {figure}\n{said}");
        }
    }
}
