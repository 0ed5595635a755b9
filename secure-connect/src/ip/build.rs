//! Packets for tests, with right lengths and checksums unless a test spoils them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Sum, checksum, parse, protocol};

/// IPv4.
#[derive(Debug, Clone)]
pub(crate) struct V4 {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) protocol: u8,
    pub(crate) id: u16,
    /// DF is 0x4000, MF 0x2000, and the offset in units of eight bytes.
    pub(crate) flags: u16,
    pub(crate) ttl: u8,
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Default for V4 {
    fn default() -> Self {
        Self {
            source: Ipv4Addr::new(10, 64, 0, 5),
            destination: Ipv4Addr::new(10, 1, 2, 3),
            protocol: protocol::UDP,
            id: 7,
            flags: 0,
            ttl: 64,
            options: Vec::new(),
            payload: udp(4000, 53, b"hello"),
        }
    }
}

impl V4 {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let header = 20 + self.options.len();
        assert!(self.options.len().is_multiple_of(4) && header <= 60);
        let total = u16::try_from(header + self.payload.len()).unwrap();
        let mut out = vec![0x40 | u8::try_from(header / 4).unwrap(), 0];
        out.extend(total.to_be_bytes());
        out.extend(self.id.to_be_bytes());
        out.extend(self.flags.to_be_bytes());
        out.extend([self.ttl, self.protocol, 0, 0]);
        out.extend(self.source.octets());
        out.extend(self.destination.octets());
        out.extend(&self.options);
        let sum = checksum(&out);
        out[10..12].copy_from_slice(&sum.to_be_bytes());
        out.extend(&self.payload);
        seal(&mut out);
        out
    }
}

/// IPv6; `extensions` stand between header and payload, `next` is the type of the first of all.
#[derive(Debug, Clone)]
pub(crate) struct V6 {
    pub(crate) source: Ipv6Addr,
    pub(crate) destination: Ipv6Addr,
    pub(crate) next: u8,
    pub(crate) hops: u8,
    pub(crate) extensions: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Default for V6 {
    fn default() -> Self {
        Self {
            source: "fd64::5".parse().unwrap(),
            destination: "2001:db8::3".parse().unwrap(),
            next: protocol::UDP,
            hops: 64,
            extensions: Vec::new(),
            payload: udp(4000, 53, b"hello"),
        }
    }
}

impl V6 {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let length = u16::try_from(self.extensions.len() + self.payload.len()).unwrap();
        let mut out = vec![0x60, 0, 0, 0];
        out.extend(length.to_be_bytes());
        out.extend([self.next, self.hops]);
        out.extend(self.source.octets());
        out.extend(self.destination.octets());
        out.extend(&self.extensions);
        out.extend(&self.payload);
        seal(&mut out);
        out
    }
}

pub(crate) fn udp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let mut out = [from.to_be_bytes(), to.to_be_bytes()].concat();
    out.extend(u16::try_from(8 + data.len()).unwrap().to_be_bytes());
    out.extend([0, 0]);
    out.extend(data);
    out
}

pub(crate) fn tcp(from: u16, to: u16, flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
    assert!(options.len().is_multiple_of(4));
    let mut out = [from.to_be_bytes(), to.to_be_bytes()].concat();
    out.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    out.extend([u8::try_from((20 + options.len()) / 4).unwrap() << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    out.extend(options);
    out.extend(data);
    out
}

pub(crate) fn icmp(kind: u8, code: u8, rest: [u8; 4], data: &[u8]) -> Vec<u8> {
    [&[kind, code, 0, 0], &rest[..], data].concat()
}

/// The rest of a fragment header: next header, offset in bytes, more, id.
pub(crate) fn fragment_header(next: u8, offset: u16, more: bool, id: u32) -> Vec<u8> {
    let mut out = vec![next, 0];
    out.extend((offset | u16::from(more)).to_be_bytes());
    out.extend(id.to_be_bytes());
    out
}

/// Puts the right checksum into the transport header, where there is a whole one.
pub(crate) fn seal(packet: &mut [u8]) {
    if let Some((at, sum)) = transport_sum(packet, true) {
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Whether the checksums of a whole packet are right.
pub(crate) fn checksums_hold(packet: &[u8]) -> bool {
    let header = match packet[0] >> 4 {
        4 => checksum(&packet[..usize::from(packet[0] & 15) * 4]) == 0,
        _ => true,
    };
    header && transport_sum(packet, false).is_none_or(|(_, sum)| sum == 0)
}

fn transport_sum(packet: &[u8], blank: bool) -> Option<(usize, u16)> {
    let summary = parse(packet).ok()?;
    if summary.fragment != super::Fragment::Whole {
        return None;
    }
    let place = match summary.protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        protocol::ICMP | protocol::ICMP_V6 => 2,
        _ => return None,
    };
    let at = summary.transport + place;
    let mut segment = packet[summary.transport..].to_vec();
    if blank {
        segment[place..place + 2].fill(0);
    }
    let sum = match summary.protocol {
        protocol::ICMP => Sum::default(),
        number => Sum::pseudo(summary.source, summary.destination, number, segment.len()),
    };
    Some((at, sum.plus(&segment).finish()))
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
