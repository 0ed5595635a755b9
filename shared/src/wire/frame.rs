//! The frame table: the wire of links and of end-to-end sessions, on one page.
//!
//! ```text
//!   0       1       2       3       4       5       6       7       8
//!   +-------+-------+---------------+-------------------------------+---------------
//!   | kind  | flags | length (BE)   | stream (BE); 0 = whole link   | payload ...
//!   +-------+-------+---------------+-------------------------------+---------------
//!
//!   kind          payload                                        stream  sent by
//!   hand-shake (links; sessions only HELLO, ACCEPT and RESUME; TLS authenticates them)
//!   0x01 HELLO    CBOR message::Hello                            0       both, first
//!   0x02 PROOF    CBOR message::Proof                            0       both, after HELLO (links)
//!   0x03 ACCEPT   CBOR message::Accept                           0       acceptor
//!   0x04 REFUSE   CBOR message::Refuse, then close               0       acceptor
//!   0x05 RESUME   CBOR message::Resume                           0       both, first after a resumption's HELLO
//!   streams
//!   0x10 OPEN     CBOR header of the stream, at most 2 KiB       n       opener
//!   0x11 ANSWER   CBOR fault::Fault, code Ok when open           n       other end, once
//!   0x12 DATA     u64 offset of the first byte, then bytes       n       both
//!   0x13 WINDOW   u64 delivered, u64 limit (absolute offsets)    n or 0  receiver of the data
//!   0x14 FINISH   u64 offset of the end                          n       sender of the data
//!   0x15 RESET    CBOR fault::Fault; ends both directions        n       both
//!   beside the streams
//!   0x20 CONTROL  u16 kind, CBOR message::Control                0       both
//!   0x21 DATAGRAM bytes; may be dropped                          0       both
//!   0x22 PING     u64 opaque                                     0       both
//!   0x23 PONG     the PING's u64                                 0       both
//!   0x24 GOAWAY   CBOR message::GoAway                           0       both
//! ```
//!
//! Kinds from 0x80 are optional: a reader that does not know one skips it. Any other unknown kind ends the link,
//! by name. Flags are zero when sent and ignored when read. Stream ids: the dialler's are even from 2, the
//! acceptor's odd from 1, each end counting up without gaps (after a resumption, streams that ended before their OPEN
//! could be sent again are left out). Offsets are absolute over the life of a stream (WINDOW on
//! stream 0: over all DATA bytes of the link, in one direction, since HELLO or RESUME). `delivered` acknowledges: the sender may
//! forget bytes below it; once FINISH was seen it is one more than the end. PING asks for a WINDOW on every stream with
//! unacknowledged bytes, before PONG (sessions). Data beyond `limit`, at a gap, or after FINISH ends the link; data below what has been
//! received is dropped (it is a replay after a resumption).
//!
//! Version history: 1 = this page.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::fault::{Code, Fault};

/// The only version so far.
pub const VERSION: u16 = 1;
/// Bytes before the payload.
pub const HEADER: usize = 8;
/// The largest frame, header included: one TLS record.
pub const MAX_FRAME: usize = 16 * 1024;
/// The largest payload.
pub const MAX_PAYLOAD: usize = MAX_FRAME - HEADER;
/// The most stream data in one DATA frame.
pub const MAX_DATA: usize = MAX_PAYLOAD - 8;
/// Kinds from here on are optional.
pub const OPTIONAL_KINDS: u8 = 0x80;

/// Kind bytes, as in the table.
pub mod kind {
    #![allow(missing_docs)]
    pub const HELLO: u8 = 0x01;
    pub const PROOF: u8 = 0x02;
    pub const ACCEPT: u8 = 0x03;
    pub const REFUSE: u8 = 0x04;
    pub const RESUME: u8 = 0x05;
    pub const OPEN: u8 = 0x10;
    pub const ANSWER: u8 = 0x11;
    pub const DATA: u8 = 0x12;
    pub const WINDOW: u8 = 0x13;
    pub const FINISH: u8 = 0x14;
    pub const RESET: u8 = 0x15;
    pub const CONTROL: u8 = 0x20;
    pub const DATAGRAM: u8 = 0x21;
    pub const PING: u8 = 0x22;
    pub const PONG: u8 = 0x23;
    pub const GOAWAY: u8 = 0x24;
}

