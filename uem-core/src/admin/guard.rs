//! How often somebody may try to sign in.
//!
//! An attempt is counted as wrong before anything is checked, so that attempts side by side are counted too, and it counts for
//! three: the address from this source, the source whatever the address, and the address from wherever nobody has signed in
//! with it. Whether anybody has the address plays no part: who guesses learns nothing from being locked out. An
//! administrator cannot be locked out from where they have signed in by somebody elsewhere.
//!
//! It is kept in memory: a start of the core begins it anew.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use hedgerow_shared::{TenantId, UnixTime};

use crate::account::Email;

/// Wrong attempts with one address from one source until both are locked for a while.
pub const MAX_WRONG: u32 = 5;
/// Wrong attempts from one source, with whatever addresses.
pub const MAX_WRONG_OF_SOURCE: u32 = 30;
/// Wrong attempts with one address from sources that nobody has signed in from with it.
pub const MAX_WRONG_OF_ADDRESS: u32 = 100;
/// How long the first lock lasts, seconds; each further wrong attempt doubles it.
const FIRST_LOCK_SECONDS: u64 = 60;
/// The longest lock, seconds.
const LONGEST_LOCK_SECONDS: u64 = 3600;
/// How long wrong attempts are remembered after the first one, seconds.
const FORGET_SECONDS: u64 = 24 * 3600;
/// How long a source is one that somebody has signed in from, seconds.
const FAMILIAR_SECONDS: u64 = 30 * 24 * 3600;
/// Counts that are kept; the oldest go first.
const MAX_COUNTS: usize = 30_000;

/// Where an attempt comes from: an IPv4 address, or the /64 of an IPv6 address, which one customer has whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        })
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            IpAddr::V4(v4) => write!(f, "{v4}"),
            IpAddr::V6(v6) => write!(f, "{v6}/64"),
        }
    }
}

/// An attempt that may be made: it is counted. Without one nobody's password is looked at.
#[derive(Debug)]
pub struct Admitted {
    pub(crate) tenant: TenantId,
    pub(crate) email: Email,
    pub(crate) source: Source,
    /// What it was counted for, and the lock that it made there.
    counted: Vec<(Key, Option<UnixTime>)>,
}

/// Too many wrong attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many wrong attempts: try again later")]
pub struct Locked {
    /// The first moment at which another one may be made.
    pub until: UnixTime,
}

/// The counts. One for the process; a door holds it behind a lock of its own.
#[derive(Debug, Default)]
pub struct SignInGuard {
    counts: HashMap<Key, Count>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Pair(TenantId, Email, Source),
    Source(TenantId, Source),
    Address(TenantId, Email),
}

#[derive(Debug, Default)]
struct Count {
    wrong: u32,
    locked_until: Option<UnixTime>,
    last: UnixTime,
    /// When the first of the wrong ones was.
    began: UnixTime,
    /// When somebody last signed in so; of pairs alone.
    right: Option<UnixTime>,
}

impl SignInGuard {
    /// Counts an attempt, if it may be made.
    ///
    /// # Errors
    /// `Locked`; such an attempt is not counted, so that a lock ends whatever goes on.
    pub fn admit(
        &mut self,
        (tenant, email): (&TenantId, &Email),
        source: impl Into<Source>,
        now: UnixTime,
    ) -> Result<Admitted, Locked> {
        let source = source.into();
        let keys = self.keys((tenant, email), source, now);
        let locks = keys.iter().filter_map(|key| self.counts.get(key)?.locked_until);
        if let Some(until) = locks.filter(|until| *until > now).max() {
            return Err(Locked { until });
        }
        if self.counts.len() + keys.len() > MAX_COUNTS {
            self.make_room(now);
        }
        let counted = keys.into_iter().map(|key| {
            let most = key.most();
            let lock = self.counts.entry(key.clone()).or_default().attempt(most, now);
            (key, lock)
        });
        let counted = counted.collect();
        Ok(Admitted { tenant: tenant.clone(), email: email.clone(), source, counted })
    }

    /// The password was right: the attempt was none of the wrong ones.
    pub fn right(&mut self, admitted: &Admitted, now: UnixTime) {
        for (key, lock) in &admitted.counted {
            let Some(count) = self.counts.get_mut(key) else { continue };
            if matches!(key, Key::Pair(..)) {
                *count = Count { right: Some(now), last: now, began: now, ..Count::default() };
            } else {
                count.wrong = count.wrong.saturating_sub(1);
                // A lock that another attempt made meanwhile stays.
                count.locked_until = count.locked_until.filter(|until| Some(*until) != *lock);
            }
        }
    }

