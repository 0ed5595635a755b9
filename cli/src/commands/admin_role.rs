//! `hedgerow role`: what administrators may do.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::control::{AtCore, segment, verb};
use crate::output::{Column, Show};

#[derive(Debug, clap::Args)]
pub(crate) struct RoleArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: RoleCommand,
}

#[derive(Debug, Subcommand)]
enum RoleCommand {
    /// List roles
    List,
    /// Show a role and what it includes
    Show {
        /// Name or id
        role: String,
    },
    /// Add a role
    Add {
        /// Its name
        name: String,
        /// What it includes; a wrong one is answered with all there are
        #[arg(
            long,
            value_name = "PERMISSION,..",
            value_delimiter = ',',
            required = true,
            env = "HEDGEROW_ROLE_PERMISSIONS"
        )]
        permissions: Vec<String>,
        /// For users of these groups only [default: all users]
        #[arg(long, value_name = "GROUP,..", value_delimiter = ',', env = "HEDGEROW_ROLE_GROUPS")]
        groups: Option<Vec<String>>,
    },
    /// Change a role of your own; it counts at once for everybody who has it
    #[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["name", "permissions", "groups", "all_users"]))]
    Change {
        /// Name or id
        role: String,
        /// The new name
        #[arg(long, env = "HEDGEROW_ROLE_NAME")]
        name: Option<String>,
        /// All that it is to include
        #[arg(long, value_name = "PERMISSION,..", value_delimiter = ',', env = "HEDGEROW_ROLE_PERMISSIONS")]
        permissions: Option<Vec<String>>,
        /// For users of these groups only
        #[arg(long, value_name = "GROUP,..", value_delimiter = ',', env = "HEDGEROW_ROLE_GROUPS")]
        groups: Option<Vec<String>>,
        /// For all users again
        #[arg(long, conflicts_with = "groups", env = "HEDGEROW_ROLE_ALL_USERS")]
        all_users: bool,
    },
    /// Remove a role that nobody has
    Remove {
        /// Name or id
        role: String,
    },
}

const COLUMNS: &[Column] = &[
    ("NAME", "name", Show::Plain),
    ("PREDEFINED", "predefined", Show::Plain),
    ("GROUPS", "groups", Show::Plain),
    ("ID", "id", Show::Plain),
];
const ONE: &[Column] = &[
    ("name", "name", Show::Plain),
    ("predefined", "predefined", Show::Plain),
    ("groups", "groups", Show::Plain),
    ("permissions", "permissions", Show::Plain),
    ("id", "id", Show::Plain),
];

pub(crate) fn run(args: RoleArgs) -> ExitCode {
    verb(async move {
        let at = args.core.at();
        let path = |role: &str| format!("/roles/{}", segment(role));
        match args.command {
            RoleCommand::List => at.table(&at.list("/roles").await?, COLUMNS, "no roles"),
            RoleCommand::Show { role } => at.record(&at.get(&path(&role)).await?, ONE),
            RoleCommand::Add { name, permissions, groups } => {
                let body = json!({ "name": name, "permissions": permissions, "groups": groups });
                at.done(&at.post("/roles", &body).await?, &format!("role {name} added"))
            }
            RoleCommand::Change { role, name, permissions, groups, all_users } => {
                let body =
                    json!({ "name": name, "permissions": permissions, "groups": groups, "all_users": all_users });
                let answer = at.put(&path(&role), &body).await?;
                at.done(&answer, &format!("role {} changed", name.unwrap_or(role)))
            }
            RoleCommand::Remove { role } => at.done(&at.delete(&path(&role)).await?, &format!("role {role} removed")),
        }
    })
}
