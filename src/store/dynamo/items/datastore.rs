//! The items of a datastore: cells, segments, tips, and the datastore's own.

use super::{Decoded, Fields, Item, b, item, n, s, twenty_digits};
use crate::cell::{
    AddedId, Cell, CellKey, CellPlace, Datastore, Incarnation, Millis, Name, NewCell, Origin, REF_KEY_MAX, SCHEMA,
    ScanPlace, Segment, SegmentKey, ShardId, StoredCell, Tip, TriggerId,
};
use aws_sdk_dynamodb::types::AttributeValue;
use bytestring::ByteString;
use std::collections::BTreeSet;

/// Name of the function that gives a row its shard.
const HASH: &str = "xxh3_64";
/// The formats of segments that writers of this schema may use: for people, since a reader goes by each segment's own number.
const SEGMENT_FORMATS: [&str; 2] = ["1", "2"];
/// `bucket` and `shard` of the datastore's own item: no tip has these.
const OWN: i64 = -1;

/// Sort key of a cell: within a column in the order of ref keys.
fn cell_sort_key(column: &str, ref_key: u64) -> String {
    format!("{column}#{ref_key:020}")
}

/// Key of a cell.
pub(crate) fn cell_key(key: &CellKey) -> Item {
    item([("row_key", s(&*key.row_key)), ("cell", s(cell_sort_key(&key.column, key.ref_key)))])
}

/// Key of the item after which a scan goes on.
pub(crate) fn scan_key(place: &ScanPlace) -> Item {
    item([("row_key", s(&*place.row_key)), ("cell", s(&*place.cell))])
}

/// Where an item of the table `cells` lies, whatever else is wrong with it.
pub(crate) fn scan_place(stored: &Item) -> Decoded<ScanPlace> {
    let keys = ["row_key", "cell"].map(|name| (name.to_owned(), stored.get(name).cloned()));
    let keys = keys.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let mut fields = Fields::new("cell", keys);
    Ok(ScanPlace { row_key: fields.text("row_key")?, cell: fields.text("cell")? })
}

/// A cell with its place.
pub(crate) fn cell_item(new: &NewCell, shard: ShardId, added_id: AddedId, created_at: Millis) -> Item {
    let mut stored = cell_key(&new.key);
    stored.extend(item([
        ("body", s(&*new.body)),
        ("shard", n(shard)),
        ("added_id", n(added_id)),
        ("created_at", n(created_at)),
    ]));
    if let Some(origin) = &new.origin {
        let origin = item([("trigger", s(origin.trigger.as_str())), ("event", s(&*origin.event))]);
        stored.insert("origin".into(), AttributeValue::M(origin));
    }
    stored
}

/// What a projection has to bring for [`cell_place`].
pub(crate) const CELL_PLACE_ATTRIBUTES: [&str; 5] = ["row_key", "cell", "shard", "added_id", "erased"];

/// Reads where a cell lies, without its body, which may be damaged.
pub(crate) fn cell_place(stored: Item) -> Decoded<CellPlace> {
    place(&mut Fields::new("cell", stored))
}

fn place(fields: &mut Fields) -> Decoded<CellPlace> {
    let row_key = fields.id("row_key")?;
    let sort_key = fields.id("cell")?;
    let parts = sort_key.rsplit_once('#').and_then(|(column, digits)| Some((column, twenty_digits(digits)?)));
    let Some((column, ref_key)) = parts.filter(|(column, ref_key)| !column.is_empty() && *ref_key <= REF_KEY_MAX)
    else {
        return Err(fields.impossible(format!("cell is {sort_key:?}, not column#ref_key")));
    };
    let key = CellKey { row_key: row_key.into(), column: column.into(), ref_key };
    let added_id = fields.place("added_id")?;
    fields.ensure(added_id.0 > 0, || "added_id is 0".into())?;
    Ok(CellPlace { key, shard: ShardId(fields.number("shard")?), added_id, erased: fields.mark("erased")? })
}

