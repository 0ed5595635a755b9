//! Reads the headers of one inner packet, and refuses what no honest host sends or what two readers could read in two
//! ways. Nothing is repaired, nothing is reassembled.
//!
//! Checksums are not verified: each end hands the packet to a kernel or a stack, which does, and forgets what is wrong.

use std::net::IpAddr;

use super::headers::{
    self, FRAGMENT_HEADER, HEADER_V4, HEADER_V6, Place, addresses_v4, addresses_v6, header_v4, is_routed_v4,
    is_routed_v6, length_of, walk, word,
};
use super::malformed::Malformed;
use super::protocol;
use super::reply::{MIN_MTU_V4, MIN_MTU_V6};

/// Which part of a datagram a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The part with the transport header; more follow.
    First,
    /// A part without.
    Later,
}

/// What an ICMP message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Icmp {
    /// Asks for an answer.
    EchoRequest,
    /// The answer.
    EchoReply,
    /// A packet did not arrive: unreachable, too big, time exceeded, parameter problem.
    Error,
    /// Everything else, among it redirects and router advertisements.
    Other,
}

/// The packet that an ICMP error is about, as the error quotes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    /// Its sender.
    pub source: IpAddr,
    /// Where it went.
    pub destination: IpAddr,
    /// Protocol number.
    pub protocol: u8,
    /// Source and destination port of TCP and UDP.
    pub ports: Option<(u16, u16)>,
    /// Of ICMP.
    pub icmp: Option<Icmp>,
}

/// One packet, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Sender.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
    /// Protocol number of the transport. Of a later fragment of IPv6 the first header that was cut up.
    pub protocol: u8,
    /// Which part.
    pub fragment: Fragment,
    /// Which fragments belong together; 0 for a whole IPv6 packet.
    pub fragment_id: u32,
    /// Where this part begins in the datagram, bytes.
    pub fragment_offset: u16,
    /// Bytes of the datagram in this part.
    pub fragment_length: u16,
    /// Of TCP and UDP, but not in a later fragment.
    pub source_port: Option<u16>,
    /// Of TCP and UDP, but not in a later fragment.
    pub destination_port: Option<u16>,
    /// Of ICMP, but not in a later fragment.
    pub icmp: Option<Icmp>,
    /// Of an ICMP error, when it can be read.
    pub quoted: Option<Quoted>,
    /// Flags of TCP, 0 for everything else.
    pub tcp_flags: u8,
    /// Routers may not cut it up. Always so with IPv6.
    pub dont_fragment: bool,
    /// Time to live, at least 1.
    pub hop_limit: u8,
    /// Where the transport header begins, bytes from the start of the packet.
    pub transport: usize,
}

impl Summary {
    /// TCP flag: FIN.
    pub const FIN: u8 = 0x01;
    /// TCP flag: SYN.
    pub const SYN: u8 = 0x02;
    /// TCP flag: RST.
    pub const RST: u8 = 0x04;
    /// TCP flag: ACK.
    pub const ACK: u8 = 0x10;

    /// Whether it is an IPv4 packet.
    #[must_use]
    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// Whether it asks for a new TCP connection.
    #[must_use]
    pub fn opens_connection(&self) -> bool {
        self.tcp_flags & (Self::SYN | Self::ACK) == Self::SYN
    }
}

/// Reads one packet: the whole datagram of the tunnel, no byte more or less.
///
/// # Errors
/// Why it is refused; see the reasons.
pub fn parse(packet: &[u8]) -> Result<Summary, Malformed> {
    match packet.first().ok_or(Malformed::Empty)? >> 4 {
        4 => parse_v4(packet),
        6 => parse_v6(packet),
        _ => Err(Malformed::Version),
    }
}

