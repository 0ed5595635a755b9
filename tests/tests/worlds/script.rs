//! What befalls a world: a plan drawn from its seed.
//!
//! In a *gentle* world every trouble is one that sessions are promised to outlive (relays that restart, lanes and links
//! that are cut, short partitions, other addresses, lost datagrams), with time to mend between two of them: no stream
//! may break. In a *rough* one everything happens at any time: streams may break, and must say why.

use std::net::IpAddr;

use hedgerow_runtime::link::Choice;
use tokio::time::{Duration, sleep};

use super::cast::{CoreActor, DeviceActor, NodeActor, RelayActor};
use super::dice::Dice;
use super::fixture::{self, Fixture};
use super::net::{HostId, Net, Weather};
use super::trace;
use super::work::Model;

/// After so long everybody who was told of a drain is at another relay,
const TOLD: Duration = Duration::from_secs(3);
/// and has a connection in this time.
const MOVED: Duration = Duration::from_secs(5);
/// After so long without a relay everybody is at another one.
const AWAY: Duration = Duration::from_secs(15);

/// What a world is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) gentle: bool,
    pub(crate) relays: usize,
    pub(crate) nodes: usize,
    pub(crate) devices: usize,
    pub(crate) transport: Choice,
    pub(crate) weather: Weather,
    /// Troubles that befall it.
    pub(crate) troubles: u64,
    pub(crate) connections: u64,
    /// Whether the network lets lanes through; links always pass.
    pub(crate) lanes: bool,
    /// One connection carries so much that it gets a lane of its own.
    pub(crate) bulk: bool,
    /// The first relay of everybody's list is not there before the calm: refused, or silent.
    pub(crate) second_only: Option<Missing>,
}

/// How a relay that is not there shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    Refused,
    Silent,
}

impl Plan {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let count = |dice: &mut Dice, most: usize| usize::try_from(dice.between(1, most as u64)).unwrap();
        let (delay, loss) = (dice.between(1, 60), if dice.one_in(2) { 0 } else { dice.below(40) });
        let weather = Weather {
            delay,
            jitter: dice.below(20),
            loss,
            doubled: if dice.one_in(2) { 0 } else { dice.below(50) },
            mtu: match dice.below(9) {
                0..3 => size(dice, (1200, 1400)),
                3 => size(dice, (600, 1199)),
                _ => 1500,
            },
            udp: !dice.one_in(3),
            window: usize::try_from(dice.between(4, 64)).unwrap(),
            write: usize::try_from(dice.between(8_000, 64_000)).unwrap(),
        };
        let relays = count(dice, fixture::RELAYS);
        let second_only = match dice.below(8) {
            0 if relays == 2 => Some(Missing::Refused),
            1 if relays == 2 => Some(Missing::Silent),
            _ => None,
        };
        Self {
            gentle: dice.one_in(2),
            relays,
            nodes: count(dice, fixture::NODES),
            devices: count(dice, fixture::DEVICES),
            transport: if dice.one_in(3) { Choice::Auto } else { Choice::Tls },
            weather,
            troubles: dice.between(1, 6),
            connections: dice.between(1, 4),
            lanes: !dice.one_in(6),
            bulk: dice.one_in(8),
            second_only,
        }
    }
}

/// Everybody in a world.
pub(crate) struct Cast {
    pub(crate) net: Net,
    pub(crate) relays: Vec<RelayActor>,
    pub(crate) nodes: Vec<NodeActor>,
    pub(crate) devices: Vec<DeviceActor>,
    pub(crate) core: CoreActor,
    /// Another process with the certificate of the first node.
    pub(crate) twin: NodeActor,
    addresses: u8,
}

impl Cast {
    pub(crate) fn new(
        net: Net,
        relays: Vec<RelayActor>,
        nodes: Vec<NodeActor>,
        devices: Vec<DeviceActor>,
        core: CoreActor,
        twin: NodeActor,
    ) -> Self {
        Self { net, relays, nodes, devices, core, twin, addresses: 0 }
    }

    fn new_address(&mut self) -> IpAddr {
        self.addresses += 1;
        IpAddr::from([10, 7, 0, self.addresses])
    }

    /// Relays that run.
    pub(crate) fn up(&self) -> Vec<usize> {
        (0..self.relays.len()).filter(|n| self.relays[*n].run.is_some()).collect()
    }

