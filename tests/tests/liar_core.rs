//! N04: a relay that lies between a core and those who need it: activation, enrolment, configuration, look-up, the
//! core's own link. Real processes; the core's tenant is its own, and its keys never leave it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::SocketAddr;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_runtime::tls::{SigningKey, read_certificates};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::secret::Secret;
use hedgerow_shared::wire::message::Wake;
use hedgerow_shared::{EntityId, Role};
use hedgerow_tests::liar::scene::{Device, GROUP, Scene, TENANT};
use hedgerow_tests::liar::{Act, Alteration, Answer, Imposter, Liar, Meddling, RelayIdentity, Tenant, Way, What};
use hedgerow_tests::process::wait_until;
use hedgerow_tests::tap::Needle;

const SOON: Duration = Duration::from_secs(10);

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What a refused activation or enrolment must look like.
fn refused(output: &Output, folder: &std::path::Path) -> String {
    let said = said(output);
    assert!(!output.status.success(), "it was believed: {said}");
    for file in ["certificate.pem", "tenant-ca.pem", "config.cbor", "relay.json", "node.pem", "node.json"] {
        assert!(!folder.join(file).exists(), "{file} was kept: {said}");
    }
    assert!(!said.contains('\u{1b}') && !said.contains("panic"), "{said:?}");
    said
}

/// An imposter with a CA of its own that bears the tenant's name.
fn imposter(act: Act) -> Arc<Imposter> {
    let twin = Tenant::new(TENANT);
    let core = twin.issue(Role::Core, GROUP);
    Imposter::new(core.own(&twin.ca).chain, &core.signing_key(), act)
}

fn wrong_attempts(scene: &Scene) -> u64 {
    let shown = scene.command(&["password", "show", "anna@example.com"]);
    shown["wrong"].as_u64().unwrap_or_else(|| panic!("{shown:#}"))
}

/// A node and a device of the core's tenant, made through an honest relay.
fn people(scene: &mut Scene, lanes: bool) -> (EntityId, Device) {
    scene.core();
    let (token, password) = (scene.token(), scene.password());
    let enrolled = scene.enrol("node", &token);
    assert!(enrolled.status.success(), "{}", said(&enrolled));
    let activated = scene.activate("device", &password);
    assert!(activated.status.success(), "{}", said(&activated));
    scene.run_node("node");
    let node = scene.liar.wait_for_link("the node", |k| k.role == Role::Node).entity.unwrap();
    let socks: SocketAddr = scene.run_device("device", lanes);
    let id = scene.liar.wait_for_link("the device", |k| k.role == Role::Device).entity.unwrap();
    (node, Device { id, name: "device".into(), socks })
}

// ---- activation ----------------------------------------------------------------------------------------------------

#[test]
fn n04_activation_enrolment_and_work_through_an_honest_liar_show_it_no_secret() {
    let mut scene = Scene::new();
    let (_, device) = people(&mut scene, true);
    scene.visit_well(&device);
    for file in ["node/node.key.pem", "device/key.pem"] {
        let pem = std::fs::read_to_string(scene.path(file)).unwrap();
        let base64: String = pem.lines().filter(|l| !l.starts_with('-')).collect();
        let der = data_encoding::BASE64.decode(base64.as_bytes()).unwrap();
        let at = der.windows(5).position(|w| w == [2, 1, 1, 4, 32]).expect("a P-256 key") + 5;
        scene.secret(Needle { name: file.into(), bytes: der[at..at + 32].to_vec() });
    }
    scene.assert_nothing_learnt();
}

