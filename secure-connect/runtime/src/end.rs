//! One end of one tunnel: its session, its leg, and the gate that both go through now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hedgerow_runtime::telemetry::dropped;
use hedgerow_secure_connect::leg::{Leg, Way};
use hedgerow_secure_connect::session::dtls::{ROOM, Sink};
use hedgerow_secure_connect::session::mtu::FLOOR;
use hedgerow_secure_connect::session::{Handled, Session};
use hedgerow_shared::fault::{Code, DropReason, Fault};
use hedgerow_shared::wire::tunnel::{HEADER, HalfId, Message, kind};
use hedgerow_shared::{EntityId, TunnelId};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::sleep_until;

use crate::gate::Gate;

/// A tunnel's timers are looked at so often while packets pass; nobody wakes them then.
const BUSY: Duration = Duration::from_millis(500);

/// How an end stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The hand-shake is under way, or waits for the relay.
    Connecting,
    /// IP packets of up to so many bytes pass.
    Up {
        /// Bytes.
        mtu: u16,
        /// By which way they leave.
        way: Way,
    },
    /// Over, and why: `Ok` when it was said goodbye.
    Closed(Fault),
}

/// What has passed: IP packets and their bytes.
#[derive(Debug, Default)]
pub struct Counts {
    /// Packets from the other end.
    pub packets_in: AtomicU64,
    /// Their bytes.
    pub bytes_in: AtomicU64,
    /// Packets for the other end.
    pub packets_out: AtomicU64,
    /// Their bytes.
    pub bytes_out: AtomicU64,
}

/// See the module.
#[derive(Debug)]
pub struct End {
    /// What both ends call the tunnel.
    pub tunnel: TunnelId,
    /// Whose certificate the other end must show.
    pub peer: EntityId,
    /// What has passed.
    pub counts: Counts,
    pub(crate) inner: Mutex<Inner>,
    state: watch::Sender<State>,
    wake: Notify,
    attached: Notify,
    /// The timers' task sleeps long.
    asleep: AtomicBool,
    /// Of `State::Up`, for every packet to look at.
    mtu: AtomicU16,
}

#[derive(Debug)]
pub(crate) struct Inner {
    /// `None` until the hand-shake may begin.
    pub(crate) session: Option<Session>,
    pub(crate) leg: Option<Leg>,
    pub(crate) gate: Option<Arc<Gate>>,
    over: bool,
    /// Of a session that has ended.
    used: Option<Instant>,
}

impl End {
    /// An end without a way to the other one yet.
    #[must_use]
    pub fn new(tunnel: TunnelId, peer: EntityId) -> Arc<Self> {
        let inner = Inner { session: None, leg: None, gate: None, over: false, used: None };
        Arc::new(Self {
            tunnel,
            peer,
            counts: Counts::default(),
            inner: Mutex::new(inner),
            state: watch::Sender::new(State::Connecting),
            wake: Notify::new(),
            attached: Notify::new(),
            asleep: AtomicBool::new(false),
            mtu: AtomicU16::new(FLOOR),
        })
    }

    /// How it stands, and changes of that.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// The half of a pairing that it goes by now.
    #[must_use]
    pub fn half(&self) -> Option<HalfId> {
        self.inner.lock().leg.as_ref().map(Leg::id)
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(*self.state.borrow(), State::Closed(_))
    }

