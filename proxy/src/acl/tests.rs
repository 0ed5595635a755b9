//! Attack line 18 against the rules, and properties that hold for every list of rules.

use proptest::prelude::*;

use super::*;

fn rule(text: &str) -> Rule {
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

fn acl(rules: &[&str]) -> Acl {
    Acl::new(&rules.iter().map(|r| rule(r)).collect::<Vec<_>>(), None)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const SPECIAL_ADDRESSES: &[&str] = &[
    "127.0.0.1",
    "127.255.255.254",
    "::1",
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "169.254.169.254",
    "169.254.0.1",
    "fe80::1",
    "febf::1",
    "fd00:ec2::254",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "224.0.0.1",
    "239.255.255.255",
    "255.255.255.255",
    "240.0.0.1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "::7f00:1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "fe80::5efe:127.0.0.1",
    "2001:db8::5efe:127.0.0.1",
    "fec0::1",
];

#[test]
fn a18_special_addresses_are_not_opened_by_general_rules_given_or_resolved() {
    for rules in [
        &["allow *"][..],
        &["allow 0.0.0.0/0", "allow ::/0"],
        &["allow 0.0.0.0/1", "allow 128.0.0.0/1", "allow ::/1", "allow 8000::/1"],
    ] {
        let acl = acl(rules);
        for text in SPECIAL_ADDRESSES {
            let denial = acl.address(ip(text), 80).unwrap_err();
            assert_eq!(denial.reason, Reason::Special, "{text}: {denial}");
        }
    }
    let named = acl(&["allow *.corp.example", "allow *"]);
    for text in SPECIAL_ADDRESSES {
        let denial = named.after_resolving("rebound.corp.example", 80, &[ip(text)]).unwrap_err();
        assert_eq!(denial.reason, Reason::Special, "{text}: {denial}");
    }
}

#[test]
fn a18_a_rule_inside_the_special_range_names_it() {
    let acl = acl(&["allow 127.0.0.0/8 8080", "allow ::1", "allow 169.254.0.0/16", "allow 0.0.0.0/0"]);
    assert_eq!(acl.address(ip("127.0.0.1"), 8080).unwrap().rule, 0);
    assert_eq!(acl.address(ip("::ffff:127.0.0.1"), 8080).unwrap().addresses, ["127.0.0.1:8080".parse().unwrap()]);
    assert_eq!(acl.address(ip("127.0.0.1"), 8081).unwrap_err().reason, Reason::Special);
    assert_eq!(acl.address(ip("::1"), 1).unwrap().rule, 1);
    assert_eq!(acl.address(ip("169.254.1.1"), 1).unwrap().rule, 2);
    assert_eq!(acl.address(ip("169.254.169.254"), 1).unwrap_err().reason, Reason::Special);
    assert_eq!(acl.address(ip("2002:7f00:1::"), 8080).unwrap_err().reason, Reason::Special);
    let metadata = self::acl(&["allow 169.254.169.254 80"]);
    assert!(metadata.address(ip("169.254.169.254"), 80).is_ok());
    assert!(
        self::acl(&["allow intranet.demo", "allow 127.0.0.1"])
            .after_resolving("intranet.demo", 80, &[ip("127.0.0.1")])
            .is_ok()
    );
}

#[test]
fn a18_a_rule_against_everything_that_stands_first_closes_special_addresses_too() {
    let closed = acl(&["deny *", "allow 127.0.0.1"]);
    let denial = closed.address(ip("127.0.0.1"), 80).unwrap_err();
    assert_eq!((denial.reason, denial.rule), (Reason::Rule, Some(0)));
    assert!(acl(&["allow *", "allow 127.0.0.1"]).address(ip("127.0.0.1"), 80).is_ok());
    assert!(acl(&["deny * 81", "allow 127.0.0.1", "deny *"]).address(ip("127.0.0.1"), 80).is_ok());
}

#[test]
fn a18_a_name_needs_its_own_rule_to_reach_a_special_address() {
    let acl = acl(&["allow intranet.demo", "allow 127.0.0.1"]);
    assert!(acl.after_resolving("intranet.demo", 80, &[ip("127.0.0.1")]).is_ok());
    assert_eq!(acl.before_resolving("rebound.example", 80).unwrap_err().reason, Reason::NoRule);
    assert_eq!(acl.after_resolving("rebound.example", 80, &[ip("127.0.0.1")]).unwrap_err().reason, Reason::NoRule);
    let both = self::acl(&["allow 127.0.0.1", "allow 10.0.0.0/8"]);
    assert_eq!(both.after_resolving("rebound.example", 80, &[ip("127.0.0.1")]).unwrap_err().reason, Reason::NoRule);
    assert!(both.after_resolving("inside.example", 80, &[ip("10.1.1.1")]).is_ok());
}

#[test]
fn a18_private_and_unlisted_targets_are_denied_by_default() {
    let acl = acl(&["allow *.corp.example 443", "allow 10.1.0.0/16 80,443"]);
    for text in ["fd00::1", "fd12:3456::1", "10.2.0.1", "192.168.0.1", "8.8.8.8", "2001:db8::1"] {
        assert_eq!(acl.address(ip(text), 443).unwrap_err().reason, Reason::NoRule, "{text}");
    }
    assert_eq!(acl.address(ip("10.1.2.3"), 22).unwrap_err().reason, Reason::NoRule);
    for name in ["evilcorp.example", "corp.example.evil.test", "xn--crp-tna.example"] {
        assert_eq!(acl.after_resolving(name, 443, &[ip("192.0.2.1")]).unwrap_err().reason, Reason::NoRule, "{name}");
    }
    assert_eq!(acl.before_resolving("a.corp.example", 22).unwrap_err().reason, Reason::NoRule);
    assert_eq!(Acl::without_configuration().address(ip("10.1.2.3"), 80).unwrap_err().reason, Reason::NoConfiguration);
}

#[test]
fn a18_only_allowed_addresses_of_a_name_are_dialled() {
    let acl = acl(&["allow *.corp.example", "deny 10.9.0.0/16", "allow *"]);
    let resolved =
        [ip("127.0.0.1"), ip("10.9.1.1"), ip("10.1.1.1"), ip("::ffff:10.9.0.1"), ip("2001:db8::1"), ip("10.1.1.1")];
    let permit = acl.after_resolving("a.corp.example", 443, &resolved).unwrap();
    assert_eq!(permit.addresses, ["10.1.1.1:443".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap()]);
    assert_eq!(permit.rule, 0);
    let denial = acl.after_resolving("a.corp.example", 443, &[ip("10.9.1.1")]).unwrap_err();
    assert_eq!((denial.reason, denial.rule), (Reason::Rule, Some(1)));
    assert!(denial.why.contains("rule 2 (deny 10.9.0.0/16 ports *)"), "{denial}");
    assert!(acl.after_resolving("a.corp.example", 443, &[]).is_err());
}

#[test]
fn a18_own_listeners_and_the_relay_stay_closed_even_when_named() {
    let own = vec![
        Target::new("127.0.0.1", 9000).unwrap(),
        Target::new("relay.example", 3101).unwrap(),
        Target::new("0.0.0.0", 9001).unwrap(),
    ];
    let acl = acl(&["allow 127.0.0.0/8", "allow 0.0.0.0/8", "allow ::1", "allow *"]).refusing(own);
    for (address, port) in
        [("127.0.0.1", 9000), ("::ffff:127.0.0.1", 9000), ("0.0.0.0", 9000), ("127.0.0.9", 9001), ("::1", 9001)]
    {
        assert_eq!(acl.address(ip(address), port).unwrap_err().reason, Reason::Own, "{address}");
    }
    assert_eq!(acl.after_resolving("localhost", 9000, &[ip("127.0.0.1")]).unwrap_err().reason, Reason::Own);
    assert_eq!(acl.before_resolving("relay.example", 3101).unwrap_err().reason, Reason::Own);
    assert!(acl.address(ip("127.0.0.1"), 8999).is_ok());
}

#[test]
fn the_first_rule_decides_and_is_named() {
    let acl = acl(&["deny secret.corp.example", "allow *.corp.example 80,443", "allow 10.0.0.0/8", "deny *"]);
    assert_eq!(acl.before_resolving("secret.corp.example", 443).unwrap_err().rule, Some(0));
    assert_eq!(acl.after_resolving("a.corp.example", 443, &[ip("10.1.1.1")]).unwrap().rule, 1);
    assert_eq!(
        acl.after_resolving("elsewhere.example", 443, &[ip("10.1.1.1")]).unwrap().rule,
        2,
        "a range rule also opens names"
    );
    assert_eq!(acl.after_resolving("elsewhere.example", 443, &[ip("11.1.1.1")]).unwrap_err().rule, Some(3));
    assert_eq!(acl.address(ip("11.1.1.1"), 1).unwrap_err().rule, Some(3));
}

#[test]
fn rules_of_other_groups_do_not_count_but_keep_their_numbers() {
    let mut berlin = rule("allow 10.0.0.0/8");
    berlin.group = Some("berlin".parse().unwrap());
    let rules = [berlin, rule("allow 10.1.0.0/16")];
    let paris: GroupName = "paris".parse().unwrap();
    assert_eq!(Acl::new(&rules, Some(&paris)).address(ip("10.1.0.1"), 1).unwrap().rule, 1);
    assert!(Acl::new(&rules, Some(&paris)).address(ip("10.2.0.1"), 1).is_err());
    assert!(Acl::new(&rules, None).address(ip("10.2.0.1"), 1).is_err());
    assert_eq!(Acl::new(&rules, Some(&"berlin".parse().unwrap())).address(ip("10.2.0.1"), 1).unwrap().rule, 0);
}

#[test]
fn addresses_embedded_in_ipv6_are_denied_with_their_ipv4() {
    let acl = acl(&["deny 10.9.0.0/16", "allow *"]);
    for text in ["64:ff9b::10.9.0.1", "2002:0a09:1::1", "::ffff:10.9.0.1", "2001:db8::5efe:10.9.0.1"] {
        assert_eq!(acl.address(ip(text), 80).unwrap_err().reason, Reason::Rule, "{text}");
    }
    assert!(acl.address(ip("64:ff9b::192.0.2.1"), 80).is_ok());
    assert!(self::acl(&["allow 10.9.0.0/16"]).address(ip("64:ff9b::10.9.0.1"), 80).is_err());
}

#[test]
fn routes_choose_by_first_match_then_default() {
    let config: DeviceConfig = serde_json::from_value(serde_json::json!({
        "tenant": "S12345678", "audience": "device", "epoch": 1, "version": 1, "issued": 0, "expires": 1,
        "routes": [
            {"target": "*.corp.example", "ports": "1-1024", "via": "group:berlin"},
            {"target": "10.0.0.0/8", "via": "group:default"},
            {"target": "bad.example", "via": "deny"},
        ],
        "default_route": "direct",
    }))
    .unwrap();
    let via = |host: &str, port| route(&config, &Target::new(host, port).unwrap());
    assert_eq!(via("A.Corp.Example.", 443).via.to_string(), "group:berlin");
    assert_eq!(via("a.corp.example", 8080).via, Via::Direct);
    assert_eq!(via("::ffff:10.1.1.1", 1).route, Some(1));
    assert_eq!(via("bad.example", 1).via, Via::Deny);
    assert_eq!(via("good.example", 1).route, None);
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    let chosen = proptest::sample::select(SPECIAL_ADDRESSES).prop_map(ip);
    prop_oneof![
        any::<u32>().prop_map(|a| IpAddr::V4(a.into())),
        any::<u128>().prop_map(|a| IpAddr::V6(a.into())),
        chosen
    ]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let network = (any_address(), 0u8..=128).prop_map(|(address, prefix)| {
        let prefix = if address.is_ipv4() { prefix % 33 } else { prefix };
        let network = match address {
            IpAddr::V4(a) => {
                IpAddr::V4((u32::from(a) & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)).into())
            }
            IpAddr::V6(a) => {
                IpAddr::V6((u128::from(a) & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)).into())
            }
        };
        TargetPattern::Network { network, prefix }
    });
    let name = prop_oneof![Just("a.corp"), Just("corp"), Just("b.test")];
    let target = prop_oneof![
        Just(TargetPattern::Any),
        name.clone().prop_map(|n| TargetPattern::Domain(n.into())),
        name.prop_map(|n| TargetPattern::Suffix(n.into())),
        network
    ];
    let ports = prop_oneof![Just("*"), Just("80"), Just("1-1000")];
    (any::<bool>(), target, ports).prop_map(|(allow, target, ports)| Rule {
        action: if allow { Action::Allow } else { Action::Deny },
        target,
        ports: ports.parse().unwrap(),
        group: None,
    })
}

