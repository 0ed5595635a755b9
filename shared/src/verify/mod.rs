//! What may be believed: certificates of a tenant's CA, and configuration the tenant signed.
//! Time is an argument; everything fails closed.

pub mod authority;
pub mod certificate;
pub mod config;
pub mod policy;
pub mod special;

pub use authority::{Announced, TenantCa};
pub use certificate::{CertificateError, Identity, Usage, VerifiedCertificate};
pub use config::{Audience, ConfigError, DeviceConfig, Head, NodeConfig, RelayConfig, Revoked, SignedConfig, Version};
pub use policy::{Action, PortSet, Route, Rule, TargetPattern, Via};
