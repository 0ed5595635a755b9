//! Names passed through: real clients reach an nginx behind the node by a server name that the tenant registered, on
//! both doors, and the relay has opened nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hedgerow_tests::chromium;
use hedgerow_tests::curl::{attempt, curl, text};
use hedgerow_tests::nginx::{Nginx, sha256};
use hedgerow_tests::process::{signal, try_run, wait_until};
use hedgerow_tests::world::{Options, World};
use serde_json::Value;

const MAIL: &str = "mail.names.test";
const WORDS: &str = "only nginx says this";
const DOORS: [&str; 2] = ["relay.device", "relay.link"];

struct Published {
    world: World,
    nginx: Nginx,
}

impl Published {
    /// nginx behind the node, for names of origin `gateway` and `mdm`.
    fn start() -> Self {
        let nginx = Nginx::start(WORDS);
        let server = format!("127.0.0.1:{}", nginx.tls_port);
        let publish = vec![format!("gateway={server}"), format!("mdm={server}")];
        let world = World::start(&Options { publish, ..Options::default() });
        Self { world, nginx }
    }

    fn add(&self, name: &str, origin: &str) -> Value {
        self.world.hedgerow(&["name", "add", name, "--origin", origin])
    }

    /// curl to a name, led to one of the relay's doors, trusting nginx's certificate and no other.
    fn curl(&self, name: &str, door: &str, path: &str) -> Command {
        let mut command = curl();
        command
            .args(["--connect-to", &format!("{name}:443:{}", self.world.text(door)), "--cacert"])
            .arg(self.nginx.certificate())
            .arg(format!("https://{name}{path}"));
        command
    }

    /// What `openssl s_client` says when it asks a door for a name.
    fn s_client(&self, name: &str, door: &str) -> String {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &self.world.text(door), "-servername", name, "-showcerts"]);
        let output = try_run(&mut command, Duration::from_secs(30));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Whether a name is closed without a word of TLS, on both doors.
    fn is_closed(&self, name: &str) -> bool {
        DOORS.iter().all(|door| {
            let output = attempt(self.curl(name, door, "/page").arg("--verbose"));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            !output.status.success() && !said.contains("TLS handshake, Server hello")
        })
    }
}

/// The first certificate in a text, its lines joined.
fn certificate(text: &str) -> String {
    let body = text.split("-----BEGIN CERTIFICATE-----").nth(1).and_then(|t| t.split("-----END").next());
    body.unwrap_or_default().split_whitespace().collect()
}

fn certificate_of(path: &Path) -> String {
    certificate(&std::fs::read_to_string(path).unwrap())
}

#[test]
fn p02_curl_and_openssl_reach_nginx_by_its_name_on_both_doors() {
    let published = Published::start();
    let added = published.add(MAIL, "gateway");
    assert_eq!((&added["relays"][0]["state"], &added["not_yet"]), (&"passed".into(), &serde_json::json!([])));
    published.add("mdm.names.test", "mdm");
    let big = published.nginx.put_file("big", 20 << 20);
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("big");
    for door in DOORS {
        for name in [MAIL, "mdm.names.test", "MAIL.names.test"] {
            let said = text(published.curl(name, door, "/page").args(["--write-out", "\n%{http_version}"]));
            assert_eq!(said, format!("{WORDS}\n2"), "{name} at {door}: nginx speaks HTTP/2 by ALPN");
        }
        let _ = text(published.curl(MAIL, door, "/big").arg("--output").arg(&target));
        assert_eq!(sha256(&target), big);
        // The relay cannot have opened it: what the client sees is nginx's own certificate.
        let said = published.s_client(MAIL, door);
        assert_eq!(certificate(&said), certificate_of(&published.nginx.certificate()), "{said}");
        assert!(said.contains("CN = intranet.test"), "{said}");
    }
    let listed = published.world.hedgerow(&["relay", "name", "list"]);
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    assert!(published.world.metric("relay.admin", "hedgerow_relay_passed_total", "origin=\"gateway\"") >= 6.0);
    assert!(published.world.metric("relay.admin", "hedgerow_relay_passed_total", "origin=\"mdm\"") >= 2.0);
    // An upload, too.
    let upload = folder.path().join("upload");
    let sent = hedgerow_tests::nginx::write_random(&upload, 8 << 20);
    let _ = text(
        published.curl(MAIL, "relay.device", "/upload").arg("--data-binary").arg(format!("@{}", upload.display())),
    );
    assert_eq!(published.nginx.uploaded(), (sent, 8 << 20));
    // Removed: at once, the connections that stand included.
    wait_until("what was passed has ended", Duration::from_secs(10), || {
        !published.world.get("relay.admin", "/sessions").contains("\"name\"")
    });
    let mut silent = Command::new("openssl");
    silent.args(["s_client", "-quiet", "-connect", &published.world.text("relay.device"), "-servername", MAIL]);
    let mut silent = silent
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until("it is passed", Duration::from_secs(10), || {
        published.world.get("relay.admin", "/sessions").contains(MAIL)
    });
    let _ = published.world.hedgerow(&["name", "remove", MAIL]);
    wait_until("it is cut", Duration::from_secs(5), || silent.try_wait().unwrap().is_some());
    assert!(published.is_closed(MAIL));
    assert!(text(&mut published.curl("mdm.names.test", "relay.device", "/page")).contains(WORDS));
}

