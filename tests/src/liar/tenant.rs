//! A tenant whose certificate authority the test holds: whoever it needs, with certificates and keys.

use std::sync::Arc;

use hedgerow_runtime::clock;
use hedgerow_runtime::tls::{Own, SigningKey};
use hedgerow_shared::verify::config::{Head, RelayConfig};
use hedgerow_shared::verify::{
    Audience, DeviceConfig, Identity, NodeConfig, Revoked, SignedConfig, TenantCa, Version, Via,
};
use hedgerow_shared::{EntityId, GroupName, Origin, Role, TenantId};
use hedgerow_uem_core::ca::{Authority, ConfigKey, Key};
use rustls_pki_types::CertificateDer;
use serde_json::json;

use crate::tap::Needle;

fn dice(bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(32) {
        chunk.copy_from_slice(&clock::random::<32>()[..chunk.len()]);
    }
}

/// A certificate authority with its configuration key.
pub struct Tenant {
    /// The id.
    pub id: TenantId,
    /// The CA.
    pub ca: TenantCa,
    authority: Authority,
    config_key: ConfigKey,
}

impl std::fmt::Debug for Tenant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tenant({})", self.id)
    }
}

/// Somebody with a certificate.
pub struct Holder {
    /// Whom the certificate names.
    pub identity: Identity,
    /// The certificate, DER.
    pub leaf: Vec<u8>,
    /// Its key.
    pub key: Key,
}

impl std::fmt::Debug for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Holder({:?})", self.identity)
    }
}

impl Holder {
    /// As TLS takes it: leaf, then what is `above`.
    #[must_use]
    pub fn own(&self, above: &TenantCa) -> Own {
        let chain = vec![CertificateDer::from(self.leaf.clone()), above.der().clone()];
        Own { chain, key: self.signing_key() }
    }

    /// The key as TLS and links take it.
    #[must_use]
    pub fn signing_key(&self) -> Arc<SigningKey> {
        SigningKey::from_pkcs8(&self.key.to_pkcs8()).expect("its own encoding")
    }

    /// The private number, to look for.
    #[must_use]
    pub fn needle(&self) -> Needle {
        let der = self.key.to_pkcs8();
        let at = der.windows(5).position(|w| w == [2, 1, 1, 4, 32]).expect("a P-256 key") + 5;
        Needle { name: format!("private key of {}", self.identity.role), bytes: der[at..at + 32].to_vec() }
    }
}

impl Tenant {
    /// A tenant of this id with new keys.
    #[must_use]
    pub fn new(id: &str) -> Self {
        let id: TenantId = id.parse().expect("a tenant id");
        let authority = Authority::create(id.clone(), clock::now(), &mut dice).expect("a CA");
        let key = Key::generate(&mut dice).expect("a key");
        let certificate = authority.issue_config_key(&key, clock::now(), &mut dice).expect("a certificate");
        let ca = TenantCa::from_der(authority.certificate()).expect("a CA that verifiers take");
        Self { id, ca, config_key: ConfigKey::from_parts(key, certificate), authority }
    }

    /// A certificate for somebody new; `group` is for nodes.
    #[must_use]
    pub fn issue(&self, role: Role, group: &str) -> Holder {
        let group: Option<GroupName> = (role == Role::Node).then(|| group.parse().expect("a group"));
        let origins = match role {
            Role::Core => vec![Origin::Core, Origin::Bws],
            Role::Node => vec![Origin::Proxy],
            Role::Device => Vec::new(),
        };
        let id = EntityId::from_random(clock::random());
        let identity = Identity { tenant: self.id.clone(), role, id, group, origins };
        let key = Key::generate(&mut dice).expect("a key");
        let issued = self.authority.issue_for_key(&key, &identity, clock::now(), &mut dice).expect("a certificate");
        Holder { identity, leaf: issued.certificate, key }
    }

    fn head(&self, audience: Audience, version: u64, lifetime: u64) -> Head {
        let now = clock::now();
        let version = Version { epoch: 1, version };
        Head { tenant: self.id.clone(), audience, version, issued: now, expires: now.plus(lifetime) }
    }

    /// A nodes' document that allows 127.0.0.1 at `port`, good for `lifetime` seconds.
    #[must_use]
    pub fn node_config(&self, version: u64, lifetime: u64, port: u16, revoked: &[EntityId]) -> SignedConfig {
        let rule = json!({ "action": "allow", "target": "127.0.0.1", "ports": port.to_string() });
        let document = NodeConfig {
            authorities: Vec::new(),
            head: self.head(Audience::Node, version, lifetime),
            revoked: Revoked { ids: revoked.to_vec(), serials: Vec::new() },
            scopes: Vec::new(),
            rules: vec![serde_json::from_value(rule).expect("a rule")],
        };
        self.config_key.sign(&document).expect("a signature")
    }

    /// A relays' document that revokes nobody, good for `lifetime` seconds.
    #[must_use]
    pub fn relay_config(&self, version: u64, lifetime: u64) -> SignedConfig {
        let document = RelayConfig {
            authorities: Vec::new(),
            head: self.head(Audience::Relay, version, lifetime),
            revoked: Revoked::default(),
        };
        self.config_key.sign(&document).expect("a signature")
    }

    /// A devices' document that sends 127.0.0.1 to the nodes of `group`.
    #[must_use]
    pub fn device_config(&self, version: u64, lifetime: u64, group: &str) -> SignedConfig {
        let route = json!({ "target": "127.0.0.1", "via": format!("group:{group}") });
        let document = DeviceConfig {
            authorities: Vec::new(),
            head: self.head(Audience::Device, version, lifetime),
            routes: vec![serde_json::from_value(route).expect("a route")],
            default_route: Via::Deny,
        };
        self.config_key.sign(&document).expect("a signature")
    }
}