/// One end's number of a stream; see the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// A frame as read: payloads are slices of the bytes that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// 0x01; CBOR.
    Hello(Bytes),
    /// 0x02; CBOR.
    Proof(Bytes),
    /// 0x03; CBOR.
    Accept(Bytes),
    /// 0x04; CBOR.
    Refuse(Bytes),
    /// 0x05; CBOR.
    Resume(Bytes),
    /// 0x10.
    Open(StreamId, Bytes),
    /// 0x11.
    Answer(StreamId, Fault),
    /// 0x12.
    Data(StreamId, u64, Bytes),
    /// 0x13; `None` = the whole link.
    Window {
        /// Which stream.
        stream: Option<StreamId>,
        /// Bytes that reached their reader.
        delivered: u64,
        /// Offset up to which may be sent.
        limit: u64,
    },
    /// 0x14.
    Finish(StreamId, u64),
    /// 0x15.
    Reset(StreamId, Fault),
    /// 0x20.
    Control(u16, Bytes),
    /// 0x21.
    Datagram(Bytes),
    /// 0x22.
    Ping(u64),
    /// 0x23.
    Pong(u64),
    /// 0x24; CBOR.
    GoAway(Bytes),
    /// Kind from 0x80, unknown to this version.
    Unknown(u8),
}

/// Why bytes are not frames. The link they came on is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length field is beyond `MAX_PAYLOAD`.
    #[error("a frame of kind {kind:#04x} announces {length} bytes, more than {MAX_PAYLOAD}")]
    TooLong {
        /// Its kind.
        kind: u8,
        /// Its announced length.
        length: usize,
    },
    /// A required kind this version does not know.
    #[error("a frame of the required kind {0:#04x}, unknown to version {VERSION}")]
    UnknownRequired(u8),
    /// The payload does not have the form of its kind.
    #[error("a frame of kind {0:#04x} is malformed")]
    Malformed(u8),
    /// A stream frame on stream 0, or a link frame on a stream.
    #[error("a frame of kind {0:#04x} stands on the wrong stream")]
    WrongStream(u8),
}

/// Cuts frames out of bytes that arrive in pieces of any size. Whole frames inside one piece are not copied.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: BytesMut,
}

impl Decoder {
    /// Takes the next piece and calls `each` with every frame that is complete.
    ///
    /// # Errors
    /// The first malformed frame, or what `each` returned; the rest of the bytes is dropped then.
    pub fn feed<E: From<FrameError>>(
        &mut self,
        mut piece: Bytes,
        mut each: impl FnMut(Frame) -> Result<(), E>,
    ) -> Result<(), E> {
        while !self.partial.is_empty() && !piece.is_empty() {
            let need = frame_length(&self.partial)?.unwrap_or(HEADER).saturating_sub(self.partial.len());
            let take = need.min(piece.len());
            self.partial.extend_from_slice(&piece.split_to(take));
            if frame_length(&self.partial)? == Some(self.partial.len()) {
                each(decode(self.partial.split().freeze())?)?;
            }
        }
        while let Some(length) = frame_length(&piece)? {
            if piece.len() < length {
                break;
            }
            each(decode(piece.split_to(length))?)?;
        }
        self.partial.extend_from_slice(&piece);
        Ok(())
    }

    /// Bytes of an incomplete frame held back.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.partial.len()
    }
}

/// Takes one whole frame off the front of `bytes`; `None` when it is not complete yet. For hand-shakes, which read one
/// frame at a time and leave what follows.
///
/// # Errors
/// The frame is malformed.
pub fn take_first(bytes: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    match frame_length(bytes)? {
        Some(length) if bytes.len() >= length => decode(bytes.split_to(length).freeze()).map(Some),
        Some(_) | None => Ok(None),
    }
}

/// Length of the frame that begins here, header included; `None` when the header is incomplete.
fn frame_length(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if length > MAX_PAYLOAD {
        return Err(FrameError::TooLong { kind: header[0], length });
    }
    Ok(Some(HEADER + length))
}

