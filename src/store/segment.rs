//! The packed form of a log segment: a format number, then the cells, zstd with a checksum.
//!
//! Format 1, each length and number as a LEB128 varint:
//!
//! ```text
//! 01 zstd( { row_key length, row_key, column length, column, ref_key, body length, body }* )
//! ```
//!
//! Format 2 is the same, and an empty body is that of a cell that was erased. A segment gets it when something of it is
//! erased: a release that knows only format 1 stops at it, and calls nobody with a body that is no JSON.
//!
//! Cells of a segment share shard and `created_at`, and their added IDs count up to the segment's key, so none of
//! these is packed. Unpacked cells are slices of one buffer: nothing is copied a cell, and no JSON is parsed.

use crate::cell::{AddedId, Cell, CellKey, NewCell, Segment, ShardId, leb128};
use bytes::Bytes;
use bytestring::ByteString;
use std::{cell::RefCell, collections::BTreeSet};
use zstd::{
    bulk::{Compressor, Decompressor},
    zstd_safe::get_frame_content_size,
};

/// The format of a segment as it was appended.
const FORMAT: u8 = 1;
/// The format of a segment of which something was erased.
const FORMAT_ERASED: u8 = 2;
/// Longest packed segment, in bytes: with its other attributes it must fit an item.
pub const PACKED_MAX: usize = 380 * 1024;
/// Longest unpacked segment, in bytes. A writer stays below; a reader refuses more before it takes memory for it.
pub const RAW_MAX: usize = 2 << 20;
/// What a reader accepts: what a writer may write, and the lengths.
const UNPACKED_MAX: usize = RAW_MAX + (64 << 10);
/// Most cells of a segment that a reader accepts: ten times what a transaction of the store can append. A cell takes far more
/// memory unpacked than the four bytes that it may have in a forged segment.
const CELLS_MAX: u32 = 1000;
/// Fewest bytes of an unpacked cell: three empty texts and a number.
const CELL_MIN: usize = 4;

/// Why a segment cannot be unpacked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// Written by a newer release. Not damaged.
    #[error("segment format {0} is not known to this release; upgrade it")]
    UnknownFormat(u8),
    /// Not what a writer of this format can have written.
    #[error("segment is damaged: {0}")]
    Damaged(&'static str),
}

/// Bytes of a cell in an unpacked segment, at most.
#[must_use]
pub fn raw_size(cell: &NewCell) -> usize {
    cell.key.row_key.len() + cell.key.column.len() + cell.body.len() + 18
}

/// Packs cells in their order.
#[must_use]
pub fn pack(cells: &[NewCell]) -> Bytes {
    let mut raw = Vec::with_capacity(cells.iter().map(raw_size).sum());
    for cell in cells {
        put_cell(&mut raw, &cell.key, &cell.body);
    }
    compress(FORMAT, &raw)
}

/// The packed form of a segment's cells after the bodies of those at `places` were erased.
///
/// Shorter than it was, and in any case far below what an item holds: bodies only go, and at [`PACKED_MAX`] there are 20 KB of room.
#[must_use]
pub fn erased(cells: &[Cell], places: &BTreeSet<AddedId>) -> Bytes {
    let mut raw = Vec::new();
    for cell in cells {
        let body = if places.contains(&cell.added_id) { "" } else { &*cell.body };
        put_cell(&mut raw, &cell.key, body);
    }
    compress(FORMAT_ERASED, &raw)
}

fn put_cell(raw: &mut Vec<u8>, key: &CellKey, body: &str) {
    put_text(raw, &key.row_key);
    put_text(raw, &key.column);
    leb128::put(raw, key.ref_key);
    put_text(raw, body);
}

thread_local! {
    // Kept by each thread: to make one takes about as long as to use it.
    static COMPRESSOR: RefCell<Compressor<'static>> = RefCell::new(compressor());
    static DECOMPRESSOR: RefCell<Decompressor<'static>> =
        RefCell::new(Decompressor::new().expect("decompressing needs no settings"));
}

fn compressor() -> Compressor<'static> {
    let mut compressor = Compressor::new(1).expect("level 1 exists");
    compressor.include_checksum(true).expect("zstd knows checksums");
    compressor
}

