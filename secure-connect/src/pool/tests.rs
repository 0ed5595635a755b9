//! Leases, and attack line 24 as far as it is about addresses.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn device(number: u8) -> EntityId {
    EntityId::from_random([number; 16])
}

fn pool(v4: &str, v6: Option<&str>) -> Pool {
    Pool::new(v4.parse().unwrap(), v6.map(|v6| v6.parse().unwrap())).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_device_keeps_its_address_while_it_is_away_and_over_a_restart() {
    let mut first = pool("10.64.0.0/16", Some("fd64::/64"));
    let lease = first.lease(device(1)).unwrap();
    assert_eq!(first.lease(device(1)).unwrap(), lease);
    first.release(device(1));
    assert_eq!((first.len(), first.holder(lease.v4.into())), (0, None));
    for number in 2..200 {
        assert_ne!(first.lease(device(number)).unwrap(), lease);
    }
    assert_eq!(first.lease(device(1)).unwrap(), lease);
    assert_eq!(pool("10.64.0.0/16", Some("fd64::/64")).lease(device(1)).unwrap(), lease);
}

#[test]
fn both_addresses_are_at_the_same_place_and_lead_to_the_holder() {
    let mut pool = pool("10.64.0.0/24", Some("fd64:0:0:1::/64"));
    let lease = pool.lease(device(1)).unwrap();
    let v6 = lease.v6.unwrap();
    assert_eq!(v6.octets()[15], lease.v4.octets()[3]);
    assert_eq!(pool.holder(lease.v4.into()), Some(device(1)));
    assert_eq!(pool.holder(v6.into()), Some(device(1)));
    let beside = Ipv6Addr::from(u128::from(v6) | 1 << 32);
    assert!(pool.contains(beside.into()));
    assert_eq!(pool.holder(beside.into()), None, "the rest of the prefix is nobody's");
    for other in ["10.64.1.5", "fd64:0:0:2::5", "::ffff:10.64.0.5"] {
        assert!(!pool.contains(ip(other)) && pool.holder(ip(other)).is_none(), "{other}");
    }
    assert_eq!(pool.gateway(), Lease { v4: "10.64.0.1".parse().unwrap(), v6: Some("fd64:0:0:1::1".parse().unwrap()) });
    assert_eq!(pool.prefixes().map(|p| p.to_string()).collect::<Vec<_>>(), ["10.64.0.0/24", "fd64:0:0:1::/64"]);
}

#[test]
fn a24_a_pool_that_is_exhausted_says_so_and_gives_nobodys_address_away() {
    let mut pool = pool("10.64.0.0/28", None);
    let mut seen = BTreeSet::new();
    for number in 0..13 {
        let lease = pool.lease(device(number)).unwrap();
        assert!(seen.insert(lease.v4) && lease.v6.is_none());
    }
    let never = ["10.64.0.0", "10.64.0.1", "10.64.0.15"];
    assert!(never.iter().all(|never| !seen.contains(&never.parse().unwrap())), "network, node, broadcast");
    assert_eq!((pool.len(), pool.capacity()), (13, 13));
    assert_eq!(pool.lease(device(99)), Err(Exhausted));
    assert!(pool.lease(device(5)).is_ok(), "who holds one keeps it");

    let (third, fifth) = (pool.lease(device(3)).unwrap(), pool.lease(device(5)).unwrap());
    pool.release(device(5));
    pool.release(device(3));
    pool.release(device(3));
    pool.release(device(77));
    assert_eq!(pool.lease(device(99)).unwrap(), fifth, "the one unused for longest");
    assert_eq!(pool.lease(device(3)).unwrap(), third);
    assert_eq!(pool.lease(device(5)), Err(Exhausted));
    pool.release(device(99));
    assert_eq!(pool.lease(device(5)).unwrap(), fifth);
}

#[test]
fn an_address_given_back_is_used_again_last() {
    let mut pool = pool("10.64.0.0/28", None);
    let left = pool.lease(device(0)).unwrap();
    pool.release(device(0));
    for number in 1..13 {
        assert_ne!(pool.lease(device(number)).unwrap(), left);
    }
    assert_eq!(pool.lease(device(13)).unwrap(), left);
}

#[test]
fn the_smaller_prefix_tells_how_many() {
    assert_eq!(pool("10.0.0.0/8", Some("fd64::/120")).capacity(), 254);
    assert_eq!(pool("10.64.0.0/30", Some("fd64::/48")).capacity(), 1);
    assert_eq!(pool("0.0.0.0/0", Some("::/0")).capacity(), usize::try_from(u32::MAX).unwrap() - 2);
}

#[test]
fn prefixes_that_cannot_be_are_refused_with_the_reason() {
    let refused = |text: &str| text.parse::<Prefix>().unwrap_err().to_string();
    assert!(refused("10.64.0.1/24").contains("bits are set behind the prefix"));
    assert!(refused("fd64::1/64").contains("bits are set behind the prefix"));
    assert!(refused("10.64.0.0/33").contains("longer than the address"));
    assert!(refused("10.64.0.0").contains("expected ADDRESS/BITS"));
    assert!(refused("intranet/8").contains("IPv4 or IPv6 address"));
    assert!(refused("10.64.0.0/x").contains("number of bits"));
    for text in ["10.64.0.0/16", "0.0.0.0/0", "10.1.2.3/32", "fd64::/64", "::/0"] {
        assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
    }
    let made = |v4: &str, v6: &str| Pool::new(v4.parse().unwrap(), Some(v6.parse().unwrap())).map(|_| ());
    assert!(matches!(made("10.64.0.0/31", "fd64::/64"), Err(PoolError::TooSmall(_, 30))));
    assert!(matches!(made("10.64.0.0/16", "fd64::/121"), Err(PoolError::TooSmall(_, 120))));
    assert!(matches!(made("fd64::/64", "fd64::/64"), Err(PoolError::Family(_, "IPv4"))));
    assert!(matches!(made("10.64.0.0/16", "10.64.0.0/16"), Err(PoolError::Family(_, "IPv6"))));
}

#[test]
fn a_prefix_covers_its_own_family_only() {
    let all: Prefix = "0.0.0.0/0".parse().unwrap();
    assert!(all.contains(ip("255.255.255.255")) && !all.contains(ip("::ffff:1.2.3.4")));
    let small: Prefix = "10.64.0.0/30".parse().unwrap();
    assert!(small.contains(ip("10.64.0.3")) && !small.contains(ip("10.64.0.4")));
    let one: Prefix = "fd64::5/128".parse().unwrap();
    assert!(one.contains(ip("fd64::5")) && !one.contains(ip("fd64::4")));
}

proptest! {
    #[test]
    fn a24_two_devices_never_share_an_address(
        steps in prop::collection::vec((0..40u8, any::<bool>()), 0..300),
        bits in 27..31u8,
    ) {
        let mut pool = pool(&format!("10.64.0.0/{bits}"), Some("fd64::/64"));
        let capacity = (1usize << (32 - bits)) - 3;
        prop_assert_eq!(pool.capacity(), capacity);
        let mut held: BTreeMap<EntityId, Lease> = BTreeMap::new();
        let mut order: Vec<(EntityId, Lease)> = Vec::new();
        for (number, takes) in steps {
            let device = device(number);
            if !takes {
                pool.release(device);
                order.extend(held.remove(&device).map(|lease| (device, lease)));
                continue;
            }
            match pool.lease(device) {
                Ok(lease) => {
                    let former = order.iter().find(|(of, _)| *of == device).map(|(_, lease)| *lease);
                    let kept = held.get(&device).copied().or(former);
                    prop_assert!(kept.is_none_or(|kept| kept == lease), "sticky");
                    prop_assert!(held.iter().all(|(other, with)| *other == device || *with != lease));
                    if kept.is_none() && let Some(oldest) = order.first() && held.len() + order.len() == capacity {
                        prop_assert_eq!(oldest.1, lease, "the longest unused");
                    }
                    if kept.is_none() && held.len() + order.len() < capacity {
                        prop_assert!(order.iter().all(|(_, with)| *with != lease), "one that nobody had comes first");
                    }
                    order.retain(|(_, with)| *with != lease);
                    held.insert(device, lease);
                }
                Err(Exhausted) => prop_assert!(held.len() == capacity && !held.contains_key(&device)),
            }
            prop_assert_eq!(pool.len(), held.len());
            for (device, lease) in &held {
                prop_assert_eq!(pool.holder(lease.v4.into()), Some(*device));
                prop_assert_eq!(pool.holder(lease.v6.unwrap().into()), Some(*device));
            }
        }
    }

    #[test]
    fn prefixes_of_any_text_never_panic(text in "[0-9a-f:./]{0,30}") {
        if let Ok(prefix) = text.parse::<Prefix>() {
            prop_assert_eq!(prefix.to_string().parse::<Prefix>().unwrap(), prefix);
            prop_assert!(prefix.contains(prefix.network()));
            let _ = Pool::new(prefix, None);
        }
    }
}
