//! `hedgerow device`: activates and runs the agent here; lists and revokes devices at the core.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use hedgerow_device::activate::{ActivateRequest, activate as activate_device};
use hedgerow_device::config::DeviceConfigFile;
use hedgerow_runtime::boot::{self, Unreachable};
use hedgerow_runtime::config::ConfigFault;
use hedgerow_runtime::dial::RelayTarget;
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::telemetry::Logging;
use hedgerow_runtime::tls::{self, RelayRoots};
use hedgerow_shared::fault::Code;
use hedgerow_shared::{EntityId, TenantId};
use hedgerow_uem_core::profile::Platform;
use serde_json::{Value, json};

use super::control::{AtCore, not_yet, segment, verb};
use super::health;
use crate::output::{self, Column, Show};
use crate::role::{self, ConfigCommand, RoleConfig, config_args};
use crate::secrets;

config_args!(DeviceConfigArgs, "HEDGEROW_DEVICE_CONFIG", "/etc/hedgerow/device.toml", "HEDGEROW_DEVICE__");

#[derive(Debug, clap::Args)]
pub(crate) struct DeviceArgs {
    #[command(subcommand)]
    command: DeviceCommand,
}

#[derive(Debug, Subcommand)]
enum DeviceCommand {
    /// Make this machine a device, with an e-mail address and an activation password
    Activate {
        #[command(flatten)]
        source: DeviceConfigArgs,
        #[command(flatten)]
        activation: ActivateArgs,
    },
    /// Run the agent until TERM; a second TERM stops at once
    Run(DeviceConfigArgs),
    /// Show the state of the agent that runs here
    Status {
        #[command(flatten)]
        source: DeviceConfigArgs,
        /// Print JSON
        #[arg(long, env = "HEDGEROW_JSON")]
        json: bool,
    },
    /// Look at the configuration without running anything
    Config {
        #[command(flatten)]
        source: DeviceConfigArgs,
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// After the agent was killed: put back what it told the system for its tunnel (rules, routes, resolv.conf)
    Cleanup(DeviceConfigArgs),
    /// At the core: list devices
    List {
        #[command(flatten)]
        core: AtCore,
        /// Only those of this user: e-mail address or id
        #[arg(long, value_name = "WHO", env = "HEDGEROW_DEVICE_USER")]
        user: Option<String>,
    },
    /// At the core: show a device: what it told of itself, how it stands
    Show {
        #[command(flatten)]
        core: AtCore,
        /// Its id
        id: EntityId,
    },
    /// At the core: list the apps or packages that are on a device
    Apps {
        #[command(flatten)]
        core: AtCore,
        /// Its id
        id: EntityId,
    },
    /// At the core: revoke a device; its connections are cut within seconds
    Revoke {
        #[command(flatten)]
        core: AtCore,
        /// Its id
        id: EntityId,
    },
}

#[derive(Debug, clap::Args)]
struct ActivateArgs {
    /// The user's e-mail address
    #[arg(long, env = "HEDGEROW_DEVICE_EMAIL")]
    email: String,
    /// The relay to ask
    #[arg(long, value_name = "HOST:PORT", env = "HEDGEROW_DEVICE_RELAY")]
    relay: String,
    /// The relay's name in its certificate [default: the host of the address]
    #[arg(long, value_name = "NAME", env = "HEDGEROW_DEVICE_RELAY_NAME")]
    relay_name: Option<String>,
    /// CA certificate of the relay, PEM, when it is not a public one
    #[arg(long, value_name = "FILE", env = "HEDGEROW_DEVICE_RELAY_CA")]
    relay_ca: Option<PathBuf>,
    /// The tenant [default: the relay is asked for it]
    #[arg(long, value_name = "ID", env = "HEDGEROW_DEVICE_TENANT")]
    tenant: Option<TenantId>,
    /// Name of this device, for people [default: the host name]
    #[arg(long, env = "HEDGEROW_DEVICE_NAME")]
    name: Option<String>,
    /// File with the activation password; `-` is standard input [default: ask]
    #[arg(long, value_name = "FILE", env = "HEDGEROW_DEVICE_PASSWORD_FILE")]
    password_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long, env = "HEDGEROW_JSON")]
    json: bool,
}

