//! `hedgerow user`: people who may activate devices.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::control::{AtCore, segment, verb};
use crate::output::{Column, Show};

#[derive(Debug, clap::Args)]
pub(crate) struct UserArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: UserCommand,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Add a user
    Add {
        /// The e-mail address
        email: String,
        /// The user's name [default: the address]
        #[arg(long, env = "HEDGEROW_USER_NAME")]
        name: Option<String>,
    },
    /// List users
    List,
    /// Show one user
    Show {
        /// E-mail address or id
        who: String,
    },
    /// Revoke a user's devices for ever, withdraw the password, and let the user activate no more
    Remove {
        /// E-mail address or id
        who: String,
    },
    /// Let a user's devices count again, and the user activate further ones
    Activate {
        /// E-mail address or id
        who: String,
    },
    /// Make a user's devices count for nothing as long as it lasts
    Deactivate {
        /// E-mail address or id
        who: String,
    },
}

const COLUMNS: &[Column] = &[
    ("EMAIL", "email", Show::Plain),
    ("NAME", "display_name", Show::Plain),
    ("ACTIVE", "active", Show::Plain),
    ("PASSWORD", "activation.state", Show::Plain),
    ("CREATED", "created", Show::Time),
    ("ID", "id", Show::Plain),
];

pub(crate) fn run(args: UserArgs) -> ExitCode {
    verb(async move {
        let at = args.core.at();
        let path = |who: &str| format!("/users/{}", segment(who));
        match args.command {
            UserCommand::Add { email, name } => {
                let mut body = json!({ "email": email });
                if let Some(name) = name {
                    body["name"] = json!(name);
                }
                at.done(&at.post("/users", &body).await?, &format!("user {email} added"))
            }
            UserCommand::List => at.table(&at.list("/users").await?, COLUMNS, "no users"),
            UserCommand::Show { who } => at.record(&at.get(&path(&who)).await?, COLUMNS),
            UserCommand::Remove { who } => at.done(&at.delete(&path(&who)).await?, &format!("user {who} removed")),
            UserCommand::Activate { who } => {
                let answer = at.post(&format!("{}/activate", path(&who)), &json!({})).await?;
                at.done(&answer, &format!("user {who} is active"))
            }
            UserCommand::Deactivate { who } => {
                let answer = at.post(&format!("{}/deactivate", path(&who)), &json!({})).await?;
                at.done(&answer, &format!("user {who} is not active"))
            }
        }
    })
}
