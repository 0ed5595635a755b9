//! What months and years do to an installation: certificates are renewed, and days without the core are lived through.
//! Real processes under another date (libfaketime).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::time::Duration;

use hedgerow_runtime::tls::read_certificates;
use hedgerow_shared::verify::certificate::read_leaf;
use hedgerow_tests::calendar::Calendar;
use hedgerow_tests::office::{Office, Ways};
use hedgerow_tests::process::{run, try_run, wait_until};

const LIMIT: Duration = Duration::from_secs(60);

/// Everything, under a calendar.
struct Years {
    office: Office,
    calendar: Calendar,
}

impl Years {
    fn begin() -> Self {
        let mut office = Office::open();
        let calendar = Calendar::today(&office.path(""));
        office.set_environment(&calendar.environment());
        office.restart("relay");
        let relay = vec![format!("{}:443", office.address), format!("{}:3101", office.address)];
        let roles = ["relay", "core", "node", "device"];
        let environment = roles.map(|role| (role, calendar.environment())).into();
        office.move_in(Ways { environment, ..Ways::all(&relay, "") });
        let _ = office.load_page();
        Self { office, calendar }
    }

    /// So many days after the beginning; the core begins the day with a fresh configuration.
    fn day(&mut self, days: f64) {
        self.calendar.set_days(days);
        self.office.restart("core");
    }

    /// When the device's and the node's certificates end, seconds since 1970.
    fn ends(&self) -> (u64, u64) {
        let device = self.office.get("device", "/status")["certificate_expires"].as_u64().unwrap();
        (device, self.office.get("node", "/node")["certificate_not_after"].as_u64().unwrap())
    }

    fn device(&self) -> String {
        self.office.get("device", "/status")["device"].as_str().unwrap().to_owned()
    }

    /// As its certificate says, also while it does not run.
    fn device_on_disk(&self) -> String {
        let leaf =
            read_certificates(std::path::Path::new(&self.office.path("device/certificate.pem"))).unwrap().remove(0);
        read_leaf(&leaf).unwrap().identity.id.to_string()
    }

    fn file(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.office.path(name)).ok()
    }

    fn page_loads(&self) {
        let url = format!("http://wiki.intranet.example.com:{}/page", self.office.site().port);
        let socks = self.office.socks();
        wait_until("the page loads", LIMIT, || {
            let mut curl = hedgerow_tests::curl::curl();
            hedgerow_tests::curl::attempt(curl.args(["--proxy", &socks, &url])).status.success()
        });
    }
}

/// Two thirds of a life; then everybody is away for longer than a certificate lasts.
#[test]
fn p20_certificates_are_renewed_in_time_and_after_time_under_the_same_identity() {
    let mut years = Years::begin();
    let (device, node) = years.ends();
    let (id, key) = (years.device(), years.file("device/key.pem").unwrap());
    years.day(200.0);
    years.page_loads();
    assert_eq!(years.ends(), (device, node), "not before two thirds of their life");

    years.day(245.0);
    wait_until("device and node have new certificates", LIMIT, || {
        let (d, n) = years.ends();
        d > device && n > node
    });
    assert!(years.office.metric("device", "hedgerow_certificate_renewals_total", "ok") >= 1.0);
    assert_eq!(years.file("device/key.pem.next"), None, "the next one is in force");
    assert_ne!(years.file("device/key.pem").unwrap(), key, "with a key of its own");
    years.page_loads();
    years.office.restart("relay");
    years.office.restart("node");
    years.office.restart("device");
    years.page_loads();

    let (device, node) = years.ends();
    years.office.stop("device", LIMIT);
    years.office.stop("node", LIMIT);
    // The relay makes itself another certificate meanwhile, too.
    years.day(245.0 + 400.0);
    years.office.start("node");
    years.office.start("device");
    let (d, n) = years.ends();
    assert!(d > device && n > node, "what has expired was renewed: nobody is ready without");
    assert_eq!(years.device(), id, "and is the same device");
    years.page_loads();
}

/// Whoever was revoked while away does not come back by an old certificate.
#[test]
fn p20_a_revoked_device_gets_no_new_certificate() {
    let mut years = Years::begin();
    let id = years.device();
    let _ = run(&mut years.office.command("core", &["device", "revoke", &id]), LIMIT);
    years.day(245.0);
    wait_until("it was told no", LIMIT, || {
        years.office.log("device").contains("could not be renewed") && years.office.log("device").contains("revoked")
    });
    assert!(years.office.metric("device", "hedgerow_certificate_renewals_total", "\"ok\"") == 0.0);
}

