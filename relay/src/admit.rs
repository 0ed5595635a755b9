//! Whether a peer that has shown who it is may have a link: asked after every handshake, and of every live link again
//! when its tenant changes. Pure: the tenant as it is now, what the peer showed, the time.

use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::verify::certificate::{Usage, VerifiedCertificate};
use hedgerow_shared::wire::message::Claim;
use hedgerow_shared::{EntityId, Origin, Role, UnixTime};
use rustls_pki_types::CertificateDer;

use crate::route;
use crate::store::{Tenant, TenantState};

/// Verifies the leaf a node or device shows against the CA of the tenant it claims. The proof of possession is the
/// link driver's.
///
/// # Errors
/// `Unauthenticated`, `Revoked` or `Forbidden`, with what to do.
pub fn certificate(
    tenant: Option<&Tenant>,
    claim: &Claim,
    leaf: &CertificateDer<'_>,
    now: UnixTime,
) -> Result<VerifiedCertificate, Fault> {
    // An unknown tenant and one without a CA look alike from outside.
    let no_ca =
        || Fault::new(Code::Unauthenticated, "the tenant is unknown here, or its core has not registered its CA yet");
    let tenant = tenant.ok_or_else(no_ca)?;
    let ca = tenant.ca.as_ref().ok_or_else(no_ca)?;
    let verified = ca
        .verify(leaf, claim.role, Usage::Client, now)
        .map_err(|e| Fault::new(Code::Unauthenticated, e.to_string()))?;
    holder(tenant, &Shown::of(&verified), now)?;
    Ok(verified)
}

/// What is asked of a peer with its link open: also when the tenant's configuration has changed since.
///
/// # Errors
/// Why not.
pub fn link(
    tenant: Option<&Tenant>,
    role: Role,
    shown: Option<&VerifiedCertificate>,
    origins: &[Origin],
    now: UnixTime,
) -> Result<(), Fault> {
    let tenant = tenant.ok_or_else(|| Fault::new(Code::Unauthenticated, "the tenant is unknown here"))?;
    route::serve(role, origins)?;
    match (role, shown) {
        (Role::Core, None) => active(tenant),
        (Role::Node | Role::Device, Some(shown)) => {
            if let Some(missing) = origins.iter().find(|o| !shown.identity.origins.contains(o)) {
                return Err(Fault::new(Code::Forbidden, format!("the certificate does not name origin {missing}")));
            }
            holder(tenant, &Shown::of(shown), now)
        }
        (Role::Core, Some(_)) | (Role::Node | Role::Device, None) => {
            Err(Fault::new(Code::Unauthenticated, "the proof is not of the kind this role needs"))
        }
    }
}

/// What of a certificate decides, as long as its holder is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown<'a> {
    /// Its holder.
    pub id: EntityId,
    /// Its serial number.
    pub serial: &'a str,
    /// Its end.
    pub not_after: UnixTime,
    /// The key of the CA it stands under.
    pub issuer: &'a [u8; 32],
}

impl<'a> Shown<'a> {
    /// Of this one.
    #[must_use]
    pub fn of(certificate: &'a VerifiedCertificate) -> Self {
        let VerifiedCertificate { identity, serial, not_after, issuer, .. } = certificate;
        Self { id: identity.id, serial, not_after: *not_after, issuer }
    }
}

/// Whether the holder of a certificate may be here now.
///
/// # Errors
/// `Forbidden` for a blocked tenant or holder, `Revoked`, `Unauthenticated` for an expired certificate; and without a valid
/// configuration nobody knows who is revoked, so nobody with a certificate is let in.
pub fn holder(tenant: &Tenant, shown: &Shown<'_>, now: UnixTime) -> Result<(), Fault> {
    let Shown { id, serial, not_after, issuer } = *shown;
    active(tenant)?;
    if !tenant.ca.as_ref().is_some_and(|ca| ca.key_ids().contains(issuer)) {
        let text = "the certificate stands under a CA that the tenant has replaced; activate or enrol again";
        return Err(Fault::new(Code::Unauthenticated, text));
    }
    if not_after < now {
        return Err(Fault::new(
            Code::Unauthenticated,
            "the certificate has expired; renew it, or enrol or activate again",
        ));
    }
    if tenant.blocked.contains(&id) {
        return Err(Fault::new(Code::Forbidden, "the device or node is blocked at this relay by its operator"));
    }
    match tenant.config.as_ref().filter(|c| c.head.expires > now) {
        None => Err(Fault::new(
            Code::Forbidden,
            "the relay has no valid configuration of this tenant (whom it revoked): its core must connect first",
        )),
        Some(config) if config.revoked.names(&id, serial) => {
            Err(Fault::new(Code::Revoked, "the certificate or its holder was revoked"))
        }
        Some(_) => Ok(()),
    }
}