/// Reads a cell.
pub(crate) fn cell(stored: Item) -> Decoded<StoredCell> {
    let mut fields = Fields::new("cell", stored);
    let CellPlace { key, shard, added_id, erased } = place(&mut fields)?;
    let origin = match fields.optional_map("origin", "cell origin")? {
        None => None,
        Some(mut origin) => {
            let trigger = TriggerId::from_stored(&origin.id("trigger")?);
            Some(Origin { trigger, event: origin.text("event")? })
        }
    };
    let created_at = Millis(fields.number("created_at")?);
    let body = fields.optional_text("body")?;
    fields.ensure(!(erased && body.is_some()), || "it is erased and has a body".into())?;
    let body = if erased { String::new() } else { fields.required("body", body.filter(|body| !body.is_empty()))? };
    Ok(StoredCell { cell: Cell { key, shard, added_id, created_at, body: ByteString::from(body) }, origin })
}

/// Key of a segment.
pub(crate) fn segment_key(shard: ShardId, last: AddedId) -> Item {
    item([("shard", n(shard)), ("last", n(last))])
}

/// A segment of a shard's log.
pub(crate) fn segment_item(shard: ShardId, segment: Segment) -> Item {
    let mut stored = segment_key(shard, segment.last);
    stored.extend(item([("n", n(segment.n)), ("cells", b(segment.packed)), ("created_at", n(segment.created_at))]));
    stored
}

/// What a projection has to bring for [`segment_key_only`].
pub(crate) const SEGMENT_KEY_ATTRIBUTES: [&str; 3] = ["shard", "last", "n"];

/// Reads a segment of that shard without its cells.
pub(crate) fn segment_key_only(shard: ShardId, stored: Item) -> Decoded<SegmentKey> {
    segment_head(shard, &mut Fields::new("segment", stored))
}

fn segment_head(shard: ShardId, fields: &mut Fields) -> Decoded<SegmentKey> {
    let found: u32 = fields.number("shard")?;
    fields.ensure(found == shard.0, || format!("shard is {found}, not {shard}"))?;
    let last = fields.place("last")?;
    let cells: u32 = fields.number("n")?;
    fields.ensure(cells > 0 && u64::from(cells) <= last.0, || format!("{cells} cells up to {last}"))?;
    Ok(SegmentKey { last, n: cells })
}

/// Reads a segment of that shard.
pub(crate) fn segment(shard: ShardId, stored: Item) -> Decoded<Segment> {
    let mut fields = Fields::new("segment", stored);
    let SegmentKey { last, n } = segment_head(shard, &mut fields)?;
    Ok(Segment { last, n, packed: fields.bytes("cells")?, created_at: Millis(fields.number("created_at")?) })
}

/// Key of a shard's tip.
pub(crate) fn tip_key(bucket: u32, shard: ShardId) -> Item {
    item([("bucket", n(bucket)), ("shard", n(shard))])
}

/// Reads a tip of that bucket. Only updates write it, so it has no encoder but in tests. Callers index by its shard.
pub(crate) fn tip(datastore: &Datastore, bucket: u32, stored: Item) -> Decoded<Tip> {
    let mut fields = Fields::new("tip", stored);
    let found: u32 = fields.number("bucket")?;
    fields.ensure(found == bucket, || format!("bucket is {found}, not {bucket}"))?;
    let tip = Tip {
        shard: ShardId(fields.number("shard")?),
        tip: fields.place("tip")?,
        created_at: Millis(fields.number("created_at")?),
        trimmed_to: fields.place("trimmed_to")?,
    };
    let (shard, shards) = (tip.shard, datastore.shards);
    fields.ensure(shard.0 < shards, || format!("shard is {shard} of {shards}"))?;
    let own = datastore.bucket(shard);
    fields.ensure(own == bucket, || format!("shard {shard} belongs in bucket {own}, not {bucket}"))?;
    fields.ensure(tip.tip.0 > 0, || "tip is 0".into())?;
    fields.ensure(tip.trimmed_to <= tip.tip, || format!("trimmed_to {} is above tip {}", tip.trimmed_to, tip.tip))?;
    Ok(tip)
}

/// Key of the datastore's own item.
pub(crate) fn datastore_key() -> Item {
    item([("bucket", n(OWN)), ("shard", n(OWN))])
}

