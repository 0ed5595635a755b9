//! Attack line 24 against the policy, and its likeness with the proxy's rules.

mod memory;

use std::collections::BTreeSet;

use hedgerow_shared::EntityId;
use hedgerow_shared::verify::policy::{Action, TargetPattern};
use hedgerow_shared::verify::special::Faces;
use proptest::prelude::*;

use super::*;
use crate::ip::build::{V4, V6, icmp, ip, tcp, udp};
use crate::ip::parse;
use crate::pool::Pool;

const NOW: Duration = Duration::from_secs(1000);

pub(super) fn rule(text: &str) -> Rule {
    let mut words = text.split(' ');
    let action = match words.next() {
        Some("allow") => Action::Allow,
        Some("deny") => Action::Deny,
        other => panic!("{other:?}"),
    };
    let target = words.next().unwrap().parse().unwrap();
    let ports = words.next().unwrap_or("*").parse().unwrap();
    Rule { action, target, ports, group: None }
}

pub(super) fn policy(rules: &[&str]) -> Policy {
    Policy::new(&rules.iter().map(|text| rule(text)).collect::<Vec<_>>(), None)
}

/// A packet from a device, or with `In` from there to a device.
fn packet(way: Way, remote: IpAddr, protocol: u8, payload: Vec<u8>) -> Summary {
    let bytes = match remote {
        IpAddr::V4(remote) => {
            let device = Ipv4Addr::new(10, 64, 0, 5);
            let (source, destination) = if way == Way::Out { (device, remote) } else { (remote, device) };
            V4 { source, destination, protocol, payload, ..V4::default() }.bytes()
        }
        IpAddr::V6(remote) => {
            let device = "fd64::5".parse().unwrap();
            let (source, destination) = if way == Way::Out { (device, remote) } else { (remote, device) };
            V6 { source, destination, next: protocol, payload, ..V6::default() }.bytes()
        }
    };
    parse(&bytes).unwrap()
}

pub(super) fn to(remote: &str, port: u16) -> Summary {
    packet(Way::Out, ip(remote), protocol::TCP, tcp(40000, port, Summary::SYN, &[], b""))
}

fn from(remote: &str, port: u16) -> Summary {
    packet(Way::In, ip(remote), protocol::TCP, tcp(port, 40000, Summary::ACK, &[], b""))
}

fn out(policy: &Policy, packet: &Summary) -> Result<(), Denied> {
    policy.outbound(packet, &mut Tunnel::new(10), NOW)
}

fn into(policy: &Policy, packet: &Summary) -> Result<(), Denied> {
    policy.inbound(packet, &mut Tunnel::new(10), NOW)
}

#[test]
fn the_first_rule_decides_and_what_no_rule_allows_is_denied() {
    let policy = policy(&["deny 10.1.9.0/24", "allow 10.1.0.0/16 443,8000-8999", "allow 2001:db8::/32", "deny *"]);
    assert_eq!(out(&policy, &to("10.1.2.3", 443)), Ok(()));
    assert_eq!(out(&policy, &to("10.1.2.3", 8500)), Ok(()));
    assert_eq!(out(&policy, &to("2001:db8::3", 22)), Ok(()));
    for (remote, port) in [("10.1.9.1", 443), ("10.1.2.3", 22), ("10.2.0.1", 443), ("2001:db9::1", 443)] {
        assert_eq!(out(&policy, &to(remote, port)), Err(Denied::Rule), "{remote} {port}");
    }
    assert_eq!(out(&policy, &to("10.1.2.3", 0)), Err(Denied::Rule));
    assert_eq!(out(&self::policy(&["allow *"]), &to("10.1.2.3", 0)), Err(Denied::Rule), "no rule has port 0");
    assert_eq!(out(&self::policy(&[]), &to("10.1.2.3", 443)), Err(Denied::Rule));
    assert_eq!(out(&Policy::without_configuration(), &to("10.1.2.3", 443)), Err(Denied::NoConfiguration));
    assert_eq!(into(&Policy::without_configuration(), &from("10.1.2.3", 443)), Err(Denied::NoConfiguration));
}

