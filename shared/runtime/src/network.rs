//! Changes of this machine's network addresses: cables, Wi-Fi, VPNs, sleep. What stands on an address that is gone
//! looks alive for minutes; whoever learns of the change can ask for a sign of life at once.

use std::net::IpAddr;

use futures_util::StreamExt;
use if_watch::IfEvent;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::{Duration, sleep};

use crate::scope::Scope;

/// Several changes come together: an address goes, another comes, routes follow.
const SETTLE: Duration = Duration::from_millis(300);

/// How often it is looked whether this machine has slept.
const LOOK: Duration = Duration::from_secs(2);
/// A clock that runs on in sleep is so much ahead of one that does not: shorter sleeps break nothing.
const SLEPT: Duration = Duration::from_secs(3);

/// Addresses of this process's own tunnel: they come and go with it and say nothing of the network below.
static OWN: RwLock<Vec<IpAddr>> = RwLock::new(Vec::new());

/// Changes of these addresses are of this process's own making, and no news.
pub fn own(addresses: Vec<IpAddr>) {
    let mut own = OWN.write();
    let news: Vec<_> = addresses.into_iter().filter(|address| !own.contains(address)).collect();
    own.extend(news);
}

/// Counts the changes from now on, and sleeps of this machine: whoever talked with it may have given it up. Where the
/// system does not tell of changes (a container without netlink) it counts sleeps only.
#[must_use]
pub fn watch(scope: &Scope) -> watch::Receiver<u64> {
    let (changes, receiver) = watch::channel(0);
    let slept = changes.clone();
    scope.spawn(async move {
        let mut sleeps = Sleeps::default();
        loop {
            sleep(LOOK).await;
            if let Some(length) = sleeps.look(both_clocks()) {
                slept.send_modify(|n| *n += 1);
                tracing::info!(seconds = length.as_secs(), "this machine has slept: asking for signs of life");
                metrics::counter!("hedgerow_sleeps_total").increment(1);
            }
        }
    });
    scope.spawn(async move {
        let mut watcher = match if_watch::tokio::IfWatcher::new() {
            Ok(watcher) => watcher,
            Err(error) => {
                tracing::info!(%error, "the system does not tell of network changes; they are noticed by silence");
                return std::future::pending().await;
            }
        };
        // What is there already comes first, as if it were new.
        let _ = tokio::time::timeout(SETTLE, async { while watcher.next().await.is_some() {} }).await;
        while let Some(event) = watcher.next().await {
            let (Ok(IfEvent::Up(net)) | Ok(IfEvent::Down(net))) = event else { continue };
            if OWN.read().contains(&net.addr()) {
                continue;
            }
            sleep(SETTLE).await;
            changes.send_modify(|n| *n += 1);
            tracing::info!("the network changed: asking for signs of life");
            metrics::counter!("hedgerow_network_changes_total").increment(1);
        }
    });
    receiver
}

/// Tells sleep by two clocks, neither of which a change of the calendar clock moves.
#[derive(Debug, Default)]
struct Sleeps {
    /// How far the clock that runs on in sleep was ahead.
    ahead: Option<Duration>,
}

impl Sleeps {
    /// How long the machine has slept since the last look, if it has. `clocks`: one that runs on in sleep, one that stops.
    fn look(&mut self, (runs_on, stops): (Duration, Duration)) -> Option<Duration> {
        let ahead = runs_on.saturating_sub(stops);
        let before = self.ahead.replace(ahead)?;
        Some(ahead.saturating_sub(before)).filter(|slept| *slept >= SLEPT)
    }
}

#[cfg(target_os = "linux")]
fn both_clocks() -> (Duration, Duration) {
    let read = |clock| {
        let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `at` is a valid timespec to write to.
        let known = unsafe { libc::clock_gettime(clock, &raw mut at) } == 0;
        let seconds = u64::try_from(at.tv_sec).unwrap_or_default();
        if known { Duration::new(seconds, u32::try_from(at.tv_nsec).unwrap_or_default()) } else { Duration::ZERO }
    };
    (read(libc::CLOCK_BOOTTIME), read(libc::CLOCK_MONOTONIC))
}

/// Elsewhere sleep is noticed by silence.
#[cfg(not(target_os = "linux"))]
fn both_clocks() -> (Duration, Duration) {
    (Duration::ZERO, Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_is_told_from_time_that_passes_and_is_told_once() {
        let at = |runs_on: u64, stops: u64| (Duration::from_secs(runs_on), Duration::from_secs(stops));
        let mut sleeps = Sleeps::default();
        assert_eq!(sleeps.look(at(1_000, 900)), None, "sleeps before the start of this process");
        assert_eq!(sleeps.look(at(1_002, 902)), None);
        assert_eq!(sleeps.look(at(4_604, 904)), Some(Duration::from_secs(3_600)));
        assert_eq!(sleeps.look(at(4_606, 906)), None);
        assert_eq!(sleeps.look(at(4_609, 908)), None, "a second is no sleep");
        let (runs_on, stops) = both_clocks();
        // They are read one after the other.
        assert!(runs_on + SLEPT > stops);
    }
}
