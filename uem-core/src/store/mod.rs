//! What the domain asks of storage. Two implementations: `Memory` here, SQLite and PostgreSQL in `management`.
//!
//! Reading is by small questions. Writing is one thing, `commit`: the tenant's new row and everything that changes
//! with it, in one transaction, made on a stated revision. If another commit came first the store answers
//! `StoreError::Conflict` and changes nothing; `service::Core` then reads again and decides again.

mod admins;
mod apps;
mod inventory;
mod memory;
mod reports;

use std::future::Future;

use hedgerow_shared::verify::{Route, Rule, Version};
use hedgerow_shared::{EntityId, TenantId, UnixTime};
use serde::{Deserialize, Serialize};

pub use admins::{AdminChange, AdminStore};
pub use apps::{AppChange, AppStore};
pub use inventory::InventoryStore;
pub use memory::Memory;
pub use reports::ReportStore;

use crate::account::{Device, Email, Node, ServerName, Tenant, Token, User};
use crate::activation::ActivationPassword;
use crate::audit;
use crate::ca::CertificateRecord;
use crate::command::Command;
use crate::compliance::Standing;
use crate::group::{Group, Principal};
use crate::licence::Installed;
use crate::placement::Placement;
use crate::profile::{Category, Profile};

/// Why storage did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another commit came first.
    #[error("the tenant was changed by another commit in the meantime")]
    Conflict,
    /// What is stored cannot be read back.
    #[error("a stored {what} cannot be read: {why}")]
    Corrupt {
        /// Which kind of record.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The database or disk failed.
    #[error(transparent)]
    Backend(Box<dyn std::error::Error + Send + Sync>),
}

/// A part of a list, in the order of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Begin behind this id.
    pub after: Option<EntityId>,
    /// At most so many.
    pub limit: u32,
}

impl Page {
    /// Most that one page holds.
    pub const MAX: u32 = 1000;

    /// The first page, as large as pages get.
    #[must_use]
    pub fn first() -> Self {
        Self { after: None, limit: Self::MAX }
    }

    /// The page behind what this one answered; `None`: that was all.
    #[must_use]
    pub fn behind<T>(self, answered: &[T], id: impl Fn(&T) -> EntityId) -> Option<Self> {
        let last = answered.last().filter(|_| answered.len() >= self.limit as usize)?;
        Some(Self { after: Some(id(last)), ..self })
    }
}

/// One change of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "a handful per commit, never kept")]
pub enum Change {
    /// Adds or replaces a user.
    PutUser(User),
    /// Adds or replaces a user's activation password; a user has at most one.
    PutPassword(ActivationPassword),
    /// Removes a user's activation password.
    DeletePassword(EntityId),
    /// Adds or replaces a node.
    PutNode(Node),
    /// Adds or replaces a device.
    PutDevice(Device),
    /// Adds or replaces an enrolment token.
    PutToken(Token),
    /// Adds a certificate to the list of all that were issued.
    AddCertificate(CertificateRecord),
    /// Replaces the access rules.
    SetRules(Vec<Rule>),
    /// Replaces the routes.
    SetRoutes(Vec<Route>),
    /// Adds or replaces a server name.
    PutName(ServerName),
    /// Removes a server name.
    DeleteName(String),
    /// Replaces the placement of the configuration that this commit issues.
    PutPlacement(Placement),
    /// Installs the tenant's licence in the place of the one before.
    PutLicence(Installed),
    /// Removes the tenant's licence.
    DeleteLicence,
    /// Adds or replaces a group.
    PutGroup(Group),
    /// Removes a group, whoever stands in it, what it stands in, and what is assigned to it.
    DeleteGroup(EntityId),
    /// Puts somebody into a group, if they are not in it.
    PutMember {
        /// Into which.
        group: EntityId,
        /// Whom.
        member: Principal,
    },
    /// Takes somebody out of a group.
    DeleteMember {
        /// Out of which.
        group: EntityId,
        /// Whom.
        member: Principal,
    },
    /// Adds or replaces a profile.
    PutProfile(Profile),
    /// Removes a profile and its assignments.
    DeleteProfile(EntityId),
    /// Assigns a profile, if it is not assigned.
    PutAssignment {
        /// Which.
        profile: EntityId,
        /// To whom.
        holder: Principal,
    },
    /// Ends an assignment.
    DeleteAssignment {
        /// Of which profile.
        profile: EntityId,
        /// To whom.
        holder: Principal,
    },
    /// Adds or replaces a command.
    PutCommand(Command),
    /// Replaces a command as it was read by what has become of it. Where it is not as it was read any more, the whole commit is
    /// a `Conflict`.
    MoveCommand {
        /// As it was read.
        from: Command,
        /// What has become of it.
        to: Command,
    },
    /// Removes a device's commands that came to their end before.
    ForgetCommands {
        /// Whose.
        device: EntityId,
        /// Before when.
        before: UnixTime,
    },
    /// Of administrators and roles.
    Admin(AdminChange),
    /// Of apps.
    App(AppChange),
    /// Adds or replaces how a device stands.
    PutStanding(Standing),
    /// Notes that the core asks a device what it is.
    NoteAsked {
        /// Which.
        device: EntityId,
        /// When.
        at: UnixTime,
    },
}