#[test]
fn rules_of_other_groups_do_not_count() {
    let mut berlin = rule("allow 10.0.0.0/8");
    berlin.group = Some("berlin".parse().unwrap());
    let rules = [berlin, rule("allow 10.1.0.0/16")];
    let of = |group: Option<&str>| Policy::new(&rules, group.map(|group| group.parse().unwrap()).as_ref());
    assert_eq!(out(&of(Some("berlin")), &to("10.2.0.1", 1)), Ok(()));
    assert_eq!(out(&of(Some("paris")), &to("10.2.0.1", 1)), Err(Denied::Rule));
    assert_eq!(out(&of(None), &to("10.2.0.1", 1)), Err(Denied::Rule));
    assert_eq!(out(&of(None), &to("10.1.0.1", 1)), Ok(()));
}

#[test]
fn a24_special_addresses_are_not_opened_by_general_rules() {
    let policy = policy(&["allow *", "allow 0.0.0.0/0", "allow ::/0"]);
    for remote in [
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "240.0.0.1",
        "fd00:ec2::254",
        "fec0::1",
        "64:ff9b::127.0.0.1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001:db8::5efe:127.0.0.1",
        "::127.0.0.1",
    ] {
        assert_eq!(out(&policy, &to(remote, 80)), Err(Denied::Special), "{remote}");
    }
    let named = self::policy(&["allow 100.100.100.200 80"]);
    assert_eq!(out(&named, &to("100.100.100.200", 80)), Ok(()));
    assert_eq!(out(&named, &to("100.100.100.200", 81)), Err(Denied::Special));
    let inside = self::policy(&["allow ::127.0.0.1", "allow 2002:7f00:1::", "allow 127.0.0.1"]);
    assert_eq!(out(&inside, &to("::127.0.0.1", 80)), Err(Denied::Special), "a rule does not name what is inside");
    assert_eq!(out(&inside, &to("2002:7f00:1::", 80)), Err(Denied::Special));
}

#[test]
fn a24_the_source_of_another_device_is_refused() {
    let mut pool = Pool::new("10.64.0.0/24".parse().unwrap(), Some("fd64::/64".parse().unwrap())).unwrap();
    let [mine, other] = [1, 2].map(|number| pool.lease(EntityId::from_random([number; 16])).unwrap());
    let four = |source| parse(&V4 { source, ..V4::default() }.bytes()).unwrap();
    let six = |source| parse(&V6 { source, ..V6::default() }.bytes()).unwrap();
    let check = |packet| check_source(&packet, mine.v4, mine.v6);
    assert_eq!(check(four(mine.v4)), Ok(()));
    assert_eq!(check(six(mine.v6.unwrap())), Ok(()));
    for forged in [four(other.v4), four(pool.gateway().v4), six(other.v6.unwrap()), six("2001:db8::9".parse().unwrap())]
    {
        assert_eq!(check(forged), Err(Denied::SpoofedSource), "{forged:?}");
    }
    assert_eq!(check_source(&six(mine.v6.unwrap()), mine.v4, None), Err(Denied::SpoofedSource), "it was leased none");
}

#[test]
fn a24_devices_do_not_reach_each_other_unless_they_may() {
    let pools: Vec<Prefix> = ["10.64.0.0/16", "fd64::/64"].map(|text| text.parse().unwrap()).into();
    for remote in ["10.64.3.4", "10.64.0.1", "10.64.255.255", "fd64::9", "fd64::1:2:3:4"] {
        assert_eq!(check_destination(&to(remote, 1), &pools, false), Err(Denied::DeviceToDevice), "{remote}");
        assert_eq!(check_destination(&to(remote, 1), &pools, true), Ok(()));
    }
    assert_eq!(check_destination(&to("10.65.0.1", 1), &pools, false), Ok(()));
}

