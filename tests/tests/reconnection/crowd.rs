//! Ten thousand diallers as they are, less their sockets: the product's `Backoff`, the relay's pace (`Limiter`) and the
//! times that a draining relay gives out, in virtual time.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use hedgerow_relay::config::Limits;
use hedgerow_relay::limit::Limiter;
use hedgerow_relay::state::return_at;
use hedgerow_runtime::link::Backoff;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use tokio::time::Instant;

const NODES: usize = 10_000;
/// Everybody is back so soon after the relay is.
const WINDOW: Duration = Duration::from_secs(30);
/// Most hand-shakes that begin within any one second: what the relay's pace and its saved-up quarter allow.
const PEAK: usize = 1_250;
/// From an attempt to its answer.
const ROUND_TRIP: Duration = Duration::from_millis(40);
/// From the end of the hand-shake's first flight to the open link.
const SHAKING: Duration = Duration::from_millis(60);

thread_local! {
    static DICE: Cell<u64> = const { Cell::new(0) };
}

/// `SplitMix64` of this thread.
fn dice() -> u64 {
    let state = DICE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    DICE.set(state);
    let mut z = state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How the relay goes away.
#[derive(Debug, Clone, Copy)]
enum Leaves {
    /// Every link is reset at once.
    Crash,
    /// Every link is told when to come back.
    Drain,
    /// Its machine is cut off: nobody answers at all.
    Silence,
}

/// What came of it: the time from the relay's return until the last node was back, the most hand-shakes within a second,
/// and connections that were closed unanswered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Came {
    window: Duration,
    peak: usize,
    shed: usize,
}

fn come_back(seed: u64, leaves: Leaves, away: Duration) -> Came {
    DICE.set(seed);
    let limits = Limits::default();
    let pace: Limiter<()> = Limiter::new(limits.pace());
    let start = Instant::now();
    let back_at = start + away;
    let mut nodes: Vec<Backoff> = (0..NODES).map(|_| Backoff::with_dice(Timers::default().resume, dice)).collect();
    let mut attempts = BinaryHeap::new();
    for (place, backoff) in nodes.iter_mut().enumerate() {
        let lived = Duration::from_secs(3600);
        let told = match leaves {
            Leaves::Drain => Duration::from_millis(return_at(2_000, place as u64)),
            Leaves::Crash | Leaves::Silence => Duration::ZERO,
        };
        // A loss is not noticed everywhere in the same millisecond.
        let noticed = start + Duration::from_millis(dice() % 50);
        attempts.push(Reverse((noticed + backoff.lost(lived, noticed).max(told), place)));
    }
    let (mut recent, mut peak, mut shed, mut last) = (VecDeque::new(), 0, 0, back_at);
    while let Some(Reverse((at, place))) = attempts.pop() {
        let answered = at + ROUND_TRIP;
        let (code, heard) = if answered < back_at {
            match leaves {
                Leaves::Crash | Leaves::Drain => (Code::ConnectionRefused, answered),
                Leaves::Silence => (Code::TimedOut, at + Timers::default().connect),
            }
        } else if pace.take((), answered.into_std()).is_err() {
            shed += 1;
            (Code::Lost, answered)
        } else {
            recent.push_back(answered);
            while recent.front().is_some_and(|first| answered - *first >= Duration::from_secs(1)) {
                recent.pop_front();
            }
            peak = peak.max(recent.len());
            last = last.max(answered + SHAKING);
            continue;
        };
        let pause = nodes[place].failed(&Fault::new(code, ""), heard);
        attempts.push(Reverse((heard + pause, place)));
    }
    Came { window: last - back_at, peak, shed }
}

#[test]
fn p01_ten_thousand_nodes_are_back_in_time_and_under_the_peak_however_long_the_relay_was_away() {
    for leaves in [Leaves::Crash, Leaves::Drain, Leaves::Silence] {
        for away in [200, 1_000, 5_000, 20_000, 60_000, 600_000].map(Duration::from_millis) {
            for seed in 0..3 {
                let came = come_back(seed, leaves, away);
                eprintln!("{leaves:?} for {away:?}: {came:?}");
                assert!(came.window <= WINDOW && came.peak <= PEAK, "{leaves:?} for {away:?}, seed {seed}: {came:?}");
            }
        }
    }
}

#[test]
fn p01_those_who_were_told_when_to_come_back_need_not_be_turned_away() {
    // Up again before the first of them may return: the times that it gave out are all it takes.
    let came = come_back(1, Leaves::Drain, Duration::from_secs(1));
    assert!(came.shed == 0 && came.peak <= 520, "{came:?}");
    assert!(come_back(1, Leaves::Crash, Duration::from_secs(1)).shed > 0, "without a word they come together");
}

#[test]
fn p01_the_same_seed_gives_the_same_crowd() {
    let crowd = |seed| come_back(seed, Leaves::Crash, Duration::from_secs(5));
    assert_eq!(crowd(1), crowd(1));
    assert_ne!(crowd(1), crowd(2));
}
