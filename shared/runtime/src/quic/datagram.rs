//! A datagram of a QUIC link (RFC 9221): one kind byte of the frame table, then what belongs to it.

use bytes::Bytes;
use hedgerow_shared::fault::DropReason;
use hedgerow_shared::wire::frame::kind;

/// Bytes of the word in PING and PONG.
const WORD: usize = 8;

/// A datagram as read; what it holds is a slice of what arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datagram {
    /// For the application.
    Data(Bytes),
    /// To be sent back whole behind PONG's kind byte, padding included.
    Ping(Bytes),
    /// The word of the PING that it answers.
    Pong(u64),
}

impl Datagram {
    /// Reads one; `most` is what this end takes of the application's.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn read(bytes: &Bytes, most: usize) -> Result<Self, DropReason> {
        let (Some(first), body) = (bytes.first(), bytes.get(1..).unwrap_or_default()) else {
            return Err(DropReason::UnknownOptionalFrame);
        };
        match *first {
            kind::DATAGRAM if body.len() > most => Err(DropReason::DatagramTooLarge),
            kind::DATAGRAM => Ok(Self::Data(bytes.slice(1..))),
            kind::PING if body.len() >= WORD => Ok(Self::Ping(bytes.slice(1..))),
            kind::PONG => match body.first_chunk::<WORD>() {
                Some(word) => Ok(Self::Pong(u64::from_be_bytes(*word))),
                None => Err(DropReason::UnknownOptionalFrame),
            },
            _ => Err(DropReason::UnknownOptionalFrame),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_told_apart_and_what_is_none_has_a_reason() {
        let read = |bytes: &'static [u8]| Datagram::read(&Bytes::from_static(bytes), 4);
        assert_eq!(read(b"\x21four"), Ok(Datagram::Data(Bytes::from_static(b"four"))));
        assert_eq!(read(b"\x21"), Ok(Datagram::Data(Bytes::new())));
        assert_eq!(read(b"\x21five."), Err(DropReason::DatagramTooLarge));
        let ping = Datagram::Ping(Bytes::from_static(b"\0\0\0\0\0\0\0\x07padding"));
        assert_eq!(read(b"\x22\0\0\0\0\0\0\0\x07padding"), Ok(ping));
        assert_eq!(read(b"\x23\0\0\0\0\0\0\0\x07padding"), Ok(Datagram::Pong(7)));
        for none in [&b""[..], b"\x22short", b"\x23short", b"\x12data"] {
            assert_eq!(read(none), Err(DropReason::UnknownOptionalFrame));
        }
    }
}
