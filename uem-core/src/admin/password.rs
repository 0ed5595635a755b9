//! Passwords that administrators sign in with.
//!
//! Kept is Argon2id's output, sealed under the key-encryption key: a copy of the database alone cannot be guessed at. The
//! work of one guess is memory and time, on purpose; it is a `HashJob`, done wherever the caller has room for it.

use argon2::{Algorithm, Argon2, Params, Version};
use hedgerow_shared::UnixTime;
use hedgerow_shared::secret::Secret;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::CoreError;
use crate::random::{self, Random};
use crate::seal::Kek;

/// Memory of one hash, KiB; OWASP's first recommendation for Argon2id.
const MEMORY_KIB: u32 = 19 * 1024;
/// Rounds over it.
const ROUNDS: u32 = 2;
/// Bytes of the salt.
const SALT: usize = 16;
/// Bytes of the hash.
const HASH: usize = 32;
/// Shortest password, characters.
pub const MIN_CHARACTERS: usize = 12;
/// Longest password, bytes: what is hashed has a bound.
const MAX_BYTES: usize = 512;

/// A password, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginPassword {
    /// Salt and hash, sealed.
    pub sealed: Vec<u8>,
    /// Whether another one must be chosen at the next sign-in.
    pub must_change: bool,
    /// When it was set.
    pub set: UnixTime,
}

/// Hashing, to be done where it disturbs nobody: tens of milliseconds, 19 MiB.
pub struct HashJob {
    password: Secret,
    salt: [u8; SALT],
    expected: Option<Zeroizing<[u8; HASH]>>,
}

impl std::fmt::Debug for HashJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashJob")
    }
}

impl HashJob {
    /// Does the work: whether the password is the right one. Without one to compare with it is not, after the same work.
    ///
    /// # Errors
    /// `Randomness`: the memory for it is not there.
    pub fn run(self) -> Result<bool, CoreError> {
        let hash = hash(&self.password, &self.salt)?;
        Ok(self.expected.is_some_and(|expected| bool::from(expected.ct_eq(&*hash))))
    }

    pub(crate) fn new(
        password: Secret,
        stored: Option<&LoginPassword>,
        (kek, id): (&Kek, [&str; 2]),
    ) -> Result<Self, CoreError> {
        let Some(stored) = stored else { return Ok(Self { password, salt: [0; SALT], expected: None }) };
        let damaged = || CoreError::Damaged("an administrator's password");
        let opened = kek.open(&context(id), &stored.sealed).map_err(|_| damaged())?;
        let (salt, hash) = opened.split_at_checked(SALT).ok_or_else(damaged)?;
        let salt = salt.try_into().map_err(|_| damaged())?;
        let expected = Zeroizing::new(hash.try_into().map_err(|_| damaged())?);
        Ok(Self { password, salt, expected: Some(expected) })
    }
}

impl LoginPassword {
    /// Hashes a new password, which takes as long as `HashJob::run`.
    pub(crate) fn make(
        password: &Secret,
        must_change: bool,
        (kek, id): (&Kek, [&str; 2]),
        now: UnixTime,
        random: &mut dyn Random,
    ) -> Result<Self, CoreError> {
        let salt: [u8; SALT] = random::bytes(random);
        let hash = hash(password, &salt)?;
        let both = Zeroizing::new([&salt[..], &hash[..]].concat());
        let sealed = kek.seal(&context(id), &both, random);
        Ok(Self { sealed, must_change, set: now })
    }
}

/// Checks a password that is being chosen.
///
/// # Errors
/// `Invalid`: too short, too long, no text, or the address.
pub fn checked(password: &Secret, email: &str) -> Result<(), CoreError> {
    let wrong = |why: String| Err(CoreError::invalid("the password", why));
    let Some(text) = password.expose_text() else { return wrong("it is not text (UTF-8)".to_owned()) };
    if text.chars().count() < MIN_CHARACTERS {
        return wrong(format!("use at least {MIN_CHARACTERS} characters"));
    }
    if text.len() > MAX_BYTES {
        return wrong(format!("use at most {MAX_BYTES} bytes"));
    }
    if text.trim().eq_ignore_ascii_case(email) {
        return wrong("it is the user's address".to_owned());
    }
    Ok(())
}

fn context(id: [&str; 2]) -> [&str; 3] {
    [id[0], "administrator's password", id[1]]
}

fn hash(password: &Secret, salt: &[u8; SALT]) -> Result<Zeroizing<[u8; HASH]>, CoreError> {
    let params = Params::new(MEMORY_KIB, ROUNDS, 1, Some(HASH)).map_err(|_| CoreError::Randomness)?;
    let mut out = Zeroizing::new([0; HASH]);
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon.hash_password_into(password.expose(), salt, &mut *out).map_err(|_| CoreError::Randomness)?;
    Ok(out)
}
