//! Debian's scanners and slow clients against a relay process: testssl.sh, sslscan, slowhttptest.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hedgerow_tests::curl::{attempt, curl};
use hedgerow_tests::process::{run, try_run, wait_until};
use hedgerow_tests::world::{Options, World};
use serde_json::Value;

/// The ports for devices (443) and for nodes and cores (3101).
const DOORS: [&str; 2] = ["relay.device", "relay.link"];

/// Findings of testssl.sh that are worse than a remark, and why each is none of the relay's.
const EXPLAINED: &[(&str, &str)] = &[(
    "engine_problem",
    "the scanner's own openssl has no GOST engine, so GOST ciphers are looked for by sockets only",
)];

fn testssl(address: &str) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("findings.json");
    let mut scan = Command::new("testssl");
    // Protocols, kinds of ciphers, what the server prefers, and every vulnerability it knows.
    scan.args(["--quiet", "--warnings", "off", "--color", "0", "--nodns", "none", "--assume-http", "--fast"]);
    scan.args(["-p", "-s", "-P", "-U", "--jsonfile"]).arg(&file).arg(address);
    // Its exit code counts findings of every kind.
    let output = try_run(&mut scan, Duration::from_secs(240));
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_else(|e| {
        panic!(
            "no findings ({e}): {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

#[test]
fn p01_testssl_finds_nothing_weak_on_either_port() {
    let world = World::start(&Options::default());
    let scan = |door: &str| {
        let findings = testssl(&world.text(door));
        let of = |id: &str| {
            let found =
                findings.iter().find(|f| f["id"] == id).unwrap_or_else(|| panic!("{door}: {id} was not looked at"));
            found["finding"].as_str().unwrap().to_owned()
        };
        // That it looked, and saw the relay.
        assert!(of("TLS1_3").starts_with("offered"), "{door}: {}", of("TLS1_3"));
        for old in ["SSLv2", "SSLv3", "TLS1", "TLS1_1", "TLS1_2"] {
            assert!(of(old).starts_with("not offered"), "{door}: {old} {}", of(old));
        }
        for known in
            ["heartbleed", "CCS", "ROBOT", "secure_renego", "secure_client_renego", "CRIME_TLS", "SWEET32", "LOGJAM"]
        {
            of(known);
        }
        for finding in &findings {
            let (id, severity) = (finding["id"].as_str().unwrap(), finding["severity"].as_str().unwrap());
            let explained = EXPLAINED.iter().any(|(explained, _)| *explained == id);
            assert!(matches!(severity, "OK" | "INFO") || explained, "{door}: {finding}");
        }
    };
    std::thread::scope(|s| DOORS.map(|door| s.spawn(move || scan(door))).map(|t| t.join().unwrap()));
}

/// The values of an attribute of every element of this name.
fn attributes(xml: &str, element: &str, attribute: &str) -> Vec<String> {
    let begin = format!("<{element} ");
    let elements = xml.split(&begin).skip(1).filter_map(|rest| rest.split('>').next());
    let value = |e: &str| Some(e.split(&format!("{attribute}=\"")).nth(1)?.split('"').next()?.to_owned());
    elements.filter_map(value).collect()
}

#[test]
fn p01_sslscan_finds_nothing_weak_on_either_port() {
    let world = World::start(&Options::default());
    for door in DOORS {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("scan.xml");
        let xml = format!("--xml={}", file.display());
        let _ = run(Command::new("sslscan").args(["--no-colour", &xml, &world.text(door)]), Duration::from_secs(120));
        let xml = std::fs::read_to_string(&file).unwrap();
        let protocols: Vec<_> = attributes(&xml, "protocol", "version")
            .into_iter()
            .zip(attributes(&xml, "protocol", "enabled"))
            .filter_map(|(version, enabled)| (enabled == "1").then_some(version))
            .collect();
        assert_eq!(protocols, ["1.3"], "{door}");
        assert_eq!(attributes(&xml, "renegotiation", "supported"), ["0"], "{door}");
        let heartbleed = attributes(&xml, "heartbleed", "vulnerable");
        assert!(!heartbleed.is_empty() && heartbleed.iter().all(|v| v == "0"), "{door}");
        let ciphers = attributes(&xml, "cipher", "cipher");
        assert!(
            !ciphers.is_empty() && ciphers.iter().all(|c| c.contains("_GCM_") || c.contains("_POLY1305_")),
            "{ciphers:?}"
        );
        let bits =
            [attributes(&xml, "cipher", "bits"), attributes(&xml, "group", "bits"), attributes(&xml, "pk", "bits")];
        for bits in bits {
            assert!(!bits.is_empty() && bits.iter().all(|b| b.parse::<u32>().unwrap() >= 128), "{door}: {bits:?}");
        }
        assert_eq!(attributes(&xml, "pk", "error"), ["false"], "{door}");
        for fine in ["<signature-algorithm>ecdsa-with-SHA256<", "<self-signed>false<", "<expired>false<"] {
            assert!(xml.contains(fine), "{door}: {fine} is missing in {xml}");
        }
        assert!(!xml.contains("<compression supported=\"1\""), "{door}");
    }
}

/// Each mode of slowhttptest, at the doors that speak HTTP.
#[test]
fn p02_slowhttptest_in_every_mode_keeps_no_good_client_out() {
    const EACH: &str = "1000";
    // Look-ups are 2 a second for one client otherwise: nobody's body would be waited for.
    let key = |name: &str| format!("HEDGEROW_RELAY__LIMITS__{name}");
    let environment =
        vec![(key("LOOKUP_PER_CLIENT"), "10000".to_owned()), (key("LOOKUP_BURST_PER_CLIENT"), "10000".to_owned())];
    let world = World::start(&Options { environment, ..Options::default() });
    let tls = format!("https://{}", world.text("relay.device"));
    let plain = format!("http://{}/", world.text("relay.http"));
    let (lookup, root) = (format!("{tls}/lookup"), format!("{tls}/"));
    let stop = AtomicBool::new(false);
    let (good, strangers, most) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let folder = tempfile::tempdir().unwrap();
    let attack = |name: &str, arguments: &[&str]| {
        let prefix = folder.path().join(name);
        let mut slow = Command::new("slowhttptest");
        slow.args(["-c", EACH, "-r", "150", "-i", "1", "-l", "14", "-p", "10", "-g", "-o"])
            .arg(&prefix)
            .args(arguments);
        let output = try_run(&mut slow, Duration::from_secs(60));
        let table = std::fs::read_to_string(prefix.with_extension("csv")).unwrap_or_default();
        let rows: Vec<Vec<usize>> =
            table.lines().skip(1).map(|l| l.split(',').filter_map(|n| n.trim().parse().ok()).collect()).collect();
        assert!(rows.len() > 2, "{name}: {}", String::from_utf8_lossy(&output.stdout));
        for row in rows {
            // Second, closed, pending, connected, service available.
            assert!(row[4] > 0, "{name}: no service in second {}:\n{table}", row[0]);
            most.fetch_max(row[1] + row[3], Ordering::Relaxed);
        }
    };
    std::thread::scope(|s| {
        let device = s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let site =
                    attempt(curl().args(["--max-time", "20", "--proxy", &world.socks(), &world.text("intranet.url")]));
                assert!(site.status.success(), "the device: {}", String::from_utf8_lossy(&site.stderr));
                good.fetch_add(1, Ordering::Relaxed);
            }
        });
        let stranger = s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let answer = attempt(curl().args(["--insecure", "--no-fail", "--max-time", "20", &root]));
                assert!(String::from_utf8_lossy(&answer.stdout).contains("Hedgerow relay"), "{answer:?}");
                strangers.fetch_add(1, Ordering::Relaxed);
            }
        });
        let attacks = [
            s.spawn(|| attack("headers", &["-H", "-t", "CONNECT", "-u", &root])),
            s.spawn(|| attack("plain-headers", &["-H", "-t", "CONNECT", "-u", &plain])),
            s.spawn(|| attack("body", &["-B", "-s", "1000", "-u", &lookup])),
            s.spawn(|| attack("ranges", &["-R", "-u", &root])),
            s.spawn(|| attack("reading", &["-X", "-w", "1", "-y", "2", "-z", "1", "-n", "2", "-k", "50", "-u", &root])),
        ];
        let ended: Vec<_> = attacks.map(|a| a.join()).into_iter().collect();
        stop.store(true, Ordering::Relaxed);
        device.join().unwrap();
        stranger.join().unwrap();
        ended.into_iter().for_each(|e| e.unwrap());
    });
    let [good, strangers, most] = [good, strangers, most].map(AtomicUsize::into_inner);
    assert!(good > 10 && strangers > 10, "{good} and {strangers} requests beside it");
    assert!(most > 900, "{most} slow connections at most");
    let status = |code: &str| world.metric("relay.admin", "hedgerow_relay_http_total", code);
    assert!(status("404") > 10.0, "requests were answered");
    wait_until("the slow ones are gone", Duration::from_secs(40), || {
        world.metric("relay.admin", "hedgerow_relay_handshakes", "") == 0.0
            && std::fs::read_dir(format!("/proc/{}/fd", world.pid("relay"))).unwrap().count() < 200
    });
}
