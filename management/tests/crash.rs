//! P19: the core and its database, killed at any moment. What was acknowledged is there afterwards, all of it; what was
//! not is there wholly or not at all; the audit record's chain is whole.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/postgres.rs"]
mod postgres;
#[path = "common/site.rs"]
mod site;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postgres::Server;
use serde_json::{Value, json};
use site::{Site, ask};

/// Whose the devices are.
const OWNER: &str = "owner@example.com";
/// How many administrators work at once.
const WRITERS: usize = 3;
/// The longest that one round works before the kill.
const LONGEST: Duration = Duration::from_millis(350);

#[test]
fn p19_a_core_on_sqlite_killed_twenty_times_loses_nothing_acknowledged() {
    on_sqlite(20, 1);
}

#[test]
fn p19_core_and_postgres_killed_twenty_times_lose_nothing_acknowledged() {
    on_postgres(20, 2);
}

#[test]
#[ignore = "long: 200 kills, some minutes"]
fn p19_a_core_on_sqlite_killed_two_hundred_times_loses_nothing_acknowledged() {
    on_sqlite(200, 3);
}

#[test]
#[ignore = "long: 200 kills, some minutes"]
fn p19_core_and_postgres_killed_two_hundred_times_lose_nothing_acknowledged() {
    on_postgres(200, 4);
}

fn on_sqlite(rounds: u32, seed: u64) {
    let site = Site::new("");
    let mut random = Random(seed);
    let mut book = Book::default();
    let mut core = site.start();
    site.on_sqlite(&devices(&site, rounds));
    for round in 0..rounds {
        if round % 5 == 4 {
            // Before it has come up, migrations at the first start included.
            core.kill();
            core = site.launch();
            std::thread::sleep(random.below(Duration::from_millis(60)));
            core.kill();
            core = site.start();
        }
        book.merge(work(&site, round, || {
            std::thread::sleep(random.below(LONGEST));
            core.kill();
        }));
        site.check_sqlite();
        core = site.start();
        book.check(&site, round);
    }
    book.was_worth_it(rounds);
}

fn on_postgres(rounds: u32, seed: u64) {
    let server = Server::start();
    let database = server.database();
    // As careless as a server may be set; the core must see to it itself that what it acknowledges is written.
    server.sql("postgres", &format!("ALTER DATABASE {database} SET synchronous_commit = off"));
    let site = Site::new(&format!("[database]\nurl = \"{}\"\n", server.url(&database)));
    let mut random = Random(seed);
    let mut book = Book::default();
    let mut core = site.start();
    server.sql(&database, &devices(&site, rounds));
    for round in 0..rounds {
        let kill_core = round % 2 == 0;
        book.merge(work(&site, round, || {
            std::thread::sleep(random.below(LONGEST));
            if kill_core {
                core.kill();
            } else {
                server.crash();
                server.launch();
            }
        }));
        if kill_core {
            core = site.start();
        } else {
            assert!(core.runs(), "the core must outlive its database");
        }
        book.check(&site, round);
    }
    drop(core);
    server.check(&database);
    book.was_worth_it(rounds);
}

/// A statement that adds a device for each writer of each round; how they activated is not the matter here.
fn devices(site: &Site, rounds: u32) -> String {
    let owner = ask(&site.socket(), "POST", "/users", &json!({ "email": OWNER })).unwrap()["id"].clone();
    let owner = owner.as_str().unwrap();
    let each = (0..rounds).flat_map(|round| (0..WRITERS).map(move |writer| device(round, writer)));
    let rows = each.map(|id| {
        format!("('S12345678', '{id}', '{owner}', 'laptop', 'Linux', 'active', 1800000000, '{id}', '', 1800000000, 1900000000)")
    });
    let rows = rows.collect::<Vec<_>>().join(", ");
    format!(
        "INSERT INTO device (tenant, id, account, name, platform, state, created, serial, fingerprint, not_before, \
         not_after) VALUES {rows}"
    )
}

fn device(round: u32, writer: usize) -> String {
    format!("{round:08x}-0000-4000-8000-{writer:012x}")
}

/// Lets the writers work until `kill` returns; what each was told.
fn work(site: &Site, round: u32, kill: impl FnOnce()) -> Vec<Book> {
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (over, socket) = (over.clone(), site.socket());
            std::thread::spawn(move || {
                let mut book = Book::default();
                for n in 0.. {
                    let name = format!("r{round}w{writer}n{n}");
                    if over.load(Ordering::Relaxed) || book.step(&socket, &name, &device(round, writer)).is_err() {
                        break;
                    }
                }
                book
            })
        })
        .collect();
    kill();
    over.store(true, Ordering::Relaxed);
    writers.into_iter().map(|w| w.join().unwrap()).collect()
}

