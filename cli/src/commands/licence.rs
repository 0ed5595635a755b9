//! `hedgerow licence`: an operator makes keys and issues licences; an organisation installs one at its core.

mod issue;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use hedgerow_runtime::clock;
use hedgerow_shared::verify::licence::{LicenceError, LicenceKey, MAX_TEXT, SignedLicence};
use serde_json::{Value, json};

use super::control::{AtCore, not_yet, verb};
use crate::output::{self, Column, Show};

#[derive(Debug, clap::Args)]
pub(crate) struct LicenceArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: LicenceCommand,
}

#[derive(Debug, Subcommand)]
enum LicenceCommand {
    /// Operator: make a licence key; its public half goes into licences.keys of the relays
    Keygen {
        /// The folder for licence-key.pem (secret) and licence-key.pub.pem
        #[arg(long, value_name = "DIR", env = "HEDGEROW_LICENCE_KEY_DIR")]
        out: PathBuf,
    },
    /// Operator: issue a licence
    Issue(issue::IssueArgs),
    /// Show what a licence says, and whether a key has signed it
    Inspect {
        /// The licence; `-` reads standard input
        file: PathBuf,
        /// The public key to verify it with
        #[arg(long = "key", value_name = "FILE", env = "HEDGEROW_LICENCE_PUBLIC_KEY_FILE")]
        key_file: Option<PathBuf>,
    },
    /// Install a licence at the core, which shows it to its relays at once
    Install {
        /// The licence, as it came by mail; `-` reads standard input
        file: PathBuf,
    },
    /// Show the installed licence, how it stands, and what each relay makes of it
    Show,
    /// Remove the installed licence; relays keep what they were shown
    Remove,
}

const LICENCE: &[Column] = &[
    ("licence", "id", Show::Plain),
    ("tenant", "tenant", Show::Plain),
    ("licensee", "licensee", Show::Plain),
    ("issued", "issued", Show::Time),
    ("valid from", "not_before", Show::Time),
    ("expires", "expires", Show::Time),
    ("in grace until", "grace_until", Show::Time),
    ("seats", "seats_shown", Show::Plain),
    ("seats used", "seats_used", Show::Plain),
    ("features", "features", Show::Plain),
    ("standing", "standing", Show::Plain),
    ("signature", "signature", Show::Plain),
    ("warning", "warning", Show::Plain),
];
const RELAYS: &[Column] = &[
    ("RELAY", "relay", Show::Plain),
    ("STATE", "state", Show::Plain),
    ("STANDING", "standing", Show::Plain),
    ("REQUIRED", "required", Show::Plain),
    ("REASON", "reason", Show::Plain),
];

pub(crate) fn run(args: LicenceArgs) -> ExitCode {
    verb(async move {
        let at = args.core.at();
        match args.command {
            LicenceCommand::Keygen { out } => {
                let made = issue::keygen(&out)?;
                let sentence = format!(
                    "keep {} secret; put {} into licences.keys of your relays",
                    made.secret.display(),
                    made.public.display()
                );
                at.done(&json!({ "key": made.secret, "public_key": made.public }), &sentence)
            }
            LicenceCommand::Issue(args) => issue::issue(&args, at.json),
            LicenceCommand::Inspect { file, key_file } => {
                let value = inspect(&read(&file)?, key_file.as_deref())?;
                at.record(&value, LICENCE)
            }
            LicenceCommand::Install { file } => {
                let answer = at.put("/licence", &json!({ "licence": read(&file)? })).await?;
                let id = output::printable(answer["id"].as_str().unwrap_or_default());
                at.done(&answer, &format!("licence {id} installed{}{}", verdicts(&answer), not_yet(&answer)))
            }
            LicenceCommand::Show => {
                let mut licence = at.get("/licence").await?;
                seats(&mut licence);
                licence["signature"] = json!(signature(&licence));
                output::answer(args.core.json, &licence, |licence| {
                    format!(
                        "{}\n{}",
                        output::record(licence, LICENCE),
                        output::table(&licence["relays"], RELAYS, "no relays")
                    )
                })
            }
            LicenceCommand::Remove => {
                let answer = at.delete("/licence").await?;
                let id = output::printable(answer["id"].as_str().unwrap_or_default());
                at.done(&answer, &format!("licence {id} removed; relays keep what they were shown"))
            }
        }
    })
}

/// The core has no licence key, so it says who has looked.
fn signature(licence: &Value) -> &'static str {
    if licence["verified"] == true { "verified by a relay" } else { "unverified until a relay accepts it" }
}

fn seats(licence: &mut Value) {
    licence["seats_shown"] = match &licence["seats"] {
        Value::Null => json!("unlimited"),
        bound => bound.clone(),
    };
}

/// What relays said: `; accepted by relay.example`, `; relay.example refused it: why`.
fn verdicts(answer: &Value) -> String {
    let told = answer["relays"].as_array().into_iter().flatten().filter_map(|relay| {
        let text = |key: &str| relay[key].as_str().unwrap_or_default();
        match text("state") {
            "accepted" => Some(format!("; accepted by {} ({})", text("relay"), text("standing"))),
            "refused" => Some(format!("; {} refused it: {}", text("relay"), text("reason"))),
            _ => None,
        }
    });
    output::printable(&told.collect::<String>())
}

fn read(file: &Path) -> anyhow::Result<String> {
    // One byte more than is taken, so that what is too long is told.
    let most = MAX_TEXT as u64 + 1;
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|f| f.take(most).read_to_string(&mut text))
    };
    read.with_context(|| format!("{} cannot be read", file.display()))?;
    Ok(text)
}

fn inspect(text: &str, key: Option<&Path>) -> anyhow::Result<Value> {
    let signed = SignedLicence::from_pem(text)?;
    let licence = signed.unverified()?;
    let signature = match key {
        None => "not verified: give the public key with --key".to_owned(),
        Some(path) => {
            let pem = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
            match signed.verify(&[LicenceKey::from_pem(&pem)?]) {
                Ok(_) => "verified".to_owned(),
                Err(LicenceError::Signature) => {
                    anyhow::bail!("the licence was not signed by this key, or was changed since")
                }
                Err(error) => return Err(error.into()),
            }
        }
    };
    let now = clock::now();
    let mut value = serde_json::to_value(&licence)?;
    value["grace_until"] = json!(licence.grace_until());
    value["standing"] = json!(licence.standing(now).as_str());
    value["warning"] = json!(licence.warning(now));
    value["signature"] = json!(signature);
    seats(&mut value);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p04_verdicts_of_relays_read_well() {
        let answer = json!({ "relays": [
            { "relay": "a.example", "state": "accepted", "standing": "grace" },
            { "relay": "b.example", "state": "refused", "reason": "no keys (forbidden)" },
            { "relay": "c.example", "state": "not_yet" },
        ] });
        assert_eq!(verdicts(&answer), "; accepted by a.example (grace); b.example refused it: no keys (forbidden)");
    }
}
