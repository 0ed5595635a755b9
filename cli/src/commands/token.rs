//! `hedgerow token`: enrolment tokens for nodes. The whole token is a secret; it is shown or written once.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use hedgerow_shared::{EntityId, GroupName, Origin};
use serde_json::json;

use super::control::{AtCore, duration, verb};
use crate::output::{Column, Show};
use crate::{output, secrets};

#[derive(Debug, clap::Args)]
pub(crate) struct TokenArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token that enrols one node
    Create {
        /// The node's name
        #[arg(long, env = "HEDGEROW_NODE_NAME")]
        name: String,
        /// The node's server group
        #[arg(long, env = "HEDGEROW_NODE_GROUP", default_value = "default")]
        group: GroupName,
        /// What the node serves
        #[arg(
            long,
            value_name = "ORIGIN",
            env = "HEDGEROW_NODE_ORIGINS",
            value_delimiter = ',',
            default_value = "proxy"
        )]
        origins: Vec<Origin>,
        /// How long it is good: 90s, 30m, 24h, 7d
        #[arg(long, value_name = "TIME", env = "HEDGEROW_TOKEN_VALID", default_value = "24h", value_parser = duration)]
        valid: u64,
        /// Write it to a new file instead of showing it
        #[arg(long, value_name = "FILE", env = "HEDGEROW_TOKEN_OUT")]
        out: Option<PathBuf>,
    },
    /// List tokens (without their secrets)
    List,
    /// Withdraw a token that was not used yet
    Revoke {
        /// Its id
        id: EntityId,
    },
}

const COLUMNS: &[Column] = &[
    ("ID", "id", Show::Plain),
    ("NODE", "name", Show::Plain),
    ("GROUP", "group", Show::Plain),
    ("ORIGINS", "origins", Show::Plain),
    ("STATE", "state", Show::Plain),
    ("EXPIRES", "expires", Show::Time),
];

pub(crate) fn run(args: TokenArgs) -> ExitCode {
    verb(async move {
        let at = args.core.at();
        match args.command {
            TokenCommand::Create { name, group, origins, valid, out } => {
                let body = json!({ "name": name, "group": group, "origins": origins, "lifetime_seconds": valid });
                let mut answer = at.post("/tokens", &body).await?;
                let until = answer["token"]["expires"].as_u64().map(output::time).unwrap_or_default();
                if let Some(file) = out {
                    let token = answer["text"].take();
                    secrets::write_new(&file, token.as_str().unwrap_or_default().as_bytes())?;
                    return at.done(&answer, &format!("token written to {}; good once, until {until}", file.display()));
                }
                let token = answer["text"].as_str().unwrap_or_default().to_owned();
                at.done(&answer, &token)
            }
            TokenCommand::List => at.table(&at.list("/tokens").await?, COLUMNS, "no tokens"),
            TokenCommand::Revoke { id } => {
                at.done(&at.delete(&format!("/tokens/{id}")).await?, &format!("token {id} withdrawn"))
            }
        }
    })
}
