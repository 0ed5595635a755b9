//! The PROXY protocol, versions 1 and 2 (`doc/proxy-protocol.txt` of HAProxy): the first bytes of a TCP connection, by
//! which a balancer says whose connection it passes on. Whether a balancer may be believed is not decided here.
//!
//! Read and written by `ppp`, which takes a few forms that no balancer sends; those are refused here first. Pure: a fuzz
//! target feeds `parse` arbitrary bytes.

use std::net::{IpAddr, SocketAddr};

use ppp::{v1, v2};
use serde::{Deserialize, Serialize};

/// The first word of version 1.
const WORD: &[u8] = b"PROXY ";
/// The longest header of version 1, line end included.
const MAX_LINE: usize = 107;
/// What stands before the addresses in version 2.
const FIXED: usize = 16;
/// The longest header taken. Addresses and what balancers add to them stay below 600 bytes; 64 KiB could be announced.
pub const MAX_HEADER: usize = FIXED + 2048;

/// Which form a header has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Version {
    /// A line of text.
    One,
    /// Binary.
    Two,
}

impl From<Version> for u8 {
    fn from(version: Version) -> Self {
        match version {
            Version::One => 1,
            Version::Two => 2,
        }
    }
}

impl TryFrom<u8> for Version {
    type Error = &'static str;

    fn try_from(number: u8) -> Result<Self, Self::Error> {
        match number {
            1 => Ok(Self::One),
            2 => Ok(Self::Two),
            _ => Err("the versions of the PROXY protocol are 1 and 2"),
        }
    }
}

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its form.
    pub version: Version,
    /// Bytes of it; what follows is the client's.
    pub length: usize,
    /// Whose connection it is; `None` when it is the balancer's own (LOCAL) or the balancer does not know (UNKNOWN,
    /// UNSPEC).
    pub client: Option<SocketAddr>,
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// No header.
    Absent,
    /// The beginning of a header; not decided before at least this many bytes are there, `MAX_HEADER` at most.
    Incomplete(usize),
    /// A header.
    Header(Header),
    /// It began as one and broke a rule.
    Malformed(&'static str),
}

/// Reads the first bytes of a connection, as many as have arrived.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed {
    let begins = |signature: &[u8]| {
        let length = signature.len().min(bytes.len());
        bytes[..length] == signature[..length]
    };
    if bytes.is_empty() {
        return Parsed::Incomplete(1);
    }
    if begins(v2::PROTOCOL_PREFIX) {
        return if bytes.len() < FIXED { Parsed::Incomplete(FIXED) } else { binary(bytes) };
    }
    if begins(WORD) {
        return if bytes.len() < WORD.len() { Parsed::Incomplete(WORD.len()) } else { line(bytes) };
    }
    Parsed::Absent
}

fn line(bytes: &[u8]) -> Parsed {
    let most = &bytes[..bytes.len().min(MAX_LINE)];
    let Some(end) = most.iter().position(|b| *b == b'\n') else {
        return match most.len() {
            MAX_LINE => Parsed::Malformed("the line is longer than 107 bytes"),
            length => Parsed::Incomplete(length + 1),
        };
    };
    let line = &most[..=end];
    // `ppp` reads ports as Rust reads numbers: +80 is one.
    let text = line.strip_suffix(b"\r\n").filter(|t| t.iter().all(|b| matches!(b, b' '..=b'~') && *b != b'+'));
    if text.is_none() {
        return Parsed::Malformed("the line does not end in CR LF, or holds something else than text");
    }
    let client = match v1::Header::try_from(line).map(|header| header.addresses) {
        Ok(v1::Addresses::Unknown) => None,
        Ok(v1::Addresses::Tcp4(a)) => Some(SocketAddr::from((a.source_address, a.source_port))),
        Ok(v1::Addresses::Tcp6(a)) => Some(SocketAddr::from((a.source_address, a.source_port))),
        Err(_) => return Parsed::Malformed("the line is not as the protocol has it"),
    };
    told(Version::One, line.len(), client)
}

