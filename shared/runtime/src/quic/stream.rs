//! One QUIC stream in the application's hands. Either half can end both directions: that is what RESET means on a link.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::wire::frame::{self, Frame};
use parking_lot::Mutex;
use quinn::{ReadError, RecvStream, SendStream, StoppedError, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::inner::Place;
use super::{connection_fault, explained as explained_number, fault_of, is_explained, number};
use crate::scope::Scope;

/// Bytes taken from quinn in one call.
const CHUNK: usize = 64 * 1024;

/// How long the text of a reset may take beyond the reset itself.
const TEXT: Duration = Duration::from_secs(1);

/// The direction the peer sends in.
#[derive(Debug)]
pub struct ReadHalf {
    core: Arc<Core>,
    rest: Bytes,
}

/// The direction we send in.
#[derive(Debug)]
pub struct WriteHalf {
    core: Arc<Core>,
}

/// Both directions, so that each half can end the other. Locks are held for one call of quinn, never across an await.
pub(super) struct Core {
    place: Option<Place>,
    send: Mutex<Send>,
    receive: Mutex<Receive>,
    /// Why both directions ended.
    fault: OnceLock<Fault>,
    /// The peer has reset the stream, and why is on its way.
    waits: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

struct Send {
    stream: SendStream,
    /// What goes out before anything else: OPEN or ANSWER.
    first: Bytes,
    finished: bool,
}

struct Receive {
    stream: RecvStream,
    finished: bool,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QuicStream({:?})", self.send.lock().stream.id())
    }
}

/// The halves of a stream; `first` goes out before anything else.
pub(super) fn halves(place: Place, send: SendStream, receive: RecvStream, first: Bytes) -> (ReadHalf, WriteHalf) {
    let core = Arc::new(Core {
        place: Some(place),
        send: Mutex::new(Send { stream: send, first, finished: false }),
        receive: Mutex::new(Receive { stream: receive, finished: false }),
        fault: OnceLock::new(),
        waits: AtomicBool::new(false),
        reader: AtomicWaker::new(),
        writer: AtomicWaker::new(),
    });
    (ReadHalf { core: core.clone(), rest: Bytes::new() }, WriteHalf { core })
}

impl Send {
    /// Sends `first`, then what there is room for of `bytes`.
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &mut Bytes) -> Poll<Result<(), WriteError>> {
        while !self.first.is_empty() {
            ready!(pin!(self.stream.write_chunks(std::slice::from_mut(&mut self.first))).poll(cx))?;
        }
        if self.finished {
            // Asked for while `first` was still waiting; an error means that the direction has ended already.
            let _ = self.stream.finish();
        }
        if !bytes.is_empty() {
            ready!(pin!(self.stream.write_chunks(std::slice::from_mut(bytes))).poll(cx))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Core {
    /// Ends both directions for a reason of this end's, and says so; the first fault counts.
    fn reset(&self, fault: Fault) {
        let explained = self.fault.get().is_none()
            && self.place.as_ref().is_some_and(|place| place.link().explain(self.id(), &fault));
        let code = if explained { explained_number(fault.code) } else { number(fault.code) };
        self.end_with(fault, code);
    }

    /// Ends both directions for a reason that the peer knows; the first fault counts.
    fn end(&self, fault: Fault) -> Fault {
        let code = number(fault.code);
        self.end_with(fault, code)
    }

    fn end_with(&self, fault: Fault, code: VarInt) -> Fault {
        if self.fault.set(fault).is_ok() {
            // Errors mean that the direction has ended already.
            let _ = self.send.lock().stream.reset(code);
            let _ = self.receive.lock().stream.stop(code);
            self.reader.wake();
            self.writer.wake();
        }
        self.said()
    }

    fn said(&self) -> Fault {
        self.fault.get().cloned().unwrap_or_else(|| Fault::new(Code::Lost, "the stream ended"))
    }

    /// The link's own fault says more than quinn's error.
    fn lost(&self, error: &quinn::ConnectionError) -> Fault {
        let said = self.place.as_ref().and_then(|place| place.link().fault());
        said.unwrap_or_else(|| connection_fault(error))
    }

    fn id(&self) -> u64 {
        VarInt::from(self.send.lock().stream.id()).into_inner()
    }

    /// The peer has reset the stream. `Pending` while the text that explains it is on its way, on another stream: both
    /// wakers are told when it is here, or when it takes too long.
    fn told(self: &Arc<Self>, said: VarInt) -> Poll<Fault> {
        let (code, more) = is_explained(said);
        let bare = fault_of(code, "the peer reset the stream");
        let link = match &self.place {
            Some(place) if more => place.link().clone(),
            _ => return Poll::Ready(self.end(bare)),
        };
        if let Some(fault) = link.explanation(self.id()) {
            return Poll::Ready(self.end(Fault { code: bare.code, ..fault }));
        }
        if !self.waits.swap(true, Ordering::Relaxed) {
            let (core, scope) = (self.clone(), link.scope.clone());
            scope.spawn(async move {
                let text = timeout(TEXT, async {
                    loop {
                        let mut more = pin!(link.explained.notified());
                        more.as_mut().enable();
                        if let Some(fault) = link.explanation(core.id()) {
                            return fault;
                        }
                        more.await;
                    }
                });
                let fault = text.await.map_or_else(|_| bare.clone(), |fault| Fault { code: bare.code, ..fault });
                core.end(fault);
            });
        }
        Poll::Pending
    }

    /// The peer takes no more. When it has said everything, what it said is still to be read: only this direction ends.
    fn stopped(self: &Arc<Self>, code: VarInt) -> Poll<Fault> {
        let fault = fault_of(code, "the peer reset the stream");
        if fault.code == Code::Ok { Poll::Ready(fault) } else { self.told(code) }
    }

    fn write_fault(self: &Arc<Self>, error: WriteError) -> Poll<Fault> {
        Poll::Ready(match error {
            WriteError::Stopped(code) => return self.stopped(code),
            WriteError::ConnectionLost(error) => self.end(self.lost(&error)),
            WriteError::ClosedStream if self.fault.get().is_none() => {
                Fault::new(Code::Protocol, "the stream was finished")
            }
            WriteError::ClosedStream | WriteError::ZeroRttRejected => self.said(),
        })
    }

    /// What ended both directions, or that the reason is on its way; the caller's waker is registered already.
    fn over(&self) -> Option<Poll<Fault>> {
        match self.fault.get() {
            Some(fault) => Some(Poll::Ready(fault.clone())),
            None => self.waits.load(Ordering::Relaxed).then_some(Poll::Pending),
        }
    }

    fn poll_chunk(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Fault>> {
        self.reader.register(cx.waker());
        if let Some(over) = self.over() {
            return over.map(Err);
        }
        let mut receive = self.receive.lock();
        if receive.finished {
            return Poll::Ready(Ok(None));
        }
        let chunk = ready!(pin!(receive.stream.read_chunk(CHUNK, true)).poll(cx));
        if let Ok(None) = chunk {
            receive.finished = true;
        }
        drop(receive);
        Poll::Ready(match chunk {
            Ok(chunk) => Ok(chunk.map(|c| c.bytes)),
            Err(ReadError::Reset(code)) => return self.told(code).map(Err),
            Err(ReadError::ConnectionLost(error)) => Err(self.end(self.lost(&error))),
            // Stopped by `end` between the look at the fault and the lock.
            Err(ReadError::ClosedStream) => Err(self.said()),
            Err(ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected) => {
                Err(self.end(Fault::new(Code::Internal, "a QUIC stream was read wrongly")))
            }
        })
    }

    /// Sends what there is room for; at least one byte.
    fn poll_write(self: &Arc<Self>, cx: &mut Context<'_>, bytes: &mut Bytes) -> Poll<Result<(), Fault>> {
        self.writer.register(cx.waker());
        if let Some(over) = self.over() {
            return over.map(Err);
        }
        let written = ready!(self.send.lock().poll_write(cx, bytes));
        match written {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => self.write_fault(error).map(Err),
        }
    }

    fn finish(&self) {
        let mut send = self.send.lock();
        send.finished = true;
        if send.first.is_empty() {
            let _ = send.stream.finish();
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        if self.fault.get().is_some() {
            return;
        }
        let send = self.send.get_mut();
        // An end that has said everything wants no more, and nothing is wrong.
        let code = number(if send.finished { Code::Ok } else { Code::Lost });
        let receive = self.receive.get_mut();
        if !receive.finished {
            let _ = receive.stream.stop(code);
        }
        if !send.finished {
            let _ = send.stream.reset(code);
            return;
        }
        // What was finished is still on its way: the link does not close before it has arrived.
        let stopped = send.stream.stopped();
        place.linger(async move {
            let _ = stopped.await;
        });
    }
}

impl ReadHalf {
    /// The next frame of a stream that has just been opened; what follows it stays. Cancel safe only in that nothing
    /// is leaked: bytes may be lost.
    pub(super) async fn read_frame(&mut self) -> Result<Frame, Fault> {
        let mut input = BytesMut::new();
        loop {
            let first = frame::take_first(&mut input).map_err(|e| Fault::new(Code::Protocol, e.to_string()))?;
            if let Some(frame) = first {
                self.rest = input.freeze();
                return Ok(frame);
            }
            match self.read_chunk().await? {
                Some(chunk) => input.extend_from_slice(&chunk),
                None => return Err(Fault::new(Code::Protocol, "a stream ended before it began")),
            }
        }
    }

    /// The next bytes; `None` at the peer's FIN. Cancel safe.
    ///
    /// # Errors
    /// Why the stream was reset.
    pub async fn read_chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Fault>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.rest))));
        }
        self.core.poll_chunk(cx)
    }

    /// Ends both directions at once.
    pub fn reset(&mut self, fault: Fault) {
        self.core.reset(fault);
    }
}

