//! What the liar can read, kept for a search: every byte of every socket, what its own TLS key opens of it, the
//! streams of links in that, and the plaintext of inner TLS that it ended itself.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::lock;
use crate::tap::{Conversation, KeyLog, Needle, find, open_tls, streams};

type Page = Arc<Mutex<Conversation>>;

/// See the module.
#[derive(Debug)]
pub struct Notes {
    sockets: Mutex<Vec<Page>>,
    plain: Mutex<Vec<(String, Page)>>,
    key_log: PathBuf,
}

impl Notes {
    pub(super) fn new(key_log: &Path) -> Self {
        Self { sockets: Mutex::default(), plain: Mutex::default(), key_log: key_log.to_owned() }
    }

    /// A page for a socket.
    pub(super) fn socket(&self) -> Page {
        let page = Page::default();
        lock(&self.sockets).push(page.clone());
        page
    }

    /// A page for plaintext that came out of a TLS connection that the liar ended.
    pub(super) fn plain(&self, place: &str) -> Page {
        let page = Page::default();
        lock(&self.plain).push((place.to_owned(), page.clone()));
        page
    }

    /// Everything, with where it was seen.
    #[must_use]
    pub fn everything(&self) -> Vec<(String, Vec<u8>)> {
        let mut all = Vec::new();
        let mut add = |place: &str, c: Conversation| {
            all.push((format!("{place}, from the peer"), c.up));
            all.push((format!("{place}, to the peer"), c.down));
        };
        let keys = KeyLog::read(&self.key_log);
        for page in lock(&self.sockets).iter() {
            let raw = lock(page).clone();
            if let Some(opened) = open_tls(&raw, &keys) {
                streams(&opened).into_iter().for_each(|s| add("a link's stream", s));
                add("opened by the relay's key", opened);
            }
            add("on the wire", raw);
        }
        for (place, page) in lock(&self.plain).iter() {
            add(place, lock(page).clone());
        }
        all
    }

    /// Where any of the needles was seen: name of the needle and place.
    #[must_use]
    pub fn search(&self, needles: &[Needle]) -> Vec<(String, String)> {
        let all = self.everything();
        all.iter().flat_map(|(place, seen)| find(needles, seen).into_iter().map(|n| (n, place.clone()))).collect()
    }

    /// The bytes that TLS connections of the peers gave away after the relay's own TLS was opened.
    #[must_use]
    pub fn opened(&self) -> usize {
        self.everything().iter().filter(|(place, _)| place.starts_with("opened")).map(|(_, bytes)| bytes.len()).sum()
    }
}

/// A connection whose bytes are written down; `up` is what is read from it.
pub(super) struct Recorded<IO> {
    io: IO,
    page: Page,
}

impl<IO> Recorded<IO> {
    pub(super) fn new(io: IO, page: Page) -> Self {
        Self { io, page }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Recorded<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        lock(&self.page).up.extend_from_slice(&buf.filled()[before..]);
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Recorded<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = polled {
            lock(&self.page).down.extend_from_slice(&buf[..n]);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
