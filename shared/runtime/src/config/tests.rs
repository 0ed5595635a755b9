use std::os::unix::fs::PermissionsExt;

use super::*;

#[derive(Debug, Deserialize, PartialEq)]
struct Sample {
    name: String,
    listen: Listen,
    #[serde(default)]
    peers: Vec<Peer>,
    #[serde(default)]
    words: Vec<String>,
    #[serde(default)]
    mode: Mode,
    key_file: Option<SecretFile>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Listen {
    link: std::net::SocketAddr,
    #[serde(default)]
    backlog: u16,
    #[serde(default)]
    fast: bool,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Peer {
    address: String,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    #[default]
    Plain,
    MuchMore,
}

const GOOD: &str = "name = \"a\"\n[listen]\nlink = \"127.0.0.1:1\"\n";

fn sources(file: Option<&Path>, environment: &[(&str, &str)]) -> Sources {
    Sources {
        role: "relay".into(),
        file: file.map(Into::into),
        flags: vec![],
        environment: environment.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
    }
}

fn problem(text: &str) -> String {
    parse::<Sample>("/etc/x.toml", text).unwrap_err().to_string()
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_likely_one() {
    let text = problem("name = \"a\"\nmoed = \"plain\"\n[listen]\nlink = \"127.0.0.1:1\"\nbaklog = 3\n");
    assert_eq!(
        text,
        "/etc/x.toml:2: unknown key `moed`; did you mean `mode`?\n\
         /etc/x.toml:5: unknown key `listen.baklog`; did you mean `backlog`?"
    );
    let text = problem(&format!("{GOOD}[[peers]]\naddress = \"x\"\nzzz = 1\n"));
    assert_eq!(text, "/etc/x.toml:6: unknown key `peers[0].zzz`; known here: address");
    let text = problem(&format!("{GOOD}[lisen]\n"));
    assert!(text.contains("/etc/x.toml:4: unknown key `lisen`; did you mean `listen`?"), "{text}");
}

#[test]
fn a_wrong_type_says_key_and_what_was_expected() {
    for (bad, expected) in [
        ("name = 3\n[listen]\nlink = \"127.0.0.1:1\"", "/etc/x.toml:1: `name`: expected a string, found integer `3`"),
        ("name = \"a\"\n[listen]\nlink = \"nowhere\"", "/etc/x.toml:3: `listen.link`: invalid socket address syntax"),
        (
            "name = \"a\"\nlisten = { link = \"127.0.0.1:1\", backlog = 70000 }",
            "/etc/x.toml:2: `listen.backlog`: expected u16, found integer `70000`",
        ),
        (
            "name = \"a\"\nmode = \"much-mor\"\n[listen]\nlink = \"127.0.0.1:1\"",
            "/etc/x.toml:2: `mode`: \"much-mor\" is none of `plain`, `much-more`; did you mean `much-more`?",
        ),
        ("name = \"a\"\n[listen]\n", "/etc/x.toml:2: `listen`: the key `link` is missing"),
        ("[listen]\nlink = \"127.0.0.1:1\"", "/etc/x.toml:1: the key `name` is missing"),
        ("name = \"a\"\nlisten = 5", "/etc/x.toml:2: `listen`: expected struct Listen, found integer `5`"),
    ] {
        assert_eq!(problem(bad), expected);
    }
    assert!(problem("name = \"a").starts_with("/etc/x.toml:1: "));
}

#[test]
fn flag_over_environment_over_conf_d_over_file_over_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, format!("{GOOD}backlog = 1\n")).unwrap();
    let load_with = |s: &Sources| load::<Sample>(s).unwrap().value;
    assert_eq!(load_with(&sources(Some(&file), &[])).listen.backlog, 1);
    std::fs::create_dir(dir.path().join("conf.d")).unwrap();
    std::fs::write(dir.path().join("conf.d/20.toml"), "[listen]\nbacklog = 3\n").unwrap();
    std::fs::write(dir.path().join("conf.d/10.toml"), "name = \"b\"\n[listen]\nbacklog = 2\n").unwrap();
    let merged = load_with(&sources(Some(&file), &[]));
    assert_eq!((merged.name.as_str(), merged.listen.backlog), ("b", 3));
    let with_env = sources(Some(&file), &[("HEDGEROW_RELAY__LISTEN__BACKLOG", "4"), ("HEDGEROW_NODE__ZZZ", "1")]);
    assert_eq!(load_with(&with_env).listen.backlog, 4);
    assert_eq!(load_with(&with_env.clone().flag("listen.backlog", Some(5))).listen.backlog, 5);
    assert_eq!(load_with(&with_env.flag("listen.backlog", None::<u16>)).listen.backlog, 4);
}

#[test]
fn the_environment_alone_is_enough_and_takes_the_type_of_its_field() {
    let s = sources(
        None,
        &[
            ("HEDGEROW_RELAY__NAME", "007"),
            ("HEDGEROW_RELAY__LISTEN__LINK", "[::1]:9"),
            ("HEDGEROW_RELAY__LISTEN__FAST", "true"),
            ("HEDGEROW_RELAY__WORDS", "one, two"),
            ("HEDGEROW_RELAY__MODE", "much-more"),
            ("HEDGEROW_RELAY__KEY_FILE", ""),
        ],
    );
    let loaded = load::<Sample>(&s).unwrap();
    assert_eq!(loaded.value.name, "007");
    assert!(loaded.value.listen.fast);
    assert_eq!(loaded.value.words, ["one", "two"]);
    assert_eq!((loaded.value.mode, loaded.value.key_file), (Mode::MuchMore, None));
    assert!(loaded.set.contains(&("name".into(), "environment variable HEDGEROW_RELAY__NAME".into())));
}

#[test]
fn a_wrong_variable_is_named() {
    let base = [("HEDGEROW_RELAY__NAME", "x"), ("HEDGEROW_RELAY__LISTEN__LINK", "[::1]:9")];
    for (name, value, expected) in [
        ("HEDGEROW_RELAY__LISTEN__BACKLOG", "many", "`listen.backlog`: expected u16, found string \"many\""),
        ("HEDGEROW_RELAY__LISTEN__BAKLOG", "1", "unknown key `listen.baklog`; did you mean `backlog`?"),
        ("HEDGEROW_RELAY__", "1", "expected HEDGEROW_RELAY__KEY"),
    ] {
        let s = sources(None, &[base[0], base[1], (name, value)]);
        let fault = load::<Sample>(&s).unwrap_err().to_string();
        assert!(fault.contains(expected) && fault.contains(name), "{fault}");
    }
}

#[test]
fn a_missing_file_is_refused_by_name() {
    let fault = load::<Sample>(&sources(Some(Path::new("/nonexistent/x.toml")), &[])).unwrap_err();
    assert!(fault.to_string().contains("/nonexistent/x.toml"), "{fault}");
}

#[test]
fn a_secret_file_that_others_can_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "s3cret\n").unwrap();
    let text = format!("key_file = {key:?}\n{GOOD}");
    for mode in [0o644, 0o640, 0o604, 0o620] {
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        let fault = parse::<Sample>("x.toml", &text).unwrap_err().to_string();
        assert!(fault.contains("chmod 600") && fault.contains("`key_file`"), "{fault}");
    }
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let sample = parse::<Sample>("x.toml", &text).unwrap();
    let secret = sample.key_file.as_ref().unwrap();
    assert_eq!(secret.secret().expose(), b"s3cret");
    assert!(!format!("{sample:?}").contains("s3cret"));
    std::fs::write(&key, "\n").unwrap();
    assert!(parse::<Sample>("x.toml", &text).unwrap_err().to_string().contains("is empty"));
    std::fs::remove_file(&key).unwrap();
    assert!(parse::<Sample>("x.toml", &text).is_err());
}
