//! Every durable item, key and value written out.
//!
//! A datastore has the tables `cells`, `log` and `tips`, a group has `control`, `parked` and `locks`.
//!
//! | table | item | key | value |
//! | --- | --- | --- | --- |
//! | `cells` | a cell | `row_key` S, `cell` S `column#ref_key`, 20 digits | `body` S JSON, or `erased` BOOL, `shard` N, `added_id` N, `created_at` N ms, `origin` M? `{trigger S, event S}` |
//! | `log` | a segment | `shard` N, `last` N | `n` N, `cells` B, `created_at` N ms |
//! | `tips` | a tip | `bucket` N, `shard` N | `tip` N, `created_at` N ms, `trimmed_to` N |
//! | `tips` | the datastore | `bucket` N = -1, `shard` N = -1 | `schema` N, `name` S, `shards` N, `incarnation` S, `hash` S, `segment_formats` NS, `groups` SS? |
//! | `control` | a session | `scope` S `sessions`, `item` S its id | `state` S, `beat` N, `inbox` N, `parked_inbox` N, `role` S, `host` S, `pid` N, `version` S, `length_ms` N, `started_at` N ms, `sources` SS? |
//! | `control` | a trigger | `scope` S `triggers`, `item` S its name | `id` S, `name` S, `source` S, `incarnation` S, `state` S, `reason` S?, `generation` N, `revision` N, `formerly` SS?, `start` B? LEB128 |
//! | `control` | a former name of a trigger | `scope` S `triggers`, `item` S the name | `id` S of the trigger, `state` S `renamed` |
//! | `control` | a retired trigger | `scope` S `retired`, `item` S its id | the same |
//! | `control` | a lease | `scope` S `leases/{shard mod 16}`, `item` S `source/shard`, 5 digits | `incarnation` S, `owner` S?, `epoch` N, `seq` N, `checkpoints` M by trigger id |
//! | | a checkpoint | in its lease | `low` N, `done` B?, `attempts` B?, `paused` M? `{generation N, reason S}`, `dead` N, `generation` N |
//! | `parked` | a parked cell | `lane` S `trigger id/shard/active` or `…/dead`, `position` S 20 digits | `source` S, `last` N, `row_key` S, `column` S, `ref_key` N, `state` S, `attempts` N, `errors` L of S, `next_attempt_at` N ms, `since` N ms, `revision` N |
//!
//! `?` marks what may be absent. A decoder refuses every record that no encoder of ours can have made, with the
//! reason; on a read that becomes `ErrorKind::Undecodable`.

mod control;
mod datastore;
#[cfg(test)]
mod hostile;
mod parked;

pub(super) use control::{
    LEASE_SCOPES, Named, RENAMED, SESSIONS, TRIGGERS, alone_value, checkpoint_value, former_item, half_named, lease,
    lease_item, lease_key, lease_prefix, lease_scope, named, retired_key, session, session_item, session_key,
    state_word, trigger, trigger_item, trigger_key,
};
pub(super) use datastore::{
    CELL_PLACE_ATTRIBUTES, FoundDatastore, SEGMENT_KEY_ATTRIBUTES, cell, cell_item, cell_key, cell_place, datastore,
    datastore_item, datastore_key, groups, scan_key, scan_place, segment, segment_item, segment_key, segment_key_only,
    tip, tip_key,
};
pub(super) use parked::{lane_key, parked, parked_anywhere, parked_item, parked_key, position};

use crate::cell::{AddedId, Millis, Name};
use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
use bytes::Bytes;
use std::{
    collections::{BTreeSet, HashMap},
    fmt::Display,
    str::FromStr,
};

/// The attributes of an item, or those of its key.
pub(super) type Item = HashMap<String, AttributeValue>;

/// A record that cannot be one of ours.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("impossible {what} item: {reason}")]
pub(super) struct Impossible {
    what: &'static str,
    reason: String,
}

/// Longest reason that is kept, in bytes.
const REASON_MAX: usize = 300;

type Decoded<T> = Result<T, Impossible>;

/// A text attribute.
pub(super) fn s(text: impl Into<String>) -> AttributeValue {
    AttributeValue::S(text.into())
}

/// A number attribute.
pub(super) fn n(number: impl Display) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

/// A binary attribute.
pub(super) fn b(bytes: impl Into<Vec<u8>>) -> AttributeValue {
    AttributeValue::B(Blob::new(bytes))
}