#[test]
fn p02_chromium_shows_the_page_of_nginx_by_its_name_on_both_doors() {
    let published = Published::start();
    published.add(MAIL, "gateway");
    for door in DOORS {
        let seen = chromium::load(MAIL, "/page", &published.world.text(door), &published.nginx.certificate());
        assert_eq!((&seen["status"], &seen["text"]), (&200.into(), &WORDS.into()), "{seen}");
        assert_eq!((&seen["subject"], &seen["protocol"]), (&"intranet.test".into(), &"h2".into()), "{seen}");
    }
    let seen = chromium::load(
        "nobody.names.test",
        "/page",
        &published.world.text("relay.device"),
        &published.nginx.certificate(),
    );
    assert!(seen["error"].as_str().is_some_and(|e| e.starts_with("net::ERR_CONNECTION")), "{seen}");
}

#[test]
fn p02_names_that_are_nobodys_blocked_or_taken_away_are_closed() {
    let published = Published::start();
    let world = &published.world;
    let dropped = |world: &World| world.metric("relay.admin", "hedgerow_dropped_total", "reason=\"unknown_name\"");
    let before = dropped(world);
    assert!(published.is_closed(MAIL), "never registered");
    assert!(dropped(world) >= before + 2.0, "counted: {}", world.get("relay.admin", "/metrics"));
    for bad in ["relay.hedgerow.demo", "x.lane.relay.hedgerow.demo"] {
        let added = published.add(bad, "gateway");
        assert_eq!(added["relays"][0]["state"], "refused", "{added}");
        let listed = world.hedgerow(&["name", "list"]);
        assert!(listed.to_string().contains("name of the relay itself"), "{listed}");
        let _ = world.hedgerow(&["name", "remove", bad]);
    }
    for bad in ["192.0.2.1", "mail", "under_score.names.test"] {
        let output = world.try_hedgerow(&["name", "add", bad, "--origin", "gateway"]);
        assert!(!output.status.success(), "{bad}: {output:?}");
    }
    assert!(!world.try_hedgerow(&["name", "add", MAIL, "--origin", "proxy"]).status.success());
    published.add(MAIL, "gateway");
    let reaches = || attempt(&mut published.curl(MAIL, "relay.device", "/page")).status.success();
    assert!(reaches());
    // The operator takes it away; the tenant's administrator sees it, and cannot take it back.
    let _ = world.hedgerow(&["relay", "name", "remove", "S12345678", MAIL]);
    assert!(published.is_closed(MAIL));
    let _ = world.hedgerow(&["name", "remove", MAIL]);
    let added = published.add(MAIL, "gateway");
    assert!(added["relays"][0]["reason"].as_str().is_some_and(|r| r.contains("operator")), "{added}");
    assert!(published.is_closed(MAIL));
    let human = String::from_utf8(world.try_hedgerow(&["name", "list"]).stdout).unwrap();
    assert!(human.contains("refused: the relay's operator took this name away"), "{human}");
    let _ = world.hedgerow(&["relay", "name", "allow", "S12345678", MAIL]);
    let _ = world.hedgerow(&["name", "remove", MAIL]);
    published.add(MAIL, "gateway");
    assert!(reaches());
    // A blocked tenant.
    let _ = world.hedgerow(&["relay", "tenant", "block", "S12345678"]);
    assert!(published.is_closed(MAIL));
    let _ = world.hedgerow(&["relay", "tenant", "unblock", "S12345678"]);
    wait_until("the node is back", Duration::from_secs(60), reaches);
    // Who did what stands in the audit.
    let audit = world.hedgerow(&["audit", "list"]).to_string();
    assert!(audit.contains("name.add") && audit.contains("name.remove"), "{audit}");
}

