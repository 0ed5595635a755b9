//! Activation passwords: made or chosen by an administrator, good once, for a time, for five wrong attempts.

use hedgerow_shared::secret::Secret;
use hedgerow_shared::{EntityId, TenantId, UnixTime};
use serde::{Deserialize, Serialize};

use crate::random::{self, Random};
use crate::{CoreError, seal};

/// Wrong attempts after which a password is blocked; the next is refused even if right.
pub const MAX_WRONG: u8 = 5;
/// How long a password is good unless said otherwise.
pub const DEFAULT_LIFETIME_SECONDS: u64 = 7 * 24 * 3600;
/// The longest a password may be good.
pub const MAX_LIFETIME_SECONDS: u64 = 90 * 24 * 3600;

/// Letters and digits that are not mistaken for one another.
const ALPHABET: &[u8; 31] = b"23456789abcdefghjkmnpqrstuvwxyz";
/// Groups of four characters: 12 x 4.95 = 59 bits.
const GROUPS: usize = 3;

/// An activation password as stored. A user has at most one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActivationPassword {
    /// Whose user.
    pub tenant: TenantId,
    /// Whose password.
    pub user: EntityId,
    /// Which one: a new password is a new id, so that a session begun with the old one ends with it.
    pub id: EntityId,
    /// The password under the key-encryption key; wiped when blocked.
    pub sealed: Option<Vec<u8>>,
    /// When it was set.
    pub created: UnixTime,
    /// From when on it is refused.
    pub expires: UnixTime,
    /// Wrong attempts so far.
    pub wrong: u8,
}

/// Whether a password is still good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PasswordState {
    /// It is.
    Open,
    /// Its time is over.
    Expired,
    /// Too many wrong attempts.
    Blocked,
}

/// How an administrator wants the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordChoice {
    /// Make one.
    Generate,
    /// Take this one: 6 to 128 bytes of text; white space around it does not count.
    Set(Secret),
}

/// What the administrator hands to the user. The password is not shown again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownPassword {
    /// The password.
    pub password: Secret,
    /// From when on it is refused.
    pub expires: UnixTime,
}

impl ActivationPassword {
    /// Where the password stands at `now`.
    #[must_use]
    pub fn state(&self, now: UnixTime) -> PasswordState {
        if self.wrong >= MAX_WRONG || self.sealed.is_none() {
            PasswordState::Blocked
        } else if self.expires <= now {
            PasswordState::Expired
        } else {
            PasswordState::Open
        }
    }

    pub(crate) fn new(
        tenant: TenantId,
        user: EntityId,
        password: &Secret,
        (created, expires): (UnixTime, UnixTime),
        kek: &seal::Kek,
        random: &mut dyn Random,
    ) -> Self {
        let id = EntityId::from_random(random::bytes(random));
        let sealed = kek.seal(&[tenant.as_str(), "activation password", &id.to_string()], password.expose(), random);
        Self { tenant, user, id, sealed: Some(sealed), created, expires, wrong: 0 }
    }

    pub(crate) fn open(&self, kek: &seal::Kek) -> Result<Secret, CoreError> {
        let damaged = CoreError::Damaged("an activation password");
        let Some(sealed) = &self.sealed else { return Err(damaged) };
        let opened = kek.open(&[self.tenant.as_str(), "activation password", &self.id.to_string()], sealed);
        opened.map(|bytes| Secret::new(bytes.to_vec())).map_err(|_| damaged)
    }
}

/// A password that is easy to read out and type: `k7mp-3xqd-h9wt`.
#[must_use]
pub fn generate(random: &mut dyn Random) -> Secret {
    let mut text = Vec::with_capacity(GROUPS * 5);
    while text.len() < GROUPS * 5 - 1 {
        if text.len() % 5 == 4 {
            text.push(b'-');
        }
        // The 31 x 8 lowest byte values are taken, so that every character is equally likely.
        let [byte] = random::bytes::<1>(random);
        if let Some(character) = ALPHABET.get(usize::from(byte) % 31).filter(|_| byte < 248) {
            text.push(*character);
        } else if text.last() == Some(&b'-') {
            text.pop();
        }
    }
    Secret::new(text)
}

/// The bytes that go into the PAKE: UTF-8 text without the white space around it. Both ends apply it.
///
/// # Errors
/// `Invalid` when it is no text, or shorter than 6 or longer than 128 bytes.
pub(crate) fn normal(password: &Secret) -> Result<Secret, CoreError> {
    let bad = |why| CoreError::invalid("the activation password", why);
    let text = password.expose_text().ok_or_else(|| bad("it is not UTF-8 text"))?.trim();
    if !(6..=128).contains(&text.len()) {
        return Err(bad("use 6 to 128 bytes"));
    }
    Ok(Secret::new(text.as_bytes().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_passwords_are_readable_and_use_the_whole_alphabet() {
        let mut state = 1u64;
        let mut random = move |bytes: &mut [u8]| {
            for byte in bytes {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *byte = (state >> 33) as u8;
            }
        };
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let password = generate(&mut random);
            let text = password.expose_text().unwrap();
            assert_eq!(text.len(), 14, "{text}");
            assert!(text.split('-').all(|g| g.len() == 4 && g.bytes().all(|b| ALPHABET.contains(&b))), "{text}");
            seen.extend(text.bytes().filter(|b| *b != b'-'));
            assert_eq!(normal(&password).unwrap(), password);
        }
        assert_eq!(seen.len(), 31);
    }

    #[test]
    fn white_space_around_a_password_does_not_count_and_its_length_does() {
        let secret = |t: &str| Secret::new(t.as_bytes().to_vec());
        assert_eq!(normal(&secret("  open sesame\n")).unwrap(), secret("open sesame"));
        for bad in ["", "12345", "      ", &"x".repeat(129)] {
            assert!(normal(&secret(bad)).is_err(), "{bad:?}");
        }
        assert!(normal(&Secret::new(vec![0xff; 8])).is_err());
    }
}
