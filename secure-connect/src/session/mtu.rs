//! The largest IP packet that passes from end to end, found by asking (RFC 8899): a padded probe that is answered has
//! passed. Until one was, and whenever the path changes, the floor counts: 1280 bytes, which every path carries.

use std::time::{Duration, Instant};

/// What every path carries (RFC 8200 section 5).
pub const FLOOR: u16 = 1280;
/// The largest we try: an Ethernet's 1500 bytes less IPv4, UDP, our header and the record around it.
pub const MOST: u16 = 1500 - 20 - 8 - hedgerow_shared::wire::tunnel::HEADER as u16 - super::dtls::OVERHEAD as u16;
/// Sizes worth trying, largest first: the Ethernet's over IPv4 and IPv6, behind PPPoE, behind another tunnel.
const SIZES: [u16; 6] = [MOST, MOST - 20, MOST - 28, 1400, 1360, 1320];
/// Time for the answers of one round.
const PATIENCE: Duration = Duration::from_millis(700);
/// Rounds in which the floor was answered and a size was not, before that size is given up.
const ATTEMPTS: u8 = 3;
/// How often it is asked whether more passes by now.
const AGAIN: Duration = Duration::from_secs(600);
/// How often it is asked whether as much still passes.
const CONFIRM: Duration = Duration::from_secs(30);

/// See the module. With every round goes a probe of the floor's size: where that is lost as well the path is full, or
/// down, and says nothing of sizes.
#[derive(Debug)]
pub struct Mtu {
    most: u16,
    now: u16,
    /// Sizes asked for, and in how many rounds each was missed; of one that counts already, whether it still does.
    open: Vec<(u16, u8)>,
    /// A round is under way; whether the floor's probe was answered.
    round: Option<bool>,
    due: Instant,
    search_at: Instant,
}

impl Mtu {
    /// Begins at the floor; `most` is what either end takes.
    #[must_use]
    pub fn new(most: u16, now: Instant) -> Self {
        let mut mtu =
            Self { most: most.max(FLOOR), now: FLOOR, open: Vec::new(), round: None, due: now, search_at: now };
        mtu.search(now);
        mtu
    }

    /// What passes.
    #[must_use]
    pub fn now(&self) -> u16 {
        self.now
    }

    /// The path is another: the floor counts again.
    pub fn restart(&mut self, now: Instant) {
        self.now = FLOOR;
        self.search(now);
    }

    fn search(&mut self, now: Instant) {
        self.open = SIZES.into_iter().filter(|size| *size > self.now && *size <= self.most).map(|s| (s, 0)).collect();
        // An end that takes other sizes than those of the list.
        if self.most > self.now && !SIZES.contains(&self.most) {
            self.open.push((self.most, 0));
        }
        self.round = None;
        self.due = now;
        self.search_at = now + AGAIN;
    }

    /// When `poll` wants to be called.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Calls `ask` with the size of every probe to be sent now.
    pub fn poll(&mut self, now: Instant, mut ask: impl FnMut(u16)) {
        if now < self.due {
            return;
        }
        if self.round.take() == Some(true) {
            self.open.iter_mut().for_each(|(_, missed)| *missed += 1);
            if self.open.contains(&(self.now, ATTEMPTS)) {
                // Large packets do not arrive any more, whatever small ones do: a black hole.
                self.now = FLOOR;
                return self.search(now);
            }
            self.open.retain(|(_, missed)| *missed < ATTEMPTS);
            if self.open.is_empty() {
                return self.rest(now);
            }
        } else if self.open.is_empty() {
            if now >= self.search_at {
                self.search(now);
            }
            if self.now > FLOOR {
                self.open.push((self.now, 0));
            }
            if self.open.is_empty() {
                return self.rest(now);
            }
        }
        self.open.iter().for_each(|(size, _)| ask(*size));
        ask(FLOOR);
        self.round = Some(false);
        self.due = now + PATIENCE;
    }

    fn rest(&mut self, now: Instant) {
        self.due = if self.now > FLOOR { now + CONFIRM } else { self.search_at.max(now) };
    }