fn compress(format: u8, raw: &[u8]) -> Bytes {
    let mut packed = vec![format];
    let compressed = COMPRESSOR.with_borrow_mut(|compressor| compressor.compress(raw));
    packed.extend_from_slice(&compressed.expect("compressing into memory does not fail"));
    packed.into()
}

/// Unpacks a segment of a shard.
///
/// # Errors
/// When the format is unknown, or the content is not what a writer of that format wrote.
pub fn unpack(shard: ShardId, segment: &Segment) -> Result<Vec<Cell>, SegmentError> {
    let (&format, packed) = segment.packed.split_first().ok_or(SegmentError::Damaged("empty"))?;
    if !matches!(format, FORMAT | FORMAT_ERASED) {
        return Err(SegmentError::UnknownFormat(format));
    }
    let size = get_frame_content_size(packed).ok().flatten().ok_or(SegmentError::Damaged("no zstd frame"))?;
    let size = usize::try_from(size).ok().filter(|size| *size <= UNPACKED_MAX);
    let size = size.ok_or(SegmentError::Damaged("longer than any writer writes"))?;
    let raw = DECOMPRESSOR.with_borrow_mut(|decompressor| decompressor.decompress(packed, size));
    let raw = raw.map_err(|_| SegmentError::Damaged("checksum or frame"))?;
    let mut rest = Reader { raw: raw.into(), at: 0 };
    let first = segment.key().first();
    // Nobody has checked the count yet: memory is taken only for what the bytes can hold.
    if !(1..=CELLS_MAX).contains(&segment.n) || first == AddedId(0) || segment.n as usize > rest.raw.len() / CELL_MIN {
        return Err(SegmentError::Damaged("number of cells"));
    }
    let mut cells = Vec::with_capacity(segment.n as usize);
    for i in 0..u64::from(segment.n) {
        let (row_key, column) = (rest.text()?, rest.text()?);
        let key = CellKey { row_key, column, ref_key: rest.number()? };
        let added_id = AddedId(first.0 + i);
        let body = rest.text()?;
        if body.is_empty() && format == FORMAT {
            return Err(SegmentError::Damaged("an empty body"));
        }
        cells.push(Cell { key, shard, added_id, created_at: segment.created_at, body });
    }
    if rest.at < rest.raw.len() {
        return Err(SegmentError::Damaged("more cells than counted"));
    }
    Ok(cells)
}

fn put_text(raw: &mut Vec<u8>, text: &str) {
    leb128::put(raw, text.len() as u64);
    raw.extend_from_slice(text.as_bytes());
}

struct Reader {
    raw: Bytes,
    at: usize,
}

impl Reader {
    fn number(&mut self) -> Result<u64, SegmentError> {
        let mut rest = &self.raw[self.at..];
        let number = leb128::take(&mut rest).ok_or(SegmentError::Damaged("a number is cut short or too long"))?;
        self.at = self.raw.len() - rest.len();
        Ok(number)
    }

