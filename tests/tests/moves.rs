//! Sessions move: to another relay when theirs drains, to a stream of the link where lanes stop passing and back to a
//! lane, and along when the device's own address changes. An ssh session and a long download go on all the while.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::time::{Duration, Instant};

use hedgerow_tests::gate::Gate;
use hedgerow_tests::office::{Office, Ways};
use hedgerow_tests::process::{run, wait_until};
use hedgerow_tests::ssh::Sshd;
use hedgerow_tests::work::{Download, Shell};

const SOON: Duration = Duration::from_secs(60);

struct AtWork {
    shell: Shell,
    download: Download,
    _sshd: Sshd,
}

/// Everybody moves in, and the device's user begins to work.
fn at_work(office: &mut Office, ways: Ways, rate: u32) -> AtWork {
    let sshd = Sshd::start();
    let allow = vec![sshd.port, office.site().port];
    office.move_in(Ways { allow, ..ways });
    let shell = Shell::open(&sshd, &office.proxy());
    let download = Download::begin(office.site(), &office.proxy(), rate);
    AtWork { shell, download, _sshd: sshd }
}

#[test]
fn n09_a_relay_that_drains_hands_its_sessions_to_the_other_relay() {
    let mut office = Office::open();
    let _ = office.open_second();
    let relay = vec![format!("{}:443", office.address), format!("{}:3101", office.address)];
    let mut work = at_work(&mut office, Ways { relay, lanes: "auto", ..Ways::default() }, 60);
    assert_eq!(office.path_of_session(), "lane");
    assert!(office.at_relay().iter().any(|s| s["node_address"].is_string()), "the lane is at the first relay");
    // Nodes and cores have links with every relay of their list, a device with one.
    let roles = |role: &str| -> Vec<String> {
        let sessions = office.get(role, "/sessions");
        let all = sessions.as_array().unwrap().iter();
        all.filter_map(|s| s["role"].as_str().map(ToOwned::to_owned)).collect()
    };
    let (first, second) = (roles("relay"), roles("relay2"));
    for role in ["core", "node"] {
        assert!(first.iter().any(|r| r == role) && second.iter().any(|r| r == role), "{first:?} {second:?}");
    }
    assert!(first.iter().any(|r| r == "device") && !second.iter().any(|r| r == "device"), "{first:?} {second:?}");

    office.stop("relay", Duration::from_secs(25));
    work.shell.answers();
    work.download.goes_on();
    let lanes = office.get("relay2", "/sessions");
    assert!(lanes.as_array().unwrap().iter().any(|s| s["node_address"].is_string()), "{lanes}");
    assert!(office.metric("device", "hedgerow_device_sessions_moved_total", "") >= 1.0, "{}", office.log("device"));
    work.shell.answers();
    work.download.arrives_unchanged();
}

#[test]
fn n09_a_relay_that_is_killed_in_the_middle_of_a_hand_over_costs_no_byte() {
    // Before anybody was told, while peers ask the other relay, and while sessions move.
    for moment in [0, 15, 60, 250] {
        let mut office = Office::open();
        let _ = office.open_second();
        let relay = vec![format!("{}:443", office.address), format!("{}:3101", office.address)];
        let mut work = at_work(&mut office, Ways { relay, lanes: "auto", ..Ways::default() }, 150);
        office.hurry("relay", Duration::from_millis(moment), libc::SIGKILL, SOON);
        work.shell.answers();
        work.download.goes_on();
        work.download.arrives_unchanged();
    }
}

#[test]
fn p01_a_second_signal_ends_a_draining_relay_at_once() {
    let mut office = Office::open();
    let relay = vec![format!("{}:443", office.address), format!("{}:3101", office.address)];
    let work = at_work(&mut office, Ways { relay, lanes: "auto", ..Ways::default() }, 20);
    let since = Instant::now();
    office.hurry("relay", Duration::from_millis(1500), libc::SIGTERM, SOON);
    let took = since.elapsed();
    // The first let open connections have their 30 s.
    assert!((Duration::from_millis(1500)..Duration::from_secs(10)).contains(&took), "{took:?}");
    assert!(office.log("relay").contains("stopped at once by a second signal"));
    drop(work);
}

