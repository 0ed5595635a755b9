//! Connectivity nodes, and the tokens that make them.

use hedgerow_shared::{EntityId, GroupName, Origin, TenantId, UnixTime};
use serde::{Deserialize, Serialize};

use crate::ca::CertificateRecord;

/// Where a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Its certificate counts.
    Active,
    /// It does not, for ever.
    Revoked,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Whose node.
    pub tenant: TenantId,
    /// Which one; its certificate's CN.
    pub id: EntityId,
    /// For people; given by whoever enrols it. Not unique.
    pub name: String,
    /// Its server group.
    pub group: GroupName,
    /// Origins its certificate lets it register.
    pub origins: Vec<Origin>,
    /// Its newest certificate.
    pub certificate: CertificateRecord,
    /// Whether it counts.
    pub state: NodeState,
    /// When it was enrolled.
    pub created: UnixTime,
    /// When it was revoked.
    pub revoked: Option<UnixTime>,
    /// When it last spoke with the core.
    pub last_seen: Option<UnixTime>,
}

/// An enrolment token as the core keeps it: never its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Whose token.
    pub tenant: TenantId,
    /// Which one; stands in the token.
    pub id: EntityId,
    /// SHA-256 of the secret.
    #[serde(skip_serializing, default)]
    pub secret_hash: [u8; 32],
    /// Name for the node, when the enrolling side gives none.
    pub name: String,
    /// Group of the node it makes.
    pub group: GroupName,
    /// Origins of the node it makes.
    pub origins: Vec<Origin>,
    /// When it was made.
    pub created: UnixTime,
    /// From when on it is refused.
    pub expires: UnixTime,
    /// When it was used, and which node it made.
    pub used: Option<(UnixTime, EntityId)>,
    /// When it was withdrawn.
    pub revoked: Option<UnixTime>,
}

/// Whether a token is still good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenState {
    /// It is.
    Open,
    /// It made its node.
    Used,
    /// Its time is over.
    Expired,
    /// It was withdrawn.
    Revoked,
}

impl Token {
    /// Where the token stands at `now`.
    #[must_use]
    pub fn state(&self, now: UnixTime) -> TokenState {
        if self.used.is_some() {
            TokenState::Used
        } else if self.revoked.is_some() {
            TokenState::Revoked
        } else if self.expires <= now {
            TokenState::Expired
        } else {
            TokenState::Open
        }
    }
}
