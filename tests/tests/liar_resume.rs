//! N04: a relay that lies when a session goes on over another connection. Whatever it alters, holds back, plays again or
//! leads astray, each byte of a running transfer arrives once and in its place or the application gets an error, the
//! ends say what was wrong, and the relay learns nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hedgerow_runtime::clock;
use hedgerow_runtime::lane::{Endpoint, ResumeError, Session};
use hedgerow_runtime::link::{Channel, Stream};
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::wire::message::{ALPN_SESSION, Destination, GoAway, LinkOpen, SessionOpen, Vouched};
use hedgerow_shared::{EntityId, InstanceId, Origin, Role};
use hedgerow_tests::liar::scene::{Device, GROUP, Scene, Setting};
use hedgerow_tests::liar::{Alteration, Answer, Holder, Meddling, Paced, Way, What};
use hedgerow_tests::process::wait_until;

const DAY: u64 = 86_400;
const SOON: Duration = Duration::from_secs(10);
/// What a device says of a connection that does not lead where its session belongs.
const FOUL: &str = "the way to a session's node is not honest";

fn node(scene: &mut Scene, name: &str) -> EntityId {
    let config = scene.tenant.node_config(1, DAY, scene.site.port, &[]);
    scene.node(name, GROUP, &config)
}

fn device(scene: &mut Scene, name: &str, lanes: bool) -> Device {
    let config = scene.tenant.device_config(1, DAY, GROUP);
    scene.device(name, &config, lanes)
}

/// Sum over the sessions that a node lists.
fn resumed(scene: &Scene, node: &str) -> u64 {
    let sessions = scene.json(node, "/sessions");
    sessions.as_array().unwrap().iter().filter_map(|s| s["resumed"].as_u64()).sum()
}

fn what(lanes: bool) -> What {
    if lanes { What::Lane } else { What::LinkStream }
}

/// A device answers it with a new link at once, and the old one stays until its streams have moved.
fn drains() -> GoAway {
    GoAway { fault: Fault::new(Code::Draining, "soon"), return_after_ms: 0, alternatives: vec![] }
}

// ---- bytes ---------------------------------------------------------------------------------------------------------

/// Cuts a session in the middle of two documents, and meddles with what carries it next.
fn altered_after_a_cut(lanes: bool) {
    let mut scene = Scene::new();
    node(&mut scene, "node");
    let device = device(&mut scene, "device", lanes);
    scene.visit_well(&device);
    let (mut cases, mut whole, mut played) = (0, 0, 0);
    for way in [Way::Up, Way::Down] {
        // Each twice: near the hand-shake and the greeting with RESUME, and among what is sent again.
        for span in [4096, 65_536] {
            for how in Alteration::ALL {
                // Silence in a hand-shake lasts as long as one may take, which is longer than a session waits here.
                if span == 4096 && matches!(how, Alteration::Swap | Alteration::Finish) {
                    continue;
                }
                cases += 1;
                let cut = if clock::random::<1>()[0].is_multiple_of(2) { Way::Up } else { Way::Down };
                let after = u64::from(u16::from_be_bytes(clock::random())) % span;
                let case = format!("{:?} {cut:?} {way:?} {how:?} after {after}", what(lanes));
                let at = 20_000 + u64::from(u16::from_be_bytes(clock::random())) * 8;
                let before = scene.liar.count(|c| &c.altered);
                scene.liar.lie(|l| {
                    l.meddling =
                        Some(Meddling { what: what(lanes), way: cut, how: Alteration::Cut, after: at, times: 1 });
                    l.afterwards = Some(Meddling { what: what(lanes), way, how, after, times: 1 });
                });
                let visited = scene.visit(&device);
                let taken = scene.site.readings();
                scene.liar.lie(|l| (l.meddling, l.afterwards) = (None, None));
                assert!(taken.iter().filter(|r| r.check(&scene.site.up, &case)).count() <= 1, "{case}: it came twice");
                let came = visited.is_some_and(|r| r.check(&scene.site.down, &case));
                let told = scene.liar.count(|c| &c.altered) - before;
                assert!(told >= 1, "{case}: nothing was cut");
                played += u64::from(told == 2);
                let silent = matches!(how, Alteration::Omit | Alteration::Swap | Alteration::Finish);
                assert!(came || silent, "{case}: an honest connection was to be had\n{}", scene.log("device"));
                whole += u64::from(came);
                if lanes {
                    back_to_a_lane(&scene, &device);
                }
            }
        }
    }
    assert!(2 * played >= cases, "of {cases} lies about what carries a session next {played} were told");
    assert!(4 * whole >= 3 * cases, "{whole} documents of {cases} came whole");
    let log = format!("{}{}", scene.log("device"), scene.log("node"));
    for words in ["do not authenticate", FOUL, "session refused"] {
        assert!(log.contains(words), "neither end says {words:?}\n{log}");
    }
    scene.assert_nothing_learnt();
    scene.visit_well(&device);
}

