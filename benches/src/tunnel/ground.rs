//! The ground of a subject: four network namespaces in a row, and what runs in them. It is the same for all subjects, so
//! that the packets of each cross as many wires.
//!
//! ```text
//!   client 10.71.11.2 ── 10.71.11.1 hop 10.71.2.1 ── 10.71.2.2 server 10.71.3.1 ── 10.71.3.2 inside (iperf3 -s)
//! ```

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

use crate::process::Process;

/// How long a step of a subject's start may take.
const LIMIT: Duration = Duration::from_secs(60);
/// The hop, as the client sees it.
pub(crate) const HOP: &str = "10.71.11.1";
/// The server, as client and hop see it.
pub(crate) const SERVER: &str = "10.71.2.2";
/// What is loaded.
pub(crate) const INSIDE: &str = "10.71.3.2";

/// One of the four namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Client,
    Hop,
    Server,
    Inside,
}

impl Place {
    const ALL: [Self; 4] = [Self::Client, Self::Hop, Self::Server, Self::Inside];

    fn letter(self) -> char {
        match self {
            Self::Client => 'c',
            Self::Hop => 'h',
            Self::Server => 's',
            Self::Inside => 'i',
        }
    }
}

/// See the module. Everything ends with it.
pub(crate) struct Ground {
    prefix: String,
    folder: TempDir,
    processes: Vec<Process>,
}

impl Ground {
    /// Namespaces with their wires, and what is loaded; nothing is forwarded yet.
    pub(crate) fn new(number: usize) -> anyhow::Result<Self> {
        let prefix = format!("{}{number}", own_prefix());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir()?;
        let mut ground = Self { prefix, folder, processes: Vec::new() };
        for place in Place::ALL {
            let name = ground.netns(place);
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
            // A tunnel may set name servers: not those of this machine.
            let own = Path::new("/etc/netns").join(&name);
            std::fs::create_dir_all(&own)?;
            std::fs::write(own.join("resolv.conf"), "nameserver 10.71.99.99\noptions timeout:1 attempts:1\n")?;
        }
        ground.connect((Place::Client, "eth0", "10.71.11.2"), (Place::Hop, "toclient", HOP))?;
        ground.connect((Place::Server, "eth0", SERVER), (Place::Hop, "toserver", "10.71.2.1"))?;
        ground.connect((Place::Inside, "eth0", INSIDE), (Place::Server, "in0", "10.71.3.1"))?;
        for (place, via) in [(Place::Client, HOP), (Place::Server, "10.71.2.1"), (Place::Inside, "10.71.3.1")] {
            ip(&format!("-n {} route add default via {via}", ground.netns(place)))?;
        }
        ground.start(Place::Inside, "iperf3 -s", "iperf3")?;
        Ok(ground)
    }

    fn connect(&self, a: (Place, &str, &str), b: (Place, &str, &str)) -> anyhow::Result<()> {
        let (at_a, at_b) = (self.netns(a.0), self.netns(b.0));
        ip(&format!("link add name {} netns {at_a} type veth peer name {} netns {at_b}", a.1, b.1))?;
        for (place, device, address) in [a, b] {
            let name = self.netns(place);
            ip(&format!("-n {name} addr add {address}/24 dev {device}"))?;
            ip(&format!("-n {name} link set {device} up"))?;
        }
        Ok(())
    }

    /// The kernel forwards in this place.
    pub(crate) fn route_at(&self, place: Place) -> anyhow::Result<()> {
        self.say(place, "sysctl -qw net.ipv4.ip_forward=1").map(drop)
    }

    /// The name of a namespace.
    pub(crate) fn netns(&self, place: Place) -> String {
        format!("{}{}", self.prefix, place.letter())
    }

    /// The name of a device for a place, that no other subject and no other run has: some have sockets named after them.
    pub(crate) fn device(&self, place: Place) -> String {
        self.netns(place)
    }

