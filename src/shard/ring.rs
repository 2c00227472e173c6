//! What was read of a shard's log and is wanted by some cursor: a bounded cache of decoded segments.

use crate::{
    cell::AddedId,
    dispatch::{Ballast, Budget},
    tail::Entry,
};
use std::{collections::BTreeMap, sync::Arc};

/// Bytes that a ring keeps beyond what a cursor needs next.
const KEPT: usize = 4 << 20;

/// A decoded segment.
pub(super) struct Chunk {
    pub(super) entry: Entry,
    pub(super) ballast: Arc<Ballast>,
    pub(super) first: AddedId,
    bytes: usize,
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

    /// Bytes of all chunks.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Takes what was read.
    pub(super) fn insert(&mut self, entry: Entry, budget: &Budget) {
        let Some((first, last)) = entry.range() else { return };
        let bytes = match &entry {
            Entry::Cells(cells) => cells.iter().map(|cell| cell.size() + 160).sum(),
            Entry::Trimmed { .. } | Entry::Damaged { .. } => 64,
        };
        // What was read is here whether the budget has room or not; the next read waits for it.
        let ballast = Arc::new(budget.take(bytes).unwrap_or_default());
        let chunk = Chunk { entry, ballast, first, bytes };
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
        if self.bytes <= KEPT {
            return;
        }
        let mut last = None;
        while self.bytes > KEPT {
            let Some(place) = self.chunks.range(..last.unwrap_or(AddedId(u64::MAX))).next_back().map(|(last, _)| *last)
            else {
                return;
            };
            last = Some(place);
            let first = self.chunks[&place].first;
            let next = cursors.iter().any(|at| first <= at.next() && *at < place);
            if !next && let Some(chunk) = self.chunks.remove(&place) {
                self.bytes -= chunk.bytes;
            }
        }
    }
}
