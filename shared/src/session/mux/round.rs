//! Whose turn it is on a lane: a stream with little to send goes before those with much, so that a small answer does
//! not wait for a turn of every download; and those with much are never kept waiting for long.

use std::collections::VecDeque;

use crate::wire::frame::StreamId;

/// What a stream that becomes ready may have to send and still go first, in bytes.
const LITTLE: u64 = 16 * 1024;
/// Turns of those that go first between two turns of the others.
const FAVOURS: u32 = 8;

/// Streams with data or FINISH to send.
#[derive(Debug, Default)]
pub(super) struct Round {
    first: VecDeque<StreamId>,
    rest: VecDeque<StreamId>,
    /// Turns given to `first` since the last of `rest`.
    favours: u32,
}

impl Round {
    /// A stream has become ready, with so many bytes to send.
    pub(super) fn enter(&mut self, id: StreamId, bytes: u64) {
        if bytes <= LITTLE { self.first.push_back(id) } else { self.rest.push_back(id) }
    }

    /// A stream has had its turn and has more to send.
    pub(super) fn again(&mut self, id: StreamId) {
        self.rest.push_back(id);
    }

    /// A stream could not use its turn.
    pub(super) fn keep_turn(&mut self, id: StreamId) {
        self.rest.push_front(id);
    }

    /// Takes out the stream whose turn it is.
    pub(super) fn next(&mut self) -> Option<StreamId> {
        let favoured = self.favours < FAVOURS || self.rest.is_empty();
        if favoured && let Some(id) = self.first.pop_front() {
            self.favours = self.favours.saturating_add(1);
            return Some(id);
        }
        self.favours = 0;
        self.rest.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.rest.is_empty()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(round: &mut Round) -> Vec<u32> {
        std::iter::from_fn(|| round.next()).map(|id| id.0).collect()
    }

    #[test]
    fn little_goes_before_much() {
        let mut round = Round::default();
        round.enter(StreamId(1), 1 << 20);
        round.enter(StreamId(3), LITTLE + 1);
        round.enter(StreamId(5), LITTLE);
        round.enter(StreamId(7), 0);
        assert_eq!(order(&mut round), [5, 7, 1, 3]);
        assert!(round.is_empty());
    }

    #[test]
    fn a_stream_with_more_to_send_goes_behind_the_others() {
        let mut round = Round::default();
        round.enter(StreamId(1), 1);
        round.enter(StreamId(3), 1 << 20);
        let first = round.next().unwrap();
        round.again(first);
        assert_eq!(order(&mut round), [3, 1]);
    }

    #[test]
    fn much_never_waits_for_more_than_a_few_turns_of_little() {
        let mut round = Round::default();
        round.enter(StreamId(1), 1 << 20);
        round.enter(StreamId(3), 1 << 20);
        let mut waited = 0;
        let mut turns = 0;
        for n in 0..1000 {
            // Streams with little to send never end.
            round.enter(StreamId(101 + 2 * n), 100);
            let id = round.next().unwrap();
            if id.0 < 100 {
                turns += 1;
                waited = 0;
                round.again(id);
            } else {
                waited += 1;
                assert!(waited <= FAVOURS);
            }
        }
        assert_eq!(turns, 1000 / (FAVOURS + 1));
    }
}
