//! `hedgerow demo`: every role on this machine, as real processes over real wires, with a site that only the node's
//! rules reach and a device that is activated for it.
//!
//! With `--tunnel` each of them has a network namespace of its own, and programs of the device's reach the site by IP.
//!
//! The demo does what an administrator would do, by the same commands; what it runs is in `DIR/log/demo.log`.

mod check;
mod missing;
mod part;
mod places;
mod site;
mod steps;
mod tunnel;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use hedgerow_runtime::boot;
use hedgerow_runtime::telemetry::Logging;
use tokio::signal::unix::{SignalKind, signal};

use crate::output::print;
use world::World;

/// What the demo does.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Run one round, verify it, and exit: 0, or 1 with what failed
    #[arg(long, env = "HEDGEROW_DEMO_CHECK")]
    pub(crate) check: bool,
    /// An IP tunnel between network namespaces that the demo makes and removes; needs root, TUN, `ip` and `nft`
    #[arg(long, env = "HEDGEROW_DEMO_TUNNEL", conflicts_with_all = ["state", "lanes", "also_allow", "publish"])]
    pub(crate) tunnel: bool,
    /// Keep everything in DIR and write DIR/demo.json [default: a temporary folder, removed at the end]
    #[arg(long, value_name = "DIR", env = "HEDGEROW_DEMO_STATE")]
    pub(crate) state: Option<PathBuf>,
    /// How the device's streams travel: `auto` by lanes, `off` over its link
    #[arg(long, value_name = "auto|off", env = "HEDGEROW_DEMO_LANES", default_value = "auto", value_parser = ["auto", "off"])]
    pub(crate) lanes: String,
    /// How device, node and core reach the relay: `auto` by QUIC where UDP passes and else by TLS, or one of them only
    #[arg(long, value_name = "auto|tls|quic", env = "HEDGEROW_DEMO_TRANSPORT", default_value = "auto", value_parser = ["auto", "tls", "quic"])]
    pub(crate) transport: String,
    /// One more target inside that the node's rules allow and the device's routes send there
    #[arg(long, value_name = "HOST:PORT", env = "HEDGEROW_DEMO_ALSO_ALLOW")]
    pub(crate) also_allow: Vec<String>,
    /// A TLS server that the node publishes for names of this origin (`hedgerow name add NAME --origin gateway`)
    #[arg(long, value_name = "gateway|mdm=HOST:PORT", env = "HEDGEROW_DEMO_PUBLISH", value_parser = crate::role::setting)]
    pub(crate) publish: Vec<(String, String)>,
    /// Shorten or lengthen every role's timers by this factor
    #[arg(long, value_name = "FACTOR", env = "HEDGEROW_DEMO_TIMER_SCALE", default_value_t = 1.0)]
    pub(crate) timer_scale: f64,
    #[command(subcommand)]
    pub(crate) part: Option<part::Part>,
}

/// Runs it.
pub(crate) fn run(mut args: DemoArgs, _logging: &Logging) -> ExitCode {
    if let Some(part) = args.part.take() {
        return part::run(part);
    }
    boot::block_on(demo(args))
}

async fn demo(args: DemoArgs) -> anyhow::Result<()> {
    if args.tunnel {
        missing::check()?;
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // A terminal that is closed must leave no namespaces behind.
    let mut hangup = args.tunnel.then(|| signal(SignalKind::hangup())).transpose()?;
    let hung_up = async {
        match &mut hangup {
            Some(hangup) => hangup.recv().await,
            None => std::future::pending().await,
        }
    };
    let temporary = match &args.state {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("hedgerow-demo-").tempdir()?),
    };
    let folder = match (&args.state, &temporary) {
        (Some(dir), _) => dir.clone(),
        (None, Some(dir)) => dir.path().to_owned(),
        (None, None) => unreachable!("one of them is made above"),
    };
    let mut world = World::prepare(&folder, &args)?;
    let result = tokio::select! {
        result = play(&mut world, &args) => result,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        _ = hung_up => Ok(()),
    };
    if result.is_err() {
        warn(&world.last_words());
    }
    world.stop(Duration::from_secs(5)).await;
    result
}

/// The steps, then one round, or staying up until somebody ends it.
async fn play(world: &mut World, args: &DemoArgs) -> anyhow::Result<()> {
    let where_they_run =
        if args.tunnel { "in network namespaces" } else { "as processes of their own on this machine" };
    print(&format!("Hedgerow demo: relay, core, node and device {where_they_run}.\n\n"))?;
    steps::all(world, args).await?;
    world.describe()?;
    if args.check {
        if args.tunnel {
            tunnel::round(world).await?;
        } else {
            check::round(world).await?;
        }
        return print(&format!("\ncheck: ok, {:.1} s in all\n", world.elapsed().as_secs_f64()));
    }
    if args.tunnel {
        tunnel::invite(world)?;
    } else {
        print(&world.invitation())?;
    }
    world.watch().await.context("a role could not be kept up")
}

/// Says something on standard error; there is nobody else to tell when that is closed.
fn warn(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}
