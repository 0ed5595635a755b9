//! The two directions of a stream: chunks without copies, and the usual traits for those who want them.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::session::{Read, Room};
use hedgerow_shared::wire::frame::StreamId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Inner;

/// Chunks taken from the machine in one call.
const CHUNKS: usize = 64;

/// The direction the peer sends in.
#[derive(Debug)]
pub struct ReadHalf {
    core: Arc<Core>,
    ready: VecDeque<Bytes>,
}

/// The direction we send in.
#[derive(Debug)]
pub struct WriteHalf {
    core: Arc<Core>,
}

/// Lets go of the stream when the last half is dropped.
struct Core {
    inner: Arc<Inner>,
    id: StreamId,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.id)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.inner.with(|mux, _| mux.release(self.id));
        self.inner.state.lock().wakers.remove(&self.id);
    }
}

/// Both directions; when the last is dropped, what is not finished is reset.
pub(super) fn halves(inner: Arc<Inner>, id: StreamId) -> (ReadHalf, WriteHalf) {
    let core = Arc::new(Core { inner, id });
    (ReadHalf { core: core.clone(), ready: VecDeque::new() }, WriteHalf { core })
}

impl ReadHalf {
    /// The next bytes; `None` at the peer's FINISH. Cancel safe.
    ///
    /// # Errors
    /// Why the stream was reset.
    pub async fn read_chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// Everything that is there, at least one chunk, appended to `out`; `false` at the peer's FINISH. Cancel safe.
    ///
    /// # Errors
    /// Why the stream was reset.
    pub async fn read_chunks(&mut self, out: &mut VecDeque<Bytes>) -> Result<bool, Fault> {
        if !self.ready.is_empty() {
            out.append(&mut self.ready);
            return Ok(true);
        }
        poll_fn(|cx| self.poll_take(cx, out)).await
    }

    /// As `read_chunk`.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Fault>> {
        if self.ready.is_empty() {
            let mut ready = std::mem::take(&mut self.ready);
            let more = self.poll_take(cx, &mut ready);
            self.ready = ready;
            if !ready!(more)? {
                return Poll::Ready(Ok(None));
            }
        }
        Poll::Ready(Ok(self.ready.pop_front()))
    }

    fn poll_take(&self, cx: &mut Context<'_>, out: &mut VecDeque<Bytes>) -> Poll<Result<bool, Fault>> {
        let inner = &self.core.inner;
        let mut state = inner.state.lock();
        let read = state.mux.read(self.core.id, CHUNKS, out, inner.now());
        match read {
            Read::Data => {
                // Reading may have made a WINDOW due.
                if !state.mux.is_flushed() || state.mux.grants() {
                    state.wake_drivers();
                }
                Poll::Ready(Ok(true))
            }
            Read::Finished => Poll::Ready(Ok(false)),
            Read::Reset(fault) => Poll::Ready(Err(fault)),
            Read::Blocked => {
                state.wakers.entry(self.core.id).or_default().read = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Ends both directions at once.
    pub fn reset(&mut self, fault: Fault) {
        self.core.inner.with(|mux, _| mux.reset(self.core.id, fault));
    }
}

impl WriteHalf {
    /// Sends bytes, waiting for room first. Cancel safe: nothing is sent when dropped before completion.
    ///
    /// # Errors
    /// Why the stream has ended.
    pub async fn write_chunk(&mut self, bytes: Bytes) -> Result<(), Fault> {
        poll_fn(|cx| self.poll_room(cx)).await?;
        self.core.inner.with(|mux, _| mux.write(self.core.id, bytes));
        Ok(())
    }

    /// Waits until the stream takes bytes. Cancel safe.
    ///
    /// # Errors
    /// Why the stream has ended.
    pub async fn room(&mut self) -> Result<(), Fault> {
        poll_fn(|cx| self.poll_room(cx)).await
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let mut state = self.core.inner.state.lock();
        match state.mux.room(self.core.id) {
            Room::Some => Poll::Ready(Ok(())),
            Room::Ended(fault) => Poll::Ready(Err(fault)),
            Room::Full => {
                state.wakers.entry(self.core.id).or_default().write = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Completes when the stream was reset by either end or the connection ended; bytes and room do not matter. For
    /// tasks that wait on something else. Cancel safe.
    pub async fn ended(&self) -> Fault {
        poll_fn(|cx| {
            let mut state = self.core.inner.state.lock();
            if let Some(fault) = state.mux.reset_of(self.core.id) {
                return Poll::Ready(fault);
            }
            state.wakers.entry(self.core.id).or_default().write = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Ends our direction after what was written.
    pub fn finish(&mut self) {
        self.core.inner.with(|mux, _| mux.finish(self.core.id));
    }

    /// Ends both directions at once.
    pub fn reset(&mut self, fault: Fault) {
        self.core.inner.with(|mux, _| mux.reset(self.core.id, fault));
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
        let Some(mut chunk) = ready!(self.poll_chunk(cx)).map_err(as_io)? else { return Poll::Ready(Ok(())) };
        let n = chunk.len().min(buf.remaining());
        buf.put_slice(&chunk[..n]);
        chunk.advance(n);
        if !chunk.is_empty() {
            self.ready.push_front(chunk);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WriteHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        const MOST: usize = 64 * 1024;
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.poll_room(cx)).map_err(as_io)?;
        let bytes = Bytes::copy_from_slice(&buf[..buf.len().min(MOST)]);
        let n = bytes.len();
        self.core.inner.with(|mux, _| mux.write(self.core.id, bytes));
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}
