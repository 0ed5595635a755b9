//! What a tunnel remembers: names of addresses, verdicts, datagrams in fragments.

use super::super::*;
use super::{NOW, policy, to};
use crate::ip::build::{V4, V6, fragment_header, ip, tcp};
use crate::ip::parse;
use proptest::prelude::*;

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;

fn name(text: &str) -> Vec<u8> {
    let mut out: Vec<u8> =
        text.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
    out.push(0);
    out
}

fn record(owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u16).to_be_bytes();
    [owner, &kind.to_be_bytes(), &[0, 1], &ttl.to_be_bytes(), &length, data].concat()
}

/// An answer about `asked` with these records; 0xc00c points at the name asked for.
fn answer(asked: &str, records: &[Vec<u8>]) -> Vec<u8> {
    let head = [0, 7, 0x81, 0x80, 0, 1, 0, records.len() as u8, 0, 0, 0, 0];
    [&head[..], &name(asked), &[0, 1, 0, 1], &records.concat()].concat()
}

const ASKED: &[u8] = &[0xc0, 12];

fn simple(asked: &str, address: [u8; 4], ttl: u32) -> Vec<u8> {
    answer(asked, &[record(ASKED, A, ttl, &address)])
}

fn names(learnt: &Learnt, address: &str) -> Vec<String> {
    learnt.of(ip(address)).map(str::to_owned).collect()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_rule_for_a_name_opens_the_addresses_that_it_was_told_to_have() {
    let policy = policy(&["deny secret.corp.example", "allow *.corp.example 443"]);
    let mut tunnel = Tunnel::new(100);
    let ask = |tunnel: &mut Tunnel, port| policy.outbound(&to("10.1.2.3", port), tunnel, NOW);
    assert_eq!(ask(&mut tunnel, 443), Err(Denied::Rule));
    tunnel.learn(&simple("Web.Corp.Example", [10, 1, 2, 3], 300), NOW);
    assert_eq!(ask(&mut tunnel, 443), Ok(()), "the earlier verdict is forgotten");
    assert_eq!(ask(&mut tunnel, 22), Err(Denied::Rule));
    tunnel.learn(&simple("evilcorp.example", [10, 1, 2, 3], 300), NOW);
    assert_eq!(ask(&mut tunnel, 443), Ok(()));
    tunnel.learn(&simple("secret.corp.example", [10, 1, 2, 3], 300), NOW);
    assert_eq!(ask(&mut tunnel, 443), Err(Denied::Rule), "the first rule that covers any of its names");
    assert_eq!(names(tunnel.names(), "10.1.2.3").len(), 3);
    assert_eq!(policy.outbound(&to("10.1.2.3", 443), &mut Tunnel::new(100), NOW), Err(Denied::Rule), "each for itself");
}

#[test]
fn a24_a_name_that_is_told_to_be_special_or_the_node_opens_nothing() {
    let policy = policy(&["allow *.corp.example"]).refusing(vec![(ip("10.1.0.1"), None)]);
    let mut tunnel = Tunnel::new(100);
    tunnel.learn(&simple("a.corp.example", [100, 100, 100, 200], 300), NOW);
    tunnel.learn(&simple("a.corp.example", [10, 1, 0, 1], 300), NOW);
    assert_eq!(policy.outbound(&to("100.100.100.200", 80), &mut tunnel, NOW), Err(Denied::Special));
    assert_eq!(policy.outbound(&to("10.1.0.1", 80), &mut tunnel, NOW), Err(Denied::OwnAddress));
    let denied = self::policy(&["deny 10.0.0.0/8", "allow *.corp.example"]);
    tunnel.learn(&simple("a.corp.example", [10, 1, 0, 2], 300), NOW);
    assert_eq!(denied.outbound(&to("10.1.0.2", 80), &mut tunnel, NOW), Err(Denied::Rule));
    let later = self::policy(&["allow *.corp.example", "deny 10.0.0.0/8"]);
    assert_eq!(later.outbound(&to("10.1.0.2", 80), &mut tunnel, NOW), Err(Denied::Rule), "wherever the rule stands");
}

#[test]
fn verdicts_end_with_the_name_and_with_the_policy() {
    let one = policy(&["allow *.corp.example", "allow 10.9.0.0/16"]);
    let mut tunnel = Tunnel::new(100);
    for (ttl, ends) in [(0, 60 + 300), (10, 60 + 300), (1000, 1300), (1 << 20, 3600 + 300), (1 << 31, 60 + 300)] {
        tunnel.learn(&simple("a.corp.example", [10, 1, 2, 3], ttl), NOW);
        let mut at = |seconds| one.outbound(&to("10.1.2.3", 80), &mut tunnel, NOW + secs(seconds));
        assert_eq!((at(0), at(ends - 1), at(ends)), (Ok(()), Ok(()), Err(Denied::Rule)), "{ttl}");
    }
    assert_eq!(one.outbound(&to("10.9.0.1", 80), &mut tunnel, NOW), Ok(()));
    assert_eq!(policy(&["deny *"]).outbound(&to("10.9.0.1", 80), &mut tunnel, NOW), Err(Denied::Rule));
    let refusing = one.clone().refusing(vec![(ip("10.9.0.1"), None)]);
    assert_eq!(one.outbound(&to("10.9.0.1", 80), &mut tunnel, NOW), Ok(()));
    assert_eq!(refusing.outbound(&to("10.9.0.1", 80), &mut tunnel, NOW), Err(Denied::OwnAddress));
    assert_eq!(
        refusing.allowing_dns(vec!["10.9.0.1:80".parse().unwrap()]).outbound(&to("10.9.0.1", 80), &mut tunnel, NOW),
        Ok(())
    );
}

#[test]
fn aliases_lead_from_the_name_asked_for_to_the_addresses() {
    let mut learnt = Learnt::new(100);
    let records = [
        record(&name("third.example"), A, 300, &[10, 0, 0, 3]),
        record(&name("Second.example"), CNAME, 300, &name("third.example")),
        record(ASKED, CNAME, 300, &name("second.EXAMPLE")),
        record(&name("other.example"), A, 300, &[10, 0, 0, 4]),
        record(&name("third.example"), AAAA, 300, &"2001:db8::3".parse::<Ipv6Addr>().unwrap().octets()),
        record(ASKED, 16, 300, b"\x04text"),
    ];
    learnt.learn(&answer("first.example", &records), NOW);
    assert_eq!(names(&learnt, "10.0.0.3"), ["first.example"]);
    assert_eq!(names(&learnt, "2001:db8::3"), ["first.example"]);
    assert!(names(&learnt, "10.0.0.4").is_empty(), "nobody asked for it");
    assert_eq!(learnt.len(), 2);
    let short = [record(ASKED, CNAME, 61, &name("b.example")), record(&name("b.example"), A, 3000, &[10, 0, 0, 5])];
    learnt.learn(&answer("a.example", &short), NOW);
    learnt.expire(NOW + secs(361));
    assert!(names(&learnt, "10.0.0.5").is_empty(), "an alias is good for its own time only");
}

#[test]
fn a24_answers_that_lie_loop_or_are_none_teach_nothing() {
    let good = simple("a.corp.example", [10, 0, 0, 1], 300);
    let mut teach = Vec::new();
    for length in 0..good.len() {
        teach.push(good[..length].to_vec());
    }
    for (at, value) in [(2, 0x01), (2, 0x89), (3, 0x83), (5, 0), (5, 2), (7, 2), (12, 0xc0), (12, 0x41)] {
        let mut bad = good.clone();
        bad[at] = value;
        teach.push(bad);
    }
    // Pointers to themselves, forwards, and in a circle.
    teach.push(answer("a.corp.example", &[record(&[0xc0, 32], A, 300, &[10, 0, 0, 1])]));
    teach.push(answer("a.corp.example", &[record(&[0xc0, 40], A, 300, &[10, 0, 0, 1])]));
    teach.push(answer("a.corp.example", &[record(&[1, b'x', 0xc0, 32], A, 300, &[10, 0, 0, 1])]));
    teach.push(with_long_names(5));
    teach.push(answer("a.corp.example", &[record(ASKED, A, 300, &[10, 0, 0])]));
    teach.push(answer("a.corp.example", &[record(ASKED, AAAA, 300, &[10, 0, 0, 1])]));
    teach.push(answer("a b.example", &[record(ASKED, A, 300, &[10, 0, 0, 1])]));
    let mut dotted = simple("axcorp.example", [10, 0, 0, 1], 300);
    dotted[14] = b'.';
    teach.push(dotted);
    let circle = [record(ASKED, CNAME, 1, &name("b.example")), record(&name("b.example"), CNAME, 1, ASKED)];
    teach.push(answer("a.example", &circle));
    let mut learnt = Learnt::new(100);
    for message in teach {
        learnt.learn(&message, NOW);
        assert!(learnt.is_empty(), "{message:02x?}");
    }
    for good in [good, with_long_names(3)] {
        let mut learnt = Learnt::new(100);
        learnt.learn(&good, NOW);
        assert_eq!(names(&learnt, "10.0.0.1"), ["a.corp.example"]);
    }
}

/// An answer with names that each have one more label of 63 bytes than the one before, to which they point.
fn with_long_names(count: usize) -> Vec<u8> {
    let (mut records, mut before): (Vec<Vec<u8>>, usize) = (Vec::new(), 12);
    for _ in 0..count {
        let here = 12 + 20 + records.concat().len();
        let owner = [&[63; 64][..], &(0xc000 | before as u16).to_be_bytes()].concat();
        records.push(record(&owner, 16, 300, b""));
        before = here;
    }
    records.push(record(ASKED, A, 300, &[10, 0, 0, 1]));
    answer("a.corp.example", &records)
}

#[test]
fn a24_dns_answers_without_end_fill_a_bounded_room() {
    let mut learnt = Learnt::new(50);
    for number in 0..=255u8 {
        let records: Vec<_> = (0..200).map(|n| record(ASKED, A, 100 + u32::from(n), &[10, 0, number, n])).collect();
        learnt.learn(&answer("a.example", &records), NOW);
        assert!(learnt.len() <= 50);
    }
    assert!(names(&learnt, "10.0.255.199").is_empty(), "no more than 64 of one answer");
    assert_eq!(names(&learnt, "10.0.255.63"), ["a.example"], "the soonest to expire went");
    for number in 0..100 {
        learnt.learn(&simple(&format!("n{number}.example"), [10, 1, 1, 1], 3000 + number), NOW);
    }
    assert_eq!(names(&learnt, "10.1.1.1").len(), 16);
    assert!(names(&learnt, "10.1.1.1").contains(&"n99.example".to_owned()));
    let mut none = Learnt::new(0);
    none.learn(&simple("a.example", [10, 1, 1, 1], 300), NOW);
    assert!(none.is_empty());
    learnt.expire(NOW + secs(10_000));
    assert!(learnt.is_empty() && learnt.of(ip("10.1.1.1")).next().is_none());
}

#[test]
fn an_answer_that_comes_again_prolongs_and_never_shortens() {
    let mut learnt = Learnt::new(50);
    learnt.learn(&simple("a.example", [10, 1, 1, 1], 3600), NOW);
    learnt.learn(&simple("a.example", [10, 1, 1, 1], 60), NOW);
    learnt.expire(NOW + secs(3899));
    assert_eq!(learnt.len(), 1);
    learnt.learn(&simple("a.example", [10, 1, 1, 1], 60), NOW + secs(3899));
    learnt.expire(NOW + secs(4258));
    assert_eq!(learnt.len(), 1);
    learnt.expire(NOW + secs(4259));
    assert_eq!(learnt.len(), 0);
}

fn part(id: u16, offset: u16, port: u16) -> Summary {
    let payload = match offset {
        0 => tcp(1, port, 0, &[], &[0; 44]),
        _ => vec![0; 64],
    };
    let flags = 0x2000 | (offset / 8);
    parse(&V4 { protocol: protocol::TCP, id, flags, payload, ..V4::default() }.bytes()).unwrap()
}

#[test]
fn a24_later_fragments_follow_a_first_that_passed_and_are_not_laid_over_it() {
    let policy = policy(&["allow 10.1.0.0/16 443"]);
    let mut tunnel = Tunnel::new(10);
    let mut ask =
        |id, offset, port, seconds| policy.outbound(&part(id, offset, port), &mut tunnel, NOW + secs(seconds));
    assert_eq!(ask(1, 64, 443, 0), Err(Denied::Fragment), "before its first");
    assert_eq!(ask(1, 0, 443, 0), Ok(()));
    assert_eq!(ask(1, 64, 443, 1), Ok(()));
    assert_eq!(ask(1, 128, 443, 29), Ok(()));
    assert_eq!(ask(1, 56, 443, 1), Err(Denied::Fragment), "laid over the first");
    assert_eq!(ask(2, 64, 443, 1), Err(Denied::Fragment), "of another datagram");
    assert_eq!(ask(3, 0, 22, 1), Err(Denied::Rule));
    assert_eq!(ask(3, 64, 22, 1), Err(Denied::Fragment));
    assert_eq!(ask(1, 0, 22, 1), Err(Denied::Rule), "another first of the same number");
    assert_eq!(ask(1, 64, 443, 30), Err(Denied::Fragment), "too late");
    assert_eq!(ask(1, 0, 443, 40), Ok(()));
    assert_eq!(ask(1, 64, 443, 41), Ok(()));
    assert_eq!(policy.inbound(&part(1, 64, 443), &mut tunnel, NOW + secs(41)), Err(Denied::Fragment), "the other way");
}

#[test]
fn a24_firsts_without_end_fill_a_bounded_room() {
    let policy = policy(&["allow *"]);
    let mut tunnel = Tunnel::new(10);
    for id in 0..1000 {
        assert_eq!(policy.outbound(&part(id, 0, 443), &mut tunnel, NOW), Ok(()));
    }
    let passing = (0..1000).filter(|id| policy.outbound(&part(*id, 64, 443), &mut tunnel, NOW).is_ok());
    assert_eq!(passing.collect::<Vec<_>>(), (936..1000).collect::<Vec<_>>());
}

#[test]
fn fragments_of_ipv6_belong_together_whatever_headers_they_begin_with() {
    let policy = policy(&["allow 2001:db8::/32 443"]);
    let mut tunnel = Tunnel::new(10);
    let options = [&[protocol::TCP, 0][..], &[0; 6]].concat();
    let first = V6 {
        next: 44,
        extensions: [fragment_header(60, 0, true, 5), options].concat(),
        payload: tcp(1, 443, 0, &[], &[0; 4]),
        ..V6::default()
    };
    let later = |offset| {
        let extensions = fragment_header(60, offset, false, 5);
        parse(&V6 { next: 44, extensions, payload: vec![0; 8], ..V6::default() }.bytes()).unwrap()
    };
    assert_eq!(policy.outbound(&parse(&first.bytes()).unwrap(), &mut tunnel, NOW), Ok(()));
    assert_eq!(policy.outbound(&later(32), &mut tunnel, NOW), Ok(()));
    assert_eq!(policy.outbound(&later(8), &mut tunnel, NOW), Err(Denied::Fragment), "over the ports");
}

#[test]
fn more_destinations_than_verdicts_are_remembered_are_served() {
    let policy = policy(&["allow 10.1.0.0/16 443"]);
    let mut tunnel = Tunnel::new(10);
    for round in 0..2 {
        for number in 0..600u16 {
            let [high, low] = number.to_be_bytes();
            let allowed = policy.outbound(&to(&format!("10.1.{high}.{low}"), 443), &mut tunnel, NOW);
            let denied = policy.outbound(&to(&format!("10.2.{high}.{low}"), 443), &mut tunnel, NOW);
            assert_eq!((allowed, denied), (Ok(()), Err(Denied::Rule)), "{round} {number}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn answers_of_any_content_never_panic_nor_grow(
        tail in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(vec![0xc0, 12, 0, 1, 5])], 0..200),
        whole: bool,
        count: u8,
    ) {
        let mut message = tail;
        if !whole {
            let mut head = answer("a.example", &[]);
            head[7] = count;
            head.extend(message);
            message = head;
        }
        let mut learnt = Learnt::new(5);
        learnt.learn(&message, NOW);
        prop_assert!(learnt.len() <= 5);
    }

    #[test]
    fn both_orders_of_the_names_stay_in_step(
        steps in prop::collection::vec((0..6u8, 0..6u8, 0..4000u32, 0..2000u64), 0..80),
    ) {
        let mut learnt = Learnt::new(8);
        let (mut now, mut model) = (NOW, std::collections::BTreeMap::new());
        for (host, address, ttl, pause) in steps {
            now += secs(pause);
            learnt.expire(now);
            model.retain(|_, ends| *ends > now);
            let known = (ip(&format!("10.0.0.{address}")), format!("n{host}.example"));
            let ends = now + secs(u64::from(ttl.clamp(60, 3600)) + 300);
            if !model.contains_key(&known) && model.len() == 8 {
                // Of two that expire at once either may go: ask which.
                let soonest = *model.values().min().unwrap();
                learnt.learn(&simple(&known.1, [10, 0, 0, address], ttl), now);
                let gone: Vec<_> =
                    model.keys().filter(|(a, n)| !learnt.of(*a).any(|name| name == n)).cloned().collect::<Vec<_>>();
                prop_assert_eq!(gone.len(), 1);
                prop_assert_eq!(model.remove(&gone[0]), Some(soonest));
            } else {
                learnt.learn(&simple(&known.1, [10, 0, 0, address], ttl), now);
            }
            let kept = model.entry(known).or_insert(ends);
            *kept = ends.max(*kept);
            prop_assert_eq!(learnt.len(), model.len());
            for (address, name) in model.keys() {
                prop_assert!(learnt.of(*address).any(|known| known == name));
            }
        }
    }
}
