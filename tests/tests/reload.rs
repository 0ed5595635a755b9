//! What HUP does to a process that runs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hedgerow_tests::process::{Process, free_port, hedgerow, signal, wait_until};
use rcgen::{CertifiedKey, KeyPair};

const NAME: &str = "relay.reload.test";
const PATIENCE: Duration = Duration::from_secs(30);

fn write(folder: &Path, made: &CertifiedKey<KeyPair>) {
    let key = folder.join("own.key");
    std::fs::write(folder.join("own.pem"), made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// The certificate that the relay shows to OpenSSL, PEM.
fn shown(port: u16) -> String {
    let script = format!(
        "openssl s_client -connect 127.0.0.1:{port} -servername {NAME} </dev/null 2>/dev/null | openssl x509 2>/dev/null"
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().collect()
}

#[test]
fn p01_a_new_certificate_is_shown_after_hup_and_a_broken_file_keeps_the_old_one_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let make = || rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).unwrap();
    let is = |made: &CertifiedKey<KeyPair>| made.cert.pem().split_whitespace().collect::<String>();
    let (first, second) = (make(), make());
    write(folder.path(), &first);
    let (port, admin) = (free_port(), free_port());
    let config = folder.path().join("relay.toml");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let text = format!(
        "name = {NAME:?}\nstate = {:?}\n[listen]\nlink = [\"127.0.0.1:{port}\"]\ndevice = []\n\
         [tls]\ncertificate = {:?}\nkey_file = {:?}\n[admin]\nlisten = \"127.0.0.1:{admin}\"\n",
        at("state"),
        at("own.pem"),
        at("own.key"),
    );
    std::fs::write(&config, text).unwrap();
    let log = folder.path().join("log");
    let relay = Process::start(Command::new(hedgerow()).args(["relay", "run", "--config"]).arg(&config), &log);
    wait_until("the relay shows its certificate", PATIENCE, || shown(port) == is(&first));

    // Broken: it stays, and the log says which file, and why.
    std::fs::write(folder.path().join("own.pem"), "no certificate at all").unwrap();
    signal(relay.pid(), libc::SIGHUP);
    let refused = || std::fs::read_to_string(&log).unwrap().contains("reloading was refused");
    wait_until("the broken file is refused", PATIENCE, refused);
    let said = std::fs::read_to_string(&log).unwrap();
    let line = said.lines().find(|l| l.contains("reloading was refused")).unwrap();
    assert!(line.contains("own.pem") && line.contains("PEM file with certificates"), "{line}");
    assert_eq!(shown(port), is(&first));

    write(folder.path(), &second);
    signal(relay.pid(), libc::SIGHUP);
    wait_until("the new certificate is shown", PATIENCE, || shown(port) == is(&second));
    wait_until("it was HUP", PATIENCE, || std::fs::read_to_string(&log).unwrap().contains(" reloaded"));
}
