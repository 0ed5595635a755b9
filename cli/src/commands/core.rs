//! `hedgerow core`: the core.

use std::process::ExitCode;

use clap::Subcommand;
use hedgerow_management::CoreConfig;
use hedgerow_management::store::{Plan, State};
use hedgerow_runtime::boot;
use hedgerow_runtime::config::ConfigFault;
use hedgerow_runtime::telemetry::Logging;
use serde_json::{Value, json};

use super::control::{AtCore, verb};
use crate::output::{self, Column, Show};
use crate::role::{self, ConfigCommand, RoleConfig, config_args};

config_args!(CoreConfigArgs, "HEDGEROW_CORE_CONFIG", "/etc/hedgerow/core.toml", "HEDGEROW_CORE__");

#[derive(Debug, clap::Args)]
pub(crate) struct CoreArgs {
    #[command(subcommand)]
    command: CoreCommand,
}

#[derive(Debug, Subcommand)]
enum CoreCommand {
    /// Run the core until TERM; a second TERM stops at once
    Run(CoreConfigArgs),
    /// Look at the configuration without running anything
    Config {
        #[command(flatten)]
        source: CoreConfigArgs,
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Bring the database up to date; the core must be stopped
    ///
    /// SQLite is copied beside its file before anything changes. For PostgreSQL you make the backup and say so.
    Migrate {
        #[command(flatten)]
        source: CoreConfigArgs,
        /// Change nothing: list the migrations, and fail when some are pending or unknown to this version
        #[arg(long, env = "HEDGEROW_CORE_MIGRATE_CHECK")]
        check: bool,
        /// PostgreSQL: there is a backup of this database from before
        #[arg(long, conflicts_with = "check", env = "HEDGEROW_CORE_MIGRATE_BACKUP_EXISTS")]
        backup_exists: bool,
        /// Print JSON
        #[arg(long, env = "HEDGEROW_JSON")]
        json: bool,
    },
    /// Show how the running core stands: relays, who obeys which documents
    Status {
        #[command(flatten)]
        core: AtCore,
    },
}

const STATUS: &[Column] = &[
    ("tenant", "tenant", Show::Plain),
    ("version", "version", Show::Plain),
    ("up for seconds", "uptime_seconds", Show::Plain),
    ("TLS provider", "tls.provider", Show::Plain),
    ("post-quantum", "tls.post_quantum", Show::Plain),
    ("documents", "config.version", Show::Plain),
    ("issued", "config.issued", Show::Time),
    ("not yet at", "not_yet", Show::Plain),
    ("connections", "connections", Show::Plain),
    ("licence", "licence.id", Show::Plain),
    ("licence stands", "licence.standing", Show::Plain),
    ("licence expires", "licence.expires", Show::Time),
    ("seats", "licence.seats", Show::Plain),
    ("seats used", "licence.seats_used", Show::Plain),
    ("warning", "licence.warning", Show::Plain),
];
const RELAYS: &[Column] = &[
    ("RELAY", "name", Show::Plain),
    ("UP", "up", Show::Plain),
    ("SINCE", "since", Show::Time),
    ("DOCUMENTS", "config", Show::Plain),
    ("CA KNOWN", "ca_registered", Show::Plain),
    ("OPEN ACTIVATIONS", "lookup_entries", Show::Plain),
    ("NAMES", "names", Show::Plain),
    ("LICENCE", "licence.state", Show::Plain),
    ("WEB SERVICES PROXY", "web", Show::Plain),
    ("ERROR", "error", Show::Plain),
];
const MIGRATIONS: &[Column] =
    &[("MIGRATION", "version", Show::Plain), ("NAME", "name", Show::Plain), ("STATE", "state", Show::Plain)];
const HOLDERS: &[Column] = &[("HOLDER", "holder", Show::Plain), ("OBEYS", "version", Show::Plain)];

impl RoleConfig for CoreConfig {
    fn verify(&self) -> Result<(), ConfigFault> {
        self.check()
    }
}

pub(crate) fn run(args: CoreArgs, logging: &Logging) -> ExitCode {
    match args.command {
        CoreCommand::Run(source) => start(&source, logging),
        CoreCommand::Config { source, command } => role::config::<CoreConfig>(&command, &source.sources("core")),
        CoreCommand::Migrate { source, check, backup_exists, json } => match load(&source) {
            Ok(config) => boot::block_on(migrate(config, check, backup_exists, json)),
            Err(fault) => boot::failed(&fault.into()),
        },
        CoreCommand::Status { core } => verb(async move {
            let status = core.at().get("/status").await?;
            output::answer(core.json, &status, |status| {
                let relays = output::table(&status["relays"], RELAYS, "no relays");
                let holders = output::table(&status["acknowledged"], HOLDERS, "nobody obeys a document yet");
                format!("{}\n{relays}\n{holders}", output::record(status, STATUS))
            })
        }),
    }
}

fn load(source: &CoreConfigArgs) -> Result<CoreConfig, ConfigFault> {
    role::load::<CoreConfig>(&source.sources("core")).map(|loaded| loaded.value)
}

fn start(source: &CoreConfigArgs, logging: &Logging) -> ExitCode {
    let config = match load(source) {
        Ok(config) => config,
        Err(fault) => return boot::failed(&fault.into()),
    };
    let drain = config.timers().drain;
    boot::run("core", logging, drain, |context| hedgerow_management::run(config, context))
}

async fn migrate(config: CoreConfig, check: bool, backup_exists: bool, json: bool) -> anyhow::Result<()> {
    let place = config.place()?;
    let done = if check { None } else { Some(State::migrate(&config.state, &place, backup_exists).await?) };
    let plan = State::plan(&place).await?;
    let answer = json!({
        "migrations": steps(&plan),
        "applied": done.as_ref().map(|d| &d.applied),
        "backup": done.as_ref().and_then(|d| d.backup.as_ref()),
    });
    output::answer(json, &answer, |answer| {
        let mut text = output::table(&answer["migrations"], MIGRATIONS, "no migrations");
        if let Some(applied) = answer["applied"].as_array() {
            text.push_str(&format!("\napplied now: {}\n", applied.len()));
        }
        if let Some(backup) = answer["backup"].as_str() {
            text.push_str(&format!("copy from before: {}\n", output::printable(backup)));
        }
        text
    })?;
    anyhow::ensure!(plan.is_current(), "the database is not at the schema of this version: see STATE above");
    Ok(())
}

fn steps(plan: &Plan) -> Value {
    plan.0.iter().map(|s| json!({ "version": s.version, "name": s.name, "state": s.standing.as_str() })).collect()
}