impl WriteHalf {
    /// Ends both directions at once, for a reason that the peer gave.
    pub(super) fn end(&mut self, fault: Fault) {
        self.core.end(fault);
    }

    /// Sends OPEN, which waits since `halves`. Cancel safe.
    pub(super) async fn send_first(&self) -> Result<(), Fault> {
        poll_fn(|cx| self.core.poll_write(cx, &mut Bytes::new())).await
    }

    /// Sends ANSWER, which must not wait for the application to write: what does not leave at once, a task of `scope`
    /// sends when there is room.
    pub(super) fn answer(&self, frame: Bytes, scope: &Scope) {
        self.core.send.lock().first = frame;
        let core = self.core.clone();
        let at_once = core.poll_write(&mut Context::from_waker(std::task::Waker::noop()), &mut Bytes::new());
        if at_once.is_pending() {
            scope.spawn(async move {
                // The stream's own end tells of errors.
                let _ = poll_fn(|cx| core.poll_write(cx, &mut Bytes::new())).await;
                core.writer.wake();
            });
        }
    }

    /// Sends bytes, waiting for room. Not cancel safe: a part may have been sent.
    ///
    /// # Errors
    /// Why the stream has ended.
    pub async fn write_chunk(&mut self, mut bytes: Bytes) -> Result<(), Fault> {
        while !bytes.is_empty() {
            poll_fn(|cx| self.core.poll_write(cx, &mut bytes)).await?;
        }
        Ok(())
    }

