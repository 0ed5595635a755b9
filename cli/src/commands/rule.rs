//! `hedgerow rule`: what devices may reach through nodes. First match decides; without one it is denied.

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use hedgerow_shared::GroupName;
use hedgerow_shared::verify::policy::{Action, PortSet, Rule, TargetPattern};
use serde_json::json;

use super::control::{AtCore, verb};
use super::route::{numbered, place, position};
use crate::output::{Column, Show};

#[derive(Debug, clap::Args)]
pub(crate) struct RuleArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: RuleCommand,
}

#[derive(Debug, Subcommand)]
enum RuleCommand {
    /// Add a rule at the end, or before another
    Add {
        /// The verdict
        action: Verdict,
        /// A name, *.domain, an address, an address range, or *
        target: TargetPattern,
        /// Ports, such as 80,443,8000-8999
        #[arg(long, env = "HEDGEROW_RULE_PORTS", default_value = "*")]
        ports: PortSet,
        /// Only at nodes of this server group
        #[arg(long, env = "HEDGEROW_RULE_GROUP")]
        group: Option<GroupName>,
        /// Before the rule of this number
        #[arg(long, value_name = "NUMBER", env = "HEDGEROW_RULE_BEFORE")]
        before: Option<usize>,
    },
    /// List rules in their order
    List,
    /// Put another rule in the place of the one of this number
    Change {
        /// As `rule list` shows it
        number: usize,
        /// The verdict
        action: Verdict,
        /// A name, *.domain, an address, an address range, or *
        target: TargetPattern,
        /// Ports, such as 80,443,8000-8999
        #[arg(long, env = "HEDGEROW_RULE_PORTS", default_value = "*")]
        ports: PortSet,
        /// Only at nodes of this server group
        #[arg(long, env = "HEDGEROW_RULE_GROUP")]
        group: Option<GroupName>,
    },
    /// Give the rule of this number another place
    Move {
        /// As `rule list` shows it
        number: usize,
        /// Its number from now on
        to: usize,
    },
    /// Remove the rule of this number
    Remove {
        /// As `rule list` shows it
        number: usize,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Verdict {
    /// Let it pass
    Allow,
    /// Refuse it
    Deny,
}

impl From<Verdict> for Action {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow => Self::Allow,
            Verdict::Deny => Self::Deny,
        }
    }
}

const COLUMNS: &[Column] = &[
    ("NUMBER", "number", Show::Plain),
    ("ACTION", "action", Show::Plain),
    ("TARGET", "target", Show::Plain),
    ("PORTS", "ports", Show::Plain),
    ("GROUP", "group", Show::Plain),
];

pub(crate) fn run(args: RuleArgs) -> ExitCode {
    verb(async move {
        let at = args.core.at();
        match args.command {
            RuleCommand::Add { action, target, ports, group, before } => {
                let mut body = json!({ "rule": Rule { action: action.into(), target, ports, group } });
                place(&mut body, before)?;
                at.done(&at.post("/rules", &body).await?, "rule added")
            }
            RuleCommand::List => {
                at.table(&numbered(at.list("/rules").await?), COLUMNS, "no rules: everything is denied")
            }
            RuleCommand::Change { number, action, target, ports, group } => {
                let rule = json!(Rule { action: action.into(), target, ports, group });
                at.done(&at.put(&format!("/rules/{}", position(number)?), &rule).await?, "rule changed")
            }
            RuleCommand::Move { number, to } => {
                let (path, to) = (format!("/rules/{}/move", position(number)?), json!({ "to": position(to)? }));
                at.done(&at.post(&path, &to).await?, "rule moved")
            }
            RuleCommand::Remove { number } => {
                at.done(&at.delete(&format!("/rules/{}", position(number)?)).await?, "rule removed")
            }
        }
    })
}
