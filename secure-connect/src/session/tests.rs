use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use hedgerow_shared::secret::Secret;
use proptest::prelude::*;

use super::dtls::ROOM;
use super::*;

/// Keeps what goes out and what comes up.
struct Ends {
    room: Vec<u8>,
    datagrams: VecDeque<Vec<u8>>,
    packets: Vec<Vec<u8>>,
}

impl Default for Ends {
    fn default() -> Self {
        Self { room: vec![0; ROOM], datagrams: VecDeque::new(), packets: Vec::new() }
    }
}

impl Sink for Ends {
    fn room(&mut self) -> &mut [u8] {
        &mut self.room
    }
    fn plaintext(&mut self, length: usize) {
        self.packets.push(self.room[..length].to_vec());
    }
    fn records(&mut self, length: usize) {
        self.datagrams.push_back(self.room[..length].to_vec());
    }
}

fn own() -> Own {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["x".into()]).unwrap().self_signed(&key).unwrap();
    Own { certificate: certificate.der().to_vec(), key: Secret::new(key.serialize_der()) }
}

struct Pair {
    device: Session,
    node: Session,
    up: Ends,
    down: Ends,
    now: Instant,
}

type Seen = Arc<Mutex<Vec<Vec<u8>>>>;

fn check(seen: &Seen, refuse: bool) -> Check {
    let seen = seen.clone();
    Box::new(move |der| {
        seen.lock().unwrap().push(der.to_vec());
        if refuse { Err(Fault::new(Code::Revoked, "revoked")) } else { Ok(()) }
    })
}

impl Pair {
    fn new(settings: &Settings) -> Self {
        Self::with(settings, (&own(), &own()), (check(&Seen::default(), false), check(&Seen::default(), false)))
    }

    fn with(settings: &Settings, (device, node): (&Own, &Own), (of_node, of_device): (Check, Check)) -> Self {
        let now = Instant::now();
        Self {
            device: Session::new(settings, device, Side::Client, of_node, mtu::MOST, now),
            node: Session::new(settings, node, Side::Server, of_device, mtu::MOST, now),
            up: Ends::default(),
            down: Ends::default(),
            now,
        }
    }

    /// Lets both talk for so long; `pass` says which datagrams arrive.
    fn run(&mut self, time: Duration, mut pass: impl FnMut(&[u8]) -> bool) -> Result<(), Fault> {
        let end = self.now + time;
        loop {
            self.device.poll(self.now, &mut self.up)?;
            self.node.poll(self.now, &mut self.down)?;
            while let Some((up, datagram)) = self
                .up
                .datagrams
                .pop_front()
                .map(|d| (true, d))
                .or_else(|| self.down.datagrams.pop_front().map(|d| (false, d)))
            {
                if !pass(&datagram) {
                    continue;
                }
                if up {
                    self.node.begin(self.now, &mut self.down)?;
                    self.node.handle(&datagram, self.now, &mut self.down)?;
                } else {
                    self.device.begin(self.now, &mut self.up)?;
                    self.device.handle(&datagram, self.now, &mut self.up)?;
                }
            }
            let due = self.device.due().min(self.node.due());
            if due > end {
                self.now = end;
                return Ok(());
            }
            self.now = due.max(self.now + Duration::from_millis(1));
        }
    }

    fn connected(settings: &Settings) -> Self {
        let mut pair = Self::new(settings);
        pair.run(Duration::from_secs(5), |_| true).unwrap();
        assert!(pair.device.is_connected() && pair.node.is_connected());
        pair
    }

    fn send(&mut self, packet: &[u8]) -> Vec<u8> {
        self.device.seal(packet, self.now, &mut self.up).unwrap();
        self.up.datagrams.pop_back().unwrap()
    }

    /// Whether anything of it was genuine.
    fn arrive(&mut self, datagram: &[u8]) -> bool {
        self.node.begin(self.now, &mut self.down).unwrap();
        self.node.handle(datagram, self.now, &mut self.down).unwrap().genuine
    }
}

fn packet(n: u8, length: usize) -> Vec<u8> {
    let mut packet = vec![n; length];
    packet[0] = 0x45;
    packet
}

#[test]
fn p14_packets_pass_both_ways_each_in_a_datagram_of_known_size() {
    let mut pair = Pair::connected(&Settings::new().unwrap());
    for length in [20, 576, 1280, usize::from(mtu::MOST)] {
        let sealed = pair.send(&packet(7, length));
        assert_eq!(sealed.len(), length + dtls::OVERHEAD);
        assert!(pair.arrive(&sealed));
        assert_eq!(pair.down.packets.pop().unwrap(), packet(7, length));
    }
    pair.node.seal(&packet(9, 100), pair.now, &mut pair.down).unwrap();
    let sealed = pair.down.datagrams.pop_back().unwrap();
    pair.device.handle(&sealed, pair.now, &mut pair.up).unwrap();
    assert_eq!(pair.up.packets, [packet(9, 100)]);
}

