//! Why a packet goes no further.

use std::fmt;

/// Why a packet was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Malformed {
    /// No byte at all.
    Empty,
    /// Neither 4 nor 6.
    Version,
    /// The header is longer than the packet, or shorter than a header is.
    HeaderLength,
    /// The length that the header tells is not the number of bytes.
    TotalLength,
    /// Options of IPv4 that do not fill their room as they say.
    Options,
    /// Extension headers of IPv6 that are cut off, repeated, out of place or too many.
    Extension,
    /// A source route: the packet would travel on to an address that no rule was asked about (RFC 5095, RFC 7126).
    SourceRoute,
    /// A first fragment without the whole transport header, or one laid over it (RFC 1858, RFC 7112).
    TinyFragment,
    /// A fragment that ends beyond the largest datagram, is empty, or does not end where the next can begin.
    FragmentBounds,
    /// A transport header that is cut off or lies about its length.
    Transport,
    /// Nobody can be the sender: multicast, broadcast, unspecified, loopback, link-local, the receiver itself.
    Source,
    /// The destination is not one that routers forward to: multicast, broadcast, unspecified, loopback, link-local. A
    /// host sends many of these to its own network, so they are no sign of an attack.
    NotRouted,
    /// No hop left.
    HopLimit,
    /// "Packet too big" with a size that no network has: a forger makes the sender crawl with it.
    ForgedMtu,
}

impl Malformed {
    /// Every reason.
    pub const ALL: &'static [Self] = &[
        Self::Empty,
        Self::Version,
        Self::HeaderLength,
        Self::TotalLength,
        Self::Options,
        Self::Extension,
        Self::SourceRoute,
        Self::TinyFragment,
        Self::FragmentBounds,
        Self::Transport,
        Self::Source,
        Self::NotRouted,
        Self::HopLimit,
        Self::ForgedMtu,
    ];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Version => "version",
            Self::HeaderLength => "header_length",
            Self::TotalLength => "total_length",
            Self::Options => "options",
            Self::Extension => "extension",
            Self::SourceRoute => "source_route",
            Self::TinyFragment => "tiny_fragment",
            Self::FragmentBounds => "fragment_bounds",
            Self::Transport => "transport",
            Self::Source => "source",
            Self::NotRouted => "not_routed",
            Self::HopLimit => "hop_limit",
            Self::ForgedMtu => "forged_mtu",
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the packet is empty",
            Self::Version => "the packet is neither IPv4 nor IPv6",
            Self::HeaderLength => "the length of the header is wrong",
            Self::TotalLength => "the length in the header is not the length of the packet",
            Self::Options => "the options of the header are malformed",
            Self::Extension => "the extension headers are malformed",
            Self::SourceRoute => "the packet has a source route",
            Self::TinyFragment => "the first fragment does not hold the transport header",
            Self::FragmentBounds => "the fragment has an impossible place or length",
            Self::Transport => "the transport header is malformed",
            Self::Source => "the source is no address of a host",
            Self::NotRouted => "the destination is not one that is routed",
            Self::HopLimit => "the packet has no hop left",
            Self::ForgedMtu => "the packet announces a path smaller than any",
        })
    }
}

impl std::error::Error for Malformed {}
