//! What HELLO to GOAWAY, OPEN and CONTROL carry: CBOR arrays, fields added only at the end.
//!
//! Link hand-shake, over TLS 1.3 whose server certificate the dialler verified:
//! ```text
//!   dialler                                    relay
//!   HELLO {claim: role, tenant; nonce d}  --->
//!                                         <--- HELLO {nonce r}
//!                                         <--- PROOF Srp {MAC as relay}        (only to a core: the relay goes first)
//!   PROOF Srp {MAC as core}               --->
//!     or Certificate {leaf, signature}    --->
//!                                         <--- ACCEPT | REFUSE
//! ```
//! Both proofs are over `transcript`: label, role, tenant, both nonces, and the TLS exporter of RFC 9266.

use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::fault::Fault;
use crate::verify::config::{SignedConfig, Version};
use crate::wire::frame;
use crate::wire::names::{RefusedName, RegisteredName};
use crate::{EntityId, GroupName, InstanceId, Origin, Role, SessionId, TenantId, Ticket, limits};

/// First field of every HELLO: `HDGR`.
pub const MAGIC: u32 = 0x4844_4752;
/// ALPN of a link.
pub const ALPN_LINK: &[u8] = b"hedgerow-link/1";
/// ALPN of a node's lane leg that is wrapped in TLS to the relay.
pub const ALPN_LANE: &[u8] = b"hedgerow-lane/1";
/// ALPN of the end-to-end session.
pub const ALPN_SESSION: &[u8] = b"hedgerow-session/1";
/// Exporter label of RFC 9266 (`tls-exporter`), with an empty context, 32 bytes.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// What a peer takes at most; the other end stays below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Limits {
    /// Streams the other end may have open at once.
    #[n(0)]
    pub streams: u32,
    /// Bytes the other end may send on a new stream before the first WINDOW.
    #[n(1)]
    pub stream_window: u64,
    /// Bytes the other end may send on all streams before the first WINDOW on stream 0.
    #[n(2)]
    pub connection_window: u64,
    /// The largest datagram taken; 0 = none.
    #[n(3)]
    pub datagram: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: limits::MAX_STREAMS,
            stream_window: limits::INITIAL_STREAM_WINDOW,
            connection_window: limits::CONNECTION_WINDOW,
            datagram: u32::try_from(limits::MAX_DATAGRAM).unwrap_or(0),
        }
    }
}

/// Who a dialler says it is, before it has shown it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Claim {
    /// What it is.
    #[n(0)]
    pub role: Role,
    /// Whose it is.
    #[n(1)]
    pub tenant: TenantId,
}

/// Lets a session outlive its lane.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct Resumption {
    /// Which session.
    #[n(0)]
    pub session: SessionId,
    /// In a first HELLO, this end's half of the resumption secret; in a resuming HELLO of the node, `resumption_mac`;
    /// in one of the device, zeros: it proves itself in RESUME, when it knows both nonces.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub secret: [u8; 32],
    /// Whether this HELLO resumes.
    #[n(2)]
    pub resumes: bool,
    /// Adds a lane to a session that has its first one, instead of replacing them all.
    #[n(3)]
    pub adds: bool,
}

impl std::fmt::Debug for Resumption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Resumption({}, resumes: {})", self.session, self.resumes)
    }
}

/// The first frame of each end.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// `MAGIC`.
    #[n(0)]
    pub magic: u32,
    /// Lowest frame-table version spoken.
    #[n(1)]
    pub version_min: u16,
    /// Highest frame-table version spoken.
    #[n(2)]
    pub version_max: u16,
    /// Feature bits; none so far.
    #[n(3)]
    pub features: u64,
    /// Software name and version, for logs; at most 64 bytes are kept.
    #[n(4)]
    pub build: String,
    /// This run of the process.
    #[n(5)]
    pub instance: InstanceId,
    /// Fresh random bytes: the challenge that the other end's proof answers.
    #[cbor(n(6), with = "minicbor::bytes")]
    pub nonce: [u8; 32],
    /// What this end takes.
    #[n(7)]
    pub limits: Limits,
    /// Diallers of links.
    #[n(8)]
    pub claim: Option<Claim>,
    /// End-to-end sessions.
    #[n(9)]
    pub resumption: Option<Resumption>,
}

