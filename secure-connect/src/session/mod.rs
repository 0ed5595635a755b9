//! One tunnel's end-to-end session: DTLS between device and node, with IP packets inside and, between them, small
//! messages of our own that find the path's MTU and tell a dead peer from a silent one.
//!
//! ```text
//!   0x4. 0x6.           an IP packet
//!   0x01  number (4)    PROBE, padded with zeros to any size
//!   0x02  number (4)  size (2)  PROBED
//! ```

pub mod dtls;
pub mod mtu;

use std::time::{Duration, Instant};

use hedgerow_shared::fault::{Code, Fault};

use dtls::{Changed, Check, Dtls, Own, Settings, Side, Sink};
use mtu::Mtu;

const PROBE: u8 = 0x01;
const PROBED: u8 = 0x02;

/// How long a session may take to be connected.
const CONNECT: Duration = Duration::from_secs(20);
/// Silence after which the peer is asked for a sign of life: NATs forget UDP after 30 s, the careless ones.
const KEEPALIVE: Duration = Duration::from_secs(25);
/// The same while we send and hear nothing.
const UNANSWERED: Duration = Duration::from_secs(4);
/// Without IP packets for so long a tunnel is idle: how large they may be is asked again when there are any, and a tunnel
/// that nobody uses costs a sign of life now and then.
const IDLE: Duration = Duration::from_secs(60);
/// Time for each sign of life,
const PATIENCE: Duration = Duration::from_secs(2);
/// and how often it is asked for, before the peer is taken for dead.
const ATTEMPTS: u8 = 5;

/// See the module. Times are the caller's.
#[derive(Debug)]
pub struct Session {
    dtls: Dtls,
    mtu: Mtu,
    number: u32,
    /// Numbers and sizes of probes that were not answered.
    asked: Vec<(u32, u16)>,
    heard: Instant,
    sent: Instant,
    began: Instant,
    /// The last IP packet either way.
    used: Instant,
    /// Signs of life asked for since the last one, and when.
    unanswered: (u8, Instant),
}

/// Plaintexts of our own are kept back.
struct Sorting<'a, S> {
    sink: &'a mut S,
    probes: Vec<(u32, u16)>,
    probed: Vec<(u32, u16)>,
    packets: u32,
    plaintexts: u32,
}

impl<'a, S: Sink> Sorting<'a, S> {
    fn of(sink: &'a mut S) -> Self {
        Self { sink, probes: Vec::new(), probed: Vec::new(), packets: 0, plaintexts: 0 }
    }
}

impl<S: Sink> Sink for Sorting<'_, S> {
    fn room(&mut self) -> &mut [u8] {
        self.sink.room()
    }

    fn plaintext(&mut self, length: usize) {
        self.plaintexts += 1;
        let bytes = &self.sink.room()[..length];
        match bytes {
            [first, ..] if matches!(first >> 4, 4 | 6) => {
                self.packets += 1;
                self.sink.plaintext(length);
            }
            [PROBE, a, b, c, d, ..] => {
                let number = u32::from_be_bytes([*a, *b, *c, *d]);
                // One datagram holds few records, however small.
                self.probes.push((number, u16::try_from(length).unwrap_or(u16::MAX)));
            }
            [PROBED, a, b, c, d, high, low] => {
                self.probed.push((u32::from_be_bytes([*a, *b, *c, *d]), u16::from_be_bytes([*high, *low])));
            }
            // Of a later version.
            _ => {}
        }
    }

    fn records(&mut self, length: usize) {
        self.sink.records(length);
    }
}

impl Session {
    /// A session that is about to begin; `most` is the largest IP packet that both ends take.
    #[must_use]
    pub fn new(settings: &Settings, own: &Own, side: Side, check: Check, most: u16, now: Instant) -> Self {
        Self {
            dtls: Dtls::new(settings, own, side, check, now),
            mtu: Mtu::new(most, now),
            number: 0,
            asked: Vec::new(),
            heard: now,
            sent: now,
            began: now,
            used: now,
            unanswered: (0, now),
        }
    }

