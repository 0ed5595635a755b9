//! The IP tunnel, end to end between network namespaces, with real programs inside it.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::{Duration, Instant};

use hedgerow_tests::field::{Field, INSIDE, INSIDE_V6, NAME, Terrain};
use hedgerow_tests::process::{run, try_run, wait_until};

const LIMIT: Duration = Duration::from_secs(60);

/// nginx, dnsmasq and iperf3 inside.
fn servers(field: &mut Field) {
    let www = field.path("www");
    std::fs::create_dir_all(&www).unwrap();
    std::fs::write(format!("{www}/page"), "the page inside").unwrap();
    let dns = format!(
        "dnsmasq -k --no-resolv --no-hosts --address=/{NAME}/{INSIDE} --listen-address={INSIDE} --bind-interfaces -u root --pid-file="
    );
    field.serve("inside", &dns, &format!("dig +time=1 +tries=1 @{INSIDE} {NAME}"));
    let web = format!("python3 -m http.server 80 --bind :: --directory {www}");
    field.serve("inside", &web, &format!("curl -fs http://{INSIDE}/page"));
    field.serve("inside", "iperf3 -s", "true");
}

/// A TCP connection through the tunnel that is asked for echoes, line by line.
struct Talk {
    child: std::process::Child,
    lines: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
    count: u32,
}

impl Talk {
    fn open(field: &mut Field) -> Self {
        use std::io::BufRead;
        field.serve("inside", "socat TCP-LISTEN:7,fork,reuseaddr EXEC:cat", "true");
        std::thread::sleep(Duration::from_millis(300));
        let mut command = field.at("d1", "socat");
        command.args(["-", &format!("TCP:{INSIDE}:7")]);
        let mut child =
            command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut talk = Self { child, lines, count: 0 };
        talk.ask();
        talk
    }

