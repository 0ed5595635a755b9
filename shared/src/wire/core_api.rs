//! What devices and nodes ask of their core, and what it answers: HTTP/1.1 inside TLS 1.3 (ALPN `http/1.1`) inside a
//! stream to origin `core`, which the relay carries and cannot open. The stream comes from HTTP CONNECT at the relay
//! (before there is a certificate) or from a link. The core shows `[leaf, tenant CA]` and asks for a client
//! certificate without insisting on one.
//!
//! ```text
//!   POST /activate/v1/start    Start         -> Offer          a new device: TLS to anyone, no client certificate.
//!   POST /activate/v1/confirm  Proof         -> Confirmation   All three on ONE connection, in this order, once;
//!   POST /activate/v1/finish   Sealed        -> Activated      the PAKE is bound to that connection's exporter
//!   POST /enroll/v1/node       EnrolNode     -> NodeEnrolled   a new node: TLS to the CA pinned by its token
//!   GET  /config/v1/node[?have=E.V]          -> SignedConfig   a node: mutual TLS under the tenant CA
//!   GET  /config/v1/device[?have=E.V]        -> SignedConfig   a device: mutual TLS under the tenant CA
//!   POST /command/v1/device    Report        -> Order          a device: what became of its last command, and the next;
//!                                                              204: it is to be idle
//!   POST /certificate/v1/renew    Renew   -> Renewed       the next certificate, for the key of the request; the only
//!                                                              question that an expired certificate may ask
//!   POST /certificate/v1/confirm  ()      -> 204           by the new certificate: it works, the old one can go
//! ```
//! `Start`, `Offer`, `Proof`, `Confirmation`, `Sealed` and what the seal covers are `uem_core::activation`'s, `Report` and
//! `Order` are `uem_core::command`'s; the rest is here. Bodies are JSON (`application/json`), bytes in it standard base64; a signed configuration travels as CBOR
//! (`application/cbor`). With `have`, the version the caller has **in force**, a config request also acknowledges it;
//! the answer is 204 when that is the newest. Whoever has taken a new one asks again at once, so that the core knows;
//! `have` is left out only when the caller has none.
//!
//! Refusals: `{"error": "one line for people"}` with 400 (malformed), 401 (no certificate, or a proof that failed: the
//! password or token is wrong), 403 (a certificate of the wrong role, or revoked; a token used, expired or withdrawn),
//! 404, 405, 409 (an activation message out of order), 413, 429 (too many; `Retry-After` seconds), 503 (the core
//! itself failed; try again).
//! Whoever is refused with 401, 403, 409 closes the connection; activation starts again on a new one.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::verify::{SignedConfig, Version};
use crate::{EntityId, GroupName, Origin};

/// Begins an activation.
pub const ACTIVATE_START: &str = "/activate/v1/start";
/// Shows that the device knows the password.
pub const ACTIVATE_CONFIRM: &str = "/activate/v1/confirm";
/// Asks for the certificate.
pub const ACTIVATE_FINISH: &str = "/activate/v1/finish";
/// Makes a node.
pub const ENROL_NODE: &str = "/enroll/v1/node";
/// A node's configuration.
pub const CONFIG_NODE: &str = "/config/v1/node";
/// A device's configuration.
pub const CONFIG_DEVICE: &str = "/config/v1/device";
/// A device's commands.
pub const COMMAND_DEVICE: &str = "/command/v1/device";
/// The next certificate.
pub const CERTIFICATE_RENEW: &str = "/certificate/v1/renew";
/// The next certificate works.
pub const CERTIFICATE_CONFIRM: &str = "/certificate/v1/confirm";
/// For how long after its end, seconds, a certificate is still good for asking for the next one.
pub const LAPSED_SECONDS: u64 = 365 * 24 * 3600;
/// ALPN inside the inner TLS.
pub const ALPN_HTTP: &[u8] = b"http/1.1";
/// Media type of a signed configuration.
pub const MEDIA_CBOR: &str = "application/cbor";
/// Media type of everything else.
pub const MEDIA_JSON: &str = "application/json";
/// The largest request body, bytes.
pub const MAX_REQUEST: usize = 64 * 1024;
/// The largest request body of a peer that has shown its certificate, bytes: a report with a result.
pub const MAX_REPORT: usize = 1024 * 1024;
/// The largest answer, bytes: a signed configuration in base64, with room.
pub const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// Request of `ENROL_NODE`. A secret until it is used.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolNode {
    /// `EnrolmentToken::id`.
    pub token: EntityId,
    /// `EnrolmentToken::secret`.
    #[serde(with = "crate::encoding::base64")]
    pub secret: Vec<u8>,
    /// PKCS#10, DER, ECDSA P-256; only its key is taken.
    #[serde(with = "crate::encoding::base64")]
    pub csr: Vec<u8>,
    /// What the node is to be called; the name given with the token when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl std::fmt::Debug for EnrolNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EnrolNode(token {})", self.token)
    }
}

/// Answer of `ENROL_NODE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEnrolled {
    /// The node's id, as in its certificate.
    pub node: EntityId,
    /// Its name.
    pub name: String,
    /// Its server group.
    pub group: GroupName,
    /// Origins it may register.
    pub origins: Vec<Origin>,
    /// The node's certificate, DER.
    #[serde(with = "crate::encoding::base64")]
    pub certificate: Vec<u8>,
    /// The tenant CA, DER; the node compares its key with the token's pin once more.
    #[serde(with = "crate::encoding::base64")]
    pub ca: Vec<u8>,
    /// Relays, `host:port`, in order of preference.
    pub relays: Vec<String>,
    /// The relays' TLS name; the host part of the first address when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay_name: Option<String>,
    /// The CA under which the relays' certificates stand, PEM; absent for a public one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay_ca_pem: Option<String>,
    /// The configuration in force for nodes: verify it under `ca`.
    #[serde(with = "config")]
    pub config: SignedConfig,
}

