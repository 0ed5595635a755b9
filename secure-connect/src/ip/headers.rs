//! Headers of the network layer, field by field: what `parse` and the answers build on.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::malformed::Malformed;
use super::parse::Fragment;

/// Extension headers of IPv6 that are walked. Honest packets have up to three or four.
const MAX_EXTENSIONS: usize = 8;
/// The largest datagram that fragments may add up to, header included.
const MAX_DATAGRAM: usize = 65535;

/// IPv4 header without options.
pub(super) const HEADER_V4: usize = 20;
/// IPv6 header without extensions.
pub(super) const HEADER_V6: usize = 40;

/// Loose and strict source route (RFC 791).
const OPTION_LSRR: u8 = 131;
const OPTION_SSRR: u8 = 137;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// Fragment header of IPv6.
pub(super) const FRAGMENT_HEADER: usize = 8;

pub(super) fn check_options(mut options: &[u8]) -> Result<(), Malformed> {
    loop {
        match options {
            [] | [0, ..] => return Ok(()),
            [1, rest @ ..] => options = rest,
            [OPTION_LSRR | OPTION_SSRR, ..] => return Err(Malformed::SourceRoute),
            [_, length @ (2..), ..] => options = options.get(usize::from(*length)..).ok_or(Malformed::Options)?,
            _ => return Err(Malformed::Options),
        }
    }
}

/// Where a chain of extension headers ends.
pub(super) struct Chain {
    pub(super) protocol: u8,
    pub(super) transport: usize,
    /// Where the part begins that fragments carry.
    pub(super) fragmentable: usize,
    pub(super) place: Option<Place>,
}

pub(super) fn walk(packet: &[u8], first: u8) -> Result<Chain, Malformed> {
    let mut chain = Chain { protocol: first, transport: HEADER_V6, fragmentable: HEADER_V6, place: None };
    for number in 0..=MAX_EXTENSIONS {
        let kind = chain.protocol;
        if !matches!(kind, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS) {
            return Ok(chain);
        }
        let out_of_place = match kind {
            HOP_BY_HOP => number > 0,
            FRAGMENT => chain.place.is_some(),
            _ => false,
        };
        if out_of_place || number == MAX_EXTENSIONS {
            return Err(Malformed::Extension);
        }
        let cut_off = match &chain.place {
            Some(place) if place.more => Malformed::TinyFragment,
            _ => Malformed::Extension,
        };
        let head = packet.get(chain.transport..).and_then(<[u8]>::first_chunk::<8>).ok_or(cut_off)?;
        let length = match kind {
            FRAGMENT => FRAGMENT_HEADER,
            AUTHENTICATION => (usize::from(head[1]) + 2) * 4,
            _ => (usize::from(head[1]) + 1) * 8,
        };
        // Type 0 is forbidden; any other with segments left goes on to where no rule was asked about.
        if kind == ROUTING && (head[2] == 0 || head[3] != 0) {
            return Err(Malformed::SourceRoute);
        }
        chain.protocol = head[0];
        chain.transport += length;
        if chain.transport > packet.len() {
            return Err(cut_off);
        }
        if kind == FRAGMENT {
            let place = Place::v6(head);
            chain.fragmentable = chain.transport;
            chain.place = Some(place);
            if place.offset != 0 {
                return Ok(chain);
            }
        }
    }
    Err(Malformed::Extension)
}

/// Where a packet stands in its datagram.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    pub(super) id: u32,
    /// Bytes.
    pub(super) offset: u16,
    pub(super) more: bool,
}

impl Place {
    pub(super) fn v4(head: &[u8; HEADER_V4]) -> Self {
        let flags = word(head[6], head[7]);
        Self { id: u32::from(word(head[4], head[5])), offset: (flags & 0x1fff) << 3, more: flags & 0x2000 != 0 }
    }

    pub(super) fn v6(head: &[u8; FRAGMENT_HEADER]) -> Self {
        let flags = word(head[2], head[3]);
        let id = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        Self { id, offset: flags & 0xfff8, more: flags & 1 != 0 }
    }

    /// `before`: bytes that the whole datagram has before what fragments carry, as far as its length field counts them.
    pub(super) fn kind(&self, length: usize, before: usize) -> Result<Fragment, Malformed> {
        if self.offset == 0 && !self.more {
            return Ok(Fragment::Whole);
        }
        let end = before + usize::from(self.offset) + length;
        if length == 0 || (self.more && !length.is_multiple_of(8)) || end > MAX_DATAGRAM {
            return Err(Malformed::FragmentBounds);
        }
        Ok(if self.offset == 0 { Fragment::First } else { Fragment::Later })
    }
}

/// Bytes of the header, by what it tells: below 20 it is none.
pub(super) fn header_v4(head: &[u8; HEADER_V4]) -> usize {
    usize::from(head[0] & 0x0f) * 4
}

pub(super) fn addresses_v4(head: &[u8; HEADER_V4]) -> (Ipv4Addr, Ipv4Addr) {
    (Ipv4Addr::new(head[12], head[13], head[14], head[15]), Ipv4Addr::new(head[16], head[17], head[18], head[19]))
}

pub(super) fn addresses_v6(head: &[u8; HEADER_V6]) -> (Ipv6Addr, Ipv6Addr) {
    let at = |from: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&head[from..from + 16]);
        Ipv6Addr::from(octets)
    };
    (at(8), at(24))
}

pub(super) fn is_routed_v4(address: Ipv4Addr) -> bool {
    !(address.octets()[0] == 0
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast())
}

/// IPv4-mapped addresses stand for IPv4 inside programs and never on a network.
pub(super) fn is_routed_v6(address: Ipv6Addr) -> bool {
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_unicast_link_local()
        || address.is_multicast()
        || address.to_ipv4_mapped().is_some())
}

pub(super) fn word(high: u8, low: u8) -> u16 {
    u16::from_be_bytes([high, low])
}

/// Packets are at most 65535 bytes behind the header of IPv6, as their length field was checked.
pub(super) fn length_of(part: &[u8]) -> u16 {
    u16::try_from(part.len()).unwrap_or(u16::MAX)
}
