//! Connections that a balancer before the relay passes on: whose they are stands in a PROXY header. A balancer is whom
//! `listen.trusted_proxies` names, nobody else. It must send a header with every connection: if it could leave it out,
//! its clients could send one of their own.

use std::net::{IpAddr, SocketAddr};

use bytes::{Buf, BytesMut};
use hedgerow_runtime::proxy_protocol::{self, Parsed, Version};
use hedgerow_shared::fault::DropReason;
use hedgerow_shared::verify::policy::TargetPattern;
use tokio::net::TcpStream;

use super::fill;

/// Whether this address may say whose connections it passes on.
#[must_use]
pub fn is_trusted(trusted: &[TargetPattern], address: IpAddr) -> bool {
    trusted.iter().any(|network| network.covers_address(address))
}

/// Whose connection it is: the header is read, checked and taken out of `first`, which keeps what came behind it. The
/// balancer's own connections, and those it knows no client of, count as the balancer's.
pub(super) async fn client(
    tcp: &TcpStream,
    balancer: SocketAddr,
    first: &mut BytesMut,
) -> Result<SocketAddr, Option<DropReason>> {
    let refused = |why| {
        tracing::warn!(%balancer, why, "a connection of a trusted proxy was refused");
        Err(Some(DropReason::ProxyHeader))
    };
    loop {
        match proxy_protocol::parse(first) {
            Parsed::Incomplete(wanted) => fill(tcp, first, wanted, DropReason::ProxyHeader).await?,
            Parsed::Absent => return refused("it has no PROXY header: is the proxy set to send one?"),
            Parsed::Malformed(why) => return refused(why),
            Parsed::Header(header) => {
                first.advance(header.length);
                let label = match (header.client, header.version) {
                    (None, _) => "no_client",
                    (Some(_), Version::One) => "v1",
                    (Some(_), Version::Two) => "v2",
                };
                metrics::counter!("hedgerow_relay_proxy_headers_total", "kind" => label).increment(1);
                return Ok(header.client.unwrap_or(balancer));
            }
        }
    }
}

/// Why a connection with unknown first bytes is closed: a header of somebody who is not trusted has a reason of its own,
/// so that a balancer that is missing in the list is found.
pub(super) fn reason(first: &[u8]) -> DropReason {
    match proxy_protocol::parse(first) {
        Parsed::Header(_) | Parsed::Malformed(_) => DropReason::ProxyHeader,
        Parsed::Incomplete(_) | Parsed::Absent => DropReason::UnknownFirstBytes,
    }
}
