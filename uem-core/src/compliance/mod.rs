//! Whether a device is as its compliance profile wants it, and what follows where it is not.
//!
//! ```text
//!   attributes, apps, last word ──► judge ──► findings ──► follow ──► standing (kept) + steps that are due
//!                  profile ────────────┘          standing before ─┘
//! ```
//! All of it is pure: `service` reads the facts, commits the standing, and queues the commands of the steps in one
//! transaction. A cause is one rule from the moment it is broken until it is kept again; each step of a rule is taken
//! once for one cause, and once more where its command came to nothing.

mod judge;
mod rule;
mod standing;
#[cfg(test)]
mod tests;

pub use judge::{AppFindings, Facts, Finding, judge};
pub use rule::{Action, MAX_STEPS, Rule, Step, Watch};
pub use standing::{Cause, Due, Moment, Standing, Taken, Verdict, follow};