/// Most that one answer holds of a device's commands.
pub const MAX_COMMANDS: u32 = 500;

/// Everything that changes together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The revision it was decided on; `None` makes a new tenant.
    pub expected: Option<u64>,
    /// The tenant's new row, its revision one higher.
    pub tenant: Tenant,
    /// What changes besides, in this order.
    pub changes: Vec<Change>,
    /// Audit records to append; the tenant's row has their head.
    pub audit: Vec<audit::Record>,
}

/// How far a relay or node has come with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// `relay:NAME` or `node:ID`.
    pub holder: String,
    /// The version in force there.
    pub version: Version,
    /// When it said so.
    pub time: UnixTime,
}

/// Storage. Every method may be cancelled at any await; `commit` then has happened wholly or not at all.
pub trait Store: InventoryStore + AppStore + AdminStore + ReportStore {
    /// Every tenant.
    fn tenants(&self) -> impl Future<Output = Result<Vec<TenantId>, StoreError>> + Send;
    /// One tenant.
    fn tenant(&self, tenant: &TenantId) -> impl Future<Output = Result<Option<Tenant>, StoreError>> + Send;
    /// One user.
    fn user(&self, tenant: &TenantId, id: EntityId) -> impl Future<Output = Result<Option<User>, StoreError>> + Send;
    /// The user with this address.
    fn user_by_email(
        &self,
        tenant: &TenantId,
        email: &Email,
    ) -> impl Future<Output = Result<Option<User>, StoreError>> + Send;
    /// Users.
    fn users(&self, tenant: &TenantId, page: Page) -> impl Future<Output = Result<Vec<User>, StoreError>> + Send;
    /// Users whose address or display name (as `name_key`) begins with `begins`: at most `limit` by each, put together in the
    /// order of addresses, at most `limit`.
    fn users_like(
        &self,
        tenant: &TenantId,
        begins: &str,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<User>, StoreError>> + Send;
    /// A user's activation password.
    fn password(
        &self,
        tenant: &TenantId,
        user: EntityId,
    ) -> impl Future<Output = Result<Option<ActivationPassword>, StoreError>> + Send;
    /// All activation passwords that exist.
    fn passwords(&self, tenant: &TenantId) -> impl Future<Output = Result<Vec<ActivationPassword>, StoreError>> + Send;
    /// One node.
    fn node(&self, tenant: &TenantId, id: EntityId) -> impl Future<Output = Result<Option<Node>, StoreError>> + Send;
    /// Nodes.
    fn nodes(&self, tenant: &TenantId, page: Page) -> impl Future<Output = Result<Vec<Node>, StoreError>> + Send;
    /// One device.
    fn device(
        &self,
        tenant: &TenantId,
        id: EntityId,
    ) -> impl Future<Output = Result<Option<Device>, StoreError>> + Send;
    /// Devices, of one user or of all.
    fn devices(
        &self,
        tenant: &TenantId,
        user: Option<EntityId>,
        page: Page,
    ) -> impl Future<Output = Result<Vec<Device>, StoreError>> + Send;
    /// One token.
    fn token(&self, tenant: &TenantId, id: EntityId) -> impl Future<Output = Result<Option<Token>, StoreError>> + Send;
    /// Tokens.
    fn tokens(&self, tenant: &TenantId, page: Page) -> impl Future<Output = Result<Vec<Token>, StoreError>> + Send;
    /// Access rules in order.
    fn rules(&self, tenant: &TenantId) -> impl Future<Output = Result<Vec<Rule>, StoreError>> + Send;
    /// Routes in order.
    fn routes(&self, tenant: &TenantId) -> impl Future<Output = Result<Vec<Route>, StoreError>> + Send;
    /// Server names, in their order.
    fn names(&self, tenant: &TenantId) -> impl Future<Output = Result<Vec<ServerName>, StoreError>> + Send;
    /// The placement that the configuration in force has.
    fn placement(&self, tenant: &TenantId) -> impl Future<Output = Result<Option<Placement>, StoreError>> + Send;
    /// The installed licence.
    fn licence(&self, tenant: &TenantId) -> impl Future<Output = Result<Option<Installed>, StoreError>> + Send;
    /// How many devices are active, of one user or of all.
    fn active_devices(
        &self,
        tenant: &TenantId,
        user: Option<EntityId>,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;
    /// One group.
    fn group(&self, tenant: &TenantId, id: EntityId) -> impl Future<Output = Result<Option<Group>, StoreError>> + Send;
    /// The group whose name has this `name_key`.
    fn group_by_name(
        &self,
        tenant: &TenantId,
        key: &str,
    ) -> impl Future<Output = Result<Option<Group>, StoreError>> + Send;
    /// Groups.
    fn groups(&self, tenant: &TenantId, page: Page) -> impl Future<Output = Result<Vec<Group>, StoreError>> + Send;
    /// Who stands in a group itself.
    fn members(
        &self,
        tenant: &TenantId,
        group: EntityId,
        page: Page,
    ) -> impl Future<Output = Result<Vec<Principal>, StoreError>> + Send;
    /// Groups that somebody stands in themselves, in the order of ids.
    fn groups_of(
        &self,
        tenant: &TenantId,
        member: Principal,
    ) -> impl Future<Output = Result<Vec<EntityId>, StoreError>> + Send;
    /// Every pair of a group and one that it stands in.
    fn nesting(&self, tenant: &TenantId) -> impl Future<Output = Result<Vec<(EntityId, EntityId)>, StoreError>> + Send;
    /// One profile.
    fn profile(
        &self,
        tenant: &TenantId,
        id: EntityId,
    ) -> impl Future<Output = Result<Option<Profile>, StoreError>> + Send;
    /// Profiles of a category, in the order of ranks.
    fn profiles(
        &self,
        tenant: &TenantId,
        category: Category,
    ) -> impl Future<Output = Result<Vec<Profile>, StoreError>> + Send;
    /// Profiles that are their category's default.
    fn default_profiles(&self, tenant: &TenantId) -> impl Future<Output = Result<Vec<Profile>, StoreError>> + Send;
    /// Profiles that are assigned to somebody themselves, in the order of ids.
    fn profiles_of(
        &self,
        tenant: &TenantId,
        holder: Principal,
    ) -> impl Future<Output = Result<Vec<Profile>, StoreError>> + Send;
    /// To whom a profile is assigned, users first, in the order of ids.
    fn holders_of(
        &self,
        tenant: &TenantId,
        profile: EntityId,
    ) -> impl Future<Output = Result<Vec<Principal>, StoreError>> + Send;
    /// One command.
    fn command(
        &self,
        tenant: &TenantId,
        id: EntityId,
    ) -> impl Future<Output = Result<Option<Command>, StoreError>> + Send;
    /// A device's newest commands, the newest first, at most `MAX_COMMANDS`.
    fn commands(
        &self,
        tenant: &TenantId,
        device: EntityId,
    ) -> impl Future<Output = Result<Vec<Command>, StoreError>> + Send;
    /// A device's commands of which something may still become, the oldest first.
    fn open_commands(
        &self,
        tenant: &TenantId,
        device: EntityId,
    ) -> impl Future<Output = Result<Vec<Command>, StoreError>> + Send;
    /// Commands of all devices whose time was over by then and of which something may still become, at most `limit`, those
    /// that were over first first.
    fn overdue_commands(
        &self,
        tenant: &TenantId,
        now: UnixTime,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Command>, StoreError>> + Send;
    /// Ids whose certificates do not count although they have not expired at `now`: revoked devices and nodes, and
    /// devices of inactive users; in the order of ids.
    fn revoked(
        &self,
        tenant: &TenantId,
        now: UnixTime,
    ) -> impl Future<Output = Result<Vec<EntityId>, StoreError>> + Send;
    /// Certificates issued to one holder, oldest first.
    fn certificates(
        &self,
        tenant: &TenantId,
        holder: EntityId,
    ) -> impl Future<Output = Result<Vec<CertificateRecord>, StoreError>> + Send;
    /// Audit records with a number above `after`, in order, at most `limit`.
    fn audit(
        &self,
        tenant: &TenantId,
        after: u64,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<audit::Record>, StoreError>> + Send;
    /// Acknowledgements, by holder.
    fn acknowledgements(
        &self,
        tenant: &TenantId,
    ) -> impl Future<Output = Result<Vec<Acknowledgement>, StoreError>> + Send;
    /// Does all of it or, with `Conflict`, nothing.
    fn commit(&self, commit: Commit) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Replaces a command as it was read by what has become of it, on disk when this returns; `Conflict` where it is not as
    /// it was read any more. Not audited, no new revision: see `Change::MoveCommand`.
    fn move_command(&self, from: &Command, to: Command) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Notes that a device or node spoke with the core. Not audited, no new revision.
    fn seen(
        &self,
        tenant: &TenantId,
        id: EntityId,
        now: UnixTime,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Notes which configuration a device has said is in force there. Not audited, no new revision.
    fn obeys(
        &self,
        tenant: &TenantId,
        device: EntityId,
        version: Version,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Notes how far a relay or node has come. Not audited, no new revision.
    fn acknowledge(
        &self,
        tenant: &TenantId,
        ack: Acknowledgement,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}
