//! Names of things. Each has one textual form; parsing is strict and says what is wrong.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Why a name was refused: the kind of name, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} is not valid: {why}")]
pub struct NameError {
    kind: &'static str,
    value: String,
    why: &'static str,
}

impl NameError {
    fn new(kind: &'static str, value: &str, why: &'static str) -> Self {
        let value = value.chars().take(80).collect();
        Self { kind, value, why }
    }
}

/// Seconds since 1970-01-01 UTC. The pure crates take it as an argument; only drivers read the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, Encode, Decode)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct UnixTime(#[n(0)] pub u64);

impl UnixTime {
    /// This moment plus `seconds`, saturating.
    #[must_use]
    pub fn plus(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// Seconds from `earlier` to this moment; 0 when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// One organisation. Has the form of an SRP ID (`S12345678`, `SRP00000`): one to three letters, then five to
/// eight digits. Matched without regard to case (the API manual's clients vary it), kept in capitals.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Encode, Decode)]
#[cbor(transparent)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(#[cbor(n(0), decode_with = "decode_tenant")] String);

fn decode_tenant<C>(d: &mut minicbor::Decoder<'_>, _: &mut C) -> Result<String, minicbor::decode::Error> {
    let text = d.str()?;
    TenantId::from_str(text).map(|t| t.0).map_err(minicbor::decode::Error::message)
}

impl FromStr for TenantId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let letters = text.bytes().take_while(u8::is_ascii_alphabetic).count();
        let digits = text.len() - letters;
        if !(1..=3).contains(&letters) {
            return Err(NameError::new("tenant id", text, "it begins with one to three letters, as in S12345678"));
        }
        if !(5..=8).contains(&digits) || !text.bytes().skip(letters).all(|b| b.is_ascii_digit()) {
            return Err(NameError::new(
                "tenant id",
                text,
                "after the letters stand five to eight digits, as in S12345678",
            ));
        }
        Ok(Self(text.to_ascii_uppercase()))
    }
}

/// Anything a tenant's CA names in a certificate, and users: a random UUID (version 4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Encode, Decode)]
#[cbor(transparent)]
#[serde(try_from = "String", into = "String")]
pub struct EntityId(#[cbor(n(0), with = "minicbor::bytes")] [u8; 16]);

impl EntityId {
    /// Makes an id from 16 random bytes, setting the version and variant bits of RFC 9562.
    #[must_use]
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }

    /// An id from its 16 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for EntityId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::new("id", text, "expected 32 hexadecimal digits in the groups 8-4-4-4-12");
        let dashes: Vec<usize> = text.bytes().enumerate().filter(|(_, b)| *b == b'-').map(|(i, _)| i).collect();
        if text.len() != 36 || dashes != [8, 13, 18, 23] {
            return Err(wrong());
        }
        let hex: String = text.chars().filter(|c| *c != '-').collect::<String>().to_ascii_lowercase();
        let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).map_err(|_| wrong())?;
        Ok(Self(bytes.try_into().map_err(|_| wrong())?))
    }
}

impl fmt::Display for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let h = data_encoding::HEXLOWER.encode(&self.0);
        write!(f, "{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
    }
}

impl fmt::Debug for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
        #[cbor(transparent)]
        pub struct $name(#[cbor(n(0), with = "minicbor::bytes")] [u8; $len]);

        impl $name {
            /// Wraps random bytes.
            #[must_use]
            pub fn from_random(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let bytes = BASE32_NOPAD
                    .decode(text.to_ascii_uppercase().as_bytes())
                    .map_err(|_| NameError::new(stringify!($name), text, "it is not base32"))?;
                let bytes = bytes.try_into().map_err(|_| NameError::new(stringify!($name), text, "it has the wrong length"))?;
                Ok(Self(bytes))
            }
        }
    };
}

random_id! {
    /// One run of a process: random at start, so that a restarted node is told from the one before it.
    InstanceId, 16
}
random_id! {
    /// One link or one end-to-end session.
    SessionId, 16
}
random_id! {
    /// One IP tunnel between a device and a node, as the node names it when it grants the lease.
    TunnelId, 16
}
random_id! {
    /// Single-use permission to bring one leg of a lane: 160 random bits, 32 characters of lower-case base32
    /// (RFC 4648), so that it fits a DNS label.
    Ticket, 20
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A ticket is a secret until it is used: never in a log.
impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(..)")
    }
}

