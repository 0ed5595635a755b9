//! What an activation profile decides: which devices a user may activate, how many, and how much of each is managed.
//!
//! It is asked when the right activation password has been shown, and never before: what it says is nobody's business who
//! does not know one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Platform;
use crate::CoreError;

/// How much of a device the organisation manages. Written as the web services write it (`enrollmentType`).
///
/// Types of BlackBerry 10, of sign-in without management, and of devices that another service manages are not here:
/// nothing activates so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ActivationType {
    /// The whole device, by the means of its operating system.
    MdmControls,
    /// The user's own device: what belongs to work is managed, and nothing else is looked at.
    UserPrivacy,
    /// The same, with secured apps alone.
    UserPrivacyDynamics,
    /// Apple's user enrolment: a work account beside the user's own.
    UserPrivacyUserEnrollment,
    /// The user's own device with profiles for mail, Wi-Fi and VPN.
    UserPrivacyWithProfiles,
    /// Android Enterprise: a work profile on the user's own device.
    UserPrivacyAfw,
    /// The same, with Knox Platform for Enterprise.
    UserPrivacyAfwPremium,
    /// Android Enterprise: a managed device with a work profile. The documents name the type and no word for it; this one is
    /// formed like its neighbours.
    FullControlAfw,
    /// Android Enterprise: a fully managed device, work only.
    WorkSpaceOnlyAfw,
    /// The same, with Knox Platform for Enterprise.
    WorkSpaceOnlyAfwPremium,
    /// Knox Workspace on the user's own device.
    UserPrivacyKnox,
    /// Knox Workspace on a managed device.
    FullControlKnox,
    /// Knox Workspace alone.
    WorkSpaceOnlyKnox,
    /// Our agent on Linux: its tunnel, its proxies, and the commands that its owner's configuration lets it carry out.
    LinuxAgent,
}

impl ActivationType {
    /// All there are.
    pub const ALL: [Self; 14] = [
        Self::MdmControls,
        Self::UserPrivacy,
        Self::UserPrivacyDynamics,
        Self::UserPrivacyUserEnrollment,
        Self::UserPrivacyWithProfiles,
        Self::UserPrivacyAfw,
        Self::UserPrivacyAfwPremium,
        Self::FullControlAfw,
        Self::WorkSpaceOnlyAfw,
        Self::WorkSpaceOnlyAfwPremium,
        Self::UserPrivacyKnox,
        Self::FullControlKnox,
        Self::WorkSpaceOnlyKnox,
        Self::LinuxAgent,
    ];

    /// As the web services write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MdmControls => "MDM_CONTROLS",
            Self::UserPrivacy => "USER_PRIVACY",
            Self::UserPrivacyDynamics => "USER_PRIVACY_DYNAMICS",
            Self::UserPrivacyUserEnrollment => "USER_PRIVACY_USER_ENROLLMENT",
            Self::UserPrivacyWithProfiles => "USER_PRIVACY_WITH_PROFILES",
            Self::UserPrivacyAfw => "USER_PRIVACY_AFW",
            Self::UserPrivacyAfwPremium => "USER_PRIVACY_AFW_PREMIUM",
            Self::FullControlAfw => "FULL_CONTROL_AFW",
            Self::WorkSpaceOnlyAfw => "WORK_SPACE_ONLY_AFW",
            Self::WorkSpaceOnlyAfwPremium => "WORK_SPACE_ONLY_AFW_PREMIUM",
            Self::UserPrivacyKnox => "USER_PRIVACY_KNOX",
            Self::FullControlKnox => "FULL_CONTROL_KNOX",
            Self::WorkSpaceOnlyKnox => "WORK_SPACE_ONLY_KNOX",
            Self::LinuxAgent => "LINUX_AGENT",
        }
    }

    /// The types of a platform; the first is what a device gets where no profile names any.
    #[must_use]
    pub fn of(platform: Platform) -> &'static [Self] {
        match platform {
            // First what takes least from the user.
            Platform::Android => &[
                Self::UserPrivacyAfw,
                Self::UserPrivacyAfwPremium,
                Self::FullControlAfw,
                Self::WorkSpaceOnlyAfw,
                Self::WorkSpaceOnlyAfwPremium,
                Self::UserPrivacyKnox,
                Self::FullControlKnox,
                Self::WorkSpaceOnlyKnox,
                Self::MdmControls,
                Self::UserPrivacy,
                Self::UserPrivacyDynamics,
            ],
            Platform::Ios => &[
                Self::MdmControls,
                Self::UserPrivacy,
                Self::UserPrivacyDynamics,
                Self::UserPrivacyUserEnrollment,
                Self::UserPrivacyWithProfiles,
            ],
            Platform::Macos | Platform::Windows => &[Self::MdmControls],
            Platform::Linux => &[Self::LinuxAgent],
        }
    }
}

impl fmt::Display for ActivationType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for ActivationType {
    type Err = CoreError;

