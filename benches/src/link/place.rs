//! A relay process with one tenant: real certificates of the tenant's own CA, which the relay knows.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hedgerow_relay::identity;
use hedgerow_relay::store::Store;
use hedgerow_runtime::config::{self, Sources};
use hedgerow_runtime::loopback::reserve_port;
use hedgerow_runtime::telemetry::Logging;
use hedgerow_runtime::tls::RelayRoots;
use hedgerow_runtime::{boot, clock};
use hedgerow_shared::verify::config::{Audience, RelayConfig, Revoked};
use serde::{Deserialize, Serialize};

use super::crowd::{Answer, Order};
use crate::process::{Process, http_get, metric, wait_for_port};
use crate::tenant::Tenant;

pub(crate) const TENANT: &str = "S12345678";
pub(crate) const RELAY: &str = "relay.bench.invalid";
/// How long a relay may take to listen: other work may keep the machine busy.
const START: Duration = Duration::from_secs(120);

/// What the load tool must know of the place.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Described {
    /// Where the relay listens, TCP and UDP.
    pub(crate) address: String,
    /// The relay's self-made CA.
    pub(crate) relay_ca: PathBuf,
    /// The tenant's CA: certificate, DER, and key, PKCS#8.
    tenant_ca: PathBuf,
    tenant_key: PathBuf,
}

impl Described {
    /// The tenant, with its CA.
    pub(crate) fn tenant(&self) -> anyhow::Result<Tenant> {
        Tenant::read(TENANT, &self.tenant_ca, &self.tenant_key)
    }

    /// Whom to trust for the relay.
    pub(crate) fn roots(&self) -> anyhow::Result<RelayRoots> {
        Ok(RelayRoots::Ca(identity::certificates(&fs::read_to_string(&self.relay_ca)?)?))
    }
}

/// A relay and its load tool; both end with it, and the load tool first.
pub(super) struct Place {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    crowd: Process,
    relay: Process,
    admin: String,
    folder: tempfile::TempDir,
}

impl Place {
    pub(super) fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (state, address, admin) = (folder.path().join("state"), reserve_port()?, reserve_port()?);
        let (address, admin) = (format!("127.0.0.1:{address}"), format!("127.0.0.1:{admin}"));
        let described = prepare(folder.path(), &state, address.clone())?;
        // Whoever measures hand-shakes must not be paced; everything else is as a relay has it by default.
        let config = format!(
            "name = \"{RELAY}\"\nstate = {state:?}\n[listen]\nlink = [\"{address}\"]\ndevice = []\n\
             [admin]\nlisten = \"{admin}\"\n[limits]\nhandshakes_per_second = 100000.0\n"
        );
        fs::write(folder.path().join("relay.toml"), config)?;
        let me = std::env::current_exe()?;
        let config = folder.path().join("relay.toml");
        let log = folder.path().join("relay.log");
        let mut relay = Process::start(Command::new(&me).arg("relay").arg(config), &log)?;
        let listens = wait_for_port(address.rsplit(':').next().context("a port")?.parse()?, START);
        if listens.is_err() || relay.has_ended() {
            bail!("the relay did not start:\n{}", fs::read_to_string(folder.path().join("relay.log"))?);
        }
        let file = folder.path().join("place.json");
        fs::write(&file, serde_json::to_vec(&described)?)?;
        let (crowd, input, output) = Process::talking(Command::new(me).arg("crowd").arg(&file))?;
        Ok(Self { input, output: BufReader::new(output), crowd, relay, admin, folder })
    }

    /// Has the load tool do something, and waits for it.
    pub(super) fn order(&mut self, order: &Order) -> anyhow::Result<Answer> {
        writeln!(self.input, "{}", serde_json::to_string(order)?)?;
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 || self.crowd.has_ended() {
            bail!("the load tool has ended");
        }
        let answer: Answer = serde_json::from_str(&line)?;
        if let Some(fault) = &answer.fault {
            let log = fs::read_to_string(self.folder.path().join("relay.log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            bail!("{order:?}: {fault}; the relay's last words, backwards:\n{}", last.join("\n"));
        }
        Ok(answer)
    }

    /// The relay's process.
    pub(super) fn relay(&self) -> u32 {
        self.relay.pid()
    }

    /// The sum of a metric of the relay over its labels.
    pub(super) fn metric(&self, name: &str) -> anyhow::Result<f64> {
        Ok(metric(&http_get(&self.admin, "/metrics")?, name))
    }

    /// Waits until a metric of the relay has a value: both ends know then what was opened or closed.
    pub(super) fn wait_for(&self, name: &str, value: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let now = self.metric(name)?;
            if now == value as f64 {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{name} of the relay is {now}, expected {value}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The relay's state with its tenant, and the files for the load tool.
pub(crate) fn prepare(folder: &Path, state: &Path, address: String) -> anyhow::Result<Described> {
    let tenant = Tenant::create(TENANT)?;
    let signed = tenant.sign(Audience::Relay, |head| RelayConfig {
        authorities: Vec::new(),
        head,
        revoked: Revoked::default(),
    })?;
    let store = Store::open(state)?;
    store.add(tenant.id.clone())?;
    store.register_ca(&tenant.id, tenant.ca())?;
    store.put_config(&tenant.id, signed, clock::now())?;
    let described = Described {
        address,
        relay_ca: state.join("relay-ca.pem"),
        tenant_ca: folder.join("tenant-ca.der"),
        tenant_key: folder.join("tenant-ca.key"),
    };
    tenant.write(&described.tenant_ca, &described.tenant_key)?;
    Ok(described)
}

/// Runs the relay of a configuration until it is told to stop.
pub(super) fn relay(config: &Path) -> anyhow::Result<ExitCode> {
    let sources = Sources::process("relay", Some(config.to_owned()));
    let config: hedgerow_relay::RelayConfig = config::load(&sources)?.value;
    let drain = config.timers().drain;
    Ok(boot::run("relay", &Logging::default(), drain, |context| async move {
        let running = hedgerow_relay::run(config, &context).await?;
        context.ready();
        running.until_drained(&context).await;
        Ok(())
    }))
}