    /// One line there and back, however long that takes; how long.
    fn ask(&mut self) -> Duration {
        use std::io::Write;
        let begun = Instant::now();
        self.count += 1;
        let line = format!("line {}", self.count);
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
        assert_eq!(self.lines.next().expect("the connection lives").unwrap(), line);
        begun.elapsed()
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn p14_f17_real_programs_work_through_the_tunnel() {
    let mut field = Field::with_tunnels(Terrain::default());
    servers(&mut field);
    let pinged = field.say("d1", &format!("ping -c 5 -i 0.2 -W 2 {INSIDE}"));
    assert!(pinged.contains(" 0% packet loss"), "{pinged}");
    let pinged = field.say("d1", &format!("ping -6 -c 5 -i 0.2 -W 2 {INSIDE_V6}"));
    assert!(pinged.contains(" 0% packet loss"), "{pinged}");
    assert_eq!(field.say("d1", &format!("curl -fs http://{INSIDE}/page")), "the page inside");
    assert_eq!(field.say("d1", &format!("curl -fs http://[{INSIDE_V6}]/page")), "the page inside");
    // By name: the device's own resolv.conf leads to the server inside, over UDP and TCP.
    assert_eq!(field.say("d1", &format!("curl -fs http://{NAME}/page")), "the page inside");
    assert_eq!(field.say("d1", &format!("dig +short {NAME}")).trim(), INSIDE);
    assert_eq!(field.say("d1", &format!("dig +tcp +short {NAME}")).trim(), INSIDE);
    for direction in ["", "-R"] {
        let text = field.say("d1", &format!("iperf3 -c {INSIDE} -t 2 -C cubic -J {direction}"));
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        let bytes = report["end"]["sum_received"]["bytes"].as_u64().unwrap();
        assert!(bytes > 1_000_000, "{bytes} bytes {direction}");
        // Slow enough for any machine that runs tests.
        let text = field.say("d1", &format!("iperf3 -c {INSIDE} -u -b 5M -l 1200 -t 2 -J {direction}"));
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        let lost = report["end"]["sum"]["lost_percent"].as_f64().unwrap();
        assert!(lost < 5.0, "{lost} % lost {direction}");
    }
    let status = field.tunnel(1);
    assert_eq!((status["way"].as_str(), status["mtu"].as_u64()), (Some("udp"), Some(1441)), "{status}");
}

/// The organisation decides who has a tunnel: one that runs ends, with the reason, and the next one comes by itself.
#[test]
fn p14_a_profile_without_a_tunnel_ends_it_by_name_and_gives_it_back() {
    let field = Field::with_tunnels(Terrain::default());
    let settings = field.path("settings.json");
    std::fs::write(&settings, r#"{"tunnel": false}"#).unwrap();
    field.verb(&["profile", "add", "enterprise-connectivity", "pages only", "--settings", &settings]);
    assert_eq!(field.tunnel(1)["state"], "up", "the profile is nobody's yet");
    field.verb(&["profile", "default", "enterprise-connectivity/pages only"]);
    wait_until("the device says which profile is in the way", LIMIT, || {
        let tunnel = field.tunnel(1);
        tunnel["state"] != "up" && tunnel["reason"].as_str().is_some_and(|why| why.contains("\"pages only\""))
    });
    assert!(!field.try_say("d1", &format!("ping -c 1 -W 2 {INSIDE}")).status.success());
    field.verb(&["profile", "default", "enterprise-connectivity/pages only", "--off"]);
    field.wait_for_tunnel(1);
    let pinged = field.say("d1", &format!("ping -c 3 -i 0.2 -W 2 {INSIDE}"));
    assert!(pinged.contains(" 0% packet loss"), "{pinged}");
}

#[test]
fn p14_a_tree_copied_and_a_shell_over_ssh_arrive_whole() {
    let mut field = Field::with_tunnels(Terrain::default());
    let folder = field.path("");
    let tree = format!("{folder}/tree");
    std::fs::create_dir_all(format!("{tree}/a/b")).unwrap();
    let mut seed = 1u64;
    for n in 0..40 {
        let mut bytes = vec![0u8; 1 + n * 37_003];
        for byte in &mut bytes {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (seed >> 56) as u8;
        }
        std::fs::write(format!("{tree}/a/{}{n}", if n % 2 == 0 { "b/" } else { "" }), bytes).unwrap();
    }
    let key = format!("{folder}/key");
    let _ = run(std::process::Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &key]), LIMIT);
    let host = format!("{folder}/host");
    let _ = run(std::process::Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &host]), LIMIT);
    std::fs::create_dir_all("/run/sshd").unwrap();
    let config = format!(
        "Port 22\nHostKey {host}\nAuthorizedKeysFile {key}.pub\nPidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n"
    );
    std::fs::write(format!("{folder}/sshd_config"), config).unwrap();
    field.serve("inside", &format!("/usr/sbin/sshd -D -e -f {folder}/sshd_config"), &format!("nc -z {INSIDE} 22"));
    let ssh = format!("ssh -i {key} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR");
    let mut copy = field.at("d1", "rsync");
    copy.args(["-a", "-e", &ssh, &format!("{tree}/"), &format!("root@{INSIDE}:{folder}/copy/")]);
    let _ = run(&mut copy, LIMIT);
    let _ = run(std::process::Command::new("diff").args(["-r", &tree, &format!("{folder}/copy")]), LIMIT);
    let mut back = field.at("d1", "scp");
    back.args(["-r", "-q", "-i", &key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
    back.args([&format!("root@{INSIDE}:{folder}/copy"), &format!("{folder}/back")]);
    let _ = run(&mut back, LIMIT);
    let _ = run(std::process::Command::new("diff").args(["-r", &tree, &format!("{folder}/back")]), LIMIT);
    let shell = field.say("d1", &format!("{ssh} root@{INSIDE} echo $SSH_CONNECTION"));
    assert!(shell.starts_with("10.71.3.1 "), "the node's own address, masqueraded: {shell}");
}

#[test]
fn n02_the_tunnel_and_what_is_in_it_survive_udp_dying_and_coming_back() {
    let mut field = Field::with_tunnels(Terrain { transport: "tls", ..Terrain::default() });
    let mut talk = Talk::open(&mut field);
    wait_until("it goes by UDP", LIMIT, || field.tunnel(1)["way"] == "udp");
    // The relay's side of the device's wire swallows UDP.
    let gate = "table inet gate { chain in { type filter hook input priority 0; meta l4proto udp drop; }; }";
    let mut nft = field.at("d1", "nft");
    let _ = run(nft.arg(gate), LIMIT);
    let pause = talk.ask();
    assert!(pause < Duration::from_secs(12), "without a way for {pause:?}");
    wait_until("the link carries it", LIMIT, || field.tunnel(1)["way"] == "link");
    for _ in 0..20 {
        talk.ask();
    }
    assert_eq!(field.tunnel(1)["times"], 1, "the same tunnel");
    field.say("d1", "nft delete table inet gate");
    wait_until("UDP is used again", Duration::from_secs(90), || field.tunnel(1)["way"] == "udp");
    talk.ask();
    assert_eq!(field.tunnel(1)["times"], 1, "the same tunnel");
}

#[test]
fn n03_a_device_that_changes_its_network_keeps_its_tunnel_and_its_connections() {
    let mut field = Field::with_tunnels(Terrain::default());
    let mut talk = Talk::open(&mut field);
    let (device, relay) = (field.netns("d1"), field.netns("relay"));
    field.say("relay", "ip addr add 10.71.51.1/24 dev to1");
    field.say("d1", "ip addr add 10.71.51.2/24 dev eth0");
    field.say("d1", "ip route replace default via 10.71.51.1");
    field.say("d1", "ip addr del 10.71.11.2/24 dev eth0");
    let _ = (device, relay);
    let pause = talk.ask();
    assert!(pause < Duration::from_secs(15), "without a way for {pause:?}");
    for _ in 0..20 {
        talk.ask();
    }
    assert_eq!(field.tunnel(1)["times"], 1, "the same tunnel: {}", field.log("d1"));
    let sessions = field.get("relay", "/sessions").to_string();
    assert!(sessions.contains("10.71.51.2"), "{sessions}");
}

#[test]
fn p14_a_relay_that_restarts_costs_no_connection_inside() {
    let mut field = Field::with_tunnels(Terrain::default());
    let mut talk = Talk::open(&mut field);
    field.end("relay", libc::SIGKILL);
    field.start("relay");
    let pause = talk.ask();
    assert!(pause < Duration::from_secs(30), "without a way for {pause:?}");
    talk.ask();
    assert_eq!(field.tunnel(1)["times"], 1, "the same tunnel: {}", field.log("d1"));
}

#[test]
fn p14_a_tunnel_that_an_operator_cuts_goes_on_by_another_pairing() {
    let mut field = Field::with_tunnels(Terrain::default());
    let mut talk = Talk::open(&mut field);
    let pairings = |field: &Field| -> Vec<String> {
        let all = field.get("relay", "/sessions");
        let tunnels = all.as_array().unwrap().iter().filter(|s| s["kind"] == "tunnel");
        tunnels.map(|s| s["id"].as_str().unwrap().to_owned()).collect()
    };
    let before = pairings(&field);
    assert_eq!(before.len(), 1);
    field.verb(&["relay", "sessions", "cut", &before[0]]);
    // Not by silence, which takes some 15 s to be believed.
    let pause = talk.ask();
    assert!(pause < Duration::from_secs(8), "without a way for {pause:?}: {}", field.log("d1"));
    let after = pairings(&field);
    assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
    assert_eq!(field.tunnel(1)["times"], 1, "the same tunnel: {}", field.log("d1"));
}

#[test]
fn demands16_a_revoked_device_loses_its_tunnel_within_five_seconds() {
    let field = Field::with_tunnels(Terrain::default());
    let id = field.get("d1", "/status")["device"].as_str().unwrap().to_owned();
    let begun = Instant::now();
    field.verb(&["device", "revoke", &id]);
    wait_until("node and relay have none", Duration::from_secs(5), || {
        let at_relay = field.get("relay", "/sessions").as_array().unwrap().iter().any(|s| s["kind"] == "tunnel");
        field.get("node", "/tunnels").as_array().unwrap().is_empty() && !at_relay
    });
    assert!(begun.elapsed() < Duration::from_secs(5));
    let pinged = field.try_say("d1", &format!("ping -c 1 -W 1 {INSIDE}"));
    assert!(!pinged.status.success());
}

#[test]
fn a24_what_the_policy_does_not_allow_does_not_pass() {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut field = Field::with_tunnels(Terrain {
        devices: 2,
        rules: vec![words("deny 10.71.3.2 --ports 81"), words("allow 10.71.3.2")],
        routes: vec![("10.71.3.0/24".into(), "group:default".into()), ("100.96.0.0/16".into(), "group:default".into())],
        ..Terrain::default()
    });
    let www = field.path("www");
    std::fs::create_dir_all(&www).unwrap();
    std::fs::write(format!("{www}/page"), "the page inside").unwrap();
    for port in [80, 81] {
        let web = format!("python3 -m http.server {port} --bind {INSIDE} --directory {www}");
        field.serve("inside", &web, &format!("curl -fs http://{INSIDE}:{port}/page"));
    }
    assert_eq!(field.say("d1", &format!("curl -fs -m 10 http://{INSIDE}/page")), "the page inside");
    let begun = Instant::now();
    assert!(!field.try_say("d1", &format!("curl -fs -m 10 http://{INSIDE}:81/page")).status.success());
    assert!(begun.elapsed() < Duration::from_secs(8), "it is told, and does not hang");
    // Another address of the same network, the node's own on both sides, and the other device.
    let other = field.tunnel(2)["address"].as_str().unwrap().to_owned();
    for to in ["10.71.3.77", "10.71.3.1", "100.96.0.1", &other] {
        assert!(!field.try_say("d1", &format!("ping -c 1 -W 1 {to}")).status.success(), "{to}");
    }
    assert!(field.metric("node", "hedgerow_dropped_total", "tunnel_denied") >= 4.0);
    // The other device's address as the source.
    field.say("d1", &format!("ip addr add {other}/32 dev hedgerow1"));
    assert!(!field.try_say("d1", &format!("ping -c 1 -W 1 -I {other} {INSIDE}")).status.success());
    assert!(field.metric("d1", "hedgerow_dropped_total", "tunnel_spoofed") >= 1.0);
}

/// Two pictures of the system, line by line.
fn same(now: &str, before: &str, when: &str) {
    // Link-local addresses come with the wire, in their own time.
    let lines = |text: &str| {
        text.lines().filter(|l| !l.contains("fe80:")).map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    let (now, before) = (lines(now), lines(before));
    let differ: Vec<_> = now.symmetric_difference(&before).collect();
    assert!(differ.is_empty(), "{when}: {differ:#?}");
}

#[test]
fn demands11_the_system_is_as_it_was_after_the_end_and_after_a_kill() {
    let mut field = Field::open(Terrain::default());
    let picture = |field: &Field| {
        ["ip -4 rule", "ip -6 rule", "ip route show table all", "cat /etc/resolv.conf"]
            .map(|words| field.say("d1", words))
            .concat()
    };
    let before = picture(&field);
    field.join(1);
    field.wait_for_tunnel(1);
    let during = picture(&field);
    assert!(during.contains("lookup 3101") && during.contains("127.0.0.153"), "{during}");
    field.end("d1", libc::SIGTERM);
    same(&picture(&field), &before, "after SIGTERM");
    field.start("d1");
    field.wait_for_tunnel(1);
    field.end("d1", libc::SIGKILL);
    assert_ne!(picture(&field), before);
    let said = run(&mut field.hedgerow("d1", &["device", "cleanup"]), LIMIT);
    assert!(String::from_utf8_lossy(&said.stdout).contains("as it was"), "{said:?}");
    same(&picture(&field), &before, "after cleanup");
    // Once more, and the next start puts back what the kill left, before it takes over again.
    field.start("d1");
    field.wait_for_tunnel(1);
    field.end("d1", libc::SIGKILL);
    field.start("d1");
    field.wait_for_tunnel(1);
    field.end("d1", libc::SIGTERM);
    same(&picture(&field), &before, "after a kill and a start");
}

#[test]
fn p14_a_whole_device_sends_everything_but_its_own_link_through_the_tunnel() {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut field = Field::with_tunnels(Terrain {
        device: "routes = \"all\"\n".into(),
        rules: vec![words("allow *"), words("allow 10.71.0.0/16")],
        ..Terrain::default()
    });
    servers(&mut field);
    assert_eq!(field.say("d1", &format!("curl -fs -m 10 http://{NAME}/page")), "the page inside");
    // The relay's own address stays reachable for the tunnel, and only for it: another program goes by the tunnel.
    let route = field.say("d1", "ip route get 10.71.11.1");
    assert!(route.contains("hedgerow1"), "{route}");
    let marked = field.say("d1", "ip route get 10.71.11.1 mark 3101");
    assert!(marked.contains("eth0"), "{marked}");
    let mut talk = Talk::open(&mut field);
    for _ in 0..20 {
        talk.ask();
    }
    assert_eq!(field.tunnel(1)["times"], 1);
}

#[test]
fn demands12_a_path_that_carries_less_is_found_and_nothing_is_swallowed() {
    let mut field = Field::open(Terrain::default());
    // PPPoE behind a tunnel, say; and no router on the way says so.
    for (place, device) in [("d1", "eth0"), ("relay", "to1")] {
        field.say(place, &format!("ip link set {device} mtu 1400"));
    }
    field.join(1);
    field.wait_for_tunnel(1);
    servers(&mut field);
    wait_until("the MTU is found", LIMIT, || field.tunnel(1)["mtu"].as_u64().unwrap_or(0) >= 1320);
    let mtu = field.tunnel(1)["mtu"].as_u64().unwrap();
    assert!(mtu <= 1400 - 28 - 31, "{mtu}");
    for direction in ["", "-R"] {
        let text = field.say("d1", &format!("iperf3 -c {INSIDE} -t 1 -C cubic -J {direction}"));
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(report["end"]["sum_received"]["bytes"].as_u64().unwrap() > 500_000, "{direction}");
    }
    // Datagrams larger than the path, either way: in fragments, or with word that they are too big.
    let echo = field.say("d1", &format!("ping -c 2 -i 0.2 -W 2 -s 1800 {INSIDE}"));
    assert!(echo.contains(" 0% packet loss"), "{echo}");
    let told = field.try_say("inside", &format!("ping -c 1 -W 2 -M do -s 1380 {}", "10.71.3.1"));
    assert!(told.status.success(), "a neighbour is reached at full size");
    let whole = field.try_say("d1", &format!("ping -c 1 -W 2 -M do -s 1380 {INSIDE}"));
    assert!(String::from_utf8_lossy(&whole.stderr).contains("too long"), "{whole:?}");
}

#[test]
fn p14_an_idle_tunnel_ends_and_the_next_packet_brings_it_back() {
    let mut field =
        Field::with_tunnels(Terrain { node: "idle_seconds = 10\n".into(), transport: "tls", ..Terrain::default() });
    let address = field.tunnel(1)["address"].clone();
    wait_until("it has ended", LIMIT, || field.tunnel(1)["state"] == "idle");
    assert!(field.get("node", "/tunnels").as_array().unwrap().is_empty());
    let pinged = try_run(field.at("d1", "ping").args(["-c", "1", "-i", "0.3", "-w", "30", INSIDE]), LIMIT);
    assert!(pinged.status.success(), "{pinged:?}\n{}\n{}", field.log("d1"), field.log("node"));
    assert_eq!((field.tunnel(1)["address"].clone(), field.tunnel(1)["times"].as_u64()), (address, Some(2)));
    // On the same link as the first: what that brings belongs to the second now, all of it.
    let gate =
        "table inet gate { chain in { type filter hook input priority 0; iifname eth0 meta l4proto udp drop; }; }";
    let _ = run(field.at("d1", "nft").arg(gate), LIMIT);
    let ping = |words: &str| try_run(field.at("d1", "ping").args(words.split(' ')).arg(INSIDE), LIMIT);
    assert!(ping("-c 1 -i 0.3 -w 30").status.success());
    wait_until("the link carries it", LIMIT, || {
        let _ = ping("-c 1 -W 1");
        field.tunnel(1)["way"] == "link"
    });
    let pinged = ping("-c 20 -i 0.1 -W 3");
    assert!(String::from_utf8_lossy(&pinged.stdout).contains(" 0% packet loss"), "{pinged:?}");
    field.end("node", libc::SIGTERM);
}

#[test]
fn p14_the_tunnel_ends_where_there_is_a_better_way_and_not_where_somebody_says_so() {
    let mut field = Field::open(Terrain::default());
    let certificate = |field: &Field, name: &str| {
        let (key, certificate) = (field.path(&format!("{name}.key")), field.path(&format!("{name}.pem")));
        let words = format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {key} -out {certificate} -days 2 -subj /CN=home"
        );
        field.say("inside", &words);
        let shown = field.say("inside", &format!("openssl x509 -in {certificate} -noout -fingerprint -sha256"));
        shown.trim().rsplit('=').next().unwrap().to_owned()
    };
    let (real, _) = (certificate(&field, "real"), certificate(&field, "other"));
    let serve = |field: &mut Field, place: &str, name: &str| {
        let (key, pem) = (field.path(&format!("{name}.key")), field.path(&format!("{name}.pem")));
        field.serve(
            place,
            &format!("openssl s_server -quiet -accept {INSIDE}:443 -key {key} -cert {pem}"),
            &format!("nc -z {INSIDE} 443"),
        );
    };
    serve(&mut field, "inside", "real");
    let config = field.path("d1.toml");
    let home = format!("[tunnel.home]\nserver = \"{INSIDE}:443\"\ncertificate_sha256 = \"{real}\"\n");
    std::fs::write(&config, std::fs::read_to_string(&config).unwrap() + &home).unwrap();
    field.join(1);
    field.wait_for_tunnel(1);
    // A network that has a server at that address too.
    field.say("relay", &format!("ip addr add {INSIDE}/32 dev lo"));
    serve(&mut field, "relay", "other");
    let stir = |field: &Field, n: u8| {
        field.say("d1", &format!("ip addr add 10.99.0.{n}/32 dev lo"));
        std::thread::sleep(Duration::from_secs(4));
    };
    stir(&field, 1);
    assert_eq!((field.tunnel(1)["state"].as_str(), field.tunnel(1)["times"].as_u64()), (Some("up"), Some(1)));
    // And the network itself.
    field.connect("d1", "home0", "10.71.3.77", "inside", "hom", "10.71.3.78");
    field.say("inside", "ip route add 10.71.3.77/32 dev hom");
    wait_until("it is at home", LIMIT, || field.tunnel(1)["state"] == "home");
    assert!(!field.say("d1", "ip rule").contains("3101"));
    assert!(field.say("d1", &format!("ping -c 1 -W 2 {INSIDE}")).contains(" 0% packet loss"));
    assert!(!field.say("d1", "cat /etc/resolv.conf").contains("127.0.0.153"));
    field.say("d1", "ip link del home0");
    wait_until("it is away", LIMIT, || field.tunnel(1)["state"] == "up");
    assert!(field.say("d1", &format!("ping -c 1 -W 2 {INSIDE}")).contains(" 0% packet loss"));
}

#[test]
fn p14_three_tunnels_through_one_node_under_load_misdeliver_nothing() {
    let mut field = Field::with_tunnels(Terrain { devices: 3, ..Terrain::default() });
    let www = field.path("www");
    std::fs::create_dir_all(&www).unwrap();
    for n in 1..=3u8 {
        std::fs::write(format!("{www}/f{n}"), vec![n; 30_000_000]).unwrap();
    }
    field.serve(
        "inside",
        &format!("python3 -m http.server 80 --bind {INSIDE} --directory {www}"),
        &format!("nc -z {INSIDE} 80"),
    );
    let mut loads: Vec<_> = (1..=3)
        .map(|n| {
            let mut curl = field.at(&format!("d{n}"), "curl");
            curl.args(["-fs", "-m", "50", "-o", &field.path(&format!("got{n}")), &format!("http://{INSIDE}/f{n}")]);
            curl.spawn().unwrap()
        })
        .collect();
    for load in &mut loads {
        assert!(load.wait().unwrap().success());
    }
    for n in 1..=3u8 {
        let got = std::fs::read(field.path(&format!("got{n}"))).unwrap();
        assert!(got.len() == 30_000_000 && got.iter().all(|b| *b == n), "device {n}");
        // A record of another tunnel would not open here, and be counted; so is the acknowledgement of a hand-shake's
        // last flight, which says nothing new.
        let records = field.metric(&format!("d{n}"), "hedgerow_dropped_total", "tunnel_record");
        assert!(records <= 3.0, "device {n}: {records}");
        assert_eq!(field.metric(&format!("d{n}"), "hedgerow_dropped_total", "tunnel_unknown"), 0.0, "device {n}");
    }
    let records = field.metric("node", "hedgerow_dropped_total", "tunnel_record");
    assert!(records <= 9.0, "{records}");
}