/// A server group (a region or a purpose): letters, digits, `-`, `_`, `.`; at most 63 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Encode, Decode)]
#[cbor(transparent)]
#[serde(try_from = "String", into = "String")]
pub struct GroupName(#[cbor(n(0), decode_with = "decode_group")] String);

fn decode_group<C>(d: &mut minicbor::Decoder<'_>, _: &mut C) -> Result<String, minicbor::decode::Error> {
    let text = d.str()?;
    GroupName::from_str(text).map(|g| g.0).map_err(minicbor::decode::Error::message)
}

impl Default for GroupName {
    fn default() -> Self {
        Self("default".into())
    }
}

impl FromStr for GroupName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if text.is_empty() || text.len() > 63 || !text.bytes().all(ok) {
            return Err(NameError::new("group name", text, "use 1 to 63 letters, digits, '-', '_' or '.'"));
        }
        Ok(Self(text.to_owned()))
    }
}

macro_rules! text_name {
    ($name:ident) => {
        impl $name {
            /// The canonical text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}
text_name!(TenantId);
text_name!(GroupName);

impl TryFrom<String> for EntityId {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<EntityId> for String {
    fn from(id: EntityId) -> String {
        id.to_string()
    }
}

macro_rules! word_enum {
    ($(#[$doc:meta])* $name:ident, $kind:literal { $($(#[$vdoc:meta])* $n:literal $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Encode, Decode)]
        #[cbor(index_only)]
        #[serde(try_from = "String", into = "String")]
        pub enum $name {
            $($(#[$vdoc])* #[n($n)] $variant),+
        }
        impl $name {
            /// Every value, in wire order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// The word used in certificates, configuration and messages.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(NameError::new($kind, text, concat!("known are:", $(" ", $word),+))),
                }
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(v: $name) -> String {
                v.as_str().to_owned()
            }
        }
    };
}

word_enum! {
    /// What a peer is. A certificate names exactly one role.
    Role, "role" {
        /// The tenant's core. Authenticates its link with the SRP key; its certificate serves the inner TLS.
        0 Core = "core",
        /// A connectivity node.
        1 Node = "node",
        /// A device.
        2 Device = "device",
    }
}

word_enum! {
    /// What a stream through the relay may be addressed to; `architecture.md` section 2 has who may reach which.
    Origin, "origin" {
        /// Activation, enrolment, configuration: the core's device services.
        0 Core = "core",
        /// The core's web services (REST).
        1 Bws = "bws",
        /// The node's app proxy and egress.
        2 Proxy = "proxy",
        /// The IP tunnel's signalling.
        3 SecureConnect = "secure-connect",
        /// The cloud connector.
        4 Directory = "directory",
        /// Mail gateway: passed through unopened by server name.
        5 Gateway = "gateway",
        /// Native MDM clients: passed through unopened by server name.
        6 Mdm = "mdm",
    }
}

impl Origin {
    /// Whether a client without a certificate may ask for this origin (rate-limited); the endpoint then
    /// authenticates for itself.
    #[must_use]
    pub fn anonymous(self) -> bool {
        match self {
            Self::Core | Self::Bws => true,
            Self::Proxy | Self::SecureConnect | Self::Directory | Self::Gateway | Self::Mdm => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenant_ids_have_the_form_of_an_srp_id() {
        for good in ["S12345678", "SRP00000", "s73711005"] {
            assert_eq!(good.parse::<TenantId>().unwrap().as_str(), good.to_ascii_uppercase());
        }
        for bad in ["", "S", "12345678", "S1234", "S123456789", "SRPX00000", "S1234567é", "S12345678 ", "S1234\n678"] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn entity_ids_round_trip_and_refuse_other_forms() {
        let id = EntityId::from_random([0xab; 16]);
        assert_eq!(id.to_string().parse::<EntityId>().unwrap(), id);
        assert_eq!(id.to_string().to_uppercase().parse::<EntityId>().unwrap(), id);
        for bad in
            ["", "abababab-abab-4bab-abab-ababababaXab", "abababababab4bababababababababab", "é".repeat(18).as_str()]
        {
            assert!(bad.parse::<EntityId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_ticket_is_a_dns_label_and_never_printed() {
        let ticket = Ticket::from_random([7; 20]);
        let label = ticket.to_string();
        assert!(label.len() <= 63 && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
        assert_eq!(label.parse::<Ticket>().unwrap(), ticket);
        assert_eq!(format!("{ticket:?}"), "Ticket(..)");
    }

    #[test]
    fn wire_decoding_applies_the_same_rules_as_parsing() {
        let bytes = minicbor::to_vec("not a tenant").unwrap();
        assert!(minicbor::decode::<TenantId>(&bytes).is_err());
        let bytes = minicbor::to_vec(TenantId::from_str("S12345678").unwrap()).unwrap();
        assert_eq!(minicbor::decode::<TenantId>(&bytes).unwrap().as_str(), "S12345678");
    }
}
