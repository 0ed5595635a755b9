//! One subject measured: TCP both ways with the CPU of its parts, UDP of 1200 bytes, ping.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use super::Amount;
use super::ground::{INSIDE, Place};
use super::subjects::Subject;
use crate::figures::Figures;

/// Figures, by name.
pub(crate) const TCP: [&str; 2] = ["TCP up", "TCP down"];
pub(crate) const UDP: &str = "UDP of 1200 bytes, at most 1 % lost";
pub(crate) const P50: &str = "ping: p50";
pub(crate) const P99: &str = "ping: p99";
pub(crate) const ADDED: &str = "ping: p50 more than direct";
/// What other people's builds took meanwhile: figures with much of it say little.
pub(crate) const NICED: &str = "niced processes meanwhile";

/// CPU of all parts together while `of` was measured.
pub(crate) fn cpu_of_all(of: &str) -> String {
    format!("{of}: CPU of all")
}

/// Offered and received rate, Mbit/s.
pub(crate) type Step = (f64, f64);

/// Measures everything once. What UDP was offered and what arrived.
pub(crate) fn measure(
    subject: &Subject,
    round: usize,
    amount: &Amount,
    figures: &mut Figures,
) -> anyhow::Result<Vec<Step>> {
    let name = subject.name;
    let machine = ticks();
    let pings = ping(subject, amount.pings).context("ping")?;
    let (p50, p99) = (at(&pings, 0.5), at(&pings, 0.99));
    figures.add(round, name, P50, "us", p50);
    figures.add(round, name, P99, "us", p99);
    // Direct is measured first in its round.
    if let Some(direct) = figures.sample("direct", P50, round).filter(|_| name != "direct") {
        figures.add(round, name, ADDED, "us", p50 - direct);
    }
    for (figure, down) in TCP.into_iter().zip([false, true]) {
        let before = subject.cpu();
        let (rate, bytes) = tcp(subject, amount.time, down).context(figure)?;
        figures.add(round, name, figure, "Mbit/s", rate);
        let gib = bytes / f64::from(1u32 << 30);
        let mut all = 0.0;
        for ((part, before), (_, after)) in before.iter().zip(subject.cpu()) {
            figures.add(round, name, &format!("{figure}: CPU of {part}"), "s/GiB", (after - before) / gib);
            all += (after - before) / gib;
        }
        if !subject.parts.is_empty() {
            figures.add(round, name, &cpu_of_all(figure), "s/GiB", all);
        }
    }
    let (best, steps) = udp(subject, amount).context("UDP")?;
    figures.add(round, name, UDP, "Mbit/s", best);
    if let (Some((niced, all)), Some((niced_now, all_now))) = (machine, ticks()) {
        figures.add(round, name, NICED, "% of all CPUs", (niced_now - niced) / (all_now - all).max(1.0) * 100.0);
    }
    Ok(steps)
}

/// CPU ticks of the machine: of niced processes, and all; `None` when this one is niced itself.
fn ticks() -> Option<(f64, f64)> {
    // SAFETY: getpriority reads a number of this process.
    if unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) } > 0 {
        return None;
    }
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<f64> = stat.lines().next()?.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    // The last two, guests, are in the first two already.
    Some((*fields.get(1)?, fields.iter().take(8).sum()))
}

/// Times of pings, us, sorted.
fn ping(subject: &Subject, count: usize) -> anyhow::Result<Vec<f64>> {
    let said = subject.ground.say(Place::Client, &format!("ping -n -i 0.005 -W 1 -c {count} {INSIDE}"))?;
    let times = said.lines().filter_map(|l| l.split_once("time=")?.1.split(' ').next()?.parse::<f64>().ok());
    let mut times: Vec<f64> = times.map(|ms| ms * 1e3).collect();
    times.sort_by(f64::total_cmp);
    if times.len() * 10 < count * 9 {
        bail!("only {} of {count} came back", times.len());
    }
    Ok(times)
}

