//! Devices after their activation; and what devices and nodes have in common: being admitted, renewing.

use hedgerow_shared::verify::{Identity, VerifiedCertificate, Version};
use hedgerow_shared::wire::core_api::LAPSED_SECONDS;
use hedgerow_shared::{EntityId, Role, TenantId, UnixTime};

use super::{Call, Core, Plan};
use crate::CoreError;
use crate::account::{Device, DeviceState, Node, NodeState};
use crate::ca::{CertificateRecord, CertificateRequest};
use crate::store::{Change, Page, Store};

/// Certificates that one holder gets within a day: a renewal that does not come to its end asks again.
const RENEWALS_A_DAY: usize = 10;

/// Who stands behind a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "short-lived, one per request")]
pub enum Holder {
    /// A device.
    Device(Device),
    /// A node.
    Node(Node),
}

impl Holder {
    /// The newest certificate that the holder is known to have.
    #[must_use]
    pub fn certificate(&self) -> &CertificateRecord {
        match self {
            Self::Device(device) => &device.certificate,
            Self::Node(node) => &node.certificate,
        }
    }

    /// As its certificates name it.
    #[must_use]
    pub fn identity(&self) -> Identity {
        match self {
            Self::Device(d) => {
                Identity { tenant: d.tenant.clone(), role: Role::Device, id: d.id, group: None, origins: Vec::new() }
            }
            Self::Node(n) => Identity {
                tenant: n.tenant.clone(),
                role: Role::Node,
                id: n.id,
                group: Some(n.group.clone()),
                origins: n.origins.clone(),
            },
        }
    }

    fn action(&self, device: &'static str, node: &'static str) -> &'static str {
        match self {
            Self::Device(_) => device,
            Self::Node(_) => node,
        }
    }
}

