//! `hedgerow core`: the core.

use std::process::ExitCode;

use clap::Subcommand;
use hedgerow_management::CoreConfig;
use hedgerow_runtime::boot;
use hedgerow_runtime::config::ConfigFault;
use hedgerow_runtime::telemetry::Logging;

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
];
const RELAYS: &[Column] = &[
    ("RELAY", "name", Show::Plain),
    ("UP", "up", Show::Plain),
    ("SINCE", "since", Show::Time),
    ("DOCUMENTS", "config", Show::Plain),
    ("CA KNOWN", "ca_registered", Show::Plain),
    ("OPEN ACTIVATIONS", "lookup_entries", Show::Plain),
    ("NAMES", "names", Show::Plain),
    ("WEB SERVICES PROXY", "web", Show::Plain),
    ("ERROR", "error", Show::Plain),
];
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

fn start(source: &CoreConfigArgs, logging: &Logging) -> ExitCode {
    let config = match role::load::<CoreConfig>(&source.sources("core")) {
        Ok(loaded) => loaded.value,
        Err(fault) => return boot::failed(&fault.into()),
    };
    let drain = config.timers().drain;
    boot::run("core", logging, drain, |context| hedgerow_management::run(config, context))
}