fn item<const N: usize>(attributes: [(&str, AttributeValue); N]) -> Item {
    attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Takes the attributes of an item apart, each once, without copying.
struct Fields {
    what: &'static str,
    item: Item,
}

impl Fields {
    fn new(what: &'static str, item: Item) -> Self {
        Self { what, item }
    }

    /// The reason is cut: it may quote an attribute, which may be as long as an item.
    fn impossible(&self, reason: impl Into<String>) -> Impossible {
        let mut reason = reason.into();
        if reason.len() > REASON_MAX {
            reason.truncate(reason.floor_char_boundary(REASON_MAX));
            reason.push('…');
        }
        Impossible { what: self.what, reason }
    }

    fn ensure(&self, holds: bool, reason: impl FnOnce() -> String) -> Decoded<()> {
        if holds { Ok(()) } else { Err(self.impossible(reason())) }
    }

    /// Takes an attribute that may be absent, as one kind of value.
    fn optional<T>(&mut self, name: &str, kind: &str, get: fn(AttributeValue) -> Option<T>) -> Decoded<Option<T>> {
        let Some(value) = self.item.remove(name) else { return Ok(None) };
        match get(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.impossible(format!("{name} is not {kind}"))),
        }
    }

    fn required<T>(&self, name: &str, value: Option<T>) -> Decoded<T> {
        value.ok_or_else(|| self.impossible(format!("{name} is missing")))
    }

    fn optional_text(&mut self, name: &str) -> Decoded<Option<String>> {
        self.optional(name, "a text", |value| match value {
            AttributeValue::S(text) => Some(text),
            _ => None,
        })
    }

    fn text(&mut self, name: &str) -> Decoded<String> {
        let text = self.optional_text(name)?;
        self.required(name, text)
    }

    /// A text that identifies something and so is never empty.
    fn id(&mut self, name: &str) -> Decoded<String> {
        let text = self.text(name)?;
        self.ensure(!text.is_empty(), || format!("{name} is empty"))?;
        Ok(text)
    }

    fn parsed<T: FromStr>(&mut self, name: &str) -> Decoded<T> {
        let text = self.id(name)?;
        text.parse().map_err(|_| self.impossible(format!("{name} is {text:?}")))
    }

    fn number<T: FromStr>(&mut self, name: &str) -> Decoded<T> {
        let digits = self.optional(name, "a number", |value| match value {
            AttributeValue::N(digits) => Some(digits),
            _ => None,
        })?;
        let digits = self.required(name, digits)?;
        digits.parse().map_err(|_| self.impossible(format!("{name} is {digits}")))
    }

    /// A place in a log, or the one before its first.
    fn place(&mut self, name: &str) -> Decoded<AddedId> {
        let place = AddedId(self.number(name)?);
        self.ensure(place <= AddedId::MAX, || format!("{name} is {place}"))?;
        Ok(place)
    }

    /// When something was, for people; an earlier release did not write it.
    fn time_or_none(&mut self, name: &str) -> Decoded<Millis> {
        if self.item.contains_key(name) { self.number(name).map(Millis) } else { Ok(Millis(0)) }
    }

    /// A number that is written only where it is not 0.
    fn count_or_none(&mut self, name: &str) -> Decoded<u64> {
        if self.item.contains_key(name) { self.number(name) } else { Ok(0) }
    }

    fn optional_bytes(&mut self, name: &str) -> Decoded<Option<Bytes>> {
        self.optional(name, "binary", |value| match value {
            AttributeValue::B(blob) => Some(Bytes::from(blob.into_inner())),
            _ => None,
        })
    }

    fn bytes(&mut self, name: &str) -> Decoded<Bytes> {
        let bytes = self.optional_bytes(name)?;
        self.required(name, bytes)
    }

    /// A set of names; absent where it is empty.
    fn names(&mut self, name: &str) -> Decoded<BTreeSet<Name>> {
        let set = self.optional(name, "a set of texts", |value| match value {
            AttributeValue::Ss(set) => Some(set),
            _ => None,
        })?;
        let parsed = |text: String| text.parse().map_err(|_| self.impossible(format!("{name} has {text:?}")));
        set.unwrap_or_default().into_iter().map(parsed).collect()
    }

    fn list(&mut self, name: &str) -> Decoded<Vec<AttributeValue>> {
        let list = self.optional(name, "a list", |value| match value {
            AttributeValue::L(list) => Some(list),
            _ => None,
        })?;
        self.required(name, list)
    }

    /// A mark that is there and true, or absent.
    fn mark(&mut self, name: &str) -> Decoded<bool> {
        let mark = self.optional(name, "true", |value| matches!(value, AttributeValue::Bool(true)).then_some(true))?;
        Ok(mark.is_some())
    }

    fn optional_map(&mut self, name: &str, what: &'static str) -> Decoded<Option<Fields>> {
        let map = self.optional(name, "a map", |value| match value {
            AttributeValue::M(map) => Some(map),
            _ => None,
        })?;
        Ok(map.map(|map| Fields::new(what, map)))
    }

    /// Checks a part of the key that is known from elsewhere.
    fn expect_text(&mut self, name: &str, expected: &str) -> Decoded<()> {
        let found = self.text(name)?;
        self.ensure(found == expected, || format!("{name} is {found:?}, not {expected:?}"))
    }
}

/// 20 decimal digits, all or nothing.
fn twenty_digits(text: &str) -> Option<u64> {
    (text.len() == 20 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
mod testing {
    use super::*;

    /// A decoder must refuse the item when any one attribute is missing or of another kind, but for `optional` ones,
    /// which may be missing.
    pub(super) fn refuses_mutilated<T: std::fmt::Debug>(
        whole: &Item,
        optional: &[&str],
        decode: impl Fn(Item) -> Decoded<T>,
    ) {
        for name in whole.keys() {
            let mut missing = whole.clone();
            missing.remove(name);
            assert_eq!(decode(missing).is_ok(), optional.contains(&name.as_str()), "{name} missing");
            let mut other = whole.clone();
            other.insert(name.clone(), AttributeValue::Bool(true));
            assert!(decode(other).is_err(), "{name} of another kind");
        }
    }

    /// The reason why an item with one attribute changed is refused.
    pub(super) fn reason<T: std::fmt::Debug>(
        whole: &Item,
        name: &str,
        value: AttributeValue,
        decode: impl Fn(Item) -> Decoded<T>,
    ) -> String {
        let mut changed = whole.clone();
        changed.insert(name.to_owned(), value);
        decode(changed).unwrap_err().to_string()
    }

    #[test]
    fn twenty_digits_are_twenty_digits() {
        assert_eq!(twenty_digits("00000000000000000042"), Some(42));
        assert_eq!(twenty_digits("18446744073709551615"), Some(u64::MAX));
        for bad in ["", "42", "18446744073709551616", "0000000000000000004x", "+0000000000000000042"] {
            assert_eq!(twenty_digits(bad), None, "{bad}");
        }
    }
}