fn active(tenant: &Tenant) -> Result<(), Fault> {
    match tenant.state {
        TenantState::Active => Ok(()),
        TenantState::Blocked => Err(Fault::new(Code::Forbidden, "the tenant is blocked at this relay by its operator")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use hedgerow_runtime::clock;
    use hedgerow_shared::TenantId;
    use hedgerow_shared::verify::certificate::Identity;

    use super::*;
    use crate::store::Store;
    use crate::testing::TestCa;

    struct World {
        store: Store,
        id: TenantId,
        ca: TestCa,
        node: Identity,
        _folder: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let (id, ca): (TenantId, _) = ("S12345678".parse().unwrap(), TestCa::new("S12345678"));
            store.add(id.clone()).unwrap();
            store.register_ca(&id, ca.der()).unwrap();
            store.put_config(&id, ca.relay_config(1, &[]), clock::now()).unwrap();
            let entity = EntityId::from_random([1; 16]);
            let node = Identity {
                tenant: id.clone(),
                role: Role::Node,
                id: entity,
                group: None,
                origins: vec![Origin::Proxy],
            };
            Self { store, id, ca, node, _folder: folder }
        }

        fn tenant(&self) -> Arc<Tenant> {
            self.store.tenant(&self.id).unwrap()
        }

        fn show(&self, leaf: &CertificateDer<'_>, role: Role, now: UnixTime) -> Result<VerifiedCertificate, Code> {
            let claim = Claim { role, tenant: self.id.clone() };
            certificate(Some(&self.tenant()), &claim, leaf, now).map_err(|f| f.code)
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_node_of_the_tenant_is_admitted_until_revoked_blocked_or_expired() {
        let world = World::new();
        let (leaf, _) = world.ca.leaf(&world.node, HOUR);
        let now = clock::now();
        let shown = world.show(&leaf, Role::Node, now).unwrap();
        let admitted =
            |now| link(Some(&world.tenant()), Role::Node, Some(&shown), &[Origin::Proxy], now).map_err(|f| f.code);
        assert_eq!(admitted(now), Ok(()));
        assert_eq!(admitted(now.plus(7200)), Err(Code::Unauthenticated));
        world.store.set_blocked(&world.id, world.node.id, true).unwrap();
        assert_eq!(admitted(now), Err(Code::Forbidden));
        world.store.set_blocked(&world.id, world.node.id, false).unwrap();
        world.store.set_state(&world.id, TenantState::Blocked).unwrap();
        assert_eq!(admitted(now), Err(Code::Forbidden));
        world.store.set_state(&world.id, TenantState::Active).unwrap();
        world.store.put_config(&world.id, world.ca.relay_config(2, &[world.node.id]), now).unwrap();
        assert_eq!(admitted(now), Err(Code::Revoked));
        assert_eq!(world.show(&leaf, Role::Node, now).unwrap_err(), Code::Revoked);
        assert_eq!(world.show(&leaf, Role::Node, now.plus(7200)).unwrap_err(), Code::Unauthenticated);
    }

    #[test]
    fn foreign_and_misused_certificates_are_refused() {
        let world = World::new();
        let now = clock::now();
        let (leaf, _) = world.ca.leaf(&world.node, HOUR);
        assert_eq!(world.show(&leaf, Role::Device, now).unwrap_err(), Code::Unauthenticated);
        let (foreign, _) = TestCa::new("S12345678").leaf(&world.node, HOUR);
        assert_eq!(world.show(&foreign, Role::Node, now).unwrap_err(), Code::Unauthenticated);
        let other = Identity { tenant: "S87654321".parse().unwrap(), ..world.node.clone() };
        let (other, _) = world.ca.leaf(&other, HOUR);
        assert_eq!(world.show(&other, Role::Node, now).unwrap_err(), Code::Unauthenticated);
        let claim = Claim { role: Role::Node, tenant: world.id.clone() };
        assert_eq!(certificate(None, &claim, &leaf, now).unwrap_err().code, Code::Unauthenticated);
    }

    #[test]
    fn origins_must_stand_in_the_certificate_and_fit_the_role() {
        let world = World::new();
        let now = clock::now();
        let (leaf, _) = world.ca.leaf(&world.node, HOUR);
        let shown = world.show(&leaf, Role::Node, now).unwrap();
        let tenant = world.tenant();
        let try_origins =
            |role, shown, origins: &[Origin]| link(Some(&tenant), role, shown, origins, now).map_err(|f| f.code);
        assert_eq!(try_origins(Role::Node, Some(&shown), &[Origin::Proxy]), Ok(()));
        assert_eq!(try_origins(Role::Node, Some(&shown), &[Origin::Directory]), Err(Code::Forbidden));
        assert_eq!(try_origins(Role::Core, None, &[Origin::Core, Origin::Bws]), Ok(()));
        assert_eq!(try_origins(Role::Core, Some(&shown), &[Origin::Core]), Err(Code::Unauthenticated));
        assert_eq!(try_origins(Role::Device, None, &[]), Err(Code::Unauthenticated));
    }

    #[test]
    fn without_a_valid_configuration_nobody_with_a_certificate_enters() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let world = World::new();
        store.add(world.id.clone()).unwrap();
        let claim = Claim { role: Role::Node, tenant: world.id.clone() };
        let (leaf, _) = world.ca.leaf(&world.node, 10 * HOUR);
        let now = clock::now();
        let show = |now| certificate(store.tenant(&world.id).as_deref(), &claim, &leaf, now).map_err(|f| f.code);
        assert_eq!(show(now).unwrap_err(), Code::Unauthenticated, "no CA yet");
        store.register_ca(&world.id, world.ca.der()).unwrap();
        assert_eq!(show(now).unwrap_err(), Code::Forbidden, "no configuration yet");
        store.put_config(&world.id, world.ca.relay_config(1, &[]), now).unwrap();
        assert!(show(now).is_ok());
        assert_eq!(show(now.plus(3601)).unwrap_err(), Code::Forbidden, "the configuration has expired");
    }
}