#[test]
fn n09_sessions_go_from_a_lane_to_the_link_and_back_over_tls_and_over_quic() {
    for quic in [false, true] {
        let mut office = Office::open();
        // Nodes go past the gate.
        let gate = Gate::before(&format!("{}:443", office.address), &format!("{}:443", office.gate()), quic);
        let ways = Ways {
            relay: vec![gate.address.to_string()],
            node_relay: vec![format!("{}:3101", office.address)],
            lanes: "auto",
            device_timers: 0.02,
            ..Ways::default()
        };
        let mut work = at_work(&mut office, ways, 30);
        assert_eq!(office.path_of_session(), "lane");
        let link = office.get("device", "/status")["link"]["transport"].clone();
        assert_eq!(link, if quic { "quic" } else { "tls" });
        gate.lanes(false);
        work.shell.answers();
        work.download.goes_on();
        wait_until("the session runs over the link", SOON, || office.path_of_session() == "link");
        gate.lanes(true);
        wait_until("the session is back on a lane", SOON, || office.path_of_session() == "lane");
        work.shell.answers();
        work.download.goes_on();
        work.download.arrives_unchanged();
    }
}

#[test]
fn n02_work_goes_on_over_tls_when_udp_dies_and_over_quic_when_it_passes_again() {
    let mut office = Office::open();
    let gate = Gate::before(&format!("{}:443", office.address), &format!("{}:443", office.gate()), true);
    let ways = Ways {
        relay: vec![gate.address.to_string()],
        node_relay: vec![format!("{}:3101", office.address)],
        lanes: "off",
        device_timers: 0.02,
        ..Ways::default()
    };
    let mut work = at_work(&mut office, ways, 30);
    let transport = |office: &Office| {
        let link = office.get("device", "/status")["link"].clone();
        (link["transport"].clone(), link["transport_reason"].clone())
    };
    assert_eq!(transport(&office).0, "quic");
    gate.udp(false);
    work.shell.answers();
    work.download.goes_on();
    // Who notices first decides the word: the watch over the path, or the session's probe and then a race.
    let (over, reason) = transport(&office);
    assert!(over == "tls" && (reason == "udp_died" || reason == "udp_dead"), "{over} {reason}");
    gate.udp(true);
    wait_until("QUIC is used again", SOON, || transport(&office) == ("quic".into(), "udp_back".into()));
    work.shell.answers();
    work.download.goes_on();
    assert_eq!(office.path_of_session(), "link");
    work.download.arrives_unchanged();
}

/// A network namespace with one cable to this one.
struct Netns {
    name: String,
    cable: String,
    net: String,
}

impl Netns {
    fn new() -> Self {
        let [a, b] = hedgerow_runtime::clock::random::<2>();
        let netns = Self { name: format!("hedgerow-{a}-{b}"), cable: format!("hr{a}x{b}"), net: format!("10.{a}.{b}") };
        let (name, cable) = (&netns.name, &netns.cable);
        ip(&["netns", "add", name]);
        ip(&["link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name]);
        ip(&["addr", "add", &format!("{}.1/24", netns.net), "dev", cable]);
        ip(&["link", "set", cable, "up"]);
        netns.inside(&["link", "set", "lo", "up"]);
        netns.inside(&["link", "set", "eth0", "up"]);
        netns.inside(&["addr", "add", &format!("{}.2/24", netns.net), "dev", "eth0"]);
        netns
    }

    fn inside(&self, arguments: &[&str]) {
        ip(&[&["-n", self.name.as_str()][..], arguments].concat());
    }

    /// As when a laptop gets another lease: the old address is gone, and whatever stood on it.
    fn change_address(&self, from: u8, to: u8) {
        self.inside(&["addr", "del", &format!("{}.{from}/24", self.net), "dev", "eth0"]);
        self.inside(&["addr", "add", &format!("{}.{to}/24", self.net), "dev", "eth0"]);
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        for arguments in [&["link", "del", self.cable.as_str()][..], &["netns", "del", self.name.as_str()]] {
            let _ = Command::new("ip").args(arguments).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let _ = run(Command::new("ip").args(arguments), Duration::from_secs(20));
}

#[test]
fn n09_a_device_whose_address_changes_goes_on_by_lane_and_by_link() {
    for lanes in ["auto", "off"] {
        let netns = Netns::new();
        let outside = format!("{}.1:443", netns.net);
        let mut office = Office::open_at(std::slice::from_ref(&outside));
        let ways = Ways {
            relay: vec![outside],
            node_relay: vec![format!("{}:3101", office.address)],
            lanes,
            netns: Some(netns.name.clone()),
            ..Ways::default()
        };
        let mut work = at_work(&mut office, ways, 40);
        assert_eq!(office.path_of_session(), if lanes == "auto" { "lane" } else { "link" });
        for (from, to) in [(2, 3), (3, 4)] {
            netns.change_address(from, to);
            work.shell.answers();
            work.download.goes_on();
        }
        work.download.arrives_unchanged();
        drop(office);
    }
}
