//! The relay's certificate while it runs: read again on HUP, and by itself when a file changes or the self-made one is
//! due. A file that cannot be used changes nothing: the certificate in use stays, and the log says which file it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hedgerow_runtime::clock;
use parking_lot::RwLock;
use tokio_rustls::TlsAcceptor;

use crate::identity::{self, IdentityError};
use crate::state::Relay;

/// How often it is looked whether a file has changed. What has changed is read when it has been the same twice: a
/// certificate and its key are two files, and rarely replaced at once.
const LOOK: Duration = Duration::from_secs(2);
/// After so many seconds by the calendar the files are read although they look the same: a self-made certificate grows
/// old, also while a machine sleeps.
const ANYWAY: u64 = 24 * 3600;

/// The certificate in use, which can be replaced without a restart. Clones are the same.
#[derive(Clone)]
pub struct Certificate {
    relay: Arc<Relay>,
    tls: Arc<RwLock<TlsAcceptor>>,
}

impl Certificate {
    pub(crate) fn new(relay: Arc<Relay>, tls: Arc<RwLock<TlsAcceptor>>) -> Self {
        Self { relay, tls }
    }

    /// Reads the files again, making a new self-made certificate when the old one is due; new connections use it, those
    /// that are open stay. Waits for the disk.
    ///
    /// # Errors
    /// What is wrong with the files; the old certificate stays in use.
    pub fn reload(&self) -> Result<(), IdentityError> {
        let read = identity::load(&self.relay.config);
        let result = if read.is_ok() { "ok" } else { "refused" };
        metrics::counter!("hedgerow_relay_certificate_reloads_total", "result" => result).increment(1);
        *self.tls.write() = TlsAcceptor::from(read?.server);
        tracing::info!("the relay's certificate was read again; new connections get it");
        Ok(())
    }

    /// Reads the files whenever they have changed, for as long as the future lives.
    pub(crate) async fn keep_fresh(self) {
        let files = identity::files(&self.relay.config);
        let (mut read, mut at) = (stamps(&files), clock::now());
        let mut last = read.clone();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = stamps(&files);
            let settled = now == std::mem::replace(&mut last, now.clone());
            let due = clock::now() < at || clock::now().since(at) >= ANYWAY;
            if !settled || (now == read && !due) {
                continue;
            }
            (read, at) = (now, clock::now());
            let own = self.clone();
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || own.reload()).await {
                tracing::error!(%error, "the relay's certificate could not be read again; the old one stays in use");
            }
        }
    }
}

/// What tells a file from the one that was there before: time and size.
type Stamp = Option<(SystemTime, u64)>;

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    files.iter().map(|path| stamp(path)).collect()
}
