//! Bench `tunnel`: what an IP tunnel of the product costs, next to what else could carry packets to an intranet. Every
//! subject has four network namespaces of the same shape; all stand at once and are measured in turn, so that what else
//! the machine does hits all alike.

mod forwarder;
mod ground;
mod idle;
mod measure;
mod peers;
mod product;
mod subjects;
mod verdict;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::Output;
use crate::figures::Figures;
use crate::link::Transport;
use crate::machine::Machine;
use crate::progress::Progress;
use crate::{plot, stream};
use measure::Step;
use subjects::Subject;

/// Options of `tunnel`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    output: Output,
    /// Also draw what arrived of UDP by what was offered, as SVG.
    #[arg(long, value_name = "FILE", env = "HEDGEROW_BENCH_PLOT")]
    plot: Option<PathBuf>,
    /// How often every subject is measured; in turn, direct first.
    #[arg(long, default_value_t = 3, env = "HEDGEROW_BENCH_REPETITIONS")]
    repetitions: usize,
    /// Seconds of each TCP run.
    #[arg(long, default_value_t = 5.0, env = "HEDGEROW_BENCH_SECONDS")]
    seconds: f64,
    /// Only these subjects (direct is always measured).
    #[arg(long, value_delimiter = ',', value_name = "NAME,..", env = "HEDGEROW_BENCH_SUBJECTS")]
    subjects: Vec<String>,
    /// Measure this binary of the product instead of building it.
    #[arg(long, value_name = "FILE", env = "HEDGEROW_BENCH_BINARY")]
    binary: Option<PathBuf>,
    /// Instead: the relay's forwarder alone, on loopback, by the number of pairings.
    #[arg(long)]
    forwarder: bool,
    /// Instead: so many idle tunnels of simulated devices at one relay and one node: how fast they come up, memory and CPU.
    #[arg(long, value_name = "TUNNELS", num_args = 0..=1, default_missing_value = "10000", env = "HEDGEROW_BENCH_IDLE")]
    idle: Option<usize>,
    /// What the links of `--idle` run on.
    #[arg(long, value_enum, default_value_t = Transport::Quic, requires = "idle")]
    links: Transport,
    /// Everything once and as short as it can be: shows that the bench works, its figures say nothing
    #[arg(long, env = "HEDGEROW_BENCH_QUICK")]
    quick: bool,
}

/// How much is measured.
struct Amount {
    repetitions: usize,
    /// Of a TCP run.
    time: Duration,
    /// Of a step of the search for UDP's rate.
    udp: Duration,
    /// Steps of that search at most.
    steps: usize,
    pings: usize,
}

impl Options {
    fn amount(&self) -> anyhow::Result<Amount> {
        let second = Duration::from_secs(1);
        if self.quick {
            return Ok(Amount { repetitions: 1, time: second, udp: second, steps: 2, pings: 20 });
        }
        if self.repetitions == 0 || !(1.0..=60.0).contains(&self.seconds) {
            bail!("at least one repetition, and 1 to 60 seconds");
        }
        let time = Duration::from_secs_f64(self.seconds);
        Ok(Amount { repetitions: self.repetitions, time, udp: 2 * second, steps: usize::MAX, pings: 200 })
    }

    fn names(&self) -> anyhow::Result<Vec<String>> {
        if let Some(unknown) = self.subjects.iter().find(|s| !subjects::ALL.contains(&s.as_str())) {
            bail!("no subject {unknown:?}; there are: {}", subjects::ALL.join(", "));
        }
        let wanted =
            |name: &str| name == "direct" || self.subjects.is_empty() || self.subjects.iter().any(|s| s == name);
        Ok(subjects::ALL.iter().filter(|n| wanted(n)).map(|n| (*n).to_owned()).collect())
    }

    fn binary(&self) -> anyhow::Result<PathBuf> {
        let binary = match &self.binary {
            Some(binary) => binary.clone(),
            // As released, whatever built this tool.
            None => {
                stream::build_product()?;
                std::env::current_exe()?.with_file_name("hedgerow")
            }
        };
        std::path::absolute(&binary).ok().filter(|b| b.exists()).with_context(|| format!("no {}", binary.display()))
    }
}

/// The forwarder's process, for `--forwarder`.
pub(crate) fn forwarder(pairings: usize) -> anyhow::Result<()> {
    forwarder::serve(pairings)
}