#[test]
fn n04_a_relay_in_the_middle_of_an_activation_learns_nothing_and_burns_one_attempt_of_five() {
    let mut scene = Scene::new();
    scene.core();
    let password = scene.password();
    scene.liar.lie(|l| l.core = Answer::Middle(imposter(Act::Listen)));
    for attempt in 1..=4 {
        let said = refused(&scene.activate("device", &password), &scene.path("device"));
        assert!(said.contains("password"), "{said}");
        assert_eq!(wrong_attempts(&scene), attempt, "{said}");
    }
    assert_eq!(scene.liar.count(|c| &c.believed), 4, "the inner TLS of an activation trusts anyone: the PAKE does not");
    // It did read what was said inside: the address, and no more.
    let address = [Needle { name: "address".into(), bytes: b"anna@example.com".to_vec() }];
    let found = scene.liar.notes().search(&address);
    assert!(found.iter().any(|(_, place)| place.starts_with("in the middle")), "{found:?}");
    let finish = [Needle { name: "finish".into(), bytes: b"/activate/v1/finish".to_vec() }];
    assert!(scene.liar.notes().search(&finish).is_empty(), "the device asked an unconfirmed core for a certificate");
    scene.assert_nothing_learnt();
    // The password is still good for one more.
    scene.liar.repent();
    let output = scene.activate("device", &password);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn n04_the_fifth_attempt_in_the_middle_blocks_the_password_for_everybody() {
    let mut scene = Scene::new();
    scene.core();
    let password = scene.password();
    scene.liar.lie(|l| l.core = Answer::Middle(imposter(Act::Listen)));
    for _ in 0..5 {
        refused(&scene.activate("device", &password), &scene.path("device"));
    }
    scene.liar.repent();
    let said = refused(&scene.activate("device", &password), &scene.path("device"));
    assert!(said.contains("password"), "{said}");
    let shown = scene.command(&["password", "show", "anna@example.com"]);
    assert_eq!(shown["state"], "blocked", "{shown:#}");
    scene.assert_nothing_learnt();
}

#[test]
fn n04_a_relay_that_plays_the_core_must_know_the_password() {
    let mut scene = Scene::new();
    scene.core();
    let password = scene.password();
    let finish = [Needle { name: "finish".into(), bytes: b"/activate/v1/finish".to_vec() }];
    let act = |text: &str| Act::Guess { tenant: TENANT.parse().unwrap(), password: Secret::from_text(text.into()) };
    scene.liar.lie(|l| l.core = Answer::Imposter(imposter(act("a wrong guess"))));
    let said = refused(&scene.activate("device", &password), &scene.path("device"));
    assert!(said.contains("activation stopped, nothing was accepted"), "{said}");
    assert_eq!(scene.liar.count(|c| &c.believed), 1);
    assert!(scene.liar.notes().search(&finish).is_empty(), "the device went on");
    assert_eq!(wrong_attempts(&scene), 0, "the core was not asked");
    scene.assert_nothing_learnt();
    // The control: with the right password the same imposter gets further, so the above could have failed.
    let right = std::fs::read_to_string(&password).unwrap();
    scene.liar.lie(|l| l.core = Answer::Imposter(imposter(act(right.trim()))));
    refused(&scene.activate("device", &password), &scene.path("device"));
    assert!(!scene.liar.notes().search(&finish).is_empty(), "the control did not get on");
}

#[test]
fn n04_an_activation_whose_bytes_are_altered_fails_and_burns_no_attempt() {
    let mut scene = Scene::new();
    scene.core();
    let password = scene.password();
    for way in [Way::Up, Way::Down] {
        // Not the type in a record's header: rustls leaves it out of what it authenticates, and opens the record.
        let ways = [Alteration::Flip, Alteration::Repeat, Alteration::ForgedClose, Alteration::Cut];
        for how in ways.into_iter().chain([Alteration::CutInside]) {
            let (before, what) = (scene.liar.count(|c| &c.altered), What::Core);
            scene.liar.lie(|l| l.meddling = Some(Meddling { what, way, how, after: 0, times: 1 }));
            let output = scene.activate("device", &password);
            assert!(!output.status.success(), "{way:?} {how:?}: {}", said(&output));
            refused(&output, &scene.path("device"));
            assert_eq!(scene.liar.count(|c| &c.altered), before + 1, "{way:?} {how:?}");
        }
    }
    assert_eq!(wrong_attempts(&scene), 0);
    scene.assert_nothing_learnt();
    let output = scene.activate("device", &password);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn n04_lies_about_whose_address_it_is_lead_to_a_refusal_in_plain_words() {
    let mut scene = Scene::new();
    scene.core();
    let password = scene.password();
    let answer = |status: &str, body: &str| Some((status.to_owned(), body.to_owned()));
    for (lie, words) in [
        (answer("200 OK", "{\"tenant\":\"S99999999\"}"), "another tenant"),
        (answer("200 OK", "{\"tenant\":\"\\u001b[2J\"}"), "cannot be read"),
        (answer("200 OK", &"x".repeat(10_000)), "look-up"),
        (answer("404 Not Found", "go \u{1b}]0;away\u{7}\u{9b}"), "go"),
        (answer("302 Found", "elsewhere"), "elsewhere"),
    ] {
        scene.liar.lie(|l| l.look_up = lie);
        let said = refused(&scene.activate("device", &password), &scene.path("device"));
        assert!(said.contains(words), "{said}");
    }
    scene.liar.lie(|l| (l.look_up, l.connect_refused) = (None, Some("no \u{1b}]0;entry\u{7}\u{9b}2J".into())));
    let said = refused(&scene.activate("device", &password), &scene.path("device"));
    assert!(said.contains("entry") && !said.contains(['\u{7}', '\u{9b}']), "{said:?}");
    let token = scene.token();
    let said = refused(&scene.enrol("node", &token), &scene.path("node"));
    assert!(said.contains("entry") && !said.contains(['\u{7}', '\u{9b}']), "{said:?}");
    assert_eq!(wrong_attempts(&scene), 0);
    scene.assert_nothing_learnt();
}

// ---- enrolment -----------------------------------------------------------------------------------------------------

#[test]
fn n04_a_node_gives_its_token_to_nobody_but_the_core_that_the_token_pins() {
    let mut scene = Scene::new();
    scene.core();
    let token = scene.token();
    let real = scene.command(&["tenant", "show"])["ca_pem"].as_str().map(|p| pem::parse(p).unwrap().into_contents());
    let twin = Tenant::new(TENANT);
    let core = twin.issue(Role::Core, GROUP);
    let chains = [
        ("a CA of its own", core.own(&twin.ca).chain),
        ("the real CA above its own leaf", vec![core.leaf.clone().into(), real.unwrap().into()]),
    ];
    for (case, chain) in chains {
        let imposter = Imposter::new(chain, &core.signing_key(), Act::Listen);
        for answer in [Answer::Imposter(imposter.clone()), Answer::Middle(imposter)] {
            scene.liar.lie(|l| l.core = answer);
            let said = refused(&scene.enrol("node", &token), &scene.path("node"));
            assert!(said.contains("certificate was refused"), "{case}: {said}");
        }
    }
    assert_eq!(scene.liar.count(|c| &c.believed), 0);
    scene.assert_nothing_learnt();
    assert_ne!(scene.command(&["token", "list"])[0]["state"], "used");
    scene.liar.repent();
    let output = scene.enrol("node", &token);
    assert!(output.status.success(), "the token is still good: {}", said(&output));
    scene.assert_nothing_learnt();
}

// ---- configuration -------------------------------------------------------------------------------------------------

#[test]
fn n04_nobody_but_the_core_gives_nodes_and_devices_their_configuration() {
    let mut scene = Scene::new();
    let (node, device) = people(&mut scene, false);
    scene.visit_well(&device);
    let held = |name: &str, certificate: &str, key: &str| {
        let chain = read_certificates(&scene.path(name).join(certificate)).unwrap();
        let ca = read_certificates(&scene.path(name).join("tenant-ca.pem")).unwrap();
        let key = SigningKey::read(&scene.path(name).join(key)).unwrap();
        Imposter::new([chain, ca].concat(), &key, Act::Listen)
    };
    // A node or a device that is in league with the relay is no core either.
    let accomplices =
        [imposter(Act::Listen), held("node", "node.pem", "node.key.pem"), held("device", "certificate.pem", "key.pem")];
    for accomplice in accomplices {
        for answer in [Answer::Imposter(accomplice.clone()), Answer::Middle(accomplice)] {
            scene.liar.lie(|l| l.core = answer);
            let before = scene.liar.count(|c| &c.disbelieved);
            wake(&scene);
            wait_until("both have asked", SOON, || scene.liar.count(|c| &c.disbelieved) >= before + 2);
        }
    }
    assert_eq!(scene.liar.count(|c| &c.believed), 0);
    scene.wait_for_log("node", "no new configuration from the core");
    scene.wait_for_log("device", "cannot ask the core for configuration");
    for name in ["node", "device"] {
        scene.wait_for_log(name, "certificate was refused");
    }
    // What they have stays in force.
    scene.visit_well(&device);
    assert_eq!(scene.json("node", "/node")["id"], node.to_string());
    scene.assert_nothing_learnt();
}

fn wake(scene: &Scene) {
    for known in scene.liar.links().iter().filter(|k| k.role != Role::Core) {
        known.link.mux.send_control(&Wake { roles: vec![], ids: vec![] }.into()).unwrap();
    }
}

#[test]
fn n04_a_revocation_that_the_relay_holds_back_is_shown_as_not_yet_obeyed_and_counts_once_it_arrives() {
    let mut scene = Scene::new();
    let (node, device) = people(&mut scene, false);
    scene.visit_well(&device);
    scene.liar.lie(|l| (l.core, l.wakes_withheld) = (Answer::Nobody, true));
    let answer = scene.command(&["device", "revoke", &device.id.to_string()]);
    // What SECURITY.md says of a relay that freezes: the device still reaches the node, and the core says so.
    scene.visit_well(&device);
    let status = scene.command(&["core", "status"]);
    assert!(status["not_yet"].to_string().contains(&node.to_string()), "{answer:#}\n{status:#}");
    let running = device.connect(scene.site.port).expect("still connected");
    scene.liar.repent();
    wake(&scene);
    wait_until("the node cuts the revoked device", Duration::from_secs(5), || {
        std::io::Write::write(&mut &running, &[0; 4096]).is_err()
    });
    assert_eq!(scene.visit(&device), None);
    assert!(scene.log("node").contains("revoked"), "{}", scene.log("node"));
}

// ---- the core's own link -------------------------------------------------------------------------------------------

#[test]
fn n04_a_relay_without_the_tenants_key_gets_no_link_of_the_core_and_never_sees_the_key() {
    let mut scene = Scene::new();
    scene.liar.lie(|l| l.srp_key_unknown = true);
    scene.core_files();
    scene.run_core(false);
    scene.wait_for_log("core", "the relay does not know this tenant's SRP authentication key");
    assert!(scene.liar.links().is_empty());
    scene.liar.repent();
    let _ = scene.liar.wait_for_link("the core", |k| k.role == Role::Core);
    scene.assert_nothing_learnt();
}

#[test]
fn n04_a_relay_between_its_peers_and_their_real_relay_links_none_of_them() {
    let mut scene = Scene::new();
    let _ = people(&mut scene, true);
    let folder = tempfile::tempdir().unwrap();
    let real = Liar::start(&RelayIdentity::new("relay.real.test"), folder.path());
    real.give_srp_key(Secret::new(unhex(&std::fs::read_to_string(scene.path("srp.key")).unwrap())));
    scene.liar.lie(|l| l.links_led_to = Some(real.address()));
    // They come back by themselves, and find the way to the real relay open, but for the exporter in their proofs.
    for known in scene.liar.links() {
        known.link.mux.close(Fault::new(Code::Lost, "gone"));
    }
    scene.wait_for_log("core", "the relay does not know this tenant's SRP authentication key");
    for name in ["node", "device"] {
        scene.wait_for_log(name, "the peer does not hold its certificate's key");
    }
    assert!(real.links().is_empty() && real.count(|c| &c.links) == 0);
    scene.assert_nothing_learnt();
}

fn unhex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(text.trim().as_bytes()).unwrap()
}
