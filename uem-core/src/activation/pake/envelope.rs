//! One sealed message each way under the PAKE's keys: AES-256-CBC, then HMAC-SHA-256 over
//! `version || direction || session || iv || ciphertext`. On the wire: `version || iv || ciphertext || HMAC`.

use aws_lc_rs::cipher::{
    AES_256, DecryptionContext, EncryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use hedgerow_shared::SessionId;
use hmac::Mac;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::keys::{Direction, Keys};
use super::{PakeError, Sealed};
use crate::random::{self, Random};

const VERSION: u8 = 1;
const IV: usize = 16;
const TAG: usize = 32;
/// The most that one message holds, bytes.
pub const MAX_PLAINTEXT: usize = 64 * 1024;

/// The confirmed channel of one end. Each end seals one message and opens one; more are refused, so nothing can be
/// replayed within the session.
pub struct Channel {
    keys: Keys,
    sends: Direction,
    sealed: bool,
    opened: bool,
}

impl Channel {
    pub(super) fn new(keys: Keys, sends: Direction) -> Self {
        Self { keys, sends, sealed: false, opened: false }
    }

    /// The session both ends are in.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.keys.session()
    }

    /// Seals this end's one message.
    ///
    /// # Errors
    /// `Unexpected` the second time, `Sealed` when the plaintext is longer than `MAX_PLAINTEXT`.
    pub fn seal(&mut self, plaintext: &[u8], random: &mut dyn Random) -> Result<Sealed, PakeError> {
        if std::mem::replace(&mut self.sealed, true) {
            return Err(PakeError::Unexpected);
        }
        if plaintext.len() > MAX_PLAINTEXT {
            return Err(PakeError::Sealed);
        }
        let iv: [u8; IV] = random::bytes(random);
        let key = UnboundCipherKey::new(&AES_256, self.keys.encryption(self.sends)).map_err(|_| PakeError::Sealed)?;
        let key = PaddedBlockEncryptingKey::cbc_pkcs7(key).map_err(|_| PakeError::Sealed)?;
        let mut ciphertext = plaintext.to_vec();
        key.less_safe_encrypt(&mut ciphertext, EncryptionContext::Iv128(FixedLength::from(iv)))
            .map_err(|_| PakeError::Sealed)?;
        let tag = self.tag(self.sends, &iv, &ciphertext);
        let envelope = [&[VERSION], iv.as_slice(), &ciphertext, &tag].concat();
        Ok(Sealed { session: self.session(), envelope })
    }

    /// Opens the other end's one message. The MAC is checked, in constant time, before anything is decrypted.
    ///
    /// # Errors
    /// `Unexpected` for another session or the second time, `Sealed` for everything else.
    pub fn open(&mut self, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, PakeError> {
        if sealed.session != self.session() || self.opened {
            return Err(PakeError::Unexpected);
        }
        let envelope = &sealed.envelope;
        // Padding brings one to sixteen bytes.
        if envelope.len() > 1 + IV + MAX_PLAINTEXT + 16 + TAG
            || envelope.len() < 1 + IV + 16 + TAG
            || envelope[0] != VERSION
        {
            return Err(PakeError::Sealed);
        }
        let (body, tag) = envelope.split_at(envelope.len() - TAG);
        let (iv, ciphertext) = body[1..].split_at(IV);
        let from = self.sends.opposite();
        if !bool::from(self.tag(from, iv, ciphertext).ct_eq(tag)) {
            return Err(PakeError::Sealed);
        }
        let iv = FixedLength::try_from(iv).map_err(|_| PakeError::Sealed)?;
        let key = UnboundCipherKey::new(&AES_256, self.keys.encryption(from)).map_err(|_| PakeError::Sealed)?;
        let key = PaddedBlockDecryptingKey::cbc_pkcs7(key).map_err(|_| PakeError::Sealed)?;
        let mut plaintext = Zeroizing::new(ciphertext.to_vec());
        let length = key.decrypt(&mut plaintext, DecryptionContext::Iv128(iv)).map_err(|_| PakeError::Sealed)?.len();
        plaintext.truncate(length);
        self.opened = true;
        Ok(plaintext)
    }

    fn tag(&self, direction: Direction, iv: &[u8], ciphertext: &[u8]) -> [u8; TAG] {
        let mut mac = self.keys.mac(direction);
        mac.update(&[VERSION, direction.byte()]);
        mac.update(self.keys.session().as_bytes());
        mac.update(iv);
        mac.update(ciphertext);
        mac.finalize().into_bytes().into()
    }
}
