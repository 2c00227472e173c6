//! Identifiers. Each is a type of its own, so that a shard is never taken for an epoch.

use std::{borrow::Borrow, fmt, sync::Arc};

/// One of the N logs of a datastore, `0..N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u32);

impl ShardId {
    /// The shard of a row: `xxh3_64(row_key) mod shards`. Fixed for the life of a datastore.
    #[must_use]
    pub fn of(row_key: &str, shards: u32) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_64(row_key.as_bytes());
        Self(u32::try_from(hash % u64::from(shards)).expect("a remainder of a u32 fits a u32"))
    }
}

/// A cell's place in its shard's log: 1, 2, 3 … dense, never reused. 0 is "before the first".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddedId(pub u64);

impl AddedId {
    /// Highest place that a record may name, so that there is one after each; whole numbers of many languages end there.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// The place after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Fencing token of a lease: grows by one whenever the lease is claimed or an operator intervenes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// The version of a cell, `0..2^63`.
pub type RefKey = u64;

/// Milliseconds since the Unix epoch, by the wall clock of whoever wrote it. Takes part in no decision
/// about ownership.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub i64);

/// A textual identifier behind a shared pointer.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes a text that was stored before; nothing is checked.
            #[must_use]
            pub fn from_stored(text: &str) -> Self {
                Self(text.into())
            }

            /// A new random one: 80 bits as 16 lower-case letters and digits.
            #[must_use]
            pub fn random() -> Self {
                const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
                let text: String = (0..16).map(|_| char::from(ALPHABET[fastrand::usize(..32)])).collect();
                Self(text.into())
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// One life of a process in a group. New at every start, never reused.
    SessionId
);
text_id!(
    /// What checkpoints, lanes, pauses and origins are filed under; the trigger's name is only a label.
    TriggerId
);
text_id!(
    /// Drawn when a datastore is made, so that one made anew under the same name is never taken for the
    /// old one.
    Incarnation
);

/// What a [`Name`] looks like, for error messages.
pub struct Pattern;

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[a-z][a-z0-9_]{0,62} without a double underscore")
    }
}

/// The text is no [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name: it has to match {Pattern}")]
pub struct NameError(pub String);

/// Name of a datastore, a group or a trigger: `[a-z][a-z0-9_]{0,62}` without a double underscore.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// When the text does not match the pattern.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let mut bytes = text.bytes();
        let good = bytes.next().is_some_and(|b| b.is_ascii_lowercase())
            && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            && text.len() <= 63
            && !text.contains("__");
        if good { Ok(Self(text.into())) } else { Err(NameError(text.into())) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl serde::Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

/// A shard of a named source: what a lease is about. Written `source/shard`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardRef {
    /// The datastore.
    pub source: Name,
    /// The shard of it.
    pub shard: ShardId,
}

macro_rules! number_id {
    ($($name:ident)*) => { $(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )* };
}

number_id!(ShardId AddedId Epoch Millis);

impl fmt::Display for ShardRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.source, self.shard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "trips", "bill_rider", "a1_2", &"x".repeat(63)] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for bad in ["", "1a", "_a", "A", "a-b", "a__b", "a.b", "é", &"x".repeat(64)] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_row_keeps_its_shard_for_ever() {
        // Fixed values: a change of the hash would strand every datastore that exists.
        assert_eq!(ShardId::of("row-1", 64), ShardId(SHARD_OF_ROW_1));
        assert_eq!(ShardId::of("", 1), ShardId(0));
    }

    /// `xxh3_64("row-1") mod 64`, by the reference implementation of xxHash (Python package xxhash).
    const SHARD_OF_ROW_1: u32 = 59;
}
