//! What an operation of the domain may answer instead of its result.

use crate::store::StoreError;

/// Why an operation was not done. Nothing was changed. The text is for the administrator who asked; what strangers
/// see of activation and enrolment is `activation::Refused` and `EnrolError`.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// There is no such thing.
    #[error("there is no {kind} {name:?}")]
    NotFound {
        /// What was looked for: `tenant`, `user`, `device` and so on.
        kind: &'static str,
        /// As it was asked for.
        name: String,
    },
    /// Something else has this name already.
    #[error("there is already a {kind} {name:?}")]
    Exists {
        /// `tenant`, `user`, `node`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// An argument does not make sense.
    #[error("{what} is not valid: {why}")]
    Invalid {
        /// Which argument.
        what: &'static str,
        /// What is wrong with it and what is expected.
        why: String,
    },
    /// Others changed the tenant at the same moment, again and again. Try again.
    #[error("the tenant is being changed by others at this moment; try again")]
    Busy,
    /// The source of random numbers gave unusable ones again and again.
    #[error("the source of random numbers is broken")]
    Randomness,
    /// The holder of a certificate is revoked, unknown, or its user inactive.
    #[error("the {kind} {id} is revoked")]
    Revoked {
        /// `device` or `node`.
        kind: &'static str,
        /// Which one.
        id: hedgerow_shared::EntityId,
    },
    /// A certificate has expired too long ago, or is not the newest of its holder.
    #[error(
        "the certificate has expired, and not as the newest of its holder within the last year: activate or enrol again"
    )]
    Lapsed,
    /// Asked for more often than makes sense.
    #[error("too many {what}: at most {most} a day")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        most: usize,
    },
    /// Whoever asks may not.
    #[error(transparent)]
    Denied(#[from] crate::admin::Denied),
    /// The storage failed.
    #[error("the storage failed")]
    Store(#[source] StoreError),
    /// A key or certificate of the tenant cannot be used: the key file is not the one it was stored under, or the
    /// record is damaged.
    #[error("{0} of the tenant cannot be used: is this the key file (kek) that belongs to this database?")]
    Damaged(&'static str),
}

impl CoreError {
    pub(crate) fn not_found(kind: &'static str, name: impl ToString) -> Self {
        Self::NotFound { kind, name: name.to_string().chars().take(80).collect() }
    }

    pub(crate) fn invalid(what: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { what, why: why.into() }
    }
}
