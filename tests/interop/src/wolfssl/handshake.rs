//! Hand-shakes of DTLS 1.3: with certificates on both sides, on bad paths, and those that must fail.

use std::time::{Duration, Instant};

use hedgerow_secure_connect::session::dtls::{Check, Own, Settings, Side};
use hedgerow_shared::Role;
use hedgerow_shared::fault::{Code, Fault};
use wolfssl::{Method, ProtocolVersion};

use super::Wolf;
use crate::ours::Ours;
use crate::path::{Path, Weather, talk};
use crate::tenant::Tenant;

/// As long as the product gives a session to be connected.
const CONNECT: Duration = Duration::from_secs(20);

/// One end of ours, one of wolfSSL's, and the path between.
pub(super) struct World {
    pub(super) ours: Ours,
    pub(super) wolf: Wolf,
    pub(super) path: Path,
    pub(super) now: Instant,
}

/// Who shows what, and who believes what.
struct Cast<'a> {
    ours: &'a Own,
    check: Check,
    theirs: Option<&'a Own>,
    root: &'a [u8],
}

impl World {
    fn of(side: Side, settings: &Settings, cast: Cast<'_>, path: Path) -> Self {
        let now = Instant::now();
        let method = match side {
            Side::Client => Method::DtlsServerV1_3,
            Side::Server => Method::DtlsClientV1_3,
        };
        let ours = Ours::new(settings, cast.ours, side, cast.check, now);
        Self { ours, wolf: Wolf::new(method, cast.theirs, cast.root, now), path, now }
    }

    /// Both ends of one tenant, ours on this side.
    pub(super) fn on(side: Side, settings: &Settings, path: Path) -> Self {
        let tenant = Tenant::new();
        let (ours, theirs) = roles(side);
        let (own, other) = (tenant.issue(ours), tenant.issue(theirs));
        let cast = Cast { ours: &own, check: tenant.check(theirs), theirs: Some(&other), root: &tenant.root() };
        Self::of(side, settings, cast, path)
    }

    pub(super) fn connected(side: Side, settings: &Settings) -> Self {
        let mut world = Self::on(side, settings, Path::clear());
        assert!(world.connect(), "{side:?}: {:?} {:?}", world.ours.ended, world.wolf.ended);
        world
    }

    pub(super) fn connect(&mut self) -> bool {
        self.talk(CONNECT, |ours, wolf| ours.is_connected() && wolf.is_connected())
    }

    pub(super) fn talk(&mut self, most: Duration, done: impl FnMut(&mut Ours, &mut Wolf) -> bool) -> bool {
        talk((&mut self.ours, &mut self.wolf), &mut self.path, &mut self.now, most, done)
    }

    /// Until nothing more comes of it.
    pub(super) fn settle(&mut self) {
        self.talk(Duration::from_secs(3), |_, _| false);
    }

    /// One plaintext each way arrives, and nothing else.
    pub(super) fn exchange(&mut self, size: usize) {
        let (up, down) = (vec![1; size], vec![2; size]);
        self.ours.seal(&up);
        self.wolf.write(&down);
        self.settle();
        let (at_wolf, at_us) = (self.wolf.plaintexts(), self.ours.plaintexts());
        assert!(at_wolf == [up], "{size} bytes of ours became {}: {:?}", told(&at_wolf), self.wolf.ended);
        assert!(at_us == [down], "{size} bytes of wolfSSL's became {}: {:?}", told(&at_us), self.ours.ended);
    }
}

fn told(plaintexts: &[Vec<u8>]) -> String {
    format!("{:?}", plaintexts.iter().map(Vec::len).collect::<Vec<_>>())
}

/// The roles of our end and of the other.
fn roles(side: Side) -> (Role, Role) {
    match side {
        Side::Client => (Role::Device, Role::Node),
        Side::Server => (Role::Node, Role::Device),
    }
}

const SIDES: [Side; 2] = [Side::Client, Side::Server];

#[test]
fn p14_wolfssl_and_we_agree_on_dtls_1_3_with_certificates_on_both_sides() {
    for side in SIDES {
        let mut world = World::connected(side, &Settings::new().unwrap());
        assert!(matches!(world.wolf.version(), ProtocolVersion::DtlsV1_3));
        world.exchange(100);
    }
}

