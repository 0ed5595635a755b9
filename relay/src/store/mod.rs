//! The relay's tenants, on disk and in memory.
//!
//! `STATE/tenants/ID.json` holds one tenant each and is replaced whole (write, fsync, rename, fsync of the folder), so
//! that a crash leaves the old or the new one. `STATE/lookup.key` keys the hashes of addresses. `STATE/lock` keeps a
//! second process out. Everything is 0600 below folders of 0700. Readers use the copy in memory and never wait for a disk.

mod disk;
mod names;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hedgerow_runtime::clock;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::config::{ConfigError, RelayConfig, SignedConfig, Version};
use hedgerow_shared::verify::policy::normal_name;
use hedgerow_shared::verify::{CertificateError, TenantCa};
use hedgerow_shared::wire::message::OpenActivation;
use hedgerow_shared::wire::names::MAX_NAMES;
use hedgerow_shared::{EntityId, Origin, TenantId, UnixTime};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use crate::licence::Kept;
use disk::{OnDisk, io_error, key, lock, read_tenant, sync_folder};
pub(crate) use disk::{read_secret, write_secret};

/// Devices and nodes of one tenant that an operator may keep out one by one.
pub const MAX_BLOCKED: usize = 10_000;
/// Open activations that one tenant may have registered.
pub const MAX_REGISTRATIONS: usize = 100_000;

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that is not what this relay wrote.
    #[error("{} is damaged: {why}; restore it from a backup or remove it", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// In what way.
        why: String,
    },
    /// A file with keys that others can read.
    #[error("{} can be read by others: chmod 600 it, and rotate what is in it", .0.display())]
    Exposed(PathBuf),
    /// Another relay runs on this folder.
    #[error("another relay process uses {}", .0.display())]
    InUse(PathBuf),
    /// No such tenant.
    #[error("tenant {0} is not known here; `hedgerow relay tenant list` shows those that are")]
    UnknownTenant(TenantId),
    /// It exists already.
    #[error("tenant {0} exists already")]
    Exists(TenantId),
    /// Not a domain name.
    #[error("{0:?} is not a domain name")]
    NotADomain(String),
    /// Another tenant's domain.
    #[error("domain {0} is claimed by another tenant")]
    DomainTaken(String),
    /// A CA that cannot be registered.
    #[error("the CA certificate was refused")]
    Ca(#[from] CertificateError),
    /// The CA names another tenant.
    #[error("the CA certificate names {0}, not this tenant")]
    ForeignCa(TenantId),
    /// The CA's key is registered for another tenant.
    #[error("this CA key is registered for another tenant; a key registers once")]
    CaKeyTaken,
    /// The tenant has another CA.
    #[error("this tenant has registered another CA; an operator must remove the tenant here before it can change")]
    CaFixed,
    /// A configuration before the CA that certifies its key.
    #[error("this tenant has not registered its CA yet")]
    NoCa,
    /// The configuration is not acceptable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// More open activations than are kept.
    #[error("more than {MAX_REGISTRATIONS} open activations")]
    TooManyRegistrations,
    /// More single devices and nodes than an operator may keep out.
    #[error("more than {MAX_BLOCKED} devices and nodes of this tenant are blocked: block the tenant")]
    TooManyBlocked,
    /// More names than one tenant may have.
    #[error("more than {MAX_NAMES} names to pass through")]
    TooManyNames,
    /// A licence that was issued before the one that counts.
    #[error("licence {offered} was issued before {held}, which this relay has been shown already")]
    OlderLicence {
        /// What was shown.
        offered: String,
        /// What counts.
        held: String,
    },
}

/// Whether a tenant may use the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TenantState {
    /// It may.
    Active,
    /// An operator said no.
    Blocked,
}

/// One tenant, as in memory. Replaced whole, never changed in place.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Shared with its core alone.
    pub srp_key: Secret,
    /// Whether it may use the relay.
    pub state: TenantState,
    /// Domains whose addresses all belong to it, in lower case.
    pub domains: BTreeSet<String>,
    /// Server names whose connections go to it unopened, in lower case.
    pub names: BTreeMap<String, Origin>,
    /// Names that an operator took from it: they are not registered again until he allows them.
    pub withheld: BTreeSet<String>,
    /// Devices and nodes of it that an operator keeps out, whatever its core says.
    pub blocked: BTreeSet<EntityId>,
    /// Its CA, once its core registered it.
    pub ca: Option<TenantCa>,
    /// The newest configuration that was valid when it came, or at start.
    pub config: Option<RelayConfig>,
    /// The highest version ever accepted.
    pub seen: Option<Version>,
    /// The newest licence that its core has shown.
    pub licence: Option<Arc<Kept>>,
    /// When it was added.
    pub created: UnixTime,
    signed: Option<SignedConfig>,
    open: Arc<Vec<OpenActivation>>,
}

