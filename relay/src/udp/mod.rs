//! The relay's UDP port: one socket beside each TCP listener, with the same address, and where the system allows it
//! more of that address for tunnel datagrams alone (`shards`).
//!
//! ```text
//!   kernel --> receive loop (`port`) --> first byte 0x80..=0xBF: a tunnel datagram --> `Forwarder` --> `Outbox` --> kernel
//!                                    \-> anything else --> bounded queue --> quinn (`door`) --> a link
//!   quinn ---> the first socket
//! ```
//!
//! QUIC never sets that first byte as long as nobody greases its fixed bit (RFC 9287), and both ends of ours do not.
//! The kernel may have merged datagrams of one sender, of both kinds, into one batch: every segment's first byte is
//! looked at, and runs of one kind are handed on as they came.

mod door;
mod outbox;
mod port;
mod queue;
mod send;
pub mod shards;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

pub use door::open;
pub use outbox::{Outbox, Target};
pub use port::{Counts, Port};

/// First bytes of tunnel datagrams.
pub const TUNNEL: std::ops::RangeInclusive<u8> = 0x80..=0xBF;

/// How datagrams came.
#[derive(Debug)]
pub struct Arrived<'a> {
    /// Their sender.
    pub from: SocketAddr,
    /// The address of ours that it sent them to, where the system says: answers must come from there.
    pub to: Option<IpAddr>,
    /// The port that they came in by.
    pub port: &'a Arc<Port>,
    /// When.
    pub now: Instant,
}

impl Arrived<'_> {
    /// Where answers go.
    #[must_use]
    pub fn target(&self) -> Target {
        Target { port: self.port.clone(), address: self.from, local: self.to }
    }
}

/// Takes tunnel datagrams. Called from the receive loop: it must not wait.
pub trait Forwarder: Send + Sync + 'static {
    /// Datagrams of one sender, as the kernel merged them: each `stride` bytes long, the last one maybe shorter. Every
    /// one begins with a byte of `TUNNEL`. The memory is the forwarder's to write in until it returns. What it puts into
    /// `out` leaves when the batch is over, or before.
    fn take(&self, arrived: &Arrived<'_>, stride: usize, datagrams: &mut [u8], out: &mut Outbox);
}

/// Which kind a datagram is; `None` for an empty one.
#[must_use]
pub fn is_tunnel(datagram: &[u8]) -> Option<bool> {
    datagram.first().map(|first| TUNNEL.contains(first))
}

/// The longest run of one kind at the head of a batch: whether it is tunnel, and its length. `None` when nothing is left.
pub(crate) fn first_run(batch: &[u8], stride: usize) -> Option<(bool, usize)> {
    let stride = stride.max(1);
    let kind = is_tunnel(batch)?;
    let mut end = 0;
    while end < batch.len() && is_tunnel(&batch[end..]) == Some(kind) {
        end = (end + stride).min(batch.len());
    }
    Some((kind, end))
}

/// Splits a batch into the longest runs of one kind: `(is tunnel, bytes)`.
pub fn runs(batch: &[u8], stride: usize) -> impl Iterator<Item = (bool, &[u8])> {
    let mut rest = batch;
    std::iter::from_fn(move || {
        let (kind, end) = first_run(rest, stride)?;
        let (run, after) = rest.split_at(end);
        rest = after;
        Some((kind, run))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(batch: &[u8], stride: usize) -> Vec<(bool, Vec<u8>)> {
        runs(batch, stride).map(|(kind, run)| (kind, run.to_vec())).collect()
    }

    #[test]
    fn a_merged_batch_is_split_where_the_kind_changes_and_nowhere_else() {
        let batch = [0x40, 1, 0xc0, 2, 0x80, 3, 0xbf, 4, 0x7f, 5, 0xa0];
        let expected = vec![
            (false, vec![0x40, 1, 0xc0, 2]),
            (true, vec![0x80, 3, 0xbf, 4]),
            (false, vec![0x7f, 5]),
            (true, vec![0xa0]),
        ];
        assert_eq!(split(&batch, 2), expected);
        // A single datagram's inside does not matter.
        assert_eq!(split(&batch, 11), [(false, batch.to_vec())]);
        assert_eq!(split(&batch, 2000), [(false, batch.to_vec())]);
        assert_eq!(split(&[], 2), []);
        // What cannot be is not a loop without end.
        assert_eq!(split(&[0x80, 0x80], 0).len(), 1);
    }

    #[test]
    fn the_borders_of_the_range() {
        let kinds = [0x7f, 0x80, 0xbf, 0xc0].map(|b| is_tunnel(&[b]));
        assert_eq!(kinds, [Some(false), Some(true), Some(true), Some(false)]);
        assert_eq!(is_tunnel(&[]), None);
    }
}
