//! How a device becomes one of the tenant's: an activation password, the PAKE that shows both ends know it, and the
//! certificate that follows under its key.
//!
//! ```text
//!   device                                                   core
//!   pake::Start {user}                      --->   Core::begin_activation
//!                                           <---   pake::Offer {session, share}
//!   pake::Proof {session, share, confirm}   --->   Core::confirm_activation   (a wrong one is counted)
//!                                           <---   pake::Confirmation {session, confirm}
//!   pake::Sealed {EnrolRequest}             --->   Core::finish_activation    (the password is used up)
//!                                           <---   pake::Sealed {EnrolReply}
//! ```
//! All of it travels as JSON inside one TLS session, whose exporter both ends put into the PAKE: a relay that ended
//! that TLS itself makes the confirmation fail.

pub mod pake;
mod password;
mod session;

pub(crate) use password::normal;
pub use password::{
    ActivationPassword, DEFAULT_LIFETIME_SECONDS, MAX_LIFETIME_SECONDS, MAX_WRONG, PasswordChoice, PasswordState,
    ShownPassword, generate,
};
pub(crate) use session::Known;
pub use session::{ActivationError, Confirmed, EnrolReply, EnrolRequest, Refusal, SESSION_SECONDS, Started};