/// What a whole UDP packet carries, by the length that its header tells. `summary` is of the same packet.
#[must_use]
pub fn udp_payload<'a>(packet: &'a [u8], summary: &Summary) -> Option<&'a [u8]> {
    if summary.protocol != protocol::UDP || summary.fragment != Fragment::Whole {
        return None;
    }
    let datagram = packet.get(summary.transport..)?;
    let length = u16::from_be_bytes([*datagram.get(4)?, *datagram.get(5)?]);
    datagram.get(8..usize::from(length))
}

fn parse_v4(packet: &[u8]) -> Result<Summary, Malformed> {
    let head = packet.first_chunk::<HEADER_V4>().ok_or(Malformed::HeaderLength)?;
    let header = header_v4(head);
    let options = packet.get(HEADER_V4..header).ok_or(Malformed::HeaderLength)?;
    let payload = packet.get(header..).ok_or(Malformed::HeaderLength)?;
    if usize::from(word(head[2], head[3])) != packet.len() {
        return Err(Malformed::TotalLength);
    }
    headers::check_options(options)?;
    let (source, destination) = addresses_v4(head);
    if !is_routed_v4(destination) {
        return Err(Malformed::NotRouted);
    }
    if !is_routed_v4(source) || source.octets()[0] >= 240 || source == destination {
        return Err(Malformed::Source);
    }
    if head[8] == 0 {
        return Err(Malformed::HopLimit);
    }
    let place = Place::v4(head);
    let mut summary = Summary {
        source: source.into(),
        destination: destination.into(),
        protocol: head[9],
        fragment: place.kind(payload.len(), header)?,
        fragment_id: place.id,
        fragment_offset: place.offset,
        fragment_length: length_of(payload),
        source_port: None,
        destination_port: None,
        icmp: None,
        quoted: None,
        tcp_flags: 0,
        dont_fragment: head[6] & 0x40 != 0,
        hop_limit: head[8],
        transport: header,
    };
    // Eight bytes into TCP: what would be laid over the flags of a first fragment that was let through.
    if summary.protocol == protocol::TCP && place.offset == 8 {
        return Err(Malformed::TinyFragment);
    }
    summary.read_transport(payload)?;
    Ok(summary)
}

fn parse_v6(packet: &[u8]) -> Result<Summary, Malformed> {
    let head = packet.first_chunk::<HEADER_V6>().ok_or(Malformed::HeaderLength)?;
    if usize::from(word(head[4], head[5])) + HEADER_V6 != packet.len() {
        return Err(Malformed::TotalLength);
    }
    let (source, destination) = addresses_v6(head);
    if !is_routed_v6(destination) {
        return Err(Malformed::NotRouted);
    }
    if !is_routed_v6(source) || source == destination {
        return Err(Malformed::Source);
    }
    if head[7] == 0 {
        return Err(Malformed::HopLimit);
    }
    let chain = walk(packet, head[6])?;
    let payload = packet.get(chain.transport..).ok_or(Malformed::Extension)?;
    let part = packet.get(chain.fragmentable..).ok_or(Malformed::Extension)?;
    let fragment = match &chain.place {
        Some(place) => place.kind(part.len(), chain.fragmentable.saturating_sub(FRAGMENT_HEADER + HEADER_V6))?,
        None => Fragment::Whole,
    };
    let place = chain.place.unwrap_or_default();
    let mut summary = Summary {
        source: source.into(),
        destination: destination.into(),
        protocol: chain.protocol,
        fragment,
        fragment_id: place.id,
        fragment_offset: place.offset,
        fragment_length: length_of(part),
        source_port: None,
        destination_port: None,
        icmp: None,
        quoted: None,
        tcp_flags: 0,
        dont_fragment: true,
        hop_limit: head[7],
        transport: chain.transport,
    };
    if summary.protocol == protocol::TCP && place.offset == 8 {
        return Err(Malformed::TinyFragment);
    }
    summary.read_transport(payload)?;
    Ok(summary)
}