/// A device as it is once revoked, and what makes it so; `None` where it is.
pub(super) fn plan_revocation(device: Device, now: UnixTime) -> Option<(Device, Plan)> {
    if device.state == DeviceState::Revoked {
        return None;
    }
    let revoked = Device { state: DeviceState::Revoked, revoked: Some(now), ..device };
    let plan = Plan::default().publish().change(Change::PutDevice(revoked.clone()));
    let plan = plan.record("device.revoke", revoked.id.to_string(), revoked.name.clone());
    Some((revoked, plan))
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

    /// Notes which configuration a device says is in force there, if that is news.
    ///
    /// # Errors
    /// `Store`.
    pub async fn device_obeys(&self, device: &Device, version: Version) -> Result<(), CoreError> {
        if device.obeys == Some(version) {
            return Ok(());
        }
        self.store.obeys(&device.tenant, device.id, version).await.map_err(CoreError::Store)
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
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let device = self.device(tenant, id).await?;
            let Some((revoked, plan)) = plan_revocation(device.clone(), call.now) else { return Ok(device) };
            if self.commit(call, row, plan).await? {
                return Ok(revoked);
            }
        }
    }

    /// Who stands behind a certificate that verified under the tenant's CA, and that they still count; notes that
    /// they were seen. To be asked after every handshake.
    ///
    /// # Errors
    /// `Revoked` (also for holders that are unknown, and devices of inactive users), `Store`.
    pub async fn admit(&self, certificate: &VerifiedCertificate, now: UnixTime) -> Result<Holder, CoreError> {
        let holder = self.holder(certificate).await?;
        let Identity { tenant, id, .. } = &certificate.identity;
        self.store.seen(tenant, *id, now).await.map_err(CoreError::Store)?;
        Ok(holder)
    }

    async fn holder(&self, certificate: &VerifiedCertificate) -> Result<Holder, CoreError> {
        let Identity { tenant, role, id, .. } = &certificate.identity;
        Ok(match role {
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
        })
    }

    /// The next certificate for a device or node: same identity, the key of the request. The one it shows stays valid
    /// until it expires; one that has expired is good for this as long as it is the newest that its holder is known to
    /// have, for `LAPSED_SECONDS`. The DER. The holder confirms the new one with `confirm_renewal`.
    ///
    /// # Errors
    /// `Revoked`, `Lapsed`, `TooMany`, `Invalid` (the request), `Busy`, `Store`.
    pub async fn renew(
        &self,
        call: &mut Call<'_>,
        certificate: &VerifiedCertificate,
        csr: &[u8],
    ) -> Result<Vec<u8>, CoreError> {
        let csr = CertificateRequest::from_der(csr)
            .map_err(|e| CoreError::invalid("the certificate request", e.to_string()))?;
        let tenant = &certificate.identity.tenant;
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let holder = self.holder(certificate).await?;
            let has_lapsed = certificate.not_after < call.now;
            if has_lapsed
                && (certificate.not_after.plus(LAPSED_SECONDS) < call.now
                    || holder.certificate().fingerprint != certificate.fingerprint)
            {
                return Err(CoreError::Lapsed);
            }
            let issued = self.certificates(tenant, certificate.identity.id).await?;
            let yesterday = UnixTime(call.now.0.saturating_sub(24 * 3600));
            if issued.iter().filter(|c| c.not_before >= yesterday).count() >= RENEWALS_A_DAY {
                return Err(CoreError::TooMany { what: "new certificates of one holder", most: RENEWALS_A_DAY });
            }
            // The identity is made from the records, not copied from the old certificate.
            let identity = holder.identity();
            let issued = self.renewing_authority(&row)?.issue(&csr, &identity, call.now, call.random)?;
            let lapsed = if has_lapsed { ", after it had expired" } else { "" };
            let plan = Plan::default()
                .record(
                    holder.action("device.renew", "node.renew"),
                    identity.id.to_string(),
                    format!("serial {}{lapsed}", issued.record.serial),
                )
                .change(Change::AddCertificate(issued.record));
            let now = call.now;
            if self.commit(call, row, plan).await? {
                self.store.seen(tenant, identity.id, now).await.map_err(CoreError::Store)?;
                return Ok(issued.certificate);
            }
        }
    }

    /// A device or node shows its next certificate: from now on it is the one that its holder is known to have. Asking
    /// again changes nothing.
    ///
    /// # Errors
    /// `Revoked`, `NotFound` (not issued here), `Busy`, `Store`.
    pub async fn confirm_renewal(
        &self,
        call: &mut Call<'_>,
        certificate: &VerifiedCertificate,
    ) -> Result<(), CoreError> {
        let Identity { tenant, id, .. } = &certificate.identity;
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let holder = self.admit(certificate, call.now).await?;
            let known = holder.certificate();
            if known.fingerprint == certificate.fingerprint || known.not_after > certificate.not_after {
                return Ok(());
            }
            let issued = self.certificates(tenant, *id).await?;
            let record = issued.into_iter().find(|c| c.fingerprint == certificate.fingerprint);
            let record = record.ok_or_else(|| CoreError::not_found("certificate", &certificate.serial))?;
            let plan = Plan::default().record(
                holder.action("device.renewed", "node.renewed"),
                id.to_string(),
                format!("serial {}", record.serial),
            );
            let change = match holder {
                Holder::Device(d) => Change::PutDevice(Device { certificate: record, last_seen: Some(call.now), ..d }),
                Holder::Node(n) => Change::PutNode(Node { certificate: record, last_seen: Some(call.now), ..n }),
            };
            if self.commit(call, row, plan.change(change)).await? {
                return Ok(());
            }
        }
    }

    /// Certificates issued to one holder, oldest first.
    ///
    /// # Errors
    /// `Store`.
    pub async fn certificates(&self, tenant: &TenantId, holder: EntityId) -> Result<Vec<CertificateRecord>, CoreError> {
        self.store.certificates(tenant, holder).await.map_err(CoreError::Store)
    }
}
