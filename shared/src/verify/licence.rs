//! A licence: which features a tenant may use at a relay, with how many devices, and until when.
//!
//! The payload is JSON; unknown fields are kept out of the way of older readers, unknown features are kept and grant
//! nothing. It is signed as `CONTEXT || payload` by an operator's licence key, whose public half stands in the relay's
//! configuration. On disk and in mail it is one PEM block, `HEDGEROW LICENCE`, around the CBOR of `SignedLicence`; text
//! before and behind the block is passed over, so that a mail can be saved as it came.

mod pem;

use std::collections::BTreeSet;
use std::fmt;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Origin, TenantId, UnixTime};

/// Separates this signature from every other use of the key.
pub const CONTEXT: &[u8] = b"hedgerow licence v1\0";
/// The largest text read as a licence, bytes: one block and what a mail has around it.
pub const MAX_TEXT: usize = 16 * 1024;
/// The largest payload, bytes: signed and around it, it still is one CONTROL frame.
pub const MAX_PAYLOAD: usize = 8 * 1024;
/// The longest signature, bytes: ECDSA P-256 in ASN.1 has at most 72.
const MAX_SIGNATURE: usize = 80;
/// The longest id, characters.
pub const MAX_ID: usize = 64;
/// The longest name of a licensee, characters.
pub const MAX_LICENSEE: usize = 200;
/// Features that one licence may name,
pub const MAX_FEATURES: usize = 64;
/// and the longest name of one, characters.
pub const MAX_FEATURE: usize = 32;
/// The label of the PEM block.
const LABEL: &str = "HEDGEROW LICENCE";
/// So many seconds before a licence ends, people are told.
pub const WARNING_SECONDS: u64 = 30 * 24 * 3600;

/// Why a licence or a licence key was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LicenceError {
    /// Not a licence at all.
    #[error("this is no licence: {0}")]
    Malformed(String),
    /// Not a public key that licences can be verified with.
    #[error("this is no public licence key: {0}")]
    BadKey(&'static str),
    /// No key was given to verify with.
    #[error("no licence keys are configured here, so nothing can be verified")]
    NoKeys,
    /// None of the keys made the signature.
    #[error("the licence was not signed by any licence key known here, or was changed since")]
    Signature,
    /// It is another tenant's.
    #[error("the licence is for tenant {0}, not for this one")]
    WrongTenant(TenantId),
}

/// What can be licensed. Its spelling is that of the origin where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Feature {
    /// Lanes and streams to nodes; tunnels are asked for inside a session, so they need it too.
    Proxy,
    /// IP tunnels.
    Tunnel,
    /// Mail gateways, reached by server name.
    Gateway,
    /// The cloud connector.
    Directory,
    /// Native MDM clients, reached by server name.
    Mdm,
}

impl Feature {
    /// Every feature.
    pub const ALL: &'static [Self] = &[Self::Proxy, Self::Tunnel, Self::Gateway, Self::Directory, Self::Mdm];

    /// As licences spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Tunnel => "tunnel",
            Self::Gateway => "gateway",
            Self::Directory => "directory",
            Self::Mdm => "mdm",
        }
    }

    /// What a stream, lane or passed-through connection to an origin needs. Nothing for what a tenant is mended by.
    #[must_use]
    pub fn of(origin: Origin) -> Option<Self> {
        match origin {
            Origin::Core | Origin::Bws => None,
            Origin::Proxy => Some(Self::Proxy),
            Origin::SecureConnect => Some(Self::Tunnel),
            Origin::Directory => Some(Self::Directory),
            Origin::Gateway => Some(Self::Gateway),
            Origin::Mdm => Some(Self::Mdm),
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was licensed to whom. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Licence {
    /// Its number, for people who speak about it.
    pub id: String,
    /// Whose it is.
    pub tenant: TenantId,
    /// The organisation's name.
    pub licensee: String,
    /// When it was signed; of two licences of a tenant the one issued later counts.
    pub issued: UnixTime,
    /// From when on it is valid.
    pub not_before: UnixTime,
    /// When it ends.
    pub expires: UnixTime,
    /// For how long after its end everything goes on, with warnings.
    #[serde(default)]
    pub grace_seconds: u64,
    /// Devices that may be linked, or active, at once; no bound when absent.
    #[serde(default)]
    pub seats: Option<u32>,
    /// What it grants: names of `Feature`, and others that a newer version may know.
    #[serde(default)]
    pub features: BTreeSet<String>,
}

/// Where a licence stands at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Standing {
    /// It is not valid yet.
    #[n(0)]
    NotYet {
        /// From when on it is.
        #[n(0)]
        from: UnixTime,
    },
    /// It is valid.
    #[n(1)]
    Valid {
        /// For so many seconds more.
        #[n(0)]
        expires_in: u64,
    },
    /// It has ended, and everything goes on for a while.
    #[n(2)]
    Grace {
        /// Until then.
        #[n(0)]
        until: UnixTime,
    },
    /// It has ended, and its grace too.
    #[n(3)]
    Expired,
}

impl Standing {
    /// One word for JSON and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotYet { .. } => "not_yet",
            Self::Valid { .. } => "valid",
            Self::Grace { .. } => "grace",
            Self::Expired => "expired",
        }
    }

    /// Whether what the licence grants may be used.
    #[must_use]
    pub fn works(self) -> bool {
        matches!(self, Self::Valid { .. } | Self::Grace { .. })
    }
}

