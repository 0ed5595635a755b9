//! The API manual's way to the core's web services: HTTP CONNECT at the relay's 443 and at its
//! plain-HTTP port to origin `bws`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hedgerow_tests::curl::{attempt, curl, text};
use hedgerow_tests::process::{run, wait_until};
use hedgerow_tests::world::{Options, World};

const PING: &str = "https://server01:18084/S12345678/api/v1/util/ping";

fn through_relay(world: &World, tenant: &str, origin: &str) -> Command {
    let mut command = curl();
    command
        .args([
            "--proxy",
            &format!("https://{}", world.text("relay.device")),
            "--proxy-cacert",
            &world.text("relay.ca"),
        ])
        .args([
            "--proxy-header",
            &format!("Tenant-Id: {tenant}"),
            "--proxy-header",
            &format!("Origin-Server-Id: {origin}"),
        ])
        .args(["--insecure"]);
    command
}

#[test]
fn p07_curl_reaches_ping_by_connect_as_in_the_api_manual() {
    let world = World::start(&Options::default());
    let said = text(through_relay(&world, "S12345678", "bws").arg(PING));
    assert!(said.starts_with("Up and running"), "{said}");
    // The manual's clients vary the case of the tenant, and write double slashes.
    let said =
        text(through_relay(&world, "s12345678", "bws").arg("https://server01:18084/s12345678/api/v1//util/ping"));
    assert!(said.starts_with("Up and running"), "{said}");
    let unknown = attempt(
        through_relay(&world, "S12345678", "bws")
            .args(["--write-out", "%{http_code}"])
            .arg("https://server01:18084/S12345678/api/v1/nothing"),
    );
    assert!(String::from_utf8_lossy(&unknown.stdout).ends_with("404"), "{unknown:?}");
}

/// As the manual writes it: `--proxy http://proxyserverhost:proxyserverport`.
fn through_plain_port(world: &World, tenant: &str, origin: &str) -> Command {
    let mut command = curl();
    command
        .args(["--proxy", &format!("http://{}", world.text("relay.http"))])
        .args(["--proxy-header", &format!("Tenant-Id: {tenant}")])
        .args(["--proxy-header", &format!("Origin-Server-Id: {origin}")])
        .args(["--insecure"]);
    command
}

#[test]
fn p07_curl_reaches_ping_by_the_plain_http_port_as_in_the_api_manual() {
    let world = World::start(&Options::default());
    let said = text(through_plain_port(&world, "S12345678", "bws").arg(PING));
    assert!(said.starts_with("Up and running"), "{said}");
    // The client's TLS ends at the core, not at the relay.
    let verbose = attempt(through_plain_port(&world, "S12345678", "bws").args(["--verbose", PING]));
    let verbose = String::from_utf8_lossy(&verbose.stderr).into_owned();
    assert!(verbose.contains("SSL connection using TLSv1.3") && !verbose.contains("Hedgerow relay CA"), "{verbose}");
    for (tenant, origin, status, word) in [
        ("S12345678", "core", "403", "origin bws only"),
        ("S12345678", "proxy", "403", "origin bws only"),
        ("S99999999", "bws", "404", ""),
        ("not a tenant", "bws", "400", ""),
    ] {
        let output = attempt(through_plain_port(&world, tenant, origin).args(["--verbose", PING]));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(&format!("< HTTP/1.1 {status} ")), "{tenant} {origin}: {said}");
        assert!(!output.status.success());
        assert!(word.is_empty() || origin == "bws" || plain_says(&world, origin).contains(word));
    }
    // Anything but CONNECT is refused, in words.
    let mut plain = Command::new("curl");
    plain.args(["--silent", "--noproxy", "*", "--max-time", "20", "--write-out", "%{http_code}"]);
    let said = attempt(plain.arg(format!("http://{}/lookup", world.text("relay.http"))));
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("only CONNECT") && said.ends_with("405"), "{said}");
    // Both administrators can read host and port.
    let port = world.text("relay.http").rsplit(':').next().unwrap().to_owned();
    let url = format!("http://{}:{port}", world.text("relay.name"));
    for shown in [
        world.hedgerow(&["core", "status"])["relays"][0]["web"].clone(),
        world.hedgerow(&["relay", "info"])["web"].clone(),
    ] {
        assert_eq!(shown[0].as_str(), Some(url.as_str()), "{shown}");
        assert!(shown[1].as_str().is_some_and(|u| u.starts_with("https://")), "{shown}");
    }
}

/// The relay's words to a CONNECT on the plain port, as they come.
fn plain_says(world: &World, origin: &str) -> String {
    use std::io::{Read, Write};
    let mut tcp = std::net::TcpStream::connect(world.text("relay.http")).unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let request = format!(
        "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nTenant-Id: S12345678\r\nOrigin-Server-Id: {origin}\r\nConnection: close\r\n\r\n"
    );
    tcp.write_all(request.as_bytes()).unwrap();
    let mut said = String::new();
    tcp.read_to_string(&mut said).unwrap();
    said
}

