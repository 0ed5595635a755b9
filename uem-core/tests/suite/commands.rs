//! Commands: queued, fetched, answered.

use std::collections::BTreeSet;

use super::world::*;
use hedgerow_shared::EntityId;
use hedgerow_uem_core::account::{Device, DeviceState};
use hedgerow_uem_core::command::{Command, DEFAULT_LIFETIME_SECONDS, Kind, MAX_OPEN, Properties, Reply, State};
use hedgerow_uem_core::seal::Kek;
use hedgerow_uem_core::service::NewCommand;
use hedgerow_uem_core::store::{Change, Commit, Store, StoreError};
use hedgerow_uem_core::{Actor, Call, CoreError};
use serde_json::{Map, Value, json};

impl<S: Store> World<S> {
    pub(super) async fn device_of(&mut self, email: &str) -> Device {
        let user = self.user(email).await;
        self.password(&user, "open sesame").await;
        self.activate(email, "open sesame").await.unwrap().1
    }

    pub(super) async fn give(&mut self, device: &Device, kind: Kind) -> Result<Command, CoreError> {
        let properties = serde_json::from_str(r#"{"message":"Ring 555-0100 – \"now\""}"#).unwrap();
        let lifetime_seconds = DEFAULT_LIFETIME_SECONDS;
        let new = NewCommand { device: device.id, kind, properties, lifetime_seconds };
        self.core.queue_command(call!(self), &self.tenant, new).await
    }

    pub(super) async fn fetch(&mut self, device: EntityId) -> Option<Command> {
        self.fetch_whole(device).await.map(|(command, _)| command)
    }

    pub(super) async fn fetch_whole(&mut self, device: EntityId) -> Option<(Command, Map<String, Value>)> {
        self.core.next_command(call!(self), &self.tenant, device, &BTreeSet::new()).await.unwrap()
    }

    /// How commands have ended, as the record has it.
    async fn ends(&self) -> Vec<(String, String)> {
        let records = self.core.audit(&self.tenant, 0, 1000).await.unwrap();
        let of = records.into_iter().filter(|r| ["command.end", "command.cancel"].contains(&r.action.as_str()));
        of.map(|r| (r.outcome.as_str().to_owned(), r.detail)).collect()
    }

    pub(super) async fn answer(&mut self, device: &Device, id: EntityId, reply: Reply) -> Result<Command, CoreError> {
        self.core.answer_command(call!(self), &self.tenant, device.id, id, reply).await
    }
}

fn done() -> Reply {
    Reply::Done { result: serde_json::from_str(r#"{"packages":["a 1.0","b 2"]}"#).unwrap() }
}

pub(crate) async fn p22_commands_are_fetched_in_order_and_answered_once<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let device = w.device_of("anna@example.com").await;
    let other = w.device_of("bob@example.com").await;
    let info = w.give(&device, Kind::RequestDeviceInfo).await.unwrap();
    let lock = w.give(&device, Kind::LockDevice).await.unwrap();
    let list = w.give(&device, Kind::ListApplications).await.unwrap();
    assert!(w.fetch(other.id).await.is_none());
    let (got, properties) = w.fetch_whole(device.id).await.unwrap();
    assert_eq!((got.id, got.state, got.sent, &got.properties), (lock.id, State::Sent, 1, &lock.properties));
    assert_eq!(properties["message"], "Ring 555-0100 – \"now\"");
    // Again, until it is answered; what is stored is what was sent.
    assert_eq!(w.fetch(device.id).await.unwrap().sent, 2);
    assert_eq!(w.core.command(&w.tenant, lock.id).await.unwrap().sent, 2);
    assert!(matches!(w.answer(&other, lock.id, done()).await, Err(CoreError::NotFound { .. })));
    w.now = w.now.plus(5);
    let ended = w.answer(&device, lock.id, done()).await.unwrap();
    assert_eq!((ended.state, ended.completed), (State::Succeeded, Some(w.now)));
    let again = w.answer(&device, lock.id, Reply::Failed { error: "twice".into() }).await.unwrap();
    assert_eq!(again, ended, "the first answer counts");
    assert_eq!(w.core.command(&w.tenant, lock.id).await.unwrap(), ended);
    assert_eq!(w.fetch(device.id).await.unwrap().id, info.id);
    w.answer(&device, info.id, Reply::NotNow).await.unwrap();
    assert_eq!(w.fetch(device.id).await.unwrap().id, list.id);
    w.answer(&device, list.id, Reply::Failed { error: "no dpkg".into() }).await.unwrap();
    assert!(w.fetch(device.id).await.is_none());
    w.now = w.now.plus(3600);
    assert_eq!(w.fetch(device.id).await.unwrap().id, info.id);
    let states: Vec<_> = w.core.commands(&w.tenant, device.id).await.unwrap().iter().map(|c| (c.id, c.state)).collect();
    assert_eq!(states, [(list.id, State::Failed), (lock.id, State::Succeeded), (info.id, State::Sent)]);
    assert_eq!(w.ends().await, [("done".into(), format!("LOCK_DEVICE {}", lock.id))], "what is asked is not recorded");
    let records = w.core.audit(&w.tenant, 0, 100).await.unwrap();
    assert_eq!(records.iter().filter(|r| r.action == "command.queue").count(), 3);
    assert!(!serde_json::to_string(&records).unwrap().contains("555-0100"));
}

pub(crate) async fn p22_commands_are_taken_back_and_expire<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let device = w.device_of("anna@example.com").await;
    let (first, second) =
        (w.give(&device, Kind::LockDevice).await.unwrap(), w.give(&device, Kind::EnableLostMode).await.unwrap());
    let cancelled = w.core.cancel_command(call!(w), &w.tenant, second.id).await.unwrap();
    assert_eq!((cancelled.state, cancelled.completed), (State::Cancelled, Some(w.now)));
    assert!(w.core.cancel_command(call!(w), &w.tenant, second.id).await.is_err());
    assert_eq!(w.fetch(device.id).await.unwrap().id, first.id);
    let refused = w.core.cancel_command(call!(w), &w.tenant, first.id).await.unwrap_err();
    assert!(refused.to_string().contains("may have it"), "{refused}");
    w.now = w.now.plus(DEFAULT_LIFETIME_SECONDS);
    assert!(w.fetch(device.id).await.is_none());
    let expired = w.core.command(&w.tenant, first.id).await.unwrap();
    assert_eq!((expired.state, expired.completed), (State::Expired, Some(w.now)));
    assert_eq!(
        w.ends().await,
        [
            ("done".into(), format!("ENABLE_LOST_MODE {}", second.id)),
            ("refused".into(), format!("LOCK_DEVICE {}: its time was over", first.id))
        ]
    );
    // It arrives late: what was told the administrator stays.
    assert_eq!(w.answer(&device, first.id, done()).await.unwrap().state, State::Expired);
    // Of a device that is away it shows as well.
    let asked = w.give(&device, Kind::RequestDeviceInfo).await.unwrap();
    let lock = w.give(&device, Kind::LockDevice).await.unwrap();
    assert_eq!(w.core.expire_commands(call!(w), &w.tenant).await.unwrap(), 0);
    w.now = w.now.plus(DEFAULT_LIFETIME_SECONDS);
    assert_eq!(w.core.expire_commands(call!(w), &w.tenant).await.unwrap(), 2);
    for id in [asked.id, lock.id] {
        assert_eq!(w.core.command(&w.tenant, id).await.unwrap().state, State::Expired);
    }
    assert_eq!((w.core.expire_commands(call!(w), &w.tenant).await.unwrap(), w.ends().await.len()), (0, 3));
    // Those of long ago are forgotten with the next.
    w.now = w.now.plus(91 * 24 * 3600);
    w.give(&device, Kind::UpdateProfiles).await.unwrap();
    assert_eq!(w.core.commands(&w.tenant, device.id).await.unwrap().len(), 1);
    w.core.verify_audit(&w.tenant).await.unwrap();
}

pub(crate) async fn p22_a_queue_has_a_bound_and_revoked_devices_have_none<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let device = w.device_of("anna@example.com").await;
    for _ in 0..MAX_OPEN {
        w.give(&device, Kind::RequestDeviceInfo).await.unwrap();
    }
    assert!(w.give(&device, Kind::LockDevice).await.unwrap_err().to_string().contains("wait for this device"));
    w.now = w.now.plus(DEFAULT_LIFETIME_SECONDS);
    w.give(&device, Kind::LockDevice).await.unwrap();
    let lifetime_seconds = 0;
    let none = NewCommand { device: device.id, kind: Kind::LockDevice, properties: Map::new(), lifetime_seconds };
    assert!(w.core.queue_command(call!(w), &w.tenant, none).await.is_err());
    w.core.revoke_device(call!(w), &w.tenant, device.id).await.unwrap();
    assert!(matches!(w.give(&device, Kind::LockDevice).await, Err(CoreError::Revoked { .. })));
}

