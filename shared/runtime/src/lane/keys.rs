//! One direction's record key: TLS 1.3 nonces, and the count of records against the confidentiality limit.

use std::io;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

/// Bytes of the authentication tag, for every suite of TLS 1.3 that is offered.
pub(super) const TAG: usize = 16;

/// Records one key may seal before it is replaced: half of what RFC 8446 section 5.5 allows for AES-GCM.
const RECORDS_PER_KEY: u64 = 1 << 23;

pub(super) struct RecordKey {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
    last: u64,
}

impl RecordKey {
    pub(super) fn new(sequence: u64, secrets: ConnectionTrafficSecrets) -> io::Result<Self> {
        let (algorithm, key, iv): (&'static Algorithm, _, _) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(io::Error::other("a cipher suite that the record layer does not know")),
        };
        let key = UnboundKey::new(algorithm, key.as_ref())
            .map_err(|_| io::Error::other("a traffic key of the wrong length"))?;
        let iv = iv.as_ref().try_into().map_err(|_| io::Error::other("a traffic IV of the wrong length"))?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence, last: RECORDS_PER_KEY })
    }

    /// Whether the key has sealed as many records as it should.
    pub(super) fn is_worn(&self) -> bool {
        self.sequence >= self.last
    }

    #[cfg(test)]
    pub(super) fn wear_out(&mut self) {
        self.last = 0;
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (n, s) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *n ^= s;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals in place; returns the tag.
    pub(super) fn seal(&mut self, header: [u8; 5], plain: &mut [u8]) -> io::Result<[u8; TAG]> {
        let nonce = self.nonce();
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(header), plain)
            .map_err(|_| io::Error::other("sealing a record failed"))?;
        tag.as_ref().try_into().map_err(|_| io::Error::other("a tag of the wrong length"))
    }

    /// Opens in place; returns the length of the plain text. A wrong tag is `InvalidData`.
    pub(super) fn open(&mut self, header: [u8; 5], sealed: &mut [u8]) -> io::Result<usize> {
        let nonce = self.nonce();
        match self.key.open_in_place(nonce, Aad::from(header), sealed) {
            Ok(plain) => Ok(plain.len()),
            Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "a record was changed on its way")),
        }
    }
}
