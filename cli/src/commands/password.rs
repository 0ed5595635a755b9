//! `hedgerow password`: activation passwords, good once, for a time, for five wrong attempts.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::control::{AtCore, duration, segment, verb};
use crate::output::{Column, Show};
use crate::{output, secrets};

#[derive(Debug, clap::Args)]
pub(crate) struct PasswordArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: PasswordCommand,
}

#[derive(Debug, Subcommand)]
enum PasswordCommand {
    /// Make an activation password for a user and show it once
    Generate {
        /// The user's e-mail address
        email: String,
        /// How long it is good: 90s, 30m, 24h, 7d
        #[arg(long, value_name = "TIME", env = "HEDGEROW_PASSWORD_VALID", default_value = "7d", value_parser = duration)]
        valid: u64,
        /// Write it to a new file instead of showing it
        #[arg(long, value_name = "FILE", env = "HEDGEROW_PASSWORD_OUT")]
        out: Option<PathBuf>,
    },
    /// Set an activation password that was chosen
    Set {
        /// The user's e-mail address
        email: String,
        /// How long it is good: 90s, 30m, 24h, 7d
        #[arg(long, value_name = "TIME", env = "HEDGEROW_PASSWORD_VALID", default_value = "7d", value_parser = duration)]
        valid: u64,
        /// File with the password; `-` is standard input [default: ask]
        #[arg(long, value_name = "FILE", env = "HEDGEROW_PASSWORD_FILE")]
        password_file: Option<PathBuf>,
    },
    /// Say whether a user's activation password is still good
    Show {
        /// The user's e-mail address
        email: String,
    },
    /// Take the activation password of a user away
    Clear {
        /// The user's e-mail address
        email: String,
    },
}

const COLUMNS: &[Column] =
    &[("state", "state", Show::Plain), ("expires", "expires", Show::Time), ("wrong attempts", "wrong", Show::Plain)];

pub(crate) fn run(args: PasswordArgs) -> ExitCode {
    verb(async move {
        let at = args.core.at();
        let path = |email: &str| format!("/users/{}/activation", segment(email));
        match args.command {
            PasswordCommand::Generate { email, valid, out } => {
                let mut answer = at.put(&path(&email), &json!({ "lifetime_seconds": valid })).await?;
                let until = answer["expires"].as_u64().map(output::time).unwrap_or_default();
                if let Some(file) = out {
                    let password = answer["password"].take();
                    secrets::write_new(&file, password.as_str().unwrap_or_default().as_bytes())?;
                    return at
                        .done(&answer, &format!("password written to {}; good once, until {until}", file.display()));
                }
                let password = answer["password"].as_str().unwrap_or_default().to_owned();
                at.done(&answer, &format!("{password}\n(good once, until {until}; it is not shown again)"))
            }
            PasswordCommand::Set { email, valid, password_file } => {
                let password = secrets::choose("activation password", password_file.as_deref())?;
                let body = json!({ "lifetime_seconds": valid, "password": password.expose_text() });
                let mut answer = at.put(&path(&email), &body).await?;
                if let Value::Object(fields) = &mut answer {
                    fields.remove("password");
                }
                at.done(&answer, &format!("activation password of {email} set"))
            }
            PasswordCommand::Show { email } => at.record(&at.get(&path(&email)).await?, COLUMNS),
            PasswordCommand::Clear { email } => {
                at.done(&at.delete(&path(&email)).await?, &format!("{email} has no activation password now"))
            }
        }
    })
}
