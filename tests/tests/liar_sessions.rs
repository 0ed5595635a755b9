//! N04: a relay that lies about sessions between devices and nodes. Whatever it alters, swaps, invents or holds back,
//! an application sees right bytes or a clear error, the ends say what was wrong, and the relay learns nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::TcpListener;
use std::time::{Duration, Instant};

use hedgerow_runtime::clock;
use hedgerow_runtime::core_client::CoreClient;
use hedgerow_runtime::dial::{self, RelayTarget};
use hedgerow_runtime::lane;
use hedgerow_runtime::link::Channel;
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls::{self, Own, RelayRoots};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::wire::message::{
    ALPN_SESSION, Control, Destination, GoAway, LaneCall, LaneOffer, LinkOpen, Service, Vouched, Wake,
};
use hedgerow_shared::{EntityId, InstanceId, Origin, Role, Ticket};
use hedgerow_tests::liar::scene::{Device, GROUP, HANDSHAKES, RELAY, Scene, TENANT};
use hedgerow_tests::liar::{Act, Alteration, Answer, Imposter, Meddling, Tenant, Way, What};
use hedgerow_tests::process::wait_until;
use hedgerow_tests::tap::Needle;

const DAY: u64 = 86_400;
const SOON: Duration = Duration::from_secs(10);

/// A node and a device that reach the site through the liar.
fn pair(scene: &mut Scene, lanes: bool) -> (EntityId, Device) {
    let config = scene.tenant.node_config(1, DAY, scene.site.port, &[]);
    let node = scene.node("node", GROUP, &config);
    let config = scene.tenant.device_config(1, DAY, GROUP);
    (node, scene.device("device", &config, lanes))
}

// ---- the controls --------------------------------------------------------------------------------------------------

#[test]
fn n04_an_honest_liar_carries_documents_on_lanes_and_link_streams_and_reads_none() {
    for lanes in [true, false] {
        let mut scene = Scene::new();
        let (_, device) = pair(&mut scene, lanes);
        scene.visit_well(&device);
        let path = scene.json("device", "/status")["sessions"][0]["path"].clone();
        assert_eq!(path, if lanes { "lane" } else { "link" }, "{:#}", scene.json("device", "/status"));
        assert_eq!(scene.liar.count(|c| &c.altered), 0);
        scene.assert_nothing_learnt();
        // The notes are not empty: the links were opened with the relay's own key, and begin as links do.
        let greeting = [Needle { name: "a HELLO".into(), bytes: b"hedgerow/0.1".to_vec() }];
        let found = scene.liar.notes().search(&greeting);
        assert!(found.iter().any(|(_, place)| place.starts_with("opened by the relay's key")), "{found:?}");
    }
}

#[test]
fn n04_control_what_is_sent_unsealed_or_to_whoever_answers_is_found_in_the_liars_notes() {
    let scene = Scene::new();
    let own = scene.tenant.issue(Role::Core, GROUP);
    let imposter = Imposter::new(own.own(&scene.tenant.ca).chain, &own.signing_key(), Act::Listen);
    scene.liar.lie(|l| l.core = Answer::Imposter(imposter));
    let target = RelayTarget::new(
        vec![scene.liar.address()],
        RELAY,
        RelayRoots::Ca(tls::read_certificates(&scene.path("relay-ca.pem")).unwrap()),
    );
    let mark = scene.secrets()[0].clone();
    let said = String::from_utf8(mark.bytes.clone()).unwrap();
    scene.liar.block_on(async {
        let (timers, scope) = (Timers::default(), Scope::new());
        let tenant = TENANT.parse().unwrap();
        let io = dial::origin(&target, &tenant, Origin::Core, &timers, &scope).await.unwrap();
        let mut core =
            CoreClient::handshake(tls::to_anyone(&[b"http/1.1"]).unwrap(), io, &timers, &scope).await.unwrap();
        let exchange = core.post::<serde_json::Value>("/", &said);
        let _ = tokio::time::timeout(Duration::from_millis(500), exchange).await;
        let mut io = dial::origin(&target, &tenant, Origin::Core, &timers, &scope).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut io, &mark.bytes).await.unwrap();
        tokio::io::AsyncWriteExt::shutdown(&mut io).await.unwrap();
    });
    wait_until("the liar has noted it", SOON, || {
        let found = scene.liar.notes().search(std::slice::from_ref(&mark));
        ["told to an imposter", "opened by the relay's key"]
            .iter()
            .all(|wanted| found.iter().any(|(_, place)| place.starts_with(wanted)))
    });
}

