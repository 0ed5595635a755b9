//! `hedgerow demo --tunnel`, as its user starts it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hedgerow_tests::process::{Process, hedgerow, run, signal, try_run, wait_until};

const LIMIT: Duration = Duration::from_secs(120);

/// One test at a time: a demo that starts removes what another test's killed one has left.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What demos of one process have left: namespaces, and their folders of /etc.
fn left(pid: u32) -> Vec<String> {
    let entries = ["/run/netns", "/etc/netns"].map(|f| Path::new(f).read_dir().ok()).into_iter().flatten().flatten();
    let names = entries.map(|e| e.unwrap().path().display().to_string());
    names.filter(|n| n.contains(&format!("/hgdemo{pid}-"))).collect()
}

/// Runs a demo to its end: its process id, and what it said.
fn demo(more: &[&str]) -> (u32, Output) {
    let mut command = Command::new(hedgerow());
    command.args(["demo", "--tunnel"]).args(more).stdin(Stdio::null());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    (pid, child.wait_with_output().unwrap())
}

/// A demo that stays up.
fn staying(log: &Path) -> Process {
    let mut command = Command::new(hedgerow());
    // One that is killed leaves its folder, which goes with the test's.
    command.args(["demo", "--tunnel"]).env("TMPDIR", log.parent().unwrap());
    let mut demo = Process::start(&mut command, log);
    wait_until("the demo is up", LIMIT, || {
        let said = std::fs::read_to_string(log).unwrap();
        assert!(!demo.has_ended(), "{said}");
        said.contains("Ctrl-C ends it")
    });
    demo
}

#[test]
fn p14_the_demo_shows_the_tunnel() {
    let _turn = alone();
    let (pid, output) = demo(&["--check"]);
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{errors}");
    for line in [
        "without the tunnel the device cannot fetch http://10.83.3.2/",
        "the device's tunnel is up: 100.96.",
        "fetched http://10.83.3.2/ through the tunnel",
        "fetched http://intranet.hedgerow.demo/ through the tunnel; its name was asked inside",
        "fetched http://www.outside.demo/ past the tunnel; its name was asked outside",
        "pinged 10.83.3.2 through the tunnel: 5 of 5",
        "10.83.3.3, which no rule allows",
        "\ncheck: ok, ",
    ] {
        assert!(said.contains(line), "{line}:\n{said}");
    }
    assert_eq!((left(pid), errors.as_ref()), (Vec::new(), ""));
}

#[test]
fn p14_a_demo_of_the_tunnel_leaves_nothing_however_it_ends() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut first = staying(&folder.path().join("first"));
    let pid = first.pid();
    let page = ["netns", "exec", &format!("hgdemo{pid}-d"), "curl", "-fs", "http://intranet.hedgerow.demo/"];
    let page = run(Command::new("ip").args(page), LIMIT);
    assert!(String::from_utf8_lossy(&page.stdout).contains("Welcome behind the hedge"), "{page:?}");
    signal(pid, libc::SIGINT);
    wait_until("the demo has ended", LIMIT, || first.has_ended());
    assert_eq!(left(pid), Vec::<String>::new());

    // What a killed one leaves, the next one removes.
    let mut second = staying(&folder.path().join("second"));
    let killed = second.pid();
    signal(killed, libc::SIGKILL);
    wait_until("the demo has ended", LIMIT, || second.has_ended());
    assert_eq!(left(killed).len(), 8);
    let log = folder.path().join("third");
    let mut third = staying(&log);
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains(&format!("removed what a killed demo left: hgdemo{killed}-d")), "{said}");
    assert_eq!(left(killed), Vec::<String>::new());
    let pid = third.pid();
    signal(pid, libc::SIGTERM);
    wait_until("the demo has ended", LIMIT, || third.has_ended());
    assert_eq!(left(pid), Vec::<String>::new());
}

#[test]
fn p14_a_demo_that_cannot_have_a_tunnel_says_what_is_missing() {
    // The binary is where that user can read it, wherever the tests run.
    let folder = tempfile::Builder::new().permissions(open_to_all()).tempdir().unwrap();
    let binary = folder.path().join("hedgerow");
    let _ = std::fs::copy(hedgerow(), &binary).unwrap();
    let setpriv = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let mut command = Command::new("setpriv");
    command.args(setpriv).arg(&binary).args(["demo", "--tunnel", "--check"]);
    let output = try_run(&mut command, LIMIT);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]), "{errors}");
    for words in ["does not run as root", "sudo", "Nothing was changed"] {
        assert!(errors.contains(words), "{words}: {errors}");
    }
}

fn open_to_all() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o755)
}
