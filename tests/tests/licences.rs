//! A licence from the operator's key to what devices may do, with every role as a process: installed, ended, renewed,
//! and nothing started again for it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hedgerow_tests::field::{Field, INSIDE, Terrain};
use hedgerow_tests::process::{hedgerow, run, try_run, wait_until};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
const DAY: u64 = 24 * 3600;

struct Licensed {
    field: Field,
    keys: tempfile::TempDir,
    issued: u32,
}

impl Licensed {
    /// A relay that knows the operator's key and requires nothing yet.
    fn open() -> Self {
        let keys = tempfile::tempdir().unwrap();
        let folder = keys.path().to_str().unwrap();
        let _ = run(std::process::Command::new(hedgerow()).args(["licence", "keygen", "--out", folder]), LIMIT);
        let relay = format!("[licences]\nkeys = [\"{folder}/licence-key.pub.pem\"]\nrequired = false\n");
        Self { field: Field::open(Terrain { devices: 2, relay, ..Terrain::default() }), keys, issued: 0 }
    }

    /// Issues a licence that ends so many days from now, and installs it; what the command says.
    fn license(&mut self, features: &str, seats: &str, days: i64, grace: &str) -> String {
        self.issued += 1;
        let key = self.keys.path().join("licence-key.pem").display().to_string();
        let file = self.keys.path().join(format!("{}.licence", self.issued)).display().to_string();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let expires = now.checked_add_signed(days * DAY as i64).unwrap().to_string();
        let id = format!("L-{}", self.issued);
        let what = ["licence", "issue", "--key", &key, "--tenant", "S12345678", "--features", features, "--id", &id];
        let when = ["--not-before", "2020-01-01", "--expires", &expires, "--grace-days", grace];
        let how = ["--seats", seats, "--out", &file];
        let words = [&what[..], &when, &how].concat();
        let _ = run(std::process::Command::new(hedgerow()).args(words), LIMIT);
        self.field.verb(&["licence", "install", &file])
    }

    fn at_relay(&self) -> Value {
        let status: Value = serde_json::from_str(&self.field.verb(&["relay", "status", "--json"])).unwrap();
        status["licences"]["tenants"][0].clone()
    }

    fn links(&self, role: &str) -> usize {
        let sessions: Value = self.field.get("relay", "/sessions");
        sessions.as_array().unwrap().iter().filter(|s| s["kind"] == "link" && s["role"] == role).count()
    }

    fn page(&self) -> bool {
        self.field.try_say("d1", &format!("curl -fs -m 5 http://{INSIDE}/")).status.success()
    }
}