impl Licence {
    /// Where it stands at `now`: valid from `not_before` up to `expires`, then in grace for `grace_seconds`.
    #[must_use]
    pub fn standing(&self, now: UnixTime) -> Standing {
        let until = self.grace_until();
        if now < self.not_before {
            Standing::NotYet { from: self.not_before }
        } else if now < self.expires {
            Standing::Valid { expires_in: self.expires.since(now) }
        } else if now < until {
            Standing::Grace { until }
        } else {
            Standing::Expired
        }
    }

    /// The end of its grace.
    #[must_use]
    pub fn grace_until(&self) -> UnixTime {
        self.expires.plus(self.grace_seconds)
    }

    /// Whether it names a feature. When it may be used is `standing`'s answer.
    #[must_use]
    pub fn grants(&self, feature: Feature) -> bool {
        self.features.contains(feature.as_str())
    }

    /// What people should be told at `now`: nothing while it is valid for longer than `WARNING_SECONDS`.
    #[must_use]
    pub fn warning(&self, now: UnixTime) -> Option<String> {
        let days = |seconds: u64| match seconds.div_ceil(24 * 3600) {
            1 => "1 day".to_owned(),
            n => format!("{n} days"),
        };
        let id = &self.id;
        match self.standing(now) {
            Standing::NotYet { from } => Some(format!("licence {id} begins in {}", days(from.since(now)))),
            Standing::Valid { expires_in } if expires_in >= WARNING_SECONDS => None,
            Standing::Valid { expires_in } => Some(format!("licence {id} ends in {}", days(expires_in))),
            Standing::Grace { until } => {
                Some(format!("licence {id} has ended; everything goes on for {} more", days(until.since(now))))
            }
            Standing::Expired => Some(format!("licence {id} has ended, and its grace too")),
        }
    }

    /// The JSON that is signed, checked as a reader will.
    ///
    /// # Errors
    /// `Malformed`: what is out of bounds.
    pub fn payload(&self) -> Result<Vec<u8>, LicenceError> {
        self.check()?;
        let payload = serde_json::to_vec(self).map_err(|e| LicenceError::Malformed(e.to_string()))?;
        bounded(payload.len(), MAX_PAYLOAD)?;
        Ok(payload)
    }

    fn check(&self) -> Result<(), LicenceError> {
        let bad = |why: &str| Err(LicenceError::Malformed(why.to_owned()));
        if self.id.is_empty() || self.id.len() > MAX_ID || !self.id.bytes().all(|b| b.is_ascii_graphic()) {
            return bad("its id has to be 1 to 64 visible ASCII characters without blanks");
        }
        if self.licensee.chars().count() > MAX_LICENSEE || self.licensee.chars().any(char::is_control) {
            return bad("the licensee's name is longer than 200 characters, or has control characters in it");
        }
        let name = |f: &String| {
            (1..=MAX_FEATURE).contains(&f.len()) && f.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        };
        if self.features.len() > MAX_FEATURES || !self.features.iter().all(name) {
            return bad("more than 64 features, or one that is not 1 to 32 small letters, digits and hyphens");
        }
        if self.expires <= self.not_before {
            return bad("it ends before it begins");
        }
        Ok(())
    }
}

fn bounded(length: usize, most: usize) -> Result<(), LicenceError> {
    if length > most {
        return Err(LicenceError::Malformed(format!("it is larger than {most} bytes")));
    }
    Ok(())
}

/// A licence as it travels (CBOR) and, inside PEM, lies on disk.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SignedLicence {
    /// The JSON that was signed.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub payload: Vec<u8>,
    /// ECDSA P-256 SHA-256 over `CONTEXT || payload`, ASN.1.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: Vec<u8>,
}

