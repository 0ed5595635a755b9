//! The multiplexer of links and end-to-end sessions, as a pure state machine.
//!
//! # The contract for driving it
//! There are four kinds of methods, and one rule.
//! 1. *Input from the wire*: `handle(piece, now)`. An `Err` is fatal: the connection is over.
//! 2. *Input from the application*: `open`, `write`, `finish`, `reset`, `release`, ... They never fail for reasons of
//!    the peer; they say what the stream's state allows.
//! 3. *Output*: `transmit(budget, now, each)` hands out frames to send; `poll_event()` says what the application should know.
//! 4. *Time*: `poll_timeout()` is computed from state, never emitted; when it is reached, call `handle_timeout(now)`.
//!
//! The rule: after every input, drain `poll_event` and call `transmit` until it hands out nothing.
//! Time is a `Duration` since any fixed start.

mod mux;
mod retained;
mod stream;

pub use mux::{Event, Lane, MAX_LANES, Mux, MuxConfig, Side};
pub use retained::RetainBudget;
pub use stream::{Read, Room};

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
