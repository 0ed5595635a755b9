//! The top of the command line. Every flag is also an environment variable, shown in `--help`; no flag takes a secret.

use clap::{Args, Parser, Subcommand, ValueEnum};
use hedgerow_runtime::telemetry::{LogFormat, Logging};

use crate::{commands, demo};

/// Reach what is behind the hedge without cutting a gap in it.
#[derive(Debug, Parser)]
#[command(name = "hedgerow", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub logging: LoggingArgs,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str =
    "Exit codes: 0 ok, 1 failure, 2 wrong usage, 69 what it depends on cannot be reached, 78 wrong configuration.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the relay, or administer one that runs here
    Relay(commands::relay::RelayArgs),
    /// Run the core
    Core(commands::core::CoreArgs),
    /// Enrol and run a connectivity node; list and revoke nodes at the core
    Node(commands::node::NodeArgs),
    /// Activate and run this device; list and revoke devices at the core
    Device(commands::device::DeviceArgs),
    /// Every role on this machine, with a sample intranet and an activated device
    Demo(demo::DemoArgs),
    /// Organisations of a core
    Tenant(commands::tenant::TenantArgs),
    /// People who may activate devices
    User(commands::user::UserArgs),
    /// Groups of users
    Group(commands::group::GroupArgs),
    /// Named settings, assigned to users and groups
    Profile(commands::profile::ProfileArgs),
    /// What devices are to do
    #[command(name = "command")]
    Order(commands::command::CommandArgs),
    /// Apps, and who is to have which
    App(commands::app::AppArgs),
    /// Which devices are as their compliance profile wants them
    Compliance(commands::compliance::ComplianceArgs),
    /// Users who administer
    Admin(commands::admin::AdminArgs),
    /// What administrators may do
    Role(commands::admin_role::RoleArgs),
    /// Activation passwords
    Password(commands::password::PasswordArgs),
    /// Enrolment tokens for nodes
    Token(commands::token::TokenArgs),
    /// What devices may reach through nodes
    Rule(commands::rule::RuleArgs),
    /// What devices send where
    Route(commands::route::RouteArgs),
    /// Server names that relays pass through to this organisation
    Name(commands::name::NameArgs),
    /// The CA of this organisation's devices and nodes, and its replacement
    Ca(commands::ca::CaArgs),
    /// Licences: issued by an operator, installed at a core
    Licence(commands::licence::LicenceArgs),
    /// The record of who changed what
    Audit(commands::audit::AuditArgs),
    /// How devices stand as a whole
    Report(commands::report::ReportArgs),
    /// Ask a role on this machine whether it is ready (for containers and scripts)
    Health(commands::health::HealthArgs),
    /// What this binary is
    Version(commands::version::VersionArgs),
}

/// Log lines of roles, on standard error.
#[derive(Debug, Args)]
pub(crate) struct LoggingArgs {
    /// A level (error, warn, info, debug, trace) or directives (info,hedgerow_relay=debug)
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        env = "HEDGEROW_LOG",
        default_value = "info",
        help_heading = "Logs"
    )]
    pub log: String,
    /// How log lines look
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        env = "HEDGEROW_LOG_FORMAT",
        default_value = "text",
        help_heading = "Logs"
    )]
    pub log_format: Format,
}

/// `LogFormat`, for clap.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    /// For people; coloured on a terminal unless NO_COLOR is set
    Text,
    /// One JSON object a line
    Json,
}

impl From<LoggingArgs> for Logging {
    fn from(args: LoggingArgs) -> Self {
        let format = match args.log_format {
            Format::Text => LogFormat::Text,
            Format::Json => LogFormat::Json,
        };
        Self { filter: args.log, format }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Calls `check` for every command and its path.
    fn each(command: &clap::Command, path: &str, check: &mut dyn FnMut(&clap::Command, &str)) {
        check(command, path);
        for below in command.get_subcommands().filter(|c| c.get_name() != "help") {
            each(below, &format!("{path} {}", below.get_name()), check);
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_is_also_an_environment_variable() {
        let mut flags = 0;
        each(&Cli::command(), "hedgerow", &mut |command, path| {
            for flag in command.get_arguments().filter(|a| a.get_long().is_some()) {
                let name = flag.get_long().unwrap_or_default();
                // `--set` stands for the variables HEDGEROW_ROLE__KEY, one for each key.
                if matches!(name, "help" | "version" | "set") {
                    continue;
                }
                let variable = flag
                    .get_env()
                    .and_then(|e| e.to_str())
                    .unwrap_or_else(|| panic!("{path} --{name} has no variable"));
                assert!(variable.starts_with("HEDGEROW_") && !variable.contains("__"), "{path} --{name}: {variable}");
                flags += 1;
            }
        });
        assert!(flags > 20);
    }

    #[test]
    fn no_flag_takes_a_secret() {
        each(&Cli::command(), "hedgerow", &mut |command, path| {
            for argument in command.get_arguments() {
                let name = argument.get_id().as_str();
                let secret =
                    ["password", "secret", "token", "key", "pin"].iter().any(|w| name.split('_').any(|p| p == *w));
                assert!(!secret || name.ends_with("_file"), "{path}: {name} would put a secret on the command line");
            }
        });
    }

    #[test]
    fn every_command_and_argument_is_explained() {
        each(&Cli::command(), "hedgerow", &mut |command, path| {
            assert!(command.get_about().is_some(), "{path} has no explanation");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path}: {} has no explanation", argument.get_id());
            }
        });
    }
}