    fn text(&mut self) -> Result<ByteString, SegmentError> {
        let length = usize::try_from(self.number()?).map_err(|_| SegmentError::Damaged("length"))?;
        let end = self.at.checked_add(length).filter(|end| *end <= self.raw.len());
        let end = end.ok_or(SegmentError::Damaged("cut short"))?;
        let text = ByteString::try_from(self.raw.slice(self.at..end));
        self.at = end;
        text.map_err(|_| SegmentError::Damaged("not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{Millis, hostile};
    use proptest::prelude::*;

    fn segment(cells: &[NewCell], last: u64) -> Segment {
        let n = u32::try_from(cells.len()).unwrap();
        Segment { last: AddedId(last), n, packed: pack(cells), created_at: Millis(7) }
    }

    fn new_cell() -> impl Strategy<Value = NewCell> {
        (".{1,20}", "[^#]{1,9}", any::<u64>(), ".{1,200}").prop_map(|(row, column, ref_key, body)| NewCell {
            key: CellKey { row_key: row.into(), column: column.into(), ref_key },
            body: body.into(),
            origin: None,
        })
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(cells in prop::collection::vec(new_cell(), 1..98), before in 0_u64..1 << 40) {
            let segment = segment(&cells, before + cells.len() as u64);
            let unpacked = unpack(ShardId(3), &segment).unwrap();
            prop_assert_eq!(unpacked.len(), cells.len());
            for (i, (new, cell)) in cells.iter().zip(&unpacked).enumerate() {
                prop_assert_eq!((&new.key, &new.body), (&cell.key, &cell.body));
                prop_assert_eq!((cell.added_id, cell.shard), (AddedId(before + 1 + i as u64), ShardId(3)));
                prop_assert_eq!(cell.created_at, Millis(7));
            }
        }

        #[test]
        fn what_is_erased_is_gone_and_the_rest_stays(
            cells in prop::collection::vec(new_cell(), 1..20), gone in prop::collection::btree_set(1_u64..20, 0..9),
        ) {
            let whole = segment(&cells, cells.len() as u64);
            let before = unpack(ShardId(3), &whole).unwrap();
            let gone: BTreeSet<AddedId> = gone.into_iter().map(AddedId).collect();
            let packed = erased(&before, &gone);
            let after = unpack(ShardId(3), &Segment { packed, ..whole }).unwrap();
            prop_assert_eq!(before.len(), after.len());
            for (before, after) in before.into_iter().zip(after) {
                prop_assert_eq!(after.is_erased(), gone.contains(&after.added_id));
                let body = if after.is_erased() { ByteString::new() } else { before.body.clone() };
                prop_assert_eq!(after, Cell { body, ..before });
            }
        }

        #[test]
        fn a_flipped_byte_is_seen(cells in prop::collection::vec(new_cell(), 1..9), at: prop::sample::Index, bit in 0_u8..8) {
            let mut segment = segment(&cells, 100);
            let mut packed = segment.packed.to_vec();
            let at = at.index(packed.len());
            packed[at] ^= 1_u8 << bit;
            segment.packed = packed.into();
            // Some bits of a zstd header carry nothing; then the content must be the same.
            match unpack(ShardId(0), &segment) {
                Err(_) => {}
                Ok(unpacked) => for (new, cell) in cells.iter().zip(&unpacked) {
                    prop_assert_eq!((&new.key, &new.body), (&cell.key, &cell.body));
                },
            }
        }

        /// What is unpacked of a changed segment is no more than a writer may write, and packed again it is the same.
        #[test]
        fn a_changed_segment_is_damaged_or_whole(
            cells in prop::collection::vec(new_cell(), 1..9), changes in hostile::changes(), inside: bool, n in 0_u32..1200, format in 0_u8..4,
        ) {
            let good = segment(&cells, 2000);
            let packed = if inside {
                // Below the checksum: somebody who packs what he likes.
                let mut raw = Vec::new();
                cells.iter().for_each(|cell| put_cell(&mut raw, &cell.key, &cell.body));
                compress(format, &hostile::changed(&raw, &changes))
            } else {
                hostile::changed(&good.packed, &changes).into()
            };
            for n in [good.n, n] {
                let segment = Segment { packed: packed.clone(), n, ..good.clone() };
                if let Ok(unpacked) = unpack(ShardId(3), &segment) {
                    prop_assert!(unpacked.len() == n as usize && unpacked.len() <= CELLS_MAX as usize);
                    prop_assert!(unpacked.iter().map(Cell::size).sum::<usize>() <= UNPACKED_MAX);
                    let again = Segment { packed: erased(&unpacked, &BTreeSet::new()), ..segment };
                    prop_assert_eq!(unpack(ShardId(3), &again), Ok(unpacked));
                }
            }
        }

        #[test]
        fn no_bytes_panic(packed in prop::collection::vec(any::<u8>(), 0..300), n in 0_u32..200, last: u64) {
            for first in [None, Some(FORMAT), Some(FORMAT_ERASED)] {
                let packed = first.into_iter().chain(packed.iter().copied()).collect::<Vec<_>>().into();
                let _ = unpack(ShardId(0), &Segment { last: AddedId(last), n, packed, created_at: Millis(0) });
            }
        }
    }

    #[test]
    fn a_newer_format_is_no_damage() {
        let segment = Segment { last: AddedId(1), n: 1, packed: vec![3, 0].into(), created_at: Millis(0) };
        assert_eq!(unpack(ShardId(0), &segment), Err(SegmentError::UnknownFormat(3)));
    }

    #[test]
    fn an_empty_body_is_erased_in_its_format_and_damage_in_the_other() {
        let key = CellKey { row_key: "r".into(), column: "c".into(), ref_key: 0 };
        let full = segment(&[NewCell { key, body: "{\"a\":1}".into(), origin: None }], 1);
        let packed = erased(&unpack(ShardId(0), &full).unwrap(), &[AddedId(1)].into());
        assert_eq!(packed[0], 2, "a release that knows format 1 alone must not take it for one of its own");
        let mut forged = packed.to_vec();
        forged[0] = 1;
        assert!(unpack(ShardId(0), &Segment { packed, ..full.clone() }).unwrap()[0].is_erased());
        let forged = Segment { packed: forged.into(), ..full };
        assert_eq!(unpack(ShardId(0), &forged), Err(SegmentError::Damaged("an empty body")));
    }

    #[test]
    fn a_segment_that_is_full_gets_smaller_when_it_is_erased() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut text = |n: usize| (0..n).map(|_| rng.alphanumeric()).collect::<String>();
        let cells: Vec<NewCell> = (0..98)
            .map(|ref_key| {
                let key = CellKey { row_key: text(1024).into(), column: text(255).into(), ref_key };
                NewCell { key, body: format!("\"{}\"", text(3_500)).into(), origin: None }
            })
            .collect();
        let full = segment(&cells, 98);
        assert!(full.packed.len() > PACKED_MAX * 9 / 10, "{}", full.packed.len());
        let cells = unpack(ShardId(0), &full).unwrap();
        let mut before = full.packed.len();
        for upto in [1, 2, 50, 97, 98] {
            let packed = erased(&cells, &(1..=upto).map(AddedId).collect());
            assert!(packed.len() < before, "{} after {upto}, and {before} before", packed.len());
            before = packed.len();
        }
    }

    /// A few hundred bytes that say that they are gigabytes, or half a million cells.
    #[test]
    fn a_bomb_is_refused_before_it_is_unpacked() {
        let of = |packed: Bytes, n: u32| Segment { last: AddedId(1 << 40), n, packed, created_at: Millis(0) };
        let long = compress(FORMAT_ERASED, &vec![0; UNPACKED_MAX + 1]);
        assert!(long.len() < 1000);
        assert_eq!(unpack(ShardId(0), &of(long, 9)), Err(SegmentError::Damaged("longer than any writer writes")));
        let many = compress(FORMAT_ERASED, &vec![0; 4 * 500_000]);
        assert!(many.len() < 1000);
        assert_eq!(unpack(ShardId(0), &of(many, 500_000)), Err(SegmentError::Damaged("number of cells")));
        let most = compress(FORMAT_ERASED, &vec![0; 4 * CELLS_MAX as usize]);
        assert_eq!(unpack(ShardId(0), &of(most, CELLS_MAX)).unwrap().len(), CELLS_MAX as usize);
        // A frame that names a short length and holds a long text.
        let mut liar = compress(FORMAT, &[b'x'; 255]).to_vec();
        let length = liar.iter().position(|byte| *byte == 255).unwrap();
        liar[length] = 4;
        assert_eq!(unpack(ShardId(0), &of(liar.into(), 1)), Err(SegmentError::Damaged("checksum or frame")));
    }

    #[test]
    fn the_count_is_checked() {
        let cell = NewCell {
            key: CellKey { row_key: "r".into(), column: "c".into(), ref_key: 0 },
            body: "1".into(),
            origin: None,
        };
        let good = segment(&[cell.clone(), cell], 2);
        assert!(unpack(ShardId(0), &Segment { n: 1, ..good.clone() }).is_err());
        assert!(unpack(ShardId(0), &Segment { n: 3, last: AddedId(3), ..good.clone() }).is_err());
        let absurd = Segment { n: u32::MAX, last: AddedId(u64::MAX / 2), ..good.clone() };
        assert_eq!(
            unpack(ShardId(0), &absurd),
            Err(SegmentError::Damaged("number of cells")),
            "before memory is taken"
        );
        assert!(unpack(ShardId(0), &Segment { last: AddedId(1), ..good }).is_err(), "its first would be place 0");
    }
}
