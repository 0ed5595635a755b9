//! `hedgerow command`: what devices are to do.

use std::process::ExitCode;

use clap::Subcommand;
use hedgerow_shared::EntityId;
use serde_json::{Map, Value, json};

use super::control::{AtCore, duration, segment, verb};
use crate::output::{Column, Show};

#[derive(Debug, clap::Args)]
pub(crate) struct CommandArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: DeviceCommand,
}

#[derive(Debug, Subcommand)]
enum DeviceCommand {
    /// Give a device a command; it gets it at once, or when it is back
    Send {
        /// The device's id
        device: EntityId,
        /// Such as lock-device, request-device-info, list-applications, update-profiles, delete-work-space-data
        kind: String,
        /// What the command takes, such as message="Please call the help desk"; no passwords here: see --properties
        #[arg(long = "set", value_name = "NAME=VALUE", value_parser = property, env = "HEDGEROW_COMMAND_SET")]
        set: Vec<(String, String)>,
        /// File with what the command takes, a JSON object; `-` is standard input
        #[arg(long, value_name = "FILE", env = "HEDGEROW_COMMAND_PROPERTIES")]
        properties: Option<std::path::PathBuf>,
        /// How long it waits for the device
        #[arg(long, value_name = "TIME", value_parser = duration, default_value = "7d", env = "HEDGEROW_COMMAND_LIFETIME")]
        lifetime: u64,
    },
    /// List a device's commands, the newest first
    List {
        /// The device's id
        device: EntityId,
    },
    /// Show a command and what came of it
    Show {
        /// Its id
        id: EntityId,
    },
    /// Take a command back that the device does not have yet
    Cancel {
        /// Its id
        id: EntityId,
    },
}

fn property(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

const COLUMNS: &[Column] = &[
    ("KIND", "kind", Show::Plain),
    ("STATE", "state", Show::Plain),
    ("CREATED", "created", Show::Time),
    ("COMPLETED", "completed", Show::Time),
    ("ERROR", "error", Show::Plain),
    ("ID", "id", Show::Plain),
];
const ONE: &[Column] = &[
    ("KIND", "kind", Show::Plain),
    ("DEVICE", "device", Show::Plain),
    ("PROPERTIES", "properties", Show::Plain),
    ("STATE", "state", Show::Plain),
    ("SENT", "sent", Show::Plain),
    ("CREATED", "created", Show::Time),
    ("EXPIRES", "expires", Show::Time),
    ("COMPLETED", "completed", Show::Time),
    ("ERROR", "error", Show::Plain),
    ("RESULT", "result", Show::Plain),
    ("ID", "id", Show::Plain),
];

pub(crate) fn run(args: CommandArgs) -> ExitCode {
    verb(async move {
        let at = args.core.at();
        let of_device = |device: EntityId| format!("/devices/{device}/commands");
        let one = |id: EntityId| format!("/commands/{}", segment(&id.to_string()));
        match args.command {
            DeviceCommand::Send { device, kind, set, properties, lifetime } => {
                let mut taken = match properties {
                    Some(file) => super::profile::settings(&file)?,
                    None => Value::Object(Map::new()),
                };
                for (name, value) in set {
                    taken[name] = value.into();
                }
                let body = json!({ "kind": kind, "properties": taken, "lifetime_seconds": lifetime });
                let answer = at.post(&of_device(device), &body).await?;
                let id = answer["id"].as_str().unwrap_or_default();
                at.done(&answer, &format!("command {id} waits for the device"))
            }
            DeviceCommand::List { device } => at.table(&at.list(&of_device(device)).await?, COLUMNS, "no commands"),
            DeviceCommand::Show { id } => at.record(&at.get(&one(id)).await?, ONE),
            DeviceCommand::Cancel { id } => at.done(&at.delete(&one(id)).await?, &format!("command {id} cancelled")),
        }
    })
}
