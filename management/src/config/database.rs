//! `[database]`: a file, or a server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hedgerow_runtime::config::{ConfigFault, SecretFile};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::store::Place;

/// What may stand behind the question mark of `url`.
const PARAMETERS: &[&str] = &["host", "port", "dbname", "user", "sslmode", "sslrootcert", "sslcert", "sslkey"];

/// Where the database is. Nothing given: SQLite, `core.db` in the state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseConfig {
    /// SQLite in this file instead.
    pub path: Option<PathBuf>,
    /// PostgreSQL: `postgres://user@host/name`, or `postgres:///name?host=/run/postgresql` by unix socket.
    pub url: Option<DatabaseUrl>,
    /// The password for `url`, in a file that only its owner can read.
    pub password_file: Option<SecretFile>,
    /// How many seconds a start waits for a server that does not answer.
    pub wait_seconds: u64,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self { path: None, url: None, password_file: None, wait_seconds: 30 }
    }
}

/// An address of a PostgreSQL database, without a password: it may stand on command lines and in logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    fn parameters(&self) -> impl Iterator<Item = &str> {
        let query = self.0.split_once('?').map_or("", |(_, query)| query);
        query.split('&').filter(|p| !p.is_empty()).map(|p| p.split_once('=').map_or(p, |(key, _)| key))
    }
}

impl TryFrom<String> for DatabaseUrl {
    type Error = &'static str;

    /// The text is not repeated in any error: it may hold what it should not.
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
        let rest = rest.ok_or("expected postgres://user@host/name")?;
        // What stands before the last @ wherever it is: a password with an unescaped slash or question mark is one, too.
        let user = rest.rsplit_once('@').map_or("", |(user, _)| user);
        let user = user.to_owned();
        let url = Self(text);
        if user.contains(':') || url.parameters().any(|p| p.eq_ignore_ascii_case("password")) {
            return Err(
                "leave the password out; put it into a file that only its owner can read, and name that file in database.password_file",
            );
        }
        if url.parameters().any(|p| !PARAMETERS.contains(&p)) {
            return Err("behind ? may stand host, port, dbname, user, sslmode, sslrootcert, sslcert and sslkey");
        }
        Ok(url)
    }
}

impl From<DatabaseUrl> for String {
    fn from(url: DatabaseUrl) -> Self {
        url.0
    }
}

impl DatabaseConfig {
    /// The database of a core with this state directory.
    ///
    /// # Errors
    /// Which key is wrong. No file is read, nobody is asked.
    pub fn place(&self, state: &Path) -> Result<Place, ConfigFault> {
        let bad = |text: &str| Err(ConfigFault::new(text));
        let url = match (&self.url, &self.path) {
            (Some(_), Some(_)) => return bad("database: give path or url, not both"),
            (None, _) if self.password_file.is_some() => {
                return bad("database.password_file: belongs to database.url, which is not given");
            }
            (None, Some(path)) => return Ok(Place::Sqlite(path.clone())),
            (None, None) => return Ok(Place::in_directory(state)),
            (Some(url), None) => url,
        };
        let mut options: PgConnectOptions =
            url.0.parse().map_err(|e| ConfigFault::new(format!("database.url: cannot be read: {e}")))?;
        if options.get_database().is_none() {
            return bad("database.url: name the database: postgres://user@host/name");
        }
        if let Some(file) = &self.password_file {
            let Some(password) = file.secret().expose_text() else {
                return bad("database.password_file: holds something that is not text");
            };
            options = options.password(password);
        }
        // sqlx's own default would encrypt without asking whom it speaks with.
        let local = options.get_socket().is_some() || is_loopback(options.get_host());
        if !local && !url.parameters().any(|p| p == "sslmode") {
            options = options.ssl_mode(PgSslMode::VerifyFull);
        }
        let wait = Duration::from_secs(self.wait_seconds.clamp(1, 3600));
        Ok(Place::Postgres { options: Box::new(options), wait })
    }
}

