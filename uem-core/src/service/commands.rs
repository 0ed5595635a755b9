//! Commands to devices: given and taken back by administrators, fetched and answered by devices.

use std::collections::BTreeSet;

use hedgerow_shared::{EntityId, TenantId, UnixTime};
use serde_json::{Map, Value};

use super::{Call, Core, Decided, Plan, devices};
use crate::CoreError;
use crate::account::DeviceState;
use crate::command::{
    self, Class, Command, Kind, MAX_CONTENT, MAX_LIFETIME_SECONDS, MAX_OPEN, Properties, Reply, State,
};
use crate::store::{Change, Store, StoreError};

/// How long a command that came to its end is kept, seconds: 90 days. The audit record of it stays.
const KEPT_SECONDS: u64 = 90 * 24 * 3600;
/// Commands that are ended at once because their time is over.
const OVERDUE: u32 = 200;
/// Characters of a device's error that stand in the record; the command has all of it.
const ERROR_IN_RECORD: usize = 200;

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
        let mut turn = self.turn();
        loop {
            turn.next().await?;
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
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let command = self.command(tenant, id).await?;
            let Some(cancelled) = command.cancelled(call.now) else {
                let why = match command.state {
                    State::Sent => "the device may have it already",
                    _ => "it has come to its end already",
                };
                return Err(CoreError::invalid("the command", why));
            };
            // A device may fetch it at this moment: whoever is first has it.
            if self.advance(call, (&command, &cancelled)).await? {
                return Ok(cancelled);
            }
        }
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

    /// Ends the open commands whose time is over, some hundred at most, in one commit: how many. Devices that are away do not
    /// ask, and administrators are to see it.
    ///
    /// # Errors
    /// `Busy`, `Store`.
    pub async fn expire_commands(&self, call: &mut Call<'_>, tenant: &TenantId) -> Result<usize, CoreError> {
        let now = call.now;
        self.decide(call, tenant, |_| async move {
            let over = self.store.overdue_commands(tenant, now, OVERDUE).await.map_err(CoreError::Store)?;
            if over.is_empty() {
                return Ok(Decided::Already(0));
            }
            let pairs = over.iter().filter_map(|command| Some((command, command.expired(now)?)));
            let plan = pairs.fold(Plan::default(), |plan, (command, expired)| plan_end(plan, (command, &expired)));
            Ok(Decided::Commit(plan, over.len()))
        })
        .await
    }

    /// The command that a device gets now, stored as sent, and what it takes; `None` when it is to be idle. `skip` are those
    /// that it has put off in this conversation. One whose properties cannot be opened fails, and does not hold up others.
    ///
    /// # Errors
    /// `Busy`, `Store`.
    pub async fn next_command(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        device: EntityId,
        skip: &BTreeSet<EntityId>,
    ) -> Result<Option<(Command, Map<String, Value>)>, CoreError> {
        let now = call.now;
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let mut open = self.store.open_commands(tenant, device).await.map_err(CoreError::Store)?;
            for command in &mut open {
                if let Some(expired) = command.expired(now) {
                    // Where another has moved it meanwhile, that is what counts.
                    self.advance(call, (command, &expired)).await?;
                    *command = expired;
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
            if self.advance(call, (command, &moved)).await?
                && let Some(properties) = properties
            {
                return Ok(Some((moved, properties)));
            }
        }
    }

    /// A device's answer. What it says of a command that has come to its end, or is another's, changes nothing. A device that
    /// has erased what belongs to the organisation is revoked with that; what one tells of itself is kept, and it is judged by
    /// that.
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
        let of_device = async || {
            let command = self.command(tenant, id).await?;
            if command.device == device { Ok(command) } else { Err(CoreError::not_found("command", id)) }
        };
        let command = of_device().await?;
        let Some(answered) = command.answered(reply.clone(), call.now) else { return Ok(command) };
        // Before the answer is: should this be all that is done, it is told again.
        if answered.state == State::Succeeded
            && self.tell(tenant, device, (answered.kind, &answered.result), call.now).await?
        {
            self.judge_device(call, tenant, device).await?;
        }
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            // Before the device is: what it is made of counts only as of this revision.
            let row = self.load(tenant).await?;
            let command = of_device().await?;
            let Some(answered) = command.answered(reply.clone(), call.now) else { return Ok(command) };
            let is_done = if answered.kind.ends_the_device() && answered.state == State::Succeeded {
                let revocation = devices::plan_revocation(self.device(tenant, device).await?, call.now);
                let plan = revocation.map_or_else(Plan::default, |(_, plan)| plan);
                self.commit(call, row, plan_end(plan, (&command, &answered))).await?
            } else {
                self.advance(call, (&command, &answered)).await?
            };
            if is_done {
                return Ok(answered);
            }
        }
    }

    /// Replaces a command as it was read by what has become of it; `false` where it is not as it was read any more. The end of
    /// one that was to change something stands in the record, in the same commit; what devices are merely asked is not for the
    /// record.
    async fn advance(&self, call: &mut Call<'_>, (from, to): (&Command, &Command)) -> Result<bool, CoreError> {
        if to.state.is_open() || to.kind.class() == Class::Information && to.state != State::Cancelled {
            return match self.store.move_command(from, to.clone()).await {
                Ok(()) => Ok(true),
                Err(StoreError::Conflict) => Ok(false),
                Err(error) => Err(CoreError::Store(error)),
            };
        }
        let row = self.load(&to.tenant).await?;
        self.commit(call, row, plan_end(Plan::default(), (from, to))).await
    }
}

/// With the end of a command, and what the record says of it.
fn plan_end(plan: Plan, (from, to): (&Command, &Command)) -> Plan {
    let plan = plan.change(Change::MoveCommand { from: from.clone(), to: to.clone() });
    let (subject, told) = (to.device.to_string(), format!("{} {}", to.kind, to.id));
    let why = || to.error.iter().flat_map(|error| error.chars()).take(ERROR_IN_RECORD).collect::<String>();
    match to.state {
        State::Cancelled => plan.record("command.cancel", subject, told),
        _ if to.kind.class() == Class::Information => plan,
        State::Succeeded => plan.record("command.end", subject, told),
        State::Failed => plan.refused("command.end", subject, format!("{told}: {}", why())),
        _ => plan.refused("command.end", subject, format!("{told}: its time was over")),
    }
}