/// Where a lane failed none is tried for a while, on that link.
fn back_to_a_lane(scene: &Scene, device: &Device) {
    let path = || scene.json(&device.name, "/status")["sessions"][0]["path"].clone();
    if path() == "link" {
        let links = scene.liar.count(|c| &c.links);
        scene.liar.send_away(Role::Device, &drains());
        wait_until("the device has a new link", SOON, || scene.liar.count(|c| &c.links) > links);
        wait_until("the session is on a lane again", SOON, || path() != "link");
    }
}

#[test]
fn n04_bytes_altered_on_the_lane_that_a_session_goes_on_over_reach_nobody() {
    altered_after_a_cut(true);
}

#[test]
fn n04_bytes_altered_on_the_link_stream_that_a_session_goes_on_over_reach_nobody() {
    altered_after_a_cut(false);
}

/// Holds back what one end sends, has the session move while the old connection still stands, and then delivers it
/// there: by then it has been sent again, and must not count twice.
fn late_bytes_count_for_nothing(lanes: bool, way: Way) {
    let mut scene = Scene::set(Setting { document: 8 << 20, ..Setting::default() });
    node(&mut scene, "node");
    let device = device(&mut scene, "device", lanes);
    let mut visit = Paced::begin(&scene, &device);
    visit.read(200_000);
    visit.write(200_000);
    let name = what(lanes);
    scene.liar.lie(|l| {
        l.meddling = Some(Meddling { what: name, way, how: Alteration::Hold, after: 0, times: 1 });
        // Another relay, it says: that is what a session leaves a lane for.
        l.relay_name = Some("other.liar.test".into());
    });
    visit.write(100_000);
    wait_until("something is held back", SOON, || scene.liar.count(|c| &c.altered) == 1);
    scene.liar.send_away(Role::Device, &drains());
    scene.wait_for_log("device", "session to node moved");
    visit.read(300_000);
    scene.liar.release();
    wait_until("it was sent at last", SOON, || scene.liar.count(|c| &c.late) > 0);
    visit.finish_well(&scene, &format!("{name:?} {way:?}"));
    assert!(resumed(&scene, "node") >= 1);
    scene.assert_nothing_learnt();
}

#[test]
fn n04_bytes_held_back_on_a_lane_and_delivered_after_the_session_moved_count_for_nothing() {
    late_bytes_count_for_nothing(true, Way::Up);
    late_bytes_count_for_nothing(true, Way::Down);
}

#[test]
fn n04_bytes_held_back_on_a_link_stream_and_delivered_after_the_session_moved_count_for_nothing() {
    late_bytes_count_for_nothing(false, Way::Up);
    late_bytes_count_for_nothing(false, Way::Down);
}

// ---- played again --------------------------------------------------------------------------------------------------

#[test]
fn n04_a_recorded_resumption_played_again_moves_no_session_and_repeats_no_byte() {
    for lanes in [true, false] {
        let mut scene = Scene::new();
        let node_id = node(&mut scene, "node");
        let device = device(&mut scene, "device", lanes);
        let mut visit = Paced::begin(&scene, &device);
        visit.read(1000);
        scene.liar.cut();
        scene.wait_for_log("device", "session to node goes on");
        visit.write(300_000);
        visit.read(1000);
        wait_until("the resumed session's bytes are in the record", SOON, || {
            scene.liar.recorded(Way::Up).len() > 200_000
        });
        let (up, down) = (scene.liar.recorded(Way::Up), scene.liar.recorded(Way::Down));
        // To the node, by a stream of its link: whatever the first one came by.
        let mux = scene.link_of(node_id).link.mux;
        let refused = scene.metric("node", "hedgerow_node_sessions_refused_total", "");
        scene.liar.block_on(async {
            let mut stream = mux.open(&through(&scene, Some(device.id))).await.unwrap();
            let _ = stream.write_chunk(up.into()).await;
            let ended = async { while matches!(stream.read_chunk().await, Ok(Some(_))) {} };
            tokio::time::timeout(SOON, ended).await.expect("the node ends it");
        });
        wait_until("the node has counted it", SOON, || {
            scene.metric("node", "hedgerow_node_sessions_refused_total", "") > refused
        });
        scene.wait_for_log("node", "session refused");
        assert_eq!(resumed(&scene, "node"), 1, "the session that lives was disturbed");
        // To the device, when it resumes the next time.
        scene.liar.lie(|l| l.node = Answer::Replay(down.into()));
        scene.liar.cut();
        scene.wait_for_log("device", FOUL);
        scene.liar.repent();
        visit.finish_well(&scene, "played again");
        scene.assert_nothing_learnt();
    }
}

