//! Commands to devices: given and taken back by administrators, fetched and answered by devices.

use std::collections::BTreeSet;

use hedgerow_shared::{EntityId, TenantId, UnixTime};
use serde_json::{Map, Value};

use super::{ATTEMPTS, Call, Core, Plan};
use crate::CoreError;
use crate::account::DeviceState;
use crate::command::{self, Command, Kind, MAX_CONTENT, MAX_LIFETIME_SECONDS, MAX_OPEN, Properties, Reply, State};
use crate::store::{Change, Store, StoreError};

/// How long a command that came to its end is kept, seconds: 90 days. The audit record of it stays.
const KEPT_SECONDS: u64 = 90 * 24 * 3600;

/// A command to be given.
#[derive(Debug, Clone, PartialEq)]
pub struct NewCommand {
    /// To which device.
    pub device: EntityId,
    /// What is to be done.
    pub kind: Kind,
    /// What it takes.
    pub properties: Map<String, Value>,
    /// How long it waits for the device, 1 to `MAX_LIFETIME_SECONDS`.
    pub lifetime_seconds: u64,
}

impl<S: Store> Core<S> {
    /// Queues a command; it is on disk when this returns. Properties may hold passwords: they are stored sealed, and are not in
    /// the audit record.
    ///
    /// # Errors
    /// `NotFound`, `Revoked`, `Invalid` (a lifetime, properties that are too large, too many open commands), `Busy`, `Store`.
    pub async fn queue_command(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        new: NewCommand,
    ) -> Result<Command, CoreError> {
        if !(1..=MAX_LIFETIME_SECONDS).contains(&new.lifetime_seconds) {
            return Err(CoreError::invalid("the lifetime", "use one second to 90 days"));
        }
        if !command::fits(&new.properties) {
            return Err(CoreError::invalid("the properties", format!("at most {MAX_CONTENT} bytes are kept")));
        }
        let id = call.id();
        let mut command = Command {
            tenant: tenant.clone(),
            id,
            device: new.device,
            number: 0,
            kind: new.kind,
            properties: Properties::seal(&self.kek, (tenant, id), new.properties, call.random),
            state: State::Queued,
            created: call.now,
            expires: call.now.plus(new.lifetime_seconds),
            sent: 0,
            not_before: None,
            completed: None,
            error: None,
            result: Map::new(),
        };
        for _ in 0..ATTEMPTS {
            let row = self.load(tenant).await?;
            if self.device(tenant, new.device).await?.state == DeviceState::Revoked {
                return Err(CoreError::Revoked { kind: "device", id: new.device });
            }
            let open = self.store.open_commands(tenant, new.device).await.map_err(CoreError::Store)?;
            if open.iter().filter(|c| c.expires > call.now).count() >= MAX_OPEN {
                return Err(CoreError::invalid("the command", format!("{MAX_OPEN} wait for this device already")));
            }
            // Revisions only grow, and each commit has one of its own.
            command.number = row.revision.saturating_add(1);
            let before = UnixTime(call.now.0.saturating_sub(KEPT_SECONDS));
            let plan = Plan::default()
                .change(Change::ForgetCommands { device: new.device, before })
                .change(Change::PutCommand(command.clone()))
                .record("command.queue", new.device.to_string(), format!("{} {}", command.kind, command.id));
            if self.commit(call, row, plan).await? {
                return Ok(command);
            }
        }
        Err(CoreError::Busy)
    }

    /// Takes a command back that no device has yet.
    ///
    /// # Errors
    /// `NotFound`; `Invalid`: it was sent, or has come to its end; `Busy`, `Store`.
    pub async fn cancel_command(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        id: EntityId,
    ) -> Result<Command, CoreError> {
        for _ in 0..ATTEMPTS {
            let row = self.load(tenant).await?;
            let command = self.command(tenant, id).await?;
            let Some(cancelled) = command.cancelled(call.now) else {
                let why = match command.state {
                    State::Sent => "the device may have it already",
                    _ => "it has come to its end already",
                };
                return Err(CoreError::invalid("the command", why));
            };
            // A device may fetch it at this moment: whoever is first has it.
            match self.store.move_command(&command, cancelled.clone()).await {
                Ok(()) => {}
                Err(StoreError::Conflict) => continue,
                Err(error) => return Err(CoreError::Store(error)),
            }
            let told = format!("{} {id}", command.kind);
            let plan = Plan::default().record("command.cancel", command.device.to_string(), told);
            return self.note(call, tenant, row, plan).await.map(|()| cancelled);
        }
        Err(CoreError::Busy)
    }

