//! Inner IP packets, IPv4 (RFC 791) and IPv6 (RFC 8200): what a tunnel carries, read and answered without a socket.
//!
//! Itinerary of a packet, at both ends: `parse` (what is not one whole, honest packet goes no further) → the policy →
//! `clamp_mss_of` (so that TCP never sends what does not fit) → if it still does not fit, `fragment_v4` or `too_big`.
//! Whom the policy denies hears `unreachable` instead of hanging. None of the first three allocates.
//!
//! How many answers are sent in a second is for the caller to bound, who has a clock (RFC 4443 section 2.4 f).

mod checksum;
mod fragment;
mod headers;
mod malformed;
mod mss;
mod parse;
mod reply;

pub use checksum::{Sum, checksum, updated};
pub use fragment::fragment_v4;
pub use malformed::Malformed;
pub use mss::{clamp_mss, clamp_mss_of};
pub use parse::{Fragment, Icmp, Quoted, Summary, parse, udp_payload};
pub use reply::{MIN_MTU_V4, MIN_MTU_V6, too_big, unreachable};

/// Protocol numbers (IANA) that are treated in a special way.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMP_V6: u8 = 58;
}

#[cfg(test)]
pub(crate) mod build;
#[cfg(test)]
mod tests;
