//! Bench `link`: what links and lanes cost a relay while they are opened and while nothing happens on them. The relay is
//! a process of its own, and so is the load tool, which dials it as devices and nodes do.

mod alone;
mod crowd;
mod lanes;
pub(crate) mod place;
mod source;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use hedgerow_runtime::boot;
use serde::{Deserialize, Serialize};

use crate::Output;
use crate::figures::Figures;
use crate::machine::Machine;
use crate::plot;
use crate::process::{cpu_seconds, memory_of_tree};
use crate::progress::Progress;
use crowd::Order;
use place::Place;

/// What a link runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub(crate) enum Transport {
    Tls,
    Quic,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.subject())
    }
}

impl Transport {
    const ALL: [Self; 2] = [Self::Tls, Self::Quic];

    fn subject(self) -> &'static str {
        match self {
            Self::Tls => "TLS link",
            Self::Quic => "QUIC link",
        }
    }
}

/// Options of `link`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    output: Output,
    /// Also draw the memory of the relay by the number of what is idle on it, as SVG.
    #[arg(long, value_name = "FILE", env = "HEDGEROW_BENCH_PLOT")]
    plot: Option<PathBuf>,
    /// Rounds of links opened and closed: TLS and QUIC, full and resumed, in turn.
    #[arg(long, default_value_t = 3, env = "HEDGEROW_BENCH_ROUNDS")]
    rounds: usize,
    /// Seconds of each.
    #[arg(long, default_value_t = 3.0, env = "HEDGEROW_BENCH_SECONDS")]
    seconds: f64,
    /// Numbers of idle TLS links at which memory is read.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 5000, 15_000], env = "HEDGEROW_BENCH_TLS")]
    tls: Vec<usize>,
    /// The same of QUIC links.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 5000], env = "HEDGEROW_BENCH_QUIC")]
    quic: Vec<usize>,
    /// The same of joined lanes.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 5000], env = "HEDGEROW_BENCH_LANES")]
    lanes: Vec<usize>,
    /// Links in the registry alone, and multiplexers alone.
    #[arg(long, default_value_t = 50_000, env = "HEDGEROW_BENCH_ALONE")]
    alone: usize,
    /// Seconds between the last link and the reading of memory: longer than the interval of pings (15 s), after which
    /// links let go of their buffers.
    #[arg(long, default_value_t = 20.0, env = "HEDGEROW_BENCH_SETTLE")]
    settle: f64,
    /// Everything once and as little as can be: shows that the bench works, its figures say nothing
    #[arg(long, env = "HEDGEROW_BENCH_QUICK")]
    quick: bool,
}

/// How much is measured.
struct Amount {
    rounds: usize,
    time: Duration,
    tls: Vec<usize>,
    quic: Vec<usize>,
    lanes: Vec<usize>,
    alone: usize,
    settle: Duration,
}

impl Options {
    fn amount(&self) -> anyhow::Result<Amount> {
        if self.quick {
            let (time, settle) = (Duration::from_millis(300), Duration::from_millis(200));
            return Ok(Amount {
                rounds: 1,
                time,
                tls: vec![5, 20],
                quic: vec![5, 20],
                lanes: vec![5, 20],
                alone: 1000,
                settle,
            });
        }
        for points in [&self.tls, &self.quic, &self.lanes] {
            if points.is_empty() || points.contains(&0) || !points.is_sorted_by(|a, b| a < b) {
                bail!("numbers of links and lanes must be above 0, and each higher than the one before");
            }
        }
        Ok(Amount {
            rounds: self.rounds,
            time: Duration::from_secs_f64(self.seconds),
            tls: self.tls.clone(),
            quic: self.quic.clone(),
            lanes: self.lanes.clone(),
            alone: self.alone,
            settle: Duration::from_secs_f64(self.settle),
        })
    }
}

/// The load tool of this bench; it ends with its standard input.
pub(crate) fn crowd(place: &Path) -> anyhow::Result<()> {
    crowd::serve(place)
}

/// The relay of this bench; a failure is told here.
pub(crate) fn relay(config: &Path) -> ExitCode {
    place::relay(config).unwrap_or_else(|error| boot::failed(&error))
}