    /// Ends every lock of an address: somebody has set another password. Where they have signed in is still known.
    pub fn forget(&mut self, (tenant, email): (&TenantId, &Email)) {
        for (key, count) in &mut self.counts {
            if let Key::Pair(of, who, _) | Key::Address(of, who) = key
                && (of, who) == (tenant, email)
            {
                *count = Count { right: count.right, last: count.last, began: count.began, ..Count::default() };
            }
        }
    }

    /// What an attempt counts for.
    fn keys(&self, (tenant, email): (&TenantId, &Email), source: Source, now: UnixTime) -> Vec<Key> {
        let pair = Key::Pair(tenant.clone(), email.clone(), source);
        let is_familiar = self.counts.get(&pair).is_some_and(|count| count.is_familiar(now));
        let mut keys = vec![pair, Key::Source(tenant.clone(), source)];
        if !is_familiar {
            keys.push(Key::Address(tenant.clone(), email.clone()));
        }
        keys
    }

    /// Drops what has been forgotten, and if that is not enough the oldest quarter; locks, and where somebody has signed in, go
    /// last.
    fn make_room(&mut self, now: UnixTime) {
        self.counts.retain(|_, count| !count.is_forgotten(now) || count.is_precious(now));
        if self.counts.len() < MAX_COUNTS * 3 / 4 {
            return;
        }
        let mut ages: Vec<_> = self.counts.values().map(|count| (count.is_precious(now), count.last)).collect();
        let (_, bound, _) = ages.select_nth_unstable(MAX_COUNTS / 4);
        let bound = *bound;
        self.counts.retain(|_, count| (count.is_precious(now), count.last) > bound);
    }
}

impl Key {
    /// Wrong attempts from which on it is locked.
    fn most(&self) -> u32 {
        match self {
            Self::Pair(..) => MAX_WRONG,
            Self::Source(..) => MAX_WRONG_OF_SOURCE,
            Self::Address(..) => MAX_WRONG_OF_ADDRESS,
        }
    }
}

impl Count {
    /// The lock that it makes.
    fn attempt(&mut self, most: u32, now: UnixTime) -> Option<UnixTime> {
        if self.is_forgotten(now) {
            (self.wrong, self.began) = (0, now);
        }
        self.wrong = self.wrong.saturating_add(1);
        self.last = now;
        self.locked_until = self
            .wrong
            .checked_sub(most)
            .map(|beyond| now.plus(FIRST_LOCK_SECONDS.saturating_mul(1 << beyond.min(16)).min(LONGEST_LOCK_SECONDS)));
        self.locked_until
    }

    fn is_forgotten(&self, now: UnixTime) -> bool {
        self.began.plus(FORGET_SECONDS) < now
    }

    fn is_precious(&self, now: UnixTime) -> bool {
        self.is_familiar(now) || self.locked_until.is_some_and(|until| until > now)
    }

