//! What a merged batch of tunnel datagrams consists of. Pure.

use std::ops::Range;

use hedgerow_shared::wire::tunnel::{HEADER, HalfId, MAX, kind};

/// Datagrams that are treated alike; where they stand in the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// DATA of one half: as many neighbours as there are. **Every one of them was looked at**: the kernel merges
    /// neighbours of one sender whatever their ids are.
    Data(HalfId, Range<usize>),
    /// One of another kind; not looked into.
    Other(Range<usize>),
    /// DATA that is too short to hold anything, or longer than any may be; so many of them.
    Malformed(u64),
}

/// Splits datagrams, each `stride` bytes long, the last one maybe shorter.
pub fn split(batch: &[u8], stride: usize) -> impl Iterator<Item = Run> {
    let stride = stride.max(1);
    let mut at = 0;
    std::iter::from_fn(move || next(batch, stride, &mut at))
}

/// The run at `at`, which moves on behind it: as `split`, for those who write into the run before they ask for the next.
pub(super) fn next(batch: &[u8], stride: usize, at: &mut usize) -> Option<Run> {
    let datagram = |at: usize| batch.get(at..(at + stride).min(batch.len())).filter(|d| !d.is_empty());
    let (from, first) = (*at, datagram(*at)?);
    *at += first.len();
    if first[0] != kind::DATA {
        return Some(Run::Other(from..*at));
    }
    let id = |d: &[u8]| HalfId::of(d).filter(|_| d[0] == kind::DATA && d.len() > HEADER && d.len() <= MAX);
    let Some(own) = id(first) else { return Some(Run::Malformed(1)) };
    while let Some(following) = datagram(*at).filter(|d| id(d) == Some(own)) {
        *at += following.len();
    }
    Some(Run::Data(own, from..*at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(id: u8, length: usize) -> Vec<u8> {
        let mut datagram = vec![0; length];
        datagram[0] = kind::DATA;
        datagram[1..HEADER].fill(id);
        datagram
    }

    fn of(id: u8) -> HalfId {
        HalfId::from_random([id; 8])
    }

    #[test]
    fn every_segments_id_counts() {
        let batch = [data(1, 20), data(1, 20), data(2, 20), data(1, 20), data(1, 12)].concat();
        let runs: Vec<_> = split(&batch, 20).collect();
        assert_eq!(runs, [Run::Data(of(1), 0..40), Run::Data(of(2), 40..60), Run::Data(of(1), 60..92)]);
    }

    #[test]
    fn other_kinds_stand_alone_and_what_holds_nothing_is_malformed() {
        let mut ping = data(1, 20);
        ping[0] = kind::PING;
        let batch = [data(1, 20), ping.clone(), ping, data(1, 20), data(1, 9)].concat();
        let runs: Vec<_> = split(&batch, 20).collect();
        let expected = [
            Run::Data(of(1), 0..20),
            Run::Other(20..40),
            Run::Other(40..60),
            Run::Data(of(1), 60..80),
            Run::Malformed(1),
        ];
        assert_eq!(runs, expected);
        assert_eq!(split(&data(1, 9), 9).collect::<Vec<_>>(), [Run::Malformed(1)]);
        assert_eq!(split(&[0x80], 9).collect::<Vec<_>>(), [Run::Malformed(1)]);
        assert_eq!(split(&data(1, MAX + 1), MAX + 1).collect::<Vec<_>>(), [Run::Malformed(1)]);
        assert_eq!(split(&data(1, MAX), MAX).collect::<Vec<_>>(), [Run::Data(of(1), 0..MAX)]);
        assert_eq!(split(&[], 9).count(), 0);
        assert_eq!(split(&[0x80, 0x80], 0).count(), 2, "what cannot be is no loop without end");
    }
}
