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
            mtu: usize::try_from(if dice.one_in(3) { dice.between(1200, 1400) } else { 1500 }).unwrap(),
            udp: !dice.one_in(3),
            window: usize::try_from(dice.between(4, 64)).unwrap(),
            write: usize::try_from(dice.between(8_000, 64_000)).unwrap(),
        };
        Self {
            gentle: dice.one_in(2),
            relays: count(dice, fixture::RELAYS),
            nodes: count(dice, fixture::NODES),
            devices: count(dice, fixture::DEVICES),
            transport: if dice.one_in(3) { Choice::Auto } else { Choice::Tls },
            weather,
            troubles: dice.between(1, 6),
            connections: dice.between(1, 4),
            lanes: !dice.one_in(6),
            bulk: dice.one_in(8),
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

fn millis(dice: &mut Dice, least: u64, most: u64) -> Duration {
    Duration::from_millis(dice.between(least, most))
}

/// One trouble, from its beginning to its end.
pub(crate) async fn trouble(cast: &mut Cast, plan: &Plan, fixture: &'static Fixture, dice: &mut Dice, model: &Model) {
    model.disturb();
    let relay = index(dice, cast.relays.len());
    let at_relay = cast.relays[relay].host;
    let kinds = if plan.gentle { 9 } else { 14 };
    match dice.below(kinds) {
        0 | 1 => {
            let down = if plan.gentle { millis(dice, 100, 6_000) } else { millis(dice, 100, 45_000) };
            say(&format!("{} crashes for {down:?}", cast.net.name(at_relay)));
            cast.relays[relay].crash();
            sleep(down).await;
            cast.relays[relay].start(fixture);
        }
        2 => {
            say(&format!("{} drains and restarts", cast.net.name(at_relay)));
            cast.relays[relay].drain().await;
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
            for relay in &mut cast.relays {
                relay.crash();
                sleep(first).await;
            }
            sleep(down).await;
            for relay in &mut cast.relays {
                relay.start(fixture);
            }
        }
        12 => {
            let beside = millis(dice, 500, 20_000);
            say(&format!("another process has {}'s certificate, for {beside:?}", cast.net.name(cast.nodes[0].host)));
            cast.twin.start(fixture);
            sleep(beside).await;
            cast.twin.crash();
        }
        _ => {
            let down = millis(dice, 0, 10_000);
            say(&format!("the core crashes for {down:?}"));
            cast.core.crash();
            sleep(down).await;
            cast.core.start(fixture);
        }
    }
    model.mend();
    say("mended");
}

async fn part_for(cast: &Cast, a: HostId, b: HostId, time: Duration) {
    cast.net.part(a, b);
    sleep(time).await;
    cast.net.heal(a, b);
}

fn say(text: &str) {
    trace::line(&format!("---- {text}"));
}
