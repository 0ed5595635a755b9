//! What administrators set for devices, by the command line, and what devices make of it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Output;
use std::time::Duration;

use hedgerow_tests::office::{Office, Ways};
use hedgerow_tests::process::{run, try_run, wait_until};
use serde_json::{Value, json};

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

    /// What a verb prints.
    fn say(&self, words: &[&str]) -> String {
        String::from_utf8(run(&mut self.office.command("core", words), LIMIT).stdout).unwrap()
    }

    fn try_say(&self, words: &[&str]) -> Output {
        try_run(&mut self.office.command("core", words), LIMIT)
    }

    fn ask(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.say(&[words, &["--json"]].concat())).unwrap()
    }

    /// Gives the device a command; its id.
    fn send(&self, words: &[&str]) -> String {
        let answer = self.ask(&[&["command", "send", &self.device], words].concat());
        answer["id"].as_str().unwrap().to_owned()
    }

    /// The command once it has come to its end.
    fn end_of(&self, id: &str) -> Value {
        let ended = |told: &Value| told["completed"].is_number();
        wait_until("the command has come to its end", LIMIT, || ended(&self.ask(&["command", "show", id])));
        self.ask(&["command", "show", id])
    }
}

#[test]
fn p22_a_device_carries_out_commands_one_after_the_other_and_says_what_came_of_them() {
    let desk = Desk::open(|office| format!("[commands]\nlock = [\"touch\", {:?}]\n", office.path("locked")));
    let begun = std::time::Instant::now();
    let lock = desk.send(&["lock-device", "--set", "message=Please call 555-0100"]);
    let info = desk.send(&["request-device-info"]);
    let list = desk.send(&["list-applications"]);
    let fail = desk.send(&["enable-lost-mode"]);
    assert_eq!(desk.end_of(&lock)["state"], "SUCCEEDED");
    assert!(begun.elapsed() < Duration::from_secs(10), "it is woken, and does not wait for its next question");
    assert!(std::fs::exists(desk.office.path("locked")).unwrap());
    assert_eq!(desk.end_of(&info)["result"]["os"], "Linux");
    let packages = desk.end_of(&list)["result"]["packages"].as_array().unwrap().len();
    assert!(packages > 50, "{packages}");
    let failed = desk.end_of(&fail);
    assert!(failed["state"] == "FAILED" && failed["error"].as_str().unwrap().contains("ENABLE_LOST_MODE"), "{failed}");
    let table = desk.say(&["command", "list", &desk.device]);
    assert!(table.lines().count() == 5 && table.contains("LOCK_DEVICE"), "{table}");
    assert!(!desk.say(&["command", "show", &lock]).contains("555-0100"), "properties may be secrets");
    let none = desk.try_say(&["command", "send", &desk.device, "explode"]);
    assert!(!none.status.success() && String::from_utf8_lossy(&none.stderr).contains("lock-device"), "{none:?}");
}

#[test]
fn p22_a_command_waits_for_a_device_that_is_away_and_can_be_taken_back_until_then() {
    let mut desk = Desk::open(|office| format!("[commands]\nlock = [\"touch\", {:?}]\n", office.path("locked")));
    desk.office.stop("device", LIMIT);
    let (lock, info) = (desk.send(&["lock-device"]), desk.send(&["request-device-info"]));
    assert_eq!(desk.ask(&["command", "cancel", &info])["state"], "CANCELLED");
    desk.office.restart_device("auto");
    assert_eq!(desk.end_of(&lock)["state"], "SUCCEEDED");
    let late = desk.try_say(&["command", "cancel", &lock]);
    assert!(String::from_utf8_lossy(&late.stderr).contains("come to its end"), "{late:?}");
    // Carried out once, whatever is asked again by a device that was restarted.
    std::fs::remove_file(desk.office.path("locked")).unwrap();
    desk.office.restart_device("auto");
    let again = desk.send(&["request-device-info"]);
    assert_eq!(desk.end_of(&again)["state"], "SUCCEEDED");
    assert!(!std::fs::exists(desk.office.path("locked")).unwrap());
}

