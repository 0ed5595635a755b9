//! N04: the lies of a relay, told over the other carriers: links over QUIC, and lanes whose node leg is wrapped in TLS.
//! What is sealed end to end holds on each of them; what QUIC and the relay's own TLS seal holds against everybody else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use hedgerow_runtime::clock;
use hedgerow_shared::Role;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::secret::Secret;
use hedgerow_shared::wire::message::{Destination, LinkOpen, Vouched, Wake};
use hedgerow_shared::{EntityId, Origin};
use hedgerow_tests::liar::scene::{Device, GROUP, Scene, Setting, TENANT};
use hedgerow_tests::liar::{
    Act, Alteration, Answer, Datagrams, Imposter, Liar, Meddling, Paced, RelayIdentity, Tenant, Way, What,
};
use hedgerow_tests::process::wait_until;

const DAY: u64 = 86_400;
const SOON: Duration = Duration::from_secs(20);

/// What carries a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    /// A stream of QUIC links.
    Quic,
    /// A lane whose node leg is wrapped in TLS to the relay.
    Wrapped,
}

impl Carrier {
    const BOTH: [Self; 2] = [Self::Quic, Self::Wrapped];

    fn scene(self) -> Scene {
        let scene = Scene::set(Setting { quic: self == Self::Quic, ..Setting::default() });
        self.repent(&scene);
        scene
    }

    /// No lies, but the network stays what it is.
    fn repent(self, scene: &Scene) {
        scene.liar.repent();
        scene.liar.lie(|l| l.bare_legs_cut = self == Self::Wrapped);
    }

    fn what(self) -> What {
        if self == Self::Quic { What::LinkStream } else { What::Lane }
    }

    fn device(self, scene: &mut Scene, name: &str) -> Device {
        let config = scene.tenant.device_config(1, DAY, GROUP);
        scene.device(name, &config, self == Self::Wrapped)
    }

    /// Panics when the session went another way.
    fn assert_used(self, scene: &Scene, device: &Device) {
        let status = scene.json(&device.name, "/status");
        let wanted = if self == Self::Quic { ("quic", "link") } else { ("tls", "lane") };
        let found = (&status["link"]["transport"], &status["sessions"][0]["path"]);
        assert_eq!(found, (&wanted.0.into(), &wanted.1.into()), "{status:#}");
        assert_eq!(scene.liar.count(|c| &c.wrapped_legs) > 0, self == Self::Wrapped);
    }
}

fn node(scene: &mut Scene, name: &str) -> EntityId {
    let config = scene.tenant.node_config(1, DAY, scene.site.port, &[]);
    scene.node(name, GROUP, &config)
}

// ---- bytes ---------------------------------------------------------------------------------------------------------

#[test]
fn n04_an_honest_liar_carries_documents_by_quic_and_by_wrapped_legs_and_reads_none() {
    for carrier in Carrier::BOTH {
        let mut scene = carrier.scene();
        node(&mut scene, "node");
        let device = carrier.device(&mut scene, "device");
        scene.visit_well(&device);
        carrier.assert_used(&scene, &device);
        scene.assert_nothing_learnt();
        // The notes are not empty: the sealed bytes are in them, in full.
        let place = if carrier == Carrier::Quic { "a stream of a QUIC link" } else { "opened by the relay's key" };
        let noted: usize =
            scene.liar.notes().everything().iter().filter(|(p, _)| p.starts_with(place)).map(|(_, b)| b.len()).sum();
        assert!(noted > scene.site.up.len() + scene.site.down.len(), "{carrier:?}: {noted} bytes were noted");
    }
}

fn no_altered_byte_is_believed(carrier: Carrier) {
    let mut scene = carrier.scene();
    node(&mut scene, "node");
    let device = carrier.device(&mut scene, "device");
    scene.visit_well(&device);
    carrier.assert_used(&scene, &device);
    for way in [Way::Down, Way::Up] {
        for how in Alteration::ALL {
            let case = format!("{carrier:?} {way:?} {how:?}");
            let before = scene.liar.count(|c| &c.altered);
            let after = 16_384 + u64::from(u16::from_be_bytes(clock::random())) * 7;
            scene.liar.lie(|l| l.meddling = Some(Meddling { what: carrier.what(), way, how, after, times: 1 }));
            let visited = scene.visit(&device);
            let taken = scene.site.readings();
            scene.liar.lie(|l| l.meddling = None);
            assert!(taken.iter().filter(|r| r.check(&scene.site.up, &case)).count() <= 1, "{case}: it came twice");
            assert!(scene.liar.count(|c| &c.altered) > before, "{case}: the lie was not told, after {after}");
            let reading = visited.unwrap_or_else(|| panic!("{case}: refused"));
            let _ = reading.check(&scene.site.down, &case);
        }
    }
    scene.visit_well(&device);
    let log = format!("{}{}", scene.log("device"), scene.log("node"));
    for words in ["do not authenticate", "session to node goes on"] {
        assert!(log.contains(words), "neither end says {words:?}\n{log}");
    }
    scene.assert_nothing_learnt();
}

