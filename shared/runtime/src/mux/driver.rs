//! The task that moves a multiplexer's bytes: write what there is in batches, read, keep time, end.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::wire::message::GoAway;
use tokio::time::Sleep;

use super::{Carrier, INBOX, Inner};
use crate::scope::Scope;

/// Bytes handed to one write: the spike's figures rise up to here.
const BATCH: usize = 512 * 1024;
/// Turns before other tasks of this worker get theirs.
const TURNS: usize = 16;
/// How long the last words (GOAWAY, close_notify) may take.
const CLOSE: Duration = Duration::from_secs(2);

pub(super) async fn run<C: Carrier>(inner: Arc<Inner>, mut carrier: C, leftover: Bytes, scope: Scope) {
    let fault = {
        let driving = drive(&inner, &mut carrier, leftover);
        tokio::select! {
            fault = driving => fault,
            () = scope.cancelled() => Fault::new(Code::Draining, "this end is shutting down"),
        }
    };
    let said = say_goodbye(&inner, &mut carrier, &fault).await;
    inner.end(&fault);
    if said {
        linger(&mut carrier).await;
    }
}

/// Runs until the connection is over; returns why.
async fn drive<C: Carrier>(inner: &Inner, carrier: &mut C, leftover: Bytes) -> Fault {
    if !leftover.is_empty()
        && let Err(fault) = receive(inner, &mut vec![leftover])
    {
        return fault;
    }
    let mut sleep = Box::pin(tokio::time::sleep_until(inner.start));
    let mut pieces = Vec::new();
    poll_fn(|cx| {
        for _ in 0..TURNS {
            match turn(inner, carrier, sleep.as_mut(), &mut pieces, cx) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(fault) => return Poll::Ready(fault),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// One turn: `Ok(true)` when something moved.
fn turn<C: Carrier>(
    inner: &Inner,
    carrier: &mut C,
    mut sleep: std::pin::Pin<&mut Sleep>,
    pieces: &mut Vec<Bytes>,
    cx: &mut Context<'_>,
) -> Result<bool, Fault> {
    let mut moved = false;
    let (timeout, inbox_full) = {
        let mut state = inner.state.lock();
        if let Some(fault) = state.closing.clone() {
            return Err(fault);
        }
        let now = inner.now();
        if now >= state.mux.poll_timeout() {
            state.mux.handle_timeout(now)?;
        }
        if !carrier.is_staged() {
            let sent = state.mux.transmit(BATCH, |parts| carrier.stage(parts));
            state.stats.bytes_out += sent as u64;
            inner.pass_on(&mut state);
        }
        state.driver = Some(cx.waker().clone());
        (state.mux.poll_timeout(), state.control.len() >= INBOX)
    };
    if carrier.is_staged() {
        match carrier.poll_flush(cx) {
            Poll::Ready(Ok(())) => moved = true,
            Poll::Ready(Err(error)) => {
                // The peer may have said why before it stopped listening.
                while let Poll::Ready(Ok(1..)) = carrier.poll_read(cx, pieces) {
                    receive(inner, pieces)?;
                }
                return Err(inner.lost(&error));
            }
            Poll::Pending => {}
        }
    }
    // A peer whose control messages nobody takes is not read from until someone does.
    if !inbox_full {
        match carrier.poll_read(cx, pieces) {
            Poll::Ready(Ok(0)) => return Err(inner.peer_end()),
            Poll::Ready(Ok(_)) => {
                receive(inner, pieces)?;
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

fn receive(inner: &Inner, pieces: &mut Vec<Bytes>) -> Result<(), Fault> {
    let mut state = inner.state.lock();
    let now = inner.now();
    for piece in pieces.drain(..) {
        state.stats.bytes_in += piece.len() as u64;
        state.mux.handle(piece, now)?;
    }
    inner.pass_on(&mut state);
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

fn lost(error: &io::Error) -> Fault {
    let text = match error.kind() {
        io::ErrorKind::UnexpectedEof => "the connection was cut without its proper end".to_owned(),
        io::ErrorKind::InvalidData => format!("the connection carried bytes that do not authenticate: {error}"),
        _ => format!("the connection failed: {error}"),
    };
    Fault::new(Code::Lost, text)
}

impl Inner {
    /// Why the peer closed, when it said so.
    fn peer_end(&self) -> Fault {
        self.told().unwrap_or_else(|| Fault::new(Code::Lost, "the peer closed the connection"))
    }

    /// Why the connection failed: what the peer said before, or what the system says.
    fn lost(&self, error: &io::Error) -> Fault {
        self.told().unwrap_or_else(|| lost(error))
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
