//! Lowers the segment size that a new TCP connection announces, so that its packets fit into the tunnel. Without it
//! every connection would begin with packets that are lost or cut up, and some would never get beyond that.

use super::checksum::updated;
use super::parse::{Summary, parse};

/// Kind of the option (RFC 9293).
const MAXIMUM_SEGMENT_SIZE: u8 = 2;
/// IP and TCP header without options.
const HEADERS_V4: u16 = 40;
const HEADERS_V6: u16 = 60;

/// Lowers the MSS of a SYN to what fits into `mtu`; tells whether it changed the packet. For one who has not read the
/// packet yet; see `clamp_mss_of`.
pub fn clamp_mss(packet: &mut [u8], mtu: u16) -> bool {
    parse(packet).is_ok_and(|summary| clamp_mss_of(packet, &summary, mtu))
}

/// Lowers the MSS of a SYN to what fits into `mtu`; tells whether it changed the packet. `summary` is of this packet.
/// An MSS is never raised and never added: without one a peer sends at most 536 bytes (IPv4) or 1220 (IPv6).
pub fn clamp_mss_of(packet: &mut [u8], summary: &Summary, mtu: u16) -> bool {
    if summary.tcp_flags & Summary::SYN == 0 {
        return false;
    }
    let most = mtu.saturating_sub(if summary.is_v4() { HEADERS_V4 } else { HEADERS_V6 });
    let Some((head, options)) = packet.get_mut(summary.transport..).and_then(<[u8]>::split_first_chunk_mut::<20>)
    else {
        return false;
    };
    let length = (usize::from(head[12] >> 4) * 4).saturating_sub(head.len());
    let Some(options) = options.get_mut(..length) else { return false };
    let mut sum = u16::from_be_bytes([head[16], head[17]]);
    let (mut at, mut changed) = (0, false);
    // Every one of them: receivers differ in which of two they believe.
    while let Some(value) = next_mss(options, &mut at) {
        let Some([high, low]) = options.get_mut(value..value + 2) else { break };
        let old = u16::from_be_bytes([*high, *low]);
        if most == 0 || old <= most {
            continue;
        }
        [*high, *low] = most.to_be_bytes();
        // At an odd place its two bytes belong to two words of the sum, each in the other half.
        sum = match value.is_multiple_of(2) {
            true => updated(sum, old, most),
            false => updated(sum, old.swap_bytes(), most.swap_bytes()),
        };
        changed = true;
    }
    [head[16], head[17]] = sum.to_be_bytes();
    changed
}

/// Where the value of the next MSS option stands. Options that make no sense end the search, as they do in receivers.
fn next_mss(options: &[u8], at: &mut usize) -> Option<usize> {
    loop {
        match options.get(*at..)? {
            [] | [0, ..] => return None,
            [1, ..] => *at += 1,
            [kind, length @ (2..), ..] => {
                let (here, length) = (*at, usize::from(*length));
                *at += length;
                if *at > options.len() {
                    return None;
                }
                if (*kind, length) == (MAXIMUM_SEGMENT_SIZE, 4) {
                    return Some(here + 2);
                }
            }
            _ => return None,
        }
    }
}
