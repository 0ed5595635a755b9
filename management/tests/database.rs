//! P19: the core as a process, with a database that goes and comes, and one that an older version made.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/postgres.rs"]
mod postgres;
#[path = "common/site.rs"]
mod site;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use postgres::Server;
use serde_json::{Value, json};
use site::{Site, ask};

/// Takes the newest columns of this version back, as the version before left the database.
const BACK: [&str; 8] = [
    "DROP INDEX account_inactive",
    "DROP INDEX device_active",
    "DROP INDEX device_revoked",
    "DROP INDEX node_revoked",
    "DROP INDEX device_command_open",
    "ALTER TABLE device DROP COLUMN obeys_epoch",
    "ALTER TABLE device DROP COLUMN obeys_version",
    "DELETE FROM _sqlx_migrations WHERE version = 14",
];

fn readiness(site: &Site) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", site.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n\r\n", site.port).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether it went well, and all that it said.
fn say(mut command: Command) -> (bool, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.success(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
}

fn add_anna(site: &Site) {
    let anna = json!({ "email": "anna@example.com", "name": "Anna" });
    ask(&site.socket(), "POST", "/users", &anna).unwrap();
}

fn has_anna(site: &Site) {
    let _core = site.start();
    assert_eq!(site.list("/users", "id").len(), 1);
}

#[test]
fn p19_readiness_goes_and_comes_back_with_the_database() {
    let server = Server::start();
    let site = Site::new(&format!("[database]\nurl = \"{}\"\n", server.url(&server.database())));
    let mut core = site.start();
    add_anna(&site);
    let away = || readiness(&site).contains("database: it does not answer");
    // Its relay does not exist, so it is never wholly ready: what it says of the database is what is looked at.
    assert!(readiness(&site).starts_with("HTTP/1.1 503") && !away(), "{}", readiness(&site));
    server.crash();
    wait_until("it says that its database is away", away);
    assert!(ask(&site.socket(), "GET", "/users", &Value::Null).is_err());
    server.launch();
    wait_until("it says no more that its database is away", || !away());
    assert_eq!(site.list("/users", "id").len(), 1);
    assert!(core.runs(), "nothing was started again");
}

#[test]
fn p19_a_sqlite_database_of_an_older_version_is_listed_copied_and_migrated_by_hand() {
    let site = Site::new("");
    let core = site.start();
    add_anna(&site);
    drop(core);
    BACK.iter().for_each(|sql| site.on_sqlite(sql));
    for _ in 0..2 {
        let (current, said) = say(site.command("migrate", &["--check"]));
        assert!(!current && said.contains("pending"), "a list changes nothing: {said}");
    }
    let (done, said) = say(site.command("migrate", &[]));
    assert!(done && said.contains("applied now: 1") && said.contains("copy from before: "), "{said}");
    let copies = fs::read_dir(site.folder.path().join("core")).unwrap().map(|e| e.unwrap().file_name());
    assert!(copies.into_iter().any(|name| name.to_string_lossy().contains("core.db.schema-")));
    let (current, said) = say(site.command("migrate", &["--check"]));
    assert!(current && !said.contains("pending"), "{said}");
    has_anna(&site);
}

#[test]
fn p19_a_postgres_database_of_an_older_version_waits_for_a_hand_and_a_backup() {
    let server = Server::shared();
    let database = server.database();
    let site = Site::new(&format!("[database]\nurl = \"{}\"\n", server.url(&database)));
    let core = site.start();
    add_anna(&site);
    drop(core);
    for sql in BACK {
        server.sql(&database, sql);
    }
    let (runs, said) = say(site.command("run", &[]));
    assert!(!runs && said.contains("hedgerow core migrate --backup-exists"), "{said}");
    let (done, said) = say(site.command("migrate", &[]));
    assert!(!done && said.contains("--backup-exists"), "{said}");
    let (current, said) = say(site.command("migrate", &["--check"]));
    assert!(!current && said.contains("pending"), "{said}");
    let (done, said) = say(site.command("migrate", &["--backup-exists"]));
    assert!(done && said.contains("applied now: 1") && !said.contains("copy from before"), "{said}");
    has_anna(&site);
}
