//! Tenants: making one, its settings, its certificates.

use hedgerow_shared::verify::{Identity, TenantCa, Version, Via, policy};
use hedgerow_shared::{EntityId, Origin, Role, TenantId, UnixTime};
use zeroize::Zeroizing;

use super::{Call, Core, Plan};
use crate::CoreError;
use crate::account::{self, Tenant, TenantSettings};
use crate::ca::{Authority, Key};
use crate::store::Store;

/// A tenant to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTenant {
    /// Its SRP id.
    pub id: TenantId,
    /// For people.
    pub name: String,
    /// Settings.
    pub settings: TenantSettings,
}

/// The certificate and key with which the core's device services speak inside TLS.
#[derive(Debug)]
pub struct CoreIdentity {
    /// The core's id in the certificate.
    pub id: EntityId,
    /// The leaf, DER.
    pub certificate: Vec<u8>,
    /// The tenant CA, DER; sent behind the leaf so that a node can compare it with its token's pin.
    pub ca: Vec<u8>,
    /// The private key, PKCS#8 DER.
    pub key: Zeroizing<Vec<u8>>,
    /// End of validity; make a new identity well before.
    pub not_after: UnixTime,
}

impl<S: Store> Core<S> {
    /// Makes a tenant with its CA and configuration key. Its first configuration has version 0.1 and denies all.
    ///
    /// # Errors
    /// `Exists`, `Invalid`, `Randomness`, `Store`.
    pub async fn create_tenant(&self, call: &mut Call<'_>, new: NewTenant) -> Result<Tenant, CoreError> {
        let name = account::name("the tenant's name", &new.name)?;
        check_settings(&new.settings)?;
        let authority = Authority::create(new.id.clone(), call.now, call.random)?;
        let config_key = Key::generate(call.random)?;
        let config_certificate = authority.issue_config_key(&config_key, call.now, call.random)?;
        let tenant = Tenant {
            id: new.id.clone(),
            name,
            created: call.now,
            revision: 1,
            config: Version::default(),
            config_issued: call.now,
            ca_certificate: authority.certificate().to_vec(),
            ca_key: self.seal_key(&new.id, "ca key", authority.key(), call.random),
            rollover: None,
            config_certificate,
            config_key: self.seal_key(&new.id, "config key", &config_key, call.random),
            settings: new.settings,
            default_route: Via::Direct,
            audit: Default::default(),
        };
        let plan = Plan::default().publish().record("tenant.create", new.id.as_str(), tenant.name.clone());
        if self.write(call, None, tenant, plan).await? {
            self.load(&new.id).await
        } else {
            Err(CoreError::Exists { kind: "tenant", name: new.id.to_string() })
        }
    }

    /// Every tenant's id.
    ///
    /// # Errors
    /// `Store`.
    pub async fn tenants(&self) -> Result<Vec<TenantId>, CoreError> {
        self.store.tenants().await.map_err(CoreError::Store)
    }

    /// One tenant.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn tenant(&self, tenant: &TenantId) -> Result<Tenant, CoreError> {
        self.load(tenant).await
    }

    /// The tenant's CAs, to verify with; the first is the one in force.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, `Store`.
    pub async fn tenant_ca(&self, tenant: &TenantId) -> Result<TenantCa, CoreError> {
        let tenant = self.load(tenant).await?;
        let next = tenant.rollover.iter().map(|r| &r.certificate);
        let all: Vec<_> = std::iter::once(&tenant.ca_certificate).chain(next).collect();
        TenantCa::from_ders(&all).map_err(|_| CoreError::Damaged("the CA certificate"))
    }

    /// Replaces the settings.
    ///
    /// # Errors
    /// `Invalid`, `NotFound`, `Busy`, `Store`.
    pub async fn set_settings(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        settings: TenantSettings,
    ) -> Result<(), CoreError> {
        check_settings(&settings)?;
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let mut row = self.load(tenant).await?;
            row.settings = settings.clone();
            let plan = Plan::default().record(
                "tenant.settings",
                tenant.as_str(),
                format!("relays {}", settings.relays.join(" ")),
            );
            if self.commit(call, row, plan).await? {
                return Ok(());
            }
        }
    }

    /// Raises the configuration's epoch: after a restore from a backup, so that peers take what they would otherwise
    /// refuse as older.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Store`.
    pub async fn raise_epoch(&self, call: &mut Call<'_>, tenant: &TenantId) -> Result<Version, CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let mut row = self.load(tenant).await?;
            row.config = Version { epoch: row.config.epoch.saturating_add(1), version: row.config.version };
            let next = Version { version: row.config.version.saturating_add(1), ..row.config };
            let plan = Plan::default().publish().record("config.epoch", tenant.as_str(), next.to_string());
            if self.commit(call, row, plan).await? {
                return Ok(next);
            }
        }
    }

    /// A new key and certificate for the core's own services. The driver keeps them in memory only and asks again
    /// at each start and well before `not_after`.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, `Randomness`, `Busy`, `Store`.
    pub async fn core_identity(&self, call: &mut Call<'_>, tenant: &TenantId) -> Result<CoreIdentity, CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let key = Key::generate(call.random)?;
            let origins = vec![Origin::Core, Origin::Bws];
            let identity = Identity { tenant: tenant.clone(), role: Role::Core, id: call.id(), group: None, origins };
            let issued = self.authority(&row)?.issue_for_key(&key, &identity, call.now, call.random)?;
            let out = CoreIdentity {
                id: identity.id,
                certificate: issued.certificate,
                ca: row.ca_certificate.clone(),
                key: key.to_pkcs8(),
                not_after: issued.record.not_after,
            };
            let plan = Plan::default()
                .record("core.certificate", identity.id.to_string(), format!("serial {}", issued.record.serial))
                .change(crate::store::Change::AddCertificate(issued.record));
            if self.commit(call, row, plan).await? {
                return Ok(out);
            }
        }
    }
}

/// Checks that peers will be able to use the settings.
fn check_settings(settings: &TenantSettings) -> Result<(), CoreError> {
    if settings.relays.len() > 16 {
        return Err(CoreError::invalid("the list of relays", "it has more than 16 entries"));
    }
    for relay in &settings.relays {
        let parts =
            relay.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok().filter(|p| *p > 0)?)));
        let host = parts.map_or("", |(host, _)| host);
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let address = bracketed.is_some_and(|h| h.parse::<std::net::Ipv6Addr>().is_ok());
        if !address && policy::normal_name(host).is_none() {
            return Err(CoreError::invalid(
                "a relay's address",
                format!("expected host:port or [address]:port, not {relay:?}"),
            ));
        }
    }
    if settings.relay_name.as_deref().is_some_and(|n| policy::normal_name(n).is_none()) {
        return Err(CoreError::invalid("the relay's name", "it is not a host name"));
    }
    if let Some(pem) = &settings.relay_ca_pem {
        super::nodes::key_pin(pem)?;
    }
    Ok(())
}