#[test]
fn p22_an_agent_that_is_killed_in_the_middle_does_not_do_it_twice_and_says_so() {
    let story = |office: &Office| format!("echo locked >> '{}'; exec sleep 20", office.path("locked"));
    let mut desk = Desk::open(|office| format!("[commands]\nlock = [\"sh\", \"-c\", {:?}]\n", story(office)));
    let lock = desk.send(&["lock-device"]);
    let locked = desk.office.path("locked");
    wait_until("the agent is in the middle of it", LIMIT, || std::fs::exists(&locked).unwrap());
    desk.office.kill("device");
    desk.office.restart_device("auto");
    let ended = desk.end_of(&lock);
    assert!(ended["state"] == "FAILED" && ended["error"].as_str().unwrap().contains("not known"), "{ended}");
    assert_eq!(std::fs::read_to_string(&locked).unwrap(), "locked\n");
    let record = desk.say(&["audit", "list", "--action", "command.end"]);
    assert!(record.contains("refused") && record.contains("not known"), "{record}");
}

#[test]
fn p22_a_command_that_is_put_off_says_so_and_can_be_taken_back() {
    let desk = Desk::open(|_| "[commands]\nlock = [\"sh\", \"-c\", \"exit 75\"]\n".to_owned());
    let lock = desk.send(&["lock-device"]);
    wait_until("it is put off", LIMIT, || desk.ask(&["command", "show", &lock])["state"] == "NOT_NOW");
    let info = desk.send(&["request-device-info"]);
    assert_eq!(desk.end_of(&info)["state"], "SUCCEEDED", "it holds nobody up");
    assert_eq!(desk.ask(&["command", "cancel", &lock])["state"], "CANCELLED");
}

#[test]
fn p21_a_device_acknowledges_the_configuration_that_it_has_in_force() {
    let desk = Desk::open(|_| String::new());
    for target in ["*.one.example.com", "*.two.example.com"] {
        desk.say(&["route", "add", target, "direct"]);
        let issued = desk.ask(&["core", "status"])["config"]["version"].as_str().unwrap().to_owned();
        wait_until("the device obeys it, and says so", LIMIT, || desk.ask(&["device", "list"])[0]["config"] == issued);
        assert!(desk.say(&["device", "show", &desk.device]).contains(&issued));
    }
    desk.say(&["route", "move", "1", "2"]);
    desk.say(&["route", "change", "2", "*.three.example.com", "deny", "--ports", "443"]);
    let routes = desk.ask(&["route", "list"]);
    let last = routes.as_array().unwrap().iter().find(|r| r["number"] == 2).unwrap();
    assert!(last["target"] == "*.three.example.com" && last["via"] == "deny", "{routes}");
    assert!(!desk.try_say(&["route", "move", "1", "99"]).status.success());
    let own = desk.ask(&["device", "list", "--user", "anna@example.com"]);
    assert_eq!(own[0]["id"], desk.device.as_str());
}

#[test]
fn p22_a_device_that_is_to_erase_itself_keeps_no_key_and_is_revoked() {
    let mut desk = Desk::open(|office| format!("[commands]\nerase = [{:?}]\n", office.path("work")));
    let (work, state) = (desk.office.path("work"), desk.office.path("device"));
    std::fs::create_dir(&work).unwrap();
    std::fs::write(format!("{work}/secret plans"), "x").unwrap();
    let erase = desk.send(&["delete-work-space-data"]);
    assert_eq!(desk.end_of(&erase)["state"], "SUCCEEDED");
    wait_until("the agent has ended", LIMIT, || desk.office.log("device").contains("was erased by its organisation"));
    assert!(!std::fs::exists(&work).unwrap());
    for file in ["key.pem", "certificate.pem", "config.cbor", "commands.json"] {
        assert!(!std::fs::exists(format!("{state}/{file}")).unwrap(), "{file}");
    }
    let devices = desk.ask(&["device", "list"]);
    assert_eq!(devices[0]["state"], "revoked", "{devices}");
    desk.office.stop("device", LIMIT);
}

