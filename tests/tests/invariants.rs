//! What ARCHITECTURE.md promises about the shape of the workspace, checked against `cargo metadata` and the sources.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

/// Layers of the workspace; a crate depends on lower ones only.
const LAYERS: &[(&str, u8)] = &[
    ("hedgerow-shared", 0),
    ("hedgerow-runtime", 1),
    ("hedgerow-secure-connect", 1),
    ("hedgerow-uem-core", 1),
    ("hedgerow-proxy", 2),
    ("hedgerow-tunnel", 2),
    ("hedgerow-relay", 3),
    ("hedgerow-connectivity-node", 3),
    ("hedgerow-management", 3),
    ("hedgerow-device", 3),
    ("hedgerow-cli", 4),
    ("hedgerow-tests", 4),
    ("hedgerow-benches", 4),
];

/// Crates that get time, randomness and bytes as arguments, and their folders.
const PURE: &[(&str, &str)] = &[
    ("hedgerow-shared", "shared/src"),
    ("hedgerow-secure-connect", "secure-connect/src"),
    ("hedgerow-uem-core", "uem-core/src"),
];

/// The one Cargo feature, for `tests/interop` alone: the tunnel's driver with DTLS 1.2.
const INTEROP: (&str, &str) = ("hedgerow-secure-connect", "dtls12-interop");

/// Longest source file, lines.
const MAX_LINES: usize = 800;

#[test]
fn the_relay_links_nothing_that_could_decrypt_or_administer() {
    let metadata = metadata();
    let linked = linked(metadata, "hedgerow-relay");
    for never in ["hedgerow-secure-connect", "hedgerow-tunnel", "hedgerow-uem-core", "dimpl"] {
        assert!(!linked.contains(never), "the relay links {never}");
    }
    assert!(linked.contains("hedgerow-shared"), "the walk over dependencies finds nothing: {linked:?}");
}

#[test]
fn pure_crates_link_no_async_runtime_and_no_sockets() {
    let metadata = metadata();
    for (krate, _) in PURE {
        let linked = linked(metadata, krate);
        for never in ["tokio", "mio", "async-std", "smol", "socket2", "hyper", "quinn", "hedgerow-runtime"] {
            assert!(!linked.contains(never), "{krate} links {never}");
        }
    }
    assert!(linked(metadata, "hedgerow-runtime").contains("tokio"), "the walk over dependencies does not work");
}

#[test]
fn pure_crates_read_no_clock_and_no_global_randomness() {
    let never = [
        "Instant::now",
        "SystemTime::now",
        "UtcDateTime::now",
        "OffsetDateTime::now",
        "OsRng",
        "thread_rng",
        "rand::rng(",
        "rand::random",
        "SystemRandom",
        "getrandom",
        "std::net::Tcp",
        "std::net::Udp",
        "std::fs::",
        "std::thread",
    ];
    for (krate, folder) in PURE {
        for (path, number, line) in code_lines(&root().join(folder)) {
            for word in never {
                assert!(!line.contains(word), "{krate} uses {word}: {}:{number}", path.display());
            }
        }
    }
}

#[test]
fn layers_point_down_only() {
    let layers: BTreeMap<_, _> = LAYERS.iter().copied().collect();
    let metadata = metadata();
    for package in metadata.workspace_packages() {
        let own = layers.get(package.name.as_str()).unwrap_or_else(|| panic!("{} has no layer", package.name));
        for dependency in package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal) {
            if let Some(below) = layers.get(dependency.name.as_str()) {
                assert!(below < own, "{} (layer {own}) depends on {} (layer {below})", package.name, dependency.name);
            }
        }
    }
}

#[test]
fn every_crate_obeys_the_workspace_lints_and_has_no_features() {
    for package in metadata().workspace_packages() {
        let manifest = std::fs::read_to_string(&package.manifest_path).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{} does not take the workspace's lints", package.name);
        let features: Vec<_> = package.features.keys().map(|f| (package.name.as_str(), f.as_str())).collect();
        assert!(features.is_empty() || features == [INTEROP], "Cargo features: {features:?}");
    }
}

