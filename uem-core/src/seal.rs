//! Secrets at rest: sealed under a key-encryption key that the driver keeps in a file of its own, so that a copy of
//! the database alone gives nothing away.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::random::{self, Random};

/// First byte of everything sealed.
const VERSION: u8 = 1;

/// Opening failed: another key, another place, or damage. Which of them is not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sealed value cannot be opened with this key")]
pub struct SealError;

/// The key-encryption key (AES-256-GCM, random nonces).
pub struct Kek(LessSafeKey);

impl std::fmt::Debug for Kek {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kek(<secret>)")
    }
}

impl Kek {
    /// Takes the 32 bytes; the caller's copy is the caller's to wipe.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("AES-256 takes 32 bytes")))
    }

    /// Seals `plaintext` for one place: `context` names it (tenant, kind, id) and must be the same when opening, so
    /// that sealed values cannot be exchanged in the database. Form: version, nonce, ciphertext with tag.
    #[must_use]
    pub fn seal(&self, context: &[&str], plaintext: &[u8], random: &mut dyn Random) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = random::bytes(random);
        let mut out = vec![VERSION];
        out.extend_from_slice(&nonce);
        let mut body = plaintext.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0.seal_in_place_append_tag(nonce, Aad::from(place(context)), &mut body).expect("far below GCM's limit");
        out.append(&mut body);
        out
    }

    /// Opens what `seal` made.
    ///
    /// # Errors
    /// `SealError` for everything.
    pub fn open(&self, context: &[&str], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (head, body) = sealed.split_at_checked(1 + NONCE_LEN).ok_or(SealError)?;
        if head[0] != VERSION {
            return Err(SealError);
        }
        let nonce = Nonce::try_assume_unique_for_key(&head[1..]).map_err(|_| SealError)?;
        let mut body = Zeroizing::new(body.to_vec());
        let length = self.0.open_in_place(nonce, Aad::from(place(context)), &mut body).map_err(|_| SealError)?.len();
        body.truncate(length);
        Ok(body)
    }
}

fn place(context: &[&str]) -> Vec<u8> {
    let mut out = b"hedgerow sealed v1\0".to_vec();
    for part in context {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part.as_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_opens_only_in_its_place_with_its_key() {
        let mut counter = 0u8;
        let mut random = move |bytes: &mut [u8]| {
            counter += 1;
            bytes.fill(counter);
        };
        let kek = Kek::new(&[7; 32]);
        let sealed = kek.seal(&["S12345678", "ca"], b"the key", &mut random);
        assert_eq!(kek.open(&["S12345678", "ca"], &sealed).unwrap().as_slice(), b"the key");
        assert!(kek.open(&["S12345678", "config"], &sealed).is_err());
        assert!(kek.open(&["S1234567", "8ca"], &sealed).is_err());
        assert!(Kek::new(&[8; 32]).open(&["S12345678", "ca"], &sealed).is_err());
        for i in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[i] ^= 1;
            assert!(kek.open(&["S12345678", "ca"], &bad).is_err(), "byte {i}");
            assert!(kek.open(&["S12345678", "ca"], &sealed[..i]).is_err(), "cut at {i}");
        }
        assert_ne!(kek.seal(&[], b"x", &mut random), kek.seal(&[], b"x", &mut random));
        assert!(!sealed.windows(7).any(|w| w == b"the key"));
    }
}
