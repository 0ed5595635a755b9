//! One stream of a link or session in the application's hands, whichever carries it.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hedgerow_shared::fault::Fault;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::mux;
use crate::quic;

/// Both directions of a stream. Dropping it resets what is not finished.
#[derive(Debug)]
pub struct Stream {
    read: ReadHalf,
    write: WriteHalf,
}

/// The direction the peer sends in.
#[derive(Debug)]
pub enum ReadHalf {
    /// Our multiplexer, over TLS.
    Framed(mux::ReadHalf),
    /// QUIC.
    Quic(quic::ReadHalf),
}

/// The direction we send in.
#[derive(Debug)]
pub enum WriteHalf {
    /// Our multiplexer, over TLS.
    Framed(mux::WriteHalf),
    /// QUIC.
    Quic(quic::WriteHalf),
}

impl From<(mux::ReadHalf, mux::WriteHalf)> for Stream {
    fn from((read, write): (mux::ReadHalf, mux::WriteHalf)) -> Self {
        Self { read: ReadHalf::Framed(read), write: WriteHalf::Framed(write) }
    }
}

impl From<(quic::ReadHalf, quic::WriteHalf)> for Stream {
    fn from((read, write): (quic::ReadHalf, quic::WriteHalf)) -> Self {
        Self { read: ReadHalf::Quic(read), write: WriteHalf::Quic(write) }
    }
}

impl Stream {
    /// The next bytes; `None` at the peer's FINISH. Cancel safe.
    ///
    /// # Errors
    /// Why the stream was reset.
    pub async fn read_chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        self.read.read_chunk().await
    }

    /// Sends bytes, waiting for room first. When dropped before completion, a QUIC stream may have sent a part.
    ///
    /// # Errors
    /// Why the stream has ended.
    pub async fn write_chunk(&mut self, bytes: Bytes) -> Result<(), Fault> {
        self.write.write_chunk(bytes).await
    }

    /// Ends our direction after what was written.
    pub fn finish(&mut self) {
        self.write.finish();
    }

    /// Ends both directions at once.
    pub fn reset(&mut self, fault: Fault) {
        self.write.reset(fault);
    }

    /// The two directions, each for a task of its own.
    #[must_use]
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        (self.read, self.write)
    }
}

/// The same call on either kind of half.
macro_rules! each {
    ($either:expr, $half:ident => $call:expr) => {
        match $either {
            Self::Framed($half) => $call,
            Self::Quic($half) => $call,
        }
    };
}

impl ReadHalf {
    /// The next bytes; `None` at the peer's FINISH. Cancel safe.
    ///
    /// # Errors
    /// Why the stream was reset.
    pub async fn read_chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        each!(self, half => half.read_chunk().await)
    }

    /// Everything that is there, at least one chunk, appended to `out`; `false` at the peer's FINISH. Cancel safe.
    ///
    /// # Errors
    /// Why the stream was reset.
    pub async fn read_chunks(&mut self, out: &mut VecDeque<Bytes>) -> Result<bool, Fault> {
        if let Self::Framed(half) = self {
            return half.read_chunks(out).await;
        }
        let chunk = self.read_chunk().await?;
        let more = chunk.is_some();
        out.extend(chunk);
        Ok(more)
    }

    /// Ends both directions at once.
    pub fn reset(&mut self, fault: Fault) {
        each!(self, half => half.reset(fault))
    }
}

impl WriteHalf {
    /// Sends bytes, waiting for room first. When dropped before completion, a QUIC stream may have sent a part.
    ///
    /// # Errors
    /// Why the stream has ended.
    pub async fn write_chunk(&mut self, bytes: Bytes) -> Result<(), Fault> {
        each!(self, half => half.write_chunk(bytes).await)
    }

    /// Completes when the stream was reset by either end or the link ended; bytes and room do not matter. For tasks
    /// that wait on something else. Cancel safe.
    pub async fn ended(&self) -> Fault {
        each!(self, half => half.ended().await)
    }

    /// Ends our direction after what was written.
    pub fn finish(&mut self) {
        each!(self, half => half.finish())
    }

    /// Ends both directions at once.
    pub fn reset(&mut self, fault: Fault) {
        each!(self, half => half.reset(fault))
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), half => Pin::new(half).poll_read(cx, buf))
    }
}

impl AsyncWrite for WriteHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), half => Pin::new(half).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), half => Pin::new(half).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), half => Pin::new(half).poll_shutdown(cx))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(cx)
    }
}
