//! The door: what may become a cell, with the reason when something may not; and when two bodies are equal.

use super::{CellKey, NewCell};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::{collections::BTreeMap, fmt};

/// Longest body, in bytes. An item of DynamoDB holds 400 KB with its keys and the other attributes.
pub const BODY_MAX: usize = 380 * 1024;
/// Deepest nesting of arrays and objects in a body; deeper ones overflow the stacks of common parsers.
pub const NESTING_MAX: usize = 100;
/// Highest ref key: the numbers of many languages and of the sort key end there.
pub const REF_KEY_MAX: u64 = i64::MAX as u64;
/// Longest row key, in bytes.
const ROW_KEY_MAX: usize = 1024;
/// Longest column name, in bytes.
const COLUMN_MAX: usize = 255;

/// Why a cell was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The row key is empty or too long.
    #[error("row_key has {0} bytes; it must have 1 to 1024")]
    RowKey(usize),
    /// The column is empty or too long.
    #[error("column has {0} bytes; it must have 1 to 255")]
    Column(usize),
    /// The column holds the separator of the sort key.
    #[error("column {0:?} contains '#', which separates column and ref_key")]
    ColumnHash(String),
    /// The ref key is too high.
    #[error("ref_key {0} is out of range; it must be 0 to 9223372036854775807")]
    RefKey(u64),
    /// The body is too long.
    #[error("body has {0} bytes; at most 389120 (380 KB) are stored")]
    BodySize(usize),
    /// Arrays and objects of the body lie too deep in each other.
    #[error("body is nested too deep; arrays and objects may lie at most 100 deep in each other")]
    BodyNesting,
    /// The body is no JSON text.
    #[error("body is not valid JSON: {0}")]
    BodyJson(String),
}

impl CellKey {
    /// Checks the limits of an address.
    ///
    /// # Errors
    /// The first limit that it breaks.
    pub fn check(&self) -> Result<(), Refusal> {
        if !(1..=ROW_KEY_MAX).contains(&self.row_key.len()) {
            return Err(Refusal::RowKey(self.row_key.len()));
        }
        if !(1..=COLUMN_MAX).contains(&self.column.len()) {
            return Err(Refusal::Column(self.column.len()));
        }
        if self.column.contains('#') {
            return Err(Refusal::ColumnHash(self.column.to_string()));
        }
        if self.ref_key > REF_KEY_MAX {
            return Err(Refusal::RefKey(self.ref_key));
        }
        Ok(())
    }
}

impl NewCell {
    /// Checks everything that can be known without the store.
    ///
    /// # Errors
    /// The first limit that the cell breaks.
    pub fn check(&self) -> Result<(), Refusal> {
        self.key.check()?;
        if self.body.len() > BODY_MAX {
            return Err(Refusal::BodySize(self.body.len()));
        }
        let walked = serde_json::from_str::<Strict>(&self.body).map_err(|error| error.to_string());
        match walked {
            // The parser's own limit is above ours.
            Err(told) if told.starts_with("recursion limit exceeded") => Err(Refusal::BodyNesting),
            Err(told) => Err(Refusal::BodyJson(told)),
            Ok(_) if nesting(&self.body) > NESTING_MAX => Err(Refusal::BodyNesting),
            Ok(_) => Ok(()),
        }
    }
}

/// Walks a JSON text to its end and keeps nothing. Unlike [`IgnoredAny`] it decodes every string, so that
/// a lone surrogate is refused here and not by a handler's parser.
struct Strict;

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Strict)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, _: bool) -> Result<Strict, E> {
        Ok(Strict)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Strict, E> {
        Ok(Strict)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Strict, E> {
        Ok(Strict)
    }
    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Strict, E> {
        if number.is_finite() { Ok(Strict) } else { Err(E::custom("a number is out of range")) }
    }
    fn visit_str<E>(self, _: &str) -> Result<Strict, E> {
        Ok(Strict)
    }
    fn visit_unit<E>(self) -> Result<Strict, E> {
        Ok(Strict)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
        while seq.next_element::<Strict>()?.is_some() {}
        Ok(Strict)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
        while map.next_entry::<Strict, Strict>()?.is_some() {}
        Ok(Strict)
    }
}

/// Depth of arrays and objects in a text that is known to be JSON.
fn nesting(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth -= 1,
            _ => {}
        }
    }
    deepest
}

/// Whether two JSON texts are the same value: white space, the order of keys and the escapes of strings do
/// not count, the digits of a number do (`1` and `1.0` differ, and so do two integers that one `f64` would
/// round to the same value). A text that is no JSON equals only its own bytes.
#[must_use]
pub fn same_json(left: &str, right: &str) -> bool {
    left == right || matches!((canonical(left), canonical(right)), (Ok(a), Ok(b)) if a == b)
}

