//! P22, P19: commands are given, fetched, carried out and answered while core, database and device are killed again and
//! again. What was acknowledged comes to its end, and nothing is carried out twice.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../management/tests/common/postgres.rs"]
mod postgres;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use hedgerow_tests::office::{Office, Ways};
use hedgerow_tests::process::{run, try_run, wait_until};
use postgres::Server;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
/// Commands that are given in one round.
const EACH: u32 = 4;
/// When the kill comes, from the first command on: while the device is at one of them, or tells of it.
const MOMENTS: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(450)];
/// The administrator's pause between two commands.
const PAUSE: Duration = Duration::from_millis(40);

#[test]
fn p22_commands_given_while_core_and_device_are_killed_come_to_their_end_and_are_done_once() {
    on_sqlite(12);
}

#[test]
fn p22_commands_given_while_postgres_core_and_device_are_killed_come_to_their_end_and_are_done_once() {
    on_postgres(12);
}

#[test]
#[ignore = "long: 200 kills, some minutes"]
fn p22_two_hundred_kills_of_core_and_device_lose_no_command_and_do_none_twice() {
    on_sqlite(200);
}

#[test]
#[ignore = "long: 200 kills, some minutes"]
fn p22_two_hundred_kills_of_postgres_core_and_device_lose_no_command_and_do_none_twice() {
    on_postgres(200);
}

/// Links of killed processes stand at the relay until their silence is noticed; whoever asks for the core meanwhile gets the
/// one that is there.
#[test]
fn p01_a_core_that_was_killed_and_is_back_is_asked_at_once() {
    let mut desk = Desk::open(None);
    for _ in 0..6 {
        desk.kill("core");
        let given = desk.ask(&["command", "send", &desk.device, "request-device-info"]);
        let id = given["id"].as_str().unwrap();
        // One dead link alone took four seconds.
        wait_until("the device has answered", Duration::from_secs(3), || {
            desk.ask(&["command", "show", id])["state"] == "SUCCEEDED"
        });
    }
}

fn on_sqlite(rounds: u32) {
    let mut desk = Desk::open(None);
    for round in 0..rounds {
        let giver = desk.give(round);
        std::thread::sleep(moment(round));
        if round % 3 == 2 {
            desk.kill("device");
        } else {
            desk.kill("core");
        }
        desk.note(giver);
    }
    desk.check(rounds);
}

fn on_postgres(rounds: u32) {
    let server = Server::start();
    let database = server.database();
    server.sql("postgres", &format!("ALTER DATABASE {database} SET synchronous_commit = off"));
    let mut desk = Desk::open(Some(server.url(&database)));
    for round in 0..rounds {
        let giver = desk.give(round);
        std::thread::sleep(moment(round));
        match round % 3 {
            0 => desk.kill("core"),
            1 => desk.kill("device"),
            _ => {
                server.crash();
                server.launch();
            }
        }
        desk.note(giver);
    }
    desk.check(rounds);
    drop(desk);
    server.check(&database);
}

/// How long a round goes on before the kill.
fn moment(round: u32) -> Duration {
    // Spread evenly, the same in every run.
    let part = f64::from(round.wrapping_mul(2_654_435_761) >> 16) / f64::from(1u32 << 16);
    MOMENTS[0] + (MOMENTS[1] - MOMENTS[0]).mul_f64(part)
}

/// What giving a command came to.
enum Given {
    Acknowledged {
        id: String,
        message: String,
    },
    /// No answer, or a refusal: it may have been given all the same.
    Unknown,
}

/// An office, and what its administrator was told.
struct Desk {
    office: Office,
    device: String,
    /// What was acknowledged: id and message.
    given: BTreeMap<String, String>,
    unknown: usize,
    kills_of_device: usize,
}

impl Desk {
    fn open(database: Option<String>) -> Self {
        let mut office = Office::open();
        let relay = vec![format!("{}:443", office.address), format!("{}:3101", office.address)];
        // The message, once for each time that it is done; long enough for kills to come before the answer.
        let lock = format!("printf '%s\\n' \"$HEDGEROW_MESSAGE\" >> '{}'; sleep 0.05", office.path("done"));
        let device = format!("[commands]\nlock = [\"sh\", \"-c\", {lock:?}]\n");
        let url = database.map(|url| vec![("HEDGEROW_CORE__DATABASE__URL".to_owned(), url)]);
        let environment = url.map(|url| ("core", url)).into_iter().collect();
        office.move_in(Ways { device, environment, ..Ways::all(&relay, "") });
        let device = office.get("device", "/status")["device"].as_str().unwrap().to_owned();
        Self { office, device, given: BTreeMap::new(), unknown: 0, kills_of_device: 0 }
    }

