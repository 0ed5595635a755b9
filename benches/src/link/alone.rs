//! Registry and multiplexer alone, without sockets and tasks: a process of its own, so that its heap holds nothing else.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use hedgerow_relay::registry::{Facts, Load, Registry};
use hedgerow_runtime::clock;
use hedgerow_shared::limits::Timers;
use hedgerow_shared::session::{Mux, MuxConfig, Side};
use hedgerow_shared::wire::message::{Destination, Limits};
use hedgerow_shared::{EntityId, GroupName, InstanceId, Origin, Role, SessionId, TenantId, UnixTime};
use serde::{Deserialize, Serialize};

use super::place::TENANT;

/// Of the links in the registry, so many are nodes.
const NODES: usize = 100;
/// Look-ups of a route that are timed.
const PICKS: usize = 20_000;

/// What was found; `(subject, figure, unit, value)`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Found(pub(super) Vec<(String, String, String, f64)>);

impl Found {
    fn add(&mut self, subject: &str, figure: &str, unit: &str, value: f64) {
        self.0.push((subject.to_owned(), figure.to_owned(), unit.to_owned(), value));
    }
}

/// Prints what it found as one line of JSON.
#[expect(clippy::print_stdout, reason = "the bench reads it")]
pub(super) fn run(count: usize) -> anyhow::Result<()> {
    let mut found = Found::default();
    registry(count, &mut found)?;
    multiplexers(count, &mut found)?;
    println!("{}", serde_json::to_string(&found)?);
    Ok(())
}

/// A link that is nothing but a number of streams.
struct Busy(usize);

impl Load for Busy {
    fn load(&self) -> usize {
        self.0
    }
}

fn registry(count: usize, found: &mut Found) -> anyhow::Result<()> {
    let tenant: TenantId = TENANT.parse()?;
    let all: Vec<Facts> = (0..count).map(|n| facts(&tenant, n)).collect();
    let keys: Vec<SessionId> = all.iter().map(|f| f.id).collect();
    // The facts themselves belong to the registry once they are in it.
    let facts_bytes = heap_of(|| Ok(all.clone()))?.1;
    let registry = Registry::default();
    let begun = Instant::now();
    let (_, bytes) = heap_of(|| {
        for (n, facts) in all.into_iter().enumerate() {
            registry.insert(facts, Busy(n % 7), clock::monotonic());
        }
        Ok(())
    })?;
    let inserted = begun.elapsed();
    let to = Destination { tenant: tenant.clone(), origin: Origin::Proxy, group: None, instance: None, node: None };
    let begun = Instant::now();
    for _ in 0..PICKS {
        if registry.pick(&to, &[]).is_none() {
            bail!("the registry knows no node");
        }
    }
    let picked = begun.elapsed();
    let begun = Instant::now();
    let listed = registry.select(Some(&tenant), |_| true).len();
    let selected = begun.elapsed();
    let begun = Instant::now();
    let gone = keys.iter().filter(|id| registry.remove(&tenant, **id, clock::monotonic())).count();
    let removed = begun.elapsed();
    if (listed, gone, registry.len()) != (count, count, 0) {
        bail!("the registry lost links");
    }
    let each = |time: Duration, of: usize| time.as_secs_f64() * 1e9 / of as f64;
    let held = (bytes + facts_bytes) as f64 / count as f64;
    found.add("registry", "alone: memory a link", "bytes", held);
    found.add("registry", "alone: insert", "ns", each(inserted, count));
    found.add("registry", "alone: pick one of 100 nodes", "ns", each(picked, PICKS));
    found.add("registry", "alone: list all, a link", "ns", each(selected, count));
    found.add("registry", "alone: remove", "ns", each(removed, count));
    Ok(())
}

fn facts(tenant: &TenantId, n: usize) -> Facts {
    let node = n < NODES;
    Facts {
        id: SessionId::from_random(clock::random()),
        tenant: tenant.clone(),
        role: if node { Role::Node } else { Role::Device },
        entity: Some(EntityId::from_random(clock::random())),
        serial: Some(u128::from_be_bytes(clock::random()).to_string()),
        not_after: Some(UnixTime(u64::MAX)),
        issuer: None,
        group: node.then(GroupName::default),
        origins: if node { vec![Origin::Proxy] } else { vec![] },
        instance: InstanceId::from_random(clock::random()),
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        probe: None,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        since: clock::now(),
    }
}

fn multiplexers(count: usize, found: &mut Found) -> anyhow::Result<()> {
    let timers = Timers::default();
    let make = |side| Mux::new(side, MuxConfig::link(Limits::default(), Limits::default(), timers), Duration::ZERO);
    let begun = Instant::now();
    let (mut relays, bytes) = heap_of(|| Ok((0..count).map(|_| make(Side::Acceptor)).collect::<Vec<_>>()))?;
    let made = begun.elapsed();
    let mut dialler = make(Side::Dialler);
    // A round: silence for the interval, a ping to the other end, its answer. One other end serves all, for it keeps
    // nothing of a ping.
    let mut now = Duration::ZERO;
    let mut busy = Duration::ZERO;
    let mut round = || -> anyhow::Result<()> {
        now += timers.ping_interval;
        for relay in &mut relays {
            let begun = Instant::now();
            relay.handle_timeout(now).map_err(|f| anyhow::anyhow!("{f}"))?;
            let ping = sent(relay);
            busy += begun.elapsed();
            dialler.handle(ping, now).map_err(|f| anyhow::anyhow!("{f}"))?;
            let pong = sent(&mut dialler);
            if pong.is_empty() {
                bail!("a ping was not answered");
            }
            let begun = Instant::now();
            relay.handle(pong, now).map_err(|f| anyhow::anyhow!("{f}"))?;
            while relay.poll_event().is_some() {}
            busy += begun.elapsed();
        }
        Ok(())
    };
    let ((), grown) = heap_of(|| round().and_then(|()| round()))?;
    let held = bytes as f64 / count as f64;
    found.add("multiplexer", "alone: memory a link", "bytes", held);
    found.add("multiplexer", "alone: memory that two rounds of pings add", "bytes", grown as f64 / count as f64);
    found.add("multiplexer", "alone: insert", "ns", made.as_secs_f64() * 1e9 / count as f64);
    found.add("multiplexer", "alone: round of a ping", "ns", busy.as_secs_f64() * 1e9 / (2 * count) as f64);
    Ok(())
}

fn sent(mux: &mut Mux) -> Bytes {
    let mut bytes = Vec::new();
    mux.transmit(usize::MAX, |parts| parts.iter().for_each(|part| bytes.extend_from_slice(part)));
    bytes.into()
}

/// Runs something, and how many bytes more the heap holds after it, the allocator's own included.
fn heap_of<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, i64)> {
    let before = heap()?;
    let made = work()?;
    Ok((made, heap()? - before))
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn heap() -> anyhow::Result<i64> {
    // SAFETY: mallinfo2 reads the allocator's own counts.
    let info = unsafe { libc::mallinfo2() };
    i64::try_from(info.uordblks + info.hblkhd).context("a heap of that size")
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn heap() -> anyhow::Result<i64> {
    bail!("how much the heap holds is known of glibc only")
}
