//! Certificates for life: a node or device asks its core for the next certificate long before the old one ends.
//!
//! ```text
//!   two thirds of its life are over, it has expired, or the tenant's CA has been replaced
//!     ─► new key, on disk ─► RENEW with the old certificate ─► new certificate, checked, on disk
//!     ─► CONFIRM with the new certificate ─► the core has seen it work ─► the new one replaces the old
//! ```
//! Until the core has acknowledged the new certificate the old key stays; every step can be cut off and is taken up again
//! where it was, also by the next start. Whoever was away so long that the certificate has expired goes the same way: the
//! core accepts the newest certificate it has seen of a holder for that one question (`core_api::LAPSED_SECONDS`).

mod files;
#[cfg(test)]
mod tests;

use std::time::Duration;

use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::verify::{Identity, TenantCa, Usage, VerifiedCertificate};
use hedgerow_shared::wire::core_api::{self, ALPN_HTTP, Renew, Renewed};
use hedgerow_shared::{Origin, Role, UnixTime};
use rustls::pki_types::CertificateDer;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::clock;
use crate::core_client::{self, CoreClient};
use crate::dial::{self, RelayTarget};
use crate::link::Link;
use crate::scope::Scope;
use crate::tls::{self, InForce, Own};

pub use files::Files;

/// How often it is looked whether the time has come.
const LOOK: Duration = Duration::from_secs(15);
/// The pause after a first failure; it doubles up to `LONGEST`.
const FIRST: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(3600);

/// Keeps one holder's certificate alive.
pub struct Renewal {
    /// Where key and certificate lie.
    pub files: Files,
    /// What is shown; replaced when the new certificate has been acknowledged.
    pub own: InForce,
    /// The tenant's CA.
    pub ca: TenantCa,
    /// Relays through which the core is reached without a link: an expired certificate opens none.
    pub relays: Vec<RelayTarget>,
    /// Timers.
    pub timers: Timers,
    /// For the tasks of connections.
    pub scope: Scope,
}

impl Renewal {
    /// Renews until the scope ends; `link` gives a link that is up, if there is one.
    pub async fn keep(self, link: impl Fn() -> Option<Link>) {
        let mut pause = FIRST;
        loop {
            let wait = match self.due() {
                Err(fault) => {
                    warn!(reason = %fault, "our own certificate cannot be read");
                    LONGEST
                }
                Ok(false) => LOOK,
                Ok(true) => match self.renew(link()).await {
                    Ok(renewed) => {
                        info!(serial = renewed.serial, until = renewed.not_after.0, "the certificate was renewed");
                        count("ok");
                        pause = FIRST;
                        LOOK
                    }
                    Err(fault) => {
                        warn!(reason = %fault, "the certificate could not be renewed; it will be tried again");
                        count(fault.code.label());
                        let wait = clock::jitter(pause);
                        pause = pause.saturating_mul(2).min(LONGEST);
                        wait
                    }
                },
            };
            sleep(wait).await;
        }
    }

    /// Whether it is time; a renewal that was cut off is taken up at once.
    fn due(&self) -> Result<bool, Fault> {
        let own = self.own.get();
        let leaf = own.leaf()?;
        tls::show_expiry("own", leaf);
        // Under the CA that is being replaced, or too old.
        let moves = !self.ca.is_by_first(leaf);
        Ok(moves || clock::now() >= own.read()?.renew_at() || self.files.has_next())
    }

    /// All steps, from wherever the last try stopped. Cancel safe: what was reached is on disk.
    ///
    /// # Errors
    /// The core cannot be reached, or refuses; the old certificate stays.
    pub async fn renew(&self, link: Option<Link>) -> Result<VerifiedCertificate, Fault> {
        let old = self.own.get();
        let identity = old.read()?.identity;
        let key = self.files.next_key().map_err(disk)?;
        let next = self.files.next_certificate(&key);
        let certified = next.as_ref().and_then(|leaf| {
            let verified = self.check(leaf, &identity, clock::now()).ok()?;
            Some((leaf.clone(), verified))
        });
        if let (Some(leaf), None) = (next, &certified)
            && self.ca.verify_lapsed(&leaf, identity.role, Usage::Client, clock::now()).is_ok()
        {
            // The core may have acknowledged it before we were cut off for longer than it lasted: then it is the newest
            // that the core knows of us.
            self.files.commit().map_err(disk)?;
            self.own.replace(Own { chain: vec![leaf, self.ca.der()], key });
            return Err(Fault::new(
                Code::Unauthenticated,
                "the next certificate has expired too; it is asked with from now on",
            ));
        }
        let (leaf, verified) = match certified {
            Some(known) => known,
            None => {
                let csr = files::request(&key).map_err(disk)?;
                let mut core = self.core(link.as_ref(), &identity, &old).await?;
                let answer: Renewed = core.post(core_api::CERTIFICATE_RENEW, &Renew { csr }).await?;
                let leaf = CertificateDer::from(answer.certificate);
                let verified = self.check(&leaf, &identity, clock::now())?;
                if !key.is_of(&leaf) {
                    return Err(Fault::new(Code::Protocol, "the core's new certificate is for another key"));
                }
                self.files.keep_certificate(&leaf).map_err(disk)?;
                (leaf, verified)
            }
        };
        let new = Own { chain: vec![leaf, self.ca.der()], key };
        let mut core = self.core(link.as_ref(), &identity, &new).await?;
        let () = core.ask::<()>(core_api::CERTIFICATE_CONFIRM, &()).await?.unwrap_or(());
        self.files.commit().map_err(disk)?;
        self.own.replace(new);
        Ok(verified)
    }

    /// A connection to the core that shows `own`: over the link, or over HTTP CONNECT when there is none.
    async fn core(&self, link: Option<&Link>, identity: &Identity, own: &Own) -> Result<CoreClient, Fault> {
        let config = tls::to_tenant(self.ca.clone(), Role::Core, None, Some(own), &[ALPN_HTTP])?;
        let mut last = Fault::new(Code::Unreachable, "no relay is known");
        if let Some(link) = link {
            match core_client::open(link, &identity.tenant, &self.timers).await {
                Ok(io) => return CoreClient::handshake(config, io, &self.timers, &self.scope).await,
                Err(fault) => last = fault,
            }
        }
        for relay in &self.relays {
            match dial::origin(relay, &identity.tenant, Origin::Core, &self.timers, &self.scope).await {
                Ok(io) => return CoreClient::handshake(config, io, &self.timers, &self.scope).await,
                Err(fault) => last = fault,
            }
        }
        Err(last)
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        identity: &Identity,
        now: UnixTime,
    ) -> Result<VerifiedCertificate, Fault> {
        let refused = |why: String| Fault::new(Code::Protocol, format!("the core's new certificate: {why}"));
        let verified = self.ca.verify(leaf, identity.role, Usage::Client, now).map_err(|e| refused(e.to_string()))?;
        // A node's origins and group may have been changed by its administrator; who it is may not.
        if verified.identity.id != identity.id {
            return Err(refused("it names another holder".into()));
        }
        Ok(verified)
    }
}

fn count(result: &'static str) {
    metrics::counter!("hedgerow_certificate_renewals_total", "result" => result).increment(1);
}

fn disk(error: anyhow::Error) -> Fault {
    Fault::new(Code::Internal, format!("{error:#}"))
}
