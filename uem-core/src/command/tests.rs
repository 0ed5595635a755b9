//! A device and its queue, with answers that are lost and questions that are repeated.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn id(n: usize) -> EntityId {
    let mut bytes = [9; 16];
    bytes[15] = u8::try_from(n).unwrap();
    EntityId::from_random(bytes)
}

fn command(n: usize, kind: Kind, expires: u64) -> Command {
    Command {
        tenant: "S12345678".parse().unwrap(),
        id: id(n),
        device: id(200),
        number: n as u64,
        kind,
        properties: Properties::default(),
        state: State::Queued,
        created: UnixTime(0),
        expires: UnixTime(expires),
        sent: 0,
        not_before: None,
        completed: None,
        error: None,
        result: Map::new(),
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    (0..Kind::ALL.len()).prop_map(|n| Kind::ALL[n])
}

/// What happens, one after the other.
#[derive(Debug, Clone)]
enum Event {
    /// The device asks, and the answer to it arrives or not.
    Ask(bool),
    /// The device tells of the command it has, and that arrives or not.
    Tell(Reply, bool),
    /// A command is given.
    Give(Kind),
    /// An administrator takes one back.
    Cancel(usize),
    /// Seconds go by.
    Wait(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let reply = prop_oneof![
        4 => Just(Reply::Done { result: Map::new() }),
        1 => Just(Reply::Failed { error: "no".into() }),
        1 => Just(Reply::NotNow),
    ];
    let event = prop_oneof![
        4 => any::<bool>().prop_map(Event::Ask),
        4 => (reply, proptest::bool::weighted(0.7)).prop_map(|(reply, heard)| Event::Tell(reply, heard)),
        2 => kinds().prop_map(Event::Give),
        1 => (0..40usize).prop_map(Event::Cancel),
        1 => (0..100u64).prop_map(Event::Wait),
    ];
    proptest::collection::vec(event, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn p22_every_command_comes_to_one_end_and_is_carried_out_at_most_once(events in events()) {
        let (mut all, mut now) = (Vec::<Command>::new(), UnixTime(1000));
        // The device: what it has in hand, and what it has carried out already.
        let (mut hand, mut done) = (None::<EntityId>, BTreeMap::<EntityId, u32>::new());
        for event in events {
            let before = all.clone();
            match event {
                Event::Give(kind) => {
                    let n = all.len();
                    all.push(command(n, kind, now.0 + 300));
                }
                Event::Wait(seconds) => now = now.plus(seconds),
                Event::Cancel(n) => {
                    if let Some(cancelled) = all.get(n).and_then(|c| c.cancelled(now)) {
                        prop_assert!(!done.contains_key(&cancelled.id) || all[n].state == State::NotNow);
                        all[n] = cancelled;
                    }
                }
                Event::Ask(heard) => {
                    for c in &mut all {
                        if let Some(expired) = c.expired(now) {
                            *c = expired;
                        }
                    }
                    let found = next(&all, &BTreeSet::new(), now).map(|c| c.id);
                    let under_way = |erases| {
                        all.iter().filter(|c| c.state == State::Sent && c.kind.ends_the_device() == erases).count()
                    };
                    prop_assert!(under_way(true) <= 1 && under_way(false) <= 1, "one at a time, and an erasure");
                    let Some(found) = found else { continue };
                    let c = all.iter_mut().find(|c| c.id == found).unwrap();
                    *c = c.sent();
                    if heard {
                        hand = Some(found);
                    }
                }
                Event::Tell(reply, heard) => {
                    let Some(id) = hand else { continue };
                    if reply != Reply::NotNow {
                        *done.entry(id).or_default() += u32::from(!done.contains_key(&id));
                    }
                    let reply = if done.contains_key(&id) { Reply::Done { result: Map::new() } } else { reply };
                    if heard {
                        let c = all.iter_mut().find(|c| c.id == id).unwrap();
                        if let Some(answered) = c.answered(reply, now) {
                            *c = answered;
                        }
                        hand = None;
                    }
                }
            }
            // What has come to its end stays as it is.
            for (was, is) in before.iter().zip(&all).filter(|(was, _)| !was.state.is_open()) {
                // But what was erased late is erased.
                let is_late = was.state == State::Expired && is.state == State::Succeeded && was.kind.ends_the_device();
                prop_assert!(was == is || is_late && was.sent > 0, "{:?} {:?}", was, is);
            }
        }
        for (id, times) in &done {
            prop_assert_eq!(*times, 1);
            let c = all.iter().find(|c| c.id == *id).unwrap();
            prop_assert!(c.sent > 0 && c.state != State::Queued);
        }
        for c in &all {
            prop_assert_eq!(c.completed.is_some(), !c.state.is_open());
        }
    }

    #[test]
    fn p22_administration_comes_first_and_older_before_newer(given in proptest::collection::vec(kinds(), 0..20)) {
        let mut all: Vec<_> = given.iter().enumerate().map(|(n, kind)| command(n, *kind, 9999)).collect();
        let mut order = Vec::new();
        while let Some(found) = next(&all, &BTreeSet::new(), UnixTime(1)).map(|c| c.id) {
            let c = all.iter_mut().find(|c| c.id == found).unwrap();
            order.push((!c.kind.ends_the_device(), c.kind.class(), c.number));
            *c = c.sent().answered(Reply::Done { result: Map::new() }, UnixTime(1)).unwrap();
        }
        prop_assert_eq!(order.len(), given.len());
        prop_assert!(order.is_sorted(), "{:?}", order);
    }
}

#[test]
fn p22_what_was_sent_is_sent_again_until_it_is_answered() {
    let mut all = vec![command(1, Kind::RequestDeviceInfo, 100)];
    all[0] = next(&all, &BTreeSet::new(), UnixTime(1)).unwrap().sent();
    all.push(command(2, Kind::LockDevice, 100));
    assert_eq!(next(&all, &BTreeSet::new(), UnixTime(2)).unwrap().id, id(1), "administration waits for it too");
    assert!(all[0].cancelled(UnixTime(2)).is_none(), "the device may have it");
    all[0] = all[0].answered(Reply::NotNow, UnixTime(2)).unwrap();
    assert_eq!(next(&all, &BTreeSet::new(), UnixTime(3)).unwrap().id, id(2), "others go on");
    all[1] = all[1].sent().answered(Reply::Failed { error: "a\u{1b}b".into() }, UnixTime(3)).unwrap();
    assert_eq!((all[1].state, all[1].error.as_deref()), (State::Failed, Some("ab")));
    assert!(next(&all, &BTreeSet::new(), UnixTime(3)).is_none(), "it is left alone for a while");
    assert_eq!(next(&all, &BTreeSet::new(), UnixTime(2 + NOT_NOW_SECONDS)).unwrap().id, id(1));
    assert!(next(&all, &[id(1)].into(), UnixTime(2 + NOT_NOW_SECONDS)).is_none());
    assert!(next(&all, &BTreeSet::new(), UnixTime(100)).is_none(), "its time is over");
    assert_eq!(all[0].expired(UnixTime(100)).unwrap().state, State::Expired);
    assert!(all[0].answered(Reply::NotNow, UnixTime(4)).is_some() && all[0].expired(UnixTime(99)).is_none());
}

#[test]
fn p22_an_erasure_waits_for_no_answer_to_another_command() {
    let mut all = vec![command(1, Kind::RequestDeviceInfo, 100).sent(), command(2, Kind::DeleteWorkSpaceData, 100)];
    let found = next(&all, &BTreeSet::new(), UnixTime(1)).unwrap();
    assert_eq!(found.id, id(2));
    all[1] = found.sent().answered(Reply::NotNow, UnixTime(1)).unwrap();
    assert_eq!(next(&all, &BTreeSet::new(), UnixTime(2)).unwrap().id, id(1), "put off, others go on");
}

#[test]
fn p22_answers_have_a_bound() {
    let large = Map::from_iter([("packages".to_owned(), Value::String("x".repeat(MAX_CONTENT)))]);
    let failed =
        command(1, Kind::ListApplications, 9).sent().answered(Reply::Done { result: large }, UnixTime(1)).unwrap();
    assert!(failed.state == State::Failed && failed.result.is_empty() && failed.error.unwrap().contains("larger"));
}

#[test]
fn p22_kinds_are_read_as_they_are_written_and_as_people_type_them() {
    for kind in Kind::ALL {
        assert_eq!(kind.to_string().parse::<Kind>().unwrap(), kind);
        assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
    }
    assert_eq!("lock-device".parse::<Kind>().unwrap(), Kind::LockDevice);
    assert!("explode".parse::<Kind>().unwrap_err().to_string().contains("lock-device"));
    for state in State::ALL {
        assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{}\"", state.as_str()));
    }
}