// ---- bytes ---------------------------------------------------------------------------------------------------------

/// Plays each alteration once, in each direction and at several places.
fn no_altered_byte_is_believed(what: What) {
    let mut scene = Scene::new();
    let (_, device) = pair(&mut scene, what == What::Lane);
    // Records for the alteration that takes one of another session.
    scene.visit_well(&device);
    let mut survived = 0;
    for way in [Way::Down, Way::Up] {
        // Flip once more at other places.
        let more = [Alteration::Flip, Alteration::Flip, Alteration::Foreign];
        for how in Alteration::ALL.into_iter().chain(more) {
            let case = format!("{what:?} {way:?} {how:?}");
            let before = scene.liar.count(|c| &c.altered);
            // Behind the hand-shake, before the end.
            let after = 16_384 + u64::from(u16::from_be_bytes(clock::random())) * 7;
            // What is held back or left out shows with the next record, or with the next ping: once is enough.
            let silent = matches!(how, Alteration::Swap | Alteration::Omit);
            let times = if silent { 1 } else { 1 + u32::from(clock::random::<1>()[0] % 3) };
            scene.liar.lie(|l| l.meddling = Some(Meddling { what, way, how, after, times }));
            let visited = scene.visit(&device);
            // What the application has handed over may still be on its way.
            let taken = scene.site.readings();
            scene.liar.lie(|l| l.meddling = None);
            assert!(taken.iter().filter(|r| r.check(&scene.site.up, &case)).count() <= 1, "{case}: it came twice");
            // A session that the lie ended before the answer came: nobody was connected.
            let Some(reading) = visited else { continue };
            assert!(scene.liar.count(|c| &c.altered) > before, "{case}: the lie was not told, after {after}");
            survived += usize::from(reading.check(&scene.site.down, &case));
        }
    }
    // Inside the hand-shake: another way is found, or none.
    for way in [Way::Down, Way::Up] {
        scene.liar.cut();
        scene.liar.lie(|l| l.meddling = Some(Meddling { what, way, how: Alteration::Flip, after: 0, times: 1 }));
        let _ = scene.visit(&device).map(|r| r.check(&scene.site.down, "hand-shake"));
        scene.liar.lie(|l| l.meddling = None);
        for reading in scene.site.readings() {
            let _ = reading.check(&scene.site.up, "hand-shake");
        }
    }
    scene.visit_well(&device);
    let log = format!("{}{}", scene.log("device"), scene.log("node"));
    for reason in ["do not authenticate", "cut without its proper end"] {
        assert!(log.contains(reason), "neither end says that bytes {reason}; {survived} documents were whole\n{log}");
    }
    scene.assert_nothing_learnt();
}

#[test]
fn n04_bytes_altered_repeated_reordered_cut_or_foreign_on_a_lane_never_reach_an_application() {
    no_altered_byte_is_believed(What::Lane);
}

#[test]
fn n04_bytes_altered_repeated_reordered_cut_or_foreign_on_a_link_stream_never_reach_an_application() {
    no_altered_byte_is_believed(What::LinkStream);
}

#[test]
fn n04_lanes_and_link_streams_cut_by_the_relay_lose_no_byte_silently() {
    for lanes in [true, false] {
        let mut scene = Scene::new();
        let (_, device) = pair(&mut scene, lanes);
        let mut running = device.connect(scene.site.port).unwrap();
        std::io::Read::read_exact(&mut running, &mut [0; 1000]).unwrap();
        scene.liar.cut();
        let mut got = scene.site.down[..1000].to_vec();
        let in_order = std::io::Read::read_to_end(&mut running, &mut got).is_ok();
        assert!(scene.site.down.starts_with(&got), "wrong bytes");
        assert!(!in_order || got.len() == scene.site.down.len(), "{} bytes look like all", got.len());
        drop(running);
        // Nobody sent a byte upwards, and nobody ended that direction in order but the application here.
        let _ = scene.site.readings();
        scene.visit_well(&device);
    }
}