#[test]
fn p21_the_command_line_says_which_profiles_have_effect_and_why() {
    let desk = Desk::open(|_| String::new());
    let settings = desk.office.path("strict.json");
    std::fs::write(&settings, r#"{"passwordLength": 12}"#).unwrap();
    for words in [
        &["group", "add", "Sales", "--description", "who sells"][..],
        &["group", "add", "staff"],
        &["group", "join", "sales", "anna@example.com"],
        &["group", "join", "staff", "group:Sales"],
        &["profile", "add", "it-config", "strict", "--settings", &settings],
        &["profile", "add", "it-config", "usual"],
        &["profile", "add", "it-config", "phones", "--not-on", "linux"],
        &["profile", "rank", "it-config/phones", "1"],
        &["profile", "default", "it-config/usual"],
        &["profile", "assign", "it-config/strict", "group:staff"],
        &["profile", "assign", "it-config/phones", "group:staff"],
    ] {
        desk.say(words);
    }
    let table = desk.say(&["profile", "effective", "--device", &desk.device]);
    assert!(table.contains("IT_CONFIG") && table.contains("assigned to group staff, by way of Sales"), "{table}");
    let found = desk.ask(&["profile", "effective", "--device", &desk.device]);
    assert_eq!((&found[0]["name"], &found[0]["settings"]["passwordLength"]), (&"strict".into(), &12.into()));
    let on_phone = desk.say(&["profile", "effective", "anna@example.com", "--platform", "ios"]);
    assert!(on_phone.contains("phones") && on_phone.contains("strict (ranks behind)"), "{on_phone}");
    desk.say(&["profile", "assign", "it-config/usual", "anna@example.com"]);
    let table = desk.say(&["profile", "effective", "anna@example.com", "--platform", "linux"]);
    assert!(table.contains("assigned to the user") && table.contains("strict (only by group)"), "{table}");
    let members = desk.say(&["group", "members", "STAFF"]);
    assert!(members.contains("group") && members.contains("Sales"), "{members}");
    for (words, why) in [
        (&["group", "join", "sales", "group:staff"][..], "circle"),
        (&["profile", "remove", "it-config/usual"], "default"),
        (&["profile", "show", "it-config/none"], "there is no profile"),
        (&["profile", "add", "wlan", "x"], "wifi"),
        (&["profile", "add", "compliance", "x", "--settings", "/etc/hostname"], "not JSON"),
    ] {
        let refused = desk.try_say(words);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(why), "{words:?}: {said}");
    }
    desk.say(&["audit", "verify"]);
}

