//! Devices that activated.

use hedgerow_shared::verify::Version;
use hedgerow_shared::{EntityId, TenantId, UnixTime};
use serde::{Deserialize, Serialize};

use crate::ca::CertificateRecord;
use crate::profile::ActivationType;

/// Where a device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    /// Its certificate counts.
    Active,
    /// It does not, for ever.
    Revoked,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Whose device.
    pub tenant: TenantId,
    /// Which one; its certificate's CN.
    pub id: EntityId,
    /// Who activated it.
    pub user: EntityId,
    /// As the device calls itself; not trusted, no control characters.
    pub name: String,
    /// Operating system and version as the device tells; not trusted, no control characters.
    pub platform: String,
    /// Its newest certificate.
    pub certificate: CertificateRecord,
    /// Whether it counts.
    pub state: DeviceState,
    /// When it activated.
    pub created: UnixTime,
    /// When it was revoked.
    pub revoked: Option<UnixTime>,
    /// When it last spoke with the core.
    pub last_seen: Option<UnixTime>,
    /// The configuration that it has said is in force there.
    #[serde(default)]
    pub obeys: Option<Version>,
    /// How much of it is managed; none where it activated before there were types, or named no known platform.
    #[serde(default)]
    pub activation: Option<ActivationType>,
}
