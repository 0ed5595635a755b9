//! A link that comes back by itself: backoff with full jitter, delays the relay asks for, the next relay of the list
//! when one fails. What it can see coming it does make-before-break: QUIC that works again takes over from TLS, and
//! when a relay drains, the next one of the list is linked before the old link is let go.
//!
//! A device has one `Uplink` with all its relays. Nodes and cores have `Uplinks`: a link with every relay at once, for
//! devices may be at any of them.

use std::sync::Arc;
use std::time::Duration;

use hedgerow_shared::InstanceId;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::wire::message::GoAway;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::backoff::Backoff;
use super::dialler::Dialling;
use super::pathfinder::Pathfinder;
use super::twins::Twins;
use super::{Choice, Credentials, Link, LinkError, Transport};
use crate::clock::jitter;
use crate::dial::RelayTarget;
use crate::scope::Scope;

/// How often a link that was let go is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How often an entry that leads to the relay of another one is tried, at most.
const TWIN_RETRY: Duration = Duration::from_secs(1200);
/// How long a QUIC link may still take to come up, once the relay has let the TLS link go for it.
const HANDOVER: Duration = Duration::from_millis(2500);

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
    /// Which transports may be used.
    pub transport: Choice,
    /// What the uplinks of this process know of each other: the same for those of one list.
    pub twins: Twins,
}

/// How the uplink stands.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "there is one a process")]
pub enum UplinkStatus {
    /// Trying, with what went wrong last.
    Connecting(Option<Fault>),
    /// Up; the link says over which transport, and why.
    Up(Link),
    /// Stopped for good.
    Stopped,
}

/// See the module. Clones are the same uplink.
#[derive(Debug, Clone)]
pub struct Uplink {
    status: watch::Receiver<UplinkStatus>,
    links: Arc<Mutex<Vec<Link>>>,
}

impl Uplink {
    /// Starts keeping a link up, until the scope ends.
    #[must_use]
    pub fn start(config: UplinkConfig, scope: &Scope) -> Self {
        let (sender, status) = watch::channel(UplinkStatus::Connecting(None));
        let links = Arc::new(Mutex::new(Vec::new()));
        let tasks = scope.clone();
        let path = |relay| Pathfinder::new(config.transport, &config.timers).of(config.twins.entry(relay));
        let paths = config.relays.iter().map(path).collect();
        let keeper = Keeper { config, paths, status: sender, links: links.clone(), scope: scope.clone() };
        scope.spawn_until_done(async move {
            tokio::select! {
                () = keeper.keep_up() => {}
                () = tasks.cancelled() => {}
            }
            keeper.status.send_replace(UplinkStatus::Stopped);
        });
        Self { status, links }
    }

    /// The link, when it is up now.
    #[must_use]
    pub fn current(&self) -> Option<Link> {
        match &*self.status.borrow() {
            UplinkStatus::Up(link) if !link.mux.is_closed() => Some(link.clone()),
            UplinkStatus::Up(_) | UplinkStatus::Connecting(_) | UplinkStatus::Stopped => None,
        }
    }

    /// Every link that takes new streams, newest first: more than one while the uplink moves.
    #[must_use]
    pub fn links(&self) -> Vec<Link> {
        let mut links = self.links.lock();
        links.retain(|link| !link.mux.is_closed());
        links.iter().filter(|link| !link.mux.is_going_away()).cloned().collect()
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

    /// Asks for a sign of life on every link, as tasks of the scope: the network below may have changed.
    pub fn probe(&self, scope: &Scope) {
        for link in self.links() {
            scope.spawn(async move { link.mux.probe().await });
        }
    }

    /// Changes of the status.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<UplinkStatus> {
        self.status.clone()
    }
}

/// A link with every relay of a list. Clones are the same uplinks.
#[derive(Debug, Clone)]
pub struct Uplinks {
    each: Arc<[Uplink]>,
}

impl Uplinks {
    /// Starts keeping a link up with each of `config.relays`, until the scope ends.
    #[must_use]
    pub fn start(config: &UplinkConfig, scope: &Scope) -> Self {
        let of =
            |relay: &RelayTarget| Uplink::start(UplinkConfig { relays: vec![relay.clone()], ..config.clone() }, scope);
        Self { each: config.relays.iter().map(of).collect() }
    }

    /// One a relay, in the order of the list.
    pub fn iter(&self) -> impl Iterator<Item = &Uplink> {
        self.each.iter()
    }

    /// Every link that takes new streams, in the order of the list.
    #[must_use]
    pub fn links(&self) -> Vec<Link> {
        self.each.iter().flat_map(Uplink::links).collect()
    }

    /// The first link that is up now.
    #[must_use]
    pub fn current(&self) -> Option<Link> {
        self.each.iter().find_map(Uplink::current)
    }

