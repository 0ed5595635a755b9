//! What HELLO to GOAWAY, OPEN and CONTROL carry: CBOR arrays, fields added only at the end. `hello`, `proof` and `link`
//! follow a link from its first frame to its last, `service` is what a core asks of a relay, `control` what travels
//! beside the streams, `session` what device and node say to each other.

mod control;
mod hello;
mod link;
mod proof;
mod service;
mod session;

pub use control::{
    Control, LaneCall, LaneOffer, LaneRefused, LaneRequest, LicencePresent, LicenceVerdict, OPTIONAL_CONTROL, PairCall,
    PairEnd, PairOffer, PairRefused, PairRequest, Wake,
};
pub use hello::{ALPN_LANE, ALPN_LINK, ALPN_SESSION, Claim, EXPORTER_LABEL, Hello, Limits, MAGIC, Resumption};
pub use link::{Accept, Destination, GoAway, LinkOpen, Refuse, Vouched};
pub use proof::{Proof, Prover, srp_mac, transcript};
pub use service::{CaRegistration, ConfigUpload, OpenActivation, Registrations, Service, ServiceReply, address_hash};
pub use session::{
    Resume, ResumeStream, SessionOpen, TUNNEL_HOST, TunnelAsk, TunnelGrant, resumption_mac, resumption_secret,
};

/// HMAC-SHA-256.
pub(super) fn keyed_hash(key: &[u8], message: &[u8]) -> [u8; 32] {
    use hmac::{Hmac, KeyInit, Mac};
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}
