//! Rows P01 and N09: everybody comes back after a relay was away, inside a stated time and under a stated peak of
//! hand-shakes a second. `crowd` watches ten thousand diallers without sockets; `real` restarts a relay process under
//! thousands of links.
//!
//! What keeps the peak down is said in `docs/decisions/0010-everybody-comes-back.md`.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]
#![allow(clippy::print_stderr, reason = "seeds and figures are for whoever runs it")]

mod crowd;
mod real;