/// Registry and multiplexer alone.
pub(crate) fn alone(count: usize) -> anyhow::Result<()> {
    alone::run(count)
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let amount = options.amount()?;
    let machine = Machine::look();
    println!("{machine}");
    let mut figures = Figures::default();
    let result = everything(&amount, &mut figures);
    // What was measured before a failure is still worth reading.
    print!("{}", figures.table());
    match options.quick {
        true => println!("\nquick: too little was measured for the targets"),
        false => print!("{}", verdict(&figures, &amount)),
    }
    if let Some(path) = &options.output.json {
        figures.write_json(&machine, path)?;
    }
    if let Some(path) = &options.plot {
        let title = "Memory of the relay by what is idle on it";
        std::fs::write(path, plot::svg(title, "links or lanes", "MiB", &lines(&figures, &amount)))?;
    }
    result
}

fn everything(amount: &Amount, figures: &mut Figures) -> anyhow::Result<()> {
    let points = amount.tls.len() + amount.quic.len() + amount.lanes.len();
    let mut progress = Progress::new(4 * amount.rounds + points + 1);
    let mut place = Place::start()?;
    for round in 0..amount.rounds {
        for by in Transport::ALL {
            for resumed in [false, true] {
                let how = how(resumed);
                progress.next(&format!("round {} of {}: {by}s opened, {how}", round + 1, amount.rounds));
                rate(&mut place, by, resumed, round, amount.time, figures)
                    .with_context(|| format!("{by}s opened, {how}"))?;
            }
        }
    }
    drop(place);
    for (by, points) in [(Transport::Tls, &amount.tls), (Transport::Quic, &amount.quic)] {
        // A heap in which nothing else has been.
        let mut place = Place::start()?;
        let mut idle = Idle::new(by.subject(), amount.settle);
        for point in points {
            progress.next(&format!("{point} idle {by}s"));
            let order = Order::Hold { transport: by, count: point - idle.count(), at_once: 16 };
            place.order(&order)?;
            place.wait_for("hedgerow_relay_links", *point)?;
            idle.point(&place, *point, figures)?;
        }
    }
    let mut place = Place::start()?;
    place.order(&Order::Lanes { count: 0 })?;
    let mut idle = Idle::new("lane", amount.settle);
    for point in &amount.lanes {
        progress.next(&format!("{point} idle lanes"));
        place.order(&Order::Lanes { count: point - idle.count() })?;
        place.wait_for("hedgerow_relay_lanes", *point)?;
        idle.point(&place, *point, figures)?;
    }
    drop(place);
    progress.next("registry and multiplexer alone");
    let output = Command::new(std::env::current_exe()?).args(["alone", &amount.alone.to_string()]).output()?;
    if !output.status.success() {
        bail!("registry and multiplexer alone: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let found: alone::Found = serde_json::from_slice(&output.stdout)?;
    for (subject, figure, unit, value) in found.0 {
        figures.add(0, &subject, &figure, unit_of(&unit), value);
    }
    progress.clear();
    Ok(())
}

fn unit_of(unit: &str) -> &'static str {
    if unit == "ns" { "ns" } else { "bytes" }
}

fn how(resumed: bool) -> &'static str {
    if resumed { "resumed" } else { "full" }
}

/// Clients that open and close links at once.
const CLIENTS: usize = 16;

fn rate(
    place: &mut Place,
    by: Transport,
    resumed: bool,
    round: usize,
    time: Duration,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let how = how(resumed);
    let (before, shown) = (cpu_seconds(place.relay()), place.metric(RESUMED)?);
    let answer = place.order(&Order::Rate { transport: by, resumed, time, at_once: CLIENTS })?;
    place.wait_for("hedgerow_relay_links", 0)?;
    let (cpu, shown) = (cpu_seconds(place.relay()) - before, place.metric(RESUMED)? - shown);
    // Those that made the sessions to resume are not among the links that were counted.
    let wanted = if resumed { answer.done } else { 0 };
    if shown != wanted as f64 {
        bail!("of {} links {shown} were resumed", answer.done);
    }
    let made = answer.done + if resumed { CLIENTS } else { 0 };
    let subject = by.subject();
    figures.add(round, subject, &format!("links opened a second, {how}"), "1/s", answer.done as f64 / answer.seconds);
    figures.add(round, subject, &format!("link opened, {how}: p50"), "ms", answer.p50_ms);
    figures.add(round, subject, &format!("link opened, {how}: p99"), "ms", answer.p99_ms);
    let each = cpu * 1e6 / made as f64;
    figures.add(round, subject, &format!("link opened and closed, {how}: CPU of relay"), "us each", each);
    Ok(())
}

