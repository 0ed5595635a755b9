//! After the hand-shake: plaintexts of every size, records that come again, new keys, goodbyes.

use std::time::Duration;

use hedgerow_secure_connect::session::dtls::{Settings, Side};

use super::handshake::World;
use crate::path::{End, From, Weather};

const SIDES: [Side; 2] = [Side::Client, Side::Server];
/// Records a key in tests of new keys.
const FEW: u64 = 20;

#[test]
fn p14_plaintexts_of_all_sizes_pass_both_ways_between_wolfssl_and_us() {
    for side in SIDES {
        let mut world = World::connected(side, &Settings::new().unwrap());
        for size in [1, 2, 15, 16, 17, 255, 256, 576, 1200, 1280, 1399, 1400] {
            world.exchange(size);
        }
    }
}

#[test]
fn p14_what_overtakes_and_comes_again_arrives_from_wolfssl_once() {
    for side in SIDES {
        let mut world = World::connected(side, &Settings::new().unwrap());
        world.path.weather = Weather { lost: 0, doubled: 100, late: 40 };
        for n in 0..30 {
            world.wolf.write(&[n; 64]);
            world.ours.seal(&[n; 64]);
        }
        world.settle();
        assert!(world.path.counted.doubled >= 60 && world.path.counted.late > 10, "{:?}", world.path.counted);
        for (end, mut arrived) in [("ours", world.ours.plaintexts()), ("wolfSSL", world.wolf.plaintexts())] {
            arrived.sort();
            assert!(arrived.iter().eq(&(0..30).map(|n| vec![n; 64]).collect::<Vec<_>>()), "{end}: {}", arrived.len());
        }
    }
}

#[test]
fn p14_a_record_of_wolfssl_that_is_replayed_or_changed_is_ignored() {
    for side in SIDES {
        let mut world = World::connected(side, &Settings::new().unwrap());
        world.wolf.write(b"once");
        let record = world.wolf.sent().pop().unwrap();
        for at in 0..record.len() {
            let mut changed = record.clone();
            changed[at] ^= 0x10;
            world.ours.take(&changed);
        }
        assert!(world.ours.plaintexts().is_empty());
        for _ in 0..3 {
            world.ours.take(&record);
        }
        assert_eq!(world.ours.plaintexts(), [b"once"]);
        assert!(world.ours.ended.is_none(), "{:?}", world.ours.ended);
        world.exchange(100);
    }
}

#[test]
fn p14_wolfssl_follows_when_we_change_our_keys() {
    for side in SIDES {
        let mut world = World::connected(side, &Settings::with_records_a_key(FEW).unwrap());
        for _ in 0..10 * FEW {
            world.exchange(50);
        }
        assert!(world.path.changes_of_keys(From::Ours) >= 10, "{:?}", world.path.changes_of_keys(From::Ours));
    }
}

#[test]
fn p14_we_follow_when_wolfssl_changes_its_keys() {
    for side in SIDES {
        let mut world = World::connected(side, &Settings::new().unwrap());
        for round in 1..=5 {
            let before = world.path.changes_of_keys(From::Theirs);
            world.wolf.update_keys();
            world.settle();
            world.exchange(50);
            assert!(world.path.changes_of_keys(From::Theirs) > before, "wolfSSL has kept its keys, round {round}");
        }
    }
}

#[test]
fn p14_new_keys_on_both_ends_at_once_and_on_a_bad_path_lose_no_connection() {
    for side in SIDES {
        let mut world = World::connected(side, &Settings::with_records_a_key(FEW).unwrap());
        world.path.weather = Weather { lost: 15, doubled: 10, late: 30 };
        for round in 0..4 {
            world.wolf.update_keys();
            world.wolf.ring(world.now);
            for n in 0..FEW {
                world.ours.seal(&[round, n as u8]);
                world.wolf.write(&[round, n as u8]);
                world.talk(Duration::from_millis(20), |_, _| false);
            }
            world.talk(Duration::from_secs(10), |_, _| false);
        }
        world.path.clear_up();
        world.settle();
        let changes = [From::Ours, From::Theirs].map(|from| world.path.changes_of_keys(from));
        assert!(changes[0] >= 4 && changes[1] >= 4 && world.path.counted.lost > 10, "{changes:?}");
        for mut arrived in [world.ours.plaintexts(), world.wolf.plaintexts()] {
            let all = arrived.len();
            assert!(all > 40, "{side:?}: only {all} of 80 have arrived");
            arrived.sort();
            arrived.dedup();
            assert_eq!(arrived.len(), all, "{side:?}: some have arrived twice");
        }
        world.exchange(100);
    }
}

#[test]
fn p14_a_goodbye_is_understood_both_ways() {
    for side in SIDES {
        let mut world = World::connected(side, &Settings::new().unwrap());
        world.ours.close();
        assert!(world.talk(Duration::from_secs(3), |_, wolf| wolf.closed), "{side:?}: {:?}", world.wolf.ended);

        let mut world = World::connected(side, &Settings::new().unwrap());
        world.wolf.close();
        assert!(world.talk(Duration::from_secs(3), |ours, _| ours.closed), "{side:?}: {:?}", world.ours.ended);
        assert!(world.ours.ended.is_none());
    }
}
