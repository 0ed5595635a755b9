//! CONTROL: small, bounded messages beside the streams of a link.

use bytes::Bytes;
use minicbor::{Decode, Encode};

use super::link::{Destination, Vouched};
use crate::fault::Fault;
use crate::verify::licence::{SignedLicence, Standing};
use crate::wire::frame;
use crate::wire::tunnel::{Half, HalfId};
use crate::{EntityId, InstanceId, Origin, Role, Ticket, TunnelId};

/// Kinds of CONTROL from here on are optional: a reader that does not know one skips and counts it.
pub const OPTIONAL_CONTROL: u16 = 0x8000;

macro_rules! controls {
    ($($(#[$doc:meta])* $kind:literal $name:ident { $($(#[$fdoc:meta])* $n:literal $field:ident : $type:ty),* $(,)? }),+ $(,)?) => {
        /// A control message of a link. Small and bounded; bulk goes on streams.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Control { $($(#[$doc])* $name($name)),+ }

        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
            pub struct $name { $($(#[$fdoc])* #[n($n)] pub $field: $type),* }

            impl From<$name> for Control {
                fn from(message: $name) -> Control {
                    Control::$name(message)
                }
            }
        )+

        impl Control {
            /// The whole CONTROL frame.
            #[must_use]
            pub fn to_frame(&self) -> Bytes {
                match self {
                    $(Self::$name(m) => frame::control($kind, &minicbor::to_vec(m).unwrap_or_default())),+
                }
            }

            /// Reads the body of a CONTROL frame; `None` for an unknown optional kind.
            ///
            /// # Errors
            /// A `Protocol` fault naming the kind.
            pub fn read(kind: u16, body: &[u8]) -> Result<Option<Self>, Fault> {
                let bad = |_| Fault::new(crate::fault::Code::Protocol, format!("control message {kind:#06x} is malformed"));
                match kind {
                    $($kind => minicbor::decode(body).map(|m| Some(Self::$name(m))).map_err(bad),)+
                    k if k >= OPTIONAL_CONTROL => Ok(None),
                    k => Err(Fault::new(crate::fault::Code::Protocol, format!("unknown required control message {k:#06x}"))),
                }
            }
        }
    };
}

controls! {
    /// Device to relay: a lane, please.
    0x0001 LaneRequest {
        /// Repeated in the answer.
        0 request: u32,
        /// What to reach; its tenant is the link's.
        1 to: Destination,
    },
    /// Relay to device: dial `<ticket>.lane.<relay>` now.
    0x0002 LaneOffer {
        /// Of the request.
        0 request: u32,
        /// For the device's leg.
        1 ticket: Ticket,
        /// The node that will be at the other end: its certificate must name this id.
        2 node: EntityId,
        /// Its process.
        3 instance: InstanceId,
    },
    /// Relay to device: no lane.
    0x0003 LaneRefused {
        /// Of the request.
        0 request: u32,
        /// Why.
        1 fault: Fault,
    },
    /// Relay to node: bring the other leg.
    0x0004 LaneCall {
        /// For the node's leg.
        0 ticket: Ticket,
        /// What it is for.
        1 origin: Origin,
        /// Who is at the other end, for logs.
        2 vouched: Vouched,
    },
    /// Core to relay: wake these; relay to node or device: ask the core for news. Carries nothing else.
    0x0005 Wake {
        /// Every live session of these roles,
        0 roles: Vec<Role>,
        /// and these.
        1 ids: Vec<EntityId>,
    },
    /// Device to relay: let the tunnel's datagrams pass between me and this process of a node. Asked again on every new
    /// link; the pairing made before for the same tunnel ends.
    0x8001 PairRequest {
        /// Repeated in the answer.
        0 request: u32,
        /// What the node calls it.
        1 tunnel: TunnelId,
        /// The node,
        2 node: EntityId,
        /// and its process.
        3 instance: InstanceId,
    },
    /// Relay to device: the pairing stands.
    0x8002 PairOffer {
        /// Of the request.
        0 request: u32,
        /// The device's half.
        1 half: Half,
    },
    /// Relay to device: no pairing.
    0x8003 PairRefused {
        /// Of the request.
        0 request: u32,
        /// Why.
        1 fault: Fault,
    },
    /// Relay to node: the pairing stands.
    0x8004 PairCall {
        /// What the node calls it.
        0 tunnel: TunnelId,
        /// The node's half.
        1 half: Half,
        /// Who is at the other end, by the relay's word: for logs.
        2 vouched: Vouched,
    },
    /// Either way: the pairing with this half of the receiver's, or of the sender's, is over.
    0x8005 PairEnd {
        /// The end's own half.
        0 half: HalfId,
        /// Why.
        1 fault: Fault,
    },
    /// Core to relay: our tenant's licence. Shown on every new link, and again when another one is installed.
    0x8006 LicencePresent {
        /// Repeated in the answer.
        0 request: u32,
        /// As its operator signed it.
        1 licence: SignedLicence,
    },
    /// Relay to core: what it makes of the licence that was shown.
    0x8007 LicenceVerdict {
        /// Of the presentation.
        0 request: u32,
        /// `Ok` when it is the tenant's licence here from now on; otherwise why not.
        1 fault: Fault,
        /// Where it stands by the relay's clock, when it was accepted.
        2 standing: Option<Standing>,
        /// Whether this relay refuses devices and nodes of tenants without a licence that works.
        3 required: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Code;

    #[test]
    fn controls_round_trip_and_unknown_ones_are_told_apart() {
        let wake: Control = Wake { roles: vec![Role::Node], ids: vec![] }.into();
        let frame = wake.to_frame();
        let body = &frame[frame::HEADER + 2..];
        assert_eq!(Control::read(5, body).unwrap(), Some(wake));
        assert_eq!(Control::read(0xfff0, b"anything").unwrap(), None);
        assert_eq!(Control::read(0x7001, b"").unwrap_err().code, Code::Protocol);
        assert_eq!(Control::read(5, b"\xff").unwrap_err().code, Code::Protocol);
    }
}