#[test]
fn the_paths_mtu_is_found_by_both_ends_and_follows_the_path() {
    let mut pair = Pair::connected(&Settings::new().unwrap());
    assert_eq!((pair.device.mtu(), pair.node.mtu()), (mtu::MOST, mtu::MOST));
    pair.device.path_changed(pair.now);
    pair.node.path_changed(pair.now);
    assert_eq!((pair.device.mtu(), pair.node.mtu()), (mtu::FLOOR, mtu::FLOOR));
    let narrow = 1400 + dtls::OVERHEAD;
    pair.run(Duration::from_secs(5), |d| d.len() <= narrow).unwrap();
    assert_eq!((pair.device.mtu(), pair.node.mtu()), (1400, 1400));
}

#[test]
fn an_idle_tunnel_costs_a_sign_of_life_now_and_then_until_the_next_packet() {
    let mut pair = Pair::connected(&Settings::new().unwrap());
    pair.run(IDLE, |_| true).unwrap();
    let (mut all, mut large) = (0, 0);
    let time = Duration::from_secs(1200);
    let count = |datagram: &[u8]| {
        all += 1;
        large += u32::from(datagram.len() > 100);
        true
    };
    pair.run(time, count).unwrap();
    assert!(large == 0 && all <= 4 * time.as_secs() / KEEPALIVE.as_secs(), "{all}, {large} of them large");
    assert_eq!((pair.device.mtu(), pair.node.mtu()), (mtu::MOST, mtu::MOST));
    let sealed = pair.send(&packet(7, 100));
    assert!(pair.arrive(&sealed));
    let narrow = 1400 + dtls::OVERHEAD;
    pair.run(Duration::from_secs(10), |d| d.len() <= narrow).unwrap();
    assert_eq!((pair.device.mtu(), pair.node.mtu()), (1400, 1400), "the path is another by now");
}

#[test]
fn a04_a_certificate_that_does_not_hold_ends_the_hand_shake_before_any_packet() {
    let settings = Settings::new().unwrap();
    for refusing in ["node", "device"] {
        let (device, node) = (own(), own());
        let (at_device, at_node) = (Seen::default(), Seen::default());
        let checks = (check(&at_device, refusing == "device"), check(&at_node, refusing == "node"));
        let mut pair = Pair::with(&settings, (&device, &node), checks);
        let fault = pair.run(Duration::from_secs(5), |_| true).unwrap_err();
        assert_eq!(fault.code, Code::Revoked);
        if refusing == "node" {
            assert_eq!(*at_node.lock().unwrap(), std::slice::from_ref(&device.certificate));
        } else {
            assert_eq!(*at_device.lock().unwrap(), std::slice::from_ref(&node.certificate));
        }
        assert!(pair.down.packets.is_empty() && pair.up.packets.is_empty());
        let over = if refusing == "node" { pair.node.is_connected() } else { pair.device.is_connected() };
        assert!(!over);
    }
}

#[test]
fn a04_replayed_forged_and_old_records_are_nothing() {
    let mut pair = Pair::connected(&Settings::new().unwrap());
    let sealed: Vec<_> = (0..200).map(|n| pair.send(&packet(n, 100))).collect();
    assert!(pair.arrive(&sealed[0]));
    assert!(!pair.arrive(&sealed[0]), "replayed");
    // Out of order inside the window of 64; older than that is too old.
    assert!(pair.arrive(&sealed[150]));
    assert!(pair.arrive(&sealed[100]), "50 behind");
    assert!(!pair.arrive(&sealed[100]), "replayed inside the window");
    assert!(!pair.arrive(&sealed[80]), "70 behind");
    for at in 0..sealed[151].len() {
        let mut forged = sealed[151].clone();
        forged[at] ^= 1;
        assert!(!pair.arrive(&forged), "byte {at}");
    }
    assert!(pair.arrive(&sealed[151]), "forgeries did no harm");
    assert!(!pair.arrive(&sealed[151][..50]), "cut");
    assert!(!pair.arrive(b""), "empty");
}