#[test]
fn n04_a_recorded_session_played_again_opens_nothing() {
    let mut scene = Scene::new();
    let (node, device) = pair(&mut scene, false);
    scene.visit_well(&device);
    let recorded = scene.liar.recorded(Way::Up);
    assert!(recorded.len() > scene.site.up.len());
    let mux = scene.link_of(node).link.mux;
    let to =
        Destination { tenant: scene.tenant.id.clone(), origin: Origin::Proxy, group: None, instance: None, node: None };
    let sessions = scene.metric("node", "hedgerow_node_sessions_total", "");
    scene.liar.block_on(async {
        let vouched = Some(Vouched { role: Some(Role::Device), id: Some(device.id), address: String::new() });
        let mut stream = mux.open(&LinkOpen::Through { to, vouched, trace: None }).await.unwrap();
        // The node has had enough before all of it is sent, or soon after.
        let _ = stream.write_chunk(recorded.into()).await;
        let ended = async { while matches!(stream.read_chunk().await, Ok(Some(_))) {} };
        tokio::time::timeout(SOON, ended).await.expect("the node ends it");
    });
    scene.wait_for_log("node", "session refused");
    assert_eq!(scene.metric("node", "hedgerow_node_sessions_total", ""), sessions);
    assert!(scene.site.readings().is_empty(), "a server inside was reached");
    scene.visit_well(&device);
}

// ---- somebody else answers -----------------------------------------------------------------------------------------

#[test]
fn n04_a_device_believes_no_node_but_one_of_its_tenant() {
    let mut scene = Scene::new();
    let (_, device) = pair(&mut scene, true);
    let (twin, other) = (Tenant::new(TENANT), Tenant::new("S99999999"));
    let (forged, foreign) = (twin.issue(Role::Node, GROUP), other.issue(Role::Node, GROUP));
    let fellow = scene.tenant.issue(Role::Device, GROUP);
    let core = scene.tenant.issue(Role::Core, GROUP);
    let cases = [
        ("a CA of its own with the tenant's name", forged.own(&twin.ca), &forged),
        ("that, and the tenant's real CA above it", forged.own(&scene.tenant.ca), &forged),
        ("another tenant's node", foreign.own(&other.ca), &foreign),
        ("a device of the tenant", fellow.own(&scene.tenant.ca), &fellow),
        ("a core of the tenant", core.own(&scene.tenant.ca), &core),
    ];
    for (case, own, holder) in cases {
        let imposter = Imposter::new(own.chain, &holder.signing_key(), Act::Listen);
        for answer in [Answer::Imposter(imposter.clone()), Answer::Middle(imposter.clone())] {
            scene.liar.lie(|l| l.node = answer);
            assert_eq!(scene.visit(&device), None, "{case}");
        }
    }
    assert_eq!(scene.liar.count(|c| &c.believed), 0);
    assert!(scene.liar.count(|c| &c.disbelieved) >= 10);
    scene.wait_for_log("device", "certificate was refused");
    scene.assert_nothing_learnt();
    scene.liar.repent();
    scene.visit_well(&device);
}