    /// One command.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn command(&self, tenant: &TenantId, id: EntityId) -> Result<Command, CoreError> {
        let found = self.store.command(tenant, id).await.map_err(CoreError::Store)?;
        found.ok_or_else(|| CoreError::not_found("command", id))
    }

    /// A device's newest commands, the newest first, at most `store::MAX_COMMANDS`.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn commands(&self, tenant: &TenantId, device: EntityId) -> Result<Vec<Command>, CoreError> {
        self.device(tenant, device).await?;
        self.store.commands(tenant, device).await.map_err(CoreError::Store)
    }

    /// The command that a device gets now, stored as sent, and what it takes; `None` when it is to be idle. `skip` are those
    /// that it has put off in this conversation. One whose properties cannot be opened fails, and does not hold up others.
    ///
    /// # Errors
    /// `Busy`, `Store`.
    pub async fn next_command(
        &self,
        tenant: &TenantId,
        device: EntityId,
        skip: &BTreeSet<EntityId>,
        now: UnixTime,
    ) -> Result<Option<(Command, Map<String, Value>)>, CoreError> {
        for _ in 0..ATTEMPTS {
            let mut open = self.store.open_commands(tenant, device).await.map_err(CoreError::Store)?;
            for command in &mut open {
                if let Some(expired) = command.expired(now) {
                    // Where another has moved it meanwhile, that is what counts.
                    match self.store.move_command(command, expired.clone()).await {
                        Ok(()) | Err(StoreError::Conflict) => *command = expired,
                        Err(error) => return Err(CoreError::Store(error)),
                    }
                }
            }
            let Some(command) = command::next(&open, skip, now) else { return Ok(None) };
            let properties = command.properties.open(&self.kek, (tenant, command.id)).ok();
            let moved = match &properties {
                Some(_) => command.sent(),
                None => {
                    let error =
                        "its properties cannot be opened with the core's key: give the command again".to_owned();
                    command.answered(Reply::Failed { error }, now).unwrap_or_else(|| command.clone())
                }
            };
            match (self.store.move_command(command, moved.clone()).await, properties) {
                (Ok(()), Some(properties)) => return Ok(Some((moved, properties))),
                (Ok(()), None) | (Err(StoreError::Conflict), _) => {}
                (Err(error), _) => return Err(CoreError::Store(error)),
            }
        }
        Err(CoreError::Busy)
    }

    /// A device's answer. What it says of a command that has come to its end, or is another's, changes nothing. A device that
    /// has erased what belongs to the organisation is revoked; what one tells of itself is kept, and it is judged by that.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Store`.
    pub async fn answer_command(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        device: EntityId,
        id: EntityId,
        reply: Reply,
    ) -> Result<Command, CoreError> {
        for _ in 0..ATTEMPTS {
            let command = self.command(tenant, id).await?;
            if command.device != device {
                return Err(CoreError::not_found("command", id));
            }
            let Some(answered) = command.answered(reply.clone(), call.now) else { return Ok(command) };
            if answered.kind.ends_the_device() && answered.state == State::Succeeded {
                // First: should this be all that is done, the device asks again and is refused.
                self.revoke_device(call, tenant, device).await?;
            }
            // Before the answer is: should this be all that is done, it is told again.
            if answered.state == State::Succeeded
                && self.tell(tenant, device, (answered.kind, &answered.result), call.now).await?
            {
                self.judge_device(call, tenant, device).await?;
            }
            match self.store.move_command(&command, answered.clone()).await {
                Ok(()) => return Ok(answered),
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(CoreError::Store(error)),
            }
        }
        Err(CoreError::Busy)
    }

    /// Writes an audit record of what has been done already.
    async fn note(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        first: crate::account::Tenant,
        plan: Plan,
    ) -> Result<(), CoreError> {
        let (mut row, entries) = (first, plan.entries);
        for _ in 0..ATTEMPTS {
            let plan = Plan { entries: entries.clone(), ..Plan::default() };
            if self.commit(call, row, plan).await? {
                return Ok(());
            }
            row = self.load(tenant).await?;
        }
        Err(CoreError::Busy)
    }
}
