//! The body of a cell as values of CEL.

use super::Cell;
use cel::common::{
    types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt, Type},
    value::{StaticVal, Val},
};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use std::{
    any::Any,
    cell::Cell as StdCell,
    collections::{HashMap, HashSet},
    fmt,
};

/// A whole number that neither an `int` nor a `uint` can hold. The parser makes the nearest `double` of it, and two that
/// differ may become equal; so nothing is computed from it, nor is it compared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Huge;

static HUGE: Type = Type::new_unspecified_type("whole number that is too large");

impl Val for Huge {
    fn get_type(&self) -> &Type {
        Self::cel_type()
    }
    fn cel_type() -> &'static Type {
        &HUGE
    }
    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(Self)
    }
    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Huge {}

/// Doubles that come out of the parser and may have been [`Huge`].
#[derive(Default)]
struct Doubles {
    /// There is one that is as large.
    doubtful: StdCell<bool>,
    /// Those that were written as whole numbers, as bits.
    huge: HashSet<u64>,
}

impl Doubles {
    fn value<'v>(&self, number: f64) -> Box<dyn Val + 'v> {
        if number.abs() >= INT_END {
            self.doubtful.set(true);
            if self.huge.contains(&number.to_bits()) {
                return Box::new(Huge);
            }
        }
        Box::new(CelDouble::from(number))
    }
}

/// 2^63; below, a double is never a whole number that an int cannot hold.
const INT_END: f64 = 9_223_372_036_854_775_808.0;

/// The whole numbers of a JSON text that are too large, as the doubles that the parser makes of them.
fn huge(text: &str) -> HashSet<u64> {
    let is_number = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
    let mut huge = HashSet::new();
    let (bytes, mut at) = (text.as_bytes(), 0);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => {
                at += 1;
                while bytes.get(at).is_some_and(|byte| *byte != b'"') {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'0'..=b'9' | b'-' => {
                let number = &text[at..at + bytes[at..].iter().take_while(|byte| is_number(byte)).count()];
                at += number.len();
                let fits =
                    number.contains(['.', 'e', 'E']) || number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok();
                if !fits && let Ok(double) = serde_json::from_str::<f64>(number) {
                    huge.insert(double.to_bits());
                }
            }
            _ => at += 1,
        }
    }
    huge
}

fn parse<'c>(cell: &'c Cell, doubles: &Doubles) -> Result<Box<dyn Val + 'c>, String> {
    let mut body = serde_json::Deserializer::from_str(&cell.body);
    let parsed = body.deserialize_any(Json(doubles)).and_then(|value| body.end().map(|()| value));
    parsed.map_err(|error| format!("the body cannot be read: {error}"))
}

/// The variable `data`, as in the envelope.
pub(super) fn data(cell: &Cell) -> Result<Box<dyn Val + '_>, String> {
    let mut doubles = Doubles::default();
    let mut body = parse(cell, &doubles)?;
    if doubles.doubtful.get() {
        doubles.huge = huge(&cell.body);
        body = parse(cell, &doubles)?;
    }
    let key = &cell.key;
    let fields: [(&'static str, Box<dyn Val + '_>); 7] = [
        ("row_key", Box::new(CelString::from(&*key.row_key))),
        ("column", Box::new(CelString::from(&*key.column))),
        ("ref_key", whole(key.ref_key)),
        ("added_id", whole(cell.added_id.0)),
        ("shard", whole(cell.shard.0.into())),
        ("created_at", Box::new(CelInt::from(cell.created_at.0))),
        ("body", body),
    ];
    let fields = fields.into_iter().map(|(name, value)| (CelMapKey::from(name), value));
    Ok(Box::new(CelMap::from(fields.collect::<HashMap<_, _>>())))
}

fn whole<'v>(n: u64) -> Box<dyn Val + 'v> {
    match i64::try_from(n) {
        Ok(n) => Box::new(CelInt::from(n)),
        Err(_) => Box::new(CelUInt::from(n)),
    }
}

/// Reads JSON into values of CEL, which borrow their strings from the text where they can.
#[derive(Clone, Copy)]
struct Json<'d>(&'d Doubles);

impl<'de> serde::de::DeserializeSeed<'de> for Json<'_> {
    type Value = Box<dyn Val + 'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Json<'_> {
    type Value = Box<dyn Val + 'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Box::new(CelBool::from(value)))
    }
    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Box::new(CelInt::from(number)))
    }
    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(whole(number))
    }
    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(self.0.value(number))
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Box::new(CelString::from(text.to_owned())))
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Box::new(CelString::from(text)))
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Box::new(CelNull))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Box::new(CelList::from(items)))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = HashMap::new();
        while let Some(key) = map.next_key::<String>()? {
            fields.insert(CelMapKey::from(key), map.next_value_seed(self)?);
        }
        Ok(Box::new(CelMap::from(fields)))
    }
}
