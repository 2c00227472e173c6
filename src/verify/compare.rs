//! Whether the log and the table `cells` have the same cells. Pure.

use super::{Finding, Flaw};
use crate::cell::{AddedId, Cell, ShardId};
use xxhash_rust::xxh3::Xxh3;

/// What lies at an address of `cells`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fetched {
    Cell(Box<Cell>),
    Absent,
    /// Something that cannot be decoded, and why.
    Damaged(String),
}

/// What of a cell in the log is not so in `cells`. The one place that says what equal is; [`digest`] should be the same
/// for whatever this calls equal, or the whole reads more than it needs to.
pub(super) fn difference(logged: &Cell, stored: &Fetched) -> Option<Finding> {
    let stored = match stored {
        Fetched::Cell(stored) => stored,
        Fetched::Absent => {
            return Some(Finding::of(Flaw::CellMissing, logged, "the log has it, `cells` has not".into()));
        }
        Fetched::Damaged(why) => return Some(Finding::of(Flaw::CellUndecodable, logged, why.clone())),
    };
    let place = |cell: &Cell| (cell.shard, cell.added_id, cell.created_at);
    if place(logged) != place(stored) {
        let (shard, added_id, created_at) = place(stored);
        let detail = format!(
            "created_at {} in the log; `cells` says shard {shard}, added ID {added_id}, created_at {created_at}",
            logged.created_at
        );
        return Some(Finding::of(Flaw::CellPlace, logged, detail));
    }
    if logged.is_erased() != stored.is_erased() {
        let erased = |one: &str, bytes: usize, other: &str| {
            format!("{one} it is erased, {other} it has {bytes} bytes: the same erase of its row again finishes it")
        };
        let detail = match stored.is_erased() {
            true => erased("in `cells`", logged.body.len(), "in the log"),
            false => erased("in the log", stored.body.len(), "in `cells`"),
        };
        return Some(Finding::of(Flaw::EraseUnfinished, logged, detail));
    }
    if logged.body != stored.body {
        let detail = format!("{} bytes in the log, {} bytes in `cells`", logged.body.len(), stored.body.len());
        return Some(Finding::of(Flaw::CellBody, logged, detail));
    }
    None
}

/// Whether what lies at a cell's address says that it lies at the cell's place.
pub(super) fn lies_at_its_place(logged: &Cell, stored: &Fetched) -> bool {
    matches!(stored, Fetched::Cell(stored) if (stored.shard, stored.added_id) == (logged.shard, logged.added_id))
}

/// A cell that lies where its row does not belong.
pub(super) fn wrong_shard(cell: &Cell, shards: u32) -> Option<Finding> {
    let own = ShardId::of(&cell.key.row_key, shards);
    let detail = || format!("the row belongs to shard {own} of {shards}");
    (own != cell.shard).then(|| Finding::of(Flaw::CellShard, cell, detail()))
}

/// All of a cell in 128 bits, as good as different for different cells. Proof against damage, not against an enemy.
fn digest(cell: &Cell) -> u128 {
    let Cell { key, shard, added_id, created_at, body } = cell;
    let mut hash = Xxh3::new();
    hash.update(&u64::from(shard.0).to_le_bytes());
    for number in [added_id.0, created_at.0.cast_unsigned(), key.ref_key] {
        hash.update(&number.to_le_bytes());
    }
    for text in [&key.row_key, &key.column, body] {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.digest128()
}

/// Number of cells, and the sum of their digests: the same for the same cells in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    cells: u64,
    digests: u128,
}

impl Sum {
    fn add(&mut self, cell: &Cell) {
        self.cells += 1;
        self.digests = self.digests.wrapping_add(digest(cell));
    }
}

/// Where a place lies for an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Its log was trimmed before it was read.
    Trimmed,
    /// In this range.
    Range(usize),
    /// Above the tip as it was first read.
    Above,
}

/// The cells of a shard between two places, on both sides, in ranges.
#[derive(Debug)]
pub(super) struct Account {
    /// Places above this one, and up to the tip.
    after: AddedId,
    tip: AddedId,
    width: u64,
    logged: Vec<Sum>,
    scanned: Vec<Sum>,
}

impl Account {
    pub(super) fn new(after: AddedId, tip: AddedId, ranges: u32) -> Self {
        let places = tip.0.saturating_sub(after.0);
        let width = places.div_ceil(u64::from(ranges)).max(1);
        let ranges = usize::try_from(places.div_ceil(width)).unwrap_or(usize::MAX);
        Self { after, tip, width, logged: vec![Sum::default(); ranges], scanned: vec![Sum::default(); ranges] }
    }

    pub(super) fn place(&self, added_id: AddedId) -> Place {
        if added_id <= self.after {
            Place::Trimmed
        } else if added_id > self.tip {
            Place::Above
        } else {
            let range = (added_id.0 - self.after.0 - 1) / self.width;
            Place::Range(usize::try_from(range).unwrap_or(usize::MAX))
        }
    }

    /// First and last place of a range.
    pub(super) fn bounds(&self, range: usize) -> (AddedId, AddedId) {
        let before = self.after.0 + range as u64 * self.width;
        (AddedId(before + 1), AddedId((before + self.width).min(self.tip.0)))
    }