    fn from_str(text: &str) -> Result<Self, CoreError> {
        Self::ALL.into_iter().find(|one| one.as_str() == text).ok_or_else(|| {
            CoreError::invalid("the activation type", format!("there are {}", Self::ALL.map(Self::as_str).join(", ")))
        })
    }
}

/// Settings of an activation profile that the core acts on; others are kept. Without any, every device is let
/// in. Devices that are active already are never asked about.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Activation {
    /// How many active devices a user may have; any number when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<u32>,
    /// Which platforms may activate; all, and what is none of them, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platforms: Option<BTreeSet<Platform>>,
    /// Allowed types of a platform, the preferred one first; a platform that is not here gets the first of
    /// `ActivationType::of`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub types: BTreeMap<Platform, Vec<ActivationType>>,
}

impl Activation {
    /// Reads a profile's settings.
    ///
    /// # Errors
    /// `Invalid`: a setting is not of its form, a type does not belong to its platform, or a list is empty or names
    /// something twice.
    pub fn read(settings: &Map<String, Value>) -> Result<Self, CoreError> {
        let what = "the activation profile";
        let wrong = |why: String| CoreError::invalid(what, why);
        let read: Self = super::read(what, settings)?;
        for (platform, types) in &read.types {
            if types.is_empty() {
                return Err(wrong(format!(
                    "no type is left for {platform}: name one, or leave {platform} out of platforms"
                )));
            }
            let known = ActivationType::of(*platform);
            for (at, one) in types.iter().enumerate() {
                if !known.contains(one) {
                    let known: Vec<_> = known.iter().map(|one| one.as_str()).collect();
                    return Err(wrong(format!("{one} is no type of {platform}; there are {}", known.join(", "))));
                }
                if types[..at].contains(one) {
                    return Err(wrong(format!("{platform} names {one} twice")));
                }
            }
        }
        Ok(read)
    }

    /// Whether a user with so many active devices may have one more, and the type that a device of this platform gets;
    /// `None` for a device whose words name no platform.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self, platform: Option<Platform>, active: u64) -> Result<Option<ActivationType>, Bar> {
        if let Some(allowed) = self.devices.filter(|allowed| active >= u64::from(*allowed)) {
            return Err(Bar::Devices { allowed, active });
        }
        if let Some(platforms) = &self.platforms
            && platform.is_none_or(|platform| !platforms.contains(&platform))
        {
            return Err(Bar::Platform(platform));
        }
        let Some(platform) = platform else { return Ok(None) };
        let types = self.types.get(&platform).map_or(ActivationType::of(platform), Vec::as_slice);
        Ok(types.first().copied())
    }
}

/// What of a profile is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bar {
    /// The user has as many active devices as are allowed.
    Devices {
        /// How many that is.
        allowed: u32,
        /// How many they have.
        active: u64,
    },
    /// The platform is not on the list; `None`: the device names none that is known.
    Platform(Option<Platform>),
}

/// An activation profile keeps a device out. Who reads it has shown the right activation password, which is not used up.
/// At most 200 bytes, whatever the profile's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Barred {
    /// The profile's name.
    pub profile: String,
    /// What is in the way.
    pub bar: Bar,
}

impl Barred {
    /// The metric label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self.bar {
            Bar::Devices { .. } => "profile_devices",
            Bar::Platform(_) => "profile_platform",
        }
    }
}

impl fmt::Display for Barred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Bytes of a profile's name that are told.
        const TOLD: usize = 40;
        let mut end = self.profile.len().min(TOLD);
        while !self.profile.is_char_boundary(end) {
            end -= 1;
        }
        let (name, more) = (&self.profile[..end], if end < self.profile.len() { "..." } else { "" });
        write!(f, "activation profile {name}{more} allows ")?;
        match self.bar {
            Bar::Devices { allowed, active } => {
                write!(
                    f,
                    "{allowed} active devices a user, and {active} are: an administrator has to revoke one or allow more"
                )?;
            }
            Bar::Platform(platform) => {
                let platform = platform.map_or("no device of an unknown platform", |platform| match platform {
                    Platform::Android => "no Android device",
                    Platform::Ios => "no iOS device",
                    Platform::Macos => "no macOS device",
                    Platform::Windows => "no Windows device",
                    Platform::Linux => "no Linux device",
                });
                write!(f, "{platform}: ask your administrator")?;
            }
        }
        f.write_str("; the password stays good")
    }
}

