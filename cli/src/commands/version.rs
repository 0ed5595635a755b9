//! `hedgerow version`.

use std::process::ExitCode;

use hedgerow_runtime::{boot, telemetry};
use hedgerow_shared::wire::frame;
use serde_json::json;

use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct VersionArgs {
    /// Print JSON
    #[arg(long, env = "HEDGEROW_JSON")]
    json: bool,
}

pub(crate) fn run(args: VersionArgs) -> ExitCode {
    let value = json!({
        "version": telemetry::VERSION,
        "commit": telemetry::commit(),
        "protocol": frame::VERSION,
        "platform": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
    });
    let text = |v: &serde_json::Value| {
        let word = |k: &str| v[k].as_str().unwrap_or_default().to_owned();
        format!("hedgerow {} ({}), protocol {}, {}\n", word("version"), word("commit"), v["protocol"], word("platform"))
    };
    match output::answer(args.json, &value, text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => boot::failed(&error),
    }
}
