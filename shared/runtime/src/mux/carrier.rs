//! What carries frames: bytes of a TLS stream that someone else seals (`Plain`, for links), or records that we seal
//! ourselves (`lane::Records`, for end-to-end sessions).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

/// One connection that frames travel on. Owned by one driver task.
pub trait Carrier: Send + Unpin + 'static {
    /// Reads what is there and appends the opened bytes to `pieces`; returns how many, 0 at the peer's proper end.
    /// An end without the peer's word (close_notify) is `UnexpectedEof`.
    fn poll_read(&mut self, cx: &mut Context<'_>, pieces: &mut Vec<Bytes>) -> Poll<io::Result<usize>>;

    /// Takes one frame, in parts, to be sent with the next flush.
    fn stage(&mut self, parts: &[&[u8]]);

    /// Whether staged bytes wait for `poll_flush`.
    fn is_staged(&self) -> bool;

    /// Writes what is staged.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Lets go of buffers that were not used since the last call; called every ping interval.
    fn trim(&mut self) {}

    /// Says the end (close_notify) and shuts the connection down.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// Frames as they are on a stream that seals by itself.
#[derive(Debug)]
pub struct Plain<IO> {
    io: IO,
    input: BytesMut,
    output: BytesMut,
}

impl<IO> Plain<IO> {
    /// Wraps a stream.
    pub fn new(io: IO) -> Self {
        Self { io, input: BytesMut::new(), output: BytesMut::new() }
    }
}

/// What one read takes at most from a link.
const READ: usize = 64 * 1024;
/// A first read after silence.
const SMALL_READ: usize = 4 * 1024;

impl<IO: AsyncRead + AsyncWrite + Send + Unpin + 'static> Carrier for Plain<IO> {
    fn poll_read(&mut self, cx: &mut Context<'_>, pieces: &mut Vec<Bytes>) -> Poll<io::Result<usize>> {
        if self.input.capacity() == 0 {
            self.input.reserve(SMALL_READ);
        }
        match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input) {
            Poll::Ready(Ok(n)) => {
                let full = self.input.len() == self.input.capacity();
                if n > 0 {
                    pieces.push(self.input.split().freeze());
                    self.input.reserve(if full { READ } else { SMALL_READ });
                }
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => {
                // An idle link holds no buffer.
                self.input = BytesMut::new();
                Poll::Pending
            }
        }
    }

    fn stage(&mut self, parts: &[&[u8]]) {
        for part in parts {
            self.output.extend_from_slice(part);
        }
    }

    fn is_staged(&self) -> bool {
        !self.output.is_empty()
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.output))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(n);
        }
        self.output = BytesMut::new();
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