    /// A file or folder of this subject.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a process that was started under this name wrote.
    pub(crate) fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// A command in a place.
    pub(crate) fn at(&self, place: Place, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns(place), program]);
        command
    }

    /// Words as a command in a place.
    pub(crate) fn words(&self, place: Place, words: &str) -> Command {
        let mut words = words.split_whitespace();
        let mut command = self.at(place, words.next().unwrap_or("true"));
        command.args(words);
        command
    }

    /// Runs words in a place; they must succeed. What they print.
    pub(crate) fn say(&self, place: Place, words: &str) -> anyhow::Result<String> {
        run(&mut self.words(place, words))
    }

    /// Starts words in a place, for as long as the ground lasts. The process: `ip` becomes what it is to run.
    pub(crate) fn start(&mut self, place: Place, words: &str, name: &str) -> anyhow::Result<u32> {
        let mut command = self.words(place, words);
        self.keep(&mut command, name)
    }

    /// Starts a command, for as long as the ground lasts.
    pub(crate) fn keep(&mut self, command: &mut Command, name: &str) -> anyhow::Result<u32> {
        let process = Process::start(command, &self.path(&format!("{name}.log")))?;
        let pid = process.pid();
        self.processes.push(process);
        Ok(pid)
    }

    /// Waits until `ready` says so; fails with the logs of `names`.
    pub(crate) fn wait(&self, what: &str, names: &[&str], mut ready: impl FnMut() -> bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !ready() {
            if begun.elapsed() > LIMIT {
                let logs: String = names.iter().map(|n| format!("\n{n}:\n{}", self.log(n))).collect();
                bail!("{what}: not within {} s{logs}", LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Waits until the client reaches what is to be loaded.
    pub(crate) fn wait_for_inside(&self, names: &[&str]) -> anyhow::Result<()> {
        self.wait("no answer from inside", names, || {
            self.say(Place::Client, &format!("ping -n -c 1 -W 1 {INSIDE}")).is_ok()
        })
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // Clients first: they say good-bye to servers.
        while let Some(process) = self.processes.pop() {
            drop(process);
        }
        for place in Place::ALL {
            remove(&self.netns(place));
        }
    }
}

/// Runs a command to its end; it must succeed. What it prints.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let (said, wrong) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    if !status.success() {
        bail!("{command:?} ended with {status}\n{said}{wrong}");
    }
    Ok(said.into_owned())
}

/// Runs `ip` with words.
pub(crate) fn ip(words: &str) -> anyhow::Result<()> {
    run(Command::new("ip").args(words.split_whitespace())).map(drop)
}

/// Names of namespaces and folders begin so, then the process id.
const PREFIX: &str = "hgb";

fn own_prefix() -> String {
    format!("{PREFIX}{}x", std::process::id())
}

/// Whose run left a name behind, if it is a name of ours.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('x')?.0.parse().ok()
}

/// Takes a namespace away, with whatever still runs there: some servers leave children behind.
fn remove(netns: &str) {
    let pids = Command::new("ip").args(["netns", "pids", netns]).output().map(|o| o.stdout).unwrap_or_default();
    for pid in String::from_utf8_lossy(&pids).split_whitespace().filter_map(|pid| pid.parse().ok()) {
        // SAFETY: kill has no memory effects; the process is in a namespace that this bench has made.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let _ = Command::new("ip").args(["netns", "del", netns]).output();
    let _ = std::fs::remove_dir_all(Path::new("/etc/netns").join(netns));
    let _ = std::fs::remove_file(Path::new("/var/run/wireguard").join(format!("{netns}.sock")));
}

/// Removes what runs of this bench that have ended left behind; with `own`, what this run has made too.
fn sweep(own: bool) {
    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let ended = |name: &String| {
        owner(name).is_some_and(|pid| match pid == std::process::id() {
            true => own,
            false => !Path::new(&format!("/proc/{pid}")).exists(),
        })
    };
    names(Path::new("/run/netns")).iter().filter(|n| ended(n)).for_each(|n| remove(n));
    let folder = std::env::temp_dir();
    names(&folder).iter().filter(|n| ended(n)).for_each(|n| {
        let _ = std::fs::remove_dir_all(folder.join(n));
    });
}

/// Tidies up after runs that were killed, and after this one when it is told to end (Ctrl-C, SIGTERM). Processes end with
/// this one in any case.
pub(crate) fn guard() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    sweep(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        sweep(true);
        std::process::exit(130);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_whose_they_are_and_fit_a_network_device() {
        assert_eq!(
            ["hgb123x4c", "hgb77x0", "hgbx1", "eth0", "hg12x0d1"].map(owner),
            [Some(123), Some(77), None, None, None]
        );
        assert!(format!("{PREFIX}{}x{}c", 4_194_304, 9).len() < libc::IFNAMSIZ);
    }
}
