//! What must be refused, with a message that says why and a counter that moves.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use hedgerow_tests::process::{Process, free_port, try_run, wait_until};
use hedgerow_tests::world::{Options, World};

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn secret(world: &World, name: &str, text: &str) -> PathBuf {
    let path = world.dir().join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Tries to activate a new device as `email` with the password in a file.
fn activate(world: &World, email: &str, password: &std::path::Path, device: &str) -> Output {
    let config = world.dir().join(format!("{device}.toml"));
    std::fs::write(&config, format!("state = {:?}\n", world.dir().join(device))).unwrap();
    let arguments = [
        "device",
        "activate",
        "--config",
        &config.display().to_string(),
        "--email",
        email,
        "--relay",
        &world.text("relay.device"),
        "--relay-name",
        &world.text("relay.name"),
        "--relay-ca",
        &world.text("relay.ca"),
        "--password-file",
        &password.display().to_string(),
    ];
    world.try_hedgerow(&arguments)
}

fn user_with_password(world: &World, email: &str, password: &str, valid: &str) -> PathBuf {
    // The user may be there already.
    let _ = world.try_hedgerow(&["user", "add", email, "--name", "Test"]);
    let file = secret(world, &format!("{email}.password"), password);
    let _ =
        world.hedgerow(&["password", "set", email, "--valid", valid, "--password-file", &file.display().to_string()]);
    file
}

#[test]
fn p18_the_sixth_attempt_is_refused_even_with_the_right_password() {
    let world = World::start(&Options::default());
    let email = "carl@hedgerow.demo";
    let right = user_with_password(&world, email, "correct horse battery", "1h");
    let wrong = secret(&world, "wrong", "something else entirely");
    for attempt in 1..=5 {
        let output = activate(&world, email, &wrong, &format!("wrong{attempt}"));
        assert!(!output.status.success(), "attempt {attempt}");
        let said = words(&output);
        assert!(said.contains("password"), "{said}");
        assert!(!said.contains("something else entirely"), "the password is in the message: {said}");
    }
    let output = activate(&world, email, &right, "sixth");
    assert!(!output.status.success(), "the sixth attempt succeeded: {}", words(&output));
    assert!(!world.dir().join("sixth/certificate.pem").exists());
    let metrics = world.get("core.admin", "/metrics");
    assert!(metrics.lines().any(|l| l.starts_with("hedgerow_core_") && l.contains("activation")), "{metrics}");
    // A new password opens the account again.
    let again = user_with_password(&world, email, "a fresh beginning", "1h");
    let output = activate(&world, email, &again, "seventh");
    assert!(output.status.success(), "{}", words(&output));
}

#[test]
fn p18_an_activation_password_is_good_once_and_not_after_its_time() {
    let world = World::start(&Options::default());
    let once = user_with_password(&world, "dora@hedgerow.demo", "only one time", "1h");
    let first = activate(&world, "dora@hedgerow.demo", &once, "first");
    assert!(first.status.success(), "{}", words(&first));
    let second = activate(&world, "dora@hedgerow.demo", &once, "second");
    assert!(!second.status.success(), "used twice");
    let late = user_with_password(&world, "emil@hedgerow.demo", "gone in a second", "1s");
    std::thread::sleep(Duration::from_secs(2));
    let output = activate(&world, "emil@hedgerow.demo", &late, "late");
    assert!(!output.status.success(), "expired, but accepted");
    // Someone unknown is refused in the same words as someone whose time is over.
    let unknown = activate(&world, "nobody@hedgerow.demo", &late, "unknown");
    assert!(!unknown.status.success());
    assert_eq!(words(&unknown), words(&output));
}

#[test]
fn p01_an_enrolment_token_is_good_once_not_after_its_time_and_not_when_withdrawn() {
    let world = World::start(&Options::default());
    let enrol = |token: &std::path::Path, node: &str| {
        let config = world.dir().join(format!("{node}.toml"));
        std::fs::write(&config, format!("state = {:?}\n", world.dir().join(node))).unwrap();
        let (config, token) = (config.display().to_string(), token.display().to_string());
        world.try_hedgerow(&["node", "enroll", "--config", &config, "--token-file", &token])
    };
    let create = |name: &str, valid: &str| {
        let file = world.dir().join(format!("{name}.token"));
        let _ = world.hedgerow(&[
            "token",
            "create",
            "--name",
            name,
            "--valid",
            valid,
            "--out",
            &file.display().to_string(),
        ]);
        file
    };
    let token = create("once", "1h");
    assert!(enrol(&token, "once1").status.success());
    let said = words(&enrol(&token, "once2"));
    assert!(said.contains("used"), "{said}");

    let token = create("late", "1s");
    std::thread::sleep(Duration::from_secs(2));
    let said = words(&enrol(&token, "late"));
    assert!(said.contains("expired"), "{said}");

    let token = create("withdrawn", "1h");
    let id = world.hedgerow(&["token", "list"]).as_array().unwrap().iter().find(|t| t["name"] == "withdrawn").unwrap()
        ["id"]
        .clone();
    let _ = world.hedgerow(&["token", "revoke", id.as_str().unwrap()]);
    let output = enrol(&token, "withdrawn");
    assert!(!output.status.success(), "{}", words(&output));

    let text = std::fs::read_to_string(create("damaged", "1h")).unwrap();
    let damaged = secret(&world, "damaged.cut", &text[..text.len() - 6]);
    let said = words(&enrol(&damaged, "damaged"));
    assert!(said.contains("damaged"), "{said}");
    assert!(!said.contains(&text[20..40]), "the token is in the message");
}

#[test]
fn p01_a_core_with_the_wrong_srp_key_is_told_and_counted() {
    let world = World::start(&Options::default());
    let key = secret(&world, "wrong.key", &"ab".repeat(32));
    let config = world.dir().join("core2.toml");
    std::fs::write(
        &config,
        format!(
            "tenant = \"S12345678\"\nstate = {:?}\nsrp_key_file = {:?}\n[[relays]]\nname = {:?}\naddresses = [{:?}]\nca_file = {:?}\n[admin]\nlisten = \"127.0.0.1:{}\"\n",
            world.dir().join("core2"),
            key,
            world.text("relay.name"),
            world.text("relay.link"),
            world.text("relay.ca"),
            free_port()
        ),
    )
    .unwrap();
    let log = world.dir().join("log/core2.log");
    let _core = Process::start(&mut world.command(&["core", "run", "--config", &config.display().to_string()]), &log);
    wait_until("the core says what is wrong", Duration::from_secs(20), || {
        std::fs::read_to_string(&log).unwrap_or_default().contains("does not know this tenant's SRP authentication key")
    });
    assert!(
        world.metric("relay.admin", "hedgerow_relay_refused_total", "") >= 1.0,
        "{}",
        world.get("relay.admin", "/metrics")
    );
    // The tenant's own core is not disturbed.
    assert!(world.get("core.admin", "/readyz").contains("ok") || world.get("core.admin", "/readyz").contains("ready"));
}

#[test]
fn a_key_that_others_can_read_stops_the_role_with_the_command_that_mends_it() {
    let world = World::start(&Options::default());
    for (role, key) in [("device", "device/key.pem"), ("node", "node/node.key.pem")] {
        let key = world.dir().join(key);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        let config = world.dir().join(format!("{role}.toml")).display().to_string();
        let mut command = world.command(&[role, "run", "--config", &config]);
        let output = try_run(&mut command, Duration::from_secs(20));
        assert!(!output.status.success());
        let said = words(&output);
        assert!(said.contains("chmod 600"), "{role}: {said}");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn no_secret_stands_on_a_command_line_or_in_a_log() {
    let world = World::start(&Options::default());
    let password = user_with_password(&world, "frida@hedgerow.demo", "not for the logs 4711", "1h");
    assert!(activate(&world, "frida@hedgerow.demo", &password, "frida").status.success());
    let srp = std::fs::read_to_string(world.dir().join("srp.key")).unwrap();
    let token = std::fs::read_to_string(world.dir().join("node.token")).unwrap();
    let mut places: Vec<(String, Vec<u8>)> = ["relay", "core", "node", "device", "demo"]
        .iter()
        .map(|r| ((*r).to_owned(), world.log(r).into_bytes()))
        .collect();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        if let Ok(line) = std::fs::read(process.path().join("cmdline")) {
            places.push((format!("{:?}", process.path()), line));
        }
    }
    for secret in [srp.trim(), token.trim(), "not for the logs 4711"] {
        assert!(secret.len() > 10);
        for (place, bytes) in &places {
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "a secret stands in {place}");
        }
    }
}
