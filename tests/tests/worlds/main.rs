//! Row N09: worlds from seeds. Nodes, devices, the core and relays run their own code, TLS included, over a modelled
//! network in virtual time, against a model of what was promised: it arrives once and in order, or the stream says why
//! not. The same seed gives the same trace, line by line.
//!
//! One world, with its trace: `HEDGEROW_SEED=42 cargo test -p hedgerow-tests --test worlds n09_what -- --nocapture`. Without a
//! seed: 1,000 worlds (`HEDGEROW_WORLDS` for another number), and 9,000 more in `tests/run --long`.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]
#![allow(clippy::print_stderr, reason = "seeds and figures are for whoever runs it")]

mod apart;
mod cast;
mod dice;
mod fixture;
mod net;
mod one_length;
mod script;
mod trace;
mod work;

use std::net::IpAddr;
use std::sync::Arc;

use hedgerow_runtime::link::Transport;
use hedgerow_shared::Role;
use hedgerow_shared::fault::Code;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep, timeout};

use cast::{CoreActor, DeviceActor, NodeActor, RelayActor, Running};
use dice::Dice;
use net::Net;
use script::{Cast, Missing, Plan};
use work::{Ending, Intranet, Model, Order, Seen, connection};

/// Worlds in an ordinary run.
const WORLDS: u64 = 1_000;
/// Of these so many are run in a second process too.
const TWICE: u64 = 60;
/// Everything mends in this time: sessions that nobody resumes have ended, backoff has come round, and what is large has come by
/// the slowest network.
const CALM: Duration = Duration::from_secs(150);
/// Nobody waits any more: one of two processes with one certificate is sent away for 60 s, and up to half as much again.
const SETTLED: Duration = Duration::from_secs(110);
/// QUIC's smallest packets: where these do not pass, no link may be over it.
const QUIC_NEEDS: usize = 1_200;
/// The most connections that one host asks another one for within a second.
const MOST_DIALS: usize = 60;
/// What it takes to find out that a link over QUIC carries small packets only: an end-to-end hand-shake, a probe, and a
/// relay of the list that is not there.
const NARROW: Duration = Duration::from_secs(23);
/// A new connection in a mended world.
const FRESH: Duration = Duration::from_secs(20);

/// What came of a world.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct Outcome {
    trace: Vec<String>,
    wrong: Vec<String>,
    /// Whole, broken and refused connections.
    counts: (usize, usize, usize),
    /// The longest that a connection took to open where sessions outlive everything, seconds.
    slowest: f64,
    /// The most connections that one asked another for within a second.
    busiest: usize,
    /// Links over QUIC at the beginning.
    quic: usize,
}

/// Runs a world.
fn run(seed: u64) -> Outcome {
    // Made before the fork, once.
    fixture::get();
    let outcome = apart::run(move || {
        dice::seed_system(seed);
        let lived = std::panic::catch_unwind(|| in_virtual_time(seed));
        let outcome = lived.unwrap_or_else(|_| {
            let wrong = vec!["panicked; the trace ends there".to_owned()];
            Outcome { trace: trace::take(), wrong, ..Outcome::default() }
        });
        serde_json::to_vec(&outcome).unwrap()
    });
    let outcome = outcome.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    outcome.unwrap_or_else(|| Outcome { wrong: vec!["the process of the world died".into()], ..Outcome::default() })
}

fn in_virtual_time(seed: u64) -> Outcome {
    let fixture = fixture::get();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let _guard = trace::subscribe();
    let (wrong, counts, slowest, busiest, quic) = runtime.block_on(async {
        trace::begin();
        let model = Model::default();
        let (gentle, busiest) = live(seed, fixture, &model).await;
        let slowest = if gentle { model.slowest().as_secs_f64() } else { 0.0 };
        let seen = model.seen();
        let whole = seen.values().filter(|s| s.device_end == Some(Ending::Whole)).count();
        let broken = seen.values().filter(|s| matches!(s.device_end, Some(Ending::Broken(_)))).count();
        (model.faults(), (whole, broken, seen.len() - whole - broken), slowest, busiest, model.quic())
    });
    Outcome { trace: trace::take(), wrong, counts, slowest, busiest, quic }
}