#[test]
fn p02_connect_is_refused_with_a_reason_where_it_may_not_go() {
    let world = World::start(&Options::default());
    for (tenant, origin, status) in [
        ("S99999999", "bws", "404"),
        ("S12345678", "proxy", "403"),
        ("S12345678", "nonsense", "400"),
        ("not a tenant", "bws", "400"),
    ] {
        let output = attempt(through_relay(&world, tenant, origin).args(["--verbose"]).arg(PING));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let first = said.lines().find(|l| l.starts_with("< HTTP/1.1")).unwrap_or_default().to_owned();
        assert!(first.contains(&format!(" {status} ")), "{tenant} {origin}: {first}\n{said}");
        assert!(!output.status.success());
    }
    assert!(
        world.metric("relay.admin", "hedgerow_relay_http_total", "") >= 4.0,
        "{}",
        world.get("relay.admin", "/metrics")
    );
}

#[test]
fn p07_a_public_http2_library_reaches_ping_by_connect() {
    let world = World::start(&Options::default());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/h2_connect.py");
    let port = world.text("relay.device").rsplit(':').next().unwrap().to_owned();
    let ask = |origin: &str| {
        let mut python = Command::new("/usr/bin/python3");
        python.arg(&script).args([&port, &world.text("relay.ca"), "S12345678", origin, "/S12345678/api/v1/util/ping"]);
        String::from_utf8(run(&mut python, Duration::from_secs(30)).stdout).unwrap()
    };
    let said = ask("bws");
    assert!(said.starts_with("200\n") && said.contains("Up and running"), "{said}");
    let said = ask("proxy");
    assert!(said.starts_with("403\n"), "{said}");
}

#[test]
fn p03_the_relay_answers_look_ups_alike_for_strangers_and_tells_who_may_activate() {
    let world = World::start(&Options::default());
    let ask = |email: &str| {
        let url = format!("https://{}/lookup", world.text("relay.device"));
        let output = attempt(
            Command::new("curl")
                .args([
                    "--silent",
                    "--noproxy",
                    "*",
                    "--max-time",
                    "20",
                    "--cacert",
                    &world.text("relay.ca"),
                    "--write-out",
                    "\n%{http_code}",
                ])
                .args(["--json", &format!("{{\"email\":\"{email}\"}}"), &url]),
        );
        String::from_utf8(output.stdout).unwrap()
    };
    // Anna has used her password: she is a stranger like any other.
    let stranger = ask("nobody@elsewhere.example");
    assert!(stranger.ends_with("404"), "{stranger}");
    assert_eq!(ask("anna@hedgerow.demo"), stranger);
    let _ = world.hedgerow(&["user", "add", "ben@hedgerow.demo", "--name", "Ben"]);
    let _ = world.hedgerow(&["password", "generate", "ben@hedgerow.demo"]);
    hedgerow_tests::process::wait_until("the relay knows of Ben", Duration::from_secs(10), || {
        ask("ben@hedgerow.demo").contains("S12345678")
    });
    assert!(ask("BEN@Hedgerow.demo").contains("S12345678"), "case does not matter");
    // A claimed domain answers every local part alike.
    let _ = world.hedgerow(&["relay", "domain", "add", "S12345678", "claimed.example"]);
    assert_eq!(ask("anyone@claimed.example"), ask("someone.else@claimed.example"));
    assert!(ask("anyone@claimed.example").contains("S12345678"));
}

/// A certificate that is renewed by other means is shown without a restart, and one that cannot be used is not.
#[test]
fn p20_the_web_services_certificate_is_read_again_when_its_files_change() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let make = |name: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]);
        openssl.args(["-keyout", &at("key.new"), "-out", &at("certificate.new"), "-subj", &format!("/CN={name}")]);
        let _ = run(&mut openssl, Duration::from_secs(30));
        for file in ["key", "certificate"] {
            std::fs::rename(at(&format!("{file}.new")), at(file)).unwrap();
        }
    };
    make("first.example");
    let environment = vec![
        ("HEDGEROW_CORE__BWS__CERTIFICATE".to_owned(), at("certificate")),
        ("HEDGEROW_CORE__BWS__KEY_FILE".to_owned(), at("key")),
    ];
    let world = World::start(&Options { environment, ..Options::default() });
    let shown = || {
        let output = attempt(through_plain_port(&world, "S12345678", "bws").args(["--verbose", PING]));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(shown().contains("CN=first.example"), "{}", shown());
    make("second.example");
    wait_until("the new one is shown", Duration::from_secs(40), || shown().contains("CN=second.example"));
    std::fs::write(at("certificate"), "not a certificate").unwrap();
    wait_until("the log names the file", Duration::from_secs(40), || {
        world.log("core").contains("the web services' certificate could not be read again")
    });
    assert!(shown().contains("CN=second.example"), "the old one stays in use");
    let until = world.metric("core.admin", "hedgerow_certificate_not_after_seconds", "web");
    assert!(until > 1.7e9, "{until}");
}
