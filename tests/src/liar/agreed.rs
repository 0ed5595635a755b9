//! Which key exchange was agreed, as everybody on the wire can read it in the ServerHello.

/// The `random` of a HelloRetryRequest (RFC 8446 section 4.1.3): its first bytes.
const RETRY: [u8; 4] = [0xcf, 0x21, 0xad, 0x74];
const KEY_SHARE: u16 = 51;

/// The group in a record with a ServerHello (RFC 8446 sections 4.1.3 and 4.2.8); `None` for anything else.
pub fn group(record: &[u8]) -> Option<u16> {
    let hello = record.get(5..).filter(|h| record[0] == 22 && h.first() == Some(&2))?;
    // Kind and length, version, random, session id, suite, compression.
    let random = hello.get(6..38)?;
    let extensions = hello.get(38..)?;
    let mut rest = extensions.get(1 + usize::from(*extensions.first()?) + 3 + 2..)?;
    while let Some([a, b, c, d]) = rest.first_chunk::<4>().copied() {
        let (kind, length) = (u16::from_be_bytes([a, b]), usize::from(u16::from_be_bytes([c, d])));
        if kind == KEY_SHARE && !random.starts_with(&RETRY) {
            return rest.get(4..6).map(|g| u16::from_be_bytes([g[0], g[1]]));
        }
        rest = rest.get(4 + length..)?;
    }
    None
}
