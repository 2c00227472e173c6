//! The body of a cell as values of CEL.

use super::Cell;
use cel::common::{
    types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt},
    value::Val,
};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use std::{collections::HashMap, fmt};

/// The variable `data`, as in the envelope.
pub(super) fn data(cell: &Cell) -> Result<Box<dyn Val + '_>, String> {
    let mut body = serde_json::Deserializer::from_str(&cell.body);
    let parsed = body.deserialize_any(Json).and_then(|value| body.end().map(|()| value));
    let body = parsed.map_err(|error| format!("the body cannot be read: {error}"))?;
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
struct Json;

impl<'de> serde::de::DeserializeSeed<'de> for Json {
    type Value = Box<dyn Val + 'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Json {
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
        Ok(Box::new(CelDouble::from(number)))
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
        while let Some(item) = seq.next_element_seed(Json)? {
            items.push(item);
        }
        Ok(Box::new(CelList::from(items)))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = HashMap::new();
        while let Some(key) = map.next_key::<String>()? {
            fields.insert(CelMapKey::from(key), map.next_value_seed(Json)?);
        }
        Ok(Box::new(CelMap::from(fields)))
    }
}
