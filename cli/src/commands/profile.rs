//! `hedgerow profile`: named settings, ranked in their category, assigned to users and groups.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};

use super::control::{AtCore, segment, verb};
use super::group::PRINCIPALS;
use crate::output::{Column, Show};

#[derive(Debug, clap::Args)]
pub(crate) struct ProfileArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: ProfileCommand,
}

#[derive(Debug, Subcommand)]
enum ProfileCommand {
    /// Add a profile, behind all others of its category
    Add {
        /// Such as it-config, compliance, email, wifi, enterprise-connectivity
        category: String,
        /// Its name
        name: String,
        #[command(flatten)]
        content: Content,
    },
    /// List profiles, the first in rank first
    List {
        /// Only of this category
        category: Option<String>,
    },
    /// Show a profile with its settings
    Show {
        /// CATEGORY/NAME or id
        profile: String,
    },
    /// Change a profile; what is not given stays
    Change {
        /// CATEGORY/NAME or id
        profile: String,
        /// Another name
        #[arg(long, env = "HEDGEROW_PROFILE_NAME")]
        name: Option<String>,
        #[command(flatten)]
        content: Content,
    },
    /// Give a profile another place in its category; the first wins
    Rank {
        /// CATEGORY/NAME or id
        profile: String,
        /// From 1
        place: u32,
    },
    /// Let a profile have effect where none of its category is assigned
    Default {
        /// CATEGORY/NAME or id
        profile: String,
        /// Let none do so
        #[arg(long, env = "HEDGEROW_PROFILE_OFF")]
        off: bool,
    },
    /// Remove a profile and its assignments
    Remove {
        /// CATEGORY/NAME or id
        profile: String,
    },
    /// Assign a profile
    Assign {
        /// CATEGORY/NAME or id
        profile: String,
        /// E-mail address or id of a user, or group:NAME
        who: String,
    },
    /// End an assignment
    Unassign {
        /// CATEGORY/NAME or id
        profile: String,
        /// E-mail address or id of a user, or group:NAME
        who: String,
    },
    /// List to whom a profile is assigned
    Holders {
        /// CATEGORY/NAME or id
        profile: String,
    },
    /// Say which profiles have effect, and why those
    Effective {
        /// E-mail address or id of a user
        #[arg(required_unless_present = "device")]
        who: Option<String>,
        /// On a device of this platform
        #[arg(long, env = "HEDGEROW_PROFILE_PLATFORM")]
        platform: Option<String>,
        /// On this device
        #[arg(long, value_name = "ID", conflicts_with_all = ["who", "platform"], env = "HEDGEROW_PROFILE_DEVICE")]
        device: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Content {
    /// What it is for
    #[arg(long, env = "HEDGEROW_PROFILE_DESCRIPTION")]
    description: Option<String>,
    /// Platforms on which it is not there: android, ios, macos, windows, linux
    #[arg(long, value_name = "PLATFORM,..", value_delimiter = ',', env = "HEDGEROW_PROFILE_NOT_ON")]
    not_on: Option<Vec<String>>,
    /// File with what it sets, a JSON object; `-` is standard input
    #[arg(long, value_name = "FILE", env = "HEDGEROW_PROFILE_SETTINGS")]
    settings: Option<PathBuf>,
}

impl Content {
    fn put_into(self, body: &mut Value) -> anyhow::Result<()> {
        if let Some(description) = self.description {
            body["description"] = json!(description);
        }
        if let Some(platforms) = self.not_on {
            body["disabled"] = json!(platforms.iter().filter(|p| !p.is_empty()).collect::<Vec<_>>());
        }
        if let Some(file) = self.settings {
            body["settings"] = settings(&file)?;
        }
        Ok(())
    }
}

/// A JSON object from a file.
pub(super) fn settings(file: &Path) -> anyhow::Result<Value> {
    let text = match file.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin()),
        false => std::fs::read_to_string(file),
    };
    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
    let value: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
    anyhow::ensure!(value.is_object(), "{}: expected a JSON object: {{\"name\": value, ..}}", file.display());
    Ok(value)
}

const COLUMNS: &[Column] = &[
    ("CATEGORY", "category", Show::Plain),
    ("RANK", "rank", Show::Plain),
    ("NAME", "name", Show::Plain),
    ("DEFAULT", "default", Show::Plain),
    ("NOT ON", "disabled", Show::Plain),
    ("DESCRIPTION", "description", Show::Plain),
    ("ID", "id", Show::Plain),
];
const ONE: &[Column] = &[
    ("CATEGORY", "category", Show::Plain),
    ("RANK", "rank", Show::Plain),
    ("NAME", "name", Show::Plain),
    ("DEFAULT", "default", Show::Plain),
    ("NOT ON", "disabled", Show::Plain),
    ("DESCRIPTION", "description", Show::Plain),
    ("CREATED", "created", Show::Time),
    ("MODIFIED", "modified", Show::Time),
    ("ID", "id", Show::Plain),
    ("SETTINGS", "settings", Show::Plain),
];
const EFFECTIVE: &[Column] = &[
    ("CATEGORY", "category", Show::Plain),
    ("NAME", "name", Show::Plain),
    ("BECAUSE", "because", Show::Plain),
    ("INSTEAD OF", "instead", Show::Plain),
];

