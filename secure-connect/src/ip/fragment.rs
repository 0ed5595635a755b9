//! Cuts an IPv4 packet up (RFC 791 section 3.2). IPv6 packets are cut up by their senders only.

use super::checksum::checksum;
use super::headers::{HEADER_V4, Place, header_v4};
use super::parse::parse;
use super::reply::put_word;

/// An option with this bit goes into every fragment, one without into the first only.
const COPIED: u8 = 0x80;
/// The longest header.
const MAX_HEADER: usize = 60;

/// Cuts `packet` up so that no part is longer than `mtu`, and gives each part to `emit`, in order. One that fits is
/// given as it is, and one that is a fragment already becomes smaller ones of the same datagram.
///
/// False, with nothing given, when it may not be cut up (`too_big` answers it), is malformed or no IPv4 packet, or when
/// `mtu` has no room for a header and eight bytes.
pub fn fragment_v4(packet: &[u8], mtu: u16, mut emit: impl FnMut(&[u8])) -> bool {
    let Ok(summary) = parse(packet) else { return false };
    if packet.len() <= usize::from(mtu) && summary.is_v4() {
        emit(packet);
        return true;
    }
    let Some(head) = packet.first_chunk::<HEADER_V4>().filter(|_| summary.is_v4() && !summary.dont_fragment) else {
        return false;
    };
    let (Some(header), Some(mut rest)) = (packet.get(..header_v4(head)), packet.get(header_v4(head)..)) else {
        return false;
    };
    let place = Place::v4(head);
    let mut later = [0; MAX_HEADER];
    let Some(later) = copied_header(header, &mut later) else { return false };

    let mut part = Vec::with_capacity(usize::from(mtu));
    let mut offset = place.offset;
    let mut header = header;
    if usize::from(mtu) < header.len() + 8 {
        return false;
    }
    while !rest.is_empty() {
        let room = usize::from(mtu) - header.len();
        let (now, after) = match rest.split_at_checked(room - room % 8) {
            Some(split) if rest.len() > room => split,
            _ => (rest, &[][..]),
        };
        part.clear();
        part.extend_from_slice(header);
        part.extend_from_slice(now);
        let more = place.more || !after.is_empty();
        set_place(&mut part, header.len(), offset, more);
        emit(&part);
        // At most 65535, as `parse` has seen where the datagram ends.
        offset = offset.saturating_add(u16::try_from(now.len()).unwrap_or(u16::MAX));
        (rest, header) = (after, later);
    }
    true
}

/// The header of the second and later parts: only what is copied, filled up to words.
fn copied_header<'a>(header: &[u8], room: &'a mut [u8; MAX_HEADER]) -> Option<&'a [u8]> {
    let (fixed, mut options) = header.split_at_checked(HEADER_V4)?;
    room.get_mut(..HEADER_V4)?.copy_from_slice(fixed);
    let mut length = HEADER_V4;
    while let [kind, after @ ..] = options {
        let size = match (kind, after) {
            (0, _) => break,
            (1, _) => 1,
            (_, [size @ (2..), ..]) => usize::from(*size),
            _ => return None,
        };
        let (option, rest) = options.split_at_checked(size)?;
        if kind & COPIED != 0 {
            room.get_mut(length..length + size)?.copy_from_slice(option);
            length += size;
        }
        options = rest;
    }
    let length = length.next_multiple_of(4);
    let words = u8::try_from(length / 4).ok()?;
    room[0] = 0x40 | words;
    room.get(..length)
}

fn set_place(part: &mut [u8], header: usize, offset: u16, more: bool) {
    let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
    // The reserved bit is not kept: it has no meaning (RFC 791), and a part that we make is ours.
    let flags = offset >> 3 | if more { 0x2000 } else { 0 };
    put_word(part, 2, length);
    put_word(part, 6, flags);
    put_word(part, 10, 0);
    let sum = part.get(..header).map_or(0, checksum);
    put_word(part, 10, sum);
}