/// Reads one whole frame.
fn decode(mut frame: Bytes) -> Result<Frame, FrameError> {
    let kind = frame[0];
    let stream = u32::from_be_bytes([frame[4], frame[5], frame[6], frame[7]]);
    frame.advance(HEADER);
    let mut payload = frame;
    let malformed = FrameError::Malformed(kind);
    let on_link = |f| if stream == 0 { Ok(f) } else { Err(FrameError::WrongStream(kind)) };
    let id = if stream == 0 { Err(FrameError::WrongStream(kind)) } else { Ok(StreamId(stream)) };
    let word = |p: &mut Bytes| if p.len() < 8 { Err(FrameError::Malformed(kind)) } else { Ok(p.get_u64()) };
    let only_word = |mut p: Bytes| if p.len() == 8 { Ok(p.get_u64()) } else { Err(FrameError::Malformed(kind)) };
    match kind {
        kind::HELLO => on_link(Frame::Hello(payload)),
        kind::PROOF => on_link(Frame::Proof(payload)),
        kind::ACCEPT => on_link(Frame::Accept(payload)),
        kind::REFUSE => on_link(Frame::Refuse(payload)),
        kind::RESUME => on_link(Frame::Resume(payload)),
        kind::OPEN => Ok(Frame::Open(id?, payload)),
        kind::ANSWER => Ok(Frame::Answer(id?, minicbor::decode(&payload).map_err(|_| malformed)?)),
        kind::DATA => {
            let offset = word(&mut payload)?;
            if payload.is_empty() {
                return Err(malformed);
            }
            Ok(Frame::Data(id?, offset, payload))
        }
        kind::WINDOW => {
            let delivered = word(&mut payload)?;
            let limit = only_word(payload)?;
            Ok(Frame::Window { stream: id.ok(), delivered, limit })
        }
        kind::FINISH => Ok(Frame::Finish(id?, only_word(payload)?)),
        kind::RESET => Ok(Frame::Reset(id?, minicbor::decode(&payload).map_err(|_| malformed)?)),
        kind::CONTROL => {
            if payload.len() < 2 {
                return Err(malformed);
            }
            let control = payload.get_u16();
            on_link(Frame::Control(control, payload))
        }
        kind::DATAGRAM => on_link(Frame::Datagram(payload)),
        kind::PING => on_link(Frame::Ping(only_word(payload)?)),
        kind::PONG => on_link(Frame::Pong(only_word(payload)?)),
        kind::GOAWAY => on_link(Frame::GoAway(payload)),
        other if other >= OPTIONAL_KINDS => Ok(Frame::Unknown(other)),
        other => Err(FrameError::UnknownRequired(other)),
    }
}

/// Writes a frame header.
pub fn put_header(out: &mut BytesMut, kind: u8, length: usize, stream: u32) {
    debug_assert!(length <= MAX_PAYLOAD);
    out.put_u8(kind);
    out.put_u8(0);
    out.put_u16(u16::try_from(length).unwrap_or(u16::MAX));
    out.put_u32(stream);
}

/// The header and offset of a DATA frame; its bytes follow.
#[must_use]
pub fn data_prefix(stream: StreamId, offset: u64, length: usize) -> [u8; HEADER + 8] {
    let mut prefix = [0; HEADER + 8];
    prefix[0] = kind::DATA;
    prefix[2..4].copy_from_slice(&u16::try_from(length + 8).unwrap_or(u16::MAX).to_be_bytes());
    prefix[4..8].copy_from_slice(&stream.0.to_be_bytes());
    prefix[8..].copy_from_slice(&offset.to_be_bytes());
    prefix
}

/// A frame whose payload is already bytes.
#[must_use]
pub fn raw(kind: u8, stream: u32, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER + payload.len());
    put_header(&mut out, kind, payload.len(), stream);
    out.extend_from_slice(payload);
    out.freeze()
}

/// A frame whose payload is a CBOR value. Values are bounded by construction; one that would not fit becomes an
/// `Internal` fault in ANSWER and RESET and is a bug elsewhere.
#[must_use]
pub fn cbor<T: minicbor::Encode<()>>(kind: u8, stream: u32, value: &T) -> Bytes {
    let payload = minicbor::to_vec(value).unwrap_or_default();
    if payload.len() > MAX_PAYLOAD {
        debug_assert!(false, "a {kind:#04x} payload of {} bytes", payload.len());
        let fault = minicbor::to_vec(Fault::new(Code::Internal, "message too large")).unwrap_or_default();
        return raw(kind, stream, &fault);
    }
    raw(kind, stream, &payload)
}