/// What the core acknowledged, and what it was asked and did not answer.
#[derive(Default)]
struct Book {
    users: BTreeSet<String>,
    maybe_users: BTreeSet<String>,
    /// Which of them have an activation password.
    passwords: BTreeSet<String>,
    maybe_passwords: BTreeSet<String>,
    tokens: BTreeMap<String, String>,
    maybe_tokens: BTreeSet<String>,
    /// Groups that have their user.
    groups: BTreeSet<String>,
    maybe_groups: usize,
    /// Profiles that are assigned to their group.
    profiles: BTreeMap<String, String>,
    maybe_profiles: usize,
    /// Commands that were given, and whether they were taken back.
    commands: BTreeMap<String, bool>,
    maybe_commands: usize,
    /// Devices that they were given to.
    devices: BTreeSet<String>,
}

impl Book {
    /// A user, a password for it, a token, a group with the user, a profile that the group has, a command that is given and
    /// taken back. An error ends the writer: the core is gone, or refuses because its database is.
    fn step(&mut self, socket: &Path, name: &str, device: &str) -> io::Result<()> {
        let email = format!("{name}@example.com");
        self.maybe_users.insert(email.clone());
        ask(socket, "POST", "/users", &json!({ "email": email }))?;
        self.maybe_users.remove(&email);
        self.users.insert(email.clone());

        self.maybe_passwords.insert(email.clone());
        ask(socket, "PUT", &format!("/users/{email}/activation"), &json!({}))?;
        self.maybe_passwords.remove(&email);
        self.passwords.insert(email.clone());

        self.maybe_tokens.insert(name.to_owned());
        let made = ask(socket, "POST", "/tokens", &json!({ "name": name }))?;
        self.maybe_tokens.remove(name);
        self.tokens.insert(made["token"]["id"].as_str().unwrap().to_owned(), name.to_owned());

        self.maybe_groups += 1;
        ask(socket, "POST", "/groups", &json!({ "name": name }))?;
        ask(socket, "PUT", &format!("/groups/{name}/members/{email}"), &json!({}))?;
        self.maybe_groups -= 1;
        self.groups.insert(name.to_owned());

        // One for each writer of a round: there is a bound to how many there may be.
        if name.ends_with("n0") {
            self.maybe_profiles += 1;
            let made = ask(socket, "POST", "/profiles", &json!({ "category": "IT_CONFIG", "name": name }))?;
            let id = made["id"].as_str().unwrap().to_owned();
            ask(socket, "PUT", &format!("/profiles/{id}/holders/group:{name}"), &json!({}))?;
            self.maybe_profiles -= 1;
            self.profiles.insert(name.to_owned(), id);
        }

        self.maybe_commands += 1;
        self.devices.insert(device.to_owned());
        let given = ask(socket, "POST", &format!("/devices/{device}/commands"), &json!({ "kind": "lock-device" }))?;
        let id = given["id"].as_str().unwrap().to_owned();
        self.commands.insert(id.clone(), false);
        ask(socket, "DELETE", &format!("/commands/{id}"), &Value::Null)?;
        self.commands.insert(id, true);
        self.maybe_commands -= 1;
        Ok(())
    }

    fn merge(&mut self, books: Vec<Self>) {
        for book in books {
            self.users.extend(book.users);
            self.maybe_users.extend(book.maybe_users);
            self.passwords.extend(book.passwords);
            self.maybe_passwords.extend(book.maybe_passwords);
            self.tokens.extend(book.tokens);
            self.maybe_tokens.extend(book.maybe_tokens);
            self.groups.extend(book.groups);
            self.maybe_groups += book.maybe_groups;
            self.profiles.extend(book.profiles);
            self.maybe_profiles += book.maybe_profiles;
            self.commands.extend(book.commands);
            self.maybe_commands += book.maybe_commands;
            self.devices.extend(book.devices);
        }
    }

