//! A link from ACCEPT to GOAWAY: how it opens, what its streams are for, and how it ends.

use minicbor::{Decode, Encode};

use super::service::Service;
use crate::fault::Fault;
use crate::verify::config::Version;
use crate::{EntityId, GroupName, InstanceId, Origin, Role, SessionId, TenantId};

/// The link is open.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Accept {
    /// Its id, as the relay's session list shows it.
    #[n(0)]
    pub session: SessionId,
    /// The relay's configured name: what lane server names end in.
    #[n(1)]
    pub relay: String,
    /// To cores only: the key for `address_hash`.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub lookup_key: Option<[u8; 32]>,
    /// To cores: the newest configuration the relay holds.
    #[n(3)]
    pub config: Option<Version>,
    /// The relay's clock, seconds since 1970, for diagnosis only.
    #[n(4)]
    pub time: u64,
}

/// The link will not open.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Refuse {
    /// Why.
    #[n(0)]
    pub fault: Fault,
    /// Milliseconds to wait before the next attempt.
    #[n(1)]
    pub retry_after_ms: u64,
}

/// Which part of a tenant a stream or lane is for.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Destination {
    /// The tenant; on a link it must be the link's own.
    #[n(0)]
    pub tenant: TenantId,
    /// What to reach.
    #[n(1)]
    pub origin: Origin,
    /// Served by this group; any when absent.
    #[n(2)]
    pub group: Option<GroupName>,
    /// Served by this process only.
    #[n(3)]
    pub instance: Option<InstanceId>,
    /// The node whose process that is, so that a relay can tell when another process took its place.
    #[n(4)]
    pub node: Option<EntityId>,
}

/// The header in OPEN on a link.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum LinkOpen {
    /// A stream through the relay; the relay fills in `vouched` and passes it on.
    #[n(0)]
    Through {
        /// Where to.
        #[n(0)]
        to: Destination,
        /// Set by the relay; ignored from anyone else.
        #[n(1)]
        vouched: Option<Vouched>,
        /// Ties log lines of one request together, 32 hexadecimal digits.
        #[n(2)]
        trace: Option<String>,
    },
    /// A service of the relay itself, for cores: one CBOR request on the stream, FINISH, one CBOR `ServiceReply`.
    #[n(1)]
    Service {
        /// Which.
        #[n(0)]
        service: Service,
    },
}

/// What the relay says of the peer behind a stream or a lane. **For logs only**: endpoints decide by the end-to-end
/// certificate.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Vouched {
    /// Role; absent for anonymous clients.
    #[n(0)]
    pub role: Option<Role>,
    /// Whose certificate.
    #[n(1)]
    pub id: Option<EntityId>,
    /// Network address and port of the peer.
    #[n(2)]
    pub address: String,
}

/// The sender will take no new streams and close.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct GoAway {
    /// Why.
    #[n(0)]
    pub fault: Fault,
    /// Come back in so many milliseconds,
    #[n(1)]
    pub return_after_ms: u64,
    /// or try these relays (`host:port`) at once.
    #[n(2)]
    pub alternatives: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Code;

    #[test]
    fn fields_added_later_do_not_disturb_this_version() {
        #[derive(Encode)]
        struct FutureRefuse {
            #[n(0)]
            fault: Fault,
            #[n(1)]
            retry_after_ms: u64,
            #[n(2)]
            news: String,
        }
        let future = FutureRefuse { fault: Fault::new(Code::Limited, "x"), retry_after_ms: 5, news: "n".into() };
        let refuse: Refuse = minicbor::decode(&minicbor::to_vec(future).unwrap()).unwrap();
        assert_eq!(refuse.retry_after_ms, 5);
    }
}
