//! The tenant's certificate authority: certifies devices, nodes, the core and the configuration key. What it issues
//! has exactly the form that `shared::verify::certificate` describes and checks.

mod authority;
mod key;
mod request;
#[cfg(test)]
mod tests;

use hedgerow_shared::{EntityId, Role, UnixTime};
use serde::{Deserialize, Serialize};

pub use authority::{Authority, ConfigKey, Issued, LEAF_LIFETIME_SECONDS};
pub use key::Key;
pub use request::{CertificateRequest, RequestError};

/// Why the authority could not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaError {
    /// The private key's encoding is not that of an ECDSA P-256 key.
    #[error("the private key is not an ECDSA P-256 key in PKCS#8")]
    Key,
    /// The random source gave unusable numbers again and again: it is broken.
    #[error("the source of random numbers is broken")]
    Randomness,
    /// A certificate could not be written: a name or time that X.509 does not allow.
    #[error("the certificate cannot be written: {0}")]
    Encoding(String),
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRecord {
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// Whom it names.
    pub holder: EntityId,
    /// In which role.
    pub role: Role,
    /// SHA-256 of the DER, lower-case hexadecimal.
    pub fingerprint: String,
    /// `TenantCa::pin` of the CA it stands under; empty for certificates of before that was noted.
    #[serde(default)]
    pub issuer: String,
    /// Start of validity.
    pub not_before: UnixTime,
    /// End of validity.
    pub not_after: UnixTime,
}