pub(crate) fn run(args: ProfileArgs) -> ExitCode {
    verb(async move {
        let at = args.core.at();
        let path = |profile: &str| format!("/profiles/{}", segment(profile));
        let holder = |profile: &str, who: &str| format!("{}/holders/{}", path(profile), segment(who));
        match args.command {
            ProfileCommand::Add { category, name, content } => {
                let mut body = json!({ "category": category, "name": name });
                content.put_into(&mut body)?;
                at.done(&at.post("/profiles", &body).await?, &format!("profile {category}/{name} added"))
            }
            ProfileCommand::List { category } => {
                let only = category.map(|category| format!("?category={}", segment(&category)));
                at.table(&at.list(&format!("/profiles{}", only.unwrap_or_default())).await?, COLUMNS, "no profiles")
            }
            ProfileCommand::Show { profile } => at.record(&at.get(&path(&profile)).await?, ONE),
            ProfileCommand::Change { profile, name, content } => {
                let mut body = json!({});
                if let Some(name) = name {
                    body["name"] = json!(name);
                }
                content.put_into(&mut body)?;
                at.done(&at.put(&path(&profile), &body).await?, &in_time(&profile, "changed"))
            }
            ProfileCommand::Rank { profile, place } => {
                let order = at.put(&format!("{}/rank", path(&profile)), &json!({ "to": place })).await?;
                at.table(&order["items"], COLUMNS, "no profiles")
            }
            ProfileCommand::Default { profile, off } => {
                let answer = at.put(&format!("{}/default", path(&profile)), &json!({ "default": !off })).await?;
                let is = if off { "is no default" } else { "has effect where none is assigned" };
                at.done(&answer, &in_time(&profile, is))
            }
            ProfileCommand::Remove { profile } => {
                at.done(&at.delete(&path(&profile)).await?, &in_time(&profile, "removed"))
            }
            ProfileCommand::Assign { profile, who } => {
                let answer = at.put(&holder(&profile, &who), &json!({})).await?;
                at.done(&answer, &in_time(&profile, &format!("is assigned to {who}")))
            }
            ProfileCommand::Unassign { profile, who } => {
                let answer = at.delete(&holder(&profile, &who)).await?;
                at.done(&answer, &in_time(&profile, &format!("is no longer assigned to {who}")))
            }
            ProfileCommand::Holders { profile } => {
                let holders = at.list(&format!("{}/holders", path(&profile))).await?;
                at.table(&holders, PRINCIPALS, "assigned to nobody")
            }
            ProfileCommand::Effective { who, platform, device } => {
                let path = match (device, who, platform) {
                    (Some(device), ..) => format!("/devices/{}/profiles", segment(&device)),
                    (None, Some(who), Some(platform)) => {
                        format!("/users/{}/profiles?platform={}", segment(&who), segment(&platform))
                    }
                    (None, Some(who), None) => format!("/users/{}/profiles", segment(&who)),
                    (None, None, _) => anyhow::bail!("whose? give a user, or --device ID"),
                };
                let mut found = at.list(&path).await?;
                found.as_array_mut().into_iter().flatten().for_each(explain);
                at.table(&found, EFFECTIVE, "no profiles have effect")
            }
        }
    })
}

/// What came of a profile, and when devices feel it, where that is not at once.
fn in_time(profile: &str, what: &str) -> String {
    let is_compliance = profile.split('/').next().is_some_and(|category| category.eq_ignore_ascii_case("compliance"));
    let later =
        if is_compliance { "; devices are judged within ten minutes, or by hedgerow compliance check" } else { "" };
    format!("profile {profile} {what}{later}")
}

/// Puts the reasons into words.
fn explain(one: &mut Value) {
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let groups = texts(&one["groups"]);
    one["because"] = match one["by"].as_str() {
        Some("user") => "assigned to the user".into(),
        Some("default") => "the default".into(),
        _ => match groups.split_last() {
            Some((last, [])) => format!("assigned to group {last}").into(),
            Some((last, below)) => format!("assigned to group {last}, by way of {}", below.join(", ")).into(),
            None => Value::Null,
        },
    };
    let passed = one["passed_over"].as_array().into_iter().flatten();
    let passed: Vec<_> = passed
        .filter_map(|other| {
            let why = if other["why"] == "rank" { "ranks behind" } else { "only by group" };
            Some(format!("{} ({why})", other["name"].as_str()?))
        })
        .collect();
    one["instead"] = passed.join(", ").into();
}
