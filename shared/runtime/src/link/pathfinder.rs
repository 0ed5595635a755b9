//! Which transport to a relay: QUIC where UDP passes, TLS where it does not.
//!
//! *At the start* both race. QUIC has a short head start; TLS goes as far as its own hand-shake and waits there, so that
//! the relay never sees two links for one. QUIC has won when its link is open **and** a packet of full size came back:
//! networks that let a hand-shake through and nothing else exist. It has lost when TLS is ready and QUIC's hand-shake
//! is not, or when its time is over.
//!
//! *Later* `watch` looks at a QUIC link: packets that go out while none comes in are the first sign, a probe that is not
//! answered the proof.
//!
//! *On QUIC alone*, when that is what the configuration wants, an attempt is given up after about a second while nothing
//! comes back and the relay answered lately: QUIC's own pauses between its first packets double, and a relay that has
//! been restarted would wait for the next of them. A port that refuses (ICMP) is silent to us, and treated as such.
//!
//! *On TLS* QUIC is tried again after a while, each time after twice as long, with jitter.

use std::time::Duration;

use hedgerow_shared::InstanceId;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::debug;

use super::dialler::Dialling;
use super::twins::Entry;
use super::{Channel, Choice, Credentials, Link, LinkError, Reason};
use crate::clock::{jitter, random};
use crate::dial::{Reached, RelayTarget};
use crate::quic;
use crate::scope::Scope;

/// How long QUIC is alone.
const HEAD_START: Duration = Duration::from_millis(150);
/// QUIC's time for everything, probe included, when TLS could have the link: the rest of 3 s is TLS's.
const QUIC_LIMIT: Duration = Duration::from_millis(2200);
/// How often a QUIC link is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// Silence after sending, on which a probe goes out.
const SUSPICIOUS: Duration = Duration::from_millis(500);
/// How long the probe may stay unanswered, at least; slow paths get four round trips.
const PROBE: Duration = Duration::from_millis(1000);
/// The longest a probe may stay unanswered.
const LONGEST_PROBE: Duration = Duration::from_secs(2);
/// So many probes in a row may fail while small packets pass.
const STRIKES: u32 = 3;
/// How long the first answer may take when the relay answered lately, at most, or so many of its round trips.
const ANSWER: Duration = Duration::from_millis(1250);
/// See `ANSWER`.
const ANSWER_TRIPS: u32 = 8;
/// The longest pause before QUIC is tried again is this many times the first.
const LONGEST_RETRY: u32 = 64;

/// Whether UDP can reach the relay at all: not through a proxy, which carries TCP only.
#[must_use]
pub fn udp_can_reach(target: &RelayTarget) -> bool {
    !target.is_proxied()
}

/// What is remembered of the way to one relay.
#[derive(Debug)]
pub struct Pathfinder {
    choice: Choice,
    /// The first pause before QUIC is tried again.
    first: Duration,
    /// How long after its last answer a relay is expected back.
    lately: Duration,
    entry: Option<Entry>,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// Attempts that failed in a row.
    failures: u32,
    /// UDP is not tried before.
    until: Option<Instant>,
    /// UDP died under a link, and no link was opened since.
    died: bool,
    /// QUIC is being tried beside a TLS link: when it works, the relay lets the old link go before we know.
    trying: bool,
    /// When the last QUIC link ended, and the round trip it had.
    answered: Option<(Instant, Duration)>,
}

impl Pathfinder {
    /// Nothing is remembered yet. QUIC is tried again after `timers.udp_retry` at first.
    #[must_use]
    pub fn new(choice: Choice, timers: &Timers) -> Self {
        Self { choice, first: timers.udp_retry, lately: timers.resume, entry: None, memory: Mutex::default() }
    }

    /// The same, for this entry of a list.
    pub(super) fn of(self, entry: Entry) -> Self {
        Self { entry: Some(entry), ..self }
    }

    pub(super) fn entry(&self) -> Option<&Entry> {
        self.entry.as_ref()
    }

    /// Opens a link over the better transport. Cancel safe: dropping the future closes what was begun.
    ///
    /// # Errors
    /// The relay's refusal, or what failed.
    pub async fn connect(
        &self,
        target: &RelayTarget,
        credentials: &Credentials,
        instance: InstanceId,
        timers: &Timers,
        scope: &Scope,
    ) -> Result<Link, LinkError> {
        let dialling = Dialling { target, credentials, instance, timers, scope, entry: self.entry() };
        let tls_because = |reason| async move {
            let stream = dialling.tls().await?;
            let link = dialling.link_over_tls(stream).await?;
            Ok(Link { reason, ..link })
        };
        let dialling = Dialling { target, credentials, instance, timers, scope, entry: self.entry() };
        match self.choice {
            Choice::Tls => return tls_because(Reason::Asked).await,
            Choice::Quic => {
                let patience = self.patience(timers.handshake, Instant::now());
                return timeout(timers.handshake, probed(&dialling, None, patience)).await.map_err(|_| silent())?;
            }
            Choice::Auto => {}
        }
        if !udp_can_reach(target) {
            return tls_because(Reason::Proxy).await;
        }
        let (died, resting) = {
            let memory = self.memory.lock();
            (memory.died, memory.until.is_some_and(|until| Instant::now() < until))
        };
        if died || resting {
            let link = tls_because(if died { Reason::UdpDied } else { Reason::UdpRemembered }).await?;
            self.memory.lock().died = false;
            return Ok(link);
        }
        let link = race(&dialling).await?;
        match link.mux {
            Channel::Quic(_) => self.passed(),
            Channel::Framed(_) => self.failed(),
        }
        Ok(link)
    }

