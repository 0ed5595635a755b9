//! Devices after their activation; and what devices and nodes have in common: being admitted, renewing.

use hedgerow_shared::verify::{Identity, VerifiedCertificate};
use hedgerow_shared::{EntityId, Role, TenantId, UnixTime};

use super::{ATTEMPTS, Call, Core, Plan};
use crate::CoreError;
use crate::account::{Device, DeviceState, Node, NodeState};
use crate::ca::{CertificateRecord, CertificateRequest};
use crate::store::{Change, Page, Store};

/// Who stands behind a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "short-lived, one per request")]
pub enum Holder {
    /// A device.
    Device(Device),
    /// A node.
    Node(Node),
}

impl<S: Store> Core<S> {
    /// Devices, of one user or of all, in the order of ids.
    ///
    /// # Errors
    /// `Store`.
    pub async fn devices(
        &self,
        tenant: &TenantId,
        user: Option<EntityId>,
        page: Page,
    ) -> Result<Vec<Device>, CoreError> {
        self.store.devices(tenant, user, page).await.map_err(CoreError::Store)
    }

    /// One device.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn device(&self, tenant: &TenantId, id: EntityId) -> Result<Device, CoreError> {
        self.store.device(tenant, id).await.map_err(CoreError::Store)?.ok_or_else(|| CoreError::not_found("device", id))
    }

    /// Revokes a device for ever.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Store`.
    pub async fn revoke_device(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        id: EntityId,
    ) -> Result<Device, CoreError> {
        for _ in 0..ATTEMPTS {
            let row = self.load(tenant).await?;
            let mut device = self.device(tenant, id).await?;
            if device.state == DeviceState::Revoked {
                return Ok(device);
            }
            device.state = DeviceState::Revoked;
            device.revoked = Some(call.now);
            let plan = Plan::default().publish().change(Change::PutDevice(device.clone()));
            if self.commit(call, row, plan.record("device.revoke", id.to_string(), device.name.clone())).await? {
                return Ok(device);
            }
        }
        Err(CoreError::Busy)
    }

    /// Who stands behind a certificate that verified under the tenant's CA, and that they still count; notes that
    /// they were seen. To be asked after every handshake.
    ///
    /// # Errors
    /// `Revoked` (also for holders that are unknown, and devices of inactive users), `Store`.
    pub async fn admit(&self, certificate: &VerifiedCertificate, now: UnixTime) -> Result<Holder, CoreError> {
        let Identity { tenant, role, id, .. } = &certificate.identity;
        let holder = match role {
            Role::Device => {
                let found = self.store.device(tenant, *id).await.map_err(CoreError::Store)?;
                let found = found.filter(|d| d.state == DeviceState::Active);
                let device = found.ok_or(CoreError::Revoked { kind: "device", id: *id })?;
                let user = self.store.user(tenant, device.user).await.map_err(CoreError::Store)?;
                if !user.is_some_and(|u| u.active) {
                    return Err(CoreError::Revoked { kind: "device", id: *id });
                }
                Holder::Device(device)
            }
            Role::Node => {
                let found = self.store.node(tenant, *id).await.map_err(CoreError::Store)?;
                let found = found.filter(|n| n.state == NodeState::Active);
                Holder::Node(found.ok_or(CoreError::Revoked { kind: "node", id: *id })?)
            }
            // The core's own certificate opens nothing at the core.
            Role::Core => return Err(CoreError::Revoked { kind: "core", id: *id }),
        };
        self.store.seen(tenant, *id, now).await.map_err(CoreError::Store)?;
        Ok(holder)
    }

    /// A new certificate for a device or node that shows a valid one: same identity, the key of the request. The
    /// old one stays valid until it expires. The DER.
    ///
    /// # Errors
    /// `Revoked`, `Invalid` (the request), `Busy`, `Store`.
    pub async fn renew(
        &self,
        call: &mut Call<'_>,
        certificate: &VerifiedCertificate,
        csr: &[u8],
    ) -> Result<Vec<u8>, CoreError> {
        let csr = CertificateRequest::from_der(csr)
            .map_err(|e| CoreError::invalid("the certificate request", e.to_string()))?;
        let tenant = &certificate.identity.tenant;
        for _ in 0..ATTEMPTS {
            let row = self.load(tenant).await?;
            let holder = self.admit(certificate, call.now).await?;
            // The identity is made from the records, not copied from the old certificate.
            let identity = match &holder {
                Holder::Device(d) => {
                    Identity { tenant: tenant.clone(), role: Role::Device, id: d.id, group: None, origins: Vec::new() }
                }
                Holder::Node(n) => Identity {
                    tenant: tenant.clone(),
                    role: Role::Node,
                    id: n.id,
                    group: Some(n.group.clone()),
                    origins: n.origins.clone(),
                },
            };
            let issued = self.authority(&row)?.issue(&csr, &identity, call.now, call.random)?;
            let (action, change) = match holder {
                Holder::Device(d) => (
                    "device.renew",
                    Change::PutDevice(Device { certificate: issued.record.clone(), last_seen: Some(call.now), ..d }),
                ),
                Holder::Node(n) => (
                    "node.renew",
                    Change::PutNode(Node { certificate: issued.record.clone(), last_seen: Some(call.now), ..n }),
                ),
            };
            let plan = Plan::default()
                .change(change)
                .record(action, identity.id.to_string(), format!("serial {}", issued.record.serial))
                .change(Change::AddCertificate(issued.record));
            if self.commit(call, row, plan).await? {
                return Ok(issued.certificate);
            }
        }
        Err(CoreError::Busy)
    }

    /// Certificates issued to one holder, oldest first.
    ///
    /// # Errors
    /// `Store`.
    pub async fn certificates(&self, tenant: &TenantId, holder: EntityId) -> Result<Vec<CertificateRecord>, CoreError> {
        self.store.certificates(tenant, holder).await.map_err(CoreError::Store)
    }
}
