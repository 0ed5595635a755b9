//! Key logs: traffic secrets in the format of `SSLKEYLOGFILE` (RFC 9850), so that a capture can be opened afterwards.
//! For tests and diagnosis; whoever has the file can read what was captured.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::KeyLog;

/// Names the file for the end-to-end sessions that this process opens as a client.
pub const SESSION_KEY_LOG: &str = "HEDGEROW_SESSION_KEY_LOG";

/// Appends to one file. Several processes may share it: a line is one write.
#[derive(Debug)]
pub struct KeyLogFile(File);

impl KeyLogFile {
    /// Opens the file, made with mode 0600.
    ///
    /// # Errors
    /// It cannot be written, is a symbolic link, or others can read it.
    pub fn open(path: &Path) -> io::Result<Arc<Self>> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = options.open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.permissions().mode() & 0o077 != 0 {
            return Err(io::Error::other(
                "expected a plain file that only its owner can read: chmod 600, or remove it",
            ));
        }
        Ok(Arc::new(Self(file)))
    }
}

impl KeyLog for KeyLogFile {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let mut line = format!("{label} ");
        for byte in client_random {
            let _ = write!(line, "{byte:02x}");
        }
        line.push(' ');
        for byte in secret {
            let _ = write!(line, "{byte:02x}");
        }
        line.push('\n');
        // A full disk must not end a hand-shake; the capture then stays closed.
        let _ = (&self.0).write_all(line.as_bytes());
    }
}

/// The log that `SESSION_KEY_LOG` asks for; `None` in earnest. Read once for the process.
pub(super) fn of_sessions() -> Option<Arc<dyn KeyLog>> {
    static LOG: OnceLock<Option<Arc<KeyLogFile>>> = OnceLock::new();
    let log = LOG.get_or_init(|| {
        let path = std::env::var_os(SESSION_KEY_LOG).filter(|p| !p.is_empty())?;
        match KeyLogFile::open(Path::new(&path)) {
            Ok(log) => {
                tracing::warn!(
                    path = %Path::new(&path).display(),
                    "{SESSION_KEY_LOG} is set: whoever has this file can read the end-to-end sessions of this process"
                );
                Some(log)
            }
            Err(error) => {
                tracing::error!(path = %Path::new(&path).display(), %error, "{SESSION_KEY_LOG}: no keys are logged");
                None
            }
        }
    });
    log.clone().map(|log| log as Arc<dyn KeyLog>)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_usual_form_and_nobody_else_can_read_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        KeyLogFile::open(&path).unwrap().log("CLIENT_TRAFFIC_SECRET_0", &[0xab; 2], &[1, 2]);
        KeyLogFile::open(&path).unwrap().log("EXPORTER_SECRET", &[0xab; 2], &[3]);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "CLIENT_TRAFFIC_SECRET_0 abab 0102\nEXPORTER_SECRET abab 03\n");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(KeyLogFile::open(&path).is_err());
        std::os::unix::fs::symlink("keys", folder.path().join("link")).unwrap();
        assert!(KeyLogFile::open(&folder.path().join("link")).is_err());
    }
}
