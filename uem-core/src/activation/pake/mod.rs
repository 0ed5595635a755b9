//! The PAKE of activation: balanced, EC-SPEKE in the CPace form on P-521.
//!
//! ```text
//!   G    = hash_to_curve(password, user, tenant, session)      P521_XMD:SHA-512_SSWU_RO_ (RFC 9380)
//!   A, B = a*G, b*G                                            shares of device and core
//!   Z    = x(a*B) = x(b*A)
//!   keys = HKDF-SHA-512(Z; salt A || B; info: label, user, tenant, session, TLS exporter)
//! ```
//! Each end then shows its key by an HMAC (the device first, so that a wrong attempt is known to the core before
//! the device learns anything), and only after that secrets travel, each sealed once (`Channel`). An outsider who
//! watches learns nothing about the password; one who takes part tests one guess per run. Plain SPEKE's weaknesses
//! (parallel sessions, malleable keys) are met by putting identities, session, exporter and both shares into the keys.
//!
//! Curve arithmetic takes some milliseconds for each end; drivers limit how often strangers may ask for it.

mod envelope;
mod group;
mod keys;
#[cfg(test)]
mod tests;

use hedgerow_shared::secret::Secret;
use hedgerow_shared::{SessionId, TenantId};
use serde::{Deserialize, Serialize};

use crate::account::Email;
use crate::encoding;
use crate::random::Random;
use group::{Ephemeral, SHARE};
use keys::{Direction, Keys};

pub use envelope::{Channel, MAX_PLAINTEXT};

/// Bytes of a TLS exporter value (RFC 9266, `shared::wire::message::EXPORTER_LABEL`, empty context).
pub const EXPORTER: usize = 32;

/// Why a run ended. For logs; peers are told nothing that depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PakeError {
    /// A message of another session, or a second one where one is allowed.
    #[error("the message does not belong here")]
    Unexpected,
    /// The other end's share is no point of the curve, the point at infinity, or our own sent back.
    #[error("the other end's share is not acceptable")]
    Share,
    /// The other end's confirmation is wrong: another password, or somebody sits in between.
    #[error("the other end does not know the password, or somebody sits in between")]
    Confirmation,
    /// A sealed message does not open: damaged, forged, of another session or direction, too long.
    #[error("the sealed message does not open")]
    Sealed,
    /// The password is no text of 6 to 128 bytes.
    #[error("the password is not a text of 6 to 128 bytes")]
    Password,
    /// The random source is broken.
    #[error("the source of random numbers is broken")]
    Randomness,
}

/// What both ends must agree on besides the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Context {
    /// The user who activates.
    pub user: Email,
    /// The tenant (SRP id).
    pub tenant: TenantId,
    /// Exporter of the TLS session that carries the messages.
    pub exporter: [u8; EXPORTER],
}

/// Device to core: who wants to activate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The user's address.
    pub user: Email,
}

/// Core to device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The enrolment session, chosen by the core at random.
    #[serde(with = "encoding::text")]
    pub session: SessionId,
    /// The core's share, SEC 1 uncompressed.
    #[serde(with = "encoding::base64")]
    pub share: [u8; SHARE],
}

/// Device to core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The session of the offer.
    #[serde(with = "encoding::text")]
    pub session: SessionId,
    /// The device's share, SEC 1 uncompressed.
    #[serde(with = "encoding::base64")]
    pub share: [u8; SHARE],
    /// The device's confirmation.
    #[serde(with = "encoding::base64")]
    pub confirm: [u8; 32],
}

/// Core to device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// The session.
    #[serde(with = "encoding::text")]
    pub session: SessionId,
    /// The core's confirmation.
    #[serde(with = "encoding::base64")]
    pub confirm: [u8; 32],
}

/// Either way: one message under the keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The session.
    #[serde(with = "encoding::text")]
    pub session: SessionId,
    /// `version || iv || ciphertext || HMAC`.
    #[serde(with = "encoding::base64")]
    pub envelope: Vec<u8>,
}

/// The device's end, before the core's offer.
pub struct Initiator {
    context: Context,
    password: Secret,
}

impl Initiator {
    /// Begins a run; the message goes to the core.
    ///
    /// # Errors
    /// `Password`.
    pub fn start(context: Context, password: &Secret) -> Result<(Self, Start), PakeError> {
        let password = super::password::normal(password).map_err(|_| PakeError::Password)?;
        let start = Start { user: context.user.clone() };
        Ok((Self { context, password }, start))
    }

    /// Takes the core's offer; the proof goes to the core.
    ///
    /// # Errors
    /// `Share` or `Randomness`.
    pub fn respond(self, offer: &Offer, random: &mut dyn Random) -> Result<(AwaitConfirmation, Proof), PakeError> {
        let own = Ephemeral::new(&self.password, &self.context, offer.session, random)?;
        let share = *own.share();
        let secret = own.agree(&offer.share)?;
        let keys = Keys::derive(&secret, &self.context, offer.session, [&share, &offer.share]);
        let confirm = keys.confirmation(Direction::ToCore);
        let proof = Proof { session: offer.session, share, confirm };
        Ok((AwaitConfirmation { keys }, proof))
    }
}

/// The device's end, after its proof.
pub struct AwaitConfirmation {
    keys: Keys,
}

impl AwaitConfirmation {
    /// Checks that the core knows the password too. Only now may anything be sent to it or believed from it.
    ///
    /// # Errors
    /// `Unexpected` or `Confirmation`.
    pub fn confirm(self, confirmation: &Confirmation) -> Result<Channel, PakeError> {
        if confirmation.session != self.keys.session() {
            return Err(PakeError::Unexpected);
        }
        self.keys.check(Direction::ToDevice, &confirmation.confirm)?;
        Ok(Channel::new(self.keys, Direction::ToCore))
    }
}

/// The core's end, after its offer.
pub struct Responder {
    context: Context,
    session: SessionId,
    own: Ephemeral,
}

impl Responder {
    /// Makes an offer under a new session id. For users who may not activate, `password` is a random one: the run
    /// then costs and looks the same and fails at confirmation.
    ///
    /// # Errors
    /// `Randomness`.
    pub fn offer(
        context: Context,
        password: &Secret,
        session: SessionId,
        random: &mut dyn Random,
    ) -> Result<(Self, Offer), PakeError> {
        let own = Ephemeral::new(password, &context, session, random)?;
        let offer = Offer { session, share: *own.share() };
        Ok((Self { context, session, own }, offer))
    }

    /// Checks the device's proof; the confirmation goes to the device.
    ///
    /// # Errors
    /// `Unexpected`, `Share`, or `Confirmation`: a wrong password. The caller counts it before it answers.
    pub fn confirm(self, proof: &Proof) -> Result<(Channel, Confirmation), PakeError> {
        if proof.session != self.session {
            return Err(PakeError::Unexpected);
        }
        let share = *self.own.share();
        let secret = self.own.agree(&proof.share)?;
        let keys = Keys::derive(&secret, &self.context, self.session, [&proof.share, &share]);
        keys.check(Direction::ToCore, &proof.confirm)?;
        let confirm = keys.confirmation(Direction::ToDevice);
        Ok((Channel::new(keys, Direction::ToDevice), Confirmation { session: self.session, confirm }))
    }
}
