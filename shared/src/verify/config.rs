//! Signed configuration: what the core decided, kept and obeyed by relay, node and device without the core.
//!
//! The payload is JSON; unknown fields are kept out of the way of older readers, so new ones may be added. It is
//! signed as `CONTEXT || payload` by a configuration key that the tenant CA certified. Each audience gets a document
//! of its own, so that the relay learns nothing of rules and routes.

use minicbor::{Decode, Encode};
use rustls_pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::authority::{Announced, TenantCa};
use super::certificate::CertificateError;
use super::policy::{Route, Rule, Via};
use super::scope::Scope;
use crate::{EntityId, TenantId, UnixTime};

/// Separates this signature from every other use of the key.
pub const CONTEXT: &[u8] = b"hedgerow signed configuration v1\0";

/// How long a document is valid after it was issued: the data plane runs seven days without the core, and whoever obeys one
/// may have got it up to an hour and a few minutes before the core was gone.
pub const LIFETIME_SECONDS: u64 = (7 * 24 + 2) * 3600;

/// How far a document's issue time may lie in the future, for clocks that disagree.
pub const CLOCK_SKEW_SECONDS: u64 = 300;

/// The largest payload accepted, bytes.
pub const MAX_PAYLOAD: usize = 4 * 1024 * 1024;

/// Why a signed configuration was refused. The old one stays in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not certified or not signed by the tenant.
    #[error("the configuration's signature does not hold")]
    Signature(#[source] CertificateError),
    /// The payload does not parse.
    #[error("the configuration cannot be read: {0}")]
    Malformed(String),
    /// It is for another tenant or another audience.
    #[error("the configuration is for {0}, not for this peer")]
    NotForUs(String),
    /// An older version than one already seen.
    #[error(
        "the configuration is older ({offered}) than the one in force ({seen}): a replay, or a core restored from a backup; raise the epoch there"
    )]
    RolledBack {
        /// What was offered.
        offered: Version,
        /// The highest seen.
        seen: Version,
    },
    /// Past its expiry, or issued in the future.
    #[error(
        "the configuration is not valid at this time (issued {issued}, expires {expires}, now {now}; seconds since 1970)"
    )]
    NotValidNow {
        /// Issue time.
        issued: u64,
        /// Expiry.
        expires: u64,
        /// The time it was checked at.
        now: u64,
    },
}

/// Order of documents: epoch first (raised when a core is restored from a backup), then version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, Encode, Decode)]
pub struct Version {
    /// Raised by hand.
    #[n(0)]
    pub epoch: u64,
    /// Raised by every change and by every hourly re-issue.
    #[n(1)]
    pub version: u64,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.epoch, self.version)
    }
}

/// Who is to obey a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Audience {
    /// Relays: revocations.
    Relay,
    /// Nodes: revocations and access rules.
    Node,
    /// Devices: routes and relays.
    Device,
}

/// What every document begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Whose it is.
    pub tenant: TenantId,
    /// Who is to obey it.
    pub audience: Audience,
    /// Its place in the order.
    #[serde(flatten)]
    pub version: Version,
    /// When it was signed.
    pub issued: UnixTime,
    /// When it stops being valid.
    pub expires: UnixTime,
}

/// Certificates that no longer count.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Revoked {
    /// Holders: every certificate of theirs.
    #[serde(default)]
    pub ids: Vec<EntityId>,
    /// Single certificates, by serial number in lower-case hexadecimal.
    #[serde(default)]
    pub serials: Vec<String>,
}

impl Revoked {
    /// Whether this holder or this certificate is revoked.
    #[must_use]
    pub fn names(&self, id: &EntityId, serial: &str) -> bool {
        self.ids.contains(id) || self.serials.iter().any(|s| s == serial)
    }
}

/// The relay's document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayConfig {
    /// Head.
    #[serde(flatten)]
    pub head: Head,
    /// The tenant's CAs; empty = as before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<Announced>,
    /// Whom to cut off.
    #[serde(default)]
    pub revoked: Revoked,
}

