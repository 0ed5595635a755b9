//! `tunnel --idle`: many tunnels at once on which nothing happens. One relay and one node, real processes each in its
//! namespace; devices are simulated, for ten thousand TUN devices would measure the kernel.
//!
//! Links are opened first and looked at alone: what the relay holds for them is no tunnel's. Then every device brings up
//! its tunnel, and nothing happens for a while. At the end all must be up still, and a sample must be answered from inside.

mod crowd;
mod device;
mod site;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

use super::ground::{self, INSIDE};
use crate::figures::Figures;
use crate::link::Transport;
use crate::progress::Progress;
use crowd::Order;
use site::Site;

/// Devices that open a link or bring up a tunnel at the same time.
const AT_ONCE: usize = 32;
/// Tunnels through which the inside is asked at the end.
const SAMPLE: usize = 100;
/// Most that fit: the node's pool of addresses, and the ports of the devices' one address.
const MOST: usize = 20_000;
/// Of relay and node: what processes are called in the table.
const ROLES: [&str; 3] = ["relay", "node", "simulated device"];

/// How much is measured.
pub(super) struct Amount {
    pub(super) count: usize,
    pub(super) by: Transport,
    /// Before memory is read: longer than the interval of pings of links (15 s), after which they let go of buffers.
    pub(super) settle: Duration,
    /// After the last tunnel: longer than a tunnel goes without packets before it counts as idle (60 s).
    pub(super) calm: Duration,
    /// While CPU is measured.
    pub(super) idle: Duration,
}

/// The devices' process.
pub(crate) fn idlers(place: &Path) -> anyhow::Result<()> {
    crowd::serve(place)
}

/// Measures once.
pub(super) fn measure(binary: &Path, amount: &Amount, figures: &mut Figures) -> anyhow::Result<()> {
    let &Amount { count, by, settle, calm, .. } = amount;
    if !(1..=MOST).contains(&count) {
        bail!("1 to {MOST} tunnels");
    }
    ground::guard()?;
    let mut progress = Progress::new(6);
    progress.next("starting relay and node");
    let mut site = Site::start(binary, count)?;
    site.wait_for_links(1)?;
    std::thread::sleep(settle.min(Duration::from_secs(2)));
    let empty = site.memory()?;

    progress.next(&format!("{count} links"));
    let (processes, cpu) = (site.processes(), site.cpu());
    let at_once = AT_ONCE.div_ceil(processes);
    let share = |n: usize| count / processes + usize::from(n < count % processes);
    let (links, seconds) = site.order(|n| Order::Links { by, count: share(n), at_once }).context("opening links")?;
    figures.add(0, "all", "links opened", "1/s", links.done as f64 / seconds);
    raised(figures, "link", count, site.cpu().since(cpu));
    site.wait_for_links(count + 1)?;

    progress.next("idle links");
    std::thread::sleep(settle);
    let cpu = site.cpu();
    std::thread::sleep(amount.idle);
    idle(figures, "links", site.cpu().since(cpu));
    let linked = site.memory()?;

    progress.next(&format!("{count} tunnels"));
    let cpu = site.cpu();
    let (tunnels, seconds) = site.order(|_| Order::Tunnels { at_once }).context("bringing up tunnels")?;
    let at = |part: f64| tunnels.took.get((tunnels.took.len() as f64 * part) as usize).copied().unwrap_or(f64::NAN);
    figures.add(0, "all", "tunnels brought up", "1/s", tunnels.done as f64 / seconds);
    figures.add(0, "all", "all tunnels brought up", "s", seconds);
    figures.add(0, "all", "a tunnel brought up: p50", "ms", at(0.5));
    figures.add(0, "all", "a tunnel brought up: p99", "ms", at(0.99));
    figures.add(0, "all", "attempts that failed, links and tunnels", "", (links.again + tunnels.again) as f64);
    raised(figures, "tunnel", count, site.cpu().since(cpu));
    site.wait_until_all_are_up(count)?;

    progress.next("idle tunnels");
    std::thread::sleep(calm);
    let (cpu, passed) = (site.cpu(), site.relay_metric(PASSED)?);
    std::thread::sleep(amount.idle);
    let (since, passed) = (site.cpu().since(cpu), site.relay_metric(PASSED)? - passed);
    idle(figures, "tunnels", since);
    figures.add(0, "relay", "idle tunnels: datagrams passed on", "1/s", passed / since.0);
    let tunnelled = site.memory()?;

    for (role, ((empty, linked), tunnelled)) in ROLES.into_iter().zip(empty.into_iter().zip(linked).zip(tunnelled)) {
        let each = |bytes: f64| bytes / count as f64;
        figures.add(0, role, "memory of a link", "bytes", each(linked - empty));
        figures.add(0, role, "memory of a tunnel beyond its link", "bytes", each(tunnelled - linked));
        figures.add(0, role, "memory, all", "MiB", tunnelled / f64::from(1 << 20));
    }

    progress.next("all up still, and answered from inside");
    site.wait_until_all_are_up(count).context("after a time of idleness")?;
    let (to, sample): (Ipv4Addr, _) = (INSIDE.parse()?, SAMPLE.min(count).div_ceil(processes));
    let answered = site.order(|_| Order::Ping { to, count: sample }).context("asking the inside")?.0;
    figures.add(0, "all", "answered from inside", "tunnels", answered.done as f64);
    figures.add(0, "all", "up at the end", "tunnels", count as f64);
    progress.clear();
    Ok(())
}

/// Datagrams of tunnels, both ways.
const PASSED: &str = "hedgerow_relay_tunnel_datagrams_total";

/// CPU for each that was brought up.
fn raised(figures: &mut Figures, what: &str, count: usize, (_, cpu): (f64, [f64; 2])) {
    for (role, cpu) in ROLES.into_iter().zip(cpu) {
        figures.add(0, role, &format!("CPU of a {what} brought up"), "ms", cpu * 1e3 / count as f64);
    }
}

/// CPU while nothing happened.
fn idle(figures: &mut Figures, what: &str, (time, cpu): (f64, [f64; 2])) {
    for (role, cpu) in ROLES.into_iter().zip(cpu) {
        figures.add(0, role, &format!("idle {what}: CPU"), "% of a core", cpu / time * 100.0);
    }
}