    fn is_familiar(&self, now: UnixTime) -> bool {
        self.right.is_some_and(|right| right.plus(FAMILIAR_SECONDS) > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    struct Door {
        guard: SignInGuard,
        tenant: TenantId,
        now: UnixTime,
    }

    impl Door {
        fn new() -> Self {
            Self { guard: SignInGuard::default(), tenant: "S12345678".parse().unwrap(), now: NOW }
        }

        fn knock(&mut self, email: &str, from: &str) -> Result<Admitted, Locked> {
            let (email, from): (Email, IpAddr) = (email.parse().unwrap(), from.parse().unwrap());
            self.guard.admit((&self.tenant, &email), from, self.now)
        }

        fn sign_in(&mut self, email: &str, from: &str) {
            let admitted = self.knock(email, from).unwrap();
            self.guard.right(&admitted, self.now);
        }

        fn wait(&mut self, seconds: u64) {
            self.now = self.now.plus(seconds);
        }
    }

    #[test]
    fn p18_the_fifth_wrong_attempt_locks_and_each_further_one_for_longer() {
        let mut door = Door::new();
        for _ in 0..MAX_WRONG {
            door.knock("anna@example.com", "192.0.2.1").unwrap();
        }
        let mut lock = 60;
        for _ in 0..10 {
            for _ in 0..3 {
                let locked = door.knock("anna@example.com", "192.0.2.1").unwrap_err();
                assert_eq!(locked.until, door.now.plus(lock), "to ask does not make it longer");
            }
            door.wait(lock);
            door.knock("anna@example.com", "192.0.2.1").unwrap();
            lock = (lock * 2).min(3600);
        }
        assert_eq!(lock, 3600);
        door.wait(lock);
        door.sign_in("anna@example.com", "192.0.2.1");
        for _ in 0..MAX_WRONG {
            door.knock("anna@example.com", "192.0.2.1").unwrap();
        }
        assert!(door.knock("anna@example.com", "192.0.2.1").is_err());
        door.wait(FORGET_SECONDS + 1);
        door.knock("anna@example.com", "192.0.2.1").unwrap();
        door.knock("anna@example.com", "192.0.2.1").expect("the day before is forgotten");
    }

    #[test]
    fn p18_nobody_elsewhere_locks_an_administrator_out_from_where_they_have_signed_in() {
        let mut door = Door::new();
        door.sign_in("anna@example.com", "192.0.2.1");
        let mut made = 0;
        for n in 0..200u32 {
            let from = IpAddr::from(std::net::Ipv4Addr::from_bits(0xc633_6400 + n)).to_string();
            made += (0..MAX_WRONG).filter(|_| door.knock("anna@example.com", &from).is_ok()).count();
        }
        assert_eq!(made, MAX_WRONG_OF_ADDRESS as usize, "a thousand sources guess no more than so often");
        assert!(door.knock("anna@example.com", "203.0.113.9").is_err(), "from where nobody knows her");
        door.sign_in("anna@example.com", "192.0.2.1");
        door.knock("bob@example.com", "203.0.113.9").expect("others are others");
        let anna = "anna@example.com".parse().unwrap();
        door.guard.forget((&door.tenant, &anna));
        door.wait(FORGET_SECONDS + 1);
        for n in 0..200u32 {
            let from = IpAddr::from(std::net::Ipv4Addr::from_bits(0xc633_6400 + n)).to_string();
            (0..MAX_WRONG).for_each(|_| _ = door.knock("anna@example.com", &from));
        }
        assert!(door.knock("anna@example.com", "203.0.113.9").is_err());
        door.sign_in("anna@example.com", "192.0.2.1");
        door.guard.forget((&door.tenant, &anna));
        door.sign_in("anna@example.com", "203.0.113.9");
    }

    #[test]
    fn p18_a_source_that_tries_many_addresses_is_locked_as_a_whole() {
        let mut door = Door::new();
        let mut made = 0;
        for n in 0..100 {
            let from = format!("2001:db8:1:2::{n:x}");
            made += u32::from(door.knock(&format!("n{n}@example.com"), &from).is_ok());
        }
        assert_eq!(made, MAX_WRONG_OF_SOURCE, "one /64 is one source");
        door.knock("n1@example.com", "2001:db8:1:3::1").unwrap();
        // Many people behind one address sign in all day.
        for n in 0..200 {
            door.sign_in(&format!("n{n}@example.com"), "192.0.2.1");
        }
        // Some of them mistype, and that does not lock out those who do not.
        for n in 0..MAX_WRONG_OF_SOURCE - 2 {
            door.knock(&format!("n{n}@example.com"), "192.0.2.1").unwrap();
        }
        for n in 100..200 {
            door.sign_in(&format!("n{n}@example.com"), "192.0.2.1");
        }
        // A lock that was made meanwhile is not undone by them.
        let right = door.knock("n200@example.com", "192.0.2.1").unwrap();
        door.knock("n201@example.com", "192.0.2.1").unwrap();
        assert!(door.knock("n202@example.com", "192.0.2.1").is_err(), "that was the thirtieth");
        door.guard.right(&right, door.now);
        assert!(door.knock("n202@example.com", "192.0.2.1").is_err());
        door.wait(FORGET_SECONDS + 1);
        door.knock("n202@example.com", "192.0.2.1").unwrap();
    }

    #[test]
    fn p18_counts_are_bounded_and_where_somebody_signed_in_is_forgotten_last() {
        let mut door = Door::new();
        door.sign_in("anna@example.com", "192.0.2.1");
        for _ in 0..MAX_WRONG + 7 {
            _ = door.knock("bob@example.com", "192.0.2.7");
            if door.knock("bob@example.com", "192.0.2.7").is_err() {
                door.wait(3601);
            }
        }
        _ = door.knock("bob@example.com", "192.0.2.7");
        let locked = door.knock("bob@example.com", "192.0.2.7").unwrap_err();
        for n in 0..2 * u32::try_from(MAX_COUNTS).unwrap() {
            if n % 100 == 0 {
                door.wait(1);
            }
            let from = IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n)).to_string();
            _ = door.knock(&format!("n{n}@example.com"), &from);
        }
        assert!(door.guard.counts.len() <= MAX_COUNTS);
        assert_eq!(door.knock("bob@example.com", "192.0.2.7").unwrap_err(), locked);
        door.sign_in("anna@example.com", "192.0.2.1");
    }
}
