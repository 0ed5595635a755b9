//! Opening the state directory: private, ours alone, with the key that belongs to the database.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use hedgerow_uem_core::Random;
use hedgerow_uem_core::seal::Kek;
use zeroize::Zeroizing;

use super::Sqlite;

/// Why the state cannot be used. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Others can read it, or, in case of the directory, write to it.
    #[error("{path} may be used by others than its owner (mode {mode:03o}): run `chmod {wanted:03o} {path}`")]
    NotPrivate {
        /// What.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode it should have.
        wanted: u32,
    },
    /// It belongs to another user.
    #[error("{0} belongs to another user: run this as its owner, or change the owner")]
    NotOurs(PathBuf),
    /// Another process has it open.
    #[error("{0} is in use by another process: one core at a time")]
    InUse(PathBuf),
    /// A database without its key.
    #[error("{0} is missing although there is a database: restore it from its backup; without it the CA key is lost")]
    KeyMissing(PathBuf),
    /// Not a key.
    #[error("{0} is not a key file: expected 64 hexadecimal digits")]
    KeyMalformed(PathBuf),
    /// The file system refused.
    #[error("{path} cannot be used")]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The database cannot be opened or brought up to date.
    #[error("the database {path} cannot be opened")]
    Database {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The database was made by a newer version, or its history differs.
    #[error("the database {path} cannot be brought up to date; was it used by a newer version?")]
    Migration {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::migrate::MigrateError,
    },
}

/// The operating system's random numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&mut self, bytes: &mut [u8]) {
        rand::fill(bytes);
    }
}

/// The state directory, open. Dropping it lets another process in.
#[derive(Debug)]
pub struct State {
    /// The database.
    pub store: Sqlite,
    /// The key of its secrets.
    pub kek: Kek,
    /// Held while the state is in use; the database may outlive it by the requests in flight.
    pub lock: File,
}

impl State {
    /// Opens the state in `directory`, making whatever is not there yet: directory 0700, files 0600.
    ///
    /// # Errors
    /// `OpenError`; fails closed when anything secret is open to others.
    pub async fn open(directory: &Path) -> Result<Self, OpenError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io(directory))?;
        // Others may see that there is a core, but must not be able to exchange its files.
        check_private(directory, 0o022, 0o700)?;

        let lock_path = directory.join("lock");
        let lock = private(&lock_path).map_err(io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(directory.to_owned())),
            Err(TryLockError::Error(error)) => return Err(io(&lock_path)(error)),
        }

        let database = directory.join("core.db");
        // An empty file is what is left when the first start was cut short before the first migration.
        let fresh = fs::metadata(&database).map_or(true, |m| m.len() == 0);
        let kek = open_kek(&directory.join("kek"), fresh)?;
        // Made here, because SQLite would make it with the umask's mode; its journals take the mode of this file.
        drop(private(&database).map_err(io(&database))?);
        check_private(&database, 0o077, 0o600)?;
        let store = Sqlite::open(&database).await?;
        Ok(Self { store, kek, lock })
    }
}

fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Refuses what grants any of the `refused` bits, or belongs to somebody else.
fn check_private(path: &Path, refused: u32, wanted: u32) -> Result<(), OpenError> {
    let metadata = fs::metadata(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & refused != 0 {
        return Err(OpenError::NotPrivate { path: path.to_owned(), mode, wanted });
    }
    // SAFETY: geteuid has no arguments, touches no memory and cannot fail.
    if metadata.uid() != unsafe { libc::geteuid() } {
        return Err(OpenError::NotOurs(path.to_owned()));
    }
    Ok(())
}

/// Reads the key; makes one when there is no database yet.
fn open_kek(path: &Path, fresh: bool) -> Result<Kek, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let mut key = Zeroizing::new([0u8; 32]);
    match File::open(path) {
        Ok(mut file) => {
            check_private(path, 0o077, 0o600)?;
            let mut text = Zeroizing::new(Vec::with_capacity(128));
            Read::by_ref(&mut file).take(128).read_to_end(&mut text).map_err(io)?;
            decode(text.trim_ascii(), &mut key).ok_or_else(|| OpenError::KeyMalformed(path.to_owned()))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && fresh => {
            SystemRandom.fill(key.as_mut_slice());
            // Written whole under another name first: a cut leaves no half key behind.
            let new = path.with_extension("new");
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(io)?;
            file.write_all(encode(&key).as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
            fs::rename(&new, path).map_err(io)?;
            let parent = path.parent().unwrap_or(Path::new("."));
            File::open(parent).and_then(|d| d.sync_all()).map_err(io)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(OpenError::KeyMissing(path.to_owned())),
        Err(error) => return Err(io(error)),
    }
    Ok(Kek::new(&key))
}

fn encode(key: &[u8; 32]) -> Zeroizing<String> {
    use std::fmt::Write as _;
    let mut text = Zeroizing::new(String::with_capacity(65));
    for byte in key {
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
    text
}

fn decode(text: &[u8], key: &mut [u8; 32]) -> Option<()> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    if text.len() != 64 {
        return None;
    }
    for (to, pair) in key.iter_mut().zip(text.chunks_exact(2)) {
        *to = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(())
}
