//! `hedgerow admin`: users who administer.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::control::{AtCore, segment, verb};
use crate::output::{Column, Show};
use crate::secrets;

#[derive(Debug, clap::Args)]
pub(crate) struct AdminArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// Make a user an administrator
    Add {
        /// E-mail address or id
        who: String,
        /// security, enterprise, senior-helpdesk, junior-helpdesk, or one of your own
        #[arg(long, env = "HEDGEROW_ADMIN_ROLE")]
        role: String,
    },
    /// List administrators
    List,
    /// Give an administrator another role
    Role {
        /// E-mail address or id
        who: String,
        /// The new role
        role: String,
    },
    /// Let a user be no administrator any more; the user stays
    Remove {
        /// E-mail address or id
        who: String,
    },
    /// Set the password an administrator signs in with
    Password {
        /// E-mail address or id
        who: String,
        /// File with the password; `-` is standard input [default: ask]
        #[arg(long, value_name = "FILE", env = "HEDGEROW_ADMIN_PASSWORD_FILE")]
        password_file: Option<PathBuf>,
        /// Have them choose another one when they sign in
        #[arg(long, env = "HEDGEROW_ADMIN_MUST_CHANGE")]
        must_change: bool,
    },
}

const COLUMNS: &[Column] = &[
    ("USER", "email", Show::Plain),
    ("ROLE", "role", Show::Plain),
    ("ACTIVE", "active", Show::Plain),
    ("PASSWORD SET", "password.set", Show::Time),
    ("TO BE CHANGED", "password.must_change", Show::Plain),
    ("LAST SIGN-IN", "last_sign_in", Show::Time),
];

pub(crate) fn run(args: AdminArgs) -> ExitCode {
    verb(async move {
        let at = args.core.at();
        let path = |who: &str| format!("/admins/{}", segment(who));
        match args.command {
            AdminCommand::Add { who, role } | AdminCommand::Role { who, role } => {
                let answer = at.put(&path(&who), &json!({ "role": role })).await?;
                at.done(&answer, &format!("{who} is an administrator with role {role}"))
            }
            AdminCommand::List => {
                at.table(&at.list("/admins").await?, COLUMNS, "no administrators but root on this machine")
            }
            AdminCommand::Remove { who } => {
                at.done(&at.delete(&path(&who)).await?, &format!("{who} is no administrator any more"))
            }
            AdminCommand::Password { who, password_file, must_change } => {
                let password = secrets::choose("administrator's password", password_file.as_deref())?;
                let body = json!({ "password": password.expose_text(), "must_change": must_change });
                at.done(&at.put(&format!("{}/password", path(&who)), &body).await?, &format!("password of {who} set"))
            }
        }
    })
}
