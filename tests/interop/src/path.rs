//! The way between two ends, in memory and in virtual time: datagrams are lost, doubled and overtaken as the dice of a
//! seed say. Only their number is not the seed's: both libraries have randomness of their own.

use std::time::{Duration, Instant};

/// One end, driven from outside.
pub trait End {
    /// Tells the time: do what is due.
    fn wake(&mut self, now: Instant);
    /// A datagram arrives.
    fn take(&mut self, datagram: &[u8]);
    /// The datagrams that are to go out.
    fn sent(&mut self) -> Vec<Vec<u8>>;
    /// When `wake` is wanted.
    fn due(&self) -> Option<Instant>;
}

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Ours,
    Theirs,
}

/// What happens to datagrams, in percent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    pub lost: u64,
    pub doubled: u64,
    /// Held back until later ones have overtaken it.
    pub late: u64,
}

/// What has happened to them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counted {
    pub lost: u32,
    pub doubled: u32,
    pub late: u32,
}

/// SplitMix64, from 0 to 99.
pub struct Dice(u64);

impl Dice {
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    pub fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % 100
    }
}

pub struct Path {
    dice: Dice,
    pub weather: Weather,
    pub counted: Counted,
    under_way: Vec<(Instant, From, Vec<u8>)>,
    without: Option<usize>,
    /// Who sent, and the first byte, of every datagram that was sent.
    log: Vec<(From, u8)>,
}

impl Path {
    const DELAY: Duration = Duration::from_millis(10);
    const LATE: Duration = Duration::from_millis(35);

    pub fn clear() -> Self {
        Self::of(1, Weather::default())
    }

    pub fn of(seed: u64, weather: Weather) -> Self {
        Self {
            dice: Dice::of(seed),
            weather,
            counted: Counted::default(),
            under_way: Vec::new(),
            without: None,
            log: Vec::new(),
        }
    }

    /// Loses nothing but the nth datagram, counted from 0 over both ways.
    pub fn without(nth: usize) -> Self {
        Self { without: Some(nth), ..Self::clear() }
    }

    /// From here on nothing happens to datagrams.
    pub fn clear_up(&mut self) {
        self.weather = Weather::default();
        self.without = None;
    }

    /// How often an end has begun to seal with other keys: the epoch's low bits stand in the first byte of a record of
    /// DTLS 1.3 (RFC 9147 section 4).
    pub fn changes_of_keys(&self, of: From) -> usize {
        let sealed = |first: &u8| first >> 5 == 0b001;
        let firsts = self.log.iter().filter(|(from, _)| *from == of).map(|(_, first)| *first).filter(sealed);
        let mut epochs: Vec<u8> = firsts.map(|first| first & 0b11).collect();
        epochs.dedup();
        epochs.len().saturating_sub(1)
    }

    fn send(&mut self, from: From, datagram: Vec<u8>, now: Instant) {
        let (lost, doubled, late) = (self.dice.throw(), self.dice.throw(), self.dice.throw());
        let is_unlucky = self.without == Some(self.log.len());
        self.log.extend(datagram.first().map(|first| (from, *first)));
        if lost < self.weather.lost || is_unlucky {
            self.counted.lost += 1;
            return;
        }
        let mut at = now + Self::DELAY;
        if doubled < self.weather.doubled {
            self.counted.doubled += 1;
            self.under_way.push((at + Self::DELAY, from, datagram.clone()));
        }
        if late < self.weather.late {
            self.counted.late += 1;
            at += Self::LATE;
        }
        self.under_way.push((at, from, datagram));
    }

    fn due(&self) -> Option<Instant> {
        self.under_way.iter().map(|(at, ..)| *at).min()
    }

    /// What arrives now, the earliest sent first.
    fn arrived(&mut self, now: Instant) -> Option<(From, Vec<u8>)> {
        let index = self.under_way.iter().position(|(at, ..)| *at <= now)?;
        let (_, from, datagram) = self.under_way.remove(index);
        Some((from, datagram))
    }
}

/// Lets both ends talk until `done`, or for `most` of virtual time; returns whether it was done. `now` goes on.
pub fn talk<A: End, B: End>(
    (ours, theirs): (&mut A, &mut B),
    path: &mut Path,
    now: &mut Instant,
    most: Duration,
    mut done: impl FnMut(&mut A, &mut B) -> bool,
) -> bool {
    let end = *now + most;
    loop {
        ours.wake(*now);
        theirs.wake(*now);
        while let Some((from, datagram)) = path.arrived(*now) {
            match from {
                From::Ours => theirs.take(&datagram),
                From::Theirs => ours.take(&datagram),
            }
        }
        for datagram in ours.sent() {
            path.send(From::Ours, datagram, *now);
        }
        for datagram in theirs.sent() {
            path.send(From::Theirs, datagram, *now);
        }
        if done(ours, theirs) {
            return true;
        }
        let next = [ours.due(), theirs.due(), path.due()].into_iter().flatten().min();
        match next {
            // A timer that stays due without effect must not stop the time.
            Some(next) if next <= end => *now = next.max(*now + Duration::from_millis(1)),
            Some(_) | None => {
                *now = end;
                return false;
            }
        }
    }
}