#[test]
fn n04_a_ticket_used_twice_at_a_resumption_carries_one_session_once() {
    let mut scene = Scene::new();
    node(&mut scene, "node");
    let device = device(&mut scene, "device", true);
    let mut visit = Paced::begin(&scene, &device);
    visit.read(1000);
    let legs = scene.liar.count(|c| &c.node_legs);
    scene.liar.lie(|l| l.called_twice = true);
    scene.liar.cut();
    wait_until("the node has brought both legs", SOON, || scene.liar.count(|c| &c.node_legs) >= legs + 2);
    scene.wait_for_log("device", "session to node goes on");
    visit.finish_well(&scene, "called twice");
    let sessions = scene.json("node", "/sessions");
    assert_eq!((sessions.as_array().unwrap().len(), resumed(&scene, "node")), (1, 1), "{sessions:#}");
    scene.assert_nothing_learnt();
}

// ---- led astray ----------------------------------------------------------------------------------------------------

#[test]
fn n04_a_resumption_led_to_another_node_is_noticed_and_the_session_waits_for_its_own() {
    for lanes in [true, false] {
        let mut scene = Scene::new();
        let first = node(&mut scene, "node");
        let second = node(&mut scene, "second");
        scene.liar.lie(|l| l.called = Some(first));
        let device = device(&mut scene, "device", lanes);
        let mut visit = Paced::begin(&scene, &device);
        visit.read(1000);
        // The offer names the right node, and another is called.
        scene.liar.lie(|l| (l.called, l.named) = (Some(second), Some(first)));
        scene.liar.cut();
        scene.wait_for_log("device", FOUL);
        scene.wait_for_log("device", "it names another server than the one asked for");
        scene.wait_for_log("second", "session refused");
        scene.liar.repent();
        visit.finish_well(&scene, "another node");
        assert_eq!(scene.metric("second", "hedgerow_node_sessions_total", ""), 0.0);
        assert_eq!(resumed(&scene, "node"), 1);
        scene.assert_nothing_learnt();
    }
}

#[test]
fn n04_at_a_resumption_the_session_counts_and_not_what_the_relay_names() {
    let mut scene = Scene::new();
    let first = node(&mut scene, "node");
    let second = node(&mut scene, "second");
    scene.liar.lie(|l| l.called = Some(first));
    let device = device(&mut scene, "device", true);
    let mut visit = Paced::begin(&scene, &device);
    visit.read(1000);
    let instance = InstanceId::from_random([9; 16]);
    scene.liar.lie(|l| (l.called, l.named, l.named_instance) = (Some(first), Some(second), Some(instance)));
    scene.liar.cut();
    scene.wait_for_log("device", "session to node goes on");
    visit.finish_well(&scene, "named another");
    assert_eq!(resumed(&scene, "node"), 1);
    assert_eq!(scene.metric("second", "hedgerow_node_sessions_total", ""), 0.0);
    assert!(!scene.log("device").contains(FOUL), "it led where it should");
}

