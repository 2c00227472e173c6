//! What a cursor tells of itself to those who watch.

use super::Cursor;
use crate::cell::{AddedId, Millis, ParkedState};
use std::collections::BTreeMap;
use tokio::time::Instant;

/// Dead cells of a shard that are known by their place; more are not counted.
pub const GRAVES_MAX: usize = 2000;

/// Parked cells of one state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lot {
    /// How many.
    pub cells: u64,
    /// Since when the oldest of them was tried, or parked.
    pub since: Option<Millis>,
}

impl Lot {
    fn add(&mut self, since: Millis) {
        self.cells += 1;
        self.since = self.since.into_iter().chain([since]).min();
    }
}

impl Cursor {
    /// Its parked cells: retrying, waiting, dead.
    #[must_use]
    pub fn lots(&self) -> [Lot; 3] {
        let [mut retrying, mut waiting, mut dead] = [Lot::default(); 3];
        for parked in self.book.iter() {
            let lot = if parked.state == ParkedState::Retrying { &mut retrying } else { &mut waiting };
            lot.add(parked.since);
        }
        self.graves.values().copied().chain(self.book.burying()).for_each(|since| dead.add(since));
        [retrying, waiting, dead]
    }

    /// How full its window is, from 0 to 1: at 1 it reads nothing more.
    #[must_use]
    pub fn window_fill(&self) -> f64 {
        let window = &self.trigger.config.window;
        let cells = f64::from(self.undone) + f64::from(self.unsaved) + self.book.leaves() as f64;
        (cells / f64::from(window.cells)).max(self.bytes as f64 / window.bytes as f64).min(1.0)
    }

    /// Since when something is finished that no stored checkpoint covers.
    #[must_use]
    pub fn unstored_since(&self) -> Option<Instant> {
        self.sent_since.into_iter().chain(self.dirty_since).min()
    }

    /// Whether its dead lane has cells, as far as it knows.
    #[must_use]
    pub fn has_dead(&self) -> bool {
        !self.graves.is_empty()
    }

    /// Takes what lies in its dead lane, as stored: each place, and since when it was tried.
    pub fn count_graves(&mut self, stored: BTreeMap<AddedId, Millis>) {
        self.graves = stored;
    }
}
