//! The task that moves a multiplexer's bytes over one carrier: write what there is in batches, read, keep time, end.
//!
//! A link has one such task for its whole life. A session has one a lane, and none while it is suspended. Each carries
//! the epoch it was started in; when the multiplexer's has moved on, the task lets go of its carrier without a word.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::session::Lane;
use hedgerow_shared::wire::message::GoAway;
use tokio::time::Sleep;

use super::{Carrier, INBOX, Inner};
use crate::scope::Scope;

/// Bytes handed to one write: the spike's figures rise up to here.
const BATCH: usize = 512 * 1024;
/// How long the last words (GOAWAY, close_notify) may take.
const CLOSE: Duration = Duration::from_secs(2);

/// Which carrier of which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Post {
    pub(super) lane: Lane,
    pub(super) epoch: u64,
}

/// Why a carrier is no longer driven.
enum End {
    /// Everything is over.
    Over(Fault),
    /// The carrier failed: the end of a link, the suspension of a session.
    Lost(Fault),
    /// Other carriers have taken over, or the multiplexer has ended.
    Relieved,
}

impl From<Fault> for End {
    /// What the machine says of its peer's conduct. Silence is the carrier's fault, anything else the peer's.
    fn from(fault: Fault) -> Self {
        if fault.code == Code::Lost { Self::Lost(fault) } else { Self::Over(fault) }
    }
}

pub(super) async fn run<C: Carrier>(inner: Arc<Inner>, mut carrier: C, post: Post, leftover: Bytes, scope: Scope) {
    let end = {
        let driving = drive(&inner, &mut carrier, post, leftover);
        tokio::select! {
            end = driving => end,
            () = scope.cancelled() => End::Over(Fault::new(Code::Draining, "this end is shutting down")),
        }
    };
    let fault = match end {
        End::Lost(fault) if inner.suspend(post, &fault) => return,
        End::Lost(fault) | End::Over(fault) => fault,
        End::Relieved => return retire(&inner, &mut carrier).await,
    };
    if post.lane > 0 {
        // The first lane has the last word.
        inner.close(fault);
        return retire(&inner, &mut carrier).await;
    }
    let said = say_goodbye(&inner, &mut carrier, &fault).await;
    inner.end(&fault);
    if said {
        linger(&mut carrier).await;
    }
}

/// Runs until the carrier is no longer driven; returns why.
async fn drive<C: Carrier>(inner: &Inner, carrier: &mut C, post: Post, leftover: Bytes) -> End {
    if !leftover.is_empty()
        && let Err(end) = receive(inner, post, &mut vec![leftover])
    {
        return end;
    }
    let mut sleep = Box::pin(tokio::time::sleep_until(inner.start));
    let mut pieces = Vec::new();
    poll_fn(|cx| {
        // One turn, then other tasks of this worker get theirs.
        match turn(inner, carrier, post, sleep.as_mut(), &mut pieces, cx) {
            Ok(true) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Ok(false) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        }
    })
    .await
}

/// One turn: `Ok(true)` when something moved.
fn turn<C: Carrier>(
    inner: &Inner,
    carrier: &mut C,
    post: Post,
    mut sleep: std::pin::Pin<&mut Sleep>,
    pieces: &mut Vec<Bytes>,
    cx: &mut Context<'_>,
) -> Result<bool, End> {
    let mut moved = false;
    let (timeout, inbox_full) = {
        let mut state = inner.state.lock();
        if state.epoch != post.epoch {
            return Err(End::Relieved);
        }
        if let Some(fault) = state.closing.clone() {
            return Err(if post.lane == 0 { End::Over(fault) } else { End::Relieved });
        }
        let now = inner.now();
        if now >= state.mux.poll_timeout() {
            state.mux.handle_timeout(now)?;
        }
        if !carrier.is_staged() {
            let sent = state.mux.transmit_on(post.lane, BATCH, |parts| carrier.stage(parts));
            state.stats.bytes_out += sent as u64;
            inner.pass_on(&mut state);
        }
        state.drivers.insert(post.lane, cx.waker().clone());
        (state.mux.poll_timeout(), state.control.len() >= INBOX)
    };
    if carrier.is_staged() {
        match carrier.poll_flush(cx) {
            Poll::Ready(Ok(())) => moved = true,
            Poll::Ready(Err(error)) => {
                // The peer may have said why before it stopped listening.
                while let Poll::Ready(Ok(1..)) = carrier.poll_read(cx, pieces) {
                    receive(inner, post, pieces)?;
                }
                return Err(inner.lost(&error));
            }
            Poll::Pending => {}
        }
    }
    // A peer whose control messages nobody takes is not read from until someone does.
    if !inbox_full {
        match carrier.poll_read(cx, pieces) {
            Poll::Ready(Ok(0)) => return Err(inner.peer_end(post)),
            Poll::Ready(Ok(_)) => {
                receive(inner, post, pieces)?;
                moved = true;
            }
            Poll::Ready(Err(error)) => return Err(inner.lost(&error)),
            Poll::Pending => {}
        }
    }
    if !moved {
        let deadline = inner.start + timeout;
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        moved = sleep.poll_elapsed(cx).is_ready();
        if moved {
            carrier.trim();
        }
    }
    Ok(moved)
}