#[test]
fn no_build_of_the_product_speaks_dtls_1_2_or_links_what_its_interop_tests_do() {
    let (krate, feature) = INTEROP;
    let metadata = metadata();
    let resolve = metadata.resolve.as_ref().unwrap();
    let mut seen = 0;
    for node in &resolve.nodes {
        let name = metadata[&node.id].name.as_str();
        seen += u32::from(name == krate);
        // The default is empty too: what nobody asks for is off.
        assert!(name != krate || node.features.is_empty(), "{krate} is built with {:?}", node.features);
        assert!(
            !name.contains("wolfssl") && name != "hedgerow-interop",
            "{name} is GPL: only tests/interop may use it"
        );
    }
    assert_eq!(seen, 1, "the walk over packages does not work");
    for package in metadata.workspace_packages() {
        let asks = package.dependencies.iter().any(|d| d.features.iter().any(|f| f == feature));
        assert!(!asks, "{} enables {feature}", package.name);
    }
    // The constructor stands behind the feature, and nothing else does.
    let behind: Vec<_> = sources().filter(|(.., line)| line.contains(feature)).map(|(.., l)| l).collect();
    assert_eq!(behind, [format!("    #[cfg(feature = \"{feature}\")]")]);
    let driver = std::fs::read_to_string(root().join("secure-connect/src/session/dtls.rs")).unwrap();
    let (before, after) = driver.split_once(&behind[0]).unwrap();
    assert!(!before.contains("new_12"), "DTLS 1.2 without the feature");
    let rest = after.split_once("\n    }\n").unwrap().1;
    assert!(!rest.contains("new_12") && !rest.contains("new_auto"), "DTLS 1.2 without the feature");
}

#[test]
fn only_the_scope_opens_the_door_to_tasks() {
    for (path, number, line) in sources() {
        let lifted = line.contains("clippy::disallowed_methods");
        assert!(
            !lifted || path.ends_with("shared/runtime/src/scope.rs"),
            "{}:{number} lifts a rule of clippy.toml",
            path.display()
        );
    }
}

#[test]
fn the_node_listens_nowhere() {
    for (path, number, line) in code_lines(&root().join("connectivity-node/src")) {
        for word in ["TcpListener::bind", ".listen(", "UnixListener", "Endpoint::server"] {
            assert!(!line.contains(word), "the node opens a port: {}:{number}", path.display());
        }
    }
}

#[test]
fn every_drop_reason_is_counted_somewhere() {
    let fault = std::fs::read_to_string(root().join("shared/src/fault.rs")).unwrap();
    let list = fault.split("pub const ALL").nth(1).unwrap().split("];").next().unwrap();
    let reasons: Vec<_> = list.lines().filter_map(|l| l.trim().strip_prefix("Self::")?.strip_suffix(',')).collect();
    assert!(reasons.len() > 5, "{reasons:?}");
    let code: String =
        sources().filter(|(p, ..)| !p.ends_with("shared/src/fault.rs")).map(|(.., l)| l + "\n").collect();
    let never: Vec<_> = reasons.iter().filter(|r| !code.contains(&format!("DropReason::{r}"))).collect();
    assert!(never.is_empty(), "announced as metrics and never counted: {never:?}");
}

#[test]
fn metric_names_follow_one_form() {
    let mut seen = 0;
    for (path, number, line) in sources() {
        for (kind, rest) in ["counter", "gauge", "histogram"].iter().flat_map(|k| {
            line.split(&format!(" metrics::{k}!(\"")).skip(1).map(move |r| (*k, r.to_owned())).collect::<Vec<_>>()
        }) {
            let name = rest.split('"').next().unwrap_or_default();
            let place = format!("{name} at {}:{number}", path.display());
            assert!(name.starts_with("hedgerow_"), "{place}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "counters and only they end in _total: {place}");
            assert!(
                kind != "histogram" || name.ends_with("_seconds") || name.ends_with("_bytes"),
                "base units: {place}"
            );
            seen += 1;
        }
    }
    assert!(seen > 0, "no metric was found");
}

#[test]
fn no_source_file_is_longer_than_a_reader_bears() {
    let mut lines: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for (path, number, _) in sources() {
        lines.insert(path, number);
    }
    assert!(lines.len() > 20);
    let long: Vec<_> = lines.iter().filter(|(_, n)| **n > MAX_LINES).collect();
    assert!(long.is_empty(), "longer than {MAX_LINES} lines: {long:?}");
}

#[test]
fn main_reads_like_a_table_of_contents() {
    let main = std::fs::read_to_string(root().join("cli/src/main.rs")).unwrap();
    assert!(main.lines().count() < 100);
}

#[test]
fn the_code_map_names_what_exists() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let map =
        text.split("\n## Code map").nth(1).expect("ARCHITECTURE.md has a code map").split("\n## ").next().unwrap();
    let paths: Vec<_> = quoted(map).filter(|q| q.contains('/')).collect();
    assert!(paths.len() > 20, "{paths:?}");
    let missing: Vec<_> = paths.iter().filter(|p| !root().join(p).exists()).collect();
    assert!(missing.is_empty(), "the code map names what does not exist: {missing:?}");
}

