//! The bench `tunnel` works: what it promises is measured, and it refuses to measure without its peers. Needs root.

use std::process::{Command, Stdio};

fn bench() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hedgerow-benches"));
    command.args(["tunnel", "--quick"]).stdin(Stdio::null());
    command
}

#[test]
fn the_bench_of_tunnels_measures_the_product_beside_direct() {
    let folder = tempfile::tempdir().expect("a folder");
    let (json, plot) = (folder.path().join("tunnel.json"), folder.path().join("tunnel.svg"));
    // `tests/run` builds it first.
    let product = std::path::Path::new(env!("CARGO_BIN_EXE_hedgerow-benches")).with_file_name("hedgerow");
    let child = bench()
        .args(["--subjects", "hedgerow-udp,hedgerow-link", "--binary"])
        .arg(&product)
        .arg("--json")
        .arg(&json)
        .arg("--plot")
        .arg(&plot)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the bench starts");
    let own = format!("hgb{}x", child.id());
    let output = child.wait_with_output().expect("its output");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).expect("a JSON file")).expect("JSON");
    let rows = written["rows"].as_array().expect("rows");
    let has = |subject: &str, figure: &str| {
        rows.iter().any(|r| r["subject"] == subject && r["figure"] == figure && r["median"].is_number())
    };
    for subject in ["direct", "hedgerow-udp", "hedgerow-link"] {
        for figure in ["TCP up", "TCP down", "UDP of 1200 bytes, at most 1 % lost", "ping: p50", "ping: p99"] {
            assert!(has(subject, figure), "{subject}, {figure}: {said}");
        }
        for figure in ["TCP up: CPU of hop", "TCP down: CPU of all", "ping: p50 more than direct"] {
            assert_eq!(has(subject, figure), subject != "direct", "{subject}, {figure}: {said}");
        }
    }
    assert!(std::fs::read_to_string(&plot).expect("a plot").contains("<circle"));
    let left = std::fs::read_dir("/run/netns").expect("namespaces").flatten();
    let left: Vec<_> = left.filter(|e| e.file_name().to_string_lossy().starts_with(&own)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_bench_of_tunnels_says_which_peers_are_missing() {
    let output = bench().env("PATH", "/nowhere").output().expect("the bench starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("ocserv") && said.contains("wg") && said.contains("benches/peers/install"), "{said}");
}

#[test]
fn the_bench_of_idle_tunnels_brings_them_all_up_and_says_what_one_costs() {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("idle.json");
    let product = std::path::Path::new(env!("CARGO_BIN_EXE_hedgerow-benches")).with_file_name("hedgerow");
    for links in ["quic", "tls"] {
        let output = bench()
            .args(["--idle", "40", "--links", links, "--binary"])
            .arg(&product)
            .arg("--json")
            .arg(&json)
            .output()
            .expect("the bench starts");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let written: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&json).expect("a JSON file")).expect("JSON");
        let rows = written["rows"].as_array().expect("rows");
        let median = |subject: &str, figure: &str| {
            let row = rows.iter().find(|r| r["subject"] == subject && r["figure"] == figure);
            row.and_then(|r| r["median"].as_f64()).unwrap_or_else(|| panic!("{subject}, {figure}: {said}"))
        };
        assert_eq!(median("all", "up at the end"), 40.0);
        assert_eq!(median("all", "answered from inside"), 40.0);
        assert!(median("all", "tunnels brought up") > 0.0);
        for role in ["relay", "node", "simulated device"] {
            median(role, "memory of a link");
            median(role, "memory of a tunnel beyond its link");
        }
        for role in ["relay", "node"] {
            median(role, "idle tunnels: CPU");
        }
    }
}
