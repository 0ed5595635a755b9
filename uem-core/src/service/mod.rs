//! The domain's operations. Each reads, decides, and commits once: what changed, its audit record, and, when peers
//! must learn of it, the next configuration version, all in one transaction. When another commit came in between it
//! reads and decides again.

mod activation;
mod admins;
mod app_assignments;
mod apps;
mod bulk;
mod commands;
mod compliance;
mod configs;
mod devices;
mod groups;
mod licences;
mod names;
mod nodes;
mod placement;
mod policy;
mod profiles;
mod reports;
mod roles;
mod rollover;
mod sign_in;
mod sweep;
mod tenants;
mod turn;
mod users;

use std::fmt;

use hedgerow_shared::{EntityId, TenantId, UnixTime};

use crate::account::Tenant;
use crate::audit::{Entry, Outcome};
use crate::ca::{Authority, CaError, ConfigKey, Key};
use crate::random::{self, Random};
use crate::seal::Kek;
use crate::store::{Change, Commit, Store, StoreError};
use crate::{CoreError, audit};

pub use apps::NewApp;
pub use bulk::{ImportError, Imported};
pub use commands::NewCommand;
pub use devices::Holder;
pub use nodes::{EnrolError, NewToken, NodeEnrolReply, NodeEnrolRequest, TokenRefusal};
pub use profiles::{NewProfile, ProfileChange};
pub use roles::{NewRole, RoleChange};
pub use rollover::RolloverStatus;
pub use sign_in::{Attempt, SignedIn, WrongSignIn};
pub use sweep::Swept;
pub use tenants::{CoreIdentity, NewTenant};
pub use users::{NewUser, OpenAddress, UserChange};

/// Who asks, as the audit record names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// An administrator, by name.
    Admin(String),
    /// A device, by the id in its certificate.
    Device(EntityId),
    /// A node, by the id in its certificate.
    Node(EntityId),
    /// Somebody at the activation or enrolment service who has shown nothing yet.
    Stranger,
    /// The core itself: timers.
    System,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin(name) => write!(f, "admin:{}", crate::account::told(name)),
            Self::Device(id) => write!(f, "device:{id}"),
            Self::Node(id) => write!(f, "node:{id}"),
            Self::Stranger => f.write_str("stranger"),
            Self::System => f.write_str("system"),
        }
    }
}

/// One call: who, when, and where random numbers come from.
pub struct Call<'a> {
    /// Who asks.
    pub actor: Actor,
    /// Now.
    pub now: UnixTime,
    /// Randomness.
    pub random: &'a mut dyn Random,
    /// Since when devices could have spoken with this core without interruption; `None`: not known, and then no silence of a
    /// device begins to count, and nothing is erased because of one.
    pub available: Option<UnixTime>,
}

impl<'a> Call<'a> {
    /// A call.
    pub fn new(actor: Actor, now: UnixTime, random: &'a mut dyn Random) -> Self {
        Self { actor, now, random, available: None }
    }

    /// With the time since when devices could have spoken with this core without interruption, by the same clock as `now`.
    #[must_use]
    pub fn available_since(self, since: UnixTime) -> Self {
        Self { available: Some(since), ..self }
    }

    fn id(&mut self) -> EntityId {
        EntityId::from_random(random::bytes(self.random))
    }
}

/// The domain over a store. Cheap to share behind an `Arc`; holds no state besides the key-encryption key.
pub struct Core<S> {
    store: S,
    kek: Kek,
    turns: turn::Turns,
}

/// What an operation decided.
#[derive(Default)]
struct Plan {
    changes: Vec<Change>,
    entries: Vec<(&'static str, String, Outcome, String)>,
    /// Whether relays, nodes or devices must learn of it: raises the configuration version.
    publishes: bool,
}

impl Plan {
    fn record(mut self, action: &'static str, subject: impl Into<String>, detail: impl Into<String>) -> Self {
        self.entries.push((action, subject.into(), Outcome::Done, detail.into()));
        self
    }

    fn refused(mut self, action: &'static str, subject: impl Into<String>, detail: impl Into<String>) -> Self {
        self.entries.push((action, subject.into(), Outcome::Refused, detail.into()));
        self
    }

    fn change(mut self, change: Change) -> Self {
        self.changes.push(change);
        self
    }

    fn publish(mut self) -> Self {
        self.publishes = true;
        self
    }
}

/// What an operation decided on the tenant as read.
enum Decided<T> {
    /// There is nothing to change.
    Already(T),
    /// This is to be committed, and then answered.
    Commit(Plan, T),
}

impl<S: Store> Core<S> {
    /// The domain over `store`, with the key under which its secrets are sealed.
    pub fn new(store: S, kek: Kek) -> Self {
        Self { store, kek, turns: turn::Turns::default() }
    }

    /// The same store under another key-encryption key.
    #[must_use]
    pub fn with_kek(self, kek: Kek) -> Self {
        Self { kek, ..self }
    }

    /// The storage, for reading.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Audit records with a number above `after`, in order, at most `limit` (and `Page::MAX`).
    ///
    /// # Errors
    /// `Store`.
    pub async fn audit(&self, tenant: &TenantId, after: u64, limit: u32) -> Result<Vec<audit::Record>, CoreError> {
        self.store.audit(tenant, after, limit).await.map_err(CoreError::Store)
    }

