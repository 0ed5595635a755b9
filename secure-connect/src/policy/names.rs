//! Which names an address has, by the answers of DNS servers that passed (RFC 1035).
//!
//! Only the name that was asked for counts, as at the proxy, which knows no other: aliases (CNAME) lead from it to the
//! addresses and are not remembered. Answers over TCP are not read; a server's answer in fragments is not either.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use hedgerow_shared::verify::policy::normal_name;

/// Shorter lifetimes count as this: a device may hold on to an address it has a connection to.
const MIN_TTL: u32 = 60;
/// Longer lifetimes count as this: an address that no longer belongs to the name is not open for long.
const MAX_TTL: u32 = 3600;
/// What is added, as devices use an address a little longer than they may, and connections last.
const GRACE: Duration = Duration::from_secs(5 * 60);
/// Names of one address. Servers with many names share addresses; more are pushed out, the soonest to expire first.
const NAMES_OF_ADDRESS: usize = 16;
/// Records read of one answer, of them addresses and aliases. No honest answer has as many.
const RECORDS: usize = 128;
const ADDRESSES: usize = 64;
const ALIASES: usize = 16;

const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;

/// Names by address, each for a time; a bounded number.
#[derive(Debug, Clone)]
pub struct Learnt {
    bound: usize,
    by_address: BTreeMap<IpAddr, Vec<Known>>,
    /// Every name of every address, the soonest to expire first.
    by_expiry: BTreeSet<(Duration, IpAddr, Arc<str>)>,
    changes: u64,
}

#[derive(Debug, Clone)]
struct Known {
    name: Arc<str>,
    expires: Duration,
}

impl Learnt {
    /// Keeps so many at most: an address with two names counts twice. When it is full, the soonest to expire goes.
    #[must_use]
    pub fn new(bound: usize) -> Self {
        Self { bound, by_address: BTreeMap::new(), by_expiry: BTreeSet::new(), changes: 0 }
    }

    /// Learns the addresses of the name that was asked for from a DNS answer. What is malformed, an error, or no
    /// answer about one host name changes nothing. The time a name is kept is that of the record, but from 60 s to an
    /// hour, and five minutes more.
    pub fn learn(&mut self, dns_answer: &[u8], now: Duration) {
        let Some(answer) = Answer::read(dns_answer) else { return };
        let name: Arc<str> = answer.name.into();
        for (address, ttl) in answer.addresses {
            let kept = Duration::from_secs(ttl.clamp(MIN_TTL, MAX_TTL).into()) + GRACE;
            self.remember(address.to_canonical(), &name, now.saturating_add(kept));
        }
    }

    /// Forgets names whose time is over.
    pub fn expire(&mut self, now: Duration) {
        while self.by_expiry.first().is_some_and(|(expires, ..)| *expires <= now) {
            self.forget_first();
        }
    }

    /// The names of an address that were not forgotten.
    pub fn of(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.by_address.get(&address.to_canonical()).into_iter().flatten().map(|known| &*known.name)
    }

    /// Every address that has a name.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.by_address.keys().copied()
    }

    /// How many are kept: an address with two names counts twice.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_expiry.len()
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_expiry.is_empty()
    }

    /// Another number whenever some address got or lost a name.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    fn remember(&mut self, address: IpAddr, name: &Arc<str>, expires: Duration) {
        if self.bound == 0 {
            return;
        }
        if let Some(known) = self.by_address.get_mut(&address).and_then(|k| k.iter_mut().find(|k| k.name == *name)) {
            if expires > known.expires {
                self.by_expiry.remove(&(known.expires, address, Arc::clone(name)));
                known.expires = expires;
                self.by_expiry.insert((expires, address, Arc::clone(name)));
            }
            return;
        }
        let soonest = self
            .by_address
            .get(&address)
            .filter(|known| known.len() >= NAMES_OF_ADDRESS)
            .and_then(|known| known.iter().min_by_key(|known| known.expires))
            .map(|known| (known.expires, address, Arc::clone(&known.name)));
        if let Some(soonest) = soonest {
            self.forget(&soonest);
        }
        while self.by_expiry.len() >= self.bound {
            self.forget_first();
        }
        self.by_address.entry(address).or_default().push(Known { name: Arc::clone(name), expires });
        self.by_expiry.insert((expires, address, Arc::clone(name)));
        self.changes += 1;
    }

    fn forget_first(&mut self) {
        if let Some(first) = self.by_expiry.first().cloned() {
            self.forget(&first);
        }
    }

    fn forget(&mut self, entry: &(Duration, IpAddr, Arc<str>)) {
        let (_, address, name) = entry;
        self.by_expiry.remove(entry);
        if let Some(known) = self.by_address.get_mut(address) {
            known.retain(|known| known.name != *name);
            if known.is_empty() {
                self.by_address.remove(address);
            }
        }
        self.changes += 1;
    }
}

