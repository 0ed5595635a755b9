//! Where a verb gets a secret from: a private file, standard input, or a prompt without echo. Never a flag's value.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use hedgerow_runtime::config::SecretFile;
use hedgerow_shared::secret::Secret;
use zeroize::Zeroizing;

/// The longest secret read from standard input, bytes.
const MAX: u64 = 64 * 1024;

/// Reads the secret called `what`: from `file` (`-` is standard input), or by asking on the terminal, or from
/// standard input when it is not one.
pub(crate) fn read(what: &str, file: Option<&Path>) -> anyhow::Result<Secret> {
    match file {
        Some(path) if path == Path::new("-") => from_stdin(what),
        Some(path) => Ok(SecretFile::read(path)?.secret().clone()),
        None if std::io::stdin().is_terminal() => {
            let typed = rpassword::prompt_password(format!("{what}: ")).context("the terminal cannot be read")?;
            not_empty(what, Secret::from_text(typed))
        }
        None => from_stdin(what),
    }
}

/// As `read`, for a secret that is being chosen: on a terminal it is asked for twice.
pub(crate) fn choose(what: &str, file: Option<&Path>) -> anyhow::Result<Secret> {
    let first = read(what, file)?;
    if file.is_none() && std::io::stdin().is_terminal() {
        let again = read(&format!("{what} (again)"), None)?;
        if first != again {
            bail!("the two are not the same; nothing was changed");
        }
    }
    Ok(first)
}

fn from_stdin(what: &str) -> anyhow::Result<Secret> {
    let mut text = Zeroizing::new(Vec::with_capacity(4096));
    std::io::stdin().lock().take(MAX).read_to_end(&mut text).context("standard input cannot be read")?;
    let end = text.iter().rposition(|b| !matches!(b, b'\r' | b'\n')).map_or(0, |i| i + 1);
    not_empty(what, Secret::new(text[..end].to_vec()))
}

fn not_empty(what: &str, secret: Secret) -> anyhow::Result<Secret> {
    if secret.expose().is_empty() {
        bail!("the {what} is empty");
    }
    Ok(secret)
}

/// Writes a secret to a new file that only its owner can read. An existing file is never replaced.
pub(crate) fn write_new(path: &Path, secret: &[u8]) -> anyhow::Result<()> {
    let open = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = open.with_context(|| format!("{} cannot be made", path.display()))?;
    let written = file.write_all(secret).and_then(|()| file.write_all(b"\n")).and_then(|()| file.sync_all());
    written.with_context(|| format!("{} cannot be written", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_secret_goes_to_a_private_file_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        write_new(&path, b"abc").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read("token", Some(&path)).unwrap().expose(), b"abc");
        assert!(write_new(&path, b"other").is_err());
    }
}