#[test]
fn n04_a_node_believes_no_device_but_one_of_its_tenant_whatever_the_relay_vouches() {
    let mut scene = Scene::new();
    let revoked = scene.tenant.issue(Role::Device, GROUP);
    let config = scene.tenant.node_config(1, DAY, scene.site.port, &[revoked.identity.id]);
    let node = scene.node("node", GROUP, &config);
    let mux = scene.link_of(node).link.mux;
    let (twin, good) = (Tenant::new(TENANT), scene.tenant.issue(Role::Device, GROUP));
    let (forged, fellow) = (twin.issue(Role::Device, GROUP), scene.tenant.issue(Role::Node, GROUP));
    let truth = |id| Vouched { role: Some(Role::Device), id: Some(id), address: "192.0.2.1:1".into() };
    let core = Vouched { role: Some(Role::Core), id: None, address: "192.0.2.1:1".into() };
    let cases = [
        ("nobody", None, Some(truth(good.identity.id)), false),
        ("nobody, vouched for as core", None, Some(core.clone()), false),
        ("a CA of its own", Some(forged.own(&twin.ca)), Some(truth(good.identity.id)), false),
        ("that, with the real CA above it", Some(forged.own(&scene.tenant.ca)), Some(truth(good.identity.id)), false),
        ("another node", Some(fellow.own(&scene.tenant.ca)), Some(truth(good.identity.id)), false),
        ("a revoked device as another", Some(revoked.own(&scene.tenant.ca)), Some(truth(good.identity.id)), false),
        ("a revoked device as core", Some(revoked.own(&scene.tenant.ca)), Some(core.clone()), false),
        ("a good device as a revoked one", Some(good.own(&scene.tenant.ca)), Some(truth(revoked.identity.id)), true),
        ("a good device as nobody", Some(good.own(&scene.tenant.ca)), None, true),
    ];
    let mut refused = 0.0;
    for (case, own, vouched, welcome) in cases {
        let opened = scene.liar.block_on(session(&scene.tenant, &mux, own.as_ref(), vouched));
        assert_eq!(opened.is_ok(), welcome, "{case}: {:?}", opened.err());
        refused += f64::from(u8::from(!welcome));
    }
    wait_until("the node has counted the refusals", SOON, || {
        scene.metric("node", "hedgerow_node_sessions_refused_total", "") >= refused
    });
    assert!(scene.metric("node", "hedgerow_node_sessions_refused_total", "revoked") >= 1.0);
}

/// A session to the node over a stream that the relay opens, used as far as its first answer.
async fn session(tenant: &Tenant, mux: &Channel, own: Option<&Own>, vouched: Option<Vouched>) -> Result<(), Fault> {
    let to = Destination { tenant: tenant.id.clone(), origin: Origin::Proxy, group: None, instance: None, node: None };
    let stream = mux.open(&LinkOpen::Through { to, vouched, trace: None }).await?;
    let config = tls::to_tenant(tenant.ca.clone(), Role::Node, None, own, &[ALPN_SESSION])?;
    let (scope, timers, instance) = (Scope::new(), Timers::default(), InstanceId::from_random(clock::random()));
    lane::Endpoint::new(tenant.ca.clone(), instance, timers, scope)
        .open(stream, config, tls::any_name())
        .await
        .map(|_| ())
}

#[test]
fn n04_a_node_serves_no_origin_that_is_not_its_own_and_no_other_tenant() {
    let mut scene = Scene::new();
    let (node, device) = pair(&mut scene, false);
    let mux = scene.link_of(node).link.mux;
    let through = |tenant: &str, origin| LinkOpen::Through {
        to: Destination { tenant: tenant.parse().unwrap(), origin, group: None, instance: None, node: None },
        vouched: Some(Vouched { role: Some(Role::Core), id: None, address: String::new() }),
        trace: None,
    };
    for (header, code) in [
        (through(TENANT, Origin::Core), Code::NoRoute),
        (through(TENANT, Origin::Bws), Code::NoRoute),
        (through("S99999999", Origin::Proxy), Code::NoRoute),
        (LinkOpen::Service { service: Service::PutConfig }, Code::Protocol),
    ] {
        let fault = scene.liar.block_on(mux.open(&header)).unwrap_err();
        assert_eq!(fault.code, code, "{header:?}: {fault}");
    }
    let other = scene.link_of(device.id).link.mux;
    let opened = scene.liar.block_on(tokio_timeout(other.open(&through(TENANT, Origin::Proxy))));
    assert!(opened.is_none_or(|o| o.is_err()), "a device serves nothing");
    scene.visit_well(&device);
}

async fn tokio_timeout<F: Future>(future: F) -> Option<F::Output> {
    tokio::time::timeout(Duration::from_secs(1), future).await.ok()
}

// ---- swapped lanes -------------------------------------------------------------------------------------------------