#[test]
fn p14_a_handshake_with_wolfssl_survives_lost_doubled_and_overtaken_datagrams() {
    let weather = Weather { lost: 15, doubled: 20, late: 30 };
    for side in SIDES {
        let (mut lost, mut doubled, mut late) = (0, 0, 0);
        for seed in 0..12 {
            let mut world = World::on(side, &Settings::new().unwrap(), Path::of(seed, weather));
            let connected = world.connect();
            let counted = world.path.counted;
            assert!(connected, "{side:?}, seed {seed}: {:?} {:?} {counted:?}", world.ours.ended, world.wolf.ended);
            (lost, doubled, late) = (lost + counted.lost, doubled + counted.doubled, late + counted.late);
            world.settle();
            world.path.clear_up();
            world.exchange(1000);
        }
        assert!(lost > 10 && doubled > 10 && late > 10, "the weather was good: {lost} {doubled} {late}");
    }
}

#[test]
fn p14_each_single_datagram_of_a_handshake_with_wolfssl_may_be_lost() {
    for side in SIDES {
        for nth in 0.. {
            let mut world = World::on(side, &Settings::new().unwrap(), Path::without(nth));
            let connected = world.connect();
            assert!(connected, "{side:?}, datagram {nth}: {:?} {:?}", world.ours.ended, world.wolf.ended);
            world.settle();
            if world.path.counted.lost == 0 {
                assert!(nth >= 6, "{side:?}: a hand-shake of {nth} datagrams");
                break;
            }
            world.path.clear_up();
            world.exchange(100);
        }
    }
}

#[test]
fn p14_a_certificate_that_our_check_refuses_ends_the_handshake_with_wolfssl() {
    for side in SIDES {
        let (tenant, stranger) = (Tenant::new(), Tenant::new());
        let (ours, theirs) = roles(side);
        // Of another CA, which wolfSSL trusts; and of the right CA in the wrong role.
        for other in [stranger.issue(theirs), tenant.issue(ours)] {
            let own = tenant.issue(ours);
            let cast = Cast { ours: &own, check: tenant.check(theirs), theirs: Some(&other), root: &tenant.root() };
            let mut world = World::of(side, &Settings::new().unwrap(), cast, Path::clear());
            assert!(!world.connect());
            assert!(!world.ours.is_connected());
            assert_eq!(
                world.ours.ended.as_ref().map(|fault: &Fault| fault.code),
                Some(Code::Unauthenticated),
                "{side:?}"
            );
        }
    }
}

#[test]
fn p14_wolfssl_refuses_a_certificate_of_ours_that_its_ca_did_not_sign() {
    for side in SIDES {
        let (tenant, stranger) = (Tenant::new(), Tenant::new());
        let (ours, theirs) = roles(side);
        let (own, other) = (stranger.issue(ours), tenant.issue(theirs));
        let cast = Cast { ours: &own, check: tenant.check(theirs), theirs: Some(&other), root: &tenant.root() };
        let mut world = World::of(side, &Settings::new().unwrap(), cast, Path::clear());
        assert!(!world.connect());
        // Both CAs have the same name: ASN_SIG_CONFIRM_E.
        let why = world.wolf.ended.as_ref().map(wolfssl::Error::kind);
        assert!(matches!(why, Some(wolfssl::ErrorKind::Other { code: -155, .. })), "{side:?}: {why:?}");
        assert!(world.wolf.plaintexts().is_empty());
    }
}

#[test]
fn p14_a_wolfssl_client_without_a_certificate_is_refused() {
    let tenant = Tenant::new();
    let own = tenant.issue(Role::Node);
    let cast = Cast { ours: &own, check: tenant.check(Role::Device), theirs: None, root: &tenant.root() };
    let mut world = World::of(Side::Server, &Settings::new().unwrap(), cast, Path::clear());
    world.connect();
    assert!(!world.ours.is_connected());
    assert!(world.ours.ended.is_some(), "a client that shows nothing is waited for");
}
