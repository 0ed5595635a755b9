//! What a tenant's core asks of a relay: to know its CA, to obey its configuration, to pass its names through.

use minicbor::{Decode, Encode};

use super::keyed_hash;
use crate::Origin;
use crate::fault::Fault;
use crate::verify::config::{SignedConfig, Version};
use crate::wire::names::{RefusedName, RegisteredName};

/// Services of the relay for a tenant's core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Service {
    /// Register the tenant's CA; request `CaRegistration`. A CA key registers once, over all tenants.
    #[n(0)]
    RegisterCa,
    /// Store and obey a configuration for audience `relay`; request `SignedConfig`.
    #[n(1)]
    PutConfig,
    /// Replace the look-up entries and the names that are passed through; request `Registrations`.
    #[n(2)]
    PutRegistrations,
}

/// Request of `Service::RegisterCa`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct CaRegistration {
    /// The CA certificate, DER.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub certificate: Vec<u8>,
}

/// What a relay keeps and passes on of a configuration; here so that both ends name one type.
pub type ConfigUpload = SignedConfig;

/// Request of `Service::PutRegistrations`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Registrations {
    /// `address_hash` of every address with an open activation, 32 bytes each, and when it closes (seconds since 1970).
    #[n(0)]
    pub open: Vec<OpenActivation>,
    /// Names whose TLS clients are passed through; at most `names::MAX_NAMES`.
    #[cbor(n(1), default)]
    pub names: Vec<RegisteredName>,
    /// What the core serves on this link besides `core` and `bws`: `mdm`, or nothing.
    #[cbor(n(2), default)]
    pub serves: Vec<Origin>,
}

/// One address that may activate.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct OpenActivation {
    /// `address_hash`.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub hash: [u8; 32],
    /// When it closes, seconds since 1970.
    #[n(1)]
    pub until: u64,
}

/// The keyed hash under which a core registers an e-mail address and a relay looks it up: HMAC-SHA-256 by the
/// relay's look-up key over the address in lower case.
#[must_use]
pub fn address_hash(lookup_key: &[u8; 32], address: &str) -> [u8; 32] {
    keyed_hash(lookup_key, address.trim().to_lowercase().as_bytes())
}

/// Answer of a service.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ServiceReply {
    /// `Ok`, or why not.
    #[n(0)]
    pub fault: Fault,
    /// For PutConfig: the version now in force at this relay.
    #[n(1)]
    pub version: Option<Version>,
    /// For PutRegistrations: the names that are not passed through; absent at a relay that knows nothing of names.
    #[n(2)]
    pub refused: Option<Vec<RefusedName>>,
    /// For PutRegistrations: where web-services clients find this relay as an HTTP proxy, such as
    /// `http://relay.example:8080`.
    #[cbor(n(3), default)]
    pub web: Vec<String>,
}

impl ServiceReply {
    /// An answer that says no more than how it went.
    #[must_use]
    pub fn new(fault: Fault) -> Self {
        Self { fault, version: None, refused: None, web: Vec::new() }
    }
}