    /// A probe of so many bytes was answered. Whether more passes now than was known.
    pub fn passed(&mut self, size: u16, now: Instant) -> bool {
        if size == FLOOR {
            self.round = self.round.map(|_| true);
        }
        if size > self.most || !self.open.iter().any(|(open, _)| *open == size) {
            return false;
        }
        let news = size > self.now;
        self.now = self.now.max(size);
        self.open.retain(|(open, _)| *open > size);
        if self.open.is_empty() {
            self.round = None;
            self.rest(now);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets a path that carries `path` bytes answer for `time`; returns what is known then and how many probes it took.
    fn run(mtu: &mut Mtu, now: &mut Instant, time: Duration, path: u16) -> (u16, usize) {
        let (end, mut sent) = (*now + time, 0);
        while mtu.due() <= end {
            *now = (*now).max(mtu.due());
            let mut asked = Vec::new();
            mtu.poll(*now, |size| asked.push(size));
            sent += asked.len();
            for size in asked.into_iter().filter(|s| *s <= path.max(FLOOR)) {
                mtu.passed(size, *now);
            }
        }
        *now = end;
        (mtu.now(), sent)
    }

    #[test]
    fn the_largest_size_that_passes_is_found_and_no_larger_one() {
        for (path, found) in
            [(MOST, MOST), (MOST - 1, MOST - 20), (1400, 1400), (1399, 1360), (1280, FLOOR), (500, FLOOR)]
        {
            let start = Instant::now();
            let mut now = start;
            let mut mtu = Mtu::new(MOST, start);
            let (known, sent) = run(&mut mtu, &mut now, Duration::from_secs(5), path);
            assert_eq!(known, found, "path {path}");
            assert!(sent <= 21, "{sent} probes");
        }
    }

    #[test]
    fn what_the_other_end_takes_is_never_exceeded() {
        let mut now = Instant::now();
        let mut mtu = Mtu::new(1340, now);
        assert_eq!(run(&mut mtu, &mut now, Duration::from_secs(5), 9000).0, 1340);
        let mut mtu = Mtu::new(900, now);
        assert_eq!(run(&mut mtu, &mut now, Duration::from_secs(5), 9000).0, FLOOR, "the floor holds whatever is said");
        assert!(!mtu.passed(9000, now), "an answer to what was never asked");
    }

    #[test]
    fn a24_a_path_that_begins_to_swallow_large_packets_is_noticed() {
        let mut now = Instant::now();
        let mut mtu = Mtu::new(MOST, now);
        assert_eq!(run(&mut mtu, &mut now, Duration::from_secs(60), MOST).0, MOST);
        assert_eq!(run(&mut mtu, &mut now, Duration::from_secs(40), 1400).0, 1400);
        // And one that mends is used again, without a flood of questions.
        let (known, sent) = run(&mut mtu, &mut now, Duration::from_secs(700), MOST);
        assert_eq!(known, MOST);
        assert!(sent < 90, "{sent} probes");
    }

    #[test]
    fn a_path_that_is_full_or_down_says_nothing_of_sizes() {
        let mut now = Instant::now();
        let mut mtu = Mtu::new(MOST, now);
        assert_eq!(run(&mut mtu, &mut now, Duration::from_secs(60), MOST).0, MOST);
        let end = now + Duration::from_secs(600);
        while now < end {
            now = now.max(mtu.due());
            mtu.poll(now, |_| {});
        }
        assert_eq!(mtu.now(), MOST);
        assert_eq!(run(&mut mtu, &mut now, Duration::from_secs(60), MOST).0, MOST);
    }

    #[test]
    fn a_change_of_path_begins_at_the_floor() {
        let mut now = Instant::now();
        let mut mtu = Mtu::new(MOST, now);
        run(&mut mtu, &mut now, Duration::from_secs(5), MOST);
        mtu.restart(now);
        assert_eq!(mtu.now(), FLOOR);
        assert_eq!(run(&mut mtu, &mut now, Duration::from_secs(5), MOST).0, MOST);
    }
}
