//! `hedgerow relay`: the relay, and its operator's verbs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use hedgerow_relay::config::RelayConfig;
use hedgerow_runtime::boot;
use hedgerow_runtime::config::ConfigFault;
use hedgerow_runtime::telemetry::Logging;
use hedgerow_shared::{EntityId, SessionId, TenantId};
use serde_json::{Value, json};

use super::control::{At, AtRelay, segment, verb};
use crate::output::{self, Column, Show};
use crate::role::{self, ConfigCommand, RoleConfig, config_args};
use crate::secrets;

config_args!(RelayConfigArgs, "HEDGEROW_RELAY_CONFIG", "/etc/hedgerow/relay.toml", "HEDGEROW_RELAY__");

#[derive(Debug, clap::Args)]
pub(crate) struct RelayArgs {
    #[command(subcommand)]
    command: RelayCommand,
}

#[derive(Debug, Subcommand)]
enum RelayCommand {
    /// Run the relay until TERM; a second TERM stops at once; HUP reads its certificate, bandwidth and licence keys again
    Run(RelayConfigArgs),
    /// Look at the configuration without running anything
    Config {
        #[command(flatten)]
        source: RelayConfigArgs,
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Tenants that this relay serves
    Tenant {
        #[command(flatten)]
        relay: AtRelay,
        #[command(subcommand)]
        command: TenantCommand,
    },
    /// Domains whose addresses a tenant answers for
    Domain {
        #[command(flatten)]
        relay: AtRelay,
        #[command(subcommand)]
        command: DomainCommand,
    },
    /// Server names that tenants registered and this relay passes through
    Name {
        #[command(flatten)]
        relay: AtRelay,
        #[command(subcommand)]
        command: NameCommand,
    },
    /// Who is connected: links, lanes, and connections passed through by name
    ///
    /// The relay does not know users, only devices. Where the socket of a tenant's core can be opened too, that names them.
    Sessions {
        #[command(flatten)]
        relay: AtRelay,
        /// Control socket of a core that knows whose the devices are
        #[arg(
            long,
            value_name = "PATH",
            env = "HEDGEROW_CORE_SOCKET",
            default_value = "/var/lib/hedgerow/core/control.sock"
        )]
        core_socket: PathBuf,
        #[command(subcommand)]
        command: Option<SessionCommand>,
    },
    /// How the relay stands: numbers, and the licences of its tenants
    Status {
        #[command(flatten)]
        relay: AtRelay,
    },
    /// The relay's name, the CA that cores, nodes and devices must trust, and where web-services clients find it
    Info {
        #[command(flatten)]
        relay: AtRelay,
    },
}

#[derive(Debug, Subcommand)]
enum TenantCommand {
    /// Add a tenant; its authentication key is shown once, for the tenant's core
    Add {
        /// One to three letters and five to eight digits, as in S12345678 [default: a free one]
        id: Option<TenantId>,
        /// Write the key to a new file instead of showing it
        #[arg(long, value_name = "FILE", env = "HEDGEROW_RELAY_KEY_OUT")]
        out: Option<PathBuf>,
        /// The key that the first relay gave out, when this is another relay of the same core; `-` reads standard input
        #[arg(long, value_name = "FILE", env = "HEDGEROW_RELAY_SRP_KEY_FILE", requires = "id", conflicts_with = "out")]
        srp_key_file: Option<PathBuf>,
    },
    /// List tenants
    List,
    /// Cut a tenant, or one device or node of it, off now and refuse it from now on
    Block {
        /// Its id
        id: TenantId,
        /// Only this device or node, as `relay sessions` shows it; the core need not be reachable
        #[arg(long, value_name = "ID", env = "HEDGEROW_RELAY_HOLDER")]
        holder: Option<EntityId>,
    },
    /// Let a blocked tenant, or one device or node of it, in again
    Unblock {
        /// Its id
        id: TenantId,
        /// Only this device or node
        #[arg(long, value_name = "ID", env = "HEDGEROW_RELAY_HOLDER")]
        holder: Option<EntityId>,
    },
    /// Replace a tenant's authentication key; the old one stops working now
    RotateKey {
        /// Its id
        id: TenantId,
        /// Write the key to a new file instead of showing it
        #[arg(long, value_name = "FILE", env = "HEDGEROW_RELAY_KEY_OUT")]
        out: Option<PathBuf>,
    },
    /// Forget a tenant with everything the relay holds of it
    Remove {
        /// Its id
        id: TenantId,
    },
}

