//! The organisation itself: its keys, its place in the order of configurations, its settings.

use hedgerow_shared::verify::{Version, Via};
use hedgerow_shared::{TenantId, UnixTime};
use serde::{Deserialize, Serialize};

use crate::audit;

/// A private key of the tenant (PKCS#8), sealed under the key-encryption key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedKey(pub Vec<u8>);

/// The CA that is to follow the one in force. Until the end the core and the configuration key stand under the old one,
/// which everybody believes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollover {
    /// Its certificate, DER.
    #[serde(with = "crate::encoding::base64")]
    pub certificate: Vec<u8>,
    /// Its key, sealed under the key-encryption key.
    #[serde(with = "crate::encoding::base64")]
    pub key: Vec<u8>,
    /// The word of the CA in force for it.
    #[serde(with = "crate::encoding::base64")]
    pub endorsement: Vec<u8>,
    /// When it was made.
    pub begun: UnixTime,
    /// The first configuration that announces it.
    pub announced: Version,
    /// Whether it certifies devices and nodes already.
    pub certifies: bool,
}

/// What an administrator sets for a tenant as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TenantSettings {
    /// Relays to dial, `host:port`, in order of preference.
    pub relays: Vec<String>,
    /// The relays' TLS name when it is not the host part of the address; what lane names end in.
    pub relay_name: Option<String>,
    /// Certificate of the CA under which the relays' TLS certificates stand, PEM; absent for a public CA.
    pub relay_ca_pem: Option<String>,
}

/// A tenant, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Which one.
    pub id: TenantId,
    /// For people.
    pub name: String,
    /// When it was made.
    pub created: UnixTime,
    /// Raised by one in every commit; a commit made on an older one is refused.
    pub revision: u64,
    /// Version of the configuration in force: raised by every change that peers must learn of, and by re-issue.
    pub config: Version,
    /// When that version was issued.
    pub config_issued: UnixTime,
    /// CA certificate, DER.
    pub ca_certificate: Vec<u8>,
    /// CA key.
    pub ca_key: SealedKey,
    /// The CA that is to follow, while it is rolled over.
    pub rollover: Option<Rollover>,
    /// Configuration key's certificate, DER.
    pub config_certificate: Vec<u8>,
    /// Configuration key.
    pub config_key: SealedKey,
    /// Settings.
    pub settings: TenantSettings,
    /// Where devices send what no route covers.
    pub default_route: Via,
    /// The newest audit record.
    pub audit: audit::Head,
}
