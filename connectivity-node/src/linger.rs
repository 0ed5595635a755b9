//! A stream of a link as carrier of a session: what was written before the end still arrives.
//!
//! Dropping a stream resets it at once, and with it the session's last word ("revoked", "too many"). So it is held a
//! little longer, until the other end has let go too.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hedgerow_runtime::mux::Stream;
use hedgerow_runtime::scope::Scope;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

/// How long the other end may take to let go.
const LINGER: Duration = Duration::from_secs(5);

/// See the module.
pub(crate) struct Linger {
    stream: Option<Stream>,
    scope: Scope,
}

impl Linger {
    pub(crate) fn new(stream: Stream, scope: Scope) -> Self {
        Self { stream: Some(stream), scope }
    }

    fn stream(&mut self) -> Pin<&mut Stream> {
        Pin::new(self.stream.as_mut().expect("taken only in drop"))
    }
}

impl Drop for Linger {
    fn drop(&mut self) {
        let Some(mut stream) = self.stream.take() else { return };
        stream.finish();
        self.scope.spawn(async move {
            // Nobody reads any more; what comes is thrown away until the end.
            let _ = timeout(LINGER, async { while let Ok(Some(_)) = stream.read_chunk().await {} }).await;
        });
    }
}

impl AsyncRead for Linger {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buf)
    }
}

impl AsyncWrite for Linger {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}
