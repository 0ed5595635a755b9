//! Entries of a relay list that lead to the same relay under different names. A process has one link with a relay, and
//! the relay lets a second one take the first one's place: two entries would displace each other without end. So each
//! link is held under its relay's process and certificate, and an entry that meets a relay which another entry holds
//! stops before it has said who it is. The certificate counts because the process id alone is known to whoever asks:
//! a lying relay of the list could keep us away from an honest one by it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hedgerow_shared::InstanceId;
use hedgerow_shared::fault::{Code, Fault};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::dial::RelayTarget;

/// Which entry holds which relay: one for all uplinks of a process. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Twins {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Short critical sections; as many as links.
    held: Mutex<Vec<Held>>,
    entries: AtomicUsize,
    /// Told when a relay is held no longer.
    freed: watch::Sender<()>,
}

#[derive(Debug)]
struct Held {
    relay: Key,
    entry: usize,
    name: String,
    /// Links, and hand-shakes that may become links.
    count: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    process: InstanceId,
    certificate: [u8; 32],
}

/// One entry of the list.
#[derive(Debug)]
pub(super) struct Entry {
    inner: Arc<Inner>,
    number: usize,
    name: String,
}

/// A relay that an entry holds, until this is dropped.
#[derive(Debug)]
pub(super) struct Hold {
    inner: Arc<Inner>,
    relay: Key,
    entry: usize,
}

impl Twins {
    pub(super) fn entry(&self, target: &RelayTarget) -> Entry {
        let number = self.inner.entries.fetch_add(1, Ordering::Relaxed);
        let name = format!("{} ({})", target.name, target.addresses.join(", "));
        Entry { inner: self.inner.clone(), number, name }
    }

    /// Changes whenever a relay is held no longer.
    pub(super) fn freed(&self) -> watch::Receiver<()> {
        self.inner.freed.subscribe()
    }
}

impl Entry {
    /// Holds the relay that said this of itself, beside what this entry holds of it already.
    ///
    /// # Errors
    /// Which other entry holds it.
    pub(super) fn hold(&self, process: InstanceId, leaf: &CertificateDer<'_>) -> Result<Hold, Fault> {
        let relay = Key { process, certificate: Sha256::digest(leaf).into() };
        let mut held = self.inner.held.lock();
        match held.iter_mut().find(|h| h.relay == relay) {
            Some(held) if held.entry != self.number => {
                let text = format!(
                    "{} leads to the same relay as {}, which has the link: take one of them off the list",
                    self.name, held.name
                );
                return Err(Fault::explained(Code::Displaced, text));
            }
            Some(held) => held.count += 1,
            None => held.push(Held { relay, entry: self.number, name: self.name.clone(), count: 1 }),
        }
        Ok(Hold { inner: self.inner.clone(), relay, entry: self.number })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.inner.held.lock();
        let Some(at) = held.iter().position(|h| h.relay == self.relay && h.entry == self.entry) else { return };
        held[at].count -= 1;
        if held[at].count == 0 {
            held.swap_remove(at);
            drop(held);
            self.inner.freed.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::RelayRoots;

    #[test]
    fn a_relay_is_held_by_one_entry_until_its_last_link_is_gone() {
        let twins = Twins::default();
        let entry = |name: &str| twins.entry(&RelayTarget::new(vec![format!("{name}:443")], name, RelayRoots::System));
        let (a, b) = (entry("a.example"), entry("b.example"));
        let leaf = CertificateDer::from(vec![1]);
        let process = InstanceId::from_random([1; 16]);
        let (first, second) = (a.hold(process, &leaf).unwrap(), a.hold(process, &leaf).unwrap());
        let why = b.hold(process, &leaf).unwrap_err();
        let names = "b.example (b.example:443) leads to the same relay as a.example (a.example:443), ";
        assert!(why.code == Code::Displaced && why.text.starts_with(names), "{why}");
        let freed = twins.freed();
        drop(first);
        assert!(b.hold(process, &leaf).is_err() && !freed.has_changed().unwrap());
        drop(second);
        assert!(freed.has_changed().unwrap());
        let _b = b.hold(process, &leaf).unwrap();
        assert!(a.hold(process, &leaf).is_err());
    }

    #[test]
    fn a_relay_cannot_pass_itself_off_as_another() {
        let twins = Twins::default();
        let entry = |name: &str| twins.entry(&RelayTarget::new(vec![], name, RelayRoots::System));
        let process = InstanceId::from_random([1; 16]);
        let _liar = entry("liar").hold(process, &CertificateDer::from(vec![1])).unwrap();
        assert!(entry("honest").hold(process, &CertificateDer::from(vec![2])).is_ok());
    }
}
