//! A PostgreSQL server of this test process: made by `initdb` in a folder of its own, on a unix socket there and a
//! loopback port, run by a user without rights, and gone with its folder when the process ends, however it ends.
//!
//! The database's own order of text is English, not by bytes, so that a query that forgot its collation shows.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// The user `owner`'s password, asked for on the loopback port. The socket lets everybody in.
pub const PASSWORD: &str = "a password of the test";

/// Launches the server for every line that it reads. When there are no more, because the test's process is gone, it ends
/// the server and removes the folder: nothing in the test has to be reached for that.
const KEEPER: &str = r#"
folder=$1; shift
while read -r _; do
    wait
    "$@" >>"$folder/log" 2>&1 &
done
[ ! -e "$folder/data/postmaster.pid" ] || kill -QUIT "$(head -n 1 "$folder/data/postmaster.pid")"
wait
rm -rf "$folder"
"#;

pub struct Server {
    folder: PathBuf,
    programs: PathBuf,
    pub port: u16,
    keeper: Mutex<(Child, Option<ChildStdin>)>,
    databases: AtomicU32,
}

impl Server {
    /// The one that all tests of this process share.
    pub fn shared() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(Self::start)
    }

    pub fn start() -> Self {
        let programs = programs();
        let folder = tempfile::tempdir().unwrap().keep();
        let user = unprivileged(&folder);
        let as_user = |program: &str| {
            let mut words: Vec<String> = user.clone();
            words.push(programs.join(program).display().to_string());
            words
        };
        let data = folder.join("data").display().to_string();
        let password = folder.join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        let mut initdb = as_user("initdb");
        initdb.extend(["-D", &data, "-U", "owner", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"].map(Into::into));
        initdb.extend(["--locale-provider=icu", "--icu-locale=en-US", "--auth-local=trust"].map(Into::into));
        initdb.extend(["--auth-host=scram-sha-256".to_owned(), format!("--pwfile={}", password.display())]);
        run(Command::new(&initdb[0]).args(&initdb[1..]));
        let port = hedgerow_runtime::loopback::reserve_port().unwrap();
        let mut postgres = as_user("postgres");
        postgres.extend(["-D", &data, "-k", &folder.display().to_string(), "-p", &port.to_string()].map(Into::into));
        // What a killed process has written is with the kernel; only the end of the machine takes that away, and no test
        // here ends it.
        let settings = ["-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=16MB", "-c", "fsync=off"];
        postgres.extend(settings.map(Into::into));
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "keeper"]).arg(&folder).args(postgres).stdin(Stdio::piped());
        let mut keeper = keeper.stdout(Stdio::null()).spawn().unwrap();
        let orders = keeper.stdin.take();
        let keeper = Mutex::new((keeper, orders));
        let server = Self { folder, programs, port, keeper, databases: AtomicU32::new(0) };
        server.launch();
        server
    }

    /// Starts it again after `crash`.
    pub fn launch(&self) {
        self.keeper.lock().unwrap().1.as_mut().unwrap().write_all(b"launch\n").unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.program("pg_isready").arg("-q").status().unwrap().success() {
            let log = || std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "PostgreSQL does not come up:\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGKILL to every process of it.
    pub fn crash(&self) {
        let file = std::fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap();
        let first: u32 = file.lines().next().unwrap().trim().parse().unwrap();
        // It must not make new ones meanwhile.
        signal(first, libc::SIGSTOP);
        let children = children(first);
        for pid in children.iter().chain([&first]) {
            signal(*pid, libc::SIGKILL);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while children.iter().any(|pid| runs(*pid)) || runs(first) {
            assert!(Instant::now() < deadline, "killed processes are still there");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Makes an empty database; its name.
    pub fn database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    /// Runs statements; what they print.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        run(self.program("psql").args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]))
    }

    /// Checks every table and index of a database.
    pub fn check(&self, database: &str) {
        run(self.program("pg_amcheck").args(["--install-missing", "--heapallindexed", database]));
    }

    /// By socket, without a password.
    pub fn url(&self, database: &str) -> String {
        format!("postgres:///{database}?host={}&port={}&user=owner", self.folder.display(), self.port)
    }

    /// By TCP, where a password is asked for.
    pub fn tcp_url(&self, database: &str) -> String {
        format!("postgres://owner@127.0.0.1:{}/{database}", self.port)
    }

    /// A file that only the server can read.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let owner = std::fs::metadata(&self.folder).unwrap();
        chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        path
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.arg("-h").arg(&self.folder).args(["-p", &self.port.to_string(), "-U", "owner"]);
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let keeper = self.keeper.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        // With the pipe's end the keeper ends.
        keeper.1 = None;
        let _ = keeper.0.wait();
    }
}

/// The newest installed; Debian keeps them off the path.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut found: Vec<PathBuf> = versions.map(|v| v.unwrap().path().join("bin")).collect();
    found.retain(|bin| bin.join("initdb").exists());
    found.sort();
    found.pop().expect("PostgreSQL is not installed: tests/run installs it (Debian: postgresql)")
}

/// How to become somebody without rights, since PostgreSQL refuses root; the folder becomes theirs.
fn unprivileged(folder: &Path) -> Vec<String> {
    let id = |option: &str, user: &[&str]| run(Command::new("id").arg(option).args(user)).trim().to_owned();
    if id("-u", &[]) != "0" {
        return Vec::new();
    }
    let user =
        if Command::new("id").arg("postgres").output().unwrap().status.success() { "postgres" } else { "nobody" };
    let (uid, gid) = (id("-u", &[user]), id("-g", &[user]));
    chown(folder, Some(uid.parse().unwrap()), Some(gid.parse().unwrap())).unwrap();
    // Children of the test must reach the socket.
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    ["setpriv", "--reuid", &uid, "--regid", &gid, "--clear-groups"].map(Into::into).to_vec()
}

fn run(command: &mut Command) -> String {
    let output = command.current_dir("/").output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

pub fn signal(pid: u32, signal: i32) {
    // SAFETY: kill has no memory effects.
    unsafe { libc::kill(i32::try_from(pid).unwrap(), signal) };
}

/// State and parent as /proc has them.
fn stat(pid: u32) -> Option<(String, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut words = text.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
}

fn runs(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != "Z" && state != "X")
}

fn children(parent: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    all.filter(|pid| stat(*pid).is_some_and(|(_, p)| p == parent)).collect()
}
