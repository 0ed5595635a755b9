//! The merged tree of what files, environment and flags say, each value with the place it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{ConfigFault, Sources, read_bounded};

/// Where a value came from.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// A line of a file, counted from 1.
    Line(PathBuf, usize),
    /// An environment variable.
    Variable(String),
    /// A flag that sets this key.
    Flag,
    /// Nowhere: the root of a configuration that nothing sets.
    Nowhere,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(file, line) => write!(f, "{}:{line}", file.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag => f.write_str("command line"),
            Self::Nowhere => f.write_str("configuration"),
        }
    }
}

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

/// A value of a file, or a text whose type is decided by the field that reads it.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Table(BTreeMap<String, Node>),
    Array(Vec<Node>),
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    /// From the environment or a flag.
    Text(String),
}

impl Node {
    /// Every key that holds no table, with its place.
    pub(super) fn leaves(&self) -> Vec<(String, String)> {
        fn walk(node: &Node, path: &str, out: &mut Vec<(String, String)>) {
            match &node.value {
                Value::Table(table) => {
                    for (key, below) in table {
                        walk(below, &join(path, key), out);
                    }
                }
                _ => out.push((path.to_owned(), node.place.to_string())),
            }
        }
        let mut out = Vec::new();
        walk(self, "", &mut out);
        out
    }

    /// Tables are merged key by key; anything else takes the place of what was there.
    fn merge(&mut self, other: Self) {
        match (&mut self.value, other) {
            (Value::Table(ours), Self { value: Value::Table(theirs), .. }) => {
                for (key, node) in theirs {
                    match ours.get_mut(&key) {
                        Some(ours) => ours.merge(node),
                        None => drop(ours.insert(key, node)),
                    }
                }
            }
            (_, other) => *self = other,
        }
    }
}

/// A key's path with one more key, which is quoted as TOML does when it is not a plain word.
pub(super) fn join(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let key = if plain { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// Reads every source and merges them, the weakest first.
pub(super) fn merge(sources: &Sources) -> Result<(Node, Vec<PathBuf>), ConfigFault> {
    let mut root = Node { value: Value::Table(BTreeMap::new()), place: Place::Nowhere };
    let files = match &sources.file {
        Some(file) => files(file)?,
        None => Vec::new(),
    };
    for file in &files {
        let text = String::from_utf8(read_bounded(file)?)
            .map_err(|_| ConfigFault::new(format!("{} is not UTF-8 text", file.display())))?;
        root.merge(parse(file, &text)?);
        if let Some(first) = files.first() {
            root.place = Place::Line(first.clone(), 1);
        }
    }
    let prefix = sources.prefix();
    let mut variables: Vec<_> = sources.environment.iter().filter(|(name, _)| name.starts_with(&prefix)).collect();
    variables.sort();
    for (name, value) in variables {
        let path = name[prefix.len()..].to_ascii_lowercase();
        let keys: Vec<&str> = path.split("__").collect();
        if keys.iter().any(|k| k.is_empty()) {
            return Err(ConfigFault::new(format!(
                "environment variable {name}: expected {prefix}KEY or {prefix}SECTION__KEY"
            )));
        }
        root.merge(nest(&keys, value, &Place::Variable(name.clone())));
    }
    for (path, value) in &sources.flags {
        let keys: Vec<&str> = path.split('.').collect();
        root.merge(nest(&keys, value, &Place::Flag));
    }
    Ok((root, files))
}

/// The file and the `conf.d/*.toml` beside it.
fn files(file: &Path) -> Result<Vec<PathBuf>, ConfigFault> {
    let mut files = vec![file.to_owned()];
    let directory = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).join("conf.d");
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(files),
        Err(e) => return Err(ConfigFault::new(format!("cannot read {}: {e}", directory.display()))),
    };
    let mut more = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| ConfigFault::new(format!("cannot read {}: {e}", directory.display())))?;
        more.extend(Some(entry.path()).filter(|p| p.extension().is_some_and(|e| e == "toml")));
    }
    more.sort();
    files.extend(more);
    Ok(files)
}

fn nest(keys: &[&str], text: &str, place: &Place) -> Node {
    let value = match keys.split_first() {
        None => Value::Text(text.to_owned()),
        Some((key, below)) => Value::Table(BTreeMap::from([((*key).to_owned(), nest(below, text, place))])),
    };
    Node { value, place: place.clone() }
}

/// Reads the text of one file.
pub(super) fn parse(file: &Path, text: &str) -> Result<Node, ConfigFault> {
    let lines =
        Lines { file, starts: std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect() };
    let table = DeTable::parse(text).map_err(|e| {
        let place = lines.place(e.span().map_or(0, |s| s.start));
        ConfigFault::new(format!("{place}: {}", e.message()))
    })?;
    let value = lines.table(table.get_ref())?;
    Ok(Node { value, place: Place::Line(file.to_owned(), 1) })
}

/// Turns byte offsets of one file into places.
struct Lines<'a> {
    file: &'a Path,
    starts: Vec<usize>,
}

impl Lines<'_> {
    fn place(&self, offset: usize) -> Place {
        Place::Line(self.file.to_owned(), self.starts.partition_point(|s| *s <= offset))
    }

    fn table(&self, table: &DeTable<'_>) -> Result<Value, ConfigFault> {
        let mut out = BTreeMap::new();
        for (key, value) in table {
            // A key's own line, so that an unknown section is shown where it is written.
            let node = Node { value: self.value(value)?, place: self.place(key.span().start) };
            out.insert(key.get_ref().to_string(), node);
        }
        Ok(Value::Table(out))
    }

    fn value(&self, value: &Spanned<DeValue<'_>>) -> Result<Value, ConfigFault> {
        let refuse = |why: &str| ConfigFault::new(format!("{}: {why}", self.place(value.span().start)));
        Ok(match value.get_ref() {
            DeValue::String(s) => Value::String(s.to_string()),
            DeValue::Integer(i) => Value::Integer(
                i64::from_str_radix(i.as_str(), i.radix()).map_err(|_| refuse("the number does not fit 64 bits"))?,
            ),
            DeValue::Float(f) => Value::Float(f.as_str().parse().map_err(|_| refuse("expected a number"))?),
            DeValue::Boolean(b) => Value::Boolean(*b),
            DeValue::Datetime(_) => return Err(refuse("no key takes a date; put text in quotes")),
            DeValue::Array(array) => {
                let each =
                    |v: &Spanned<DeValue<'_>>| Ok(Node { value: self.value(v)?, place: self.place(v.span().start) });
                Value::Array(array.iter().map(each).collect::<Result<_, ConfigFault>>()?)
            }
            DeValue::Table(table) => self.table(table)?,
        })
    }
}
