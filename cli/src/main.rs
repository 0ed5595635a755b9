//! `hedgerow`: every role of the product and the administrator's verbs, in one binary.

mod args;
mod commands;
mod demo;
#[cfg(test)]
mod examples;
mod output;
mod role;
mod secrets;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    let Cli { logging, command } = Cli::parse();
    let logging = logging.into();
    match command {
        // Roles: processes that stay.
        Command::Relay(args) => commands::relay::run(args, &logging),
        Command::Core(args) => commands::core::run(args, &logging),
        Command::Node(args) => commands::node::run(args, &logging),
        Command::Device(args) => commands::device::run(args, &logging),
        Command::Demo(args) => demo::run(args, &logging),
        // Verbs: one request to a running core.
        Command::Tenant(args) => commands::tenant::run(args),
        Command::User(args) => commands::user::run(args),
        Command::Group(args) => commands::group::run(args),
        Command::Profile(args) => commands::profile::run(args),
        Command::Order(args) => commands::command::run(args),
        Command::Admin(args) => commands::admin::run(args),
        Command::Role(args) => commands::admin_role::run(args),
        Command::App(args) => commands::app::run(args),
        Command::Compliance(args) => commands::compliance::run(args),
        Command::Password(args) => commands::password::run(args),
        Command::Token(args) => commands::token::run(args),
        Command::Rule(args) => commands::rule::run(args),
        Command::Route(args) => commands::route::run(args),
        Command::Name(args) => commands::name::run(args),
        Command::Ca(args) => commands::ca::run(args),
        Command::Licence(args) => commands::licence::run(args),
        Command::Report(args) => commands::report::run(args),
        Command::Audit(args) => commands::audit::run(args),
        // About this binary and any role.
        Command::Health(args) => commands::health::run(args),
        Command::Version(args) => commands::version::run(args),
    }
}
