//! Reads the first flight of a TLS client before anything else does: which server name it asks for and which
//! protocols it offers. Pure, bounded, and never panics: a fuzz target feeds it arbitrary bytes.
//!
//! The ClientHello may be cut into records of any size. Whatever is unusual in a way that real clients are not
//! (a name with a NUL, two names, a length that lies) is `Malformed`: the connection is closed.

use std::net::IpAddr;

use hedgerow_shared::limits::MAX_FIRST_BYTES;
use hedgerow_shared::verify::policy::normal_name;

const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
const RECORD_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const MAX_RECORD: usize = 16 * 1024;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;

/// What a ClientHello says of where it wants to go. Unauthenticated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHello {
    /// The server name in lower case, or an address in its usual form; `None` when the client sends none.
    pub server_name: Option<String>,
    /// The protocols offered, in the client's order.
    pub alpn: Vec<Vec<u8>>,
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// A ClientHello so far; not decided before at least this many bytes are there.
    Incomplete(usize),
    /// A whole ClientHello.
    Hello(ClientHello),
    /// The first byte is not that of TLS.
    NotTls,
    /// It began as TLS and broke a rule.
    Malformed(&'static str),
}

/// Reads the first bytes of a connection, as many as have arrived. At most 16 KiB are ever asked for.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed {
    match handshake_message(&bytes[..bytes.len().min(MAX_FIRST_BYTES)]) {
        Ok(message) => match client_hello(&message) {
            Some(Ok(hello)) => Parsed::Hello(hello),
            Some(Err(why)) => Parsed::Malformed(why),
            None => Parsed::Malformed("the ClientHello's lengths do not add up"),
        },
        Err(other) => other,
    }
}

/// Joins the records up to the end of the first handshake message; its body.
fn handshake_message(bytes: &[u8]) -> Result<Vec<u8>, Parsed> {
    let mut message = Vec::new();
    let mut at = 0;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        match rest.first() {
            None => return incomplete(at + RECORD_HEADER),
            Some(&RECORD_HANDSHAKE) => {}
            Some(_) if at == 0 => return Err(Parsed::NotTls),
            Some(_) => return Err(Parsed::Malformed("another record stands inside the ClientHello")),
        }
        let Some(header) = rest.first_chunk::<RECORD_HEADER>() else { return incomplete(at + RECORD_HEADER) };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if header[1] != 3 {
            return Err(Parsed::Malformed("the record version is not TLS"));
        }
        if length == 0 || length > MAX_RECORD {
            return Err(Parsed::Malformed("a record is empty or too long"));
        }
        let end = at + RECORD_HEADER + length;
        let here = rest.get(RECORD_HEADER..).unwrap_or_default();
        message.extend_from_slice(&here[..here.len().min(length)]);
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(Parsed::Malformed("the first message is not a ClientHello"));
        }
        if let Some(&[_, a, b, c]) = message.first_chunk::<HANDSHAKE_HEADER>() {
            let body = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if HANDSHAKE_HEADER + body > MAX_FIRST_BYTES {
                return Err(Parsed::Malformed("the ClientHello is larger than 16 KiB"));
            }
            if message.len() >= HANDSHAKE_HEADER + body {
                message.truncate(HANDSHAKE_HEADER + body);
                message.drain(..HANDSHAKE_HEADER);
                return Ok(message);
            }
        }
        if here.len() < length {
            // The message may end inside this record: one more byte is all that is certain to be needed.
            let certain =
                if message.len() < HANDSHAKE_HEADER { bytes.len() + 1 } else { end.min(needed(&message, bytes.len())) };
            return incomplete(certain.max(bytes.len() + 1));
        }
        at = end;
    }
}

fn needed(message: &[u8], have: usize) -> usize {
    let body = message
        .first_chunk::<HANDSHAKE_HEADER>()
        .map_or(0, |&[_, a, b, c]| usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c));
    have + (HANDSHAKE_HEADER + body).saturating_sub(message.len())
}

