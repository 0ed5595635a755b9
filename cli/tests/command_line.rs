//! The binary as a user meets it: exit codes, messages, signals.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary with an empty environment, so that nothing of the tester's reaches it.
fn hedgerow(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hedgerow"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    hedgerow(arguments).output().unwrap()
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn relay_file(dir: &Path, more: &str) -> String {
    let file = dir.join("relay.toml");
    let text = format!(
        "name = \"relay.example\"\nstate = {:?}\n[listen]\nlink = [\"127.0.0.1:0\"]\ndevice = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n{more}",
        dir.join("state")
    );
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn version_is_there_for_people_and_programs() {
    let text = run(&["version"]);
    assert!(text.status.success() && String::from_utf8_lossy(&text.stdout).starts_with("hedgerow 0."));
    let json: serde_json::Value = serde_json::from_slice(&run(&["version", "--json"]).stdout).unwrap();
    assert_eq!(json["protocol"], 1);
}

#[test]
fn wrong_usage_is_2_wrong_configuration_78_and_nobody_there_69() {
    assert_eq!(run(&["relay", "walk"]).status.code(), Some(2));
    let dir = tempfile::tempdir().unwrap();
    let file = relay_file(dir.path(), "[drain]\nsecond = 3\n");
    for arguments in [["relay", "config", "--config", &file, "check"].as_slice(), &["relay", "run", "--config", &file]]
    {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(78), "{}", error(&output));
        let expected = format!("{file}:9: unknown key `drain.second`; did you mean `seconds`?");
        assert!(error(&output).contains(&expected), "{}", error(&output));
    }
    let nobody = run(&["user", "list", "--core-socket", "/nonexistent/control.sock"]);
    assert_eq!(nobody.status.code(), Some(69), "{}", error(&nobody));
    assert!(error(&nobody).contains("no socket at /nonexistent/control.sock"), "{}", error(&nobody));
    assert_eq!(run(&["health", "--admin", "127.0.0.1:1"]).status.code(), Some(69));
}

#[test]
fn config_check_takes_the_file_before_or_after_the_verb() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/relay.toml");
    for arguments in [["relay", "config", "check", "--config", file], ["relay", "config", "--config", file, "check"]] {
        let output = run(&arguments);
        assert!(output.status.success(), "{}", error(&output));
    }
}

#[test]
fn flag_beats_environment_beats_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = relay_file(dir.path(), "[drain]\nseconds = 3\n");
    let seconds = |command: &mut Command| {
        let output = command.output().unwrap();
        let value: serde_json::Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", error(&output)));
        value["drain"]["seconds"].as_u64()
    };
    let show = ["relay", "config", "--config", &file];
    assert_eq!(seconds(hedgerow(&show).args(["show", "--json"])), Some(3));
    let variable = ("HEDGEROW_RELAY__DRAIN__SECONDS", "4");
    assert_eq!(seconds(hedgerow(&show).env(variable.0, variable.1).args(["show", "--json"])), Some(4));
    assert_eq!(
        seconds(hedgerow(&show).env(variable.0, variable.1).args(["--set", "drain.seconds=5", "show", "--json"])),
        Some(5)
    );
    let by_variable =
        hedgerow(&["relay", "config", "show", "--json"]).env("HEDGEROW_RELAY_CONFIG", &file).output().unwrap();
    assert!(by_variable.status.success(), "{}", error(&by_variable));
}

#[test]
fn a_relay_comes_up_answers_its_operator_and_drains_on_term() {
    let dir = tempfile::tempdir().unwrap();
    let file = relay_file(dir.path(), "");
    let mut relay =
        hedgerow(&["relay", "run", "--config", &file, "--log-format", "json"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(relay.stderr.take().unwrap()).lines();
    let mut admin = None;
    for line in lines.by_ref() {
        let line: serde_json::Value = serde_json::from_str(&line.unwrap()).expect("every line is JSON");
        admin = admin.or_else(|| line["admin"].as_str().map(str::to_owned));
        if line["message"] == "ready" {
            break;
        }
    }
    let admin = admin.expect("the admin address is logged");
    assert!(run(&["health", "--admin", &admin]).status.success());

    let socket = dir.path().join("state/control.sock");
    let verb =
        |arguments: &[&str]| hedgerow(arguments).args(["--relay-socket", socket.to_str().unwrap()]).output().unwrap();
    let key = dir.path().join("srp.key");
    let added = verb(&["relay", "tenant", "add", "S12345678", "--out", key.to_str().unwrap()]);
    assert!(added.status.success(), "{}", error(&added));
    assert_eq!(std::fs::read_to_string(&key).unwrap().trim().len(), 64);
    let again = verb(&["relay", "tenant", "add", "S12345678"]);
    assert!(again.status.code() == Some(1) && error(&again).contains("exists already"), "{}", error(&again));
    assert!(verb(&["relay", "domain", "add", "S12345678", "example.com"]).status.success());
    let list = verb(&["relay", "tenant", "list"]);
    let text = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(text.contains("S12345678") && text.contains("example.com") && !text.contains('\u{1b}'), "{text}");
    let json: serde_json::Value = serde_json::from_slice(&verb(&["relay", "tenant", "list", "--json"]).stdout).unwrap();
    assert_eq!(json[0]["domains"][0], "example.com");

    let pid = relay.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let begun = Instant::now();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    let status = relay.wait().unwrap();
    assert!(status.success(), "{status}: {rest:?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "an idle relay drains at once");
    assert!(!socket.exists());
}

#[test]
fn help_names_the_variable_of_each_flag() {
    let help = run(&["device", "activate", "--help"]);
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    for word in
        ["HEDGEROW_DEVICE_EMAIL", "HEDGEROW_DEVICE_PASSWORD_FILE", "HEDGEROW_DEVICE_CONFIG", "HEDGEROW_DEVICE__"]
    {
        assert!(text.contains(word), "{text}");
    }
}