#[test]
fn a24_the_nodes_own_addresses_stay_closed_and_so_does_a_tunnel_in_the_tunnel() {
    let own = vec![(ip("10.1.0.1"), None), (ip("192.0.2.7"), Some(443)), (ip("2001:db8::7"), Some(443))];
    let policy = policy(&["allow *", "allow 10.1.0.1"]).refusing(own);
    for port in [1, 22, 443, 65535] {
        assert_eq!(out(&policy, &to("10.1.0.1", port)), Err(Denied::OwnAddress));
    }
    assert_eq!(out(&policy, &packet(Way::Out, ip("10.1.0.1"), 47, vec![0; 8])), Err(Denied::OwnAddress));
    assert_eq!(out(&policy, &packet(Way::Out, ip("10.1.0.1"), 1, icmp(8, 0, [0; 4], b""))), Err(Denied::OwnAddress));
    assert_eq!(out(&policy, &to("64:ff9b::10.1.0.1", 80)), Err(Denied::OwnAddress), "through NAT64");
    for relay in ["192.0.2.7", "2001:db8::7"] {
        assert_eq!(out(&policy, &to(relay, 443)), Err(Denied::OwnAddress));
        let quic = packet(Way::Out, ip(relay), protocol::UDP, udp(1, 443, b"a tunnel"));
        assert_eq!(out(&policy, &quic), Err(Denied::OwnAddress));
        assert_eq!(out(&policy, &to(relay, 80)), Ok(()), "what else is at that address");
        assert_eq!(into(&policy, &from(relay, 443)), Err(Denied::OwnAddress));
    }
    for tunnel in [4, 41, 47, 50, 115] {
        let inner = packet(Way::Out, ip("192.0.2.7"), tunnel, V4::default().bytes());
        assert_eq!(out(&policy, &inner), Err(Denied::OwnAddress), "{tunnel}");
        let elsewhere = packet(Way::Out, ip("10.1.2.3"), tunnel, V4::default().bytes());
        assert_eq!(out(&self::policy(&["allow 10.0.0.0/8 1-65534"]), &elsewhere), Err(Denied::Rule), "{tunnel}");
    }
    assert_eq!(
        out(&self::policy(&["allow *"]).refusing(vec![(ip("::ffff:10.1.0.1"), None)]), &to("10.1.0.1", 9)),
        Err(Denied::OwnAddress)
    );
}

#[test]
fn the_nodes_dns_servers_are_always_allowed_at_their_port() {
    let servers = vec!["10.1.0.53:53".parse().unwrap(), "[fd00:ec2::254]:5353".parse().unwrap()];
    let policy = policy(&["deny *"]).refusing(vec![(ip("10.1.0.53"), None)]).allowing_dns(servers);
    let query = packet(Way::Out, ip("10.1.0.53"), protocol::UDP, udp(4000, 53, b"?"));
    assert_eq!(out(&policy, &query), Ok(()));
    assert_eq!(out(&policy, &to("10.1.0.53", 53)), Ok(()));
    assert_eq!(out(&policy, &to("fd00:ec2::254", 5353)), Ok(()));
    let answer = packet(Way::In, ip("10.1.0.53"), protocol::UDP, udp(53, 4000, b"!"));
    assert_eq!(into(&policy, &answer), Ok(()));
    assert!(policy.is_dns_answer(&answer) && !policy.is_dns_answer(&query));
    assert!(!policy.is_dns_answer(&from("10.1.0.53", 53)), "TCP is not read");
    for (remote, port) in [("10.1.0.53", 54), ("10.1.0.54", 53)] {
        assert!(out(&policy, &to(remote, port)).is_err());
        let other = packet(Way::In, ip(remote), protocol::UDP, udp(port, 4000, b"!"));
        assert!(into(&policy, &other).is_err() && !policy.is_dns_answer(&other));
    }
}

#[test]
fn what_comes_from_the_intranet_comes_from_where_the_device_may_go() {
    let policy = policy(&["allow 10.1.0.0/16 443"]);
    assert_eq!(into(&policy, &from("10.1.2.3", 443)), Ok(()));
    assert_eq!(into(&policy, &from("10.1.2.3", 22)), Err(Denied::Rule));
    assert_eq!(into(&policy, &from("10.2.2.3", 443)), Err(Denied::Rule));
}

