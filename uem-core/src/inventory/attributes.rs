//! What a device is, in the web services' words (`userDevice.device`).

use hedgerow_shared::UnixTime;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::account;
use crate::profile::{Hardware, Platform};

/// What a device is and how it does, as it told; what it did not tell is `None`. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Attributes {
    /// When it told.
    pub told: UnixTime,
    /// Operating system: "Linux", "Android".
    pub os: Option<String>,
    /// Which kind of it: "Debian GNU/Linux".
    pub os_family_name: Option<String>,
    /// Its version: "12", "17.2.1".
    pub os_version: Option<String>,
    /// The day of its security patches, `YYYY-MM-DD`.
    pub security_patch_level: Option<String>,
    /// Version of the kernel.
    pub kernel: Option<String>,
    /// Who made the device: "Samsung".
    pub hardware_vendor_company_name: Option<String>,
    /// What it is sold as: "Galaxy S10".
    pub hardware_name: Option<String>,
    /// Which one exactly: "SM-G973F".
    pub hardware_model: Option<String>,
    /// Its serial number.
    pub serial_number: Option<String>,
    /// Its telephone's number in the world.
    pub imei: Option<String>,
    /// Address of its wireless network card.
    pub wifi_mac_address: Option<String>,
    /// What it is called in its network.
    pub host_name: Option<String>,
    /// `CORPORATE` or `PERSONAL`.
    pub ownership: Option<String>,
    /// Version of our client on it.
    pub client_version: Option<String>,
    /// Whether it is rooted or jailbroken.
    pub compromised: Option<bool>,
    /// Whether its storage is encrypted.
    pub encrypted: Option<bool>,
    /// Whether it has a password or lock of its own.
    pub password_set: Option<bool>,
    /// Charge of the battery, per cent.
    pub battery_level: Option<u64>,
    /// Main memory.
    pub ram_total: Option<u64>,
    /// What is free of it.
    pub ram_free: Option<u64>,
    /// Built-in storage.
    pub internal_storage_size: Option<u64>,
    /// What is free of it.
    pub internal_storage_free: Option<u64>,
    /// Since when it runs, seconds.
    pub uptime_seconds: Option<u64>,
}

impl Attributes {
    /// Reads a device's answer. Texts are freed of control characters and cut to `account::MAX_NAME`; what is of another
    /// type than expected counts as not told, and what is not known here is left out.
    #[must_use]
    pub fn read(answer: &Map<String, Value>, told: UnixTime) -> Self {
        let text = |key: &str| answer.get(key)?.as_str().map(account::told).filter(|text| !text.is_empty());
        let truth = |key: &str| answer.get(key)?.as_bool();
        // What SQL keeps as a number has 63 bits; no device has more bytes.
        let number = |key: &str| answer.get(key)?.as_u64().map(|n| n.min(i64::MAX.unsigned_abs()));
        Self {
            told,
            os: text("os"),
            os_family_name: text("osFamilyName"),
            os_version: text("osVersion"),
            security_patch_level: text("securityPatchLevel"),
            kernel: text("kernel"),
            hardware_vendor_company_name: text("hardwareVendorCompanyName"),
            hardware_name: text("hardwareName"),
            hardware_model: text("hardwareModel"),
            serial_number: text("serialNumber"),
            imei: text("imei"),
            wifi_mac_address: text("wifiMacAddress"),
            host_name: text("hostName"),
            ownership: text("ownership"),
            client_version: text("clientVersion"),
            compromised: truth("compromised"),
            encrypted: truth("encrypted"),
            password_set: truth("passwordSet"),
            battery_level: number("batteryLevel"),
            ram_total: number("ramTotal"),
            ram_free: number("ramFree"),
            internal_storage_size: number("internalStorageSize"),
            internal_storage_free: number("internalStorageFree"),
            uptime_seconds: number("uptimeSeconds"),
        }
    }

    /// For compliance profiles that name hardware.
    #[must_use]
    pub fn hardware(&self) -> Hardware<'_> {
        Hardware {
            vendor: self.hardware_vendor_company_name.as_deref().unwrap_or_default(),
            brand: self.hardware_name.as_deref().unwrap_or_default(),
            model: self.hardware_model.as_deref().unwrap_or_default(),
        }
    }

    /// Its family of operating systems, if it is one of ours.
    #[must_use]
    pub fn platform(&self) -> Option<Platform> {
        [&self.os, &self.os_family_name].into_iter().flatten().find_map(|text| Platform::told(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Attributes {
        Attributes::read(&serde_json::from_str(text).unwrap(), UnixTime(7))
    }

    #[test]
    fn p23_an_answer_is_read_leniently_and_within_bounds() {
        let long = "x".repeat(5000);
        let told = read(&format!(
            r#"{{"os":"Linux","osVersion":12,"hardwareModel":"a\u001bb","hostName":"{long}","compromised":"no","encrypted":true,
                "ramTotal":-1,"ramFree":18446744073709551615,"kernel":" ","other":{{"a":[]}}}}"#
        ));
        assert_eq!(
            (told.told, told.os.as_deref(), told.platform()),
            (UnixTime(7), Some("Linux"), Some(Platform::Linux))
        );
        assert_eq!((told.os_version, told.compromised, told.ram_total, told.kernel), (None, None, None, None));
        assert_eq!((told.encrypted, told.ram_free), (Some(true), Some(i64::MAX.unsigned_abs())));
        assert_eq!(told.hardware_model.as_deref(), Some("ab"));
        assert_eq!(told.host_name.map(|name| name.len()), Some(account::MAX_NAME));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn p23_what_was_read_is_kept_as_it_was(os in "\\PC{0,200}", model in "\\PC{0,200}", free in any::<u64>()) {
            let answer = serde_json::json!({ "os": os, "hardwareModel": model, "internalStorageFree": free });
            let told = Attributes::read(answer.as_object().unwrap(), UnixTime(1));
            let kept = serde_json::to_string(&told).unwrap();
            prop_assert!(kept.len() < 16 * 1024);
            prop_assert_eq!(serde_json::from_str::<Attributes>(&kept).unwrap(), told);
        }
    }
}