fn at(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get(((sorted.len() as f64 * share) as usize).min(last)).copied().unwrap_or(f64::NAN)
}

/// Rate of what arrived, Mbit/s, and its bytes.
fn tcp(subject: &Subject, time: Duration, down: bool) -> anyhow::Result<(f64, f64)> {
    let way = if down { "-R" } else { "" };
    let said = iperf(subject, &format!("-C cubic {way}"), time)?;
    let received = &said["end"]["sum_received"];
    let number = |key: &str| received[key].as_f64().with_context(|| format!("iperf3 says no {key}"));
    let bytes = number("bytes")?;
    if bytes == 0.0 {
        bail!("nothing arrived");
    }
    Ok((number("bits_per_second")? / 1e6, bytes))
}

/// Rates that are asked for, Mbit/s: the first, and the least.
const FIRST: f64 = 400.0;
const LEAST: f64 = 10.0;
/// A rate holds when at most so much is lost, percent, and the sender keeps up to so much of it.
const LOST: f64 = 1.0;
const KEPT: f64 = 0.93;
/// The search ends when the rate that does not hold is no further than this above one that does, or after so many steps.
const NEAR: f64 = 1.08;
const STEPS: usize = 12;
/// A rate may fail so often before it counts as one that does not hold: a moment in which the machine does something
/// else is enough to lose one in a hundred.
const TRIES: usize = 2;

/// The highest rate from the client that holds: doubled until one does not hold (halved until one does), then the middle
/// between. What arrived then, Mbit/s, and all steps.
fn udp(subject: &Subject, amount: &Amount) -> anyhow::Result<(f64, Vec<Step>)> {
    let (mut low, mut high, mut best) = (None, None, 0.0);
    let mut steps = Vec::new();
    let (mut rate, mut failed) = (FIRST, 0);
    while steps.len() < STEPS.min(amount.steps) && rate >= LEAST {
        let said = iperf(subject, &format!("-u -l 1200 -w 2M -b {rate:.0}M"), amount.udp)?;
        let sum = &said["end"]["sum"];
        let number = |key: &str| sum[key].as_f64().with_context(|| format!("iperf3 says no {key}"));
        let (sent, lost) = (number("bits_per_second")? / 1e6, number("lost_percent")?);
        let received = sent * (1.0 - lost / 100.0);
        steps.push((rate, received));
        if lost <= LOST && sent >= KEPT * rate {
            low = Some(rate);
            best = received.max(best);
        } else if failed + 1 < TRIES {
            failed += 1;
            continue;
        } else {
            high = Some(rate);
        }
        failed = 0;
        rate = match (low, high) {
            (None, _) => rate / 2.0,
            (_, None) => rate * 2.0,
            (Some(low), Some(high)) if high <= low * NEAR => break,
            (Some(low), Some(high)) => f64::midpoint(low, high),
        };
    }
    Ok((best, steps))
}

/// What iperf3 says of a run from the client.
fn iperf(subject: &Subject, words: &str, time: Duration) -> anyhow::Result<Value> {
    let seconds = time.as_secs_f64().ceil();
    let words = format!("timeout {} iperf3 -J -c {INSIDE} -t {seconds} {words}", seconds + 20.0);
    // A server that still holds the run before says so.
    for _ in 0..10 {
        let output = subject.ground.words(Place::Client, &words).output()?;
        let said: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{words}: {}", String::from_utf8_lossy(&output.stderr).trim()))?;
        match said["error"].as_str() {
            None => return Ok(said),
            Some(error) if error.contains("busy") => std::thread::sleep(Duration::from_secs(1)),
            Some(error) => bail!("iperf3: {error}"),
        }
    }
    bail!("iperf3's server stays busy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_a_sorted_row_are_its_members() {
        let row: Vec<f64> = (0..200).map(f64::from).collect();
        assert_eq!([at(&row, 0.5), at(&row, 0.99), at(&row, 1.0)], [100.0, 198.0, 199.0]);
        assert!(at(&[], 0.5).is_nan());
    }
}
