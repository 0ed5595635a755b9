//! A role's configuration: files, environment and flags become one value, or one fault that says which key of which
//! file is wrong and what was expected there.
//!
//! The order is flag over environment over file over default. Files are TOML: the one named by `--config`, then
//! `conf.d/*.toml` beside it in the order of their names, tables merged, everything else replaced. A variable
//! `HEDGEROW_RELAY__LISTEN__LINK` sets the key `listen.link` of the relay. Secrets are never values: a key whose name
//! ends in `_file` holds the path of a file that only its owner can read (`SecretFile`), so
//! `HEDGEROW_RELAY__TLS__KEY_FILE` names a file too.
//!
//! Configuration structs derive `Deserialize` and use neither `flatten` nor `untagged`: unknown keys are found by
//! comparing with the fields that a struct declares.

mod read;
pub mod sections;
mod tree;

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hedgerow_shared::secret::Secret;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use zeroize::Zeroizing;

/// Exit code of a process whose configuration is wrong (`EX_CONFIG` of sysexits.h).
pub const EXIT_CODE: u8 = 78;
/// The largest configuration or secret file read, bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Why a configuration was refused: every problem found, one a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct ConfigFault {
    /// Each says where, which key, what is wrong and what would be right.
    pub problems: Vec<String>,
}

impl ConfigFault {
    /// A fault of one problem, for checks that a role makes itself after loading.
    #[must_use]
    pub fn new(problem: impl Into<String>) -> Self {
        Self { problems: vec![problem.into()] }
    }
}

/// Where a configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The role, as the environment names it: `relay` reads `HEDGEROW_RELAY__...`.
    pub role: String,
    /// The file named by `--config`; it must exist.
    pub file: Option<PathBuf>,
    /// Keys set by flags: (`listen.link`, `127.0.0.1:3101`).
    pub flags: Vec<(String, String)>,
    /// The environment.
    pub environment: Vec<(String, String)>,
}

impl Sources {
    /// The sources of a process: this file, and the process's own environment.
    #[must_use]
    pub fn process(role: &str, file: Option<PathBuf>) -> Self {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self { role: role.to_owned(), file, flags: Vec::new(), environment }
    }

    /// Sets a key from a flag, when the flag was given.
    #[must_use]
    pub fn flag(mut self, key: &str, value: Option<impl fmt::Display>) -> Self {
        self.flags.extend(value.map(|v| (key.to_owned(), v.to_string())));
        self
    }

    /// The beginning of the names of this role's variables.
    #[must_use]
    pub fn prefix(&self) -> String {
        format!("HEDGEROW_{}__", self.role.to_ascii_uppercase())
    }
}

/// A configuration that was read in full.
#[derive(Debug, Clone)]
pub struct Loaded<T> {
    /// The configuration.
    pub value: T,
    /// The files it was read from, in the order they were merged.
    pub files: Vec<PathBuf>,
    /// Every key that was set and by what, sorted by key; defaults are not in it.
    pub set: Vec<(String, String)>,
}

/// Reads and checks a configuration.
///
/// # Errors
/// Every unknown key, and the first value of the wrong form or missing key. The process exits with `EXIT_CODE`.
pub fn load<T: DeserializeOwned>(sources: &Sources) -> Result<Loaded<T>, ConfigFault> {
    let (tree, files) = tree::merge(sources)?;
    let value = read::read(&tree)?;
    Ok(Loaded { value, files, set: tree.leaves() })
}

/// A configuration that has been given as text, for tests and tools.
///
/// # Errors
/// As `load`; the text is called `name`.
pub fn parse<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, ConfigFault> {
    read::read(&tree::parse(Path::new(name), text)?)
}

/// A secret given by the path of its file. The file is read when the configuration is, and refused when others can
/// read it. Printed and written as its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile {
    path: PathBuf,
    secret: Secret,
}

impl SecretFile {
    /// Reads the secret; one trailing line end is not part of it.
    ///
    /// # Errors
    /// The file cannot be read, is empty, or others can read it.
    pub fn read(path: impl Into<PathBuf>) -> Result<Self, ConfigFault> {
        let path = path.into();
        let bytes = read_private_file(&path)?;
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if text.is_empty() {
            return Err(ConfigFault::new(format!("the secret file {} is empty", path.display())));
        }
        let secret = Secret::new(text.to_vec());
        Ok(Self { path, secret })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds.
    #[must_use]
    pub fn secret(&self) -> &Secret {
        &self.secret
    }
}

impl<'de> Deserialize<'de> for SecretFile {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(PathBuf::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Serialize for SecretFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.path.serialize(serializer)
    }
}

/// Reads a key or secret file of at most 4 MiB after `check_private_file`. The buffer is wiped when dropped.
///
/// # Errors
/// It cannot be read, is too large, or others can read it.
pub fn read_private_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, ConfigFault> {
    check_private_file(path)?;
    read_bounded(path).map(Zeroizing::new)
}

/// Refuses a file that anyone but its owner can read or write, or that belongs to somebody who is neither this
/// process's user nor root. Files under `$CREDENTIALS_DIRECTORY` are systemd's to guard (it does so by access control
/// lists, which look like group permissions).
///
/// # Errors
/// What is wrong and the command that mends it.
pub fn check_private_file(path: &Path) -> Result<(), ConfigFault> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|e| ConfigFault::new(format!("cannot read {shown}: {e}")))?;
    if !metadata.is_file() {
        return Err(ConfigFault::new(format!("{shown} is not a file")));
    }
    let guarded = std::env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|d| !d.is_empty() && path.starts_with(d));
    if guarded {
        return Ok(());
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(ConfigFault::new(format!(
            "{shown} can be read by others (mode {mode:04o}); make it its owner's alone: chmod 600 {shown}"
        )));
    }
    // SAFETY: geteuid has no preconditions and cannot fail.
    let us = unsafe { libc::geteuid() };
    if metadata.uid() != us && metadata.uid() != 0 {
        return Err(ConfigFault::new(format!(
            "{shown} belongs to user {} and not to user {us}, who runs this process, nor to root",
            metadata.uid()
        )));
    }
    Ok(())
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, ConfigFault> {
    use std::io::Read;
    let cannot = |e: std::io::Error| ConfigFault::new(format!("cannot read {}: {e}", path.display()));
    let file = std::fs::File::open(path).map_err(cannot)?;
    // Enough room at once: a growing buffer would leave copies of a secret behind.
    let length = file.metadata().map_err(cannot)?.len();
    let mut bytes = Vec::with_capacity(usize::try_from(length.min(MAX_FILE)).unwrap_or(0) + 1);
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(ConfigFault::new(format!("{} is larger than {MAX_FILE} bytes", path.display())));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