#[test]
fn p04_a_licence_is_obeyed_ends_and_is_renewed_without_a_restart() {
    let mut it = Licensed::open();
    let web = "python3 -m http.server 80 --bind :: --directory /usr/share/doc";
    it.field.serve("inside", web, &format!("curl -fs http://{INSIDE}/"));

    // One seat, no tunnels, 20 days: everything is told where people look.
    let said = it.license("proxy", "1", 20, "30");
    assert!(said.contains("L-1 installed; accepted by relay.field.test (valid)"), "{said}");
    let status = it.field.verb(&["core", "status"]);
    assert!(status.contains("licence L-1 ends in 20 days"), "{status}");
    assert!(it.at_relay()["warning"].as_str().unwrap().contains("ends in 20 days"));

    it.field.join(1);
    let denied = || {
        let reason = it.field.tunnel(1)["reason"].as_str().unwrap_or_default().to_owned();
        reason.contains("feature tunnel") && reason.contains("L-1") && reason.contains("S12345678")
    };
    wait_until("the pairing is refused by name", LIMIT, denied);
    assert!(it.field.metric("relay", "hedgerow_relay_licence_refused_total", "\"feature\"") > 0.0);

    // No second seat: refused with a reason, and the password stays.
    let password = it.field.path("password2");
    it.field.verb(&["password", "generate", "anna@example.com", "--out", &password]);
    let refused = it.field.try_activate(2);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("all 1 seats of licence L-1 are taken"), "{why}");
    assert!(it.field.verb(&["password", "show", "anna@example.com"]).contains("open"));
    assert!(it.field.verb(&["audit", "list"]).contains("all 1 seats of licence L-1"));

    // Ended yesterday, in grace, with tunnels: it works, and warns.
    let said = it.license("proxy,tunnel", "1", -1, "30");
    assert!(said.contains("L-2 installed; accepted by relay.field.test (grace)"), "{said}");
    it.field.wait_for_tunnel(1);
    wait_until("the page inside", LIMIT, || it.page());
    assert_eq!((&it.at_relay()["standing"], &it.at_relay()["seats_used"]), (&"grace".into(), &1.into()));
    assert!(it.field.verb(&["core", "status"]).contains("has ended; everything goes on for"));
    wait_until("the relay's log warns", LIMIT, || it.field.log("relay").contains("licence L-2 has ended"));

    // From now on required; and over.
    let config = it.field.path("relay.toml");
    let text = std::fs::read_to_string(&config).unwrap().replace("required = false", "required = true");
    std::fs::write(&config, text).unwrap();
    it.field.hang_up("relay");
    let required = || it.field.verb(&["relay", "status"]).contains("licences required  yes");
    wait_until("the relay has read its configuration again", LIMIT, required);
    assert!(it.page(), "in grace nothing is cut");
    let said = it.license("proxy,tunnel", "1", -1, "0");
    assert!(said.contains("(expired)"), "{said}");
    wait_until("device and node are cut off", LIMIT, || it.links("device") + it.links("node") == 0);
    assert_eq!(it.links("core"), 1, "the core stays");
    let told =
        || it.field.get("d1", "/status")["link"].to_string().contains("licence L-3 of tenant S12345678 has ended");
    wait_until("the device is told why", LIMIT, told);
    assert!(!it.page());
    let refused = it.field.try_activate(2);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains("licence L-3 of your organisation has ended"), "{why}");

    // The relay alone remembers it.
    it.field.end("core", libc::SIGTERM);
    it.field.end("relay", libc::SIGTERM);
    it.field.start("relay");
    assert_eq!((&it.at_relay()["id"], &it.at_relay()["standing"]), (&"L-3".into(), &"expired".into()));

    // A new one, and everybody is back by himself.
    it.field.start("core");
    wait_until("the core is linked", LIMIT, || it.links("core") == 1);
    let said = it.license("proxy,tunnel", "2", 365, "30");
    assert!(said.contains("accepted by relay.field.test (valid)"), "{said}");
    wait_until("device and node are back", LIMIT, || it.links("device") == 1 && it.links("node") == 1);
    wait_until("the page inside", LIMIT, || it.page());
    assert!(it.at_relay()["warning"].is_null());
    assert!(it.field.try_activate(2).status.success(), "the same password, and a second seat");
}

#[test]
fn p04_licences_are_inspected_without_a_core() {
    let keys = tempfile::tempdir().unwrap();
    let say = |words: &[&str]| try_run(std::process::Command::new(hedgerow()).args(words), LIMIT);
    let path = |name: &str| keys.path().join(name).display().to_string();
    for folder in ["a", "b"] {
        assert!(say(&["licence", "keygen", "--out", &path(folder)]).status.success());
    }
    let (key, file) = (path("a/licence-key.pem"), path("licence"));
    let issue = ["licence", "issue", "--key", &key, "--tenant", "S12345678", "--days", "10", "--out", &file];
    assert!(say(&[&issue[..], &["--features", "proxy,mdm", "--licensee", "Example GmbH"]].concat()).status.success());
    let shown = say(&["licence", "inspect", &file, "--key", &path("a/licence-key.pub.pem")]);
    let text = String::from_utf8(shown.stdout).unwrap();
    for word in ["Example GmbH", "verified", "mdm,proxy", "unlimited", "ends in 10 days"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let wrong = say(&["licence", "inspect", &file, "--key", &path("b/licence-key.pub.pem")]);
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("not signed by this key"));
    for (features, why) in [("tunnel", "name proxy beside tunnel"), ("proxy,teleport", "known are: proxy")] {
        let refused = say(&[&issue[..], &["--features", features]].concat());
        assert!(String::from_utf8_lossy(&refused.stderr).contains(why), "{refused:?}");
    }
}
