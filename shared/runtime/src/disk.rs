//! Files that are replaced as a whole: what a role must not lose, nor find half written after a power cut.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces a file, or makes it: whole or not at all, on disk when this returns, mode 0600. It is written beside, as
/// `NAME.new`, by one writer at a time.
///
/// # Errors
/// What failed. The old file is still there, unless it was the system's word that the new one is on disk for good.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no path of a file"));
    };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let opened = File::open(folder)?;
    let mut beside = name.to_owned();
    beside.push(".new");
    let beside = folder.join(beside);
    // One that was left over may have another mode.
    let _ = fs::remove_file(&beside);
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    opened.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_stays_private_whatever_was_left_over() {
        let folder = tempfile::tempdir().unwrap();
        let (path, left_over) = (folder.path().join("key"), folder.path().join("key.new"));
        for bytes in [&b"one"[..], b"two"] {
            fs::write(&left_over, "half").unwrap();
            fs::set_permissions(&left_over, fs::Permissions::from_mode(0o644)).unwrap();
            replace(&path, bytes).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            assert!(!left_over.exists());
        }
        assert!(replace(&folder.path().join("nowhere/key"), b"three").is_err());
        assert!(replace(Path::new("/"), b"three").is_err());
    }
}