/// What an answer says about the name that was asked for.
struct Answer {
    name: String,
    /// With their times to live, seconds.
    addresses: Vec<(IpAddr, u32)>,
}

impl Answer {
    fn read(message: &[u8]) -> Option<Self> {
        let mut reader = Reader { message, at: 0 };
        let _id = reader.word()?;
        let flags = reader.word()?;
        let (questions, answers) = (reader.word()?, reader.word()?);
        let _authority_and_additional = (reader.word()?, reader.word()?);
        // A response, to a standard query, without an error.
        if flags & 0xf80f != 0x8000 || questions != 1 {
            return None;
        }
        let asked = reader.name()?;
        let (kind, class) = (reader.word()?, reader.word()?);
        if !matches!(kind, TYPE_A | TYPE_AAAA) || class != CLASS_IN {
            return None;
        }

        let (mut addresses, mut aliases) = (Vec::new(), Vec::new());
        for _ in 0..usize::from(answers).min(RECORDS) {
            let owner = reader.name()?;
            let (kind, class, ttl) = (reader.word()?, reader.word()?, reader.double()?);
            let length = usize::from(reader.word()?);
            let from = reader.at;
            let data = reader.take(length)?;
            // The highest bit is never set (RFC 2181).
            let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
            let address = match (class, kind) {
                (CLASS_IN, TYPE_A) => Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into(),
                (CLASS_IN, TYPE_AAAA) => Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).into(),
                (CLASS_IN, TYPE_CNAME) => {
                    let mut inside = Reader { message, at: from };
                    let target = inside.name()?;
                    if inside.at != reader.at {
                        return None;
                    }
                    if aliases.len() < ALIASES {
                        aliases.push((owner, target, ttl));
                    }
                    continue;
                }
                _ => continue,
            };
            if addresses.len() < ADDRESSES {
                addresses.push((owner, address, ttl));
            }
        }
        let (chain, most) = chain(&asked, &aliases);
        let addresses = addresses
            .into_iter()
            .filter(|(owner, ..)| chain.contains(&owner))
            .map(|(_, address, ttl)| (address, ttl.min(most)))
            .collect();
        Some(Self { name: text(&asked)?, addresses })
    }
}

/// The name asked for and its aliases, each once however they point, and the shortest time of those.
fn chain<'a>(asked: &'a Vec<u8>, aliases: &'a [(Vec<u8>, Vec<u8>, u32)]) -> (Vec<&'a Vec<u8>>, u32) {
    let (mut chain, mut most) = (vec![asked], u32::MAX);
    while let Some((_, target, ttl)) =
        aliases.iter().find(|(owner, ..)| chain.last().is_some_and(|last| *last == owner))
        && !chain.contains(&target)
    {
        chain.push(target);
        most = most.min(*ttl);
    }
    (chain, most)
}

/// A name without compression in the form that rules know; none when it is no host name.
fn text(mut name: &[u8]) -> Option<String> {
    let mut text = String::new();
    while let [length, rest @ ..] = name {
        let (label, rest) = rest.split_at_checked(usize::from(*length))?;
        // A dot inside a label would move the border between labels.
        if label.contains(&b'.') {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(std::str::from_utf8(label).ok()?);
        name = rest;
    }
    normal_name(&text)
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.message.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn word(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn double(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    /// A name: its labels in lower case, each behind its length. A pointer leads to an earlier place than any before
    /// it, so the way through them ends; a name has at most 255 bytes.
    fn name(&mut self) -> Option<Vec<u8>> {
        const MAX_NAME: usize = 254; // without the root's zero
        let mut name = Vec::new();
        let (mut inside, mut lowest, mut back) = (Self { message: self.message, at: self.at }, self.at, None);
        loop {
            let length = inside.byte()?;
            match length {
                0 => break,
                1..=63 => {
                    let label = inside.take(usize::from(length))?;
                    name.push(length);
                    name.extend(label.iter().map(u8::to_ascii_lowercase));
                    if name.len() > MAX_NAME {
                        return None;
                    }
                }
                0xc0.. => {
                    let target = usize::from(u16::from_be_bytes([length & 0x3f, inside.byte()?]));
                    back.get_or_insert(inside.at);
                    if target >= lowest {
                        return None;
                    }
                    (inside.at, lowest) = (target, target);
                }
                _ => return None,
            }
        }
        self.at = back.unwrap_or(inside.at);
        Some(name)
    }
}