/// Two devices in the middle of their exchanges; each one's lane is led to the other's node when they resume.
fn lanes_crossed_at_a_resumption(same_node: bool) {
    let mut scene = Scene::new();
    let first_node = node(&mut scene, "node");
    let second_node = if same_node { first_node } else { node(&mut scene, "second") };
    let (first, second) = (device(&mut scene, "first", true), device(&mut scene, "other", true));
    scene.liar.lie(|l| l.called = Some(first_node));
    let mut one = Paced::begin(&scene, &first);
    scene.liar.lie(|l| l.called = Some(second_node));
    let mut two = Paced::begin(&scene, &second);
    one.read(1000);
    two.read(1000);
    scene.liar.lie(|l| (l.called, l.lanes_crossed) = (None, true));
    scene.liar.cut();
    for name in ["first", "other"] {
        scene.wait_for_log(name, "session to node goes on");
        if !same_node {
            // Both ends are of the tenant, and neither is the one meant.
            scene.wait_for_log(name, "it names another server than the one asked for");
            scene.wait_for_log(name, FOUL);
        }
    }
    scene.liar.repent();
    one.write(100_000);
    for (visit, case) in [(one, "first"), (two, "other")] {
        let reading = visit.finish();
        assert!(reading.check(&scene.site.down, case), "{case}: {reading:?}");
    }
    assert!(scene.site.readings().iter().all(|r| r.check(&scene.site.up, "upload")));
    // Each session belongs to whom it belonged to, and was moved by nobody else.
    let names: &[&str] = if same_node { &["node"] } else { &["node", "second"] };
    let mut owners = Vec::new();
    for name in names {
        for session in scene.json(name, "/sessions").as_array().unwrap() {
            assert_eq!(session["resumed"], 1, "{session:#}");
            owners.push(session["device"].as_str().unwrap().to_owned());
        }
    }
    owners.sort();
    let mut wanted = [first.id.to_string(), second.id.to_string()];
    wanted.sort();
    assert_eq!(owners, wanted);
    scene.assert_nothing_learnt();
}

#[test]
fn n04_lanes_crossed_between_two_nodes_at_a_resumption_are_noticed_by_both_devices() {
    lanes_crossed_at_a_resumption(false);
}

#[test]
fn n04_lanes_crossed_at_one_node_at_a_resumption_carry_each_the_session_of_its_own_device() {
    lanes_crossed_at_a_resumption(true);
}

#[test]
fn n04_a_resumption_led_to_a_later_process_of_the_node_ends_the_session_with_a_clear_error() {
    let mut scene = Scene::new();
    let id = node(&mut scene, "node");
    let device = device(&mut scene, "device", true);
    let mut visit = Paced::begin(&scene, &device);
    visit.read(1000);
    // Until the new process is there nobody is called.
    scene.liar.lie(|l| l.called = Some(EntityId::from_random([7; 16])));
    scene.kill("node");
    scene.run_node("node");
    let _ = scene.liar.wait_for_link("the node", |k| k.entity == Some(id));
    // The lie: the process that the session belongs to is gone, and another is said to be it.
    scene.liar.lie(|l| l.called = Some(id));
    let reading = visit.finish();
    assert!(!reading.check(&scene.site.down, "another process"), "there was nobody to go on with");
    scene.wait_for_log("device", "this node has no such session of the device");
    scene.liar.repent();
    let _ = scene.site.readings();
    scene.visit_well(&device);
    scene.assert_nothing_learnt();
}

// ---- withheld ------------------------------------------------------------------------------------------------------

/// The session cannot go on: the application hears of it in time, and the next one works.
fn ends_with_an_error(lie: impl FnOnce(&mut hedgerow_tests::liar::Lies), words: &str) {
    let mut scene = Scene::new();
    node(&mut scene, "node");
    let device = device(&mut scene, "device", true);
    let mut visit = Paced::begin(&scene, &device);
    visit.read(1000);
    scene.liar.lie(lie);
    scene.liar.cut();
    let since = Instant::now();
    // Nobody took what was cut off for the whole.
    let reading = visit.finish();
    assert!(!reading.in_order || reading.check(&scene.site.down, words), "{reading:?}");
    assert!(since.elapsed() < SOON, "the application waited {:?}", since.elapsed());
    scene.wait_for_log("device", words);
    scene.wait_for_log("node", "was not resumed within 3 s");
    for taken in scene.site.readings() {
        let _ = taken.check(&scene.site.up, words);
    }
    scene.assert_nothing_learnt();
    scene.liar.repent();
    wait_until("the device works again", Duration::from_secs(20), || {
        scene.visit(&device).is_some_and(|r| r.check(&scene.site.down, "again"))
    });
}

#[test]
fn n04_a_relay_that_says_falsely_that_the_node_is_gone_ends_the_session_and_the_device_says_so() {
    ends_with_an_error(|l| l.gone_said = true, "the node's process has ended");
}

