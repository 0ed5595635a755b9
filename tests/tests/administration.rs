//! Inventory, compliance, apps, administrators, record and reports: by the command line, with a real device.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Output;
use std::time::Duration;

use hedgerow_tests::office::{Office, Ways};
use hedgerow_tests::process::{run, try_run, wait_until};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

struct Desk {
    office: Office,
    device: String,
}

impl Desk {
    fn open(section: impl Fn(&Office) -> String) -> Self {
        let mut office = Office::open();
        let relay = vec![format!("{}:443", office.address), format!("{}:3101", office.address)];
        let device = section(&office);
        office.move_in(Ways { device, ..Ways::all(&relay, "") });
        let id = office.get("device", "/status")["device"].as_str().unwrap().to_owned();
        Self { office, device: id }
    }

    fn say(&self, words: &[&str]) -> String {
        String::from_utf8(run(&mut self.office.command("core", words), LIMIT).stdout).unwrap()
    }

    fn try_say(&self, words: &[&str]) -> Output {
        try_run(&mut self.office.command("core", words), LIMIT)
    }

    fn refused(&self, words: &[&str], why: &str) {
        let refused = self.try_say(words);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(why), "{words:?}: {said}");
    }

    fn ask(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.say(&[words, &["--json"]].concat())).unwrap()
    }

    /// Has the device tell something, and waits for it.
    fn told(&self, kind: &str) {
        let id = self.ask(&["command", "send", &self.device, kind])["id"].as_str().unwrap().to_owned();
        let ended = || self.ask(&["command", "show", &id])["completed"].is_number();
        wait_until("the device has answered", LIMIT, ended);
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.office.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

#[test]
fn p23_a_device_s_inventory_is_shown_and_a_rule_that_it_breaks_locks_it_once() {
    let desk = Desk::open(|office| format!("[commands]\nlock = [\"touch\", {:?}]\n", office.path("locked")));
    assert!(desk.ask(&["device", "show", &desk.device])["inventory"]["attributes"].is_null());
    desk.told("request-device-info");
    desk.told("list-applications");
    let shown = desk.ask(&["device", "show", &desk.device]);
    assert_eq!(shown["inventory"]["attributes"]["os"], "Linux");
    assert!(shown["inventory"]["apps"].as_u64().unwrap() > 50, "{shown}");
    let table = desk.say(&["device", "show", &desk.device]);
    assert!(table.contains("storage free") && table.contains("GiB"), "{table}");
    let packages = desk.say(&["device", "apps", &desk.device]);
    assert!(packages.lines().any(|line| line.starts_with("bash ")), "{packages}");
    assert!(desk.say(&["app", "installed", "bash"]).contains(&desk.device));
    // No version of Linux passes.
    let rules = r#"{"rules": {"osVersion": {"minimum": {"linux": "999"}, "steps": [{"action": "lock"}, {"action": "quarantine"}]}}}"#;
    let rules = desk.file("rules.json", rules);
    desk.say(&["profile", "add", "compliance", "strict", "--settings", &rules]);
    desk.say(&["profile", "default", "compliance/strict"]);
    let checked = desk.say(&["compliance", "check"]);
    assert!(checked.contains("1 devices judged, 1 stand otherwise"), "{checked}");
    wait_until("the device is locked", LIMIT, || std::fs::exists(desk.office.path("locked")).unwrap());
    let standing = desk.ask(&["compliance", "show", &desk.device]);
    assert_eq!((&standing["verdict"], &standing["quarantined"]), (&"not_compliant".into(), &true.into()), "{standing}");
    assert_eq!(standing["causes"][0]["rule"], "osVersion");
    let page = format!("http://wiki.intranet.example.com:{}/page", desk.office.site().port);
    let loads = || {
        let mut curl = hedgerow_tests::curl::curl();
        hedgerow_tests::curl::attempt(curl.args(["--proxy", &desk.office.socks(), &page])).status.success()
    };
    wait_until("quarantine cuts it off", LIMIT, || !loads());
    let table = desk.say(&["compliance", "show", &desk.device]);
    assert!(table.contains("at least 999 is wanted") && table.contains("lock at"), "{table}");
    // Once for one cause, however often it is looked at and told.
    assert!(desk.say(&["compliance", "check"]).contains("0 stand otherwise"));
    desk.told("request-device-info");
    let locks = desk.say(&["command", "list", &desk.device]).matches("LOCK_DEVICE").count();
    assert_eq!(locks, 1);
    assert!(desk.say(&["device", "list"]).contains("not_compliant"));
    let report = desk.say(&["report", "compliance"]);
    assert!(report.contains("osVersion") && report.contains("anna@example.com"), "{report}");
    let csv = desk.say(&["report", "compliance", "--csv"]);
    assert!(csv.starts_with("device,user,name,breaks,quarantined,since\r\n") && csv.lines().count() == 2, "{csv}");
    desk.say(&["profile", "default", "compliance/strict", "--off"]);
    desk.say(&["compliance", "check", &desk.device]);
    assert_eq!(desk.ask(&["compliance", "show", &desk.device])["quarantined"], false);
    wait_until("it is let in again", LIMIT, loads);
    // What was done stands in the record, found by what it is.
    let acts = desk.ask(&["audit", "list", "--action", "compliance.act", "--from", "1h"]);
    assert_eq!(acts.as_array().unwrap().len(), 2, "{acts}");
    let all = desk.say(&["audit", "export"]);
    let last: Value = serde_json::from_str(all.lines().last().unwrap()).unwrap();
    assert!(last["hash"].is_string() && all.lines().count() > 10, "{all}");
    let (out, words) =
        (desk.office.path("audit.csv"), ["audit", "export", "--format", "csv", "--actor", "admin:local", "--out"]);
    desk.say(&[&words[..], &[&out]].concat());
    let csv = std::fs::read_to_string(&out).unwrap();
    assert!(
        csv.starts_with("number,time,actor,") && csv.lines().skip(1).all(|line| line.contains("admin:local")),
        "{csv}"
    );
    let devices = desk.say(&["report", "devices"]);
    assert!(devices.contains("active") && devices.contains("no_profile"), "{devices}");
    let activity = desk.say(&["report", "activity"]);
    assert!(activity.contains("1 in a day") && activity.contains("profile.default"), "{activity}");
    assert!(desk.say(&["report", "activity", "--quiet-since", "7d"]).contains("every device was seen"));
    desk.refused(&["audit", "list", "--from", "yesterday"], "expected a day");
    desk.say(&["audit", "verify"]);
}

#[test]
fn p40_apps_are_assigned_by_the_command_line_and_what_is_wrong_on_a_device_is_found() {
    let desk = Desk::open(|_| String::new());
    let config = desk.file("config.json", r#"{"server": "mail.example.com"}"#);
    for words in [
        &["group", "add", "sales"][..],
        &["group", "join", "sales", "anna@example.com"],
        &["app", "add", "linux", "bash", "--name", "Shell"],
        &[
            "app",
            "add",
            "linux",
            "hedgerow-mail",
            "--vendor",
            "Hedgerow",
            "--versions",
            "2.0,1.0",
            "--file",
            "repo/mail.deb",
        ],
        &["app", "add", "ios", "com.example.mail"],
        &["app", "config", "set", "linux/hedgerow-mail", "usual", "--settings", &config],
        &["app", "config", "set", "linux/hedgerow-mail", "sales", "--settings", &config],
        &["app", "config", "rank", "linux/hedgerow-mail", "sales", "1"],
        &["app", "group", "add", "office"],
        &["app", "group", "join", "office", "linux/hedgerow-mail"],
        &["app", "group", "join", "office", "ios/com.example.mail"],
        &["app", "assign", "group:office", "group:sales", "--disposition", "required"],
        &["app", "assign", "linux/hedgerow-mail", "group:sales", "--config", "sales"],
        &["app", "assign", "linux/bash", "anna@example.com"],
        &["app", "restrict", "linux", "coreutil*"],
    ] {
        desk.say(words);
    }
    let found = desk.ask(&["app", "effective", "--device", &desk.device]);
    let mail = found.as_array().unwrap().iter().find(|one| one["identifier"] == "hedgerow-mail").unwrap();
    assert_eq!((&mail["disposition"], &mail["app_group"]), (&"required".into(), &"office".into()), "{found}");
    assert_eq!(mail["config"]["settings"]["server"], "mail.example.com");
    assert_eq!(found.as_array().unwrap().len(), 2, "nothing of iOS: {found}");
    let table = desk.say(&["app", "effective", "anna@example.com"]);
    assert!(
        table.contains("assigned to group sales, in group of apps office") && table.contains("com.example.mail"),
        "{table}"
    );
    assert!(table.contains("optional (comes behind)"), "{table}");
    desk.refused(&["app", "findings", &desk.device], "has not told its apps");
    desk.told("list-applications");
    let findings = desk.ask(&["app", "findings", &desk.device]);
    assert_eq!((&findings["missing"][0], &findings["restricted"][0]), (&"hedgerow-mail".into(), &"coreutils".into()));
    assert_eq!(findings["unapproved"].as_array().unwrap().len(), 0);
    desk.say(&["app", "approve", "linux", "bash"]);
    let findings = desk.ask(&["app", "findings", &desk.device]);
    assert!(findings["unapproved"].as_array().unwrap().len() > 50, "{findings}");
    for (words, why) in [
        (&["app", "add", "linux", "bash"][..], "already"),
        (&["app", "add", "palm", "x"], "linux"),
        (&["app", "assign", "linux/none", "anna@example.com"], "there is no app"),
        (&["app", "assign", "linux/bash", "anna@example.com", "--disposition", "maybe"], "required"),
        (&["app", "assign", "linux/bash", "anna@example.com", "--config", "x"], "no configuration"),
        (&["app", "show", "bash"], "PLATFORM/IDENTIFIER"),
    ] {
        desk.refused(words, why);
    }
    desk.say(&["app", "unassign", "linux/bash", "anna@example.com"]);
    desk.say(&["app", "remove", "linux/bash"]);
    assert!(!desk.say(&["app", "list"]).contains("linux     bash"));
    desk.say(&["audit", "verify"]);
}

#[test]
fn p18_administrators_and_roles_by_the_command_line() {
    let desk = Desk::open(|_| String::new());
    let password = desk.file("password", "correct horse battery\n");
    std::fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert!(desk.say(&["admin", "list"]).contains("no administrators but root"));
    desk.say(&["admin", "add", "anna@example.com", "--role", "security"]);
    desk.refused(&["admin", "role", "anna@example.com", "enterprise"], "last with the security role");
    desk.refused(&["admin", "remove", "anna@example.com"], "last with the security role");
    desk.refused(&["user", "remove", "anna@example.com"], "last with the security role");
    assert_eq!(desk.ask(&["device", "list"])[0]["state"], "active", "and nothing of it was done");
    desk.say(&["admin", "password", "anna@example.com", "--password-file", &password, "--must-change"]);
    let listed = desk.ask(&["admin", "list"]);
    assert_eq!((&listed[0]["role"], &listed[0]["password"]["must_change"]), (&"security".into(), &true.into()));
    assert!(!listed.to_string().contains("sealed") && !listed.to_string().contains("horse"), "{listed}");
    desk.say(&["group", "add", "berlin"]);
    desk.say(&["role", "add", "Berlin", "--permissions", "view-users,lock-devices", "--groups", "berlin"]);
    let shown = desk.say(&["role", "show", "berlin"]);
    assert!(shown.contains("lock-devices") && shown.contains("berlin"), "{shown}");
    assert_eq!(desk.ask(&["role", "list"]).as_array().unwrap().len(), 5);
    desk.refused(&["role", "add", "x", "--permissions", "fly"], "edit-users");
    desk.say(&["role", "change", "Berlin", "--name", "Desk", "--permissions", "view-users", "--all-users"]);
    assert!(!desk.say(&["role", "show", "desk"]).contains("lock-devices"));
    desk.refused(&["role", "change", "security", "--name", "x"], "stays as it is");
    desk.refused(&["role", "change", "desk"], "--permissions");
    desk.say(&["role", "change", "desk", "--name", "Berlin"]);
    desk.say(&["group", "change", "berlin", "--name", "Potsdam"]);
    desk.refused(&["group", "members", "berlin"], "there is no group");
    desk.say(&["user", "change", "anna@example.com", "--email", "anna.b@example.com"]);
    assert_eq!(desk.ask(&["admin", "list"])[0]["email"], "anna.b@example.com");
    desk.say(&["user", "change", "anna.b@example.com", "--email", "anna@example.com", "--name", "Anna"]);
    desk.refused(&["role", "remove", "security"], "stays");
    desk.refused(&["admin", "add", "anna@example.com", "--role", "none"], "there is no role");
    desk.say(&["role", "remove", "Berlin"]);
    assert!(!desk.say(&["audit", "export"]).contains("horse"));
    desk.say(&["audit", "verify"]);
}
