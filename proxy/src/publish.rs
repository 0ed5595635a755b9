//! Servers inside that clients reach through a relay by server name: a stream for an origin becomes a connection to the
//! one server that is published for it, byte for byte. TLS is between the client and that server; nothing here reads it.
//!
//! ```text
//!   stream opened by the relay --> room taken --> dial (deadline) --> stream accepted --> bytes both ways, ends kept
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use hedgerow_runtime::link::Incoming;
use hedgerow_shared::Origin;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::wire::names::passes;
use tokio::sync::Semaphore;

use crate::dial::Dialer;
use crate::splice::{Outbound, ReadAhead, splice};
use crate::target::{Target, TargetError};
use crate::tell::Told;

/// What is published. Clones share the limit.
#[derive(Debug, Clone)]
pub struct Published {
    targets: Arc<BTreeMap<Origin, Target>>,
    dialer: Dialer,
    room: Arc<Semaphore>,
    most: usize,
    told: Told,
}

impl Published {
    /// Publishes `targets`, at most `most` connections at once over all of them. `dialer` has the deadline.
    #[must_use]
    pub fn new(targets: BTreeMap<Origin, Target>, dialer: Dialer, most: usize) -> Self {
        Self { targets: Arc::new(targets), dialer, room: Arc::new(Semaphore::new(most)), most, told: Told::default() }
    }

    /// These servers are told the client's address.
    #[must_use]
    pub fn telling(self, told: Told) -> Self {
        Self { told, ..self }
    }

    /// Reads `origin = "host:port"` pairs of a configuration; what is not set is left out.
    ///
    /// # Errors
    /// The first that is no `host:port`, and for which origin.
    pub fn targets<'a>(
        pairs: impl IntoIterator<Item = (Origin, Option<&'a String>)>,
    ) -> Result<BTreeMap<Origin, Target>, (Origin, TargetError)> {
        let set = pairs.into_iter().filter_map(|(origin, text)| Some((origin, text?)));
        set.map(|(origin, text)| Ok((origin, Target::from_authority(text, None).map_err(|e| (origin, e))?))).collect()
    }

    /// The origins that have a server.
    #[must_use]
    pub fn origins(&self) -> Vec<Origin> {
        self.targets.keys().copied().filter(|o| passes(*o)).collect()
    }

    /// Whether an origin has a server.
    #[must_use]
    pub fn serves(&self, origin: Origin) -> bool {
        passes(origin) && self.targets.contains_key(&origin)
    }

    /// Connections open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.most.saturating_sub(self.room.available_permits())
    }

    /// Serves one stream to its end; refuses it when there is no server, no room, or no connection. `from` is the
    /// client's address as the relay tells it, for the log and for servers that are told it.
    pub async fn serve(&self, origin: Origin, incoming: Incoming, from: &str) {
        let started = Instant::now();
        let Some(target) = self.targets.get(&origin).filter(|_| passes(origin)) else {
            return refuse(incoming, origin, Fault::new(Code::NoRoute, format!("nothing is published for {origin}")));
        };
        let Ok(_room) = self.room.clone().try_acquire_owned() else {
            let fault = Fault::new(Code::Limited, "as many published connections are open as may be");
            return refuse(incoming, origin, fault);
        };
        let dialled = match self.dialer.dial_unchecked(target).await {
            Ok(dialled) => dialled,
            Err(error) => {
                tracing::warn!(%origin, %error, "the published server cannot be reached");
                // The server's address is the tenant's own business.
                return refuse(incoming, origin, Fault::new(error.code(), "the published server cannot be reached"));
            }
        };
        metrics::counter!("hedgerow_proxy_published_total", "origin" => origin.as_str()).increment(1);
        let header = self.told.header(target, dialled.address, from.parse().ok());
        let ahead = ReadAhead { down: header, ..ReadAhead::default() };
        let outcome = splice(dialled.tcp, Outbound::Tunnel(incoming.accept()), ahead).await;
        let result = outcome.fault.map_or("closed", |f| f.code.label());
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(target: "audit", %origin, %target, from, result, to_server = outcome.down, to_client = outcome.up, seconds, "published connection");
    }
}

fn refuse(incoming: Incoming, origin: Origin, fault: Fault) {
    metrics::counter!("hedgerow_proxy_published_refused_total", "origin" => origin.as_str(), "reason" => fault.code.label())
        .increment(1);
    incoming.refuse(fault);
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use super::*;

    fn published(pairs: &[(Origin, &str)]) -> Result<Published, (Origin, TargetError)> {
        let texts: Vec<_> = pairs.iter().map(|(o, t)| (*o, (*t).to_owned())).collect();
        let targets = Published::targets(texts.iter().map(|(o, t)| (*o, Some(t))))?;
        Ok(Published::new(targets, Dialer::new(HashMap::new(), Duration::from_secs(5)), 10))
    }

    #[test]
    fn only_what_is_passed_by_name_is_ever_published() {
        let both = published(&[(Origin::Mdm, "10.1.2.3:443"), (Origin::Gateway, "mail.inside:8443")]).unwrap();
        assert_eq!(both.origins(), [Origin::Gateway, Origin::Mdm]);
        assert!(both.serves(Origin::Mdm) && !both.serves(Origin::Core) && both.open() == 0);
        let proxy = published(&[(Origin::Proxy, "10.1.2.3:443")]).unwrap();
        assert!(proxy.origins().is_empty() && !proxy.serves(Origin::Proxy));
        assert_eq!(published(&[(Origin::Mdm, "no port")]).unwrap_err().0, Origin::Mdm);
        assert!(Published::targets([(Origin::Mdm, None)]).unwrap().is_empty());
    }
}