#[test]
fn n04_a_lane_to_another_node_or_process_than_the_one_named_is_noticed() {
    let mut scene = Scene::new();
    let (node, device) = pair(&mut scene, true);
    let config = scene.tenant.node_config(1, DAY, scene.site.port, &[]);
    let second = scene.node("second", GROUP, &config);
    scene.liar.lie(|l| (l.called, l.named) = (Some(second), Some(node)));
    // The lane is refused; the link stream then leads to any node of the group, which is allowed.
    scene.visit_well(&device);
    scene.wait_for_log("device", "it names another server than the one asked for");

    let config = scene.tenant.device_config(1, DAY, GROUP);
    let fresh = scene.device("fresh", &config, true);
    let instance = InstanceId::from_random([9; 16]);
    scene.liar.lie(|l| (l.called, l.named, l.named_instance) = (Some(node), None, Some(instance)));
    scene.visit_well(&fresh);
    scene.wait_for_log("fresh", "another process than the relay named");
    scene.assert_nothing_learnt();
}

#[test]
fn n04_a_node_of_another_group_is_not_taken_for_one_of_the_group_asked_for() {
    let mut scene = Scene::new();
    let (_, device) = pair(&mut scene, true);
    let config = scene.tenant.node_config(1, DAY, scene.site.port, &[]);
    let elsewhere = scene.node("elsewhere", "munich", &config);
    scene.liar.lie(|l| l.called = Some(elsewhere));
    assert_eq!(scene.visit(&device), None, "the other group's node was used:\n{}", scene.log("elsewhere"));
    scene.wait_for_log("device", "another group");
    let config = scene.tenant.device_config(1, DAY, GROUP);
    let by_link = scene.device("by-link", &config, false);
    assert_eq!(scene.visit(&by_link), None);
    scene.liar.repent();
    scene.kill("elsewhere");
    wait_until("the other group's node has gone", SOON, || {
        scene.liar.links().iter().all(|k| k.entity != Some(elsewhere))
    });
    scene.visit_well(&device);
}

#[test]
fn n04_crossed_lanes_give_nobody_the_rights_of_another() {
    let mut scene = Scene::new();
    let (_, first) = pair(&mut scene, true);
    let config = scene.tenant.device_config(1, DAY, GROUP);
    let second = scene.device("second", &config, true);
    scene.liar.lie(|l| l.lanes_crossed = true);
    let (scene_ref, first_ref, second_ref) = (&scene, &first, &second);
    std::thread::scope(|scope| {
        let one = scope.spawn(move || scene_ref.visit(first_ref));
        let two = scope.spawn(move || scene_ref.visit(second_ref));
        for visit in [one, two] {
            let reading = visit.join().unwrap().expect("both ends are what they should be: nothing is wrong yet");
            assert!(reading.check(&scene_ref.site.down, "crossed"));
        }
    });
    let sessions = scene.json("node", "/sessions");
    let mut devices: Vec<&str> = sessions.as_array().unwrap().iter().filter_map(|s| s["device"].as_str()).collect();
    devices.sort_unstable();
    let mut wanted = [first.id.to_string(), second.id.to_string()];
    wanted.sort();
    assert_eq!(devices, wanted, "each session belongs to the certificate that opened it: {sessions:#}");
    scene.assert_nothing_learnt();
}

#[test]
fn n04_two_devices_joined_with_each_other_notice_and_go_another_way() {
    let mut scene = Scene::new();
    let (_, first) = pair(&mut scene, true);
    let config = scene.tenant.device_config(1, DAY, GROUP);
    let second = scene.device("second", &config, true);
    scene.liar.lie(|l| l.devices_joined = true);
    let (scene_ref, first_ref, second_ref) = (&scene, &first, &second);
    std::thread::scope(|scope| {
        for device in [first_ref, second_ref] {
            scope.spawn(move || {
                let reading = scene_ref.visit(device).expect("the link stream is honest");
                assert!(reading.check(&scene_ref.site.down, "joined"));
            });
        }
    });
    for name in ["device", "second"] {
        scene.wait_for_log(name, "no lane on this network");
    }
    scene.assert_nothing_learnt();
}

#[test]
fn n04_one_ticket_used_twice_makes_one_session() {
    let mut scene = Scene::new();
    let (_, device) = pair(&mut scene, true);
    scene.liar.lie(|l| l.called_twice = true);
    scene.visit_well(&device);
    wait_until("the node has brought both legs", SOON, || scene.liar.count(|c| &c.node_legs) >= 2);
    assert_eq!(scene.json("node", "/sessions").as_array().unwrap().len(), 1);
}

// ---- messages that should not come ---------------------------------------------------------------------------------