#[test]
fn echo_goes_where_any_port_may_be_reached() {
    let ping = |remote: &str| {
        let kind = if ip(remote).is_ipv4() { (1, 8) } else { (58, 128) };
        packet(Way::Out, ip(remote), kind.0, icmp(kind.1, 0, [0; 4], b"ping"))
    };
    let policy = policy(&["deny 10.1.9.0/24", "deny 10.1.0.0/16 22", "allow 10.1.0.0/16 443", "allow 2001:db8::/32 1"]);
    assert_eq!(out(&policy, &ping("10.1.2.3")), Ok(()));
    assert_eq!(out(&policy, &ping("2001:db8::1")), Ok(()));
    assert_eq!(out(&policy, &ping("10.1.9.3")), Err(Denied::Rule));
    assert_eq!(out(&policy, &ping("10.2.2.3")), Err(Denied::Rule));
    assert_eq!(out(&self::policy(&["deny 10.0.0.0/8 1-9,10-65535", "allow *"]), &ping("10.2.2.3")), Err(Denied::Rule));
    let icmp_from = |kind| packet(Way::In, ip("10.1.2.3"), 1, icmp(kind, 0, [0; 4], b"ping"));
    assert_eq!(into(&policy, &icmp_from(0)), Ok(()));
    assert_eq!(into(&policy, &icmp_from(8)), Err(Denied::Protocol), "devices are not asked");
    for kind in [4, 5, 9, 13, 17] {
        assert_eq!(into(&policy, &icmp_from(kind)), Err(Denied::Protocol), "{kind}");
    }
    let redirect = packet(Way::In, ip("2001:db8::1"), 58, icmp(137, 0, [0; 4], &[0; 32]));
    assert_eq!(into(&policy, &redirect), Err(Denied::Protocol));
}

#[test]
fn a24_errors_pass_only_about_packets_that_may_have_been_sent() {
    let policy = policy(&["allow 10.1.0.0/16 443"]);
    let about = |source: [u8; 4], destination: [u8; 4], port| {
        let payload = tcp(40000, port, 0, &[], b"");
        V4 { source: source.into(), destination: destination.into(), protocol: protocol::TCP, payload, ..V4::default() }
            .bytes()
    };
    let error = |from: &str, quoted: &[u8]| packet(Way::In, ip(from), 1, icmp(3, 4, [0, 0, 5, 0], quoted));
    let mine = about([10, 64, 0, 5], [10, 1, 2, 3], 443);
    assert_eq!(into(&policy, &error("10.1.2.3", &mine)), Ok(()));
    assert_eq!(into(&policy, &error("10.9.9.9", &mine)), Ok(()), "a router on the way");
    assert_eq!(into(&policy, &error("10.9.9.9", &about([10, 64, 0, 6], [10, 1, 2, 3], 443))), Err(Denied::Quote));
    assert_eq!(into(&policy, &error("10.9.9.9", &about([10, 64, 0, 5], [10, 2, 2, 3], 443))), Err(Denied::Rule));
    assert_eq!(into(&policy, &error("10.9.9.9", &about([10, 64, 0, 5], [10, 1, 2, 3], 22))), Err(Denied::Rule));
    assert_eq!(into(&policy, &error("10.9.9.9", b"")), Err(Denied::Quote));
    assert_eq!(into(&policy, &error("10.9.9.9", &mine[..22])), Err(Denied::Quote));

    let from_device = |to: &str, quoted: &[u8]| packet(Way::Out, ip(to), 1, icmp(3, 3, [0; 4], quoted));
    let answer = |source: [u8; 4], port, destination: [u8; 4]| {
        let (source, destination) = (source.into(), destination.into());
        V4 { source, destination, payload: udp(port, 40000, b"late"), ..V4::default() }.bytes()
    };
    assert_eq!(out(&policy, &from_device("10.1.2.3", &answer([10, 1, 2, 3], 443, [10, 64, 0, 5]))), Ok(()));
    let elsewhere = from_device("10.1.2.4", &answer([10, 1, 2, 3], 443, [10, 64, 0, 5]));
    assert_eq!(out(&policy, &elsewhere), Err(Denied::Quote));
    let others = from_device("10.1.2.3", &answer([10, 1, 2, 3], 443, [10, 64, 0, 6]));
    assert_eq!(out(&policy, &others), Err(Denied::Quote));
    let port = from_device("10.1.2.3", &answer([10, 1, 2, 3], 22, [10, 64, 0, 5]));
    assert_eq!(out(&policy, &port), Err(Denied::Rule));

    let ping = V4 { protocol: 1, payload: icmp(8, 0, [0; 4], b""), ..V4::default() }.bytes();
    assert_eq!(into(&policy, &packet(Way::In, ip("10.9.9.9"), 1, icmp(11, 0, [0; 4], &ping))), Ok(()), "traceroute");
    let pong = V4 { protocol: 1, payload: icmp(0, 0, [0; 4], b""), ..V4::default() }.bytes();
    assert_eq!(into(&policy, &packet(Way::In, ip("10.9.9.9"), 1, icmp(11, 0, [0; 4], &pong))), Err(Denied::Quote));
}

