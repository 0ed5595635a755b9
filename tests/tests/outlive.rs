//! Sessions outlive what carries them: an ssh session and a long download inside the device's proxy go on while relays
//! die, lanes are cut and links come and go. Every byte is checked; nothing is lost and nothing comes twice.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use hedgerow_tests::nginx::Nginx;
use hedgerow_tests::process::{signal, wait_until};
use hedgerow_tests::ssh::Sshd;
use hedgerow_tests::work::{Download, Proxy, Shell};
use hedgerow_tests::world::{Options, World};

const SOON: Duration = Duration::from_secs(60);

struct Place {
    shell: Shell,
    download: Download,
    world: World,
    _sshd: Sshd,
    _nginx: Nginx,
}

fn at_work(options: Options) -> Place {
    let (sshd, nginx) = (Sshd::start(), Nginx::start("inside"));
    let allow = vec![format!("127.0.0.1:{}", sshd.port), format!("127.0.0.1:{}", nginx.port)];
    let world = World::start(&Options { allow, ..options });
    let proxy = Proxy { socks5: world.text("device.socks5"), netns: None };
    let (shell, download) = (Shell::open(&sshd, &proxy), Download::begin(&nginx, &proxy, 90));
    Place { shell, download, world, _sshd: sshd, _nginx: nginx }
}

impl Place {
    fn path(&self) -> String {
        let status: serde_json::Value = serde_json::from_str(&self.world.get("device.admin", "/status")).unwrap();
        status["sessions"][0]["path"].as_str().unwrap_or_default().to_owned()
    }

    fn resumed(&self) -> f64 {
        self.world.metric("device.admin", "hedgerow_device_sessions_resumed_total", "")
    }

    /// Cuts every joined lane at the relay, as its operator can.
    fn cut_lanes(&self) -> usize {
        self.cut(|session| session["node_address"].is_string())
    }

    /// Cuts what the relay lists and `which` wants; how many that were.
    fn cut(&self, which: impl Fn(&serde_json::Value) -> bool) -> usize {
        let sessions = self.world.hedgerow(&["relay", "sessions"]);
        let wanted: Vec<_> = sessions.as_array().unwrap().iter().filter(|s| which(s)).collect();
        for session in &wanted {
            let _ = self.world.try_hedgerow(&["relay", "sessions", "cut", session["id"].as_str().unwrap()]);
        }
        wanted.len()
    }
}

#[test]
fn n09_ssh_and_a_download_survive_the_relay_killed_and_started_again_by_lane_and_by_link() {
    for without_lanes in [false, true] {
        let mut place = at_work(Options { without_lanes, ..Options::default() });
        assert_eq!(place.path(), if without_lanes { "link" } else { "lane" });
        let before = place.world.pid("relay");
        signal(before, libc::SIGKILL);
        wait_until("the relay runs again", Duration::from_secs(20), || place.world.pid("relay") != before);
        place.shell.answers();
        place.download.goes_on();
        assert!(place.resumed() >= 1.0);
        place.shell.answers();
        place.download.arrives_unchanged();
    }
}

#[test]
fn n09_ssh_and_a_download_survive_lanes_that_are_cut() {
    let mut place = at_work(Options::default());
    for _ in 0..5 {
        assert!(place.cut_lanes() > 0, "there is no lane to cut");
        place.shell.answers();
        place.download.goes_on();
    }
    assert!(place.resumed() >= 5.0);
    place.download.arrives_unchanged();
}

#[test]
fn n09_a_nodes_uplink_that_flaps_costs_no_connection() {
    for without_lanes in [false, true] {
        let mut place = at_work(Options { without_lanes, ..Options::default() });
        for _ in 0..4 {
            wait_until("the node's link is up", SOON, || place.cut(|s| s["role"] == "node") > 0);
            place.shell.answers();
            place.download.goes_on();
        }
        assert_eq!(place.resumed() >= 1.0, without_lanes, "a lane outlives the links of its ends");
        place.download.arrives_unchanged();
    }
}

#[test]
fn n09_past_its_time_a_session_ends_with_a_clear_error() {
    let sshd = Sshd::start();
    let allow = vec![format!("127.0.0.1:{}", sshd.port)];
    let world = World::start(&Options { allow, short_timers: true, ..Options::default() });
    let mut shell = Shell::open(&sshd, &Proxy { socks5: world.text("device.socks5"), netns: None });
    // Timers are at 1/100, the wait for a resumption at its floor of 3 s.
    let relay = world.pid("relay");
    signal(relay, libc::SIGSTOP);
    let since = Instant::now();
    let well = shell.ends();
    signal(relay, libc::SIGCONT);
    assert!(!well);
    let waited = since.elapsed();
    assert!(waited >= Duration::from_secs(3) && waited < Duration::from_secs(20), "{waited:?}");
    wait_until("the device says so", Duration::from_secs(10), || {
        world.log("device").contains("was not resumed within 3 s")
    });
    drop(shell);
}