#[test]
fn n04_floods_of_calls_offers_and_wakes_are_bounded_and_harm_nobody() {
    let mut scene = Scene::new();
    let (node, device) = pair(&mut scene, false);
    scene.visit_well(&device);
    scene.liar.lie(|l| l.legs_held = true);
    let (to_node, to_device) = (scene.link_of(node).link.mux, scene.link_of(device.id).link.mux);
    let vouched = Vouched { role: Some(Role::Device), id: None, address: "192.0.2.1:1".into() };
    let call = |origin| LaneCall { ticket: Ticket::from_random(clock::random()), origin, vouched: vouched.clone() };
    let calls = 2000;
    for _ in 0..calls {
        flood(&to_node, call(Origin::Proxy).into());
        flood(&to_node, call(Origin::Core).into());
    }
    wait_until("the node has refused what is too much", SOON, || {
        scene.metric("node", "hedgerow_node_limited_total", "handshakes") >= (calls - HANDSHAKES) as f64
    });
    assert_eq!(scene.liar.count(|c| &c.node_legs), HANDSHAKES as u64, "connections that a relay can make a node open");
    assert!(scene.metric("node", "hedgerow_node_sessions_refused_total", "no_route") >= calls as f64);

    // Streams that begin no hand-shake: the node's places for those are taken, and no more.
    let opened = scene.liar.block_on(async {
        let to = Destination {
            tenant: scene.tenant.id.clone(),
            origin: Origin::Proxy,
            group: None,
            instance: None,
            node: None,
        };
        let header = LinkOpen::Through { to, vouched: None, trace: None };
        let mut opened = Vec::new();
        for _ in 0..4 * HANDSHAKES {
            match to_node.open(&header).await {
                Ok(stream) => opened.push(stream),
                Err(fault) => assert_eq!(fault.code, Code::Limited, "{fault}"),
            }
        }
        opened
    });
    assert!(opened.len() <= HANDSHAKES, "{} hand-shakes at once", opened.len());
    drop(opened);

    // Answers to questions that nobody asked, and messages that go the other way.
    let ticket = Ticket::from_random([1; 20]);
    let offer = LaneOffer { request: 7, ticket, node, instance: InstanceId::from_random([2; 16]) };
    for _ in 0..1000 {
        flood(&to_device, offer.clone().into());
        flood(&to_node, offer.clone().into());
    }
    let before = scene.liar.count(|c| &c.to_core);
    let (since, mut wakes) = (Instant::now(), 0);
    while since.elapsed() < Duration::from_secs(1) {
        for mux in [&to_node, &to_device] {
            mux.send_control(&Wake { roles: vec![], ids: vec![] }.into()).unwrap();
        }
        wakes += 1;
        std::thread::sleep(Duration::from_millis(2));
    }
    let asked = scene.liar.count(|c| &c.to_core) - before;
    // Each of the two asks at most every 100 ms, by its link and once more by CONNECT.
    assert!((1..=50).contains(&asked), "{asked} requests to the core for {wakes} false alarms");
    assert!(!to_node.is_closed() && !to_device.is_closed());
    scene.liar.repent();
    scene.visit_well(&device);
}