    /// Tries QUIC alone, while a TLS link is up: waits for its time, and returns when a probed link is open.
    pub(super) async fn upgrade(&self, dialling: &Dialling<'_>) -> Link {
        if self.choice != Choice::Auto || !udp_can_reach(dialling.target) {
            return std::future::pending().await;
        }
        loop {
            let until = self.memory.lock().until.unwrap_or_else(Instant::now);
            sleep_until(until).await;
            self.memory.lock().trying = true;
            match timeout(QUIC_LIMIT, probed(dialling, None, QUIC_LIMIT)).await {
                Ok(Ok(link)) => {
                    self.passed();
                    return Link { reason: Reason::UdpBack, ..link };
                }
                Ok(Err(error)) => debug!(%error, "UDP does not pass yet"),
                Err(_) => debug!("UDP does not pass yet: no answer"),
            }
            self.failed();
        }
    }

    /// Whether QUIC is being tried beside a TLS link.
    pub(super) fn is_trying(&self) -> bool {
        self.memory.lock().trying
    }

    /// Completes when UDP has stopped passing under a QUIC link; never on another link. Cancel safe.
    pub async fn watch(&self, link: &Link) -> Fault {
        let Channel::Quic(mux) = &link.mux else { return std::future::pending().await };
        let fault = dead_path(mux).await;
        if self.choice == Choice::Auto {
            self.failed();
            self.memory.lock().died = true;
        }
        fault
    }

    /// A link has ended: whoever was there a moment ago is expected back.
    pub(super) fn ended(&self, link: &Link) {
        if let Channel::Quic(mux) = &link.mux {
            self.memory.lock().answered = Some((Instant::now(), mux.stats().rtt.unwrap_or_default()));
        }
    }

    /// How long QUIC's first answer may take, at most `limit`. With jitter, so that a crowd does not ask in step.
    fn patience(&self, limit: Duration, now: Instant) -> Duration {
        let lately = |at: Instant| now.saturating_duration_since(at) < self.lately;
        match self.memory.lock().answered {
            Some((at, rtt)) if lately(at) => jitter(ANSWER.max(rtt * ANSWER_TRIPS)).min(limit),
            _ => limit,
        }
    }

    /// UDP passes: nothing bad is remembered.
    fn passed(&self) {
        *self.memory.lock() = Memory::default();
    }

    fn failed(&self) {
        let mut memory = self.memory.lock();
        let most = self.first.saturating_mul(1u32 << memory.failures.min(16)).min(self.first * LONGEST_RETRY);
        // Between half and the whole: a crowd behind one firewall comes back spread out.
        let dice = u64::from_be_bytes(random()) as f64 / u64::MAX as f64;
        memory.until = Some(Instant::now() + most.mul_f64(0.5 + dice / 2.0));
        memory.failures = memory.failures.saturating_add(1);
        memory.trying = false;
    }
}

/// A QUIC link on which a packet of full size came back. `shaken` is told when QUIC itself has answered, which may take
/// `patience`; the rest is bounded by the caller.
async fn probed(
    dialling: &Dialling<'_>,
    shaken: Option<&watch::Sender<bool>>,
    patience: Duration,
) -> Result<Link, LinkError> {
    let connected = timeout(patience, dialling.quic()).await.map_err(|_| silent())??;
    if let Some(shaken) = shaken {
        shaken.send_replace(true);
    }
    let link = dialling.link_over_quic(connected).await?;
    if let Channel::Quic(mux) = &link.mux
        && let Err(fault) = mux.probe(QUIC_LIMIT).await
    {
        link.mux.close(fault.clone());
        return Err(fault.into());
    }
    Ok(link)
}

fn silent() -> Fault {
    Fault::new(Code::TimedOut, "the relay does not answer over UDP")
}

