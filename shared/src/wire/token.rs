//! The enrolment token: one string with everything a node needs to find and trust its tenant.
//!
//! `hedgerow1.` then base64url (no padding) of a CBOR array and the first four bytes of its SHA-256, so that a token
//! damaged in copying is told from a wrong one.

use data_encoding::BASE64URL_NOPAD;
use minicbor::{Decode, Encode};
use sha2::{Digest, Sha256};

use crate::secret::Secret;
use crate::{EntityId, TenantId};

const PREFIX: &str = "hedgerow1.";
const MAX_TEXT: usize = 8 * 1024;

/// Why a token was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin like a token.
    #[error("this is not an enrolment token: one begins with {PREFIX}")]
    NotAToken,
    /// Characters are missing or changed.
    #[error("the enrolment token is damaged: copy it again, whole and on one line")]
    Damaged,
}

/// What the token says.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct EnrolmentToken {
    /// Whose node it will be.
    #[n(0)]
    pub tenant: TenantId,
    /// Relays to dial, `host:port`, in order of preference.
    #[n(1)]
    pub relays: Vec<String>,
    /// SHA-256 of the public key info of the CA under which the relays' TLS certificates stand; absent when they
    /// have certificates of a public CA.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub relay_ca_pin: Option<[u8; 32]>,
    /// SHA-256 of the tenant CA's public key info.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub tenant_ca_pin: [u8; 32],
    /// Which token.
    #[n(4)]
    pub id: EntityId,
    /// The secret that is good once.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub secret: [u8; 32],
}

impl std::fmt::Debug for EnrolmentToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EnrolmentToken({}, {}, relays {:?})", self.id, self.tenant, self.relays)
    }
}

impl EnrolmentToken {
    /// The one string; a secret.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut bytes = minicbor::to_vec(self).unwrap_or_default();
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum[..4]);
        format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }

    /// Reads the string; white space around and line breaks inside are forgiven.
    ///
    /// # Errors
    /// `NotAToken` or `Damaged`; neither repeats the text, which is a secret.
    pub fn from_secret(text: &Secret) -> Result<Self, TokenError> {
        let text = text.expose_text().ok_or(TokenError::NotAToken)?;
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let body = text.strip_prefix(PREFIX).ok_or(TokenError::NotAToken)?;
        if body.len() > MAX_TEXT {
            return Err(TokenError::Damaged);
        }
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| TokenError::Damaged)?;
        let (cbor, sum) = bytes.split_at_checked(bytes.len().saturating_sub(4)).ok_or(TokenError::Damaged)?;
        if Sha256::digest(cbor)[..4] != *sum {
            return Err(TokenError::Damaged);
        }
        minicbor::decode(cbor).map_err(|_| TokenError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> EnrolmentToken {
        EnrolmentToken {
            tenant: "S12345678".parse().unwrap(),
            relays: vec!["relay.example:3101".into()],
            relay_ca_pin: Some([1; 32]),
            tenant_ca_pin: [2; 32],
            id: EntityId::from_random([3; 16]),
            secret: [4; 32],
        }
    }

    #[test]
    fn one_string_carries_everything() {
        let text = token().to_text();
        assert_eq!(EnrolmentToken::from_secret(&Secret::from_text(text.clone())).unwrap(), token());
        let wrapped = format!("  {}\n{}\n", &text[..40], &text[40..]);
        assert_eq!(EnrolmentToken::from_secret(&Secret::from_text(wrapped)).unwrap(), token());
    }

    #[test]
    fn damage_is_told_from_nonsense_and_nothing_is_repeated() {
        let text = token().to_text();
        let cut = Secret::from_text(text[..text.len() - 3].to_owned());
        assert_eq!(EnrolmentToken::from_secret(&cut).unwrap_err(), TokenError::Damaged);
        assert_eq!(EnrolmentToken::from_secret(&Secret::from_text("hello".into())).unwrap_err(), TokenError::NotAToken);
        assert_eq!(EnrolmentToken::from_secret(&Secret::from_text(PREFIX.into())).unwrap_err(), TokenError::Damaged);
        assert!(!format!("{:?}", token()).contains("4, 4"));
    }
}