impl Hello {
    /// A HELLO of this version without claim and resumption.
    #[must_use]
    pub fn new(instance: InstanceId, nonce: [u8; 32], limits: Limits) -> Self {
        Self {
            magic: MAGIC,
            version_min: frame::VERSION,
            version_max: frame::VERSION,
            features: 0,
            build: concat!("hedgerow/", env!("CARGO_PKG_VERSION")).to_owned(),
            instance,
            nonce,
            limits,
            claim: None,
            resumption: None,
        }
    }

    /// The version both ends speak.
    ///
    /// # Errors
    /// A `Version` fault that names both ranges, or `Protocol` when the magic is wrong.
    pub fn agree(&self, other: &Hello) -> Result<u16, Fault> {
        use crate::fault::Code;
        if other.magic != MAGIC {
            return Err(Fault::new(Code::Protocol, "the peer does not speak this protocol"));
        }
        let version = self.version_max.min(other.version_max);
        if version < self.version_min.max(other.version_min) {
            let text = format!(
                "no common protocol version: {} to {} here, {} to {} at the peer ({})",
                self.version_min,
                self.version_max,
                other.version_min,
                other.version_max,
                other.build.chars().take(64).collect::<String>().escape_default()
            );
            return Err(Fault::new(Code::Version, text));
        }
        Ok(version)
    }
}

/// Shows that a peer is who it claims to be.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Proof {
    /// Core and relay: HMAC-SHA-256 by the tenant's SRP authentication key.
    #[n(0)]
    Srp {
        /// The nonce of the other end's HELLO, repeated: tells a replay from a wrong key.
        #[cbor(n(0), with = "minicbor::bytes")]
        challenge: [u8; 32],
        /// HMAC over `transcript`.
        #[cbor(n(1), with = "minicbor::bytes")]
        mac: [u8; 32],
    },
    /// Node and device: ECDSA P-256 signature by the leaf's key.
    #[n(1)]
    Certificate {
        /// The nonce of the other end's HELLO, repeated.
        #[cbor(n(0), with = "minicbor::bytes")]
        challenge: [u8; 32],
        /// The leaf, DER.
        #[cbor(n(1), with = "minicbor::bytes")]
        leaf: Vec<u8>,
        /// Over `transcript`, SHA-256, ASN.1.
        #[cbor(n(2), with = "minicbor::bytes")]
        signature: Vec<u8>,
        /// Origins this session registers; each must stand in the leaf.
        #[n(3)]
        origins: Vec<Origin>,
    },
}

/// Who signs or MACs a transcript: the word goes into it, so that no proof fits the other direction or role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prover {
    /// The relay, to a core.
    Relay,
    /// The dialler, in its role.
    Dialler(Role),
}