pub(crate) async fn p22_a_device_that_has_erased_itself_is_revoked<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let device = w.device_of("anna@example.com").await;
    let wipe = w.give(&device, Kind::DeleteWorkSpaceData).await.unwrap();
    w.fetch(device.id).await.unwrap();
    let state = async |w: &World<S>| w.core.device(&w.tenant, device.id).await.unwrap().state;
    w.answer(&device, wipe.id, Reply::NotNow).await.unwrap();
    assert_eq!(state(&w).await, DeviceState::Active);
    w.answer(&device, wipe.id, done()).await.unwrap();
    assert_eq!(state(&w).await, DeviceState::Revoked);
    assert_eq!(w.core.command(&w.tenant, wipe.id).await.unwrap().state, State::Succeeded);
    // Also when its time was over before it had come to its end: the key is gone all the same.
    let late = w.device_of("bob@example.com").await;
    let wipe = w.give(&late, Kind::DeleteWorkSpaceData).await.unwrap();
    w.fetch(late.id).await.unwrap();
    w.now = w.now.plus(DEFAULT_LIFETIME_SECONDS);
    assert_eq!(w.core.expire_commands(call!(w), &w.tenant).await.unwrap(), 1);
    assert_eq!(w.core.device(&w.tenant, late.id).await.unwrap().state, DeviceState::Active);
    assert_eq!(w.answer(&late, wipe.id, Reply::Failed { error: "no".into() }).await.unwrap().state, State::Expired);
    assert_eq!(w.answer(&late, wipe.id, done()).await.unwrap().state, State::Succeeded);
    assert_eq!(w.core.device(&w.tenant, late.id).await.unwrap().state, DeviceState::Revoked);
    // In one commit: there is no revoked device whose erasure is open for ever.
    let records = w.core.audit(&w.tenant, 0, 100).await.unwrap();
    let last: Vec<_> = records.iter().rev().take(2).map(|r| (r.action.as_str(), r.actor.clone())).collect();
    assert_eq!(last, [("command.end", "admin:root".into()), ("device.revoke", "admin:root".into())]);
}