impl Summary {
    fn read_transport(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        let cut_off = match self.fragment {
            Fragment::Whole => Malformed::Transport,
            Fragment::First => Malformed::TinyFragment,
            Fragment::Later => return Ok(()),
        };
        match self.protocol {
            protocol::TCP => {
                let head = payload.first_chunk::<20>().ok_or(cut_off)?;
                let header = usize::from(head[12] >> 4) * 4;
                if header < head.len() {
                    return Err(Malformed::Transport);
                }
                if header > payload.len() {
                    return Err(cut_off);
                }
                self.source_port = Some(word(head[0], head[1]));
                self.destination_port = Some(word(head[2], head[3]));
                self.tcp_flags = head[13];
            }
            protocol::UDP => {
                let head = payload.first_chunk::<8>().ok_or(cut_off)?;
                let length = usize::from(word(head[4], head[5]));
                if length < head.len() || (self.fragment == Fragment::Whole && length > payload.len()) {
                    return Err(Malformed::Transport);
                }
                self.source_port = Some(word(head[0], head[1]));
                self.destination_port = Some(word(head[2], head[3]));
            }
            number if is_icmp(self.is_v4(), number) => {
                let head = payload.first_chunk::<8>().ok_or(cut_off)?;
                let icmp = Icmp::of(self.is_v4(), head[0]);
                // Hosts ignore, or should, an IPv6 path below 1280 (RFC 8201). Zero in IPv4 comes from routers older
                // than RFC 1191, which are not met any more.
                let too_small = match (self.is_v4(), head[0], head[1]) {
                    (true, 3, 4) => word(head[6], head[7]) < MIN_MTU_V4,
                    (false, 2, _) => u32::from_be_bytes([head[4], head[5], head[6], head[7]]) < u32::from(MIN_MTU_V6),
                    _ => false,
                };
                if too_small {
                    return Err(Malformed::ForgedMtu);
                }
                self.icmp = Some(icmp);
                if icmp == Icmp::Error {
                    self.quoted = payload.get(head.len()..).and_then(|body| quoted(body, self.is_v4()));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Icmp {
    fn of(v4: bool, kind: u8) -> Self {
        match (v4, kind) {
            (true, 8) | (false, 128) => Self::EchoRequest,
            (true, 0) | (false, 129) => Self::EchoReply,
            (true, 3 | 11 | 12) | (false, 1..=4) => Self::Error,
            _ => Self::Other,
        }
    }
}

fn is_icmp(v4: bool, number: u8) -> bool {
    number == if v4 { protocol::ICMP } else { protocol::ICMP_V6 }
}

/// Reads as much of a quoted packet as tells what it was: it is cut off, so its lengths mean nothing.
fn quoted(packet: &[u8], v4: bool) -> Option<Quoted> {
    let (source, destination, protocol, transport): (IpAddr, IpAddr, _, _) = match (v4, packet.first()? >> 4) {
        (true, 4) => {
            let head = packet.first_chunk::<HEADER_V4>()?;
            if Place::v4(head).offset != 0 {
                return None;
            }
            let (source, destination) = addresses_v4(head);
            let header = header_v4(head);
            packet.get(HEADER_V4..header)?;
            (source.into(), destination.into(), head[9], packet.get(header..)?)
        }
        (false, 6) => {
            let head = packet.first_chunk::<HEADER_V6>()?;
            let chain = walk(packet, head[6]).ok()?;
            if chain.place.is_some_and(|place| place.offset != 0) {
                return None;
            }
            let (source, destination) = addresses_v6(head);
            (source.into(), destination.into(), chain.protocol, packet.get(chain.transport..)?)
        }
        _ => return None,
    };
    let mut quoted = Quoted { source, destination, protocol, ports: None, icmp: None };
    match protocol {
        protocol::TCP | protocol::UDP => {
            let head = transport.first_chunk::<4>()?;
            quoted.ports = Some((word(head[0], head[1]), word(head[2], head[3])));
        }
        number if is_icmp(v4, number) => quoted.icmp = Some(Icmp::of(v4, *transport.first()?)),
        _ => {}
    }
    Some(quoted)
}
