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
        #[command(flatten)]
        rule: RuleWords,
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
        #[command(flatten)]
        rule: RuleWords,
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

/// What a rule says.
#[derive(Debug, clap::Args)]
struct RuleWords {
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
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Verdict {
    /// Let it pass
    Allow,
    /// Refuse it
    Deny,
}

impl From<RuleWords> for Rule {
    fn from(words: RuleWords) -> Self {
        let action = match words.action {
            Verdict::Allow => Action::Allow,
            Verdict::Deny => Action::Deny,
        };
        Self { action, target: words.target, ports: words.ports, group: words.group }
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
            RuleCommand::Add { rule, before } => {
                let mut body = json!({ "rule": Rule::from(rule) });
                place(&mut body, before)?;
                at.done(&at.post("/rules", &body).await?, "rule added")
            }
            RuleCommand::List => {
                at.table(&numbered(at.list("/rules").await?), COLUMNS, "no rules: everything is denied")
            }
            RuleCommand::Change { number, rule } => {
                let rule = json!(Rule::from(rule));
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
