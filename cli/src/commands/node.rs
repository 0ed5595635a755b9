//! `hedgerow node`: enrols and runs a connectivity node here; lists and revokes nodes at the core.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use hedgerow_connectivity_node::{NodeConfigFile, enroll_over as enroll_node};
use hedgerow_runtime::boot;
use hedgerow_runtime::config::ConfigFault;
use hedgerow_runtime::telemetry::Logging;
use hedgerow_shared::EntityId;
use serde_json::json;

use super::control::{AtCore, not_yet, verb};
use crate::output::{Column, Show};
use crate::role::{self, ConfigCommand, RoleConfig, config_args};
use crate::{output, secrets};

config_args!(NodeConfigArgs, "HEDGEROW_NODE_CONFIG", "/etc/hedgerow/node.toml", "HEDGEROW_NODE__");

#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Make this machine a node, with a token from `hedgerow token create`
    Enroll {
        #[command(flatten)]
        source: NodeConfigArgs,
        /// File with the token; `-` is standard input [default: ask]
        #[arg(long, value_name = "FILE", env = "HEDGEROW_NODE_TOKEN_FILE")]
        token_file: Option<PathBuf>,
        /// The node's name [default: the token's]
        #[arg(long, env = "HEDGEROW_NODE_NAME")]
        name: Option<String>,
        /// Print JSON
        #[arg(long, env = "HEDGEROW_JSON")]
        json: bool,
    },
    /// Run the node until TERM; a second TERM stops at once
    Run(NodeConfigArgs),
    /// Look at the configuration without running anything
    Config {
        #[command(flatten)]
        source: NodeConfigArgs,
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// At the core: list nodes
    List {
        #[command(flatten)]
        core: AtCore,
    },
    /// At the core: revoke a node; its connections are cut
    Revoke {
        #[command(flatten)]
        core: AtCore,
        /// Its id
        id: EntityId,
    },
}

const COLUMNS: &[Column] = &[
    ("ID", "id", Show::Plain),
    ("NAME", "name", Show::Plain),
    ("GROUP", "group", Show::Plain),
    ("ORIGINS", "origins", Show::Plain),
    ("STATE", "state", Show::Plain),
    ("OBEYS", "config", Show::Plain),
    ("LAST SEEN", "last_seen", Show::Time),
];

const ENROLLED: &[Column] = &[
    ("node", "id", Show::Plain),
    ("name", "name", Show::Plain),
    ("tenant", "tenant", Show::Plain),
    ("group", "group", Show::Plain),
    ("origins", "origins", Show::Plain),
];

impl RoleConfig for NodeConfigFile {
    fn verify(&self) -> Result<(), ConfigFault> {
        self.check()
    }
}

pub(crate) fn run(args: NodeArgs, logging: &Logging) -> ExitCode {
    match args.command {
        NodeCommand::Enroll { source, token_file, name, json } => verb(enroll(source, token_file, name, json)),
        NodeCommand::Run(source) => start(&source, logging),
        NodeCommand::Config { source, command } => role::config::<NodeConfigFile>(&command, &source.sources("node")),
        NodeCommand::List { core } => verb(async move {
            let at = core.at();
            at.table(&at.list("/nodes").await?, COLUMNS, "no nodes")
        }),
        NodeCommand::Revoke { core, id } => verb(async move {
            let at = core.at();
            let answer = at.delete(&format!("/nodes/{id}")).await?;
            at.done(&answer, &format!("node {id} revoked{}", not_yet(&answer)))
        }),
    }
}

async fn enroll(
    source: NodeConfigArgs,
    token_file: Option<PathBuf>,
    name: Option<String>,
    json: bool,
) -> anyhow::Result<()> {
    let config = role::load::<NodeConfigFile>(&source.sources("node"))?.value;
    let token = secrets::read("enrolment token", token_file.as_deref())?;
    let record =
        enroll_node(&config.state, &token, name.as_deref(), &config.outbound.network()?, &config.timers()).await?;
    let shown = json!({
        "id": record.id, "name": record.name, "tenant": record.tenant, "group": record.group, "origins": record.origins,
    });
    output::answer(json, &shown, |shown| output::record(shown, ENROLLED))
}

fn start(source: &NodeConfigArgs, logging: &Logging) -> ExitCode {
    let config = match role::load::<NodeConfigFile>(&source.sources("node")) {
        Ok(loaded) => loaded.value,
        Err(fault) => return boot::failed(&fault.into()),
    };
    let drain = std::time::Duration::from_secs(config.drain.seconds);
    boot::run("node", logging, drain, |context| async move { hedgerow_connectivity_node::run(config, &context).await })
}