    /// Everybody who dials relays.
    pub(crate) fn diallers(&self) -> Vec<HostId> {
        let mut hosts: Vec<HostId> = self.nodes.iter().map(|n| n.host).collect();
        hosts.extend(self.devices.iter().map(|d| d.host));
        hosts.extend([self.core.host, self.twin.host]);
        hosts
    }

    fn some_host(&self, dice: &mut Dice) -> HostId {
        let mut hosts: Vec<HostId> = self.nodes.iter().map(|n| n.host).collect();
        hosts.extend(self.devices.iter().map(|d| d.host));
        hosts.push(self.core.host);
        pick(dice, &hosts)
    }
}

fn pick<T: Copy>(dice: &mut Dice, from: &[T]) -> T {
    from[index(dice, from.len())]
}

fn index(dice: &mut Dice, length: usize) -> usize {
    usize::try_from(dice.below(length as u64)).unwrap()
}

fn size(dice: &mut Dice, (least, most): (u64, u64)) -> usize {
    usize::try_from(dice.between(least, most)).unwrap()
}

fn millis(dice: &mut Dice, least: u64, most: u64) -> Duration {
    Duration::from_millis(dice.between(least, most))
}

/// What is promised to be outlived, by its number below.
const GENTLE: [u64; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 15, 16, 17, 18, 19];
/// How many there are.
const ALL: u64 = 20;
/// The core is heard at every relay that runs in this time: it may just have been away.
const HEARD: Duration = Duration::from_secs(45);

