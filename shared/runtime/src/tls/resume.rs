//! Resumption of TLS between a dialler and a relay: a link that comes back need not exchange and check certificates
//! anew. It saves computing and nothing else: keys are agreed on anew (`psk_dhe_ke` is all that rustls does), there is no
//! 0-RTT, and who the peer is, and whether it may still come, is shown and asked on every link (decision 0002).

use std::sync::Arc;
use std::time::{Duration, Instant};

use hedgerow_shared::fault::Fault;
use hedgerow_shared::wire::message::ALPN_LINK;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::server::ProducesTickets;

use super::{Foreign, Provider, RelayRoots, internal, select, to_relay_watched};
use crate::clock;

/// For so long a relay's certificate, once checked, is not looked at again: after that, or with other roots, links
/// begin from nothing.
const BELIEVED: Duration = Duration::from_secs(3600);
/// Servers that sessions are kept of: each target has one name.
const SERVERS: usize = 2;

/// What a dialler keeps of a relay for links that come back. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct RelaySessions {
    /// Over TCP, and over QUIC.
    kept: Arc<[Mutex<Option<Kept>>; 2]>,
}

#[derive(Debug)]
struct Kept {
    since: Instant,
    roots: RelayRoots,
    config: Arc<ClientConfig>,
    foreign: Foreign,
}

/// What carries TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Below {
    /// TCP.
    Tcp,
    /// QUIC.
    Quic,
}

impl RelaySessions {
    /// The client side of TLS for a link, which resumes an earlier one's where it can; otherwise as
    /// `tls::to_relay_watched` makes it.
    ///
    /// # Errors
    /// As `tls::to_relay`.
    pub fn link(&self, below: Below, roots: &RelayRoots) -> Result<(Arc<ClientConfig>, Foreign), Fault> {
        let mut kept = self.kept[usize::from(below == Below::Quic)].lock();
        let now = clock::monotonic();
        if let Some(kept) = kept.as_ref()
            && kept.roots == *roots
            && now.saturating_duration_since(kept.since) < BELIEVED
        {
            return Ok((kept.config.clone(), kept.foreign.clone()));
        }
        let (mut config, foreign) = to_relay_watched(roots, &[ALPN_LINK])?;
        Arc::make_mut(&mut config).resumption = Resumption::in_memory_sessions(SERVERS);
        *kept = Some(Kept { since: now, roots: roots.clone(), config: config.clone(), foreign: foreign.clone() });
        Ok((config, foreign))
    }
}

/// What a relay makes tickets with: keys of this process, new ones every six hours. The relay itself keeps nothing of its
/// peers, however many they are.
///
/// # Errors
/// No random numbers.
pub(super) fn tickets() -> Result<Arc<dyn ProducesTickets>, Fault> {
    let tickets = match select(Provider::default()) {
        Provider::AwsLcRs => rustls::crypto::aws_lc_rs::Ticketer::new(),
        Provider::Ring => rustls::crypto::ring::Ticketer::new(),
    };
    Ok(Arc::new(Counted(tickets.map_err(internal)?)))
}

/// Counts the tickets that are taken: QUIC does not tell which of its hand-shakes were resumed.
#[derive(Debug)]
struct Counted(Arc<dyn ProducesTickets>);

impl ProducesTickets for Counted {
    fn enabled(&self) -> bool {
        self.0.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let plain = self.0.decrypt(cipher);
        if plain.is_some() {
            metrics::counter!("hedgerow_tls_tickets_taken_total").increment(1);
        }
        plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_believed_of_a_relay_is_forgotten_in_time_and_with_other_roots() {
        let certificate = rcgen::generate_simple_self_signed(vec!["relay.test".to_owned()]).unwrap();
        let (roots, sessions) = (RelayRoots::Ca(vec![certificate.cert.der().clone()]), RelaySessions::default());
        let config = |below, roots: &RelayRoots| sessions.link(below, roots).unwrap().0;
        let first = config(Below::Tcp, &roots);
        assert!(Arc::ptr_eq(&first, &config(Below::Tcp, &roots)));
        assert!(!Arc::ptr_eq(&first, &config(Below::Quic, &roots)));
        if let Some(kept) = sessions.kept[0].lock().as_mut() {
            kept.since = kept.since.checked_sub(BELIEVED).unwrap();
        }
        let second = config(Below::Tcp, &roots);
        assert!(!Arc::ptr_eq(&first, &second), "an hour is over");
        assert!(!Arc::ptr_eq(&second, &config(Below::Tcp, &RelayRoots::Pin([1; 32]))), "other roots");
    }
}
