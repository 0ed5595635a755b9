//! Bench `stream`: what a TCP connection through the product costs, next to what else could carry it; and how long it is
//! without data when what carries it fails.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use hedgerow_runtime::loopback::reserve_port;

use crate::Output;
use crate::figures::Figures;
use crate::load::{self, Direction};
use crate::machine::Machine;
use crate::outage::{self, Event};
use crate::process::{Process, cpu_of_tree, memory_of_tree, wait_for_port};
use crate::progress::Progress;
use crate::subjects::{self, Subject};

/// Options of `stream`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    output: Output,
    /// Rounds; in each, every subject is measured once, direct first.
    #[arg(long, default_value_t = 2, env = "HEDGEROW_BENCH_ROUNDS")]
    rounds: usize,
    /// Seconds of each throughput run.
    #[arg(long, default_value_t = 1.0, env = "HEDGEROW_BENCH_SECONDS")]
    seconds: f64,
    /// Connections held idle for the memory figure.
    #[arg(long, default_value_t = 2000, env = "HEDGEROW_BENCH_IDLE")]
    idle: usize,
    /// How often each way to fail is tried with each carrier of sessions.
    #[arg(long, default_value_t = 3, env = "HEDGEROW_BENCH_REPETITIONS")]
    repetitions: usize,
    /// Everything once and as short as it can be, this product and direct only unless others are named: shows that the
    /// bench works, its figures say nothing
    #[arg(long, env = "HEDGEROW_BENCH_QUICK")]
    quick: bool,
    /// Only these subjects (direct is always measured).
    #[arg(long, value_delimiter = ',', value_name = "NAME,..", env = "HEDGEROW_BENCH_SUBJECTS")]
    subjects: Vec<String>,
}

/// How much is measured.
struct Amount {
    rounds: usize,
    time: Duration,
    /// Short requests from one client, and from 16.
    requests: (usize, usize),
    idle: usize,
    repetitions: usize,
}

impl Options {
    fn amount(&self) -> Amount {
        if self.quick {
            let time = Duration::from_millis(200);
            return Amount { rounds: 1, time, requests: (20, 100), idle: 64, repetitions: 1 };
        }
        let time = Duration::from_secs_f64(self.seconds);
        let requests = (500, 4000);
        Amount { rounds: self.rounds, time, requests, idle: self.idle, repetitions: self.repetitions }
    }

    fn names(&self) -> anyhow::Result<Vec<String>> {
        if let Some(unknown) = self.subjects.iter().find(|s| !subjects::ALL.contains(&s.as_str())) {
            bail!("no subject {unknown:?}; there are: {}", subjects::ALL.join(", "));
        }
        let wanted = |name: &str| match self.subjects.is_empty() {
            true => !self.quick || subjects::CARRIERS.contains(&name),
            false => self.subjects.iter().any(|s| s == name),
        };
        Ok(subjects::ALL.iter().filter(|n| **n == "direct" || wanted(n)).map(|n| (*n).to_owned()).collect())
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let (names, amount) = (options.names()?, options.amount());
    subjects::check_peers(&names)?;
    build_product()?;
    let machine = Machine::look();
    println!("{machine}");

    let port = reserve_port()?;
    let folder = tempfile::tempdir()?;
    let me = std::env::current_exe()?;
    let _target =
        Process::start(Command::new(me).args(["target", &port.to_string()]), &folder.path().join("target.log"))?;
    wait_for_port(port, Duration::from_secs(5))?;

    let mut figures = Figures::default();
    let result = everything(&names, &amount, port, &mut figures);
    // What was measured before a failure is still worth reading.
    print!("{}{}", figures.table(), verdict(&figures));
    if let Some(path) = &options.output.json {
        figures.write_json(&machine, path)?;
    }
    result
}

fn everything(names: &[String], amount: &Amount, port: u16, figures: &mut Figures) -> anyhow::Result<()> {
    let carriers: Vec<&str> = subjects::CARRIERS.iter().copied().filter(|c| names.iter().any(|n| n == c)).collect();
    let failures = amount.repetitions * Event::ALL.len() * carriers.len();
    let mut progress = Progress::new(names.len() * amount.rounds + failures);
    for round in 0..amount.rounds {
        for name in names {
            progress.next(&format!("round {} of {}: {name}", round + 1, amount.rounds));
            let subject = subjects::start(name, port).with_context(|| format!("starting {name}"))?;
            measure(&subject, round, amount, figures).with_context(|| format!("measuring {name}"))?;
        }
    }
    if amount.repetitions > 0 {
        let start = |name: &&str| subjects::start(name, port).with_context(|| format!("starting {name}"));
        let carriers: Vec<Subject> = carriers.iter().map(start).collect::<anyhow::Result<_>>()?;
        for round in 0..amount.repetitions {
            for event in Event::ALL {
                for subject in &carriers {
                    progress.next(&format!(
                        "failure {} of {}: {event:?}, {}",
                        round + 1,
                        amount.repetitions,
                        subject.name
                    ));
                    outage::measure(subject, event, round, figures)
                        .with_context(|| format!("{event:?} by {}", subject.name))?;
                }
            }
        }
    }
    progress.clear();
    Ok(())
}

/// Small requests beside bulk by lane are to be answered within this time, at p99.
const TARGET_MS: f64 = 20.0;
const BESIDE: &str = "small request beside 16 downloads: p99";

fn verdict(figures: &Figures) -> String {
    figures.median("lane", BESIDE).map_or(String::new(), |ms| {
        let met = if ms < TARGET_MS { "met" } else { "missed" };
        format!("\n{BESIDE}, by lane: {ms:.2} ms (target: under {TARGET_MS} ms: {met})\n")
    })
}

/// The product is measured as released, whatever built this tool.
pub(crate) fn build_product() -> anyhow::Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let release = !cfg!(debug_assertions);
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "hedgerow-cli"]);
    if release {
        command.arg("--release");
    }
    if !command.status().context("cannot run cargo")?.success() {
        bail!("the product does not build");
    }
    Ok(())
}

