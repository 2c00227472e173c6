//! One datastore in memory.

use crate::cell::{
    AddedId, Cell, CellKey, CellPlace, Commit, Committed, Consistency, Datastore, ErrorKind, Incarnation, Log, Name,
    NewCell, NewDatastore, Out, Refused, ScanPlace, Scanned, Segment, SegmentKey, Settled, ShardId, Slice, StoreError,
    StoredCell, Tip, planted,
};
use bytes::Bytes;
use bytestring::ByteString;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Excluded, Unbounded},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// One datastore in memory. Strong and eventual reads are the same; a wrapper makes them differ.
pub struct MemoryLog {
    datastore: Datastore,
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    cells: BTreeMap<CellKey, StoredCell>,
    log: BTreeMap<(ShardId, AddedId), Segment>,
    tips: BTreeMap<ShardId, Tip>,
    groups: BTreeSet<Name>,
    /// The incarnation, when they were made anew.
    anew: Option<Incarnation>,
}

impl MemoryLog {
    /// A new, empty datastore with a random incarnation.
    #[must_use]
    pub fn new(new: &NewDatastore) -> Self {
        let datastore = Datastore { name: new.name.clone(), shards: new.shards, incarnation: Incarnation::random() };
        Self { datastore, tables: Mutex::default() }
    }

    /// As if somebody deleted the tables and made the datastore anew, under whoever has it open.
    pub fn make_anew(&self) {
        *self.tables() = Tables { anew: Some(Incarnation::random()), ..Tables::default() };
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // The tables are consistent whenever the lock is free: every change below is made without a panic.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ready<'a, T: Send + 'a>(value: T) -> Out<'a, T> {
    Box::pin(std::future::ready(Ok(value)))
}

impl Tables {
    fn commit(&mut self, commit: Commit) -> Committed {
        let after = commit.tip_after();
        let tip = self.tips.get(&commit.shard).copied();
        let wrong_tip = tip.map(|tip| tip.tip) != commit.tip.map(|tip| tip.tip);
        let existing = commit.cells.iter().enumerate();
        let existing: Vec<_> = existing.filter_map(|(i, cell)| Some((i, self.cells.get(&cell.key)?.clone()))).collect();
        let segment = self.log.contains_key(&(commit.shard, after.tip));
        let wrong_tip = wrong_tip && !planted::is("append without the tip's condition");
        let existing = if planted::is("append without the cells' condition") { Vec::new() } else { existing };
        if wrong_tip || segment || !existing.is_empty() {
            let segment = segment && !wrong_tip;
            let tip = wrong_tip.then_some(tip);
            return Committed::Refused(Refused { tip, cells: existing, segment, ..Refused::default() });
        }
        // The tip item keeps its own `trimmed_to`: a trim may have raised it since the writer looked.
        let trimmed_to = tip.map_or(AddedId(0), |tip| tip.trimmed_to);
        self.tips.insert(commit.shard, Tip { trimmed_to, ..after });
        let n = u32::try_from(commit.cells.len()).expect("a batch is small");
        let segment = Segment { last: after.tip, n, packed: commit.packed, created_at: commit.created_at };
        let mut added_id = segment.key().first();
        self.log.insert((commit.shard, after.tip), segment);
        for new in commit.cells {
            let cell =
                Cell { key: new.key, shard: commit.shard, added_id, created_at: commit.created_at, body: new.body };
            self.cells.insert(cell.key.clone(), StoredCell { cell, origin: new.origin });
            added_id = added_id.next();
        }
        Committed::Accepted
    }

    fn row<'a>(&'a self, row_key: &str, after: Option<&CellKey>) -> impl Iterator<Item = &'a StoredCell> + use<'a> {
        let from = CellKey { row_key: row_key.into(), column: "".into(), ref_key: 0 };
        let row = from.row_key.clone();
        let mut cells: Vec<_> = self.cells.range(from..).take_while(|(key, _)| key.row_key == row).collect();
        cells.sort_by_cached_key(|(key, _)| sort_key(key));
        if let Some(after) = after.map(sort_key) {
            cells.retain(|(key, _)| sort_key(key) > after);
        }
        cells.into_iter().map(|(_, cell)| cell)
    }