/// The devices' process, for `--idle`.
pub(crate) fn idlers(place: &Path) -> anyhow::Result<()> {
    idle::idlers(place)
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let (names, amount) = (options.names()?, options.amount()?);
    if options.forwarder {
        return forwarder_alone(options, &amount);
    }
    if let Some(count) = options.idle {
        return idle_tunnels(options, count);
    }
    subjects::check(&names)?;
    let binary = options.binary()?;
    let machine = Machine::look();
    println!("{machine}; here every TCP connection uses cubic");
    ground::guard()?;
    let mut figures = Figures::default();
    let mut offered = BTreeMap::new();
    let result = everything(&names, &binary, &amount, &mut figures, &mut offered);
    // What was measured before a failure is still worth reading.
    print!("{}{}", figures.table(), verdict::summary(&figures));
    match options.quick {
        true => println!("\nquick: too little was measured for the goals"),
        false => print!("{}", verdict::goals(&figures)),
    }
    if let Some(path) = &options.output.json {
        figures.write_json(&machine, path)?;
    }
    if let Some(path) = &options.plot {
        let title = "UDP of 1200 bytes: what arrived";
        std::fs::write(path, plot::svg(title, "offered, Mbit/s", "arrived, Mbit/s", &lines(&offered)))?;
    }
    result
}

fn forwarder_alone(options: &Options, amount: &Amount) -> anyhow::Result<()> {
    let machine = Machine::look();
    println!("{machine}; one sender, so one core of the forwarder; sender and receiver share the CPUs with it");
    let mut figures = Figures::default();
    let result = forwarder::measure(amount.repetitions, amount.udp, &mut figures);
    print!("{}", figures.table());
    if let Some(path) = &options.output.json {
        figures.write_json(&machine, path)?;
    }
    result
}

fn idle_tunnels(options: &Options, count: usize) -> anyhow::Result<()> {
    subjects::check(&[])?;
    let binary = options.binary()?;
    let machine = Machine::look();
    let by = options.links;
    println!("{machine}; {count} simulated devices on {by}s, in processes of their own");
    let seconds = |full| Duration::from_secs(if options.quick { 1 } else { full });
    let amount = idle::Amount { count, by, settle: seconds(20), calm: seconds(65), idle: seconds(30) };
    let mut figures = Figures::default();
    let result = idle::measure(&binary, &amount, &mut figures);
    print!("{}", figures.table());
    if let Some(path) = &options.output.json {
        figures.write_json(&machine, path)?;
    }
    result
}

/// Steps of the search for UDP's rate, by subject.
type Offered = BTreeMap<&'static str, Vec<Step>>;

fn everything(
    names: &[String],
    binary: &Path,
    amount: &Amount,
    figures: &mut Figures,
    offered: &mut Offered,
) -> anyhow::Result<()> {
    let mut progress = Progress::new(names.len() * (1 + amount.repetitions));
    let mut all: Vec<Subject> = Vec::new();
    for (number, name) in names.iter().enumerate() {
        progress.next(&format!("starting {name}"));
        all.push(subjects::start(name, number, binary).with_context(|| format!("starting {name}"))?);
    }
    for round in 0..amount.repetitions {
        for subject in &all {
            let name = subject.name;
            progress.next(&format!("round {} of {}: {name}", round + 1, amount.repetitions));
            let steps =
                measure::measure(subject, round, amount, figures).with_context(|| format!("measuring {name}"))?;
            subject.check_way().with_context(|| format!("measuring {name}"))?;
            offered.entry(name).or_default().extend(steps);
        }
    }
    progress.clear();
    Ok(())
}

/// Subjects in the plot: as many as it has colours.
const DRAWN: [&str; 4] = ["direct", "hedgerow-udp", "hedgerow-link", "ocserv+hop"];

/// A point a rate that was offered: the mean of what arrived.
fn lines(offered: &Offered) -> Vec<plot::Line> {
    let line = |name: &&str| {
        let mut by_rate: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
        for (rate, arrived) in offered.get(name)? {
            let point = by_rate.entry(rate.round() as u64).or_default();
            *point = (point.0 + arrived, point.1 + 1.0);
        }
        let points = by_rate.into_iter().map(|(rate, (sum, count))| (rate as f64, sum / count));
        Some(((*name).to_owned(), points.collect()))
    };
    DRAWN.iter().filter_map(line).collect()
}
