//! Settings as people write them in a config file: durations ("250ms", "15min", "1d") and sizes ("16MB"); and what is
//! wrong with one.

use std::{fmt, time::Duration};

/// Longest duration that a setting may have. Far below where adding it to a clock would overflow.
pub const DURATION_MAX: Duration = Duration::from_hours(10 * 365 * 24);

/// A setting whose value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct BadSetting {
    /// The key, from the room's own table down, such as `window.cells`.
    pub key: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

impl BadSetting {
    /// A key and a reason.
    pub fn new(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { key: key.into(), reason: reason.into() }
    }
}

/// Refuses a value outside of its range.
///
/// # Errors
/// With the key, the value and the range.
pub fn within<T: PartialOrd + fmt::Display>(key: &str, value: T, least: T, most: T) -> Result<(), BadSetting> {
    if value < least || value > most {
        return Err(BadSetting::new(key, format!("{value} is out of range; it must be {least} to {most}")));
    }
    Ok(())
}

/// Refuses a duration outside of its range.
///
/// # Errors
/// With the key, the value and the range.
pub fn lasts(key: &str, value: Duration, least: Duration, most: Duration) -> Result<(), BadSetting> {
    if value < least || value > most {
        let (value, least, most) = (duration::text(value), duration::text(least), duration::text(most));
        return Err(BadSetting::new(key, format!("{value:?} is out of range; it must be {least:?} to {most:?}")));
    }
    Ok(())
}

/// A [`Duration`] as text with its unit, for `#[serde(with)]`.
pub mod duration {
    use super::DURATION_MAX;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::time::Duration;

    const UNITS: [(&str, u128); 7] = [
        ("d", 86_400_000_000_000),
        ("h", 3_600_000_000_000),
        ("min", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
        ("ns", 1),
    ];

    /// The text with the largest unit that leaves no rest.
    #[must_use]
    pub fn text(duration: Duration) -> String {
        let nanos = duration.as_nanos();
        if nanos == 0 {
            return "0ms".into();
        }
        let unit = UNITS.iter().find(|(_, size)| nanos.is_multiple_of(*size));
        unit.map_or_else(String::new, |(name, size)| format!("{}{name}", nanos / size))
    }

    /// Reads a text such as "1h 30min".
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Duration, String> {
        let wrong =
            |why: &str| format!("{text:?} is no duration such as \"250ms\", \"10s\", \"15min\" or \"1d\": {why}");
        match humantime::parse_duration(text) {
            Ok(duration) if duration > DURATION_MAX => Err(wrong("longer than ten years")),
            Ok(duration) => Ok(duration),
            Err(error) => Err(wrong(&error.to_string())),
        }
    }

    /// For serde.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text(*duration))
    }

    /// For serde.
    ///
    /// # Errors
    /// When it is no text, or no duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }

    /// The same for a key that may be left out.
    pub mod optional {
        use serde::{Deserializer, Serializer};
        use std::time::Duration;

        /// For serde.
        ///
        /// # Errors
        /// Those of the serializer.
        pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
            match duration {
                Some(duration) => super::serialize(duration, serializer),
                None => serializer.serialize_none(),
            }
        }

        /// For serde.
        ///
        /// # Errors
        /// When it is no text, or no duration.
        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
            super::deserialize(deserializer).map(Some)
        }
    }
}

/// A number of bytes as text with its unit, for `#[serde(with)]`.
pub mod size {
    use bytesize::ByteSize;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    const UNITS: [(&str, u64); 7] = [
        ("GB", 1_000_000_000),
        ("GiB", 1 << 30),
        ("MB", 1_000_000),
        ("MiB", 1 << 20),
        ("kB", 1_000),
        ("KiB", 1 << 10),
        ("B", 1),
    ];

    /// The text with the first unit that leaves no rest.
    #[must_use]
    pub fn text(bytes: u64) -> String {
        let unit = UNITS.iter().find(|(_, size)| bytes.is_multiple_of(*size) && bytes >= *size);
        unit.map_or_else(|| "0B".into(), |(name, size)| format!("{}{name}", bytes / size))
    }

    /// Reads a text such as "16MB" or "64KiB".
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<u64, String> {
        let size = text.parse::<ByteSize>();
        size.map(|size| size.as_u64())
            .map_err(|error| format!("{text:?} is no size such as \"64KiB\", \"16MB\" or \"1GB\": {error}"))
    }

    /// For serde.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text(*bytes))
    }

    /// For serde.
    ///
    /// # Errors
    /// When it is no text, or no size.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_and_sizes_are_written_as_people_do() {
        for text in ["250ms", "10s", "15min", "1d", "36h", "0ms", "3us", "1ns"] {
            assert_eq!(duration::text(duration::parse(text).unwrap()), text);
        }
        for text in ["16MB", "64KiB", "1GB", "0B", "17B"] {
            assert_eq!(size::text(size::parse(text).unwrap()), text);
        }
        assert_eq!(size::parse("16MB"), Ok(16_000_000));
        for bad in ["", "10", "ten", "-1s", "1000000y", "99999999999999999999s"] {
            assert!(duration::parse(bad).is_err(), "{bad}");
        }
        for bad in ["", "MB", "-1MB", "16 apples"] {
            assert!(size::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(nanos in 0..DURATION_MAX.as_nanos(), bytes in 0_u64..1 << 53) {
            let duration = Duration::from_nanos_u128(nanos);
            prop_assert_eq!(duration::parse(&duration::text(duration)), Ok(duration));
            prop_assert_eq!(size::parse(&size::text(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in ".{0,24}") {
            let _ = (duration::parse(&text), size::parse(&text));
        }
    }
}
