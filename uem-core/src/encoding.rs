//! Bytes in JSON: standard base64 with padding, and things whose text is their `Display`.

/// `#[serde(with = "encoding::base64")]` for byte vectors and byte arrays.
pub(crate) mod base64 {
    use ::base64::Engine;
    use ::base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: impl AsRef<[u8]>, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, T: TryFrom<Vec<u8>>>(d: D) -> Result<T, D::Error> {
        use serde::de::Error;
        let text = String::deserialize(d)?;
        let bytes = STANDARD.decode(text).map_err(|_| D::Error::custom("it is not base64"))?;
        T::try_from(bytes).map_err(|_| D::Error::custom("it has the wrong length"))
    }
}

/// `#[serde(with = "encoding::text")]` for what has one textual form.
pub(crate) mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &impl Display, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(value)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(d: D) -> Result<T, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}