/// Sends as soon as there is room.
fn flood(mux: &Channel, message: Control) {
    while let Err(fault) = mux.send_control(&message) {
        assert_eq!(fault.code, Code::Limited, "{fault}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn n04_a_relay_that_sends_its_peers_to_foreign_hosts_is_not_followed() {
    let mut scene = Scene::new();
    let (_, device) = pair(&mut scene, true);
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    foreign.set_nonblocking(true).unwrap();
    let away = GoAway {
        fault: Fault::new(Code::Draining, "come \u{1b}[2Jback\nsoon"),
        return_after_ms: 0,
        alternatives: vec![foreign.local_addr().unwrap().to_string()],
    };
    let before = scene.liar.count(|c| &c.links);
    for role in [Role::Node, Role::Device] {
        scene.liar.send_away(role, &away);
    }
    wait_until("both are back", SOON, || scene.liar.count(|c| &c.links) >= before + 2);
    scene.visit_well(&device);
    assert!(foreign.accept().is_err(), "somebody dialled where the relay pointed");
    for name in ["node", "device"] {
        assert!(scene.log(name).contains("soon"), "{}", scene.log(name));
        assert!(!scene.log(name).contains('\u{1b}'), "the relay's words reach the log as they came");
    }
}

#[test]
fn n04_a_relay_that_lies_about_its_name_gets_no_lane_and_no_harm_is_done() {
    let mut scene = Scene::new();
    scene.liar.lie(|l| l.relay_name = Some("x y\u{1b}[2J".into()));
    let (_, device) = pair(&mut scene, true);
    scene.visit_well(&device);
    scene.wait_for_log("device", "no lane on this network");
    assert!(!scene.log("device").contains('\u{1b}'));
    let status = scene.get("device", "/status");
    assert!(!status.contains('\u{1b}'), "{status}");
}

// ---- held back -----------------------------------------------------------------------------------------------------

#[test]
fn n04_configuration_that_the_relay_holds_back_runs_out_at_node_and_device() {
    // There is no core: whoever asks is told so. What each has on disk is good for some seconds.
    let lifetime = 5;
    let mut scene = Scene::new();
    let config = scene.tenant.node_config(1, lifetime, scene.site.port, &[]);
    scene.node("node", GROUP, &config);
    let device = scene.device("device", &scene.tenant.device_config(1, DAY, GROUP), true);
    let short = scene.device("short", &scene.tenant.device_config(1, lifetime, GROUP), false);
    let since = Instant::now();
    scene.visit_well(&device);
    let open = device.connect(scene.site.port).expect("still allowed");
    scene.wait_for_log("node", "the configuration has expired");
    assert!(since.elapsed() < Duration::from_secs(lifetime + 4));
    assert_eq!(scene.visit(&device), None, "the node serves nobody");
    wait_until("what ran is cut", SOON, || std::io::Write::write(&mut &open, &[0; 4096]).is_err());
    assert_eq!(scene.visit(&short), None, "the device sends nothing");
    assert!(scene.get("node", "/readyz").contains("configuration"));
    scene.assert_nothing_learnt();
}

#[test]
fn n04_an_old_expired_or_foreign_configuration_is_refused_even_from_who_holds_a_cores_key() {
    let mut scene = Scene::new();
    let (tenant, port) = (&scene.tenant, scene.site.port);
    let (node_now, device_now) = (tenant.node_config(5, DAY, port, &[]), tenant.device_config(5, DAY, GROUP));
    let cases = [
        ("node", tenant.node_config(4, DAY, port, &[]), "is older (1.4) than the one in force (1.5)"),
        ("device", tenant.device_config(4, DAY, GROUP), "is older (1.4) than the one in force (1.5)"),
        ("node", tenant.node_config(6, 0, port, &[]), "not valid at this time"),
        ("device", tenant.device_config(6, 0, GROUP), "not valid at this time"),
        // Each other's: of an old version, because whoever it is for asks by itself now and then.
        ("node", tenant.device_config(3, DAY, GROUP), "not for this peer"),
        ("device", tenant.node_config(3, DAY, port, &[]), "the configuration cannot be read"),
        ("node", Tenant::new(TENANT).node_config(8, DAY, 1, &[]), "signature does not hold"),
        ("device", Tenant::new(TENANT).device_config(8, DAY, "munich"), "signature does not hold"),
    ];
    let core = tenant.issue(Role::Core, GROUP);
    let chain = core.own(&tenant.ca).chain;
    scene.node("node", GROUP, &node_now);
    let device = scene.device("device", &device_now, true);
    for (name, config, words) in cases {
        let body = minicbor::to_vec(&config).unwrap();
        let imposter = Imposter::new(chain.clone(), &core.signing_key(), Act::Serve(body));
        scene.liar.lie(|l| l.core = Answer::Imposter(imposter));
        let role = if name == "node" { Role::Node } else { Role::Device };
        let to = scene.liar.wait_for_link(name, |k| k.role == role).link.mux;
        to.send_control(&Wake { roles: vec![], ids: vec![] }.into()).unwrap();
        scene.wait_for_log(name, words);
    }
    scene.visit_well(&device);
    assert!(scene.get("device", "/status").contains("\"1.5\""), "{}", scene.get("device", "/status"));
    assert!(scene.get("node", "/node").contains("\"1.5\""), "{}", scene.get("node", "/node"));
}