proptest! {
    #[test]
    fn a_permit_always_has_an_allow_rule_and_a_special_address_always_a_naming_one(
        rules in proptest::collection::vec(any_rule(), 0..8),
        addresses in proptest::collection::vec(any_address(), 0..5),
        port in prop_oneof![Just(80u16), Just(8080)],
        name in prop_oneof![Just("a.corp"), Just("x.test"), Just("corp")],
    ) {
        let acl = Acl::new(&rules, None);
        if let Ok(permit) = acl.after_resolving(name, port, &addresses) {
            for dialled in &permit.addresses {
                prop_assert!(addresses.iter().any(|a| a.to_canonical() == dialled.ip()));
                let allows = |r: &Rule| r.action == Action::Allow && r.ports.contains(port);
                prop_assert!(rules.iter().any(|r| allows(r) && (r.target.covers_name(name) || r.target.covers_address(dialled.ip()))));
                if let Some(range) = Faces::of(dialled.ip()).special() {
                    prop_assert!(rules.iter().any(|r| allows(r) && range.is_named_by(&r.target) && r.target.covers_address(dialled.ip())));
                }
            }
        }
    }

    #[test]
    fn putting_deny_everything_first_denies_everything(
        rules in proptest::collection::vec(any_rule(), 0..8), address in any_address(), port in 1u16..,
    ) {
        let deny = [rule("deny *"), rule("deny 0.0.0.0/0"), rule("deny ::/0")];
        let rules: Vec<Rule> = deny.into_iter().chain(rules).collect();
        let acl = Acl::new(&rules, None);
        prop_assert!(acl.address(address, port).is_err());
        prop_assert!(acl.after_resolving("a.corp", port, &[address]).is_err());
    }

    #[test]
    fn what_could_not_be_allowed_before_resolving_is_not_allowed_after(
        rules in proptest::collection::vec(any_rule(), 0..8), address in any_address(), port in 1u16..,
    ) {
        let acl = Acl::new(&rules, None);
        if acl.decide(Some("a.corp"), address, port).is_ok() {
            prop_assert!(acl.before_resolving("a.corp", port).is_ok());
        }
    }

    #[test]
    fn hosts_never_panic_and_read_back_the_same(text in "\\PC{0,40}|[0-9a-fx.:\\[\\]%]{0,24}") {
        if let Ok(host) = Host::parse(&text) {
            prop_assert_eq!(Host::parse(&host.to_string()).unwrap(), host);
        }
    }
}
