//! Debian's Chromium without a window, as people use it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::process;

/// Loads `https://NAME/PATH`, with the name leading to `address`; what it saw, as `scripts/chromium.py` says. Certificates
/// with the public key of the PEM file `trusted` are accepted, no others.
#[must_use]
pub fn load(name: &str, path: &str, address: &str, trusted: &Path) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/chromium.py");
    let mut python = Command::new("/usr/bin/python3");
    python.arg(script).arg(format!("https://{name}{path}")).arg(format!("MAP {name} {address}")).arg(key_hash(trusted));
    let output = process::run(&mut python, Duration::from_secs(120));
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("chromium.py: {e}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// SHA-256 of the public key info of a PEM certificate, base64.
fn key_hash(certificate: &Path) -> String {
    let pipe = "openssl x509 -in \"$1\" -noout -pubkey | openssl pkey -pubin -outform der \
                | openssl dgst -sha256 -binary | openssl base64";
    let mut shell = Command::new("sh");
    shell.args(["-ec", pipe, "sh"]).arg(certificate);
    String::from_utf8(process::run(&mut shell, Duration::from_secs(20)).stdout).expect("base64").trim().to_owned()
}
