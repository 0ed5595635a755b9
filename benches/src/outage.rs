//! How long a steady stream is without data when something that carries it fails: the relay, a lane, a link.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::figures::Figures;
use crate::process::is_gone;
use crate::product::Product;
use crate::steady::Steady;
use crate::subjects::Subject;

/// What a relay gives streams to end when it drains, seconds. A steady stream does not end, so a drain takes all of it.
pub(crate) const DRAIN_SECONDS: u64 = 1;
/// Longer than a session waits for something to carry it.
const PATIENCE: Duration = Duration::from_secs(40);

/// What happens to a carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Nothing: what the machine itself does to a steady stream.
    Nothing,
    /// The lane is cut at the relay.
    LaneCut,
    /// The device's link is cut at the relay.
    LinkCut,
    /// The relay is killed, and the demo starts it again.
    RelayKilled,
    /// The relay is asked to end, drains, and the demo starts it again.
    RelayDrained,
}

impl Event {
    pub(crate) const ALL: [Self; 5] =
        [Self::Nothing, Self::LaneCut, Self::LinkCut, Self::RelayKilled, Self::RelayDrained];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing happens",
            Self::LaneCut => "lane cut",
            Self::LinkCut => "link cut",
            Self::RelayKilled => "relay killed",
            Self::RelayDrained => "relay drained",
        }
    }

    /// A session on a link has no lane; one on a lane does not notice that its link is cut.
    fn concerns(self, carrier: &str) -> bool {
        match self {
            Self::LaneCut => carrier == "lane",
            Self::LinkCut => carrier != "lane",
            Self::Nothing | Self::RelayKilled | Self::RelayDrained => true,
        }
    }
}

/// Lets one thing happen to a steady stream through a subject and adds what it cost.
pub(crate) fn measure(subject: &Subject, event: Event, round: usize, figures: &mut Figures) -> anyhow::Result<()> {
    let Some(product) = &subject.product else { return Ok(()) };
    if !event.concerns(subject.name) {
        return Ok(());
    }
    let steady = Steady::open(subject.way)?;
    steady.settle(300)?;
    runs_by(product, subject.name)?;
    steady.settle(50)?;
    let before = product.changes()?;
    let away = match event {
        Event::Nothing => None,
        Event::LaneCut => product.cut("lane", |s| s["kind"] == "lane").map(|()| None)?,
        Event::LinkCut => {
            product.cut("link of a device", |s| s["kind"] == "link" && s["role"] == "device").map(|()| None)?
        }
        Event::RelayKilled => Some(restart(product, libc::SIGKILL)?),
        Event::RelayDrained => Some(restart(product, libc::SIGTERM)?),
    };
    if event == Event::Nothing {
        steady.more(700)?;
    } else {
        let deadline = Instant::now() + PATIENCE;
        while product.changes()? <= before {
            if Instant::now() > deadline {
                bail!("{}: the session was not resumed", event.name());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        steady.more(300)?;
    }
    let gap = steady.longest();
    steady.end()?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let figure = format!("without data: {}", event.name());
    figures.add(round, subject.name, &figure, "ms", ms(gap));
    if let Some(away) = away {
        figures.add(round, subject.name, &format!("{figure}: relay away"), "ms", ms(away));
        figures.add(round, subject.name, &format!("{figure}: less that"), "ms", ms(gap) - ms(away));
    }
    Ok(())
}

/// Waits until the session runs by what is to be measured: after a failure it may have to come back to it.
fn runs_by(product: &Product, carrier: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = product.carrier()?;
        if now == carrier {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the session runs by {now:?} and does not come to run by {carrier}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends the relay by a signal; returns for how long no relay was there to connect to, from the end of its process.
fn restart(product: &Product, signal: i32) -> anyhow::Result<Duration> {
    let pid = product.relay_pid()?;
    // SAFETY: kill has no memory effects.
    if unsafe { libc::kill(pid, signal) } != 0 {
        return Err(std::io::Error::last_os_error()).context("the relay's process");
    }
    let deadline = Instant::now() + PATIENCE;
    let wait = |what: &str, ready: &dyn Fn() -> bool| {
        while !ready() {
            if Instant::now() > deadline {
                bail!("the relay {what}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Instant::now())
    };
    // A process of several threads can be gone in name while its sockets are still open.
    let gone = wait("does not end", &|| is_gone(pid) && !product.relay_answers())?;
    let back = wait("does not come back", &|| product.relay_answers())?;
    Ok(back - gone)
}
