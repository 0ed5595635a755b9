//! A tenant whose CA the bench has: certificates for everybody whom it simulates.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use hedgerow_runtime::clock;
use hedgerow_runtime::link::Credentials;
use hedgerow_runtime::tls::{InForce, Own, SigningKey};
use hedgerow_shared::verify::SignedConfig;
use hedgerow_shared::verify::certificate::Identity;
use hedgerow_shared::verify::config::{Audience, Document, Head, Version};
use hedgerow_shared::{EntityId, Origin, Role, TenantId};
use hedgerow_uem_core::ca::{Authority, ConfigKey, Key};
use rustls::pki_types::CertificateDer;

/// Longer than any bench takes.
const DAY: u64 = 86_400;

/// See the module.
pub(crate) struct Tenant {
    pub(crate) id: TenantId,
    authority: Authority,
}

/// A node or a device.
#[derive(Debug, Clone)]
pub(crate) struct Holder {
    pub(crate) identity: Identity,
    pub(crate) leaf: CertificateDer<'static>,
    pub(crate) key: Arc<SigningKey>,
}

impl Tenant {
    /// A new one.
    pub(crate) fn create(id: &str) -> anyhow::Result<Self> {
        let id: TenantId = id.parse()?;
        Ok(Self { authority: Authority::create(id.clone(), clock::now(), &mut dice)?, id })
    }

    /// The one that another process has kept: its CA's certificate, DER, and key, PKCS#8.
    pub(crate) fn read(id: &str, certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        let (id, key): (TenantId, _) = (id.parse()?, Key::from_pkcs8(&std::fs::read(key)?)?);
        Ok(Self { authority: Authority::from_parts(id.clone(), std::fs::read(certificate)?, key), id })
    }

    /// Keeps it for `read`, in a folder of the bench's own: the key is worth nothing beyond it.
    pub(crate) fn write(&self, certificate: &Path, key: &Path) -> anyhow::Result<()> {
        std::fs::write(certificate, self.ca())?;
        std::fs::write(key, self.authority.key().to_pkcs8().as_slice())?;
        Ok(())
    }

    /// The CA's certificate, DER.
    pub(crate) fn ca(&self) -> &[u8] {
        self.authority.certificate()
    }

    /// Somebody new.
    pub(crate) fn holder(&self, role: Role) -> anyhow::Result<Holder> {
        let origins = if role == Role::Node { vec![Origin::Proxy] } else { vec![] };
        let group = (role == Role::Node).then(Default::default);
        let id = EntityId::from_random(clock::random());
        let identity = Identity { tenant: self.id.clone(), role, id, group, origins };
        let key = Key::generate(&mut dice)?;
        let leaf = self.authority.issue_for_key(&key, &identity, clock::now(), &mut dice)?.certificate;
        let key = SigningKey::from_pkcs8(&key.to_pkcs8()).context("a key of the CA's own making")?;
        Ok(Holder { identity, leaf: CertificateDer::from(leaf), key })
    }

    /// A signed configuration; `document` makes it from its head.
    pub(crate) fn sign<D: Document>(
        &self,
        audience: Audience,
        document: impl FnOnce(Head) -> D,
    ) -> anyhow::Result<SignedConfig> {
        let (key, now) = (Key::generate(&mut dice)?, clock::now());
        let certificate = self.authority.issue_config_key(&key, now, &mut dice)?;
        let version = Version { epoch: 0, version: 1 };
        let head = Head { tenant: self.id.clone(), audience, version, issued: now, expires: now.plus(DAY) };
        Ok(ConfigKey::from_parts(key, certificate).sign(&document(head))?)
    }
}

impl Holder {
    /// As a link shows who it is.
    pub(crate) fn credentials(&self) -> Credentials {
        Credentials::Certificate {
            role: self.identity.role,
            tenant: self.identity.tenant.clone(),
            own: InForce::new(self.own()),
            origins: self.identity.origins.clone(),
        }
    }

    /// As a session does.
    pub(crate) fn own(&self) -> Own {
        Own { chain: vec![self.leaf.clone()], key: self.key.clone() }
    }
}

/// Random bytes from the system.
pub(crate) fn dice(bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(32) {
        let random: [u8; 32] = clock::random();
        chunk.copy_from_slice(&random[..chunk.len()]);
    }
}