fn receive(inner: &Inner, post: Post, pieces: &mut Vec<Bytes>) -> Result<(), End> {
    let mut state = inner.state.lock();
    if state.epoch != post.epoch {
        return Err(End::Relieved);
    }
    let now = inner.now();
    for piece in pieces.drain(..) {
        state.stats.bytes_in += piece.len() as u64;
        state.mux.handle_on(post.lane, piece, now)?;
    }
    inner.pass_on(&mut state);
    // What came on one lane may have made something to send on another.
    for (lane, driver) in &state.drivers {
        if *lane != post.lane {
            driver.wake_by_ref();
        }
    }
    Ok(())
}

/// GOAWAY with the reason, then the carrier's own end; bounded. `false` when the peer is gone already.
async fn say_goodbye<C: Carrier>(inner: &Inner, carrier: &mut C, fault: &Fault) -> bool {
    inner.state.lock().mux.go_away(&GoAway { fault: fault.clone(), return_after_ms: 0, alternatives: Vec::new() });
    let last_words = poll_fn(|cx| {
        loop {
            if !carrier.is_staged() {
                let mut state = inner.state.lock();
                let sent = state.mux.transmit(BATCH, |parts| carrier.stage(parts));
                inner.pass_on(&mut state);
                if sent == 0 {
                    return carrier.poll_close(cx);
                }
            }
            ready!(carrier.poll_flush(cx))?;
        }
    });
    matches!(tokio::time::timeout(CLOSE, last_words).await, Ok(Ok(())))
}

/// Reads on until the peer has closed too: closing with unread bytes would reset the connection, and the reset
/// overtakes the last words.
async fn linger<C: Carrier>(carrier: &mut C) {
    let mut pieces = Vec::new();
    let to_the_end = poll_fn(|cx| {
        while let Ok(1..) = ready!(carrier.poll_read(cx, &mut pieces)) {
            pieces.clear();
        }
        Poll::Ready(())
    });
    // A peer that does not close has had its time.
    let _ = tokio::time::timeout(CLOSE, to_the_end).await;
}

/// Lets go of a carrier that others have taken over from. When everything is over it is closed properly, so that the
/// peer does not take its end for a loss.
async fn retire<C: Carrier>(inner: &Inner, carrier: &mut C) {
    if inner.is_over() {
        let _ = tokio::time::timeout(CLOSE, poll_fn(|cx| carrier.poll_close(cx))).await;
    }
}

fn lost(error: &io::Error) -> Fault {
    let text = match error.kind() {
        io::ErrorKind::UnexpectedEof => "the connection was cut without its proper end".to_owned(),
        io::ErrorKind::InvalidData => format!("the connection carried bytes that do not authenticate: {error}"),
        _ => format!("the connection failed: {error}"),
    };
    Fault::new(Code::Lost, text)
}

impl Inner {
    /// The peer closed properly. Beyond the first lane that says nothing about the session.
    fn peer_end(&self, post: Post) -> End {
        if post.lane > 0 {
            return End::Relieved;
        }
        End::Over(self.told().unwrap_or_else(|| Fault::new(Code::Lost, "the peer closed the connection")))
    }

    /// The carrier failed. A peer that had said that it ends this has ended it; one that drains has not.
    fn lost(&self, error: &io::Error) -> End {
        match self.told() {
            Some(fault) if fault.code != Code::Draining => End::Over(fault),
            Some(_) | None => End::Lost(lost(error)),
        }
    }

    fn told(&self) -> Option<Fault> {
        self.away.borrow().as_ref().map(|away| &away.fault).filter(|fault| fault.code != Code::Ok).cloned()
    }
}

/// `Sleep` without its future's name in the way.
trait Elapsed {
    fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

impl Elapsed for std::pin::Pin<&mut Sleep> {
    fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        std::future::Future::poll(self.as_mut(), cx)
    }
}
