//! The keys that are QUIC's own, beside TLS: of stateless resets and of address tokens. quinn makes them with the
//! library it was compiled for; here they come from the one that the configuration names, as in TLS.

use std::sync::Arc;

use quinn::crypto::{AeadKey, CryptoError, HandshakeTokenKey, HmacKey};
use ring::{aead, hkdf, hmac};

use crate::clock::random;
use crate::tls::{self, Provider};

/// HMAC-SHA-256 for stateless resets (RFC 9000 section 10.3).
pub(super) fn reset(key: &[u8; 32]) -> Arc<dyn HmacKey> {
    reset_by(tls::status().provider, key)
}

/// For address tokens (RFC 9000 section 8.1.3), new in every process.
pub(super) fn tokens() -> Arc<dyn HandshakeTokenKey> {
    tokens_by(tls::status().provider, &random())
}

fn reset_by(provider: Provider, key: &[u8; 32]) -> Arc<dyn HmacKey> {
    match provider {
        Provider::AwsLcRs => Arc::new(aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key)),
        Provider::Ring => Arc::new(RingHmac(hmac::Key::new(hmac::HMAC_SHA256, key))),
    }
}

fn tokens_by(provider: Provider, secret: &[u8; 32]) -> Arc<dyn HandshakeTokenKey> {
    match provider {
        Provider::AwsLcRs => Arc::new(aws_lc_rs::hkdf::Salt::new(aws_lc_rs::hkdf::HKDF_SHA256, &[]).extract(secret)),
        Provider::Ring => Arc::new(RingTokens(hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(secret))),
    }
}

struct RingHmac(hmac::Key);

impl HmacKey for RingHmac {
    fn sign(&self, data: &[u8], out: &mut [u8]) {
        out.copy_from_slice(hmac::sign(&self.0, data).as_ref());
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        hmac::verify(&self.0, data, signature).map_err(|_| CryptoError)
    }
}

struct RingTokens(hkdf::Prk);

impl HandshakeTokenKey for RingTokens {
    fn aead_from_hkdf(&self, random_bytes: &[u8]) -> Box<dyn AeadKey> {
        let info = [random_bytes];
        let key = self.0.expand(&info, &aead::AES_256_GCM).expect("one key is shorter than HKDF's limit");
        Box::new(RingAead(aead::LessSafeKey::new(key.into())))
    }
}

/// A key for one token: the nonce is always the same.
struct RingAead(aead::LessSafeKey);

impl RingAead {
    fn nonce() -> aead::Nonce {
        aead::Nonce::assume_unique_for_key([0; aead::NONCE_LEN])
    }
}

impl AeadKey for RingAead {
    fn seal(&self, data: &mut Vec<u8>, additional_data: &[u8]) -> Result<(), CryptoError> {
        let aad = aead::Aad::from(additional_data);
        self.0.seal_in_place_append_tag(Self::nonce(), aad, data).map_err(|_| CryptoError)
    }

    fn open<'a>(&self, data: &'a mut [u8], additional_data: &[u8]) -> Result<&'a mut [u8], CryptoError> {
        let aad = aead::Aad::from(additional_data);
        self.0.open_in_place(Self::nonce(), aad, data).map_err(|_| CryptoError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Provider; 2] = [Provider::AwsLcRs, Provider::Ring];

    #[test]
    fn resets_are_the_same_whichever_library_made_them() {
        let made = BOTH.map(|provider| {
            let (key, mut out) = (reset_by(provider, &[7; 32]), [0; 32]);
            key.sign(b"connection id", &mut out);
            assert!(key.verify(b"connection id", &out).is_ok() && key.verify(b"another", &out).is_err());
            out
        });
        assert_eq!(made[0], made[1], "a relay that is restarted with the other one still resets");
    }

    #[test]
    fn tokens_open_with_their_own_key_only() {
        for provider in BOTH {
            let (ours, others) = (tokens_by(provider, &[1; 32]), tokens_by(provider, &[2; 32]));
            let mut token = b"192.0.2.1".to_vec();
            ours.aead_from_hkdf(b"random").seal(&mut token, b"more").unwrap();
            assert!(others.aead_from_hkdf(b"random").open(&mut token.clone(), b"more").is_err());
            assert!(ours.aead_from_hkdf(b"other").open(&mut token.clone(), b"more").is_err());
            assert_eq!(ours.aead_from_hkdf(b"random").open(&mut token, b"more").unwrap(), b"192.0.2.1");
        }
    }
}