/// Runs worlds on as many threads as there are processors; `each` sees them in order.
fn run_all(seeds: std::ops::Range<u64>, mut each: impl FnMut(u64, Outcome)) {
    let workers = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|threads| {
        let (seeds, mut lanes) = (&seeds, Vec::new());
        for worker in 0..workers {
            let (sender, receiver) = std::sync::mpsc::sync_channel(16);
            lanes.push(receiver);
            threads.spawn(move || {
                for seed in (seeds.start + worker..seeds.end).step_by(usize::try_from(workers).unwrap()) {
                    if sender.send(run(seed)).is_err() {
                        return;
                    }
                }
            });
        }
        for seed in seeds.clone() {
            let lane = usize::try_from((seed - seeds.start) % workers).unwrap();
            each(seed, lanes[lane].recv().unwrap());
        }
    });
}

/// One world; whether it was gentle, and the most connections asked for within a second.
async fn live(seed: u64, fixture: &'static fixture::Fixture, model: &Model) -> (bool, usize) {
    let mut dice = Dice::new(seed);
    let plan = Plan::draw(&mut dice);
    trace::line(&format!("{plan:?}"));
    let mut cast = cast_for(&plan, &mut dice, model);
    begin(&mut cast, &plan, fixture, model, &mut dice).await;

    let mut work = JoinSet::new();
    for device in 0..cast.devices.len() {
        for n in 0..plan.connections {
            let is_bulk = plan.bulk && device == 0 && n == 0;
            let mut size = |most| u32::try_from(dice.below(most)).unwrap();
            let (up, down, pace, wait) = (size(200_000), size(200_000), size(2_000), size(20_000));
            let order = Order { id: model.next_id(), up, down: if is_bulk { 6_000_000 } else { down }, pace };
            order_one(&mut work, &cast, device, order, wait, &mut dice, model);
        }
    }
    for _ in 0..plan.troubles {
        let between = if plan.gentle { (15_000, 30_000) } else { (0, 15_000) };
        sleep(Duration::from_millis(dice.between(between.0, between.1))).await;
        if dice.one_in(2) {
            // Small ones, in every state that a cut can find them in.
            let device = usize::try_from(dice.below(cast.devices.len() as u64)).unwrap();
            for _ in 0..dice.between(4, 16) {
                let mut size = |most| u32::try_from(dice.below(most)).unwrap();
                let (up, down, wait) = (size(400), size(400), size(10 * plan.weather.delay));
                let order = Order { id: model.next_id(), up, down, pace: 0 };
                order_one(&mut work, &cast, device, order, wait, &mut dice, model);
            }
            sleep(Duration::from_millis(dice.below(8 * plan.weather.delay))).await;
        }
        script::trouble(&mut cast, &plan, fixture, &mut dice, model).await;
    }
    trace::line("---- calm");
    if plan.second_only.is_some() {
        for host in cast.diallers() {
            cast.net.heal(cast.relays[0].host, host);
        }
        cast.relays[0].start(fixture);
    }
    let calm = Instant::now();
    let ended = timeout(CALM, async { while work.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        let open = model.seen().into_iter().filter(|(_, s)| s.device_end.is_none() && s.refused.is_none());
        model.wrong(format!("connections that neither end nor break: {:?}", open.collect::<Vec<_>>()));
    }
    tokio::time::sleep_until(calm + SETTLED).await;
    script::heard(&cast, fixture, model).await;
    everybody_works(&cast.devices, FRESH, model, &mut dice).await;
    judge(&plan, model);
    nothing_is_left(&cast, fixture, model).await;
    (plan.gentle, cast.net.busiest())
}

/// Everybody starts, and finds what is there.
async fn begin(cast: &mut Cast, plan: &Plan, fixture: &'static fixture::Fixture, model: &Model, dice: &mut Dice) {
    if plan.second_only == Some(Missing::Silent) {
        for host in cast.diallers() {
            cast.net.part(cast.relays[0].host, host);
        }
    }
    for relay in cast.relays.iter_mut().skip(usize::from(plan.second_only.is_some())) {
        relay.start(fixture);
    }
    cast.core.start(fixture);
    for node in &mut cast.nodes {
        node.start(fixture);
    }
    for device in &mut cast.devices {
        device.start(fixture);
    }
    model.mend();
    sleep(Duration::from_secs(3)).await;
    if plan.second_only.is_some() {
        // The first of the list may take as long as a connection takes.
        sleep(Duration::from_secs(12)).await;
        everybody_works(&cast.devices, FRESH, model, dice).await;
    }
    let quic = over_quic(cast);
    if plan.weather.mtu < QUIC_NEEDS && quic > 0 {
        model.wrong(format!("{quic} links over QUIC where no more than {} bytes pass", plan.weather.mtu));
    }
    model.count_quic(quic);
}

/// Links over QUIC, as the relays have them.
fn over_quic(cast: &Cast) -> usize {
    let running = cast.relays.iter().filter_map(|actor| actor.run.as_ref());
    let links = running.flat_map(|run| run.relay.registry.select(None, |_| true));
    links.filter(|l| l.handle.transport() == Transport::Quic).count()
}

fn order_one(
    work: &mut JoinSet<()>,
    cast: &Cast,
    device: usize,
    order: Order,
    wait: u32,
    dice: &mut Dice,
    model: &Model,
) {
    let agent = cast.devices[device].run.as_ref().unwrap().0.clone();
    let (dice, model) = (dice.fork(), model.clone());
    work.spawn(async move {
        sleep(Duration::from_millis(wait.into())).await;
        connection(agent, device, model, order, dice).await;
    });
}

fn cast_for(plan: &Plan, dice: &mut Dice, model: &Model) -> Cast {
    let net = Net::new(dice.fork(), plan.weather);
    let address = |kind: u8, n: usize| IpAddr::from([10, 1, kind, u8::try_from(n + 1).unwrap()]);
    let servers = Arc::new(Intranet { model: model.clone(), dice: Mutex::new(dice.fork()) });
    let node =
        |n: usize, name: &str, kind| NodeActor::new(&net, n, name, address(kind, n), plan.transport, servers.clone());
    let running = Running::default();
    Cast::new(
        net.clone(),
        (0..plan.relays).map(|n| RelayActor::new(&net, n, plan.lanes, &running)).collect(),
        (0..plan.nodes).map(|n| node(n, &format!("node-{n}"), 1)).collect(),
        (0..plan.devices)
            .map(|n| DeviceActor::new(&net, n, &format!("device-{n}"), address(2, n), plan.transport))
            .collect(),
        CoreActor::new(&net, address(3, 0), plan.transport, &running),
        node(0, "twin", 4),
    )
}

/// Every device has a connection through within a while, but for one that is revoked.
async fn everybody_works(devices: &[DeviceActor], limit: Duration, model: &Model, dice: &mut Dice) {
    let limit = if model.is_narrow() { limit + NARROW } else { limit };
    for (device, actor) in devices.iter().enumerate() {
        let order = Order { id: model.next_id(), up: 3_000, down: 3_000, pace: 0 };
        let since = Instant::now();
        let agent = actor.run.as_ref().unwrap().0.clone();
        let done = timeout(CALM, connection(agent, device, model.clone(), order, dice.fork())).await;
        let seen = model.seen().remove(&order.id).unwrap_or_default();
        if model.is_revoked(device) {
            if seen.device_end.is_some() || seen.refused.is_none() {
                model.wrong(format!("device {device} gets through although it is revoked: {seen:?}"));
            }
        } else if done.is_err() || since.elapsed() > limit || seen.device_end != Some(Ending::Whole) {
            model.wrong(format!("device {device} does not get through in {:?}: {seen:?}", since.elapsed()));
        }
    }
}

/// What the model says of every connection.
fn judge(plan: &Plan, model: &Model) {
    for (id, seen) in model.seen() {
        let Seen { up, down, device_end, server_end, .. } = &seen;
        if up.1 > up.0 || down.1 > down.0 {
            model.wrong(format!("connection {id}: more was read than written: {seen:?}"));
        }
        if model.is_revoked(seen.device) {
            continue;
        }
        let all_arrived = *device_end == Some(Ending::Whole) && up.1 == u64::from(seen.wanted.0);
        for (who, ending) in [("device", device_end), ("server", server_end)] {
            let Some(Ending::Broken(fault)) = ending else { continue };
            // A server may miss the last acknowledgement of what the device has.
            if plan.gentle && !(who == "server" && all_arrived) {
                model.wrong(format!("connection {id} broke at the {who} although sessions outlive all this: {fault}"));
            }
            if fault.text.is_empty() && fault.code != Code::ConnectionReset {
                model.wrong(format!("connection {id} broke at the {who} without a word: {fault:?}"));
            }
        }
    }
}

/// Streams, lanes and links that nobody has any more are gone everywhere.
async fn nothing_is_left(cast: &Cast, fixture: &fixture::Fixture, model: &Model) {
    // A core may have been asked something just now, for the first time since its link carries small packets only.
    sleep(Duration::from_secs(5) + if model.is_narrow() { NARROW } else { Duration::ZERO }).await;
    for node in &cast.nodes {
        let open = node.run.as_ref().unwrap().0.open_connections();
        if open > 0 {
            model.wrong(format!("{} holds {open} connections of nobody", cast.net.name(node.host)));
        }
    }
    if cast.net.busiest() > MOST_DIALS {
        model.wrong(format!("{} connections were asked for within a second by one host", cast.net.busiest()));
    }
    for actor in &cast.relays {
        let relay = &actor.run.as_ref().unwrap().relay;
        let live = relay.registry.select(None, |_| true);
        let fresh: Vec<_> = live.iter().filter(|l| !l.is_draining()).collect();
        for (at, one) in fresh.iter().enumerate() {
            let same = |other: &&&Arc<_>| {
                let other: &hedgerow_relay::registry::Live<_> = other;
                other.facts.instance == one.facts.instance
                    || (one.facts.entity.is_some() && other.facts.entity == one.facts.entity)
            };
            if fresh[at + 1..].iter().any(|other| same(&other)) {
                model.wrong(format!("{}: two live links of {:?}", cast.net.name(actor.host), one.facts));
            }
        }
        for (device, kit) in fixture.devices.iter().enumerate() {
            if model.is_revoked(device) && live.iter().any(|l| l.facts.entity == Some(kit.id)) {
                model.wrong(format!("{}: a link of device {device}, which is revoked", cast.net.name(actor.host)));
            }
        }
        let nodes = fresh.iter().filter(|l| l.facts.role == Role::Node).count();
        let cores = fresh.iter().filter(|l| l.facts.role == Role::Core).count();
        if nodes != cast.nodes.len() || cores != 1 {
            model.wrong(format!(
                "{}: {nodes} nodes of {} and {cores} cores are linked when all is well",
                cast.net.name(actor.host),
                cast.nodes.len()
            ));
        }
    }
}

fn replay(seed: u64) {
    let outcome = run(seed);
    for line in &outcome.trace {
        eprintln!("{line}");
    }
    eprintln!("{} lines, hash {}, {:?}", outcome.trace.len(), trace::hash(&outcome.trace), outcome.counts);
    assert!(outcome.wrong.is_empty(), "seed {seed}:\n{}", outcome.wrong.join("\n"));
}

/// Runs worlds, and names those that fail with the command that replays them.
fn many(seeds: std::ops::Range<u64>) {
    let (worlds, mut failed, mut lines, mut counts) = (seeds.end - seeds.start, Vec::new(), 0, (0, 0, 0));
    let (mut slowest, mut busiest, mut quic) = (0.0_f64, 0, 0);
    run_all(seeds, |seed, outcome| {
        (slowest, busiest, quic) = (slowest.max(outcome.slowest), busiest.max(outcome.busiest), quic + outcome.quic);
        lines += outcome.trace.len();
        counts = (counts.0 + outcome.counts.0, counts.1 + outcome.counts.1, counts.2 + outcome.counts.2);
        if !outcome.wrong.is_empty() {
            eprintln!(
                "seed {seed} fails; replay: HEDGEROW_SEED={seed} cargo test -p hedgerow-tests --test worlds n09_what -- --nocapture\n  {}",
                outcome.wrong.join("\n  ")
            );
            failed.push(seed);
        }
    });
    eprintln!(
        "opening took {slowest:.1} s at most where sessions outlive all; {busiest} connections in the busiest second"
    );
    eprintln!("{worlds} worlds, {lines} lines; connections whole, broken, refused: {counts:?}");
    assert!(failed.is_empty(), "{} of {worlds} worlds fail: seeds {failed:?}", failed.len());
    // A model that sees nothing proves nothing.
    assert!(worlds < 100 || (counts.0 > 100 && counts.1 > 10 && quic > 10), "{counts:?}, {quic}");
}

#[test]
fn n09_what_was_promised_arrives_once_and_in_order_or_the_stream_says_why_not() {
    if let Ok(seed) = std::env::var("HEDGEROW_SEED") {
        return replay(seed.parse().expect("HEDGEROW_SEED is a number"));
    }
    let worlds = std::env::var("HEDGEROW_WORLDS").map_or(WORLDS, |n| n.parse().expect("HEDGEROW_WORLDS is a number"));
    many(0..worlds);
}

#[test]
#[ignore = "long: nine thousand worlds more"]
fn n09_nine_thousand_worlds_more() {
    many(WORLDS..10 * WORLDS);
}

/// Where a process of its own puts its traces.
const TRACES: &str = "HEDGEROW_TRACES";

fn traces() -> Vec<Vec<String>> {
    let mut traces = Vec::new();
    run_all(0..TWICE, |_, outcome| traces.push(outcome.trace));
    traces
}

/// In two processes, each with keys, addresses in memory and hash maps of its own.
#[test]
fn n09_the_same_seed_gives_the_same_trace() {
    if let Some(path) = std::env::var_os(TRACES) {
        return std::fs::write(path, serde_json::to_vec(&traces()).unwrap()).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("traces");
    let mut other = std::process::Command::new(std::env::current_exe().unwrap());
    other.args(["--exact", "n09_the_same_seed_gives_the_same_trace"]).env(TRACES, &path);
    let mut other = other.stdout(std::process::Stdio::null()).spawn().unwrap();
    let ours = traces();
    assert!(other.wait().unwrap().success());
    let theirs: Vec<Vec<String>> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((ours.len(), theirs.len()), (TWICE as usize, TWICE as usize));
    let mut differ = Vec::new();
    for (seed, (once, again)) in ours.iter().zip(&theirs).enumerate() {
        assert!(once.len() > 20, "seed {seed} tells too little: {once:?}");
        if once != again {
            let first = once.iter().zip(again).position(|(a, b)| a != b).unwrap_or(once.len().min(again.len()));
            let (a, b) = (once.get(first), again.get(first));
            eprintln!("seed {seed}: line {first} of {}\n {a:?}\n {b:?}\n{}", once.len(), once[0]);
            differ.push(seed);
        }
    }
    assert!(differ.is_empty(), "these seeds gave two traces: {differ:?}");
    assert_ne!(ours[0], ours[1]);
}
