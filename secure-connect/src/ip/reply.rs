//! ICMP answers to a packet that goes no further.
//!
//! Never in answer to an ICMP error, to anything else of ICMP but an echo, to a later fragment, or to what `parse`
//! refuses, such as multicast (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e): two who answer each other's answers
//! would not stop. The answer is never longer than 576 bytes (IPv4, RFC 1812) or 1280 (IPv6), header included.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::{Sum, checksum};
use super::parse::{Fragment, Icmp, Summary, parse};
use super::protocol;

/// The smallest size of packet that is announced over IPv4: every host takes that much (RFC 791).
pub const MIN_MTU_V4: u16 = 576;
/// The same over IPv6: every link carries that much (RFC 8200).
pub const MIN_MTU_V6: u16 = 1280;

/// Hops that an answer may take.
const HOPS: u8 = 64;

/// Answers a packet larger than `mtu` that may not be cut up: ICMP "fragmentation needed" (RFC 1191) or ICMPv6 "packet
/// too big" (RFC 4443), which announces `mtu`, though never less than `MIN_MTU_V4` or `MIN_MTU_V6`. The answer replaces
/// what is in `out`. `from_v4` and `from_v6` are the addresses of who answers.
///
/// False when there is nothing to answer: it fits, it may be cut up, or no answer may be given.
pub fn too_big(packet: &[u8], mtu: u16, from_v4: Ipv4Addr, from_v6: Ipv6Addr, out: &mut Vec<u8>) -> bool {
    if packet.len() <= usize::from(mtu) {
        return false;
    }
    let Some(summary) = answerable(packet).filter(|summary| summary.dont_fragment) else { return false };
    match summary.source {
        IpAddr::V4(to) => {
            let [high, low] = mtu.max(MIN_MTU_V4).to_be_bytes();
            answer_v4([3, 4], [0, 0, high, low], packet, from_v4, to, out);
        }
        IpAddr::V6(to) => {
            answer_v6([2, 0], u32::from(mtu.max(MIN_MTU_V6)).to_be_bytes(), packet, from_v6, to, out);
        }
    }
    true
}

/// Answers a packet that the policy denies: ICMP "communication administratively prohibited". The answer replaces what
/// is in `out`. `from_v4` and `from_v6` are the addresses of who answers.
///
/// False when no answer may be given.
pub fn unreachable(packet: &[u8], from_v4: Ipv4Addr, from_v6: Ipv6Addr, out: &mut Vec<u8>) -> bool {
    let Some(summary) = answerable(packet) else { return false };
    match summary.source {
        IpAddr::V4(to) => answer_v4([3, 13], [0; 4], packet, from_v4, to, out),
        IpAddr::V6(to) => answer_v6([1, 1], [0; 4], packet, from_v6, to, out),
    }
    true
}

fn answerable(packet: &[u8]) -> Option<Summary> {
    let summary = parse(packet).ok()?;
    let icmp = match summary.protocol {
        protocol::ICMP | protocol::ICMP_V6 => !matches!(summary.icmp, Some(Icmp::EchoRequest | Icmp::EchoReply)),
        _ => false,
    };
    (summary.fragment != Fragment::Later && !icmp).then_some(summary)
}

fn answer_v4(kind: [u8; 2], rest: [u8; 4], about: &[u8], from: Ipv4Addr, to: Ipv4Addr, out: &mut Vec<u8>) {
    const HEADERS: u16 = 28;
    let room = usize::from(MIN_MTU_V4 - HEADERS);
    let quote = about.get(..room).unwrap_or(about);
    let length = HEADERS + u16::try_from(quote.len()).unwrap_or(0);
    out.clear();
    out.extend_from_slice(&[0x45, 0]);
    out.extend_from_slice(&length.to_be_bytes());
    // No id, as it is never cut up (RFC 6864).
    out.extend_from_slice(&[0, 0, 0x40, 0, HOPS, protocol::ICMP, 0, 0]);
    out.extend_from_slice(&from.octets());
    out.extend_from_slice(&to.octets());
    let sum = checksum(out);
    put_word(out, 10, sum);
    let sum = Sum::default().plus(&kind).plus(&rest).plus(quote).finish();
    put_icmp(kind, sum, rest, quote, out);
}

fn answer_v6(kind: [u8; 2], rest: [u8; 4], about: &[u8], from: Ipv6Addr, to: Ipv6Addr, out: &mut Vec<u8>) {
    const HEADER: u16 = 40;
    const ICMP: u16 = 8;
    let room = usize::from(MIN_MTU_V6 - HEADER - ICMP);
    let quote = about.get(..room).unwrap_or(about);
    let length = ICMP + u16::try_from(quote.len()).unwrap_or(0);
    out.clear();
    out.extend_from_slice(&[0x60, 0, 0, 0]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&[protocol::ICMP_V6, HOPS]);
    out.extend_from_slice(&from.octets());
    out.extend_from_slice(&to.octets());
    let pseudo = Sum::pseudo(from.into(), to.into(), protocol::ICMP_V6, usize::from(length));
    let sum = pseudo.plus(&kind).plus(&rest).plus(quote).finish();
    put_icmp(kind, sum, rest, quote, out);
}

fn put_icmp(kind: [u8; 2], sum: u16, rest: [u8; 4], quote: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&kind);
    out.extend_from_slice(&sum.to_be_bytes());
    out.extend_from_slice(&rest);
    out.extend_from_slice(quote);
}

pub(super) fn put_word(packet: &mut [u8], at: usize, sum: u16) {
    if let Some([high, low]) = packet.get_mut(at..at + 2) {
        [*high, *low] = sum.to_be_bytes();
    }
}
