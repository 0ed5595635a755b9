//! Opening the state directory: private, ours alone, with the key that belongs to the database.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use hedgerow_runtime::disk;
use hedgerow_uem_core::Random;
use hedgerow_uem_core::seal::Kek;
use hedgerow_uem_core::store::StoreError;
use zeroize::Zeroizing;

use super::connect::{Place, ServerError, reach};
use super::database::Database;
use super::migrate::{Asked, Migrated, Plan};

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
    /// The server does not let us in.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The database does not do what it is asked.
    #[error("the database cannot be used")]
    Database(#[from] sqlx::Error),
    /// The same, through the repository.
    #[error("the database cannot be used")]
    Store(#[from] StoreError),
    /// A newer program was here.
    #[error(
        "the database {0} was made by a newer version of hedgerow (it has migration {1}): run that version, or restore the backup from before the upgrade"
    )]
    Newer(String, i64),
    /// Same number, other content.
    #[error(
        "migration {1} in the database {0} is not the one of this version: the database belongs to another build of hedgerow"
    )]
    Changed(String, i64),
    /// Begun and not ended.
    #[error("migration {1} in the database {0} was begun and not ended: restore the backup from before it")]
    Unfinished(String, i64),
    /// Something is pending, and a start does not do it.
    #[error(
        "the database {0} lacks {1} migration(s): back it up (pg_dump), then run `hedgerow core migrate --backup-exists`"
    )]
    Pending(String, usize),
    /// Something is pending, and nobody said that there is a backup.
    #[error(
        "{1} migration(s) would be applied to the database {0}: back it up first (pg_dump --format=custom), then say --backup-exists"
    )]
    NoBackup(String, usize),
    /// No copy, no migration.
    #[error("the copy {path} before migrating cannot be made; nothing was changed: is there room?")]
    Backup {
        /// The copy.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A migration failed.
    #[error("the database {place} cannot be brought up to date")]
    Migration {
        /// Where.
        place: String,
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
    pub store: Database,
    /// The key of its secrets.
    pub kek: Kek,
    /// Held while the state is in use; the database may outlive it by the requests in flight.
    pub lock: Lock,
}

/// The right to a state directory, given back when dropped. Said explicitly, because closing the file would not do while a
/// child that was just forked still has it, too.
#[derive(Debug)]
pub struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // What cannot be unlocked is unlocked at the process's end.
        let _ = self.0.unlock();
    }
}

impl State {
    /// Opens the state in `directory` and the database at `place`, making whatever is not there yet: directory 0700,
    /// files 0600, tables.
    ///
    /// # Errors
    /// `OpenError`; fails closed when anything secret is open to others.
    pub async fn open(directory: &Path, place: &Place) -> Result<Self, OpenError> {
        let (state, _) = Self::bring_up(directory, place, Asked::ByStart).await?;
        Ok(state)
    }

    /// Brings the database up to date at an administrator's wish, with no core running.
    ///
    /// # Errors
    /// As `open`, and when nobody says that there is a backup where we cannot make one.
    pub async fn migrate(directory: &Path, place: &Place, backup_exists: bool) -> Result<Migrated, OpenError> {
        let (state, migrated) = Self::bring_up(directory, place, Asked::ByHand { backup_exists }).await?;
        state.store.close().await;
        Ok(migrated)
    }

    /// How the database's migrations stand. Changes nothing, and needs no core to stop.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn plan(place: &Place) -> Result<Plan, OpenError> {
        if let Place::Sqlite(path) = place {
            match fs::metadata(path) {
                Ok(_) => check_private(path, 0o077, 0o600)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Plan::empty()),
                Err(source) => return Err(OpenError::Io { path: path.clone(), source }),
            }
        }
        let store = Database { pool: reach(place).await? };
        let plan = store.plan().await;
        store.close().await;
        plan
    }

    async fn bring_up(directory: &Path, place: &Place, asked: Asked) -> Result<(Self, Migrated), OpenError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io(directory))?;
        // Others may see that there is a core, but must not be able to exchange its files.
        check_private(directory, 0o022, 0o700)?;

        let lock_path = directory.join("lock");
        let lock = Lock(private(&lock_path).map_err(io(&lock_path))?);
        match lock.0.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(directory.to_owned())),
            Err(TryLockError::Error(error)) => return Err(io(&lock_path)(error)),
        }

        if let Place::Sqlite(path) = place {
            // Made here, because SQLite would make it with the umask's mode; its journals take the mode of this file.
            drop(private(path).map_err(io(path))?);
            check_private(path, 0o077, 0o600)?;
        }
        let store = Database { pool: reach(place).await? };
        let plan = store.plan().await?;
        // The key comes before the first thing that is sealed under it.
        let kek = open_kek(&directory.join("kek"), store.is_empty(&plan).await?)?;
        let migrated = store.migrate(place, &plan, asked).await?;
        if plan.is_current() {
            return Ok((Self { store, kek, lock }, migrated));
        }
        // A connection that has read the tables as they were takes a changed one's rows apart by its old columns.
        store.close().await;
        let store = Database { pool: reach(place).await? };
        Ok((Self { store, kek, lock }, migrated))
    }
}

pub(super) fn private(path: &Path) -> io::Result<File> {
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
            disk::replace(path, encode(&key).as_bytes()).map_err(io)?;
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