    fn command(&self, words: &[&str]) -> Command {
        self.office.command("core", &[words, &["--json"]].concat())
    }

    fn ask(&self, words: &[&str]) -> Value {
        serde_json::from_slice(&run(&mut self.command(words), LIMIT).stdout).unwrap()
    }

    /// An administrator who gives one command after the other.
    fn give(&self, round: u32) -> JoinHandle<Vec<Given>> {
        let messages: Vec<_> = (0..EACH).map(|n| format!("round {round} command {n}")).collect();
        let send = |message: &String| {
            let set = format!("message={message}");
            self.command(&["command", "send", &self.device, "lock-device", "--set", &set])
        };
        let commands: Vec<_> = messages.iter().map(send).collect();
        std::thread::spawn(move || {
            let one = |(message, mut command): (String, Command)| {
                let output = try_run(&mut command, LIMIT);
                std::thread::sleep(PAUSE);
                let answer: Option<Value> =
                    output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap());
                let id = answer.and_then(|answer| Some(answer["id"].as_str()?.to_owned()));
                id.map_or(Given::Unknown, |id| Given::Acknowledged { id, message })
            };
            messages.into_iter().zip(commands).map(one).collect()
        })
    }

    fn note(&mut self, giver: JoinHandle<Vec<Given>>) {
        for given in giver.join().unwrap() {
            match given {
                Given::Acknowledged { id, message } => assert!(self.given.insert(id, message).is_none()),
                Given::Unknown => self.unknown += 1,
            }
        }
    }

    fn kill(&mut self, role: &'static str) {
        self.kills_of_device += usize::from(role == "device");
        self.office.kill(role);
        self.office.start(role);
    }

    /// The commands that the audit record names by an action.
    fn recorded(&self, action: &str) -> Vec<String> {
        let mut export = self.office.command("core", &["audit", "export", "--action", action]);
        let export = String::from_utf8(run(&mut export, LIMIT).stdout).unwrap();
        // `KIND ID`, and for those that were not done `: why`.
        let id = |line: &str| {
            let record: Value = serde_json::from_str(line).unwrap();
            record["detail"].as_str().unwrap().split([' ', ':']).nth(1).unwrap().to_owned()
        };
        export.lines().map(id).collect()
    }

    fn check(&self, rounds: u32) {
        let queued = self.recorded("command.queue");
        let is_over = |command: &Value| command["completed"].is_number();
        let newest = || self.ask(&["command", "list", &self.device]);
        wait_until("the newest have come to their end", LIMIT, || newest().as_array().unwrap().iter().all(is_over));
        let all: BTreeMap<_, _> = queued.iter().map(|id| (id.as_str(), self.ask(&["command", "show", id]))).collect();
        let lost: Vec<_> = self.given.keys().filter(|id| !all.contains_key(id.as_str())).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let open: Vec<_> = all.values().filter(|command| !is_over(command)).collect();
        assert!(open.is_empty(), "never came to their end: {open:?}");
        assert!(all.len() <= self.given.len() + self.unknown, "more than were given");

        let done = std::fs::read_to_string(self.office.path("done")).unwrap();
        let done: Vec<_> = done.lines().collect();
        assert_eq!(done.iter().collect::<BTreeSet<_>>().len(), done.len(), "done twice: {done:?}");
        let mut unknown = 0;
        for (id, message) in &self.given {
            let (state, error) = (all[id.as_str()]["state"].as_str(), all[id.as_str()]["error"].as_str());
            match (state, error) {
                (Some("SUCCEEDED"), _) => assert!(done.contains(&message.as_str()), "told to be done: {message}"),
                // Killed between beginning and answer: the device cannot tell, and says so.
                (Some("FAILED"), Some(why)) if why.contains("not known") => unknown += 1,
                other => panic!("{message}: {other:?}"),
            }
        }
        assert!(unknown <= self.kills_of_device, "{unknown} of them cut short by {} kills", self.kills_of_device);

        let mut ends = self.recorded("command.end");
        ends.sort_unstable();
        assert_eq!(ends, all.keys().copied().collect::<Vec<_>>(), "each has one end in the record");
        self.ask(&["audit", "verify"]);
        // A test in which nothing was at stake shows nothing.
        let (given, most) = (self.given.len(), (rounds * EACH) as usize);
        assert!(given > most / 2 && self.unknown > 0, "{given} of {most} were given, {} unknown", self.unknown);
    }
}
