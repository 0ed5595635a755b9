//! `hedgerow group`: groups of users, which profiles are assigned to.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::control::{AtCore, segment, verb};
use crate::output::{Column, Show};

#[derive(Debug, clap::Args)]
pub(crate) struct GroupArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: GroupCommand,
}

#[derive(Debug, Subcommand)]
enum GroupCommand {
    /// Add a group
    Add {
        /// Its name
        name: String,
        /// What it is for
        #[arg(long, env = "HEDGEROW_GROUP_DESCRIPTION")]
        description: Option<String>,
    },
    /// Give a group another name or description; who is in it and what is assigned to it stays
    #[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["name", "description"]))]
    Change {
        /// Name or id
        group: String,
        /// The new name
        #[arg(long, env = "HEDGEROW_GROUP_NAME")]
        name: Option<String>,
        /// What it is for
        #[arg(long, env = "HEDGEROW_GROUP_DESCRIPTION")]
        description: Option<String>,
    },
    /// List groups
    List,
    /// List who is in a group
    Members {
        /// Name or id
        group: String,
    },
    /// Put a user, or everybody of another group, into a group
    Join {
        /// Name or id
        group: String,
        /// E-mail address or id of a user, or group:NAME
        who: String,
    },
    /// Take a user or another group out of a group
    Leave {
        /// Name or id
        group: String,
        /// E-mail address or id of a user, or group:NAME
        who: String,
    },
    /// Remove a group; whoever is in it stays
    Remove {
        /// Name or id
        group: String,
    },
}

const COLUMNS: &[Column] = &[
    ("NAME", "name", Show::Plain),
    ("DESCRIPTION", "description", Show::Plain),
    ("CREATED", "created", Show::Time),
    ("ID", "id", Show::Plain),
];

/// Users and groups.
pub(super) const PRINCIPALS: &[Column] =
    &[("KIND", "kind", Show::Plain), ("NAME", "name", Show::Plain), ("ID", "id", Show::Plain)];

pub(crate) fn run(args: GroupArgs) -> ExitCode {
    verb(async move {
        let at = args.core.at();
        let path = |group: &str| format!("/groups/{}", segment(group));
        let member = |group: &str, who: &str| format!("{}/members/{}", path(group), segment(who));
        match args.command {
            GroupCommand::Add { name, description } => {
                let body = json!({ "name": name, "description": description.unwrap_or_default() });
                at.done(&at.post("/groups", &body).await?, &format!("group {name} added"))
            }
            GroupCommand::Change { group, name, description } => {
                let answer = at.put(&path(&group), &json!({ "name": name, "description": description })).await?;
                at.done(&answer, &format!("group {} changed", name.unwrap_or(group)))
            }
            GroupCommand::List => at.table(&at.list("/groups").await?, COLUMNS, "no groups"),
            GroupCommand::Members { group } => {
                let members = at.list(&format!("{}/members", path(&group))).await?;
                at.table(&members, PRINCIPALS, "nobody is in this group")
            }
            GroupCommand::Join { group, who } => {
                let answer = at.put(&member(&group, &who), &json!({})).await?;
                at.done(&answer, &format!("{who} is in group {group}"))
            }
            GroupCommand::Leave { group, who } => {
                at.done(&at.delete(&member(&group, &who)).await?, &format!("{who} is no longer in group {group}"))
            }
            GroupCommand::Remove { group } => {
                at.done(&at.delete(&path(&group)).await?, &format!("group {group} removed"))
            }
        }
    })
}
