//! Where the database is, getting to it, and what to do when that fails.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hedgerow_runtime::boot::Unreachable;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, Executor as _};
use tokio::time::{Instant, sleep, timeout};

use super::directory::OpenError;
use super::sql::Pool;

/// Connections to SQLite: writers take turns anyway, the others read.
const SQLITE_CONNECTIONS: u32 = 4;
/// Connections to PostgreSQL, whose default is 100 for everybody.
const POSTGRES_CONNECTIONS: u32 = 10;
/// How long a commit waits for another one, and a request for a connection.
const WAIT: Duration = Duration::from_secs(10);
/// How long one attempt to reach a server may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(250);

/// Where the database is. Shown without its password.
#[derive(Clone)]
pub enum Place {
    /// A file.
    Sqlite(PathBuf),
    /// A server.
    Postgres {
        /// How to get there; holds the password.
        options: Box<PgConnectOptions>,
        /// How long to wait for a server that does not answer.
        wait: Duration,
    },
}

impl Place {
    /// SQLite in the state directory: the default.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        Self::Sqlite(directory.join("core.db"))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres { options, .. } => {
                let name = options.get_database().unwrap_or(options.get_username());
                match options.get_socket() {
                    Some(socket) => write!(f, "{name:?} at {}, port {}", socket.display(), options.get_port()),
                    None => write!(f, "{name:?} at {}:{}", options.get_host(), options.get_port()),
                }
            }
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a PostgreSQL server does not let us in. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Nobody answered in time.
    #[error(
        "the database {place} did not answer within {seconds} s: see that it runs and that database.url says where"
    )]
    Silent {
        /// Where.
        place: String,
        /// How long it was waited for.
        seconds: u64,
        /// What was found last.
        #[source]
        source: Unreachable,
    },
    /// The name does not resolve.
    #[error("the host of the database {place} is unknown: correct database.url, or the name service")]
    Host {
        /// Where.
        place: String,
        /// What the name service says.
        #[source]
        source: Unreachable,
    },
    /// Wrong password, or no right to come in.
    #[error(
        "the database {place} does not let {user:?} in: see database.password_file, the user in database.url, and pg_hba.conf"
    )]
    Denied {
        /// Where.
        place: String,
        /// As whom.
        user: String,
        /// What the server says.
        #[source]
        source: sqlx::Error,
    },
    /// There is no such database.
    #[error("there is no database {place}: make it with CREATE DATABASE .. OWNER .., or correct database.url")]
    Missing {
        /// Where.
        place: String,
        /// What the server says.
        #[source]
        source: sqlx::Error,
    },
    /// TLS failed.
    #[error(
        "the database {place} cannot be reached by TLS: name its CA in database.url (sslrootcert=FILE), or say sslmode=disable where the network is your own"
    )]
    Tls {
        /// Where.
        place: String,
        /// What is wrong with it.
        #[source]
        source: sqlx::Error,
    },
    /// Anything else.
    #[error("the database {place} cannot be used")]
    Other {
        /// Where.
        place: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
}

/// Connections to the file, which must exist.
pub(super) fn sqlite(path: &Path) -> Pool {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        // What was answered survives a power cut: a device must not hold a certificate that the core forgot.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(WAIT);
    let pool = SqlitePoolOptions::new().max_connections(SQLITE_CONNECTIONS).acquire_timeout(WAIT);
    Pool::Sqlite(pool.connect_lazy_with(options))
}

/// Connections to a server that was reached once.
fn postgres(options: &PgConnectOptions) -> Pool {
    let milliseconds = |time: Duration| time.as_millis().to_string();
    let options = options.clone().application_name("hedgerow-core").options([
        ("lock_timeout", milliseconds(WAIT)),
        ("statement_timeout", milliseconds(WAIT * 2)),
        // A core that vanished in the middle of a commit must not keep the tenant's row for itself.
        ("idle_in_transaction_session_timeout", milliseconds(WAIT * 3)),
        ("tcp_keepalives_idle", "30".to_owned()),
    ]);
    let pool = PgPoolOptions::new().max_connections(POSTGRES_CONNECTIONS).acquire_timeout(WAIT);
    // A server may be set to answer commits before they are on its disk; what the core acknowledged must not be lost.
    // Stricter settings (remote_apply) stay.
    let pool = pool.after_connect(|connection, _| {
        Box::pin(async move {
            let sql = "SELECT set_config('synchronous_commit', 'on', false) \
                       WHERE current_setting('synchronous_commit') = 'off'";
            connection.execute(sql).await.map(drop)
        })
    });
    Pool::Postgres(pool.connect_lazy_with(options))
}

/// Gets to the database, waiting as long as the place says for one that is just starting.
pub(super) async fn reach(place: &Place) -> Result<Pool, OpenError> {
    match place {
        Place::Sqlite(path) => Ok(sqlite(path)),
        Place::Postgres { options, wait } => {
            knock(place, options, *wait).await?;
            Ok(postgres(options))
        }
    }
}

async fn knock(place: &Place, options: &PgConnectOptions, wait: Duration) -> Result<(), ServerError> {
    let start = Instant::now();
    let mut told = false;
    loop {
        let error = match timeout(ATTEMPT.min(wait), PgConnection::connect_with(options)).await {
            Ok(Ok(connection)) => {
                // The server notices by itself if this goodbye does not arrive.
                let _ = connection.close().await;
                return Ok(());
            }
            Ok(Err(error)) => error,
            Err(_) => sqlx::Error::Io(ErrorKind::TimedOut.into()),
        };
        if !passes(&error) {
            return Err(fault(place, options, error));
        }
        if start.elapsed() + PAUSE >= wait {
            let (place, source) = (place.to_string(), Unreachable(error.to_string()));
            if unknown_host(&error) {
                return Err(ServerError::Host { place, source });
            }
            return Err(ServerError::Silent { place, seconds: wait.as_secs(), source });
        }
        if !told {
            told = true;
            tracing::warn!(database = %place, %error, seconds = wait.as_secs(), "the database does not answer; waiting");
        }
        sleep(PAUSE).await;
    }
}

/// Whether waiting may help: nobody there yet, or somebody who is just starting or leaving. A name may come, too: a
/// container has one once it runs.
fn passes(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() != ErrorKind::PermissionDenied && !is_tls(error),
        sqlx::Error::Database(error) => {
            matches!(error.code().as_deref(), Some("57P03" | "57P01" | "57P02" | "53300"))
        }
        _ => false,
    }
}

/// What rustls does not like about the other side comes wrapped like a broken connection.
fn is_tls(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

/// The system's resolver has no error of its own in the standard library, only this text.
fn unknown_host(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.to_string().contains("failed to lookup address"))
}

fn fault(place: &Place, options: &PgConnectOptions, source: sqlx::Error) -> ServerError {
    let (place, user) = (place.to_string(), options.get_username().to_owned());
    let code = source.as_database_error().and_then(|e| e.code()).unwrap_or_default().into_owned();
    match (code.as_str(), &source) {
        // A role that does not exist is answered like a wrong password by most methods, and by 28000 by the others.
        ("28P01" | "28000" | "42501", _) => ServerError::Denied { place, user, source },
        // Asked for a password, and there is none.
        (_, sqlx::Error::Configuration(_)) if source.to_string().contains("password") => {
            ServerError::Denied { place, user, source }
        }
        ("3D000", _) => ServerError::Missing { place, source },
        (_, sqlx::Error::Tls(_)) => ServerError::Tls { place, source },
        (_, sqlx::Error::Io(error)) if is_tls(error) => ServerError::Tls { place, source },
        _ => ServerError::Other { place, source },
    }
}
