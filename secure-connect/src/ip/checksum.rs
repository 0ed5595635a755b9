//! The checksum of the Internet protocols (RFC 1071), and its update in place (RFC 1624).

use std::net::IpAddr;

/// A sum being made of several parts. Every part but the last has an even length.
#[derive(Debug, Clone, Copy, Default)]
#[must_use]
pub struct Sum(u64);

impl Sum {
    /// Adds a part.
    pub fn plus(self, bytes: &[u8]) -> Self {
        // Four bytes at a time: 2^16 counts as 1 in this arithmetic, so it does not matter which half a word stands in.
        let (words, rest) = bytes.as_chunks::<4>();
        let sum: u64 = words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum();
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        Self(self.0 + sum + u64::from(u32::from_be_bytes(last)))
    }

    /// The pseudo-header of TCP, UDP and ICMPv6 (RFC 9293, RFC 8200 section 8.1). Addresses are of one family.
    pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Self {
        let mut sum = Self::default();
        for address in [source, destination] {
            sum = match address {
                IpAddr::V4(address) => sum.plus(&address.octets()),
                IpAddr::V6(address) => sum.plus(&address.octets()),
            };
        }
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        sum.plus(&length.to_be_bytes()).plus(&[0, protocol])
    }

    /// The checksum: what stands in the header, where the sum was made with zero. Over bytes that hold their checksum
    /// it is 0 when that is right.
    #[must_use]
    pub fn finish(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap_or(u16::MAX)
    }
}

/// The checksum of one run of bytes.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum::default().plus(bytes).finish()
}

/// The checksum after one 16-bit word that it covers was changed (RFC 1624, equation 3). A wrong one stays wrong: a
/// packet damaged or forged on its way is not made good here.
#[must_use]
pub fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    let mut sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}
