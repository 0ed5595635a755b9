//! The record layer of end-to-end sessions (RFC 8446 section 5): batches of frames sealed into one buffer and written
//! at once, records opened in place where they were read. Handles key update, alerts and the end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use hedgerow_shared::wire::frame::MAX_FRAME;
use rustls::ConnectionTrafficSecrets;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use super::keys::{RecordKey, TAG};
use crate::mux::Carrier;

const HEADER: usize = 5;
const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;
const APPLICATION: u8 = 23;
const KEY_UPDATE: u8 = 24;
const NEW_SESSION_TICKET: u8 = 4;
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// The largest sealed record a peer may send: 2^14 bytes and 256 for type, padding and tag.
const MAX_SEALED: usize = (1 << 14) + 256;
/// What one read takes at most: as much as the kernel has, so that frames of one stream are handed on together.
const LARGE_READ: usize = 512 * 1024;
/// A read after silence.
const SMALL_READ: usize = 18 * 1024;
/// Key updates in a row without data between them that a peer may send (RFC 8446 leaves the bound to us).
const MAX_KEY_UPDATES: u32 = 32;

/// Gives the next traffic secrets, in either direction.
pub(super) trait Rekey: Send {
    /// For sending.
    fn next_tx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error>;
    /// For receiving.
    fn next_rx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error>;
}

/// See the module.
pub struct Records<IO> {
    io: IO,
    rekey: Box<dyn Rekey>,
    seal: RecordKey,
    open: RecordKey,

    /// Sealed records, ended ones that are not sealed yet, and the one being filled.
    output: BytesMut,
    /// Everything below is sealed.
    sealed: usize,
    /// Where the record being filled begins (its header).
    filling: Option<usize>,
    written: usize,

    input: BytesMut,
    read_large: bool,
    key_updates: u32,
    /// The peer asked for a key update of ours.
    rekey_due: bool,
    ended: bool,
    close_sent: bool,
    used: bool,
}

impl<IO> Records<IO> {
    /// `tx` and `rx` are the secrets of the finished hand-shake, `input` what was read beyond it.
    pub(super) fn new(
        io: IO,
        rekey: Box<dyn Rekey>,
        tx: (u64, ConnectionTrafficSecrets),
        rx: (u64, ConnectionTrafficSecrets),
        input: BytesMut,
    ) -> io::Result<Self> {
        Ok(Self {
            io,
            rekey,
            seal: RecordKey::new(tx.0, tx.1)?,
            open: RecordKey::new(rx.0, rx.1)?,
            output: BytesMut::new(),
            sealed: 0,
            filling: None,
            written: 0,
            input,
            read_large: false,
            key_updates: 0,
            rekey_due: false,
            ended: false,
            close_sent: false,
            used: false,
        })
    }

    #[cfg(test)]
    pub(super) fn wear_out(&mut self) {
        self.seal.wear_out();
    }

    // ---- sending ---------------------------------------------------------------------------------------------------

    fn begin_record(&mut self) -> usize {
        if let Some(at) = self.filling {
            return at;
        }
        let at = self.output.len();
        self.output.reserve(HEADER + MAX_FRAME + 1 + TAG);
        self.output.extend_from_slice(&[APPLICATION, 3, 3, 0, 0]);
        self.filling = Some(at);
        at
    }

    /// Ends the record being filled, as content of type `kind`, with room for its tag. Sealing comes with the flush,
    /// when nobody waits for the multiplexer's lock.
    fn end_record(&mut self, kind: u8) {
        let Some(at) = self.filling.take() else { return };
        self.output.extend_from_slice(&[kind]);
        self.output.extend_from_slice(&[0; TAG]);
        // `stage` keeps a record within MAX_FRAME, so its length fits.
        let length = u16::try_from(self.output.len() - at - HEADER).unwrap_or(u16::MAX);
        self.output[at + 3..at + HEADER].copy_from_slice(&length.to_be_bytes());
    }

    /// Seals every ended record that is not sealed yet, in place.
    fn seal_ended(&mut self) -> io::Result<()> {
        let end = self.filling.unwrap_or(self.output.len());
        while self.sealed < end {
            let at = self.sealed;
            let header: [u8; HEADER] = self.output[at..at + HEADER].try_into().map_err(io::Error::other)?;
            let next = at + HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
            let tag = self.seal.seal(header, &mut self.output[at + HEADER..next - TAG])?;
            self.output[next - TAG..next].copy_from_slice(&tag);
            self.sealed = next;
        }
        Ok(())
    }

    /// Seals what was staged and, when due, replaces our key (RFC 8446 section 4.6.3).
    fn finish_batch(&mut self) -> io::Result<()> {
        self.end_record(APPLICATION);
        self.seal_ended()?;
        if self.seal.is_worn() || std::mem::take(&mut self.rekey_due) {
            self.begin_record();
            self.output.extend_from_slice(&[KEY_UPDATE, 0, 0, 1, 0]);
            self.end_record(HANDSHAKE);
            self.seal_ended()?;
            let (sequence, secrets) = self.rekey.next_tx().map_err(io::Error::other)?;
            self.seal = RecordKey::new(sequence, secrets)?;
        }
        Ok(())
    }