/// One trouble, from its beginning to its end.
pub(crate) async fn trouble(cast: &mut Cast, plan: &Plan, fixture: &'static Fixture, dice: &mut Dice, model: &Model) {
    model.disturb();
    let up = cast.up();
    let relay = pick(dice, &up);
    let at_relay = cast.relays[relay].host;
    let kind = if plan.gentle { pick(dice, &GENTLE) } else { dice.below(ALL) };
    match kind {
        0 | 1 => {
            let down = if plan.gentle { millis(dice, 100, 6_000) } else { millis(dice, 100, 45_000) };
            say(&format!("{} crashes for {down:?}", cast.net.name(at_relay)));
            cast.relays[relay].crash();
            sleep(down).await;
            cast.relays[relay].start(fixture);
        }
        2 => {
            say(&format!("{} drains and restarts", cast.net.name(at_relay)));
            drain(cast, relay, up.len() > 1, plan, dice, model).await;
            let down = millis(dice, 100, 2_000);
            sleep(down).await;
            cast.relays[relay].start(fixture);
        }
        3 | 4 => {
            let host = cast.some_host(dice);
            let cut = cast.net.reset_one(at_relay, host);
            say(&format!("a connection of {} is reset: {cut}", cast.net.name(host)));
        }
        5 => {
            let device = index(dice, cast.devices.len());
            let host = cast.devices[device].host;
            let apart = if plan.gentle { millis(dice, 100, 8_000) } else { millis(dice, 100, 60_000) };
            say(&format!("{} cannot reach {} for {apart:?}", cast.net.name(host), cast.net.name(at_relay)));
            part_for(cast, at_relay, host, apart).await;
        }
        6 => {
            let node = index(dice, cast.nodes.len());
            let host = cast.nodes[node].host;
            let apart = if plan.gentle { millis(dice, 100, 1_500) } else { millis(dice, 100, 60_000) };
            say(&format!("{} cannot reach {} for {apart:?}", cast.net.name(host), cast.net.name(at_relay)));
            part_for(cast, at_relay, host, apart).await;
        }
        7 => {
            let (device, address) = (index(dice, cast.devices.len()), cast.new_address());
            say(&format!("{} has another address", cast.net.name(cast.devices[device].host)));
            cast.devices[device].readdress(address);
        }
        8 => {
            let udp = dice.one_in(2);
            say(&format!("UDP passes: {udp}"));
            cast.net.set_weather(|w| w.udp = udp);
        }
        9 => {
            let (node, down) = (index(dice, cast.nodes.len()), millis(dice, 0, 10_000));
            say(&format!("{} crashes for {down:?}", cast.net.name(cast.nodes[node].host)));
            cast.nodes[node].crash();
            sleep(down).await;
            cast.nodes[node].start(fixture);
        }
        10 => {
            let (node, address) = (index(dice, cast.nodes.len()), cast.new_address());
            say(&format!("{} has another address", cast.net.name(cast.nodes[node].host)));
            cast.nodes[node].readdress(address);
        }
        11 => {
            let (first, down) = (millis(dice, 0, 500), millis(dice, 100, 20_000));
            say(&format!("every relay crashes, for {down:?}"));
            for relay in &up {
                cast.relays[*relay].crash();
                sleep(first).await;
            }
            sleep(down).await;
            for relay in &up {
                cast.relays[*relay].start(fixture);
            }
        }
        12 => {
            let beside = millis(dice, 500, 20_000);
            say(&format!("another process has {}'s certificate, for {beside:?}", cast.net.name(cast.nodes[0].host)));
            cast.twin.start(fixture);
            sleep(beside).await;
            cast.twin.crash();
        }
        13 => {
            let down = millis(dice, 0, 10_000);
            say(&format!("the core crashes for {down:?}"));
            cast.core.crash();
            cast.core.decide(None);
            sleep(down).await;
            cast.core.start(fixture);
        }
        14 => {
            let apart = millis(dice, 100, 60_000);
            say(&format!("the core cannot reach {} for {apart:?}", cast.net.name(at_relay)));
            part_for(cast, at_relay, cast.core.host, apart).await;
        }
        15 => {
            let (wait, down) = (millis(dice, 0, 500), millis(dice, 100, 2_000));
            say(&format!("{} drains, and a configuration is pushed", cast.net.name(at_relay)));
            let decided = cast.core.decided.clone();
            let push = async {
                sleep(wait).await;
                decided.send_modify(|decided| decided.version += 1);
            };
            tokio::join!(drain(cast, relay, up.len() > 1, plan, dice, model), push);
            sleep(down).await;
            cast.relays[relay].start(fixture);
        }
        16 => {
            let device = cast.devices.len() - 1;
            // A relay that is away comes back with what it knew, and nodes have no configuration of the core's here.
            let revoked = (device > 0 && plan.second_only.is_none()).then(|| fixture.devices[device].id);
            say(&format!(
                "the core revokes {}",
                revoked.map_or("nobody".into(), |_| cast.net.name(cast.devices[device].host))
            ));
            cast.core.decide(revoked);
            if heard(cast, fixture, model).await && revoked.is_some() {
                say("every relay knows");
                model.revoke(device);
            }
        }
        17 => {
            say(&format!("{} is away, and others serve: {}", cast.net.name(at_relay), up.len() > 1));
            if up.len() > 1 {
                cast.relays[relay].crash();
                sleep(AWAY).await;
                super::everybody_works(&cast.devices, super::FRESH, model, dice).await;
                cast.relays[relay].start(fixture);
            }
        }
        18 => {
            let mtu = size(dice, if plan.gentle { (1200, 1500) } else { (600, 1500) });
            say(&format!("datagrams of {mtu} bytes pass"));
            cast.net.set_weather(|w| w.mtu = mtu);
            if mtu < super::QUIC_NEEDS {
                model.narrow();
            }
        }
        _ => {
            let wait = millis(dice, 0, 6_000);
            say(&format!("UDP dies for everybody, and {wait:?} later what devices have over TCP"));
            cast.net.set_weather(|w| w.udp = false);
            sleep(wait).await;
            for device in &cast.devices {
                cast.net.reset_one(at_relay, device.host);
            }
        }
    }
    model.mend();
    say("mended");
}

/// A relay drains. Where another one stays, everybody is told, and at that one before this one is down.
async fn drain(cast: &mut Cast, relay: usize, others: bool, plan: &Plan, dice: &mut Dice, model: &Model) {
    let Cast { relays, devices, .. } = cast;
    let elsewhere = async {
        if others && plan.gentle {
            sleep(TOLD).await;
            super::everybody_works(devices, MOVED, model, dice).await;
        }
    };
    model.alone(!others);
    tokio::join!(relays[relay].drain(), elsewhere);
    model.alone(false);
}

/// Waits until every relay that runs has what the core has decided.
pub(crate) async fn heard(cast: &Cast, fixture: &Fixture, model: &Model) -> bool {
    let known = async {
        while !cast.core.is_heard(fixture) {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let heard = tokio::time::timeout(HEARD, known).await.is_ok();
    if !heard {
        model.wrong("the core's configuration does not reach every relay".into());
    }
    heard
}

async fn part_for(cast: &Cast, a: HostId, b: HostId, time: Duration) {
    cast.net.part(a, b);
    sleep(time).await;
    cast.net.heal(a, b);
}

fn say(text: &str) {
    trace::line(&format!("---- {text}"));
}