    fn segments(&self, shard: ShardId, after: AddedId, limit: u32) -> impl Iterator<Item = &Segment> {
        let range = (Excluded((shard, after)), Unbounded);
        self.log.range(range).take_while(move |((of, _), _)| *of == shard).map(|(_, s)| s).take(limit as usize)
    }
}

/// The sort key of the table is `column#ref_key`, whose order differs from the pair's.
fn sort_key(key: &CellKey) -> String {
    format!("{}#{:020}", key.column, key.ref_key)
}

/// The limits of DynamoDB: 100 actions, each on an item of its own, and 4 MB a transaction; 400 KB an item; 2 KB a partition key,
/// 1 KB a sort key, none empty.
fn exceeds_limits(commit: &Commit) -> bool {
    const ITEM_MAX: usize = 400 * 1024;
    // Names and numbers of the other attributes.
    const REST: usize = 100;
    let size = |cell: &NewCell| cell.key.row_key.len() + cell.key.column.len() + cell.body.len() + REST;
    let sizes = commit.cells.iter().map(size).chain([commit.packed.len() + REST]);
    let is_key = |key: &CellKey| (1..=2048).contains(&key.row_key.len()) && sort_key(key).len() <= 1024;
    let addresses: BTreeSet<&CellKey> = commit.cells.iter().map(|cell| &cell.key).collect();
    if addresses.len() < commit.cells.len() || !addresses.into_iter().all(is_key) {
        return true;
    }
    commit.cells.len() + 2 > 100 || sizes.clone().any(|size| size > ITEM_MAX) || sizes.sum::<usize>() > 4 << 20
}

impl Log for MemoryLog {
    fn datastore(&self) -> &Datastore {
        &self.datastore
    }