    /// The largest IP packet that passes now, bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu.load(Ordering::Relaxed)
    }

    /// When an IP packet last passed; it may have ended since.
    #[must_use]
    pub fn used(&self) -> Option<Instant> {
        let inner = self.inner.lock();
        inner.session.as_ref().map(Session::used).or(inner.used)
    }

    /// Begins the hand-shake, unless one has begun: there is one at a time.
    pub fn begin(&self, make: impl FnOnce(Instant) -> Session) {
        let mut inner = self.inner.lock();
        if inner.session.is_none() && !inner.over {
            inner.session = Some(make(Instant::now()));
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// From now on it goes through this gate with this leg. The one before is let go.
    pub(crate) fn lead(&self, gate: &Arc<Gate>, leg: Leg) -> Option<(Arc<Gate>, HalfId)> {
        let mut inner = self.inner.lock();
        let old = inner.gate.replace(gate.clone()).zip(inner.leg.replace(leg).map(|l| l.id()));
        if let Some(session) = &mut inner.session {
            session.path_changed(Instant::now());
        }
        drop(inner);
        self.wake.notify_one();
        old
    }

    /// The network below has changed.
    pub fn network_changed(&self) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        if let Some(leg) = &mut inner.leg {
            leg.changed(now);
        }
        if let Some(session) = &mut inner.session {
            session.path_changed(now);
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// Says goodbye, or just stops where nobody can hear it.
    pub fn close(&self, why: Fault) {
        let mut inner = self.inner.lock();
        if inner.over {
            return;
        }
        let mut out = Letters::default();
        if let Some(session) = &mut inner.session {
            session.close(&mut out);
        }
        self.post(&mut inner, out.letters, Instant::now());
        self.finish(&mut inner, why);
    }

    fn finish(&self, inner: &mut Inner, why: Fault) {
        inner.over = true;
        inner.used = inner.session.take().map(|session| session.used());
        let gone = inner.gate.take().zip(inner.leg.take());
        self.state.send_replace(State::Closed(why));
        self.wake.notify_one();
        if let Some((gate, leg)) = gone {
            gate.forget(leg.id());
        }
    }

    /// Its timers, until it is over: hand-shake flights, signs of life, probes, and what the leg asks of the relay.
    pub async fn run(self: Arc<Self>) {
        loop {
            let due = {
                let mut inner = self.inner.lock();
                if inner.over {
                    return;
                }
                self.poll(&mut inner, Instant::now());
                if inner.over {
                    return;
                }
                let session = inner.session.as_ref().map(|s| (s.due(), s.used()));
                let leg = inner.leg.as_ref().map(Leg::due);
                let busy = session.is_some_and(|(_, used)| used.elapsed() < Duration::from_secs(10));
                let longest = Instant::now() + if busy { BUSY } else { Duration::from_secs(3600) };
                session.map(|(due, _)| due).into_iter().chain(leg).fold(longest, Instant::min)
            };
            let soon = Instant::now() + BUSY;
            self.asleep.store(due > soon, Ordering::Relaxed);
            tokio::select! {
                () = sleep_until(due.max(Instant::now() + Duration::from_millis(1)).into()) => {}
                () = self.wake.notified() => {}
            }
        }
    }

    fn poll(&self, inner: &mut Inner, now: Instant) {
        let mut ways = Vec::new();
        let mut moved = false;
        if let Some(leg) = &mut inner.leg {
            moved = leg.poll(now, &mut |way, datagram| ways.push((way, datagram)));
        }
        for (way, datagram) in ways {
            send_message(inner, way, &datagram);
        }
        if moved && let Some(session) = &mut inner.session {
            session.path_changed(now);
        }
        // A session whose leg has no half yet has nobody to talk to.
        if inner.leg.is_none() {
            return;
        }
        let mut out = Letters::default();
        let polled = inner.session.as_mut().map(|session| session.poll(now, &mut out));
        self.post(inner, out.letters, now);
        match polled {
            Some(Ok(changed)) if changed.closed => self.finish(inner, goodbye()),
            Some(Err(fault)) => self.finish(inner, fault),
            Some(Ok(_)) => self.announce(inner),
            None => {}
        }
    }

    /// What came over UDP, or by the link, and is no DATA.
    pub(crate) fn message(&self, message: Message, by: Way) {
        if by != Way::Udp {
            return dropped(DropReason::TunnelMalformed);
        }
        let now = Instant::now();
        let mut inner = self.inner.lock();
        let mut ways = Vec::new();
        let Some(leg) = &mut inner.leg else { return };
        let moved = leg.take(message, now, &mut |way, datagram| ways.push((way, datagram)));
        for (way, datagram) in ways {
            send_message(&inner, way, &datagram);
        }
        if moved {
            self.attached.notify_one();
            if let Some(session) = &mut inner.session {
                session.path_changed(now);
            }
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// Completes when the relay has confirmed this end's address, since the last call. Cancel safe.
    pub async fn attached(&self) {
        self.attached.notified().await;
    }

    /// Takes DATA. `sink` gets the IP packets; `begin` is to be set at the first datagram of a batch.
    pub(crate) fn data<S: Sink>(
        &self,
        inner: &mut Inner,
        begin: bool,
        records: &[u8],
        by: Way,
        now: Instant,
        sink: &mut S,
    ) {
        let Some(session) = &mut inner.session else { return dropped(DropReason::TunnelDown) };
        let mut answers = Answering { sink, out: Vec::new() };
        let begun = if begin { session.begin(now, &mut answers).map(|_| ()) } else { Ok(()) };
        let handled = begun.and_then(|()| session.handle(records, now, &mut answers));
        let out = answers.out;
        self.post(inner, out, now);
        match handled {
            Ok(Handled { changed, genuine, mtu }) => {
                if !genuine {
                    if inner.session.as_ref().is_some_and(Session::is_connected) {
                        dropped(DropReason::TunnelRecord);
                    } else {
                        // A hand-shake's flight has other times than the one before.
                        self.wake.notify_one();
                    }
                    return;
                }
                if by == Way::Udp
                    && let Some(leg) = &mut inner.leg
                {
                    leg.heard(now);
                }
                if changed.closed {
                    self.finish(inner, goodbye());
                } else if changed.connected || mtu {
                    self.announce(inner);
                    self.wake.notify_one();
                }
            }
            Err(fault) => self.finish(inner, fault),
        }
    }

    fn announce(&self, inner: &Inner) {
        let (Some(session), Some(leg)) = (&inner.session, &inner.leg) else { return };
        if !session.is_connected() {
            return;
        }
        self.mtu.store(session.mtu(), Ordering::Relaxed);
        let up = State::Up { mtu: session.mtu(), way: leg.way() };
        self.state.send_if_modified(|state| {
            let news = *state != up;
            if news {
                *state = up;
            }
            news
        });
    }

    /// Sends what the session wants sent, few datagrams, one by one.
    fn post(&self, inner: &mut Inner, out: Vec<Bytes>, now: Instant) {
        let (Some(leg), Some(gate)) = (&mut inner.leg, &inner.gate) else { return };
        let (way, id) = (leg.way(), leg.id());
        for records in out {
            let mut datagram = Vec::with_capacity(HEADER + records.len());
            datagram.push(kind::DATA);
            datagram.extend_from_slice(&id.to_bytes());
            datagram.extend_from_slice(&records);
            leg.sent(now);
            gate.send(way, &datagram, datagram.len());
        }
    }

    /// What DATA leaves by now; `None` while packets do not pass.
    pub(crate) fn way(&self) -> Option<(Arc<Gate>, Way)> {
        let inner = self.inner.lock();
        inner.session.as_ref().filter(|session| session.is_connected())?;
        Some((inner.gate.clone()?, inner.leg.as_ref()?.way()))
    }

    /// The timers' task is woken where it would sleep through what was just sent.
    pub(crate) fn has_sent(&self) {
        if self.asleep.load(Ordering::Relaxed) {
            self.asleep.store(false, Ordering::Relaxed);
            self.wake.notify_one();
        }
    }
}

fn goodbye() -> Fault {
    Fault::new(Code::Ok, "the other end has closed the tunnel")
}

fn send_message(inner: &Inner, way: Way, datagram: &[u8]) {
    if let Some(gate) = &inner.gate {
        gate.send(way, datagram, datagram.len());
    }
}

/// Records of a session's own, to be sent when it is free again.
pub(crate) struct Letters {
    room: Box<[u8; ROOM]>,
    letters: Vec<Bytes>,
}

impl Default for Letters {
    fn default() -> Self {
        Self { room: Box::new([0; ROOM]), letters: Vec::new() }
    }
}

impl Sink for Letters {
    fn room(&mut self) -> &mut [u8] {
        &mut self.room[..]
    }
    fn plaintext(&mut self, _: usize) {}
    fn records(&mut self, length: usize) {
        self.letters.push(Bytes::copy_from_slice(&self.room[..length]));
    }
}

/// Plaintexts to the caller, answers aside.
struct Answering<'a, S> {
    sink: &'a mut S,
    out: Vec<Bytes>,
}

impl<S: Sink> Sink for Answering<'_, S> {
    fn room(&mut self) -> &mut [u8] {
        self.sink.room()
    }
    fn plaintext(&mut self, length: usize) {
        self.sink.plaintext(length);
    }
    fn records(&mut self, length: usize) {
        let records = Bytes::copy_from_slice(&self.sink.room()[..length]);
        self.out.push(records);
    }
}