    /// Reads the whole audit chain and checks it against the tenant's head.
    ///
    /// # Errors
    /// `Damaged` when a record is changed or missing; `NotFound`, `Store`.
    pub async fn verify_audit(&self, tenant: &TenantId) -> Result<audit::Head, CoreError> {
        // The head first: records appended meanwhile lie behind it.
        let head = self.load(tenant).await?.audit;
        let mut checked = audit::Head::default();
        while checked.number < head.number {
            let mut part = self.audit(tenant, checked.number, crate::store::Page::MAX).await?;
            part.retain(|r| r.number <= head.number);
            if part.is_empty() || checked.follow(&part).is_err() {
                return Err(CoreError::Damaged("the audit record"));
            }
        }
        if checked == head { Ok(head) } else { Err(CoreError::Damaged("the audit record")) }
    }

    async fn load(&self, tenant: &TenantId) -> Result<Tenant, CoreError> {
        let found = self.store.tenant(tenant).await.map_err(CoreError::Store)?;
        found.ok_or_else(|| CoreError::not_found("tenant", tenant))
    }

    /// Commits what was decided on `tenant` as read, with changes to its row already made. `false`: another commit
    /// came first; read and decide again.
    fn commit(
        &self,
        call: &Call<'_>,
        mut tenant: Tenant,
        plan: Plan,
    ) -> impl Future<Output = Result<bool, CoreError>> + Send + use<'_, S> {
        let expected = tenant.revision;
        tenant.revision = expected.saturating_add(1);
        self.write(call, Some(expected), tenant, plan)
    }

    /// The attempts of one operation.
    fn turn(&self) -> turn::Turn<'_> {
        self.turns.turn()
    }

    /// Reads, decides, commits; again from the beginning while others' commits come in between. `decide` gets the revision
    /// that the commit will make, which no other has. It must read everything it decides on itself, and not hold the call:
    /// ids and the time are taken from it before.
    /// It is a function that makes futures, and not an async closure, so that callers' futures can be sent.
    async fn decide<T, F: Future<Output = Result<Decided<T>, CoreError>> + Send>(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        decide: impl Fn(u64) -> F,
    ) -> Result<T, CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            match decide(row.revision.saturating_add(1)).await? {
                Decided::Already(answer) => return Ok(answer),
                Decided::Commit(plan, answer) => {
                    if self.commit(call, row, plan).await? {
                        return Ok(answer);
                    }
                }
            }
        }
    }

    /// Everything but the writing happens before the future is made, so that it does not hold the call.
    fn write(
        &self,
        call: &Call<'_>,
        expected: Option<u64>,
        mut tenant: Tenant,
        plan: Plan,
    ) -> impl Future<Output = Result<bool, CoreError>> + Send + use<'_, S> {
        if plan.publishes {
            tenant.config.version = tenant.config.version.saturating_add(1);
            tenant.config_issued = call.now;
        }
        let actor = call.actor.to_string();
        let records = plan.entries.into_iter().map(|(action, subject, outcome, detail)| {
            tenant.audit.append(Entry { time: call.now, actor: actor.clone(), action, subject, outcome, detail })
        });
        let audit = records.collect();
        let commit = Commit { expected, tenant, changes: plan.changes, audit };
        async move {
            match self.store.commit(commit).await {
                Ok(()) => Ok(true),
                Err(StoreError::Conflict) => Ok(false),
                Err(error) => Err(CoreError::Store(error)),
            }
        }
    }

    fn authority(&self, tenant: &Tenant) -> Result<Authority, CoreError> {
        let key = self.open_key(tenant, &tenant.ca_key.0, "ca key", "the CA key")?;
        Ok(Authority::from_parts(tenant.id.clone(), tenant.ca_certificate.clone(), key))
    }

    /// Who certifies holders that ask for their next certificate: the CA that is to follow, once it does.
    fn renewing_authority(&self, tenant: &Tenant) -> Result<Authority, CoreError> {
        let Some(next) = tenant.rollover.as_ref().filter(|next| next.certifies) else { return self.authority(tenant) };
        let key = self.open_key(tenant, &next.key, rollover::NEXT_KEY, "the next CA key")?;
        Ok(Authority::from_parts(tenant.id.clone(), next.certificate.clone(), key))
    }

    fn config_key(&self, tenant: &Tenant) -> Result<ConfigKey, CoreError> {
        let key = self.open_key(tenant, &tenant.config_key.0, "config key", "the configuration key")?;
        Ok(ConfigKey::from_parts(key, tenant.config_certificate.clone()))
    }

    fn open_key(&self, tenant: &Tenant, sealed: &[u8], kind: &str, what: &'static str) -> Result<Key, CoreError> {
        let der = self.kek.open(&[tenant.id.as_str(), kind], sealed).map_err(|_| CoreError::Damaged(what))?;
        Key::from_pkcs8(&der).map_err(|_| CoreError::Damaged(what))
    }

    fn seal_key(&self, tenant: &TenantId, kind: &str, key: &Key, random: &mut dyn Random) -> crate::account::SealedKey {
        crate::account::SealedKey(self.kek.seal(&[tenant.as_str(), kind], &key.to_pkcs8(), random))
    }
}

impl From<CaError> for CoreError {
    fn from(error: CaError) -> Self {
        match error {
            CaError::Randomness => Self::Randomness,
            CaError::Key => Self::Damaged("a key"),
            CaError::Encoding(why) => Self::invalid("the certificate", why),
        }
    }
}