#[test]
fn n04_bytes_altered_on_streams_of_quic_links_never_reach_an_application() {
    no_altered_byte_is_believed(Carrier::Quic);
}

#[test]
fn n04_bytes_altered_on_lanes_with_wrapped_legs_never_reach_an_application() {
    no_altered_byte_is_believed(Carrier::Wrapped);
}

/// Not only a relay can do this: anybody on the way.
#[test]
fn n04_datagrams_altered_cut_short_repeated_reordered_left_out_misrouted_or_invented_change_no_byte() {
    let mut scene = Carrier::Quic.scene();
    node(&mut scene, "node");
    let devices = [Carrier::Quic.device(&mut scene, "device"), Carrier::Quic.device(&mut scene, "other")];
    for how in Datagrams::ALL {
        let before = scene.liar.count(|c| &c.datagrams);
        scene.liar.lie(|l| l.datagrams = Some(how));
        for device in &devices {
            let reading = scene.visit(device).unwrap_or_else(|| panic!("{how:?}: refused"));
            assert!(reading.check(&scene.site.down, "download"), "{how:?}: {reading:?}");
        }
        scene.liar.lie(|l| l.datagrams = None);
        let taken = scene.site.readings();
        assert!(taken.len() == 2 && taken.iter().all(|r| r.check(&scene.site.up, "upload")), "{how:?}: {taken:?}");
        let meddled = scene.liar.count(|c| &c.datagrams) - before;
        assert!(meddled > 50, "{how:?}: only {meddled} datagrams");
    }
    for device in &devices {
        Carrier::Quic.assert_used(&scene, device);
    }
    // On the wire there is nothing to read, and nothing in it that opens anything.
    let found = hedgerow_tests::tap::find(scene.secrets(), &scene.liar.datagrams());
    assert!(found.is_empty(), "{found:?}");
    scene.assert_nothing_learnt();
}

// ---- who answers ---------------------------------------------------------------------------------------------------

#[test]
fn n04_a_relay_with_a_ca_of_its_own_gets_no_link_over_quic_nor_tls_from_anybody() {
    for quic in [true, false] {
        let mut scene = Scene::set(Setting { quic, own_ca: true, ..Setting::default() });
        node(&mut scene, "node");
        let config = scene.tenant.device_config(1, DAY, GROUP);
        let device = scene.device("device", &config, true);
        scene.core_files();
        scene.run_core(false);
        // Over TLS they name the issuer, because a network that opens TLS is the likelier cause.
        let words = if quic { "certificate was refused" } else { "shows a certificate issued by" };
        for name in ["node", "device", "core"] {
            scene.wait_for_log(name, words);
        }
        assert_eq!(scene.liar.count(|c| &c.links), 0);
        assert_eq!(scene.visit(&device), None);
        scene.assert_nothing_learnt();
    }
}

#[test]
fn n04_a_wrapped_leg_is_brought_to_the_relay_only() {
    let mut scene = Carrier::Wrapped.scene();
    node(&mut scene, "node");
    let device = Carrier::Wrapped.device(&mut scene, "device");
    scene.liar.lie(|l| l.wrapped_by_own_ca = true);
    // The device finds another way, a stream of its link, when it has waited for the lane as long as a hand-shake may
    // take.
    let visited = scene.visit(&device);
    assert!(visited.is_none_or(|r| r.check(&scene.site.down, "by the link")));
    scene.wait_for_log("node", "somebody else answers where the relay called for the leg of a lane");
    scene.wait_for_log("node", "shows a certificate issued by");
    assert_eq!((scene.liar.count(|c| &c.wrapped_legs), scene.liar.count(|c| &c.believed)), (0, 0));
    assert!(scene.liar.count(|c| &c.disbelieved) >= 1);
    scene.assert_nothing_learnt();
}

#[test]
fn n04_over_quic_and_wrapped_legs_too_a_device_believes_no_node_but_one_of_its_tenant() {
    for carrier in Carrier::BOTH {
        let mut scene = carrier.scene();
        node(&mut scene, "node");
        let device = carrier.device(&mut scene, "device");
        let twin = Tenant::new(TENANT);
        let (forged, fellow) = (twin.issue(Role::Node, GROUP), scene.tenant.issue(Role::Device, GROUP));
        for (own, holder) in [
            (forged.own(&twin.ca), &forged),
            (forged.own(&scene.tenant.ca), &forged),
            (fellow.own(&scene.tenant.ca), &fellow),
        ] {
            let imposter = Imposter::new(own.chain, &holder.signing_key(), Act::Listen);
            for answer in [Answer::Imposter(imposter.clone()), Answer::Middle(imposter.clone())] {
                scene.liar.lie(|l| l.node = answer);
                assert_eq!(scene.visit(&device), None, "{carrier:?}");
            }
        }
        assert_eq!(scene.liar.count(|c| &c.believed), 0);
        scene.wait_for_log("device", "certificate was refused");
        scene.assert_nothing_learnt();
        carrier.repent(&scene);
        scene.visit_well(&device);
    }
}

