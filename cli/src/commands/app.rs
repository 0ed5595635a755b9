//! `hedgerow app`: the catalogue of apps, who is to have which, and what is wrong on devices.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::control::{At, AtCore, segment, verb};
use crate::output::{self, Column, Show};

mod group;

#[derive(Debug, clap::Args)]
pub(crate) struct AppArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: AppCommand,
}

#[derive(Debug, Subcommand)]
enum AppCommand {
    /// Add an app to the catalogue
    Add {
        /// android, ios, macos, windows or linux
        platform: String,
        /// What devices know it by: package id, bundle id, package name
        identifier: String,
        /// Its name, for people [default: the identifier]
        #[arg(long, env = "HEDGEROW_APP_NAME")]
        name: Option<String>,
        /// Who makes it
        #[arg(long, env = "HEDGEROW_APP_VENDOR")]
        vendor: Option<String>,
        /// Versions that there are, the newest first
        #[arg(long, value_name = "VERSION,..", value_delimiter = ',', env = "HEDGEROW_APP_VERSIONS")]
        versions: Option<Vec<String>>,
        /// Where in the platform's store it is
        #[arg(long, value_name = "WHERE", conflicts_with = "file", env = "HEDGEROW_APP_STORE")]
        store: Option<String>,
        /// Reference of the organisation's own file that it comes from
        #[arg(long, value_name = "REFERENCE", env = "HEDGEROW_APP_FILE")]
        file: Option<String>,
    },
    /// List apps
    List,
    /// Show an app with its configurations
    Show {
        /// PLATFORM/IDENTIFIER or id
        app: String,
    },
    /// Remove an app, its configurations and assignments; where it is installed it stays
    Remove {
        /// PLATFORM/IDENTIFIER or id
        app: String,
    },
    /// Assign an app or a group of apps, in place of what there was
    Assign {
        /// PLATFORM/IDENTIFIER or id of an app, or group:NAME of apps
        what: String,
        /// E-mail address or id of a user, or group:NAME
        who: String,
        /// required, optional or denied
        #[arg(long, default_value = "optional", env = "HEDGEROW_APP_DISPOSITION")]
        disposition: String,
        /// With this configuration of the app
        #[arg(long, value_name = "NAME", env = "HEDGEROW_APP_CONFIG")]
        config: Option<String>,
    },
    /// End an assignment
    Unassign {
        /// PLATFORM/IDENTIFIER or id of an app, or group:NAME of apps
        what: String,
        /// E-mail address or id of a user, or group:NAME
        who: String,
    },
    /// List to whom an app or a group of apps is assigned
    Holders {
        /// PLATFORM/IDENTIFIER or id of an app, or group:NAME of apps
        what: String,
    },
    /// Configurations of an app
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Groups of apps
    Group {
        #[command(subcommand)]
        command: group::GroupCommand,
    },
    /// Put an app on the list of those that must not be installed
    Restrict(Listed),
    /// Put an app on the list of those that may be installed; where there is one, no others may
    Approve(Listed),
    /// Show both lists
    Lists {
        /// Only of this platform
        #[arg(long, env = "HEDGEROW_APP_PLATFORM")]
        platform: Option<String>,
    },
    /// Say which apps are to be on a device, and why those
    Effective {
        /// E-mail address or id of a user
        #[arg(required_unless_present = "device")]
        who: Option<String>,
        /// On a device of this platform
        #[arg(long, env = "HEDGEROW_APP_PLATFORM")]
        platform: Option<String>,
        /// On this device
        #[arg(long, value_name = "ID", conflicts_with_all = ["who", "platform"], env = "HEDGEROW_APP_DEVICE")]
        device: Option<String>,
    },
    /// Say what is wrong with the apps on a device
    Findings {
        /// The device's id
        device: String,
    },
    /// List devices that an app is on
    Installed {
        /// What devices know it by
        identifier: String,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Add a configuration behind all others of the app, or replace what it sets
    Set {
        /// PLATFORM/IDENTIFIER or id
        app: String,
        /// Its name
        name: String,
        /// File with what it sets, a JSON object; `-` is standard input
        #[arg(long, value_name = "FILE", env = "HEDGEROW_APP_SETTINGS")]
        settings: PathBuf,
    },
    /// Give a configuration another place; the first wins
    Rank {
        /// PLATFORM/IDENTIFIER or id
        app: String,
        /// Its name
        name: String,
        /// From 1
        place: u32,
    },
    /// Remove a configuration; assignments with it stay, without one
    Remove {
        /// PLATFORM/IDENTIFIER or id
        app: String,
        /// Its name
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct Listed {
    /// android, ios, macos, windows or linux
    platform: String,
    /// What devices know it by; the begin of that with a * behind it is for all that begin so
    identifier: String,
    /// Take it off the list
    #[arg(long, env = "HEDGEROW_APP_OFF")]
    off: bool,
}

const COLUMNS: &[Column] = &[
    ("PLATFORM", "platform", Show::Plain),
    ("IDENTIFIER", "identifier", Show::Plain),
    ("NAME", "name", Show::Plain),
    ("VENDOR", "vendor", Show::Plain),
    ("VERSIONS", "versions", Show::Plain),
    ("FROM", "source.from", Show::Plain),
    ("ID", "id", Show::Plain),
];
const ONE: &[Column] = &[
    ("platform", "platform", Show::Plain),
    ("identifier", "identifier", Show::Plain),
    ("name", "name", Show::Plain),
    ("vendor", "vendor", Show::Plain),
    ("versions", "versions", Show::Plain),
    ("from", "source.from", Show::Plain),
    ("at", "source.at", Show::Plain),
    ("added", "created", Show::Time),
    ("id", "id", Show::Plain),
];
const CONFIGS: &[Column] =
    &[("RANK", "rank", Show::Plain), ("CONFIGURATION", "name", Show::Plain), ("SETTINGS", "settings", Show::Plain)];
const HOLDERS: &[Column] = &[
    ("KIND", "kind", Show::Plain),
    ("NAME", "name", Show::Plain),
    ("DISPOSITION", "disposition", Show::Plain),
    ("CONFIGURATION", "config", Show::Plain),
];
const LISTS: &[Column] =
    &[("LIST", "list", Show::Plain), ("PLATFORM", "platform", Show::Plain), ("IDENTIFIER", "identifier", Show::Plain)];
const EFFECTIVE: &[Column] = &[
    ("PLATFORM", "platform", Show::Plain),
    ("IDENTIFIER", "identifier", Show::Plain),
    ("DISPOSITION", "disposition", Show::Plain),
    ("BECAUSE", "because", Show::Plain),
    ("CONFIGURATION", "config.name", Show::Plain),
    ("INSTEAD OF", "instead", Show::Plain),
];
const FINDINGS: &[Column] = &[
    ("missing", "missing", Show::Plain),
    ("restricted", "restricted", Show::Plain),
    ("not approved", "unapproved", Show::Plain),
];
const DEVICES: &[Column] = &[
    ("ID", "id", Show::Plain),
    ("USER", "email", Show::Plain),
    ("NAME", "name", Show::Plain),
    ("PLATFORM", "platform", Show::Plain),
];

pub(crate) fn run(args: AppArgs) -> ExitCode {
    verb(async move {
        let at = args.core.at();
        let holder = |what: &str, who: &str| format!("{}/holders/{}", path(what), segment(who));
        match args.command {
            AppCommand::Add { platform, identifier, name, vendor, versions, store, file } => {
                let mut body = json!({ "platform": platform, "identifier": identifier });
                for (key, value) in [("name", name), ("vendor", vendor)] {
                    if let Some(value) = value {
                        body[key] = value.into();
                    }
                }
                if let Some(versions) = versions {
                    body["versions"] = versions.into();
                }
                body["source"] = match file {
                    Some(file) => json!({ "from": "file", "at": file }),
                    None => json!({ "from": "store", "at": store.unwrap_or_default() }),
                };
                at.done(&at.post("/apps", &body).await?, &format!("app {platform}/{identifier} added"))
            }
            AppCommand::List => at.table(&at.list("/apps").await?, COLUMNS, "no apps"),
            AppCommand::Show { app } => output::answer(args.core.json, &at.get(&path(&app)).await?, |app| {
                format!(
                    "{}\n{}",
                    output::record(app, ONE),
                    output::table(&app["configs"], CONFIGS, "no configurations")
                )
            }),
            AppCommand::Remove { app } => at.done(&at.delete(&path(&app)).await?, &format!("app {app} removed")),
            AppCommand::Assign { what, who, disposition, config } => {
                let body = json!({ "disposition": disposition, "config": config });
                let answer = at.put(&holder(&what, &who), &body).await?;
                at.done(&answer, &format!("{what} is {disposition} for {who}"))
            }
            AppCommand::Unassign { what, who } => {
                at.done(&at.delete(&holder(&what, &who)).await?, &format!("{what} is no longer assigned to {who}"))
            }
            AppCommand::Holders { what } => {
                at.table(&at.list(&format!("{}/holders", path(&what))).await?, HOLDERS, "assigned to nobody")
            }
            AppCommand::Config { command } => config(&at, command).await,
            AppCommand::Group { command } => group::run(&at, command).await,
            AppCommand::Restrict(listed) => enlist(&at, "restricted", listed).await,
            AppCommand::Approve(listed) => enlist(&at, "approved", listed).await,
            AppCommand::Lists { platform } => {
                let only = platform.map(|platform| format!("?platform={}", segment(&platform))).unwrap_or_default();
                at.table(&at.list(&format!("/app-lists{only}")).await?, LISTS, "nothing is on a list")
            }
            AppCommand::Effective { who, platform, device } => {
                let path = match (device, who, platform) {
                    (Some(device), ..) => format!("/devices/{}/apps", segment(&device)),
                    (None, Some(who), Some(platform)) => {
                        format!("/users/{}/apps?platform={}", segment(&who), segment(&platform))
                    }
                    (None, Some(who), None) => format!("/users/{}/apps", segment(&who)),
                    (None, None, _) => anyhow::bail!("whose? give a user, or --device ID"),
                };
                let mut found = at.list(&path).await?;
                found.as_array_mut().into_iter().flatten().for_each(explain);
                at.table(&found, EFFECTIVE, "no apps are assigned")
            }
            AppCommand::Findings { device } => {
                at.record(&at.get(&format!("/devices/{}/app-findings", segment(&device))).await?, FINDINGS)
            }
            AppCommand::Installed { identifier } => {
                let devices = at.list(&format!("/installed/{}", segment(&identifier))).await?;
                at.table(&devices, DEVICES, "on no device that has told its apps")
            }
        }
    })
}

fn path(app: &str) -> String {
    format!("/apps/{}", segment(app))
}

async fn config(at: &At<'_>, command: ConfigCommand) -> anyhow::Result<()> {
    let one = |app: &str, name: &str| format!("{}/configs/{}", path(app), segment(name));
    match command {
        ConfigCommand::Set { app, name, settings } => {
            let body = json!({ "settings": super::profile::settings(&settings)? });
            at.done(&at.put(&one(&app, &name), &body).await?, &format!("configuration {name} of {app} set"))
        }
        ConfigCommand::Rank { app, name, place } => {
            let answer = at.put(&one(&app, &name), &json!({ "rank": place })).await?;
            at.done(&answer, &format!("configuration {name} of {app} is at place {}", answer["rank"]))
        }
        ConfigCommand::Remove { app, name } => {
            at.done(&at.delete(&one(&app, &name)).await?, &format!("configuration {name} of {app} removed"))
        }
    }
}

async fn enlist(at: &At<'_>, list: &str, listed: Listed) -> anyhow::Result<()> {
    let Listed { platform, identifier, off } = listed;
    let path = format!("/app-lists/{list}/{}/{}", segment(&platform), segment(&identifier));
    let answer = if off { at.delete(&path).await? } else { at.put(&path, &json!({})).await? };
    let is = if off { "no longer " } else { "" };
    at.done(&answer, &format!("{platform}/{identifier} is {is}{list}"))
}

/// Puts the reasons into words.
fn explain(one: &mut Value) {
    let groups: Vec<_> = one["groups"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let to = match groups.split_last() {
        None => "assigned to the user".to_owned(),
        Some((group, [])) => format!("assigned to group {group}"),
        Some((group, way)) => format!("assigned to group {group}, by way of {}", way.join(", ")),
    };
    let with = one["app_group"].as_str().map(|group| format!(", in group of apps {group}")).unwrap_or_default();
    let instead: Vec<Value> = one["passed_over"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|other| {
            let why = if other["why"] == "disposition" { "comes behind" } else { "only by group" };
            Some(format!("{} ({why})", other["disposition"].as_str()?).into())
        })
        .collect();
    one["because"] = format!("{to}{with}").into();
    one["instead"] = instead.into();
}