pub(crate) async fn p22_a_command_that_has_moved_meanwhile_takes_nothing_along<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let device = w.device_of("anna@example.com").await;
    let read = w.give(&device, Kind::LockDevice).await.unwrap();
    let sent = w.fetch(device.id).await.unwrap();
    let commit = async |w: &World<S>, from: &Command, to: Command| {
        let mut tenant = w.core.tenant(&w.tenant).await.unwrap();
        let expected = Some(tenant.revision);
        tenant.revision += 1;
        let other = Device { name: "renamed".into(), ..device.clone() };
        let changes = vec![Change::PutDevice(other), Change::MoveCommand { from: from.clone(), to }];
        w.core.store().commit(Commit { expected, tenant, changes, audit: vec![] }).await
    };
    let name = async |w: &World<S>| w.core.device(&w.tenant, device.id).await.unwrap().name;
    let before = (w.core.tenant(&w.tenant).await.unwrap(), name(&w).await);
    let late = commit(&w, &read, read.cancelled(w.now).unwrap()).await;
    assert!(matches!(late, Err(StoreError::Conflict)), "{late:?}");
    assert_eq!((w.core.tenant(&w.tenant).await.unwrap(), name(&w).await), before);
    commit(&w, &sent, sent.answered(done(), w.now).unwrap()).await.unwrap();
    assert_eq!(w.core.command(&w.tenant, read.id).await.unwrap().state, State::Succeeded);
    assert_eq!(name(&w).await, "renamed");
}

