//! What commands there are.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::CoreError;

/// What is to be done. Written as the web services write it (`type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Kind {
    /// Lock the screen, with a `message`.
    LockDevice,
    /// Remove the lock's password.
    UnlockDevice,
    /// Erase everything.
    DeleteDeviceData,
    /// Erase what belongs to the organisation: keys, configuration, data. The device is revoked when it has done so.
    DeleteWorkSpaceData,
    /// Lock the work space, with a `password`.
    LockWorkSpace,
    /// Have the user choose another password of the work space.
    ResetWorkSpacePassword,
    /// Let the work space be used.
    EnableWorkSpace,
    /// Let the work space not be used.
    DisableWorkSpace,
    /// Get an update of the operating system, `installAction`, `osVersion`.
    UpdateDeviceOs,
    /// Remove apps.
    WipeApplications,
    /// Lock it and show `phoneNumber`, `message`, `footnote`.
    EnableLostMode,
    /// End that.
    DisableLostMode,
    /// Fetch configuration and profiles now.
    UpdateProfiles,
    /// Tell what device it is and how it does.
    RequestDeviceInfo,
    /// Tell which packages or apps are installed.
    ListApplications,
    /// Send logs.
    GetDeviceLogs,
}

/// Which commands come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Something is to change.
    Administration,
    /// Something is to be told.
    Information,
}

impl Kind {
    /// All there are.
    pub const ALL: [Self; 16] = [
        Self::LockDevice,
        Self::UnlockDevice,
        Self::DeleteDeviceData,
        Self::DeleteWorkSpaceData,
        Self::LockWorkSpace,
        Self::ResetWorkSpacePassword,
        Self::EnableWorkSpace,
        Self::DisableWorkSpace,
        Self::UpdateDeviceOs,
        Self::WipeApplications,
        Self::EnableLostMode,
        Self::DisableLostMode,
        Self::UpdateProfiles,
        Self::RequestDeviceInfo,
        Self::ListApplications,
        Self::GetDeviceLogs,
    ];

    /// Which come first.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::RequestDeviceInfo | Self::ListApplications | Self::GetDeviceLogs => Class::Information,
            Self::LockDevice
            | Self::UnlockDevice
            | Self::DeleteDeviceData
            | Self::DeleteWorkSpaceData
            | Self::LockWorkSpace
            | Self::ResetWorkSpacePassword
            | Self::EnableWorkSpace
            | Self::DisableWorkSpace
            | Self::UpdateDeviceOs
            | Self::WipeApplications
            | Self::EnableLostMode
            | Self::DisableLostMode
            | Self::UpdateProfiles => Class::Administration,
        }
    }

    /// Whether the device holds nothing of the organisation afterwards, its certificate included.
    #[must_use]
    pub fn ends_the_device(self) -> bool {
        matches!(self, Self::DeleteDeviceData | Self::DeleteWorkSpaceData)
    }

    /// As the web services write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LockDevice => "LOCK_DEVICE",
            Self::UnlockDevice => "UNLOCK_DEVICE",
            Self::DeleteDeviceData => "DELETE_DEVICE_DATA",
            Self::DeleteWorkSpaceData => "DELETE_WORK_SPACE_DATA",
            Self::LockWorkSpace => "LOCK_WORK_SPACE",
            Self::ResetWorkSpacePassword => "RESET_WORK_SPACE_PASSWORD",
            Self::EnableWorkSpace => "ENABLE_WORK_SPACE",
            Self::DisableWorkSpace => "DISABLE_WORK_SPACE",
            Self::UpdateDeviceOs => "UPDATE_DEVICE_OS",
            Self::WipeApplications => "WIPE_APPLICATIONS",
            Self::EnableLostMode => "ENABLE_LOST_MODE",
            Self::DisableLostMode => "DISABLE_LOST_MODE",
            Self::UpdateProfiles => "UPDATE_PROFILES",
            Self::RequestDeviceInfo => "REQUEST_DEVICE_INFO",
            Self::ListApplications => "LIST_APPLICATIONS",
            Self::GetDeviceLogs => "GET_DEVICE_LOGS",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// In any case, with `-` for `_`: people type these.
impl FromStr for Kind {
    type Err = CoreError;

    fn from_str(text: &str) -> Result<Self, CoreError> {
        let name = text.trim().replace('-', "_");
        Self::ALL.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(&name)).ok_or_else(|| {
            let all: Vec<_> = Self::ALL.iter().map(|k| k.as_str().to_ascii_lowercase().replace('_', "-")).collect();
            CoreError::invalid("the command", format!("there are {}", all.join(", ")))
        })
    }
}