/// What an administrator sets reaches the node and the device by itself, and is taken back the same way.
#[test]
fn p21_an_enterprise_connectivity_profile_decides_what_a_device_reaches() {
    let desk = Desk::open(|_| String::new());
    let page = format!("http://wiki.intranet.example.com:{}/page", desk.office.site().port);
    let fetch =
        || hedgerow_tests::curl::attempt(hedgerow_tests::curl::curl().args(["--proxy", &desk.office.socks(), &page]));
    assert!(fetch().status.success());
    let closed = desk.office.path("closed.json");
    std::fs::write(&closed, r#"{"rules": [{"action": "deny", "target": "*.intranet.example.com"}]}"#).unwrap();
    desk.say(&["profile", "add", "enterprise-connectivity", "closed", "--settings", &closed]);
    desk.say(&["group", "add", "visitors"]);
    desk.say(&["profile", "assign", "enterprise-connectivity/closed", "group:visitors"]);
    assert!(fetch().status.success(), "nobody is a visitor");
    desk.say(&["group", "join", "visitors", "anna@example.com"]);
    wait_until("the node's rules close the site", LIMIT, || !fetch().status.success());
    desk.say(&["group", "leave", "visitors", "anna@example.com"]);
    wait_until("the site is open again", LIMIT, || fetch().status.success());

    let off = desk.office.path("off.json");
    std::fs::write(&off, r#"{"enabled": false}"#).unwrap();
    desk.say(&["profile", "add", "enterprise-connectivity", "off", "--settings", &off]);
    desk.say(&["profile", "default", "enterprise-connectivity/off"]);
    wait_until("the device's own routes close it", LIMIT, || {
        let refused = fetch();
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("SOCKS5")
    });
    wait_until("its session is cut", LIMIT, || {
        desk.office.get("device", "/status")["sessions"].as_array().is_some_and(|s| s.iter().all(|s| s["streams"] == 0))
    });
    desk.say(&["profile", "default", "enterprise-connectivity/off", "--off"]);
    wait_until("and has it again", LIMIT, || fetch().status.success());
}

/// Who has the right password and may have no further device is told why, and may when the profile says so.
#[test]
fn p21_an_activation_profile_refuses_a_second_device_with_words_until_it_is_changed() {
    let desk = Desk::open(|_| String::new());
    let (one, two, wrong) =
        (desk.office.path("one.json"), desk.office.path("two.json"), desk.office.path("wrong.json"));
    std::fs::write(&one, r#"{"devices": 1, "platforms": ["linux"]}"#).unwrap();
    std::fs::write(&two, r#"{"devices": 2, "platforms": ["linux"]}"#).unwrap();
    std::fs::write(&wrong, r#"{"types": {"linux": ["MDM_CONTROLS"]}}"#).unwrap();
    let refused = desk.try_say(&["profile", "add", "activation", "few", "--settings", &wrong]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("MDM_CONTROLS is no type of linux"), "{said}");
    desk.say(&["profile", "add", "activation", "few", "--settings", &one]);
    desk.say(&["profile", "assign", "activation/few", "anna@example.com"]);

    let password = desk.office.path("password");
    std::fs::remove_file(&password).unwrap();
    desk.say(&["password", "generate", "anna@example.com", "--out", &password]);
    let relay = format!("{}:443", desk.office.address);
    let second = desk.office.try_activate_at(&relay, "");
    let said = String::from_utf8_lossy(&second.stderr);
    let words = "activation profile few allows 1 active devices a user, and 1 are";
    assert!(!second.status.success() && said.contains(words) && said.contains("the password stays good"), "{said}");
    assert!(desk.say(&["audit", "list"]).contains(words));
    assert_eq!(desk.ask(&["device", "list"]).as_array().unwrap().len(), 1);

    desk.say(&["profile", "change", "activation/few", "--settings", &two]);
    let second = desk.office.try_activate_at(&relay, "");
    assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
    let table = desk.say(&["device", "list"]);
    assert_eq!(table.matches("LINUX_AGENT").count(), 2, "{table}");
    assert!(desk.say(&["device", "show", &desk.device]).contains("LINUX_AGENT"));
    desk.say(&["audit", "verify"]);
}

#[test]
fn p18_users_go_in_and_out_as_csv_by_the_command_line() {
    let desk = Desk::open(|_| String::new());
    let (good, bad, out) = (desk.office.path("good.csv"), desk.office.path("bad.csv"), desk.office.path("out.csv"));
    desk.say(&["group", "add", "sales"]);
    std::fs::write(&good, "email,name,groups\r\nbob@example.com,\"Miller, Bob\",sales\r\nanna@example.com,Anna,\r\n")
        .unwrap();
    std::fs::write(&bad, "email,groups\ncarol@example.com,sales\nnobody,\ndave@example.com,nowhere\n").unwrap();
    let refused = desk.try_say(&["user", "import", &bad]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("line 3"), "{said}");
    assert!(desk.say(&["user", "import", &good]).contains("1 users added, 0 changed, 1 as they were"));
    assert!(desk.say(&["user", "list", "miller"]).contains("bob@example.com"));
    assert!(!desk.say(&["user", "list", "MILLER"]).contains("anna@example.com"));
    desk.say(&["user", "export", "--out", &out]);
    let text = std::fs::read_to_string(&out).unwrap();
    assert!(text.contains("bob@example.com,\"Miller, Bob\",sales,true\r\n") && text.lines().count() == 3, "{text}");
    assert!(desk.say(&["user", "import", &out]).contains("0 users added, 0 changed, 2 as they were"));
    assert!(!desk.try_say(&["user", "export", "--out", &out]).status.success(), "no file is written over");
    desk.say(&["group", "add", "staff"]);
    desk.say(&["group", "join", "staff", "group:sales"]);
    let bob = desk.ask(&["user", "show", "bob@example.com"]);
    assert_eq!((&bob["groups"], &bob["by_way_of_groups"]), (&json!(["sales"]), &json!(["staff"])), "{bob}");
}
