//! P-521: the password's generator, one end's share, the secret both ends reach.

use hedgerow_shared::SessionId;
use hedgerow_shared::secret::Secret;
use p521::elliptic_curve::Group;
use p521::elliptic_curve::sec1::{FromSec1Point, ToSec1Point};
use p521::hash2curve::{ExpandMsgXmd, hash_from_bytes};
use p521::{AffinePoint, FieldBytes, NistP521, NonZeroScalar, ProjectivePoint, Sec1Point};
use sha2::Sha512;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::{Context, PakeError};
use crate::random::Random;

/// Bytes of a share: SEC 1, uncompressed.
pub(crate) const SHARE: usize = 133;
/// Bytes of a coordinate.
pub(super) const COORDINATE: usize = 66;
/// Domain separation of the hash to the curve.
pub(super) const DST: &[u8] = b"EM-EC-SPEKE-v1";

/// One end's scalar with its share; used for one run.
pub(super) struct Ephemeral {
    scalar: NonZeroScalar,
    share: [u8; SHARE],
}

impl Drop for Ephemeral {
    fn drop(&mut self) {
        self.scalar.zeroize();
    }
}

impl Ephemeral {
    pub(super) fn new(
        password: &Secret,
        context: &Context,
        session: SessionId,
        random: &mut dyn Random,
    ) -> Result<Self, PakeError> {
        let generator = generator(password, context, session).ok_or(PakeError::Randomness)?;
        let scalar = scalar(random)?;
        let point = (generator * *scalar).to_affine();
        let mut share = [0; SHARE];
        let encoded = point.to_sec1_point(false);
        // A non-zero multiple of a generator of a group of prime order is not the point at infinity, whose encoding
        // alone is shorter.
        share.copy_from_slice(encoded.as_bytes().get(..SHARE).ok_or(PakeError::Randomness)?);
        Ok(Self { scalar, share })
    }

    pub(super) fn share(&self) -> &[u8; SHARE] {
        &self.share
    }

    /// The shared secret: the x coordinate of our scalar times the other end's share. P-521's cofactor is 1, so a
    /// point on the curve other than infinity is in the group.
    pub(super) fn agree(self, other: &[u8; SHARE]) -> Result<Zeroizing<[u8; COORDINATE]>, PakeError> {
        if bool::from(self.share.ct_eq(other)) {
            return Err(PakeError::Share);
        }
        let encoded = Sec1Point::from_bytes(other).map_err(|_| PakeError::Share)?;
        let point = Option::<AffinePoint>::from(AffinePoint::from_sec1_point(&encoded)).ok_or(PakeError::Share)?;
        let point = ProjectivePoint::from(point);
        if bool::from(point.is_identity()) {
            return Err(PakeError::Share);
        }
        let mut encoded = [0; SHARE];
        encoded.copy_from_slice(
            (point * *self.scalar).to_affine().to_sec1_point(false).as_bytes().get(..SHARE).ok_or(PakeError::Share)?,
        );
        let mut secret = Zeroizing::new([0; COORDINATE]);
        secret.copy_from_slice(&encoded[1..=COORDINATE]);
        encoded.zeroize();
        Ok(secret)
    }
}

/// The generator that only this password, user, tenant and session give. `None` for the point at infinity, which no
/// input known or imaginable gives.
fn generator(password: &Secret, context: &Context, session: SessionId) -> Option<ProjectivePoint> {
    let mut message = Zeroizing::new(Vec::with_capacity(512));
    for part in
        [password.expose(), context.user.as_str().as_bytes(), context.tenant.as_str().as_bytes(), session.as_bytes()]
    {
        message.extend_from_slice(&u32::try_from(part.len()).ok()?.to_be_bytes());
        message.extend_from_slice(part);
    }
    let point = hash(&message, DST)?;
    (!bool::from(point.is_identity())).then_some(point)
}

/// `P521_XMD:SHA-512_SSWU_RO_` of RFC 9380.
pub(super) fn hash(message: &[u8], dst: &[u8]) -> Option<ProjectivePoint> {
    hash_from_bytes::<NistP521, ExpandMsgXmd<Sha512>>(&[message], &[dst]).ok()
}

/// A scalar in [1, n-1], each equally likely: 521 random bits, again when they are not below n (once in 2^260).
fn scalar(random: &mut dyn Random) -> Result<NonZeroScalar, PakeError> {
    for _ in 0..16 {
        let mut bytes = Zeroizing::new([0u8; COORDINATE]);
        random.fill(bytes.as_mut_slice());
        bytes[0] &= 1;
        let mut repr = FieldBytes::default();
        repr.copy_from_slice(bytes.as_slice());
        let scalar = Option::<NonZeroScalar>::from(NonZeroScalar::from_repr(repr));
        repr.zeroize();
        if let Some(scalar) = scalar {
            return Ok(scalar);
        }
    }
    Err(PakeError::Randomness)
}