const COLUMNS: &[Column] = &[
    ("ID", "id", Show::Plain),
    ("USER", "email", Show::Plain),
    ("NAME", "name", Show::Plain),
    ("PLATFORM", "platform", Show::Plain),
    ("TYPE", "activation", Show::Plain),
    ("STATE", "state", Show::Plain),
    ("COMPLIANCE", "verdict", Show::Plain),
    ("OBEYS", "config", Show::Plain),
    ("LAST SEEN", "last_seen", Show::Time),
];
const ONE: &[Column] = &[
    ("id", "id", Show::Plain),
    ("user", "email", Show::Plain),
    ("name", "name", Show::Plain),
    ("state", "state", Show::Plain),
    ("activated", "created", Show::Time),
    ("activation type", "activation", Show::Plain),
    ("revoked", "revoked", Show::Time),
    ("obeys", "config", Show::Plain),
    ("last seen", "last_seen", Show::Time),
    ("platform", "platform", Show::Plain),
    ("told", "inventory.attributes.told", Show::Time),
    ("system", "inventory.attributes.os", Show::Plain),
    ("family", "inventory.attributes.osFamilyName", Show::Plain),
    ("version", "inventory.attributes.osVersion", Show::Plain),
    ("security patches", "inventory.attributes.securityPatchLevel", Show::Plain),
    ("kernel", "inventory.attributes.kernel", Show::Plain),
    ("vendor", "inventory.attributes.hardwareVendorCompanyName", Show::Plain),
    ("brand", "inventory.attributes.hardwareName", Show::Plain),
    ("model", "inventory.attributes.hardwareModel", Show::Plain),
    ("serial number", "inventory.attributes.serialNumber", Show::Plain),
    ("IMEI", "inventory.attributes.imei", Show::Plain),
    ("host name", "inventory.attributes.hostName", Show::Plain),
    ("rooted", "inventory.attributes.compromised", Show::Plain),
    ("encrypted", "inventory.attributes.encrypted", Show::Plain),
    ("password set", "inventory.attributes.passwordSet", Show::Plain),
    ("memory", "inventory.attributes.ramTotal", Show::Bytes),
    ("memory free", "inventory.attributes.ramFree", Show::Bytes),
    ("storage", "inventory.attributes.internalStorageSize", Show::Bytes),
    ("storage free", "inventory.attributes.internalStorageFree", Show::Bytes),
    ("client", "inventory.attributes.clientVersion", Show::Plain),
    ("apps", "inventory.apps", Show::Plain),
    ("apps told", "inventory.apps_told", Show::Time),
    ("compliance", "compliance.verdict", Show::Plain),
    ("breaks", "compliance.breaks", Show::Plain),
    ("quarantined", "compliance.quarantined", Show::Plain),
];
/// Of an app on a device.
const APPS: &[Column] =
    &[("IDENTIFIER", "identifier", Show::Plain), ("NAME", "name", Show::Plain), ("VERSION", "version", Show::Plain)];
const ACTIVATED: &[Column] = &[
    ("device", "device", Show::Plain),
    ("tenant", "tenant", Show::Plain),
    ("user", "email", Show::Plain),
    ("state", "state", Show::Plain),
];
const STATUS: &[Column] = &[
    ("device", "device", Show::Plain),
    ("tenant", "tenant", Show::Plain),
    ("link", "link.state", Show::Plain),
    ("because", "link.reason", Show::Plain),
    ("relay", "link.relay", Show::Plain),
    ("address", "link.address", Show::Plain),
    ("proxy", "link.proxy", Show::Plain),
    ("transport", "link.transport", Show::Plain),
    ("RTT ms", "link.rtt_ms", Show::Plain),
    ("post-quantum", "tls.post_quantum", Show::Plain),
    ("configuration", "config.version", Show::Plain),
    ("valid until", "config.expires", Show::Time),
    ("routes", "config.routes", Show::Plain),
    ("default route", "config.default_route", Show::Plain),
    ("certificate until", "certificate_expires", Show::Time),
];
const TUNNEL: &[Column] = &[
    ("tunnel", "state", Show::Plain),
    ("because", "reason", Show::Plain),
    ("device", "device", Show::Plain),
    ("address", "address", Show::Plain),
    ("address (IPv6)", "address6", Show::Plain),
    ("node", "node", Show::Plain),
    ("way", "way", Show::Plain),
    ("MTU", "mtu", Show::Plain),
    ("name servers", "dns", Show::Plain),
    ("in", "bytes_in", Show::Bytes),
    ("out", "bytes_out", Show::Bytes),
];
const SESSIONS: &[Column] = &[
    ("GROUP", "group", Show::Plain),
    ("PATH", "path", Show::Plain),
    ("NODE", "node", Show::Plain),
    ("STREAMS", "streams", Show::Plain),
    ("IN", "bytes_in", Show::Bytes),
    ("OUT", "bytes_out", Show::Bytes),
    ("RTT MS", "rtt_ms", Show::Plain),
];

impl RoleConfig for DeviceConfigFile {
    fn verify(&self) -> Result<(), ConfigFault> {
        let listeners =
            [("proxy.socks5", self.proxy.socks5), ("proxy.http", self.proxy.http), ("admin.listen", self.admin.listen)];
        for (key, address) in listeners {
            if !address.ip().to_canonical().is_loopback() {
                return Err(role::fault(format_args!(
                    "{key}: expected a loopback address such as 127.0.0.1, not {address}"
                )));
            }
        }
        self.outbound.network()?;
        if !(self.timers.scale > 0.0 && self.timers.scale <= 10.0) {
            return Err(role::fault("timers.scale: expected a number above 0 and up to 10; 1 is right outside tests"));
        }
        Ok(())
    }
}