impl Tenant {
    /// Number of open activations registered.
    #[must_use]
    pub fn open_activations(&self) -> usize {
        self.open.len()
    }
}

#[derive(Debug, Default)]
struct Memory {
    tenants: HashMap<TenantId, Arc<Tenant>>,
    domains: HashMap<String, TenantId>,
    names: HashMap<String, (TenantId, Origin)>,
    ca_keys: HashMap<[u8; 32], TenantId>,
    /// For each address the tenants that opened an activation for it, first come first served.
    open: HashMap<[u8; 32], Vec<(TenantId, UnixTime)>>,
}

/// All tenants. Methods that write wait for the disk: call them off the async threads.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    lookup_key: [u8; 32],
    reset_key: [u8; 32],
    memory: RwLock<Memory>,
    /// One writer at a time, held over the disk write; readers take `memory` only.
    writer: Mutex<()>,
    _lock: File,
}

impl Store {
    /// Opens or makes the store in `state`.
    ///
    /// # Errors
    /// `Io`, `Damaged`, `Exposed`, `InUse`. A tenant that cannot be read stops the start: better than forgetting whom
    /// it had blocked.
    pub fn open(state: &Path) -> Result<Self, StoreError> {
        let folder = state.join("tenants");
        for path in [state, &folder] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("making", path))?;
        }
        let lock = lock(&state.join("lock"))?;
        let lookup_key = key(&state.join("lookup.key"))?;
        let reset_key = key(&state.join("reset.key"))?;
        let mut memory = Memory::default();
        for entry in fs::read_dir(&folder).map_err(io_error("listing", &folder))? {
            let path = entry.map_err(io_error("listing", &folder))?.path();
            if path.extension().is_some_and(|e| e == "json") {
                let tenant = read_tenant(&path)?;
                memory.index(&tenant);
                memory.tenants.insert(tenant.id.clone(), Arc::new(tenant));
            }
        }
        Ok(Self { folder, lookup_key, reset_key, memory: RwLock::new(memory), writer: Mutex::new(()), _lock: lock })
    }

    /// The key of `address_hash`.
    #[must_use]
    pub fn lookup_key(&self) -> &[u8; 32] {
        &self.lookup_key
    }

    /// The key of stateless resets; nobody but this relay knows it.
    #[must_use]
    pub fn reset_key(&self) -> &[u8; 32] {
        &self.reset_key
    }

    /// One tenant.
    #[must_use]
    pub fn tenant(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        self.memory.read().tenants.get(id).cloned()
    }

    /// All tenants, by id.
    #[must_use]
    pub fn tenants(&self) -> Vec<Arc<Tenant>> {
        let mut all: Vec<_> = self.memory.read().tenants.values().cloned().collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// Whose an address is: the tenant that claimed its domain, else the one with an open activation for it. Both
    /// questions are always asked, so that the answer's time tells nothing.
    #[must_use]
    pub fn find(&self, domain: &str, hash: &[u8; 32], now: UnixTime) -> Option<TenantId> {
        let memory = self.memory.read();
        let claimed = memory.domains.get(domain);
        let open = memory.open.get(hash).and_then(|all| all.iter().find(|(_, until)| *until > now)).map(|(id, _)| id);
        let id = claimed.or(open)?;
        memory.tenants.get(id).filter(|t| t.state == TenantState::Active).map(|t| t.id.clone())
    }

    /// Adds a tenant with a new SRP key.
    ///
    /// # Errors
    /// `Exists`, `Io`.
    pub fn add(&self, id: TenantId) -> Result<Arc<Tenant>, StoreError> {
        self.add_with_key(id, Secret::new(clock::random::<32>().to_vec()))
    }

    /// As `add`, with the key that the tenant's core has already: for the second relay and every further one.
    ///
    /// # Errors
    /// As `add`.
    pub fn add_with_key(&self, id: TenantId, srp_key: Secret) -> Result<Arc<Tenant>, StoreError> {
        let _writer = self.writer.lock();
        if self.tenant(&id).is_some() {
            return Err(StoreError::Exists(id));
        }
        let tenant = Tenant {
            id,
            srp_key,
            state: TenantState::Active,
            domains: BTreeSet::new(),
            names: BTreeMap::new(),
            withheld: BTreeSet::new(),
            blocked: BTreeSet::new(),
            ca: None,
            config: None,
            seen: None,
            licence: None,
            created: clock::now(),
            signed: None,
            open: Arc::default(),
        };
        self.replace(tenant)
    }

    /// Forgets a tenant, its keys, domains and registrations.
    ///
    /// # Errors
    /// `UnknownTenant`, `Io`.
    pub fn remove(&self, id: &TenantId) -> Result<(), StoreError> {
        let _writer = self.writer.lock();
        let path = self.path(id);
        if self.tenant(id).is_none() {
            return Err(StoreError::UnknownTenant(id.clone()));
        }
        fs::remove_file(&path).map_err(io_error("removing", &path))?;
        sync_folder(&self.folder)?;
        let mut memory = self.memory.write();
        memory.unindex(id);
        memory.open.retain(|_, line| {
            line.retain(|(owner, _)| owner != id);
            !line.is_empty()
        });
        memory.tenants.remove(id);
        Ok(())
    }

    /// Lets a tenant in or keeps it out.
    ///
    /// # Errors
    /// `UnknownTenant`, `Io`.
    pub fn set_state(&self, id: &TenantId, state: TenantState) -> Result<(), StoreError> {
        self.change(id, |_, tenant| {
            tenant.state = state;
            Ok(())
        })
    }

    /// Keeps one device or node out, or lets it in again. It need not be known here; what its core says of it stays as it is.
    ///
    /// # Errors
    /// `UnknownTenant`, `TooManyBlocked`, `Io`.
    pub fn set_blocked(&self, id: &TenantId, holder: EntityId, blocked: bool) -> Result<(), StoreError> {
        self.change(id, |_, tenant| {
            match blocked {
                true if tenant.blocked.len() >= MAX_BLOCKED && !tenant.blocked.contains(&holder) => {
                    return Err(StoreError::TooManyBlocked);
                }
                true => tenant.blocked.insert(holder),
                false => tenant.blocked.remove(&holder),
            };
            Ok(())
        })
    }

    /// Gives a tenant a new SRP key; links that stand with the old one stay.
    ///
    /// # Errors
    /// `UnknownTenant`, `Io`.
    pub fn rotate_srp_key(&self, id: &TenantId) -> Result<Secret, StoreError> {
        let key = Secret::new(clock::random::<32>().to_vec());
        self.change(id, |_, tenant| {
            tenant.srp_key = key.clone();
            Ok(())
        })?;
        Ok(key)
    }

    /// Makes every address of `domain` the tenant's. The operator has verified that it is.
    ///
    /// # Errors
    /// `NotADomain`, `DomainTaken`, `UnknownTenant`, `Io`.
    pub fn claim_domain(&self, id: &TenantId, domain: &str) -> Result<String, StoreError> {
        let name =
            normal_name(domain).filter(|n| n.contains('.')).ok_or_else(|| StoreError::NotADomain(domain.to_owned()))?;
        self.change(id, |memory, tenant| {
            if memory.domains.get(&name).is_some_and(|owner| owner != id) {
                return Err(StoreError::DomainTaken(name.clone()));
            }
            tenant.domains.insert(name.clone());
            Ok(())
        })?;
        Ok(name)
    }

    /// Undoes `claim_domain`; whether there was a claim.
    ///
    /// # Errors
    /// `NotADomain`, `UnknownTenant`, `Io`.
    pub fn unclaim_domain(&self, id: &TenantId, domain: &str) -> Result<bool, StoreError> {
        let name = normal_name(domain).ok_or_else(|| StoreError::NotADomain(domain.to_owned()))?;
        let mut there = false;
        self.change(id, |_, tenant| {
            there = tenant.domains.remove(&name);
            Ok(())
        })?;
        Ok(there)
    }

    /// Registers the tenant's CA. The same one again is no error.
    ///
    /// # Errors
    /// `Ca`, `ForeignCa`, `CaKeyTaken`, `CaFixed`, `UnknownTenant`, `Io`.
    pub fn register_ca(&self, id: &TenantId, der: &[u8]) -> Result<(), StoreError> {
        let ca = TenantCa::from_der(der)?;
        if ca.tenant() != id {
            return Err(StoreError::ForeignCa(ca.tenant().clone()));
        }
        self.change(id, |memory, tenant| {
            memory.free_for(&ca, id)?;
            match &tenant.ca {
                // The next one comes with a configuration that the one before vouches for.
                Some(old) if old.key_ids().contains(&ca.key_id()) => {}
                Some(_) => return Err(StoreError::CaFixed),
                None => tenant.ca = Some(ca),
            }
            Ok(())
        })
    }

    /// Takes a configuration into force: verified, not older than the one before; on disk before it counts.
    ///
    /// # Errors
    /// `NoCa`, `Config`, `UnknownTenant`, `Io`; the old one stays in force.
    pub fn put_config(&self, id: &TenantId, signed: SignedConfig, now: UnixTime) -> Result<RelayConfig, StoreError> {
        let mut accepted = None;
        self.change(id, |memory, tenant| {
            let ca = tenant.ca.as_ref().ok_or(StoreError::NoCa)?;
            let config: RelayConfig = signed.verify(ca, tenant.seen, now)?;
            if let Some(believed) = ca.after(&config.authorities)? {
                let next = TenantCa::from_ders(&believed)?;
                memory.free_for(&next, id)?;
                tracing::info!(tenant = %id, cas = believed.len(), ca = next.pin(), "the tenant's CA changes");
                tenant.ca = Some(next);
            }
            tenant.seen = Some(config.head.version);
            tenant.signed = Some(signed);
            tenant.config = Some(config.clone());
            accepted = Some(config);
            Ok(())
        })?;
        accepted.ok_or(StoreError::NoCa)
    }

    /// Keeps a licence unless it was issued before the one that is kept and counts. Whether it is another one than before.
    ///
    /// # Errors
    /// `OlderLicence`, `UnknownTenant`, `Io`; the old one stays.
    pub fn put_licence(&self, id: &TenantId, kept: Kept, counts: impl Fn(&Kept) -> bool) -> Result<bool, StoreError> {
        if self.tenant(id).is_some_and(|t| t.licence.as_deref() == Some(&kept)) {
            return Ok(false);
        }
        self.change(id, |_, tenant| {
            match tenant.licence.as_deref().filter(|held| counts(held)) {
                Some(held) if kept.licence.issued < held.licence.issued => {
                    let (offered, held) = (kept.licence.id.clone(), held.licence.id.clone());
                    return Err(StoreError::OlderLicence { offered, held });
                }
                Some(_) | None => tenant.licence = Some(Arc::new(kept)),
            }
            Ok(())
        })?;
        Ok(true)
    }

    fn change(
        &self,
        id: &TenantId,
        change: impl FnOnce(&Memory, &mut Tenant) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let _writer = self.writer.lock();
        let old = self.tenant(id).ok_or_else(|| StoreError::UnknownTenant(id.clone()))?;
        let mut new = Tenant::clone(&old);
        change(&self.memory.read(), &mut new)?;
        self.replace(new)?;
        Ok(())
    }

    /// Writes to disk, then to memory. The caller holds `writer`.
    fn replace(&self, tenant: Tenant) -> Result<Arc<Tenant>, StoreError> {
        let json = serde_json::to_vec_pretty(&OnDisk::from(&tenant)).map_err(|e| StoreError::Io {
            what: "writing",
            path: self.path(&tenant.id),
            source: io::Error::other(e),
        })?;
        write_secret(&self.path(&tenant.id), &json)?;
        let tenant = Arc::new(tenant);
        let mut memory = self.memory.write();
        memory.unindex(&tenant.id);
        memory.index(&tenant);
        memory.tenants.insert(tenant.id.clone(), tenant.clone());
        Ok(tenant)
    }

    fn path(&self, id: &TenantId) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }
}

