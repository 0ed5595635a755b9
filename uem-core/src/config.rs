//! The documents that relay, node and device obey, made from what the tenant decided.

use hedgerow_shared::verify::config::LIFETIME_SECONDS;
use hedgerow_shared::verify::{
    Announced, Audience, DeviceConfig, Head, NodeConfig, RelayConfig, Revoked, Route, Rule, Scopes, SignedConfig,
    Version,
};
use hedgerow_shared::{EntityId, UnixTime};

use crate::account::Tenant;
use crate::ca::{CaError, ConfigKey};
use crate::placement::Placement;

/// After this long the same content is signed again, so that peers hold documents with most of their life left.
pub const REISSUE_SECONDS: u64 = 3600;

/// The three documents of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configs {
    /// Their version.
    pub version: Version,
    /// When they stop being valid.
    pub expires: UnixTime,
    /// For relays.
    pub relay: SignedConfig,
    /// For nodes.
    pub node: SignedConfig,
    /// For devices that are under no enterprise connectivity profile.
    pub device: SignedConfig,
    /// For the devices of each placed profile, in the order of the placement.
    placed: Vec<SignedConfig>,
    /// Which of those.
    scopes: Scopes,
}

impl Configs {
    /// The document for one device.
    #[must_use]
    pub fn for_device(&self, device: &EntityId) -> &SignedConfig {
        self.scopes.of(device).and_then(|at| self.placed.get(at)).unwrap_or(&self.device)
    }
}

/// Whether the tenant's configuration is due to be issued again. A clock that went back makes it due as well.
#[must_use]
pub fn reissue_due(tenant: &Tenant, now: UnixTime) -> bool {
    now < tenant.config_issued || now.since(tenant.config_issued) >= REISSUE_SECONDS
}

/// Builds and signs the three documents. Everything in them follows from the arguments: the same version has the
/// same bytes whenever it is asked for.
pub(crate) fn build(
    tenant: &Tenant,
    key: &ConfigKey,
    revoked: Vec<EntityId>,
    rules: Vec<Rule>,
    routes: Vec<Route>,
    placement: &Placement,
) -> Result<Configs, CaError> {
    let expires = tenant.config_issued.plus(LIFETIME_SECONDS);
    let head = |audience| Head {
        tenant: tenant.id.clone(),
        audience,
        version: tenant.config,
        issued: tenant.config_issued,
        expires,
    };
    let old = Announced { certificate: tenant.ca_certificate.clone(), endorsement: Vec::new() };
    let next = tenant.rollover.as_ref().map(|next| {
        (next.certifies, Announced { certificate: next.certificate.clone(), endorsement: next.endorsement.clone() })
    });
    let authorities = match next {
        None => vec![old],
        Some((false, next)) => vec![old, next],
        Some((true, next)) => vec![next, old],
    };
    let revoked = Revoked { ids: revoked, serials: Vec::new() };
    let relay = RelayConfig { head: head(Audience::Relay), authorities: authorities.clone(), revoked: revoked.clone() };
    let node = NodeConfig {
        head: head(Audience::Node),
        authorities: authorities.clone(),
        revoked,
        rules,
        scopes: placement.scopes(),
    };
    let for_device = |routes, default_route| {
        let (head, authorities) = (head(Audience::Device), authorities.clone());
        key.sign(&DeviceConfig { head, authorities, routes, default_route })
    };
    let placed = placement.placed.iter().map(|placed| {
        let (routes, default_route) = placed.settings.routes(&routes, &tenant.default_route);
        for_device(routes, default_route)
    });
    let placed = placed.collect::<Result<_, _>>()?;
    let device = for_device(routes, tenant.default_route.clone())?;
    Ok(Configs {
        version: tenant.config,
        expires,
        relay: key.sign(&relay)?,
        node: key.sign(&node)?,
        device,
        placed,
        scopes: placement.index(),
    })
}