fn binary(bytes: &[u8]) -> Parsed {
    let length = FIXED + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if length > MAX_HEADER {
        return Parsed::Malformed("the header is longer than 2 KiB");
    }
    let Some(header) = bytes.get(..length) else { return Parsed::Incomplete(length) };
    let Ok(header) = v2::Header::try_from(header) else {
        return Parsed::Malformed("version, command, family or length are not as the protocol has them");
    };
    let client = match (header.command, header.addresses) {
        // What a balancer's own connection says of addresses is to be ignored, as is what is unspecified.
        (v2::Command::Local, _) | (_, v2::Addresses::Unspecified) => None,
        (_, v2::Addresses::IPv4(a)) => Some(SocketAddr::from((a.source_address, a.source_port))),
        (_, v2::Addresses::IPv6(a)) => Some(SocketAddr::from((a.source_address, a.source_port))),
        (_, v2::Addresses::Unix(_)) => return Parsed::Malformed("a client over TCP has no Unix address"),
    };
    if client.is_some() && header.protocol != v2::Protocol::Stream {
        return Parsed::Malformed("a client over TCP is no datagram");
    }
    if client.is_some() && header.tlvs().any(|tlv| tlv.is_err()) {
        return Parsed::Malformed("what follows the addresses has lengths that do not add up");
    }
    told(Version::Two, length, client)
}

/// A header is as good as its address: a client cannot come from everywhere, or from a group.
fn told(version: Version, length: usize, client: Option<SocketAddr>) -> Parsed {
    let client = client.map(canonical);
    let possible = |ip: IpAddr| {
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        !(ip.is_unspecified() || ip.is_multicast() || broadcast)
    };
    if client.is_some_and(|c| !possible(c.ip())) {
        return Parsed::Malformed("no client can have this address");
    }
    Parsed::Header(Header { version, length, client })
}

/// The same address with IPv4 as IPv4, where a socket or a balancer writes it as IPv6.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The header that tells `server`, the address we are connected to, whose connection it gets; `None` says that it is not
/// known.
#[must_use]
pub fn header(version: Version, client: Option<SocketAddr>, server: SocketAddr) -> Vec<u8> {
    let both = client.map(|client| one_family(canonical(client), canonical(server)));
    match version {
        Version::One => both.map_or(v1::Addresses::Unknown, v1::Addresses::from).to_string().into_bytes(),
        Version::Two => {
            let (command, protocol, addresses) = match both {
                Some(both) => (v2::Command::Proxy, v2::Protocol::Stream, v2::Addresses::from(both)),
                None => (v2::Command::Local, v2::Protocol::Unspecified, v2::Addresses::Unspecified),
            };
            let header = v2::Builder::with_addresses(v2::Version::Two | command, protocol, addresses).build();
            header.expect("writing to memory does not fail, and two addresses are short")
        }
    }
}