fn measure(subject: &Subject, round: usize, amount: &Amount, figures: &mut Figures) -> anyhow::Result<()> {
    let (name, time) = (subject.name, amount.time);
    // The first connection may open the session and grow windows; it is not measured.
    load::connections(subject.way, 1, 20).context("the first connections")?;

    for (figure, streams, direction) in [
        ("1 stream down", 1, Direction::Down),
        ("1 stream up", 1, Direction::Up),
        ("16 streams down", 16, Direction::Down),
    ] {
        let before = cpu(subject);
        let result = load::throughput(subject.way, streams, direction, time).context(figure)?;
        figures.add(round, name, figure, "Mbit/s", result.megabits_per_second);
        for ((part, before), (_, after)) in before.iter().zip(cpu(subject)) {
            let per_gib = (after - before) / (result.bytes as f64 / f64::from(1u32 << 30));
            figures.add(round, name, &format!("{figure}: CPU of {part}"), "s/GiB", per_gib);
        }
    }

    // Beside bulk there are few in a second, and one of a hundred is wanted.
    for (figure, bulk, time) in [("small request", 0, time), ("small request beside 16 downloads", 16, 3 * time)] {
        let result = load::requests(subject.way, bulk, time).context(figure)?;
        figures.add(round, name, &format!("{figure}: p50"), "ms", result.p50.as_secs_f64() * 1e3);
        figures.add(round, name, &format!("{figure}: p99"), "ms", result.p99.as_secs_f64() * 1e3);
    }

    let single = load::connections(subject.way, 1, amount.requests.0).context("connections, one after the other")?;
    figures.add(round, name, "new connection, 1 client: p50", "us", single.p50.as_secs_f64() * 1e6);
    let before = cpu(subject);
    let many = load::connections(subject.way, 16, amount.requests.1).context("connections, 16 clients")?;
    figures.add(round, name, "new connections, 16 clients", "1/s", many.per_second);
    figures.add(round, name, "new connections, 16 clients: p50", "us", many.p50.as_secs_f64() * 1e6);
    figures.add(round, name, "new connections, 16 clients: p99", "us", many.p99.as_secs_f64() * 1e6);
    for ((part, before), (_, after)) in before.iter().zip(cpu(subject)) {
        let each = (after - before) * 1e6 / many.done as f64;
        figures.add(round, name, &format!("new connections: CPU of {part}"), "us each", each);
    }

    if !subject.parts.is_empty() {
        let before: Vec<u64> = subject.parts.iter().map(|(_, pid)| memory_of_tree(*pid)).collect();
        let held = load::hold(subject.way, amount.idle).context("idle connections")?;
        std::thread::sleep(Duration::from_millis(500));
        for ((part, pid), before) in subject.parts.iter().zip(before) {
            let each = memory_of_tree(*pid).saturating_sub(before) as f64 / held.len() as f64;
            figures.add(round, name, &format!("idle connection: memory of {part}"), "bytes", each);
        }
    }
    Ok(())
}

fn cpu(subject: &Subject) -> Vec<(&'static str, f64)> {
    subject.parts.iter().map(|(part, pid)| (*part, cpu_of_tree(*pid))).collect()
}
