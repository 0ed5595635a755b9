//! What every role's commands have in common: where the configuration comes from, `config check`, `config show`.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use hedgerow_runtime::boot;
use hedgerow_runtime::config::{self, ConfigFault, Loaded, Sources};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::output;

/// Defines the arguments that name a role's configuration; clap wants the variable's name as a constant.
macro_rules! config_args {
    ($name:ident, $variable:literal, $file:literal, $prefix:literal) => {
        /// Where the role's configuration comes from.
        #[derive(Debug, Clone, clap::Args)]
        pub(crate) struct $name {
            #[arg(long, short, global = true, value_name = "FILE", env = $variable, help = concat!("Configuration file, with conf.d/*.toml beside it [default: ", $file, " if it exists]"))]
            pub config: Option<std::path::PathBuf>,
            #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = crate::role::setting, help = concat!("Set one key of the configuration; or by environment: ", $prefix, "SECTION__KEY"))]
            pub set: Vec<(String, String)>,
        }

        impl $name {
            /// The sources, the process's environment included.
            pub(crate) fn sources(&self, role: &str) -> hedgerow_runtime::config::Sources {
                crate::role::sources(role, self.config.as_deref(), $file, &self.set)
            }
        }
    };
}
pub(crate) use config_args;

/// Parses `KEY=VALUE`.
pub(crate) fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE, such as listen.link=127.0.0.1:3101")?;
    if key.is_empty() || key.split('.').any(str::is_empty) {
        return Err("before '=' stands a key such as listen.link".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// The sources of a role: the named file, or the usual one when it exists.
pub(crate) fn sources(role: &str, file: Option<&Path>, usual: &str, set: &[(String, String)]) -> Sources {
    let usual = Some(PathBuf::from(usual)).filter(|p| p.exists());
    let mut sources = Sources::process(role, file.map(Path::to_owned).or(usual));
    sources.flags.extend_from_slice(set);
    sources
}

/// A configuration that can be checked beyond its types.
pub(crate) trait RoleConfig: DeserializeOwned + Serialize {
    /// Checks what the types cannot.
    fn verify(&self) -> Result<(), ConfigFault>;
}

/// A fault out of what a role's own check says.
pub(crate) fn fault(problem: impl Display) -> ConfigFault {
    ConfigFault::new(problem.to_string())
}

/// Loads and verifies.
pub(crate) fn load<T: RoleConfig>(sources: &Sources) -> Result<Loaded<T>, ConfigFault> {
    let loaded = config::load::<T>(sources)?;
    loaded.value.verify()?;
    Ok(loaded)
}

/// Look at the configuration without running anything
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say whether the configuration can be used, and if not, why (exit code 78)
    Check,
    /// Print the configuration in force, defaults included, and what set each key
    Show {
        /// As JSON
        #[arg(long, env = "HEDGEROW_JSON")]
        json: bool,
    },
}

/// `config check` and `config show`.
pub(crate) fn config<T: RoleConfig>(command: &ConfigCommand, sources: &Sources) -> ExitCode {
    let shown = load::<T>(sources).map_err(anyhow::Error::from).and_then(|loaded| match command {
        ConfigCommand::Check => Ok(format!("{}: ok\n", files(&loaded.files))),
        ConfigCommand::Show { json: true } => Ok(format!("{:#}\n", serde_json::to_value(&loaded.value)?)),
        ConfigCommand::Show { json: false } => {
            let mut text = toml::to_string_pretty(&loaded.value)?;
            for (key, place) in &loaded.set {
                text.push_str(&format!("# {key}: {place}\n"));
            }
            Ok(text)
        }
    });
    match shown.and_then(|text| output::print(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => boot::failed(&error),
    }
}

fn files(files: &[PathBuf]) -> String {
    if files.is_empty() {
        return "environment and command line".to_owned();
    }
    files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ")
}
