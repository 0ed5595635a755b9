//! The live end-to-end sessions: how many there may be, which there are, and cutting those that may be no longer.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hedgerow_runtime::clock;
use hedgerow_runtime::lane::Session;
use hedgerow_runtime::proxy_protocol::canonical;
use hedgerow_runtime::scope::Scope;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::wire::message::GoAway;
use hedgerow_shared::{EntityId, SessionId, UnixTime};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;
use crate::policy::Policy;

/// See the module. Shared by every session's task; the lock is held for a look-up or an insertion.
pub(crate) struct Sessions {
    limits: Limits,
    live: Mutex<Table>,
    connections: Arc<Semaphore>,
    next: AtomicU64,
    lost: Notify,
}

#[derive(Default)]
struct Table {
    sessions: HashMap<u64, Live>,
    ids: HashMap<SessionId, u64>,
    devices: HashMap<EntityId, Device>,
}

struct Live {
    session: Session,
    streams: Scope,
    /// What brought it last.
    carrier: &'static str,
    /// From where it came last, as the relay says.
    client: Option<SocketAddr>,
    since: UnixTime,
}

struct Device {
    sessions: usize,
    connections: Arc<Semaphore>,
}

/// What `/sessions` shows of one.
#[derive(Debug, Serialize)]
pub struct SessionStatus {
    /// Whose.
    pub device: EntityId,
    /// Serial number of its certificate.
    pub certificate: String,
    /// `lane` or `link`; what it had last while it is suspended.
    pub carrier: &'static str,
    /// The device's network address, as the relay says.
    pub address: Option<SocketAddr>,
    /// Connections that carry it now; 0 while it waits to be resumed.
    pub lanes: usize,
    /// How often it went on over another connection.
    pub resumed: u64,
    /// Bytes sent and kept until the device acknowledges them.
    pub retained: u64,
    /// Since when, seconds since 1970.
    pub since: UnixTime,
    /// Connections open now.
    pub streams: usize,
    /// Bytes of frames received.
    pub bytes_in: u64,
    /// Bytes of frames sent.
    pub bytes_out: u64,
    /// Round-trip time, milliseconds.
    pub rtt_ms: Option<f64>,
}

/// A place in the table, given back when dropped; the session's streams end with it.
pub(crate) struct Registered {
    sessions: Arc<Sessions>,
    key: u64,
    device: EntityId,
    device_connections: Arc<Semaphore>,
    pub(crate) streams: Scope,
}