    /// Completes when the stream was reset by either end or the connection ended. Cancel safe.
    pub async fn ended(&self) -> Fault {
        let core = &self.core;
        let stopped = core.send.lock().stream.stopped();
        let mut stopped = pin!(stopped);
        let mut open = true;
        poll_fn(|cx| {
            core.writer.register(cx.waker());
            if let Some(over) = core.over() {
                return over;
            }
            if open && let Poll::Ready(end) = stopped.as_mut().poll(cx) {
                open = false;
                match end {
                    Ok(Some(code)) => return core.stopped(code),
                    Err(StoppedError::ConnectionLost(error)) => return Poll::Ready(core.end(core.lost(&error))),
                    // Everything has arrived: from here on only a reset of the other direction can end it.
                    Ok(None) | Err(StoppedError::ZeroRttRejected) => {}
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Ends our direction after what was written.
    pub fn finish(&mut self) {
        self.core.finish();
    }

    /// Ends both directions at once.
    pub fn reset(&mut self, fault: Fault) {
        self.core.reset(fault);
    }
}

fn as_io(fault: Fault) -> io::Error {
    let kind = match fault.code {
        Code::TimedOut => io::ErrorKind::TimedOut,
        Code::ConnectionReset => io::ErrorKind::ConnectionReset,
        Code::ConnectionRefused => io::ErrorKind::ConnectionRefused,
        _ => io::ErrorKind::ConnectionAborted,
    };
    io::Error::new(kind, fault)
}

impl AsyncRead for ReadHalf {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            let Some(chunk) = ready!(self.core.poll_chunk(cx)).map_err(as_io)? else {
                return Poll::Ready(Ok(()));
            };
            self.rest = chunk;
        }
        let n = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..n]);
        self.rest.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WriteHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut bytes = Bytes::copy_from_slice(&buf[..buf.len().min(CHUNK)]);
        let whole = bytes.len();
        ready!(self.core.poll_write(cx, &mut bytes)).map_err(as_io)?;
        Poll::Ready(Ok(whole - bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}