/// A WINDOW frame.
#[must_use]
pub fn window(stream: Option<StreamId>, delivered: u64, limit: u64) -> Bytes {
    let mut payload = [0; 16];
    payload[..8].copy_from_slice(&delivered.to_be_bytes());
    payload[8..].copy_from_slice(&limit.to_be_bytes());
    raw(kind::WINDOW, stream.map_or(0, |s| s.0), &payload)
}

/// A CONTROL frame.
#[must_use]
pub fn control(control_kind: u16, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER + 2 + body.len());
    put_header(&mut out, kind::CONTROL, 2 + body.len(), 0);
    out.put_u16(control_kind);
    out.extend_from_slice(body);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
        let mut frames = Vec::new();
        decoder.feed(Bytes::copy_from_slice(bytes), |f| {
            frames.push(f);
            Ok::<(), FrameError>(())
        })?;
        Ok(frames)
    }

    fn sample() -> (Vec<u8>, usize) {
        let mut wire = Vec::new();
        wire.extend_from_slice(&raw(kind::HELLO, 0, b"h"));
        wire.extend_from_slice(&raw(kind::OPEN, 2, b"header"));
        wire.extend_from_slice(&cbor(kind::ANSWER, 2, &Fault::new(Code::Ok, "")));
        wire.extend_from_slice(&data_prefix(StreamId(2), 7, 5));
        wire.extend_from_slice(b"hello");
        wire.extend_from_slice(&window(Some(StreamId(2)), 1, 2));
        wire.extend_from_slice(&window(None, 1, 2));
        wire.extend_from_slice(&raw(0x90, 77, b"from the future"));
        wire.extend_from_slice(&control(3, b"body"));
        (wire, 8)
    }

    #[test]
    fn a_frame_split_at_every_byte_reads_the_same() {
        let (wire, count) = sample();
        let whole = all(&mut Decoder::default(), &wire).unwrap();
        assert_eq!(whole.len(), count);
        for cut in 0..=wire.len() {
            let mut decoder = Decoder::default();
            let mut frames = all(&mut decoder, &wire[..cut]).unwrap();
            frames.extend(all(&mut decoder, &wire[cut..]).unwrap());
            assert_eq!(frames, whole, "cut at {cut}");
            assert_eq!(decoder.pending(), 0);
        }
        let mut decoder = Decoder::default();
        let bytewise: Vec<_> = wire.iter().flat_map(|b| all(&mut decoder, &[*b]).unwrap()).collect();
        assert_eq!(bytewise, whole);
    }

    #[test]
    fn length_fields_at_and_past_the_limit() {
        let mut frame = vec![0; MAX_FRAME];
        frame[0] = kind::DATAGRAM;
        frame[2..4].copy_from_slice(&u16::try_from(MAX_PAYLOAD).unwrap().to_be_bytes());
        assert_eq!(all(&mut Decoder::default(), &frame).unwrap().len(), 1);
        frame[2..4].copy_from_slice(&u16::try_from(MAX_PAYLOAD + 1).unwrap().to_be_bytes());
        assert!(matches!(all(&mut Decoder::default(), &frame[..HEADER]), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn what_is_unknown_is_refused_or_skipped_by_its_kind() {
        assert_eq!(all(&mut Decoder::default(), &raw(0x7f, 0, b"")), Err(FrameError::UnknownRequired(0x7f)));
        assert_eq!(all(&mut Decoder::default(), &raw(0xff, 0, b"")).unwrap(), [Frame::Unknown(0xff)]);
    }

    #[test]
    fn malformed_payloads_and_wrong_streams() {
        for (frame, error) in [
            (raw(kind::DATA, 2, &[0; 8]), FrameError::Malformed(kind::DATA)),
            (raw(kind::DATA, 0, &[0; 9]), FrameError::WrongStream(kind::DATA)),
            (raw(kind::WINDOW, 2, &[0; 15]), FrameError::Malformed(kind::WINDOW)),
            (raw(kind::PING, 0, &[0; 9]), FrameError::Malformed(kind::PING)),
            (raw(kind::PING, 4, &[0; 8]), FrameError::WrongStream(kind::PING)),
            (raw(kind::RESET, 2, b"\xff"), FrameError::Malformed(kind::RESET)),
            (raw(kind::CONTROL, 0, b"x"), FrameError::Malformed(kind::CONTROL)),
        ] {
            assert_eq!(all(&mut Decoder::default(), &frame), Err(error));
        }
    }
}