    /// A cell of the log.
    pub(super) fn logged(&mut self, cell: &Cell) {
        if let Place::Range(range) = self.place(cell.added_id) {
            self.logged[range].add(cell);
        }
    }

    /// A cell of `cells`.
    pub(super) fn scanned(&mut self, cell: &Cell) -> Place {
        let place = self.place(cell.added_id);
        if let Place::Range(range) = place {
            self.scanned[range].add(cell);
        }
        place
    }

    /// Number of cells of `cells` in a range.
    pub(super) fn scanned_in(&self, range: usize) -> u64 {
        self.scanned[range].cells
    }

    /// Ranges that are not the same on both sides.
    pub(super) fn unequal(&self) -> Vec<usize> {
        (0..self.logged.len()).filter(|range| self.logged[*range] != self.scanned[*range]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{CellKey, Millis};
    use proptest::prelude::*;

    fn cell(place: u64) -> Cell {
        let key = CellKey { row_key: format!("r{place}").into(), column: "c".into(), ref_key: place };
        Cell { key, shard: ShardId(1), added_id: AddedId(place), created_at: Millis(7), body: "1".into() }
    }

    /// Every way in which a cell can be another one.
    fn others(cell: &Cell) -> Vec<Cell> {
        let key = |change: fn(&mut CellKey)| {
            let mut other = cell.clone();
            change(&mut other.key);
            other
        };
        vec![
            key(|key| key.row_key = format!("{}x", key.row_key).into()),
            key(|key| key.column = "cx".into()),
            key(|key| key.ref_key += 1),
            Cell { shard: ShardId(2), ..cell.clone() },
            Cell { added_id: cell.added_id.next(), ..cell.clone() },
            Cell { created_at: Millis(8), ..cell.clone() },
            Cell { body: "2".into(), ..cell.clone() },
        ]
    }

    #[test]
    fn every_difference_is_seen_and_named() {
        let logged = cell(3);
        let fetched = |cell: &Cell| Fetched::Cell(Box::new(cell.clone()));
        assert_eq!(difference(&logged, &fetched(&logged)), None);
        let flaw = |stored: &Fetched| difference(&logged, stored).unwrap().flaw;
        assert_eq!(flaw(&Fetched::Absent), Flaw::CellMissing);
        assert_eq!(flaw(&Fetched::Damaged("why".into())), Flaw::CellUndecodable);
        let flaws: Vec<Flaw> = others(&logged)[3..].iter().map(|other| flaw(&fetched(other))).collect();
        assert_eq!(flaws, [Flaw::CellPlace, Flaw::CellPlace, Flaw::CellPlace, Flaw::CellBody]);
        for other in others(&logged) {
            assert_ne!(digest(&other), digest(&logged), "{other:?}");
        }
    }

    #[test]
    fn a_row_has_its_shard() {
        let shards = 4;
        let right = Cell { shard: ShardId::of("r3", shards), ..cell(3) };
        assert_eq!(wrong_shard(&right, shards), None);
        let wrong = Cell { shard: ShardId((right.shard.0 + 1) % shards), ..right };
        assert_eq!(wrong_shard(&wrong, shards).unwrap().flaw, Flaw::CellShard);
    }

    proptest! {
        #[test]
        fn ranges_cover_every_place_once(after in 0_u64..50, places in 0_u64..300, ranges in 1_u32..70) {
            let account = Account::new(AddedId(after), AddedId(after + places), ranges);
            prop_assert!(account.logged.len() <= ranges as usize);
            let mut next = after + 1;
            for range in 0..account.logged.len() {
                let (first, last) = account.bounds(range);
                prop_assert_eq!(first.0, next);
                for place in first.0..=last.0 {
                    prop_assert_eq!(account.place(AddedId(place)), Place::Range(range));
                }
                next = last.0 + 1;
            }
            prop_assert_eq!(next, after + places + 1);
            prop_assert_eq!(account.place(AddedId(next)), Place::Above);
            prop_assert_eq!(account.place(AddedId(after)), Place::Trimmed);
        }

        #[test]
        fn the_same_cells_in_any_order_are_equal_and_one_other_is_not(places in 1_u64..60, at: prop::sample::Index,
                                                                      how in 0_usize..7, seed: u64) {
            let mut cells: Vec<Cell> = (1..=places).map(cell).collect();
            let mut account = Account::new(AddedId(0), AddedId(places), 5);
            cells.iter().for_each(|cell| account.logged(cell));
            fastrand::Rng::with_seed(seed).shuffle(&mut cells);
            let at = at.index(cells.len());
            for (i, cell) in cells.iter().enumerate() {
                if i != at {
                    account.scanned(cell);
                }
            }
            let Place::Range(range) = account.place(cells[at].added_id) else { panic!() };
            prop_assert_eq!(account.unequal(), [range], "one is missing");
            let mut other = Account { scanned: account.scanned.clone(), logged: account.logged.clone(), ..account };
            account.scanned(&cells[at]);
            prop_assert!(account.unequal().is_empty());
            other.scanned(&others(&cells[at])[how]);
            prop_assert!(other.unequal().contains(&range));
        }
    }
}
