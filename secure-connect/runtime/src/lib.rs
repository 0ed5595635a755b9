//! Drives the IP tunnel of `hedgerow-secure-connect` at either end.
//!
//! ```text
//!   tun ── packets ──► seal: one end's session ──► records, many to a call ──► gate: UDP with segmentation offload, or
//!                                                                              the link ──► relay
//!   tun ◄── packets, merged ◄── `Inside`: policy ◄── open ◄── datagrams, many to a call ◄── gate ◄── relay
//! ```
//!
//! What makes it fast is that nothing is done packet by packet at the edges: a read of the TUN device gives tens of
//! segments of one TCP stream, they are sealed one behind the other into one buffer, and one call sends them; the other
//! way the same (RFC-less, but Linux: `TUNSETOFFLOAD`, `UDP_SEGMENT`, `UDP_GRO`). No channel lies between the two.

mod end;
mod gate;
mod seal;
pub mod system;
mod tun;
mod udp;

pub use end::{Counts, End, State};
pub use gate::{Gate, Inside};
pub use seal::{Sealed, Sealer};
pub use tun::{Packets, Taken, Tun, TunSetup};
pub use udp::Socket;
