//! Servers inside that are told whose connection they get, by a PROXY header before its first byte. What they are told is
//! the client's address as the relay saw it: the relay's word, good for logs and limits, not for deciding who may enter.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use hedgerow_runtime::proxy_protocol::{self, Version};

use crate::target::{Host, Target, TargetError};

/// Who is told, and in which form. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Told(Arc<HashMap<Target, Version>>);

impl Told {
    /// Reads `"host:port" = version` pairs of a configuration.
    ///
    /// # Errors
    /// The first key that is no `host:port`.
    pub fn new(pairs: &BTreeMap<String, Version>) -> Result<Self, (String, TargetError)> {
        let read = |(text, version): (&String, &Version)| {
            Target::from_authority(text, None).map(|t| (t, *version)).map_err(|e| (text.clone(), e))
        };
        Ok(Self(Arc::new(pairs.iter().map(read).collect::<Result<_, _>>()?)))
    }

    /// What `target`, which was reached at `address`, gets before the client's first byte: nothing, unless the target as
    /// it was asked for, or its address, is listed.
    #[must_use]
    pub fn header(&self, target: &Target, address: SocketAddr, client: Option<SocketAddr>) -> Bytes {
        let reached = Target { host: Host::Address(address.ip().to_canonical()), port: address.port() };
        let Some(version) = self.0.get(target).or_else(|| self.0.get(&reached)) else { return Bytes::new() };
        let label = if client.is_some() { "yes" } else { "no" };
        metrics::counter!("hedgerow_proxy_headers_sent_total", "client_known" => label).increment(1);
        proxy_protocol::header(*version, client, address).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_listed_by_name_or_address_is_told() {
        let pairs = [("Mail.Inside.:25", Version::One), ("10.1.2.3:443", Version::Two)];
        let told = Told::new(&pairs.map(|(k, v)| (k.to_owned(), v)).into()).unwrap();
        let target = |text: &str| Target::from_authority(text, None).unwrap();
        let client = "192.0.2.7:4711".parse().ok();
        let at = |text: &str| text.parse().unwrap();
        assert_eq!(
            told.header(&target("mail.inside:25"), at("10.9.9.9:25"), client),
            &b"PROXY TCP4 192.0.2.7 10.9.9.9 4711 25\r\n"[..]
        );
        assert_eq!(told.header(&target("mail.inside:25"), at("10.9.9.9:25"), None), &b"PROXY UNKNOWN\r\n"[..]);
        assert_eq!(told.header(&target("web.inside:443"), at("10.1.2.3:443"), client).len(), 28);
        for (name, address) in [("mail.inside:26", "10.9.9.9:26"), ("web.inside:443", "10.1.2.4:443")] {
            assert!(told.header(&target(name), at(address), client).is_empty());
        }
        assert!(Told::new(&[("mail.inside".to_owned(), Version::One)].into()).is_err());
    }
}