#[test]
fn n04_over_quic_the_core_is_believed_only_when_it_is_the_core() {
    let mut scene = Scene::set(Setting { quic: true, ..Setting::default() });
    scene.liar.lie(|l| l.srp_key_unknown = true);
    scene.core_files();
    scene.run_core(false);
    scene.wait_for_log("core", "the relay does not know this tenant's SRP authentication key");
    assert!(scene.liar.links().is_empty());
    scene.liar.repent();
    let core = scene.liar.wait_for_link("the core", |k| k.role == Role::Core);
    assert_eq!(core.link.transport.label(), "quic");
    // A node that asks for its configuration by its QUIC link.
    node(&mut scene, "node");
    let twin = Tenant::new(TENANT);
    let forged = twin.issue(Role::Core, GROUP);
    let imposter = Imposter::new(forged.own(&twin.ca).chain, &forged.signing_key(), Act::Listen);
    for answer in [Answer::Imposter(imposter.clone()), Answer::Middle(imposter)] {
        scene.liar.lie(|l| l.core = answer);
        let before = scene.liar.count(|c| &c.disbelieved);
        let to = scene.liar.wait_for_link("the node", |k| k.role == Role::Node).link.mux;
        to.send_control(&Wake { roles: vec![], ids: vec![] }.into()).unwrap();
        wait_until("the node has asked", SOON, || scene.liar.count(|c| &c.disbelieved) > before);
    }
    assert_eq!(scene.liar.count(|c| &c.believed), 0);
    scene.wait_for_log("node", "certificate was refused");
    scene.assert_nothing_learnt();
}

#[test]
fn n04_a_relay_between_its_peers_quic_links_and_their_real_relay_links_none_of_them() {
    let mut scene = Scene::set(Setting { quic: true, ..Setting::default() });
    node(&mut scene, "node");
    let config = scene.tenant.device_config(1, DAY, GROUP);
    let _device = scene.device("device", &config, true);
    scene.core_files();
    scene.run_core(false);
    let _ = scene.liar.wait_for_link("the core", |k| k.role == Role::Core);
    let folder = tempfile::tempdir().unwrap();
    let real = Liar::start(&RelayIdentity::new("relay.real.test"), folder.path());
    let key = std::fs::read_to_string(scene.path("srp.key")).unwrap();
    real.give_srp_key(Secret::new(data_encoding::HEXLOWER.decode(key.trim().as_bytes()).unwrap()));
    scene.liar.lie(|l| l.links_led_to = Some(real.address()));
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

// ---- led astray and played again -----------------------------------------------------------------------------------

#[test]
fn n04_over_quic_and_wrapped_legs_too_a_session_led_to_another_node_waits_for_its_own() {
    for carrier in Carrier::BOTH {
        let mut scene = carrier.scene();
        let first = node(&mut scene, "node");
        let second = node(&mut scene, "second");
        scene.liar.lie(|l| l.called = Some(first));
        let device = carrier.device(&mut scene, "device");
        let mut visit = Paced::begin(&scene, &device);
        visit.read(1000);
        carrier.assert_used(&scene, &device);
        scene.liar.lie(|l| (l.called, l.named) = (Some(second), Some(first)));
        scene.liar.cut();
        scene.wait_for_log("device", "it names another server than the one asked for");
        scene.wait_for_log("second", "session refused");
        carrier.repent(&scene);
        visit.finish_well(&scene, &format!("{carrier:?}"));
        assert_eq!(scene.metric("second", "hedgerow_node_sessions_total", ""), 0.0);
        scene.assert_nothing_learnt();
    }
}

#[test]
fn n04_over_quic_and_wrapped_legs_too_a_recorded_session_played_again_opens_nothing() {
    for carrier in Carrier::BOTH {
        let mut scene = carrier.scene();
        let id = node(&mut scene, "node");
        let device = carrier.device(&mut scene, "device");
        scene.visit_well(&device);
        let recorded = scene.liar.recorded(Way::Up);
        assert!(recorded.len() > scene.site.up.len());
        let mux = scene.link_of(id).link.mux;
        let tenant = scene.tenant.id.clone();
        let to = Destination { tenant, origin: Origin::Proxy, group: None, instance: None, node: None };
        scene.liar.block_on(async {
            let vouched = Some(Vouched { role: Some(Role::Device), id: Some(device.id), address: String::new() });
            let mut stream = mux.open(&LinkOpen::Through { to, vouched, trace: None }).await.unwrap();
            let _ = stream.write_chunk(recorded.into()).await;
            let ended = async { while matches!(stream.read_chunk().await, Ok(Some(_))) {} };
            tokio::time::timeout(SOON, ended).await.expect("the node ends it");
        });
        scene.wait_for_log("node", "session refused");
        assert_eq!(scene.metric("node", "hedgerow_node_sessions_total", ""), 1.0);
        assert!(scene.site.readings().is_empty(), "a server inside was reached");
        scene.visit_well(&device);
        scene.assert_nothing_learnt();
    }
}
