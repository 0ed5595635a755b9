//! A process of simulated devices: does as it is told, one order a line.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::StreamExt as _;
use futures_util::stream;
use hedgerow_runtime::clock;
use hedgerow_tunnel::Sealer;
use serde::{Deserialize, Serialize};

use super::device::{Device, World};
use crate::link::Transport;
use crate::process::{Process, raise_descriptors, take_memory_late};

/// Attempts at a link or a tunnel: devices try again too.
const ATTEMPTS: usize = 3;
/// The pause between, the first of a device.
const PAUSE: Duration = Duration::from_millis(500);

/// What a crowd can be told.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Order {
    /// Open so many links, at most so many at once.
    Links { by: Transport, count: usize, at_once: usize },
    /// Bring up a tunnel on each.
    Tunnels { at_once: usize },
    /// Count those that are up, by UDP.
    Count,
    /// Ask an address inside through so many of them, picked at random.
    Ping { to: Ipv4Addr, count: usize },
}

/// What came of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) done: usize,
    /// Attempts beyond the first of each.
    pub(super) again: usize,
    /// How long each took, ms.
    pub(super) took: Vec<f64>,
    pub(super) fault: Option<String>,
}

/// Takes orders from standard input until it ends.
pub(super) fn serve(file: &Path) -> anyhow::Result<()> {
    raise_descriptors();
    take_memory_late();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let world = World::new(&serde_json::from_slice(&std::fs::read(file)?)?)?;
    let mut devices = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let done = runtime.block_on(obey(order, &world, &mut devices));
        let answer = done.unwrap_or_else(|e| Answer { fault: Some(format!("{e:#}")), ..Answer::default() });
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        out.flush()?;
    }
    Ok(())
}

async fn obey(order: Order, world: &World, devices: &mut Vec<Device>) -> anyhow::Result<Answer> {
    let mut answer = Answer::default();
    match order {
        Order::Links { by, count, at_once } => {
            let link = |_| again(async move || Device::link(world, by).await);
            let mut opened = stream::iter(0..count).map(link).buffer_unordered(at_once);
            while let Some(made) = opened.next().await {
                devices.push(answer.note(made?));
            }
        }
        Order::Tunnels { at_once } => {
            let tunnel = devices.iter_mut().map(|device| again(async || device.tunnel(world).await));
            let mut up = stream::iter(tunnel).buffer_unordered(at_once);
            while let Some(made) = up.next().await {
                answer.note(made?);
            }
        }
        Order::Count => answer.done = devices.iter().filter(|d| d.is_up()).count(),
        Order::Ping { to, count } => {
            let mut sealer = Sealer::default();
            for at in sample(devices.len(), count) {
                let asked = Instant::now();
                devices[at].ping(to, &mut sealer).await?;
                answer.note(((), 1, asked.elapsed()));
            }
        }
    }
    Ok(answer)
}

impl Answer {
    fn note<T>(&mut self, (made, attempts, took): (T, usize, Duration)) -> T {
        self.done += 1;
        self.again += attempts - 1;
        self.took.push(took.as_secs_f64() * 1e3);
        made
    }
}

/// Tries until it is done; the attempts and how long all of it took.
async fn again<T>(mut attempt: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<(T, usize, Duration)> {
    let begun = Instant::now();
    for attempts in 1..ATTEMPTS {
        match attempt().await {
            Ok(made) => return Ok((made, attempts, begun.elapsed())),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    Ok((attempt().await?, ATTEMPTS, begun.elapsed()))
}

/// Different numbers below `all`, at random.
fn sample(all: usize, count: usize) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..all).collect();
    for at in 0..count.min(all) {
        let left = all - at;
        numbers.swap(at, at + usize::from_ne_bytes(clock::random()) % left);
    }
    numbers.truncate(count);
    numbers
}

/// A crowd's process, as the bench talks to it. It ends with this.
pub(super) struct Crowd {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    process: Process,
}

impl Crowd {
    /// Starts one. `command` is this program where the crowd is to be.
    pub(super) fn start(command: &mut Command, place: &Path) -> anyhow::Result<Self> {
        let (process, input, output) = Process::talking(command.arg("idlers").arg(place))?;
        Ok(Self { input, output: BufReader::new(output), process })
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Has it do something; `answer` waits for it.
    pub(super) fn order(&mut self, order: Order) -> anyhow::Result<()> {
        writeln!(self.input, "{}", serde_json::to_string(&order)?).context("the devices' process has ended")
    }

    pub(super) fn answer(&mut self) -> anyhow::Result<Answer> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("the devices' process has ended");
        }
        let answer: Answer = serde_json::from_str(&line)?;
        match answer.fault {
            Some(fault) => bail!("{fault}"),
            None => Ok(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_names_nobody_twice() {
        for (all, count) in [(100, 100), (100, 7), (3, 10), (0, 5)] {
            let mut numbers = sample(all, count);
            numbers.sort_unstable();
            numbers.dedup();
            assert!(numbers.len() == count.min(all) && numbers.iter().all(|n| *n < all), "{numbers:?}");
        }
    }
}
