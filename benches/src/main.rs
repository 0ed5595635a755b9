//! The load tester, and figures measured side by side in one run: this product next to what a user could pick
//! instead. Timed figures are noisy; only the ratios within one run mean something.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

mod domain;
mod figures;
mod link;
mod load;
mod machine;
mod outage;
mod plot;
mod process;
mod product;
mod progress;
mod steady;
mod stream;
mod subjects;
mod target;
mod tenant;
mod tunnel;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures; every load is bounded in count and time and stops by itself.
#[derive(Parser)]
#[command(name = "hedgerow-benches", version)]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// One stream, 16 streams, new connections a second, small requests beside bulk, CPU and memory: direct, three
    /// plain hops, this product by lane and by link stream over TLS and over QUIC, OpenSSH's reverse tunnel and
    /// rathole. Then, for what carries this product's sessions, how long a steady stream is without data when it fails.
    Stream(stream::Options),
    /// Links opened a second, full and resumed; memory and CPU of a relay for idle links and lanes, by their number;
    /// registry and multiplexer alone.
    Link(link::Options),
    /// IP tunnels in network namespaces: direct, this product over UDP and over the link, ocserv with openconnect and
    /// boringtun, these with and without a plain forwarder where this product has its relay. TCP both ways with CPU,
    /// UDP of 1200 bytes, ping. Needs root.
    Tunnel(tunnel::Options),
    /// The core's domain over SQLite and PostgreSQL, with few users and with many: importing, finding, effective profiles,
    /// devices that ask for commands.
    Core(domain::Options),
    /// The load tool of `link`: opens links and lanes as it is told on standard input.
    #[command(hide = true)]
    Crowd {
        /// The relay to dial, as `link` described it.
        place: PathBuf,
    },
    /// The relay of `link`, as `hedgerow relay run` runs it.
    #[command(hide = true)]
    Relay {
        /// Its configuration.
        config: PathBuf,
    },
    /// Registry and multiplexer, for `link`.
    #[command(hide = true)]
    Alone {
        /// How many of each.
        count: usize,
    },
    /// The forwarder of `tunnel --forwarder`: forwards until its standard input ends.
    #[command(hide = true)]
    Forwarder {
        /// How many pairings.
        pairings: usize,
    },
    /// Devices of `tunnel --idle`: links and tunnels as it is told on standard input.
    #[command(hide = true)]
    Idlers {
        /// The relay to dial, as `tunnel --idle` described it.
        place: PathBuf,
    },
    /// The server that the others load: source, sink, echo, steady lines and a 128-byte HTTP answer on one port.
    Target {
        /// Loopback port.
        port: u16,
    },
    /// One plain TCP hop: 256 KiB copies, no TLS.
    Hop {
        /// Loopback port to listen on.
        port: u16,
        /// Loopback port to connect to.
        to: u16,
    },
}

/// Where benches put their table as JSON.
#[derive(clap::Args)]
struct Output {
    /// Also write the machine and rows {subject, figure, unit, median, min, max, runs, ratio_to_direct} to this file.
    #[arg(long, value_name = "FILE", env = "HEDGEROW_BENCH_JSON")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().bench {
        Bench::Stream(options) => stream::run(&options),
        Bench::Link(options) => link::run(&options),
        Bench::Tunnel(options) => tunnel::run(&options),
        Bench::Core(options) => domain::run(&options),
        Bench::Crowd { place } => link::crowd(&place),
        Bench::Relay { config } => return link::relay(&config),
        Bench::Alone { count } => link::alone(count),
        Bench::Forwarder { pairings } => tunnel::forwarder(pairings),
        Bench::Idlers { place } => tunnel::idlers(&place),
        Bench::Target { port } => target::serve(port),
        Bench::Hop { port, to } => target::hop(port, to),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hedgerow-benches: {error:#}");
            ExitCode::FAILURE
        }
    }
}
