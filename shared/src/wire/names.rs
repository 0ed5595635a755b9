//! Names that a tenant registers with its relays: a TLS client that asks a relay for one of them is passed through,
//! unopened, to an origin of the tenant. Pure: what is a name, and what travels about it.

use minicbor::{Decode, Encode};

use crate::Origin;
use crate::fault::Fault;
use crate::verify::policy::normal_name;

/// Names one tenant may register.
pub const MAX_NAMES: usize = 256;

/// One name and where its connections go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct RegisteredName {
    /// As `check` wants it.
    #[n(0)]
    pub name: String,
    /// Where its connections go.
    #[n(1)]
    pub origin: Origin,
}

/// A name that a relay does not pass through, and why.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RefusedName {
    /// As it was asked for.
    #[n(0)]
    pub name: String,
    /// Why not, and what to do.
    #[n(1)]
    pub fault: Fault,
}

impl RegisteredName {
    /// Whether any relay could take it; what else a relay checks are its own names and those of other tenants.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), &'static str> {
        if !passes(self.origin) {
            return Err("only gateway, mdm and core are reached by name");
        }
        host_name(&self.name)
    }
}

/// Origins whose clients are passed through by server name.
#[must_use]
pub fn passes(origin: Origin) -> bool {
    match origin {
        Origin::Gateway | Origin::Mdm | Origin::Core => true,
        Origin::Bws | Origin::Proxy | Origin::SecureConnect | Origin::Directory => false,
    }
}

/// Whether a text is the name of a host in the one form that server names are compared in: lower case, at least two
/// labels of letters, digits and inner hyphens, the last not a number (RFC 1123 2.1, RFC 6066 3).
fn host_name(name: &str) -> Result<(), &'static str> {
    if normal_name(name).as_deref() != Some(name) {
        return Err("it is not a host name in lower case, international names in their xn-- form");
    }
    let label = |l: &str| !l.starts_with('-') && !l.ends_with('-') && !l.contains('_');
    if !name.split('.').all(label) {
        return Err("a part of it begins or ends with a hyphen, or has an underscore");
    }
    match name.rsplit_once('.') {
        None => Err("it has only one part; give the whole name, such as mail.example.com"),
        Some((_, last)) if last.bytes().all(|b| b.is_ascii_digit()) => Err("it is an address, not a name"),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, origin: Origin) -> Result<(), &'static str> {
        RegisteredName { name: name.to_owned(), origin }.check()
    }

    #[test]
    fn names_have_one_form_and_addresses_are_none() {
        for good in ["mail.example.com", "a.b", "xn--mller-kva.example", "1.2.3.example", "mdm-1.example"] {
            assert_eq!(check(good, Origin::Mdm), Ok(()), "{good}");
        }
        let long = format!("{}.example", "a".repeat(64));
        for bad in [
            "",
            "localhost",
            "Mail.example.com",
            "mail.example.com.",
            "192.0.2.1",
            "::1",
            "*.example.com",
            "-a.example",
            "a-.example",
            "a_b.example",
            "mail..example",
            "m\u{fc}ller.example",
            "mail.example.com:443",
            &long,
        ] {
            assert!(check(bad, Origin::Mdm).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_origins_that_end_tls_themselves_are_reached_by_name() {
        for origin in Origin::ALL.iter().copied() {
            let allowed = matches!(origin, Origin::Gateway | Origin::Mdm | Origin::Core);
            assert_eq!(check("mail.example.com", origin).is_ok(), allowed, "{origin}");
        }
    }
}