pub(crate) fn run(args: DeviceArgs, logging: &Logging) -> ExitCode {
    match args.command {
        DeviceCommand::Activate { source, activation } => verb(activate(source, activation)),
        DeviceCommand::Run(source) => start(&source, logging),
        DeviceCommand::Status { source, json } => verb(status(source, json)),
        DeviceCommand::Config { source, command } => {
            role::config::<DeviceConfigFile>(&command, &source.sources("device"))
        }
        DeviceCommand::Cleanup(source) => verb(cleanup(source)),
        DeviceCommand::List { core, user } => verb(async move {
            let at = core.at();
            let only = user.map(|who| format!("?user={}", segment(&who))).unwrap_or_default();
            at.table(&at.list(&format!("/devices{only}")).await?, COLUMNS, "no devices")
        }),
        DeviceCommand::Show { core, id } => verb(async move {
            let mut device = core.at().get(&format!("/devices/{id}")).await?;
            if device["compliance"].is_object() {
                super::compliance::sum_up(&mut device["compliance"]);
            }
            core.at().record(&device, ONE)
        }),
        DeviceCommand::Apps { core, id } => verb(async move {
            let at = core.at();
            let apps = at.list(&format!("/devices/{id}/installed")).await?;
            at.table(&apps, APPS, "it has told of none; hedgerow command send ID list-applications asks it")
        }),
        DeviceCommand::Revoke { core, id } => verb(async move {
            let at = core.at();
            let answer = at.delete(&format!("/devices/{id}")).await?;
            at.done(&answer, &format!("device {id} revoked{}", not_yet(&answer)))
        }),
    }
}

async fn activate(source: DeviceConfigArgs, args: ActivateArgs) -> anyhow::Result<()> {
    let config = role::load::<DeviceConfigFile>(&source.sources("device"))?.value;
    let Some((host, _)) = args.relay.rsplit_once(':') else {
        bail!("--relay: expected HOST:PORT, such as relay.example.com:443");
    };
    let roots = match &args.relay_ca {
        Some(file) => RelayRoots::Ca(tls::read_certificates(file).context("--relay-ca")?),
        None => RelayRoots::System,
    };
    let name = args.relay_name.unwrap_or_else(|| host.trim_matches(['[', ']']).to_owned());
    let request = ActivateRequest {
        relay: RelayTarget::new(vec![args.relay], name, roots).over(config.outbound.network()?),
        tenant: args.tenant,
        email: args.email,
        password: secrets::read("activation password", args.password_file.as_deref())?,
        name: args.name.unwrap_or_else(host_name),
        platform: platform(),
        state: config.state.clone(),
    };
    let scope = Scope::new();
    let activated = activate_device(request, &config.timers(), &scope).await;
    scope.stop(Duration::from_secs(1)).await;
    let activated = activated.map_err(|fault| match fault.code {
        Code::Lost | Code::Unreachable | Code::TimedOut | Code::ConnectionRefused | Code::NameNotFound => {
            anyhow::Error::new(Unreachable(fault.to_string()))
        }
        _ => fault.into(),
    })?;
    let shown = json!({
        "device": activated.device, "tenant": activated.tenant, "email": activated.email, "state": config.state,
    });
    output::answer(args.json, &shown, |shown| output::record(shown, ACTIVATED))
}

fn start(source: &DeviceConfigArgs, logging: &Logging) -> ExitCode {
    let config = match role::load::<DeviceConfigFile>(&source.sources("device")) {
        Ok(loaded) => loaded.value,
        Err(fault) => return boot::failed(&fault.into()),
    };
    let drain = config.timers().drain;
    boot::run("device", logging, drain, |context| async move { hedgerow_device::run(config, &context).await })
}

async fn cleanup(source: DeviceConfigArgs) -> anyhow::Result<()> {
    let config = role::load::<DeviceConfigFile>(&source.sources("device"))?.value;
    let found = hedgerow_device::cleanup(&config).await?;
    let text = if found {
        format!("{} is as it was; no rule or route of the tunnel is left", config.tunnel.resolv_conf.display())
    } else {
        "no rule or route of the tunnel is left".to_owned()
    };
    output::print(&format!("{text}\n"))
}

async fn status(source: DeviceConfigArgs, json: bool) -> anyhow::Result<()> {
    let config = role::load::<DeviceConfigFile>(&source.sources("device"))?.value;
    let (ok, text) = health::ask(config.admin.listen, "/status").await?;
    if !ok {
        bail!("the agent answers: {}", text.trim());
    }
    let status: Value = serde_json::from_str(&text).context("the agent's answer cannot be read")?;
    output::answer(json, &status, |status| {
        let sessions = output::table(&status["sessions"], SESSIONS, "no session with a node is open");
        let tunnel = match &status["tunnel"] {
            Value::Null => String::new(),
            tunnel => format!("\n{}", output::record(tunnel, TUNNEL)),
        };
        format!("{}\n{sessions}{tunnel}", output::record(status, STATUS))
    })
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "linux device".to_owned(),
        name => name.to_owned(),
    }
}

/// The system and its version, as `/etc/os-release` names them, with the family in front where its name does not say so.
fn platform() -> String {
    let text = std::fs::read_to_string(Path::new("/etc/os-release")).unwrap_or_default();
    let pretty = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    let name = pretty.map_or("Linux", |name| name.trim_matches('"'));
    if Platform::told(name).is_some() { name.to_owned() } else { format!("Linux ({name})") }
}
