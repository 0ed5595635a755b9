//! `hedgerow report`: how devices stand as a whole.

use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};

use super::control::{At, AtCore, moment, segment, verb};
use crate::output::{self, Column, Show};

#[derive(Debug, clap::Args)]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: ReportCommand,
}

#[derive(Debug, Subcommand)]
enum ReportCommand {
    /// How many devices there are: by state, platform and compliance; as CSV, the list of them
    Devices {
        /// The list of devices as CSV
        #[arg(long, conflicts_with = "json", env = "HEDGEROW_REPORT_CSV")]
        csv: bool,
    },
    /// What was done, how many devices were seen, and which were not
    Activity {
        /// From: a day (2026-11-27), seconds since 1970, or so long ago (24h, 7d) [default: a week before the end]
        #[arg(long, value_name = "TIME", value_parser = moment, env = "HEDGEROW_REPORT_FROM")]
        from: Option<u64>,
        /// Until: the same [default: now]
        #[arg(long, value_name = "TIME", value_parser = moment, env = "HEDGEROW_REPORT_UNTIL")]
        until: Option<u64>,
        /// List devices that were not seen since: the same
        #[arg(long, value_name = "TIME", value_parser = moment, env = "HEDGEROW_REPORT_QUIET")]
        quiet_since: Option<u64>,
        /// What was done, or with --quiet-since the list of those devices, as CSV
        #[arg(long, conflicts_with = "json", env = "HEDGEROW_REPORT_CSV")]
        csv: bool,
    },
    /// How many devices comply, and which do not
    Compliance {
        /// The list of those that do not as CSV
        #[arg(long, conflicts_with = "json", env = "HEDGEROW_REPORT_CSV")]
        csv: bool,
    },
}

const COUNTS: &[Column] = &[("COUNT", "count", Show::Plain), ("OF", "what", Show::Plain)];
const DEVICES: &[Column] = &[
    ("DEVICE", "id", Show::Plain),
    ("USER", "email", Show::Plain),
    ("NAME", "name", Show::Plain),
    ("PLATFORM", "platform", Show::Plain),
    ("STATE", "state", Show::Plain),
    ("COMPLIANCE", "verdict", Show::Plain),
    ("ACTIVATED", "created", Show::Time),
    ("LAST SEEN", "last_seen", Show::Time),
];
const QUIET: &[Column] = &[
    ("DEVICE", "device", Show::Plain),
    ("USER", "email", Show::Plain),
    ("NAME", "name", Show::Plain),
    ("LAST SEEN", "last_seen", Show::Time),
];
const BROKEN: &[Column] = &[
    ("DEVICE", "device", Show::Plain),
    ("USER", "email", Show::Plain),
    ("NAME", "name", Show::Plain),
    ("BREAKS", "breaks", Show::Plain),
    ("QUARANTINED", "quarantined", Show::Plain),
    ("SINCE", "changed", Show::Time),
];
/// Rows of a table for people; the rest is counted, and goes into CSV and JSON.
const SHOWN: usize = 100;

pub(crate) fn run(args: ReportArgs) -> ExitCode {
    verb(async move {
        let (at, json) = (args.core.at(), args.core.json);
        match args.command {
            ReportCommand::Devices { csv: true } => stream(&at, "/devices", DEVICES).await,
            ReportCommand::Devices { csv: false } => {
                output::answer(json, &at.get("/reports/devices").await?, |counts| {
                    let part = |of: &str| output::table(&counts[of], COUNTS, "none");
                    format!("{}\n{}\n{}", part("by_state"), part("by_platform"), part("by_verdict"))
                })
            }
            ReportCommand::Activity { quiet_since: Some(since), csv, .. } => {
                let path = format!("/reports/quiet?before={since}");
                if csv {
                    stream(&at, &path, QUIET).await
                } else {
                    page(&at, &path, QUIET, "every device was seen since").await
                }
            }
            ReportCommand::Activity { from, until, quiet_since: None, csv } => {
                let times = [("from", from), ("until", until)];
                let query: Vec<_> = times.into_iter().filter_map(|(key, at)| Some(format!("{key}={}", at?))).collect();
                let found = at.get(&format!("/reports/activity?{}", query.join("&"))).await?;
                if csv {
                    return output::print(&output::csv(&found["actions"], COUNTS, true));
                }
                output::answer(json, &found, |found| {
                    let seen = &found["devices_seen"];
                    let time = |of: &str| output::time(found[of].as_u64().unwrap_or(0));
                    format!(
                        "devices seen: {} in a day, {} in a week, {} in a month\n\nfrom {} until {}\n{}",
                        seen["day"],
                        seen["week"],
                        seen["month"],
                        time("from"),
                        time("until"),
                        output::table(&found["actions"], COUNTS, "nothing was done")
                    )
                })
            }
            ReportCommand::Compliance { csv: true } => stream(&at, "/compliance?verdict=not_compliant", BROKEN).await,
            ReportCommand::Compliance { csv: false } => {
                let counts = at.get("/reports/devices").await?["by_verdict"].take();
                let path = format!("/compliance?verdict=not_compliant&limit={SHOWN}");
                let mut broken = at.get(&path).await?;
                broken["items"].as_array_mut().into_iter().flatten().for_each(super::compliance::sum_up);
                let answer = json!({ "by_verdict": counts, "not_compliant": broken["items"], "more": !broken["next"].is_null() });
                output::answer(json, &answer, |answer| {
                    let counts = output::table(&answer["by_verdict"], COUNTS, "no device has been judged");
                    let list = output::table(&answer["not_compliant"], BROKEN, "none that does not comply");
                    let more = if answer["more"] == true { "and more: --csv has all\n" } else { "" };
                    format!("{counts}\n{list}{more}")
                })
            }
        }
    })
}

/// The first rows for people, or as JSON.
async fn page(at: &At<'_>, path: &str, columns: &[Column], nothing: &str) -> anyhow::Result<()> {
    let mut first = at.get(&format!("{path}&limit={SHOWN}")).await?;
    let more = !first["next"].is_null();
    at.table(&first["items"].take(), columns, nothing)?;
    if more && !at.json { output::print("and more: --csv has all\n") } else { Ok(()) }
}

/// A whole list as CSV, page by page.
async fn stream(at: &At<'_>, path: &str, columns: &[Column]) -> anyhow::Result<()> {
    let mark = if path.contains('?') { '&' } else { '?' };
    let (mut after, mut first) = (String::new(), true);
    loop {
        let mut part = at.get(&format!("{path}{after}")).await?;
        let items: &mut Value = &mut part["items"];
        items.as_array_mut().context("the answer is not a list")?.iter_mut().for_each(super::compliance::sum_up);
        output::print(&output::csv(items, columns, first))?;
        first = false;
        match part["next"].as_str() {
            Some(next) => after = format!("{mark}after={}", segment(next)),
            None => return Ok(()),
        }
    }
}