impl Sessions {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            live: Mutex::default(),
            connections: Arc::new(Semaphore::new(limits.connections)),
            next: AtomicU64::new(0),
            lost: Notify::new(),
        })
    }

    /// Takes a place for a session.
    ///
    /// # Errors
    /// `Limited`.
    pub(crate) fn register(
        self: &Arc<Self>,
        session: &Session,
        carrier: &'static str,
        client: Option<SocketAddr>,
        scope: &Scope,
    ) -> Result<Registered, Fault> {
        let device = session.peer.identity.id;
        let streams = scope.child();
        let mut table = self.live.lock();
        if table.sessions.len() >= self.limits.sessions {
            return Err(refused("sessions", "this node serves as many sessions as it may"));
        }
        if table.ids.contains_key(&session.id) {
            return Err(Fault::new(Code::Protocol, "a session of this id is open already"));
        }
        let held = table.devices.entry(device).or_insert_with(|| Device {
            sessions: 0,
            connections: Arc::new(Semaphore::new(self.limits.connections_per_device)),
        });
        if held.sessions >= self.limits.sessions_per_device {
            return Err(refused("sessions_per_device", "this device has as many sessions as it may"));
        }
        held.sessions += 1;
        let device_connections = held.connections.clone();
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let live = Live { session: session.clone(), streams: streams.clone(), carrier, client, since: clock::now() };
        table.ids.insert(session.id, key);
        table.sessions.insert(key, live);
        metrics::gauge!("hedgerow_node_sessions").set(table.sessions.len() as f64);
        Ok(Registered { sessions: self.clone(), key, device, device_connections, streams })
    }

    /// The session of an id, for a device that goes on with it.
    pub(crate) fn find(&self, id: SessionId) -> Option<Session> {
        let table = self.live.lock();
        table.ids.get(&id).and_then(|key| table.sessions.get(key)).map(|live| live.session.clone())
    }

    /// A session has another connection now.
    pub(crate) fn carried_by(&self, id: SessionId, carrier: &'static str, client: Option<SocketAddr>) {
        let mut table = self.live.lock();
        if let Some(key) = table.ids.get(&id).copied()
            && let Some(live) = table.sessions.get_mut(&key)
        {
            live.carrier = carrier;
            live.client = client.or(live.client);
        }
    }

    /// Ends the sessions that a policy no longer admits, with everything that runs in them, now.
    pub(crate) fn enforce(&self, policy: &Policy) {
        self.cut(|live| policy.admits(&live.session.peer).err());
    }

    /// Ends every session.
    pub(crate) fn cut_all(&self, fault: &Fault) {
        self.cut(|_| Some(fault.clone()));
    }

    fn cut(&self, unwanted: impl Fn(&Live) -> Option<Fault>) {
        for live in self.live.lock().sessions.values() {
            if let Some(fault) = unwanted(live) {
                tracing::info!(device = %live.session.peer.identity.id, reason = %fault, "session cut");
                metrics::counter!("hedgerow_node_sessions_cut_total", "reason" => fault.code.label()).increment(1);
                live.session.mux.close(fault);
                // The connections inside are reset now, whatever the device does with the session's last word.
                live.streams.cancel();
            }
        }
    }

    /// A session waits for another lane.
    pub(crate) fn note_lane_lost(&self) {
        self.lost.notify_one();
    }

    /// Completes when a session has lost its lane since the last call.
    pub(crate) async fn lane_lost(&self) {
        self.lost.notified().await;
    }

    /// Asks every device for a sign of life.
    pub(crate) fn probe(&self) {
        for live in self.live.lock().sessions.values() {
            live.session.mux.probe();
        }
    }

    /// Tells every device that this node goes away.
    pub(crate) fn go_away(&self, message: &GoAway) {
        for live in self.live.lock().sessions.values() {
            live.session.mux.go_away(message);
        }
    }

    /// Connections open now, over all sessions.
    pub(crate) fn open_connections(&self) -> usize {
        self.limits.connections - self.connections.available_permits().min(self.limits.connections)
    }

    /// For `/sessions`.
    pub(crate) fn status(&self) -> Vec<SessionStatus> {
        let show = |live: &Live| {
            let stats = live.session.mux.stats();
            SessionStatus {
                device: live.session.peer.identity.id,
                certificate: live.session.peer.serial.clone(),
                carrier: live.carrier,
                address: live.client.map(canonical),
                lanes: stats.lanes,
                resumed: stats.resumed,
                retained: stats.retained,
                since: live.since,
                streams: stats.streams,
                bytes_in: stats.bytes_in,
                bytes_out: stats.bytes_out,
                rtt_ms: stats.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
            }
        };
        self.live.lock().sessions.values().map(show).collect()
    }
}

impl Registered {
    /// The device's network address now, as the relay says: for logs, and for servers that are told it.
    pub(crate) fn client(&self) -> Option<SocketAddr> {
        self.sessions.live.lock().sessions.get(&self.key).and_then(|live| live.client).map(canonical)
    }

    /// Room for one connection of this device.
    ///
    /// # Errors
    /// `Limited`.
    pub(crate) fn room(&self) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit), Fault> {
        let all = self.sessions.connections.clone().try_acquire_owned();
        let all = all.map_err(|_| refused("connections", "this node has as many connections open as it may"))?;
        let own = self.device_connections.clone().try_acquire_owned();
        let own =
            own.map_err(|_| refused("connections_per_device", "this device has as many connections open as it may"))?;
        Ok((all, own))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.streams.cancel();
        let mut table = self.sessions.live.lock();
        if let Some(live) = table.sessions.remove(&self.key) {
            table.ids.remove(&live.session.id);
        }
        if let Some(held) = table.devices.get_mut(&self.device) {
            held.sessions -= 1;
            if held.sessions == 0 {
                table.devices.remove(&self.device);
            }
        }
        metrics::gauge!("hedgerow_node_sessions").set(table.sessions.len() as f64);
    }
}

/// Counts a refusal for want of room.
pub(crate) fn refused(limit: &'static str, why: &str) -> Fault {
    metrics::counter!("hedgerow_node_limited_total", "limit" => limit).increment(1);
    Fault::new(Code::Limited, why)
}
