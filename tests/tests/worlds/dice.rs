//! Where chance comes from in a world: one seed.
//!
//! A world runs on a thread of its own. On that thread the C library's `getrandom` is ours, so that everything that asks
//! the system for random bytes gets them from the seed: session ids, nonces and jitter of the product, the order of hash
//! maps, and which ready branch a `select!` takes. Every other thread gets the system's. What aws-lc draws for its keys and
//! signatures does not come this way; it decides bytes on the wire and never what happens when, as all signatures are of one
//! length (`one_length`).

use std::cell::Cell;

/// `SplitMix64`: small, seeded, the same everywhere.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `n - 1`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    /// Once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

thread_local! {
    static SYSTEM: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Makes what this thread draws from the system depend on nothing but `seed`.
pub(crate) fn seed_system(seed: u64) {
    SYSTEM.set(Some(seed));
}

/// In place of the C library's: std and the `getrandom` crate find this one first.
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut u8, length: usize, flags: u32) -> isize {
    let Some(state) = SYSTEM.try_with(Cell::get).ok().flatten() else {
        // SAFETY: the caller's own arguments, passed on to the system as they are.
        let n = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
        return isize::try_from(n).unwrap_or(-1);
    };
    if length == 0 {
        return 0;
    }
    let mut dice = Dice(state);
    // SAFETY: getrandom(2) gives `length` writable bytes at `buffer`.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer, length) };
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&dice.next().to_le_bytes()[..chunk.len()]);
    }
    SYSTEM.set(Some(dice.0));
    isize::try_from(length).unwrap_or(isize::MAX)
}