/// The nodes' document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeConfig {
    /// Head.
    #[serde(flatten)]
    pub head: Head,
    /// The tenant's CAs; empty = as before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<Announced>,
    /// Whom to cut off.
    #[serde(default)]
    pub revoked: Revoked,
    /// What devices may reach, first match decides, deny by default.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Devices for which there is more to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<Scope>,
}

/// The devices' document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceConfig {
    /// Head.
    #[serde(flatten)]
    pub head: Head,
    /// The tenant's CAs; empty = as before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<Announced>,
    /// What goes where, first match decides.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// For what no route covers.
    pub default_route: Via,
}

/// A document that has a head.
pub trait Document: Serialize + DeserializeOwned {
    /// Who is to obey it.
    const AUDIENCE: Audience;
    /// Its head.
    fn head(&self) -> &Head;
    /// The tenant's CAs from now on, as far as they are believed (`TenantCa::after`).
    fn authorities(&self) -> &[Announced];
}

impl Document for RelayConfig {
    const AUDIENCE: Audience = Audience::Relay;
    fn head(&self) -> &Head {
        &self.head
    }
    fn authorities(&self) -> &[Announced] {
        &self.authorities
    }
}

impl Document for NodeConfig {
    const AUDIENCE: Audience = Audience::Node;
    fn head(&self) -> &Head {
        &self.head
    }
    fn authorities(&self) -> &[Announced] {
        &self.authorities
    }
}

impl Document for DeviceConfig {
    const AUDIENCE: Audience = Audience::Device;
    fn head(&self) -> &Head {
        &self.head
    }
    fn authorities(&self) -> &[Announced] {
        &self.authorities
    }
}

/// A document as it travels and lies on disk (CBOR).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SignedConfig {
    /// The JSON that was signed.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub payload: Vec<u8>,
    /// ECDSA P-256 SHA-256 over `CONTEXT || payload`, ASN.1.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: Vec<u8>,
    /// The configuration key's certificate, DER.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub certificate: Vec<u8>,
}

impl SignedConfig {
    /// What is signed for a payload.
    #[must_use]
    pub fn message(payload: &[u8]) -> Vec<u8> {
        [CONTEXT, payload].concat()
    }

    /// Verifies and reads the document: signature and certificate first, then the payload, audience, tenant, order
    /// and time. Nothing of the payload is looked at before its signature holds.
    ///
    /// `seen` is the highest version accepted before; the same version is accepted again.
    ///
    /// # Errors
    /// Which of these failed; the caller keeps what it has.
    pub fn verify<D: Document>(&self, ca: &TenantCa, seen: Option<Version>, now: UnixTime) -> Result<D, ConfigError> {
        if self.payload.len() > MAX_PAYLOAD {
            return Err(ConfigError::Malformed(format!("it is larger than {MAX_PAYLOAD} bytes")));
        }
        let certificate = CertificateDer::from(self.certificate.as_slice());
        ca.verify_config_signature(&certificate, &Self::message(&self.payload), &self.signature, now)
            .map_err(ConfigError::Signature)?;
        let document: D = serde_json::from_slice(&self.payload).map_err(|e| ConfigError::Malformed(e.to_string()))?;
        let head = document.head();
        if head.audience != D::AUDIENCE || head.tenant != *ca.tenant() {
            return Err(ConfigError::NotForUs(format!("{} {:?}", head.tenant, head.audience)));
        }
        if let Some(seen) = seen.filter(|s| head.version < *s) {
            return Err(ConfigError::RolledBack { offered: head.version, seen });
        }
        if head.issued > now.plus(CLOCK_SKEW_SECONDS) || head.expires <= now {
            return Err(ConfigError::NotValidNow { issued: head.issued.0, expires: head.expires.0, now: now.0 });
        }
        Ok(document)
    }
}
