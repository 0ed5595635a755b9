//! Sessions outlive what carries them: an ssh session and a long download inside the device's proxy go on while relays
//! die, lanes are cut and links come and go. Every byte is checked; nothing is lost and nothing comes twice.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use hedgerow_tests::curl::curl;
use hedgerow_tests::nginx::{Nginx, sha256};
use hedgerow_tests::process::{signal, wait_until};
use hedgerow_tests::ssh::Sshd;
use hedgerow_tests::world::{Options, World};

const SOON: Duration = Duration::from_secs(60);

/// An ssh session that answers line by line: Debian's ssh through the device's proxy to Debian's sshd.
struct Shell {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    said: u32,
}

impl Shell {
    fn open(sshd: &Sshd, world: &World) -> Self {
        let proxy = format!("nc -X 5 -x {} %h %p", world.text("device.socks5"));
        let mut child = sshd
            .client()
            .args(["-o", &format!("ProxyCommand={proxy}"), "127.0.0.1", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, lines) = sync_channel(1024);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut shell = Self { child, input, lines, said: 0 };
        shell.answers();
        shell
    }

    /// Says a line that was not said before and waits until it comes back, as the next one.
    fn answers(&mut self) {
        self.said += 1;
        let line = format!("line {}", self.said);
        writeln!(self.input, "{line}").unwrap();
        assert_eq!(self.lines.recv_timeout(SOON).expect("the ssh session went silent"), line);
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A download that takes about ten seconds by itself.
struct Download {
    child: Child,
    file: PathBuf,
    expected: String,
    _folder: tempfile::TempDir,
}

const SIZE: u64 = 1 << 30;

impl Download {
    fn begin(nginx: &Nginx, world: &World) -> Self {
        let expected = nginx.put_file("long", SIZE);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("long");
        let child = curl()
            .args(["--max-time", "170", "--limit-rate", "90M", "--proxy", &world.socks(), "--output"])
            .arg(&file)
            .arg(format!("http://127.0.0.1:{}/long", nginx.port))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let this = Self { child, file, expected, _folder: folder };
        this.past(20 << 20);
        this
    }

    fn length(&self) -> u64 {
        self.file.metadata().map_or(0, |m| m.len())
    }

    /// Waits until so much has come.
    fn past(&self, length: u64) {
        wait_until(&format!("the download is past {length} bytes"), SOON, || self.length() >= length.min(SIZE));
    }

    /// Waits until more comes than is there now.
    fn goes_on(&self) {
        self.past(self.length() + (8 << 20));
    }

    fn arrives_unchanged(mut self) {
        let status = self.child.wait().unwrap();
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(status.success(), "{status}: {said}");
        assert_eq!(self.length(), SIZE);
        assert_eq!(sha256(&self.file), self.expected);
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Place {
    shell: Shell,
    download: Download,
    world: World,
    _sshd: Sshd,
    _nginx: Nginx,
}

fn at_work(options: Options) -> Place {
    let (sshd, nginx) = (Sshd::start(), Nginx::start("inside"));
    let allow = vec![format!("127.0.0.1:{}", sshd.port), format!("127.0.0.1:{}", nginx.port)];
    let world = World::start(&Options { allow, ..options });
    let shell = Shell::open(&sshd, &world);
    let download = Download::begin(&nginx, &world);
    Place { shell, download, world, _sshd: sshd, _nginx: nginx }
}

impl Place {
    fn path(&self) -> String {
        let status: serde_json::Value = serde_json::from_str(&self.world.get("device.admin", "/status")).unwrap();
        status["sessions"][0]["path"].as_str().unwrap_or_default().to_owned()
    }

    fn resumed(&self) -> f64 {
        self.world.metric("device.admin", "hedgerow_device_sessions_resumed_total", "")
    }

    /// Cuts every joined lane at the relay, as its operator can.
    fn cut_lanes(&self) -> usize {
        self.cut(|session| session["node_address"].is_string())
    }

    /// Cuts what the relay lists and `which` wants; how many that were.
    fn cut(&self, which: impl Fn(&serde_json::Value) -> bool) -> usize {
        let sessions = self.world.hedgerow(&["relay", "sessions"]);
        let wanted: Vec<_> = sessions.as_array().unwrap().iter().filter(|s| which(s)).collect();
        for session in &wanted {
            let _ = self.world.try_hedgerow(&["relay", "sessions", "cut", session["id"].as_str().unwrap()]);
        }
        wanted.len()
    }
}

#[test]
fn n09_ssh_and_a_download_survive_the_relay_killed_and_started_again_by_lane_and_by_link() {
    for without_lanes in [false, true] {
        let mut place = at_work(Options { without_lanes, ..Options::default() });
        assert_eq!(place.path(), if without_lanes { "link" } else { "lane" });
        let before = place.world.pid("relay");
        signal(before, libc::SIGKILL);
        wait_until("the relay runs again", Duration::from_secs(20), || place.world.pid("relay") != before);
        place.shell.answers();
        place.download.goes_on();
        assert!(place.resumed() >= 1.0);
        place.shell.answers();
        place.download.arrives_unchanged();
    }
}

#[test]
fn n09_ssh_and_a_download_survive_lanes_that_are_cut() {
    let mut place = at_work(Options::default());
    for _ in 0..5 {
        assert!(place.cut_lanes() > 0, "there is no lane to cut");
        place.shell.answers();
        place.download.goes_on();
    }
    assert!(place.resumed() >= 5.0);
    place.download.arrives_unchanged();
}

#[test]
fn n09_a_nodes_uplink_that_flaps_costs_no_connection() {
    for without_lanes in [false, true] {
        let mut place = at_work(Options { without_lanes, ..Options::default() });
        for _ in 0..4 {
            wait_until("the node's link is up", SOON, || place.cut(|s| s["role"] == "node") > 0);
            place.shell.answers();
            place.download.goes_on();
        }
        assert_eq!(place.resumed() >= 1.0, without_lanes, "a lane outlives the links of its ends");
        place.download.arrives_unchanged();
    }
}

#[test]
fn n09_past_its_time_a_session_ends_with_a_clear_error() {
    let sshd = Sshd::start();
    let allow = vec![format!("127.0.0.1:{}", sshd.port)];
    let world = World::start(&Options { allow, short_timers: true, ..Options::default() });
    let mut shell = Shell::open(&sshd, &world);
    // Timers are at 1/100, the wait for a resumption at its floor of 3 s.
    let relay = world.pid("relay");
    signal(relay, libc::SIGSTOP);
    let since = Instant::now();
    let ended = shell.child.wait().unwrap();
    signal(relay, libc::SIGCONT);
    assert!(!ended.success());
    let waited = since.elapsed();
    assert!(waited >= Duration::from_secs(3) && waited < Duration::from_secs(20), "{waited:?}");
    assert!(world.log("device").contains("was not resumed within 3 s"), "{}", world.log("device"));
    drop(shell);
}
