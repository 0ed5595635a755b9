//! A byte stream inside the binary messages of a WebSocket (RFC 6455), for networks that open TLS and let nothing but
//! HTTP through. What travels inside is TLS of its own.
//!
//! Both ends use it: the dialler after its request for `PATH`, the relay after its answer 101.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self};

/// What a dialler asks the relay for.
pub const PATH: &str = "/hedgerow-link";
/// The subprotocol, so that nothing else is taken for it.
pub const PROTOCOL: &str = "hedgerow-link.1";
/// The most that one message carries, bytes: a TLS record and its header fit.
const MAX_SENT: usize = 16 * 1024 + 512;
/// The largest message taken, bytes.
const MAX_TAKEN: usize = 64 * 1024;

/// The value of `Sec-WebSocket-Accept` for a request's key.
#[must_use]
pub fn accept_key(key: &[u8]) -> String {
    tungstenite::handshake::derive_accept_key(key)
}

/// The bounds of every WebSocket here.
pub(crate) fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(32 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * MAX_TAKEN)
        .max_message_size(Some(MAX_TAKEN))
        .max_frame_size(Some(MAX_TAKEN))
}

/// See the module. Pings of the other end are answered; a text message is an error.
#[derive(Debug)]
pub struct ByteStream<IO> {
    socket: WebSocketStream<IO>,
    /// What is left of the message that was read last.
    left: Bytes,
    /// Something was given to the socket since it was last flushed.
    unflushed: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> ByteStream<IO> {
    /// The relay's end, after its answer 101.
    pub async fn accepted(io: IO) -> Self {
        Self::new(WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await)
    }

    pub(crate) fn new(socket: WebSocketStream<IO>) -> Self {
        Self { socket, left: Bytes::new(), unflushed: false }
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unflushed {
            ready!(Pin::new(&mut self.socket).poll_flush(cx)).map_err(failed)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

fn failed(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for ByteStream<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Whoever waits for an answer wants the question to be on its way.
        if let Poll::Ready(Err(error)) = self.flush(cx) {
            return Poll::Ready(Err(error));
        }
        while self.left.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.left = bytes,
                // The library answers pings and the closing hand-shake when it is polled again.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a text message in the link")));
                }
                Some(Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed)) | None => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
            }
        }
        let length = self.left.len().min(buf.remaining());
        buf.put_slice(&self.left[..length]);
        self.left.advance(length);
        if self.left.is_empty() {
            self.left = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ByteStream<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // One message at most waits in the library: what the socket does not take stops the writer here.
        ready!(self.flush(cx))?;
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(failed)?;
        let length = bytes.len().min(MAX_SENT);
        let message = Message::Binary(Bytes::copy_from_slice(&bytes[..length]));
        Pin::new(&mut self.socket).start_send(message).map_err(failed)?;
        self.unflushed = true;
        if let Poll::Ready(Err(error)) = self.flush(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.flush(cx))?;
        match ready!(Pin::new(&mut self.socket).poll_close(cx)) {
            Ok(()) | Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) => {
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(failed(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::SinkExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_of_any_number_go_both_ways_and_pings_are_no_bytes() {
        let (a, b) = tokio::io::duplex(10_000);
        let mut dialler = ByteStream::new(WebSocketStream::from_raw_socket(a, Role::Client, Some(config())).await);
        let mut relay = ByteStream::accepted(b).await;
        let sent: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let write = async {
            dialler.socket.send(Message::Ping(Bytes::from_static(b"?"))).await.unwrap();
            dialler.write_all(&sent).await.unwrap();
            let mut back = [0; 5];
            dialler.read_exact(&mut back).await.unwrap();
            dialler.shutdown().await.unwrap();
            back
        };
        let read = async {
            let mut got = vec![0; sent.len()];
            relay.read_exact(&mut got).await.unwrap();
            relay.write_all(b"taken").await.unwrap();
            assert_eq!(relay.read(&mut [0; 8]).await.unwrap(), 0, "the end is seen");
            got
        };
        let (back, got) = tokio::join!(write, read);
        assert_eq!((&back, got == sent), (b"taken", true));
    }

    #[tokio::test]
    async fn a_text_or_an_oversize_message_ends_it() {
        for message in [Message::text("hello"), Message::Binary(vec![0; MAX_TAKEN + 1].into())] {
            let (a, b) = tokio::io::duplex(2 * MAX_TAKEN);
            let mut stranger = WebSocketStream::from_raw_socket(a, Role::Client, None).await;
            stranger.send(message).await.unwrap();
            let mut relay = ByteStream::accepted(b).await;
            let error = relay.read(&mut [0; 8]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
    }
}
