//! `hedgerow audit`: the record of who changed what.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::control::{At, AtCore, moment, segment, verb};
use crate::output::{self, Column, Show};

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
        #[command(flatten)]
        which: Which,
    },
    /// Write all records, or those that match, for other systems
    Export {
        /// How
        #[arg(long, value_enum, default_value = "jsonl", env = "HEDGEROW_AUDIT_FORMAT")]
        format: Format,
        /// Write to a new file instead of standard output
        #[arg(long, value_name = "FILE", env = "HEDGEROW_AUDIT_OUT")]
        out: Option<PathBuf>,
        #[command(flatten)]
        which: Which,
    },
    /// Check that no record was changed or removed
    Verify,
}

/// How records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object a line, with the chain's hashes
    Jsonl,
    /// A table for spreadsheets; what they would take for a formula has a ' in front
    Csv,
}

/// Which records: all that is said must hold.
#[derive(Debug, clap::Args)]
struct Which {
    /// Not before: a day (2026-11-27), seconds since 1970, or so long ago (24h, 7d)
    #[arg(long, value_name = "TIME", value_parser = moment, env = "HEDGEROW_AUDIT_FROM")]
    from: Option<u64>,
    /// Before: the same
    #[arg(long, value_name = "TIME", value_parser = moment, env = "HEDGEROW_AUDIT_UNTIL")]
    until: Option<u64>,
    /// By whom: admin:local, device:ID, system
    #[arg(long, value_name = "WHO", env = "HEDGEROW_AUDIT_ACTOR")]
    actor: Option<String>,
    /// What: user.add, device.revoke
    #[arg(long, value_name = "WHAT", env = "HEDGEROW_AUDIT_ACTION")]
    action: Option<String>,
    /// To what: an id
    #[arg(long, value_name = "ID", env = "HEDGEROW_AUDIT_SUBJECT")]
    subject: Option<String>,
}

impl Which {
    /// As a query: empty when nothing is said.
    fn query(&self) -> String {
        let times = [("from", self.from), ("until", self.until)];
        let texts = [("actor", &self.actor), ("action", &self.action), ("subject", &self.subject)];
        let times = times.into_iter().filter_map(|(key, at)| Some(format!("{key}={}", at?)));
        let texts = texts.into_iter().filter_map(|(key, text)| Some(format!("{key}={}", segment(text.as_deref()?))));
        times.chain(texts).collect::<Vec<_>>().join("&")
    }
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
            AuditCommand::List { after, limit, which } => {
                let path = match which.query() {
                    query if query.is_empty() => format!("/audit?after={after}&limit={limit}"),
                    query => {
                        anyhow::ensure!(
                            after == 0,
                            "--after goes with a list of all records; use --from with the others"
                        );
                        format!("/audit/find?limit={limit}&{query}")
                    }
                };
                let mut answer = at.get(&path).await?;
                at.table(&answer["items"].take(), COLUMNS, "no records")
            }
            AuditCommand::Export { format, out, which } => export(&at, format, out.as_deref(), &which.query()).await,
            AuditCommand::Verify => {
                let answer = at.post("/audit/verify", &json!({})).await?;
                let sentence = format!("the chain of {} records is whole", answer["records"]);
                at.done(&answer, &sentence)
            }
        }
    })
}

/// Part by part, so that no answer has to hold them all.
async fn export(at: &At<'_>, format: Format, out: Option<&Path>, query: &str) -> anyhow::Result<()> {
    let mut to = output::writer(out)?;
    let path = match format {
        Format::Jsonl => "/audit/find",
        Format::Csv => "/audit/export",
    };
    let (mut after, mut first) = (String::new(), true);
    loop {
        let part = at.get(&format!("{path}?{query}{after}")).await?;
        match format {
            Format::Jsonl => {
                for record in part["items"].as_array().context("the answer is not a list")? {
                    writeln!(to, "{record}")?;
                }
            }
            Format::Csv => {
                to.write_all(output::csv_part(&part, first)?.as_bytes())?;
            }
        }
        first = false;
        match part["next"].as_str() {
            Some(next) => after = format!("{}after={}", if query.is_empty() { "" } else { "&" }, segment(next)),
            None => return to.flush().map_err(Into::into),
        }
    }
}
