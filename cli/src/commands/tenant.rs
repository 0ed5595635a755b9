//! `hedgerow tenant`: the organisation of a core. It is named in the core's configuration and made at its first start.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::control::{AtCore, verb};
use crate::output::{self, Column, Show};

#[derive(Debug, clap::Args)]
pub(crate) struct TenantArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: TenantCommand,
}

#[derive(Debug, Subcommand)]
enum TenantCommand {
    /// Show the tenant: relays, certificate authority, configuration version
    Show,
    /// Print the certificate of the tenant's authority, PEM
    Ca,
    /// Print the documents that relays, nodes and devices obey, as signed
    Documents,
    /// After a restore from a backup: make the documents to come newer than those that peers have seen
    RaiseEpoch,
}

const COLUMNS: &[Column] = &[
    ("tenant", "id", Show::Plain),
    ("name", "name", Show::Plain),
    ("CA pin", "ca_pin", Show::Plain),
    ("relays", "relays", Show::Plain),
    ("relay name", "relay_name", Show::Plain),
    ("default route", "default_route", Show::Plain),
    ("documents", "config", Show::Plain),
    ("issued", "config_issued", Show::Time),
    ("created", "created", Show::Time),
];

pub(crate) fn run(args: TenantArgs) -> ExitCode {
    verb(async move {
        let at = args.core.at();
        match args.command {
            TenantCommand::Show => at.record(&at.get("/tenant").await?, COLUMNS),
            TenantCommand::Ca => {
                let tenant = at.get("/tenant").await?;
                output::print(tenant["ca_pem"].as_str().unwrap_or_default())
            }
            TenantCommand::Documents => {
                let documents = at.get("/config").await?;
                output::print(&format!("{documents:#}\n"))
            }
            TenantCommand::RaiseEpoch => {
                let answer = at.post("/tenant/epoch", &json!({})).await?;
                let version = answer["version"].as_str().unwrap_or_default().to_owned();
                at.done(&answer, &format!("the documents are version {version} now"))
            }
        }
    })
}
