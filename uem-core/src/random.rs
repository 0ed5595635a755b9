//! Randomness as an argument.

/// A source of cryptographically secure random bytes; drivers pass the system's, tests a seeded one.
///
/// Every `FnMut(&mut [u8]) + Send` is one.
pub trait Random: Send {
    /// Fills `bytes`.
    fn fill(&mut self, bytes: &mut [u8]);
}

impl<F: FnMut(&mut [u8]) + Send> Random for F {
    fn fill(&mut self, bytes: &mut [u8]) {
        self(bytes);
    }
}

/// Numbers for an operation that is decided again and again while it does not hold its call: of one seed, other ones for each
/// attempt and place.
pub(crate) fn of_seed(seed: [u8; 32], attempt: u64, place: usize) -> impl Random {
    let mut counter = 0u64;
    move |bytes: &mut [u8]| {
        for part in bytes.chunks_mut(32) {
            let mut message = seed.to_vec();
            message.extend_from_slice(&attempt.to_be_bytes());
            message.extend_from_slice(&(place as u64).to_be_bytes());
            message.extend_from_slice(&counter.to_be_bytes());
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &message);
            part.copy_from_slice(&digest.as_ref()[..part.len()]);
            counter += 1;
        }
    }
}

/// `N` random bytes.
pub(crate) fn bytes<const N: usize>(random: &mut dyn Random) -> [u8; N] {
    let mut out = [0; N];
    random.fill(&mut out);
    out
}