/// A host that begins with a slash is a folder with a socket.
fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || host.starts_with('/') || address.is_ok_and(|a| a.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str) -> Result<Place, String> {
        let url = DatabaseUrl::try_from(url.to_owned()).map_err(str::to_owned)?;
        let config = DatabaseConfig { url: Some(url), ..DatabaseConfig::default() };
        config.place(Path::new("/state")).map_err(|e| e.to_string())
    }

    fn ssl_mode(url: &str) -> PgSslMode {
        match place(url).unwrap() {
            Place::Postgres { options, .. } => options.get_ssl_mode(),
            Place::Sqlite(_) => unreachable!("a url"),
        }
    }

    #[test]
    fn a_password_in_the_url_is_refused_wherever_it_stands_and_not_repeated() {
        for url in [
            "postgres://core:hunter2@db.example.com/hedgerow",
            "postgres://core:hun/ter2@db.example.com/hedgerow",
            "postgres://core:hun?ter2@db.example.com/hedgerow",
            "postgres://core@db.example.com/hedgerow?password=hunter2",
            "postgres://core@db.example.com/hedgerow?sslmode=require&PASSWORD=hunter2",
            "postgres://core@db.example.com/hedgerow?p%61ssword=hunter2",
            "postgres://core@db.example.com/hedgerow?options=hunter2",
            "hunter2",
        ] {
            let error = place(url).unwrap_err();
            assert!(!error.contains("hun"), "{url}: {error}");
        }
    }

    #[test]
    fn who_is_spoken_with_is_checked_unless_it_is_this_machine_or_the_operator_said_otherwise() {
        assert!(matches!(ssl_mode("postgres://core@db.example.com/hedgerow"), PgSslMode::VerifyFull));
        assert!(matches!(ssl_mode("postgres://core@192.0.2.1:6432/hedgerow"), PgSslMode::VerifyFull));
        assert!(matches!(ssl_mode("postgres://core@db.example.com/hedgerow?sslmode=disable"), PgSslMode::Disable));
        for here in ["core@127.0.0.1/x", "core@[::1]:5433/x", "core@localhost/x", "/x?host=/run/postgresql&user=core"] {
            assert!(!matches!(ssl_mode(&format!("postgres://{here}")), PgSslMode::VerifyFull), "{here}");
        }
    }

    #[test]
    fn what_is_given_decides_and_what_cannot_be_is_named() {
        let state = Path::new("/state");
        let shown = |config: &DatabaseConfig| config.place(state).map(|p| p.to_string()).map_err(|e| e.to_string());
        let mut config = DatabaseConfig::default();
        assert_eq!(shown(&config).unwrap(), "/state/core.db");
        config.path = Some("/data/hedgerow.db".into());
        assert_eq!(shown(&config).unwrap(), "/data/hedgerow.db");
        config.url = Some(DatabaseUrl("postgres://core@db.example.com/hedgerow".into()));
        assert!(shown(&config).unwrap_err().starts_with("database:"));
        config.path = None;
        assert_eq!(shown(&config).unwrap(), "\"hedgerow\" at db.example.com:5432");
        assert!(place("postgres://core@db.example.com").unwrap_err().starts_with("database.url"));
    }

    #[test]
    fn the_password_is_in_no_debug_output() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "hunter2\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let config = DatabaseConfig {
            url: Some(DatabaseUrl("postgres://core@db.example.com/hedgerow".into())),
            password_file: Some(SecretFile::read(&file).unwrap()),
            ..DatabaseConfig::default()
        };
        let place = config.place(Path::new("/state")).unwrap();
        let Place::Postgres { options, .. } = &place else { panic!("a url") };
        assert!(format!("{options:?}").contains("hunter2"), "the search must be able to find it");
        assert!(!format!("{place:?} {place} {config:?}").contains("hunter2"));
    }
}
