//! `hedgerow audit`: the record of who changed what.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::control::{AtCore, verb};
use crate::output::{Column, Show};

#[derive(Debug, clap::Args)]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// List records in order
    List {
        /// Only records with a higher number
        #[arg(long, value_name = "NUMBER", env = "HEDGEROW_AUDIT_AFTER", default_value_t = 0)]
        after: u64,
        /// At most so many
        #[arg(long, value_name = "COUNT", env = "HEDGEROW_AUDIT_LIMIT", default_value_t = 100)]
        limit: u32,
    },
    /// Check that no record was changed or removed
    Verify,
}

const COLUMNS: &[Column] = &[
    ("NUMBER", "number", Show::Plain),
    ("TIME", "time", Show::Time),
    ("ACTOR", "actor", Show::Plain),
    ("ACTION", "action", Show::Plain),
    ("SUBJECT", "subject", Show::Plain),
    ("OUTCOME", "outcome", Show::Plain),
    ("DETAIL", "detail", Show::Plain),
];

pub(crate) fn run(args: AuditArgs) -> ExitCode {
    verb(async move {
        let at = args.core.at();
        match args.command {
            AuditCommand::List { after, limit } => {
                let mut answer = at.get(&format!("/audit?after={after}&limit={limit}")).await?;
                at.table(&answer["items"].take(), COLUMNS, "no records")
            }
            AuditCommand::Verify => {
                let answer = at.post("/audit/verify", &json!({})).await?;
                let sentence = format!("the chain of {} records is whole", answer["records"]);
                at.done(&answer, &sentence)
            }
        }
    })
}
