//! One end's way to the relay: UDP where it passes, the link where it does not, chosen and tried again by itself.
//!
//! Both ways are had at once: BIND on the link lets datagrams pass from the first moment, ATTACH over UDP takes over as
//! soon as the relay has seen that the address is ours. While UDP is used it is asked for signs of life: often while we
//! send and hear nothing, now and then otherwise, so that NATs keep their mapping. Where three stay unanswered the link
//! takes over at once, and UDP is tried again later. Each end does this for itself: one may use UDP, the other its link.

use std::time::{Duration, Instant};

use hedgerow_shared::wire::tunnel::{Half, HalfId, Message};

/// What the datagrams of this end go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// UDP to the relay's port.
    Udp,
    /// Datagrams of the link.
    Link,
}

/// How long a new address may take to be confirmed, an attempt.
const ATTACH: Duration = Duration::from_millis(300);
/// Attempts, each with twice the time of the one before, before UDP is taken for dead.
const ATTEMPTS: u32 = 4;
/// The pause after that; it doubles up to `LONGEST`.
const PAUSE: Duration = Duration::from_secs(20);
/// See `PAUSE`.
const LONGEST: Duration = Duration::from_secs(300);
/// Silence over UDP after which the relay is asked: NATs forget UDP after 30 s, the careless ones.
const QUIET: Duration = Duration::from_secs(25);
/// The same while we send and hear nothing.
const UNANSWERED: Duration = Duration::from_secs(1);
/// Time for an answer.
const PATIENCE: Duration = Duration::from_millis(700);
/// Pings without an answer before UDP is dead.
const PINGS: u32 = 3;
/// How often BIND is repeated while the link is used: a datagram may be lost, the relay may have forgotten.
const BIND: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum Udp {
    /// There is none here: the relay is reached through a proxy.
    Never,
    /// Dead lately.
    Paused { until: Instant, pause: Duration },
    /// ATTACH or CONFIRM went out.
    Trying { attempt: u32, until: Instant, nonce: Option<[u8; 16]>, pause: Duration },
    /// Confirmed.
    Alive { heard: Instant, sent: Instant, pings: u32, pinged: Instant },
}

/// See the module. Times are the caller's.
#[derive(Debug)]
pub struct Leg {
    half: Half,
    counter: u64,
    udp: Udp,
    bind_at: Instant,
    number: u32,
}

impl Leg {
    /// A leg that begins. `counter` is higher than any that this half was used with before: milliseconds since 1970.
    #[must_use]
    pub fn new(half: Half, counter: u64, has_udp: bool, now: Instant) -> Self {
        let udp = if has_udp { trying(now, PAUSE) } else { Udp::Never };
        Self { half, counter, udp, bind_at: now, number: 0 }
    }

    /// Its half of the pairing.
    #[must_use]
    pub fn id(&self) -> HalfId {
        self.half.id
    }

    /// What DATA is to be sent by.
    #[must_use]
    pub fn way(&self) -> Way {
        if matches!(self.udp, Udp::Alive { .. }) { Way::Udp } else { Way::Link }
    }

    /// Takes a message of the relay that came over UDP. Whether the way is another now.
    pub fn take(&mut self, message: Message, now: Instant, send: &mut impl FnMut(Way, Vec<u8>)) -> bool {
        match (&mut self.udp, message) {
            (Udp::Trying { nonce, .. }, Message::Challenge { nonce: asked }) => {
                *nonce = Some(asked);
                send(Way::Udp, Message::confirm(&self.half, asked).to_datagram(self.half.id));
                false
            }
            (Udp::Trying { nonce, .. }, Message::Attached { nonce: told }) if *nonce == Some(told) => {
                self.udp = Udp::Alive { heard: now, sent: now, pings: 0, pinged: now };
                true
            }
            (Udp::Alive { .. }, Message::Pong(number)) if number == self.number => {
                self.heard(now);
                false
            }
            _ => false,
        }
    }

    /// DATA came over UDP, and something in it was genuine.
    pub fn heard(&mut self, now: Instant) {
        if let Udp::Alive { heard, pings, .. } = &mut self.udp {
            *heard = now;
            *pings = 0;
        }
    }