fn incomplete(needed: usize) -> Result<Vec<u8>, Parsed> {
    if needed > MAX_FIRST_BYTES {
        return Err(Parsed::Malformed("the ClientHello is larger than 16 KiB"));
    }
    Err(Parsed::Incomplete(needed))
}

/// Reads the body; `None` when a length points outside.
fn client_hello(body: &[u8]) -> Option<Result<ClientHello, &'static str>> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?;
    let session_id = reader.u8()?;
    reader.take(usize::from(session_id))?;
    let cipher_suites = reader.u16()?;
    reader.take(usize::from(cipher_suites))?;
    let compressions = reader.u8()?;
    reader.take(usize::from(compressions))?;
    let mut hello = ClientHello::default();
    if reader.0.is_empty() {
        return Some(Ok(hello));
    }
    let mut extensions = reader.list()?;
    if !reader.0.is_empty() {
        return None;
    }
    let (mut seen_name, mut seen_alpn) = (false, false);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut extension = extensions.list()?;
        match kind {
            EXTENSION_SERVER_NAME if seen_name => return Some(Err("the server name is given twice")),
            EXTENSION_SERVER_NAME => {
                seen_name = true;
                match server_name(&mut extension)? {
                    Ok(name) => hello.server_name = Some(name),
                    Err(why) => return Some(Err(why)),
                }
            }
            EXTENSION_ALPN if seen_alpn => return Some(Err("the protocols are given twice")),
            EXTENSION_ALPN => {
                seen_alpn = true;
                let mut names = extension.list()?;
                while !names.0.is_empty() {
                    let length = names.u8()?;
                    hello.alpn.push(names.take(usize::from(length))?.to_vec());
                }
            }
            _ => {}
        }
    }
    Some(Ok(hello))
}

fn server_name(extension: &mut Reader<'_>) -> Option<Result<String, &'static str>> {
    let mut names = extension.list()?;
    let kind = names.u8()?;
    let name = names.list()?.0;
    if kind != 0 || !names.0.is_empty() || !extension.0.is_empty() {
        return Some(Err("the server name is not exactly one host name"));
    }
    let Ok(text) = std::str::from_utf8(name) else { return Some(Err("the server name is not a host name")) };
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(Ok(address.to_string()));
    }
    Some(normal_name(text).ok_or("the server name is not a host name"))
}

