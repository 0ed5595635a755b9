//! Carrying commands out on Linux.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use hedgerow_runtime::telemetry;
use hedgerow_uem_core::command::{Kind, Order, Reply};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use crate::config::Commands as Config;

/// How long a program may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of a program's output that are kept.
const OUTPUT: u64 = 8 * 1024 * 1024;
/// The exit code of a program that is to be run again later: EX_TEMPFAIL of sysexits.h.
const LATER: i32 = 75;
/// In which variable the program that locks finds the administrator's message.
const MESSAGE: &str = "HEDGEROW_MESSAGE";
/// The most of it, bytes.
const MAX_MESSAGE: usize = 4096;
/// Packages that are told.
const PACKAGES: usize = 8000;

/// How packages are listed, a line each: name, a tab, version.
const PACKAGE_TOOLS: [&[&str]; 3] = [
    &["dpkg-query", "--show", "--showformat=${Package}\t${Version}\n"],
    &["rpm", "--query", "--all", "--queryformat=%{NAME}\t%{VERSION}-%{RELEASE}\n"],
    &["apk", "list", "--installed"],
];

/// Carries a command out.
pub(super) async fn out(order: &Order, config: &Config, refresh: &(dyn Fn() + Send + Sync)) -> Reply {
    let done = match order.kind {
        Kind::LockDevice => match run(&config.lock, message(order)).await {
            Err(Failure::Later) => return Reply::NotNow,
            other => other.map(|_| Map::new()).map_err(|failure| failure.to_string()),
        },
        Kind::DeleteWorkSpaceData => erase(config).map(|()| Map::new()),
        // The machine is not this agent's: what is the organisation's goes, and the core is told that it was no more.
        Kind::DeleteDeviceData => erase(config).map(|()| object(json!({ "scope": "workSpace" }))),
        Kind::RequestDeviceInfo => Ok(information()),
        Kind::ListApplications => packages().await,
        Kind::UpdateProfiles => {
            refresh();
            Ok(Map::new())
        }
        other => Err(format!("this device does not know how to carry out {other}")),
    };
    match done {
        Ok(result) => Reply::Done { result },
        Err(error) => Reply::Failed { error },
    }
}

/// What an administrator has people read, for the program that locks.
fn message(order: &Order) -> Option<(&'static str, &str)> {
    let text = order.properties.get("message")?.as_str()?;
    // The system starts no program with a longer one than it allows.
    Some((MESSAGE, &text[..text.floor_char_boundary(MAX_MESSAGE)]))
}

/// Why a program did not do it.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// It exits with 75, EX_TEMPFAIL of sysexits.h.
    #[error("not now")]
    Later,
    #[error("{0}")]
    Why(String),
}

/// Runs a program without a shell; the first `OUTPUT` bytes of what it prints.
async fn run(words: &[impl AsRef<str>], variable: Option<(&str, &str)>) -> Result<String, Failure> {
    let mut words = words.iter().map(AsRef::as_ref);
    let Some(program) = words.next() else {
        return Err(Failure::Why("this device is not told how (its configuration)".to_owned()));
    };
    let mut command = Command::new(program);
    // A NUL would end the variable, and fail the start.
    command.envs(variable.map(|(name, value)| (name, value.replace('\0', ""))));
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let ended = async {
        let mut child = command.spawn()?;
        let (out, error) = (child.stdout.take(), child.stderr.take());
        let (out, error) = tokio::try_join!(first(out), first(error))?;
        Ok::<_, io::Error>((child.wait().await?, out, error))
    };
    let ended = tokio::time::timeout(LIMIT, ended).await;
    let ended = ended.map_err(|_| Failure::Why(format!("{program} took longer than {LIMIT:?}")))?;
    let (status, out, said) = ended.map_err(|error| Failure::Why(format!("{program}: {error}")))?;
    match status.code() {
        Some(0) => Ok(out),
        Some(LATER) => Err(Failure::Later),
        _ => Err(Failure::Why(format!("{program} failed ({status}): {}", said.trim()))),
    }
}

