//! One device's activation, between its messages: what the driver keeps for one TLS session.

use hedgerow_shared::{EntityId, SessionId, TenantId, UnixTime};
use serde::{Deserialize, Serialize};

use super::pake::{Channel, Responder};
use crate::CoreError;
use crate::account::{Email, User};
use crate::licence::Unlicensed;
use crate::profile::Barred;

/// How long an activation may take from `begin_activation` to `finish_activation`.
pub const SESSION_SECONDS: u64 = 120;

/// Begun: the offer is out, the device's proof is awaited. Belongs to one TLS session; dropped with it.
pub struct Started {
    pub(crate) tenant: TenantId,
    pub(crate) session: SessionId,
    pub(crate) responder: Responder,
    pub(crate) known: Result<Known, Refusal>,
    pub(crate) until: UnixTime,
}

/// Confirmed: both ends know the password, the sealed request is awaited. Belongs to one TLS session.
pub struct Confirmed {
    pub(crate) tenant: TenantId,
    pub(crate) session: SessionId,
    pub(crate) channel: Channel,
    pub(crate) known: Known,
    pub(crate) until: UnixTime,
}

/// Whose activation it is.
pub(crate) struct Known {
    pub(crate) user: User,
    /// The password it was begun with.
    pub(crate) password: EntityId,
}

impl Started {
    /// The session, for logs.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }
}

impl Confirmed {
    /// The session, for logs.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }
}

/// Why an activation was refused. **For logs, audit and metrics only**: the device is told `ActivationError`'s text,
/// which is the same for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A message that does not parse or does not belong here.
    Malformed,
    /// No user has this address.
    UnknownUser,
    /// The user is inactive.
    InactiveUser,
    /// The user has no activation password, or it was replaced or used meanwhile.
    NoPassword,
    /// Its time is over.
    Expired,
    /// Too many wrong attempts.
    Blocked,
    /// The password is wrong, or somebody sits between device and core.
    WrongPassword,
    /// It took too long.
    TooLate,
}

impl Refusal {
    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownUser => "unknown_user",
            Self::InactiveUser => "inactive_user",
            Self::NoPassword => "no_password",
            Self::Expired => "expired",
            Self::Blocked => "blocked",
            Self::WrongPassword => "wrong_password",
            Self::TooLate => "too_late",
        }
    }
}

/// An activation that ended.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// Refused; the device learns nothing more than this text.
    #[error("the activation was refused: the address or the activation password is wrong, expired, used or blocked")]
    Refused(Refusal),
    /// The licence lets no further device in. Only who has shown the right password is told so; it is not used up.
    #[error(transparent)]
    Unlicensed(#[from] Unlicensed),
    /// The user's activation profile keeps this device out. Only who has shown the right password is told so; it is not
    /// used up.
    #[error(transparent)]
    Barred(#[from] Barred),
    /// The core itself failed; the device may try again.
    #[error("the core failed")]
    Core(#[from] CoreError),
}

/// What a device asks for, sealed under the PAKE's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// PKCS#10, DER (`ca::Key::certificate_request`).
    #[serde(with = "crate::encoding::base64")]
    pub csr: Vec<u8>,
    /// What the device calls itself.
    pub name: String,
    /// Operating system and version.
    pub platform: String,
}

/// What it gets, sealed likewise: only under this seal may a device believe a tenant CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolReply {
    /// The device's id, as in its certificate.
    pub device: EntityId,
    /// Whose device it is.
    pub email: Email,
    /// The user's name.
    pub display_name: String,
    /// The tenant CA, DER.
    #[serde(with = "crate::encoding::base64")]
    pub ca: Vec<u8>,
    /// The device's certificate, DER.
    #[serde(with = "crate::encoding::base64")]
    pub certificate: Vec<u8>,
    /// Relays, `host:port`, in order of preference.
    pub relays: Vec<String>,
    /// The relays' TLS name when it is not the host part.
    #[serde(default)]
    pub relay_name: Option<String>,
    /// The relays' CA, PEM; absent for a public one.
    #[serde(default)]
    pub relay_ca_pem: Option<String>,
    /// How much of it is managed (`ActivationType`); absent where its platform is not known. Text, so that a device older
    /// than a type can still read its reply: the password is used up by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<String>,
}
