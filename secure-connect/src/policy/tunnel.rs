//! What a policy remembers of one tunnel, so that one device cannot push another's out: names that its DNS answers
//! gave, verdicts lately given, and datagrams whose first fragment passed.

use std::net::IpAddr;
use std::time::Duration;

use super::rules::Ask;
use super::{Denied, Learnt};
use crate::ip::Summary;

/// Verdicts kept. A power of two; a device with more destinations at the same time is served a little slower.
const VERDICTS: usize = 256;
/// Datagrams under way in fragments, each way.
const FRAGMENTED: usize = 64;
/// How long fragments may follow their first: what Linux gives a datagram to become whole.
const FRAGMENT_TIME: Duration = Duration::from_secs(30);

/// The memory of one tunnel: at most some 15 KiB and its names. Empty until something is to be remembered.
#[derive(Debug, Clone)]
pub struct Tunnel {
    pub(super) names: Learnt,
    pub(super) verdicts: Verdicts,
    pub(super) passed_out: Passed,
    pub(super) passed_in: Passed,
    /// Fingerprint of the policy and state of the names that the verdicts come from.
    valid_for: (u64, u64),
}

impl Tunnel {
    /// A tunnel without memories, which keeps so many names of addresses at most.
    #[must_use]
    pub fn new(names: usize) -> Self {
        Self {
            names: Learnt::new(names),
            verdicts: Verdicts::default(),
            passed_out: Passed::default(),
            passed_in: Passed::default(),
            valid_for: (0, 0),
        }
    }

    /// Learns the addresses of a name from an answer; see `Learnt::learn`. Only answers for which
    /// `Policy::is_dns_answer` holds are meant for this.
    pub fn learn(&mut self, dns_answer: &[u8], now: Duration) {
        self.names.learn(dns_answer, now);
    }

    /// The names learnt so far.
    #[must_use]
    pub fn names(&self) -> &Learnt {
        &self.names
    }

    /// Forgets names whose time is over, and verdicts that come from other names or another policy.
    pub(super) fn refresh(&mut self, fingerprint: u64, now: Duration) {
        self.names.expire(now);
        let valid_for = (fingerprint, self.names.changes());
        if self.valid_for != valid_for {
            self.valid_for = valid_for;
            self.verdicts.0.fill(None);
        }
    }
}

/// Verdicts by address and question, each with one place where it may stand.
#[derive(Debug, Clone, Default)]
pub(super) struct Verdicts(Vec<Option<Verdict>>);

#[derive(Debug, Clone, Copy)]
struct Verdict {
    address: IpAddr,
    ask: Ask,
    verdict: Result<(), Denied>,
}

impl Verdicts {
    pub(super) fn get(&self, address: IpAddr, ask: Ask) -> Option<Result<(), Denied>> {
        let kept = self.0.get(place(address, ask))?.as_ref()?;
        (kept.address == address && kept.ask == ask).then_some(kept.verdict)
    }

    pub(super) fn put(&mut self, address: IpAddr, ask: Ask, verdict: Result<(), Denied>) {
        if self.0.is_empty() {
            self.0 = vec![None; VERDICTS];
        }
        if let Some(kept) = self.0.get_mut(place(address, ask)) {
            *kept = Some(Verdict { address, ask, verdict });
        }
    }
}

/// Which destinations share a place may be known: a device that chooses them so slows down its own tunnel only.
fn place(address: IpAddr, ask: Ask) -> usize {
    let address = match address {
        IpAddr::V4(address) => u64::from(u32::from(address)),
        IpAddr::V6(address) => {
            let [a, b, c, d, e, f, g, h] = address.segments().map(u64::from);
            (a << 48 | b << 32 | c << 16 | d).rotate_left(17) ^ (e << 48 | f << 32 | g << 16 | h)
        }
    };
    let ask = match ask {
        Ask::Port(port) => u64::from(port),
        Ask::SomePort => 1 << 16,
        Ask::EveryPort => 2 << 16,
    };
    // Fibonacci hashing: the golden ratio spreads neighbours, and the top bits depend on all.
    let mixed = (address ^ ask << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    usize::try_from(mixed >> 56).unwrap_or(0) % VERDICTS
}

/// Datagrams whose first fragment passed, one way.
#[derive(Debug, Clone, Default)]
pub(super) struct Passed {
    firsts: Vec<First>,
    /// Which one is replaced next when all places are taken: the oldest.
    next: usize,
}

#[derive(Debug, Clone)]
struct First {
    datagram: (IpAddr, IpAddr, u8, u32),
    /// Where it ends: nothing may be laid over it, as the ports that were judged are in it.
    end: u16,
    passed: Duration,
}

impl Passed {
    pub(super) fn remember(&mut self, packet: &Summary, now: Duration) {
        let datagram = datagram(packet);
        if let Some(known) = self.firsts.iter_mut().find(|first| first.datagram == datagram) {
            // The same number may come again for another datagram, but not within the time of this one.
            let over = now.saturating_sub(known.passed) >= FRAGMENT_TIME;
            known.end = if over { packet.fragment_length } else { known.end.max(packet.fragment_length) };
            known.passed = now;
            return;
        }
        let first = First { datagram, end: packet.fragment_length, passed: now };
        if self.firsts.len() < FRAGMENTED {
            self.firsts.push(first);
            return;
        }
        if let Some(oldest) = self.firsts.get_mut(self.next) {
            *oldest = first;
        }
        self.next = (self.next + 1) % FRAGMENTED;
    }

    pub(super) fn continues(&self, packet: &Summary, now: Duration) -> bool {
        let datagram = datagram(packet);
        self.firsts.iter().any(|first| {
            first.datagram == datagram
                && packet.fragment_offset >= first.end
                && now.saturating_sub(first.passed) < FRAGMENT_TIME
        })
    }
}

/// What fragments of one datagram have in common: in IPv6 the protocol is not part of it (RFC 8200 section 4.5).
fn datagram(packet: &Summary) -> (IpAddr, IpAddr, u8, u32) {
    let protocol = if packet.is_v4() { packet.protocol } else { 0 };
    (packet.source, packet.destination, protocol, packet.fragment_id)
}