    // ---- receiving -------------------------------------------------------------------------------------------------

    /// Opens every whole record in the input; returns the bytes of application data.
    fn open_records(&mut self, pieces: &mut Vec<Bytes>) -> io::Result<usize> {
        let mut total = 0;
        while !self.ended {
            let Some(header) = self.input.first_chunk::<HEADER>().copied() else { break };
            let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
            if header[0] != APPLICATION || header[1] != 3 || length > MAX_SEALED || length <= TAG {
                return Err(bad("bytes that are not a record of this session"));
            }
            if self.input.len() < HEADER + length {
                break;
            }
            let mut record = self.input.split_to(HEADER + length);
            let plain = self.open.open(header, &mut record[HEADER..])?;
            let content = &record[HEADER..HEADER + plain];
            let Some(end) = content.iter().rposition(|b| *b != 0) else { return Err(bad("a record without content")) };
            let kind = content[end];
            match kind {
                APPLICATION if end > 0 => {
                    self.key_updates = 0;
                    total += end;
                    pieces.push(record.freeze().slice(HEADER..HEADER + end));
                }
                APPLICATION => {}
                HANDSHAKE => {
                    let message = record.split().freeze().slice(HEADER..HEADER + end);
                    self.post_handshake(&message)?;
                }
                ALERT if content[..end] == CLOSE_NOTIFY => self.ended = true,
                ALERT => return Err(bad("the peer ended the session with a TLS alert")),
                _ => return Err(bad("a record of unknown content")),
            }
        }
        Ok(total)
    }

    fn post_handshake(&mut self, mut messages: &[u8]) -> io::Result<()> {
        while !messages.is_empty() {
            let [kind, a, b, c, rest @ ..] = messages else { return Err(bad("a truncated hand-shake message")) };
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let (body, rest) =
                rest.split_at_checked(length).ok_or_else(|| bad("a hand-shake message over several records"))?;
            messages = rest;
            match (*kind, body) {
                (KEY_UPDATE, [request @ (0 | 1)]) => {
                    self.key_updates += 1;
                    if self.key_updates > MAX_KEY_UPDATES {
                        return Err(bad("key updates without data"));
                    }
                    if !messages.is_empty() {
                        return Err(bad("a message after a key update in the same record"));
                    }
                    let (sequence, secrets) = self.rekey.next_rx().map_err(io::Error::other)?;
                    self.open = RecordKey::new(sequence, secrets)?;
                    self.rekey_due |= *request == 1;
                }
                (NEW_SESSION_TICKET, _) => {}
                _ => return Err(bad("a hand-shake message that does not belong after the hand-shake")),
            }
        }
        Ok(())
    }
}

fn bad(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl<IO: AsyncRead + AsyncWrite + Send + Unpin + 'static> Carrier for Records<IO> {
    fn poll_read(&mut self, cx: &mut Context<'_>, pieces: &mut Vec<Bytes>) -> Poll<io::Result<usize>> {
        loop {
            let opened = self.open_records(pieces)?;
            if opened > 0 || self.ended {
                return Poll::Ready(Ok(opened));
            }
            let wanted = if self.read_large { LARGE_READ } else { SMALL_READ };
            if self.input.capacity() - self.input.len() < wanted / 2 {
                self.input.reserve(wanted);
            }
            let spare = self.input.capacity() - self.input.len();
            let n = match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input) {
                Poll::Ready(result) => result?,
                Poll::Pending => return Poll::Pending,
            };
            if n == 0 {
                // A lane that ends without close_notify was cut: never the end of a stream.
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.used = true;
            self.read_large = n >= SMALL_READ / 2 && (n * 4 >= spare || self.read_large);
        }
    }

    fn stage(&mut self, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|p| p.len()).sum();
        if self.filling.is_some_and(|at| self.output.len() - at - HEADER + length > MAX_FRAME) {
            self.end_record(APPLICATION);
        }
        self.begin_record();
        for part in parts {
            self.output.extend_from_slice(part);
        }
        self.used = true;
    }

    fn is_staged(&self) -> bool {
        !self.output.is_empty() || self.rekey_due
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.filling.is_some() || self.rekey_due || self.sealed < self.output.len() {
            self.finish_batch()?;
        }
        while self.written < self.output.len() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.output[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
        }
        self.output.clear();
        self.written = 0;
        self.sealed = 0;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn trim(&mut self) {
        if std::mem::take(&mut self.used) {
            return;
        }
        if self.output.is_empty() {
            self.output = BytesMut::new();
        }
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.close_sent, true) {
            self.finish_batch()?;
            self.begin_record();
            self.output.extend_from_slice(&CLOSE_NOTIFY);
            self.end_record(ALERT);
        }
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