#[test]
fn n04_a_relay_that_holds_the_legs_of_a_resumption_ends_the_session_in_its_time() {
    ends_with_an_error(|l| l.legs_held = true, "was not resumed within 3 s");
}

#[test]
fn n04_a_relay_that_leaves_requests_without_an_answer_ends_the_session_in_its_time() {
    ends_with_an_error(|l| l.requests_ignored = true, "was not resumed within 3 s");
}

#[test]
fn n04_a_false_word_that_the_node_is_gone_harms_no_session_that_is_carried() {
    let mut scene = Scene::new();
    node(&mut scene, "node");
    let device = device(&mut scene, "device", false);
    let mut visit = Paced::begin(&scene, &device);
    visit.read(1000);
    scene.liar.lie(|l| l.gone_said = true);
    // It wants to move to the new link, and is told that there is nothing to move.
    let links = scene.liar.count(|c| &c.links);
    scene.liar.send_away(Role::Device, &drains());
    wait_until("the device has a new link", SOON, || scene.liar.count(|c| &c.links) > links);
    visit.finish_well(&scene, "not gone");
}

// ---- somebody else's session ---------------------------------------------------------------------------------------

/// A device that the test plays itself, so that it can tell another what no relay ever sees: the id and the secret.
struct Played {
    endpoint: Endpoint,
    own: tls::Own,
    id: EntityId,
}

impl Played {
    fn new(scene: &Scene, holder: &Holder) -> Self {
        let instance = InstanceId::from_random(clock::random());
        let endpoint = Endpoint::new(scene.tenant.ca.clone(), instance, Timers::default(), Scope::new());
        Self { endpoint, own: holder.own(&scene.tenant.ca), id: holder.identity.id }
    }

    fn config(&self, scene: &Scene) -> Arc<rustls::ClientConfig> {
        tls::to_tenant(scene.tenant.ca.clone(), Role::Node, None, Some(&self.own), &[ALPN_SESSION]).unwrap()
    }

    async fn stream(&self, scene: &Scene, node: &Channel) -> Stream {
        node.open(&through(scene, Some(self.id))).await.unwrap()
    }

    async fn open(&self, scene: &Scene, node: &Channel) -> Session {
        let stream = self.stream(scene, node).await;
        self.endpoint.open(stream, self.config(scene), tls::any_name()).await.unwrap()
    }
}

fn through(scene: &Scene, vouched: Option<EntityId>) -> LinkOpen {
    let tenant = scene.tenant.id.clone();
    let to = Destination { tenant, origin: Origin::Proxy, group: None, instance: None, node: None };
    let vouched = Some(Vouched { role: Some(Role::Device), id: vouched, address: "192.0.2.1:1".into() });
    LinkOpen::Through { to, vouched, trace: None }
}

#[test]
fn n04_a_session_whose_id_and_secret_were_stolen_goes_on_for_its_own_device_only() {
    let mut scene = Scene::new();
    let id = node(&mut scene, "node");
    let mux = scene.link_of(id).link.mux;
    let (victim, thief) = (scene.tenant.issue(Role::Device, GROUP), scene.tenant.issue(Role::Device, GROUP));
    let (victim, thief) = (Played::new(&scene, &victim), Played::new(&scene, &thief));
    let site = SessionOpen { host: "127.0.0.1".into(), port: scene.site.port, trace: None, tunnel: None };
    scene.liar.block_on(async {
        let session = victim.open(&scene, &mux).await;
        let mut stream = session.mux.open(&site).await.unwrap();
        let mut got = read_some(&mut stream, 1000).await;
        for adds in [false, true] {
            // The relay vouches for the thief as the victim: that counts for nothing.
            let io = victim.stream(&scene, &mux).await;
            let config = thief.config(&scene);
            let stolen = if adds {
                thief.endpoint.add(&session, io, config, tls::any_name()).await
            } else {
                thief.endpoint.resume(&session, io, config, tls::any_name()).await
            };
            let refused = matches!(&stolen, Err(ResumeError::Refused(f)) if f.code == Code::Gone);
            assert!(refused, "adds: {adds}: {stolen:?}");
        }
        assert!(!session.mux.is_suspended() && session.mux.stats().lanes == 1, "the victim's lane was touched");
        // The victim itself may: the refusals were not for want of a session.
        let io = victim.stream(&scene, &mux).await;
        victim.endpoint.resume(&session, io, victim.config(&scene), tls::any_name()).await.unwrap();
        got.extend(read_some(&mut stream, 400_000).await);
        assert!(scene.site.down.starts_with(&got), "wrong bytes");
        session.mux.close(Fault::new(Code::Ok, "enough"));
    });
    scene.wait_for_log("node", "this node has no such session of the device");
    assert!(scene.metric("node", "hedgerow_node_sessions_refused_total", "gone") >= 2.0);
    scene.assert_nothing_learnt();
}

