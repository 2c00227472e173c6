//! What was read of a shard's log and is wanted by some cursor: a bounded cache of decoded segments.

use crate::{cell::AddedId, dispatch::Pages, tail::Entry};
use std::collections::BTreeMap;

/// Bytes that a ring keeps for cursors that come later, so that these need not read again.
const KEPT: usize = 1 << 20;
/// What a cell takes in memory beside its texts.
const CELL: usize = 160;

/// A decoded segment.
pub(super) struct Chunk {
    pub(super) entry: Entry,
    pub(super) first: AddedId,
    pub(super) bytes: usize,
    /// Pays for it.
    _paid: Pages,
}

/// Bytes that an entry takes in memory.
pub(super) fn size(entry: &Entry) -> usize {
    match entry {
        Entry::Cells(cells) => cells.iter().map(|cell| cell.size() + CELL).sum(),
        Entry::Trimmed { .. } | Entry::Damaged { .. } => CELL,
    }
}

/// Decoded segments by their last place.
#[derive(Default)]
pub(super) struct Ring {
    chunks: BTreeMap<AddedId, Chunk>,
    bytes: usize,
}

impl Ring {
    /// The chunk that holds the place after `at`.
    pub(super) fn after(&self, at: AddedId) -> Option<(&Chunk, AddedId)> {
        let (last, chunk) = self.chunks.range(at.next()..).next()?;
        (chunk.first <= at.next()).then_some((chunk, *last))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Takes what was read, with what pays for it.
    pub(super) fn insert(&mut self, entry: Entry, paid: Pages) {
        let Some((first, last)) = entry.range() else { return };
        let bytes = size(&entry);
        let chunk = Chunk { entry, first, bytes, _paid: paid };
        self.bytes += bytes;
        self.bytes -= self.chunks.insert(last, chunk).map_or(0, |chunk| chunk.bytes);
    }

    /// Drops what no cursor will come to, and, beyond a bound, what none comes to next.
    pub(super) fn trim(&mut self, cursors: impl Iterator<Item = AddedId>) {
        let cursors: Vec<AddedId> = cursors.collect();
        let lowest = cursors.iter().min().copied();
        while let Some(entry) = self.chunks.first_entry()
            && lowest.is_none_or(|lowest| *entry.key() <= lowest)
        {
            self.bytes -= entry.remove().bytes;
        }
        if self.bytes > KEPT {
            self.shed(&cursors, KEPT);
        }
        if self.chunks.is_empty() {
            // An emptied map keeps its memory, in each of thousands of idle shards.
            self.chunks = BTreeMap::new();
        }
    }

    /// Drops, from the newest on, what none of these cursors comes to next, until so many bytes are left.
    pub(super) fn shed(&mut self, cursors: &[AddedId], kept: usize) {
        let mut before = None;
        while self.bytes > kept {
            let newer = self.chunks.range(..before.unwrap_or(AddedId(u64::MAX))).next_back();
            let Some((place, first)) = newer.map(|(last, chunk)| (*last, chunk.first)) else { return };
            before = Some(place);
            let next = cursors.iter().any(|at| first <= at.next() && *at < place);
            if !next && let Some(chunk) = self.chunks.remove(&place) {
                self.bytes -= chunk.bytes;
            }
        }
    }
}