    fn check(&self, site: &Site, round: u32) {
        let users = site.list("/users", "id");
        let emails: BTreeSet<String> = users.iter().map(|u| u["email"].as_str().unwrap().to_owned()).collect();
        let lost: Vec<_> = self.users.difference(&emails).collect();
        assert!(lost.is_empty(), "round {round}: acknowledged and lost: {lost:?}");
        let foreign: Vec<_> = emails
            .iter()
            .filter(|e| !self.users.contains(*e) && !self.maybe_users.contains(*e) && *e != OWNER)
            .collect();
        assert!(foreign.is_empty(), "round {round}: nobody asked for {foreign:?}");

        let with_password = users.iter().filter(|u| u["activation"]["state"] == "open");
        let with_password: BTreeSet<String> = with_password.map(|u| u["email"].as_str().unwrap().to_owned()).collect();
        let lost: Vec<_> = self.passwords.difference(&with_password).collect();
        assert!(lost.is_empty(), "round {round}: passwords acknowledged and lost: {lost:?}");

        let tokens = site.list("/tokens", "id");
        let stored: BTreeMap<String, String> = tokens
            .iter()
            .map(|t| (t["id"].as_str().unwrap().to_owned(), t["name"].as_str().unwrap().to_owned()))
            .collect();
        let lost: Vec<_> = self.tokens.iter().filter(|(id, name)| stored.get(*id) != Some(name)).collect();
        assert!(lost.is_empty(), "round {round}: tokens acknowledged and lost: {lost:?}");

        let groups = site.list("/groups", "id");
        let names: BTreeSet<&str> = groups.iter().map(|g| g["name"].as_str().unwrap()).collect();
        for name in self.groups.iter().filter(|name| name.starts_with(&format!("r{round}w"))) {
            let members = site.list(&format!("/groups/{name}/members"), "id");
            assert_eq!(members.len(), 1, "round {round}: the member of {name}");
        }
        let lost: Vec<_> = self.groups.iter().filter(|name| !names.contains(name.as_str())).collect();
        assert!(lost.is_empty(), "round {round}: groups acknowledged and lost: {lost:?}");

        let profiles = site.list("/profiles?category=IT_CONFIG", "id");
        for (name, id) in self.profiles.iter().filter(|(name, _)| name.starts_with(&format!("r{round}w"))) {
            let holders = site.list(&format!("/profiles/{id}/holders"), "id");
            assert_eq!(holders.len(), 1, "round {round}: the holder of {name}");
        }
        let ids: BTreeSet<&str> = profiles.iter().map(|p| p["id"].as_str().unwrap()).collect();
        let lost: Vec<_> = self.profiles.iter().filter(|(_, id)| !ids.contains(id.as_str())).collect();
        assert!(lost.is_empty(), "round {round}: profiles acknowledged and lost: {lost:?}");
        let ranks: BTreeSet<_> = profiles.iter().map(|p| p["rank"].as_u64().unwrap()).collect();
        assert_eq!(ranks, (1..=profiles.len() as u64).collect(), "round {round}: every rank once");

        let commands: Vec<_> =
            self.devices.iter().flat_map(|d| site.list(&format!("/devices/{d}/commands"), "id")).collect();
        let states: BTreeMap<&str, &str> =
            commands.iter().map(|c| (c["id"].as_str().unwrap(), c["state"].as_str().unwrap())).collect();
        for (id, is_back) in &self.commands {
            let state = states.get(id.as_str()).copied();
            let is_kept = state == Some("CANCELLED") || !is_back && state == Some("QUEUED");
            assert!(is_kept, "round {round}: command {id} was given, taken back: {is_back}; it is {state:?}");
        }

        // Each of these is one commit of a record, its line in the audit record, and the tenant's row with the new head.
        // A commit that happened by half leaves a broken chain, or one without the other.
        let proven = ask(&site.socket(), "POST", "/audit/verify", &Value::Null).unwrap();
        let audit = site.list("/audit", "number");
        assert_eq!(proven["records"].as_u64(), Some(audit.len() as u64), "round {round}");
        let count = |action: &str| audit.iter().filter(|r| r["action"] == action).count();
        assert_eq!(count("user.add"), users.len(), "round {round}");
        assert_eq!(count("activation.password"), with_password.len(), "round {round}");
        assert_eq!(count("token.create"), tokens.len(), "round {round}: {:?}", audit.last());
        assert_eq!(count("group.add"), groups.len(), "round {round}");
        assert_eq!(count("profile.add"), profiles.len(), "round {round}");
        assert_eq!(count("command.queue"), commands.len(), "round {round}");
        let back = states.values().filter(|state| **state == "CANCELLED").count();
        assert_eq!(count("command.cancel"), back, "round {round}");
    }

    /// A test in which nothing was at stake shows nothing.
    fn was_worth_it(&self, rounds: u32) {
        let cut = self.maybe_users.len() + self.maybe_passwords.len() + self.maybe_tokens.len();
        let cut = cut + self.maybe_groups + self.maybe_profiles + self.maybe_commands;
        assert!(self.commands.len() >= rounds as usize, "only {} commands in {rounds} rounds", self.commands.len());
        assert!(self.users.len() >= rounds as usize, "only {} users in {rounds} rounds", self.users.len());
        assert!(cut >= rounds as usize / 2, "only {cut} requests were cut short in {rounds} rounds");
    }
}

/// The same moments from the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, longest: Duration) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        longest.mul_f64((self.0 >> 33) as f64 / f64::from(1u32 << 31))
    }
}