/// Takes from the front of a slice; every method is `None` when too little is left.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    /// A 16-bit length and that many bytes.
    fn list(&mut self) -> Option<Reader<'a>> {
        let length = self.u16()?;
        self.take(usize::from(length)).map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &(body.len() as u16).to_be_bytes(), body].concat()
    }

    fn sni(name: &[u8]) -> Vec<u8> {
        let entry = [&[0][..], &(name.len() as u16).to_be_bytes(), name].concat();
        extension(0, &[&(entry.len() as u16).to_be_bytes()[..], &entry].concat())
    }

    fn alpn(names: &[&[u8]]) -> Vec<u8> {
        let list: Vec<u8> = names.iter().flat_map(|n| [&[n.len() as u8][..], n].concat()).collect();
        extension(16, &[&(list.len() as u16).to_be_bytes()[..], &list].concat())
    }

    /// A handshake message with these extensions.
    fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
        let extensions = extensions.concat();
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        [&[1][..], &(body.len() as u32).to_be_bytes()[1..], &body].concat()
    }

    fn records(message: &[u8], piece: usize) -> Vec<u8> {
        message.chunks(piece).flat_map(|c| [&[22, 3, 1][..], &(c.len() as u16).to_be_bytes(), c].concat()).collect()
    }

    fn hello(name: Option<&str>, protocols: &[&[u8]]) -> Parsed {
        Parsed::Hello(ClientHello {
            server_name: name.map(str::to_owned),
            alpn: protocols.iter().map(|p| p.to_vec()).collect(),
        })
    }

    #[test]
    fn a_hello_split_over_records_of_any_size_reads_the_same() {
        let message = message(&[extension(43, &[2, 3, 4]), sni(b"Relay.Example"), alpn(&[b"h2", b"http/1.1"])]);
        let expected = hello(Some("relay.example"), &[b"h2", b"http/1.1"]);
        for piece in 1..=message.len() {
            assert_eq!(parse(&records(&message, piece)), expected, "records of {piece}");
        }
    }

    #[test]
    fn every_prefix_asks_for_more_and_never_for_too_much() {
        for piece in [1, 7, 1000] {
            let wire = records(&message(&[sni(b"a.example")]), piece);
            for cut in 0..wire.len() {
                match parse(&wire[..cut]) {
                    Parsed::Incomplete(needed) => {
                        assert!(needed > cut && needed <= wire.len(), "{needed} at {cut} of {}", wire.len())
                    }
                    other => panic!("{other:?} at {cut}"),
                }
            }
            assert_eq!(parse(&wire), hello(Some("a.example"), &[]));
        }
    }

    #[test]
    fn names_that_no_client_sends_are_malformed() {
        let long = [b'a'; 300];
        for name in [&b""[..], &long, b"a\0b.example", b"a..b", b"spa ce", b"\xff\xfe"] {
            assert!(matches!(parse(&records(&message(&[sni(name)]), 500)), Parsed::Malformed(_)), "{name:?}");
        }
        let twice = message(&[sni(b"a.example"), sni(b"b.example")]);
        assert!(matches!(parse(&records(&twice, 500)), Parsed::Malformed(_)));
        assert_eq!(parse(&records(&message(&[sni(b"127.0.0.1")]), 500)), hello(Some("127.0.0.1"), &[]));
        assert_eq!(parse(&records(&message(&[]), 500)), hello(None, &[]));
    }

    #[test]
    fn a_thousand_protocols_are_read_and_an_oversize_hello_is_not() {
        let many: Vec<&[u8]> = (0..1000).map(|_| &b"x/1"[..]).collect();
        let Parsed::Hello(read) = parse(&records(&message(&[alpn(&many)]), 16_384)) else { panic!("not read") };
        assert_eq!(read.alpn.len(), 1000);
        let oversize = message(&[extension(21, &vec![0; 17_000])]);
        assert!(matches!(parse(&records(&oversize, 1000)), Parsed::Malformed(_)));
        // One payload byte a record wastes five: the wire, not the message, reaches the bound.
        let wasteful = records(&message(&[extension(21, &vec![0; 4000])]), 1);
        assert!(matches!(parse(&wasteful), Parsed::Malformed(_)));
    }

    #[test]
    fn what_is_not_tls_is_told_apart() {
        assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Parsed::NotTls);
        assert!(matches!(parse(&[22, 3, 1, 0, 0]), Parsed::Malformed(_)));
        assert!(matches!(parse(&[22, 2, 0, 0, 5]), Parsed::Malformed(_)));
        assert!(matches!(parse(&[22, 3, 1, 0, 4, 2, 0, 0, 0]), Parsed::Malformed(_)));
        let message = message(&[sni(b"a.example")]);
        let mut wire = records(&message[..20], 20);
        wire.extend([21, 3, 1, 0, 2, 1, 0]);
        assert!(matches!(parse(&wire), Parsed::Malformed(_)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_requests_stay_bounded(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            if let Parsed::Incomplete(needed) = parse(&bytes) {
                prop_assert!(needed > bytes.len() && needed <= MAX_FIRST_BYTES);
            }
        }

        #[test]
        fn a_damaged_hello_never_panics(at in 0usize..120, with in any::<u8>(), piece in 1usize..200) {
            let mut wire = records(&message(&[sni(b"relay.example"), alpn(&[b"h2"])]), piece);
            if let Some(byte) = wire.get_mut(at) { *byte = with; }
            if let Parsed::Incomplete(needed) = parse(&wire) {
                prop_assert!(needed > wire.len() && needed <= MAX_FIRST_BYTES);
            }
        }
    }
}
