//! The IP tunnel between device and node, both ends, as pure logic.
//!
//! There is nothing here yet: the tunnel is built after the links and lanes that its signalling needs. The crate stands
//! in the workspace so that the rules about it hold from its first line: it sees no runtime, no clock and no global
//! randomness, and the relay never links it (`tests/tests/invariants.rs`).