/// The datastore's own item.
pub(crate) fn datastore_item(datastore: &Datastore) -> Item {
    let mut stored = datastore_key();
    stored.extend(item([
        ("schema", n(SCHEMA)),
        ("name", s(datastore.name.as_str())),
        ("shards", n(datastore.shards)),
        ("incarnation", s(datastore.incarnation.as_str())),
        ("hash", s(HASH)),
        ("segment_formats", AttributeValue::Ns(SEGMENT_FORMATS.map(String::from).to_vec())),
    ]));
    stored
}

/// What a datastore's own item says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FoundDatastore {
    /// One that we understand.
    Ours(Datastore),
    /// One of another schema number; nothing else of it is read.
    OtherSchema(u32),
}

/// Reads the datastore's own item.
pub(crate) fn datastore(stored: Item) -> Decoded<FoundDatastore> {
    let mut fields = Fields::new("datastore", stored);
    let schema: u32 = fields.number("schema")?;
    if schema != SCHEMA {
        return Ok(FoundDatastore::OtherSchema(schema));
    }
    for own in ["bucket", "shard"] {
        let found: i64 = fields.number(own)?;
        fields.ensure(found == OWN, || format!("{own} is {found}, not {OWN}"))?;
    }
    fields.expect_text("hash", HASH)?;
    let formats = fields.optional("segment_formats", "a set of numbers", |value| match value {
        AttributeValue::Ns(formats) => Some(formats),
        _ => None,
    })?;
    fields.required("segment_formats", formats)?;
    let name: Name = fields.parsed("name")?;
    let shards: u32 = fields.number("shards")?;
    fields.ensure(shards > 0, || "shards is 0".into())?;
    let incarnation = Incarnation::from_stored(&fields.id("incarnation")?);
    Ok(FoundDatastore::Ours(Datastore { name, shards, incarnation }))
}