/// Both as IPv6 if one of them is.
fn one_family(client: SocketAddr, server: SocketAddr) -> (SocketAddr, SocketAddr) {
    let wide = |address: SocketAddr| match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    if client.is_ipv4() == server.is_ipv4() { (client, server) } else { (wide(client), wide(server)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// A header of version 2 with this command and family byte, and this length where it differs from the rest's.
    fn two(command: u8, family: u8, length: Option<u16>, rest: &[u8]) -> Vec<u8> {
        let length = length.unwrap_or(u16::try_from(rest.len()).unwrap());
        [v2::PROTOCOL_PREFIX, &[command, family], &length.to_be_bytes(), rest].concat()
    }

    const FOUR: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0xc0, 0, 1, 0xbb];

    #[test]
    fn what_is_written_is_read_and_cut_anywhere_it_is_incomplete() {
        let server = [address("10.0.0.1:443"), address("[2001:db8::1]:443")];
        let clients = [
            None,
            Some(address("192.0.2.7:49152")),
            Some(address("[2001:db8::7]:1")),
            Some(address("[::ffff:192.0.2.7]:5")),
        ];
        for version in [Version::One, Version::Two] {
            for (client, server) in clients.iter().flat_map(|c| server.map(|s| (*c, s))) {
                let mut bytes = header(version, client, server);
                let length = bytes.len();
                for cut in 0..length {
                    let Parsed::Incomplete(wanted) = parse(&bytes[..cut]) else { panic!("{:?}", &bytes[..cut]) };
                    assert!(wanted > cut && wanted <= length, "{cut}: {wanted}");
                }
                bytes.extend_from_slice(b"\x16\x03\x01PROXY TCP4");
                assert_eq!(parse(&bytes), Parsed::Header(Header { version, length, client: client.map(canonical) }));
            }
        }
        let text = String::from_utf8(header(Version::One, Some(address("192.0.2.7:49152")), server[0])).unwrap();
        assert_eq!(text, "PROXY TCP4 192.0.2.7 10.0.0.1 49152 443\r\n");
        assert_eq!(header(Version::One, None, server[0]), b"PROXY UNKNOWN\r\n");
    }

    #[test]
    fn the_balancers_own_connections_and_unknown_ones_name_no_client() {
        for bytes in [
            two(0x20, 0x11, None, &FOUR),
            two(0x20, 0x00, None, b"\xff\xff"),
            two(0x21, 0x00, None, b"\xff\xff\xff"),
            two(0x21, 0x01, None, &[]),
            b"PROXY UNKNOWN ffff:: ::1 1 2\r\n".to_vec(),
        ] {
            let Parsed::Header(header) = parse(&bytes) else { panic!("{bytes:?}: {:?}", parse(&bytes)) };
            assert_eq!((header.client, header.length), (None, bytes.len()));
        }
    }

    #[test]
    fn what_stands_behind_the_addresses_is_skipped_but_must_add_up() {
        let with = |more: &[u8]| parse(&two(0x21, 0x11, None, &[&FOUR[..], more].concat()));
        for more in [&b"\x04\x00\x03abc"[..], b"\x20\x00\x00", b"\x01\x00\x02h2\xee\x00\x01z"] {
            assert!(
                matches!(with(more), Parsed::Header(h) if h.client == Some(address("192.0.2.7:49152"))),
                "{more:?}"
            );
        }
        for more in [&b"\x04"[..], b"\x04\x00", b"\x04\x00\x04abc", b"\x04\xff\xff", b"\x04\x00\x01ab"] {
            assert!(matches!(with(more), Parsed::Malformed(_)), "{more:?}");
        }
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        let long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
        for bytes in [
            &b"PROXY TCP4 192.0.2.7 10.0.0.1 49152 443\n"[..],
            b"PROXY TCP4 192.0.2.7 10.0.0.1 49152 443 \r\n",
            b"PROXY TCP4  192.0.2.7 10.0.0.1 49152 443\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 +49152 443\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 049152 443\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 65536 443\r\n",
            b"PROXY TCP4 192.0.2.07 10.0.0.1 49152 443\r\n",
            b"PROXY TCP4 2001:db8::7 ::1 49152 443\r\n",
            b"PROXY TCP6 192.0.2.7 10.0.0.1 49152 443\r\n",
            b"PROXY TCP6 fe80::1%eth0 ::1 49152 443\r\n",
            b"PROXY UDP4 192.0.2.7 10.0.0.1 49152 443\r\n",
            b"PROXY TCP4 192.0.2.7\r10.0.0.1 49152 443\r\n",
            b"PROXY TCP4 0.0.0.0 10.0.0.1 49152 443\r\n",
            b"PROXY TCP4 255.255.255.255 10.0.0.1 49152 443\r\n",
            b"PROXY TCP6 ff02::1 ::1 49152 443\r\n",
            b"PROXY TCP6 ::ffff:224.0.0.1 ::1 49152 443\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 49152\r\n",
            b"PROXY \r\n",
            &long,
            // Version 1 in the place of version 2, and other numbers.
            &two(0x11, 0x11, None, &FOUR),
            &two(0x31, 0x11, None, &FOUR),
            &two(0x22, 0x11, None, &FOUR),
            &two(0x21, 0x41, None, &FOUR),
            &two(0x21, 0x13, None, &FOUR),
            // Datagrams, Unix sockets, addresses that are cut.
            &two(0x21, 0x12, None, &FOUR),
            &two(0x21, 0x31, None, &[1; 216]),
            &two(0x21, 0x11, None, &FOUR[..11]),
            &two(0x21, 0x21, None, &FOUR),
            &two(0x21, 0x11, Some(0xffff), &FOUR),
        ] {
            assert!(
                matches!(parse(bytes), Parsed::Malformed(_)),
                "{:?}: {:?}",
                bytes.escape_ascii().to_string(),
                parse(bytes)
            );
        }
    }

    #[test]
    fn other_protocols_are_no_header() {
        for bytes in [
            &b"\x16\x03\x01"[..],
            b"POST / HTTP/1.1\r\n",
            b"PRI * HTTP/2.0\r\n",
            b"proxy TCP4",
            b"HGLN",
            b"\r\n\r\n\r\n",
        ] {
            assert_eq!(parse(bytes), Parsed::Absent, "{bytes:?}");
        }
        assert_eq!(parse(b""), Parsed::Incomplete(1));
    }
}
