//! What kinds of profiles there are, and on what they have effect.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::CoreError;

/// What a profile is about. Written as the web services write it (`categoryName`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Category {
    /// IT policy: what a device allows and demands.
    #[default]
    ItConfig,
    /// How devices activate: types of each platform, how many.
    Activation,
    /// When a device does not comply, and what then.
    Compliance,
    /// Exchange ActiveSync and other mail.
    Email,
    /// A wireless network.
    Wifi,
    /// A VPN other than our tunnel.
    Vpn,
    /// Certificates by SCEP.
    Scep,
    /// A CA certificate to trust.
    CaCertificate,
    /// Certificates of a user from a PKI.
    UserCredential,
    /// A certificate that an administrator has uploaded for a user.
    UserCertificate,
    /// Tunnels and routes into the organisation.
    EnterpriseConnectivity,
    /// Secured apps: what they allow and demand.
    Dynamics,
    /// Secured apps: exceptions from that for one app.
    DynamicsOverride,
    /// Secured apps: routes of their traffic.
    DynamicsConnectivity,
    /// Which devices may use mail.
    Gatekeeping,
    /// Software updates a device must have.
    DeviceSr,
    /// What a user must agree to.
    OrganizationNotice,
}

impl Category {
    /// All there are.
    pub const ALL: [Self; 17] = [
        Self::ItConfig,
        Self::Activation,
        Self::Compliance,
        Self::Email,
        Self::Wifi,
        Self::Vpn,
        Self::Scep,
        Self::CaCertificate,
        Self::UserCredential,
        Self::UserCertificate,
        Self::EnterpriseConnectivity,
        Self::Dynamics,
        Self::DynamicsOverride,
        Self::DynamicsConnectivity,
        Self::Gatekeeping,
        Self::DeviceSr,
        Self::OrganizationNotice,
    ];

    /// Whether a device gets every profile of the category that is assigned, instead of one.
    #[must_use]
    pub fn adds_up(self) -> bool {
        match self {
            Self::Wifi
            | Self::Vpn
            | Self::Scep
            | Self::CaCertificate
            | Self::UserCredential
            | Self::UserCertificate
            | Self::DynamicsOverride => true,
            Self::ItConfig
            | Self::Activation
            | Self::Compliance
            | Self::Email
            | Self::EnterpriseConnectivity
            | Self::Dynamics
            | Self::DynamicsConnectivity
            | Self::Gatekeeping
            | Self::DeviceSr
            | Self::OrganizationNotice => false,
        }
    }

    /// As the web services write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ItConfig => "IT_CONFIG",
            Self::Activation => "ACTIVATION",
            Self::Compliance => "COMPLIANCE",
            Self::Email => "EMAIL",
            Self::Wifi => "WIFI",
            Self::Vpn => "VPN",
            Self::Scep => "SCEP",
            Self::CaCertificate => "CA_CERTIFICATE",
            Self::UserCredential => "USER_CREDENTIAL",
            Self::UserCertificate => "USER_CERTIFICATE",
            Self::EnterpriseConnectivity => "ENTERPRISE_CONNECTIVITY",
            Self::Dynamics => "DYNAMICS",
            Self::DynamicsOverride => "DYNAMICS_OVERRIDE",
            Self::DynamicsConnectivity => "DYNAMICS_CONNECTIVITY",
            Self::Gatekeeping => "GATEKEEPING",
            Self::DeviceSr => "DEVICE_SR",
            Self::OrganizationNotice => "ORGANIZATION_NOTICE",
        }
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// In any case, with `-` for `_`: people type these.
impl FromStr for Category {
    type Err = CoreError;

    fn from_str(text: &str) -> Result<Self, CoreError> {
        let name = text.trim().replace('-', "_");
        Self::ALL.into_iter().find(|category| category.as_str().eq_ignore_ascii_case(&name)).ok_or_else(|| {
            let all: Vec<_> = Self::ALL.iter().map(|c| c.as_str().to_ascii_lowercase().replace('_', "-")).collect();
            CoreError::invalid("the category", format!("there are {}", all.join(", ")))
        })
    }
}

/// Operating system families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// Android, Knox included.
    Android,
    /// iOS and iPadOS.
    Ios,
    /// macOS.
    Macos,
    /// Windows.
    Windows,
    /// Linux.
    Linux,
}

impl Platform {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Android, Self::Ios, Self::Macos, Self::Windows, Self::Linux];

    /// As in configuration and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Android => "android",
            Self::Ios => "ios",
            Self::Macos => "macos",
            Self::Windows => "windows",
            Self::Linux => "linux",
        }
    }

    /// The family that a device's own words name ("Android 16", "Linux 6.1"), if one.
    #[must_use]
    pub fn told(text: &str) -> Option<Self> {
        let first = text.split_ascii_whitespace().next()?.to_ascii_lowercase();
        match first.as_str() {
            "ipados" => Some(Self::Ios),
            "mac" | "osx" => Some(Self::Macos),
            // Distributions name themselves.
            "debian" | "ubuntu" | "fedora" | "alpine" | "arch" => Some(Self::Linux),
            name => Self::ALL.into_iter().find(|platform| name == platform.as_str()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Platform {
    type Err = CoreError;

    fn from_str(text: &str) -> Result<Self, CoreError> {
        Self::ALL.into_iter().find(|p| p.as_str().eq_ignore_ascii_case(text.trim())).ok_or_else(|| {
            CoreError::invalid("the platform", format!("there are {}", Self::ALL.map(Self::as_str).join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p21_categories_are_read_as_they_are_written_and_as_people_type_them() {
        for category in Category::ALL {
            assert_eq!(category.to_string().parse::<Category>().unwrap(), category);
            assert_eq!(serde_json::to_string(&category).unwrap(), format!("\"{category}\""));
        }
        assert_eq!("enterprise-connectivity".parse::<Category>().unwrap(), Category::EnterpriseConnectivity);
        assert!("wlan".parse::<Category>().unwrap_err().to_string().contains("wifi"));
    }

    #[test]
    fn p21_a_device_s_words_name_its_platform() {
        let told =
            ["Android 16", "iPadOS 26.1", "linux 6.1", "Debian GNU/Linux 12", "PalmOS 5", ""].map(Platform::told);
        assert_eq!(
            told,
            [Some(Platform::Android), Some(Platform::Ios), Some(Platform::Linux), Some(Platform::Linux), None, None]
        );
    }
}
