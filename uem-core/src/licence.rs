//! The tenant's licence, as it lies in the core. The core has no licence key: that a licence is genuine, a relay says that
//! has accepted it. Its limits are obeyed here all the same.

use hedgerow_shared::verify::licence::{Licence, LicenceError, SignedLicence, Standing};
use hedgerow_shared::{TenantId, UnixTime};

use crate::CoreError;

/// A licence that was installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// As it goes to relays.
    pub signed: SignedLicence,
    /// What it says.
    pub licence: Licence,
    /// When it was installed.
    pub installed: UnixTime,
}

impl Installed {
    /// Reads the text of a licence (PEM, and whatever a mail has around it).
    ///
    /// # Errors
    /// `LicenceError::Malformed`.
    pub fn read(text: &str, installed: UnixTime) -> Result<Self, LicenceError> {
        let signed = SignedLicence::from_pem(text)?;
        let licence = signed.unverified()?;
        Ok(Self { signed, licence, installed })
    }

    pub(crate) fn for_tenant(text: &str, tenant: &TenantId, now: UnixTime) -> Result<Self, CoreError> {
        let refused = |e: LicenceError| CoreError::invalid("the licence", e.to_string());
        let read = Self::read(text, now).map_err(refused)?;
        if read.licence.tenant != *tenant {
            return Err(refused(LicenceError::WrongTenant(read.licence.tenant)));
        }
        Ok(read)
    }

    /// Whether one more device may become active at `now` when `active` are.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self, active: u64, now: UnixTime) -> Result<(), Unlicensed> {
        let id = || self.licence.id.clone();
        // One that has not begun yet refuses nobody: relays go by the one before until it does.
        if self.licence.standing(now) == Standing::Expired {
            return Err(Unlicensed::Expired { licence: id() });
        }
        match self.licence.seats {
            Some(seats) if active >= u64::from(seats) => Err(Unlicensed::Seats { licence: id(), seats }),
            Some(_) | None => Ok(()),
        }
    }
}

/// How the licence stands, for administrators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// The licence.
    pub installed: Installed,
    /// Where it stands.
    pub standing: Standing,
    /// Devices that are active.
    pub seats_used: u64,
    /// What people should be told now: that it ends soon, has ended, or that its seats are used up.
    pub warning: Option<String>,
}

/// Why no further device may become active. Who reads it has shown the right activation password, which is not used up.
/// At most 200 bytes, whatever the licence's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unlicensed {
    /// As many devices are active as the licence allows.
    #[error(
        "all {seats} seats of licence {licence} are taken: your administrator has to free one or install a larger licence; the password stays good"
    )]
    Seats {
        /// Its id.
        licence: String,
        /// How many it allows.
        seats: u32,
    },
    /// The licence has ended, and its grace too.
    #[error(
        "licence {licence} of your organisation has ended: your administrator has to install a new one; the password stays good"
    )]
    Expired {
        /// Its id.
        licence: String,
    },
}

impl Unlicensed {
    /// The metric label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Seats { .. } => "licence_seats",
            Self::Expired { .. } => "licence_expired",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p04_what_a_device_is_told_arrives_whole() {
        let licence = "L".repeat(64);
        for why in [
            Unlicensed::Seats { licence: licence.clone(), seats: u32::MAX },
            Unlicensed::Expired { licence: licence.clone() },
        ] {
            assert!(why.to_string().len() <= 200, "{} bytes", why.to_string().len());
        }
    }
}
