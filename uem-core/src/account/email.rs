//! E-mail addresses, the names by which users are found.

use std::fmt;
use std::str::FromStr;

use hedgerow_shared::verify::policy::normal_name;
use serde::{Deserialize, Serialize};

/// Why an address was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the e-mail address is not valid: {0}")]
pub struct EmailError(&'static str);

/// An address in its one spelling: trimmed and in lower case, as the relay's look-up hashes it. The domain is in
/// its ASCII form (`xn--`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Email(String);

impl FromStr for Email {
    type Err = EmailError;

    fn from_str(text: &str) -> Result<Self, EmailError> {
        let text = text.trim().to_lowercase();
        if text.len() > 254 {
            return Err(EmailError("it is longer than 254 bytes"));
        }
        let (local, domain) = text.rsplit_once('@').ok_or(EmailError("expected name@domain"))?;
        if local.is_empty() || local.len() > 64 {
            return Err(EmailError("before the '@' stand 1 to 64 characters"));
        }
        if local
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || matches!(c, '@' | '"' | '<' | '>' | ',' | ';' | '\\'))
        {
            return Err(EmailError("before the '@' stands a character that is not allowed"));
        }
        if normal_name(domain).as_deref() != Some(domain) {
            return Err(EmailError("after the '@' stands no domain name (international ones are written xn--...)"));
        }
        Ok(Self(text))
    }
}

impl Email {
    /// The normalised address.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part after the `@`.
    #[must_use]
    pub fn domain(&self) -> &str {
        self.0.rsplit_once('@').map_or("", |(_, domain)| domain)
    }
}

impl fmt::Display for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Email {
    type Error = EmailError;
    fn try_from(text: String) -> Result<Self, EmailError> {
        text.parse()
    }
}

impl From<Email> for String {
    fn from(email: Email) -> String {
        email.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_one_spelling() {
        let email: Email = " Anna.Smith@Example.COM ".parse().unwrap();
        assert_eq!(email.as_str(), "anna.smith@example.com");
        assert_eq!(email.domain(), "example.com");
        for bad in [
            "",
            "@",
            "anna",
            "anna@",
            "@example.com",
            "a b@example.com",
            "a@b@example.com",
            "a\r\nb@example.com",
            "a@exa mple",
            "a@example.com.",
            "<a>@example.com",
        ] {
            assert!(bad.parse::<Email>().is_err(), "{bad:?}");
        }
        assert!(format!("{}@example.com", "a".repeat(65)).parse::<Email>().is_err());
    }
}
