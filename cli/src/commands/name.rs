//! `hedgerow name`: server names whose TLS clients the relays pass through, unopened, to this organisation.

use std::process::ExitCode;

use clap::Subcommand;
use hedgerow_shared::Origin;
use serde_json::{Value, json};

use super::control::{AtCore, not_yet, segment, verb};
use crate::output::{self, Column, Show};

#[derive(Debug, clap::Args)]
pub(crate) struct NameArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: NameCommand,
}

#[derive(Debug, Subcommand)]
enum NameCommand {
    /// Register a name with every relay; point its DNS record at the relays
    Add {
        /// The whole name, such as mail.example.com
        name: String,
        /// What serves it: gateway (a node's published server), mdm (a node's or the core's), or core
        #[arg(long, value_name = "gateway|mdm|core", env = "HEDGEROW_NAME_ORIGIN")]
        origin: Origin,
    },
    /// List names, and where each relay stands with them
    List,
    /// Remove a name; its connections are cut
    Remove {
        /// As `name list` shows it
        name: String,
    },
}

const COLUMNS: &[Column] = &[
    ("NAME", "name", Show::Plain),
    ("ORIGIN", "origin", Show::Plain),
    ("RELAYS", "at", Show::Plain),
    ("CREATED", "created", Show::Time),
];

pub(crate) fn run(args: NameArgs) -> ExitCode {
    verb(async move {
        let at = args.core.at();
        match args.command {
            NameCommand::Add { name, origin } => {
                let answer = at.post("/names", &json!({ "name": name, "origin": origin })).await?;
                let refused: Vec<String> = answer["relays"].as_array().into_iter().flatten().filter_map(told).collect();
                let refused = if refused.is_empty() { String::new() } else { format!("; {}", refused.join("; ")) };
                let name = output::printable(answer["name"].as_str().unwrap_or_default());
                at.done(&answer, &format!("{name} leads to {origin}{}{refused}", not_yet(&answer)))
            }
            NameCommand::List => {
                let mut list = at.list("/names").await?;
                for entry in list.as_array_mut().into_iter().flatten() {
                    let relays = entry["relays"].as_array().into_iter().flatten();
                    entry["at"] = relays.map(|r| json!(stands(r))).collect();
                }
                at.table(&list, COLUMNS, "no names")
            }
            NameCommand::Remove { name } => {
                let answer = at.delete(&format!("/names/{}", segment(&name))).await?;
                at.done(&answer, &format!("{} removed{}", output::printable(&name), not_yet(&answer)))
            }
        }
    })
}

/// `relay.example passed`, `relay.example refused: why`.
fn stands(relay: &Value) -> String {
    let text = |key: &str| relay[key].as_str().unwrap_or_default();
    let reason = if text("reason").is_empty() { String::new() } else { format!(": {}", text("reason")) };
    output::printable(&format!("{} {}{reason}", text("relay"), text("state").replace('_', " ")))
}

/// What went wrong at one relay.
fn told(relay: &Value) -> Option<String> {
    (relay["state"] == "refused").then(|| stands(relay))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_with_its_reason() {
        let refused = json!({ "relay": "relay.example", "state": "refused", "reason": "another tenant holds it" });
        assert_eq!(told(&refused).as_deref(), Some("relay.example refused: another tenant holds it"));
        let waiting = json!({ "relay": "relay.example", "state": "not_yet", "reason": null });
        assert_eq!((told(&waiting), stands(&waiting)), (None, "relay.example not yet".to_owned()));
    }
}