#[derive(Debug, Subcommand)]
enum SessionCommand {
    /// Cut one link, lane or tunnel; its holder may come back
    Cut {
        /// As `relay sessions` shows it
        id: SessionId,
    },
}

#[derive(Debug, Subcommand)]
enum NameCommand {
    /// List names
    List,
    /// Take a name from a tenant and cut its connections; the tenant does not get it back by itself
    Remove {
        /// The tenant
        id: TenantId,
        /// The name
        name: String,
    },
    /// Let a tenant register a name again that was taken from it
    Allow {
        /// The tenant
        id: TenantId,
        /// The name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
enum DomainCommand {
    /// Record that a tenant has shown that it owns a domain
    Add {
        /// The tenant
        id: TenantId,
        /// The domain
        domain: String,
    },
    /// List domains
    List,
    /// Take a domain away
    Remove {
        /// The tenant
        id: TenantId,
        /// The domain
        domain: String,
    },
}

const TENANTS: &[Column] = &[
    ("TENANT", "tenant", Show::Plain),
    ("STATE", "state", Show::Plain),
    ("DOMAINS", "domains", Show::Plain),
    ("LINKS", "links", Show::Plain),
    ("CONFIGURATION", "config_version", Show::Plain),
    ("EXPIRES", "config_expires", Show::Time),
    ("CREATED", "created", Show::Time),
];
const DOMAINS: &[Column] = &[("TENANT", "tenant", Show::Plain), ("DOMAIN", "domain", Show::Plain)];
const NAMES: &[Column] = &[
    ("NAME", "name", Show::Plain),
    ("TENANT", "tenant", Show::Plain),
    ("ORIGIN", "origin", Show::Plain),
    ("STATE", "state", Show::Plain),
];
const PASSED: &[Column] = &[
    ("CONNECTION", "id", Show::Plain),
    ("TENANT", "tenant", Show::Plain),
    ("ORIGIN", "origin", Show::Plain),
    ("NAME", "name", Show::Plain),
    ("ADDRESS", "address", Show::Plain),
    ("RTT MS", "rtt_ms", Show::Plain),
    ("UP", "bytes_up", Show::Bytes),
    ("DOWN", "bytes_down", Show::Bytes),
    ("SECONDS", "age_s", Show::Plain),
];
const TUNNELS: &[Column] = &[
    ("TUNNEL", "id", Show::Plain),
    ("TENANT", "tenant", Show::Plain),
    ("ORIGIN", "origin", Show::Plain),
    ("AUTHORITY", "name", Show::Plain),
    ("ADDRESS", "address", Show::Plain),
    ("RTT MS", "rtt_ms", Show::Plain),
    ("UP", "bytes_up", Show::Bytes),
    ("DOWN", "bytes_down", Show::Bytes),
    ("SECONDS", "age_s", Show::Plain),
];
const LINKS: &[Column] = &[
    ("LINK", "id", Show::Plain),
    ("TENANT", "tenant", Show::Plain),
    ("ROLE", "role", Show::Plain),
    ("ID", "entity", Show::Plain),
    ("USER", "user", Show::Plain),
    ("GROUP", "group", Show::Plain),
    ("ORIGINS", "origins", Show::Plain),
    ("TRANSPORT", "transport", Show::Plain),
    ("ADDRESS", "address", Show::Plain),
    ("RTT MS", "rtt_ms", Show::Plain),
    ("STREAMS", "streams", Show::Plain),
    ("IN", "bytes_in", Show::Bytes),
    ("OUT", "bytes_out", Show::Bytes),
    ("SECONDS", "age_s", Show::Plain),
];
const LANES: &[Column] = &[
    ("LANE", "id", Show::Plain),
    ("TENANT", "tenant", Show::Plain),
    ("ORIGIN", "origin", Show::Plain),
    ("DEVICE", "device", Show::Plain),
    ("USER", "user", Show::Plain),
    ("ADDRESS", "device_address", Show::Plain),
    ("RTT MS", "device_rtt_ms", Show::Plain),
    ("NODE", "node", Show::Plain),
    ("NODE ADDRESS", "node_address", Show::Plain),
    ("NODE RTT MS", "node_rtt_ms", Show::Plain),
    ("PATH", "path", Show::Plain),
    ("UP", "bytes_up", Show::Bytes),
    ("DOWN", "bytes_down", Show::Bytes),
    ("SECONDS", "age_s", Show::Plain),
];
const PAIRINGS: &[Column] = &[
    ("DTLS TUNNEL", "id", Show::Plain),
    ("TENANT", "tenant", Show::Plain),
    ("DEVICE", "device", Show::Plain),
    ("USER", "user", Show::Plain),
    ("PATH", "device_path", Show::Plain),
    ("ADDRESS", "device_address", Show::Plain),
    ("NODE", "node", Show::Plain),
    ("NODE PATH", "node_path", Show::Plain),
    ("NODE ADDRESS", "node_address", Show::Plain),
    ("UP", "bytes_up", Show::Bytes),
    ("DOWN", "bytes_down", Show::Bytes),
    ("SECONDS", "age_s", Show::Plain),
];
const STATUS: &[Column] = &[
    ("name", "name", Show::Plain),
    ("version", "version", Show::Plain),
    ("tenants", "tenants", Show::Plain),
    ("links", "links", Show::Plain),
    ("lanes", "lanes", Show::Plain),
    ("tunnels", "tunnels", Show::Plain),
    ("passed through", "passed", Show::Plain),
    ("draining", "draining", Show::Plain),
    ("licence keys", "licences.keys", Show::Plain),
    ("licences required", "licences.required", Show::Plain),
];
const LICENCES: &[Column] = &[
    ("TENANT", "tenant", Show::Plain),
    ("LICENCE", "id", Show::Plain),
    ("STANDING", "standing", Show::Plain),
    ("EXPIRES", "expires", Show::Time),
    ("GRACE UNTIL", "grace_until", Show::Time),
    ("SEATS", "seats", Show::Plain),
    ("USED", "seats_used", Show::Plain),
    ("FEATURES", "features", Show::Plain),
    ("WARNING", "warning", Show::Plain),
];
const INFO: &[Column] = &[
    ("name", "name", Show::Plain),
    ("instance", "instance", Show::Plain),
    ("CA file", "ca", Show::Plain),
    ("CA pin", "ca_pin", Show::Plain),
    ("TLS provider", "tls.provider", Show::Plain),
    ("post-quantum", "tls.post_quantum", Show::Plain),
    ("web services proxy", "web", Show::Plain),
];

impl RoleConfig for RelayConfig {
    fn verify(&self) -> Result<(), ConfigFault> {
        self.check().map_err(role::fault)
    }
}

pub(crate) fn run(args: RelayArgs, logging: &Logging) -> ExitCode {
    match args.command {
        RelayCommand::Run(source) => start(&source, logging),
        RelayCommand::Config { source, command } => role::config::<RelayConfig>(&command, &source.sources("relay")),
        RelayCommand::Tenant { relay, command } => verb(tenant(relay, command)),
        RelayCommand::Domain { relay, command } => verb(domain(relay, command)),
        RelayCommand::Name { relay, command } => verb(name(relay, command)),
        RelayCommand::Sessions { relay, core_socket, command } => verb(sessions(relay, core_socket, command)),
        RelayCommand::Info { relay } => verb(async move {
            let at = relay.at();
            at.record(&at.get("/info").await?, INFO)
        }),
        RelayCommand::Status { relay } => verb(async move {
            let status = relay.at().get("/status").await?;
            output::answer(relay.json, &status, |status| {
                let licences = output::table(&status["licences"]["tenants"], LICENCES, "no licences");
                format!("{}\n{licences}", output::record(status, STATUS))
            })
        }),
    }
}

fn start(source: &RelayConfigArgs, logging: &Logging) -> ExitCode {
    let config = match role::load::<RelayConfig>(&source.sources("relay")) {
        Ok(loaded) => loaded.value,
        Err(fault) => return boot::failed(&fault.into()),
    };
    let drain = config.timers().drain;
    let sources = source.sources("relay");
    boot::run("relay", logging, drain, |context| async move {
        let running = hedgerow_relay::run(config, &context).await?;
        let (relay, certificate) = (running.relay().clone(), running.certificate.clone());
        // Beside the certificate, which an embedded relay reads again too, the file that this process was started with.
        context.on_reload(move || {
            let new = role::load::<RelayConfig>(&sources)?.value;
            certificate.reload()?;
            relay.reload(&new)?;
            Ok(())
        });
        context.ready();
        running.until_drained(&context).await;
        Ok(())
    })
}

async fn tenant(relay: AtRelay, command: TenantCommand) -> anyhow::Result<()> {
    let at = relay.at();
    match command {
        TenantCommand::Add { id: Some(id), srp_key_file: Some(file), .. } => {
            let key = secrets::read("authentication key", Some(&file))?;
            let body = json!({ "tenant": id, "srp_key": key.expose_text().map(str::trim) });
            let _ = at.post("/tenants", &body).await?;
            at.done(&json!({ "tenant": id }), &format!("tenant {id}, with the key of {}", file.display()))
        }
        TenantCommand::Add { id, out, .. } => {
            let body = id.map_or_else(|| json!({}), |id| json!({ "tenant": id }));
            key(at, at.post("/tenants", &body).await?, out.as_deref())
        }
        TenantCommand::RotateKey { id, out } => {
            key(at, at.post(&format!("/tenants/{id}/srp-key"), &json!({})).await?, out.as_deref())
        }
        TenantCommand::List => at.table(&at.get("/tenants").await?, TENANTS, "no tenants"),
        TenantCommand::Block { id, holder } => block(at, &id, holder, "block").await,
        TenantCommand::Unblock { id, holder } => block(at, &id, holder, "unblock").await,
        TenantCommand::Remove { id } => {
            at.done(&at.delete(&format!("/tenants/{id}")).await?, &format!("tenant {id} removed"))
        }
    }
}

async fn block(at: At<'_>, tenant: &TenantId, holder: Option<EntityId>, verb: &str) -> anyhow::Result<()> {
    let (path, whom) = match holder {
        None => (format!("/tenants/{tenant}/{verb}"), format!("tenant {tenant}")),
        Some(holder) => (format!("/tenants/{tenant}/holders/{holder}/{verb}"), holder.to_string()),
    };
    at.done(&at.post(&path, &json!({})).await?, &format!("{whom} {verb}ed"))
}

/// Shows a tenant's key once, or writes it to a file and keeps it off the screen.
fn key(at: At<'_>, mut answer: Value, out: Option<&Path>) -> anyhow::Result<()> {
    let tenant = answer["tenant"].as_str().unwrap_or_default().to_owned();
    let key = answer["srp_key"].as_str().unwrap_or_default().to_owned();
    let Some(file) = out else { return at.done(&answer, &format!("tenant {tenant}\nkey {key}")) };
    secrets::write_new(file, key.as_bytes())?;
    answer["srp_key"] = json!({ "file": file });
    at.done(&answer, &format!("tenant {tenant}; its key is in {}", file.display()))
}

/// Puts the user beside each device that the core knows.
async fn name_users(sessions: &mut Value, core: &Path) {
    let at = At { socket: core, json: true };
    // No core here, or none that this user may ask: devices keep their ids only.
    let Ok(devices) = at.list("/devices").await else { return };
    let users: BTreeMap<&str, &Value> =
        devices.as_array().into_iter().flatten().filter_map(|d| Some((d["id"].as_str()?, &d["email"]))).collect();
    for session in sessions.as_array_mut().into_iter().flatten() {
        let device = session["device"].as_str().or(session["entity"].as_str());
        if let Some(user) = device.and_then(|id| users.get(id)) {
            session["user"] = (*user).clone();
        }
    }
}

async fn sessions(relay: AtRelay, core: PathBuf, command: Option<SessionCommand>) -> anyhow::Result<()> {
    let at = relay.at();
    if let Some(SessionCommand::Cut { id }) = command {
        return at.done(&at.delete(&format!("/sessions/{id}")).await?, "cut");
    }
    let mut all = at.get("/sessions").await?;
    name_users(&mut all, &core).await;
    let of =
        |kind: &str| all.as_array().into_iter().flatten().filter(|s| s["kind"] == kind).cloned().collect::<Value>();
    let human = |_: &Value| {
        let links = output::table(&of("link"), LINKS, "no links");
        let lanes = output::table(&of("lane"), LANES, "no lanes");
        let tunnels = output::table(&of("tunnel"), PAIRINGS, "no tunnels");
        let names = output::table(&of("name"), PASSED, "nothing passed through by name");
        format!(
            "{links}\n{lanes}\n{tunnels}\n{names}\n{}",
            output::table(&of("connect"), TUNNELS, "no CONNECT tunnels")
        )
    };
    output::answer(relay.json, &all, human)
}

async fn name(relay: AtRelay, command: NameCommand) -> anyhow::Result<()> {
    let at = relay.at();
    match command {
        NameCommand::List => at.table(&at.get("/names").await?, NAMES, "no names"),
        NameCommand::Remove { id, name } => {
            let answer = at.delete(&format!("/tenants/{id}/names/{}", segment(&name))).await?;
            at.done(&answer, &format!("{} is taken from {id}", output::printable(&name)))
        }
        NameCommand::Allow { id, name } => {
            let answer = at.post(&format!("/tenants/{id}/names/{}/allow", segment(&name)), &json!({})).await?;
            at.done(&answer, &format!("{id} may register {} again", output::printable(&name)))
        }
    }
}

async fn domain(relay: AtRelay, command: DomainCommand) -> anyhow::Result<()> {
    let at = relay.at();
    match command {
        DomainCommand::Add { id, domain } => {
            let answer = at.post(&format!("/tenants/{id}/domains"), &json!({ "domain": domain })).await?;
            at.done(&answer, &format!("{} is {id}'s", output::printable(&domain)))
        }
        DomainCommand::Remove { id, domain } => {
            let answer = at.delete(&format!("/tenants/{id}/domains/{}", segment(&domain))).await?;
            at.done(&answer, &format!("{} is no longer {id}'s", output::printable(&domain)))
        }
        DomainCommand::List => {
            let tenants = at.get("/tenants").await?;
            let each = |t: &serde_json::Value| {
                let domains = t["domains"].as_array().cloned().unwrap_or_default();
                domains.into_iter().map(|d| json!({ "tenant": t["tenant"], "domain": d })).collect::<Vec<_>>()
            };
            let rows = tenants.as_array().into_iter().flatten().flat_map(each).collect();
            at.table(&rows, DOMAINS, "no domains")
        }
    }
}