    /// Whether IP packets pass.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.dtls.is_connected()
    }

    /// The largest IP packet that passes now.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu.now()
    }

    /// When an IP packet last passed, either way.
    #[must_use]
    pub fn used(&self) -> Instant {
        self.used
    }

    /// Tells the time before a batch of datagrams: once is enough for all of them.
    ///
    /// # Errors
    /// As `poll`.
    pub fn begin(&mut self, now: Instant, sink: &mut impl Sink) -> Result<Changed, Fault> {
        let mut sorting = Sorting::of(sink);
        self.dtls.tick(now, &mut sorting)
    }

    /// Takes the records of one datagram; IP packets go to the sink. A datagram of which nothing was genuine changes
    /// nothing; `Handled::genuine` tells.
    ///
    /// # Errors
    /// The session is over.
    pub fn handle(&mut self, records: &[u8], now: Instant, sink: &mut impl Sink) -> Result<Handled, Fault> {
        let mut sorting = Sorting::of(sink);
        let changed = self.dtls.handle(records, &mut sorting)?;
        let Sorting { probes, probed, packets, plaintexts, .. } = sorting;
        let genuine = plaintexts > 0 || changed != Changed::default();
        if genuine {
            self.heard = now;
            self.unanswered = (0, now);
        }
        if packets > 0 {
            self.used = now;
        }
        let mut handled = Handled { changed, genuine, mtu: false };
        for (number, size) in probes.into_iter().take(8) {
            let [a, b, c, d] = number.to_be_bytes();
            let [high, low] = size.to_be_bytes();
            if self.dtls.is_connected() {
                self.dtls.seal(&[PROBED, a, b, c, d, high, low], sink)?;
            }
        }
        for (number, size) in probed {
            if self.asked.contains(&(number, size)) {
                self.asked.retain(|asked| asked.0 != number);
                handled.mtu |= self.mtu.passed(size, now);
            }
        }
        if changed.connected {
            self.mtu.restart(now);
            // The node has not heard yet that its last flight arrived; it says nothing before we do.
            self.poll(now, sink)?;
        }
        Ok(handled)
    }

    /// Seals one IP packet.
    ///
    /// # Errors
    /// The session is not connected, or over. What the path carries (`mtu`) is the caller's to look at.
    pub fn seal(&mut self, packet: &[u8], now: Instant, sink: &mut impl Sink) -> Result<(), Fault> {
        self.dtls.seal(packet, sink)?;
        self.used = now;
        self.sent = now;
        Ok(())
    }

    /// When `poll` wants to be called.
    #[must_use]
    pub fn due(&self) -> Instant {
        let dtls = self.dtls.due().unwrap_or(self.began + CONNECT);
        if !self.dtls.is_connected() {
            return dtls.min(self.began + CONNECT);
        }
        let due = dtls.min(self.next_sign());
        if self.wants_probes() { due.min(self.mtu.due()) } else { due }
    }

    /// What is due once the tunnel is idle waits for the next packet.
    fn wants_probes(&self) -> bool {
        self.mtu.due() < self.used + IDLE
    }

    fn next_sign(&self) -> Instant {
        let (asked, at) = self.unanswered;
        if asked > 0 {
            return at + PATIENCE;
        }
        let silence = if self.sent > self.heard { UNANSWERED } else { KEEPALIVE };
        self.heard + silence
    }

    /// Does what is due: hand-shake flights again, probes, signs of life.
    ///
    /// # Errors
    /// The hand-shake took too long, or the peer is silent: the session is over.
    pub fn poll(&mut self, now: Instant, sink: &mut impl Sink) -> Result<Changed, Fault> {
        let changed = {
            let mut sorting = Sorting::of(sink);
            self.dtls.tick(now, &mut sorting)?
        };
        if !self.dtls.is_connected() {
            if now >= self.began + CONNECT {
                return Err(Fault::new(Code::TimedOut, "the other end of the tunnel does not answer"));
            }
            return Ok(changed);
        }
        let mut sizes = Vec::new();
        if self.wants_probes() {
            self.mtu.poll(now, |size| sizes.push(size));
        }
        for size in sizes {
            self.ask(size, sink)?;
        }
        if now >= self.next_sign() {
            let (asked, _) = self.unanswered;
            if asked >= ATTEMPTS {
                let silent = now.saturating_duration_since(self.heard).as_secs();
                let text = format!("the other end of the tunnel has been silent for {silent} s");
                return Err(Fault::new(Code::Lost, text));
            }
            self.unanswered = (asked + 1, now);
            self.ask(0, sink)?;
        }
        Ok(changed)
    }

    /// Asks at once for a sign of life: the network below may have changed. A change of the path counts for its MTU too.
    pub fn path_changed(&mut self, now: Instant) {
        self.mtu.restart(now);
        self.unanswered = (0, now);
        // Due now: `next_sign` looks at the silence.
        self.heard = now.checked_sub(KEEPALIVE).unwrap_or(now);
    }

    fn ask(&mut self, size: u16, sink: &mut impl Sink) -> Result<(), Fault> {
        const OPEN: usize = 32;
        self.number = self.number.wrapping_add(1);
        let mut probe = vec![PROBE];
        probe.extend_from_slice(&self.number.to_be_bytes());
        probe.resize(usize::from(size).max(probe.len()), 0);
        let length = u16::try_from(probe.len()).unwrap_or(u16::MAX);
        if self.asked.len() >= OPEN {
            self.asked.remove(0);
        }
        self.asked.push((self.number, length));
        self.dtls.seal(&probe, sink)
    }

    /// Says goodbye.
    pub fn close(&mut self, sink: &mut impl Sink) {
        self.dtls.close(sink);
    }
}

/// What a datagram did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handled {
    /// To the connection.
    pub changed: Changed,
    /// Something in it came from the peer.
    pub genuine: bool,
    /// A larger packet passes than was known.
    pub mtu: bool,
}

#[cfg(test)]
mod tests;