async fn race(dialling: &Dialling<'_>) -> Result<Link, LinkError> {
    let shaken = watch::Sender::new(false);
    let mut quic = Box::pin(async {
        let link = timeout(QUIC_LIMIT, probed(dialling, Some(&shaken), QUIC_LIMIT))
            .await
            .map_err(|_| Fault::new(Code::TimedOut, "UDP does not pass"))??;
        Ok(Link { reason: Reason::Preferred, ..link })
    });
    let mut tls = Box::pin(async {
        sleep(HEAD_START).await;
        dialling.tls().await
    });
    let (won, ready) = tokio::select! {
        won = &mut quic => (won, None),
        ready = &mut tls => {
            // QUIC has answered: it may finish. And when TLS cannot be had, it is all there is.
            if *shaken.borrow() || ready.is_err() {
                (quic.await, Some(ready))
            } else {
                drop(quic);
                return fall_back(dialling, ready?).await;
            }
        }
    };
    match won {
        // What the relay says over one transport it says over the other.
        Ok(_) | Err(LinkError::Refused { .. } | LinkError::Twin(_)) => won,
        Err(LinkError::Failed(fault)) => {
            debug!(reason = %fault, "QUIC failed, taking TLS");
            let stream = match ready {
                Some(ready) => ready?,
                None => tls.await?,
            };
            fall_back(dialling, stream).await
        }
    }
}

async fn fall_back(dialling: &Dialling<'_>, stream: Reached) -> Result<Link, LinkError> {
    let link = dialling.link_over_tls(stream).await?;
    Ok(Link { reason: Reason::UdpDead, ..link })
}

/// Something was sent and nothing is acknowledged, then a probe stays without an answer.
async fn dead_path(mux: &quic::Mux) -> Fault {
    let (mut asked, mut answered) = mux.asked_and_answered();
    let mut silent_since: Option<Instant> = None;
    let mut strikes = 0;
    loop {
        sleep(LOOK).await;
        let now = mux.asked_and_answered();
        if now.1 != answered {
            ((asked, answered), silent_since) = (now, None);
            continue;
        }
        if now.0 == asked {
            continue;
        }
        let since = *silent_since.get_or_insert_with(Instant::now);
        let rtt = mux.stats().rtt.unwrap_or_default();
        if since.elapsed() < SUSPICIOUS.max(rtt * 2).min(PROBE) {
            continue;
        }
        match mux.probe(PROBE.max(rtt * 4).min(LONGEST_PROBE)).await {
            Ok(_) => strikes = 0,
            // Small packets pass: QUIC finds a smaller size by itself, unless nothing helps.
            Err(fault) if fault.code == Code::TimedOut && mux.asked_and_answered().1 != answered => {
                strikes += 1;
                if strikes == STRIKES {
                    return Fault::new(Code::Lost, "full-size packets stopped passing over UDP");
                }
            }
            Err(fault) if fault.code == Code::TimedOut => {
                return Fault::new(Code::Lost, "UDP stopped passing: the relay does not answer any more");
            }
            // The link has ended by itself.
            Err(_) => return std::future::pending().await,
        }
        ((asked, answered), silent_since) = (mux.asked_and_answered(), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quic_is_tried_again_after_pauses_that_double_and_differ() {
        let first = Duration::from_secs(30);
        let timers = Timers { udp_retry: first, ..Timers::default() };
        let pauses = |n: usize| {
            let finder = Pathfinder::new(Choice::Auto, &timers);
            (0..n).for_each(|_| finder.failed());
            let until = finder.memory.lock().until.unwrap();
            // A slow machine may have taken a moment.
            until - Instant::now() + Duration::from_secs(1)
        };
        for n in 1..10 {
            let most = first * (1 << (n - 1)).min(64);
            let pause = pauses(n);
            assert!(pause >= most / 2 && pause <= most + Duration::from_secs(1), "{n}: {pause:?}");
        }
        assert!((0..50).map(|_| pauses(1)).collect::<std::collections::BTreeSet<_>>().len() > 40);
    }

    #[test]
    fn an_attempt_is_given_up_early_only_where_somebody_answered_lately() {
        let (limit, now) = (Duration::from_secs(10), Instant::now());
        let after = |ago: u64, rtt: u64| {
            let finder = Pathfinder::new(Choice::Quic, &Timers::default());
            finder.memory.lock().answered = Some((now - Duration::from_secs(ago), Duration::from_millis(rtt)));
            finder.patience(limit, now)
        };
        assert_eq!(Pathfinder::new(Choice::Quic, &Timers::default()).patience(limit, now), limit, "never heard of");
        for _ in 0..50 {
            let near = after(5, 20);
            assert!(near >= ANSWER / 2 && near <= ANSWER, "{near:?}");
            assert!(after(5, 600) >= Duration::from_millis(2400), "a satellite takes its time");
            assert_eq!(after(5, 60_000), limit);
            assert_eq!(after(31, 20), limit);
        }
        assert!((0..50).map(|_| after(5, 20)).collect::<std::collections::BTreeSet<_>>().len() > 40);
    }
}
