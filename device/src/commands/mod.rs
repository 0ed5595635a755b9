//! Commands of the core: fetched one at a time, carried out once, answered until the answer is heard.
//!
//! ```text
//!   link up, wake-up, now and then ──► Report ──► Order ──► known? the answer that was given
//!                                        ▲                  new?   carried out, its answer written down
//!                                        └───────────────────────────────┘    until the core has no more
//! ```

mod carry;
mod memory;

use std::time::Duration;

use hedgerow_runtime::core_client::{self, CoreClient};
use hedgerow_runtime::link::{Link, Uplink};
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::{clock, tls};
use hedgerow_shared::Role;
use hedgerow_shared::fault::Fault;
use hedgerow_shared::limits::Timers;
use hedgerow_shared::wire::core_api;
use hedgerow_uem_core::command::{Answered, Class, Kind, Order, Reply, Report};
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::config::Commands as Config;
use crate::state::DeviceState;
pub(crate) use memory::FILE;
use memory::Memory;

/// The core is asked this often, should a wake-up be lost.
const POLL: Duration = Duration::from_secs(600);
/// Between word from the core and the question: several words become one.
const WAKE_PAUSE: Duration = Duration::from_millis(100);
/// After a failed conversation, first; it doubles up to `LONGEST`.
const RETRY: Duration = Duration::from_secs(5);
/// So that what waits reaches a device soon after a core was away for long.
const LONGEST: Duration = Duration::from_secs(60);
/// Commands in one conversation: a core that never stops is left alone for a while.
const MOST: usize = 200;
/// How long the core is told of an erasure before the key goes without that.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// What the agent does with commands.
pub(crate) struct Commands {
    pub(crate) config: Config,
    pub(crate) state: DeviceState,
    pub(crate) uplink: Uplink,
    pub(crate) timers: Timers,
    pub(crate) scope: Scope,
    /// Asks for configuration now.
    pub(crate) refresh: Box<dyn Fn() + Send + Sync>,
    /// Set once nothing of the organisation is left here.
    pub(crate) erased: watch::Sender<bool>,
}

/// How a conversation ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// The core has no more.
    Idle,
    /// Nothing of the organisation is to be left.
    Erase,
}

impl Commands {
    /// Until the scope ends, or the device is erased.
    pub(crate) async fn keep(self, wake: &Notify) {
        if Memory::read(&self.state.dir).is_to_be_erased() {
            return self.erase();
        }
        let mut retry = RETRY;
        loop {
            let pause = match self.uplink.link(Duration::from_secs(3600)).await {
                Err(_) => RETRY,
                Ok(link) => match self.converse(&link).await {
                    Ok(Ended::Erase) => return self.erase(),
                    Ok(Ended::Idle) => {
                        retry = RETRY;
                        POLL
                    }
                    Err(fault) => {
                        warn!(reason = %fault, "cannot fetch commands from the core");
                        let pause = clock::jitter(retry);
                        retry = (retry * 2).min(LONGEST);
                        pause
                    }
                },
            };
            tokio::select! {
                () = wake.notified() => tokio::time::sleep(WAKE_PAUSE).await,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Fetches, carries out and answers until the core says to be idle.
    async fn converse(&self, link: &Link) -> Result<Ended, Fault> {
        let mut core = self.core(link).await?;
        let mut memory = Memory::read(&self.state.dir);
        let (mut report, mut erase) = (Report::default(), false);
        for _ in 0..MOST {
            let told = core.ask::<Order>(core_api::COMMAND_DEVICE, &report).await;
            if erase {
                // Whatever came of the answer: the key is not kept for another try.
                return Ok(Ended::Erase);
            }
            let Some(order) = told? else { return Ok(Ended::Idle) };
            let reply = match memory.answer(order.id) {
                Some(reply) => reply,
                None => {
                    info!(command = %order.id, kind = %order.kind, "command");
                    if is_once(order.kind) {
                        memory.begin(order.id);
                    }
                    let reply = carry::out(&order, &self.config, &self.refresh).await;
                    log(&order, &reply);
                    if reply == Reply::NotNow {
                        memory.forget(order.id);
                    } else {
                        // Before the core hears of it: should it not, the command comes again and is not done again.
                        memory.keep(order.id, &reply, erases(&order, &reply));
                    }
                    reply
                }
            };
            erase = erases(&order, &reply);
            if reply == Reply::NotNow {
                report.put_off.insert(order.id);
            }
            report.answered = Some(Answered { id: order.id, reply });
            if erase {
                // The connection may have died while data was erased.
                if let Ok(Ok(again)) = tokio::time::timeout(LAST_WORDS, self.core(link)).await {
                    core = again;
                }
            }
        }
        Ok(Ended::Idle)
    }

    async fn core(&self, link: &Link) -> Result<CoreClient, Fault> {
        let io = core_client::open(link, &self.state.identity().tenant, &self.timers).await?;
        let (ca, own) = (self.state.ca.clone(), self.state.own.get());
        let config = tls::to_tenant(ca, Role::Core, None, Some(&own), &[core_api::ALPN_HTTP])?;
        CoreClient::handshake(config, io, &self.timers, &self.scope).await
    }

    fn erase(&self) {
        match self.state.erase() {
            Ok(()) => info!("keys and configuration are erased"),
            Err(error) => warn!(error = format!("{error:#}"), "not everything could be erased"),
        }
        self.erased.send_replace(true);
    }
}

/// Whether nothing of the organisation is to be left after it.
fn erases(order: &Order, reply: &Reply) -> bool {
    order.kind.ends_the_device() && matches!(reply, Reply::Done { .. })
}

/// Whether it makes a difference that it is carried out twice. To erase what is erased does not, and has to come to its end.
fn is_once(kind: Kind) -> bool {
    kind.class() == Class::Administration && !kind.ends_the_device() && kind != Kind::UpdateProfiles
}

fn log(order: &Order, reply: &Reply) {
    let label = match reply {
        Reply::Done { .. } => "done",
        Reply::Failed { error } => {
            warn!(command = %order.id, kind = %order.kind, error, "the command failed");
            "failed"
        }
        Reply::NotNow => "not_now",
    };
    metrics::counter!("hedgerow_device_commands_total", "kind" => order.kind.as_str(), "reply" => label).increment(1);
}
