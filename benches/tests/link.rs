//! The bench `link` works: everything that it measures is measured once.

use std::process::{Command, Stdio};

#[test]
fn the_bench_of_links_measures_everything_that_it_promises() {
    let folder = tempfile::tempdir().expect("a folder");
    let (json, plot) = (folder.path().join("link.json"), folder.path().join("link.svg"));
    let output = Command::new(env!("CARGO_BIN_EXE_hedgerow-benches"))
        .args(["link", "--quick", "--json"])
        .arg(&json)
        .arg("--plot")
        .arg(&plot)
        .stdin(Stdio::null())
        .output()
        .expect("the bench starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).expect("a JSON file")).expect("JSON");
    let rows = written["rows"].as_array().expect("rows");
    let has = |subject: &str, figure: &str| {
        rows.iter().any(|r| r["subject"] == subject && r["figure"] == figure && r["median"].is_number())
    };
    for subject in ["TLS link", "QUIC link"] {
        for how in ["full", "resumed"] {
            assert!(has(subject, &format!("links opened a second, {how}")), "{subject}, {how}: {said}");
            assert!(has(subject, &format!("link opened and closed, {how}: CPU of relay")), "{subject}, {how}: {said}");
        }
    }
    for subject in ["TLS link", "QUIC link", "lane"] {
        assert!(has(subject, "idle, 5 to 20: memory of relay"), "{subject}: {said}");
        assert!(has(subject, "20 idle: memory of relay"), "{subject}: {said}");
    }
    for (subject, figure) in [("registry", "alone: pick one of 100 nodes"), ("multiplexer", "alone: round of a ping")] {
        assert!(has(subject, figure), "{subject}: {said}");
    }
    assert_eq!(std::fs::read_to_string(&plot).expect("a plot").matches("<circle").count(), 6);
}
