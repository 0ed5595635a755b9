//! `hedgerow ca`: the tenant's CA and its replacement.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::control::{AtCore, verb};
use crate::output::{self, Column, Show};

#[derive(Debug, clap::Args)]
pub(crate) struct CaArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: CaCommand,
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Show the CA in force and, while it is replaced, who knows the next one
    Show,
    /// Make the next CA and announce it to relays, nodes and devices
    Begin,
    /// Certify devices and nodes by the next CA; they ask for new certificates by themselves
    Switch {
        /// Also while relays or nodes do not know it yet: they refuse its certificates until they do
        #[arg(long, env = "HEDGEROW_CA_ANYWAY")]
        anyway: bool,
    },
    /// Drop the old CA
    Finish {
        /// Also while devices or nodes have no certificate of the next one: they must be activated or enrolled again
        #[arg(long, env = "HEDGEROW_CA_ANYWAY")]
        anyway: bool,
    },
}

const IN_FORCE: &[Column] = &[("in force", "pin", Show::Plain)];
const NEXT: &[Column] = &[
    ("next", "pin", Show::Plain),
    ("begun", "begun", Show::Time),
    ("announced by", "announced", Show::Plain),
    ("certifies", "certifies", Show::Plain),
    ("do not know it", "unaware", Show::Plain),
];
const BEHIND: &[Column] = &[("STILL UNDER THE OLD CA", "kind", Show::Plain), ("ID", "id", Show::Plain)];

pub(crate) fn run(args: CaArgs) -> ExitCode {
    let CaArgs { core, command } = args;
    verb(async move {
        let at = core.at();
        let answer = match command {
            CaCommand::Show => at.get("/ca").await?,
            CaCommand::Begin => at.post("/ca/begin", &json!({})).await?,
            CaCommand::Switch { anyway } => at.post("/ca/switch", &json!({ "anyway": anyway })).await?,
            CaCommand::Finish { anyway } => at.post("/ca/finish", &json!({ "anyway": anyway })).await?,
        };
        output::answer(core.json, &answer, show)
    })
}

fn show(answer: &Value) -> String {
    let in_force = output::record(answer, IN_FORCE);
    match &answer["next"] {
        Value::Null => in_force,
        next => format!(
            "{in_force}\n{}\n{}\n{}\n",
            output::record(next, NEXT),
            output::table(&next["behind"], BEHIND, "every device and node stands under the next CA"),
            step(next),
        ),
    }
}

/// What is to be done about a replacement that has begun.
fn step(next: &Value) -> &'static str {
    let is_empty = |key: &str| next[key].as_array().is_none_or(Vec::is_empty);
    match (next["certifies"] == true, is_empty("unaware"), is_empty("behind")) {
        (false, false, _) => "next: wait until nobody is left who does not know it, then hedgerow ca switch",
        (false, true, _) => "next: hedgerow ca switch",
        (true, _, false) => "next: wait until nobody is left under the old CA, then hedgerow ca finish",
        (true, _, true) => "next: hedgerow ca finish",
    }
}