/// A JSON value whose numbers keep their digits.
#[derive(PartialEq)]
enum Canonical {
    Object(BTreeMap<String, Canonical>),
    Array(Vec<Canonical>),
    Text(String),
    Literal(String),
}

fn canonical(json: &str) -> Result<Canonical, serde_json::Error> {
    let json = json.trim_matches([' ', '\t', '\n', '\r']);
    Ok(match json.as_bytes().first() {
        Some(b'{') => {
            let fields: BTreeMap<String, &RawValue> = serde_json::from_str(json)?;
            let fields = fields.into_iter().map(|(key, value)| Ok((key, canonical(value.get())?)));
            Canonical::Object(fields.collect::<Result<_, serde_json::Error>>()?)
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(json)?;
            Canonical::Array(items.into_iter().map(|item| canonical(item.get())).collect::<Result<_, _>>()?)
        }
        Some(b'"') => Canonical::Text(serde_json::from_str(json)?),
        Some(_) => {
            serde_json::from_str::<IgnoredAny>(json)?;
            Canonical::Literal(json.into())
        }
        None => return Err(serde_json::Error::custom("empty")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cell(row: &str, column: &str, ref_key: u64, body: &str) -> NewCell {
        let key = CellKey { row_key: row.into(), column: column.into(), ref_key };
        NewCell { key, body: body.into(), origin: None }
    }

    #[test]
    fn the_limits_stand_at_their_bounds() {
        let (row, column) = ("r".repeat(1024), "c".repeat(255));
        let body = format!("\"{}\"", "x".repeat(BODY_MAX - 2));
        assert_eq!(cell(&row, &column, REF_KEY_MAX, &body).check(), Ok(()));
        assert_eq!(cell("", "c", 0, "1").check(), Err(Refusal::RowKey(0)));
        assert_eq!(cell(&"é".repeat(513), "c", 0, "1").check(), Err(Refusal::RowKey(1026)));
        assert_eq!(cell("r", "", 0, "1").check(), Err(Refusal::Column(0)));
        assert_eq!(cell("r", &"c".repeat(256), 0, "1").check(), Err(Refusal::Column(256)));
        assert_eq!(cell("r", "a#b", 0, "1").check(), Err(Refusal::ColumnHash("a#b".into())));
        assert_eq!(cell("r", "c", 1 << 63, "1").check(), Err(Refusal::RefKey(1 << 63)));
        assert_eq!(cell("r", "c", 0, &format!("{body} ")).check(), Err(Refusal::BodySize(BODY_MAX + 1)));
    }

    #[test]
    fn a_body_is_json_or_refused() {
        for bad in ["", "{", "nope", "1 2", "{\"a\":}", "[1,]", "NaN", r#""\ud800""#, r#"{"\udfff":1}"#, "1e999"] {
            assert!(matches!(cell("r", "c", 0, bad).check(), Err(Refusal::BodyJson(_))), "{bad}");
        }
        for good in ["null", "0", "\"\"", "{}", r#"{"a":[1,{"b":"[[["}]}"#, "123456789012345678901234567890"] {
            assert_eq!(cell("r", "c", 0, good).check(), Ok(()), "{good}");
        }
        let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert_eq!(cell("r", "c", 0, &nested(NESTING_MAX)).check(), Ok(()));
        for too_deep in [NESTING_MAX + 1, 127, 128, 100_000] {
            assert_eq!(cell("r", "c", 0, &nested(too_deep)).check(), Err(Refusal::BodyNesting), "{too_deep}");
        }
    }

    #[test]
    fn equal_json_is_recognised_and_other_json_is_not() {
        assert!(same_json(r#"{"a":1,"b":[true,null]}"#, "{ \"b\" : [true, null],\n\"a\":1 }"));
        assert!(same_json(r#""é""#, r#""\u00e9""#));
        assert!(!same_json("1", "1.0"));
        assert!(!same_json("12345678901234567890123", "12345678901234567890124"), "one f64, two numbers");
        assert!(!same_json("[1,2]", "[2,1]"));
        assert!(!same_json("\"1\"", "1"));
    }

    proptest! {
        #[test]
        fn the_door_never_panics(body in ".{0,64}", row in ".{0,8}", column in ".{0,8}", ref_key: u64) {
            let _ = cell(&row, &column, ref_key, &body).check();
            let _ = same_json(&body, &row);
        }
    }
}