#[test]
fn p02_names_survive_a_restart_of_the_relay_and_lead_to_the_core_too() {
    let published = Published::start();
    let world = &published.world;
    published.add(MAIL, "gateway");
    published.add("core.names.test", "core");
    // The core ends TLS itself, with a certificate of the tenant's CA.
    let ours = certificate_of_tenant(world);
    let said = published.s_client("core.names.test", "relay.device");
    assert!(said.contains(&ours[..64]) && said.contains("S12345678"), "{said}");
    let relay = world.pid("relay");
    signal(relay, libc::SIGKILL);
    wait_until("the relay is back", Duration::from_secs(30), || {
        world.pid("relay") != relay && TcpStream::connect(world.text("relay.device")).is_ok()
    });
    let listed = world.hedgerow(&["relay", "name", "list"]);
    assert_eq!(listed.as_array().unwrap().len(), 2, "known before the core is back: {listed}");
    wait_until("nginx is reached again", Duration::from_secs(60), || {
        attempt(&mut published.curl(MAIL, "relay.link", "/page")).status.success()
    });
}

/// The tenant's CA, base64 without line ends.
fn certificate_of_tenant(world: &World) -> String {
    certificate(world.hedgerow(&["tenant", "show"])["ca_pem"].as_str().unwrap())
}

#[test]
fn p02_a_node_publishes_only_what_its_certificate_allows() {
    let world = World::start(&Options::default());
    let token = world.dir().join("plain.token");
    let config = world.dir().join("plain.toml");
    std::fs::write(&config, format!("state = {:?}\n[admin]\nlisten = \"127.0.0.1:0\"\n", world.dir().join("plain")))
        .unwrap();
    let (token, config) = (token.display().to_string(), config.display().to_string());
    let _ = world.hedgerow(&["token", "create", "--name", "plain", "--out", &token]);
    // The relay's name does not resolve here, so the token's address has to do.
    let _ = world.hedgerow(&["node", "enroll", "--config", &config, "--token-file", &token]);
    // A server that leads back to the relay would make a circle.
    let circle = format!("publish.gateway={}", world.text("relay.device"));
    let output = world.try_hedgerow(&["node", "run", "--config", &config, "--set", &circle]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(78) && said.contains("circle"), "{said}");
    let output = world.try_hedgerow(&["node", "run", "--config", &config, "--set", "publish.gateway=127.0.0.1:1"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("publish.gateway") && said.contains("--origins proxy,gateway"), "{said}");
}

#[test]
fn p02_a_core_publishes_mdm_beside_itself_and_a_dead_server_is_a_closed_connection() {
    let nginx = Nginx::start(WORDS);
    let server = format!("127.0.0.1:{}", nginx.tls_port);
    let environment = vec![("HEDGEROW_CORE__PUBLISH__MDM".to_owned(), server)];
    // Nothing listens where the node's gateway should be.
    let publish = vec![format!("gateway=127.0.0.1:{}", hedgerow_tests::process::free_port())];
    let world = World::start(&Options { publish, environment, ..Options::default() });
    let published = Published { world, nginx };
    published.add("mdm.names.test", "mdm");
    published.add(MAIL, "gateway");
    for door in DOORS {
        assert!(text(&mut published.curl("mdm.names.test", door, "/page")).contains(WORDS));
    }
    assert!(published.is_closed(MAIL));
    let refused = published.world.metric("node.admin", "hedgerow_proxy_published_refused_total", "gateway");
    assert!(refused >= 2.0, "{}", published.world.get("node.admin", "/metrics"));
    assert!(published.world.metric("core.admin", "hedgerow_proxy_published_total", "mdm") >= 2.0);
}
