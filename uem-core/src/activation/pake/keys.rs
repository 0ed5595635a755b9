//! From the shared secret to keys, and the proof of having them.

use hedgerow_shared::SessionId;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha512};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::group::{COORDINATE, SHARE};
use super::{Context, PakeError};

/// Names this use of the secret and this version of it.
const LABEL: &[u8] = b"hedgerow activation EC-SPEKE v1\0";

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Device to core.
    ToCore,
    /// Core to device.
    ToDevice,
}

impl Direction {
    /// The byte that stands for it under MACs.
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::ToCore => 1,
            Self::ToDevice => 2,
        }
    }

    pub(super) fn opposite(self) -> Self {
        match self {
            Self::ToCore => Self::ToDevice,
            Self::ToDevice => Self::ToCore,
        }
    }
}

/// Six keys of 32 bytes: encryption, MAC, confirmation; to the core, then to the device.
pub(super) struct Keys {
    okm: Zeroizing<[u8; 192]>,
    session: SessionId,
    /// Device's, then core's.
    shares: [[u8; SHARE]; 2],
}

impl Keys {
    /// `shares`: the device's, then the core's.
    pub(super) fn derive(
        secret: &[u8; COORDINATE],
        context: &Context,
        session: SessionId,
        shares: [&[u8; SHARE]; 2],
    ) -> Self {
        let mut info = Vec::with_capacity(512);
        let parts = [
            LABEL,
            context.user.as_str().as_bytes(),
            context.tenant.as_str().as_bytes(),
            session.as_bytes(),
            &context.exporter,
        ];
        for part in parts {
            info.extend_from_slice(&(part.len() as u64).to_be_bytes());
            info.extend_from_slice(part);
        }
        let salt = [shares[0].as_slice(), shares[1].as_slice()].concat();
        let mut okm = Zeroizing::new([0; 192]);
        Hkdf::<Sha512>::new(Some(&salt), secret)
            .expand(&info, okm.as_mut_slice())
            .expect("192 bytes are far below HKDF's limit");
        Self { okm, session, shares: [*shares[0], *shares[1]] }
    }

    pub(super) fn session(&self) -> SessionId {
        self.session
    }

    pub(super) fn encryption(&self, direction: Direction) -> &[u8] {
        self.key(direction, 0)
    }

    /// A MAC keyed for this direction's envelopes.
    pub(super) fn mac(&self, direction: Direction) -> Hmac<Sha256> {
        Hmac::new_from_slice(self.key(direction, 1)).expect("HMAC takes keys of any length")
    }

    /// What the sender of `direction` shows.
    pub(super) fn confirmation(&self, direction: Direction) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key(direction, 2)).expect("HMAC takes keys of any length");
        mac.update(b"hedgerow activation confirmation v1\0");
        mac.update(&[direction.byte()]);
        mac.update(self.session.as_bytes());
        mac.update(&self.shares[0]);
        mac.update(&self.shares[1]);
        mac.finalize().into_bytes().into()
    }

    pub(super) fn check(&self, direction: Direction, shown: &[u8; 32]) -> Result<(), PakeError> {
        let right = self.confirmation(direction).ct_eq(shown);
        if bool::from(right) { Ok(()) } else { Err(PakeError::Confirmation) }
    }

    fn key(&self, direction: Direction, which: usize) -> &[u8] {
        let start = match direction {
            Direction::ToCore => which * 32,
            Direction::ToDevice => 96 + which * 32,
        };
        &self.okm[start..start + 32]
    }
}