/// Tickets with which the relay resumed hand-shakes.
const RESUMED: &str = "hedgerow_tls_tickets_taken_total";

/// Memory of the relay at growing numbers of what is idle on it.
struct Idle {
    subject: &'static str,
    settle: Duration,
    /// Number, bytes.
    points: Vec<(usize, u64)>,
}

impl Idle {
    fn new(subject: &'static str, settle: Duration) -> Self {
        Self { subject, settle, points: Vec::new() }
    }

    fn count(&self) -> usize {
        self.points.last().map_or(0, |(count, _)| *count)
    }

    fn point(&mut self, place: &Place, count: usize, figures: &mut Figures) -> anyhow::Result<()> {
        let before = cpu_seconds(place.relay());
        std::thread::sleep(self.settle);
        let cpu = cpu_seconds(place.relay()) - before;
        let bytes = memory_of_tree(place.relay());
        if bytes == 0 {
            bail!("the relay's smaps_rollup cannot be read");
        }
        let each = |from: (usize, u64)| (bytes as f64 - from.1 as f64) / (count - from.0) as f64;
        if let Some(last) = self.points.last() {
            figures.add(0, self.subject, &span(last.0, count), "bytes each", each(*last));
        }
        if let Some(first) = self.points.first().filter(|_| self.points.len() > 1) {
            figures.add(0, self.subject, &span(first.0, count), "bytes each", each(*first));
        }
        figures.add(0, self.subject, &held(count), "MiB", bytes as f64 / f64::from(1 << 20));
        let minute = cpu * 60e3 / self.settle.as_secs_f64() / count as f64;
        figures.add(0, self.subject, &format!("{count} idle: CPU of relay"), "ms each a minute", minute);
        self.points.push((count, bytes));
        Ok(())
    }
}

fn held(count: usize) -> String {
    format!("{count} idle: memory of relay")
}

fn span(from: usize, to: usize) -> String {
    format!("idle, {from} to {to}: memory of relay")
}

/// What one idle link or lane may hold at the relay at most, bytes.
const TARGETS: [(&str, f64); 3] = [("TLS link", 16.0 * 1024.0), ("QUIC link", 45.0 * 1024.0), ("lane", 4.0 * 1024.0)];
/// The last step may hold so much more each than the one before, and still count as flat: pages, arenas, tables that
/// double.
const FLAT: f64 = 1.15;

/// What was measured of memory, for the plot.
fn lines(figures: &Figures, amount: &Amount) -> Vec<plot::Line> {
    let line = |((subject, _), points): ((&str, f64), &Vec<usize>)| {
        let at = |n: &usize| Some((*n as f64, figures.median(subject, &held(*n))?));
        (format!("{subject}s"), points.iter().filter_map(at).collect())
    };
    TARGETS.into_iter().zip([&amount.tls, &amount.quic, &amount.lanes]).map(line).collect()
}

fn verdict(figures: &Figures, amount: &Amount) -> String {
    let mut out = String::from("\n");
    for ((subject, most), points) in TARGETS.into_iter().zip([&amount.tls, &amount.quic, &amount.lanes]) {
        let [first, .., before, last] = points[..] else { continue };
        let steps = points.windows(2).rev().map(|w| figures.median(subject, &span(w[0], w[1])));
        let mut steps = steps.take(2);
        let (Some(Some(end)), Some(Some(middle))) = (steps.next(), steps.next()) else { continue };
        let whole = figures.median(subject, &span(first, last)).unwrap_or(f64::NAN);
        let met = |met: bool| if met { "met" } else { "missed" };
        out += &format!("idle {subject}: {whole:.0} bytes (target: at most {most:.0}: {})\n", met(whole <= most));
        out += &format!(
            "idle {subject}, from {before} on: {end:.0} bytes, before {middle:.0} (target: flat: {})\n",
            met(end <= middle * FLAT)
        );
    }
    out
}