#[test]
fn the_coverage_table_and_the_invariants_name_tests_that_exist() {
    let own = std::fs::read_to_string(root().join("tests/tests/invariants.rs")).unwrap();
    let tests: BTreeSet<String> = sources()
        .map(|(.., line)| line)
        .chain(own.lines().map(str::to_owned))
        .filter_map(|line| {
            let (before, name) = line.trim_start().split_once("fn ")?;
            let plain = before.split(' ').all(|word| matches!(word, "" | "async" | "pub(crate)"));
            // Suites that run against several stores are generic.
            plain.then(|| name.split(['(', '<']).next().map(str::to_owned))?
        })
        .collect();
    for document in ["docs/coverage.md", "docs/attacks.md", "ARCHITECTURE.md"] {
        let text = std::fs::read_to_string(root().join(document)).unwrap();
        // A test's name is a sentence: at least three words joined by underscores.
        let is_test = |q: &&str| {
            q.matches('_').count() >= 3
                && q.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
                && !q.starts_with("hedgerow_")
        };
        let missing: Vec<_> = quoted(&text).filter(is_test).filter(|q| !tests.contains(*q)).collect();
        assert!(missing.is_empty(), "{document} names tests that do not exist: {missing:?}");
    }
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The workspace as Cargo resolves it for Linux; asked once, without the network.
fn metadata() -> &'static Metadata {
    static METADATA: OnceLock<Metadata> = OnceLock::new();
    METADATA.get_or_init(|| {
        let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let options = ["--offline".to_owned(), "--filter-platform".to_owned(), platform];
        MetadataCommand::new().manifest_path(root().join("Cargo.toml")).other_options(options).exec().unwrap()
    })
}

/// Names of all packages that end up in the same program as `krate`: normal dependencies, transitively.
fn linked(metadata: &Metadata, krate: &str) -> BTreeSet<String> {
    let resolve = metadata.resolve.as_ref().unwrap();
    let nodes: BTreeMap<&PackageId, _> = resolve.nodes.iter().map(|n| (&n.id, n)).collect();
    let start = metadata
        .workspace_packages()
        .into_iter()
        .find(|p| p.name.as_str() == krate)
        .unwrap_or_else(|| panic!("no crate {krate}"));
    let (mut seen, mut queue) = (BTreeSet::new(), VecDeque::from([&start.id]));
    while let Some(id) = queue.pop_front() {
        for dependency in &nodes[id].deps {
            let normal = dependency.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal);
            if normal && seen.insert(&dependency.pkg) {
                queue.push_back(&dependency.pkg);
            }
        }
    }
    seen.into_iter().map(|id| metadata[id].name.to_string()).collect()
}

/// Every line of every Rust file of the workspace but this one: path, number from 1, text.
fn sources() -> impl Iterator<Item = (PathBuf, usize, String)> {
    let here = root().join("tests/tests/invariants.rs");
    let mut files = Vec::new();
    for (folder, _) in folders() {
        collect(&root().join(folder), &mut files);
    }
    files.into_iter().filter(move |f| *f != here).flat_map(|file| {
        let text = std::fs::read_to_string(&file).unwrap();
        text.lines()
            .map(str::to_owned)
            .collect::<Vec<_>>()
            .into_iter()
            .enumerate()
            .map(move |(i, l)| (file.clone(), i + 1, l))
    })
}

fn folders() -> Vec<(String, PathBuf)> {
    let members = metadata()
        .workspace_packages()
        .into_iter()
        .map(|p| p.manifest_path.parent().unwrap().to_owned())
        .collect::<Vec<_>>();
    // `shared/runtime` lies in `shared`: sources are collected per crate from its own src, tests and benches.
    let below = |m: &cargo_metadata::camino::Utf8PathBuf| ["src", "tests", "interop/src"].map(|d| m.join(d));
    members.iter().flat_map(below).filter(|d| d.exists()).map(|d| (d.to_string(), d.into_std_path_buf())).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_none_or(|n| n != "fuzz" && n != "target") {
                collect(&path, files);
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// Lines of code below `folder`: no comments, nothing from `#[cfg(test)]` on, no files of tests.
fn code_lines(folder: &Path) -> Vec<(PathBuf, usize, String)> {
    let mut files = Vec::new();
    collect(folder, &mut files);
    let read = files.len();
    let mut out = Vec::new();
    for file in files.into_iter().filter(|f| f.file_stem().is_none_or(|s| s != "tests" && s != "testing")) {
        let text = std::fs::read_to_string(&file).unwrap();
        for (i, line) in text.lines().enumerate() {
            if line.trim() == "#[cfg(test)]" {
                break;
            }
            if !line.trim_start().starts_with("//") {
                out.push((file.clone(), i + 1, line.to_owned()));
            }
        }
    }
    assert!(read > 0, "nothing was read below {}", folder.display());
    out
}