    fn commit(&self, commit: Commit) -> Out<'_, Committed> {
        if exceeds_limits(&commit) {
            let table = self.datastore.name.to_string();
            let error = StoreError { kind: ErrorKind::Invalid, table, operation: "TransactWriteItems", source: None };
            return Box::pin(std::future::ready(Err(error)));
        }
        ready(self.tables().commit(commit))
    }

    fn get<'a>(&'a self, key: &'a CellKey) -> Out<'a, Option<StoredCell>> {
        ready(self.tables().cells.get(key).cloned())
    }

    fn get_all<'a>(&'a self, keys: &'a [CellKey]) -> Out<'a, Vec<Option<StoredCell>>> {
        let tables = self.tables();
        ready(keys.iter().map(|key| tables.cells.get(key).cloned()).collect())
    }

    fn latest<'a>(&'a self, row_key: &'a str, column: &'a str) -> Out<'a, Option<StoredCell>> {
        let from = CellKey { row_key: row_key.into(), column: column.into(), ref_key: 0 };
        let to = CellKey { ref_key: u64::MAX, ..from.clone() };
        ready(self.tables().cells.range(from..=to).next_back().map(|(_, cell)| cell.clone()))
    }

    fn row<'a>(&'a self, row_key: &'a str, after: Option<&'a CellKey>, limit: usize) -> Out<'a, Vec<StoredCell>> {
        ready(self.tables().row(row_key, after).take(limit).cloned().collect())
    }

    fn places<'a>(&'a self, row_key: &'a str, after: Option<&'a CellKey>, limit: usize) -> Out<'a, Vec<CellPlace>> {
        let tables = self.tables();
        let places = tables.row(row_key, after).take(limit).map(|StoredCell { cell, .. }| CellPlace {
            key: cell.key.clone(),
            shard: cell.shard,
            added_id: cell.added_id,
            erased: cell.is_erased(),
        });
        ready(places.collect())
    }

    fn page(&self, shard: ShardId, after: AddedId, limit: u32, _: Consistency) -> Out<'_, Vec<Segment>> {
        ready(self.tables().segments(shard, after, limit).cloned().collect())
    }

    fn keys(&self, shard: ShardId, after: AddedId, limit: u32) -> Out<'_, Vec<SegmentKey>> {
        ready(self.tables().segments(shard, after, limit).map(Segment::key).collect())
    }

    fn segment(&self, shard: ShardId, last: AddedId) -> Out<'_, Option<Segment>> {
        ready(self.tables().log.get(&(shard, last)).cloned())
    }

    fn settle(&self, shard: ShardId, last: AddedId) -> Out<'_, Settled> {
        let tables = self.tables();
        let (segment, tip) = (tables.log.get(&(shard, last)).cloned(), tables.tips.get(&shard).copied());
        ready(Settled { segment, tip })
    }

    fn tips(&self, bucket: u32, _: Consistency) -> Out<'_, Vec<Tip>> {
        let tables = self.tables();
        let tips = tables.tips.values().filter(|tip| self.datastore.bucket(tip.shard) == bucket);
        ready(tips.copied().collect())
    }

    fn tip(&self, shard: ShardId) -> Out<'_, Option<Tip>> {
        ready(self.tables().tips.get(&shard).copied())
    }

    fn raise_trim(&self, shard: ShardId, to: AddedId) -> Out<'_, bool> {
        let mut tables = self.tables();
        let tip = tables.tips.get_mut(&shard).filter(|tip| tip.trimmed_to < to && to <= tip.tip);
        let raised = tip.is_some();
        if let Some(tip) = tip {
            tip.trimmed_to = to;
        }
        ready(raised)
    }

    fn delete_segment(&self, shard: ShardId, last: AddedId) -> Out<'_, ()> {
        self.tables().log.remove(&(shard, last));
        ready(())
    }

    fn erase_cell<'a>(&'a self, key: &'a CellKey) -> Out<'a, bool> {
        let mut tables = self.tables();
        let found = tables.cells.get_mut(key).filter(|stored| !stored.cell.is_erased());
        let erased = found.is_some();
        if let Some(stored) = found {
            stored.cell.body = ByteString::new();
        }
        ready(erased)
    }

    fn replace_segment<'a>(&'a self, shard: ShardId, old: &'a Segment, packed: Bytes) -> Out<'a, bool> {
        let mut tables = self.tables();
        let found = tables.log.get_mut(&(shard, old.last)).filter(|segment| segment.packed == old.packed);
        let replaced = found.is_some();
        if let Some(segment) = found {
            segment.packed = packed;
        }
        ready(replaced)
    }

    fn incarnation(&self) -> Out<'_, Option<Incarnation>> {
        let anew = self.tables().anew.clone();
        ready(Some(anew.unwrap_or_else(|| self.datastore.incarnation.clone())))
    }

    fn groups(&self) -> Out<'_, BTreeSet<Name>> {
        ready(self.tables().groups.clone())
    }

    fn enlist<'a>(&'a self, group: &'a Name) -> Out<'a, ()> {
        self.tables().groups.insert(group.clone());
        ready(())
    }

    fn scan<'a>(&'a self, slice: Slice, after: Option<&'a ScanPlace>, limit: u32, _: Consistency) -> Out<'a, Scanned> {
        let tables = self.tables();
        let from = after.map_or(Unbounded, |place| Excluded(address(place)));
        let mine = |key: &CellKey| ShardId::of(&key.row_key, slice.of) == ShardId(slice.index);
        let cells = tables.cells.range((from, Unbounded)).filter(|(key, _)| mine(key)).map(|(_, cell)| cell.clone());
        let cells: Vec<StoredCell> = cells.take(limit as usize).collect();
        let next = cells.last().filter(|_| cells.len() == limit as usize).map(|last| place(&last.cell.key));
        ready(Scanned { cells, damaged: Vec::new(), next })
    }
}

fn place(key: &CellKey) -> ScanPlace {
    ScanPlace { row_key: key.row_key.to_string(), cell: format!("{}#{:020}", key.column, key.ref_key) }
}

/// The address that [`place`] was made of.
fn address(place: &ScanPlace) -> CellKey {
    let (column, ref_key) = place.cell.rsplit_once('#').unwrap_or_default();
    let ref_key = ref_key.parse().unwrap_or_default();
    CellKey { row_key: place.row_key.as_str().into(), column: column.into(), ref_key }
}
