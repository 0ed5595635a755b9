//! The certificate a process shows, which renewal replaces while links, sessions and tunnels live.

use std::sync::{Arc, OnceLock};

use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::{Own, SigningKey, provider};

/// The certificate and key in force. Clones are the same: what one replaces, all show from their next hand-shake on, and
/// what stands already stays.
#[derive(Clone)]
pub struct InForce(Arc<watch::Sender<Arc<Held>>>);

struct Held {
    own: Arc<Own>,
    /// As rustls signs with it; made when the first server hand-shake asks.
    certified: OnceLock<Option<Arc<CertifiedKey>>>,
}

impl Held {
    fn new(own: Own) -> Arc<Self> {
        Arc::new(Self { own: Arc::new(own), certified: OnceLock::new() })
    }
}

impl InForce {
    /// Begins with this one.
    #[must_use]
    pub fn new(own: Own) -> Self {
        Self(Arc::new(watch::Sender::new(Held::new(own))))
    }

    /// A leaf alone, without its chain.
    #[must_use]
    pub fn of(leaf: CertificateDer<'static>, key: Arc<SigningKey>) -> Self {
        Self::new(Own { chain: vec![leaf], key })
    }

    /// What is shown now.
    #[must_use]
    pub fn get(&self) -> Arc<Own> {
        self.0.borrow().own.clone()
    }

    /// Shows another one from now on.
    pub fn replace(&self, own: Own) {
        self.0.send_replace(Held::new(own));
    }

    /// Tells of replacements.
    pub(crate) fn replacements(&self) -> Replacements {
        Replacements(Some(self.0.subscribe()))
    }
}

/// Replacements of a certificate, seen from one place.
#[derive(Default)]
pub(crate) struct Replacements(Option<watch::Receiver<Arc<Held>>>);

impl Replacements {
    /// Those until now count as seen.
    pub(crate) fn mark_seen(&mut self) {
        if let Some(receiver) = &mut self.0 {
            receiver.mark_unchanged();
        }
    }

    /// Waits for one that was not seen yet; for ever where there is nothing to replace. Cancel safe.
    pub(crate) async fn next(&mut self) {
        if let Some(receiver) = &mut self.0
            && receiver.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

impl std::fmt::Debug for InForce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.get().fmt(f)
    }
}

impl ResolvesServerCert for InForce {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let held = self.0.borrow().clone();
        let make = || {
            let made = CertifiedKey::from_der(held.own.chain.clone(), held.own.key.to_rustls(), &provider());
            made.inspect_err(|error| tracing::error!(%error, "our certificate and key do not fit")).ok().map(Arc::new)
        };
        held.certified.get_or_init(make).clone()
    }
}