async fn read_some(stream: &mut hedgerow_runtime::mux::Stream, least: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < least {
        let chunk: Bytes = stream.read_chunk().await.unwrap().expect("the site is not through");
        got.extend_from_slice(&chunk);
    }
    got
}

// ---- further lanes -------------------------------------------------------------------------------------------------

/// A scene in which a bulk stream beside an idle one makes a device ask for a second lane.
fn bulk() -> Scene {
    Scene::set(Setting { document: 48 << 20, ..Setting::default() })
}

fn lanes_of(scene: &Scene, device: &str) -> u64 {
    scene.json(device, "/status")["sessions"][0]["lanes"].as_u64().unwrap_or_default()
}

#[test]
fn n04_a_further_lane_led_to_another_node_is_noticed_and_carries_nothing() {
    let mut scene = bulk();
    let first = node(&mut scene, "node");
    let second = node(&mut scene, "second");
    scene.liar.lie(|l| l.called = Some(first));
    let device = device(&mut scene, "device", true);
    let (idle, mut visit) = (Paced::begin(&scene, &device), Paced::begin(&scene, &device));
    scene.liar.lie(|l| (l.called, l.named) = (Some(second), Some(first)));
    visit.read(6 << 20);
    scene.wait_for_log("device", FOUL);
    scene.wait_for_log("device", "it names another server than the one asked for");
    assert_eq!(lanes_of(&scene, "device"), 1);
    scene.liar.repent();
    wait_until("an honest one is had", SOON, || lanes_of(&scene, "device") == 2);
    drop(idle);
    let reading = visit.finish();
    assert!(reading.check(&scene.site.down, "another node"), "{reading:?}");
    assert_eq!(scene.metric("second", "hedgerow_node_sessions_total", ""), 0.0);
    scene.assert_nothing_learnt();
}

#[test]
fn n04_further_lanes_that_are_crossed_altered_or_cut_lose_no_byte_and_join_no_strangers_session() {
    let mut scene = bulk();
    node(&mut scene, "node");
    let (first, second) = (device(&mut scene, "first", true), device(&mut scene, "other", true));
    let idle = [Paced::begin(&scene, &first), Paced::begin(&scene, &second)];
    let mut visits = [Paced::begin(&scene, &first), Paced::begin(&scene, &second)];
    scene.liar.lie(|l| l.lanes_crossed = true);
    visits.iter_mut().for_each(|v| v.read(6 << 20));
    for name in ["first", "other"] {
        wait_until("both have a second lane", SOON, || lanes_of(&scene, name) == 2);
    }
    let sessions = scene.json("node", "/sessions");
    let lanes: Vec<_> =
        sessions.as_array().unwrap().iter().map(|s| (s["lanes"].clone(), s["resumed"].clone())).collect();
    assert_eq!(lanes, vec![(2.into(), 0.into()); 2], "one each, by the certificates: {sessions:#}");
    // Bytes on whichever of the lanes comes first.
    for how in [Alteration::Flip, Alteration::Omit, Alteration::Repeat, Alteration::Cut] {
        let told = scene.liar.count(|c| &c.altered);
        scene.liar.lie(|l| {
            l.lanes_crossed = false;
            l.meddling = Some(Meddling { what: What::Lane, way: Way::Down, how, after: 100_000, times: 1 });
        });
        visits.iter_mut().for_each(|v| v.read(2 << 20));
        wait_until("the lie is told", SOON, || scene.liar.count(|c| &c.altered) > told);
    }
    scene.liar.repent();
    drop(idle);
    for (visit, case) in visits.into_iter().zip(["first", "other"]) {
        let reading = visit.finish();
        assert!(reading.check(&scene.site.down, case), "{case}: {reading:?}");
    }
    scene.assert_nothing_learnt();
}
