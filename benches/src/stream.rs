//! Bench `stream`: what a TCP connection through the product costs, next to what else could carry it.

use std::io::{IsTerminal, Write};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::Output;
use crate::figures::Figures;
use crate::load::{self, Direction};
use crate::process::{Process, cpu_of_tree, free_port, memory_of_tree, wait_for_port};
use crate::subjects::{self, Subject};

/// Options of `stream`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    output: Output,
    /// Rounds; in each, every subject is measured once, direct first.
    #[arg(long, default_value_t = 3, env = "HEDGEROW_BENCH_ROUNDS")]
    rounds: usize,
    /// Seconds of each throughput run.
    #[arg(long, default_value_t = 2.0, env = "HEDGEROW_BENCH_SECONDS")]
    seconds: f64,
    /// Connections held idle for the memory figure.
    #[arg(long, default_value_t = 2000, env = "HEDGEROW_BENCH_IDLE")]
    idle: usize,
    /// Only these subjects (direct is always measured).
    #[arg(long, value_delimiter = ',', value_name = "NAME,..", env = "HEDGEROW_BENCH_SUBJECTS")]
    subjects: Vec<String>,
}

/// Short requests of one connection run.
const REQUESTS: usize = 4000;

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut names: Vec<String> = subjects::ALL.iter().map(|s| (*s).to_owned()).collect();
    if !options.subjects.is_empty() {
        if let Some(unknown) = options.subjects.iter().find(|s| !names.contains(s)) {
            bail!("no subject {unknown:?}; there are: {}", names.join(", "));
        }
        names.retain(|n| n == "direct" || options.subjects.contains(n));
    }
    subjects::check_peers(&names)?;
    build_product()?;
    let control = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    println!("TCP congestion control: {}; CPUs: {}", control.trim(), std::thread::available_parallelism()?);

    let port = free_port()?;
    let folder = tempfile::tempdir()?;
    let me = std::env::current_exe()?;
    let _target =
        Process::start(Command::new(me).args(["target", &port.to_string()]), &folder.path().join("target.log"))?;
    wait_for_port(port, Duration::from_secs(5))?;

    let mut figures = Figures::default();
    let mut progress = Progress { steps: names.len() * options.rounds, step: 0 };
    for round in 0..options.rounds {
        for name in &names {
            progress.next(&format!("round {} of {}: {name}", round + 1, options.rounds));
            let subject = subjects::start(name, port).with_context(|| format!("starting {name}"))?;
            measure(&subject, round, options, &mut figures).with_context(|| format!("measuring {name}"))?;
        }
    }
    progress.clear();
    print!("{}", figures.table());
    if let Some(path) = &options.output.json {
        figures.write_json(path)?;
    }
    Ok(())
}

/// The product is measured as released, whatever built this tool.
fn build_product() -> anyhow::Result<()> {
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

fn measure(subject: &Subject, round: usize, options: &Options, figures: &mut Figures) -> anyhow::Result<()> {
    let time = Duration::from_secs_f64(options.seconds);
    let name = subject.name;
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

    let single = load::connections(subject.way, 1, 500).context("connections, one after the other")?;
    figures.add(round, name, "new connection, 1 client: p50", "us", single.p50.as_secs_f64() * 1e6);
    let before = cpu(subject);
    let many = load::connections(subject.way, 16, REQUESTS).context("connections, 16 clients")?;
    figures.add(round, name, "new connections, 16 clients", "1/s", many.per_second);
    figures.add(round, name, "new connections, 16 clients: p50", "us", many.p50.as_secs_f64() * 1e6);
    figures.add(round, name, "new connections, 16 clients: p99", "us", many.p99.as_secs_f64() * 1e6);
    for ((part, before), (_, after)) in before.iter().zip(cpu(subject)) {
        let each = (after - before) * 1e6 / many.done as f64;
        figures.add(round, name, &format!("new connections: CPU of {part}"), "us each", each);
    }

    if !subject.parts.is_empty() {
        let before: Vec<u64> = subject.parts.iter().map(|(_, pid)| memory_of_tree(*pid)).collect();
        let held = load::hold(subject.way, options.idle).context("idle connections")?;
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

/// One line on a terminal, nothing elsewhere.
struct Progress {
    steps: usize,
    step: usize,
}

impl Progress {
    fn next(&mut self, what: &str) {
        self.step += 1;
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K[{}/{}] {what}", self.step, self.steps);
            std::io::stderr().flush().ok();
        }
    }

    fn clear(&self) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}