/// What a proof is made over.
#[must_use]
pub fn transcript(
    prover: Prover,
    tenant: &TenantId,
    dialler_nonce: &[u8; 32],
    relay_nonce: &[u8; 32],
    exporter: &[u8; 32],
) -> Vec<u8> {
    let word = match prover {
        Prover::Relay => "relay",
        Prover::Dialler(role) => role.as_str(),
    };
    let mut out = b"hedgerow link proof v1\0".to_vec();
    for part in [word.as_bytes(), tenant.as_str().as_bytes(), dialler_nonce, relay_nonce, exporter] {
        out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

/// HMAC-SHA-256 by the SRP key over a transcript.
#[must_use]
pub fn srp_mac(key: &[u8], transcript: &[u8]) -> [u8; 32] {
    keyed_hash(key, transcript)
}

/// The keyed hash under which a core registers an e-mail address and a relay looks it up: HMAC-SHA-256 by the
/// relay's look-up key over the address in lower case.
#[must_use]
pub fn address_hash(lookup_key: &[u8; 32], address: &str) -> [u8; 32] {
    keyed_hash(lookup_key, address.trim().to_lowercase().as_bytes())
}

fn keyed_hash(key: &[u8], message: &[u8]) -> [u8; 32] {
    use hmac::{Hmac, KeyInit, Mac};
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

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

/// Where one end stands on one stream when a session moves to a new lane.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ResumeStream {
    /// The stream.
    #[n(0)]
    pub stream: u32,
    /// Next offset expected.
    #[n(1)]
    pub expected: u64,
    /// Offset up to which the other end may send.
    #[n(2)]
    pub limit: u64,
    /// FINISH seen.
    #[n(3)]
    pub finished: bool,
    /// RESET seen or sent.
    #[n(4)]
    pub reset: bool,
    /// ANSWER seen, or sent.
    #[n(5)]
    pub answered: bool,
}

/// The first frames of each end after a resuming HELLO: the last has `more` unset.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Resume {
    /// Every stream this end holds.
    #[n(0)]
    pub streams: Vec<ResumeStream>,
    /// The highest stream id this end opened; 0 = none.
    #[n(1)]
    pub highest_opened: u32,
    /// The highest stream id of the other end that this end has seen; 0 = none.
    #[n(2)]
    pub highest_accepted: u32,
    /// Another RESUME with more streams follows.
    #[n(3)]
    pub more: bool,
    /// The device's proof, in its first RESUME: `resumption_mac` as `Prover::Dialler`.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub mac: Option<[u8; 32]>,
}

impl Resume {
    /// Streams in one RESUME frame: each takes at most 36 bytes of its 16 KiB.
    pub const STREAMS_PER_FRAME: usize = 400;

    /// The same in frames that fit the wire.
    #[must_use]
    pub fn into_frames(self) -> Vec<Bytes> {
        let mut parts: Vec<_> = self.streams.chunks(Self::STREAMS_PER_FRAME).map(<[_]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let count = parts.len();
        let part = |(at, streams)| Self {
            streams,
            more: at + 1 < count,
            mac: self.mac.filter(|_| at == 0),
            highest_opened: self.highest_opened,
            highest_accepted: self.highest_accepted,
        };
        parts.into_iter().enumerate().map(part).map(|p| frame::cbor(frame::kind::RESUME, 0, &p)).collect()
    }
}

/// The secret that both halves of a first HELLO make: what a later resumption must know.
#[must_use]
pub fn resumption_secret(session: SessionId, device_half: &[u8; 32], node_half: &[u8; 32]) -> [u8; 32] {
    let text = [b"hedgerow session resumption v1\0", session.as_bytes().as_slice(), node_half].concat();
    keyed_hash(device_half, &text)
}

/// What proves, inside a new lane's TLS, that an end knows a session's resumption secret.
#[must_use]
pub fn resumption_mac(
    secret: &[u8; 32],
    prover: Role,
    session: SessionId,
    device_nonce: &[u8; 32],
    node_nonce: &[u8; 32],
) -> [u8; 32] {
    let mut text = b"hedgerow session resume v1\0".to_vec();
    for part in [prover.as_str().as_bytes(), session.as_bytes(), device_nonce, node_nonce] {
        text.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        text.extend_from_slice(part);
    }
    keyed_hash(secret, &text)
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

/// Services of the relay for a tenant's core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Service {
    /// Register the tenant's CA; request `CaRegistration`. A CA key registers once, over all tenants.
    #[n(0)]
    RegisterCa,
    /// Store and obey a configuration for audience `relay`; request `SignedConfig`.
    #[n(1)]
    PutConfig,
    /// Replace the look-up entries and the names that are passed through; request `Registrations`.
    #[n(2)]
    PutRegistrations,
}

/// Request of `Service::RegisterCa`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct CaRegistration {
    /// The CA certificate, DER.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub certificate: Vec<u8>,
}

/// Request of `Service::PutRegistrations`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Registrations {
    /// `address_hash` of every address with an open activation, 32 bytes each, and when it closes (seconds since 1970).
    #[n(0)]
    pub open: Vec<OpenActivation>,
    /// Names whose TLS clients are passed through; at most `names::MAX_NAMES`.
    #[cbor(n(1), default)]
    pub names: Vec<RegisteredName>,
    /// What the core serves on this link besides `core` and `bws`: `mdm`, or nothing.
    #[cbor(n(2), default)]
    pub serves: Vec<Origin>,
}

