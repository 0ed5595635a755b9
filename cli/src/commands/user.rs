//! `hedgerow user`: people who may activate devices.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use hedgerow_uem_core::store::Page;
use serde_json::json;

use super::control::{At, AtCore, segment, verb};
use crate::output::{self, Column, Show};

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
    List {
        /// Only those whose address or name begins so
        begins: Option<String>,
    },
    /// Add users of a CSV file and give those that are there their names and groups; columns: email, name, groups, active
    Import {
        /// The file; `-` is standard input
        file: PathBuf,
    },
    /// Write all users as CSV: email, name, groups, active
    Export {
        /// To this file, which must not exist [default: standard output]
        #[arg(long, value_name = "FILE", env = "HEDGEROW_USER_OUT")]
        out: Option<PathBuf>,
    },
    /// Show one user
    Show {
        /// E-mail address or id
        who: String,
    },
    /// Give a user another address or name; devices, groups and the activation password stay
    #[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["email", "name"]))]
    Change {
        /// E-mail address or id
        who: String,
        /// The new e-mail address
        #[arg(long, env = "HEDGEROW_USER_EMAIL")]
        email: Option<String>,
        /// The new name
        #[arg(long, env = "HEDGEROW_USER_NAME")]
        name: Option<String>,
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

const ONE: &[Column] = &[
    ("email", "email", Show::Plain),
    ("name", "display_name", Show::Plain),
    ("active", "active", Show::Plain),
    ("password", "activation.state", Show::Plain),
    ("groups", "groups", Show::Plain),
    ("by way of them", "by_way_of_groups", Show::Plain),
    ("created", "created", Show::Time),
    ("id", "id", Show::Plain),
];

/// Part by part, so that no answer has to hold everybody.
async fn export(at: &At<'_>, out: Option<&Path>) -> anyhow::Result<()> {
    let mut to = output::writer(out)?;
    let (mut path, mut first) = ("/export/users".to_owned(), true);
    loop {
        let part = at.get(&path).await?;
        to.write_all(output::csv_part(&part, first)?.as_bytes())?;
        first = false;
        match part["next"].as_str() {
            Some(next) => path = format!("/export/users?after={}", segment(next)),
            None => return to.flush().map_err(Into::into),
        }
    }
}

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
            UserCommand::List { begins } => {
                let path = match &begins {
                    Some(begins) => format!("/found/users?begins={}", segment(begins)),
                    None => "/users".to_owned(),
                };
                let found = at.list(&path).await?;
                if begins.is_some() && found.as_array().is_some_and(|found| found.len() >= Page::MAX as usize) {
                    let told = format!("these are the first {}; there may be more: give more of the name\n", Page::MAX);
                    std::io::stderr().write_all(told.as_bytes())?;
                }
                at.table(&found, COLUMNS, "no users")
            }
            UserCommand::Import { file } => {
                let text = match file.as_os_str() == "-" {
                    true => std::io::read_to_string(std::io::stdin()),
                    false => std::fs::read_to_string(&file),
                };
                let text = text.with_context(|| format!("cannot read {}", file.display()))?;
                let done = at.post("/import/users", &json!({ "csv": text })).await?;
                let count = |of: &str| done[of].as_u64().unwrap_or(0);
                let (added, changed, unchanged) = (count("added"), count("changed"), count("unchanged"));
                at.done(&done, &format!("{added} users added, {changed} changed, {unchanged} as they were"))
            }
            UserCommand::Export { out } => export(&at, out.as_deref()).await,
            UserCommand::Show { who } => at.record(&at.get(&path(&who)).await?, ONE),
            UserCommand::Change { who, email, name } => {
                let answer = at.put(&path(&who), &json!({ "email": email, "name": name })).await?;
                at.done(&answer, &format!("user {} changed", email.unwrap_or(who)))
            }
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