impl std::error::Error for Barred {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Activation, CoreError> {
        Activation::read(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn p21_activation_types_are_written_as_they_are_read_and_each_belongs_to_a_platform() {
        for one in ActivationType::ALL {
            assert_eq!(serde_json::to_string(&one).unwrap(), format!("\"{one}\""));
            assert_eq!(one.as_str().parse::<ActivationType>().unwrap(), one);
            assert!(Platform::ALL.into_iter().any(|platform| ActivationType::of(platform).contains(&one)), "{one}");
        }
        assert!("ROOT".parse::<ActivationType>().unwrap_err().to_string().contains("LINUX_AGENT"));
    }

    #[test]
    fn p21_activation_settings_of_another_form_are_refused_with_the_reason() {
        for (text, why) in [
            (r#"{"devices": -1}"#, "u32"),
            (r#"{"devices": "two"}"#, "devices: invalid type"),
            (r#"{"platforms": ["palmos"]}"#, "palmos"),
            (r#"{"types": {"linux": ["MDM_CONTROLS"]}}"#, "MDM_CONTROLS is no type of linux; there are LINUX_AGENT"),
            (r#"{"types": {"ios": ["USER_PRIVACY_AFW"]}}"#, "no type of ios"),
            (r#"{"types": {"windows": []}}"#, "leave windows out of platforms"),
            (r#"{"types": {"ios": ["USER_PRIVACY", "USER_PRIVACY"]}}"#, "twice"),
            (r#"{"types": {"linux": ["ROOT"]}}"#, "ROOT"),
        ] {
            let refused = read(text).unwrap_err().to_string();
            assert!(refused.contains("the activation profile") && refused.contains(why), "{text}: {refused}");
        }
        let more = read(r#"{"devices": 2, "colour": "green"}"#).unwrap();
        assert_eq!(more.devices, Some(2), "what is not known is nobody's business here");
        assert_eq!(serde_json::to_string(&read("{}").unwrap()).unwrap(), "{}");
    }

    #[test]
    fn p21_the_first_allowed_type_of_its_platform_is_the_device_s() {
        let profile = read(
            r#"{"platforms": ["android", "linux"], "types": {"android": ["WORK_SPACE_ONLY_AFW", "USER_PRIVACY_AFW"]}}"#,
        )
        .unwrap();
        for (platform, expected) in [
            (Some(Platform::Android), Ok(Some(ActivationType::WorkSpaceOnlyAfw))),
            (Some(Platform::Linux), Ok(Some(ActivationType::LinuxAgent))),
            (Some(Platform::Ios), Err(Bar::Platform(Some(Platform::Ios)))),
            (None, Err(Bar::Platform(None))),
        ] {
            assert_eq!(profile.admits(platform, 99), expected, "{platform:?}");
        }
        assert_eq!(Activation::default().admits(None, 99), Ok(None));
    }

    proptest! {
        #[test]
        fn p21_whatever_is_set_a_device_gets_a_type_of_its_platform_or_a_reason(
            devices in proptest::option::of(0..4u32),
            platforms in proptest::option::of(proptest::collection::btree_set(0..5usize, 0..5)),
            types in proptest::collection::btree_map(0..5usize, proptest::collection::vec(0..14usize, 0..3), 0..5),
            platform in proptest::option::of(0..5usize),
            active in 0..5u64,
        ) {
            let at = |n: usize| Platform::ALL[n];
            let profile = Activation {
                devices,
                platforms: platforms.map(|all| all.into_iter().map(at).collect()),
                types: types.into_iter()
                    .map(|(p, all)| (at(p), all.into_iter().map(|n| ActivationType::ALL[n]).collect())).collect(),
            };
            let Value::Object(settings) = serde_json::to_value(&profile).unwrap() else { panic!("an object") };
            let Ok(back) = Activation::read(&settings) else {
                let fits = |(p, all): (&Platform, &Vec<ActivationType>)| {
                    let once: BTreeSet<_> = all.iter().collect();
                    !all.is_empty() && once.len() == all.len() && all.iter().all(|t| ActivationType::of(*p).contains(t))
                };
                prop_assert!(!profile.types.iter().all(fits));
                return Ok(());
            };
            prop_assert_eq!(&back, &profile);
            let platform = platform.map(at);
            match profile.admits(platform, active) {
                Ok(None) => prop_assert!(platform.is_none() && profile.platforms.is_none()),
                Ok(Some(one)) => prop_assert!(ActivationType::of(platform.unwrap()).contains(&one)),
                Err(Bar::Devices { allowed, .. }) => prop_assert!(active >= u64::from(allowed)),
                Err(Bar::Platform(_)) => prop_assert!(profile.platforms.is_some()),
            }
        }
    }

    #[test]
    fn p20_what_a_barred_device_is_told_arrives_whole() {
        for profile in ["x".repeat(100), "\u{e4}".repeat(100), "\u{1f33f}".repeat(100), "short".to_owned()] {
            let bars = [Bar::Devices { allowed: u32::MAX, active: 9_999_999_999 }, Bar::Platform(None)];
            for bar in bars.into_iter().chain(Platform::ALL.map(|platform| Bar::Platform(Some(platform)))) {
                let told = Barred { profile: profile.clone(), bar }.to_string();
                assert!(told.len() <= 200 && told.ends_with("the password stays good"), "{}: {told}", told.len());
            }
        }
    }
}