    /// Waits until one of them is up, as `Uplink::link` does. Cancel safe.
    ///
    /// # Errors
    /// What went wrong last with the relay that was tried longest, or `TimedOut`.
    pub async fn link(&self, limit: Duration) -> Result<Link, Fault> {
        if let Some(link) = self.current() {
            return Ok(link);
        }
        let waiting: Vec<_> = self.each.iter().map(|uplink| Box::pin(uplink.link(limit))).collect();
        if waiting.is_empty() {
            return Err(no_relay());
        }
        match futures_util::future::select_ok(waiting).await {
            Ok((link, _)) => Ok(link),
            Err(fault) => Err(fault),
        }
    }

    /// Completes when the status of one of them changes; never, once all have ended. Cancel safe.
    pub async fn changed(statuses: &mut [watch::Receiver<UplinkStatus>]) {
        let waiting: Vec<_> = statuses.iter_mut().map(|s| Box::pin(s.changed())).collect();
        if waiting.is_empty() || futures_util::future::select_ok(waiting).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn no_relay() -> Fault {
    Fault::new(Code::Unreachable, "no relay is configured")
}

/// Whether trying again soon cannot help.
fn is_final(fault: &Fault) -> bool {
    matches!(fault.code, Code::Revoked | Code::Unauthenticated | Code::Forbidden | Code::Version)
}

struct Keeper {
    config: UplinkConfig,
    /// One a relay.
    paths: Vec<Pathfinder>,
    status: watch::Sender<UplinkStatus>,
    links: Arc<Mutex<Vec<Link>>>,
    scope: Scope,
}

/// What a link that was up came to.
enum Turn {
    /// It ended.
    Lost(Fault),
    /// UDP stopped passing under it.
    Silent(Fault),
    /// QUIC works again and has a link.
    Better(Box<Link>),
    /// The relay will close.
    Away(GoAway),
}

impl Keeper {
    async fn keep_up(&self) {
        let mut backoff = Backoff::new(self.config.timers.resume);
        let mut last: Option<Fault> = None;
        let mut freed = self.config.twins.freed();
        let mut replaced = self.config.credentials.replacements();
        let mut said = None;
        let mut at = 0;
        loop {
            if self.config.relays.is_empty() {
                self.status.send_replace(UplinkStatus::Connecting(Some(no_relay())));
                return std::future::pending().await;
            }
            freed.mark_unchanged();
            replaced.mark_seen();
            self.status.send_replace(UplinkStatus::Connecting(last.clone()));
            let mut at_once = false;
            let wait = match self.open(at).await {
                Ok(link) => {
                    let since = Instant::now();
                    let (fault, asked) = self.hold(&mut at, link, &mut at_once).await;
                    warn!(relay = self.config.relays[at].name, reason = %fault, "link is down");
                    last = Some(fault);
                    backoff.lost(since.elapsed(), Instant::now()).max(asked)
                }
                Err(error) => {
                    if let (LinkError::Twin(fault), [_]) = (&error, &*self.config.relays) {
                        if said.as_ref() != Some(fault) {
                            warn!(relay = self.config.relays[at].name, reason = %fault, "this relay needs no second link");
                            said = Some(fault.clone());
                        }
                        last = Some(fault.clone());
                        self.status.send_replace(UplinkStatus::Connecting(last.clone()));
                        // The names may lead elsewhere later, and the other link may end.
                        let _ = timeout(jitter(TWIN_RETRY), freed.changed()).await;
                        continue;
                    }
                    let (fault, asked) = match error {
                        LinkError::Refused { fault, retry_after_ms } => {
                            (fault, backoff.refused(Duration::from_millis(retry_after_ms)))
                        }
                        LinkError::Failed(fault) | LinkError::Twin(fault) => (fault, Duration::ZERO),
                    };
                    if last.as_ref() != Some(&fault) {
                        warn!(relay = self.config.relays[at].name, reason = %fault, "cannot open the link");
                    }
                    let wait = backoff.failed(&fault, Instant::now()).max(asked);
                    last = Some(fault);
                    wait
                }
            };
            self.status.send_replace(UplinkStatus::Connecting(last.clone()));
            if at_once {
                continue;
            }
            at = (at + 1) % self.config.relays.len();
            tokio::select! {
                () = sleep(wait) => {}
                () = replaced.next() => {}
            }
        }
    }

    async fn open(&self, at: usize) -> Result<Link, LinkError> {
        let config = &self.config;
        let opened = self.paths[at]
            .connect(&config.relays[at], &config.credentials, config.instance, &config.timers, &self.scope)
            .await;
        let result = if opened.is_ok() { "ok" } else { "failed" };
        metrics::counter!("hedgerow_link_connects_total", "result" => result).increment(1);
        opened
    }

    /// Keeps a link, and those that take over from it, until there is none; why, and how long to wait. `at_once` when
    /// the same relay is to be dialled again without a pause.
    async fn hold(&self, at: &mut usize, mut link: Link, at_once: &mut bool) -> (Fault, Duration) {
        loop {
            let shown = self.show(*at, &link);
            let turn = self.turn(*at, &link).await;
            drop(shown);
            self.paths[*at].ended(&link);
            match turn {
                Turn::Lost(fault) => return (fault, Duration::ZERO),
                Turn::Silent(fault) => {
                    link.mux.close(fault.clone());
                    *at_once = true;
                    return (fault, Duration::ZERO);
                }
                Turn::Better(newer) => {
                    self.let_go(link, Fault::new(Code::Displaced, "QUIC works again and took over"));
                    link = *newer;
                }
                Turn::Away(away) => {
                    metrics::counter!("hedgerow_link_goaways_total").increment(1);
                    let fault = away.fault.clone();
                    if let Some((next, newer)) = self.move_on(*at, &away).await {
                        self.let_go(link, Fault::new(Code::Draining, "moved to another relay"));
                        (*at, link) = (next, newer);
                        continue;
                    }
                    // Its streams finish, and lanes that were offered on it are joined, while the next link is opened.
                    *at_once = fault.code == Code::Displaced && self.paths[*at].is_trying();
                    return (fault, Duration::from_millis(away.return_after_ms.min(600_000)));
                }
            }
        }
    }

    async fn turn(&self, at: usize, link: &Link) -> Turn {
        let config = &self.config;
        let dialling = Dialling {
            target: &config.relays[at],
            credentials: &config.credentials,
            instance: config.instance,
            timers: &config.timers,
            scope: &self.scope,
            entry: self.paths[at].entry(),
        };
        let path = &self.paths[at];
        let mut better = Box::pin(async {
            match link.transport {
                Transport::Tls => path.upgrade(&dialling).await,
                Transport::Quic => std::future::pending().await,
            }
        });
        tokio::select! {
            newer = &mut better => Turn::Better(Box::new(newer)),
            fault = path.watch(link) => Turn::Silent(fault),
            fault = link.mux.closed() => Turn::Lost(fault),
            away = link.mux.peer_going_away() => {
                // The relay lets a link go as soon as the next one is open, before we have tried that one.
                if away.fault.code == Code::Displaced
                    && path.is_trying()
                    && let Ok(newer) = timeout(HANDOVER, better).await
                {
                    return Turn::Better(Box::new(newer));
                }
                Turn::Away(away)
            }
        }
    }

    /// A link with another relay of the list, those first that the draining one names. Addresses that are not in the
    /// list are not believed.
    async fn move_on(&self, from: usize, away: &GoAway) -> Option<(usize, Link)> {
        if away.fault.code == Code::Displaced {
            return None;
        }
        let named = |at: &usize| {
            let relay = &self.config.relays[*at];
            !away.alternatives.iter().any(|a| relay.addresses.contains(a) || *a == relay.name)
        };
        let mut others: Vec<usize> = (0..self.config.relays.len()).filter(|at| *at != from).collect();
        others.sort_by_key(named);
        for at in others {
            match self.open(at).await {
                Ok(link) => return Some((at, link)),
                Err(error) => warn!(relay = self.config.relays[at].name, %error, "cannot move to this relay"),
            }
        }
        None
    }

    /// Makes a link the current one.
    fn show(&self, at: usize, link: &Link) -> Shown {
        let (transport, reason) = (link.transport.label(), link.reason.label());
        info!(relay = self.config.relays[at].name, session = %link.accept.session, transport, reason, "link is up");
        metrics::counter!("hedgerow_link_transport_changes_total", "transport" => transport, "reason" => reason)
            .increment(1);
        let mut links = self.links.lock();
        links.retain(|link| !link.mux.is_closed());
        links.insert(0, link.clone());
        drop(links);
        self.status.send_replace(UplinkStatus::Up(link.clone()));
        Shown::new(transport)
    }

    /// Nothing new goes over the link; it closes when its streams have ended and lanes offered on it must have been
    /// joined, or when the drain's time is over.
    fn let_go(&self, link: Link, fault: Fault) {
        self.links.lock().retain(|l| l.accept.session != link.accept.session);
        link.mux.go_away(&GoAway { fault: fault.clone(), return_after_ms: 0, alternatives: Vec::new() });
        let (least, limit) = (self.config.timers.lane_wait, self.config.timers.drain);
        self.scope.spawn(async move {
            let _ = timeout(least, link.mux.closed()).await;
            let idle = async {
                while link.mux.open_streams() > 0 && !link.mux.is_closed() {
                    sleep(LOOK).await;
                }
            };
            // What has not ended by then is cut, and said so.
            let _ = timeout(limit, idle).await;
            link.mux.close(fault);
        });
    }
}

/// Counts the link among those of its transport for as long as it is the current one.
struct Shown(metrics::Gauge);

impl Shown {
    fn new(transport: &'static str) -> Self {
        let gauge = metrics::gauge!("hedgerow_link_transport", "transport" => transport);
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