pub(crate) async fn p22_properties_of_commands_are_stored_sealed_and_rows_of_before_are_still_read<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let device = w.device_of("anna@example.com").await;
    let clear = json!({ "newPassword": "correct horse battery", "message": "Ring 555-0100" });
    let Value::Object(clear) = clear else { panic!("an object") };
    let (kind, lifetime_seconds) = (Kind::LockDevice, DEFAULT_LIFETIME_SECONDS);
    let new = NewCommand { device: device.id, kind, properties: clear.clone(), lifetime_seconds };
    let given = w.core.queue_command(call!(w), &w.tenant, new).await.unwrap();
    let stored = w.core.store().command(&w.tenant, given.id).await.unwrap().unwrap();
    let text = serde_json::to_string(&stored).unwrap();
    assert!(!text.contains("correct horse") && !text.contains("555-0100"), "{text}");
    assert_eq!(stored.properties.names().collect::<Vec<_>>(), ["message", "newPassword"]);
    let (sent, opened) = w.fetch_whole(device.id).await.unwrap();
    assert_eq!((sent.id, &opened), (given.id, &clear));
    w.answer(&device, given.id, done()).await.unwrap();

    // One as a version before this one left it, behind one that was moved here from another place of the database.
    let old = w.give(&device, Kind::LockDevice).await.unwrap();
    let moved = w.give(&device, Kind::EnableLostMode).await.unwrap();
    let mut tenant = w.core.tenant(&w.tenant).await.unwrap();
    let (expected, audit) = (Some(tenant.revision), Vec::new());
    tenant.revision += 1;
    let rows = [(&old, Properties::Clear(clear.clone())), (&moved, stored.properties)];
    let rows = rows.map(|(c, properties)| Command {
        id: EntityId::from_random([c.number as u8; 16]),
        properties,
        ..c.clone()
    });
    let changes = rows.iter().cloned().map(Change::PutCommand).collect();
    w.core.store().commit(Commit { expected, tenant, changes, audit }).await.unwrap();
    for id in [old.id, moved.id] {
        w.core.cancel_command(call!(w), &w.tenant, id).await.unwrap();
    }
    let (sent, opened) = w.fetch_whole(device.id).await.unwrap();
    assert_eq!((sent.id, opened), (rows[0].id, clear));
    w.answer(&device, sent.id, done()).await.unwrap();
    let list = w.give(&device, Kind::ListApplications).await.unwrap();
    assert_eq!(w.fetch(device.id).await.unwrap().id, list.id, "a damaged one holds nobody up");
    let damaged = w.core.command(&w.tenant, rows[1].id).await.unwrap();
    assert!(damaged.state == State::Failed && damaged.error.unwrap().contains("cannot be opened"));
    // Under another key they are not readable either.
    let last = w.give(&device, Kind::LockDevice).await.unwrap();
    w.answer(&device, list.id, done()).await.unwrap();
    w.core = w.core.with_kek(Kek::new(&[2; 32]));
    assert!(w.fetch(device.id).await.is_none());
    assert_eq!(w.core.command(&w.tenant, last.id).await.unwrap().state, State::Failed);
}
