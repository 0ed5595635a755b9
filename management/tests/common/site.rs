//! A core as a process of its own, and how tests ask it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A core's configuration and state; its relay does not exist.
pub struct Site {
    pub folder: tempfile::TempDir,
    /// Of the admin listener.
    pub port: u16,
}

impl Site {
    pub fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("srp.key");
        fs::write(&key, "0a".repeat(32)).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let port = hedgerow_runtime::loopback::reserve_port().unwrap();
        let config = format!(
            "tenant = \"S12345678\"\nstate = {:?}\nsrp_key_file = {key:?}\n[[relays]]\nname = \"relay.test\"\n\
             addresses = [\"127.0.0.1:9\"]\n[admin]\nlisten = \"127.0.0.1:{port}\"\n{more}",
            folder.path().join("core")
        );
        fs::write(folder.path().join("core.toml"), config).unwrap();
        Self { folder, port }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("core/control.sock")
    }

    pub fn launch(&self) -> Core {
        let log = fs::File::create(self.folder.path().join("core.log")).unwrap();
        let mut command = self.command("run", &[]);
        // SAFETY: prctl with these arguments is async-signal-safe and touches no memory of the parent.
        unsafe {
            command.pre_exec(|| {
                // It ends with the test, however that ends.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        Core(child.unwrap())
    }

    /// One of the core's commands that need its configuration.
    pub fn command(&self, verb: &str, more: &[&str]) -> Command {
        let mut command = Command::new(hedgerow());
        command.args(["core", verb, "--config"]).arg(self.folder.path().join("core.toml")).args(more);
        command
    }

    /// Launches it and waits until it answers.
    pub fn start(&self) -> Core {
        let mut core = self.launch();
        let deadline = Instant::now() + Duration::from_secs(30);
        while ask(&self.socket(), "GET", "/tenant", &Value::Null).is_err() {
            let log = || fs::read_to_string(self.folder.path().join("core.log")).unwrap_or_default();
            assert!(core.runs() && Instant::now() < deadline, "the core does not come up:\n{}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
        core
    }

    /// A whole list, part by part.
    pub fn list(&self, path: &str, key: &str) -> Vec<Value> {
        let mut all: Vec<Value> = Vec::new();
        loop {
            let after = all.last().map_or(String::new(), |last| match &last[key] {
                Value::String(id) => format!("?after={id}"),
                number => format!("?after={number}"),
            });
            let part = ask(&self.socket(), "GET", &format!("{path}{after}"), &Value::Null).unwrap();
            all.extend(part["items"].as_array().unwrap().iter().cloned());
            if part["next"].is_null() {
                return all;
            }
        }
    }

    /// Runs a statement on the core's file, beside the core.
    pub fn on_sqlite(&self, sql: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            use sqlx::{Connection as _, Executor as _};
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(self.folder.path().join("core/core.db"));
            let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
            connection.execute(sqlx::AssertSqlSafe(sql.to_owned())).await.unwrap();
            connection.close().await.unwrap();
        });
    }

    /// The file as the kill left it, looked at in a copy: looking would repair it.
    pub fn check_sqlite(&self) {
        let copy = tempfile::tempdir().unwrap();
        for file in ["core.db", "core.db-wal"] {
            let from = self.folder.path().join("core").join(file);
            if from.exists() {
                fs::copy(from, copy.path().join(file)).unwrap();
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            use sqlx::Connection as _;
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(copy.path().join("core.db"));
            let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
            let integrity: String =
                sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut connection).await.unwrap();
            assert_eq!(integrity, "ok");
            let keys = sqlx::query("PRAGMA foreign_key_check").fetch_all(&mut connection).await.unwrap();
            assert!(keys.is_empty());
            connection.close().await.unwrap();
        });
    }
}

/// A core's process; killed at the latest when dropped.
pub struct Core(pub Child);

impl Core {
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    pub fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One request; an error is whatever is not an acknowledgement.
pub fn ask(socket: &Path, method: &str, path: &str, body: &Value) -> io::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(40)))?;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: core\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if !status.starts_with('2') {
        return Err(io::Error::other(format!("{status}: {body}")));
    }
    if status == "204" {
        return Ok(Value::Null);
    }
    // An answer that was cut short is none.
    serde_json::from_str(body).map_err(io::Error::other)
}

/// The product's binary, built with the same profile. `tests/run` builds it first.
pub fn hedgerow() -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let folder = me.ancestors().find(|p| p.join("deps").is_dir()).unwrap();
    let binary = folder.join("hedgerow");
    assert!(binary.exists(), "{} is missing: run tests/run, or `cargo build -p hedgerow-cli` first", binary.display());
    binary
}