/// Answer of `ACTIVATE_FINISH`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activated<S> {
    /// `pake::Sealed` around `EnrolReply`: certificate, tenant CA, relays. Believed only when the seal opens.
    pub sealed: S,
    /// The configuration in force for devices; believed only when it verifies under the CA that was sealed.
    #[serde(with = "config")]
    pub config: SignedConfig,
}

/// Request of `CERTIFICATE_RENEW`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// PKCS#10, DER, ECDSA P-256; only its key is taken.
    #[serde(with = "crate::encoding::base64")]
    pub csr: Vec<u8>,
}

/// Answer of `CERTIFICATE_RENEW`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// The certificate, DER.
    #[serde(with = "crate::encoding::base64")]
    pub certificate: Vec<u8>,
}

/// Body of every refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// For people, one line.
    pub error: String,
}

/// The path of a configuration request by someone who has `have` in force.
#[must_use]
pub fn config_path(path: &str, have: Option<Version>) -> String {
    match have {
        Some(version) => format!("{path}?have={version}"),
        None => path.to_owned(),
    }
}

/// Reads the value of `have`: `EPOCH.VERSION`.
#[must_use]
pub fn read_have(text: &str) -> Option<Version> {
    let (epoch, version) = text.split_once('.')?;
    let number = |t: &str| t.bytes().all(|b| b.is_ascii_digit()).then(|| t.parse().ok()).flatten();
    Some(Version { epoch: number(epoch)?, version: number(version)? })
}

/// The TLS name of relays at these addresses: the one given, else the host part of the first address.
#[must_use]
pub fn relay_name(given: Option<&str>, addresses: &[String]) -> Option<String> {
    if let Some(name) = given {
        return Some(name.to_owned());
    }
    let (host, _) = addresses.first()?.rsplit_once(':')?;
    Some(host.trim_start_matches('[').trim_end_matches(']').to_owned())
}

/// The relays behind a list of `host:port`, in its order: addresses of one host are one relay, for nobody holds two
/// links to a relay. Each with its TLS name: the one given, else its host.
#[must_use]
pub fn relays_of(given: Option<&str>, addresses: &[String]) -> Vec<(String, Vec<String>)> {
    let host = |address: &str| {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase()
    };
    let mut relays: Vec<(String, Vec<String>)> = Vec::new();
    for address in addresses {
        let own = host(address);
        match relays.iter_mut().find(|(first, _)| *first == own) {
            Some((_, of_relay)) => of_relay.push(address.clone()),
            None => relays.push((own, vec![address.clone()])),
        }
    }
    if let Some(given) = given {
        relays.iter_mut().for_each(|(name, _)| *name = given.to_owned());
    }
    relays
}

/// `#[serde(with = "config")]`: the CBOR of a signed configuration as base64 text.
mod config {
    use super::{Deserializer, Serializer, SignedConfig};
    use crate::encoding::base64 as bytes;

    pub(super) fn serialize<S: Serializer>(config: &SignedConfig, s: S) -> Result<S::Ok, S::Error> {
        bytes::serialize(&minicbor::to_vec(config).map_err(serde::ser::Error::custom)?, s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<SignedConfig, D::Error> {
        let cbor = bytes::deserialize(d)?;
        minicbor::decode(&cbor).map_err(|_| serde::de::Error::custom("it is not a signed configuration"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_travel_as_they_are_shown() {
        let version = Version { epoch: 2, version: 41 };
        assert_eq!(config_path(CONFIG_NODE, Some(version)), "/config/v1/node?have=2.41");
        assert_eq!(read_have("2.41"), Some(version));
        for bad in ["", "2", "2.", ".1", "+2.1", "2.-1", "2.1.3", "99999999999999999999.0"] {
            assert_eq!(read_have(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_enrolment_round_trips_and_shows_no_secret() {
        let request =
            EnrolNode { token: EntityId::from_random([1; 16]), secret: vec![7; 32], csr: vec![1, 2, 3], name: None };
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<EnrolNode>(&json).unwrap(), request);
        assert_eq!(format!("{request:?}"), format!("EnrolNode(token {})", request.token));
    }

    #[test]
    fn a_signed_configuration_rides_inside_json() {
        let config = SignedConfig { payload: vec![1], signature: vec![2], certificate: vec![3] };
        let answer = Activated { sealed: 5u8, config };
        let json = serde_json::to_string(&answer).unwrap();
        assert_eq!(serde_json::from_str::<Activated<u8>>(&json).unwrap(), answer);
    }

    #[test]
    fn a_relay_is_named_by_its_address_unless_told_otherwise() {
        let at = |a: &str| relay_name(None, &[a.to_owned()]);
        assert_eq!(at("relay.example:443").as_deref(), Some("relay.example"));
        assert_eq!(at("[::1]:443").as_deref(), Some("::1"));
        assert_eq!(relay_name(Some("r.example"), &[]).as_deref(), Some("r.example"));
        assert_eq!(relay_name(None, &[]), None);
    }
}