    /// DATA goes out by `way`.
    pub fn sent(&mut self, now: Instant) {
        if let Udp::Alive { sent, .. } = &mut self.udp {
            *sent = now;
        }
    }

    /// The network below, or the link, is another: everything is tried again at once. What worked is used meanwhile.
    pub fn changed(&mut self, now: Instant) {
        self.bind_at = now;
        match &mut self.udp {
            Udp::Never => {}
            // Asked at once; the mapping of the NAT may be another, so that only a new ATTACH tells.
            Udp::Alive { .. } | Udp::Paused { .. } | Udp::Trying { .. } => self.udp = trying(now, PAUSE),
        }
    }

    /// When `poll` wants to be called.
    #[must_use]
    pub fn due(&self) -> Instant {
        match &self.udp {
            Udp::Never => self.bind_at,
            Udp::Paused { until, .. } | Udp::Trying { until, .. } => (*until).min(self.bind_at),
            Udp::Alive { .. } => self.next_ping(),
        }
    }

    fn next_ping(&self) -> Instant {
        let Udp::Alive { heard, sent, pings, pinged } = &self.udp else { return self.bind_at };
        match pings {
            0 if sent > heard => *heard + UNANSWERED,
            0 => *heard + QUIET,
            _ => *pinged + PATIENCE,
        }
    }

    /// Sends what is due. Whether the way is another now.
    pub fn poll(&mut self, now: Instant, send: &mut impl FnMut(Way, Vec<u8>)) -> bool {
        let before = self.way();
        let next_ping = self.next_ping();
        match &mut self.udp {
            Udp::Never => {}
            Udp::Paused { until, pause } if now >= *until => {
                let pause = (*pause * 2).min(LONGEST);
                self.udp = trying(now, pause);
            }
            Udp::Alive { pings, pinged, .. } if now >= next_ping => {
                if *pings >= PINGS {
                    self.udp = Udp::Paused { until: now + PAUSE, pause: PAUSE };
                    self.bind_at = now;
                } else {
                    *pings += 1;
                    *pinged = now;
                    self.number = self.number.wrapping_add(1);
                    send(Way::Udp, Message::Ping(self.number).to_datagram(self.half.id));
                }
            }
            Udp::Paused { .. } | Udp::Alive { .. } | Udp::Trying { .. } => {}
        }
        if let Udp::Trying { attempt, until, nonce, pause } = &mut self.udp
            && now >= *until
        {
            if *attempt >= ATTEMPTS {
                self.udp = Udp::Paused { until: now + *pause, pause: *pause };
            } else {
                *until = now + ATTACH * 2u32.pow(*attempt);
                *attempt += 1;
                *nonce = None;
                self.counter += 1;
                send(Way::Udp, Message::attach(&self.half, self.counter).to_datagram(self.half.id));
            }
        }
        if self.way() == Way::Link && now >= self.bind_at {
            self.bind_at = now + BIND;
            send(Way::Link, Message::Bind.to_datagram(self.half.id));
        }
        self.way() != before
    }
}

fn trying(now: Instant, pause: Duration) -> Udp {
    Udp::Trying { attempt: 0, until: now, nonce: None, pause }
}

#[cfg(test)]
mod tests {
    use hedgerow_shared::secret::Secret;
    use hedgerow_shared::wire::tunnel::kind;

    use super::*;

    fn half() -> Half {
        Half { id: HalfId::from_random([7; 8]), secret: Secret::new(vec![7; 32]) }
    }

    /// A relay that knows the half, behind UDP that may be dead.
    struct World {
        leg: Leg,
        now: Instant,
        udp: bool,
        attached: bool,
        bound: u32,
        udp_sent: u32,
        counters: Vec<u64>,
    }

    impl World {
        fn new(has_udp: bool) -> Self {
            let now = Instant::now();
            let leg = Leg::new(half(), 100, has_udp, now);
            Self { leg, now, udp: true, attached: false, bound: 0, udp_sent: 0, counters: Vec::new() }
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while self.leg.due() <= end {
                self.now = self.now.max(self.leg.due());
                let mut out = Vec::new();
                self.leg.poll(self.now, &mut |way, datagram| out.push((way, datagram)));
                while let Some((way, datagram)) = out.pop() {
                    self.relay(way, &datagram, &mut out);
                }
            }
            self.now = end;
        }

