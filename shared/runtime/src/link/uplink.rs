//! A link that comes back by itself: backoff with full jitter, delays the relay asks for, the next relay of the list
//! when one drains or fails.

use std::time::Duration;

use hedgerow_shared::InstanceId;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Credentials, Link, LinkError, connect};
use crate::clock::random;
use crate::dial::RelayTarget;
use crate::scope::Scope;

/// The first pause after a link was lost; it doubles, with full jitter, up to `LONGEST`.
const FIRST: Duration = Duration::from_millis(200);
/// The longest pause: a relay that comes back is used again within this time.
const LONGEST: Duration = Duration::from_secs(10);
/// A link that lived this long resets the backoff.
const STABLE: Duration = Duration::from_secs(10);

/// What an uplink needs.
#[derive(Debug, Clone)]
pub struct UplinkConfig {
    /// Relays, in order of preference.
    pub relays: Vec<RelayTarget>,
    /// How to show who we are.
    pub credentials: Credentials,
    /// This process.
    pub instance: InstanceId,
    /// Timers.
    pub timers: Timers,
}

/// How the uplink stands.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "there is one a process")]
pub enum UplinkStatus {
    /// Trying, with what went wrong last.
    Connecting(Option<Fault>),
    /// Up.
    Up(Link),
    /// Stopped for good.
    Stopped,
}

/// See the module. Clones are the same uplink.
#[derive(Debug, Clone)]
pub struct Uplink {
    status: watch::Receiver<UplinkStatus>,
}

impl Uplink {
    /// Starts keeping a link up, until the scope ends.
    #[must_use]
    pub fn start(config: UplinkConfig, scope: &Scope) -> Self {
        let (sender, status) = watch::channel(UplinkStatus::Connecting(None));
        let tasks = scope.clone();
        scope.spawn_until_done(async move {
            tokio::select! {
                () = keep_up(&config, &sender, &tasks) => {}
                () = tasks.cancelled() => {}
            }
            sender.send_replace(UplinkStatus::Stopped);
        });
        Self { status }
    }

    /// The link, when it is up now.
    #[must_use]
    pub fn current(&self) -> Option<Link> {
        match &*self.status.borrow() {
            UplinkStatus::Up(link) if !link.mux.is_closed() => Some(link.clone()),
            UplinkStatus::Up(_) | UplinkStatus::Connecting(_) | UplinkStatus::Stopped => None,
        }
    }

    /// Waits for the link to be up; at most `limit`, and not at all while relays refuse us for what we are (revoked,
    /// unknown, another version): that does not mend itself. Cancel safe.
    ///
    /// # Errors
    /// What went wrong last, or `TimedOut`.
    pub async fn link(&self, limit: Duration) -> Result<Link, Fault> {
        let mut status = self.status.clone();
        let up = status.wait_for(|s| match s {
            UplinkStatus::Up(link) => !link.mux.is_closed(),
            UplinkStatus::Stopped => true,
            UplinkStatus::Connecting(fault) => fault.as_ref().is_some_and(is_final),
        });
        let waited = tokio::time::timeout(limit, up).await.is_ok();
        match &*self.status.borrow() {
            UplinkStatus::Up(link) if !link.mux.is_closed() => Ok(link.clone()),
            UplinkStatus::Connecting(Some(fault)) => Err(fault.clone()),
            UplinkStatus::Stopped if waited => Err(Fault::new(Code::Draining, "this process is shutting down")),
            UplinkStatus::Up(_) | UplinkStatus::Connecting(None) | UplinkStatus::Stopped => {
                Err(Fault::new(Code::TimedOut, "no link to a relay yet"))
            }
        }
    }

    /// Changes of the status.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<UplinkStatus> {
        self.status.clone()
    }
}

/// Whether trying again soon cannot help.
fn is_final(fault: &Fault) -> bool {
    matches!(fault.code, Code::Revoked | Code::Unauthenticated | Code::Forbidden | Code::Version)
}

async fn keep_up(config: &UplinkConfig, status: &watch::Sender<UplinkStatus>, scope: &Scope) {
    let mut attempt = 0u32;
    let mut last: Option<Fault> = None;
    for at in (0..config.relays.len().max(1)).cycle() {
        let Some(relay) = config.relays.get(at) else {
            status
                .send_replace(UplinkStatus::Connecting(Some(Fault::new(Code::Unreachable, "no relay is configured"))));
            std::future::pending::<()>().await;
            return;
        };
        status.send_replace(UplinkStatus::Connecting(last.clone()));
        let mut wait = None;
        match connect(relay, &config.credentials, config.instance, &config.timers, scope).await {
            Ok(link) => {
                info!(relay = relay.name, session = %link.accept.session, transport = link.transport.label(), "link is up");
                metrics::counter!("hedgerow_link_connects_total", "result" => "ok").increment(1);
                let since = tokio::time::Instant::now();
                status.send_replace(UplinkStatus::Up(link.clone()));
                let away = tokio::select! {
                    fault = link.mux.closed() => { last = Some(fault); None }
                    away = link.mux.peer_going_away() => Some(away),
                };
                if let Some(away) = away {
                    last = Some(away.fault.clone());
                    wait = Some(Duration::from_millis(away.return_after_ms.min(600_000)));
                    // The old link's streams finish while the next link is opened.
                    metrics::counter!("hedgerow_link_goaways_total").increment(1);
                }
                if since.elapsed() > STABLE {
                    attempt = 0;
                }
                let fault = last.clone().unwrap_or_else(|| Fault::new(Code::Lost, "link lost"));
                warn!(relay = relay.name, reason = %fault, "link is down");
            }
            Err(error) => {
                metrics::counter!("hedgerow_link_connects_total", "result" => "failed").increment(1);
                let fault = match error {
                    LinkError::Refused { fault, retry_after_ms } => {
                        wait = Some(Duration::from_millis(retry_after_ms.min(600_000)));
                        fault
                    }
                    LinkError::Failed(fault) => fault,
                };
                if last.as_ref() != Some(&fault) {
                    warn!(relay = relay.name, reason = %fault, "cannot open the link");
                }
                last = Some(fault);
            }
        }
        status.send_replace(UplinkStatus::Connecting(last.clone()));
        tokio::time::sleep(pause(attempt).max(wait.unwrap_or_default())).await;
        attempt = attempt.saturating_add(1);
    }
}

/// Full jitter: anything from nothing to the doubled limit, so that a crowd comes back spread out.
fn pause(attempt: u32) -> Duration {
    let most = FIRST.saturating_mul(1 << attempt.min(10)).min(LONGEST);
    let dice = u64::from_be_bytes(random()) as f64 / u64::MAX as f64;
    most.mul_f64(dice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_differ() {
        assert!((0..100).all(|_| pause(0) <= FIRST));
        assert!((0..100).all(|n| pause(n) <= LONGEST));
        let spread: std::collections::BTreeSet<_> = (0..50).map(|_| pause(20)).collect();
        assert!(spread.len() > 40);
    }
}