impl Memory {
    /// A CA key registers for one tenant only.
    fn free_for(&self, ca: &TenantCa, id: &TenantId) -> Result<(), StoreError> {
        let taken = ca.key_ids().iter().any(|key| self.ca_keys.get(key).is_some_and(|owner| owner != id));
        if taken { Err(StoreError::CaKeyTaken) } else { Ok(()) }
    }

    fn index(&mut self, tenant: &Tenant) {
        for domain in &tenant.domains {
            self.domains.insert(domain.clone(), tenant.id.clone());
        }
        for (name, origin) in &tenant.names {
            // Only files of different ages, restored together, claim a name twice: who stands there keeps it.
            self.names.entry(name.clone()).or_insert_with(|| (tenant.id.clone(), *origin));
        }
        if let Some(ca) = &tenant.ca {
            self.ca_keys.extend(ca.key_ids().into_iter().map(|key| (key, tenant.id.clone())));
        }
        let wanted: HashMap<[u8; 32], UnixTime> = tenant.open.iter().map(|o| (o.hash, UnixTime(o.until))).collect();
        // What stays keeps its place in the line; what is gone leaves it.
        self.open.retain(|hash, line| {
            line.retain_mut(|(id, until)| match wanted.get(hash) {
                _ if *id != tenant.id => true,
                Some(new) => {
                    *until = *new;
                    true
                }
                None => false,
            });
            !line.is_empty()
        });
        for (hash, until) in wanted {
            let line = self.open.entry(hash).or_default();
            if !line.iter().any(|(id, _)| *id == tenant.id) {
                line.push((tenant.id.clone(), until));
            }
        }
    }

    /// Takes a tenant's names out, except for its open activations, which `index` merges.
    fn unindex(&mut self, id: &TenantId) {
        self.domains.retain(|_, owner| owner != id);
        self.names.retain(|_, (owner, _)| owner != id);
        self.ca_keys.retain(|_, owner| owner != id);
    }
}

#[cfg(test)]
mod tests;