        fn relay(&mut self, way: Way, datagram: &[u8], out: &mut Vec<(Way, Vec<u8>)>) {
            let (id, message) = Message::parse(datagram).unwrap();
            assert_eq!(id, half().id);
            if way == Way::Link {
                assert_eq!(message, Message::Bind);
                self.bound += 1;
                return;
            }
            self.udp_sent += 1;
            if !self.udp {
                return;
            }
            let answer = match message {
                Message::Attach { counter, .. } => {
                    assert!(message.is_from(&half()));
                    self.counters.push(counter);
                    Message::Challenge { nonce: [3; 16] }
                }
                Message::Confirm { nonce, .. } => {
                    assert!(message.is_from(&half()) && nonce == [3; 16]);
                    self.attached = true;
                    Message::Attached { nonce }
                }
                Message::Ping(number) => Message::Pong(number),
                other => panic!("{other:?}"),
            };
            self.leg.take(answer, self.now, &mut |way, datagram| out.push((way, datagram)));
        }
    }

    #[test]
    fn udp_takes_over_from_the_link_as_soon_as_the_address_is_confirmed() {
        let mut world = World::new(true);
        assert_eq!(world.leg.way(), Way::Link);
        world.run(Duration::from_millis(10));
        assert!(world.attached && world.leg.way() == Way::Udp);
        assert_eq!(world.bound, 1, "the link carries until then");
        world.run(Duration::from_secs(3600));
        assert_eq!(world.leg.way(), Way::Udp);
        assert!(world.udp_sent < 160, "{} datagrams an hour keep a NAT's mapping", world.udp_sent);
    }

    #[test]
    fn n02_udp_that_dies_is_left_within_four_seconds_of_the_first_packet_and_used_again_when_it_is_back() {
        let mut world = World::new(true);
        world.run(Duration::from_secs(1));
        world.udp = false;
        world.leg.sent(world.now);
        world.run(Duration::from_secs(4));
        assert_eq!(world.leg.way(), Way::Link);
        let bound = world.bound;
        assert!(bound >= 2, "the relay is told");
        world.run(Duration::from_secs(600));
        assert!(world.bound > bound + 50, "and told again");
        world.udp = true;
        world.run(LONGEST * 2);
        assert_eq!(world.leg.way(), Way::Udp);
        assert!(world.counters.is_sorted_by(|a, b| a < b), "{:?}", world.counters);
    }

    #[test]
    fn a_dead_udp_path_is_tried_seldom() {
        let mut world = World::new(true);
        world.udp = false;
        world.run(Duration::from_secs(3600));
        assert_eq!(world.leg.way(), Way::Link);
        assert!(world.udp_sent < 70, "{} attempts an hour", world.udp_sent);
    }

    #[test]
    fn without_udp_there_is_the_link() {
        let mut world = World::new(false);
        world.run(Duration::from_secs(60));
        assert_eq!((world.udp_sent, world.leg.way()), (0, Way::Link));
        assert!(world.bound >= 6);
    }

    #[test]
    fn a_change_of_the_network_is_met_at_once() {
        let mut world = World::new(true);
        world.run(Duration::from_secs(100));
        world.attached = false;
        world.leg.changed(world.now);
        world.run(Duration::from_millis(10));
        assert!(world.attached && world.leg.way() == Way::Udp);
    }

    #[test]
    fn nobody_but_the_relay_that_was_asked_attaches() {
        let mut world = World::new(true);
        world.udp = false;
        world.run(Duration::from_millis(10));
        let mut nothing = |_, _: Vec<u8>| panic!("no answer is due");
        for message in [Message::Attached { nonce: [0; 16] }, Message::Pong(0), Message::Bind] {
            assert!(!world.leg.take(message, world.now, &mut nothing));
        }
        assert_eq!(world.leg.way(), Way::Link);
        let datagram = Message::Challenge { nonce: [9; 16] }.to_datagram(half().id);
        assert_eq!(datagram[0], kind::CHALLENGE);
    }
}
