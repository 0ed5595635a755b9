//! N10: the post-quantum key exchange X25519MLKEM768, wherever both ends can, and what can not still connects.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hedgerow_shared::Role;
use hedgerow_tests::chromium;
use hedgerow_tests::liar::agreed::{CLASSIC, POST_QUANTUM};
use hedgerow_tests::liar::scene::{Device, Scene, Setting};
use hedgerow_tests::process::{try_run, wait_until};
use hedgerow_tests::world::{Options, World};
use serde_json::Value;

const GROUP: &str = "X25519MLKEM768";

fn s_client(world: &World) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &world.text("relay.device"), "-servername", &world.text("relay.name")]);
    command.args(["-CAfile", &world.text("relay.ca")]);
    String::from_utf8_lossy(&try_run(&mut command, Duration::from_secs(30)).stdout).into_owned()
}

fn chromium_at_the_relay(world: &World) -> Value {
    // The relay's own certificate stands first in its file.
    let certificate = Path::new(&world.text("relay.ca")).with_file_name("relay.pem");
    chromium::load(&world.text("relay.name"), "/", &world.text("relay.device"), &certificate)
}

fn tls(world: &World, listener: &str, path: &str) -> Value {
    serde_json::from_str::<Value>(&world.get(listener, path)).unwrap()["tls"].clone()
}

#[test]
fn n10_chromium_agrees_on_the_post_quantum_exchange_and_openssl_without_it_connects() {
    let world = World::start(&Options::default());
    let seen = chromium_at_the_relay(&world);
    assert_eq!((&seen["group"], &seen["status"]), (&GROUP.into(), &404.into()), "{seen}");
    assert!(seen["text"].as_str().is_some_and(|t| t.contains("this is a Hedgerow relay")), "{seen}");
    let counted =
        |group: &str| world.metric("relay.admin", "hedgerow_relay_tls_handshakes_total", &format!("group=\"{group}\""));
    // Over TCP: Chromium, activation and enrolment, and links that are not over QUIC, which this does not count.
    assert!(counted(GROUP) >= 4.0, "{}", world.get("relay.admin", "/metrics"));
    assert_eq!(counted("X25519"), 0.0, "one of ours did not take it");
    let said = s_client(&world);
    assert!(said.contains("Verify return code: 0 (ok)") && said.contains("TLSv1.3"), "{said}");
    assert!(said.contains("X25519") || said.contains("X448") || said.contains("ECDH"), "{said}");
    assert_eq!(counted("X25519"), 1.0);
    for (listener, path) in STATUS {
        let tls = tls(&world, listener, path);
        assert_eq!(tls, serde_json::json!({ "provider": "aws-lc-rs", "post_quantum": true }), "{listener}");
    }
}

#[test]
fn n10_with_ring_it_is_off_and_every_status_says_so() {
    let roles = ["RELAY", "CORE", "NODE", "DEVICE"];
    let environment = roles.iter().map(|r| (format!("HEDGEROW_{r}__TLS__PROVIDER"), "ring".to_owned())).collect();
    let world = World::start(&Options { environment, ..Options::default() });
    for (listener, path) in STATUS {
        let tls = tls(&world, listener, path);
        assert_eq!(tls, serde_json::json!({ "provider": "ring", "post_quantum": false }), "{listener}");
    }
    let seen = chromium_at_the_relay(&world);
    assert_eq!((&seen["group"], &seen["status"]), (&"X25519".into(), &404.into()), "{seen}");
    let human = String::from_utf8(world.try_hedgerow(&["core", "status"]).stdout).unwrap();
    let line = human.lines().find(|l| l.starts_with("post-quantum")).unwrap_or_default();
    assert!(line.ends_with("no"), "{human}");
    // And the product works: by the device's proxy to the site.
    let said = hedgerow_tests::curl::text(hedgerow_tests::curl::curl().args([
        "--proxy",
        &world.socks(),
        &world.text("intranet.url"),
    ]));
    assert!(!said.is_empty());
}

/// Where each role shows its status.
const STATUS: [(&str, &str); 4] =
    [("relay.admin", "/status"), ("core.admin", "/status"), ("node.admin", "/node"), ("device.admin", "/status")];

// ---- inside links and sessions -------------------------------------------------------------------------------------

/// Core, node and device of one tenant at a relay that writes down which group each hand-shake agrees on; work by a lane
/// and by a stream of the link.
fn at_a_relay_that_notes_groups(setting: Setting) -> Scene {
    let mut scene = Scene::set(setting);
    scene.core();
    let (token, password) = (scene.token(), scene.password());
    assert!(scene.enrol("node", &token).status.success());
    assert!(scene.activate("device", &password).status.success());
    scene.run_node("node");
    let _ = scene.liar.wait_for_link("the node", |k| k.role == Role::Node);
    for lanes in [true, false] {
        let socks = scene.run_device("device", lanes);
        let link = scene.liar.wait_for_link("the device", |k| k.role == Role::Device);
        let device = Device { id: link.entity.unwrap(), name: "device".into(), socks };
        scene.visit_well(&device);
        if lanes {
            scene.kill("device");
            let gone = || scene.liar.links().iter().all(|k| k.role != Role::Device);
            wait_until("the device's link has ended", Duration::from_secs(30), gone);
        }
    }
    scene
}

/// Where each role shows its status in a scene.
const SCENE_STATUS: [(&str, &str); 3] = [("core", "/status"), ("node", "/node"), ("device", "/status")];

#[test]
fn n10_links_over_tls_and_quic_and_every_session_inside_agree_on_the_post_quantum_exchange() {
    for quic in [true, false] {
        let scene = at_a_relay_that_notes_groups(Setting { quic, ..Setting::default() });
        let agreed = scene.liar.agreed();
        let link = if quic { "the relay's QUIC" } else { "the relay's TLS" };
        let inside = ["a session on a lane", "a session on a link's stream", "the inner TLS to the core"];
        for what in inside.into_iter().chain([link]) {
            assert!(agreed.iter().any(|(seen, _)| *seen == what), "no hand-shake of {what}: {agreed:?}");
        }
        assert!(agreed.iter().all(|(_, group)| *group == POST_QUANTUM), "{agreed:?}");
        for (name, path) in SCENE_STATUS {
            assert_eq!(scene.json(name, path)["tls"]["post_quantum"], true, "{name}");
        }
    }
}

#[test]
fn n10_with_ring_links_over_quic_and_sessions_inside_go_without_and_every_status_says_so() {
    let roles = ["CORE", "NODE", "DEVICE"];
    let environment = roles.iter().map(|r| (format!("HEDGEROW_{r}__TLS__PROVIDER"), "ring".to_owned())).collect();
    let scene = at_a_relay_that_notes_groups(Setting { quic: true, environment, ..Setting::default() });
    let agreed = scene.liar.agreed();
    for what in ["the relay's QUIC", "a session on a lane", "a session on a link's stream", "the inner TLS to the core"]
    {
        let groups: Vec<u16> = agreed.iter().filter(|(seen, _)| *seen == what).map(|(_, group)| *group).collect();
        assert!(!groups.is_empty() && groups.iter().all(|g| *g == CLASSIC), "{what}: {groups:?}");
    }
    for (name, path) in SCENE_STATUS {
        let tls = scene.json(name, path)["tls"].clone();
        assert_eq!(tls, serde_json::json!({ "provider": "ring", "post_quantum": false }), "{name}");
    }
}