/// Reads which groups a datastore's own item names.
pub(crate) fn groups(stored: Item) -> Decoded<BTreeSet<Name>> {
    Fields::new("datastore", stored).names("groups")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{reason, refuses_mutilated};
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn new_cell(row: &str, column: &str, ref_key: u64, origin: bool) -> NewCell {
        let key = CellKey { row_key: row.into(), column: column.into(), ref_key };
        let origin = origin.then(|| Origin { trigger: TriggerId::from_stored("t1"), event: "a/b/1/2".into() });
        NewCell { key, body: "{\"a\":1}".into(), origin }
    }

    proptest! {
        #[test]
        fn a_cell_comes_back(row in ".{1,20}", column in "[^#]{1,20}", ref_key in 0..=REF_KEY_MAX, origin: bool,
                             shard: u32, added_id in 1..=AddedId::MAX.0, at: i64) {
            let new = new_cell(&row, &column, ref_key, origin);
            let stored = cell_item(&new, ShardId(shard), AddedId(added_id), Millis(at));
            let NewCell { key, body, origin } = new;
            let cell_ = Cell { key, shard: ShardId(shard), added_id: AddedId(added_id), created_at: Millis(at), body };
            prop_assert_eq!(cell(stored), Ok(StoredCell { cell: cell_, origin }));
        }

        #[test]
        fn a_segment_comes_back(shard: u32, n in 1..=98_u32, more in 0..u64::MAX / 2, packed: Vec<u8>, at: i64) {
            let last = AddedId(u64::from(n) + more);
            let whole = Segment { last, n, packed: Bytes::from(packed), created_at: Millis(at) };
            let stored = segment_item(ShardId(shard), whole.clone());
            prop_assert_eq!(segment(ShardId(shard), stored.clone()), Ok(whole.clone()));
            prop_assert_eq!(segment_key_only(ShardId(shard), stored), Ok(whole.key()));
        }
    }

    #[test]
    fn an_impossible_cell_is_refused() {
        let whole = cell_item(&new_cell("r", "c", 7, true), ShardId(1), AddedId(1), Millis(5));
        refuses_mutilated(&whole, &["origin"], cell);
        for bad in ["c", "c#7", "#00000000000000000007", "c#09223372036854775808"] {
            assert!(reason(&whole, "cell", s(bad), cell).contains("not column#ref_key"), "{bad}");
        }
        assert!(reason(&whole, "added_id", n(0), cell).contains("added_id is 0"));
        assert!(reason(&whole, "added_id", n(-1), cell).contains("added_id is -1"));
        assert!(reason(&whole, "row_key", s(""), cell).contains("row_key is empty"));
        assert!(reason(&whole, "body", s(""), cell).contains("body is missing"), "only an erased cell has none");
    }

    #[test]
    fn an_erased_cell_has_a_mark_and_no_body() {
        let new = new_cell("r", "c", 7, true);
        let mut stored = cell_item(&new, ShardId(1), AddedId(3), Millis(5));
        let place = CellPlace { key: new.key, shard: ShardId(1), added_id: AddedId(3), erased: false };
        assert_eq!(cell_place(stored.clone()), Ok(place.clone()));
        stored.insert("erased".into(), AttributeValue::Bool(true));
        assert!(cell(stored.clone()).unwrap_err().to_string().contains("it is erased and has a body"));
        stored.remove("body");
        let StoredCell { cell: erased, origin } = cell(stored.clone()).unwrap();
        assert!(erased.is_erased());
        assert_eq!((erased.key, erased.added_id, origin), (place.key.clone(), AddedId(3), new.origin));
        assert_eq!(cell_place(stored.clone()), Ok(CellPlace { erased: true, ..place }));
        for mark in [AttributeValue::Bool(false), n(1)] {
            assert!(reason(&stored, "erased", mark, cell).contains("erased is not true"));
        }
    }

    #[test]
    fn an_impossible_segment_is_refused() {
        let whole = Segment { last: AddedId(5), n: 5, packed: Bytes::from_static(b"x"), created_at: Millis(5) };
        let whole = segment_item(ShardId(3), whole);
        let decode = |stored| segment(ShardId(3), stored);
        refuses_mutilated(&whole, &[], decode);
        assert!(reason(&whole, "n", n(0), decode).contains("0 cells"));
        assert!(reason(&whole, "n", n(6), decode).contains("6 cells up to 5"));
        assert!(reason(&whole, "shard", n(4), decode).contains("shard is 4, not 3"));
    }

    #[test]
    fn a_tip_comes_back_and_an_impossible_one_is_refused() {
        let mut whole = tip_key(3, ShardId(19));
        whole.extend(item([("tip", n(7)), ("created_at", n(1_000)), ("trimmed_to", n(2))]));
        let name = Name::new("trips").unwrap();
        let datastore = Datastore { name, shards: 64, incarnation: Incarnation::from_stored("abc") };
        let decode = |stored| tip(&datastore, 3, stored);
        let wanted = Tip { shard: ShardId(19), tip: AddedId(7), created_at: Millis(1_000), trimmed_to: AddedId(2) };
        assert_eq!(decode(whole.clone()), Ok(wanted));
        refuses_mutilated(&whole, &[], decode);
        assert!(reason(&whole, "tip", n(0), decode).contains("tip is 0"));
        assert!(reason(&whole, "trimmed_to", n(8), decode).contains("above tip 7"));
        assert!(reason(&whole, "bucket", n(-1), decode).contains("bucket is -1"));
        assert!(reason(&whole, "shard", n(67), decode).contains("shard is 67 of 64"), "callers index by it");
        assert!(reason(&whole, "shard", n(20), decode).contains("belongs in bucket 4, not 3"));
    }

    #[test]
    fn a_datastore_comes_back_and_an_impossible_one_is_refused() {
        let name = Name::new("trips").unwrap();
        let wanted = Datastore { name, shards: 64, incarnation: Incarnation::from_stored("abc") };
        let whole = datastore_item(&wanted);
        assert_eq!(datastore(whole.clone()), Ok(FoundDatastore::Ours(wanted)));
        refuses_mutilated(&whole, &[], datastore);
        assert!(reason(&whole, "hash", s("crc32"), datastore).contains("hash is \"crc32\""));
        assert!(reason(&whole, "shards", n(0), datastore).contains("shards is 0"));
        assert!(reason(&whole, "name", s("A b"), datastore).contains("name is \"A b\""));

        let other = item([("schema", n(SCHEMA + 1)), ("anything", s("else"))]);
        assert_eq!(datastore(other), Ok(FoundDatastore::OtherSchema(SCHEMA + 1)));
    }
}