#[test]
fn protocols_without_ports_need_a_rule_for_all_ports() {
    let gre = |remote: &str| packet(Way::Out, ip(remote), 47, vec![0; 8]);
    let policy = policy(&[
        "deny 10.1.9.0/24 22",
        "allow 10.1.0.0/16",
        "allow 10.2.0.0/16 1-65534",
        "allow 10.3.0.0/16 1-9,10-65535",
    ]);
    assert_eq!(out(&policy, &gre("10.1.2.3")), Ok(()));
    assert_eq!(out(&policy, &gre("10.1.9.3")), Err(Denied::Rule), "it might be about port 22");
    assert_eq!(out(&policy, &gre("10.2.2.3")), Err(Denied::Rule));
    assert_eq!(out(&policy, &gre("10.3.2.3")), Ok(()), "all ports in other words");
    assert_eq!(into(&policy, &packet(Way::In, ip("10.1.2.3"), 132, vec![0; 8])), Ok(()));
    let foreign = packet(Way::Out, ip("10.2.2.3"), protocol::ICMP_V6, vec![128, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(out(&policy, &foreign), Err(Denied::Rule), "ICMPv6 in IPv4 is no ICMP");
}

#[test]
fn every_reason_has_a_label_of_its_own() {
    let labels: BTreeSet<_> = Denied::ALL.iter().map(|reason| reason.label()).collect();
    assert_eq!(labels.len(), Denied::ALL.len());
    assert!(Denied::ALL.iter().all(|reason| !reason.to_string().is_empty()));
}

/// The proxy's rules about an address, in the words of its documentation.
fn by_the_book(rules: &[Rule], address: IpAddr, port: u16) -> Result<(), Denied> {
    let faces = Faces::of(address);
    let covers = |rule: &&Rule| {
        let embedded = faces.embedded.filter(|_| rule.action == Action::Deny);
        let one_of = |face| rule.target.covers_address(face);
        rule.ports.contains(port) && (one_of(address) || embedded.is_some_and(one_of))
    };
    let network = |rule: &&Rule| matches!(rule.target, TargetPattern::Network { .. });
    let by_address = rules.iter().filter(network).find(covers);
    if by_address.is_some_and(|rule| rule.action == Action::Deny) {
        return Err(Denied::Rule);
    }
    if let Some(special) = faces.special() {
        let named = by_address.is_some_and(|rule| faces.embedded.is_none() && special.is_named_by(&rule.target));
        if !named {
            return Err(Denied::Special);
        }
    }
    match rules.iter().find(covers).map(|rule| rule.action) {
        Some(Action::Allow) => Ok(()),
        Some(Action::Deny) | None => Err(Denied::Rule),
    }
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let targets = [
        "*",
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.0/24",
        "10.1.2.3",
        "100.64.0.0/10",
        "100.100.100.200",
        "2001:db8::/32",
        "2001:db8::3",
        "64:ff9b::/96",
        "fec0::/10",
        "fec0::1",
        "a.corp.example",
        "*.corp.example",
    ];
    let ports = ["*", "443", "22,80-90", "1-442", "1-100,101-65535"];
    (any::<bool>(), prop::sample::select(targets.to_vec()), prop::sample::select(ports.to_vec()))
        .prop_map(|(allow, target, ports)| rule(&format!("{} {target} {ports}", if allow { "allow" } else { "deny" })))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn an_address_gets_the_proxys_verdict_also_from_memory(rules in prop::collection::vec(any_rule(), 0..7)) {
        let policy = Policy::new(&rules, None);
        let mut tunnel = Tunnel::new(10);
        for remote in [
            "10.1.2.3", "10.1.2.4", "10.1.3.1", "10.2.0.1", "11.0.0.1", "100.100.100.200", "100.64.0.1", "2001:db8::3",
            "2001:db8::4", "2a00::1", "fec0::1", "fec0::2", "64:ff9b::10.1.2.3", "64:ff9b::100.100.100.200",
        ] {
            for port in [1, 22, 80, 442, 443, 65535] {
                let expected = by_the_book(&rules, ip(remote), port);
                for _ in 0..2 {
                    let verdict = policy.outbound(&to(remote, port), &mut tunnel, NOW);
                    prop_assert_eq!(verdict, expected, "{} {}", remote, port);
                    prop_assert_eq!(policy.inbound(&from(remote, port), &mut tunnel, NOW), expected);
                }
            }
        }
    }
}