#[test]
fn a04_a_flood_of_rubbish_neither_ends_a_session_nor_grows_it() {
    let mut pair = Pair::connected(&Settings::new().unwrap());
    let mut seed = 1u32;
    for _ in 0..50_000 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = (seed >> 24) as usize;
        let mut rubbish: Vec<u8> = (0..length).map(|i| (seed >> (i % 24)) as u8).collect();
        // Headers of every kind, of this epoch and of those to come.
        if let Some(first) = rubbish.first_mut() {
            *first = match seed % 4 {
                0 => 0x2c | ((seed >> 8) & 3) as u8,
                1 => 22,
                2 => 21,
                _ => *first,
            };
        }
        assert!(!pair.arrive(&rubbish));
    }
    assert!(pair.down.datagrams.len() < 50, "{} answers to rubbish", pair.down.datagrams.len());
    let sealed = pair.send(&packet(1, 100));
    assert!(pair.arrive(&sealed));
}

#[test]
fn keys_change_under_load_and_loss_and_nothing_else_notices() {
    let mut pair = Pair::connected(&Settings::with_records_a_key(500).unwrap());
    let (mut lost, mut arrived) = (0, 0);
    let mut epochs = std::collections::HashSet::new();
    for n in 0..10_000u32 {
        pair.now += Duration::from_millis(1);
        pair.device.seal(&packet(1, 60), pair.now, &mut pair.up).unwrap();
        let datagrams = std::mem::take(&mut pair.up.datagrams);
        for (i, datagram) in datagrams.iter().enumerate() {
            // The header's low bits are those of the epoch (RFC 9147 section 4).
            epochs.insert(datagram[0] & 3);
            // One in seven is lost, whatever it is.
            if (n as usize + i) % 7 == 3 {
                lost += 1;
                continue;
            }
            pair.node.begin(pair.now, &mut pair.down).unwrap();
            pair.node.handle(datagram, pair.now, &mut pair.down).unwrap();
        }
        for datagram in std::mem::take(&mut pair.down.datagrams) {
            pair.device.begin(pair.now, &mut pair.up).unwrap();
            pair.device.handle(&datagram, pair.now, &mut pair.up).unwrap();
        }
        pair.device.poll(pair.now, &mut pair.up).unwrap();
        pair.node.poll(pair.now, &mut pair.down).unwrap();
        arrived += pair.down.packets.drain(..).count();
    }
    assert!(lost > 1000 && arrived > 8_000, "{arrived} arrived, {lost} lost");
    assert_eq!(epochs.len(), 4, "the keys were not changed: {epochs:?}");
}

#[test]
fn a_hand_shake_survives_loss_and_gives_up_in_time() {
    let settings = Settings::new().unwrap();
    let mut pair = Pair::new(&settings);
    let mut n = 0;
    pair.run(Duration::from_secs(15), |_| {
        n += 1;
        n % 3 != 0
    })
    .unwrap();
    assert!(pair.device.is_connected() && pair.node.is_connected());
    let fault = Pair::new(&settings).run(Duration::from_secs(30), |_| false).unwrap_err();
    assert_eq!(fault.code, Code::TimedOut);
}

#[test]
fn a_silent_peer_is_dead_in_time_and_a_quiet_one_is_not() {
    let mut pair = Pair::connected(&Settings::new().unwrap());
    pair.run(Duration::from_secs(3600), |_| true).unwrap();
    let before = pair.now;
    let fault = pair.run(Duration::from_secs(3600), |_| false).unwrap_err();
    assert_eq!(fault.code, Code::Lost);
    assert!(pair.now - before < Duration::from_secs(40), "{:?}", pair.now - before);
    // Sooner when there is something to send.
    let mut pair = Pair::connected(&Settings::new().unwrap());
    let before = pair.now;
    pair.send(&packet(1, 100));
    pair.run(Duration::from_secs(3600), |_| false).unwrap_err();
    assert!(pair.now - before < Duration::from_secs(17), "{:?}", pair.now - before);
}

#[test]
fn a_goodbye_is_heard() {
    let mut pair = Pair::connected(&Settings::new().unwrap());
    pair.node.close(&mut pair.down);
    let last = pair.down.datagrams.pop_back().unwrap();
    let handled = pair.device.handle(&last, pair.now, &mut pair.up).unwrap();
    assert!(handled.changed.closed && !pair.device.is_connected());
    assert!(pair.device.seal(&packet(1, 50), pair.now, &mut pair.up).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_bytes_at_all_make_a_fresh_server_panic_or_answer_at_length(datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..20)) {
        let mut pair = Pair::new(&Settings::new().unwrap());
        for datagram in datagrams {
            let asked = datagram.len();
            if pair.node.handle(&datagram, pair.now, &mut pair.down).is_err() {
                break;
            }
            let answered: usize = pair.down.datagrams.drain(..).map(|d| d.len()).sum();
            prop_assert!(answered <= asked.max(100), "{answered} bytes for {asked}");
        }
    }
}
