//! `hedgerow compliance`: which devices are as their compliance profile wants them, and what was done about the others.

use std::process::ExitCode;

use clap::Subcommand;
use hedgerow_shared::EntityId;
use serde_json::{Value, json};

use super::control::{AtCore, segment, verb};
use crate::output::{self, Column, Show};

#[derive(Debug, clap::Args)]
pub(crate) struct ComplianceArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: ComplianceCommand,
}

#[derive(Debug, Subcommand)]
enum ComplianceCommand {
    /// List how devices stand
    List {
        /// Only those: compliant, not-compliant, no-profile
        #[arg(long, env = "HEDGEROW_COMPLIANCE_VERDICT")]
        verdict: Option<String>,
    },
    /// Show how a device stands: rules that it breaks, since when, what was done
    Show {
        /// The device's id
        device: EntityId,
    },
    /// Judge a device now, or all devices; nothing is done twice for one cause
    Check {
        /// The device's id [default: all]
        device: Option<EntityId>,
    },
}

const COLUMNS: &[Column] = &[
    ("DEVICE", "device", Show::Plain),
    ("USER", "email", Show::Plain),
    ("NAME", "name", Show::Plain),
    ("VERDICT", "verdict", Show::Plain),
    ("QUARANTINED", "quarantined", Show::Plain),
    ("BREAKS", "breaks", Show::Plain),
    ("SINCE", "changed", Show::Time),
];
const ONE: &[Column] = &[
    ("device", "device", Show::Plain),
    ("user", "email", Show::Plain),
    ("name", "name", Show::Plain),
    ("profile", "profile_name", Show::Plain),
    ("verdict", "verdict", Show::Plain),
    ("quarantined", "quarantined", Show::Plain),
    ("since", "changed", Show::Time),
];
const CAUSES: &[Column] = &[
    ("RULE", "rule", Show::Plain),
    ("BY", "what", Show::Plain),
    ("IN ALL", "count", Show::Plain),
    ("SINCE", "since", Show::Time),
    ("DONE", "done", Show::Plain),
];

pub(crate) fn run(args: ComplianceArgs) -> ExitCode {
    verb(async move {
        let at = args.core.at();
        let path = |device: EntityId| format!("/devices/{device}/compliance");
        match args.command {
            ComplianceCommand::List { verdict } => {
                let only = verdict.map(|verdict| format!("?verdict={}", segment(&verdict))).unwrap_or_default();
                let mut all = at.list(&format!("/compliance{only}")).await?;
                all.as_array_mut().into_iter().flatten().for_each(sum_up);
                at.table(&all, COLUMNS, "no device has been judged so")
            }
            ComplianceCommand::Show { device } => show(args.core.json, at.get(&path(device)).await?),
            ComplianceCommand::Check { device: Some(device) } => {
                show(args.core.json, at.post(&path(device), &json!({})).await?)
            }
            ComplianceCommand::Check { device: None } => {
                let (mut looked_at, mut changed, mut failed, mut after) = (0, 0, Vec::new(), String::new());
                loop {
                    let page = at.post(&format!("/compliance{after}"), &json!({})).await?;
                    looked_at += page["looked_at"].as_u64().unwrap_or(0);
                    changed += page["changed"].as_u64().unwrap_or(0);
                    failed.extend(page["failed"].as_array().into_iter().flatten().cloned());
                    let Some(next) = page["next"].as_str() else { break };
                    after = format!("?after={next}");
                }
                let mut told = format!("{looked_at} devices judged, {changed} stand otherwise than before");
                for one in &failed {
                    let text = |key: &str| one[key].as_str().unwrap_or_default();
                    told.push_str(&format!("\n{} cannot be judged: {}", text("device"), text("why")));
                }
                at.done(&json!({ "looked_at": looked_at, "changed": changed, "failed": failed }), &told)
            }
        }
    })
}

/// The rules that it breaks, in one cell.
pub(super) fn sum_up(standing: &mut Value) {
    let causes = standing["causes"].as_array();
    standing["breaks"] = causes.into_iter().flatten().map(|cause| cause["rule"].clone()).collect();
}

/// What was done, in words.
fn put_in_words(cause: &mut Value) {
    let taken = cause["taken"].as_array().into_iter().flatten();
    let done: Vec<Value> = taken
        .filter_map(|taken| {
            let (action, at) = (taken["action"].as_str()?, output::time(taken["at"].as_u64()?));
            let by = taken["command"].as_str().map(|id| format!(" by command {id}")).unwrap_or_default();
            Some(format!("{action} at {at}{by}").into())
        })
        .collect();
    cause["done"] = done.into();
}

fn show(json: bool, mut standing: Value) -> anyhow::Result<()> {
    output::answer(json, &standing.clone(), |_| {
        standing["causes"].as_array_mut().into_iter().flatten().for_each(put_in_words);
        format!(
            "{}\n{}",
            output::record(&standing, ONE),
            output::table(&standing["causes"], CAUSES, "it breaks no rule")
        )
    })
}