/// What a program prints, up to `OUTPUT` bytes; the rest is read and thrown away, so that the program comes to its end.
async fn first(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let Some(mut pipe) = pipe else { return Ok(String::new()) };
    let mut bytes = Vec::new();
    (&mut pipe).take(OUTPUT).read_to_end(&mut bytes).await?;
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Erases the organisation's data. Keys and configuration go after the core has been told.
fn erase(config: &Config) -> Result<(), String> {
    let failed: Vec<_> = config
        .erase
        .iter()
        .filter_map(|path| remove(path).err().map(|error| format!("{}: {error}", path.display())))
        .collect();
    if failed.is_empty() { Ok(()) } else { Err(format!("not everything could be erased: {}", failed.join("; "))) }
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        // Links are not followed: what they lead to was not named.
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

async fn packages() -> Result<Map<String, Value>, String> {
    let mut reasons = Vec::new();
    for tool in PACKAGE_TOOLS {
        match run(tool, None).await {
            Ok(text) => {
                let lines = || text.lines().filter(|line| !line.trim().is_empty());
                let packages: Vec<_> = lines().take(PACKAGES).map(package).collect();
                let told = json!({ "source": tool[0], "count": lines().count(), "packages": packages });
                return Ok(object(told));
            }
            Err(failure) => reasons.push(failure.to_string()),
        }
    }
    Err(format!("no list of packages: {}", reasons.join("; ")))
}

fn package(line: &str) -> Value {
    let (name, version) = line.split_once('\t').unwrap_or((line, ""));
    json!({ "name": name, "version": version })
}

/// What this machine is and how it does, in the web services' words where they have some.
fn information() -> Map<String, Value> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let release = read("/etc/os-release");
    let of_release = |key: &str| {
        let value = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.map(|value| value.trim_matches('"').to_owned())
    };
    let memory = read("/proc/meminfo");
    let of_memory = |key: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    let dmi = |name: &str| Some(read(&format!("/sys/class/dmi/id/{name}")).trim().to_owned()).filter(|s| !s.is_empty());
    let uptime = read("/proc/uptime").split('.').next().and_then(|seconds| seconds.parse::<u64>().ok());
    let (size, free) = disk(c"/").unzip();
    object(json!({
        "os": "Linux", "osFamilyName": of_release("NAME"), "osVersion": of_release("VERSION_ID"),
        "kernel": read("/proc/sys/kernel/osrelease").trim(), "hostName": read("/proc/sys/kernel/hostname").trim(),
        "hardwareVendorCompanyName": dmi("sys_vendor"), "hardwareModel": dmi("product_name"),
        "serialNumber": dmi("product_serial"),
        "ramTotal": of_memory("MemTotal:").map(|kib| kib * 1024), "ramFree": of_memory("MemAvailable:").map(|kib| kib * 1024),
        "internalStorageSize": size, "internalStorageFree": free, "uptimeSeconds": uptime,
        "clientVersion": telemetry::VERSION,
    }))
}

/// Size of the file system that a path is in, and what is free of it, bytes.
fn disk(path: &CStr) -> Option<(u64, u64)> {
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends in a zero byte and the pointer is to a statvfs that the call fills when it returns 0.
    let done = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    if done != 0 {
        return None;
    }
    // SAFETY: the call returned 0.
    let stat = unsafe { stat.assume_init() };
    Some((stat.f_frsize * stat.f_blocks, stat.f_frsize * stat.f_bavail))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => Map::from_iter([("value".to_owned(), other)]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hedgerow_shared::EntityId;
    use std::sync::atomic::{AtomicUsize, Ordering};

    async fn carry(kind: Kind, config: &Config) -> Reply {
        let order = Order { id: EntityId::from_random([1; 16]), kind, properties: Map::new() };
        out(&order, config, &|| {}).await
    }

    #[tokio::test]
    async fn p22_a_machine_tells_what_it_is_and_what_is_installed() {
        let config = Config::default();
        let Reply::Done { result } = carry(Kind::RequestDeviceInfo, &config).await else { panic!("no information") };
        assert_eq!(result["os"], "Linux");
        for key in ["ramTotal", "internalStorageSize", "uptimeSeconds"] {
            assert!(result[key].as_u64().is_some_and(|n| n > 0), "{key}: {result:?}");
        }
        let Reply::Done { result } = carry(Kind::ListApplications, &config).await else { panic!("no packages") };
        let packages = result["packages"].as_array().unwrap();
        assert!(packages.iter().any(|p| p["name"] == "dpkg" && p["version"] != ""), "{}", packages.len());
        assert!(hedgerow_uem_core::command::fits(&result), "it is to be kept");
    }

    #[tokio::test]
    async fn p22_what_a_device_cannot_do_it_says() {
        let missing = Config { lock: vec!["no-such-program".into()], ..Config::default() };
        let fails = Config { lock: vec!["ls".into(), "/no/such/path".into()], ..Config::default() };
        let none = Config { lock: Vec::new(), ..Config::default() };
        let story = "head -c 20000000 /dev/zero; echo the end of a long story >&2; false";
        let chatty = Config { lock: ["sh", "-c", story].map(str::to_owned).to_vec(), ..Config::default() };
        for (config, kind, words) in [
            (&missing, Kind::LockDevice, "no-such-program"),
            (&fails, Kind::LockDevice, "/no/such/path"),
            (&none, Kind::LockDevice, "not told how"),
            (&none, Kind::EnableLostMode, "ENABLE_LOST_MODE"),
            (&chatty, Kind::LockDevice, "end of a long story"),
        ] {
            let Reply::Failed { error } = carry(kind, config).await else { panic!("{kind} {config:?}") };
            assert!(error.contains(words), "{error}");
        }
        let busy = Config { lock: ["sh", "-c", "exit 75"].map(str::to_owned).to_vec(), ..Config::default() };
        assert_eq!(carry(Kind::LockDevice, &busy).await, Reply::NotNow);
        let asked = AtomicUsize::new(0);
        let order = Order { id: EntityId::from_random([1; 16]), kind: Kind::UpdateProfiles, properties: Map::new() };
        out(&order, &none, &|| _ = asked.fetch_add(1, Ordering::Relaxed)).await;
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn p22_the_program_that_locks_gets_the_message() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("said").to_string_lossy().into_owned();
        let story = format!("printf %s \"$HEDGEROW_MESSAGE\" > {file}");
        let config = Config { lock: ["sh", "-c", &story].map(str::to_owned).to_vec(), ..Config::default() };
        let Value::Object(properties) = json!({ "message": "Ring 555-0100; \"$(id)\" \0!" }) else {
            panic!("an object")
        };
        let order = Order { id: EntityId::from_random([1; 16]), kind: Kind::LockDevice, properties };
        assert_eq!(out(&order, &config, &|| {}).await, Reply::Done { result: Map::new() });
        assert_eq!(fs::read_to_string(&file).unwrap(), "Ring 555-0100; \"$(id)\" !");
        let properties = Map::from_iter([("message".to_owned(), Value::from("ä".repeat(200_000)))]);
        let long = Order { properties, ..order };
        assert_eq!(out(&long, &config, &|| {}).await, Reply::Done { result: Map::new() });
        assert_eq!(fs::read_to_string(&file).unwrap(), "ä".repeat(MAX_MESSAGE / 2));
    }

    #[tokio::test]
    async fn p22_what_was_named_is_erased_and_nothing_behind_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("work/deep")).unwrap();
        fs::write(at("work/deep/file"), "x").unwrap();
        fs::create_dir(at("private")).unwrap();
        fs::write(at("private/diary"), "x").unwrap();
        std::os::unix::fs::symlink(at("private"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("private"), at("work/link")).unwrap();
        let config = Config { erase: vec![at("work"), at("link"), at("gone")], ..Config::default() };
        assert_eq!(carry(Kind::DeleteWorkSpaceData, &config).await, Reply::Done { result: Map::new() });
        assert!(!at("work").exists() && fs::symlink_metadata(at("link")).is_err() && at("private/diary").exists());
        let Reply::Done { result } = carry(Kind::DeleteDeviceData, &config).await else { panic!("it erases") };
        assert_eq!(result["scope"], "workSpace", "the machine is not the agent's");
        let config = Config { erase: vec!["/proc/version".into()], ..config };
        assert!(matches!(carry(Kind::DeleteWorkSpaceData, &config).await, Reply::Failed { .. }));
    }
}