/// One address that may activate.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct OpenActivation {
    /// `address_hash`.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub hash: [u8; 32],
    /// When it closes, seconds since 1970.
    #[n(1)]
    pub until: u64,
}

/// Answer of a service.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ServiceReply {
    /// `Ok`, or why not.
    #[n(0)]
    pub fault: Fault,
    /// For PutConfig: the version now in force at this relay.
    #[n(1)]
    pub version: Option<Version>,
    /// For PutRegistrations: the names that are not passed through; absent at a relay that knows nothing of names.
    #[n(2)]
    pub refused: Option<Vec<RefusedName>>,
    /// For PutRegistrations: where web-services clients find this relay as an HTTP proxy, such as
    /// `http://relay.example:8080`.
    #[cbor(n(3), default)]
    pub web: Vec<String>,
}

impl ServiceReply {
    /// An answer that says no more than how it went.
    #[must_use]
    pub fn new(fault: Fault) -> Self {
        Self { fault, version: None, refused: None, web: Vec::new() }
    }
}

/// The header in OPEN inside an end-to-end session: a TCP connection from the node to a server inside.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SessionOpen {
    /// Host name, or an address in its usual form.
    #[n(0)]
    pub host: String,
    /// Port.
    #[n(1)]
    pub port: u16,
    /// Ties log lines of one request together.
    #[n(2)]
    pub trace: Option<String>,
}

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
}

/// What a relay keeps and passes on of a configuration; here so that both ends name one type.
pub type ConfigUpload = SignedConfig;

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
        assert_eq!(Control::read(0x8001, b"anything").unwrap(), None);
        assert_eq!(Control::read(0x7001, b"").unwrap_err().code, Code::Protocol);
        assert_eq!(Control::read(5, b"\xff").unwrap_err().code, Code::Protocol);
    }

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

    #[test]
    fn transcripts_differ_in_every_part() {
        let t: TenantId = "S12345678".parse().unwrap();
        let base = transcript(Prover::Relay, &t, &[1; 32], &[2; 32], &[3; 32]);
        for other in [
            transcript(Prover::Dialler(Role::Core), &t, &[1; 32], &[2; 32], &[3; 32]),
            transcript(Prover::Relay, &"S12345679".parse().unwrap(), &[1; 32], &[2; 32], &[3; 32]),
            transcript(Prover::Relay, &t, &[0; 32], &[2; 32], &[3; 32]),
            transcript(Prover::Relay, &t, &[1; 32], &[0; 32], &[3; 32]),
            transcript(Prover::Relay, &t, &[1; 32], &[2; 32], &[0; 32]),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn a_resumption_proof_fits_one_end_one_session_and_one_pair_of_nonces() {
        let session = |n| SessionId::from_random([n; 16]);
        let secret = resumption_secret(session(1), &[1; 32], &[2; 32]);
        let base = resumption_mac(&secret, Role::Device, session(1), &[3; 32], &[4; 32]);
        for other in [
            resumption_mac(&secret, Role::Node, session(1), &[3; 32], &[4; 32]),
            resumption_mac(&secret, Role::Device, session(2), &[3; 32], &[4; 32]),
            resumption_mac(&secret, Role::Device, session(1), &[0; 32], &[4; 32]),
            resumption_mac(&secret, Role::Device, session(1), &[3; 32], &[0; 32]),
            resumption_mac(&[0; 32], Role::Device, session(1), &[3; 32], &[4; 32]),
        ] {
            assert_ne!(base, other);
        }
        assert_ne!(secret, resumption_secret(session(1), &[2; 32], &[1; 32]));
        assert_ne!(secret, resumption_secret(session(2), &[1; 32], &[2; 32]));
    }

    #[test]
    fn versions_agree_or_say_why_not() {
        let hello = Hello::new(InstanceId::from_random([0; 16]), [0; 32], Limits::default());
        assert_eq!(hello.agree(&hello).unwrap(), 1);
        let newer = Hello { version_min: 2, version_max: 9, ..hello.clone() };
        assert_eq!(hello.agree(&newer).unwrap_err().code, Code::Version);
        let other = Hello { magic: 0, ..hello.clone() };
        assert_eq!(hello.agree(&other).unwrap_err().code, Code::Protocol);
    }
}
