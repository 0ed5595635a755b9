//! `hedgerow route`: what devices send where. First match decides; without one the default route.

use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use hedgerow_shared::verify::policy::{PortSet, Route, TargetPattern, Via};
use serde_json::{Value, json};

use super::control::{AtCore, verb};
use crate::output::{Column, Show};

#[derive(Debug, clap::Args)]
pub(crate) struct RouteArgs {
    #[command(flatten)]
    core: AtCore,
    #[command(subcommand)]
    command: RouteCommand,
}

#[derive(Debug, Subcommand)]
enum RouteCommand {
    /// Add a route at the end, or before another
    Add {
        #[command(flatten)]
        route: RouteWords,
        /// Before the route of this number
        #[arg(long, value_name = "NUMBER", env = "HEDGEROW_ROUTE_BEFORE")]
        before: Option<usize>,
    },
    /// List routes in their order, the default last
    List,
    /// Put another route in the place of the one of this number
    Change {
        /// As `route list` shows it
        number: usize,
        #[command(flatten)]
        route: RouteWords,
    },
    /// Give the route of this number another place
    Move {
        /// As `route list` shows it
        number: usize,
        /// Its number from now on
        to: usize,
    },
    /// Remove the route of this number
    Remove {
        /// As `route list` shows it
        number: usize,
    },
    /// Set where traffic goes that no route covers
    Default {
        /// direct, deny or group:NAME
        via: Via,
    },
}

/// What a route says.
#[derive(Debug, clap::Args)]
struct RouteWords {
    /// A name, *.domain, an address, an address range, or *
    target: TargetPattern,
    /// direct, deny or group:NAME (a node of that server group)
    via: Via,
    /// Ports, such as 80,443,8000-8999
    #[arg(long, env = "HEDGEROW_ROUTE_PORTS", default_value = "*")]
    ports: PortSet,
}

impl From<RouteWords> for Route {
    fn from(words: RouteWords) -> Self {
        Self { target: words.target, ports: words.ports, via: words.via }
    }
}

const COLUMNS: &[Column] = &[
    ("NUMBER", "number", Show::Plain),
    ("TARGET", "target", Show::Plain),
    ("PORTS", "ports", Show::Plain),
    ("VIA", "via", Show::Plain),
];

pub(crate) fn run(args: RouteArgs) -> ExitCode {
    verb(async move {
        let at = args.core.at();
        match args.command {
            RouteCommand::Add { route, before } => {
                let mut body = json!({ "route": Route::from(route) });
                place(&mut body, before)?;
                at.done(&at.post("/routes", &body).await?, "route added")
            }
            RouteCommand::List => {
                let mut answer = at.get("/routes").await?;
                let mut list = numbered(answer["items"].take());
                if let Value::Array(list) = &mut list {
                    list.push(json!({ "number": "default", "target": "*", "ports": "*", "via": answer["default"] }));
                }
                at.table(&list, COLUMNS, "no routes")
            }
            RouteCommand::Change { number, route } => {
                let route = json!(Route::from(route));
                at.done(&at.put(&format!("/routes/{}", position(number)?), &route).await?, "route changed")
            }
            RouteCommand::Move { number, to } => {
                let (path, to) = (format!("/routes/{}/move", position(number)?), json!({ "to": position(to)? }));
                at.done(&at.post(&path, &to).await?, "route moved")
            }
            RouteCommand::Remove { number } => {
                at.done(&at.delete(&format!("/routes/{}", position(number)?)).await?, "route removed")
            }
            RouteCommand::Default { via } => {
                at.done(&at.put("/routes/default", &json!({ "via": via })).await?, "default route set")
            }
        }
    })
}

/// Gives each entry its number, from 1.
pub(crate) fn numbered(mut list: Value) -> Value {
    for (i, entry) in list.as_array_mut().into_iter().flatten().enumerate() {
        entry["number"] = json!(i + 1);
    }
    list
}

/// A number as people count, from 1, as a position from 0.
pub(crate) fn position(number: usize) -> anyhow::Result<usize> {
    number.checked_sub(1).context("numbers begin with 1, as the list shows them")
}

/// Puts the place of a new entry into the request.
pub(crate) fn place(body: &mut Value, before: Option<usize>) -> anyhow::Result<()> {
    if let Some(number) = before {
        body["at"] = json!(position(number)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_count_from_one_and_the_core_from_zero() {
        assert_eq!(
            numbered(json!([{ "a": 0 }, { "a": 1 }])),
            json!([{ "a": 0, "number": 1 }, { "a": 1, "number": 2 }])
        );
        let mut body = json!({});
        place(&mut body, None).unwrap();
        assert_eq!(body, json!({}));
        place(&mut body, Some(1)).unwrap();
        assert_eq!(body, json!({ "at": 0 }));
        assert!(position(0).is_err());
    }
}
