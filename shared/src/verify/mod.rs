//! What may be believed: certificates of a tenant's CA, configuration the tenant signed, licences an operator signed.
//! Time is an argument; everything fails closed.

pub mod authority;
pub mod certificate;
pub mod config;
pub mod licence;
pub mod policy;
pub mod scope;
pub mod special;

pub use authority::{Announced, TenantCa};
pub use certificate::{CertificateError, Identity, Usage, VerifiedCertificate};
pub use config::{Audience, ConfigError, DeviceConfig, Head, NodeConfig, RelayConfig, Revoked, SignedConfig, Version};
pub use licence::{Feature, Licence, LicenceError, LicenceKey, SignedLicence, Standing};
pub use policy::{Action, PortSet, Route, Rule, TargetPattern, Via};
pub use scope::{Scope, Scopes};