/// The release gate: seven days without the core, restarts of everything else, then an honest end, then the core is back.
#[test]
fn n12_the_data_plane_runs_for_seven_days_without_the_core_and_then_says_why_it_stops() {
    let mut years = Years::begin();
    years.office.stop("core", LIMIT);
    for day in [1.0, 3.0, 7.0] {
        years.calendar.set_days(day);
        years.office.restart("relay");
        years.office.restart("node");
        years.office.restart("device");
        years.page_loads();
    }
    // The operator needs no core to keep one device out, and to let it in again.
    let id = years.device();
    let holder = ["relay", "tenant", "block", "S12345678", "--holder", &id];
    let _ = run(&mut years.office.command("relay", &holder), LIMIT);
    let status = |years: &Years| years.office.get("device", "/status")["link"]["reason"].to_string();
    wait_until("the device is out", LIMIT, || status(&years).contains("blocked at this relay by its operator"));
    years.office.stop("device", LIMIT);
    years.office.restart("relay");
    let listed = run(&mut years.office.command("relay", &["relay", "tenant", "list", "--json"]), LIMIT);
    assert!(String::from_utf8_lossy(&listed.stdout).contains(&id), "a restart does not let it in");
    let _ =
        run(&mut years.office.command("relay", &["relay", "tenant", "unblock", "S12345678", "--holder", &id]), LIMIT);
    years.office.start("device");
    years.page_loads();

    years.calendar.set_days(7.1);
    let url = format!("http://wiki.intranet.example.com:{}/page", years.office.site().port);
    let socks = years.office.socks();
    wait_until("nothing passes", LIMIT, || {
        let mut curl = hedgerow_tests::curl::curl();
        !hedgerow_tests::curl::attempt(curl.args(["--proxy", &socks, &url])).status.success()
    });
    wait_until("the node says why", LIMIT, || {
        years.office.log("node").contains("the configuration has expired and the core did not renew it")
    });
    wait_until("the device's readiness says why", LIMIT, || {
        // Not `curl --fail`: the page of a refusal is what is looked for.
        let ready = Command::new("curl").args(["-s", &years.office.url("device", "/readyz")]).output().unwrap();
        String::from_utf8_lossy(&ready.stdout).contains("no valid configuration from the core")
    });
    years.office.start("core");
    years.page_loads();
}

/// Another CA, with a device that is away while it is announced, and nobody out for a moment.
#[test]
fn p20_the_tenants_ca_is_replaced_while_everybody_works() {
    let mut years = Years::begin();
    let say = |years: &Years, words: &[&str]| {
        let output = try_run(&mut years.office.command("core", &[words, &["--json"]].concat()), LIMIT);
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let next = |years: &Years| {
        serde_json::from_str::<serde_json::Value>(&say(years, &["ca", "show"]).1).unwrap()["next"].clone()
    };
    let (old, ends) = (years.file("device/tenant-ca.pem").unwrap(), years.ends());
    let early = say(&years, &["ca", "finish"]);
    assert!(!early.0 && early.1.contains("no next CA"), "{early:?}");

    years.office.stop("device", LIMIT);
    assert!(say(&years, &["ca", "begin"]).0);
    wait_until("relay and node know the next one", LIMIT, || next(&years)["unaware"] == serde_json::json!([]));
    assert!(say(&years, &["ca", "switch"]).0);
    wait_until("the node stands under it", LIMIT, || {
        !next(&years)["behind"].as_array().unwrap().iter().any(|b| b["kind"] == "node")
    });
    let early = say(&years, &["ca", "finish"]);
    assert!(!early.0 && early.1.contains(&years.device_on_disk()), "whoever would be out is named: {early:?}");

    years.office.start("device");
    years.page_loads();
    wait_until("the device stands under it", LIMIT, || next(&years)["behind"] == serde_json::json!([]));
    years.page_loads();
    let finished = say(&years, &["ca", "finish"]);
    assert!(finished.0, "{finished:?}");
    wait_until("nobody believes the old one", LIMIT, || {
        let (device, node) = (years.file("device/tenant-ca.pem").unwrap(), years.file("node/tenant-ca.pem").unwrap());
        let text = String::from_utf8(device.clone()).unwrap();
        device == node && device != old && text.matches("BEGIN CERTIFICATE").count() == 1
    });
    years.page_loads();
    for role in ["core", "relay", "node", "device"] {
        years.office.restart(role);
    }
    years.page_loads();
    let (device, node) = years.ends();
    assert!(device >= ends.0 && node >= ends.1);
    let password = years.office.path("password");
    let words = ["password", "generate", "anna@example.com", "--out", &password];
    std::fs::remove_file(&password).unwrap();
    let _ = run(&mut years.office.command("core", &words), LIMIT);
    let relay = format!("{}:443", years.office.address);
    let another = years.office.try_activate_at(&relay, "");
    assert!(another.status.success(), "{}", String::from_utf8_lossy(&another.stderr));
}
