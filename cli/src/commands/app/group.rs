//! `hedgerow app group`: groups of apps, assigned as one.

use clap::Subcommand;
use serde_json::json;

use super::super::control::{At, segment};
use super::{COLUMNS as APPS, path as app_path};
use crate::output::{Column, Show};

#[derive(Debug, Subcommand)]
pub(super) enum GroupCommand {
    /// Add a group of apps
    Add {
        /// Its name
        name: String,
        /// What it is for
        #[arg(long, env = "HEDGEROW_APP_GROUP_DESCRIPTION")]
        description: Option<String>,
    },
    /// List groups of apps
    List,
    /// List the apps of a group
    Members {
        /// Name or id
        group: String,
    },
    /// Put an app into a group
    Join {
        /// Name or id
        group: String,
        /// PLATFORM/IDENTIFIER or id
        app: String,
    },
    /// Take an app out of a group
    Leave {
        /// Name or id
        group: String,
        /// PLATFORM/IDENTIFIER or id
        app: String,
    },
    /// Remove a group of apps; the apps stay
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

pub(super) async fn run(at: &At<'_>, command: GroupCommand) -> anyhow::Result<()> {
    let path = |group: &str| format!("/app-groups/{}", segment(group));
    let member = |group: &str, app: &str| format!("{}{}", path(group), app_path(app));
    match command {
        GroupCommand::Add { name, description } => {
            let body = json!({ "name": name, "description": description.unwrap_or_default() });
            at.done(&at.post("/app-groups", &body).await?, &format!("group of apps {name} added"))
        }
        GroupCommand::List => at.table(&at.list("/app-groups").await?, COLUMNS, "no groups of apps"),
        GroupCommand::Members { group } => {
            let mut answer = at.get(&path(&group)).await?;
            at.table(&answer["apps"].take(), APPS, "no app is in this group")
        }
        GroupCommand::Join { group, app } => {
            let answer = at.put(&member(&group, &app), &json!({})).await?;
            at.done(&answer, &format!("{app} is in group of apps {group}"))
        }
        GroupCommand::Leave { group, app } => {
            let answer = at.delete(&member(&group, &app)).await?;
            at.done(&answer, &format!("{app} is no longer in group of apps {group}"))
        }
        GroupCommand::Remove { group } => {
            at.done(&at.delete(&path(&group)).await?, &format!("group of apps {group} removed"))
        }
    }
}