impl SignedLicence {
    /// What is signed for a payload.
    #[must_use]
    pub fn message(payload: &[u8]) -> Vec<u8> {
        [CONTEXT, payload].concat()
    }

    /// Reads the PEM block in a text. What it says is not verified.
    ///
    /// # Errors
    /// `Malformed`.
    pub fn from_pem(text: &str) -> Result<Self, LicenceError> {
        bounded(text.len(), MAX_TEXT)?;
        let der = pem::read(text, LABEL).map_err(|why| LicenceError::Malformed(why.to_owned()))?;
        let malformed = || LicenceError::Malformed("its block is damaged; copy it again, whole".into());
        let signed: Self = minicbor::decode(&der).map_err(|_| malformed())?;
        // One form only: nothing hides behind it or in it.
        if minicbor::to_vec(&signed).is_ok_and(|again| again == der) { Ok(signed) } else { Err(malformed()) }
    }

    /// One PEM block, with line ends.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::write(LABEL, &minicbor::to_vec(self).unwrap_or_default())
    }

    /// Reads what it says **without verifying it**: to show it, and for the core, which has no licence keys.
    ///
    /// # Errors
    /// `Malformed`.
    pub fn unverified(&self) -> Result<Licence, LicenceError> {
        bounded(self.payload.len(), MAX_PAYLOAD)?;
        bounded(self.signature.len(), MAX_SIGNATURE)?;
        let licence: Licence =
            serde_json::from_slice(&self.payload).map_err(|e| LicenceError::Malformed(e.to_string()))?;
        licence.check()?;
        Ok(licence)
    }

    /// Verifies the signature by one of `keys`, then reads. Gives the key's id too. Whether it is valid now is
    /// `Licence::standing`'s answer.
    ///
    /// # Errors
    /// `NoKeys`, `Signature`, `Malformed`. Nothing of the payload is looked at before its signature holds.
    pub fn verify(&self, keys: &[LicenceKey]) -> Result<(Licence, [u8; 32]), LicenceError> {
        if keys.is_empty() {
            return Err(LicenceError::NoKeys);
        }
        bounded(self.payload.len(), MAX_PAYLOAD)?;
        bounded(self.signature.len(), MAX_SIGNATURE)?;
        let message = Self::message(&self.payload);
        let by = keys.iter().find(|key| key.made(&message, &self.signature)).ok_or(LicenceError::Signature)?;
        Ok((self.unverified()?, by.id()))
    }
}

/// The public half of an operator's licence key: ECDSA P-256.
#[derive(Clone, PartialEq, Eq)]
pub struct LicenceKey {
    /// SubjectPublicKeyInfo, DER, of the one form that P-256 keys have.
    info: Vec<u8>,
    id: [u8; 32],
}

impl fmt::Debug for LicenceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LicenceKey({})", data_encoding::HEXLOWER.encode(&self.id()))
    }
}

/// What stands before the uncompressed point of a P-256 key (RFC 5480).
const P256_INFO: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Bytes of an uncompressed point.
const POINT: usize = 65;

impl LicenceKey {
    /// From SubjectPublicKeyInfo, DER.
    ///
    /// # Errors
    /// `BadKey`.
    pub fn from_der(info: &[u8]) -> Result<Self, LicenceError> {
        match info.strip_prefix(P256_INFO) {
            Some(point) if point.len() == POINT && point.first() == Some(&4) => {
                Ok(Self { info: info.to_vec(), id: Sha256::digest(info).into() })
            }
            _ => Err(LicenceError::BadKey("expected an ECDSA P-256 key with its point uncompressed")),
        }
    }

    /// From the PEM block `PUBLIC KEY` that `hedgerow licence keygen` and OpenSSL write.
    ///
    /// # Errors
    /// `BadKey`.
    pub fn from_pem(text: &str) -> Result<Self, LicenceError> {
        if text.len() > MAX_TEXT {
            return Err(LicenceError::BadKey("it is larger than 16 KiB"));
        }
        Self::from_der(&pem::read(text, "PUBLIC KEY").map_err(LicenceError::BadKey)?)
    }

    /// One PEM block, with line ends.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::write("PUBLIC KEY", &self.info)
    }

    /// SHA-256 of the public key info.
    #[must_use]
    pub fn id(&self) -> [u8; 32] {
        self.id
    }

    fn made(&self, message: &[u8], signature: &[u8]) -> bool {
        let point = self.info.get(P256_INFO.len()..).unwrap_or_default();
        webpki::aws_lc_rs::ECDSA_P256_SHA256.verify_signature(point, message, signature).is_ok()
    }
}

#[cfg(test)]
mod tests;
