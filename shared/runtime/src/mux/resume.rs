//! A session that outlives its lanes. When one is lost all are let go of, and the session is suspended: its streams
//! wait, nothing is lost. Whoever makes a new lane takes a `Turn` (which also lets go of lanes that still stand), sends
//! what it says, and goes on with the peer's answer. A session that nobody resumes in time ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::session::MAX_LANES;
use hedgerow_shared::wire::message::Resume;

use super::driver::{self, Post};
use super::{Carrier, Inner, Mux};
use crate::scope::Scope;

/// One attempt to resume. A later one makes it void.
#[derive(Debug)]
pub struct Turn {
    /// Where this end stands: for the peer.
    pub resume: Resume,
    epoch: u64,
}

impl Mux {
    /// Lets go of every lane and says where this end stands.
    ///
    /// # Errors
    /// Why the session has ended.
    pub fn begin_resume(&self) -> Result<Turn, Fault> {
        let inner = &self.inner;
        if let Some(fault) = inner.closed.borrow().clone() {
            return Err(fault);
        }
        let mut state = inner.state.lock();
        let Some(limit) = state.resume_limit else {
            return Err(Fault::new(Code::Internal, "this connection cannot be resumed"));
        };
        if let Some(fault) = state.closing.clone() {
            return Err(fault);
        }
        state.epoch += 1;
        let epoch = state.epoch;
        state.mux.suspend(inner.now());
        inner.pass_on(&mut state);
        let resume = state.mux.resumption();
        let drivers = std::mem::take(&mut state.drivers);
        drop(state);
        drivers.into_values().for_each(std::task::Waker::wake);
        inner.note_suspended(&Fault::new(Code::Lost, "moving to another lane"), limit);
        if let Some(fault) = inner.end_if_asked() {
            return Err(fault);
        }
        Ok(Turn { resume, epoch })
    }

    /// Goes on over a new first lane. `leftover` is what was read beyond the peer's RESUME.
    ///
    /// # Errors
    /// The session has ended, another attempt has begun, or the peer claims what cannot be (which ends the session).
    pub fn resume<C: Carrier>(
        &self,
        turn: &Turn,
        carrier: C,
        theirs: &Resume,
        leftover: Bytes,
        scope: &Scope,
    ) -> Result<(), Fault> {
        let inner = &self.inner;
        let mut state = inner.state.lock();
        if state.epoch != turn.epoch || state.closing.is_some() {
            return Err(Fault::new(Code::Displaced, "another attempt to resume the session has begun"));
        }
        if let Err(fault) = state.mux.resume(theirs, inner.now()) {
            drop(state);
            inner.end(&fault);
            return Err(fault);
        }
        inner.pass_on(&mut state);
        state.stats.resumed += 1;
        drop(state);
        inner.suspended.send_replace(None);
        let post = Post { lane: 0, epoch: turn.epoch };
        scope.spawn_until_done(driver::run(inner.clone(), carrier, post, leftover, scope.clone()));
        Ok(())
    }

    /// Adds a lane for streams that have proved to be long. Both ends attach in the same order.
    ///
    /// # Errors
    /// The session is suspended or over, or has as many lanes as it may.
    pub fn attach<C: Carrier>(&self, carrier: C, leftover: Bytes, scope: &Scope) -> Result<(), Fault> {
        let inner = &self.inner;
        let post = {
            let mut state = inner.state.lock();
            if state.closing.is_some() || inner.ended() || inner.suspended.borrow().is_some() {
                return Err(Fault::new(Code::Lost, "the session has no lane to add another to"));
            }
            let lane = state.mux.attach(inner.now());
            let lane = lane.ok_or_else(|| Fault::new(Code::Limited, "the session has as many lanes as it may"))?;
            Post { lane, epoch: state.epoch }
        };
        scope.spawn_until_done(driver::run(inner.clone(), carrier, post, leftover, scope.clone()));
        inner.wake_drivers();
        Ok(())
    }

    /// Whether the session waits for a new lane.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.inner.suspended.borrow().is_some()
    }

    /// Completes when the session is suspended, with the reason; `None` when it has ended. Cancel safe.
    pub async fn suspended(&self) -> Option<Fault> {
        let mut suspended = self.inner.suspended.subscribe();
        let lost = async { suspended.wait_for(Option::is_some).await.ok().and_then(|f| f.clone()) };
        tokio::select! {
            biased;
            _ = self.closed() => None,
            fault = lost => fault,
        }
    }

    /// Completes when the session is carried (again), or has ended. Cancel safe.
    pub async fn carried(&self) {
        let mut suspended = self.inner.suspended.subscribe();
        tokio::select! {
            _ = self.closed() => {}
            _ = suspended.wait_for(Option::is_none) => {}
        }
    }

    /// Asks the peer for a sign of life on every lane: the network below may have changed.
    pub fn probe(&self) {
        let inner = &self.inner;
        inner.state.lock().mux.probe(inner.now());
        inner.wake_drivers();
    }

    /// Whether another lane would help: a long stream is not alone and has no lane of its own yet.
    #[must_use]
    pub fn wants_lane(&self) -> bool {
        if self.is_suspended() {
            return false;
        }
        let state = self.inner.state.lock();
        let lanes = state.mux.lanes();
        lanes < MAX_LANES && state.mux.open_streams() > 1 && state.mux.bulk_streams() >= lanes
    }
}

impl Inner {
    /// A carrier is lost. Whether the session waits for another: `false` ends it, or it was relieved anyway.
    pub(super) fn suspend(self: &Arc<Self>, post: Post, fault: &Fault) -> bool {
        let mut state = self.state.lock();
        if state.epoch != post.epoch {
            return true;
        }
        let Some(limit) = state.resume_limit else { return false };
        if state.closing.is_some() {
            return false;
        }
        state.epoch += 1;
        state.mux.suspend(self.now());
        self.pass_on(&mut state);
        let drivers = std::mem::take(&mut state.drivers);
        drop(state);
        drivers.into_values().for_each(std::task::Waker::wake);
        self.note_suspended(fault, limit);
        self.end_if_asked();
        true
    }

    /// The application asked for the end while no driver was there to see to it.
    fn end_if_asked(&self) -> Option<Fault> {
        let fault = self.state.lock().closing.clone()?;
        self.end(&fault);
        Some(fault)
    }

    /// Tells those who can make a new lane, and ends the session when none comes in time.
    fn note_suspended(self: &Arc<Self>, fault: &Fault, limit: Duration) {
        let mut first = false;
        self.suspended.send_if_modified(|s| {
            first = s.is_none();
            s.get_or_insert_with(|| fault.clone());
            first
        });
        if !first {
            return;
        }
        metrics::counter!("hedgerow_session_suspended_total").increment(1);
        let inner = self.clone();
        let mut suspended = self.suspended.subscribe();
        let fault = fault.clone();
        let scope = self.scope.clone();
        self.scope.spawn_until_done(async move {
            let fault = tokio::select! {
                _ = suspended.wait_for(Option::is_none) => return,
                _ = inner.ended_with() => return,
                () = tokio::time::sleep(limit) => {
                    let text = format!("the session was not resumed within {} s: {}", limit.as_secs(), fault.text);
                    Fault::new(Code::Lost, text)
                }
                () = scope.cancelled() => Fault::new(Code::Draining, "this end is shutting down"),
            };
            inner.end(&fault);
        });
    }
}
