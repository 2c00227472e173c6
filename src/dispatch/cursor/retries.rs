//! Cells that wait for their time.

use super::Item;
use crate::cell::AddedId;
use std::collections::{BTreeMap, HashMap};
use tokio::time::Instant;

/// Waiting cells by their time, and found by their place.
#[derive(Debug, Default)]
pub(super) struct Retries {
    by_time: BTreeMap<(Instant, AddedId), Item>,
    due: HashMap<AddedId, Instant>,
}

impl Retries {
    pub(super) fn insert(&mut self, due: Instant, item: Item) {
        self.due.insert(item.added_id, due);
        self.by_time.insert((due, item.added_id), item);
    }

    pub(super) fn remove(&mut self, id: AddedId) -> Option<Item> {
        let due = self.due.remove(&id)?;
        self.by_time.remove(&(due, id))
    }

    /// When the first is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.by_time.first_key_value().map(|((due, _), _)| *due)
    }

    pub(super) fn has(&self, id: AddedId) -> bool {
        self.due.contains_key(&id)
    }

    /// Those that are due by then.
    pub(super) fn due_by(&self, now: Instant) -> impl Iterator<Item = AddedId> {
        self.by_time.range(..=(now, AddedId(u64::MAX))).map(|((_, id), _)| *id)
    }

    /// The first, if it is due.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Item> {
        let first = self.by_time.first_entry().filter(|first| first.key().0 <= now)?;
        let item = first.remove();
        self.due.remove(&item.added_id);
        Some(item)
    }
}
