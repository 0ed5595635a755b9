//! The load tool of `link`: a process of its own that opens links and lanes as it is told, one order a line.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::future::try_join_all;
use hedgerow_runtime::clock;
use hedgerow_runtime::dial::RelayTarget;
use hedgerow_runtime::link::{self, Credentials, Link};
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls::RelayRoots;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::{InstanceId, Role, TenantId};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::Transport;
use super::lanes::Lanes;
use super::place::{Described, RELAY};
use super::source::Source;
use crate::process::raise_descriptors;
use crate::tenant::Tenant;

/// Holders that one client of a rate has: the relay may still be busy with a link of one when the next comes.
const HOLDERS: usize = 8;
/// How long the end of a link may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the load tool can be told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// Open so many links more and keep them.
    Hold { transport: Transport, count: usize, at_once: usize },
    /// Open and close links for a time, at most so many clients at once.
    Rate { transport: Transport, resumed: bool, time: Duration, at_once: usize },
    /// Join so many lanes more and keep them; the first order opens the links for it.
    Lanes { count: usize },
}

/// What came of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Links or lanes.
    pub(super) done: usize,
    pub(super) seconds: f64,
    /// Until a link stood.
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) fault: Option<String>,
}

/// Takes orders from standard input until it ends.
pub(super) fn serve(file: &Path) -> anyhow::Result<()> {
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let crowd = Arc::new(Crowd::new(&serde_json::from_slice(&std::fs::read(file)?)?)?);
    let (mut held, mut lanes) = (Vec::new(), None);
    for line in std::io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let done = runtime.block_on(async {
            match order {
                Order::Hold { transport, count, at_once } => crowd.hold(transport, count, at_once, &mut held).await,
                Order::Rate { transport, resumed, time, at_once } => {
                    crowd.rate(transport, resumed, time, at_once).await
                }
                Order::Lanes { count } => Lanes::join(&crowd, &mut lanes, count).await,
            }
        });
        let answer = done.unwrap_or_else(|e| Answer { fault: Some(format!("{e:#}")), ..Answer::default() });
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        out.flush()?;
    }
    Ok(())
}

/// Devices and nodes of one tenant.
pub(super) struct Crowd {
    pub(super) address: String,
    roots: RelayRoots,
    tenant: Tenant,
    timers: Timers,
    pub(super) scope: Scope,
    /// For the next source address.
    next: AtomicUsize,
}

impl Crowd {
    fn new(place: &Described) -> anyhow::Result<Self> {
        Ok(Self {
            address: place.address.clone(),
            roots: place.roots()?,
            tenant: place.tenant()?,
            timers: Timers::default(),
            scope: Scope::new(),
            next: AtomicUsize::new(0),
        })
    }

    pub(super) fn source(&self) -> Source {
        Source::nth(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// A relay that was never dialled: TLS to it begins from nothing.
    fn target(&self) -> RelayTarget {
        RelayTarget::new(vec![self.address.clone()], RELAY, self.roots.clone()).over(self.source().network())
    }

    pub(super) fn tenant(&self) -> &TenantId {
        &self.tenant.id
    }

    pub(super) fn roots(&self) -> &RelayRoots {
        &self.roots
    }

    /// A certificate for somebody new.
    fn holder(&self, role: Role) -> anyhow::Result<Credentials> {
        Ok(self.tenant.holder(role)?.credentials())
    }

    async fn open(&self, by: Transport, to: &RelayTarget, credentials: &Credentials) -> anyhow::Result<Link> {
        let instance = InstanceId::from_random(clock::random());
        let opened = match by {
            Transport::Tls => link::connect(to, credentials, instance, &self.timers, &self.scope).await,
            Transport::Quic => link::connect_quic(to, credentials, instance, &self.timers, &self.scope).await,
        };
        opened.with_context(|| format!("a link over {by}"))
    }

    /// One link of somebody new.
    pub(super) async fn link(&self, by: Transport, role: Role) -> anyhow::Result<Link> {
        self.open(by, &self.target(), &self.holder(role)?).await
    }

    async fn hold(
        self: &Arc<Self>,
        by: Transport,
        count: usize,
        at_once: usize,
        held: &mut Vec<Link>,
    ) -> anyhow::Result<Answer> {
        let begun = Instant::now();
        let left = Arc::new(AtomicUsize::new(count));
        let opened = self.clients(at_once.min(count), |crowd| {
            let left = left.clone();
            async move {
                let mut links = Vec::new();
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                    links.push(crowd.link(by, Role::Device).await?);
                }
                Ok(links)
            }
        });
        let before = held.len();
        held.extend(opened.await?.into_iter().flatten());
        Ok(Answer { done: held.len() - before, seconds: begun.elapsed().as_secs_f64(), ..Answer::default() })
    }

    async fn rate(
        self: &Arc<Self>,
        by: Transport,
        resumed: bool,
        time: Duration,
        at_once: usize,
    ) -> anyhow::Result<Answer> {
        // Certificates, and sessions to resume, are there before the time begins.
        let ready = self.clients(at_once, |crowd| async move {
            let target = crowd.target();
            let holders: Vec<_> = (0..HOLDERS).map(|_| crowd.holder(Role::Device)).collect::<Result<_, _>>()?;
            if resumed {
                close(crowd.open(by, &target, &holders[0]).await?).await?;
            }
            Ok((target, holders))
        });
        let mut ready = ready.await?;
        let begun = Instant::now();
        let deadline = begun + time;
        let times = self.clients(at_once, |crowd| {
            let ready = ready.pop();
            async move {
                let (target, holders) = ready.context("one for each client")?;
                let mut times = Vec::new();
                for holder in holders.iter().cycle().take_while(|_| Instant::now() < deadline) {
                    let target = if resumed { target.clone() } else { crowd.target() };
                    let dialled = Instant::now();
                    let link = crowd.open(by, &target, holder).await?;
                    times.push(dialled.elapsed());
                    close(link).await?;
                }
                Ok(times)
            }
        });
        let mut times: Vec<Duration> = times.await?.into_iter().flatten().collect();
        let seconds = begun.elapsed().as_secs_f64();
        times.sort_unstable();
        let at = |part: f64| times.get((times.len() as f64 * part) as usize).map_or(0.0, |t| t.as_secs_f64() * 1e3);
        Ok(Answer { done: times.len(), seconds, p50_ms: at(0.5), p99_ms: at(0.99), fault: None })
    }

    /// Runs as many clients at once, each as a task of its own, and collects what came of them.
    async fn clients<T, F>(
        self: &Arc<Self>,
        count: usize,
        mut client: impl FnMut(Arc<Self>) -> F,
    ) -> anyhow::Result<Vec<T>>
    where
        T: Send + 'static,
        F: Future<Output = anyhow::Result<T>> + Send + 'static,
    {
        let all = (0..count).map(|_| {
            let (sender, done) = oneshot::channel();
            let running = client(self.clone());
            self.scope.spawn(async move {
                // Nobody listens any more when another client has failed.
                let _ = sender.send(running.await);
            });
            async move { done.await.context("a client ended without a word")? }
        });
        try_join_all(all.collect::<Vec<_>>()).await
    }
}

async fn close(link: Link) -> anyhow::Result<()> {
    link.mux.close(Fault::new(Code::Ok, "done"));
    if tokio::time::timeout(PATIENCE, link.mux.closed()).await.is_err() {
        bail!("a link did not end");
    }
    Ok(())
}
